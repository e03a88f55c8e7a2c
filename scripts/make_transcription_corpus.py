#!/usr/bin/env python3
"""Makes a corpus that teaches a pre-trained LLM to hear, for conf/smollm2_whisper.yaml.

    python scripts/make_transcription_corpus.py real --root data/librilight --cuts CUTS --recognizer whisper --out DIR
    python scripts/make_transcription_corpus.py synthetic --llm HuggingFaceTB/SmolLM2-135M-Instruct --out DIR
    python scripts/make_transcription_corpus.py join --out DIR

`real` cuts recorded utterances into short segments at word boundaries, by the word times of a Whisper model. Speakers
are split into train, validation and test. `synthetic` lets the LLM write, and flite and eSpeak NG (Debian packages) say
it in short lines, in many pitches, paces and vocal tract lengths. `join` writes the manifest for training. Everything
is Libri-Light's layout with Libriheavy-style cuts.
"""

import argparse
import gzip
import json
import multiprocessing
import random
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from datamodules.manifest import Utterance, Word, read_cuts, split_by_speaker
from lit_spectron.audio_files import read_audio

RATE_HZ = 16000
PROMPT_SECONDS = 3.0
CONTINUATION_SECONDS = (0.6, 2.0)
TOPICS = """
a journey, the sea, a letter, an old house, a quarrel, the weather, a garden, a horse, the war, a secret, a wedding,
the city at night, a school, music, a dog, money, a dream, the doctor, a ship, the forest, winter, a stranger,
the king, a mother and her son, a book, the river, a train, breakfast, a friend, the farm, a painter, the law,
a mountain, science, a child, the church, a market, an island, the moon, a thief
""".replace("\n", " ").split(", ")
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


def segments(words: list[Word], end_seconds: float) -> Iterator[tuple[float, float, list[Word]]]:
    """Stretches of prompt and continuation that begin before a word and end after one, half a prompt apart."""
    start, shortest = 0.0, PROMPT_SECONDS + CONTINUATION_SECONDS[0]
    while start + shortest <= end_seconds:
        inside = [w for w in words if w.start_seconds >= start]
        ends = [w.start_seconds + w.duration_seconds for w in inside]
        ends = [e for e in ends if shortest <= e - start <= PROMPT_SECONDS + CONTINUATION_SECONDS[1]]
        if ends:
            end = min(ends[0] + 0.05, end_seconds)
            taken = [w for w in inside if w.start_seconds + w.duration_seconds <= end]
            # Digits can't be written as they were said.
            if not any(re.search(r"\d", w.text) for w in taken):
                yield start, end, [replace(w, start_seconds=w.start_seconds - start) for w in taken]
        later = [w.start_seconds for w in words if w.start_seconds >= start + PROMPT_SECONDS / 2]
        if not later:
            return
        start = max(later[0] - 0.03, start + 0.1)


def make_real(arguments: argparse.Namespace) -> None:
    from transformers import WhisperFeatureExtractor, WhisperForConditionalGeneration, WhisperTokenizer, pipeline

    recognize = pipeline(
        "automatic-speech-recognition",
        WhisperForConditionalGeneration.from_pretrained(arguments.recognizer, dtype=torch.float32),
        tokenizer=WhisperTokenizer.from_pretrained(arguments.recognizer),
        feature_extractor=WhisperFeatureExtractor.from_pretrained(arguments.recognizer),
    )
    arguments.out.mkdir(parents=True, exist_ok=True)
    link = arguments.out / "real"
    if not link.exists():
        link.symlink_to(arguments.root.resolve())
    utterances = read_cuts(arguments.root / arguments.cuts, arguments.root, "download/librilight", 0)
    for name, part in zip(("train", "validation", "test"), split_by_speaker(utterances, 0.1, 0.1), strict=True):
        cuts, skipped = [], 0
        for utterance in part:
            if utterance.duration_seconds > 29.9:
                skipped += 1
                continue
            samples = read_audio(utterance.path, RATE_HZ, utterance.start_seconds, utterance.duration_seconds)
            chunks = recognize({"raw": samples, "sampling_rate": RATE_HZ}, return_timestamps="word")["chunks"]
            words = [
                Word(text, float(a), float(b - a))
                for c in chunks
                if (text := plain(c["text"]))
                and None not in (times := c["timestamp"])
                and (a := times[0]) < (b := times[1])
            ]
            source = Path("real") / utterance.path.relative_to(arguments.root)
            for index, (start, end, inside) in enumerate(segments(words, utterance.duration_seconds)):
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


