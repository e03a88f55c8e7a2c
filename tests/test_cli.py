import errno
import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from urllib.parse import quote

import lightning  # noqa: F401 - here, so that its logger does not hold on to one test's captured stderr
import numpy as np
import pytest
import soundfile
import torch
import yaml

from lit_spectron import __version__
from lit_spectron.cli import COMMANDS, main
from lit_spectron.errors import UserError
from lit_spectron.llms.tokenizer import Tokenizer
from lit_spectron.module import LitSpectron
from lit_spectron.pipeline import SpectronPipeline

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "conf").rglob("*.yaml"))
WHOLE = [p for p in CONFIGS if "encoder" in yaml.safe_load(p.read_text(encoding="utf-8")).get("model", {})]
README = (ROOT / "README.md").read_text(encoding="utf-8")
README_COMMANDS = re.findall(r"^python -m lit_spectron ((?:fit|test|predict) .*?)\s*(?:#.*)?$", README, flags=re.M)
SCALE = (ROOT / "docs/SCALE.md").read_text(encoding="utf-8")
SCALE_COMMANDS = re.findall(
    r"^(?:python|torchrun .*|srun python) -m lit_spectron (fit .*?)(?: \$\{.*\})?$", SCALE, flags=re.M
)
assert len(README_COMMANDS) >= 8 and len(SCALE_COMMANDS) == 5
RATE = 16000


