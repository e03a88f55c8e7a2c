"""`fit`, `validate`, `test` and `predict` through LightningCLI."""

import logging
import sys
import warnings
from copy import deepcopy
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from jsonargparse import ArgumentError, Namespace, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf.errors import OmegaConfBaseException

from callbacks import PredictionWriter, Report
from lit_spectron.checkpoint import read_checkpoint, refuse_other_groups, refuse_other_shapes, tell_kept_settings
from lit_spectron.checkpoint_io import AtomicCheckpointIO
from lit_spectron.errors import UserError
from lit_spectron.files import put_back
from lit_spectron.memory import keep_freed_memory
from lit_spectron.module import LitSpectron
from lit_spectron.optim import parameter_groups
from lit_spectron.strategy import FullyShardedStrategy

# About what is meant to be so: two loggers share a folder, and results go where the run is.
HARMLESS_WARNINGS = (
    "Experiment logs directory",
    "The dirpath has changed",
    ".*LeafSpec",
    "FSDP2-wrapped module .* returned a view",  # nothing here changes one in place
)


LIGHTNINGS_CHECKPOINTS = ("best", "last")  # found by Lightning, in the run that goes on


class SaveFitConfig(SaveConfigCallback):
    """Keeps `config.yaml` as `fit` wrote it: evaluating a run does not touch it. Without a logger there is no run."""

    def setup(self, trainer, pl_module, stage: str) -> None:
        if stage == "fit" and trainer.loggers:
            folder = trainer.log_dir  # of the first process, as is the question: it may have written by then
            refuse_taken(folder, trainer.strategy.broadcast(is_taken(folder)))
            super().setup(trainer, pl_module, stage)


def is_taken(folder: str | None) -> bool:
    return Path(folder or "", "config.yaml").exists()


def refuse_taken(folder: str | None, taken: bool) -> None:
    """
    Raises:
        UserError: The folder is another run's.
    """
    if taken:
        raise UserError(f"{folder}: holds another run, perhaps one that began in this moment; start this one again")


