"""Libriheavy's cuts: lhotse's, one JSON object a line, with the transcripts under ``custom.texts``."""

import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import soundfile

from datamodules.manifest import LONGEST_SECONDS, Utterance, Word
from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole, make_folder

LIBRIHEAVY_PREFIX = "download/librilight"
# What reading somebody else's JSON may raise.
MALFORMED = (ArithmeticError, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)


def complaint(error: Exception) -> str:
    """What is wrong with somebody else's JSON, in words."""
    match error:
        case json.JSONDecodeError():
            return f"not JSON: {error}"
        case UnicodeError():
            return "not UTF-8"
        case KeyError():
            return f"lacks {error.args[0]}"
        case OSError():
            return (error.strerror or "unreadable").lower()
        case ValueError():
            return str(error)
    return "not of the form that is expected"


def name_of(content: dict, key: str) -> str:
    """An id, which JSON has as a string or as a number.

    Raises:
        ValueError: It is anything else.
    """
    value = content[key]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(f"its {key} is {json.dumps(value)}")
    return str(value)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a text file (``.gz`` or not) that are not empty, with their numbers.

    Raises:
        UserError: It is missing or damaged; says after which line.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such manifest")
    number = 0
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    yield number, line
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 after line {number}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: unreadable after line {number}: {error}") from error


def parse_cut(line: str, root: Path, audio_prefix: str, text_index: int) -> Utterance:
    """One line to an utterance; see `read_cuts`.

    Raises:
        ValueError: It is no such cut.
    """
    try:
        cut = json.loads(line)
        if len(cut["supervisions"]) != 1:
            raise ValueError(f"has {len(cut['supervisions'])} supervisions, not one")
        (supervision,) = cut["supervisions"]
        texts = (supervision.get("custom") or {}).get("texts")
        if texts and not 0 <= text_index < len(texts):
            raise ValueError(f"has {len(texts)} texts, counted from 0, but text_index is {text_index}")
        alignment = (supervision.get("alignment") or {}).get("word")
        start, duration = float(cut["start"]), float(cut["duration"])
        if not (0 <= start < LONGEST_SECONDS and 0 < duration < LONGEST_SECONDS):
            raise ValueError(f"starts at {start} s and lasts {duration} s")
        source = Path(cut["recording"]["sources"][0]["source"])
        text = (texts[text_index] if texts else supervision.get("text")) or ""
        if not isinstance(text, str):
            raise ValueError("its text is no string")
        words = None if alignment is None else tuple(Word(str(w[0]), float(w[1]), float(w[2])) for w in alignment)
        if not all(math.isfinite(w.start_seconds + w.duration_seconds) for w in words or ()):
            raise ValueError("a time of its words is not finite")
        name, speaker = name_of(cut, "id"), name_of(supervision, "speaker")
        # Half a surrogate pair can't be written again.
        f"{name}{source}{speaker}{text}{' '.join(w.text for w in words or ())}".encode()
        if source.is_relative_to(audio_prefix):
            source = source.relative_to(audio_prefix)
        return Utterance(
            id=name,
            path=root / source,
            start_seconds=start,
            duration_seconds=duration,
            speaker=speaker,
            text=text.strip(),
            words=words,
        )
    except MALFORMED as error:
        raise ValueError(f"not a Libriheavy cut: {complaint(error)}") from error


def read_cuts(manifest: Path, root: Path, audio_prefix: str, text_index: int) -> list[Utterance]:
    """A whole manifest (``.jsonl`` or ``.jsonl.gz``).

    Args:
        manifest: The file.
        root: Folder that stands for ``audio_prefix`` in the recordings' paths.
        audio_prefix: The audio root written into the manifest, ``download/librilight`` in Libriheavy.
        text_index: Which of ``custom.texts``: 0 cased and punctuated, 1 upper-case.

    Raises:
        UserError: The file is missing, empty, or a line of it is no such cut; names file and line.
    """
    utterances = []
    for number, line in read_lines(manifest):
        try:
            utterances.append(parse_cut(line, root, audio_prefix, text_index))
        except ValueError as error:
            raise UserError(f"{manifest}:{number}: {error}") from error
    if not utterances:
        raise UserError(f"{manifest}: holds no cuts")
    repeated = [name for name, count in Counter(u.id for u in utterances).items() if count > 1]
    if repeated:
        raise UserError(f"{manifest}: {len(repeated)} ids occur more than once, the first is {repeated[0]}")
    return utterances


def write_cuts(path: Path, utterances: Iterable[Utterance]) -> None:
    """Writes cuts (``.jsonl``, ``.jsonl.gz``) that lhotse and `read_cuts` read; the file appears whole or not at all.

    Raises:
        UserError: An audio file is missing or unreadable, or the folder can't be made.
    """
    make_folder(path.parent)
    opened = gzip.open if path.suffix == ".gz" else open
    with appearing_whole(path) as partial, opened(partial, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(cut_of(u), ensure_ascii=False) + "\n" for u in utterances)


def cut_of(utterance: Utterance) -> dict:
    """A lhotse ``MonoCut`` as JSON."""
    u, (samples, rate_hz) = utterance, _samples_and_rate(utterance.path)
    supervision = {
        "id": u.id,
        "recording_id": str(u.path),
        "start": 0.0,
        "duration": u.duration_seconds,
        "channel": 0,
        "text": u.text,
        "speaker": u.speaker,
        "custom": {"texts": [u.text]},
    }
    if u.words is not None:
        supervision["alignment"] = {"word": [[w.text, w.start_seconds, w.duration_seconds, None] for w in u.words]}
    return {
        "id": u.id,
        "start": u.start_seconds,
        "duration": u.duration_seconds,
        "channel": 0,
        "supervisions": [supervision],
        "recording": {
            "id": str(u.path),
            "sources": [{"type": "file", "channels": [0], "source": str(u.path)}],
            "sampling_rate": rate_hz,
            "num_samples": samples,
            "duration": samples / rate_hz,
        },
        "type": "MonoCut",
    }


@lru_cache(maxsize=64)
def _samples_and_rate(path: Path) -> tuple[int, int]:
    try:
        info = soundfile.info(str(path))
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise UserError(f"{path}: unreadable audio: {str(error).splitlines()[0]}") from error
    return info.frames, info.samplerate
