"""`prepare librilight`: every known flaw in one run, nothing lost without account, killed and restarted."""

import csv
import gzip
import json
import os
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from datamodules.cuts import read_cuts
from datamodules.manifest import Manifest
from datamodules.segmentation import merged, quietest, segments
from datamodules.sources import KEPT
from lit_spectron.audio_files import read_audio
from lit_spectron.errors import UserError
from lit_spectron.evaluators import Transcript, WhisperRecognizer
from tests.flawed import RATE, add, noise, rows, run, total


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
        "impossible voice activity": 1,
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
    add(root, "anna/a.wav", noise(3.0), None).with_suffix(".txt").write_text("hello\nthere", encoding="utf-8-sig")
    add(root, "anna/b.wav", noise(9.0), None)
    add(root, "c.wav", noise(9.0), None).with_suffix(".txt").write_text("far too long for its text to be cut")
    report = run(root, tmp_path / "two", layout="audio", val_share=0.0, test_share=0.0)
    found = rows(tmp_path / "two", root)
    assert [(u.id, u.text) for u in found[:1]] == [("anna/a", "hello there")]
    assert len(found) >= 4 and {u.speaker for u in found} == {"anna"}
    assert report["fates"]["longer than max_seconds"]["seconds"] == 9.0 and total(report) == 21 * RATE


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
    listed = {"speaker": "s", "text": ["x"]}
    bad = [
        {**good, "duration": 1e306},
        {**good, "supervisions": [words]},
        {**good, "supervisions": None},
        {**good, "supervisions": [listed]},
        {**good, "supervisions": [{**good["supervisions"][0], "speaker": None}]},
        {**good, "id": None},
    ]
    lines = [
        json.dumps(good),
        "[" * 100000,
        *map(json.dumps, bad),
        json.dumps({**good, "id": "y", "recording": long_name}),
    ]
    (corpus / "bad.jsonl").write_text("\n".join(lines))
    report = run(corpus, tmp_path / "out", layout="cuts", cuts=("bad.jsonl",))
    pieces = {fate: row["pieces"] for fate, row in report["fates"].items()}
    assert pieces == {KEPT: 1, "not a cut": 7, "no such file": 1}


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
    for _ in range(2):  # and when it is started again
        report = run(root, tmp_path / "out")
        assert report["fates"]["name that is not Unicode"] == {
            "pieces": 1,
            "seconds": 2.0,
            "samples_by_rate": {str(RATE): 2 * RATE},
        }
        assert total(report) == samples + 2 * RATE
        for name in ("problems.txt", "report.md"):
            assert r"small/a/one/caf\xe9.flac" in (tmp_path / "out" / name).read_text(encoding="utf-8")
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


