"""`prepare` on the command line: mistakes are one line."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from datamodules.cuts import read_cuts
from datamodules.manifest import Manifest
from datamodules.prepare_cli import librilight_parser
from lit_spectron.audio_files import read_audio
from lit_spectron.cli import main
from lit_spectron.errors import UserError
from tests.flawed import RATE, run, total


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "nowhere"}, "nowhere"),
        ({"layout": "cuts", "cuts": ("none.jsonl",)}, r"none\.jsonl"),
        ({"min_seconds": 5.0}, "--min_seconds"),
        ({"min_seconds": 1e-6, "max_seconds": 1e-5}, "--max_seconds"),
        ({"val_share": 0.7, "test_share": 0.3}, "--val_share"),
        ({"val_share": float("nan")}, "--val_share"),
        ({"recognizer": "x", "max_disagreement": -1.0}, "--max_disagreement"),
        ({"recognizer": "x", "max_seconds": 40.0}, "--max_seconds"),
        ({"recognizer": "x", "sample_rate_hz": 8000}, "--sample_rate_hz"),
        ({"sample_rate_hz": 0}, "--sample_rate_hz"),
        ({"max_gap_seconds": -1.0}, "--max_gap_seconds"),
        ({"max_gap_seconds": float("nan")}, "--max_gap_seconds"),
        ({"min_characters_per_second": 50.0}, "--min_characters_per_second"),
    ],
)
def test_impossible_settings_are_refused(corpus, tmp_path, changes, message):
    with pytest.raises(UserError, match=message):
        run(**{"root": corpus, "out": tmp_path / "out", **changes})
    assert not (tmp_path / "out").exists()


def test_a_recogniser_that_can_not_be_had_is_named(flawed, tmp_path):
    with pytest.raises(UserError, match=r"--recognizer: .*no such folder: .*nowhere"):
        run(flawed[0], tmp_path / "out", recognizer=str(tmp_path / "nowhere"))


def test_nothing_kept_is_an_error(flawed, tmp_path):
    root, samples = flawed
    message = r"flawed: nothing of it could be kept with --layout librilight: 12 x another sampling rate .*report\.md"
    with pytest.raises(UserError, match=message):
        run(root, tmp_path / "out", sample_rate_hz=8000)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert total(report) == samples and report["fates"].keys() >= {"another sampling rate"}


def test_nothing_to_prepare(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        run(tmp_path / "empty", tmp_path / "out")


def test_the_command(flawed, tmp_path, capsys):
    root, _ = flawed
    main(["prepare", "librilight", "--root", str(root), "--out", str(tmp_path / "out"), "--min_seconds", "1"])
    assert "| kept |" in capsys.readouterr().out
    for arguments, message in (
        (["librilight", "--root", str(root), "--out", str(tmp_path / "x"), "--layout", "cuts"], "--cuts"),
        (["librilight", "--root", str(root / "nowhere"), "--out", str(tmp_path / "x")], "nowhere"),
        (["nothing"], "nothing"),
        (["librilight", "--out", str(tmp_path / "x")], "--root"),
        (["export", "--manifest", str(root), "--root", str(root), "--out", str(tmp_path / "x.jsonl")], str(root)),
    ):
        with pytest.raises(SystemExit) as caught:
            main(["prepare", *arguments])
        error = capsys.readouterr().err
        assert caught.value.code == 2 and message in error and len(error.splitlines()) == 1
    for task in ("librilight", "export"):
        with pytest.raises(SystemExit) as caught:
            main(["prepare", task, "--help"])
        out = capsys.readouterr().out
        assert caught.value.code == 0 and ("--text_index TEXT_INDEX" in out) == (task == "librilight")
    assert "1 upper-case (default: 0)" in " ".join(librilight_parser().format_help().split())


def test_export_to_lhotse_and_back(corpus, tmp_path):
    lhotse = pytest.importorskip("lhotse")
    run(corpus, tmp_path / "out", layout="cuts", cuts=("cuts.jsonl.gz",), val_share=0.0, test_share=0.0)
    options = ["--manifest", str(tmp_path / "out/train.arrow"), "--root", str(corpus)]
    main(["prepare", "export", *options, "--out", str(tmp_path / "cuts.jsonl.gz")])
    manifest = Manifest.open(tmp_path / "out/train.arrow", corpus)
    assert read_cuts(tmp_path / "cuts.jsonl.gz", Path(), str(corpus), 0) == [
        type(u)(**{**vars(u), "path": u.path.relative_to(corpus)}) for u in manifest
    ]
    main(["prepare", "export", *options, "--out", str(tmp_path / "shar"), "--shard_size", "4"])
    shar = lhotse.CutSet.from_shar(in_dir=str(tmp_path / "shar"))
    for cuts in (lhotse.CutSet.from_file(tmp_path / "cuts.jsonl.gz"), shar):
        for utterance, cut in zip(manifest, cuts, strict=True):
            samples = read_audio(utterance.path, RATE, utterance.start_seconds, utterance.duration_seconds)
            assert cut.id == utterance.id and cut.supervisions[0].text == utterance.text
            assert cut.supervisions[0].speaker == utterance.speaker
            np.testing.assert_array_equal(cut.load_audio()[0], samples)


CUTS = ("--layout", "cuts", "--cuts", "cuts.jsonl.gz")


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("--min_second", "3"), ("--min_second 3",)),
        (("--out", ""), ("--out", "is empty")),
        (("--jobs", "0"), ("--jobs", "at least 1", "0")),
        (("--layout", "cuts"), ("--cuts",)),
        (("--cuts", "cuts.jsonl.gz"), ("--cuts", "--layout cuts")),
        (("--text_index", "1"), ("--text_index", "--layout cuts")),
        (("--layout", "audio", "--max_gap_seconds", "2"), ("--max_gap_seconds", "--layout librilight")),
        (("--recognizer", ""), ("--recognizer", "is empty")),
        (("--language", "en"), ("--language", "--recognizer")),
        (("--word_times",), ("--word_times", "--recognizer")),
        ((*CUTS, "--max_disagreement", "0.2"), ("--max_disagreement", "--recognizer")),
        (("--device", "cuda"), ("--device", "--recognizer")),
        (("--min_characters_per_second", "1"), ("--min_characters_per_second", "--recognizer")),
        (("--recognizer", "x", "--device", "cud"), ("--device: cud: ",)),
        (("--recognizer", "x", "--device", "cuda:99"), ("--device: cuda:99: ",)),
        ((*CUTS, "--text_index", "7"), ("--layout cuts", "9 x not a cut", "has 2 texts", "text_index is 7")),
        ((*CUTS[:-1], "small/s0/book/book_0000.flac"), ("1 x not a cut", "book_0000.flac: not text in UTF-8")),
        (("--layout", "librispeech"), ("--layout librispeech", "3 x no transcript")),
    ],
)
def test_mistakes_are_one_line(corpus, tmp_path, capsys, options, names):
    with pytest.raises(SystemExit) as caught:
        main(["prepare", "librilight", "--root", str(corpus), "--out", str(tmp_path / "out"), *options])
    error = capsys.readouterr().err
    assert caught.value.code == 2 and len(error.splitlines()) == 1 and all(name in error for name in names), error


def test_what_can_not_be_written_is_named(corpus, tmp_path, capsys):
    """A folder where a file is to be, and a full disk."""
    options = ["prepare", "librilight", "--root", str(corpus), *CUTS, "--min_seconds", "1", "--out", str(tmp_path)]
    (tmp_path / "train.arrow").mkdir()
    (tmp_path / "parts").mkdir()
    for message in ("train.arrow: a folder", f"{tmp_path}/train.arrow: no space left on device"):
        with pytest.raises(SystemExit) as caught:
            main(options)
        error = capsys.readouterr().err
        assert caught.value.code == 2 and len(error.splitlines()) == 1 and message in error, error
        if (tmp_path / "train.arrow").is_dir():
            (tmp_path / "train.arrow").rmdir()
            (tmp_path / ".train.arrow.part").symlink_to("/dev/full")
    main(options)
    assert Manifest.open(tmp_path / "train.arrow", corpus)


def test_a_failed_export_leaves_nothing(corpus, tmp_path, capsys):
    pytest.importorskip("lhotse")
    run(corpus, tmp_path / "out", layout="cuts", cuts=("cuts.jsonl.gz",), val_share=0.0, test_share=0.0)
    options = ["prepare", "export", "--manifest", str(tmp_path / "out/train.arrow"), "--root", str(corpus), "--out"]
    (corpus / "small/s2/book/book_0000.flac").unlink()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    for out, message in (
        ("x.json", "--out"),
        ("shar", "book_0000.flac"),
        ("full", "full: exists"),
        ("c.jsonl", "flac"),
    ):
        before = sorted(tmp_path.iterdir())
        with pytest.raises(SystemExit) as caught:
            main([*options, str(tmp_path / out)])
        error = capsys.readouterr().err
        assert caught.value.code == 2 and len(error.splitlines()) == 1 and message in error, error
        assert sorted(tmp_path.iterdir()) == before


def test_a_name_that_is_not_unicode_can_be_printed(corpus, tmp_path):
    run(corpus, tmp_path / "out", layout="cuts", cuts=("cuts.jsonl.gz",), val_share=0.0, test_share=0.0)
    out = os.fsencode(tmp_path) + b"/\xe9.jsonl"
    options = ["--manifest", tmp_path / "out/train.arrow", "--root", corpus, "--out", out]
    command = [sys.executable, "-m", "lit_spectron", "prepare", "export", *options]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert done.returncode == 0 and r"\udce9.jsonl: 9 cuts" in done.stdout, done.stderr
