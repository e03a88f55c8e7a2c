import json
import math
import random

import jiwer
import lightning as L
import pytest
import torch

from callbacks import GenerationHealth, WordErrorRate
from callbacks.base import Ratio
from callbacks.report import as_markdown
from lit_spectron.types import Generation
from lit_spectron.word_errors import count_errors, match_beginning, words


def random_words(rng: random.Random, longest: int) -> list[str]:
    return [rng.choice(["a", "b", "c"]) for _ in range(rng.randint(0, longest))]


@pytest.fixture
def generation() -> Generation:
    """Two continuations of 4 and 2 frames: half of the first is silent, none of the second."""
    loud, silent = torch.zeros(8), torch.full((8,), -9.0)
    return Generation(
        text=["one too", "Three, four! five"],
        text_stop_reason=["eos", "eos"],
        log_mel=torch.stack([torch.stack([loud, loud, silent, silent]), torch.stack([loud, loud, silent, silent])]),
        lengths=torch.tensor([4, 2]),
        stop_reason=["stop", "length"],
        silence_level_db=torch.tensor([-40.0, -40.0]),
    )


def test_words():
    assert words("Well, X-ray! Don't_stop  ÉTÉ 42") == ["well", "x", "ray", "don't", "stop", "été", "42"]
    assert words(" -- ") == []


def test_count_errors_is_jiwers():
    rng = random.Random(0)
    for _ in range(200):
        reference, hypothesis = random_words(rng, 6), random_words(rng, 6)
        if reference:
            expected = round(jiwer.wer(" ".join(reference), " ".join(hypothesis)) * len(reference))
        else:
            expected = len(hypothesis)
        assert count_errors(reference, hypothesis) == expected


def test_match_beginning_is_the_best_of_all_beginnings():
    rng = random.Random(1)
    for _ in range(300):
        reference, hypothesis = random_words(rng, 5), random_words(rng, 7)
        distances = [count_errors(reference, hypothesis[:n]) for n in range(len(hypothesis) + 1)]
        assert match_beginning(reference, hypothesis) == (min(distances), distances.index(min(distances)))


def test_ratio():
    ratio = Ratio()
    ratio.update(1, 4)
    ratio.update(2, 2)
    assert ratio.compute() == 0.5
    ratio.reset()
    ratio.update(0, 0)
    assert ratio.compute().isnan()


def test_word_error_rate(batch, generation):
    metric, both = WordErrorRate(), batch()  # "one two" and "three four five", whose prompts are "one" and "three"
    metric.update(None, both, generation)
    assert metric.metrics["wer_text"].compute() == pytest.approx(1 / 5)
    assert metric.metrics["wer_prompt"].compute() == 0
    assert metric.rows["utterance0"]["wer_text"] == pytest.approx(0.5)
    assert metric.rows["utterance1"] == {"wer_text": 0.0, "wer_prompt": 0.0}
    both.prompt_text, generation.text = ["two", None], ["one", ""]
    metric.update(None, both, generation)
    assert metric.metrics["wer_text"].compute() == pytest.approx((1 + 0 + 1 + 3) / 10)
    assert metric.metrics["wer_prompt"].compute() == pytest.approx(1 / 3)
    assert "wer_prompt" not in metric.rows["utterance1"]


def test_generation_health(batch, generation):
    metric = GenerationHealth()
    metric.update(None, batch(), generation)
    assert metric.metrics["stop_rate"].compute() == 0.5
    assert metric.metrics["silence_ratio"].compute() == pytest.approx(2 / 6)
    assert metric.rows["utterance0"] == {"stop_rate": 1.0, "silence_ratio": 0.5}
    assert metric.rows["utterance1"] == {"stop_rate": 0.0, "silence_ratio": 0.0}


def test_rows_and_metrics_begin_anew_each_round(batch, generation):
    metric = WordErrorRate()
    metric.on_validation_batch_end(None, None, generation, batch(), 0)
    metric.on_validation_batch_end(None, None, None, batch(), 1)  # a batch that was not decoded
    assert len(metric.rows) == 2 and metric.metrics["wer_text"].update_called
    metric.on_test_epoch_start(None, L.LightningModule())
    assert not metric.rows and not metric.metrics["wer_text"].update_called


def test_report_in_markdown():
    sample = {"reference": "a | b", "generated": "c\nd", "stop_reason": "stop", "seconds": 1.0}
    report = {
        "checkpoint": "last.ckpt",
        "metrics": {"test/loss": 1.25, "test/wer_prompt": None},
        "by_speaker": {"slt": {"utterances": 2, "wer_text": 0.5}, "awb": {"utterances": 1}},
        "samples": {"u1": sample},
    }
    markdown = as_markdown(report)
    assert "| test/loss | 1.2500 |" in markdown and "| test/wer_prompt | none |" in markdown
    assert "| slt | 2 | 0.5000 |" in markdown and "| awb | 1 |  |" in markdown
    assert r"| u1 | a \| b | c d | stop | 1.00 |" in markdown
    tables = [block.splitlines() for block in markdown.split("\n\n") if block.startswith("|")]
    for table in tables:
        assert len({line.replace(r"\|", "").count("|") for line in table}) == 1
    assert len(tables) == 3 and json.dumps(report) and not math.isnan(report["metrics"]["test/loss"])
