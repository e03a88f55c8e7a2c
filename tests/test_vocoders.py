import inspect
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonargparse
import pytest
import soundfile
import soxr
import torch
import yaml

import lit_spectron.vocoders
from lit_spectron.audio import AudioSpec, LogMelSpectrogram
from lit_spectron.cli import main
from lit_spectron.errors import UserError
from lit_spectron.module import LitSpectron
from lit_spectron.optim import build_optimizer
from lit_spectron.pipeline import SpectronPipeline
from lit_spectron.vocoders import GriffinLim, HifiGan, Vocoder, Vocos
from tests.discovery import implementations

ROOT = Path(__file__).parents[1]
EXTRA = {HifiGan: "speechbrain", Vocos: "vocos"}


IMPLEMENTATIONS = implementations(lit_spectron.vocoders, Vocoder)


def build(implementation: type[Vocoder], source: str | None = None, audio: AudioSpec | None = None) -> Vocoder:
    """One with random weights, for the geometry that it was made for."""
    if implementation in EXTRA:
        pytest.importorskip(EXTRA[implementation])
    parameters = inspect.signature(implementation).parameters
    if audio is None:
        audio = parameters["made_for"].default if "made_for" in parameters else AudioSpec(n_mels=40, log_floor=1e-3)
    weights = {"source": source} if "source" in parameters else {}
    torch.manual_seed(0)
    return implementation(audio, **weights)


@pytest.fixture(scope="module")
def speech() -> torch.Tensor:
    """Two seconds at 16 kHz, (1, T)."""
    path = next(iter(sorted((ROOT / "data/sequences/small/slt").rglob("*.opus"))))
    samples, rate = soundfile.read(path, start=4800, frames=16000 * 2, dtype="float32")
    assert rate == 16000
    return torch.from_numpy(samples)[None]


def at_rate(speech: torch.Tensor, rate: int) -> torch.Tensor:
    return torch.from_numpy(soxr.resample(speech[0].numpy(), 16000, rate))[None]


def test_there_are_vocoders():
    assert set(IMPLEMENTATIONS) >= {GriffinLim, HifiGan, Vocos}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda c: c.__name__)
def test_contract(implementation: type[Vocoder], speech):
    vocoder = build(implementation)
    audio = vocoder.audio
    waveform = at_rate(speech, audio.sample_rate_hz)[:, : audio.seconds_to_samples(0.5)]
    lengths = torch.tensor([waveform.shape[1] // 2, waveform.shape[1]])
    log_mel, frames = LogMelSpectrogram(audio)(waveform.expand(2, -1), lengths)
    log_mel[0, frames[0] :] = 3.0  # whatever lies there is not heard
    together = vocoder(log_mel, frames)
    assert together.shape == (2, audio.frames_to_samples(log_mel.shape[1])) and together.isfinite().all()
    # The same alone and beside a longer one, and zero beyond the end.
    alone = vocoder(log_mel[:1, : frames[0]], frames[:1])
    samples = audio.frames_to_samples(int(frames[0]))
    assert alone.shape == (1, samples) and alone.std() > 0
    torch.testing.assert_close(together[0, :samples], alone[0], atol=0.01 * float(alone.std()), rtol=0)
    assert not together[0, samples:].any() and together[1, samples:].any()
    # Frozen, and in evaluation mode whatever happens around it.
    around = torch.nn.ModuleList([vocoder]).train()
    assert around.training and not any(module.training for module in vocoder.modules())
    assert not any(parameter.requires_grad for parameter in vocoder.parameters())
    assert not vocoder(log_mel.requires_grad_(), frames).requires_grad


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda c: c.__name__)
def test_an_excerpt_sounds_as_in_the_whole(implementation: type[Vocoder], speech):
    vocoder = build(implementation)
    if isinstance(vocoder, GriffinLim):  # rounding grows with every iteration
        vocoder = GriffinLim(vocoder.audio, iterations=8)
    audio, context = vocoder.audio, vocoder.context_frames
    waveform = at_rate(speech, audio.sample_rate_hz)
    log_mel, lengths = LogMelSpectrogram(audio)(waveform, torch.tensor([waveform.shape[1]]))
    whole, first = vocoder(log_mel, lengths)[0], int(lengths) // 2
    begin, end = (audio.frames_to_samples(first + n) for n in (0, 8))
    for missing, same in ((0, True), (context, False)):
        seen = first - context + missing
        part = vocoder.excerpt(log_mel[:, seen : first + 8 + context - missing], seen)[0]
        part = part[audio.frames_to_samples(first - seen) :][: end - begin]
        assert bool((part - whole[begin:end]).abs().max() < 0.01 * whole.std()) == same


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS, ids=lambda c: c.__name__)
def test_any_prediction_is_survived(implementation: type[Vocoder]):
    vocoder = build(implementation)
    for value in (vocoder.audio.log_mel_floor, 1e4):
        waveform = vocoder(torch.full((2, 1, vocoder.audio.n_mels), value), torch.tensor([1, 0]))
        assert waveform.shape == (2, vocoder.audio.hop_samples) and waveform.isfinite().all() and not waveform[1].any()


