"""`prepare librilight`: every known flaw in one run, nothing lost without account, killed and restarted."""

import gzip
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile

from datamodules.cuts import read_cuts
from datamodules.manifest import Manifest
from datamodules.preparation import Settings, prepare
from datamodules.segmentation import merged, quietest, segments
from datamodules.sources import KEPT
from lit_spectron.audio_files import read_audio
from lit_spectron.cli import main
from lit_spectron.errors import UserError

RATE = 16000


def settings(root: Path, **changes) -> Settings:
    values = {
        "root": str(root),
        "layout": "librilight",
        "cuts": (),
        "audio_prefix": "download/librilight",
        "text_index": 0,
        "sample_rate_hz": RATE,
        "min_seconds": 1.0,
        "max_seconds": 4.0,
        "max_gap_seconds": 1.0,
        "verify": False,
        "recognizer": None,
        "language": None,
        "word_times": False,
        "min_characters_per_second": 1.0,
        "max_characters_per_second": 40.0,
        "max_disagreement": None,
        "val_share": 0.2,
        "test_share": 0.2,
    }
    return Settings(**{**values, **changes})


def run(root: Path, out: Path, jobs: int = 1, shard: tuple[int, int] = (0, 1), **changes) -> dict:
    prepare(settings(root, **changes), out, jobs, shard, "cpu", 4)
    return json.loads((out / "report.json").read_text()) if (out / "report.json").is_file() else {}


def noise(seconds: float, rate: int = RATE, channels: int = 1) -> np.ndarray:
    shape = (round(seconds * rate), channels) if channels > 1 else round(seconds * rate)
    return 0.1 * np.random.default_rng(round(1000 * seconds)).standard_normal(shape)


def add(root: Path, name: str, samples: np.ndarray, description: dict | None, rate: int = RATE) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype="PCM_16")
    if description is not None:
        path.with_suffix(".json").write_text(json.dumps(description), encoding="utf-8")
    return path


