"""Speech synthesisers with word times, through the shared libraries of flite and eSpeak NG."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass
from functools import cache
from typing import NoReturn

import numpy as np

PAUSE_SECONDS = 0.12  # what is left of the silence between two words of a phrase
FRAME_SECONDS = 0.005
SILENCE_DB = -40.0  # a frame is silent where its peak lies this far below the phrase's peak


@dataclass(frozen=True)
class Voice:
    """A speaker: which engine says it, how fast, and in which split it is heard."""

    name: str
    engine: str  # "flite" or "espeak"
    model: str  # the engine's own name of the voice
    pace: float  # duration stretch (flite) or words per minute (eSpeak NG)
    unseen: str | None = None  # the only split of a voice that training never hears
    raised: float = 1.0  # played this much faster (and synthesised as much slower): higher pitch, shorter vocal tract
    pitch: int = 50  # eSpeak NG's own, 0 to 99
    pause: float = PAUSE_SECONDS  # silence that is left between two words of a phrase


def fail(message: str) -> NoReturn:
    sys.exit(f"{message}")


def active_frames(samples: np.ndarray, rate: float) -> np.ndarray:
    """Which frames of FRAME_SECONDS are louder than SILENCE_DB below the peak."""
    edges = np.round(np.arange(0, len(samples) / rate, FRAME_SECONDS) * rate).astype(int)
    peaks = np.maximum.reduceat(np.abs(samples), edges[edges < len(samples)])
    return peaks > peaks.max() * 10 ** (SILENCE_DB / 20)


# Engines. Each returns (samples, sample rate, word times). Words are joined by commas: said as a list, they are far
# easier to understand; the pauses this makes are cut short afterwards.

RawPhrase = tuple[np.ndarray, float, list[tuple[float, float]]]


def load_library(name: str, package: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    except OSError:
        fail(f"cannot load {name}: install {package} (Debian, Ubuntu: apt-get install {package})")


class FliteWave(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_char_p),
        ("sample_rate", ctypes.c_int),
        ("num_samples", ctypes.c_int),
        ("num_channels", ctypes.c_int),
        ("samples", ctypes.POINTER(ctypes.c_short)),
    ]


class FliteVoice(ctypes.Structure):
    _fields_ = [("name", ctypes.c_char_p), ("features", ctypes.c_void_p)]


class Flite:
    """CMU flite. Word times come from its Token and Segment relations: ends of the first and last phones."""

    def __init__(self) -> None:
        self.library = load_library("libflite.so.1", "flite")
        pointer, text = ctypes.c_void_p, ctypes.c_char_p
        signatures = {
            "flite_synth_text": (pointer, [text, pointer]),
            "utt_wave": (ctypes.POINTER(FliteWave), [pointer]),
            "utt_relation": (pointer, [pointer, text]),
            "relation_head": (pointer, [pointer]),
            "item_next": (pointer, [pointer]),
            "ffeature_float": (ctypes.c_float, [pointer, text]),
            "feat_set_float": (None, [pointer, text, ctypes.c_float]),
            "delete_utterance": (None, [pointer]),
        }
        for name, (result, arguments) in signatures.items():
            function = getattr(self.library, name)
            function.restype, function.argtypes = result, arguments
        self.library.flite_init()
        self.voices: dict[str, ctypes.c_void_p] = {}

    def voice(self, model: str) -> ctypes._Pointer:
        if model not in self.voices:
            library = load_library(f"libflite_cmu_us_{model}.so.1", "flite")
            register = getattr(library, f"register_cmu_us_{model}")
            register.restype, register.argtypes = ctypes.POINTER(FliteVoice), [ctypes.c_char_p]
            self.voices[model] = register(None)
        return self.voices[model]

    def __call__(self, words: tuple[str, ...], voice: Voice, pace: float) -> RawPhrase:
        loaded = self.voice(voice.model)
        self.library.feat_set_float(loaded.contents.features, b"duration_stretch", pace)
        utterance = self.library.flite_synth_text(", ".join(words).encode(), ctypes.cast(loaded, ctypes.c_void_p))
        wave = self.library.utt_wave(utterance).contents
        samples = np.ctypeslib.as_array(wave.samples, (wave.num_samples,)).astype(np.float64) / 32768
        rate = wave.sample_rate
        times = []
        token = self.library.relation_head(self.library.utt_relation(utterance, b"Token"))
        while token:
            start = b"daughter1.R:SylStructure.daughter1.daughter1.R:Segment.p.end"
            end = b"daughtern.R:SylStructure.daughtern.daughtern.R:Segment.end"
            times.append((self.library.ffeature_float(token, start), self.library.ffeature_float(token, end)))
            token = self.library.item_next(token)
        self.library.delete_utterance(utterance)
        return samples, rate, times


class EspeakEvent(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", ctypes.c_char * 8),
    ]


ESPEAK_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(EspeakEvent)
)


class Espeak:
    """eSpeak NG. Word starts are the samples of its WORD events; a word ends where the sound before the next does."""

    SYNCHRONOUS, RATE_PARAMETER, PITCH_PARAMETER, UTF8, WORD_EVENT = 2, 1, 3, 1, 1

    def __init__(self) -> None:
        self.library = load_library("libespeak-ng.so.1", "espeak-ng")
        self.sample_rate = self.library.espeak_Initialize(self.SYNCHRONOUS, 0, None, 0)
        if self.sample_rate <= 0:
            fail("eSpeak NG does not start: install espeak-ng-data")
        self.audio: list[np.ndarray] = []
        self.word_starts: list[int] = []
        self.callback = ESPEAK_CALLBACK(self.receive)  # kept, so that it is not collected while the engine holds it
        self.library.espeak_SetSynthCallback(self.callback)

    def receive(self, wave: ctypes._Pointer, count: int, events: ctypes._Pointer) -> int:
        if wave and count > 0:
            self.audio.append(np.ctypeslib.as_array(wave, (count,)).copy())
        number = 0
        while events[number].type != 0:
            if events[number].type == self.WORD_EVENT:
                self.word_starts.append(events[number].sample)
            number += 1
        return 0

    def __call__(self, words: tuple[str, ...], voice: Voice, pace: float) -> RawPhrase:
        if self.library.espeak_SetVoiceByName(voice.model.encode()) != 0:
            fail(f"eSpeak NG has no voice {voice.model}: install espeak-ng-data")
        self.audio, self.word_starts = [], []
        self.library.espeak_SetParameter(self.RATE_PARAMETER, round(pace), 0)
        self.library.espeak_SetParameter(self.PITCH_PARAMETER, voice.pitch, 0)
        text = ", ".join(words).encode() + b"\0"
        self.library.espeak_Synth(text, ctypes.c_size_t(len(text)), 0, 1, 0, self.UTF8, None, None)
        self.library.espeak_Synchronize()
        samples = np.concatenate(self.audio).astype(np.float64) / 32768
        starts = [sample / self.sample_rate for sample in self.word_starts]
        limits = [*starts[1:], len(samples) / self.sample_rate]
        loud = np.flatnonzero(active_frames(samples, self.sample_rate)) * FRAME_SECONDS
        # The frame into which the next word's start falls, and the one before it, may hold some of that word.
        ends = [float(loud[loud < limit - 2 * FRAME_SECONDS][-1]) + FRAME_SECONDS for limit in limits]
        ends = [limit if limit - end < 4 * FRAME_SECONDS else end for end, limit in zip(ends, limits, strict=True)]
        return samples, self.sample_rate, list(zip(starts, ends, strict=True))


@cache
def engine(name: str) -> Flite | Espeak:
    return {"flite": Flite, "espeak": Espeak}[name]()
