"""The slot `vocoder`."""

from abc import ABC, abstractmethod
from dataclasses import fields, replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from torch import Tensor, nn

from lit_spectron.audio import AudioSpec
from lit_spectron.errors import UserError
from lit_spectron.masking import lengths_to_mask
from lit_spectron.part import Part


class Vocoder(Part, ABC):
    """Log-mel to waveform. Never trained here: always in evaluation mode, whatever the module around it does.

    An implementation takes the model's `AudioSpec` as its first argument and raises `UserError`, with both geometries
    side by side, where it was made for another one. Its other arguments have defaults; weights come from an argument
    ``source``, which may be None for random ones.

    Attributes:
        audio: The geometry it was made for.
        context_frames: How far to each side of a frame it looks.
    """

    audio: AudioSpec
    context_frames: int

    @abstractmethod
    def forward(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        """Natural-log mel magnitudes (B, F, M) with lengths (B,) in frames to waveforms (B, T), zero beyond them.

        T is F in samples. A spectrogram sounds the same alone and in a batch of longer ones.
        """

    def excerpt(self, log_mel: Tensor, first_frame: int) -> Tensor:  # noqa: ARG002
        """Frames (B, F, M) out of the middle of a longer spectrogram, the first being its ``first_frame``, to (B, T).

        What is further than ``context_frames`` from a cut sounds as in the whole.
        """
        return self(log_mel, torch.full((len(log_mel),), log_mel.shape[1], device=log_mel.device))

    def train(self, mode: bool = True) -> "Vocoder":  # noqa: ARG002
        return super().train(False)


class NeuralVocoder(Vocoder):
    """A frozen network with published weights."""

    @abstractmethod
    def synthesize(self, log_mel: Tensor) -> Tensor:
        """(B, M, F) to (B, T): frame ``i`` is centred on sample ``i * hop_samples``, as in `LogMelSpectrogram`."""

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        frames = log_mel.shape[1]
        # The first and the last frame are held for as long as the network looks: it then never sees a neighbour's
        # padding or its own, and speech that is cut off at full level meets no step in the spectrogram.
        index = torch.arange(-self.context_frames, frames + self.context_frames, device=log_mel.device)
        index = index.clamp(min=0).minimum(lengths[:, None] - 1).clamp(min=0)
        held = log_mel.float().gather(1, index[..., None].expand(-1, -1, log_mel.shape[2]))
        start, samples = self.audio.frames_to_samples(self.context_frames), self.audio.frames_to_samples(frames)
        waveform = self.synthesize(held.transpose(1, 2))[:, start : start + samples]
        return waveform * lengths_to_mask(self.audio.frames_to_samples(lengths), samples)

    def rebuild_args(self) -> dict[str, Any]:
        return {"source": None}


def refuse_other_geometry(vocoder: str, made_for: AudioSpec, audio: AudioSpec) -> None:
    """
    Raises:
        UserError: The model's ``audio`` is not what the vocoder was ``made_for``; shows where they differ.
    """

    def in_samples(spec: AudioSpec) -> AudioSpec:
        rate = spec.sample_rate_hz
        return replace(spec, window_seconds=spec.window_samples / rate, hop_seconds=spec.hop_samples / rate)

    own, given = in_samples(made_for), in_samples(audio)
    pairs = [(field.name, getattr(own, field.name), getattr(given, field.name)) for field in fields(AudioSpec)]
    different = [f"{name} {a} / {b}" for name, a, b in pairs if a != b]
    if different:
        raise UserError(
            f"vocoder: {vocoder} was made for another model.audio (its own / yours): {', '.join(different)}"
        )


def import_optional(module: str) -> ModuleType:
    """A module of the optional extra ``vocoders``.

    Raises:
        UserError: It is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f'vocoder: needs {error.name}: pip install -c constraints.txt -e ".[vocoders]"') from error


def load_weights(module: nn.Module, source: str | None, file_name: str, ignored: tuple[str, ...] = ()) -> None:
    """Gives a network its published weights. Only tensors are read from the file, never code.

    Args:
        module: The network.
        source: A local folder, or a repository of the Hugging Face hub; None to leave the network as it is.
        file_name: The file in it that holds the state dict.
        ignored: What names of tensors begin with that do not belong to the network.

    Raises:
        UserError: There is no such file, it is damaged, or it holds the weights of another network.
    """
    if source is None:
        return
    if Path(source).is_dir():
        path = Path(source) / file_name
        if not path.is_file():
            raise UserError(f"vocoder.source: {source} holds no {file_name}")
    else:
        try:
            path = Path(hf_hub_download(source, file_name))
        except (OSError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"vocoder.source: {source}: no such folder, nor had from the hub: {reason}") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict({name: value for name, value in state.items() if not name.startswith(ignored)})
    except Exception as error:  # pickle.UnpicklingError has no narrower public parent
        reason = str(error).splitlines()[0]
        raise UserError(f"vocoder.source: {path}: no weights of this network: {reason}") from error
