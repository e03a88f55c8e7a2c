"""What there is to prepare: a source lists its items and turns each into pieces, kept or dropped, that fill its time.

An item is an audio file below the root, or a line of a manifest of cuts. Paths are relative to the root.
"""

import json
import math
import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import soundfile

from datamodules.cuts import MALFORMED, complaint, name_of, parse_cut, read_lines
from datamodules.manifest import Utterance
from datamodules.segmentation import Interval, merged, quietest, segments
from lit_spectron.audio_files import SUFFIXES, UNKNOWN_FRAMES, read_audio
from lit_spectron.errors import UserError

KEPT = "kept"
TOLERATED_SECONDS = 0.5  # by which voice activity may go beyond its file
END_SECONDS = 0.1  # so much of a file's end is decoded, to see whether the file is whole
Inputs = dict[str, list[int] | None]  # files by path: what `stamp` says of each


@dataclass(frozen=True)
class Lengths:
    """How long utterances are to be.

    Args:
        min_seconds: Shorter ones are dropped.
        max_seconds: Longer ones are cut at quiet places where they have no text, else dropped.
        max_gap_seconds: Longest silence between two stretches of voice activity inside an utterance.
    """

    min_seconds: float
    max_seconds: float
    max_gap_seconds: float

    def refusal(self, seconds: float) -> str | None:
        """Why an utterance of this length is dropped, if it is."""
        if seconds < self.min_seconds:
            return "shorter than min_seconds"
        return "longer than max_seconds" if seconds > self.max_seconds else None


@dataclass(frozen=True)
class Piece:
    """A stretch of the input and what becomes of it.

    Attributes:
        samples: How much of it, at ``rate_hz``.
        rate_hz: The file's own rate.
        fate: `KEPT`, or why it is dropped.
        utterance: What it is cut out as; None where it does not come to that.
        problem: The file that something is wrong with, and what; None where nothing is.
    """

    samples: int
    rate_hz: int
    fate: str
    utterance: Utterance | None = None
    problem: tuple[str, str] | None = None


def not_unicode(name: str) -> bool:
    """Whether a file's name holds bytes that are not UTF-8."""
    return any("\ud800" <= letter <= "\udfff" for letter in name)


def stamp(path: Path) -> list[int] | None:
    """Size and time of the last change (nanoseconds) of a file, so that a change is noticed; None if there is none."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


class Unusable(ValueError):
    """A file of no use: why in a few words, in one line, and how many samples are lost with it."""

    def __init__(self, fate: str, path: Path, detail: str = "", samples: int = 0, rate_hz: int = 1):
        super().__init__(fate)
        self.piece = Piece(samples, rate_hz, fate, problem=(str(path), detail or fate))


class Source(ABC):
    """
    Args:
        root: Folder of the audio.
        sample_rate_hz: What files must have.
        lengths: How long utterances are to be.
        verify: Whether every utterance is decoded; otherwise only the end of each file.

    Attributes:
        items_per_part: How many make a part, on average.
        notes: What happened to kept audio, and how often.
        inputs: The files that pieces were made from so far, or would have been, had they been there.
    """

    items_per_part: int

    def __init__(self, root: Path, sample_rate_hz: int, lengths: Lengths, verify: bool):
        self.root = root
        self.sample_rate_hz = sample_rate_hz
        self.lengths = lengths
        self.verify = verify
        self.notes: Counter[str] = Counter()
        self.inputs: Inputs = {}
        self._header = cache(read_header)  # a part's cuts share few files

    @abstractmethod
    def items(self) -> Iterator[str]:
        """In an order that depends on nothing but the input. What can't be listed is an item, too."""

    @abstractmethod
    def pieces(self, item: str) -> Iterator[Piece]:
        """What becomes of an item, without gaps."""

    def depends_on(self, path: Path) -> Path:
        """Takes down what a file is like that is about to be read."""
        if str(path) not in self.inputs:
            self.inputs[str(path)] = stamp(path)
        return path

    def header(self, path: Path) -> tuple[int, bool]:
        """As `read_header`."""
        return self._header(self.depends_on(self.root / path), self.sample_rate_hz)

    def read(self, path: Path, start_seconds: float, duration_seconds: float):
        return read_audio(self.root / path, self.sample_rate_hz, start_seconds, duration_seconds)

    def judge(self, utterance: Utterance, samples: int, whole: bool) -> Piece:
        """An utterance inside a file, which may be damaged unless it is ``whole``."""
        fate, problem = self.lengths.refusal(samples / self.sample_rate_hz), None
        if fate is None and (self.verify or not whole):
            try:
                self.read(utterance.path, utterance.start_seconds, utterance.duration_seconds)
            except UserError as error:
                fate, problem = "unreadable audio", (str(self.root / utterance.path), reason(error))
        return Piece(samples, self.sample_rate_hz, fate or KEPT, utterance, problem)


def reason(error: UserError) -> str:
    """What `read_audio` says, without the file that it names first."""
    return str(error).split(": ", 1)[-1]


