"""The command `prepare`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lit_spectron.arguments import OneLineParser, usable_device
from lit_spectron.errors import UserError

TASKS = {"librilight": "a corpus to manifests", "export": "a manifest to lhotse's cuts or Shar"}
FILE_SUFFIXES = (".arrow", ".gz", ".json", ".tar", ".txt", ".zip")  # what nobody calls a folder
USAGE = "usage: python -m lit_spectron prepare {" + ",".join(TASKS) + "} [--help] ..."


def main(arguments: list[str]) -> None:
    """
    Raises:
        UserError: A mistake on the command line or in the corpus, in one line.
    """
    task, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if task in ("", "-h", "--help"):
        print(USAGE, *(f"  {name:14}{text}" for name, text in TASKS.items()), sep="\n")
    elif task == "librilight":
        prepare_librilight(rest)
    elif task == "export":
        export_manifest(rest)
    else:
        raise UserError(f"no such task: prepare {task}; there are {', '.join(TASKS)}")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows defaults where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        shown = action.default is not None and action.nargs != 0
        return super()._get_help_string(action) if shown else action.help


def _given(text: str) -> str:
    if not text:  # as an unset variable of a shell leaves it
        raise argparse.ArgumentTypeError("is empty")
    return text


def _folder(text: str) -> Path:
    return Path(_given(text))


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def _shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise argparse.ArgumentTypeError(f"{text}: not of the form i/n with i from 0 to n - 1")
    return int(index), int(count)


def librilight_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m lit_spectron prepare librilight",
        description="Turns a corpus into OUT/train.arrow, val.arrow and test.arrow, which point into its files (none "
        "is re-encoded), OUT/report.md and report.json, which account for every second of it, problems.txt, with a "
        "line for every bad file, dropped.tsv, with a line for every utterance that was dropped, and lengths.png. "
        "Killed, it goes on where it was when it is started again; files that have changed since are looked at anew.",
        formatter_class=_Formatter,
    )
    add = parser.add_argument
    add("--root", type=_folder, required=True, help="folder of the corpus, to which manifests' paths are relative")
    add("--out", type=_folder, required=True, help="folder to write into")
    add(
        "--layout",
        choices=("librilight", "cuts", "librispeech", "audio"),
        default="librilight",
        help="librilight: FILE.json with voice_activity beside FILE.flac; cuts: Libriheavy's; librispeech: "
        "SPEAKER/CHAPTER with .trans.txt; audio: any files, the first folder is the speaker, a .txt beside it the text",
    )
    add("--jobs", type=_at_least_one, default=1, help="processes")
    add("--shard", type=_shard, default="0/1", metavar="I/N", help="do the I-th of N shares; the last to end merges")
    lengths = parser.add_argument_group("utterances")
    add = lengths.add_argument
    add("--min_seconds", type=float, default=4.0, help="shorter ones are dropped")
    add("--max_seconds", type=float, default=20.0, help="longest; voice activity is cut, transcribed audio dropped")
    add("--max_gap_seconds", type=float, default=1.0, help="longest silence inside one, by the voice activity")
    add("--sample_rate_hz", type=int, default=16000, help="that files must have")
    add("--verify", action="store_true", help="decode every utterance, not the end of each file only")
    add("--val_share", type=float, default=0.01, help="of the speakers")
    add("--test_share", type=float, default=0.01, help="of the speakers")
    cuts = parser.add_argument_group("layout cuts")
    cuts.add_argument("--cuts", nargs="+", metavar="FILE", help="manifests, relative to the root")
    cuts.add_argument("--audio_prefix", default="download/librilight", help="audio root that they were written with")
    cuts.add_argument("--text_index", type=int, default=0, help="of Libriheavy's texts: 0 cased, 1 upper-case")
    labels = parser.add_argument_group("transcripts")
    add = labels.add_argument
    add("--recognizer", type=_given, help="Whisper model (hub id or folder) that transcribes what has no text")
    add("--language", help="what a multilingual recogniser is told, such as en")
    add("--word_times", action="store_true", help="keep the recogniser's word times, too")
    add("--batch_size", type=_at_least_one, default=16, help="utterances that it hears together")
    add("--device", default="cpu", help="of the recogniser: cpu, cuda, cuda:1, ..., or auto")
    add(
        "--max_disagreement",
        type=float,
        help="drop texts that the recogniser hears with more word errors than this share",
    )
    add("--min_characters_per_second", type=float, default=3.0, help="drop texts that are too short for their audio")
    add("--max_characters_per_second", type=float, default=30.0, help="drop texts that are too long for it")
    return parser


def _refuse_without_effect(options: dict[str, Any], defaults: Callable[[str], Any]) -> None:
    cuts, heard = options["layout"] == "cuts", bool(options["recognizer"])
    listened = heard or options["layout"] != "librilight"
    for names, effective, condition in (
        (("cuts", "audio_prefix", "text_index"), cuts, "--layout cuts"),
        (("max_gap_seconds",), options["layout"] == "librilight", "--layout librilight"),
        (("language", "word_times", "max_disagreement", "batch_size", "device"), heard, "--recognizer"),
        (("min_characters_per_second", "max_characters_per_second"), listened, "--recognizer"),
    ):
        for name in names:
            if not effective and options[name] != defaults(name):
                raise UserError(f"--{name}: has no effect without {condition}")


def prepare_librilight(arguments: list[str]) -> None:
    """`prepare librilight`."""
    parser = librilight_parser()
    options = vars(parser.parse_args(arguments))
    _refuse_without_effect(options, parser.get_default)
    from datamodules.preparation import Settings, prepare

    own = {name: options.pop(name) for name in ("out", "jobs", "device", "batch_size")}
    shard = options.pop("shard")
    options["root"] = str(options["root"].resolve())
    if options["layout"] == "cuts" and not options["cuts"]:
        raise UserError("--cuts: --layout cuts needs manifests")
    if options["recognizer"]:
        own["device"] = usable_device(own["device"])
    settings = Settings(**{**options, "cuts": tuple(options["cuts"] or ())})
    if prepare(settings, shard=shard, **own):
        print((own["out"] / "report.md").read_text(encoding="utf-8"), end="")


def export_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m lit_spectron prepare export",
        description="Writes a manifest's utterances as lhotse's cuts, or packs them, with their audio, into its Shar, "
        "and writes OUT.arrow beside it, which fit reads with data.root the folder of both.",
    )
    add = parser.add_argument
    add("--manifest", type=Path, required=True, help="an .arrow file that prepare librilight wrote")
    add("--root", type=_folder, required=True, help="folder that its paths are relative to")
    add("--out", type=_folder, required=True, help="NAME.jsonl.gz or .jsonl for cuts, a folder for Shar")
    add("--shard_size", type=_at_least_one, default=1000, help="utterances in a shard of Shar (default: %(default)s)")
    return parser


def export_manifest(arguments: list[str]) -> None:
    """`prepare export`."""
    options = export_parser().parse_args(arguments)
    from datamodules.cuts import write_cuts
    from datamodules.manifest import PACKED_SCHEMA, Manifest
    from datamodules.shar import write_shar

    cuts = options.out.name.endswith((".jsonl.gz", ".jsonl"))
    if options.out.suffix in FILE_SUFFIXES and not cuts:
        raise UserError(f"--out: {options.out}: neither NAME.jsonl.gz, NAME.jsonl nor the name of a folder")
    if not options.root.is_dir():
        raise UserError(f"--root: no such folder: {options.root}")
    manifest = Manifest.open(options.manifest, options.root)
    if manifest.table.schema == PACKED_SCHEMA:
        raise UserError(f"--manifest: {options.manifest}: is packed already; export the one that it was made from")
    if cuts:
        write_cuts(options.out, manifest)
        print(f"{options.out}: {len(manifest)} cuts")
    else:
        print(f"{write_shar(options.out, manifest, options.shard_size)}: {len(manifest)} utterances")
