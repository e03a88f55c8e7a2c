from dataclasses import replace

import librosa
import numpy as np
import pytest
import soundfile
import torch

from lit_spectron.audio import AudioSpec, LogMelSpectrogram, SpecAugment, frame_level_db
from lit_spectron.audio_files import find_audio, read_audio
from lit_spectron.errors import UserError

RATE = 16000


@pytest.mark.parametrize(
    "spec",
    [AudioSpec(), AudioSpec(n_mels=80, hop_seconds=0.01, window_seconds=0.025), AudioSpec(22050, 80, f_max_hz=11025.0)],
)
def test_log_mel_is_librosas(spec: AudioSpec):
    samples = np.random.default_rng(0).standard_normal(spec.sample_rate_hz).astype(np.float32) * 0.1
    expected = librosa.feature.melspectrogram(
        y=samples,
        sr=spec.sample_rate_hz,
        n_fft=spec.fft_samples,
        hop_length=spec.hop_samples,
        win_length=spec.window_samples,
        center=True,
        pad_mode="constant",
        power=1,
        n_mels=spec.n_mels,
        fmin=spec.f_min_hz,
        fmax=spec.f_max_hz,
    )
    log_mel, frames = LogMelSpectrogram(spec)(torch.from_numpy(samples)[None], torch.tensor([len(samples)]))
    assert frames.item() == log_mel.shape[1] == spec.samples_to_frames(len(samples))
    expected = np.log(np.maximum(expected, spec.log_floor)).T[: log_mel.shape[1]]
    np.testing.assert_allclose(log_mel[0].numpy(), expected, atol=1e-4)


def test_padding_changes_nothing_and_holds_the_floor(audio: AudioSpec):
    front, waveform = LogMelSpectrogram(audio), torch.randn(2, 9000) * 0.1
    lengths = torch.tensor([5003, 9000])
    together, frames = front(waveform, lengths)
    alone, alone_frames = front(waveform[:1, :5003], lengths[:1])
    assert frames[0] == alone_frames[0] == -(-5003 // audio.hop_samples)
    torch.testing.assert_close(together[0, : frames[0]], alone[0], atol=1e-5, rtol=0)
    assert (together[0, frames[0] :] == audio.log_mel_floor).all()
    assert together[0, : frames[0]].min() > audio.log_mel_floor


def test_silence_is_the_floor(audio: AudioSpec):
    log_mel, _ = LogMelSpectrogram(audio)(torch.zeros(1, 4000), torch.tensor([4000]))
    assert (log_mel == audio.log_mel_floor).all()


def test_level_is_in_decibels():
    log_mel = torch.full((1, 3, 8), 0.1).log()
    torch.testing.assert_close(frame_level_db(log_mel), torch.full((1, 3), -20.0))


@pytest.mark.parametrize(("rate", "hop", "hop_samples"), [(16000, 0.0125, 200), (16000, 0.01, 160), (24000, 0.02, 480)])
def test_conversions(rate: int, hop: float, hop_samples: int):
    spec = AudioSpec(sample_rate_hz=rate, hop_seconds=hop)
    assert spec.hop_samples == hop_samples
    assert spec.frames_per_second == rate / hop_samples
    assert spec.fft_samples >= spec.window_samples > spec.fft_samples // 2
    assert spec.seconds_to_samples(1.5) == 1.5 * rate
    assert spec.seconds_to_frames(1.0) == -(-rate // hop_samples)
    assert [spec.samples_to_frames(n) for n in (0, 1, hop_samples, hop_samples + 1)] == [0, 1, 1, 2]
    assert spec.samples_to_frames(torch.tensor([0, 1, hop_samples + 1])).tolist() == [0, 1, 2]
    assert spec.frames_to_samples(7) == 7 * hop_samples
    assert spec.frames_to_seconds(7) == pytest.approx(7 * hop)
    assert spec.samples_to_seconds(rate) == 1


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"n_mels": 0}, "n_mels"),
        ({"sample_rate_hz": -1}, "sample_rate_hz"),
        ({"log_floor": 0.0}, "log_floor"),
        ({"f_max_hz": 9000.0}, "f_max_hz"),
        ({"f_min_hz": 8000.0}, "f_min_hz"),
        ({"hop_seconds": 0.1}, "hop_seconds"),
        ({"hop_seconds": 1e-6}, "hop_seconds"),
    ],
)
def test_bad_geometry_is_refused(change: dict, word: str):
    with pytest.raises(UserError, match=word):
        replace(AudioSpec(), **change)


def test_spec_augment_is_off_in_evaluation():
    features = torch.randn(2, 50, 40)
    assert SpecAugment().eval()(features, torch.tensor([50, 30])) is features


