"""Libri-Light and corpora in its layout."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from datamodules.batching import Collate, LengthBatchSampler, UtteranceDataset
from datamodules.manifest import Utterance, read_cuts, read_folders, split_by_speaker
from lit_spectron.audio import SHORTEST_PROMPT_SECONDS
from lit_spectron.errors import UserError
from lit_spectron.types import SpeechBatch

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}


class LibriLightDataModule(L.LightningDataModule):
    """Batches of waveforms with transcripts, from Libriheavy cuts over Libri-Light's folders.

    Args:
        root: Corpus folder; stands for ``audio_prefix`` in the manifests' paths.
        train_cuts: Libriheavy-style manifest (``.jsonl`` or ``.jsonl.gz``), relative to ``root``.
        val_cuts: The same for validation; null splits speakers off ``train_cuts``.
        test_cuts: The same for test and predict; null splits speakers off ``train_cuts``.
        val_share: Share of speakers that validation takes where ``val_cuts`` is null.
        test_share: Share of speakers that test takes where ``test_cuts`` is null.
        audio_prefix: The audio root that the manifests were written with.
        text_index: Which of Libriheavy's texts: 0 cased and punctuated, 1 upper-case.
        lower_case: Whether transcripts are lower-cased.
        prompt_seconds: Length of the prompt; the rest is the continuation (paper: 3).
        min_continuation_seconds: Utterances with a shorter continuation are left out and counted.
        max_seconds: Longer utterances are left out and counted.
        batch_size: Utterances a batch and device.
        workers: Loader processes; 0 reads in the training process.
        cache_gib: Decoded audio that is kept in memory, for small corpora: by each split, in each loader process.
        seed: Of the order of training.
        max_skipped_share: A run fails once more than this share of a split's utterances can't be used.
    """

    def __init__(
        self,
        root: str,
        train_cuts: str | None = None,
        val_cuts: str | None = None,
        test_cuts: str | None = None,
        val_share: float = 0.05,
        test_share: float = 0.05,
        audio_prefix: str = "download/librilight",
        text_index: int = 0,
        lower_case: bool = False,
        prompt_seconds: float = 3.0,
        min_continuation_seconds: float = 0.5,
        max_seconds: float = 30.0,
        batch_size: int = 16,
        workers: int = 0,
        cache_gib: float = 0.0,
        seed: int = 0,
        max_skipped_share: float = 0.01,
    ):
        super().__init__()
        if prompt_seconds < SHORTEST_PROMPT_SECONDS:
            raise UserError(f"data.prompt_seconds: must be at least {SHORTEST_PROMPT_SECONDS}, got {prompt_seconds}")
        for name, value in (("min_continuation_seconds", min_continuation_seconds), ("batch_size", batch_size)):
            if value <= 0:
                raise UserError(f"data.{name}: must be positive, got {value}")
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise UserError("data: needs val_share >= 0, test_share >= 0 and val_share + test_share < 1")
        self.root = Path(root)
        self.cuts = {"train": train_cuts, "val": val_cuts, "test": test_cuts}
        self.val_share = val_share
        self.test_share = test_share
        self.audio_prefix = audio_prefix
        self.text_index = text_index
        self.lower_case = lower_case
        self.prompt_seconds = prompt_seconds
        self.min_continuation_seconds = min_continuation_seconds
        self.max_seconds = max_seconds
        self.batch_size = batch_size
        self.workers = workers
        self.cache_bytes = int(cache_gib * 2**30)
        self.seed = seed
        self.max_skipped_share = max_skipped_share
        self.utterances: dict[str, list[Utterance]] = {}
        self._counts: dict[str, int] = {}
        self._skipped: dict[str, dict[str, str]] = {}

    def setup(self, stage: str) -> None:
        """Reads the manifests of a stage and leaves out, counted, what can't be used."""
        for split in SPLITS[stage]:
            if split not in self.utterances:
                self._set_up_split(split)

    def _set_up_split(self, split: str) -> None:
        found = self._read_split(split)
        reasons = {u.id: reason for u in found if (reason := self._refusal(u, trains=split != "predict"))}
        usable = [u for u in found if u.id not in reasons]
        self.utterances[split] = usable
        self._counts[split] = len(found)
        self._skipped[split] = {}
        hours = sum(u.duration_seconds for u in usable) / 3600
        speakers = len({u.speaker for u in usable})
        rank_zero_info(f"{split}: {len(usable)} utterances, {hours:.2f} h, {speakers} speakers from {self.root}")
        self._note_skipped(split, reasons)
        if not usable:
            raise UserError(f"{self.root}: split {split} holds no utterance")

    def _read_split(self, split: str) -> list[Utterance]:
        if not self.root.is_dir():
            raise UserError(f"data.root: no such folder: {self.root}")
        if split == "predict":
            return read_folders(self.root) if not any(self.cuts.values()) else self._read_split("test")
        if self.cuts["train"] is None and self.cuts[split] is None:
            raise UserError(
                f"data.train_cuts: {split} needs transcripts, and raw Libri-Light has none; name a Libriheavy manifest"
            )
        name = self.cuts[split]
        if name is not None and (split != "train" or (self.cuts["val"] and self.cuts["test"])):
            return self._read_cuts(name)
        shares = [0.0 if self.cuts[s] else share for s, share in (("val", self.val_share), ("test", self.test_share))]
        parts = split_by_speaker(self._read_cuts(str(self.cuts["train"])), *shares)
        return parts[("train", "val", "test").index(split)]

    def _read_cuts(self, name: str) -> list[Utterance]:
        utterances = read_cuts(self.root / name, self.root, self.audio_prefix, self.text_index)
        return [replace(u, text=u.text.lower()) for u in utterances] if self.lower_case else utterances

    def _refusal(self, utterance: Utterance, trains: bool) -> str | None:
        """Why an utterance can't be used, as far as the manifest tells; `predict` needs a prompt and no more."""
        if not trains and utterance.duration_seconds < self.prompt_seconds:
            return f"shorter than the prompt ({self.prompt_seconds} s)"
        if trains and not utterance.text:
            return "empty transcript"
        if trains and utterance.duration_seconds < self.prompt_seconds + self.min_continuation_seconds:
            return f"shorter than prompt and continuation ({self.prompt_seconds} + {self.min_continuation_seconds} s)"
        if trains and utterance.duration_seconds > self.max_seconds:
            return f"longer than data.max_seconds ({self.max_seconds} s)"
        if not utterance.path.is_file():
            return "no such audio file"
        return None

    def _note_skipped(self, split: str, reasons: dict[str, str]) -> None:
        """Counts and reports utterances that can't be used.

        Raises:
            UserError: They are more than ``max_skipped_share`` of the split.
        """
        new = {name: reason for name, reason in reasons.items() if name not in self._skipped[split]}
        if not new:
            return
        self._skipped[split].update(new)
        skipped, count = len(self._skipped[split]), self._counts[split]
        name, reason = next(iter(new.items()))
        summary = ", ".join(f"{n} x {r}" for r, n in Counter(_kind(r) for r in self._skipped[split].values()).items())
        report = f"{split}: skipped {skipped} of {count} utterances ({summary}); the first new one is {name}: {reason}"
        if skipped > self.max_skipped_share * count:
            raise UserError(f"{report}; more than data.max_skipped_share ({self.max_skipped_share:.2%})")
        rank_zero_warn(report)

    def on_after_batch_transfer(self, batch: SpeechBatch, dataloader_idx: int) -> SpeechBatch:
        """Counts what could not be read."""
        if batch.skipped:
            self._note_skipped(batch.split, dict(line.split(": ", 1) for line in batch.skipped))
        return batch

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        if self.trainer is None:
            raise RuntimeError("the data module takes tokenizer and rate from the model of its trainer")
        model: Any = self.trainer.lightning_module.model
        utterances, rate = self.utterances[split], model.audio.sample_rate_hz
        sampler = LengthBatchSampler(
            [u.duration_seconds for u in utterances],
            self.batch_size,
            shuffle,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        return DataLoader(
            UtteranceDataset(utterances, rate, self.cache_bytes),
            batch_sampler=sampler,
            collate_fn=Collate(split, model.llm.tokenizer, rate, self.prompt_seconds),
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
        )

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader:
        return self._loader("predict", shuffle=False)


def _kind(reason: str) -> str:
    """A reason without the file it names, for counting."""
    return reason.split(": ", 1)[-1]
