import pytest
import torch

from lit_spectron.errors import UserError
from lit_spectron.projection import Projection, ProjectionSettings


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
