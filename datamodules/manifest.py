"""Libriheavy cuts and raw Libri-Light folders to a list of utterances."""

import gzip
import json
import math
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_spectron.audio_files import SUFFIXES
from lit_spectron.errors import UserError


@dataclass(frozen=True)
class Word:
    """One spoken word; ``start_seconds`` counts from the beginning of its utterance."""

    text: str
    start_seconds: float
    duration_seconds: float


@dataclass(frozen=True)
class Utterance:
    """A stretch of an audio file and what is said in it.

    Attributes:
        id: Unique name.
        path: Audio file.
        start_seconds: Offset into the file.
        duration_seconds: Length.
        speaker: Speaker id.
        text: Transcript; empty where there is none.
        words: Word times; None where the corpus has none.
    """

    id: str
    path: Path
    start_seconds: float
    duration_seconds: float
    speaker: str
    text: str
    words: tuple[Word, ...] | None = None

    def text_before(self, seconds: float) -> str | None:
        """The words that end within the first ``seconds``; None without word times."""
        if self.words is None:
            return None
        return " ".join(w.text for w in self.words if w.start_seconds + w.duration_seconds <= seconds + 1e-3)


def read_cuts(manifest: Path, root: Path, audio_prefix: str, text_index: int) -> list[Utterance]:
    """Libriheavy's lhotse cuts (``.jsonl`` or ``.jsonl.gz``).

    Args:
        manifest: The file.
        root: Folder that stands for ``audio_prefix`` in the recordings' paths.
        audio_prefix: The audio root written into the manifest, ``download/librilight`` in Libriheavy.
        text_index: Which of ``custom.texts``: 0 cased and punctuated, 1 upper-case.

    Raises:
        UserError: The file is missing, empty, or a line of it is no such cut; names file and line.
    """
    if not manifest.is_file():
        raise UserError(f"{manifest}: no such manifest")
    utterances = []
    number = 0  # of the line that is being read, for the error message
    try:
        with (gzip.open if manifest.suffix == ".gz" else open)(manifest, "rt", encoding="utf-8") as lines:
            for line in lines:
                number += 1
                if line.strip():
                    utterances.append(_cut_to_utterance(json.loads(line), root, audio_prefix, text_index))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"{manifest}:{number}: not a Libriheavy cut: {type(error).__name__} {error}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{manifest}: unreadable after line {number}: {error}") from error
    if not utterances:
        raise UserError(f"{manifest}: holds no cuts")
    repeated = [name for name, count in Counter(u.id for u in utterances).items() if count > 1]
    if repeated:
        raise UserError(f"{manifest}: {len(repeated)} ids occur more than once, the first is {repeated[0]}")
    return utterances


def _cut_to_utterance(cut: dict[str, Any], root: Path, audio_prefix: str, text_index: int) -> Utterance:
    (supervision,) = cut["supervisions"]
    texts = supervision.get("custom", {}).get("texts")
    alignment = supervision.get("alignment", {}).get("word")
    start, duration = float(cut["start"]), float(cut["duration"])
    if not (math.isfinite(start) and math.isfinite(duration)):
        raise ValueError("start or duration is not finite")
    source = Path(cut["recording"]["sources"][0]["source"])
    if source.is_relative_to(audio_prefix):
        source = source.relative_to(audio_prefix)
    return Utterance(
        id=str(cut["id"]),
        path=root / source,
        start_seconds=start,
        duration_seconds=duration,
        speaker=str(supervision["speaker"]),
        text=str(texts[text_index] if texts else supervision["text"]).strip(),
        words=None if alignment is None else tuple(Word(str(w[0]), float(w[1]), float(w[2])) for w in alignment),
    )


def read_folders(root: Path) -> list[Utterance]:
    """Raw Libri-Light: every audio file with a ``.json`` beside it, one utterance a voice-activity segment, no text.

    Raises:
        UserError: There is no such pair below ``root``, or a ``.json`` is not Libri-Light's; names the file.
    """
    utterances = list(_folder_utterances(root))
    if not utterances:
        raise UserError(f"{root}: holds no audio file with a .json beside it")
    return utterances


def _folder_utterances(root: Path) -> Iterator[Utterance]:
    for path in sorted(p for p in root.rglob("*") if p.suffix in SUFFIXES):
        description = path.with_suffix(".json")
        if not description.is_file():
            continue
        try:
            content = json.loads(description.read_text(encoding="utf-8"))
            speaker = str(content["speaker"])
            segments = [(float(start), float(end)) for start, end in content["voice_activity"]]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{description}: not a Libri-Light description: {type(error).__name__} {error}") from error
        name = path.relative_to(root).with_suffix("").as_posix()
        for index, (start, end) in enumerate(segments):
            yield Utterance(f"{name}_{index}", path, start, end - start, speaker, "")


def split_by_speaker(
    utterances: list[Utterance], validation_share: float, test_share: float
) -> tuple[list[Utterance], list[Utterance], list[Utterance]]:
    """Train, validation and test with disjoint speakers; a speaker's place depends on its name only."""
    speakers = sorted({u.speaker for u in utterances}, key=lambda name: zlib.crc32(name.encode()))
    validation = set(speakers[: round(len(speakers) * validation_share)])
    test = set(speakers[len(validation) : len(validation) + round(len(speakers) * test_share)])
    parts: tuple[list[Utterance], list[Utterance], list[Utterance]] = ([], [], [])
    for utterance in utterances:
        parts[1 if utterance.speaker in validation else 2 if utterance.speaker in test else 0].append(utterance)
    return parts
