import itertools

import pytest
import torch

from lit_spectron.errors import UserError
from lit_spectron.projection import Projection, ProjectionSettings, TokenProjection


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


def token_projection() -> tuple[TokenProjection, torch.nn.Embedding, tuple]:
    """Five tokens of an encoder, spelled by an LM of nine words; a batch of features, what they say, and lengths."""
    torch.manual_seed(0)
    projection = TokenProjection(6, 8, [[3], [4, 5], [], [6, 7, 8, 1, 2], [0]], sos_id=2)
    probabilities = torch.rand(2, 4, 3)
    probabilities[:, 0] = 0
    tokens = torch.rand(2, 4, 5).argsort(2)[..., :3]
    return projection, torch.nn.Embedding(9, 8), (torch.randn(2, 4, 6), torch.tensor([2, 4]), probabilities, tokens)


@torch.no_grad()
def test_tokens_are_read_as_the_words_of_the_llm():
    projection, words, batch = token_projection()
    prefix, lengths = projection(*batch, words)
    _, _, probabilities, tokens = batch
    assert lengths.tolist() == [2, 4] and torch.equal(prefix[:, 0], words.weight[2].expand(2, 8))
    spelled = [
        words.weight[[3]],
        words.weight[[4, 5]],
        torch.zeros(1, 8),
        words.weight[[6, 7, 8, 1]],
        words.weight[[0]],
    ]
    for row, place in itertools.product(range(2), range(1, 4)):
        said = zip(probabilities[row, place], tokens[row, place], strict=True)
        wanted = sum(probability * spelled[token].mean(0) for probability, token in said)
        torch.testing.assert_close(prefix[row, place], wanted)
    projection.map.weight.copy_(torch.randn(8, 6))
    unit = torch.nn.functional.normalize(batch[0] - batch[0].mean(2, keepdim=True), dim=2)
    torch.testing.assert_close(projection(*batch, words)[0], prefix + unit @ projection.map.weight.T, atol=1e-4, rtol=0)


def test_tokens_pass_gradients_on_to_words_probabilities_and_map():
    projection, words, (features, lengths, probabilities, tokens) = token_projection()
    probabilities.requires_grad_()
    projection(features, lengths, probabilities, tokens, words)[0].square().sum().backward()
    assert all(p.grad.any() for p in (probabilities, words.weight, *projection.parameters()))


def test_token_settings():
    for settings in ({"downsampling": 2}, {"hidden_size": 8}):
        with pytest.raises(UserError, match="kind tokens has no use"):
            ProjectionSettings(kind="tokens", **settings)
    with pytest.raises(UserError, match="kind stack has no use for lower_case"):
        ProjectionSettings(lower_case=True)
