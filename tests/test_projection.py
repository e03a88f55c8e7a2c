import itertools
import math

import pytest
import torch

from lit_spectron.errors import UserError
from lit_spectron.projection import LetterProjection, Projection, ProjectionSettings


@pytest.mark.parametrize("hidden_size", [None, 12])
@pytest.mark.parametrize("kind", ["stack", "convolution"])
@pytest.mark.parametrize("factor", [1, 2, 5])
def test_shapes_padding_and_gradients(factor, kind, hidden_size):
    torch.manual_seed(0)
    projection = Projection(6, 8, ProjectionSettings(factor, kind, hidden_size))
    lengths = torch.tensor([4, 11])
    features = torch.randn(2, 11, 6)
    features[0, 4:] = 1e3  # whatever lies beyond the length is never looked at
    prefix, prefix_lengths = projection(features, lengths)
    assert prefix_lengths.tolist() == [-(-4 // factor), -(-11 // factor)] and prefix.shape == (2, -(-11 // factor), 8)
    alone, _ = projection(features[:1, :4], lengths[:1])
    torch.testing.assert_close(prefix[0, : alone.shape[1]], alone[0])
    prefix.sum().backward()
    assert all(p.grad is not None for p in projection.parameters())


def test_stacking_is_a_linear_map_of_neighbours():
    projection = Projection(3, 4, ProjectionSettings(downsampling=2))
    features = torch.randn(1, 5, 3)
    prefix, _ = projection(features, torch.tensor([5]))
    assert projection.map.weight.shape == (4, 6)
    wanted = projection.map.weight @ torch.cat([features[0, 2], features[0, 3]]) + projection.map.bias
    torch.testing.assert_close(prefix[0, 1], wanted)
    wanted = projection.map.weight @ torch.cat([features[0, 4], torch.zeros(3)]) + projection.map.bias
    torch.testing.assert_close(prefix[0, 2], wanted)


def test_the_convolution_is_centred():
    """Position i looks at features around i * factor, and at no others."""
    projection = Projection(3, 4, ProjectionSettings(3, "convolution"))
    features = torch.randn(1, 12, 3, requires_grad=True)
    prefix, _ = projection(features, torch.tensor([12]))
    (gradient,) = torch.autograd.grad(prefix[0, 2].sum(), features)
    assert gradient[0].abs().sum(1).nonzero().flatten().tolist() == [5, 6, 7, 8, 9]


def test_bad_settings():
    with pytest.raises(UserError, match="downsampling"):
        ProjectionSettings(downsampling=0)


def letter_projection(features: int = 6, context: int = 3) -> LetterProjection:
    torch.manual_seed(0)
    projection = LetterProjection(features, 12, torch.randn(len(LetterProjection.LETTERS), 8), context)
    with torch.no_grad():
        for parameter in projection.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return projection


def test_letters_padding_neighbours_and_gradients():
    projection = letter_projection()
    lengths = torch.tensor([4, 11])
    features = torch.randn(2, 11, 6)
    features[0, 4:] = 1e3
    prefix, prefix_lengths = projection(features, lengths)
    assert prefix.shape == (2, int(prefix_lengths.max()), 8) and 1 < prefix_lengths[0] <= 4 < prefix_lengths[1] <= 11
    alone, count = projection(features[:1, :4], lengths[:1])
    assert count == prefix_lengths[0]
    torch.testing.assert_close(prefix[0, :count], alone[0])
    (prefix.sum() + projection.loss(features, lengths, ["ab", "it's"])).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in projection.parameters())


def test_features_of_one_letter_become_one_position():
    """Features that are told apart by hand: a a _ a b b _ _ c."""
    projection = LetterProjection(4, 4, torch.randn(len(LetterProjection.LETTERS), 8))
    letters = ["a", "b", "c"]
    projection.hidden = torch.nn.Identity()
    with torch.no_grad():
        projection.neighbours.weight.copy_(torch.eye(4)[..., None])
        projection.neighbours.bias.zero_()
        projection.spell.weight.zero_()
        projection.spell.bias.zero_()
        for channel, letter in enumerate(letters):
            projection.spell.weight[projection.LETTERS.index(letter), channel] = 1e3
        projection.spell.weight[projection.BLANK, 3] = 1e3
        projection.map.weight.normal_()
    heard = torch.tensor([0, 0, 3, 0, 1, 1, 3, 3, 2])
    features = torch.nn.functional.one_hot(heard, 4).float() * torch.linspace(1, 2, 9)[:, None]
    prefix, lengths = projection(features[None], torch.tensor([9]))
    assert lengths.tolist() == [4]
    for position, (letter, rows) in enumerate([("a", [0, 1]), ("a", [3]), ("b", [4, 5]), ("c", [8])]):
        mean = features[rows].mean(0)
        wanted = projection.letters[projection.LETTERS.index(letter)] + projection.map(torch.cat([mean, mean]))
        torch.testing.assert_close(prefix[0, position], wanted, atol=1e-5, rtol=1e-5)
    silence = torch.tensor([[[0.0, 0, 0, 1]] * 5])
    assert projection(silence, torch.tensor([5]))[1].tolist() == [1]


def test_the_letters_loss():
    """CTC against a sum over all paths."""
    projection = letter_projection()
    features = torch.randn(2, 5, 6)
    with torch.no_grad():
        lengths = torch.tensor([5, 3])
        probabilities = projection.listen(features, lengths)[1].double().softmax(2)
        loss = projection.loss(features, lengths, ["Ab -  B!", "c"])
    expected = []
    for rows, spelled in ((probabilities[0], "ab b"), (probabilities[1, :3], "c")):
        total = 0.0
        symbols = [*{projection.LETTERS.index(letter) for letter in spelled}, projection.BLANK]
        for path in itertools.product(symbols, repeat=len(rows)):
            merged = [symbol for symbol, _ in itertools.groupby(path) if symbol != projection.BLANK]
            if "".join(projection.LETTERS[symbol] for symbol in merged) == spelled:
                total += torch.stack([row[symbol] for row, symbol in zip(rows, path, strict=True)]).prod().item()
        expected.append(-math.log(total) / len(spelled))
    assert loss.item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_letters_are_told_by_their_neighbours():
    features = torch.randn(1, 9, 6)
    changed = features.index_fill(1, torch.tensor([6]), 0.0)
    for context in (1, 5):
        projection, lengths = letter_projection(context=context), torch.tensor([9])
        moved = (projection.listen(features, lengths)[1] != projection.listen(changed, lengths)[1]).any(2)[0]
        assert moved.nonzero().ravel().tolist() == list(range(6 - context // 2, min(9, 7 + context // 2)))


def test_letter_settings():
    with pytest.raises(UserError, match="hidden_size"):
        ProjectionSettings(kind="letters")
    with pytest.raises(UserError, match="context must be odd"):
        ProjectionSettings(kind="letters", hidden_size=4, context=2)
    with pytest.raises(UserError, match="kind stack has no use for context"):
        ProjectionSettings(dropout=0.1)
