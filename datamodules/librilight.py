"""Libri-Light and corpora in its layout."""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils.data import DataLoader

from datamodules.cuts import LIBRIHEAVY_PREFIX, read_cuts
from datamodules.loading import Collate, PromptSplit, ResumableLoader, UtteranceDataset, ordered_loader
from datamodules.manifest import Manifest, concatenate, split_by_speaker
from datamodules.sampling import BatchLimits, Mixture, PlannedBatchSampler
from datamodules.sources import read_folders
from lit_spectron.audio import SHORTEST_PROMPT_SECONDS
from lit_spectron.errors import UserError
from lit_spectron.types import SpeechBatch

SPLITS = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("predict",)}
FILES_TO_CHECK = 10  # of a prepared manifest: is it of this root?
TEXTS_TO_MEASURE = (20, 50)  # places in a manifest, and transcripts at each, from which the tokens a byte are taken


class LibriLightDataModule(L.LightningDataModule):
    """Batches of waveforms with transcripts, from prepared manifests or Libriheavy cuts over Libri-Light's folders.

    Args:
        root: Corpus folder; stands for ``audio_prefix`` in the manifests' paths.
        train_cuts: Manifest, relative to ``root``: one that `prepare` wrote (``.arrow``) or Libriheavy-style cuts
            (``.jsonl``, ``.jsonl.gz``). A list mixes corpora. None of them may be there twice, or in another split.
        val_cuts: The same for validation; null splits speakers off ``train_cuts``.
        test_cuts: The same for test and predict; null splits speakers off ``train_cuts``.
        test_ids: Text file with the ids of the utterances that test and predict take, in this order, one a line; null
            for the whole split.
        train_shares: Of each of several ``train_cuts`` in an epoch, in utterances, up to a common factor; an epoch ends
            when one is used up. Null takes all of each.
        val_share: Share of speakers that validation takes where ``val_cuts`` is null.
        test_share: Share of speakers that test takes where ``test_cuts`` is null.
        audio_prefix: The audio root that cuts were written with.
        text_index: Which of Libriheavy's texts: 0 cased and punctuated, 1 upper-case.
        lower_case: Whether transcripts are lower-cased.
        prompt_seconds: Length of the prompt; the rest is the continuation (paper: 3).
        prompt_split: ``fixed``, or up to ``max_prompt_seconds``: ``random`` (in training elsewhere in each epoch), or
            at the quietest place, a ``pause``.
        max_prompt_seconds: Longest prompt, where it is not fixed.
        min_continuation_seconds: Utterances with a shorter continuation are left out and counted.
        max_seconds: Longer utterances are left out and counted.
        batch_size: Utterances a batch and device, at most; null for any number.
        batch_seconds: Seconds of audio a batch and device, padding counted in, at most, or one utterance; null for any
            number.
        batch_tokens: LM positions a batch and device, padding counted in, at most; null for any number. Those of text
            are estimated from its length.
        length_ratio: In training, utterances whose lengths differ by less than this factor come together: little of
            their batches is padding. Small corpora learn better from batches of any lengths, as with 100.
        workers: Loader processes; 0 reads in the training process.
        cache_gib: Decoded audio that is kept in memory, for small corpora: by each split, in each loader process.
        seed: Of the order of training.
        max_skipped_share: A run fails once more than this share of a split's utterances can't be used.
    """

    def __init__(
        self,
        root: str,
        train_cuts: str | list[str] | None = None,
        val_cuts: str | None = None,
        test_cuts: str | None = None,
        test_ids: str | None = None,
        train_shares: list[float] | None = None,
        val_share: float = 0.05,
        test_share: float = 0.05,
        audio_prefix: str = LIBRIHEAVY_PREFIX,
        text_index: int = 0,
        lower_case: bool = False,
        prompt_seconds: float = 3.0,
        prompt_split: Literal["fixed", "random", "pause"] = "fixed",
        max_prompt_seconds: float | None = None,
        min_continuation_seconds: float = 0.5,
        max_seconds: float = 30.0,
        batch_size: int | None = 16,
        batch_seconds: float | None = None,
        batch_tokens: int | None = None,
        length_ratio: float = 1.05,
        workers: int = 0,
        cache_gib: float = 0.0,
        seed: int = 0,
        max_skipped_share: float = 0.01,
    ):
        super().__init__()
        if prompt_seconds < SHORTEST_PROMPT_SECONDS:
            raise UserError(f"data.prompt_seconds: must be at least {SHORTEST_PROMPT_SECONDS}, got {prompt_seconds}")
        if (prompt_split == "fixed") != (max_prompt_seconds is None):
            need = "has no use for it" if prompt_split == "fixed" else "needs it"
            raise UserError(f"data.max_prompt_seconds: data.prompt_split {prompt_split} {need}")
        if max_prompt_seconds is not None and max_prompt_seconds < prompt_seconds:
            raise UserError(f"data.max_prompt_seconds: must be at least prompt_seconds, got {max_prompt_seconds}")
        limits = {"batch_size": batch_size, "batch_seconds": batch_seconds, "batch_tokens": batch_tokens}
        for name, value in {"min_continuation_seconds": min_continuation_seconds, **limits}.items():
            if value is not None and value <= 0:
                raise UserError(f"data.{name}: must be positive, got {value}")
        if all(value is None for value in limits.values()):
            raise UserError("data.batch_size: it, batch_seconds or batch_tokens has to limit a batch")
        if length_ratio <= 1:
            raise UserError(f"data.length_ratio: must be above 1, got {length_ratio}")
        if batch_seconds is not None and batch_tokens is not None:
            raise UserError("data.batch_tokens: a batch is limited by it or by batch_seconds, not by both")
        if batch_seconds is not None and batch_seconds < max_seconds:
            raise UserError(f"data.batch_seconds: {batch_seconds} holds no utterance of max_seconds ({max_seconds})")
        if min(val_share, test_share) < 0 or val_share + test_share >= 1:
            raise UserError("data: needs val_share >= 0, test_share >= 0 and val_share + test_share < 1")
        train = [train_cuts] if isinstance(train_cuts, str) else list(train_cuts or [])
        if train_shares is not None and (len(train_shares) != len(train) or min(train_shares) <= 0):
            raise UserError("data.train_shares: needs a positive number for each of train_cuts")
        self.root = Path(root)
        self.cuts = {
            "train": train,
            "val": [val_cuts] if val_cuts else [],
            "test": [test_cuts] if test_cuts else [],
        }
        taken: set[Path] = set()
        for split, names in self.cuts.items():
            for name in names:
                place = (self.root / name).resolve()
                if place in taken:
                    raise UserError(f"data.{split}_cuts: {name} is in data.train_cuts already")
                if split == "train":
                    taken.add(place)
        self.test_ids = Path(test_ids) if test_ids else None
        self.train_shares = train_shares
        self.val_share = val_share
        self.test_share = test_share
        self.audio_prefix = audio_prefix
        self.text_index = text_index
        self.lower_case = lower_case
        self.prompt = PromptSplit(
            prompt_split, prompt_seconds, max_prompt_seconds or prompt_seconds, min_continuation_seconds, seed
        )
        self.max_seconds = max_seconds
        self.limits = BatchLimits(batch_size, batch_seconds or batch_tokens, length_ratio)
        self.batch_tokens = batch_tokens
        self.workers = workers
        self.cache_bytes = int(cache_gib * 2**30)
        self.seed = seed
        self.max_skipped_share = max_skipped_share
        self.manifests: dict[str, Manifest] = {}
        self._corpora: list[int] = []  # utterances of each of train_cuts
        self._counts: dict[str, int] = {}
        self._skipped: dict[str, Counter[str]] = {}  # reasons
        self._unreadable: set[str] = set()  # ids

    def setup(self, stage: str) -> None:
        """Opens the manifests of a stage and leaves out, counted, what can't be used."""
        for split in SPLITS[stage]:
            if split not in self.manifests:
                self._set_up_split(split)

    def _set_up_split(self, split: str) -> None:
        corpora = self._read_split(split)
        if self.test_ids and split in ("test", "predict"):
            corpora = [select_ids(concatenate(corpora), self.test_ids)]
        self._counts[split] = sum(map(len, corpora))
        self._skipped[split] = Counter()
        usable = []
        given = self.cuts["test" if split == "predict" else split] or self.cuts["train"] or [""]
        for name, corpus in zip(given, corpora, strict=True):
            refused = np.zeros(len(corpus), dtype=bool)
            for reason, which in self._refusals(corpus, trains=split != "predict"):
                if len(corpus) and which.all():
                    raise UserError(f"{self.root / name}: {split} can use none of {len(corpus)} utterances: {reason}")
                new = np.flatnonzero(which & ~refused)
                refused |= which
                if len(new):
                    self._note_skipped(split, reason, len(new), corpus[int(new[0])].id)
            usable.append(corpus.select(~refused) if refused.any() else corpus)
        manifest = usable[0] if len(usable) == 1 else concatenate(usable)
        if split == "train":
            self._corpora = [len(corpus) for corpus in usable]
        self.manifests[split] = manifest
        if not len(manifest):
            raise UserError(f"{self.root}: split {split} holds no utterance")
        hours = manifest.numbers("duration_seconds").sum() / 3600
        rank_zero_info(
            f"{split}: {len(manifest)} utterances, {hours:.2f} h, {len(manifest.speakers())} speakers from {self.root}"
        )

    def _read_split(self, split: str) -> list[Manifest]:
        """The corpora of a split, each as it was found."""
        if not self.root.is_dir():
            raise UserError(f"data.root: no such folder: {self.root}")
        if split == "predict":
            if any(self.cuts.values()):
                return self._read_split("test")
            return [Manifest.from_utterances(read_folders(self.root))]
        if not self.cuts["train"] and not self.cuts[split]:
            raise UserError(
                f"data.train_cuts: {split} needs transcripts, and raw Libri-Light has none; name a manifest with them"
            )
        own = [self._read_manifest(name) for name in self.cuts[split]]
        if own and (split != "train" or (self.cuts["val"] and self.cuts["test"])):
            return own
        shares = [0.0 if self.cuts[s] else share for s, share in (("val", self.val_share), ("test", self.test_share))]
        place = ("train", "val", "test").index(split)
        whole = own or [self._read_manifest(name) for name in self.cuts["train"]]
        return [parts[place] for parts in split_by_speaker(whole, *shares)]

    def _read_manifest(self, name: str) -> Manifest:
        path = self.root / name
        if path.suffix == ".arrow":
            manifest = Manifest.open(path, self.root)
            some = np.unique(np.linspace(0, len(manifest) - 1, FILES_TO_CHECK).astype(int)).tolist()
            files = [manifest[index].path for index in some]
            if not any(file.is_file() for file in files):
                raise UserError(f"data.root: none of {len(files)} files that {path} names is there, such as {files[0]}")
            return manifest
        cuts = read_cuts(path, Path(), self.audio_prefix, self.text_index)
        return Manifest.from_utterances(cuts, self.root)

    def _refusals(self, manifest: Manifest, trains: bool) -> list[tuple[str, np.ndarray]]:
        """Why utterances can't be used, as far as the manifest tells; `predict` needs a prompt and no more."""
        seconds, prompt = manifest.numbers("duration_seconds"), self.prompt.min_seconds
        rest = self.prompt.continuation_seconds
        found = []
        if not trains:
            found.append((f"shorter than the prompt ({prompt} s)", seconds < prompt))
        else:
            found += [
                ("empty transcript", manifest.text_bytes() == 0),
                (f"shorter than prompt and continuation ({prompt} + {rest} s)", seconds < prompt + rest),
                (f"longer than data.max_seconds ({self.max_seconds} s)", seconds > self.max_seconds),
            ]
        if not manifest.prepared:
            codes, paths = manifest.names("path")
            there = np.array([(manifest.root / path).is_file() for path in paths], dtype=bool)
            found.append(("no such audio file", ~there[codes]))
        return found

    def _note_skipped(self, split: str, reason: str, count: int, first: str) -> None:
        """Counts and reports utterances that can't be used.

        Raises:
            UserError: They are more than ``max_skipped_share`` of the split.
        """
        reasons = self._skipped[split]
        reasons[_kind(reason)] += count
        summary = ", ".join(f"{n} x {kind}" for kind, n in reasons.items())
        report = (
            f"{split}: skipped {reasons.total()} of {self._counts[split]} utterances ({summary}); the first new one is "
            f"{first}: {reason}"
        )
        if reasons.total() > self.max_skipped_share * self._counts[split]:
            raise UserError(f"{report}; more than data.max_skipped_share ({self.max_skipped_share:.2%})")
        rank_zero_warn(report)

    def on_after_batch_transfer(self, batch: SpeechBatch, dataloader_idx: int) -> SpeechBatch:
        """Counts what could not be read."""
        for name, reason in batch.skipped:
            if name not in self._unreadable:
                self._unreadable.add(name)
                self._note_skipped(batch.split, reason, 1, name)
        return batch

    def speakers(self, split: str) -> set[str]:
        """Of a split's utterances."""
        return self.manifests[split].speakers()

    def continuation_by_another(self, split: str, name: str, sample_rate_hz: int) -> np.ndarray:
        """The continuation (T,) of the next readable utterance by another speaker than that of ``name``: next in the
        manifest, whichever process asks and however batches are made.

        Raises:
            UserError: There is none.
        """
        manifest = self.manifests[split]
        dataset = UtteranceDataset(manifest, sample_rate_hz, self.prompt)
        speakers, (place,) = manifest.names("speaker")[0], manifest.places([name])
        for index in np.roll(np.arange(len(manifest)), -place).tolist():
            if speakers[index] != speakers[place]:
                item = dataset[(index, 0)]
                if item.waveform is not None:
                    return item.waveform[round(item.prompt_seconds * sample_rate_hz) :].numpy()
        raise UserError(f"{self.root}: split {split} holds no utterance by another speaker than that of {name}")

    def _loader(self, split: str, shuffle: bool) -> DataLoader:
        if self.trainer is None:
            raise RuntimeError("the data module takes tokenizer and rate from the model of its trainer")
        model: Any = self.trainer.lightning_module.model
        manifest, rate = self.manifests[split], model.audio.sample_rate_hz
        mixture = Mixture(self._corpora, self.train_shares) if split == "train" and self.train_shares else None
        sampler = PlannedBatchSampler(
            self._sizes(manifest, model),
            self.limits,
            shuffle,
            self.seed,
            self.trainer.global_rank,
            self.trainer.world_size,
            mixture,
        )
        if not len(sampler):
            raise UserError(f"{self.root}: {len(manifest)} utterances of {split} make no batch for each process")
        collate = Collate(split, model.llm.tokenizer, rate, self.lower_case)
        loader = ResumableLoader if shuffle else ordered_loader
        return loader(UtteranceDataset(manifest, rate, self.prompt, self.cache_bytes), sampler, collate, self.workers)

    def _sizes(self, manifest: Manifest, model: Any) -> np.ndarray:
        """(N,) seconds, or LM positions where they limit a batch.

        Raises:
            UserError: An utterance alone is more than a batch may hold.
        """
        seconds = manifest.numbers("duration_seconds").astype(np.float32)
        if self.batch_tokens is None:
            return seconds
        in_prompt, in_continuation = model.positions_per_second
        per_byte = tokens_per_byte(manifest, model.llm.tokenizer.encode)
        prompts = (self.prompt.min_seconds, self.prompt.max_seconds)
        sizes = seconds * np.float32(in_continuation)
        sizes += np.float32(max(prompt * (in_prompt - in_continuation) for prompt in prompts) + 2)  # sos and eos
        sizes += manifest.text_bytes() * np.float32(per_byte)
        np.ceil(sizes, out=sizes)
        if sizes.max() > self.batch_tokens:
            raise UserError(
                f"data.batch_tokens: {self.batch_tokens} is too few: {manifest[int(sizes.argmax())].id} takes "
                f"{sizes.max():.0f}; raise it"
            )
        return sizes

    def train_dataloader(self) -> DataLoader:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader("val", shuffle=False)

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", shuffle=False)

    def predict_dataloader(self) -> DataLoader:
        return self._loader("predict", shuffle=False)


