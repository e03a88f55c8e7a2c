import pytest
import soundfile
import torch

from lit_spectron.audio import AudioSpec, LogMelSpectrogram
from lit_spectron.vocoders import GriffinLim


@pytest.fixture(scope="module")
def speech(repository) -> torch.Tensor:
    path = next(iter(sorted((repository / "data/sequences/small/slt").rglob("*.flac"))))
    samples, rate = soundfile.read(path, start=4800, frames=16000 * 2, dtype="float32")
    assert rate == 16000
    return torch.from_numpy(samples)[None]


@pytest.mark.parametrize("spec", [AudioSpec(log_floor=1e-3), AudioSpec(n_mels=80, hop_seconds=0.01, log_floor=1e-3)])
def test_griffin_lim_sounds_like_its_spectrogram(speech, spec: AudioSpec):
    front, lengths = LogMelSpectrogram(spec), torch.tensor([speech.shape[1]])
    log_mel, frames = front(speech, lengths)
    waveform = GriffinLim(spec)(log_mel, frames)
    assert waveform.shape == (1, spec.frames_to_samples(int(frames))) and waveform.isfinite().all()

    def error(sound: torch.Tensor) -> float:
        return float((front(sound, torch.tensor([sound.shape[1]]))[0][:, : log_mel.shape[1]] - log_mel).abs().mean())

    noise = torch.randn(speech.shape, generator=torch.Generator().manual_seed(0)) * speech.std()
    assert error(waveform) < 0.25 < 0.5 < min(error(noise), error(speech.flip(1)))


def test_griffin_lim_is_the_same_alone_and_in_a_longer_batch(speech, audio: AudioSpec):
    front, vocoder = LogMelSpectrogram(audio), GriffinLim(audio, iterations=8)
    log_mel, frames = front(speech[:, :12000].expand(2, -1), torch.tensor([8000, 12000]))
    together = vocoder(log_mel, frames)
    alone = vocoder(log_mel[:1, : frames[0]], frames[:1])
    samples = audio.frames_to_samples(int(frames[0]))
    assert alone.shape[1] == samples and not together[0, samples:].any() and together[1, samples:].any()
    torch.testing.assert_close(together[0, :samples], alone[0], atol=1e-3, rtol=0)


def test_griffin_lim_survives_any_prediction(audio: AudioSpec):
    vocoder = GriffinLim(audio, iterations=2)
    for value in (audio.log_mel_floor, 1e4):
        waveform = vocoder(torch.full((1, 1, audio.n_mels), value), torch.tensor([1]))
        assert waveform.shape == (1, audio.hop_samples) and waveform.isfinite().all()
