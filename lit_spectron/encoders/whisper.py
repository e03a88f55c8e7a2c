"""Whisper, as an encoder: its own encoder's features, or its decoder's states."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSpeechSeq2Seq, GenerationConfig, WhisperFeatureExtractor, WhisperTokenizer

from lit_spectron.audio import AudioSpec, SpecAugment
from lit_spectron.encoders.base import SpeechEncoder
from lit_spectron.encoders.layers import Layer, LayerChoice
from lit_spectron.errors import UserError
from lit_spectron.huggingface import config_fields, load_model, named_errors
from lit_spectron.masking import lengths_to_mask


class WhisperLogMel(nn.Module):
    """Whisper's own log-mel, on the device: what `WhisperFeatureExtractor` gives for the same speech padded to 30 s.

    Source: Radford et al. 2022, section 2.2.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, extractor: WhisperFeatureExtractor):
        super().__init__()
        self.fft_samples, self.hop_samples = extractor.n_fft, extractor.hop_length
        self.longest_samples = extractor.n_samples
        self.register_buffer("window", torch.hann_window(self.fft_samples), persistent=False)
        self.register_buffer("filters", torch.from_numpy(extractor.mel_filters).float(), persistent=False)

    @torch.autocast("cpu", enabled=False)
    @torch.autocast("cuda", enabled=False)
    def forward(self, waveform: Tensor, lengths: Tensor, frames: int) -> Tensor:
        """(B, T) to the first ``frames`` frames (B, F, M); beyond ``lengths`` they hold silence."""
        waveform = waveform.float() * lengths_to_mask(lengths, waveform.shape[1])
        half = self.fft_samples // 2
        samples = (frames - 1) * self.hop_samples + half
        inside = min(samples, self.longest_samples)
        waveform = F.pad(waveform, (0, max(0, inside - waveform.shape[1])))[:, :inside]
        # As in the original, reflected at the start and at the end of the 30 s.
        tail = waveform[:, -1 - (samples - inside) : -1].flip(1)
        waveform = torch.cat([waveform[:, 1 : half + 1].flip(1), waveform, tail], dim=1)
        spectrum = torch.stft(
            waveform, self.fft_samples, self.hop_samples, window=self.window, center=False, return_complex=True
        )
        log_mel = (spectrum.abs().square().transpose(1, 2) @ self.filters).clamp(min=1e-10).log10()
        return (log_mel.maximum(log_mel.amax((1, 2), keepdim=True) - 8) + 4) / 4


