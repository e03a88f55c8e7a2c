"""The four files that stand for one continuation."""

import json
from pathlib import Path
from typing import Any

from torch import Tensor

from lit_spectron.audio import AudioSpec
from lit_spectron.audio_files import write_audio
from lit_spectron.figures import spectrogram_figure
from lit_spectron.files import appearing_whole
from lit_spectron.types import Generation


def write_continuation(
    out: Path,
    name: str,
    audio: AudioSpec,
    generation: Generation,
    index: int,
    waveform: Tensor,
    prompt_log_mel: Tensor,
    details: dict[str, Any],
) -> None:
    """Writes ``NAME.wav``, ``NAME.txt``, ``NAME.png`` and last, when all is there, ``NAME.json``.

    Args:
        out: An existing folder.
        name: File name without suffix.
        audio: Geometry of the sounds.
        generation: A batch of continuations.
        index: Which of them.
        waveform: (T,) its sound.
        prompt_log_mel: (F, M) of its prompt, for the picture.
        details: What else the JSON file shall hold.
    """
    text = generation.text[index]
    log_mel = generation.log_mel[index, : int(generation.lengths[index])]
    description = {
        "text": text,
        "text_stop_reason": generation.text_stop_reason[index],
        "seconds": audio.samples_to_seconds(len(waveform)),
        "stop_reason": generation.stop_reason[index],
        **details,
    }
    figure = spectrogram_figure({"prompt": prompt_log_mel, "continuation": log_mel}, audio, text)
    write_audio(out / f"{name}.wav", waveform.numpy(), audio.sample_rate_hz)
    with appearing_whole(out / f"{name}.txt") as path:
        path.write_text(text + "\n", encoding="utf-8")
    with appearing_whole(out / f"{name}.png") as path:
        figure.savefig(path, format="png", dpi=100)
    with appearing_whole(out / f"{name}.json") as path:
        path.write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
