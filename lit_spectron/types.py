"""What flows between data, model, decoding and callbacks.

Shapes: B batch, T samples, U text tokens, F frames, M mel channels.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

Random = Callable[[tuple[int, ...]], Tensor]
"""Uniform numbers in [0, 1) of a shape (B, ...); each sample's row depends on that sample's own seed only."""


@dataclass(eq=False)
class SpeechBatch:
    """Utterances as the data side yields them. Equal to itself only, so that it may be a key.

    Attributes:
        split: ``train``, ``val``, ``test`` or ``predict``.
        waveform: (B, T) float32 in [-1, 1], zero beyond ``lengths``.
        lengths: (B,) samples of the whole utterance.
        prompt_samples: (B,) where the prompt ends and the continuation begins.
        tokens: (B, U) the whole transcript in the LLM's own tokens, without sos and eos.
        token_lengths: (B,).
        ids: Utterance ids.
        speakers: Speaker ids.
        text: Whole transcripts.
        prompt_text: Words spoken inside the prompt, from the corpus's word times; None where it has none.
        answers: Right answers of each, if they are questions; empty lists otherwise.
        skipped: Id and reason of each utterance that could not be read.
    """

    split: str
    waveform: Tensor
    lengths: Tensor
    prompt_samples: Tensor
    tokens: Tensor
    token_lengths: Tensor
    ids: list[str]
    speakers: list[str]
    text: list[str]
    prompt_text: list[str | None]
    answers: list[list[str]] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(eq=False)
class Generation:
    """What the model wrote and said, one entry a prompt. Equal to itself only, so that it may be a key.

    Attributes:
        text: Decoded text.
        text_stop_reason: ``eos``, or ``length`` where the text was cut off and eos forced.
        log_mel: (B, F, M) natural-log mel magnitudes of the continuation, padded with the log floor.
        lengths: (B,) frames.
        stop_reason: ``stop`` (learned), ``length``, ``silence`` or ``repeat``.
        silence_level_db: (B,) level below which a frame counts as silent, set by the prompt's loudest frame.
        seconds: That decoding the whole batch took, by the clock.
    """

    text: list[str]
    text_stop_reason: list[str]
    log_mel: Tensor
    lengths: Tensor
    stop_reason: list[str]
    silence_level_db: Tensor
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.text)


@dataclass
class SpectronOutput:
    """One teacher-forced pass.

    Attributes:
        losses: Scalars: ``text``, ``stop``, and the decoder's spectrogram terms (of most decoders ``spectrogram``,
            ``spectrogram_feature_delta``, ``spectrogram_time_delta``).
        frames: (B, F, M) predicted log-mel of the continuation.
        frame_mask: (B, F) bool.
    """

    losses: dict[str, Tensor]
    frames: Tensor
    frame_mask: Tensor
