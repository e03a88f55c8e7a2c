"""`prepare librilight`, killed, damaged, repaired and started again: in the end the same bytes."""

import errno
import fcntl
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from datamodules import preparation
from datamodules.parts import divided, locked
from datamodules.preparation import merge
from datamodules.sources import KEPT
from lit_spectron.errors import UserError
from tests.flawed import RATE, add, contents, noise, rows, run, settings, total


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
    parts = list((tmp_path / "three/parts").glob("*.part"))
    assert len(parts) > 2
    parts[1].unlink()
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


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_interrupted(flawed, tmp_path, jobs):
    """Ctrl-C: one line, and the same command goes on."""
    root, _ = flawed
    for index in range(200):
        add(root, f"small/s{index}/x/{index}.flac", noise(20.0), {"speaker": f"s{index}", "voice_activity": [[0, 20]]})
    arguments = ["--root", str(root), "--max_seconds", "4", "--min_seconds", "1", "--verify", "--jobs", jobs]
    command = [
        sys.executable,
        "-m",
        "lit_spectron",
        "prepare",
        "librilight",
        *arguments,
        "--out",
        str(tmp_path / "out"),
    ]
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # what runs the tests may ignore it
    parts = tmp_path / "out/parts"
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, start_new_session=True, preexec_fn=heed
    ) as process:
        while process.poll() is None and not list(parts.glob("*.part")):
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read() == "interrupted\n"
    assert process.returncode == 130 and not (tmp_path / "out/report.json").is_file()
    before = times_of_parts(tmp_path / "out")
    subprocess.run(command, check=True, capture_output=True)
    assert before.items() < times_of_parts(tmp_path / "out").items()


def test_a_file_system_without_locks_is_named(flawed, tmp_path, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"settings\.lock: can't be locked: function not implemented"):
        run(flawed[0], tmp_path / "out")


@pytest.mark.parametrize("name", ["settings", "shard-0-of-1", "merge"])
def test_a_folder_in_the_place_of_a_lock_is_named(flawed, tmp_path, name):
    (tmp_path / f"out/parts/{name}.lock").mkdir(parents=True)
    with pytest.raises(UserError, match=rf"{name}\.lock: can't be locked: is a directory"):
        run(flawed[0], tmp_path / "out")


def test_one_process_a_shard(flawed, tmp_path):
    (tmp_path / "out/parts").mkdir(parents=True)
    with locked(tmp_path / "out/parts/shard-0-of-1.lock"), pytest.raises(UserError, match="another process"):
        context = multiprocessing.get_context("spawn")
        with context.Pool(1) as pool:
            pool.apply(run, (flawed[0], tmp_path / "out"))


