"""The façade without a trainer: from a checkpoint alone to text and speech."""

from argparse import ArgumentError
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jsonargparse
import torch
from torch import Tensor

from lit_spectron.arguments import usable_device
from lit_spectron.audio import SHORTEST_PROMPT_SECONDS, AudioSpec
from lit_spectron.audio_files import find_audio, keep_apart, read_audio
from lit_spectron.checkpoint import read_checkpoint, rebuilt_config
from lit_spectron.errors import UserError
from lit_spectron.files import make_folder
from lit_spectron.generation import Decoding, GenerationSettings, generate
from lit_spectron.llms.int8 import store_in_int8
from lit_spectron.model import SpectronModel
from lit_spectron.outputs import write_continuation
from lit_spectron.types import Generation, SpeechBatch
from lit_spectron.vocoders import Vocoder

Weights = Literal["float32", "int8"]
MODEL_KEYS = ("audio", "encoder", "llm", "decoder", "prefix_attention", "projection")


def build(
    config: dict[str, Any], overrides: dict[str, Any] | None = None
) -> tuple[SpectronModel, Vocoder, GenerationSettings]:
    """The parts that a run's config (its ``model`` section) describes, with new weights.

    Args:
        config: Plain values.
        overrides: Fields of `GenerationSettings` that replace the config's.
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
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


@dataclass(frozen=True)
class Likelihood:
    """How well a model expects a recording; see `SpectronPipeline.log_likelihood`.

    Attributes:
        text: Log-probability, in nats, of the text and eos, given the prompt.
        tokens: Of the text, eos counted in.
        spectrogram: Minus the loss of the frames after the prompt; None where there are none.
    """

    text: float
    tokens: int
    spectrogram: float | None


class SpectronPipeline:
    """A trained model with its vocoder and its way of decoding.

    Args:
        model: Trained; put into evaluation mode.
        vocoder: Of the model's geometry.
        settings: How to decode.
        prompt_seconds: Prompt length the model was trained with; None where it heard whole files.
        weights: How those of the LLM's linear layers are held; ``int8`` (`llms.int8`) rounds them.
    """

    def __init__(
        self,
        model: SpectronModel,
        vocoder: Vocoder,
        settings: GenerationSettings,
        prompt_seconds: float | None,
        weights: Weights = "float32",
    ):
        self.model = model.eval()
        self.vocoder = vocoder.eval()
        self.settings = settings
        self.prompt_seconds = prompt_seconds
        self.weights = weights
        if weights == "int8":
            store_in_int8(self.model.llm)

    @classmethod
    def from_checkpoint(
        cls,
        path: Path | str,
        device: str = "auto",
        overrides: dict[str, Any] | None = None,
        weights: Weights = "float32",
    ) -> "SpectronPipeline":
        """
        Args:
            path: A checkpoint that `fit` wrote. Tensors and plain values only are read from it, never code.
            device: ``auto``, ``cpu``, ``cuda``, ...
            overrides: Fields of `GenerationSettings` that replace the run's.
            weights: How those of the LLM's linear layers are held: ``int8`` decodes faster on a CPU, and rounds.

        Raises:
            UserError: The checkpoint is missing, damaged or not one of ours.
        """
        device = usable_device(device)
        checkpoint = read_checkpoint(path)
        config, state = rebuilt_config(checkpoint), checkpoint["state_dict"]
        try:
            model, vocoder, settings = build(config, overrides)
        except ArgumentError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: was written by another version of this package or its parts: {reason}") from error
        for prefix, part in (("model.", model), ("vocoder.", vocoder)):
            part.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        return cls(model.to(device), vocoder.to(device), settings, config["prompt_seconds"], weights)

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

    def stream(self, prompt: Tensor, id: str = "", chunk_seconds: float = 0.5) -> Generator[Tensor, None, Generation]:
        """The sound of `generate`, chunk by chunk, while it is still being decoded.

        Joined, the chunks are what `generate` gives, to rounding. A chunk comes when the frames are decoded that its
        sound depends on: its own and, after them, as many as the decoder's refinement and the vocoder look ahead, the
        sum of their ``context_frames``. HiFi-GAN and Vocos look ahead by some tenths of a second, Griffin-Lim, whose
        phases depend on their neighbours' in every iteration, by 1.2 s with 32 of them and windows of 50 ms
        (``vocoder.iterations`` trades that for quality). As many frames before a chunk are computed again.

        Args:
            prompt: Waveform (T,) in [-1, 1] at the model's rate.
            id: Makes its random numbers its own.
            chunk_seconds: Length of a chunk; the last one is as long as what is left.

        Yields:
            Waveforms (T,).

        Returns:
            What was generated: the value of ``yield from``.
        """
        device, lengths = self.model.mel_mean.device, torch.tensor([len(prompt)])
        decoding = Decoding(self.model, prompt[None].to(device), lengths.to(device), self.settings, [id])
        ahead = self.model.decoder.context_frames + self.vocoder.context_frames
        chunk, done = max(1, self.model.audio.seconds_to_frames(chunk_seconds)), 0
        for _ in decoding:
            while decoding.said[0] * self.model.decoder.reduction_factor >= done + chunk + ahead:
                yield self._sound(decoding, done, done + chunk)
                done += chunk
        generation = decoding.result()
        if done < generation.lengths:
            yield self._sound(decoding, done, int(generation.lengths))
        return generation

    def _sound(self, decoding: Decoding, first: int, last: int) -> Tensor:
        """Waveform (T,) of a decoding's frames from ``first`` to ``last``, given what is there of their context."""
        context, of_refinement = self.vocoder.context_frames, self.model.decoder.context_frames
        seen = max(0, first - context)
        start = max(0, seen - of_refinement)
        log_mel = decoding.spoken()[0][:, start : last + context + of_refinement]
        lengths = torch.tensor([log_mel.shape[1]], device=log_mel.device)
        refined = decoding.refined(log_mel, lengths)[:, seen - start : last + context - start]
        begin, end = (self.model.audio.frames_to_samples(frame - seen) for frame in (first, last))
        return self.vocoder.excerpt(refined, seen)[0, begin:end].clamp(-1, 1).cpu()

    def log_likelihood(
        self,
        waveforms: list[Tensor],
        texts: list[str | None] | None = None,
        prompt_seconds: float | None = None,
    ) -> list[Likelihood]:
        """How likely recordings are to the model, to choose between two of them.

        A Spectron has a probability of texts given a spoken prompt, and none of speech: its frames are regressed. So
        there are two scores.

        ``text``: log p(text, eos | prompt), the objective's cross-entropy summed over tokens. A true log-probability
        of the text, but of the speech only as far as it decides the text. Where no text is given it is that of what
        the model itself writes, greedily: how sure it is of what it hears. Longer texts are less likely.

        ``spectrogram``: minus the decoder's spectrogram terms (means over frames) for what follows the prompt,
        teacher-forced, after the text. No log-probability: it has no unit, compares only within one model, and tells
        more of the voice and the noise than of the words, since each frame is predicted from true ones. Decoders that
        draw random numbers in it draw the same for every recording.

        Each recording is scored alone, so its neighbours don't matter.

        Args:
            waveforms: (T,) in [-1, 1] at the model's rate.
            texts: What is said in each, or None where that is not known.
            prompt_seconds: Where to split; None to hear each as a whole, with no frames left to predict.

        Raises:
            UserError: A waveform is no longer than the prompt, or too short to be heard.

        Source: of the text's score: METHOD "Objective".
        """
        known = texts or [None] * len(waveforms)
        return [self._log_likelihood(w, text, prompt_seconds) for w, text in zip(waveforms, known, strict=True)]

    @torch.inference_mode()
    def _log_likelihood(self, waveform: Tensor, text: str | None, prompt_seconds: float | None) -> Likelihood:
        model, audio = self.model, self.model.audio
        device, tokenizer = model.mel_mean.device, model.llm.tokenizer
        split = len(waveform) if prompt_seconds is None else audio.seconds_to_samples(prompt_seconds)
        if split < audio.seconds_to_samples(SHORTEST_PROMPT_SECONDS):
            raise UserError(
                f"a prompt of {audio.samples_to_seconds(split):.2f} s; {SHORTEST_PROMPT_SECONDS} s at least"
            )
        if prompt_seconds is not None and len(waveform) <= split:
            raise UserError(
                f"a recording of {audio.samples_to_seconds(len(waveform)):.2f} s has nothing after its prompt"
            )
        prompt, samples = waveform[None, :split].to(device), torch.tensor([split], device=device)
        if text is None:
            words_only = replace(self.settings, temperature=0.0, max_speech_seconds=audio.hop_seconds)
            (text,) = generate(model, prompt, samples, words_only).text
        tokens = torch.tensor([tokenizer.encode(text)], dtype=torch.long, device=device)
        # Text does not see what follows it: where nothing does, a frame of silence makes the pass complete.
        whole = waveform if prompt_seconds is not None else torch.nn.functional.pad(waveform, (0, audio.hop_samples))
        batch = SpeechBatch(
            split="predict",
            waveform=whole[None].to(device),
            lengths=torch.tensor([len(whole)], device=device),
            prompt_samples=samples,
            tokens=tokens,
            token_lengths=torch.tensor([tokens.shape[1]], device=device),
            ids=[""],
            speakers=[""],
            text=[text],
            prompt_text=[None],
        )
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(self.settings.seed)
            losses = model(batch).losses
        frames = [value for name, value in losses.items() if name not in ("text", "stop")]
        return Likelihood(
            text=-float(losses["text"]) * (tokens.shape[1] + 1),
            tokens=tokens.shape[1] + 1,
            spectrogram=None if prompt_seconds is None else -float(torch.stack(frames).sum()),
        )

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
            UserError: A prompt is missing, unreadable, too short, of a wrong rate, or in ``out``; two share a name.
        """
        seconds = self.prompt_seconds if prompt_seconds is None else prompt_seconds
        if seconds is not None and seconds < SHORTEST_PROMPT_SECONDS:
            raise UserError(f"--prompt_seconds: must be at least {SHORTEST_PROMPT_SECONDS}, got {seconds}")
        if batch_size < 1:
            raise UserError(f"--batch_size: must be positive, got {batch_size}")
        files = find_audio(paths)
        keep_apart(files, out)
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
                details["weights"] = self.weights
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
