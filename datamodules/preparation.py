"""`prepare librilight`: from a corpus to manifests, restartable, in parallel, every second of it accounted for.

The source's items are cut into parts. A part is one Arrow file in ``OUT/parts``: its utterances, and in its metadata
the account of its items and their checksum. Parts that are there are not made again. Whoever finds all parts there
merges them into ``train.arrow``, ``val.arrow``, ``test.arrow`` and a report. All of it depends on the input and the
settings only.
"""

import fcntl
import json
import multiprocessing
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.manifest import (
    PLAIN_SCHEMA,
    SCHEMA,
    Utterance,
    Word,
    encode_names,
    plain_table,
    split_speakers,
    unique_names,
)
from datamodules.preparation_report import SPLITS, Account, write_report
from datamodules.sources import (
    KEPT,
    AudioFolders,
    Cuts,
    FileSource,
    Lengths,
    LibriLightFolders,
    LibriSpeechFolders,
    Piece,
    Source,
    reason,
)
from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole, make_folder
from lit_spectron.word_errors import count_errors, words

LONGEST_RECOGNISED_SECONDS = 30.0
RECOGNISER_RATE_HZ = 16000
FOLDERS: dict[str, Callable[..., FileSource]] = {
    "librilight": LibriLightFolders,
    "librispeech": LibriSpeechFolders,
    "audio": AudioFolders,
}


@dataclass(frozen=True)
class Settings:
    """What the outcome depends on; the options of `prepare librilight` say what each is."""

    root: str
    layout: str
    cuts: tuple[str, ...]
    audio_prefix: str
    text_index: int
    sample_rate_hz: int
    min_seconds: float
    max_seconds: float
    max_gap_seconds: float
    verify: bool
    recognizer: str | None
    language: str | None
    word_times: bool
    min_characters_per_second: float
    max_characters_per_second: float
    max_disagreement: float | None
    val_share: float
    test_share: float

    def source(self) -> Source:
        lengths = Lengths(self.min_seconds, self.max_seconds, self.max_gap_seconds)
        root = Path(self.root)
        if self.layout == "cuts":
            manifests = [root / name for name in self.cuts]
            return Cuts(root, self.sample_rate_hz, lengths, self.verify, manifests, self.audio_prefix, self.text_index)
        return FOLDERS[self.layout](root, self.sample_rate_hz, lengths, self.verify)

    def check(self) -> None:
        """
        Raises:
            UserError: Something in it is impossible.
        """
        if not Path(self.root).is_dir():
            raise UserError(f"--root: no such folder: {self.root}")
        for name in self.cuts:
            if not (Path(self.root) / name).is_file():
                raise UserError(f"--cuts: no such manifest: {Path(self.root) / name}")
        if not 0 < self.min_seconds <= self.max_seconds:
            raise UserError(f"--min_seconds: must be above 0 and at most --max_seconds, got {self.min_seconds}")
        if min(self.val_share, self.test_share) < 0 or self.val_share + self.test_share >= 1:
            raise UserError("--val_share, --test_share: must not be negative, and less than 1 together")
        for name in ("max_gap_seconds", "min_characters_per_second", "text_index"):
            if getattr(self, name) < 0:
                raise UserError(f"--{name}: must not be negative, got {getattr(self, name)}")
        if self.min_characters_per_second > self.max_characters_per_second:
            raise UserError("--min_characters_per_second: exceeds --max_characters_per_second")
        if self.sample_rate_hz <= 0 or (self.recognizer and self.sample_rate_hz != RECOGNISER_RATE_HZ):
            raise UserError(f"--sample_rate_hz: must be positive, and {RECOGNISER_RATE_HZ} for a recogniser")
        if self.recognizer is None and (self.max_disagreement is not None or self.word_times):
            raise UserError("--recognizer: --max_disagreement and --word_times need one")
        if self.recognizer and self.max_seconds > LONGEST_RECOGNISED_SECONDS:
            raise UserError(f"--max_seconds: a recogniser hears {LONGEST_RECOGNISED_SECONDS} s at most")


def prepare(settings: Settings, out: Path, jobs: int, shard: tuple[int, int], device: str, batch_size: int) -> bool:
    """Makes this shard's parts, and merges when all shards' are there.

    Args:
        settings: What to make.
        out: Folder of the outcome.
        jobs: Processes.
        shard: (i, n): the i-th of n, counting from 0, makes every n-th part.
        device: Of the recogniser.
        batch_size: Utterances that it hears together.

    Returns:
        Whether it merged.

    Raises:
        UserError: Settings are impossible, nothing could be kept, ``out`` was begun with other settings, or a worker
            died.
    """
    settings.check()
    parts = out / "parts"
    make_folder(parts)
    with locked(parts / "settings.lock", wait=True):
        _take_settings(parts / "settings.json", settings)
    with locked(parts / f"shard-{shard[0]}-of-{shard[1]}.lock"):
        try:
            checksums = _make_parts(settings, parts, jobs, shard, device, batch_size)
        except BrokenProcessPool as error:
            raise UserError("--jobs: a worker died, of too little memory perhaps; finished parts are kept") from error
    if not checksums:
        raise UserError(f"{settings.root}: holds nothing to prepare in the layout {settings.layout}")
    missing = sum(not is_current(part_path(parts, index), value) for index, value in enumerate(checksums))
    if missing:
        print(f"{len(checksums) - missing} of {len(checksums)} parts are there; the last shard to end merges them")
        return False
    with locked(parts / "merge.lock", wait=True):
        merge(settings, out, len(checksums))
    return True