def test_spec_augment_masks_within_its_bounds():
    torch.manual_seed(0)
    features, lengths = torch.randn(4, 100, 40), torch.tensor([100, 80, 60, 40])
    means = [features[i, :n].mean() for i, n in enumerate(lengths)]
    masked_bins, masked_frames = 0, 0
    for _ in range(20):
        in_frequency = SpecAugment(1, 9, 0, 0.0)(features, lengths) != features
        in_time = SpecAugment(0, 0, 1, 0.1)(features, lengths)
        for i, n in enumerate(lengths.tolist()):
            bins, frames = in_frequency[i].any(0), (in_time[i] != features[i]).any(1)
            assert bins.sum() <= 9 and frames.sum() <= n * 0.1
            assert not in_frequency[i, n:].any() and not frames[n:].any()
            assert in_frequency[i, :n, bins].all()
            torch.testing.assert_close(in_time[i, frames], means[i].expand(int(frames.sum()), 40))
            for flags in (bins, frames):
                on = flags.nonzero().flatten()
                assert not len(on) or len(on) == on[-1] - on[0] + 1
            masked_bins, masked_frames = max(masked_bins, int(bins.sum())), max(masked_frames, int(frames.sum()))
    assert masked_bins == 9 and masked_frames >= 8


@pytest.fixture
def tone() -> np.ndarray:
    return (0.5 * np.sin(np.arange(RATE) * 0.1)).astype(np.float32)


def test_reading_a_stretch_is_exact(tmp_path, tone):
    for name in ("a.wav", "a.flac"):
        soundfile.write(tmp_path / name, tone, RATE, subtype="PCM_16")
        whole = read_audio(tmp_path / name, RATE)
        assert whole.dtype == np.float32 and len(whole) == RATE
        np.testing.assert_allclose(whole, tone, atol=1 / 32768)
        np.testing.assert_array_equal(read_audio(tmp_path / name, RATE, 0.25, 0.5), whole[4000:12000])
        np.testing.assert_array_equal(read_audio(tmp_path / name, RATE, 0.25), whole[4000:])
        assert len(read_audio(tmp_path / name, RATE, 0.0, 1 + 1 / RATE)) == RATE
        out = np.full(RATE, 9.0, dtype=np.float32)
        samples = read_audio(tmp_path / name, RATE, 0.25, 0.5, out)
        assert np.shares_memory(samples, out) and (out[8000:] == 9.0).all()
        np.testing.assert_array_equal(samples, whole[4000:12000])


def broken_files(folder, tone) -> dict[str, str]:
    """Writes one file for each defect; names with what the message must say."""
    soundfile.write(folder / "rate.wav", tone, 8000)
    soundfile.write(folder / "stereo.wav", np.stack([tone, tone], 1), RATE)
    soundfile.write(folder / "whole.flac", np.random.default_rng(0).uniform(-0.5, 0.5, RATE), RATE)
    content = (folder / "whole.flac").read_bytes()
    (folder / "truncated.flac").write_bytes(content[: len(content) // 2])
    (folder / "no_bytes.wav").touch()
    soundfile.write(folder / "no_samples.wav", tone[:0], RATE)
    soundfile.write(folder / "nan.wav", np.where(np.arange(RATE) == 99, np.nan, tone), RATE, subtype="FLOAT")
    soundfile.write(folder / "inf.wav", np.where(np.arange(RATE) == 99, np.inf, tone), RATE, subtype="FLOAT")
    soundfile.write(folder / "loud.wav", tone * 30000, RATE, subtype="FLOAT")
    (folder / "text.wav").write_text("not audio")
    return {
        "rate.wav": "8000 Hz",
        "stereo.wav": "2 channels",
        "truncated.flac": "truncated|unreadable",
        "no_bytes.wav": "unreadable",
        "no_samples.wav": "no audio",
        "nan.wav": "not finite",
        "inf.wav": "not finite",
        "loud.wav": "scaled to",
        "text.wav": "unreadable",
        "missing.wav": "no such file",
    }


def test_every_defect_is_one_line_that_names_the_file(tmp_path, tone):
    for name, words in broken_files(tmp_path, tone).items():
        with pytest.raises(UserError, match=words) as caught:
            read_audio(tmp_path / name, RATE)
        assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("start", "duration"), [(0.5, 0.6), (1.0, None), (2.0, None), (2.0, 0.5), (-0.5, 0.2)])
def test_a_stretch_outside_the_file_is_refused(tmp_path, tone, start, duration):
    soundfile.write(tmp_path / "a.flac", tone, RATE)
    with pytest.raises(UserError, match=r"a\.flac") as caught:
        read_audio(tmp_path / "a.flac", RATE, start, duration)
    assert "\n" not in str(caught.value)


def test_finding_audio(tmp_path, tone):
    (tmp_path / "deep").mkdir()
    for name in ("b.wav", "deep/a.flac"):
        soundfile.write(tmp_path / name, tone, RATE)
    (tmp_path / "notes.txt").touch()
    assert find_audio([tmp_path]) == {"a": tmp_path / "deep/a.flac", "b": tmp_path / "b.wav"}
    assert find_audio([tmp_path / "b.wav"]) == {"b": tmp_path / "b.wav"}
    assert find_audio([tmp_path, tmp_path / "b.wav"]).keys() == {"a", "b"}
    (tmp_path / "empty").mkdir()
    soundfile.write(tmp_path / "deep/b.flac", tone, RATE)
    for paths, name in (([tmp_path / "empty"], "empty"), ([tmp_path / "no"], "no"), ([tmp_path], "b.wav")):
        with pytest.raises(UserError, match=name):
            find_audio(paths)
