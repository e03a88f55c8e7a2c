"""The command line: `python -m lit_spectron COMMAND`; see `--help` of each."""

import errno
import os
import sys
from pathlib import Path

from lit_spectron import __version__
from lit_spectron.arguments import OneLineParser
from lit_spectron.errors import UserError

COMMANDS = {
    "fit": "train, and validate along the way",
    "validate": "validate a checkpoint",
    "test": "test a checkpoint and write report.json and report.md",
    "predict": "continue every prompt of a corpus, four files each",
    "prepare": "a corpus to manifests",
    "generate": "continue spoken prompts given as files or folders",
    "consolidate": "a checkpoint that many devices wrote to one file",
    "compare": "reports of runs side by side, with intervals",
    "pairs": "which of two recordings a model finds likelier, over a table of pairs",
    "resynthesize": "speech to log-mel and back: what a vocoder makes of real speech",
}
LIMITS_OF_THE_MACHINE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
USAGE = "usage: python -m lit_spectron {" + ",".join(COMMANDS) + "} [--help] ..."


def main(arguments: list[str] | None = None) -> None:
    """Runs one command. Mistakes of the user end with one line on stderr and exit code 2, Ctrl-C with one and 130."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command, rest = (arguments[0], arguments[1:]) if arguments else ("", [])
    if command in ("", "-h", "--help"):
        print(USAGE, *(f"  {name:14}{text}" for name, text in COMMANDS.items()), sep="\n")
        return
    try:
        if command == "--version":
            print(__version__)
        elif command == "generate":
            generate(rest)
        elif command == "consolidate":
            consolidate(rest)
        elif command == "resynthesize":
            resynthesize(rest)
        elif command == "compare":
            compare(rest)
        elif command == "pairs":
            pairs(rest)
        elif command == "prepare":
            from datamodules.prepare_cli import main as prepare

            prepare(rest)
        elif command in COMMANDS:
            # Lightning takes seconds to import; other commands and mistakes should not wait for it.
            from lit_spectron.lightning_cli import run

            run([command, *rest])
        else:
            raise UserError(f"no such command: {command}; there are {', '.join(COMMANDS)}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in LIMITS_OF_THE_MACHINE:
            raise
        place = f"{error.filename}: " if error.filename else ""
        print(f"error: {place}{os.strerror(error.errno).lower()}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


def generate_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m lit_spectron generate",
        description="Continues spoken prompts. For each prompt, OUT gets NAME.wav (the continuation), NAME.txt (the "
        "text), NAME.json (text, seconds, stop reasons, settings) and NAME.png (the spectrogram).",
    )
    parser.add_argument("prompts", nargs="+", type=Path, metavar="PROMPT", help="audio files, or folders of them")
    parser.add_argument(
        "--ckpt", type=Path, required=True, help="checkpoint of a run; nothing else of the run is needed"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    parser.add_argument(
        "--prompt_seconds",
        type=float,
        help="use so much of each file's beginning (default: the length the model was trained with)",
    )
    parser.add_argument("--batch_size", type=int, default=8, help="prompts decoded together (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument(
        "--weights",
        choices=("float32", "int8"),
        default="float32",
        help="how the LLM's are held: int8, on a CPU, decodes faster and rounds; docs/SPEED.md says by how much "
        "(default: %(default)s)",
    )
    settings = parser.add_argument_group("decoding", "where not given, as the checkpoint's run was configured")
    settings.add_argument("--max_speech_seconds", type=float, help="longest continuation")
    settings.add_argument("--max_text_tokens", type=int, help="longest text")
    settings.add_argument("--temperature", type=float, help="of text sampling; 0 decodes greedily")
    settings.add_argument("--top_k", type=int, help="sample among the k likeliest tokens; 0 for all")
    settings.add_argument("--top_p", type=float, help="sample among the likeliest tokens of this share")
    settings.add_argument("--stop_threshold", type=float, help="stop probability at which a continuation ends")
    settings.add_argument("--seed", type=int, help="of text sampling and pre-net dropout")
    return parser


def generate(arguments: list[str]) -> None:
    """The command `generate`."""
    options = vars(generate_parser().parse_args(arguments))
    from lit_spectron.pipeline import SpectronPipeline

    names = ("max_speech_seconds", "max_text_tokens", "temperature", "top_k", "top_p", "stop_threshold", "seed")
    overrides = {name: options[name] for name in names if options[name] is not None}
    pipeline = SpectronPipeline.from_checkpoint(options["ckpt"], options["device"], overrides, options["weights"])
    pipeline.generate_files(options["prompts"], options["out"], options["prompt_seconds"], options["batch_size"])


def consolidate_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m lit_spectron consolidate",
        description="Turns the folder that training over many devices (conf/trainer/fsdp.yaml) leaves as a checkpoint "
        "into one file, with everything that a checkpoint of one device holds. Needs memory for all of it: 12 bytes a "
        "trained parameter, 4 a frozen one.",
    )
    parser.add_argument("--ckpt", type=Path, required=True, help="folder: RUN/checkpoints/last.ckpt")
    parser.add_argument("--out", type=Path, required=True, help="file to write; appears whole or not at all")
    return parser


def consolidate(arguments: list[str]) -> None:
    """The command `consolidate`."""
    options = consolidate_parser().parse_args(arguments)
    from lit_spectron.checkpoint import consolidate

    consolidate(options.ckpt, options.out)
    print(options.out)


def compare_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m lit_spectron compare",
        description="Prints a table with a row for each run and its metrics side by side, with 95 % bootstrap "
        "intervals over utterances, and one of the differences from the first run on the utterances that both were "
        "judged on. The references of the first run that has any (ceiling, resynthesis, floor) are rows, too.",
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="run folders after test, or their report.json"
    )
    parser.add_argument(
        "--out", type=Path, help="also write the tables to this Markdown file, and a plot (.png) beside it"
    )
    return parser


def compare(arguments: list[str]) -> None:
    """The command `compare`."""
    options = compare_parser().parse_args(arguments)
    from lit_spectron.compare import compare as compare_runs

    compare_runs(options.runs, options.out)


def pairs_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m lit_spectron pairs",
        description="Scores pairs of recordings, as those of sWUGGY, sBLIMP or StoryCloze, and prints the share whose "
        "better one scores higher. The table is separated by tabs and has the columns better and worse: audio files, "
        "relative to the table. What is said in them stands in better_text and worse_text; where it does not, in what "
        "the model itself writes.",
    )
    parser.add_argument("table", type=Path, metavar="PAIRS.tsv", help="table of pairs")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a run")
    parser.add_argument(
        "--by",
        choices=("text", "text_per_token", "spectrogram"),
        default="text",
        help="log-probability of the text given the prompt, the same over its tokens, or minus the spectrogram loss of "
        "what follows the prompt, which is no probability (default: %(default)s)",
    )
    parser.add_argument(
        "--prompt_seconds", type=float, help="where to split recordings (default: all of each is the prompt)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="also write every score to this table")
    return parser


def pairs(arguments: list[str]) -> None:
    """The command `pairs`."""
    options = pairs_parser().parse_args(arguments)
    from lit_spectron.pairs import judge_pairs
    from lit_spectron.pipeline import SpectronPipeline

    pipeline = SpectronPipeline.from_checkpoint(options.ckpt, options.device)
    judge_pairs(pipeline, options.table, options.by, options.prompt_seconds, options.out)


def resynthesize_parser() -> OneLineParser:
    parser = OneLineParser(
        prog="python -m lit_spectron resynthesize",
        description="Turns speech into log-mel and back by a vocoder. For each file, OUT gets NAME.wav, and one line "
        "is printed: the mean absolute difference, in nats, between the log-mel of the original and of the result.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="audio files, or folders of them")
    parser.add_argument("--vocoder", type=Path, required=True, help="YAML of a vocoder: conf/vocoder/X.yaml")
    parser.add_argument(
        "--audio", type=Path, help="YAML of an audio geometry: conf/audio/X.yaml (default: the paper's)"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write into")
    return parser


def resynthesize(arguments: list[str]) -> None:
    """The command `resynthesize`."""
    options = resynthesize_parser().parse_args(arguments)
    from lit_spectron.resynthesis import load_vocoder, resynthesize_files

    resynthesize_files(load_vocoder(options.vocoder, options.audio), options.files, options.out)