def select_ids(manifest: Manifest, path: Path) -> Manifest:
    """The utterances that a file names, one id a line, in its order.

    Raises:
        UserError: There is no such file, it is no text, an id stands in it twice, or is not in the manifest.
    """
    try:
        ids = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"data.test_ids: {path}: can't be read as text: {error}") from error
    ids = [name for line in ids if (name := line.strip())]
    repeated = [name for name, count in Counter(ids).items() if count > 1]
    if repeated:
        raise UserError(f"data.test_ids: {path}: holds {repeated[0]} more than once")
    places = manifest.places(ids)
    missing = [name for name, place in zip(ids, places.tolist(), strict=True) if place < 0]
    if missing or not ids:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        what = f"{missing[0]}{more} in {manifest.root}" if ids else "ids: the file is empty"
        raise UserError(f"data.test_ids: {path}: no {what}")
    return manifest.select(places)


def tokens_per_byte(manifest: Manifest, encode: Callable[[str], Sequence[int]]) -> float:
    """How many tokens a transcript takes for each byte of UTF-8, at most, but for one in a hundred."""
    places, neighbours = TEXTS_TO_MEASURE  # neighbours lie on the same pages of the file
    starts = np.linspace(0, max(0, len(manifest) - neighbours), places).astype(int)
    some = np.unique(starts[:, None] + np.arange(min(neighbours, len(manifest))))
    texts = [text for index in some.tolist() if (text := manifest[index].text)]
    return float(np.quantile([len(encode(t)) / len(t.encode()) for t in texts], 0.99)) if texts else 0.0


def _kind(reason: str) -> str:
    """A reason for counting: without the file that it names, that file's numbers, and details."""
    _, of_a_file, what = reason.partition(": ")
    return re.sub(r"\d+(\.\d+)?", "…", what.split(": ")[0]) if of_a_file else reason
