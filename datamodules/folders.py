"""Raw Libri-Light folders, read as they are."""

import json
from collections.abc import Iterator
from pathlib import Path

from datamodules.manifest import Utterance
from lit_spectron.audio_files import SUFFIXES
from lit_spectron.errors import UserError


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
