"""Reading audio files: exactly what was asked for, or a `UserError` that names the file."""

import io
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

from lit_spectron.errors import UserError
from lit_spectron.files import appearing_whole

UNKNOWN_FRAMES = 2**62  # what libsndfile says where the header does not tell, as of FLAC from a pipe
LARGEST_SAMPLE = 4.0  # float files may overshoot 1; one beyond this was never scaled to [-1, 1]
SUFFIXES = {".flac", ".wav", ".ogg", ".opus", ".mp3"}


class ByteRange(NamedTuple):
    """Where an audio file lies inside another file, such as a tar."""

    offset_bytes: int
    size_bytes: int

    def read(self, path: str | Path) -> bytes:
        """
        Raises:
            UserError: The file ends before.
            OSError: It can't be read.
        """
        with Path(path).open("rb") as file:
            if sum(self) > (there := os.fstat(file.fileno()).st_size):
                raise UserError(f"{path}: truncated: ends at byte {there}, before {sum(self)}")
            file.seek(self.offset_bytes)
            return file.read(self.size_bytes)


def read_audio(
    path: str | Path,
    sample_rate_hz: int,
    start_seconds: float = 0.0,
    duration_seconds: float | None = None,
    out: np.ndarray | None = None,
    member: ByteRange | None = None,
) -> np.ndarray:
    """A stretch of a mono file as float32 samples in [-1, 1].

    Args:
        path: Any format that libsndfile reads.
        sample_rate_hz: The rate it must have.
        start_seconds: Where to begin.
        duration_seconds: How much to read; None for all that is left.
        out: (at least T,) float32 that is read into, from its first sample on; None for a new array.
        member: Where in the file the audio is, header and all; None if the file is nothing else.

    Returns:
        (T,) samples; a view of ``out``, if it is given.

    Raises:
        UserError: The file is missing, unreadable, of another rate, not mono, empty, too short, not finite, or not
            scaled.
    """
    if not os.path.isfile(path):  # noqa: PTH113 - pathlib's raises where a name is too long
        raise UserError(f"{path}: no such file")
    try:
        with soundfile.SoundFile(path if member is None else io.BytesIO(member.read(path))) as file:
            if file.samplerate != sample_rate_hz:
                raise UserError(f"{path}: sampled at {file.samplerate} Hz, expected {sample_rate_hz} Hz")
            if file.channels != 1:
                raise UserError(f"{path}: has {file.channels} channels, expected mono")
            if file.frames >= UNKNOWN_FRAMES:
                raise UserError(f"{path}: its header does not say how long it is")
            start = round(start_seconds * sample_rate_hz)
            stop = file.frames if duration_seconds is None else start + round(duration_seconds * sample_rate_hz)
            # Starts and durations are rounded by whoever wrote them: one sample beyond the end is no damage.
            if stop > file.frames + 1:
                raise UserError(
                    f"{path}: ends at {file.frames / sample_rate_hz:.3f} s, before {stop / sample_rate_hz:.3f} s"
                )
            wanted = min(stop, file.frames) - start
            if wanted <= 0:
                raise UserError(f"{path}: no audio at {start_seconds:.3f} s")
            file.seek(start)
            samples = file.read(wanted, dtype="float32", out=out)
    except soundfile.LibsndfileError as error:  # its own message names the file again, or an address in memory
        raise UserError(f"{path}: unreadable audio: {error.error_string}") from error
    except (RuntimeError, OSError, UnicodeEncodeError) as error:
        raise UserError(f"{path}: unreadable audio: {str(error).splitlines()[0]}") from error
    if len(samples) < wanted:
        raise UserError(f"{path}: truncated: {len(samples)} of {wanted} samples could be read")
    if file.subtype.startswith("PCM"):
        return samples  # integers: finite, and scaled by their width
    peak = np.maximum(samples.max(), -samples.min())  # NaN where any sample is
    if not np.isfinite(peak):
        raise UserError(f"{path}: holds samples that are not finite")
    if peak > LARGEST_SAMPLE:
        raise UserError(f"{path}: peaks at {peak:.3g}; samples must be scaled to [-1, 1]")
    return samples


def write_audio(path: Path, samples: np.ndarray, sample_rate_hz: int) -> None:
    """Writes (T,) float samples in [-1, 1] as a 16-bit WAV file, which appears whole or not at all.

    Raises:
        OSError: It can't be written, as where the disk is full; libsndfile itself would not say why.
    """
    content = io.BytesIO()
    soundfile.write(content, samples, sample_rate_hz, format="WAV", subtype="PCM_16")
    with appearing_whole(path) as partial:
        partial.write_bytes(content.getbuffer())


def find_audio(paths: list[Path]) -> dict[str, Path]:
    """Audio files by their stem: files as they are, folders searched through.

    Raises:
        UserError: Something is missing, a folder holds no audio, or two files share a stem.
    """
    found: dict[str, Path] = {}
    for path in paths:
        if path.is_dir():
            if not os.access(path, os.R_OK | os.X_OK):
                raise UserError(f"{path}: permission denied")
            files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
            if not files:
                raise UserError(f"{path}: holds no audio ({', '.join(sorted(SUFFIXES))})")
        elif path.is_file():
            files = [path]
        else:
            raise UserError(f"{path}: no such file or folder")
        for file in files:
            if found.setdefault(file.stem, file) != file:
                raise UserError(f"{file}: has the same name as {found[file.stem]}; outputs would overwrite each other")
    return found


def keep_apart(files: dict[str, Path], out: Path) -> None:
    """Makes sure that what is written to ``out`` replaces nothing that lies beside recordings, nor them.

    Raises:
        UserError: One of the files lies there.
    """
    for path in files.values():
        if path.resolve().parent == out.resolve():
            raise UserError(f"--out: {out} holds {path.name}, which is to be read; name another folder")
