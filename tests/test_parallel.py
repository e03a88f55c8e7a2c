"""One process, two that average their gradients (DDP), and two that share the parameters (FSDP2): the same run."""

import json
import os
import socket
from collections import Counter
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, init_device_mesh
from torch.utils.data import DataLoader, IterableDataset

from callbacks import GenerationHealth, Report, Throughput, WordErrorRate
from datamodules.loading import Collate
from datamodules.sampling import BatchLimits, PlannedBatchSampler
from lit_spectron import decoders, encoders
from lit_spectron.audio import AudioSpec
from lit_spectron.checkpoint import consolidate
from lit_spectron.checkpoint_io import AtomicCheckpointIO
from lit_spectron.decoders import MLPDecoder, SpectrogramDecoder
from lit_spectron.encoders import ConformerEncoder
from lit_spectron.generation import GenerationSettings, generate
from lit_spectron.llms import HuggingFaceLLM
from lit_spectron.llms.hugging_face import LoraSettings
from lit_spectron.llms.tokenizer import Tokenizer
from lit_spectron.losses import LossWeights
from lit_spectron.model import SpectronModel, split_waveform
from lit_spectron.module import LitSpectron
from lit_spectron.optim import OptimizerSettings
from lit_spectron.parallel import anywhere, checkpoint_activations, layers, shard
from lit_spectron.projection import ProjectionSettings
from lit_spectron.strategy import FullyShardedStrategy
from lit_spectron.types import SpeechBatch
from lit_spectron.vocoders import GriffinLim
from tests.discovery import implementations
from tests.test_llms import ATTENTION, FAMILIES
from tests.tiny import ENCODERS

STEPS = 20
FIRST, REST = range(16), range(16, STEPS)
EMPTY = 5  # the step in which the second process, or the second of two batches, has no utterance
AUDIO = AudioSpec(n_mels=20, log_floor=1e-3)
SETTINGS = GenerationSettings(max_text_tokens=6, max_speech_seconds=0.5, stop_threshold=0.95, repeat_seconds=None)
STRATEGIES = {"ddp": lambda: "ddp", "fsdp": FullyShardedStrategy}
CONFIGS = ("scratch", "frozen", "lora")
TWO_LAYERS = {"ConformerEncoder": {"layers": 2}}
WAV2VEC2 = ENCODERS["Wav2Vec2Encoder"]
EARS = {
    **{name: (getattr(encoders, name), arguments) for name, arguments in ENCODERS.items()},
    "wav2vec2-group": (
        encoders.Wav2Vec2Encoder,
        {"config": {**WAV2VEC2["config"], "model_type": "wav2vec2", "feat_extract_norm": "group"}},
    ),
    "weighted": (encoders.Wav2Vec2Encoder, {**WAV2VEC2, "layer": "weighted"}),
}


def family(name: str, lora: LoraSettings | None = None) -> HuggingFaceLLM:
    return HuggingFaceLLM(config=FAMILIES[name], attention=ATTENTION.get(name, "sdpa"), lora=lora)


def build_module(config: str) -> LitSpectron:
    torch.manual_seed(0)
    module = LitSpectron(
        AUDIO,
        lambda a: ConformerEncoder(a, 16, layers=2, attention_heads=2, dropout=0.0, intermediate_size=32),
        family("llama", LoraSettings(rank=2, alpha=4) if config == "lora" else None),
        lambda a, size: MLPDecoder(a, size, bottleneck_size=8, postnet_size=16, reduction_factor=4),
        lambda a: GriffinLim(a, iterations=2),
        OptimizerSettings(
            STEPS, learning_rate=1e-2, warmup_steps=2, freeze=["encoder.*"] if config == "frozen" else []
        ),
        loss_weights=LossWeights(spectrogram=1.0),
        generation=SETTINGS,
        generated_utterances=-1,
    )
    module.model.set_mel_statistics(torch.full((20,), -3.0), torch.full((20,), 2.0), 1)
    module.config = {"vocoder": {"class_path": "GriffinLim"}}
    return module


