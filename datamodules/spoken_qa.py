"""Spoken questions with their answers: LLaMA-Questions, Web Questions, or any table of question, answers and audio."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader, Dataset

from datamodules.loading import Collate, Item
from datamodules.manifest import Utterance, Word
from datamodules.sampling import BatchLimits, PlannedBatchSampler
from lit_spectron.audio_files import read_audio
from lit_spectron.errors import UserError
from lit_spectron.types import SpeechBatch

MISSING_SHOWN = 10


def read_questions(
    table: Path, question_column: str, answer_column: str, audio_column: str
) -> list[tuple[str, list[str], str]]:
    """Rows of a table as question, answers and audio file.

    Args:
        table: With a line of column names; ``.csv``, or separated by tabs.
        question_column: The question as text.
        answer_column: One answer, or a list of them in JSON.
        audio_column: File name.

    Raises:
        UserError: The table is missing, unreadable, or has no such column; names the row that lacks something.
    """
    if not table.is_file():
        raise UserError(f"{table}: no such table")
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter="," if table.suffix == ".csv" else "\t", strict=True)
            rows, columns = list(reader), reader.fieldnames or []
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{table}: not a table in UTF-8: {error}") from error
    wanted = (question_column, answer_column, audio_column)
    if missing := [name for name in wanted if name not in columns]:
        raise UserError(f"{table}: has no column {missing[0]}, but {', '.join(columns) or 'nothing'}")
    questions = []
    for number, row in enumerate(rows, start=2):
        question, answer, audio = ((row[name] or "").strip() for name in wanted)
        answers = _answers(answer)
        if not (question and answers and audio):
            raise UserError(f"{table}:{number}: lacks question, answer or audio")
        questions.append((question, answers, audio))
    return questions


def _name(audio: str) -> str:
    """A question's id."""
    return Path(audio).with_suffix("").as_posix()


def _answers(text: str) -> list[str]:
    try:
        found = json.loads(text) if text.startswith("[") else [text]
    except ValueError:
        found = [text]
    return [answer for answer in map(str, found) if answer]


class SpokenQuestions(Dataset):
    """Reads questions; one that can't be read comes back as the reason why.

    Args:
        rows: Question, answers, audio file of each.
        root: Folder of the audio.
        sample_rate_hz: Of every file.
    """

    def __init__(self, rows: list[tuple[str, list[str], str]], root: Path, sample_rate_hz: int):
        self.rows = rows
        self.root = root
        self.sample_rate_hz = sample_rate_hz

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        question, answers, name = self.rows[index]
        path = self.root / name
        heard = (Word(question, 0.0, 0.0),)  # as one: all of it is in the prompt
        utterance = Utterance(_name(name), path, 0.0, 0.0, "", question, heard)
        try:
            waveform = torch.from_numpy(read_audio(path, self.sample_rate_hz))
        except UserError as error:
            return Item(utterance, None, problem=str(error))
        return Item(utterance, waveform, len(waveform) / self.sample_rate_hz, answers=answers)


class SpokenQADataModule(L.LightningDataModule):
    """Batches whose prompts are whole spoken questions, with nothing after them.

    Args:
        table: Questions and answers.
        audio_root: Folder of the audio; null for the table's.
        question_column: Name of the table's column with the question.
        answer_column: With the answer, or a JSON list of answers.
        audio_column: With the audio file.
        batch_size: Questions a batch.
        workers: Loader processes; 0 reads in the main process.

    Attributes:
        has_continuations: Whether there is anything after the prompts to take a loss of.
    """

    has_continuations = False

    def __init__(
        self,
        table: str,
        audio_root: str | None = None,
        question_column: str = "Questions",
        answer_column: str = "Answer",
        audio_column: str = "Wav Filename",
        batch_size: int = 8,
        workers: int = 0,
    ):
        super().__init__()
        self.table = Path(table)
        self.audio_root = Path(audio_root) if audio_root else self.table.parent
        self.columns = (question_column, answer_column, audio_column)
        self.batch_size = batch_size
        self.workers = workers
        self.rows: list[tuple[str, list[str], str]] = []
        self.without_audio: list[str] = []

    def setup(self, stage: str) -> None:
        """Reads the table; what has no audio is left out, counted and named."""
        if stage not in ("test", "predict"):
            raise UserError(
                f"{self.table}: questions have no continuation to {stage} with; they are for test and predict"
            )
        rows = read_questions(self.table, *self.columns)
        there = [(self.audio_root / name).is_file() for _, _, name in rows]
        uses = Counter(_name(audio) for _, _, audio in rows)
        if repeated := [name for name, count in uses.items() if count > 1]:
            raise UserError(
                f"{self.table}: several questions have the audio {repeated[0]}; predictions are named by it"
            )
        self.rows = [row for row, found in zip(rows, there, strict=True) if found]
        self.without_audio = [row[2] for row, found in zip(rows, there, strict=True) if not found]
        if not self.rows:
            raise UserError(f"{self.table}: none of its {len(rows)} questions has its audio in {self.audio_root}")
        rank_zero_info(f"{self.table}: {len(self.rows)} questions")
        if self.without_audio:
            names = ", ".join(self.without_audio[:MISSING_SHOWN])
            names += ", ..." if len(self.without_audio) > MISSING_SHOWN else ""
            count = f"{len(self.without_audio)} of {len(rows)}"
            rank_zero_warn(f"{self.table}: left out {count} questions without audio in {self.audio_root}: {names}")

    def on_after_batch_transfer(self, batch: SpeechBatch, dataloader_idx: int) -> SpeechBatch:
        """Reports what could not be read."""
        for name, reason in batch.skipped:
            rank_zero_warn(f"{self.table}: question {name} left out: {reason}")
        return batch

    def test_dataloader(self) -> DataLoader[SpeechBatch]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[SpeechBatch]:
        return self._loader("predict")

    def _loader(self, split: str) -> DataLoader[SpeechBatch]:
        trainer: Any = self.trainer
        model = trainer.lightning_module.model
        limits = BatchLimits(self.batch_size)
        sampler = PlannedBatchSampler(
            np.ones(len(self.rows)), limits, False, 0, trainer.global_rank, trainer.world_size
        )
        return DataLoader(
            SpokenQuestions(self.rows, self.audio_root, model.audio.sample_rate_hz),
            batch_sampler=sampler,
            collate_fn=Collate(split, model.llm.tokenizer, model.audio.sample_rate_hz),
            num_workers=self.workers,
        )