def subprocess_call(arguments: list[object], folder: Path = ROOT) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lit_spectron", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture
def call(capfd, monkeypatch):
    """Runs a command in this process, from the repository's root: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", ["lit_spectron"])
        capfd.readouterr()
        try:
            main([str(a) for a in arguments])
            code = 0
        except SystemExit as end:
            code = end.code or 0
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return run


def assert_one_line(result: tuple[int, str, str], *names: str) -> None:
    code, _, err = result
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and len(lines) == 1, err
    assert lines[0].startswith("error: ") and all(name in lines[0] for name in names), err


def test_help_and_version(call):
    for arguments in ((), ("--help",), ("-h",)):
        code, out, err = call(*arguments)
        assert code == 0 and all(command in out for command in COMMANDS) and not err
    assert call("--version")[1].strip() == __version__
    code, out, _ = call("generate", "--help")
    assert code == 0 and "--ckpt" in out and "--out" in out


def test_unknown_command(call):
    assert_one_line(call("trian"), "trian", "fit")


def test_a_full_disk_is_one_line(call, monkeypatch):
    def fill(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("lit_spectron.cli.generate", fill)
    assert_one_line(call("generate"), "no space left on device")


def test_a_refused_permission_is_one_line(call, monkeypatch):
    def refuse(_):
        raise PermissionError(13, "Permission denied", "runs/quickstart")

    monkeypatch.setattr("lit_spectron.cli.generate", refuse)
    assert_one_line(call("generate"), "runs/quickstart", "permission denied")


def test_mistakes_on_generates_command_line(call, tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(RATE), RATE)
    assert_one_line(
        call("generate", "--ckpt", tmp_path / "no.ckpt", "--out", tmp_path / "out", tmp_path / "a.wav"), "no.ckpt"
    )
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    assert_one_line(
        call("generate", "--ckpt", tmp_path / "bad.ckpt", "--out", tmp_path / "out", tmp_path / "a.wav"), "bad.ckpt"
    )
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    assert_one_line(
        call("generate", "--ckpt", tmp_path / "other.ckpt", "--out", tmp_path / "out", tmp_path / "a.wav"), "other.ckpt"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--model.audio.n_melz", "80"], ["n_melz"]),
        (["--trainer.max_step", "3"], ["--trainer.max_step"]),
        (["--model.audio.n_mels", "many"], ["n_mels", "many"]),
        (["--model.audio.n_mels", "0"], ["n_mels"]),
        (["--model.encoder.class_path", "lit_spectron.encoders.Nothing"], ["Nothing"]),
        (["--config", "conf/nowhere.yaml"], ["conf/nowhere.yaml"]),
        (["--config", "conf/eval/llama_questions.yaml"], ["model.llm.init_args.source", "llm_alone"]),
        (["--data.rot", "no/such/corpus"], ["rot"]),
        (["--data.batch_size", "0"], ["data.batch_size", "got 0"]),
        (["--data.prompt_split", "pause"], ["data.max_prompt_seconds", "pause needs it"]),
        (["--model.loss_weights", "{text: 0, spectrogram: 0, stop: 0}"], ["model.loss_weights"]),
        (["--data.root", "no/such/corpus"], ["no/such/corpus"]),
        (["--data.train_cuts", "no_cuts.jsonl"], ["no_cuts.jsonl"]),
        (["--ckpt_path", "no/such.ckpt"], ["no/such.ckpt"]),
        (["--model.generation.top_p", "2"], ["top_p"]),
        (["--trainer.accelerator", "cpu", "--trainer.devices", "0"], ["--trainer", "devices"]),
        (["--trainer.strategy", "deepspeed_stage_3"], ["--trainer.strategy", "deepspeed_stage_3", "fsdp.yaml"]),
        (
            ["--config", "conf/trainer/fsdp.yaml", "--trainer.precision", "16-mixed"],
            ["--trainer.precision", "16-mixed"],
        ),
        (["--model.llm.init_args.tokenizer", "no_tokenizer.json"], ["no_tokenizer.json"]),
        (["--model.vocoder", "conf/vocoder/hifi_gan.yaml"], ["HifiGan", "n_mels 80 / 128", "log_floor 1e-05 / 0.001"]),
    ],
    ids=lambda value: value[-1],
)
def test_mistakes_in_a_config(call, tmp_path, arguments, names):
    logger = ["--trainer.logger.init_args.save_dir", tmp_path / "runs"]
    result = call("fit", "--config", "conf/quickstart.yaml", *logger, *arguments)
    code, _, err = result
    # Lightning talks on stderr once its trainer stands; what it says is no traceback.
    last = err.strip().splitlines()[-1]
    assert code == 2 and last.startswith("error: ") and all(name in last for name in names), err
    assert "Traceback" not in err and err.count("error: ") == 1
    assert not (tmp_path / "runs").exists()


def test_an_unknown_key_in_a_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("model:\n  audio:\n    n_melz: 80\n")
    done = subprocess_call(["fit", "--config", "conf/quickstart.yaml", "--config", tmp_path / "mine.yaml"])
    assert_one_line((done.returncode, done.stdout, done.stderr), "n_melz")


@pytest.mark.parametrize("path", WHOLE, ids=lambda p: p.stem)
def test_every_whole_config_parses(call, path):
    code, out, err = call("fit", "--config", path.relative_to(ROOT), "--print_config")
    assert code == 0, err
    config = yaml.safe_load(out)
    assert all("class_path" in config["model"][slot] for slot in ("encoder", "llm", "decoder", "vocoder"))


@pytest.mark.parametrize("path", sorted((ROOT / "conf/eval").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_protocol_goes_with_a_config(call, path):
    config = ("--config", "conf/smollm2_whisper.yaml", "--config", path.relative_to(ROOT))
    code, out, err = call("test", *config, "--print_config")
    assert code == 0, err
    asked, found = yaml.safe_load(path.read_text(encoding="utf-8")), yaml.safe_load(out)
    assert [c["class_path"] for c in found["trainer"]["callbacks"]] == [
        c["class_path"] for c in asked["trainer"]["callbacks"]
    ]
    if "model" in asked:
        assert asked["model"]["generation"].items() <= found["model"]["generation"].items()
    data = asked.get("data", {})
    if isinstance(data, dict):
        assert data.items() <= found["data"]["init_args"].items()
        assert "test_ids" not in data or (ROOT / data["test_ids"]).is_file()
    else:
        assert found["data"]["class_path"] == "datamodules.SpokenQADataModule"
        answerer = found["trainer"]["callbacks"][1]["init_args"]["llm_alone"]
        assert answerer["init_args"]["source"] == found["model"]["llm"]["init_args"]["source"]


@pytest.mark.parametrize("command", [*README_COMMANDS, *SCALE_COMMANDS])
def test_every_command_of_readme_and_scale_parses(call, command):
    code, _, err = call(*shlex.split(command), "--print_config")
    assert code == 0, err


@pytest.mark.parametrize("path", sorted((ROOT / "conf/trainer").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_way_of_sharing_the_work_goes_with_a_config(call, path):
    code, out, err = call("fit", "--config", "conf/quickstart.yaml", "--config", path, "--print_config")
    assert code == 0, err
    wanted = yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"]
    trainer = yaml.safe_load(out)["trainer"]
    for key, value in wanted.items():
        if isinstance(value, dict):
            assert trainer[key]["class_path"] == value["class_path"]
            assert value.get("init_args", {}).items() <= trainer[key].get("init_args", {}).items()
        else:
            assert trainer[key] == value


@pytest.mark.parametrize("path", sorted((ROOT / "conf/audio").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_geometry_can_be_named(call, tmp_path, path):
    (tmp_path / "mine.yaml").write_text(f"model:\n  audio: {path}\n")
    for arguments in (["--model.audio", path.relative_to(ROOT)], ["--config", tmp_path / "mine.yaml"]):
        code, out, err = call("fit", "--config", "conf/quickstart.yaml", *arguments, "--print_config")
        assert code == 0, err
        assert yaml.safe_load(out)["model"]["audio"] == yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", [p for p in CONFIGS if p not in WHOLE], ids=lambda p: p.stem)
def test_every_key_of_a_part_is_explained(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    frame = ("#", "class_path:", "init_args:", "trainer:")
    keys = [line for line in lines if line.strip() and not line.strip().startswith(frame)]
    assert [line for line in keys if " # " not in line] == []


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    """Two steps of the quickstart with a geometry of its own, in a process of its own."""
    runs = tmp_path_factory.mktemp("runs")
    changes = {
        "model.audio.n_mels": 80,
        "model.audio.hop_seconds": 0.01,
        "model.decoder.init_args.reduction_factor": 2,
        "model.generated_utterances": 2,
        "model.generation.max_speech_seconds": 0.5,
        "model.statistics_batches": 2,
        "data.prompt_seconds": 1.4,
        "data.batch_size": 2,
        "trainer.max_steps": 2,
        "trainer.val_check_interval": 2,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.logger.init_args.save_dir": runs,
    }
    overrides = [part for key, value in changes.items() for part in (f"--{key}", value)]
    done = subprocess_call(["fit", "--config", "conf/quickstart.yaml", *overrides])
    assert done.returncode == 0, done.stderr[-2000:]
    return runs / "quickstart/version_0"


@pytest.mark.slow
def test_fit_leaves_a_run(run_folder):
    config = yaml.safe_load((run_folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["audio"]["n_mels"] == 80 and config["model"]["audio"]["sample_rate_hz"] == RATE
    assert config["model"]["optimizer"]["total_steps"] == 2 and "${" not in json.dumps(config)
    assert config["model"]["encoder"]["init_args"]["hidden_size"] == 128
    assert config["data"]["class_path"] == "datamodules.LibriLightDataModule"
    assert config["data"]["init_args"]["prompt_seconds"] == 1.4
    header, *rows = (run_folder / "metrics.csv").read_text().splitlines()
    assert {"val/loss", "val/wer_text", "val/wer_prompt", "val/stop_rate", "val/silence_ratio"} <= set(
        header.split(",")
    )
    assert rows and not list(run_folder.rglob("*.part"))
    assert list(run_folder.glob("events.out.tfevents*"))
    assert (run_folder / "checkpoints/last.ckpt").is_file() and (run_folder / "checkpoints/best.ckpt").is_file()


@pytest.mark.slow
def test_a_run_does_not_write_into_another_ones_folder(call, run_folder):
    """As two that begin in the same moment would."""
    version = ("--trainer.logger.init_args.version", run_folder.name)
    before = {path: path.read_bytes() for path in run_folder.glob("**/*.*") if "events" not in path.name}
    code, _, err = call("fit", "--config", run_folder / "config.yaml", *version)
    assert code == 2 and f"{run_folder}: holds another run" in err.splitlines()[-1] and "Traceback" not in err, err
    assert before == {path: path.read_bytes() for path in before}


@pytest.mark.slow
def test_an_interrupted_test_ends_with_130(call, run_folder, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(LitSpectron, "test_step", interrupted)
    handler = signal.getsignal(signal.SIGINT)  # Lightning has it ignored from then on
    checkpoint = run_folder / "checkpoints/last.ckpt"
    code, _, err = call("test", "--config", run_folder / "config.yaml", "--ckpt_path", checkpoint)
    signal.signal(signal.SIGINT, handler)
    assert code == 130 and err.splitlines()[-1] == "interrupted"


@pytest.mark.slow
def test_test_writes_a_report(run_folder):
    before = (run_folder / "config.yaml").read_text()
    options = ["--ckpt_path", run_folder / "checkpoints/last.ckpt", "--trainer.limit_test_batches", 2]
    done = subprocess_call(["test", "--config", run_folder / "config.yaml", *options])
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads((run_folder / "report.json").read_text(encoding="utf-8"))
    assert {"test/loss", "test/wer_text", "test/wer_prompt", "test/stop_rate"} <= report["metrics"].keys()
    assert len(report["samples"]) == 4  # two batches of two: generated_utterances limits validation only
    assert sum(row["utterances"] for row in report["by_speaker"].values()) == 4
    markdown = (run_folder / "report.md").read_text(encoding="utf-8")
    assert "test/wer_text" in markdown and "## The worst by wer_text" in markdown
    for name, (low, high) in report["intervals"].items():
        pairs = np.array([row["counts"][name.removeprefix("test/")] for row in report["samples"].values()])
        assert low <= report["metrics"][name] <= high
        assert report["metrics"][name] == pytest.approx(pairs[:, 0].sum() / pairs[:, 1].sum(), abs=1e-6)
    assert {"test/wer_text", "test/wer_prompt", "test/stop_rate"} <= report["intervals"].keys()
    assert report["ranked_by"] == "wer_text" and len(report["best"]) == len(report["worst"]) == 3
    values = [report["samples"][name]["wer_text"] for name in report["worst"] + report["best"][::-1]]
    assert values == sorted(values, reverse=True)
    for name, sample in ((name, report["samples"][name]) for name in report["worst"]):
        path = run_folder / "samples" / quote(name, safe=" ")
        samples, rate = soundfile.read(f"{path}.wav")
        assert len(samples) / rate == pytest.approx(sample["seconds"], abs=1e-3)
        assert len(soundfile.read(f"{path}.prompt.wav")[0]) == 1.4 * rate
    assert (run_folder / "config.yaml").read_text() == before


@pytest.mark.slow
def test_compare(call, run_folder, tmp_path):
    if not (run_folder / "report.json").is_file():
        pytest.skip("test_test_writes_a_report was not run")
    code, out, err = call("compare", run_folder, run_folder, "--out", tmp_path / "table.md")
    assert code == 0 and not err and out.count(f"| {run_folder} | ") == 3
    assert (tmp_path / "table.png").is_file() and (tmp_path / "table.md").read_text(
        encoding="utf-8"
    ).strip() == out.strip()


def test_mistakes_on_compares_command_line(call, tmp_path):
    assert_one_line(call("compare", tmp_path), "report.json", "no such report")
    (tmp_path / "report.json").write_text("{", encoding="utf-8")
    assert_one_line(call("compare", tmp_path), "report.json", "damaged")
    assert_one_line(call("compare"), "RUN")


@pytest.fixture(scope="module")
def moved_checkpoint(run_folder, tmp_path_factory) -> Path:
    """Far from its run."""
    checkpoint = next(iter(sorted((run_folder / "checkpoints").glob("*.ckpt"))))
    return Path(shutil.copy(checkpoint, tmp_path_factory.mktemp("elsewhere") / "model.ckpt"))


@pytest.mark.slow
def test_a_checkpoint_alone_rebuilds_every_part(moved_checkpoint, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pipeline = SpectronPipeline.from_checkpoint(moved_checkpoint, "cpu", {"max_text_tokens": 3})
    model = pipeline.model
    assert model.audio.n_mels == 80 and model.audio.hop_samples == 160 and model.audio.log_floor == 1e-3
    assert pipeline.vocoder.audio == model.encoder.log_mel.audio == model.log_mel.audio == model.audio
    assert model.decoder.reduction_factor == 2 and model.decoder.squeeze.in_features == 160
    assert model.mel_mean.shape == (80,) and model.has_mel_statistics and model.mel_mean.abs().min() > 0
    tokenizer = Tokenizer(str(ROOT / "data/sequences/tokenizer.json"))
    assert model.llm.tokenizer.to_json() == tokenizer.to_json()
    assert pipeline.prompt_seconds == 1.4 and not model.training
    assert pipeline.settings.max_speech_seconds == 0.5 and pipeline.settings.max_text_tokens == 3
    state = torch.load(moved_checkpoint, weights_only=True)["state_dict"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[f"model.{name}"]), name


@pytest.fixture
def prompts(tmp_path) -> Path:
    folder = tmp_path / "prompts"
    (folder / "deep").mkdir(parents=True)
    source = next(iter(sorted((ROOT / "data/sequences/small").rglob("*.opus"))))
    for number, name in enumerate(("first.wav", "deep/second.flac")):
        samples, _ = soundfile.read(source, start=40000 * number, frames=2 * RATE)
        soundfile.write(folder / name, samples, RATE)
    return folder


@pytest.mark.slow
@pytest.mark.usefixtures("prompts")
def test_generate(moved_checkpoint, tmp_path):
    done = subprocess_call(
        ["generate", "--ckpt", moved_checkpoint, "--out", "out", "--device", "cpu", "prompts"], tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        f"{n}.{s}" for n in ("first", "second") for s in ("wav", "txt", "json", "png")
    }
    for name in ("first", "second"):
        samples, rate = soundfile.read(out / f"{name}.wav")
        description = json.loads((out / f"{name}.json").read_text(encoding="utf-8"))
        assert rate == RATE and len(samples) / rate == pytest.approx(description["seconds"]) and len(samples) <= 8000
        assert description["text"] == (out / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n")
        assert description["prompt_seconds"] == 1.4 and description["stop_reason"] in ("stop", "length", "silence")
        assert description["settings"]["max_speech_seconds"] == 0.5
        assert (out / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_generate_in_int8(call, moved_checkpoint, prompts, tmp_path):
    out = tmp_path / "int8"
    code, _, err = call(
        *("generate", "--ckpt", moved_checkpoint, "--out", out, "--device", "cpu", "--weights", "int8", prompts)
    )
    assert code == 0, err
    assert json.loads((out / "first.json").read_text())["weights"] == "int8"


@pytest.mark.slow
def test_pairs(call, moved_checkpoint, prompts):
    (prompts / "pairs.tsv").write_text("better\tworse\nfirst.wav\tdeep/second.flac\n", encoding="utf-8")
    options = ("--ckpt", moved_checkpoint, "--device", "cpu", "--out", prompts / "scores.tsv")
    code, out, err = call("pairs", prompts / "pairs.tsv", *options, "--by", "spectrogram", "--prompt_seconds", 1.4)
    assert code == 0 and out.startswith("accuracy by spectrogram: ") and out.endswith("of 1 pairs\n"), err
    assert len((prompts / "scores.tsv").read_text(encoding="utf-8").splitlines()) == 2
    assert_one_line(call("pairs", prompts / "gone.tsv", *options), "gone.tsv")
    assert_one_line(call("pairs", prompts / "pairs.tsv", *options, "--by", "spectrogram"), "--prompt_seconds")
    assert_one_line(call("pairs", prompts / "pairs.tsv", *options, "--by", "loudness"), "loudness", "--help")


@pytest.mark.slow
def test_a_checkpoint_of_another_version_is_one_line(call, moved_checkpoint, prompts):
    checkpoint = torch.load(moved_checkpoint, weights_only=True)
    checkpoint["config"]["projection"]["former"] = 1
    torch.save(checkpoint, prompts.parent / "old.ckpt")
    wrong = call("generate", "--ckpt", prompts.parent / "old.ckpt", "--out", prompts.parent / "out", prompts)
    assert_one_line(wrong, "old.ckpt: was written by another version", "projection.former")


@pytest.mark.slow
def test_generate_one_by_one_is_together(moved_checkpoint, prompts):
    pipeline = SpectronPipeline.from_checkpoint(moved_checkpoint, "cpu")
    with pytest.raises(UserError, match="which is to be read; name another folder"):
        pipeline.generate_files([prompts], prompts)
    pipeline.generate_files([prompts], prompts.parent / "together", batch_size=8)
    pipeline.generate_files([prompts], prompts.parent / "alone", batch_size=1)
    for name in ("first", "second"):
        a, b = (soundfile.read(prompts.parent / folder / f"{name}.wav")[0] for folder in ("together", "alone"))
        assert len(a) == len(b) and np.abs(a - b).max() < 1e-2
        assert asdict(pipeline.settings) == json.loads((prompts.parent / f"alone/{name}.json").read_text())["settings"]


@pytest.mark.slow
def test_fit_refuses_a_checkpoint_that_does_not_fit(call, run_folder, moved_checkpoint, tmp_path):
    (tmp_path / "bad.ckpt").write_bytes(b"not a checkpoint")
    torch.save({"config": Path()}, tmp_path / "more_than_tensors.ckpt")
    logger = ["--trainer.logger.init_args.save_dir", tmp_path / "runs"]
    quickstart = ("--config", "conf/quickstart.yaml")
    frozen = ("--config", run_folder / "config.yaml", "--model.optimizer.freeze", "['llm.*']")
    for config, path, name in (
        (quickstart, moved_checkpoint, "model.decoder"),
        (quickstart, tmp_path / "bad.ckpt", "bad.ckpt"),
        (quickstart, tmp_path / "more_than_tensors.ckpt", "more_than_tensors.ckpt"),
        (frozen, moved_checkpoint, "model.optimizer.freeze"),
    ):
        code, _, err = call("fit", *config, *logger, "--ckpt_path", path)
        last = err.strip().splitlines()[-1]
        assert code == 2 and last.startswith("error: ") and name in last and "Traceback" not in err, err
    assert not (tmp_path / "runs").exists()
    other_rate = ("--model.optimizer.learning_rate", 7e-4, "--data.root", tmp_path)
    with pytest.warns(UserWarning, match=r"goes on with the lr of .*, 0\.0015 for \*, not with this config's 0\.0007"):
        code, _, err = call("fit", *frozen[:2], *other_rate, *logger, "--ckpt_path", moved_checkpoint)
    assert code == 2 and str(tmp_path) in err.splitlines()[-1], err


@pytest.mark.slow
@pytest.mark.parametrize("defect", ["rate", "stereo", "short", "nan", "missing", "empty_folder", "same_name"])
def test_a_bad_prompt_stops_generate_before_it_writes(call, moved_checkpoint, prompts, tmp_path, defect):
    good = np.random.default_rng(0).uniform(-0.1, 0.1, 2 * RATE)
    samples, rate = {
        "rate": (good, 22050),
        "stereo": (np.stack([good, good], 1), RATE),
        "short": (good[: RATE // 2], RATE),
        "nan": (np.where(np.arange(len(good)) == 5, np.nan, good), RATE),
    }.get(defect, (None, 0))
    path = tmp_path / f"{defect}.wav"
    if samples is not None:
        soundfile.write(path, samples, rate, subtype="FLOAT")
    elif defect == "empty_folder":
        path.mkdir()
    elif defect == "same_name":
        path = tmp_path / "first.flac"
        soundfile.write(path, good, RATE)
    out = tmp_path / "out"
    assert_one_line(call("generate", "--ckpt", moved_checkpoint, "--out", out, prompts, path), path.name)
    assert not out.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--prompt_seconds", "0"),
        ("--prompt_seconds", "-1"),
        ("--batch_size", "0"),
        ("--device", "nonsense"),
        ("--top_p", "2"),
        ("--max_speech_seconds", "0"),
    ],
)
def test_a_bad_option_of_generate_is_named(call, moved_checkpoint, prompts, tmp_path, option, value):
    result = call("generate", "--ckpt", moved_checkpoint, "--out", tmp_path / "out", prompts, option, value)
    assert_one_line(result, option.removeprefix("--"))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_predict_continues_every_utterance_that_can_be_used(call, run_folder, moved_checkpoint, corpus, tmp_path):
    data = ("--data.root", corpus, "--data.test_cuts", "cuts.jsonl.gz", "--data.batch_size", "4")
    arguments = ("--config", run_folder / "config.yaml", *data, "--ckpt_path", moved_checkpoint)
    code, _, err = call("predict", *arguments, "--prediction.directory", tmp_path / "out")
    assert code == 0, err
    with gzip.open(corpus / "cuts.jsonl.gz", "rt") as lines:
        ids = [json.loads(line)["id"] for line in lines]
    written = [json.loads(path.read_text())["utterance"] for path in (tmp_path / "out").glob("*.json")]
    assert sorted(written) == sorted(ids)


@pytest.mark.slow
def test_another_data_module_is_one_option(call, run_folder, moved_checkpoint, tmp_path):
    """Questions instead of utterances, after the config of the run."""
    soundfile.write(tmp_path / "q.wav", np.random.default_rng(0).uniform(-0.1, 0.1, 2 * RATE), RATE)
    (tmp_path / "questions.tsv").write_text("Questions\tAnswer\tWav Filename\nWhere?\there\tq.wav\n")
    data = ("--data", "conf/data/llama_questions.yaml", "--data.table", tmp_path / "questions.tsv")
    written = ("--prediction.directory", tmp_path / "out")
    code, _, err = call(
        "predict", "--config", run_folder / "config.yaml", *data, "--ckpt_path", moved_checkpoint, *written
    )
    assert code == 0, err
    assert json.loads((tmp_path / "out/q.json").read_text())["reference"] == "Where?"


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory) -> Path:
    """Two steps of the quickstart by two processes that share the model."""
    runs = tmp_path_factory.mktemp("shared")
    changes = {
        "model.activation_checkpointing": "true",
        "model.generated_utterances": 2,
        "model.generation.max_speech_seconds": 0.2,
        "model.generation.max_text_tokens": 2,
        "model.statistics_batches": 2,
        "data.batch_size": 2,
        "trainer.precision": "bf16-mixed",
        "trainer.max_steps": 2,
        "trainer.log_every_n_steps": 1,
        "trainer.val_check_interval": 2,
        "trainer.limit_val_batches": 1,
        "trainer.accelerator": "cpu",
        "trainer.devices": 2,
        "trainer.logger.init_args.save_dir": runs,
    }
    overrides = [part for key, value in changes.items() for part in (f"--{key}", value)]
    configs = ["--config", "conf/quickstart.yaml", "--config", "conf/trainer/fsdp.yaml"]
    done = subprocess_call(["fit", *configs, *overrides])
    assert done.returncode == 0, done.stderr[-2000:]
    return runs / "quickstart/version_0"


@pytest.mark.slow
def test_what_many_devices_trained_goes_anywhere(call, shared_run, prompts, tmp_path):
    """Two processes leave folders; one process goes on from them, decodes by them, and makes files of them."""
    last, best = (shared_run / f"checkpoints/{name}.ckpt" for name in ("last", "best"))
    assert last.is_dir() and best.is_dir() and len(list(last.glob("*.distcp"))) == 2
    assert not list(shared_run.rglob(".*.part")) and not list(shared_run.rglob(".*.old"))
    code, out, err = call("consolidate", "--ckpt", last, "--out", tmp_path / "one.ckpt")
    assert code == 0 and out.strip() == str(tmp_path / "one.ckpt"), err
    one = torch.load(tmp_path / "one.ckpt", weights_only=True)
    assert one["config"]["prompt_seconds"] == 1.5 and one["rebuild_args"]["llm"]["tokenizer"]
    assert one["state_dict"]["model.mel_frames"] > 0 and one["global_step"] == 2
    said = []
    for path in (last, tmp_path / "one.ckpt"):
        pipeline = SpectronPipeline.from_checkpoint(path, "cpu")
        pipeline.generate_files([prompts], tmp_path / path.stem)
        said.append(soundfile.read(tmp_path / path.stem / "first.wav")[0])
        arguments = ["--config", shared_run / "config.yaml", "--config", "conf/trainer/cpu.yaml", "--ckpt_path", path]
        logger = ["--trainer.logger.init_args.save_dir", tmp_path / f"runs_{path.stem}"]
        code, _, err = call("fit", *arguments, *logger, "--trainer.max_steps", "3", "--trainer.val_check_interval", "3")
        assert code == 0, err
    assert len(said[0]) and np.array_equal(*said)
    weights = [
        torch.load(tmp_path / f"runs_{name}/quickstart/version_0/checkpoints/last.ckpt", weights_only=True)[
            "state_dict"
        ]
        for name in ("last", "one")
    ]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    assert_one_line(call("consolidate", "--ckpt", tmp_path / "one.ckpt", "--out", tmp_path / "x"), "--ckpt", "one file")
    assert_one_line(call("consolidate", "--ckpt", tmp_path / "none", "--out", tmp_path / "x"), "none")
