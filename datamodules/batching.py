"""Batches of utterances of similar length, and their collation."""

import random
from collections.abc import Iterator, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset, Sampler

from datamodules.manifest import Utterance
from lit_spectron.audio_files import read_audio
from lit_spectron.errors import UserError
from lit_spectron.llms.tokenizer import Tokenizer
from lit_spectron.types import SpeechBatch


class LengthBatchSampler(Sampler[list[int]]):
    """Batches of neighbours in length, shuffled anew each epoch from one seed.

    Args:
        durations_seconds: Of every utterance.
        batch_size: Utterances a batch.
        shuffle: False keeps the given order.
        seed: Of the shuffling.
        rank: Of this process.
        world_size: Processes; each sees its share of the batches. While shuffling, all see equally many.
    """

    # Sorting within windows of this many batches trades randomness for little padding.
    WINDOW_BATCHES = 8

    def __init__(
        self,
        durations_seconds: Sequence[float],
        batch_size: int,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ):
        self.durations_seconds = durations_seconds
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.epoch = 0

    @property
    def sampler(self) -> "LengthBatchSampler":
        """Lightning calls ``set_epoch`` on ``batch_sampler.sampler`` and nowhere else."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        batches = -(-len(self.durations_seconds) // self.batch_size)
        if self.shuffle:
            return batches // self.world_size
        return len(range(self.rank, batches, self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        order = list(range(len(self.durations_seconds)))
        shuffler = random.Random(f"{self.seed} {self.epoch}")
        if self.shuffle:
            shuffler.shuffle(order)
            window = self.batch_size * self.WINDOW_BATCHES
            order = [
                index
                for start in range(0, len(order), window)
                for index in sorted(order[start : start + window], key=lambda i: self.durations_seconds[i])
            ]
        batches = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        if self.shuffle:
            shuffler.shuffle(batches)
        yield from batches[self.rank :: self.world_size][: len(self)]


class UtteranceDataset(Dataset):
    """Reads utterances; one that can't be read comes back as the reason why.

    Args:
        utterances: What to read.
        sample_rate_hz: Of every file.
        cache_bytes: Samples that are kept in memory once they are decoded; the rest is read anew each time.
    """

    def __init__(self, utterances: list[Utterance], sample_rate_hz: int, cache_bytes: int = 0):
        self.utterances = utterances
        self.sample_rate_hz = sample_rate_hz
        self.free_bytes = cache_bytes
        self.cache: dict[int, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> tuple[Utterance, torch.Tensor | str]:
        utterance = self.utterances[index]
        if index in self.cache:
            return utterance, self.cache[index]
        try:
            samples = read_audio(
                utterance.path, self.sample_rate_hz, utterance.start_seconds, utterance.duration_seconds
            )
        except UserError as error:
            return utterance, str(error)
        waveform = torch.from_numpy(samples)
        if waveform.nbytes <= self.free_bytes:
            self.free_bytes -= waveform.nbytes
            self.cache[index] = waveform
        return utterance, waveform


class Collate:
    """Utterances to a `SpeechBatch`.

    Args:
        split: Name of the split.
        tokenizer: The LLM's own.
        sample_rate_hz: Of the waveforms.
        prompt_seconds: Where each utterance is split.
    """

    def __init__(self, split: str, tokenizer: Tokenizer, sample_rate_hz: int, prompt_seconds: float):
        self.split = split
        self.tokenizer = tokenizer
        self.prompt_samples = round(prompt_seconds * sample_rate_hz)
        self.prompt_seconds = prompt_seconds

    def __call__(self, items: list[tuple[Utterance, torch.Tensor | str]]) -> SpeechBatch:
        read = [(utterance, audio) for utterance, audio in items if isinstance(audio, torch.Tensor)]
        waveforms = [audio for _, audio in read] or [torch.zeros(0)]
        tokens = [torch.tensor(self.tokenizer.encode(utterance.text), dtype=torch.long) for utterance, _ in read]
        return SpeechBatch(
            split=self.split,
            waveform=pad_sequence(waveforms, batch_first=True),
            lengths=torch.tensor([len(audio) for _, audio in read], dtype=torch.long),
            prompt_samples=torch.full((len(read),), self.prompt_samples),
            tokens=pad_sequence(
                tokens or [torch.zeros(0, dtype=torch.long)], batch_first=True, padding_value=self.tokenizer.pad_id
            ),
            token_lengths=torch.tensor([len(ids) for ids in tokens], dtype=torch.long),
            ids=[utterance.id for utterance, _ in read],
            speakers=[utterance.speaker for utterance, _ in read],
            text=[utterance.text for utterance, _ in read],
            prompt_text=[utterance.text_before(self.prompt_seconds) for utterance, _ in read],
            skipped=[f"{utterance.id}: {reason}" for utterance, reason in items if isinstance(reason, str)],
        )