@pytest.fixture
def flawed(tmp_path: Path) -> tuple[Path, int]:
    """A tree in Libri-Light's layout with every known flaw, and the samples in it as far as headers tell, at 16 kHz."""
    root = tmp_path / "flawed"
    whole = {"speaker": "a", "voice_activity": [[0.5, 2.0], [2.2, 3.9], [5.5, 8.0]]}
    add(root, "small/a/one/good.flac", noise(9.0), whole)
    add(root, "medium/a/two/good.flac", noise(9.0), whole)  # one speaker in two folders
    add(root, "small/b/één/größe_日本.wav", noise(6.0), {"speaker": "é", "voice_activity": [[0.0, 3.0], [4.5, 5.0]]})
    truncated = add(
        root, "small/b/x/truncated.flac", noise(8.0), {"speaker": "b", "voice_activity": [[0, 3], [4.5, 7.5]]}
    )
    truncated.write_bytes(truncated.read_bytes()[: truncated.stat().st_size // 2])
    add(root, "small/b/x/empty.wav", np.zeros(0), {"speaker": "b", "voice_activity": [[0, 1]]})
    (root / "small/b/x/zero_bytes.flac").touch()
    add(root, "small/b/x/rate.wav", noise(3.0, 22050), {"speaker": "b", "voice_activity": [[0, 3]]}, 22050)
    add(root, "small/b/x/stereo.wav", noise(2.0, channels=2), {"speaker": "b", "voice_activity": [[0, 2]]})
    add(root, "small/c/x/silent.flac", noise(2.0), {"speaker": "c", "voice_activity": []})
    add(root, "small/c/x/no_activity.flac", noise(2.0), {"speaker": "c"})
    add(root, "small/c/x/no_description.flac", noise(2.0), None)
    add(root, "small/c/x/broken_description.flac", noise(2.0), None).with_suffix(".json").write_text("{")
    add(root, "small/c/x/beyond.flac", noise(3.0), {"speaker": "c", "voice_activity": [[0.5, 99.0]]})
    add(root, "small/d/x/long.flac", noise(60.0), {"speaker": "d", "voice_activity": [[0.0, 60.0]]})
    seconds = 9 + 9 + 6 + 8 + 2 + 2 + 2 + 2 + 2 + 3 + 60
    return root, seconds * RATE


def total(report: dict, rate: int = RATE) -> int:
    return sum(fate["samples_by_rate"].get(str(rate), 0) for fate in report["fates"].values())


def rows(out: Path, root: Path) -> list:
    found = []
    for split in ("train", "val", "test"):
        try:
            found += list(Manifest.open(out / f"{split}.arrow", root))
        except UserError:  # an empty split
            continue
    return found


def test_every_flaw_is_accounted_for(flawed, tmp_path):
    root, samples = flawed
    report = run(root, tmp_path / "out")
    pieces = Counter({fate: row["pieces"] for fate, row in report["fates"].items()})
    assert total(report) == samples and total(report, 22050) == 3 * 22050
    assert {fate: n for fate, n in pieces.items() if fate not in (KEPT, "silence between utterances")} == {
        "no samples": 1,
        "unreadable audio": 2,  # the truncated file's second utterance, and the one without a byte
        "another sampling rate": 1,
        "not mono": 1,
        "no voice activity in its .json": 2,
        "no .json beside it": 1,
        "bad description": 1,
        "shorter than min_seconds": 1,
        "voice activity beyond its file": 1,
    }
    assert report["notes"]["cut at a quiet place, being longer than max_seconds"] >= 15
    found = rows(tmp_path / "out", root)
    assert len(found) == pieces[KEPT] == len({u.id for u in found})
    kept = sum(round(u.duration_seconds * RATE) for u in found)
    assert kept == report["fates"][KEPT]["samples_by_rate"][str(RATE)]
    good = sorted((u.start_seconds, u.duration_seconds) for u in found if u.path.parent.name == "one")
    assert good == [(0.5, pytest.approx(3.4)), (5.5, 2.5)]
    assert {u.speaker for u in found if "good" in u.path.name} == {"a"} and any("größe_日本" in u.id for u in found)
    long = sorted((u.start_seconds, u.duration_seconds) for u in found if u.speaker == "d")
    assert long[0][0] == 0 and all(2.0 <= length <= 4.0 for _, length in long)
    for (start, length), (following, _) in pairwise(long):
        assert round((start + length) * RATE) == round(following * RATE)
    problems = (tmp_path / "out/problems.txt").read_text().splitlines()
    for name in ("truncated", "empty", "zero_bytes", "rate", "stereo", "silent", "no_activity", "broken_description"):
        assert sum(f"/{name}." in line for line in problems) == 1, name
    assert report["problems"] == len(problems)
    text = (tmp_path / "out/report.md").read_text()
    assert (
        "| kept |" in text and "No speaker is in two splits" in text and (tmp_path / "out/lengths.png").stat().st_size
    )


def test_a_flawed_corpus_of_cuts(corpus, tmp_path):
    with gzip.open(corpus / "cuts.jsonl.gz", "rt") as file:
        cuts = [json.loads(line) for line in file]
    changed = [{**cuts[0], "id": f"changed{i}"} for i in range(6)]
    changed[0]["recording"] = {"sources": [{"source": "gone.flac"}]}
    changed[1]["start"] = 5.0  # ends after its file
    changed[2]["supervisions"] = [{"speaker": "s0", "text": ""}]
    changed[3]["duration"] = 0.2
    changed[4]["supervisions"] = [{"speaker": "s0", "text": "x" * 500}]
    changed[5]["id"] = cuts[0]["id"]
    lines = [*map(json.dumps, [*cuts, *changed]), "{", '{"id": "x"}']
    (corpus / "flawed.jsonl").write_text("\n".join(lines))
    whole = gzip.compress("\n".join(map(json.dumps, cuts)).replace("book_0000_", "again_").encode())
    (corpus / "damaged.jsonl.gz").write_bytes(whole[: len(whole) - 20])
    report = run(corpus, tmp_path / "out", layout="cuts", cuts=("flawed.jsonl",))
    pieces = {fate: row["pieces"] for fate, row in report["fates"].items()}
    assert pieces == {
        KEPT: 10,
        "no such file": 1,
        "ends after its file": 1,
        "shorter than min_seconds": 1,
        "too many characters a second": 1,
        "id occurs more than once": 1,
        "not a cut": 2,
    }
    assert total(report) == 14 * 2 * RATE + round(0.2 * RATE)
    found = {u.id: u for u in rows(tmp_path / "out", corpus)}
    original = {u.id: u for u in read_cuts(corpus / "cuts.jsonl.gz", corpus, "download/librilight", 0)}
    assert {name: found[name] for name in original} == original
    assert found["changed2"].text == ""  # to be transcribed one day; `fit` would count it
    report = run(corpus, tmp_path / "damaged", layout="cuts", cuts=("damaged.jsonl.gz",))
    assert report["fates"]["not a cut"]["pieces"] == 1
    assert "damaged.jsonl.gz: unreadable after line" in (tmp_path / "damaged/problems.txt").read_text()


def test_librispeech_and_any_audio(tmp_path):
    root = tmp_path / "librispeech"
    for index in range(2):
        add(root, f"84/121123/84-121123-000{index}.flac", noise(2.0 + index), None)
    (root / "84/121123/84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n")
    report = run(root, tmp_path / "one", layout="librispeech", val_share=0.0, test_share=0.0)
    (utterance,) = rows(tmp_path / "one", root)
    assert (utterance.id, utterance.speaker, utterance.text) == ("84/121123/84-121123-0000", "84", "GO DO YOU HEAR")
    assert report["fates"]["no transcript"] == {"pieces": 1, "seconds": 3.0, "samples_by_rate": {str(RATE): 3 * RATE}}
    root = tmp_path / "audio"
    add(root, "anna/a.wav", noise(3.0), None).with_suffix(".txt").write_text("hello\nthere")
    add(root, "anna/b.wav", noise(9.0), None)
    add(root, "c.wav", noise(9.0), None).with_suffix(".txt").write_text("far too long for its text to be cut")
    report = run(root, tmp_path / "two", layout="audio", val_share=0.0, test_share=0.0)
    found = rows(tmp_path / "two", root)
    assert [(u.id, u.text) for u in found[:1]] == [("anna/a", "hello there")]
    assert len(found) >= 4 and {u.speaker for u in found} == {"anna"}
    assert report["fates"]["longer than max_seconds"]["seconds"] == 9.0 and total(report) == 21 * RATE


def contents(out: Path) -> dict[str, bytes]:
    names = ("train.arrow", "val.arrow", "test.arrow", "report.json", "report.md", "problems.txt", "lengths.png")
    return {name: (out / name).read_bytes() for name in names}


def test_jobs_shards_and_repetition_change_nothing(flawed, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources.FileSource.items_per_part", 3)
    root, _ = flawed
    run(root, tmp_path / "one")
    reference = contents(tmp_path / "one")
    run(root, tmp_path / "one")
    assert contents(tmp_path / "one") == reference
    for shard in (2, 0, 1):
        assert not (tmp_path / "three/report.json").is_file()
        run(root, tmp_path / "three", shard=(shard, 3))
    assert contents(tmp_path / "three") == reference
    (tmp_path / "three/parts/000001.arrow").unlink()
    run(root, tmp_path / "three")
    assert contents(tmp_path / "three") == reference


def test_two_processes(flawed, tmp_path):
    root, _ = flawed
    run(root, tmp_path / "one")
    run(root, tmp_path / "two", jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_what_changed_is_made_again(flawed, tmp_path):
    root, samples = flawed
    out = tmp_path / "out"
    run(root, out)
    add(root, "small/e/x/new.flac", noise(2.0), {"speaker": "e", "voice_activity": [[0, 2]]})
    report = run(root, out)
    assert total(report) == samples + 2 * RATE and any(u.speaker == "e" for u in rows(out, root))
    with pytest.raises(UserError, match=r"--max_seconds: 5\.0, but .*out was begun with 4\.0"):
        run(root, out, max_seconds=5.0)


@pytest.mark.slow
def test_killed_and_restarted(flawed, tmp_path):
    """SIGKILL at random moments; what comes out in the end is what an undisturbed run makes, byte by byte."""
    root, _ = flawed
    for index in range(60):
        add(root, f"small/s{index}/x/{index}.flac", noise(20.0), {"speaker": f"s{index}", "voice_activity": [[0, 20]]})
    arguments = ["--root", str(root), "--max_seconds", "4", "--min_seconds", "1", "--verify", "--jobs", "2"]
    command = [sys.executable, "-m", "lit_spectron", "prepare", "librilight", *arguments, "--out"]
    began = time.monotonic()
    subprocess.run([*command, str(tmp_path / "whole")], check=True, capture_output=True)
    seconds, chooser = time.monotonic() - began, random.Random(0)
    killed = 0
    while killed < 20:
        with subprocess.Popen(
            [*command, str(tmp_path / "killed")], stdout=subprocess.DEVNULL, start_new_session=True
        ) as process:
            try:
                process.wait(chooser.uniform(0.3, 1.0) * seconds)
                shutil.rmtree(tmp_path / "killed")
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                killed += 1
    subprocess.run([*command, str(tmp_path / "killed")], check=True, capture_output=True)
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_one_process_a_shard(flawed, tmp_path):
    from datamodules.preparation import locked

    (tmp_path / "out/parts").mkdir(parents=True)
    with locked(tmp_path / "out/parts/shard-0-of-1.lock"), pytest.raises(UserError, match="another process"):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            pool.apply(run, (flawed[0], tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "nowhere"}, "nowhere"),
        ({"layout": "cuts", "cuts": ("none.jsonl",)}, r"none\.jsonl"),
        ({"min_seconds": 5.0}, "--min_seconds"),
        ({"val_share": 0.7, "test_share": 0.3}, "--val_share"),
        ({"max_disagreement": 0.2}, "--recognizer"),
        ({"recognizer": "x", "max_seconds": 40.0}, "--max_seconds"),
        ({"recognizer": "x", "sample_rate_hz": 8000}, "--sample_rate_hz"),
        ({"sample_rate_hz": 0}, "--sample_rate_hz"),
        ({"max_gap_seconds": -1.0}, "--max_gap_seconds"),
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
    with pytest.raises(UserError, match=r"nothing of .* could be kept; .*report\.md says why"):
        run(root, tmp_path / "out", sample_rate_hz=8000)
    report = json.loads((tmp_path / "out/report.json").read_text())
    assert total(report) == samples and report["fates"].keys() >= {"another sampling rate"}


DESCRIPTIONS = ("[]", "null", '"x"', '{"speaker": 1}', '{"voice_activity": [[0, 1]]}', "[" * 100000)
TIMES = ("NaN", "1e999", "1" + "0" * 400, '"soon"', "null", "[0]")


def test_descriptions_that_make_no_sense_are_problems(tmp_path):
    root = tmp_path / "root"
    for index, text in enumerate(
        [*DESCRIPTIONS, *(f'{{"speaker": "s", "voice_activity": [[0, {t}]]}}' for t in TIMES)]
    ):
        add(root, f"{index}.wav", noise(2.0), None).with_suffix(".json").write_text(text)
    add(root, "good.wav", noise(2.0), {"speaker": "s", "voice_activity": [[0, 2]]})
    report = run(root, tmp_path / "out")
    assert report["fates"][KEPT]["pieces"] == 1 and total(report) == 13 * 2 * RATE and report["problems"] == 12


def test_cuts_that_make_no_sense_are_problems(corpus, tmp_path):
    with gzip.open(corpus / "cuts.jsonl.gz", "rt") as file:
        good = json.loads(next(file))
    words = {"speaker": "s", "text": "x", "alignment": {"word": [["\ud800", 0, 1, None]]}}
    long_name = {"sources": [{"source": "x" * 300}]}
    bad = [{**good, "duration": 1e306}, {**good, "supervisions": [words]}, {**good, "supervisions": None}]
    lines = [
        json.dumps(good),
        "[" * 100000,
        *map(json.dumps, bad),
        json.dumps({**good, "id": "y", "recording": long_name}),
    ]
    (corpus / "bad.jsonl").write_text("\n".join(lines))
    report = run(corpus, tmp_path / "out", layout="cuts", cuts=("bad.jsonl",))
    pieces = {fate: row["pieces"] for fate, row in report["fates"].items()}
    assert pieces == {KEPT: 1, "not a cut": 4, "no such file": 1}


def test_a_flac_of_unknown_length(flawed, tmp_path):
    root, samples = flawed
    path = add(root, "small/a/one/pipe.flac", noise(2.0), {"speaker": "a", "voice_activity": [[0, 2]]})
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples
    content[22:26] = bytes(4)
    path.write_bytes(content)
    report = run(root, tmp_path / "out")
    assert report["fates"]["unknown length"]["pieces"] == 1 and total(report) == samples
    with pytest.raises(UserError, match="how long"):
        read_audio(path, RATE)


def test_many_troubles_of_one_file_are_one_line(flawed, tmp_path):
    root, _ = flawed
    speech = {"speaker": "a", "voice_activity": [[3 * i, 3 * i + 2] for i in range(6)]}
    path = add(root, "small/a/one/torn.flac", noise(18.0), speech)
    path.write_bytes(path.read_bytes()[:5000])
    report = run(root, tmp_path / "out")
    assert sum("torn.flac" in line for line in (tmp_path / "out/problems.txt").read_text().splitlines()) == 1
    assert report["fates"]["unreadable audio"]["pieces"] >= 6


def test_nothing_to_prepare(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty"):
        run(tmp_path / "empty", tmp_path / "out")


def test_an_unreadable_folder_is_one_problem(flawed, tmp_path, monkeypatch):
    root, samples = flawed
    real = os.scandir

    def scandir(path):
        if str(path).endswith("medium"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    report = run(root, tmp_path / "out")
    assert report["fates"]["unreadable folder"]["pieces"] == 1 and total(report) == samples - 9 * RATE
    assert any("medium" in line for line in (tmp_path / "out/problems.txt").read_text().splitlines())


def test_names_that_are_not_unicode_are_problems(flawed, tmp_path):
    root, samples = flawed
    path = root / "small/a/one" / os.fsdecode(b"caf\xe9.flac")
    add(root, "x.flac", noise(2.0), None).rename(path)
    path.with_suffix(".json").write_text(json.dumps({"speaker": "a", "voice_activity": [[0, 2]]}))
    lines = [
        json.dumps(
            {
                "id": name,
                "start": 0,
                "duration": 2,
                "supervisions": [{"speaker": "a", "text": "\ud800"}],
                "recording": {"sources": [{"source": "small/a/one/good.flac"}]},
            }
        )
        for name in ("half", "pair")
    ]
    good = {**json.loads(lines[0]), "id": "good", "supervisions": [{"speaker": "a", "text": "hello"}]}
    (root / "cuts.jsonl").write_text("\n".join([*lines, json.dumps(good)]))
    report = run(root, tmp_path / "out")
    assert report["fates"]["name that is not Unicode"]["pieces"] == 1 and total(report) == samples
    report = run(root, tmp_path / "cuts", layout="cuts", cuts=("cuts.jsonl",))
    assert report["fates"]["not a cut"]["pieces"] == 2


def test_links_in_circles_end(flawed, tmp_path):
    root, samples = flawed
    (root / "small/round").symlink_to(root)
    assert total(run(root, tmp_path / "out")) == samples


def test_activity_is_joined_and_cut():
    def latest(_, end: float) -> float:
        return end

    assert merged([(3, 4), (0, 2), (1, 2.5), (9, 12), (-1, 0.5), (11, 20)], 10.0) == [(0.0, 2.5), (3, 4), (9, 10.0)]
    assert list(segments([(0, 2), (2.5, 4), (4.5, 9)], 1, 10, 1, latest)) == [(0, 9)]
    assert list(segments([(0, 2), (2.5, 4), (4.5, 9)], 1, 8, 1, latest)) == [(0, 4), (4.5, 9)]
    assert list(segments([(0, 2), (3.5, 4)], 1, 8, 1, latest)) == [(0, 2), (3.5, 4)]
    assert list(segments([(0, 25)], 1, 10, 1, latest)) == [(0, 10), (10, 20), (20, 25)]
    assert list(segments([(0, 11)], 1, 10, 1, latest)) == [(0, 6.0), (6.0, 11)]
    assert list(segments([(0, 25)], 7, 10, 1, latest)) == [(0, 10), (10, 18), (18, 25)]
    assert list(segments([(0, 11)], 7, 10, 1, latest)) == [(0, 10), (10, 11)]  # rather than two that are too short
    assert list(segments([], 1, 10, 1, latest)) == []


def test_the_quietest_place():
    samples = np.ones(RATE)
    samples[7000:9000] = 0.1
    assert 7000 <= quietest(samples, RATE) <= 9000 and quietest(np.ones(3), RATE) == 1


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
        assert caught.value.code == 0


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
            np.testing.assert_allclose(cut.load_audio()[0], samples, atol=1e-4)