def read_header(path: Path, sample_rate_hz: int) -> tuple[int, bool]:
    """Samples of a mono file at the right rate, and whether its end can be decoded.

    Raises:
        Unusable: It is anything else.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib's raises where a name is too long
        raise Unusable("no such file", path)
    try:
        info = soundfile.info(os.fsencode(path))  # also a name that is not Unicode
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise Unusable("unreadable audio", path, str(error).rsplit(": ", 1)[-1]) from error
    if info.frames == 0:
        raise Unusable("no samples", path)
    if info.frames >= UNKNOWN_FRAMES:
        raise Unusable("unknown length", path, "its header does not say how long it is")
    if info.samplerate != sample_rate_hz:
        detail = f"sampled at {info.samplerate} Hz, not {sample_rate_hz} Hz"
        raise Unusable("another sampling rate", path, detail, info.frames, info.samplerate)
    if info.channels != 1:
        raise Unusable("not mono", path, f"has {info.channels} channels", info.frames, info.samplerate)
    seconds = info.frames / info.samplerate
    try:
        read_audio(path, sample_rate_hz, max(0.0, seconds - END_SECONDS), min(seconds, END_SECONDS))
    except UserError:
        return info.frames, False
    return info.frames, True


@dataclass(frozen=True)
class Description:
    """What is known of an audio file besides its sound.

    Attributes:
        speaker: Speaker id.
        text: What is said in the whole file; empty where that is not known.
        activity: Where someone speaks; None where that is not known.
    """

    speaker: str
    text: str = ""
    activity: list[Interval] | None = None


class FileSource(Source):
    """Audio files below the root."""

    items_per_part = 16

    def items(self) -> Iterator[str]:
        unlisted: list[OSError] = []
        found: list[str] = []
        visited: set[str] = set()
        for folder, below, names in os.walk(self.root, onerror=unlisted.append, followlinks=True):
            real = os.path.realpath(folder)
            if real in visited:  # links may lead in circles
                below.clear()
                continue
            visited.add(real)
            below.sort()  # a folder that links lead to is found by the same path everywhere
            here = Path(folder).relative_to(self.root)
            found += [(here / name).as_posix() for name in names if Path(name).suffix.lower() in SUFFIXES]
        found += [f"{Path(error.filename).relative_to(self.root).as_posix()}/" for error in unlisted]
        yield from sorted(found)

    def pieces(self, item: str) -> Iterator[Piece]:
        path, rate, frames = self.root / item, self.sample_rate_hz, 0
        try:
            if item.endswith("/"):
                raise Unusable("unreadable folder", path)
            frames, whole = self.header(Path(item))
            if not_unicode(item):
                raise Unusable("name that is not Unicode", path)
            pieces = list(self._file_pieces(Path(item), frames, whole))
        except Unusable as unusable:
            pieces = [replace(unusable.piece, samples=frames, rate_hz=rate) if frames else unusable.piece]
        except MALFORMED as error:
            detail = f"its description is not understood: {complaint(error)}"
            pieces = [Piece(frames, rate, "bad description", problem=(str(path), detail))]
        yield from pieces

    def _file_pieces(self, path: Path, frames: int, whole: bool) -> Iterator[Piece]:
        rate, known = self.sample_rate_hz, self.describe(path)
        f"{known.speaker}{known.text}".encode()  # half a surrogate pair can't be written into a manifest
        seconds = frames / rate
        for start, end in known.activity or []:
            if not 0 <= start <= end <= seconds + TOLERATED_SECONDS:
                problem = f"voice activity from {start:.1f} to {end:.1f} s, but it lasts {seconds:.1f} s"
                yield Piece(0, rate, "impossible voice activity", problem=(str(self.root / path), problem))
        stretches = [(0.0, seconds)] if known.text else self._stretches(path, known.activity, seconds)
        name, silent = path.with_suffix("").as_posix(), frames
        for index, (start, end) in enumerate(stretches):
            first, last = round(start * rate), min(round(end * rate), frames)
            silent -= last - first
            utterance = Utterance(
                id=name if known.text else f"{name}_{index}",
                path=path,
                start_seconds=first / rate,
                duration_seconds=(last - first) / rate,
                speaker=known.speaker,
                text=known.text,
            )
            yield self.judge(utterance, last - first, whole)
        if silent:
            yield Piece(silent, rate, "silence between utterances")

    def _stretches(self, path: Path, activity: list[Interval] | None, seconds: float) -> Iterator[Interval]:
        def quiet_place(start: float, end: float) -> float:
            self.notes["cut at a quiet place, being longer than max_seconds"] += 1
            try:
                return start + quietest(self.read(path, start, end - start), self.sample_rate_hz) / self.sample_rate_hz
            except UserError:  # damaged there: `judge` says so
                return end

        return segments(
            merged([(0.0, seconds)] if activity is None else activity, seconds),
            self.lengths.min_seconds,
            self.lengths.max_seconds,
            self.lengths.max_gap_seconds,
            quiet_place,
        )

    @abstractmethod
    def describe(self, path: Path) -> Description:
        """What is known of a file.

        Raises:
            Unusable: So little that it can't be used.
        """


class LibriLightFolders(FileSource):
    """Raw Libri-Light: ``FILE.json`` beside ``FILE.flac``, with ``speaker`` and ``voice_activity`` (seconds)."""

    def describe(self, path: Path) -> Description:
        self.depends_on((self.root / path).with_suffix(".json"))
        return librilight_description(self.root / path)


def librilight_description(path: Path) -> Description:
    """What the ``.json`` beside an audio file says.

    Raises:
        Unusable: There is none, or it knows of no voice activity.
        Exception: One of `MALFORMED`; it is not Libri-Light's.
    """
    description = path.with_suffix(".json")
    if not description.is_file():
        raise Unusable("no .json beside it", path)
    content = json.loads(description.read_text(encoding="utf-8-sig"))
    if not content.get("voice_activity"):
        raise Unusable("no voice activity in its .json", path)
    if any(len(stretch) != 2 for stretch in content["voice_activity"]):
        raise ValueError("a stretch of its voice activity is not [start, end]")
    activity = [(float(start), float(end)) for start, end in content["voice_activity"]]
    if not all(math.isfinite(time) for interval in activity for time in interval):
        raise ValueError("a time of its voice activity is not finite")
    return Description(name_of(content, "speaker"), activity=activity)


def read_folders(root: Path) -> list[Utterance]:
    """Raw Libri-Light as it is: every audio file with a ``.json`` beside it, one utterance a voice-activity segment.

    Raises:
        UserError: There is no such pair below ``root``, or a ``.json`` is not Libri-Light's; names the file.
    """
    utterances = []
    for path in sorted(p for p in root.rglob("*") if p.suffix.lower() in SUFFIXES):
        description = path.with_suffix(".json")
        if not description.is_file():
            continue
        try:
            known = librilight_description(path)
        except MALFORMED as error:
            raise UserError(f"{description}: not a Libri-Light description: {complaint(error)}") from error
        name = path.relative_to(root).with_suffix("").as_posix()
        for index, (start, end) in enumerate(known.activity or []):
            utterances.append(Utterance(f"{name}_{index}", path, start, end - start, known.speaker, ""))
    if not utterances:
        raise UserError(f"{root}: holds no audio file with a .json beside it")
    return utterances


class LibriSpeechFolders(FileSource):
    """LibriSpeech: ``SPEAKER/CHAPTER/ID.flac``; in each chapter ``SPEAKER-CHAPTER.trans.txt`` of lines ``ID TEXT``."""

    def describe(self, path: Path) -> Description:
        folder = self.root / path.parent
        transcripts = self.depends_on(folder / f"{path.parent.parent.name}-{path.parent.name}.trans.txt")
        text = _chapter_texts(transcripts).get(path.stem)
        if not text:
            raise Unusable("no transcript", self.root / path)
        return Description(path.parent.parent.name, text)


def _chapter_texts(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return {name: text.strip() for name, _, text in (line.partition(" ") for line in lines)}


class AudioFolders(FileSource):
    """Any audio: the first folder below the root is a file's speaker, a ``.txt`` beside it what is said."""

    def describe(self, path: Path) -> Description:
        transcript = self.depends_on((self.root / path).with_suffix(".txt"))
        text = " ".join(transcript.read_text(encoding="utf-8-sig").split()) if transcript.is_file() else ""
        return Description(path.parts[0] if len(path.parts) > 1 else "unknown", text)


