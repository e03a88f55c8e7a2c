"""Arguments that make each encoder and LLM tiny and random. A part that is missing here fails the contract tests."""

from typing import Any

_WHISPER: dict[str, Any] = {
    "model_type": "whisper",
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_layers": 1,
    "decoder_attention_heads": 2,
    "decoder_ffn_dim": 32,
    "vocab_size": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
    "begin_suppress_tokens": [],
}
ENCODERS: dict[str, dict[str, Any]] = {
    "ConformerEncoder": {
        "hidden_size": 16,
        "layers": 1,
        "attention_heads": 2,
        "intermediate_size": 32,
        "stacked_frames": 3,
    },
    "Wav2Vec2BertEncoder": {
        "config": {
            "model_type": "wav2vec2-bert",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        }
    },
    "Wav2Vec2Encoder": {
        "config": {
            "model_type": "wavlm",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "conv_dim": [16] * 7,
            "feat_extract_norm": "layer",
            "num_conv_pos_embedding_groups": 2,
        }
    },
    "WhisperEncoder": {"config": _WHISPER},
    "WhisperTranscriptEncoder": {"config": _WHISPER},
}

_SIZE = {
    "vocab_size": 259,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LLMS: dict[str, dict[str, Any]] = {
    "LlamaFromScratch": {
        "hidden_size": 16,
        "layers": 2,
        "attention_heads": 2,
        "key_value_heads": 1,
        "intermediate_size": 24,
    },
    "HuggingFaceLLM": {"config": {"model_type": "qwen3", "head_dim": 8, **_SIZE}},
}
