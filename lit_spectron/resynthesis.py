"""Speech to log-mel and back: what a vocoder makes of real speech, before a model is trained for it."""

from collections.abc import Callable
from pathlib import Path

import jsonargparse
import torch

from lit_spectron.audio import AudioSpec, LogMelSpectrogram
from lit_spectron.audio_files import find_audio, keep_apart, read_audio, write_audio
from lit_spectron.errors import UserError
from lit_spectron.files import make_folder
from lit_spectron.vocoders import Vocoder


def load_vocoder(vocoder: Path, audio: Path | None = None) -> Vocoder:
    """The vocoder of a YAML file, for the geometry of another one or for the paper's.

    Raises:
        UserError: A file is missing or does not describe such a part; the two do not fit each other.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--audio", type=AudioSpec, default=AudioSpec(), enable_path=True)
    parser.add_argument("--vocoder", type=Callable[[AudioSpec], Vocoder], enable_path=True)
    arguments = [f"--vocoder={vocoder}", *([f"--audio={audio}"] if audio else [])]
    for path in filter(None, (vocoder, audio)):
        if not path.is_file():
            raise UserError(f"{path}: no such file")
    try:
        built = parser.instantiate_classes(parser.parse_args(arguments))
    except jsonargparse.ArgumentError as error:
        raise UserError(" ".join(str(error).split())) from error
    return built.vocoder(built.audio)


def resynthesize_files(
    vocoder: Vocoder, paths: list[Path], out: Path, report: Callable[[str], object] = print
) -> dict[str, float]:
    """Writes ``NAME.wav`` to ``out`` for every file among ``paths`` (files or folders of files).

    Returns:
        Each file's mean absolute difference in nats between the log-mel of the original and of what was written.

    Raises:
        UserError: A file is missing, unreadable or of a wrong rate, or lies in ``out``; two share a name.
    """
    audio, log_mel = vocoder.audio, LogMelSpectrogram(vocoder.audio)
    files = find_audio(paths)
    keep_apart(files, out)
    make_folder(out)
    differences = {}
    for name, path in files.items():
        waveform = torch.from_numpy(read_audio(path, audio.sample_rate_hz))[None]
        original, frames = log_mel(waveform, torch.tensor([waveform.shape[1]]))
        sound = vocoder(original, frames).clamp(-1, 1)
        again, _ = log_mel(sound, audio.frames_to_samples(frames))
        differences[name] = float((again - original).abs().mean())
        write_audio(out / f"{name}.wav", sound[0].numpy(), audio.sample_rate_hz)
        report(f"{out / name}.wav: {differences[name]:.4f} nats")
    return differences
