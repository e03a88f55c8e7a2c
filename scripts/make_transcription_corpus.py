#!/usr/bin/env python3
"""Makes a corpus that teaches a pre-trained LLM to hear, for conf/smollm2_whisper.yaml.

    python scripts/make_transcription_corpus.py real --root data/librilight --cuts CUTS --recognizer whisper --out DIR
    python scripts/make_transcription_corpus.py synthetic --llm HuggingFaceTB/SmolLM2-135M-Instruct --out DIR
    python scripts/make_transcription_corpus.py questions --llm HuggingFaceTB/SmolLM2-135M-Instruct --out DIR
    python scripts/make_transcription_corpus.py join --out DIR

`real` cuts recorded utterances into short segments at word boundaries, by the word times of a Whisper model. Speakers
are split into train, validation and test. `synthetic` lets the LLM write, and flite and eSpeak NG (Debian packages) say
it in short lines, in many pitches, paces and vocal tract lengths. `questions` lets it ask, and answer as it would in
writing, right or wrong: the question is the prompt, the answer its continuation. `join` writes the manifest for
training. All is in Libri-Light's layout with Libriheavy-style cuts.
"""

import argparse
import gzip
import json
import math
import multiprocessing
import random
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch

from datamodules.cuts import read_cuts
from datamodules.manifest import Manifest, Utterance, Word, split_by_speaker
from lit_spectron.audio_files import read_audio
from lit_spectron.evaluators import WhisperRecognizer
from lit_spectron.files import appearing_whole

RATE_HZ = 16000
TRAINING_SEGMENTS_APART_SECONDS = 0.5  # real speech is scarce: every stretch of it is heard with many beginnings
WORDS_PER_SECOND = (2.9, 3.4)  # of lines that fit the shortest and the longest utterance
TRIES = 4  # voices and paces that a line is spoken in until its length suits
TOPICS = """
a journey, the sea, a letter, an old house, a quarrel, the weather, a garden, a horse, the war, a secret, a wedding,
the city at night, a school, music, a dog, money, a dream, the doctor, a ship, the forest, winter, a stranger,
the king, a mother and her son, a book, the river, a train, breakfast, a friend, the farm, a painter, the law,
a mountain, science, a child, the church, a market, an island, the moon, a thief
""".replace("\n", " ").split(", ")
SUBJECTS = """
geography, capitals, rivers and mountains, countries of Europe, Asia, Africa, the Americas, islands, oceans, languages,
currencies, kings and queens, ancient Rome, ancient Greece, Egypt, the world wars, presidents, explorers, inventions,
medicine, chemistry, physics, the planets, animals, birds, plants, the human body, food and drink, painters, composers,
novels, poets, Shakespeare, mythology, religion, sports, games, films, architecture, mathematics, computers
""".replace("\n", " ").split(", ")
ASKED = (4, 11)  # words of a question
ANSWERED = (1, 14)  # words of an answer
ANSWER_TOKENS = 24  # within which its first sentence ends
ANSWER_SECONDS = (0.4, 4.0)
FLITE_VOICES = {"slt": 180, "rms": 105, "awb": 130, "kal16": 105}  # with their usual pitch in Hz
ESPEAK_VOICES = ("en-us", "en-gb", "en-us+m3", "en-us+f2", "en-gb+m7", "en-us+f5")


def cut(utterance: Utterance, text: str, words: list[Word] | None) -> dict:
    """A Libriheavy-style cut; the utterance's path is relative to the corpus folder."""
    supervision = {"speaker": utterance.speaker, "custom": {"texts": [text, text]}}
    if words is not None:
        supervision["alignment"] = {"word": [[w.text, w.start_seconds, w.duration_seconds, None] for w in words]}
    return {
        "id": utterance.id,
        "start": round(utterance.start_seconds, 4),
        "duration": round(utterance.duration_seconds, 4),
        "supervisions": [supervision],
        "recording": {"sources": [{"source": f"download/librilight/{utterance.path.as_posix()}"}]},
    }


