"""Benchmarks run; what they measure is not looked at."""

import re
import runpy
import sys

WAYS = ("ours", "ours, int8", "plain loop", "weights read once")


def test_decoding(repository, monkeypatch, capsys):
    arguments = ["--tiny", "--device", "cpu", "--batch_sizes", "1", "2", "--steps", "8", "--seconds", "1"]
    monkeypatch.setattr(sys, "argv", ["decoding.py", *arguments])
    runpy.run_path(str(repository / "benchmarks/decoding.py"), run_name="__main__")
    first, second = capsys.readouterr().out.split("\n\n")[1:]
    rows = [re.split(r" *\| *", line.strip("| ")) for line in first.splitlines()[2:]]
    assert [row[:2] for row in rows] == [[n, w] for n in "12" for w in WAYS]
    assert all(float(row[2]) > 0 for row in rows) and len(second.splitlines()) == 2 + 6