class Cuts(Source):
    """Libriheavy's cuts, one line an item.

    Args:
        manifests: Files of cuts.
        audio_prefix: The audio root that they were written with; ``root`` stands for it.
        text_index: Which of Libriheavy's texts.
    """

    items_per_part = 1000

    def __init__(
        self,
        root: Path,
        sample_rate_hz: int,
        lengths: Lengths,
        verify: bool,
        manifests: Sequence[Path],
        audio_prefix: str,
        text_index: int,
    ):
        super().__init__(root, sample_rate_hz, lengths, verify)
        self.manifests = manifests
        self.audio_prefix = audio_prefix
        self.text_index = text_index

    def items(self) -> Iterator[str]:
        for path in self.manifests:
            try:
                for number, line in read_lines(path):
                    yield f"{path.name}:{number}\t{line}"
            except UserError as error:
                yield f"{path.name}: {reason(error)}\t"

    def pieces(self, item: str) -> Iterator[Piece]:
        place, _, line = item.partition("\t")
        rate = self.sample_rate_hz
        try:
            utterance = parse_cut(line, Path(), self.audio_prefix, self.text_index)
        except ValueError as error:
            name, _, damage = place.partition(": ")
            yield Piece(0, rate, "not a cut", problem=(name, damage or str(error)))
            return
        samples = round(utterance.duration_seconds * rate)
        try:
            frames, whole = self.header(utterance.path)
        except Unusable as unusable:
            yield Piece(samples, rate, unusable.piece.fate, utterance, unusable.piece.problem)
            return
        if round(utterance.start_seconds * rate) + samples > frames + 1:
            problem = f"ends at {frames / rate:.3f} s, before {utterance.id} ({place})"
            yield Piece(samples, rate, "ends after its file", utterance, (str(self.root / utterance.path), problem))
        else:
            yield self.judge(utterance, samples, whole)