DAMAGE = {
    "empty": lambda content: content[:0],
    "truncated": lambda content: content[: len(content) // 2],
    "end lost": lambda content: content[:-1],
    "zeroed": lambda content: bytes(len(content)),
    "one bit": lambda content: content[:-300] + bytes([content[-300] ^ 1]) + content[-299:],
    "of another version": lambda content: content[32:],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_parts_are_made_again(flawed, tmp_path, damage):
    root, _ = flawed
    run(root, tmp_path / "out")
    reference = contents(tmp_path / "out")
    part = min((tmp_path / "out/parts").glob("*.part"))
    part.write_bytes(DAMAGE[damage](part.read_bytes()))
    run(root, tmp_path / "out")
    assert contents(tmp_path / "out") == reference


def test_a_part_that_is_damaged_in_the_merge_is_named(flawed, tmp_path):
    root, _ = flawed
    run(root, tmp_path / "out")
    part = min((tmp_path / "out/parts").glob("*.part"))
    part.write_bytes(b"x")
    with pytest.raises(UserError, match=rf"{part.name}: damaged while it was merged"):
        merge(settings(root), tmp_path / "out", [part])


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3"])
def test_damaged_settings_are_named(flawed, tmp_path, text):
    root, _ = flawed
    run(root, tmp_path / "out")
    (tmp_path / "out/parts/settings.json").write_text(text)
    with pytest.raises(UserError, match=r"settings\.json: damaged, .*; remove"):
        run(root, tmp_path / "out")


def test_repaired_files_are_noticed(flawed, tmp_path):
    """Audio, a description, and one that was not there."""
    root, samples = flawed
    out, x = tmp_path / "out", root / "small/b/x"
    assert "unreadable audio" in run(root, out)["fates"]
    add(x, "zero_bytes.flac", noise(2.0), {"speaker": "b", "voice_activity": [[0, 2]]})
    add(x, "truncated.flac", noise(8.0), {"speaker": "b", "voice_activity": [[0, 3], [4.5, 7.5]]})
    report = run(root, out)
    assert "unreadable audio" not in report["fates"] and total(report) == samples + 2 * RATE
    for name in ("no_description", "broken_description"):
        (root / f"small/c/x/{name}.json").write_text('{"speaker": "c", "voice_activity": [[0, 2]]}')
    report = run(root, out)
    assert not report["fates"].keys() & {"bad description", "no .json beside it"}
    run(root, tmp_path / "anew")
    assert contents(out) == contents(tmp_path / "anew")


def test_repaired_audio_of_cuts_and_a_new_transcript_are_noticed(corpus, tmp_path):
    options = {"layout": "cuts", "cuts": ("cuts.jsonl.gz",)}
    path = corpus / "small/s0/book/book_0000.flac"
    path.rename(tmp_path / "away")
    assert run(corpus, tmp_path / "cuts", **options)["fates"]["no such file"]["pieces"] == 3
    (tmp_path / "away").rename(path)
    assert run(corpus, tmp_path / "cuts", **options)["fates"].keys() == {KEPT}
    audio = {"layout": "audio", "max_seconds": 10.0}
    run(corpus, tmp_path / "audio", **audio)
    path.with_suffix(".txt").write_text("words enough for six seconds")
    run(corpus, tmp_path / "audio", **audio)
    assert [u.text for u in rows(tmp_path / "audio", corpus) if u.path == path] == ["words enough for six seconds"]


def test_only_what_changed_is_made_again(flawed, tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.sources.FileSource.items_per_part", 3)
    root, _ = flawed
    run(root, tmp_path / "out")
    before = times_of_parts(tmp_path / "out")
    os.utime(root / "small/d/x/long.json")
    run(root, tmp_path / "out")
    after = times_of_parts(tmp_path / "out")
    assert before.keys() == after.keys() and len(before.items() - after.items()) == 1


def times_of_parts(out: Path) -> dict[str, int]:
    return {part.name: part.stat().st_mtime_ns for part in (out / "parts").glob("*.part")}


def test_a_new_file_costs_no_part_but_its_own(flawed, tmp_path, monkeypatch):
    """In the middle; and when it is gone again, nothing is made at all."""
    monkeypatch.setattr("datamodules.sources.FileSource.items_per_part", 3)
    root, _ = flawed
    run(root, tmp_path / "out")
    original, before = contents(tmp_path / "out"), times_of_parts(tmp_path / "out")
    new = add(root, "small/b/one/new.flac", noise(2.0), {"speaker": "e", "voice_activity": [[0, 2]]})
    run(root, tmp_path / "out")
    after = times_of_parts(tmp_path / "out")
    assert len(before) > 3 and before.items() <= after.items() and 1 <= len(after) - len(before) <= 2
    run(root, tmp_path / "anew")
    assert contents(tmp_path / "out") == contents(tmp_path / "anew") != original
    new.unlink()
    run(root, tmp_path / "out")
    assert contents(tmp_path / "out") == original and times_of_parts(tmp_path / "out") == after


def test_a_division_hardly_changes_with_a_new_item():
    items = [f"large/{i // 300}/book_{i // 40}/chapter_{i:06}.flac" for i in range(5000)]
    parts = list(divided(items, 16))
    assert list(chain(*parts)) == items and 12 < len(items) / len(parts) < 20 and max(map(len, parts)) <= 64
    for place in range(0, 5000, 500):
        changed = list(divided([*items[:place], f"large/new_{place}.flac", *items[place:]], 16))
        assert sum(part not in parts for part in changed) <= 3
    assert list(divided([], 16)) == [] and max(map(len, divided(["same"] * 100, 3))) <= 12


def test_a_corpus_that_changes_meanwhile_is_an_error(flawed, tmp_path, monkeypatch):
    root, _ = flawed
    real = preparation.write_part

    def write_and_touch(*arguments):
        real(*arguments)
        os.utime(root / "small/d/x/long.flac")

    monkeypatch.setattr(preparation, "write_part", write_and_touch)
    with pytest.raises(UserError, match="changed while it was prepared"):
        run(root, tmp_path / "out")
