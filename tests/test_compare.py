"""Bootstrap intervals, and runs side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lit_spectron.bootstrap import interval, intervals, resampled_ratios
from lit_spectron.compare import compare, difference, read_report
from lit_spectron.errors import UserError


def test_resamples_are_ratios_of_sums_over_drawn_utterances():
    numerators, denominators = np.array([1.0, 0.0]), np.array([1.0, 9.0])
    ratios = resampled_ratios(numerators, denominators)
    # Of two utterances, a draw holds the first twice, both, or the second twice.
    assert set(np.unique(ratios)) == {0.0, 0.1, 1.0}
    assert [np.mean(ratios == r) for r in (0.0, 0.1, 1.0)] == pytest.approx([0.25, 0.5, 0.25], abs=0.04)
    table = resampled_ratios(np.stack([numerators, denominators], 1), np.stack([denominators] * 2, 1))
    assert np.array_equal(table[:, 0], ratios) and np.array_equal(table[:, 1], np.ones(len(ratios)))


def test_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(1).exponential(size=120)
    ours = interval(resampled_ratios(values, np.ones(120)))
    theirs = stats.bootstrap([values], np.mean, method="percentile", random_state=0).confidence_interval
    assert ours == pytest.approx((theirs.low, theirs.high), abs=0.02)


def test_what_is_undefined_has_no_interval():
    assert interval(resampled_ratios(np.zeros(3), np.zeros(3))) is None
    assert intervals({"u1": {"wer": (1, 2)}}) == {} == intervals({})
    found = intervals({f"u{i}": {"wer": (1, 2), **({"mos": (3.0, 1)} if i else {})} for i in range(20)})
    assert found == {"wer": (0.5, 0.5), "mos": (3.0, 3.0)}


def counts_of(errors: np.ndarray, words: np.ndarray) -> dict:
    return {f"u{i:03}": {"wer_text": (float(e), float(w))} for i, (e, w) in enumerate(zip(errors, words, strict=True))}


def test_differences_are_paired():
    rng = np.random.default_rng(2)
    words = rng.integers(1, 30, 80)
    first = rng.binomial(words, 0.3)
    second = np.maximum(first - (rng.random(80) < 0.2), 0)  # the same utterances are hard
    a, b = counts_of(first, words), counts_of(second, words)
    assert difference(a, a, "wer_text") == (0.0, (0.0, 0.0), 80)
    value, (low, high), count = difference(a, b, "wer_text")
    assert value == pytest.approx((second.sum() - first.sum()) / words.sum()) and count == 80 and low < value < high < 0
    unpaired = resampled_ratios(second, words, seed=1) - resampled_ratios(first, words, seed=2)
    assert high - low < 0.3 * np.diff(np.quantile(unpaired, (0.025, 0.975)))[0]


def test_differences_are_over_shared_utterances():
    a, b = counts_of(np.array([1, 2, 3, 4]), np.full(4, 10)), counts_of(np.array([1, 2, 3, 0]), np.full(4, 10))
    del a["u000"], b["u001"]
    value, _, count = difference(a, b, "wer_text")
    assert count == 2 and value == pytest.approx((3 + 0 - 3 - 4) / 20)
    assert difference({"x": {}}, a, "wer_text") is None and difference(a, b, "mos") is None


def write_report(folder: Path, errors: list[int], references: dict | None = None) -> Path:
    counts = counts_of(np.array(errors), np.full(len(errors), 10))
    pairs = [row["wer_text"] for row in counts.values()]
    report = {
        "metrics": {"test/loss": 1.25, "test/wer_text": sum(errors) / 10 / len(errors), "test/mos": None},
        "intervals": {f"test/{name}": bounds for name, bounds in intervals(counts).items()},
        "samples": {
            name: {"wer_text": a / b, "counts": row} for (name, row), (a, b) in zip(counts.items(), pairs, strict=True)
        },
        "references": references or {},
    }
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def test_compare(tmp_path):
    ceiling = {"metrics": {"test/wer_text": 0.0}, "intervals": {}, "counts": counts_of(np.zeros(4), np.full(4, 10))}
    runs = [
        write_report(tmp_path / "a", [1, 2, 3, 4]),
        write_report(tmp_path / "b", [2, 3, 4, 5], {"ceiling": ceiling}),
    ]
    said: list[str] = []
    compare([runs[0], runs[1] / "report.json"], tmp_path / "new/table.md", said.append)
    (text,) = said
    assert (tmp_path / "new/table.md").read_text() == text
    assert (tmp_path / "new/table.png").read_bytes().startswith(b"\x89PNG")
    values, differences = (block.splitlines() for block in text.split("\n\n") if block.startswith("|"))
    assert values[0] == "| run | test/loss | test/mos | test/wer_text |" and len(values) == 5
    assert values[2].startswith(f"| {runs[0]} | 1.2500 | none | 0.2500 [0.1")
    assert values[4] == f"| {runs[1]}/report.json (ceiling) |  |  | 0.0000 |"
    assert differences[0] == "| run | test/wer_text |"
    assert differences[2] == f"| {runs[1]}/report.json | 0.1000 [0.1000, 0.1000], 4 |"
    assert differences[3].startswith(f"| {runs[1]}/report.json (ceiling) | -0.2500 [-0.3")


def test_reports_of_older_versions_have_values_only(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps({"metrics": {"test/loss": 1}, "samples": {"u": {"wer_text": 0}}}))
    said: list[str] = []
    compare([tmp_path, tmp_path], tmp_path / "t.md", said.append)
    assert said[0].count("| 1.0000 |") == 2 and "Minus" not in said[0]


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"metrics": {}}', '{"metrics": {"a": "b"}, "samples": {}}'])
def test_bad_reports_are_named(tmp_path, content):
    if content is not None:
        (tmp_path / "report.json").write_text(content)
    with pytest.raises(UserError, match=r"report\.json: (no such|not a) report"):
        read_report(tmp_path)
    with pytest.raises(UserError, match="is no Markdown file"):
        compare([tmp_path], tmp_path)