def part_path(parts: Path, index: int) -> Path:
    return parts / f"{index:06}.arrow"


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise UserError(f"{path}: another process is at work on this shard") from error
        yield


def _take_settings(path: Path, settings: Settings) -> None:
    """Writes the settings, or makes sure that they are the same as when ``out`` was begun."""
    now = json.loads(json.dumps(asdict(settings)))
    if not path.is_file():
        with appearing_whole(path) as partial:
            partial.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    for name in before.keys() | now.keys():
        if before.get(name) != now.get(name):
            raise UserError(
                f"--{name}: {now.get(name)}, but {path.parent.parent} was begun with {before.get(name)}; "
                "name another --out, or remove it"
            )


def _make_parts(
    settings: Settings, parts: Path, jobs: int, shard: tuple[int, int], device: str, batch: int
) -> list[int]:
    """Makes what is missing of a shard; returns the checksums of the items of all shards' parts."""
    source = settings.source()
    remaining, began, done = source.items(), time.monotonic(), 0
    checksums: list[int] = []
    with ExitStack() as stack:
        pool = None
        if jobs > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(jobs, context, _start_worker, (os.getpid(),)))
        running: set[Future] = set()
        for items in iter(lambda: list(islice(remaining, source.items_per_part)), []):
            index = len(checksums)
            checksums.append(checksum(items))
            path = part_path(parts, index)
            if index % shard[1] != shard[0] or is_current(path, checksums[-1]):
                continue
            if pool is None:
                make_part(settings, path, items, device, batch)
                done += 1
            else:
                running.add(pool.submit(make_part, settings, path, items, device, batch))
                if len(running) >= 2 * jobs:
                    ended, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in ended:
                        future.result()
                    done += len(ended)
            if done and time.monotonic() - began > 10:
                print(f"part {index}: {done} made", flush=True)
                began = time.monotonic()
        for future in running:
            future.result()
    return checksums


def _start_worker(parent: int) -> None:
    """Makes a worker end with its parent: it would wait for work for ever."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # of a recogniser: the other jobs have the other cores


def checksum(items: list[str]) -> int:
    return zlib.crc32("\n".join(items).encode("utf-8", "surrogateescape"))


def is_current(path: Path, value: int) -> bool:
    """Whether a part is there and was made from the items with this checksum."""
    if not path.is_file():
        return False
    with pa.memory_map(str(path)) as file:
        return Account.from_json(pa.ipc.open_file(file).schema.metadata[b"account"].decode()).checksum == value


def make_part(settings: Settings, path: Path, items: list[str], device: str, batch_size: int) -> None:
    """Writes one part."""
    source = settings.source()
    pieces = [piece for item in items for piece in source.pieces(item)]
    if settings.recognizer:
        pieces = list(recognised(pieces, source, settings, device, batch_size))
    pieces = [filtered(piece, settings) for piece in pieces]
    account = Account(checksum(items), notes=source.notes)
    for piece in pieces:
        account.add(piece)
    table = plain_table([piece.utterance for piece in pieces if piece.utterance])
    schema = PLAIN_SCHEMA.with_metadata({"account": account.to_json()})
    with appearing_whole(path, str(os.getpid())) as partial, pa.ipc.new_file(str(partial), schema) as writer:
        writer.write_table(table)


def recognised(
    pieces: list[Piece], source: Source, settings: Settings, device: str, batch_size: int
) -> Iterator[Piece]:
    """Pieces with what a recogniser hears: as their text where there is none, else to be compared with it."""
    from lit_spectron.evaluators import WhisperRecognizer

    recognizer = WhisperRecognizer(str(settings.recognizer), device, batch_size, settings.word_times, settings.language)
    try:
        recognizer.require()
    except UserError as error:
        raise UserError(f"--recognizer: {error}") from error
    rest = iter(pieces)
    for group in iter(lambda: list(islice(rest, 4 * batch_size)), []):
        wanted: list[tuple[int, Utterance]] = []
        waveforms = []
        for place, piece in enumerate(group):
            utterance = piece.utterance
            if utterance is None or (utterance.text and settings.max_disagreement is None):
                continue
            try:
                waveforms.append(source.read(utterance.path, utterance.start_seconds, utterance.duration_seconds))
                wanted.append((place, utterance))
            except UserError as error:
                group[place] = replace(
                    piece,
                    fate="unreadable audio",
                    utterance=None,
                    problem=(str(source.root / utterance.path), reason(error)),
                )
        transcripts = recognizer.transcribe(waveforms, settings.sample_rate_hz)
        for (place, utterance), heard in zip(wanted, transcripts, strict=True):
            piece = group[place]
            if utterance.text:
                reference = words(utterance.text)
                if count_errors(reference, words(heard.text)) > (settings.max_disagreement or 0) * len(reference):
                    group[place] = replace(piece, fate="recogniser disagrees", utterance=None)
            elif not heard.text:
                group[place] = replace(piece, fate="nothing heard", utterance=None)
            else:
                times = None if heard.words is None else tuple(Word(t, a, b - a) for t, a, b in heard.words)
                group[place] = replace(piece, utterance=replace(utterance, text=heard.text, words=times))
        yield from group


def filtered(piece: Piece, settings: Settings) -> Piece:
    """Drops an utterance whose text can't be said in its time, or takes far too little of it."""
    utterance = piece.utterance
    if utterance is None or not utterance.text:
        return piece
    rate = len(utterance.text) / utterance.duration_seconds
    if settings.min_characters_per_second <= rate <= settings.max_characters_per_second:
        return piece
    fate = (
        "too few characters a second" if rate < settings.min_characters_per_second else "too many characters a second"
    )
    return replace(piece, fate=fate, utterance=None)


