"""Every term against loops in NumPy."""

import numpy as np
import pytest
import torch

from lit_spectron.audio import AudioSpec
from lit_spectron.decoders import MLPDecoder
from lit_spectron.losses import masked_mean, spectrogram_losses, stop_loss, text_loss
from lit_spectron.masking import lengths_to_mask

LENGTHS = ([5, 9, 1], [4, 4, 4], [2, 1, 3], [7, 1, 2])


def distance(errors: list[np.ndarray]) -> float:
    """Mean absolute plus mean squared error of the elements in a list of arrays; 0 for none."""
    values = np.concatenate([e.ravel() for e in errors]) if errors else np.zeros(0)
    return float(np.abs(values).mean() + (values**2).mean()) if len(values) else 0.0


def expected_losses(a: np.ndarray, b: np.ndarray, lengths: list[int], feature: int, time: int) -> dict[str, float]:
    errors = [(a[i, :n] - b[i, :n]).astype(np.float64) for i, n in enumerate(lengths)]
    losses = {"spectrogram": distance(errors), "spectrogram_feature_delta": 0.0, "spectrogram_time_delta": 0.0}
    along_mel, along_time = errors, errors
    for _ in range(feature):
        along_mel = [np.array([[row[m + 1] - row[m] for m in range(len(row) - 1)] for row in e]) for e in along_mel]
        losses["spectrogram_feature_delta"] += distance(along_mel)
    for _ in range(time):
        along_time = [np.array([e[t + 1] - e[t] for t in range(len(e) - 1)]) for e in along_time]
        losses["spectrogram_time_delta"] += distance([e for e in along_time if len(e)])
    return losses


@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("time", [0, 1, 2, 3])
@pytest.mark.parametrize("feature", [0, 1, 2])
def test_spectrogram_losses(lengths: list[int], time: int, feature: int):
    torch.manual_seed(sum(lengths) + 10 * time + feature)
    a, b = torch.randn(2, 3, max(lengths), 6)
    expected = expected_losses(a.numpy(), b.numpy(), lengths, feature, time)
    for padding in (0, 5):
        garbage = torch.full((3, padding, 6), 1e6)
        wide_a, wide_b = torch.cat([a, garbage], 1), torch.cat([b, -garbage], 1)
        for i, n in enumerate(lengths):
            wide_a[i, n:] = 1e6
        mask = lengths_to_mask(torch.tensor(lengths), wide_a.shape[1])
        losses = spectrogram_losses(wide_a, wide_b, mask, feature, time)
        assert losses.keys() == expected.keys()
        for name, value in expected.items():
            assert losses[name].item() == pytest.approx(value, abs=1e-5, rel=1e-5), name


def test_a_batch_is_its_samples_weighted_by_their_elements():
    a, b = torch.randn(2, 2, 8, 5)
    lengths = [8, 5]
    mask = lengths_to_mask(torch.tensor(lengths), 8)
    whole = spectrogram_losses(a, b, mask, 1, 1)
    singles = [
        spectrogram_losses(a[i : i + 1, :n], b[i : i + 1, :n], mask[i : i + 1, :n], 1, 1) for i, n in enumerate(lengths)
    ]
    for name, weights in (
        ("spectrogram", (8, 5)),
        ("spectrogram_feature_delta", (8, 5)),
        ("spectrogram_time_delta", (7, 4)),
    ):
        expected = sum(w * s[name] for w, s in zip(weights, singles, strict=True)) / sum(weights)
        torch.testing.assert_close(whole[name], expected)


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.full((2, 2), float("nan")), torch.zeros(2, 2, dtype=torch.bool)) == 0


def test_text_loss():
    torch.manual_seed(0)
    logits, targets, lengths = torch.randn(3, 6, 11), torch.randint(0, 11, (3, 6)), [6, 1, 4]
    mask = lengths_to_mask(torch.tensor(lengths), 6)
    costs = []
    for i, n in enumerate(lengths):
        for u in range(n):
            row = logits[i, u].double().numpy()
            costs.append(np.log(np.exp(row).sum()) - row[targets[i, u]])
    logits[~mask] = float("nan")
    assert text_loss(logits, targets, mask).item() == pytest.approx(np.mean(costs), abs=1e-5)


@pytest.mark.parametrize("weight", [1.0, 20.0])
def test_stop_loss(weight: float):
    torch.manual_seed(0)
    logits, lengths = torch.randn(3, 5), [5, 1, 3]
    mask = lengths_to_mask(torch.tensor(lengths), 5)
    last = torch.zeros(3, 5, dtype=torch.bool)
    costs = []
    for i, n in enumerate(lengths):
        last[i, n - 1] = True
        for t in range(n):
            p = 1 / (1 + np.exp(-logits[i, t].double().item()))
            costs.append(-weight * np.log(p) if t == n - 1 else -np.log(1 - p))
    logits[~mask] = 1e6
    assert stop_loss(logits, last, mask, weight).item() == pytest.approx(np.mean(costs), abs=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3])
def test_the_decoders_losses(factor: int):
    """The last step may hold fewer than r valid frames: the rest of it is no target, and it is the one that stops."""
    torch.manual_seed(0)
    decoder = MLPDecoder(AudioSpec(n_mels=6), 8, 4, 8, factor, stop_positive_weight=5.0)
    frames, steps = [7, 4], [-(-7 // factor), -(-4 // factor)]
    hidden, target = torch.randn(2, steps[0], 8), torch.randn(2, steps[0] * factor, 6)
    mask = lengths_to_mask(torch.tensor(frames), target.shape[1])
    losses, prediction = decoder.loss(hidden, target, mask)
    assert prediction.shape == target.shape
    expected = expected_losses(prediction.detach().numpy(), target.numpy(), frames, 1, 3)
    last = torch.zeros(2, steps[0], dtype=torch.bool)
    last[0, steps[0] - 1] = last[1, steps[1] - 1] = True
    stop = stop_loss(decoder.stop(hidden)[..., 0], last, lengths_to_mask(torch.tensor(steps), steps[0]), 5.0)
    for name, value in {**expected, "stop": stop.item()}.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-5, rel=1e-5), name