def liven(model: SpectronModel) -> None:
    """Gives each prompt a text and a speech of its own, and lengths of its own."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in [*model.llm.parameters(), *model.projection.parameters(), *model.decoder.parameters()]:
            if parameter.ndim > 1:
                parameter.normal_(0, 0.4)
        model.llm.network.lm_head.weight[model.llm.tokenizer.eos_id] *= 3


def nothing(split: str) -> SpeechBatch:
    return Collate(split, Tokenizer(), AUDIO.sample_rate_hz)([])


class Stream(IterableDataset):
    """Without a length: an epoch that goes on in its middle is not taken for its end."""

    def __init__(self, batches: list[SpeechBatch]):
        self.batches = batches

    def __iter__(self) -> Iterator[SpeechBatch]:
        return iter(self.batches)


class Given(L.LightningDataModule):
    """Batches as they are: of training one for each process or, for one process, one after the other."""

    def __init__(self, train: list[SpeechBatch], val: list[SpeechBatch]):
        super().__init__()
        self.train, self.val, self.first = train, val, 0

    def train_dataloader(self) -> DataLoader:
        share = self.train[self.first + self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(Stream(share), batch_size=None)

    def val_dataloader(self) -> DataLoader:
        sizes = torch.ones(len(self.val)).numpy()
        share = (self.trainer.global_rank, self.trainer.world_size)
        sampler = PlannedBatchSampler(sizes, BatchLimits(1), False, 0, *share)
        return DataLoader([self.val[i[0]] if i else nothing("val") for i in sampler], batch_size=None)

    test_dataloader = val_dataloader


class Unwritable(L.Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"function": lambda: None}


class Watch(L.Callback):
    def __init__(self) -> None:
        self.curve: list[tuple[float, float]] = []
        self.said: dict[str, tuple[str, int]] = {}

    def on_train_batch_end(self, trainer, *_) -> None:
        found = trainer.callback_metrics
        self.curve.append((float(found["train/loss"]), float(found.get("train/gradient_norm", 0.0))))

    def on_validation_batch_end(self, _, __, outputs, batch, *___) -> None:
        for name, text, frames in zip(batch.ids, outputs.text, outputs.lengths, strict=True) if outputs else ():
            self.said[name] = text, int(frames)


def run(
    config: str,
    strategy: Any,
    devices: int,
    data: Given,
    steps: range = range(STEPS),
    start: Path | None = None,
    folder: Path = Path(),
) -> tuple[L.Trainer, Watch]:
    """Trains, from a checkpoint on or from the beginning."""
    watch, data.first = Watch(), 2 * steps.start
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy=strategy,
        max_steps=steps.stop,
        accumulate_grad_batches=2 // devices,
        gradient_clip_val=0.5,
        log_every_n_steps=1,
        limit_val_batches=0,
        callbacks=[watch, WordErrorRate(), GenerationHealth(), Report(str(folder)), Throughput(1e12)],
        **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
    )
    module = build_module(config)
    trainer.fit(module, data, ckpt_path=start)
    is_spread = [isinstance(p, DTensor) for p in module.model.parameters()]
    assert all(is_spread) if isinstance(trainer.strategy, FullyShardedStrategy) else not any(is_spread)
    return trainer, watch


def validate(trainer: L.Trainer, watch: Watch, data: Given) -> dict[str, Any]:
    module = build_module("scratch")
    liven(module.model)
    trainer.limit_val_batches = 1.0
    found = {"metrics": trainer.validate(module, data, verbose=False)[0], "said": watch.said}
    trainer.test(module, data, verbose=False)
    return found


def build_model(ear: str, llm: str, decoder: type[SpectrogramDecoder], lora: bool) -> SpectronModel:
    torch.manual_seed(0)
    cls, arguments = EARS[ear]
    return SpectronModel(
        AUDIO,
        partial(cls, **arguments),
        family(llm, LoraSettings(rank=2, alpha=4) if lora else None),
        partial(decoder, reduction_factor=4, prenet_dropout=0.0),
        projection=ProjectionSettings(kind="tokens" if ear == "WhisperTranscriptEncoder" else "stack"),
    ).eval()


def total(model: SpectronModel, batch: SpeechBatch) -> Tensor:
    return torch.stack(list(model(batch).losses.values())).sum()


def compare_with_whole(whole: SpectronModel, rank: int, batches: list[SpeechBatch], precise: bool) -> None:
    """Gradients and generation of a model that is spread, with and without checkpointed activations."""
    mesh, device = init_device_mesh("cpu", (2,)), torch.device("cpu")
    spread = deepcopy(whole)
    if precise:
        checkpoint_activations(spread)
    shard(spread, mesh, device, None)
    for batch in batches:
        (total(whole, batch) / 2).backward()
    total(spread, batches[rank]).backward()
    for (name, expected), found in zip(whole.named_parameters(), spread.parameters(), strict=True):
        assert isinstance(found, DTensor) and (found.grad is None) == (expected.grad is None), name
        if expected.grad is not None:
            torch.testing.assert_close(found.grad.full_tensor(), expected.grad, atol=1e-5, rtol=1e-4, msg=name)
    batch = batches[rank]
    prompts = split_waveform(batch.waveform, batch.lengths, batch.prompt_samples)[0], batch.prompt_samples, SETTINGS
    alone, together = generate(whole, *prompts), generate(spread, *prompts, anywhere=anywhere(mesh, device))
    assert alone.text == together.text and alone.lengths.tolist() == together.lengths.tolist()
    torch.testing.assert_close(alone.log_mel, together.log_mel, atol=1e-4, rtol=0)


def work(rank: int, folder: Path, port: int, data: Given, pair: list[SpeechBatch]) -> None:
    """One of two processes, as torchrun would start them."""
    torch.set_num_threads(1)
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {k: str(v) for k, v in {**address, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2}.items()}
    found: dict[tuple[str, ...], Any] = {}
    for name, strategy in STRATEGIES.items():
        for config in CONFIGS:
            trainer, watch = run(config, strategy(), 2, data, folder=folder / name)
            found[name, config] = watch.curve
        found[name, "val"] = validate(trainer, watch, data)
        trainer, watch = run("lora", strategy(), 2, data, FIRST)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    for name, strategy in STRATEGIES.items():
        other = next(n for n in STRATEGIES if n != name)
        found[name, "rest"] = run("lora", strategy(), 2, data, REST, folder / f"{other}.ckpt")[1].curve
    tellers = implementations(decoders, SpectrogramDecoder)
    for number, llm in enumerate(FAMILIES):
        ear = list(EARS)[number % len(EARS)]
        whole = build_model(ear, llm, tellers[number % len(tellers)], lora=llm == "qwen2")
        compare_with_whole(whole, rank, pair, number % 2 == 0)
    torch.distributed.destroy_process_group()
    if rank == 0:  # from here on by itself: another number of processes
        os.environ |= {"WORLD_SIZE": "1", "MASTER_PORT": str(port + 1)}
        trainer, watch = run("lora", FullyShardedStrategy(), 1, data, REST, folder / "fsdp.ckpt")
        found["fsdp", "rest alone"] = watch.curve
        trainer.callbacks.append(Unwritable())
        with pytest.raises(AttributeError, match="lambda"):
            trainer.save_checkpoint(folder / "fsdp.ckpt")
    torch.save(found, folder / f"{rank}.pt")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@dataclass(eq=False)
class Found:
    """What the two processes found, each, and what one process finds."""

    both: list[dict[tuple[str, ...], Any]]
    data: Given
    folder: Path

    @cache  # noqa: B019
    def alone(self, config: str) -> tuple[Tensor, dict[str, Any]]:
        """Its curve (steps, 2, 2) of two batches a step, each with loss and norm; what it says."""
        trainer, watch = run(config, "auto", 1, self.data, folder=self.folder / "alone")
        return torch.tensor(watch.curve).unflatten(0, (STEPS, 2)), validate(trainer, watch, self.data)


@pytest.fixture(scope="module")
def found(tmp_path_factory, batch) -> Found:
    train = [batch((1.0, 1.0 + i / 40), 0.5, ("one two", "three" + "!" * (i % 5)), seed=i) for i in range(2 * STEPS)]
    val = [batch((0.8 + i / 20,), 0.3 + i / 20, (f"number {i}",), seed=50 + i) for i in range(7)]
    train[2 * EMPTY + 1] = nothing("train")
    for i, one in enumerate(val):
        one.ids, one.split = [f"prompt{i}"], "val"
    data, folder = Given(train, val), tmp_path_factory.mktemp("found")
    pair = [batch((1.0, 1.2), (0.5, 0.4 + 0.3 * i), seed=i) for i in range(2)]
    torch.multiprocessing.spawn(work, (folder, free_port(), data, pair), nprocs=2)
    both = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return Found(both, data, folder)


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_layers_of_a_language_model(name, lora):
    llm = family(name, LoraSettings(rank=2) if lora else None)
    found = layers(llm)
    assert len(found) == llm.network.config.num_hidden_layers and len(set(map(type, found))) == 1
    assert not {id(p) for p in llm.network.get_input_embeddings().parameters()} & {
        id(p) for layer in found for p in layer.parameters()
    }


@pytest.mark.parametrize("name", EARS)
def test_the_layers_of_an_encoder(name):
    cls, arguments = EARS[name]
    kinds = Counter(type(layer).__name__ for layer in layers(cls(AUDIO, **{**arguments, **TWO_LAYERS.get(name, {})})))
    assert [count for kind, count in kinds.items() if "EncoderLayer" in kind] == [2]
    assert all("EncoderLayer" in kind or "ConvLayer" in kind for kind in kinds)


def test_experts_are_no_layers():
    """They run for some batches only."""

    def mixture() -> nn.Module:
        return nn.ModuleDict({"experts": nn.ModuleList(nn.Linear(2, 2) for _ in range(3))})

    stack = nn.ModuleList([mixture(), mixture()])
    assert layers(nn.ModuleDict({"stack": stack, "head": nn.Linear(2, 2)})) == list(stack)


def test_checkpointed_activations_are_computed_again(batch):
    whole = build_model("ConformerEncoder", "llama", MLPDecoder, lora=False)
    again = deepcopy(whole)
    runs: list[nn.Module] = []
    for layer in layers(again.llm):
        layer.input_layernorm.register_forward_hook(lambda module, *_: runs.append(module))
    checkpoint_activations(again)
    for model in (whole, again):
        total(model, batch()).backward()
    assert len(runs) == 2 * 3
    for (name, expected), found in zip(whole.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(expected.grad, found.grad), name


def assert_same_curve(curves: list[list[tuple[float, float]]], alone: Tensor) -> None:
    losses, norms = torch.tensor(curves).unbind(2)
    if len(alone) == STEPS:
        losses[1, EMPTY] = alone[EMPTY, 1, 0]  # what was logged last before
    torch.testing.assert_close(losses.T, alone[..., 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(norms[0], alone[:, 1, 1], atol=1e-5, rtol=5e-3)


@pytest.mark.slow
@pytest.mark.parametrize("config", CONFIGS)
def test_the_same_curve(found, config):
    alone, _ = found.alone(config)
    assert (alone[..., 1] > 0.5).any() and alone[-5:, :, 0].mean() < alone[:5, :, 0].mean() - 0.1
    for strategy in STRATEGIES:
        assert_same_curve([one[strategy, config] for one in found.both], alone)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_same_speech_and_the_same_metrics(found, strategy):
    """Of seven prompts, so that the second process has none at last, and that end at different steps."""
    _, alone = found.alone("scratch")
    texts, frames = zip(*alone["said"].values(), strict=True)
    assert len(texts) == 7 and len(set(map(len, texts))) > 4 and len(set(frames)) > 4
    assert {"val/loss", "val/wer_text", "val/stop_rate"} <= alone["metrics"].keys()
    both = [one[strategy, "val"] for one in found.both]
    assert [len(one["said"]) for one in both] == [4, 3]
    assert both[0]["said"] | both[1]["said"] == alone["said"]
    for one in both:
        assert one["metrics"] == pytest.approx(alone["metrics"], rel=1e-5, abs=1e-5, nan_ok=True)
    reports = [json.loads((found.folder / name / "report.json").read_text()) for name in ("alone", strategy)]
    assert len(reports[0]["samples"]) == 7 and reports[0]["samples"] == reports[1]["samples"]


@pytest.mark.slow
def test_going_on_from_the_checkpoint_of_another_strategy(found):
    """DDP from shards; FSDP from a file, and from shards of another number of processes; one process from shards."""
    alone = found.alone("lora")[0][REST.start :]
    for strategy in STRATEGIES:
        assert_same_curve([one[strategy, "rest"] for one in found.both], alone)
    for curve in (
        found.both[0]["fsdp", "rest alone"],
        run("lora", "auto", 1, found.data, REST, found.folder / "fsdp.ckpt")[1].curve,
    ):
        curve = torch.tensor(curve).unflatten(0, (-1, 2))
        torch.testing.assert_close(curve[..., 0], alone[..., 0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(curve[:, 1, 1], alone[:, 1, 1], atol=1e-5, rtol=5e-3)


@pytest.mark.slow
def test_consolidated_is_what_one_process_would_have_written(found, tmp_path):
    """And a checkpoint that could not be written to its end has not cost the one before it."""
    consolidate(found.folder / "fsdp.ckpt", tmp_path / "x.ckpt")
    assert not list(found.folder.glob(".*"))
    one, other = (torch.load(path, weights_only=True) for path in (tmp_path / "x.ckpt", found.folder / "ddp.ckpt"))
    assert one.keys() == other.keys() and one["global_step"] == FIRST.stop
    for key in ("config", "rebuild_args", "loops"):
        assert one[key] == other[key], key
    assert_close = partial(torch.testing.assert_close, atol=1e-5, rtol=1e-4)
    assert_close(one["state_dict"], other["state_dict"])
    ours, theirs = one["optimizer_states"][0], other["optimizer_states"][0]
    assert ours["param_groups"] == theirs["param_groups"] and len(theirs["state"]) > 10
    assert_close(ours["state"], theirs["state"])