def write_cuts(path: Path, cuts: list[dict]) -> None:
    with gzip.open(path, "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in cuts)
    print(f"{path}: {len(cuts)} cuts, {sum(c['duration'] for c in cuts) / 3600:.2f} h")


def plain(text: str) -> str:
    """Lower-case words."""
    return " ".join(re.sub(r"[^a-z0-9' ]", " ", text.lower()).split())


Seconds = tuple[float, float]  # the shortest and the longest utterance


def segments(
    words: list[Word], end_seconds: float, lengths: Seconds, apart_seconds: float
) -> Iterator[tuple[float, float, list[Word]]]:
    """Stretches of a suitable length that begin before a word and end after one."""
    start = 0.0
    while start + lengths[0] <= end_seconds:
        inside = [w for w in words if w.start_seconds >= start]
        ends = [w.start_seconds + w.duration_seconds for w in inside]
        ends = [e for e in ends if lengths[0] <= e - start <= lengths[1]]
        if ends:
            end = min(ends[0] + 0.05, end_seconds)
            taken = [w for w in inside if w.start_seconds + w.duration_seconds <= end]
            # Digits can't be written as they were said.
            if not any(re.search(r"\d", w.text) for w in taken):
                yield start, end, [replace(w, start_seconds=w.start_seconds - start) for w in taken]
        later = [w.start_seconds for w in words if w.start_seconds >= start + apart_seconds]
        if not later:
            return
        start = max(later[0] - 0.03, start + 0.1)


def suitable_seconds(arguments: argparse.Namespace) -> Seconds:
    shortest, longest = arguments.continuation_seconds
    return arguments.prompt_seconds + shortest, arguments.prompt_seconds + longest


def make_real(arguments: argparse.Namespace) -> None:
    recognizer = WhisperRecognizer(arguments.recognizer, word_times=True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    link = arguments.out / "real"
    if not link.exists():
        link.symlink_to(arguments.root.resolve())
    utterances = read_cuts(arguments.root / arguments.cuts, arguments.root, "download/librilight", 0)
    (parts,) = split_by_speaker([Manifest.from_utterances(utterances)], 0.1, 0.1)
    for name, part in zip(("train", "validation", "test"), parts, strict=True):
        cuts, skipped = [], 0
        for utterance in part:
            if utterance.duration_seconds > 29.9:
                skipped += 1
                continue
            samples = read_audio(utterance.path, RATE_HZ, utterance.start_seconds, utterance.duration_seconds)
            (heard,) = recognizer.recognize([samples], RATE_HZ, "cpu")
            words = [Word(text, a, b - a) for word, a, b in heard.words or () if (text := plain(word))]
            source = Path("real") / utterance.path.relative_to(arguments.root)
            apart = TRAINING_SEGMENTS_APART_SECONDS if name == "train" else arguments.prompt_seconds / 2
            found = segments(words, utterance.duration_seconds, suitable_seconds(arguments), apart)
            for index, (start, end, inside) in enumerate(found):
                segment = Utterance(
                    f"{utterance.id}_{index}",
                    source,
                    utterance.start_seconds + start,
                    end - start,
                    utterance.speaker,
                    "",
                )
                cuts.append(cut(segment, " ".join(w.text for w in inside), inside))
        print(f"{name}: {len(part)} utterances, {skipped} longer than a Whisper window and left out")
        write_cuts(arguments.out / f"real_{name}.jsonl.gz", cuts)


class Writer:
    """A chat model that answers many messages at once, in up to so many tokens; on a GPU where there is one."""

    def __init__(self, model_name: str):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.bfloat16).eval().to(device)

    @torch.inference_mode()
    def write(self, messages: list[str], most_tokens: int, **sampling: float) -> list[str]:
        chats = [[{"role": "user", "content": message}] for message in messages]
        inputs = self.tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        ).to(self.model.device)
        tokens = self.model.generate(**inputs, max_new_tokens=most_tokens, do_sample=bool(sampling), **sampling)
        return self.tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def write_lines(writer: Writer, count: int, fewest: int, most: int, seed: int, path: Path) -> list[str]:
    """Distinct stretches of so many words of what the LLM makes up: begun and ended anywhere, as cut prompts are.

    They are kept in ``path`` as they come; what is there already is taken up.
    """
    found = dict.fromkeys(path.read_text(encoding="utf-8").splitlines()) if path.is_file() else {}
    while len(found) < count:
        chooser = random.Random(f"{seed} {len(found)}")
        torch.manual_seed(chooser.getrandbits(32))
        topics = [" and ".join(chooser.sample(TOPICS, 2)) for _ in range(48)]
        messages = [f"Write a page of an old novel about {topic}." for topic in topics]
        for text in writer.write(messages, 160, temperature=1.0, top_p=0.95):
            words = plain(text).split()
            while len(words) >= most:
                size = chooser.randint(fewest, most)
                if not any(word.isdigit() for word in words[:size]):
                    found[" ".join(words[:size])] = None
                words = words[size:]
        keep(path, found)
    return list(found)[:count]


