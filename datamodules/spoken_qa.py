"""Spoken questions with their answers: LLaMA-Questions, Web Questions, or any table of question, answers and audio."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.loading import Collate, Item
from datamodules.manifest import Utterance
from datamodules.sampling import BatchLimits, PlannedBatchSampler
from lit_spectron.audio_files import read_audio
from lit_spectron.errors import UserError
from lit_spectron.types import SpeechBatch


def read_questions(
    table: Path, question_column: str, answer_column: str, audio_column: str
) -> Iterator[tuple[str, list[str], str]]:
    """Rows of a table as question, answers and audio file.

    Args:
        table: With a line of column names; ``.csv``, or separated by tabs.
        question_column: The question as text.
        answer_column: One answer, or a list of them in JSON.
        audio_column: File name.

    Raises:
        UserError: The table is missing or empty, or has no such column; names the row that lacks something.
    """
    if not table.is_file():
        raise UserError(f"{table}: no such table")
    with table.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, delimiter="," if table.suffix == ".csv" else "\t")
        for name in (question_column, answer_column, audio_column):
            if name not in (rows.fieldnames or []):
                raise UserError(f"{table}: has no column {name}, but {', '.join(rows.fieldnames or ['nothing'])}")
        for number, row in enumerate(rows, start=2):
            question, answer, audio = (row[name] or "" for name in (question_column, answer_column, audio_column))
            if not (question.strip() and answer.strip() and audio.strip()):
                raise UserError(f"{table}:{number}: lacks question, answer or audio")
            yield question.strip(), _answers(answer.strip()), audio.strip()


def _answers(text: str) -> list[str]:
    if text.startswith("["):
        try:
            return [str(answer) for answer in json.loads(text)]
        except ValueError:
            pass
    return [text]


class SpokenQuestions(Dataset):
    """Reads questions; one that can't be read comes back as the reason why.

    Args:
        rows: Question, answers, audio file of each.
        sample_rate_hz: Of every file.
    """

    def __init__(self, rows: list[tuple[str, list[str], Path]], sample_rate_hz: int):
        self.rows = rows
        self.sample_rate_hz = sample_rate_hz

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        question, answers, path = self.rows[index]
        utterance = Utterance(path.stem, path, 0.0, 0.0, "", question)
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
    """

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
        self.rows: list[tuple[str, list[str], Path]] = []
        self.missing: list[Path] = []

    def setup(self, stage: str) -> None:
        """Reads the table; what has no audio is left out and counted."""
        if stage not in ("test", "predict"):
            raise UserError(f"{self.table}: questions are for test and predict, not for {stage}")
        rows = [(q, a, self.audio_root / name) for q, a, name in read_questions(self.table, *self.columns)]
        self.rows = [row for row in rows if row[2].is_file()]
        self.missing = [path for _, _, path in rows if not path.is_file()]
        print(f"{self.table}: {len(self.rows)} questions, {len(self.missing)} more without audio")
        if not self.rows:
            raise UserError(f"{self.table}: none of its {len(rows)} questions has its audio in {self.audio_root}")

    def _loader(self, split: str) -> DataLoader:
        trainer: Any = self.trainer
        model = trainer.lightning_module.model
        sampler = PlannedBatchSampler(
            np.ones(len(self.rows)), BatchLimits(self.batch_size), False, 0, trainer.global_rank, trainer.world_size
        )
        return DataLoader(
            SpokenQuestions(self.rows, model.audio.sample_rate_hz),
            batch_sampler=sampler,
            collate_fn=Collate(split, model.llm.tokenizer, model.audio.sample_rate_hz),
            num_workers=self.workers,
        )

    def test_dataloader(self) -> DataLoader[SpeechBatch]:
        return self._loader("test")

    def predict_dataloader(self) -> DataLoader[SpeechBatch]:
        return self._loader("predict")