@torch.inference_mode()
def write_lines(model_name: str, count: int, seed: int) -> list[str]:
    """Distinct stretches of 11 to 17 words of what the LLM makes up: begun and ended anywhere, as cut prompts are."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    chooser = random.Random(seed)
    tokenizer = AutoTokenizer.from_pretrained(model_name, padding_side="left")
    model = AutoModelForCausalLM.from_pretrained(model_name, dtype=torch.bfloat16).eval()
    found: dict[str, None] = {}
    while len(found) < count:
        topics = [" and ".join(chooser.sample(TOPICS, 2)) for _ in range(48)]
        chats = [[{"role": "user", "content": f"Write a page of an old novel about {topic}."}] for topic in topics]
        inputs = tokenizer.apply_chat_template(
            chats, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        tokens = model.generate(**inputs, max_new_tokens=160, do_sample=True, temperature=1.0, top_p=0.95)
        for text in tokenizer.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True):
            words = plain(text).split()
            while len(words) >= 17:
                size = chooser.randint(11, 17)
                if not any(word.isdigit() for word in words[:size]):
                    found[" ".join(words[:size])] = None
                words = words[size:]
        print(f"{len(found)} lines", flush=True)
    return list(found)[:count]


def say(text: str, chooser: random.Random) -> tuple[str, np.ndarray]:
    """Speaks a line; the voice's name and samples at `RATE_HZ`."""
    tract = chooser.uniform(0.87, 1.18)  # above 1: a shorter vocal tract, a higher voice
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        if chooser.random() < 0.8:
            voice = chooser.choice(list(FLITE_VOICES))
            pitch = FLITE_VOICES[voice] * chooser.uniform(0.8, 1.3)
            settings = {"duration_stretch": tract * chooser.uniform(0.75, 1.0), "int_f0_target_mean": pitch}
            command = ["flite", "-voice", voice, "-t", text, "-o", file.name]
            for key, value in settings.items():
                command += ["--setf", f"{key}={value:.3f}"]
        else:
            voice = chooser.choice(ESPEAK_VOICES)
            pace, pitch = chooser.uniform(150, 200) / tract, chooser.uniform(30, 70)
            command = ["espeak-ng", "-v", voice, "-s", f"{pace:.0f}", "-p", f"{pitch:.0f}", "-w", file.name, text]
        subprocess.run(command, check=True, capture_output=True)
        samples, rate = soundfile.read(file.name, dtype="float32")
    samples = soxr.resample(samples, rate * tract, RATE_HZ).astype(np.float32)
    samples = samples * chooser.uniform(0.3, 0.9) / max(1e-3, float(np.abs(samples).max()))
    noise = np.random.default_rng(chooser.getrandbits(32)).standard_normal(len(samples)).astype(np.float32)
    return voice, samples + noise * 10 ** chooser.uniform(-4, -2.3)


def make_synthetic(arguments: argparse.Namespace) -> None:
    """Writes the lines, or takes up those that are in the folder, and speaks them in as many processes as asked for."""
    texts = arguments.out / "lines.txt"
    arguments.out.mkdir(parents=True, exist_ok=True)
    if not texts.is_file():
        lines = write_lines(arguments.llm, arguments.lines, arguments.seed)
        texts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    spoken = [line for line in texts.read_text(encoding="utf-8").splitlines() for _ in range(arguments.voices)]
    with multiprocessing.Pool(arguments.jobs) as pool:
        cuts = pool.starmap(partial(speak_line, arguments.out, arguments.seed), enumerate(spoken), chunksize=16)
    suitable = [c for c in cuts if c is not None]
    print(f"{len(cuts) - len(suitable)} of {len(cuts)} were too short or too long when spoken")
    write_cuts(arguments.out / "synthetic.jsonl.gz", suitable)


def speak_line(out: Path, seed: int, index: int, text: str) -> dict | None:
    """The cut of a line that was spoken into a file; None if it is too short or too long."""
    voice, samples = say(text, random.Random(f"{seed} {index}"))
    seconds = len(samples) / RATE_HZ
    if not PROMPT_SECONDS + CONTINUATION_SECONDS[0] <= seconds <= PROMPT_SECONDS + CONTINUATION_SECONDS[1]:
        return None
    path = Path("synthetic") / voice / f"{index:06}.flac"
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(out / path, samples, RATE_HZ, subtype="PCM_16")
    return cut(Utterance(f"synthetic/{index:06}", path, 0.0, seconds - 0.001, voice, ""), text, None)


def join(arguments: argparse.Namespace) -> None:
    cuts = []
    for name in ("synthetic.jsonl.gz", *["real_train.jsonl.gz"] * arguments.repeat_real):
        with gzip.open(arguments.out / name, "rt", encoding="utf-8") as file:
            cuts.append([json.loads(line) for line in file])
    renamed = [{**c, "id": f"{c['id']}#{copy}"} for copy, part in enumerate(cuts) for c in part]
    write_cuts(arguments.out / "train.jsonl.gz", renamed)


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
    synthetic.add_argument("--voices", type=int, default=3, help="how often, in different voices, each is said")
    synthetic.add_argument("--seed", type=int, default=0, help="of texts and voices")
    synthetic.add_argument("--jobs", type=int, default=2, help="processes that speak")
    synthetic.set_defaults(run=make_synthetic)
    joined = commands.add_parser("join")
    joined.add_argument("--repeat_real", type=int, default=1, help="how often each real segment occurs in an epoch")
    joined.set_defaults(run=join)
    for command in (real, synthetic, joined):
        command.add_argument("--out", type=Path, required=True, help="folder to write into")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