@pytest.mark.parametrize("implementation", EXTRA, ids=lambda c: c.__name__)
def test_another_geometry_is_refused(implementation: type[Vocoder]):
    with pytest.raises(UserError, match=r"n_mels \d+ / 128, .*hop_seconds 0\.\d+ / 0\.0125") as error:
        implementation(AudioSpec())
    assert "\n" not in str(error.value) and "sample_rate_hz 16000" not in str(error.value)


@pytest.mark.parametrize("implementation", EXTRA, ids=lambda c: c.__name__)
def test_a_missing_extra_is_named(implementation: type[Vocoder], monkeypatch):
    monkeypatch.setitem(sys.modules, EXTRA[implementation], None)
    for name in [name for name in sys.modules if name.startswith(f"{EXTRA[implementation]}.")]:
        monkeypatch.delitem(sys.modules, name)
    made_for = inspect.signature(implementation).parameters["made_for"].default
    with pytest.raises(UserError, match=r'pip install .*"\.\[vocoders\]"'):
        implementation(made_for, source=None)


@pytest.mark.parametrize(("implementation", "name"), [(HifiGan, "generator.ckpt"), (Vocos, "pytorch_model.bin")])
def test_bad_weights_are_refused(implementation: type[Vocoder], name: str, tmp_path):
    for content in ({"other": torch.zeros(1)}, {"code": Path("x")}):
        torch.save(content, tmp_path / name)
        with pytest.raises(UserError, match=name):
            build(implementation, str(tmp_path))
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"holds no {name}"):
        build(implementation, str(tmp_path))
    with pytest.raises(UserError, match="no such folder"):
        build(implementation, str(tmp_path / "nowhere"))