class WhisperListener(SpeechEncoder):
    """Whisper's front end and encoder on short prompts, without padding them to 30 s.

    Its position embeddings and its attention are cut to the prompt and a little silence after it, so 3 s cost a tenth
    of 30 s. What differs from the features of the same prompt padded to 30 s is in docs/PARTS.md: with half a second of
    silence the features near the end are right too, without any they are not.

    Args:
        whisper: A Whisper model, of which the encoder is taken.
        silence_seconds: Silence that the encoder hears after each prompt.
        spec_augment: Masking of the prompt's log-mel while training.
    """

    # Frames of silence that the two convolutions may see beyond the last valid one.
    MARGIN_FRAMES = 4

    def __init__(self, whisper: Any, silence_seconds: float, spec_augment: SpecAugment | None):
        super().__init__()
        self._config = config_fields(whisper)
        self.encoder = whisper.model.encoder
        # Sinusoids; transformers forgets so where it loads weights.
        self.encoder.embed_positions.requires_grad_(False)
        extractor = WhisperFeatureExtractor(feature_size=whisper.config.num_mel_bins)
        self.log_mel = WhisperLogMel(extractor)
        self.spec_augment = spec_augment
        self.output_dim = whisper.config.d_model
        self.sample_rate_hz = extractor.sampling_rate
        self.samples_per_feature = 2 * extractor.hop_length
        self.features_per_second = self.sample_rate_hz / self.samples_per_feature
        self.silence_features = round(silence_seconds * self.features_per_second)

    def listen(self, waveform: Tensor, lengths: Tensor) -> list[Tensor]:
        """The first layer's input and each layer's output, (B, S + silence, E), silence included."""
        valid = self.count_features(lengths)
        longest = self.encoder.max_source_positions
        size = self.count_features(waveform.shape[1])
        if size > longest:
            seconds = longest / self.features_per_second
            raise UserError(
                f"model.encoder: Whisper hears at most {seconds:g} s of prompt; shorten data.prompt_seconds"
            )
        heard = min(size + self.silence_features, longest)
        features = self.log_mel(waveform, lengths, min(2 * heard + self.MARGIN_FRAMES, 2 * longest))
        if self.spec_augment is not None:
            features = self.spec_augment(features, (lengths // self.log_mel.hop_samples).clamp(min=1))
        hidden = F.gelu(self.encoder.conv1(features.transpose(1, 2)))
        hidden = F.gelu(self.encoder.conv2(hidden)).transpose(1, 2)[:, :heard]
        states = [hidden + self.encoder.embed_positions.weight[:heard]]
        mask = lengths_to_mask((valid + self.silence_features).clamp(max=heard), heard)[:, None, None]
        mask = mask.expand(-1, 1, heard, heard)
        for layer in self.encoder.layers:
            states.append(layer(states[-1], mask))
        return states

    def count_features(self, samples):
        """Features that cover ``samples``, an int or an integer tensor."""
        return (samples + self.samples_per_feature - 1) // self.samples_per_feature

    def rebuild_args(self) -> dict[str, Any]:
        return {"source": None, "config": self._config}


class WhisperEncoder(WhisperListener):
    """Whisper's encoder: 50 features a second.

    Args:
        audio: The model's audio geometry; only the sampling rate matters.
        source: Hub id or local folder of a Whisper model; null with ``config``.
        config: Fields of a Whisper config, for random weights; null with ``source``.
        layer: ``last``, ``weighted`` (learned sum of all), or n for the n-th layer's output.
        silence_seconds: Silence that the encoder hears after each prompt.
        spec_augment: Masking of the prompt's log-mel while training.

    Source: Radford et al. 2022.
    """

    def __init__(
        self,
        audio: AudioSpec,
        source: str | None = None,
        config: dict[str, Any] | None = None,
        layer: Layer = "last",
        silence_seconds: float = 0.5,
        spec_augment: SpecAugment | None = None,
    ):
        super().__init__(load_whisper(source, config), silence_seconds, spec_augment)
        self.frames_per_second = self.features_per_second
        self.choice = LayerChoice(layer, len(self.encoder.layers))
        self.encoder.layers = self.encoder.layers[: self.choice.needed_layers]
        if layer != "last":
            self.encoder.layer_norm = nn.Identity()

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        states = self.listen(waveform, lengths)
        features = self.choice(self.encoder.layer_norm(states[-1]), states)
        return features[:, : self.count_features(waveform.shape[1])], self.count_features(lengths)


class WhisperTranscriptEncoder(WhisperListener):
    """Whisper's encoder and decoder: one feature for each token of the transcript that Whisper would write.

    The first feature is the mean of the encoder's: how the prompt sounds. Then come the decoder's states before each
    token and before the end: what is said. Close to a cascade, since Whisper has decided what it heard before the LM
    hears of it, but states are passed on, not words. Tokens are found greedily; the states are differentiable.

    Whisper's decoder knows no padding, so prompts of different lengths are encoded one length at a time.

    Args:
        audio: The model's audio geometry; only the sampling rate matters.
        source: Hub id or local folder of a Whisper model; null with ``config``.
        config: Fields of a Whisper config, for random weights; null with ``source``.
        language: That a multilingual Whisper is told (``en``); null for English ones.
        silence_seconds: Silence that Whisper hears after each prompt.
        tokens_per_second: No transcript has more; quick speech has five.
        spec_augment: Masking of the prompt's log-mel while training.
        search: Ids that a checkpoint keeps: how transcripts begin and end, and what never occurs. Null otherwise.

    Source: Radford et al. 2022, greedy search without timestamps.
    """

    LIKELIEST = 8  # tokens that a feature is read as
    shards_by_layer = False  # it takes as many steps as there are tokens

    def __init__(
        self,
        audio: AudioSpec,
        source: str | None = None,
        config: dict[str, Any] | None = None,
        language: str | None = None,
        silence_seconds: float = 0.5,
        tokens_per_second: float = 8.0,
        spec_augment: SpecAugment | None = None,
        search: dict[str, Any] | None = None,
    ):
        whisper = load_whisper(source, config)
        super().__init__(whisper, silence_seconds, spec_augment)
        self.decoder = whisper.model.decoder
        self.frames_per_second = tokens_per_second
        self.vocabulary = whisper_vocabulary(source, whisper.config.vocab_size)
        self.search = search or search_settings(whisper.generation_config, language)

    def forward(self, waveform: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        found: list[Tensor] = [waveform.new_empty(0)] * len(waveform)
        for length in lengths.unique().tolist():
            rows = (lengths == length).nonzero()[:, 0]
            heard = self.encoder.layer_norm(self.listen(waveform[rows, :length], lengths[rows])[-1])
            sound = heard[:, : self.count_features(length)].mean(1, keepdim=True)
            tokens, sizes = self.transcribe(heard, math.ceil(length / self.sample_rate_hz * self.frames_per_second))
            states = self.decoder(input_ids=tokens, encoder_hidden_states=heard, use_cache=False).last_hidden_state
            states = torch.cat([sound, states[:, len(self.search["start"]) - 1 :]], dim=1)
            for row, size, features in zip(rows.tolist(), sizes.tolist(), states, strict=True):
                found[row] = features[: size + 2]
        feature_lengths = torch.tensor([len(f) for f in found], device=lengths.device)
        return nn.utils.rnn.pad_sequence(found, batch_first=True), feature_lengths

    @torch.no_grad()
    def transcribe(self, heard: Tensor, limit: int) -> tuple[Tensor, Tensor]:
        """Encoder features (B, S, E) to ids (B, start + N), N up to ``limit``, and the number of each transcript's."""
        tokens = torch.tensor([self.search["start"]], device=heard.device).expand(len(heard), -1)
        fed, cache, ended = tokens, None, torch.zeros(len(heard), dtype=torch.bool, device=heard.device)
        sizes = torch.full((len(heard),), limit, device=heard.device)
        for step in range(limit):
            output = self.decoder(input_ids=fed, encoder_hidden_states=heard, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            scores = F.linear(output.last_hidden_state[:, -1], self.decoder.embed_tokens.weight).float()
            scores[:, self.search["never"] + (self.search["not_first"] if step == 0 else [])] = -torch.inf
            fed = scores.argmax(1, keepdim=True)
            sizes = torch.where((fed[:, 0] == self.search["end"]) & ~ended, step, sizes)
            ended |= fed[:, 0] == self.search["end"]
            if bool(ended.all()):
                break
            tokens = torch.cat([tokens, fed], dim=1)
        return tokens, sizes

    def read(self, features: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(features, self.decoder.embed_tokens.weight).float()
        scores, tokens = scores.topk(self.LIKELIEST)
        is_token = torch.arange(features.shape[1], device=features.device) > 0  # the first is the sound
        return scores.softmax(2) * is_token[:, None], tokens

    def rebuild_args(self) -> dict[str, Any]:
        return {**super().rebuild_args(), "search": self.search}


def load_whisper(source: str | None, config: dict[str, Any] | None) -> Any:
    whisper = load_model(AutoModelForSpeechSeq2Seq, "encoder", source, config)
    if whisper.config.model_type != "whisper":
        raise UserError(f"model.encoder.source: {source} is a {whisper.config.model_type}, not a Whisper")
    return whisper


def search_settings(generation: GenerationConfig, language: str | None) -> dict[str, Any]:
    """Plain values for `WhisperTranscriptEncoder.search` from a model's settings for generation."""
    fields = generation.to_dict()
    start, languages = [fields["decoder_start_token_id"]], fields.get("lang_to_id") or {}
    if language is None and languages:
        raise UserError("model.encoder.language: this Whisper knows several; name one, as in en")
    if language is not None:
        if f"<|{language}|>" not in languages:
            raise UserError(f"model.encoder.language: this Whisper knows no {language}")
        start += [languages[f"<|{language}|>"], fields["task_to_id"]["transcribe"]]
    if fields.get("no_timestamps_token_id") is not None:
        start.append(fields["no_timestamps_token_id"])
    return {
        "start": start,
        "end": fields["eos_token_id"],
        "never": list(fields.get("suppress_tokens") or []),
        "not_first": list(fields.get("begin_suppress_tokens") or []),
    }


def whisper_vocabulary(source: str | None, size: int) -> list[str]:
    """What each of Whisper's tokens writes; nothing for special tokens, parts of characters, and random weights."""
    if source is None:
        return [""] * size
    with named_errors("model.encoder.source", source):
        tokenizer = WhisperTokenizer.from_pretrained(source)
    special = set(tokenizer.all_special_ids)
    texts = [
        tokenizer.decode([token]) if token not in special and token < len(tokenizer) else "" for token in range(size)
    ]
    return ["" if "\ufffd" in text or text.startswith("<|") else text for text in texts]