def write_questions(writer: Writer, count: int, seed: int, path: Path) -> list[tuple[str, str]]:
    """Distinct questions of the LLM, and the first sentence of what it answers when it is asked them one by one.

    They are kept in ``path`` as they come, question, tab, answer; what is there already is taken up.
    """
    rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    found = dict(row.split("\t") for row in rows)
    while len(found) < count:
        chooser = random.Random(f"{seed} {len(found)}")
        torch.manual_seed(chooser.getrandbits(32))
        subjects = [" or ".join(chooser.sample(SUBJECTS, 2)) for _ in range(48)]
        messages = [f"Write ten short and easy quiz questions about {s}, without answers." for s in subjects]
        asked: dict[str, None] = {}
        for text in writer.write(messages, 160, temperature=0.9, top_p=0.95):
            for question in re.findall(r"[A-Z][^.?!\n]*\?", text):
                if ASKED[0] <= len(plain(question).split()) <= ASKED[1] and plain(question) not in found:
                    asked[question] = None
        for question, answer in zip(asked, writer.write(list(asked), ANSWER_TOKENS), strict=True):
            sentence = re.match(r"[^.!?:\n]*(?=[.!?\n])", answer.strip())
            said = sentence[0] if sentence else ""
            digits = re.search(r"\d", question + said)  # can't be written as they are said
            if ANSWERED[0] <= len(plain(said).split()) <= ANSWERED[1] and not digits:
                found[plain(question)] = plain(said)
        keep(path, [f"{question}\t{answer}" for question, answer in found.items()])
    return list(found.items())[:count]


def keep(path: Path, lines: Iterable[str]) -> None:
    lines = list(lines)
    with appearing_whole(path) as partial_path:
        partial_path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{path}: {len(lines)} lines", flush=True)


def say(texts: list[str], chooser: random.Random) -> tuple[str, list[np.ndarray]]:
    """Speaks texts in one voice; its name and samples at `RATE_HZ` of each."""
    tract = chooser.uniform(0.87, 1.18)  # above 1: a shorter vocal tract, a higher voice
    if chooser.random() < 0.8:
        voice = chooser.choice(list(FLITE_VOICES))
        pitch = FLITE_VOICES[voice] * chooser.uniform(0.8, 1.3)
        settings = {"duration_stretch": tract * chooser.uniform(0.75, 1.0), "int_f0_target_mean": pitch}
        command = ["flite", "-voice", voice]
        for key, value in settings.items():
            command += ["--setf", f"{key}={value:.3f}"]
        text_option, file_option = ["-t"], "-o"
    else:
        voice = chooser.choice(ESPEAK_VOICES)
        pace, pitch = chooser.uniform(150, 200) / tract, chooser.uniform(30, 70)
        command = ["espeak-ng", "-v", voice, "-s", f"{pace:.0f}", "-p", f"{pitch:.0f}"]
        text_option, file_option = [], "-w"
    said = []
    for text in texts:
        with tempfile.NamedTemporaryFile(suffix=".wav") as file:
            subprocess.run([*command, file_option, file.name, *text_option, text], check=True, capture_output=True)
            samples, rate = soundfile.read(file.name, dtype="float32")
        said.append(soxr.resample(samples, rate * tract, RATE_HZ).astype(np.float32))
    return voice, said


def record(samples: np.ndarray, chooser: random.Random) -> np.ndarray:
    """More or less loud, in more or less noise."""
    samples = samples * chooser.uniform(0.3, 0.9) / max(1e-3, float(np.abs(samples).max()))
    noise = np.random.default_rng(chooser.getrandbits(32)).standard_normal(len(samples)).astype(np.float32)
    return samples + noise * 10 ** chooser.uniform(-4, -2.3)


