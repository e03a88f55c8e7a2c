"""From a manifest and a plan to batches of waveforms."""

import random
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datamodules.manifest import Manifest, Utterance
from datamodules.sampling import PlannedBatchSampler
from datamodules.segmentation import quietest
from lit_spectron.audio_files import read_audio
from lit_spectron.errors import UserError
from lit_spectron.llms.tokenizer import Tokenizer
from lit_spectron.memory import keep_freed_memory
from lit_spectron.types import SpeechBatch

WORKER_OUTLIVES_TERM_SECONDS = 30


@dataclass(frozen=True)
class PromptSplit:
    """Where an utterance is split into prompt and continuation.

    Args:
        kind: ``fixed``: after ``min_seconds``. ``random``: anywhere up to ``max_seconds``, elsewhere in each epoch of
            training. ``pause``: at the quietest place up to ``max_seconds``.
        min_seconds: Shortest prompt.
        max_seconds: Longest prompt.
        continuation_seconds: Shortest continuation.
        seed: Of random places.
    """

    kind: Literal["fixed", "random", "pause"]
    min_seconds: float
    max_seconds: float
    continuation_seconds: float
    seed: int

    def seconds(self, utterance: Utterance, waveform: np.ndarray, sample_rate_hz: int, epoch: int) -> float:
        """Length of an utterance's prompt."""
        latest = min(self.max_seconds, utterance.duration_seconds - self.continuation_seconds)
        if self.kind == "fixed" or latest <= self.min_seconds:
            return self.min_seconds
        if self.kind == "random":
            return random.Random(f"{self.seed} {epoch} {utterance.id}").uniform(self.min_seconds, latest)
        first, last = (round(seconds * sample_rate_hz) for seconds in (self.min_seconds, latest))
        return (first + quietest(waveform[first:last], sample_rate_hz)) / sample_rate_hz


@dataclass
class Item:
    """An utterance as it was read.

    Attributes:
        utterance: What was read.
        waveform: (T,) float32; None if it could not be read.
        prompt_seconds: Where its continuation begins.
        problem: Why it could not be read.
        answers: Right answers, if it is a question.
    """

    utterance: Utterance
    waveform: torch.Tensor | None
    prompt_seconds: float = 0.0
    problem: str = ""
    answers: list[str] = field(default_factory=list)


class PaddedItems(list[Item]):
    """Items whose waveforms are the rows of one tensor.

    Args:
        items: Of a batch.
        waveform: (B, T) of those that could be read, in their order, zero beyond their ends.
    """

    def __init__(self, items: list[Item], waveform: torch.Tensor):
        super().__init__(items)
        self.waveform = waveform


class UtteranceDataset(Dataset):
    """Reads utterances; one that can't be read comes back as the reason why.

    Those of a batch are decoded to where the batch has them: to copy them there later would cost a tenth of decoding.

    Args:
        manifest: What to read.
        sample_rate_hz: Of every file.
        split: Where prompts end.
        cache_bytes: Samples that are kept in memory once they are decoded; the rest is read anew each time.
    """

    def __init__(self, manifest: Manifest, sample_rate_hz: int, split: PromptSplit, cache_bytes: int = 0):
        self.manifest = manifest
        self.sample_rate_hz = sample_rate_hz
        self.split = split
        self.free_bytes = cache_bytes
        self.cache: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self.manifest)

    def __getitem__(self, place: tuple[int, int]) -> Item:
        """The utterance of an index, in an epoch."""
        return self.__getitems__([place])[0]

    def __getitems__(self, places: list[tuple[int, int]]) -> PaddedItems:
        """The utterances of a batch, each of an index, in an epoch."""
        utterances = [self.manifest[index] for index, _ in places]
        sizes = [round(utterance.duration_seconds * self.sample_rate_hz) for utterance in utterances]
        rows = np.empty((len(sizes), max(sizes, default=0)), dtype=np.float32)
        items: list[Item] = []
        lengths: list[int] = []
        for place, utterance, size in zip(places, utterances, sizes, strict=True):
            item = self._item(*place, utterance, rows[len(lengths), :size])
            items.append(item)
            if item.waveform is not None:
                lengths.append(len(item.waveform))
        longest = max(lengths, default=0)
        for row, length in zip(rows, lengths, strict=False):
            row[length:longest] = 0
        return PaddedItems(items, torch.from_numpy(rows)[: len(lengths), :longest].contiguous())

    def _item(self, index: int, epoch: int, utterance: Utterance, out: np.ndarray) -> Item:
        try:
            samples = self._samples(index, utterance, out)
        except UserError as error:
            return Item(utterance, None, problem=str(error))
        seconds = self.split.seconds(utterance, samples, self.sample_rate_hz, epoch)
        return Item(utterance, torch.from_numpy(samples), seconds)

    def _samples(self, index: int, utterance: Utterance, out: np.ndarray) -> np.ndarray:
        if index in self.cache:
            samples = out[: len(self.cache[index])]
            samples[:] = self.cache[index]
            return samples
        start, duration = utterance.start_seconds, utterance.duration_seconds
        samples = read_audio(utterance.path, self.sample_rate_hz, start, duration, out, utterance.member)
        if samples.nbytes <= self.free_bytes:
            self.free_bytes -= samples.nbytes
            self.cache[index] = samples.copy()
        return samples


