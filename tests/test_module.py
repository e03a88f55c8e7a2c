from types import SimpleNamespace

import torch
from torch import nn

from lit_spectron.lightning_cli import SaveFitConfig
from lit_spectron.module import LitSpectron


def test_another_vocoder_comes_with_its_own_weights():
    """What a run was trained with can be listened to through another vocoder; the same one is the checkpoint's."""
    module = LitSpectron.__new__(LitSpectron)
    nn.Module.__init__(module)
    module.vocoder, module.config = nn.Linear(2, 2), {"vocoder": {"class_path": "Neural"}}
    for saved, expected in (
        ("GriffinLim", {"model.x", "vocoder.weight", "vocoder.bias"}),
        ("Neural", {"model.x", "vocoder.w"}),
    ):
        state = {"model.x": torch.zeros(1), "vocoder.w": torch.zeros(1)}
        checkpoint = {"config": {"vocoder": {"class_path": saved}}, "state_dict": state}
        module.on_load_checkpoint(checkpoint)
        assert checkpoint["state_dict"].keys() == expected


def test_without_a_logger_no_config_is_left_in_the_working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SaveFitConfig(None, None).setup(SimpleNamespace(loggers=[]), None, "fit")
    assert list(tmp_path.iterdir()) == []
