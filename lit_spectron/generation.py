"""Decoding: text until eos, then speech until it stops, in one pass over one KV cache, each sample at its own pace.

Shapes: B batch, T samples, L packed positions, D width, r frames a step, M mels, V vocabulary.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lit_spectron.audio import frame_level_db
from lit_spectron.errors import UserError
from lit_spectron.masking import concatenate_ragged, lengths_to_mask, prefix_lm_mask
from lit_spectron.model import SpectronModel
from lit_spectron.types import Generation

# A frame that moves less than this, on average over its channels (natural-log units), has not changed.
FROZEN = 0.01


@dataclass(frozen=True)
class GenerationSettings:
    """How to decode.

    Args:
        max_text_tokens: Text longer than this is cut off and speech begins.
        max_speech_seconds: Longest continuation.
        temperature: Of text sampling; 0 decodes greedily.
        top_k: Sample among the k likeliest tokens; 0 for all.
        top_p: Sample among the likeliest tokens that hold this share of probability.
        stop_threshold: Stop probability at which a continuation ends; 1 never stops by itself.
        silence_seconds: End a continuation that has been silent for so long; null never does.
        silence_db: Silence is so many decibels under the prompt's loudest frame.
        repeat_seconds: End a continuation whose frames have not changed for so long; null never does.
        seed: Of text sampling and the decoder. A prompt's numbers depend on the seed and its id, not its batch.
    """

    max_text_tokens: int = 256
    max_speech_seconds: float = 10.0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop_threshold: float = 0.5
    silence_seconds: float | None = 2.0
    silence_db: float = 40.0
    repeat_seconds: float | None = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_text_tokens", "max_speech_seconds"):
            if getattr(self, name) <= 0:
                raise UserError(f"generation.{name}: must be positive, got {getattr(self, name)}")
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UserError("generation: needs temperature >= 0, top_k >= 0 and 0 < top_p <= 1")
        if not 0 < self.stop_threshold <= 1 or min(self.silence_seconds or 1, self.repeat_seconds or 1) <= 0:
            raise UserError("generation: needs 0 < stop_threshold <= 1 and positive silence_seconds and repeat_seconds")


class SampleRandom:
    """Uniform numbers from one generator a sample, so that a sample's draws don't depend on its neighbours."""

    def __init__(self, seeds: list[int], device: torch.device):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.active = [True] * len(seeds)
        self.device = device

    def __call__(self, shape: tuple[int, ...]) -> Tensor:
        """A tensor of this shape (B, ...); rows of inactive samples are zero and draw nothing."""
        rows = [
            torch.rand(shape[1:], generator=generator) if active else torch.zeros(shape[1:])
            for generator, active in zip(self.generators, self.active, strict=True)
        ]
        return torch.stack(rows).to(self.device)


def flags_of_one(*flags: bool) -> list[bool]:
    """Of one process that decodes by itself."""
    return list(flags)


@torch.no_grad()
def generate(
    model: SpectronModel,
    waveform: Tensor,
    lengths: Tensor,
    settings: GenerationSettings,
    ids: list[str] | None = None,
    anywhere: Callable[..., list[bool]] = flags_of_one,
) -> Generation:
    """
    Args:
        model: In evaluation mode.
        waveform: (B, T) prompts, on the model's device.
        lengths: (B,) in samples.
        settings: How to decode.
        ids: Names that make each prompt's random numbers its own; without them all prompts share one sequence.
        anywhere: Tells of each flag whether it is set in any process. Processes that share the parameters have to run
            every part equally often, those that are done as well, for nothing.
    """
    batch, device = len(waveform), waveform.device
    tokenizer, factor = model.llm.tokenizer, model.decoder.reduction_factor
    seeds = [settings.seed + zlib.crc32(name.encode()) for name in ids or [""] * batch]
    random = SampleRandom(seeds, device)
    breaker = _Breaker(model, settings, waveform, lengths)
    max_steps = max(1, model.audio.seconds_to_frames(settings.max_speech_seconds) // factor)

    prefix, prefix_lengths = model.encode_prompt(waveform, lengths)
    one = torch.ones_like(lengths)
    sos = model.llm.embed(torch.full((batch, 1), tokenizer.sos_id, device=device))
    embeddings, positions = concatenate_ragged([(prefix, prefix_lengths), (sos, one)])
    size = embeddings.shape[1]
    mask = prefix_lm_mask(prefix_lengths, positions, size, model.bidirectional_prefix)
    cached = lengths_to_mask(positions, size)
    cache = model.llm.new_cache()
    hidden, cache = model.llm(embeddings, mask, torch.arange(size, device=device).expand(batch, size), cache)
    hidden = hidden[torch.arange(batch, device=device), positions - 1]

    tokens: list[list[int]] = [[] for _ in range(batch)]
    frames: list[list[Tensor]] = [[] for _ in range(batch)]
    text_stop_reason, stop_reason = [""] * batch, [""] * batch
    writing, speaking = [True] * batch, [False] * batch
    some_write, some_speak = True, False
    while True:
        fed = torch.zeros(batch, 1, model.llm.hidden_size, device=device, dtype=hidden.dtype)
        if some_write:
            random.active = writing
            chosen = _choose_tokens(model.llm.logits(hidden).float(), settings, random).tolist()
            for i in _true(writing):
                if chosen[i] == tokenizer.eos_id:
                    text_stop_reason[i] = "eos"
                elif len(tokens[i]) == settings.max_text_tokens:
                    text_stop_reason[i], chosen[i] = "length", tokenizer.eos_id
                else:
                    tokens[i].append(chosen[i])
            written = model.llm.embed(torch.tensor(chosen, device=device)[:, None])
            fed = torch.where(torch.tensor(writing, device=device)[:, None, None], written, fed)
        if some_speak:
            random.active = speaking
            step, stop_probability = model.decoder.step(hidden, random)
            log_mel = model.denormalise(step)
            ends = stop_probability.tolist()
            for i in _true(speaking):
                frames[i].append(log_mel[i])
                if ends[i] > settings.stop_threshold:
                    stop_reason[i] = "stop"
                elif len(frames[i]) == max_steps:
                    stop_reason[i] = "length"
                else:
                    stop_reason[i] = breaker(i, frames[i])
            # What is fed back is what is heard: floored like the frames of training.
            spoken = model.decoder.prenet(model.normalise(log_mel)[:, None].to(step.dtype), random)
            fed = torch.where(torch.tensor(speaking, device=device)[:, None, None], spoken, fed)
        writing = [not reason for reason in text_stop_reason]
        speaking = [not reason and not wrote for reason, wrote in zip(stop_reason, writing, strict=True)]
        some_write, some_speak = anywhere(any(writing), any(speaking))
        if not some_write and not some_speak:
            break
        cached = torch.cat([cached, torch.ones(batch, 1, dtype=torch.bool, device=device)], dim=1)
        hidden, cache = model.llm(fed, cached[:, None, None, :], positions[:, None], cache)
        hidden = hidden[:, 0]
        positions = positions + 1

    said = torch.tensor([len(steps) * factor for steps in frames], device=device)
    floor = model.audio.log_mel_floor
    log_mel = pad_sequence([torch.cat(steps) for steps in frames], batch_first=True, padding_value=floor)
    valid = lengths_to_mask(said, log_mel.shape[1])
    log_mel = model.denormalise(model.decoder.refine(model.normalise(log_mel).to(step.dtype), valid))
    return Generation(
        text=[tokenizer.decode(ids) for ids in tokens],
        text_stop_reason=text_stop_reason,
        log_mel=log_mel.masked_fill(~valid[..., None], floor),
        lengths=said,
        stop_reason=stop_reason,
        silence_level_db=breaker.silence_level_db,
    )


def silent_frames(generation: Generation) -> Tensor:
    """(B,) how many frames of each continuation are silent (`GenerationSettings.silence_db`)."""
    silent = frame_level_db(generation.log_mel) < generation.silence_level_db[:, None]
    return (silent & lengths_to_mask(generation.lengths, silent.shape[1])).sum(1)


def copied_frames(generation: Generation) -> Tensor:
    """(B,) how many frames of each continuation are as good as the frame before."""
    same = generation.log_mel.diff(dim=1).abs().mean(2) < FROZEN
    return (same & lengths_to_mask(generation.lengths - 1, same.shape[1])).sum(1)


class _Breaker:
    """Ends continuations that have fallen silent or frozen."""

    NEAR_FLOOR_DB = 6.0

    def __init__(self, model: SpectronModel, settings: GenerationSettings, waveform: Tensor, lengths: Tensor):
        log_mel, _ = model.log_mel(waveform, lengths)
        # Never below the floor: where it is high, silence is what lies near it.
        floor_db = model.audio.floor_level_db + self.NEAR_FLOOR_DB
        self.silence_level_db = (frame_level_db(log_mel).amax(1) - settings.silence_db).clamp(min=floor_db)
        self.silence_steps = self._steps(model, settings.silence_seconds)
        self.repeat_steps = self._steps(model, settings.repeat_seconds)

    @staticmethod
    def _steps(model: SpectronModel, seconds: float | None) -> int | None:
        if seconds is None:
            return None
        return max(2, model.audio.seconds_to_frames(seconds) // model.decoder.reduction_factor)

    def __call__(self, sample: int, steps: list[Tensor]) -> str:
        """The reason to stop, or nothing."""
        if self.silence_steps and len(steps) >= self.silence_steps:
            recent = torch.cat(steps[-self.silence_steps :])
            if bool((frame_level_db(recent) < self.silence_level_db[sample]).all()):
                return "silence"
        if self.repeat_steps and len(steps) >= self.repeat_steps:
            recent = torch.cat(steps[-self.repeat_steps :])
            if bool((recent.diff(dim=0).abs().mean(1) < FROZEN).all()):
                return "repeat"
        return ""


def _true(flags: list[bool]) -> list[int]:
    return [i for i, flag in enumerate(flags) if flag]


def _choose_tokens(logits: Tensor, settings: GenerationSettings, random: SampleRandom) -> Tensor:
    """(B, V) to (B,) token ids."""
    if settings.temperature == 0:
        return logits.argmax(-1)
    logits, order = (logits / settings.temperature).sort(dim=-1, descending=True)
    probability = logits.softmax(-1)
    # Keep a token while those likelier hold less than top_p: the first is always kept.
    kept = probability.cumsum(-1) - probability < settings.top_p
    if settings.top_k:
        kept[:, settings.top_k :] = False
    probability = probability * kept
    threshold = random((len(logits), 1)) * probability.sum(-1, keepdim=True)
    pick = (probability.cumsum(-1) <= threshold).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    return order.gather(1, pick).squeeze(1)
