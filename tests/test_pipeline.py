"""The façade's streaming; the rest of it is tested through the command line."""

from dataclasses import replace

import pytest
import torch

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders import TacotronDecoder
from lit_spectron.generation import Decoding, GenerationSettings
from lit_spectron.pipeline import SpectronPipeline
from lit_spectron.vocoders import GriffinLim

SETTINGS = GenerationSettings(
    max_text_tokens=5, max_speech_seconds=2.0, stop_threshold=1.0, silence_seconds=None, repeat_seconds=None
)


@pytest.fixture
def pipeline(tiny_model, audio: AudioSpec) -> SpectronPipeline:
    """Every step draws dropout, and a refinement sees eight frames to each side."""
    model = tiny_model(lively=True)
    model.decoder = TacotronDecoder(audio, 32, 16, 32, 4, refiner_channels=16, refiner_layers=4)
    with torch.no_grad():
        for parameter in model.decoder.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.set_mel_statistics(torch.full_like(model.mel_mean, -6.0), torch.ones_like(model.mel_std), 1)
    return SpectronPipeline(model, GriffinLim(audio, iterations=4), SETTINGS, 0.5)


@pytest.mark.parametrize("chunk_seconds", [0.01, 0.1, 0.25, 5.0])
@pytest.mark.parametrize("seconds", [1e-9, 0.3, 2.0])
def test_what_is_streamed_is_what_is_generated(pipeline, audio: AudioSpec, chunk_seconds, seconds):
    pipeline.settings = replace(SETTINGS, max_speech_seconds=seconds)
    prompt = torch.randn(8000, generator=torch.Generator().manual_seed(0)) * 0.1
    expected, (sound,) = pipeline.generate([prompt], ["a"])

    def listen():
        generation = yield from pipeline.stream(prompt, "a", chunk_seconds)
        assert generation.text == expected.text and generation.stop_reason == expected.stop_reason
        assert torch.equal(generation.log_mel, expected.log_mel)

    chunks = list(listen())
    assert sound.std() > 0.001 and sound.abs().max() < 1  # nothing is clipped
    torch.testing.assert_close(torch.cat(chunks), sound, atol=0.01 * float(sound.std()), rtol=0)
    samples = audio.frames_to_samples(max(1, audio.seconds_to_frames(chunk_seconds)))
    assert all(len(chunk) == samples for chunk in chunks[:-1]) and len(chunks[-1]) > 0


def test_chunks_come_while_frames_are_decoded(pipeline, monkeypatch):
    """Each as soon as its own frames are there and those that it looks ahead."""
    steps, note = [], Decoding._note
    monkeypatch.setattr(Decoding, "_note", lambda self, *found: (note(self, *found), steps.append(self.said[0]))[0])
    ahead = pipeline.model.decoder.context_frames + pipeline.vocoder.context_frames
    assert ahead == 8 + 5 * 3
    heard = [steps[-1] * 4 for _ in pipeline.stream(torch.randn(8000) * 0.1, chunk_seconds=0.1)]
    due = [-(-(8 * n + ahead) // 4) * 4 for n in range(1, len(heard))]
    assert heard[:-1] == due and len(due) > 10 and heard[-1] == 160