def dropped(out: Path) -> list[dict[str, str]]:
    with (out / "dropped.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def test_what_is_dropped_is_listed(corpus, tmp_path):
    with gzip.open(corpus / "cuts.jsonl.gz", "rt") as file:
        first, *others = [json.loads(line) for line in file]
    changed = [
        {**first, "id": "brief", "duration": 0.5},
        {**first, "id": "tab\there", "supervisions": [{"speaker": "s0", "text": "x" * 500}]},
        {**first, "id": "late", "start": 5.0},
        {**others[-1], "id": first["id"]},
    ]
    (corpus / "few.jsonl").write_text("\n".join(map(json.dumps, [first, *changed])))
    report = run(corpus, tmp_path / "out", layout="cuts", cuts=("few.jsonl",), val_share=0.0, test_share=0.0)
    listed = {row["id"]: row for row in dropped(tmp_path / "out")}
    assert {name: row["fate"] for name, row in listed.items()} == {
        "brief": "shorter than min_seconds",
        "tab\there": "too many characters a second",
        "late": "ends after its file",
        first["id"]: "id occurs more than once",
    }
    assert listed[first["id"]]["path"] == "small/s2/book/book_0000.flac"
    assert float(listed["late"]["start_seconds"]) == 5.0 and float(listed["brief"]["duration_seconds"]) == 0.5
    assert report["fates"][KEPT]["pieces"] == 1 and total(report) == 4 * 2 * RATE + RATE // 2


def test_two_files_of_one_name_are_both_named(tmp_path):
    root = tmp_path / "audio"
    add(root, "anna/a.wav", noise(3.0), None)
    add(root, "anna/a.flac", noise(2.0), None)
    report = run(root, tmp_path / "out", layout="audio", val_share=0.0, test_share=0.0)
    (utterance,) = rows(tmp_path / "out", root)
    assert utterance.path == root / "anna/a.flac" and total(report) == 5 * RATE
    assert report["fates"]["id occurs more than once"]["seconds"] == 3.0
    (problem,) = (tmp_path / "out/problems.txt").read_text().splitlines()
    assert "anna/a.wav: " in problem and "anna/a.flac" in problem


def test_problems_are_told_in_words(tmp_path):
    root = tmp_path / "root"
    texts = {
        "number": '{"speaker": 7, "voice_activity": [[0, 2]]}',
        "none": '{"speaker": null, "voice_activity": [[0, 2]]}',
        "lacking": '{"voice_activity": [[0, 2]]}',
        "list": "[]",
        "soon": '{"speaker": "s", "voice_activity": [["soon", 2]]}',
        "triple": '{"speaker": "s", "voice_activity": [[0, 1, 2]]}',
        "torn": "{",
        "latin": "\u00e9",
        "early": '{"speaker": "s", "voice_activity": [[-1, 2]]}',
        "backwards": '{"speaker": "s", "voice_activity": [[2, 1], [0, 2]]}',
    }
    for name, text in texts.items():
        path = add(root, f"{name}.wav", noise(2.0), None)
        path.with_suffix(".json").write_bytes(text.encode("latin-1"))
    report = run(root, tmp_path / "out")
    problems = dict(line.split(": ", 1) for line in (tmp_path / "out/problems.txt").read_text().splitlines())
    what = {Path(name).stem: text for name, text in problems.items()}
    assert what == {
        "none": "its description is not understood: its speaker is null",
        "lacking": "its description is not understood: lacks speaker",
        "list": "its description is not understood: not of the form that is expected",
        "soon": "its description is not understood: could not convert string to float: 'soon'",
        "triple": "its description is not understood: a stretch of its voice activity is not [start, end]",
        "torn": "its description is not understood: not JSON: Expecting property name enclosed in double quotes: "
        "line 1 column 2 (char 1)",
        "latin": "its description is not understood: not UTF-8",
        "early": "voice activity from -1.0 to 2.0 s, but it lasts 2.0 s",
        "backwards": "voice activity from 2.0 to 1.0 s, but it lasts 2.0 s",
    }
    assert report["fates"]["impossible voice activity"]["pieces"] == 2
    assert report["fates"][KEPT]["pieces"] == 3 and total(report) == 10 * 2 * RATE
    assert {u.speaker for u in rows(tmp_path / "out", root)} == {"7", "s"}


def test_what_a_recogniser_heard_is_counted(flawed, tmp_path, monkeypatch):
    """Any recogniser: what becomes of its words is told in the report, with its name."""
    heard = iter(["some words to keep", "", "x" * 500, *["more words to keep"] * 100])
    monkeypatch.setattr(WhisperRecognizer, "require", lambda _: None)
    monkeypatch.setattr(
        WhisperRecognizer, "transcribe", lambda _, waveforms, *__: [Transcript(next(heard)) for _ in waveforms]
    )
    report = run(flawed[0], tmp_path / "out", recognizer="a/model", max_seconds=4.0)
    kept = report["fates"][KEPT]["pieces"]
    assert report["notes"]["kept with the text that a/model heard"] == kept > 10
    assert f"kept with the text that a/model heard: {kept} times" in (tmp_path / "out/report.md").read_text()
    fates = {row["fate"] for row in dropped(tmp_path / "out")}
    assert fates >= {"nothing heard", "too many characters a second", "unreadable audio"}


def test_an_empty_split_says_what_fills_it(corpus, tmp_path):
    options = {"layout": "cuts", "cuts": ("cuts.jsonl.gz",), "val_share": 0.1, "test_share": 0.0}
    run(corpus, tmp_path / "out", **options)
    assert (
        "val is empty: too few speakers (3); --val_share 0.33 gives it one" in (tmp_path / "out/report.md").read_text()
    )
    with pytest.raises(UserError, match=r"val\.arrow: holds no utterances; .*report\.md"):
        Manifest.open(tmp_path / "out/val.arrow", corpus)
    report = run(corpus, tmp_path / "out", **{**options, "val_share": 0.33})  # another split takes no other folder
    assert report["splits"]["val"]["speakers"] == 1
