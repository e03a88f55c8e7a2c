"""Decoding: text until eos, then speech until it stops, in one pass over one KV cache, each sample at its own pace.

Shapes: B batch, T samples, L packed positions, D width, r frames a step, M mels, V vocabulary.
"""

import itertools
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_spectron.audio import frame_level_db
from lit_spectron.errors import UserError
from lit_spectron.masking import concatenate_ragged, gather_positions, lengths_to_mask, prefix_lm_mask
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


def generate(
    model: SpectronModel,
    waveform: Tensor,
    lengths: Tensor,
    settings: GenerationSettings,
    ids: list[str] | None = None,
    anywhere: Callable[..., list[bool]] = flags_of_one,
) -> Generation:
    """`Decoding` to its end."""
    began = time.perf_counter()
    decoding = Decoding(model, waveform, lengths, settings, ids, anywhere)
    for _ in decoding:
        pass
    return replace(decoding.result(), seconds=time.perf_counter() - began)


class Decoding:
    """Decoding step by step: iterate once, to the end, and look in between at what has been said.

    A step asks the device one thing only: which tokens it chose, and which samples end.

    Args:
        model: In evaluation mode.
        waveform: (B, T) prompts, on the model's device.
        lengths: (B,) in samples.
        settings: How to decode.
        ids: Names that make each prompt's random numbers its own; without them all prompts share one sequence.
        anywhere: Tells of each flag whether it is set in any process. Processes that share the parameters have to run
            every part equally often, those that are done as well, for nothing.
    """

    REASONS = ("", "stop", "silence", "repeat")

    def __init__(
        self,
        model: SpectronModel,
        waveform: Tensor,
        lengths: Tensor,
        settings: GenerationSettings,
        ids: list[str] | None = None,
        anywhere: Callable[..., list[bool]] = flags_of_one,
    ):
        batch, factor = len(waveform), model.decoder.reduction_factor
        self.model, self.waveform, self.lengths, self.settings = model, waveform, lengths, settings
        self.anywhere = anywhere
        seeds = [settings.seed + zlib.crc32(name.encode()) for name in ids or [""] * batch]
        self.random = SampleRandom(seeds, waveform.device)
        self.breaker = _Breaker(model, settings, waveform, lengths)
        self.max_steps = max(1, model.audio.seconds_to_frames(settings.max_speech_seconds) // factor)
        self.tokens: list[list[int]] = [[] for _ in range(batch)]
        self.text_stop_reason, self.stop_reason = [""] * batch, [""] * batch
        # (B, r, M) of every step since the first sample speaks; where in them each sample's own begin, and how many.
        self.steps: list[Tensor] = []
        self.dtype = torch.float32
        self.first, self.said = [0] * batch, [0] * batch

    @torch.no_grad()
    def __iter__(self) -> Iterator[None]:
        model, settings, batch = self.model, self.settings, len(self.lengths)
        device, eos_id = self.waveform.device, model.llm.tokenizer.eos_id
        prefix, prefix_lengths = model.encode_prompt(self.waveform, self.lengths)
        sos = model.llm.embed(torch.full((batch, 1), model.llm.tokenizer.sos_id, device=device))
        embeddings, positions = concatenate_ragged([(prefix, prefix_lengths), (sos, torch.ones_like(prefix_lengths))])
        size = embeddings.shape[1]
        room = settings.max_text_tokens + self.max_steps
        mask = prefix_lm_mask(prefix_lengths, positions, size, model.bidirectional_prefix)
        cached = F.pad(lengths_to_mask(positions, size), (0, room), value=True)
        cache = model.llm.new_cache(size + room)
        hidden, _ = model.llm(embeddings, mask, torch.arange(size, device=device).expand(batch, size), cache)
        hidden = hidden[torch.arange(batch, device=device), positions - 1]

        nothing = torch.zeros(batch, dtype=torch.long, device=device)
        writing, speaking = [True] * batch, [False] * batch
        some_write, some_speak = True, False
        for count in itertools.count():
            writes, speaks = torch.tensor([writing, speaking], device=device)
            fed, chosen, ended = torch.zeros_like(hidden), nothing, nothing
            if some_write:
                self.random.active = writing
                chosen = _choose_tokens(model.llm.logits(hidden).float(), settings, self.random)
                written = chosen if count < settings.max_text_tokens else torch.full_like(chosen, eos_id)
                fed = torch.where(writes[:, None], model.llm.embed(written[:, None])[:, 0], fed)
            if some_speak:
                self.random.active = speaking
                step, stop_probability = model.decoder.step(hidden, self.random)
                self.dtype, log_mel = step.dtype, model.denormalise(step)
                self.steps.append(log_mel)
                ended = self.breaker(log_mel, speaks).masked_fill(stop_probability > settings.stop_threshold, 1)
                # What is fed back is what is heard: floored like the frames of training.
                spoken = model.decoder.prenet(model.normalise(log_mel)[:, None].to(step.dtype), self.random)[:, 0]
                fed = torch.where(speaks[:, None], spoken, fed)
            self._note(writing, speaking, *torch.stack([chosen, ended]).tolist())
            yield
            writing = [not reason for reason in self.text_stop_reason]
            speaking = [not reason and not wrote for reason, wrote in zip(self.stop_reason, writing, strict=True)]
            some_write, some_speak = self.anywhere(any(writing), any(speaking))
            if not some_write and not some_speak:
                return
            size += 1
            if size > cached.shape[1]:  # those that other processes wait for go on for longer
                cached = F.pad(cached, (0, size), value=True)
            hidden, _ = model.llm(fed[:, None], cached[:, None, None, :size], positions[:, None], cache)
            hidden = hidden[:, 0]
            positions = positions + 1

    def _note(self, writing: list[bool], speaking: list[bool], chosen: list[int], ended: list[int]) -> None:
        """Keeps what a step's samples wrote, and which of them end by it."""
        for i in _true(writing):
            if chosen[i] == self.model.llm.tokenizer.eos_id:
                self.text_stop_reason[i] = "eos"
            elif len(self.tokens[i]) == self.settings.max_text_tokens:
                self.text_stop_reason[i] = "length"
            else:
                self.tokens[i].append(chosen[i])
            self.first[i] = len(self.steps)
        for i in _true(speaking):
            self.said[i] += 1
            too_long = self.said[i] == self.max_steps and self.REASONS[ended[i]] != "stop"
            self.stop_reason[i] = "length" if too_long else self.REASONS[ended[i]]

    def spoken(self) -> tuple[Tensor, Tensor]:
        """Log-mel (B, F, M) as decoded up to now, unrefined, and lengths (B,) in frames; beyond them lies anything."""
        steps = torch.stack(self.steps, 1)
        first, said = (torch.tensor(numbers, device=steps.device) for numbers in (self.first, self.said))
        index = first[:, None] + torch.arange(max(self.said), device=steps.device)
        own = gather_positions(steps.flatten(2), index.clamp(max=steps.shape[1] - 1))
        return own.reshape(len(own), -1, steps.shape[-1]), said * steps.shape[2]

    @torch.no_grad()
    def refined(self, log_mel: Tensor, lengths: Tensor) -> Tensor:
        """Log-mel (B, F, M) as it is heard; the log floor beyond lengths (B,)."""
        model, valid = self.model, lengths_to_mask(lengths, log_mel.shape[1])
        refined = model.denormalise(model.decoder.refine(model.normalise(log_mel).to(self.dtype), valid))
        return refined.masked_fill(~valid[..., None], model.audio.log_mel_floor)

    def result(self) -> Generation:
        """What was said, once it has come to its end."""
        log_mel, lengths = self.spoken()
        return Generation(
            text=[self.model.llm.tokenizer.decode(tokens) for tokens in self.tokens],
            text_stop_reason=self.text_stop_reason,
            log_mel=self.refined(log_mel, lengths),
            lengths=lengths,
            stop_reason=self.stop_reason,
            silence_level_db=self.breaker.silence_level_db,
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
    """Ends continuations that have fallen silent or frozen, by counting: no step looks back further than a frame."""

    NEAR_FLOOR_DB = 6.0

    def __init__(self, model: SpectronModel, settings: GenerationSettings, waveform: Tensor, lengths: Tensor):
        log_mel, _ = model.log_mel(waveform, lengths)
        # Never below the floor: where it is high, silence is what lies near it.
        floor_db = model.audio.floor_level_db + self.NEAR_FLOOR_DB
        self.silence_level_db = (frame_level_db(log_mel).amax(1) - settings.silence_db).clamp(min=floor_db)
        self.silence_frames = self._frames(model, settings.silence_seconds)
        self.repeat_frames = self._frames(model, settings.repeat_seconds)
        self.silent = torch.zeros_like(lengths)
        self.same = torch.zeros_like(lengths)
        self.before = torch.full_like(log_mel[:, :1], torch.inf)

    @staticmethod
    def _frames(model: SpectronModel, seconds: float | None) -> float:
        factor = model.decoder.reduction_factor
        return torch.inf if seconds is None else factor * max(2, model.audio.seconds_to_frames(seconds) // factor)

    def __call__(self, log_mel: Tensor, speaks: Tensor) -> Tensor:
        """A step's frames (B, r, M), of the samples (B,) that speak, to the number (B,) in `Decoding.REASONS`."""
        silent = (frame_level_db(log_mel) < self.silence_level_db[:, None]) & speaks[:, None]
        moves = torch.cat([self.before, log_mel], dim=1).diff(dim=1).abs().mean(2)
        self.silent = _in_a_row(silent, self.silent)
        self.same = _in_a_row(moves < FROZEN, self.same)
        # Nothing is like the frame before the first.
        self.before = log_mel[:, -1:].masked_fill(~speaks[:, None, None], torch.inf)
        repeats = (self.same >= self.repeat_frames - 1).long() * 3
        return repeats.masked_fill(self.silent >= self.silence_frames, 2)


def _in_a_row(flags: Tensor, before: Tensor) -> Tensor:
    """How many flags (B, r) are set without a break up to the last one, with (B,) that were set before them."""
    trailing = flags.flip(1).long().cumprod(1).sum(1)
    return trailing + before * flags.all(1)


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