def make_synthetic(arguments: argparse.Namespace) -> None:
    """Writes lines until there are as many as asked for, and speaks them in as many processes."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    lengths = suitable_seconds(arguments)
    fewest, most = math.ceil(WORDS_PER_SECOND[0] * lengths[0]), math.floor(WORDS_PER_SECOND[1] * lengths[1])
    texts = arguments.out / "lines.txt"
    lines = write_lines(Writer(arguments.llm), arguments.lines, fewest, most, arguments.seed, texts)
    speak = partial(speak_line, arguments.out, lengths, arguments.seed)
    speak_all(arguments, "synthetic", speak, lines)


def make_questions(arguments: argparse.Namespace) -> None:
    """As `make_synthetic`: a question is said in what will be the prompt, its answer begins where that ends."""
    arguments.out.mkdir(parents=True, exist_ok=True)
    pairs = write_questions(Writer(arguments.llm), arguments.count, arguments.seed, arguments.out / "questions.tsv")
    speak = partial(speak_pair, arguments.out, arguments.prompt_seconds, arguments.seed)
    speak_all(arguments, "questions", speak, pairs)


def speak_all(arguments: argparse.Namespace, name: str, speak: Callable[[int, Any], dict | None], texts: list) -> None:
    with multiprocessing.Pool(arguments.jobs) as pool:
        spoken = [text for text in texts for _ in range(arguments.voices)]
        cuts = pool.starmap(speak, enumerate(spoken), chunksize=16)
    suitable = [c for c in cuts if c is not None]
    print(f"{len(cuts) - len(suitable)} of {len(cuts)} were too short or too long when spoken")
    write_cuts(arguments.out / f"{name}.jsonl.gz", suitable)


def speak_line(out: Path, lengths: Seconds, seed: int, index: int, text: str) -> dict | None:
    """The cut of a line that was spoken into a file; None if it is too short or too long, however it is said."""
    chooser = random.Random(f"{seed} {index}")
    for _ in range(TRIES):
        voice, (samples,) = say([text], chooser)
        samples = record(samples, chooser)
        if lengths[0] <= len(samples) / RATE_HZ <= lengths[1]:
            return kept(out, f"synthetic/{index:06}", voice, samples, text)
    return None


def speak_pair(out: Path, prompt_seconds: float, seed: int, index: int, pair: tuple[str, str]) -> dict | None:
    """As `speak_line`, of a question, silence up to the end of the prompt, and the answer."""
    chooser = random.Random(f"{seed} {index}")
    for _ in range(TRIES):
        voice, (question, answer) = say([f"{pair[0]}?", f"{pair[1]}."], chooser)
        silence = round(prompt_seconds * RATE_HZ) - len(question)
        samples = record(np.concatenate([question, np.zeros(max(0, silence), np.float32), answer]), chooser)
        if silence >= 0 and ANSWER_SECONDS[0] <= len(answer) / RATE_HZ <= ANSWER_SECONDS[1]:
            return kept(out, f"questions/{index:06}", voice, samples, " ".join(pair))
    return None


def kept(out: Path, name: str, voice: str, samples: np.ndarray, text: str) -> dict:
    """The cut of what is written into a file."""
    folder, number = name.split("/")
    path = Path(folder) / voice / f"{number}.flac"
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(out / path, samples, RATE_HZ, subtype="PCM_16")
    return cut(Utterance(name, path, 0.0, len(samples) / RATE_HZ - 0.001, voice, ""), text, None)


def join(arguments: argparse.Namespace) -> None:
    cuts = []
    for name in ("synthetic.jsonl.gz", "questions.jsonl.gz", "real_train.jsonl.gz"):
        with gzip.open(arguments.out / name, "rt", encoding="utf-8") as file:
            cuts += [json.loads(line) for line in file]
    write_cuts(arguments.out / "train.jsonl.gz", cuts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    real = commands.add_parser("real")
    real.add_argument("--root", type=Path, required=True, help="corpus folder in Libri-Light's layout")
    real.add_argument("--cuts", default="libriheavy_cuts_small.jsonl.gz", help="manifest, relative to the root")
    real.add_argument("--recognizer", required=True, help="Whisper model: hub id or folder")
    real.set_defaults(run=make_real)
    synthetic = commands.add_parser("synthetic")
    synthetic.add_argument("--llm", required=True, help="chat model that writes the texts: hub id or folder")
    synthetic.add_argument("--lines", type=int, default=2500, help="how many to write")
    synthetic.set_defaults(run=make_synthetic)
    questions = commands.add_parser("questions")
    questions.add_argument("--llm", required=True, help="chat model that asks and answers: hub id or folder")
    questions.add_argument("--count", type=int, default=500, help="how many questions to ask")
    questions.set_defaults(run=make_questions)
    for command in (synthetic, questions):
        command.add_argument("--voices", type=int, default=3, help="how often, in different voices, each is said")
        command.add_argument("--seed", type=int, default=0, help="of texts and voices")
        command.add_argument("--jobs", type=int, default=2, help="processes that speak")
    joined = commands.add_parser("join")
    joined.set_defaults(run=join)
    for command in (real, synthetic, questions):
        command.add_argument("--prompt_seconds", type=float, default=3.0, help="what data.prompt_seconds will be")
    for command in (real, synthetic):
        command.add_argument(
            "--continuation_seconds",
            type=float,
            nargs=2,
            default=[0.6, 2.0],
            help="shortest, longest speech after it",
        )
    for command in (real, synthetic, questions, joined):
        command.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
