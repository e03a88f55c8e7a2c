#!/usr/bin/env python3
"""Milliseconds a step of speech, ours beside a plain Hugging Face loop and beside reading the weights once.

    python benchmarks/decoding.py

A model of the sizes of conf/smollm2_whisper.yaml (SmolLM2-135M, Whisper tiny, four frames a step) decodes on one
device; its weights are random, which takes as long as trained ones. The plain loop feeds the same LLM embeddings with
`use_cache`, one step after another, through the same spectrogram decoder, and minds nothing else: no silence, no
samples that end earlier. `int8` is ours with the weights of the LLM's linear layers in int8 (`generate --weights int8`;
on a CPU only). Reading is a sum, in float32, over every weight that a step of speech needs: the limit that memory sets.
Figures are medians over steps, without encoder and vocoder; frames and the real-time factor are of all samples of a
batch together. The second table is one continuation of a minute, alone, by position.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from transformers import DynamicCache

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders import MLPDecoder
from lit_spectron.encoders import WhisperEncoder
from lit_spectron.generation import Decoding, GenerationSettings
from lit_spectron.llms import HuggingFaceLLM
from lit_spectron.llms.int8 import store_in_int8
from lit_spectron.model import SpectronModel
from lit_spectron.projection import ProjectionSettings

WARM_UP_STEPS = 5
PARTS = 6  # of the long continuation
PROMPT_SECONDS = 3.0
SMOLLM2_135M = {
    "model_type": "llama",
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
WHISPER_TINY = {
    "model_type": "whisper",
    "d_model": 384,
    "encoder_layers": 4,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
SETTINGS = GenerationSettings(max_text_tokens=1, stop_threshold=1.0, silence_seconds=None, repeat_seconds=None)


def build(llm: dict, reduction_factor: int) -> SpectronModel:
    torch.manual_seed(0)
    return SpectronModel(
        AudioSpec(),
        partial(WhisperEncoder, config=WHISPER_TINY),
        HuggingFaceLLM(config=llm),
        partial(MLPDecoder, reduction_factor=reduction_factor, prenet_dropout=0.5),
        projection=ProjectionSettings(downsampling=5),
    ).eval()


def ours(model: SpectronModel, batch: int, steps: int) -> Iterator[None]:
    """A step of speech each."""
    audio = model.audio
    waveform = torch.randn(batch, audio.seconds_to_samples(PROMPT_SECONDS), device=model.mel_mean.device) * 0.1
    lengths = torch.full((batch,), waveform.shape[1], device=waveform.device)
    seconds = audio.frames_to_seconds(steps * model.decoder.reduction_factor)
    decoding = Decoding(model, waveform, lengths, replace(SETTINGS, max_speech_seconds=seconds))
    for _ in decoding:
        if decoding.steps:
            yield


@torch.no_grad()
def plain(model: SpectronModel, batch: int, steps: int) -> Iterator[None]:
    """The same in a loop as one would write it with transformers alone."""
    positions = round(model.positions_per_second[0] * PROMPT_SECONDS) + 3
    fed = torch.randn(batch, positions, model.llm.hidden_size, device=model.mel_mean.device)
    cache = DynamicCache(config=model.llm.network.config)
    for _ in range(steps):
        hidden = model.llm.network.base_model(inputs_embeds=fed, past_key_values=cache, use_cache=True)[0][:, -1]
        frames, stop = model.decoder.step(hidden)
        fed = model.decoder.prenet(frames[:, None])
        stop.tolist()
        yield


@torch.no_grad()
def reading(model: SpectronModel, batch: int, steps: int) -> Iterator[None]:  # noqa: ARG001
    """All weights that a step of speech needs: not the table of words, which is the output layer, too."""
    words = model.llm.network.get_input_embeddings().weight
    weights = [p for part in (model.llm, model.decoder) for p in part.parameters() if p is not words]
    for _ in range(steps):
        for weight in weights:
            weight.sum()
        yield


Way = tuple[Callable[[SpectronModel, int, int], Iterator[None]], SpectronModel]


def ways_of(model: SpectronModel) -> dict[str, Way]:
    """What is timed, and on which model, by name."""
    ways: dict[str, Way] = {"ours": (ours, model)}
    if model.mel_mean.device.type == "cpu":
        rounded = deepcopy(model)
        store_in_int8(rounded.llm)
        ways["ours, int8"] = (ours, rounded)
    return {**ways, "plain loop": (plain, model), "weights read once": (reading, model)}


def milliseconds(ways: dict[str, Way], batch: int, steps: int) -> dict[str, list[float]]:
    """Of each step by each way, in turn, so that what else the machine does strikes all alike."""
    device = ways["ours"][1].mel_mean.device
    synchronise: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    runs = {name: way(model, batch, steps) for name, (way, model) in ways.items()}
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(steps):
        for name, run in runs.items():
            began = time.perf_counter()
            next(run)
            synchronise()
            times[name].append(1000 * (time.perf_counter() - began))
    return {name: values[WARM_UP_STEPS:] for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--steps", type=int, default=60, help="of speech, for each line of the first table")
    parser.add_argument("--seconds", type=float, default=60.0, help="of speech, in the second table")
    parser.add_argument("--reduction_factor", type=int, default=4, help="frames a step")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="a tiny LLM: only to see that it runs")
    arguments = parser.parse_args()
    if arguments.steps <= WARM_UP_STEPS or arguments.seconds < 1:
        parser.error(f"--steps: at least {WARM_UP_STEPS + 1}; --seconds: at least 1")
    model = build(SMOLLM2_135M | (TINY if arguments.tiny else {}), arguments.reduction_factor).to(arguments.device)
    ways = ways_of(model)
    frames_a_second, factor = model.audio.frames_per_second, arguments.reduction_factor
    print(f"{arguments.device}, {torch.get_num_threads()} threads, {factor} frames a step\n")
    print("| batch | way | ms a step | frames a second | real-time factor |\n|---:|---|---:|---:|---:|")
    for batch in arguments.batch_sizes:
        for name, values in milliseconds(ways, batch, arguments.steps).items():
            of_step = median(values)
            frames = batch * factor * 1000 / of_step
            print(f"| {batch} | {name} | {of_step:.2f} | {frames:,.0f} | {frames_a_second / frames:.4f} |")
    times = milliseconds(ways, 1, round(arguments.seconds * frames_a_second / factor))
    print(f"\n| seconds of speech before | {', ms a step | '.join(times)}, ms |\n|---:|{'---:|' * len(times)}")
    steps = len(times["ours"])
    for begin, end in pairwise(part * steps // PARTS for part in range(PARTS + 1)):
        cells = " | ".join(f"{median(values[begin:end]):.2f}" for values in times.values())
        print(f"| {(begin + WARM_UP_STEPS) * factor / frames_a_second:.1f} | {cells} |")


if __name__ == "__main__":
    main()
