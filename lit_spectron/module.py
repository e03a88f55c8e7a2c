"""The LightningModule: step, log, optimisers."""

import os
import zlib
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from itertools import islice
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.nn.utils import get_total_norm

from lit_spectron.audio import AudioSpec
from lit_spectron.errors import UserError
from lit_spectron.generation import GenerationSettings, flags_of_one, generate
from lit_spectron.llms import LanguageModel
from lit_spectron.losses import LossWeights
from lit_spectron.model import DecoderFactory, EncoderFactory, SpectronModel, split_waveform
from lit_spectron.optim import OptimizerSettings, build_optimizer, freeze
from lit_spectron.parallel import anywhere, checkpoint_activations, shard, stand_in
from lit_spectron.projection import ProjectionSettings
from lit_spectron.strategy import FullyShardedStrategy
from lit_spectron.types import Generation, SpeechBatch
from lit_spectron.vocoders import Vocoder


class LitSpectron(L.LightningModule):
    """Trains a `SpectronModel` and validates it, teacher-forced and free-running.

    Args:
        audio: The one audio geometry, handed to every part.
        encoder: Slot: speech encoder.
        llm: Slot: language model.
        decoder: Slot: spectrogram decoder.
        vocoder: Slot: log-mel to waveform, for samples and `generate`.
        optimizer: Optimiser and schedule.
        prefix_attention: Whether prompt positions see the whole prompt, or only what precedes them.
        projection: From the encoder's features to the LM's prefix.
        loss_weights: Weights of the objective's terms.
        generation: How to decode, in validation and afterwards.
        generated_utterances: Utterances of each validation round, of all processes together, that are decoded
            free-running; -1 for all. Tests decode all.
        statistics_batches: Training batches from which the mel statistics are taken.
        activation_checkpointing: Whether the layers of encoder and LM are computed again in the backward pass instead
            of keeping what they computed: a third more work, much less memory.
    """

    def __init__(
        self,
        audio: AudioSpec,
        encoder: EncoderFactory,
        llm: LanguageModel,
        decoder: DecoderFactory,
        vocoder: Callable[[AudioSpec], Vocoder],
        optimizer: OptimizerSettings,
        prefix_attention: Literal["bidirectional", "causal"] = "bidirectional",
        projection: ProjectionSettings = ProjectionSettings(),
        loss_weights: LossWeights = LossWeights(),
        generation: GenerationSettings = GenerationSettings(),
        generated_utterances: int = 32,
        statistics_batches: int = 16,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        if not any(astuple(loss_weights)):
            raise UserError("model.loss_weights: all are 0: there is nothing to train")
        self.model = SpectronModel(audio, encoder, llm, decoder, prefix_attention, projection)
        freeze(self.model, optimizer.freeze)
        if activation_checkpointing:
            checkpoint_activations(self.model)
        self.vocoder = vocoder(audio)
        self.optimizer_settings = optimizer
        self.loss_weights = loss_weights
        self.generation = generation
        self.generated_utterances = generated_utterances
        self.statistics_batches = statistics_batches
        self.config: dict[str, Any] = {}
        self._generated = 0
        self._anywhere: Callable[..., list[bool]] = flags_of_one

    def configure_model(self) -> None:
        """Spreads the model over the devices where the strategy says so."""
        if self._device_mesh is None or isinstance(self.model.llm, FSDPModule):
            return
        if not isinstance(self.trainer.strategy, FullyShardedStrategy):
            name = f"{FullyShardedStrategy.__module__}.{FullyShardedStrategy.__name__}"
            raise UserError(f"trainer.strategy: to share parameters, use {name} (conf/trainer/fsdp.yaml)")
        mesh, device = self._device_mesh["data_parallel"], self.trainer.strategy.root_device
        shard(self.model, mesh, device, torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None)
        self._anywhere = anywhere(mesh, device)

    def configure_optimizers(self):
        optimizer, schedule = build_optimizer(self.model, self.optimizer_settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_fit_start(self) -> None:
        if not self.model.has_mel_statistics:
            loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
            all_processes = partial(self.trainer.strategy.reduce, reduce_op="sum")
            self.model.take_mel_statistics(islice(loader, self.statistics_batches), all_processes)

    def _losses(self, batch: SpeechBatch, stage: str) -> Tensor:
        """The total loss; logs it and every term. An empty batch has a loss of 0: other processes wait for this one."""
        # Lightning averages these weights over the processes, as integers: multiples of their number come out whole.
        weight = len(batch) * self.trainer.world_size
        if not weight:
            batch = stand_in(self.model, batch.split, self.device)
        losses = self.model(batch).losses
        total = self.loss_weights.total(losses)
        named = {f"{stage}/loss_{name}": value for name, value in losses.items()}
        # There whatever the decoder calls its terms: configs choose the best checkpoint by it.
        terms = [value for name, value in losses.items() if name not in ("text", "stop")]
        named.setdefault(f"{stage}/loss_spectrogram", torch.stack(terms).sum())
        if weight or stage != "train":
            self.log_dict(named, batch_size=weight, sync_dist=stage != "train")
            self.log(f"{stage}/loss", total, batch_size=weight, sync_dist=stage != "train", prog_bar=True)
        return total if weight else 0 * total

    def _nothing_to_do(self, batch: SpeechBatch) -> bool:
        """Whether a batch has lost every utterance: counted and reported by the data module."""
        return not len(batch) and self.trainer.world_size == 1

    def on_train_batch_start(self, batch: SpeechBatch, batch_index: int) -> None:
        """What dropout draws depends on the seed and the batch's place in training: a resumed run draws the same."""
        place = (os.environ.get("PL_GLOBAL_SEED", 0), self.trainer.fit_loop.total_batch_idx, self.global_rank)
        torch.manual_seed(zlib.crc32(repr(place).encode()))

    def training_step(self, batch: SpeechBatch, batch_index: int) -> Tensor | None:
        if not len(batch):
            return None if self._nothing_to_do(batch) else self._losses(batch, "train")
        # What is logged belongs to this step; Lightning's own count may be one ahead in a resumed run.
        self.log("step", float(self.global_step), batch_size=len(batch))
        self.log("train/padding_share", 1 - batch.lengths.sum() / batch.waveform.numel(), batch_size=len(batch))
        return self._losses(batch, "train")

    def on_before_optimizer_step(self, optimizer) -> None:
        if (self.global_step + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
            norm = get_total_norm(gradients)
            self.log("train/gradient_norm", norm.full_tensor() if isinstance(norm, DTensor) else norm)

    def on_validation_epoch_start(self) -> None:
        self._generated = 0

    def _evaluation_step(self, batch: SpeechBatch, stage: str) -> Generation | None:
        """Losses, where there is a true continuation, and free-running decoding; in validation of some utterances."""
        if self._nothing_to_do(batch):
            return None
        # By the data module, so that every process knows, also one whose batch is empty.
        if getattr(self.trainer.datamodule, "has_continuations", True):  # type: ignore[attr-defined]
            self._losses(batch, stage)
        if stage == "val" and 0 <= self.generated_utterances <= self._generated:
            return None
        self._generated += int(self.trainer.strategy.reduce(torch.tensor(len(batch)).to(self.device), reduce_op="sum"))
        return self._generate_together(batch)

    def validation_step(self, batch: SpeechBatch, batch_index: int) -> Any:
        return self._evaluation_step(batch, "val")

    def test_step(self, batch: SpeechBatch, batch_index: int) -> Any:
        return self._evaluation_step(batch, "test")

    def predict_step(self, batch: SpeechBatch, batch_index: int) -> Generation | None:
        return None if self._nothing_to_do(batch) else self._generate_together(batch)

    def _generate_together(self, batch: SpeechBatch) -> Generation | None:
        """Continues the prompts of a batch; of an empty one, takes part in what the other processes do."""
        if len(batch):
            return self.generate(batch)
        shortest = replace(self.generation, max_text_tokens=1, max_speech_seconds=1e-9)
        self.generate(stand_in(self.model, batch.split, self.device), shortest)
        return None

    def generate(self, batch: SpeechBatch, settings: GenerationSettings | None = None) -> Generation:
        """Continues each utterance's prompt. Where processes share the parameters, all of them have to."""
        prompt, _ = split_waveform(batch.waveform, batch.lengths, batch.prompt_samples)
        settings = settings or self.generation
        return generate(self.model, prompt, batch.prompt_samples, settings, batch.ids, self._anywhere)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A vocoder is not trained: another one than the run's comes with its own weights."""
        if checkpoint["config"]["vocoder"] != self.config["vocoder"]:
            others = {k: v for k, v in checkpoint["state_dict"].items() if not k.startswith("vocoder.")}
            own = {f"vocoder.{k}": v for k, v in self.vocoder.state_dict().items()}
            checkpoint["state_dict"] = {**others, **own}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The config and what replaces outside files in it go in, so that a checkpoint alone is enough to decode."""
        if self.config:
            checkpoint["config"] = self.config
            parts = {slot: getattr(self.model, slot) for slot in ("encoder", "llm", "decoder")}
            parts["vocoder"] = self.vocoder
            checkpoint["rebuild_args"] = {slot: part.rebuild_args() for slot, part in parts.items()}