class SentBatch(SpeechBatch):
    """A batch that a worker sends; it arrives as a `SpeechBatch`.

    Its samples go through shared memory, and all else, which is small, by value: for each tensor that is shared torch
    makes a file and a connection, and five of them took a tenth of a worker's time.
    """

    def __reduce__(self):
        small = {name: value.numpy() for name, value in vars(self).items() if torch.is_tensor(value)}
        return received, ({**vars(self), **small, "waveform": self.waveform},)


def received(values: dict[str, Any]) -> SpeechBatch:
    """What a `SentBatch` arrives as."""
    tensors = {name: torch.from_numpy(value) for name, value in values.items() if isinstance(value, np.ndarray)}
    return SpeechBatch(**{**values, **tensors})


class Collate:
    """Items to a `SpeechBatch`.

    Args:
        split: Name of the split.
        tokenizer: The LLM's own.
        sample_rate_hz: Of the waveforms.
        lower_case: Whether transcripts are lower-cased.
    """

    def __init__(self, split: str, tokenizer: Tokenizer, sample_rate_hz: int, lower_case: bool = False):
        self.split = split
        self.tokenizer = tokenizer
        self.sample_rate_hz = sample_rate_hz
        self.lower_case = lower_case

    def __call__(self, items: list[Item]) -> SpeechBatch:
        read = [item for item in items if item.waveform is not None]
        waveforms = [item.waveform for item in read if item.waveform is not None]
        if isinstance(items, PaddedItems):
            waveform = items.waveform
        else:
            waveform = pad_sequence(waveforms or [torch.zeros(0)], batch_first=True)
        texts = [item.utterance.text for item in read]
        texts = [text.lower() for text in texts] if self.lower_case else texts
        tokens = [torch.tensor(self.tokenizer.encode(text), dtype=torch.long) for text in texts]
        prompts = [round(item.prompt_seconds * self.sample_rate_hz) for item in read]
        return (SentBatch if get_worker_info() else SpeechBatch)(
            split=self.split,
            waveform=waveform,
            lengths=torch.tensor([len(samples) for samples in waveforms], dtype=torch.long),
            prompt_samples=torch.tensor(prompts, dtype=torch.long),
            tokens=pad_sequence(
                tokens or [torch.zeros(0, dtype=torch.long)], batch_first=True, padding_value=self.tokenizer.pad_id
            ),
            token_lengths=torch.tensor([len(ids) for ids in tokens], dtype=torch.long),
            ids=[item.utterance.id for item in read],
            speakers=[item.utterance.speaker for item in read],
            text=texts,
            prompt_text=[item.utterance.text_before(item.prompt_seconds) for item in read],
            answers=[item.answers for item in read],
            skipped=[(item.utterance.id, item.problem) for item in items if item.waveform is None],
        )


class _WithEpoch:
    """A sampler's batches, each index with the epoch that it is read in."""

    def __init__(self, sampler: PlannedBatchSampler):
        self.planned = sampler

    def __len__(self) -> int:
        return len(self.planned)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return ([(index, self.planned.epoch) for index in batch] for batch in self.planned)


def _begin_worker(_: int) -> None:
    """Has a worker reuse the memory of its batches, and live on while the training process, which Ctrl-C and TERM to a
    group reach, too, ends its step."""
    keep_freed_memory()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(WORKER_OUTLIVES_TERM_SECONDS))


def ordered_loader(
    dataset: Dataset, sampler: PlannedBatchSampler, collate: Collate, workers: int
) -> DataLoader[SpeechBatch]:
    """Of passes that always begin at the beginning. A plain class: to predict, Lightning builds the loader again."""
    return DataLoader(
        dataset,
        batch_sampler=_WithEpoch(sampler),
        collate_fn=collate,
        num_workers=workers,
        worker_init_fn=_begin_worker,
        persistent_workers=workers > 0,
    )


class ResumableLoader(DataLoader):
    """A loader that goes on at the very batch where a checkpoint was written.

    Lightning keeps the state of such loaders in its checkpoints. It is the epoch, a number of batches, and a checksum
    of what the plan of the epoch depends on; the plan is computed again. The number of workers does not matter. Where
    the plan is another one now, as with another number of processes, the epoch begins again, with a warning.

    Epochs are counted here, and while shuffling a pass begins where the last one ended: after `max_steps` has cut an
    epoch short, Lightning resumes with another idea of where in it the run is.
    """

    def __init__(self, dataset: Dataset, sampler: PlannedBatchSampler, collate: Collate, workers: int):
        self.planned = sampler
        self.batches = 0  # that this epoch has had, of all processes together
        super().__init__(
            dataset,
            batch_sampler=_WithEpoch(sampler),
            collate_fn=collate,
            num_workers=workers,
            worker_init_fn=_begin_worker,
            persistent_workers=workers > 0,
        )

    def __iter__(self) -> Iterator[SpeechBatch]:  # type: ignore[override]
        sampler = self.planned
        if not sampler.shuffle:
            self.batches = 0
        elif self.batches >= len(sampler) * sampler.world_size:
            sampler.epoch, self.batches = sampler.epoch + 1, 0
        sampler.first = self.batches
        for batch in super().__iter__():
            self.batches += sampler.world_size
            yield batch

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.planned.epoch, "batches": self.batches, "plan": self.planned.checksum()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.planned.epoch, self.batches = state["epoch"], state["batches"]
        if state["plan"] != self.planned.checksum():
            rank_zero_warn(
                "data, limits of a batch, seed or the number of processes are not those of the checkpoint: "
                f"epoch {self.planned.epoch} of the data begins again"
            )
            self.batches = 0