def merge(settings: Settings, out: Path, count: int) -> None:
    """All parts to one manifest a split, and the report."""
    total, speakers = Account(0), set()
    hashes = []
    for table, account in _read_parts(out, count):
        total.merge(account)
        speakers |= set(table["speaker"].unique().to_pylist())
        hashes.append(np.fromiter(map(hash, table["id"].to_pylist()), np.int64, table.num_rows))
    repeated = _repeated(np.concatenate(hashes))
    names = unique_names(table for table, _ in _read_parts(out, count))
    validation, test = split_speakers(speakers, settings.val_share, settings.test_share)
    members = {"train": sorted(speakers - validation - test), "val": sorted(validation), "test": sorted(test)}
    seconds: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    heard: dict[str, set[str]] = {split: set() for split in SPLITS}
    seen: set[str] = set()
    with ExitStack() as stack:
        writers = {}
        for split in SPLITS:
            partial = stack.enter_context(appearing_whole(out / f"{split}.arrow"))
            writers[split] = stack.enter_context(pa.ipc.new_file(str(partial), SCHEMA))
        for partial in (out / "parts").glob(".*.part"):  # of processes that were killed
            partial.unlink(missing_ok=True)
        for (table, _), codes in zip(_read_parts(out, count), hashes, strict=True):
            table = _without_repeated(table, np.isin(codes, repeated), seen, total, settings.sample_rate_hz)
            encoded = encode_names(table, names)
            for split in SPLITS:
                part = encoded.filter(pc.is_in(table["speaker"], pa.array(members[split], pa.string())))
                writers[split].write_table(part)
                seconds[split].append(part["duration_seconds"].to_numpy())
                heard[split] |= set(part["speaker"].unique().to_pylist())
    if sum(map(len, heard.values())) != len(set.union(*heard.values())):
        raise RuntimeError("a speaker is in two splits")
    splits = {split: (np.concatenate(seconds[split]), len(heard[split])) for split in SPLITS}
    write_report(out, asdict(settings), total, splits)
    if not total.pieces[KEPT]:
        raise UserError(f"--out: nothing of {settings.root} could be kept; {out / 'report.md'} says why")


def _read_parts(out: Path, count: int) -> Iterator[tuple[pa.Table, Account]]:
    for index in range(count):
        with pa.memory_map(str(part_path(out / "parts", index))) as file:
            table = pa.ipc.open_file(file).read_all()
        yield table, Account.from_json(table.schema.metadata[b"account"].decode())


def _repeated(hashes: np.ndarray) -> np.ndarray:
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _without_repeated(
    table: pa.Table, suspects: np.ndarray, seen: set[str], account: Account, rate_hz: int
) -> pa.Table:
    """Drops rows whose id came before; ``suspects`` are those whose id's hash occurs more than once."""
    keep = np.ones(table.num_rows, dtype=bool)
    for row in np.flatnonzero(suspects):
        name = table["id"][int(row)].as_py()
        if name in seen:
            keep[row] = False
            samples = round(table["duration_seconds"][int(row)].as_py() * rate_hz)
            account.add(Piece(samples, rate_hz, KEPT), times=-1)
            fate = "id occurs more than once"
            account.add(Piece(samples, rate_hz, fate, problem=(name, fate)))
        seen.add(name)
    return table if keep.all() else table.filter(pa.array(keep))
