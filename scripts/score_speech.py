#!/usr/bin/env python3
"""Listens, with a recogniser, to what a checkpoint says in answer to the prompts of a manifest.

    python scripts/score_speech.py --ckpt runs/NAME/version_N/checkpoints/last.ckpt --recognizer openai/whisper-tiny.en

Three rows go through the same recogniser: the true continuation (the ceiling), the true continuation's log-mel through
the vocoder (what a perfect decoder would reach), and what the model says; `--rows` leaves some out. `wer_speech`
compares the transcript with the words that ought to be heard: for the first two rows the reference's words after the
prompt, for the model what it wrote after the prompt's words. With `--speaker_similarity`, cosine similarities of
Resemblyzer embeddings between prompt and continuation are added, and the same between a prompt and another speaker's
continuation (the floor).

Whisper, unsure of what it hears, may repeat itself until its tokens run out. A transcript of more words than anyone can
say in the time counts as nothing heard, as does what is not loud enough for speech; the last line says how many of the
former there were.
"""

import argparse
import json
import sys
import time
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

from datamodules.cuts import read_cuts
from datamodules.manifest import Utterance
from lit_spectron.audio_files import read_audio
from lit_spectron.errors import UserError
from lit_spectron.evaluators import ResemblyzerEmbedder, WhisperRecognizer
from lit_spectron.generation import silent_frames
from lit_spectron.pipeline import SpectronPipeline
from lit_spectron.word_errors import count_errors, match_beginning, words

BATCH = 20
ROWS = ("real", "resynthesis", "generated")


def similarities(prompts: np.ndarray, answers: np.ndarray, speakers: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """(N,) cosines of prompt and own continuation, and (N,) mean cosines of prompt and other speakers' ones."""
    cosine = prompts @ answers.T
    other = np.array([[a != b for b in speakers] for a in speakers])
    return np.diag(cosine), np.where(other, cosine, 0).sum(1) / other.sum(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of a run")
    parser.add_argument("--recognizer", required=True, help="Whisper model: hub id or folder")
    parser.add_argument("--root", type=Path, default=Path("data/sequences"), help="corpus folder")
    parser.add_argument("--cuts", default="libriheavy_cuts_test.jsonl.gz", help="manifest, relative to the root")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="what is listened to")
    parser.add_argument("--speaker_similarity", action="store_true", help="needs `pip install -e .[speaker]`")
    parser.add_argument("--out", type=Path, help="also write every transcript to this JSON file")
    arguments = parser.parse_args()

    pipeline = SpectronPipeline.from_checkpoint(arguments.ckpt)
    audio = pipeline.model.audio
    utterances = read_cuts(arguments.root / arguments.cuts, arguments.root, "download/librilight", 1)
    split = audio.seconds_to_samples(pipeline.prompt_seconds)
    whole = [read_audio(u.path, audio.sample_rate_hz, u.start_seconds, u.duration_seconds) for u in utterances]
    prompts, real = [w[:split] for w in whole], [w[split:] for w in whole]

    generated, texts, stopped, silent, frames = [], [], 0, 0, 0
    began = time.perf_counter()
    for start in range(0, len(whole), BATCH):
        chunk = range(start, min(start + BATCH, len(whole)))
        result, sounds = pipeline.generate(
            [torch.from_numpy(prompts[i]) for i in chunk], [utterances[i].id for i in chunk]
        )
        generated += [sound.numpy() for sound in sounds]
        texts += result.text
        stopped += sum(reason == "stop" for reason in result.stop_reason)
        silent, frames = silent + int(silent_frames(result).sum()), frames + int(result.lengths.sum())
    seconds = time.perf_counter() - began
    rows = {"real": real, "generated": generated}
    if "resynthesis" in arguments.rows:
        rows["resynthesis"] = [resynthesise(pipeline, w) for w in real]

    spoken_in_prompt = [words(u.text_before(pipeline.prompt_seconds) or "") for u in utterances]
    references = [words(u.text)[len(p) :] for u, p in zip(utterances, spoken_in_prompt, strict=True)]
    intended = [after_prompt(p, words(t)) for p, t in zip(spoken_in_prompt, texts, strict=True)]
    recognizer, embedder = WhisperRecognizer(arguments.recognizer, batch_size=BATCH), ResemblyzerEmbedder()

    def embed(sounds: list[np.ndarray]) -> np.ndarray:
        return torch.stack(embedder.embed(sounds, audio.sample_rate_hz)).numpy()

    speakers = [u.speaker for u in utterances]
    prompt_embeddings = embed(prompts) if arguments.speaker_similarity else None
    transcripts: dict[str, list[str]] = {}
    looped = 0
    print("| row | speaker | utterances | wer_speech | speaker_similarity | mismatched |\n|---|---|---|---|---|---|")
    for row in arguments.rows:
        sounds = rows[row]
        heard = recognizer.transcribe(sounds, audio.sample_rate_hz)
        looped += sum(transcript.gate == "endless" for transcript in heard)
        transcripts[row] = [transcript.text for transcript in heard]
        wanted = intended if row == "generated" else references
        own = other = np.full(len(sounds), np.nan)
        if prompt_embeddings is not None and len(set(speakers)) > 1:
            own, other = similarities(prompt_embeddings, embed(sounds), speakers)
        groups = defaultdict(list, {"all": list(range(len(sounds)))})
        for i, speaker in enumerate(speakers):
            groups[speaker].append(i)
        for name, members in groups.items():
            errors = sum(count_errors(wanted[i], words(transcripts[row][i])) for i in members)
            wer = errors / max(1, sum(len(wanted[i]) for i in members))
            means = f"{own[members].mean():.3f} | {other[members].mean():.3f}"
            print(f"| {row} | {name} | {len(members)} | {wer:.3f} | {means} |", flush=True)
    errors = sum(count_errors(words(u.text), words(t)) for u, t in zip(utterances, texts, strict=True))
    spoken = sum(len(sound) for sound in generated) / audio.sample_rate_hz
    print(
        f"\nwer_text {errors / sum(len(words(u.text)) for u in utterances):.3f}, "
        f"stop_rate {stopped / len(texts):.3f}, silence_ratio {silent / frames:.3f}, "
        f"real_time_factor {seconds / spoken:.3f} in batches of {BATCH}, "
        f"{looped} transcripts that repeat themselves"
    )
    if arguments.out:
        arguments.out.write_text(
            json.dumps(as_records(utterances, texts, transcripts), indent=1) + "\n", encoding="utf-8"
        )


def resynthesise(pipeline: SpectronPipeline, waveform: np.ndarray) -> np.ndarray:
    """A waveform's log-mel through the vocoder."""
    samples = torch.from_numpy(waveform)[None]
    log_mel, lengths = pipeline.model.log_mel(samples, torch.tensor([samples.shape[1]]))
    return pipeline.vocoder(log_mel, lengths)[0].clamp(-1, 1).numpy()


def after_prompt(prompt: list[str], text: list[str]) -> list[str]:
    """What of a generated text lies behind the beginning that matches the prompt best."""
    return text[match_beginning(prompt, text)[1] :]


def as_records(utterances: list[Utterance], texts: list[str], transcripts: dict[str, list[str]]) -> list[dict]:
    rows = zip(utterances, texts, *transcripts.values(), strict=True)
    return [
        dict(zip(("id", "reference", "text", *transcripts), (u.id, u.text, *rest), strict=True)) for u, *rest in rows
    ]


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
