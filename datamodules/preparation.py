"""`prepare librilight`: from a corpus to manifests, restartable, in parallel, every second of it accounted for.

The source's items are cut into parts, each a file in ``OUT/parts``: the utterances, the account of its items, and what
it was made from. Parts that are there, whole, and made from what is there now are not made again. Whoever finds all
parts so merges them, in the order of the items, into ``train.arrow``, ``val.arrow``, ``test.arrow`` and a report. All
of it depends on the input and the settings only.
"""

import csv
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.manifest import SCHEMA, Utterance, Word, encode_names, split_speakers, unique_names
from datamodules.parts import Part, divided, is_current, locked, part_path, read_part, write_part
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
    not_unicode,
    reason,
)
from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole, make_folder
from lit_spectron.word_errors import count_errors, words

OF_MERGING = ("val_share", "test_share")  # settings that no part depends on
LONGEST_RECOGNISED_SECONDS = 30.0
SHORTEST_LIMIT_SECONDS = 0.1  # a limit in milliseconds, say, would cut a corpus to crumbs for days
RECOGNISER_RATE_HZ = 16000
DROPPED_COLUMNS = ("id", "path", "start_seconds", "duration_seconds", "fate")  # of dropped.tsv
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
        if not_unicode(self.root):
            raise UserError(f"--root: its name is not Unicode: {self.root}")
        for name in self.cuts:
            if not (Path(self.root) / name).is_file():
                raise UserError(f"--cuts: no such manifest: {Path(self.root) / name}")
        if not 0 < self.min_seconds <= self.max_seconds:
            raise UserError(f"--min_seconds: must be above 0 and at most --max_seconds, got {self.min_seconds}")
        if self.max_seconds < SHORTEST_LIMIT_SECONDS:
            raise UserError(f"--max_seconds: must be at least {SHORTEST_LIMIT_SECONDS}, got {self.max_seconds}")
        if not (min(self.val_share, self.test_share) >= 0 and self.val_share + self.test_share < 1):
            raise UserError("--val_share, --test_share: must not be negative, and less than 1 together")
        for name in ("max_gap_seconds", "min_characters_per_second", "text_index", "max_disagreement"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"--{name}: must not be negative, got {value}")
        if not self.min_characters_per_second <= self.max_characters_per_second:
            raise UserError("--min_characters_per_second: exceeds --max_characters_per_second")
        if self.sample_rate_hz <= 0 or (self.recognizer and self.sample_rate_hz != RECOGNISER_RATE_HZ):
            raise UserError(f"--sample_rate_hz: must be positive, and {RECOGNISER_RATE_HZ} for a recogniser")
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
            paths = _make_parts(settings, parts, jobs, shard, device, batch_size)
        except BrokenProcessPool as error:
            raise UserError("--jobs: a worker died, of too little memory perhaps; finished parts are kept") from error
    if not paths:
        raise UserError(f"{settings.root}: holds nothing to prepare with --layout {settings.layout}")
    missing = sum(not is_current(path) for path in paths)
    if missing and shard[1] == 1:
        raise UserError(f"{settings.root}: changed while it was prepared; start the same command again")
    if missing:
        print(f"{len(paths) - missing} of {len(paths)} parts are there; the last shard to end merges them")
        return False
    with locked(parts / "merge.lock", wait=True):
        merge(settings, out, paths)
    return True


def _take_settings(path: Path, settings: Settings) -> None:
    """Writes the settings that parts depend on, or makes sure that they are the same as when ``out`` was begun."""
    now = {name: value for name, value in json.loads(json.dumps(asdict(settings))).items() if name not in OF_MERGING}
    if not path.is_file():
        with appearing_whole(path) as partial:
            partial.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")
        return
    try:
        before = dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError):
        before = {}
    if before.keys() != now.keys():
        raise UserError(f"{path}: damaged, or of another version; remove {path.parent}")
    for name, value in now.items():
        if before[name] != value:
            raise UserError(
                f"--{name}: {value}, but {path.parent.parent} was begun with {before[name]}; "
                "name another --out, or remove it"
            )


