"""The façade without a trainer: from a checkpoint alone to text and speech."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonargparse
import torch
from torch import Tensor

from lit_spectron.arguments import usable_device
from lit_spectron.audio import SHORTEST_PROMPT_SECONDS, AudioSpec
from lit_spectron.audio_files import find_audio, read_audio
from lit_spectron.checkpoint import read_checkpoint, rebuilt_config
from lit_spectron.errors import UserError
from lit_spectron.files import make_folder
from lit_spectron.generation import GenerationSettings, generate
from lit_spectron.model import SpectronModel
from lit_spectron.outputs import write_continuation
from lit_spectron.types import Generation
from lit_spectron.vocoders import Vocoder

MODEL_KEYS = ("audio", "encoder", "llm", "decoder", "prefix_attention", "projection")


def build(
    config: dict[str, Any], overrides: dict[str, Any] | None = None
) -> tuple[SpectronModel, Vocoder, GenerationSettings]:
    """The parts that a run's config (its ``model`` section) describes, with new weights.

    Args:
        config: Plain values.
        overrides: Fields of `GenerationSettings` that replace the config's.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(SpectronModel, "model")
    parser.add_argument("--vocoder", type=Callable[[AudioSpec], Vocoder])
    parser.add_class_arguments(GenerationSettings, "generation")
    wanted = {
        "model": {key: config[key] for key in MODEL_KEYS},
        "vocoder": config["vocoder"],
        "generation": {**config["generation"], **(overrides or {})},
    }
    built = parser.instantiate_classes(parser.parse_object(wanted))
    return built.model, built.vocoder(built.model.audio), built.generation


class SpectronPipeline:
    """A trained model with its vocoder and its way of decoding.

    Args:
        model: Trained; put into evaluation mode.
        vocoder: Of the model's geometry.
        settings: How to decode.
        prompt_seconds: Prompt length the model was trained with; None where it heard whole files.
    """

    def __init__(
        self, model: SpectronModel, vocoder: Vocoder, settings: GenerationSettings, prompt_seconds: float | None
    ):
        self.model = model.eval()
        self.vocoder = vocoder.eval()
        self.settings = settings
        self.prompt_seconds = prompt_seconds

    @classmethod
    def from_checkpoint(
        cls, path: Path | str, device: str = "auto", overrides: dict[str, Any] | None = None
    ) -> "SpectronPipeline":
        """
        Args:
            path: A checkpoint that `fit` wrote. Tensors and plain values only are read from it, never code.
            device: ``auto``, ``cpu``, ``cuda``, ...
            overrides: Fields of `GenerationSettings` that replace the run's.

        Raises:
            UserError: The checkpoint is missing, damaged or not one of ours.
        """
        device = usable_device(device)
        checkpoint = read_checkpoint(path)
        config, state = rebuilt_config(checkpoint), checkpoint["state_dict"]
        model, vocoder, settings = build(config, overrides)
        for prefix, part in (("model.", model), ("vocoder.", vocoder)):
            part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return cls(model.to(device), vocoder.to(device), settings, config["prompt_seconds"])

    def generate(self, prompts: list[Tensor], ids: list[str] | None = None) -> tuple[Generation, list[Tensor]]:
        """
        Args:
            prompts: Waveforms (T,) in [-1, 1] at the model's rate.
            ids: Names that make each prompt's random numbers its own.

        Returns:
            What was generated, and each continuation's waveform (T,).
        """
        device = self.model.mel_mean.device
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
        waveform = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True).to(device)
        generation = generate(self.model, waveform, lengths, self.settings, ids)
        sound = self.vocoder(generation.log_mel, generation.lengths).clamp(-1, 1).cpu()
        samples = self.model.audio.frames_to_samples(generation.lengths).tolist()
        return generation, [sound[i, :n] for i, n in enumerate(samples)]

    def generate_files(
        self,
        paths: list[Path],
        out: Path,
        prompt_seconds: float | None = None,
        batch_size: int = 8,
        report: Callable[[str], object] = print,
    ) -> None:
        """Continues every prompt among ``paths`` (files or folders of files) and writes four files for each to ``out``.

        Every prompt is read and checked before the first file is written.

        Raises:
            UserError: A prompt is missing, unreadable, too short or of a wrong rate; two share a name.
        """
        seconds = self.prompt_seconds if prompt_seconds is None else prompt_seconds
        if seconds is not None and seconds < SHORTEST_PROMPT_SECONDS:
            raise UserError(f"--prompt_seconds: must be at least {SHORTEST_PROMPT_SECONDS}, got {seconds}")
        if batch_size < 1:
            raise UserError(f"--batch_size: must be positive, got {batch_size}")
        files = find_audio(paths)
        for path in files.values():
            self._read_prompt(path, seconds)
        make_folder(out)
        names = list(files)
        for start in range(0, len(names), batch_size):
            chunk = names[start : start + batch_size]
            prompts = [self._read_prompt(files[name], seconds) for name in chunk]
            generation, sounds = self.generate(prompts, chunk)
            for index, name in enumerate(chunk):
                details = {"prompt": str(files[name]), "prompt_seconds": seconds, "settings": asdict(self.settings)}
                prompt_log_mel = self._log_mel(prompts[index])
                write_continuation(
                    out, name, self.model.audio, generation, index, sounds[index], prompt_log_mel, details
                )
                report(f"{out / name}.wav: {generation.text[index]}")

    def _log_mel(self, prompt: Tensor) -> Tensor:
        device = self.model.mel_mean.device
        return self.model.log_mel(prompt[None].to(device), torch.tensor([len(prompt)], device=device))[0][0]

    def _read_prompt(self, path: Path, seconds: float | None) -> Tensor:
        audio = self.model.audio
        samples = torch.from_numpy(read_audio(path, audio.sample_rate_hz))
        shortest = SHORTEST_PROMPT_SECONDS if seconds is None else seconds
        if len(samples) < audio.seconds_to_samples(shortest):
            raise UserError(
                f"{path}: {audio.samples_to_seconds(len(samples)):.2f} s, shorter than the prompt of {shortest:g} s "
                "(--prompt_seconds)"
            )
        return samples if seconds is None else samples[: audio.seconds_to_samples(seconds)]