def published_features(preset: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """The feature extractor that came with the vocoder, (1, T) to (1, M, F)."""
    if preset == "vocos_24khz":
        return pytest.importorskip("vocos.feature_extractors").MelSpectrogramFeatures(24000, 1024, 256, 100, "center")
    mel_spectrogram = pytest.importorskip("speechbrain.lobes.models.HifiGAN").mel_spectrogram
    return lambda waveform: mel_spectrogram(
        16000, 256, 1024, 1024, 80, 0.0, 8000, 1, False, "slaney", "slaney", True, waveform
    )


@pytest.mark.parametrize(
    ("preset", "implementation"), [("hifigan_libritts_16khz", HifiGan), ("vocos_24khz", Vocos), ("spectron", None)]
)
def test_presets_are_the_published_geometries(preset: str, implementation: type[Vocoder] | None, speech):
    values = yaml.safe_load((ROOT / f"conf/audio/{preset}.yaml").read_text(encoding="utf-8"))
    audio = AudioSpec(**values)
    assert values.keys() == AudioSpec.__dataclass_fields__.keys()
    if implementation is None:
        assert audio == AudioSpec()
        return
    assert audio == inspect.signature(implementation).parameters["made_for"].default
    waveform = at_rate(speech, audio.sample_rate_hz)
    ours, frames = LogMelSpectrogram(audio)(waveform, torch.tensor([waveform.shape[1]]))
    published = published_features(preset)(waveform)[0].T
    # Both ends are padded there by reflection, here by zeros.
    torch.testing.assert_close(ours[0, 2:-2], published[2 : int(frames) - 2], atol=1e-4, rtol=0)


@pytest.mark.parametrize("path", sorted((ROOT / "conf/vocoder").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_config_parses(path: Path):
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("--vocoder", type=Callable[[AudioSpec], Vocoder], enable_path=True)
    config = yaml.safe_load(parser.dump(parser.parse_args([f"--vocoder={path}"]), skip_none=False))["vocoder"]
    implementation = getattr(lit_spectron.vocoders, config["class_path"].rsplit(".", 1)[1])
    for name, parameter in list(inspect.signature(implementation).parameters.items())[1:]:
        value = config["init_args"].pop(name)
        assert (AudioSpec(**value) if name == "made_for" else value) == (
            list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        )
    assert not config["init_args"]


def write_published(implementation: type[Vocoder], folder: Path) -> None:
    """Random weights in the layout of the published files: with weight norm, and with a feature extractor's buffer."""
    folder.mkdir()
    if implementation is Vocos:
        state = {**build(Vocos).state_dict(), "feature_extractor.mel_spec.mel_scale.fb": torch.zeros(513, 100)}
        torch.save(state, folder / "pytorch_model.bin")
        return
    weights = {name.removeprefix("generator."): value for name, value in build(HifiGan).state_dict().items()}
    state = {}
    for name, value in weights.items():
        if name.endswith(".weight"):
            norm = value.flatten(1).norm(dim=1).view(-1, *[1] * (value.ndim - 1))
            state |= {f"{name}_g": norm, f"{name}_v": value}
        else:
            state[name] = value
    torch.save(state, folder / "generator.ckpt")


@pytest.mark.parametrize("implementation", EXTRA, ids=lambda c: c.__name__)
def test_published_weights_travel_inside_the_checkpoint(implementation: type[Vocoder], tmp_path, monkeypatch):
    pytest.importorskip(EXTRA[implementation])
    write_published(implementation, tmp_path / "published")
    monkeypatch.chdir(ROOT)
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LitSpectron, "model", sub_configs=True)
    vocoder, preset = ("vocos", "vocos_24khz") if implementation is Vocos else ("hifi_gan", "hifigan_libritts_16khz")
    arguments = [
        f"--model.{slot}=conf/{slot}/{name}_tiny.yaml" for slot, name in (("encoder", "conformer"), ("decoder", "mlp"))
    ]
    arguments += [f"--model.audio=conf/audio/{preset}.yaml", f"--model.vocoder=conf/vocoder/{vocoder}.yaml"]
    arguments += [
        "--model.llm=conf/llm/llama_tiny_bytes.yaml",
        f"--model.vocoder.init_args.source={tmp_path / 'published'}",
    ]
    config = parser.parse_args(
        [*arguments, "--model.optimizer.total_steps=1", "--model.generation.max_speech_seconds=0.2"]
    )
    module = parser.instantiate_classes(config).model
    module.config = {**yaml.safe_load(parser.dump(config, skip_none=False))["model"], "prompt_seconds": 0.3}
    module.model.set_mel_statistics(torch.zeros(module.model.audio.n_mels), torch.ones(module.model.audio.n_mels), 1)
    torch.testing.assert_close(module.vocoder.state_dict(), build(implementation).state_dict(), atol=1e-6, rtol=1e-5)
    trained = {
        id(p)
        for group in build_optimizer(module.model, module.optimizer_settings)[0].param_groups
        for p in group["params"]
    }
    assert not trained & {id(p) for p in module.vocoder.parameters()}
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "model.ckpt")

    shutil.rmtree(tmp_path / "published")
    monkeypatch.chdir(tmp_path)
    pipeline = SpectronPipeline.from_checkpoint("model.ckpt", "cpu")
    for name, value in module.vocoder.state_dict().items():
        assert torch.equal(value, pipeline.vocoder.state_dict()[name]), name
    prompt = torch.randn(pipeline.model.audio.seconds_to_samples(0.3)) * 0.1
    _, (sound,) = pipeline.generate([prompt])
    assert len(sound) and sound.isfinite().all()


def difference(vocoder: Vocoder, speech: torch.Tensor, audio: AudioSpec) -> float:
    """Mean absolute difference in nats between the log-mel of speech and of its resynthesis."""
    front, lengths = LogMelSpectrogram(audio), torch.tensor([speech.shape[1]])
    log_mel, frames = front(speech, lengths)
    return float((front(vocoder(log_mel, frames), audio.frames_to_samples(frames))[0] - log_mel).abs().mean())


@pytest.mark.parametrize("spec", [AudioSpec(log_floor=1e-3), AudioSpec(n_mels=80, hop_seconds=0.01, log_floor=1e-3)])
def test_griffin_lim_sounds_like_its_spectrogram(speech, spec: AudioSpec):
    fast, classic = (difference(GriffinLim(spec, momentum=momentum), speech, spec) for momentum in (0.99, 0.0))
    front, lengths = LogMelSpectrogram(spec), torch.tensor([speech.shape[1]])
    noise = torch.randn(speech.shape, generator=torch.Generator().manual_seed(0)) * speech.std()
    others = [float((front(s, lengths)[0] - front(speech, lengths)[0]).abs().mean()) for s in (noise, speech.flip(1))]
    assert fast < 0.95 * classic and fast < 0.09 < 0.5 < min(others)


def test_resynthesize(tmp_path, monkeypatch, capsys, speech):
    monkeypatch.chdir(ROOT)
    soundfile.write(tmp_path / "a.wav", speech[0].numpy(), 16000)
    files, out = str(tmp_path / "a.wav"), str(tmp_path / "out")
    main(["resynthesize", "--vocoder", "conf/vocoder/griffin_lim.yaml", "--out", out, files])
    (line,) = capsys.readouterr().out.splitlines()
    samples, rate = soundfile.read(tmp_path / "out/a.wav")
    assert line.startswith(f"{tmp_path / 'out/a.wav'}: 0.") and line.endswith(" nats")
    assert rate == 16000 and len(samples) == speech.shape[1] and 0 < float(line.split()[1]) < 0.3
    before = (tmp_path / "a.wav").read_bytes()
    with pytest.raises(SystemExit):
        main(["resynthesize", "--vocoder", "conf/vocoder/griffin_lim.yaml", "--out", str(tmp_path / "out/.."), files])
    assert "holds a.wav, which is to be read" in capsys.readouterr().err
    assert (tmp_path / "a.wav").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--vocoder", "conf/vocoder/nothing.yaml", "data/sequences/prompts"],
            "conf/vocoder/nothing.yaml: no such file",
        ),
        (["--vocoder", "conf/audio/spectron.yaml", "data/sequences/prompts"], "vocoder"),
        (["--vocoder", "conf/vocoder/hifi_gan.yaml", "data/sequences/prompts"], "n_mels 80 / 128"),
        (["--vocoder", "conf/vocoder/griffin_lim.yaml", "nowhere.wav"], "nowhere.wav"),
        (
            [
                "--vocoder",
                "conf/vocoder/griffin_lim.yaml",
                "--audio",
                "conf/audio/vocos_24khz.yaml",
                "data/sequences/prompts",
            ],
            "24000 Hz",
        ),
    ],
)
def test_mistakes_on_resynthesizes_command_line(arguments: list[str], words: str, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        main(["resynthesize", "--out", str(tmp_path / "out"), *arguments])
    (line,) = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith("error: ") and words in line


@pytest.mark.parametrize(
    "code",
    [
        "from transformers import LlamaForCausalLM",
        "import torch, torchaudio.transforms as t; assert t.MelSpectrogram(n_mels=40)(torch.ones(800)).shape[0] == 40",
        "import speechbrain.lobes.models.HifiGAN",
        "import vocos",
    ],
    ids=["transformers", "torchaudio", "speechbrain", "vocos"],
)
def test_torchaudio_can_be_imported(code: str):
    pytest.importorskip("torchaudio")
    if "speechbrain" in code or "vocos" in code:
        pytest.importorskip("speechbrain")
    subprocess.run([sys.executable, "-c", f"import lit_spectron; {code}"], cwd=ROOT, check=True, timeout=120)


@pytest.mark.parametrize(
    ("outcome", "available"),
    [("return True", True), ("return False", False), ("raise OSError", False), ("raise ImportError", None)],
)
def test_the_guard_acts_on_a_failure_only(outcome: str, available: bool | None, tmp_path):
    folder = tmp_path / "torchaudio/_extension"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("from . import _extension\n")
    (folder / "__init__.py").write_text("from .utils import _load_lib\nAVAILABLE = bool(_load_lib('x'))\n")
    (folder / "utils.py").write_text(f"def _load_lib(lib):\n    {outcome}\n")
    code = f"import sys; sys.path[:0] = {[str(tmp_path), str(ROOT)]}\nimport lit_spectron, torchaudio\n"
    done = subprocess.run(
        [sys.executable, "-c", code + "print(torchaudio._extension.AVAILABLE)"], capture_output=True, text=True
    )
    assert done.stdout.strip() == ("" if available is None else str(available))
