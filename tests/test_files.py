import errno
import os
import resource
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from lit_spectron.audio_files import find_audio, read_audio, write_audio
from lit_spectron.checkpoint import read_checkpoint
from lit_spectron.checkpoint_io import AtomicCheckpointIO
from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole, make_folder


def test_a_file_appears_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), appearing_whole(path) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with appearing_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


def test_a_failed_checkpoint_leaves_the_last_one(tmp_path):
    path = tmp_path / "checkpoints/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({"step": lambda: 2}, path)
    assert torch.load(path) == {"step": 1} and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("elements", [10, 1_000_000])  # less than a buffer, and more
def test_a_full_disk_is_called_so_and_leaves_the_last_one(tmp_path, elements):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)
    (tmp_path / ".last.ckpt.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as error:
        AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(elements)}, path)
    assert error.value.errno == errno.ENOSPC and error.value.filename == str(path)
    assert torch.load(path) == {"step": 1} and list(path.parent.iterdir()) == [path]


def test_a_changed_checkpoint_is_refused(tmp_path):
    """Its structure is whole: torch would read other weights than were written."""
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"weights": torch.ones(1000)}, path)
    content = bytearray(path.read_bytes())
    ones = content.find(torch.ones(500).numpy().tobytes())
    content[ones : ones + 4] = bytes(4)
    path.write_bytes(content)
    assert torch.load(path)["weights"].sum() == 999
    for load in (AtomicCheckpointIO().load_checkpoint, read_checkpoint):
        with pytest.raises(UserError, match=r"last\.ckpt: damaged: .* is not what was written"):
            load(path)


def test_a_folder_that_can_not_be_had_is_named(tmp_path, monkeypatch):
    make_folder(tmp_path / "deep" / "er")
    make_folder(tmp_path / "deep")
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "in_it"):
        with pytest.raises(UserError, match="file"):
            make_folder(path)
    monkeypatch.setattr(os, "access", lambda *_: False)  # tests that run as root may write anywhere
    with pytest.raises(UserError, match="deep: not writable"):
        make_folder(tmp_path / "deep")
    with pytest.raises(UserError, match="deep: permission denied"):
        find_audio([tmp_path / "deep"])


def test_audio_is_written_as_16_bit_and_what_does_not_fit_is_named(tmp_path):
    samples = np.sin(np.arange(4000)).astype(np.float32)
    write_audio(tmp_path / "a.wav", samples, 16000)
    assert soundfile.info(tmp_path / "a.wav").subtype == "PCM_16"
    assert np.abs(read_audio(tmp_path / "a.wav", 16000) - samples).max() < 2**-15
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # stands for a full disk
    try:
        with pytest.raises(OSError) as error:
            write_audio(tmp_path / "b.wav", samples, 16000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert Path(error.value.filename).name == "b.wav" and [p.name for p in tmp_path.iterdir()] == ["a.wav"]
