"""Tiny models, generated audio and a generated corpus: no test needs a network or a trained weight."""

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import soundfile
import torch

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders import MLPDecoder
from lit_spectron.encoders import ConformerEncoder
from lit_spectron.llms import LlamaFromScratch
from lit_spectron.llms.tokenizer import Tokenizer
from lit_spectron.model import SpectronModel
from lit_spectron.projection import ProjectionSettings
from lit_spectron.types import SpeechBatch
from tests.flawed import flawed_corpus


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def repository() -> Path:
    return Path(__file__).parents[1]


@pytest.fixture(scope="session")
def audio() -> AudioSpec:
    return AudioSpec(n_mels=40, log_floor=1e-3)


@pytest.fixture
def tiny_model(audio: AudioSpec) -> Callable[..., SpectronModel]:
    """Builds a random model; keywords go to the decoder. ``lively`` gives it outputs that differ from step to step."""

    def build(
        spec: AudioSpec = audio,
        prefix_attention: Any = "bidirectional",
        lively: bool = False,
        projection: ProjectionSettings = ProjectionSettings(),
        **decoder: Any,
    ) -> SpectronModel:
        torch.manual_seed(0)
        settings = {"bottleneck_size": 16, "postnet_size": 32, "reduction_factor": 4, "prenet_dropout": 0.0, **decoder}
        model = SpectronModel(
            spec,
            lambda a: ConformerEncoder(a, 32, layers=1, attention_heads=2, dropout=0.0, intermediate_size=64),
            LlamaFromScratch(32, 2, 4, 2, 64, tie_embeddings=not lively),
            lambda a, hidden_size: MLPDecoder(a, hidden_size, **settings),
            prefix_attention,
            projection,
        )
        if lively:
            with torch.no_grad():
                for parameter in [*model.llm.parameters(), *model.projection.parameters()]:
                    if parameter.ndim > 1:
                        parameter.normal_(0, 0.4)
                model.llm.network.lm_head.weight[model.llm.tokenizer.eos_id] = 0
        return model.eval()

    return build


@pytest.fixture(scope="session")
def batch(audio: AudioSpec) -> Callable[..., SpeechBatch]:
    """Builds a batch of noise, each utterance with a level of its own, and texts as bytes."""

    def build(
        seconds: Sequence[float] = (1.0, 1.5),
        prompt_seconds: Sequence[float] | float = 0.5,
        texts: Sequence[str] = ("one two", "three four five"),
        seed: int = 0,
    ) -> SpeechBatch:
        tokenizer, generator = Tokenizer(), torch.Generator().manual_seed(seed)
        lengths = [audio.seconds_to_samples(s) for s in seconds]
        prompts = [prompt_seconds] * len(seconds) if isinstance(prompt_seconds, float) else prompt_seconds
        waveforms = [torch.randn(n, generator=generator) * 0.05 * (i + 1) for i, n in enumerate(lengths)]
        tokens = [torch.tensor(tokenizer.encode(text)) for text in texts]
        pad = torch.nn.utils.rnn.pad_sequence
        return SpeechBatch(
            split="train",
            waveform=pad(waveforms, batch_first=True),
            lengths=torch.tensor(lengths),
            prompt_samples=torch.tensor([audio.seconds_to_samples(s) for s in prompts]),
            tokens=pad(tokens, batch_first=True, padding_value=tokenizer.pad_id),
            token_lengths=torch.tensor([len(t) for t in tokens]),
            ids=[f"utterance{i}" for i in range(len(seconds))],
            speakers=[f"speaker{i}" for i in range(len(seconds))],
            text=list(texts),
            prompt_text=[text.split()[0] for text in texts],
        )

    return build


def write_gzip_lines(path: Path, rows: list[dict]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def corpus(tmp_path: Path, audio: AudioSpec) -> Path:
    """Three speakers, a file of 6 s each, three cuts of 2 s a file: a Libriheavy manifest and Libri-Light json."""
    root, rng, cuts = tmp_path / "corpus", np.random.default_rng(0), []
    for number, suffix in enumerate(("flac", "wav", "flac")):
        speaker, name = f"s{number}", f"small/s{number}/book/book_0000"
        (root / name).parent.mkdir(parents=True)
        tone = 0.3 * np.sin(2 * np.pi * 220 * (number + 1) * np.arange(6 * audio.sample_rate_hz) / audio.sample_rate_hz)
        samples = tone + 0.01 * rng.standard_normal(len(tone))
        soundfile.write(root / f"{name}.{suffix}", samples, audio.sample_rate_hz, subtype="PCM_16")
        description = {"speaker": speaker, "voice_activity": [[0.0, 2.0], [2.5, 5.0]]}
        (root / f"{name}.json").write_text(json.dumps(description), encoding="utf-8")
        for index in range(3):
            words = [["one", 0.1, 0.3, None], ["two", 0.5, 0.4, None], ["three", 1.2, 0.5, None]]
            supervision = {
                "speaker": speaker,
                "custom": {"texts": [f"One, two, three {index}.", f"ONE TWO THREE {index}"]},
                "alignment": {"word": words},
            }
            cuts.append(
                {
                    "id": f"{name}_{index}",
                    "start": 2.0 * index,
                    "duration": 2.0,
                    "supervisions": [supervision],
                    "recording": {"sources": [{"source": f"download/librilight/{name}.{suffix}"}]},
                }
            )
    for name in ("cuts", "copy"):  # no manifest may be in two splits
        write_gzip_lines(root / f"{name}.jsonl.gz", cuts)
    return root


@pytest.fixture
def flawed(tmp_path: Path) -> tuple[Path, int]:
    """A corpus with every known flaw, and the samples in it as far as headers tell, at 16 kHz."""
    return tmp_path / "flawed", flawed_corpus(tmp_path / "flawed")
