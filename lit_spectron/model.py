"""Composition: encoder, projection, LLM and spectrogram decoder in one forward pass.

Shapes: B batch, T samples, S prefix positions, U text tokens, F frames, N speech steps, r frames a step, M mels,
D width.
"""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_spectron.audio import AudioSpec, LogMelSpectrogram
from lit_spectron.decoders import SpectrogramDecoder
from lit_spectron.encoders import SpeechEncoder
from lit_spectron.errors import UserError
from lit_spectron.llms import LanguageModel
from lit_spectron.losses import text_loss
from lit_spectron.masking import gather_positions, lengths_to_mask, pack
from lit_spectron.projection import Projection, ProjectionSettings, TokenProjection
from lit_spectron.types import SpectronOutput, SpeechBatch

EncoderFactory = Callable[[AudioSpec], SpeechEncoder]
DecoderFactory = Callable[[AudioSpec, int], SpectrogramDecoder]


class SpectronModel(nn.Module):
    """Speech in, text and speech out, through one language model.

    Args:
        audio: The one audio geometry.
        encoder: Builds the speech encoder from the geometry.
        llm: The language model.
        decoder: Builds the spectrogram decoder from the geometry and the LM's width.
        prefix_attention: Whether prompt positions see the whole prompt, or only what precedes them.
        projection: From the encoder's features to the LM's prefix.

    Raises:
        UserError: The encoder takes another sampling rate.

    Source: Nachmani et al. 2024, section 3; METHOD "Parts" and "Training example".
    """

    mel_mean: Tensor
    mel_std: Tensor
    mel_frames: Tensor

    def __init__(
        self,
        audio: AudioSpec,
        encoder: EncoderFactory,
        llm: LanguageModel,
        decoder: DecoderFactory,
        prefix_attention: Literal["bidirectional", "causal"] = "bidirectional",
        projection: ProjectionSettings = ProjectionSettings(),
    ):
        super().__init__()
        self.audio = audio
        self.encoder = encoder(audio)
        if self.encoder.sample_rate_hz != audio.sample_rate_hz:
            raise UserError(
                f"model.encoder: takes {self.encoder.sample_rate_hz} Hz, but model.audio.sample_rate_hz is "
                f"{audio.sample_rate_hz}"
            )
        self.llm = llm
        self.decoder = decoder(audio, llm.hidden_size)
        self.projection = self._build_projection(projection)
        self.bidirectional_prefix = prefix_attention == "bidirectional"
        self.log_mel = LogMelSpectrogram(audio)
        self.register_buffer("mel_mean", torch.zeros(audio.n_mels))
        self.register_buffer("mel_std", torch.ones(audio.n_mels))
        self.register_buffer("mel_frames", torch.zeros((), dtype=torch.long))

    def _build_projection(self, settings: ProjectionSettings) -> Projection | TokenProjection:
        if settings.kind != "tokens":
            return Projection(self.encoder.output_dim, self.llm.hidden_size, settings)
        if self.encoder.vocabulary is None:
            raise UserError(f"model.projection.kind: {type(self.encoder).__name__} does not tell tokens")
        tokenizer, lower = self.llm.tokenizer, settings.lower_case
        spellings = [tokenizer.encode(t.lower() if lower else t) for t in self.encoder.vocabulary]
        return TokenProjection(self.encoder.output_dim, self.llm.hidden_size, spellings, tokenizer.sos_id)

    @property
    def positions_per_second(self) -> tuple[float, float]:
        """LM positions that a second of the prompt and a second of the continuation take."""
        frames = self.audio.sample_rate_hz / self.audio.hop_samples
        return (
            self.encoder.frames_per_second * self.projection.positions_per_feature,
            frames / self.decoder.reduction_factor,
        )

    @property
    def has_mel_statistics(self) -> bool:
        return bool(self.mel_frames > 0)

    def set_mel_statistics(self, mean: Tensor, std: Tensor, frames: int) -> None:
        """Per-channel mean and standard deviation (M,) of the training data's log-mel, and the frames they rest on."""
        self.mel_mean.copy_(mean)
        self.mel_std.copy_(std.clamp(min=1e-3))
        self.mel_frames.fill_(frames)

    @torch.no_grad()
    def take_mel_statistics(self, batches: Iterable[SpeechBatch], all_processes: Callable[[Tensor], Tensor]) -> None:
        """Mean and deviation over the log-mel of whole utterances.

        Args:
            batches: Those of this process.
            all_processes: Sums a tensor over all processes.
        """
        sums = torch.zeros(3, self.audio.n_mels, dtype=torch.float64, device=self.mel_mean.device)
        for batch in filter(len, batches):
            log_mel, lengths = self.log_mel(batch.waveform.to(sums.device), batch.lengths.to(sums.device))
            valid = log_mel[lengths_to_mask(lengths, log_mel.shape[1])].double()
            sums += torch.stack([torch.ones_like(valid).sum(0), valid.sum(0), valid.square().sum(0)])
        count, first, second = all_processes(sums)
        mean = first / count
        std = (second / count - mean.square()).clamp(min=0).sqrt()
        self.set_mel_statistics(mean.float(), std.float(), int(count[0]))

    def normalise(self, log_mel: Tensor) -> Tensor:
        return (log_mel - self.mel_mean) / self.mel_std

    def denormalise(self, frames: Tensor) -> Tensor:
        """Back to log-mel, no lower than the floor."""
        return (frames.float() * self.mel_std + self.mel_mean).clamp(min=self.audio.log_mel_floor)

    def encode_prompt(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Prompts (B, T) with lengths (B,) in samples to the LM's prefix (B, S, D) and its lengths (B,)."""
        features, lengths = self.encoder(waveform, lengths)
        if isinstance(self.projection, TokenProjection):
            return self.projection(features, lengths, *self.encoder.read(features), self.llm.embed)
        return self.projection(features, lengths)

    def text_input(self, tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, U) to ids (B, U + 2) with sos before and eos right after each sample's tokens, and the lengths."""
        tokenizer = self.llm.tokenizer
        wrapped = F.pad(tokens, (1, 1), value=tokenizer.pad_id)
        wrapped[:, 0] = tokenizer.sos_id
        wrapped.scatter_(1, lengths[:, None] + 1, tokenizer.eos_id)
        return wrapped, lengths + 2

    def speech_steps(self, continuation: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        Args:
            continuation: (B, T).
            lengths: (B,) in samples.

        Returns:
            Normalised frames (B, N * r, M), their mask (B, N * r), and the number of steps (B,).
        """
        log_mel, frames = self.log_mel(continuation, lengths)
        factor = self.decoder.reduction_factor
        surplus = -log_mel.shape[1] % factor
        log_mel = F.pad(log_mel, (0, 0, 0, surplus), value=self.audio.log_mel_floor)
        mask = lengths_to_mask(frames, log_mel.shape[1])
        return self.normalise(log_mel), mask, (frames + factor - 1) // factor

    def forward(self, batch: SpeechBatch) -> SpectronOutput:
        """The teacher-forced pass over whole utterances."""
        prompt, continuation = split_waveform(batch.waveform, batch.lengths, batch.prompt_samples)
        prefix, prefix_lengths = self.encode_prompt(prompt, batch.prompt_samples)
        tokens, token_lengths = self.text_input(batch.tokens, batch.token_lengths)
        frames, frame_mask, steps = self.speech_steps(continuation, batch.lengths - batch.prompt_samples)
        fed_frames = frames.unflatten(1, (-1, self.decoder.reduction_factor))[:, :-1]
        packed = pack(
            prefix,
            prefix_lengths,
            self.llm.embed(tokens),
            token_lengths,
            self.decoder.prenet(fed_frames),
            steps,
            self.bidirectional_prefix,
        )
        hidden, _ = self.llm(packed.embeddings, packed.attention_mask, packed.position_ids)
        # Logits where text is predicted and nowhere else: the vocabulary is the widest layer of all.
        logits = self.llm.logits(gather_positions(hidden, packed.text_index))
        speech_hidden = gather_positions(hidden, packed.speech_index)
        losses, prediction = self.decoder.loss(speech_hidden, frames, frame_mask)
        return SpectronOutput(
            losses={"text": text_loss(logits, tokens[:, 1:], packed.text_mask), **losses},
            frames=self.denormalise(prediction),
            frame_mask=frame_mask,
        )


def split_waveform(waveform: Tensor, lengths: Tensor, prompt_samples: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T) split at each sample's ``prompt_samples`` into prompts and continuations, zero-padded on the right."""
    prompt = waveform[:, : int(prompt_samples.max())]
    prompt = prompt * lengths_to_mask(prompt_samples, prompt.shape[1])
    rest = lengths - prompt_samples
    index = prompt_samples[:, None] + torch.arange(int(rest.max()), device=waveform.device)
    continuation = waveform.gather(1, index.clamp(max=waveform.shape[1] - 1))
    return prompt, continuation * lengths_to_mask(rest, continuation.shape[1])