class SpectronCLI(LightningCLI):
    """LightningCLI with one run folder for everything and the model's config inside its checkpoints."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # jsonargparse would take null for data, too, and so word every mistake in them as that of a union.
        data: Any = next(action for action in parser._actions if action.dest == "data")
        data._typehint = L.LightningDataModule
        parser.set_defaults({"data": {"class_path": "datamodules.LibriLightDataModule"}})
        parser.add_lightning_class_args(Report, "report")
        parser.add_lightning_class_args(PredictionWriter, "prediction")

    def _parse_ckpt_path(self) -> None:
        """Lightning would look for hyperparameters here; ours are read by `_build_from_checkpoint`."""

    def instantiate_classes(self) -> None:
        self.given_config = deepcopy(self.config)
        self._build_from_checkpoint(self.config[self.subcommand])
        super().instantiate_classes()
        dump = self._parser(self.subcommand).dump(
            self.config[self.subcommand], skip_link_targets=False, skip_none=False, format="yaml"
        )
        config = yaml.safe_load(dump)
        self.model.config = {**config["model"], "prompt_seconds": config["data"]["init_args"].get("prompt_seconds")}

    def _build_from_checkpoint(self, config: Any) -> None:
        """Parts that are in the checkpoint need neither network nor the files they were first made from."""
        if not config.ckpt_path or config.ckpt_path in LIGHTNINGS_CHECKPOINTS:
            return
        if self.subcommand == "fit":  # the run that wrote it is over
            put_back(Path(config.ckpt_path))
        checkpoint = read_checkpoint(config.ckpt_path, "shapes")
        asked = yaml.safe_load(self._parser(self.subcommand).dump(config, skip_none=False, format="yaml"))["model"]
        for slot, arguments in checkpoint["rebuild_args"].items():
            saved, part = checkpoint["config"][slot], config.model[slot]
            # The trained parts' weights are the checkpoint's in any case; a vocoder may be another one.
            same = asked[slot] == saved if slot == "vocoder" else part["class_path"] == saved["class_path"]
            if same and arguments:
                part["init_args"] = part.get("init_args") or Namespace()
                part.init_args.update(Namespace(arguments))

    def instantiate_trainer(self, **kwargs: Any):
        # The parts are built: what is written down from here on is what was asked for.
        self.config = self.given_config
        ckpt_path = self._get(self.config_init, "ckpt_path")
        precision = str(self._get(self.config_init, "trainer").get("precision"))
        if precision.endswith("-true") and not precision.startswith(("32", "64")):
            raise UserError(f"--trainer.precision: {precision} would round the spectrograms too; use bf16-mixed")
        strategy = self._get(self.config_init, "trainer").get("strategy")
        if str(strategy).startswith(("fsdp", "deepspeed")):
            raise UserError(
                f"--trainer.strategy: not {strategy}; parameters are shared by --config conf/trainer/fsdp.yaml"
            )
        if isinstance(strategy, FullyShardedStrategy) and precision not in ("bf16-mixed", "32-true", "32", "None"):
            raise UserError(f"--trainer.precision: shared parameters can't be had in {precision}; use bf16-mixed")
        if self.subcommand != "fit" and not ckpt_path:
            raise UserError(f"--ckpt_path: {self.subcommand} needs a checkpoint")
        if ckpt_path and ckpt_path not in LIGHTNINGS_CHECKPOINTS:
            checkpoint = read_checkpoint(ckpt_path, "shapes")
            refuse_other_shapes(ckpt_path, checkpoint, self.model.state_dict())
            if self.subcommand == "fit":
                groups = parameter_groups(self.model.model, self.model.optimizer_settings)
                refuse_other_groups(ckpt_path, checkpoint, groups)
                tell_kept_settings(ckpt_path, checkpoint, groups)
        # Mistakes in the data, too, come to light before there is a trainer to talk or a logger to make a folder.
        self.datamodule.setup(self.subcommand)
        plugins = self._get(self.config_init, "trainer").get("plugins") or []
        plugins = plugins if isinstance(plugins, list) else [plugins]
        try:
            trainer = super().instantiate_trainer(plugins=[*plugins, AtomicCheckpointIO()], **kwargs)
        except MisconfigurationException as error:  # such as an accelerator that is not there
            raise UserError(f"--trainer: {' '.join(str(error).split())}") from error
        if self.subcommand == "fit":
            if trainer.strategy.root_device.type == "cpu":
                keep_freed_memory()
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    refuse_taken(logger.log_dir, is_taken(logger.log_dir))
            # metrics.csv beside the events, in the version folder that TensorBoard's logger has chosen. What is logged
            # is written at once: a run that is killed loses no point of its curves.
            trainer.loggers = [
                both
                for logger in trainer.loggers
                for both in (
                    [logger, CSVLogger(logger.save_dir, logger.name, logger.version, flush_logs_every_n_steps=1)]
                    if isinstance(logger, TensorBoardLogger)
                    else [logger]
                )
            ]
        elif ckpt_path and Path(ckpt_path).parent.name == "checkpoints":
            # What is found out about a run belongs into its folder.
            folder = Path(ckpt_path).absolute().parent.parent
            trainer.loggers = [TensorBoardLogger(str(folder.parent), "", folder.name, default_hp_metric=False)]
        return trainer


def run(arguments: list[str]) -> None:
    """Runs one of Lightning's commands.

    Raises:
        UserError: A mistake in the config or on the command line, named in one line.
    """
    sys.argv[1:] = arguments
    # With this, interpolations are resolved once, after every file and override; without, each file on its own.
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    # The seed stands in config.yaml; a mistake's one line should stand alone.
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message)
    try:
        SpectronCLI(
            LitSpectron,
            L.LightningDataModule,
            subclass_mode_data=True,
            save_config_callback=SaveFitConfig,
            # The data module's own sampler gives each process its share.
            trainer_defaults={"use_distributed_sampler": False},
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False, "allow_abbrev": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except ArgumentError as error:
        hint = "" if {"-c", "--config"} & {a.partition("=")[0] for a in arguments} else "; no --config is given"
        raise UserError(" ".join(str(error).split()) + hint) from error
    except OmegaConfBaseException as error:
        raise UserError(f"config: {' '.join(str(error).split())}") from error
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):  # Lightning ends with 1
            raise KeyboardInterrupt from end
        raise
