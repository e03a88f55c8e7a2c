"""Which of two recordings does the model find likelier: sWUGGY, sBLIMP, StoryCloze and their kin."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from lit_spectron.audio_files import read_audio
from lit_spectron.bootstrap import interval, resampled_ratios
from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole, make_folder
from lit_spectron.pipeline import Likelihood, SpectronPipeline
from lit_spectron.tables import with_interval

By = Literal["text", "text_per_token", "spectrogram"]
COLUMNS = ("better", "worse")


def read_pairs(table: Path) -> list[dict[str, str]]:
    """Rows of a tab-separated table with the columns ``better`` and ``worse`` (audio files, relative to the table) and,
    if the texts are known, ``better_text`` and ``worse_text``.

    Raises:
        UserError: It is missing, no such table, empty, or lacks a file.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
            rows, columns = list(reader), reader.fieldnames or []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{table}: can't be read as a table: {error}") from error
    if missing := [name for name in COLUMNS if name not in columns]:
        raise UserError(f"{table}: has no column {missing[0]}, but {', '.join(columns) or 'nothing'}")
    if not rows:
        raise UserError(f"{table}: holds no pairs")
    for number, row in enumerate(rows, start=2):
        for name in COLUMNS:
            if not row[name] or not (table.parent / row[name]).is_file():
                raise UserError(f"{table}:{number}: {name}: no such file: {row[name]}")
    return rows


def score(likelihood: Likelihood, by: By) -> float:
    """The number that decides.

    Raises:
        UserError: There are no frames to judge by.
    """
    if by == "spectrogram":
        if likelihood.spectrogram is None:
            raise UserError("--by spectrogram: needs --prompt_seconds, and recordings that are longer")
        return likelihood.spectrogram
    return likelihood.text / (likelihood.tokens if by == "text_per_token" else 1)


def judge_pairs(
    pipeline: SpectronPipeline,
    table: Path,
    by: By = "text",
    prompt_seconds: float | None = None,
    out: Path | None = None,
    report: Callable[[str], object] = print,
) -> float:
    """The share of pairs whose better recording scores higher; equal ones count half.

    Args:
        pipeline: The model.
        table: See `read_pairs`.
        by: ``text``: its log-probability. ``text_per_token``: the same over its tokens, where lengths differ.
            ``spectrogram``: minus the loss of the frames after the prompt. `SpectronPipeline.log_likelihood` says what
            they are worth.
        prompt_seconds: Where recordings are split; None for nowhere.
        out: Where every score is written to, as the table with two more columns.
        report: Is told the accuracy.

    Raises:
        UserError: A mistake in the table, or in a recording.
    """
    rows, rate = read_pairs(table), pipeline.model.audio.sample_rate_hz
    scores = np.empty((len(rows), 2))
    for index, row in enumerate(rows):
        waveforms = [torch.from_numpy(read_audio(table.parent / row[name], rate)) for name in COLUMNS]
        texts = [row.get(f"{name}_text") or None for name in COLUMNS]
        scores[index] = [score(found, by) for found in pipeline.log_likelihood(waveforms, texts, prompt_seconds)]
    right = (np.sign(scores[:, 0] - scores[:, 1]) + 1) / 2
    if out is not None:
        make_folder(out.parent)
        with appearing_whole(out) as path, path.open("w", encoding="utf-8") as file:
            print(*rows[0], *(f"{name}_score" for name in COLUMNS), sep="\t", file=file)
            for row, pair in zip(rows, scores.tolist(), strict=True):
                print(
                    *(value or "" for value in row.values()), *(f"{value:.6f}" for value in pair), sep="\t", file=file
                )
    bounds = interval(resampled_ratios(right, np.ones(len(right)))) if len(right) > 1 else None
    report(f"accuracy by {by}: {with_interval(float(right.mean()), bounds)} of {len(right)} pairs")
    return float(right.mean())