def _make_parts(
    settings: Settings, parts: Path, jobs: int, shard: tuple[int, int], device: str, batch: int
) -> list[Path]:
    """Makes what is missing of a shard; returns all shards' parts, in order."""
    source = settings.source()
    began, done = time.monotonic(), 0
    paths: list[Path] = []
    with ExitStack() as stack:
        pool = None
        if jobs > 1:
            context = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(jobs, context, _start_worker, (os.getpid(),)))
        running: set[Future] = set()
        for index, items in enumerate(divided(source.items(), source.items_per_part)):
            path = part_path(parts, items)
            paths.append(path)
            if index % shard[1] != shard[0] or is_current(path):
                continue
            if pool is None:
                make_part(settings, path, items, device, batch)
                done += 1
            else:
                with _interrupts_held_back():
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
    return paths


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Until the block ends: a worker that is started in it would meet Ctrl-C with a traceback before it can heed it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker(parent: int) -> None:
    """Makes a worker end with its parent, whose work it would await for ever, and on Ctrl-C at once and silently."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    os.environ["OMP_NUM_THREADS"] = "1"  # of a recogniser: the other jobs have the other cores


def make_part(settings: Settings, path: Path, items: list[str], device: str, batch_size: int) -> None:
    """Writes one part."""
    source = settings.source()
    pieces = [piece for item in items for piece in source.pieces(item)]
    silent = [piece.utterance is not None and not piece.utterance.text for piece in pieces]
    if settings.recognizer:
        pieces = list(recognised(pieces, source, settings, device, batch_size))
    pieces = [filtered(piece, settings) for piece in pieces]
    account = Account(notes=source.notes)
    for piece in pieces:
        account.add(piece)
    if settings.recognizer:
        kept = sum(piece.fate == KEPT and was_silent for piece, was_silent in zip(pieces, silent, strict=True))
        account.notes[f"kept with the text that {settings.recognizer} heard"] = kept
    write_part(path, source.inputs, pieces, account)


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
            if utterance is None or piece.fate != KEPT or (utterance.text and settings.max_disagreement is None):
                continue
            try:
                waveforms.append(source.read(utterance.path, utterance.start_seconds, utterance.duration_seconds))
                wanted.append((place, utterance))
            except UserError as error:
                problem = (str(source.root / utterance.path), reason(error))
                group[place] = replace(piece, fate="unreadable audio", problem=problem)
        transcripts = recognizer.transcribe(waveforms, settings.sample_rate_hz)
        for (place, utterance), heard in zip(wanted, transcripts, strict=True):
            piece = group[place]
            if utterance.text:
                reference = words(utterance.text)
                if count_errors(reference, words(heard.text)) > (settings.max_disagreement or 0) * len(reference):
                    group[place] = replace(piece, fate="recogniser disagrees")
            elif not heard.text:
                group[place] = replace(piece, fate="nothing heard")
            else:
                times = None if heard.words is None else tuple(Word(t, a, b - a) for t, a, b in heard.words)
                group[place] = replace(piece, utterance=replace(utterance, text=heard.text, words=times))
        yield from group


def filtered(piece: Piece, settings: Settings) -> Piece:
    """Drops an utterance whose text can't be said in its time, or takes far too little of it."""
    utterance = piece.utterance
    if piece.fate != KEPT or utterance is None or not utterance.text:
        return piece
    rate = len(utterance.text) / utterance.duration_seconds
    if settings.min_characters_per_second <= rate <= settings.max_characters_per_second:
        return piece
    fate = (
        "too few characters a second" if rate < settings.min_characters_per_second else "too many characters a second"
    )
    return replace(piece, fate=fate)


def merge(settings: Settings, out: Path, paths: Sequence[Path]) -> None:
    """Parts, in order, to one manifest a split, and the report."""
    total, speakers = Account(), set()
    hashes = []
    for part in _read_parts(paths):
        total.merge(part.account)
        table = _with_fate(part.table, kept=True)
        speakers |= set(table["speaker"].unique().to_pylist())
        hashes.append(np.fromiter(map(hash, table["id"].to_pylist()), np.int64, table.num_rows))
    repeated = _repeated(np.concatenate(hashes))
    names = unique_names(_with_fate(part.table, kept=True) for part in _read_parts(paths))
    validation, test = split_speakers(speakers, settings.val_share, settings.test_share)
    members = {"train": sorted(speakers - validation - test), "val": sorted(validation), "test": sorted(test)}
    seconds: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    heard: dict[str, set[str]] = {split: set() for split in SPLITS}
    seen: dict[str, str] = {}
    with ExitStack() as stack:
        writers = {}
        for split in SPLITS:
            partial = stack.enter_context(appearing_whole(out / f"{split}.arrow"))
            writers[split] = stack.enter_context(pa.ipc.new_file(str(partial), SCHEMA))
        partial = stack.enter_context(appearing_whole(out / "dropped.tsv"))
        file = stack.enter_context(partial.open("w", encoding="utf-8"))
        dropped = csv.writer(file, delimiter="\t", lineterminator="\n")
        dropped.writerow(DROPPED_COLUMNS)
        for partial in (out / "parts").glob(".*.part"):  # of processes that were killed
            partial.unlink(missing_ok=True)
        for part, codes in zip(_read_parts(paths), hashes, strict=True):
            table = _with_fate(part.table, kept=True)
            table = _with_repetitions(table, np.isin(codes, repeated), seen, total, settings)
            for others in (_with_fate(part.table, kept=False), _with_fate(table, kept=False)):
                dropped.writerows(zip(*(others[name].to_pylist() for name in DROPPED_COLUMNS), strict=True))
            table = _with_fate(table, kept=True).drop_columns("fate")
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
        fate, pieces = total.pieces.most_common(1)[0]
        first = "".join(f" ({line})" for line in total.lines()[:1])
        raise UserError(
            f"{settings.root}: nothing of it could be kept with --layout {settings.layout}: {pieces} x {fate}{first}; "
            f"{out / 'report.md'} says more"
        )


def _read_parts(paths: Sequence[Path]) -> Iterator[Part]:
    for path in paths:
        part = read_part(path)
        if part is None:
            raise UserError(f"{path}: damaged while it was merged; start the same command again")
        yield part


def _with_fate(table: pa.Table, kept: bool) -> pa.Table:
    """The utterances of a part that are kept, or the others."""
    return table.filter((pc.equal if kept else pc.not_equal)(table["fate"], KEPT))


def _repeated(hashes: np.ndarray) -> np.ndarray:
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def _with_repetitions(
    table: pa.Table, suspects: np.ndarray, seen: dict[str, str], account: Account, settings: Settings
) -> pa.Table:
    """Changes the fate of rows whose id came before; ``suspects`` are those whose id's hash occurs more than once."""
    fates, rate = table["fate"].to_pylist(), settings.sample_rate_hz
    for row in np.flatnonzero(suspects).tolist():
        name, path = table["id"][row].as_py(), table["path"][row].as_py()
        if name in seen:
            fates[row] = "id occurs more than once"
            samples = round(table["duration_seconds"][row].as_py() * rate)
            problem = (str(Path(settings.root) / path), f"its id {name} is that of {seen[name]}, too")
            account.add(Piece(samples, rate, KEPT), times=-1)
            account.add(Piece(samples, rate, fates[row], problem=problem))
        else:
            seen[name] = path
    return table.set_column(table.schema.get_field_index("fate"), "fate", pa.array(fates, pa.string()))
