import pytest
import torch

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders import MLPDecoder


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_decoder_contract(audio: AudioSpec, factor: int):
    torch.manual_seed(0)
    decoder = MLPDecoder(audio, 24, 8, 16, factor)
    assert decoder.reduction_factor == factor
    frames, hidden = torch.randn(2, 5, factor, audio.n_mels), torch.randn(2, 5, 24)
    assert decoder.prenet(frames).shape == (2, 5, 24)
    assert decoder.prenet(frames[:, :0]).shape == (2, 0, 24)
    step, stop = decoder.step(hidden[:, 1])
    assert step.shape == (2, factor, audio.n_mels) and stop.shape == (2,) and ((stop > 0) & (stop < 1)).all()
    mask = torch.ones(2, 5 * factor, dtype=torch.bool)
    losses, prediction = decoder.loss(hidden, torch.randn(2, 5 * factor, audio.n_mels), mask)
    assert losses.keys() == {"spectrogram", "spectrogram_feature_delta", "spectrogram_time_delta", "stop"}
    assert all(value.shape == () for value in losses.values())
    torch.testing.assert_close(prediction[:, factor : 2 * factor], step)


def test_frames_beyond_the_mask_are_never_looked_at(audio: AudioSpec):
    decoder = MLPDecoder(audio, 24, 8, 16, 4)
    hidden, target = torch.randn(1, 3, 24), torch.randn(1, 12, audio.n_mels)
    mask = torch.arange(12)[None] < 6  # half of the second step
    losses, _ = decoder.loss(hidden, target, mask)
    target[:, 6:], hidden[:, 2:] = float("nan"), 1e3
    for name, value in decoder.loss(hidden, target, mask)[0].items():
        torch.testing.assert_close(value, losses[name])


def test_prenet_dropout(audio: AudioSpec):
    decoder = MLPDecoder(audio, 24, 1000, 16, 1, prenet_dropout=0.5).eval()
    with torch.no_grad():
        decoder.expand = torch.nn.Identity()
        decoder.squeeze.bias.fill_(100.0)
        frames = torch.zeros(1, 1, 1, audio.n_mels)
        seen = decoder.prenet(frames)
        assert 0.4 < (seen == 0).float().mean() < 0.6  # on in evaluation too
        torch.testing.assert_close(seen[seen != 0], torch.full_like(seen[seen != 0], 200.0))
        numbers = torch.rand(1, 1, 1000)
        assert torch.equal(decoder.prenet(frames, lambda _: numbers) == 0, numbers < 0.5)
