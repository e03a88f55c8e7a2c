import pytest
import torch

from lit_spectron.masking import concatenate_ragged, gather_positions, lengths_to_mask, pack, prefix_lm_mask


def ragged(batch: int, size: int, lengths: list[int], width: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random values, with garbage beyond the lengths."""
    return torch.randn(batch, size, width), torch.tensor(lengths)


def test_lengths_to_mask():
    expected = [[False, False, False], [True, False, False], [True, True, True]]
    assert lengths_to_mask(torch.tensor([0, 1, 3]), 3).tolist() == expected


def test_concatenation_is_a_loops():
    torch.manual_seed(0)
    for _ in range(20):
        parts = []
        for _ in range(3):
            lengths = torch.randint(0, 5, (4,)).tolist()
            parts.append(ragged(4, max(lengths) + int(torch.randint(0, 3, ())), lengths))
        joined, total = concatenate_ragged(parts)
        assert joined.shape[1] == total.max()
        for i in range(4):
            expected = torch.cat([tensor[i, : lengths[i]] for tensor, lengths in parts])
            assert total[i] == len(expected)
            assert torch.equal(joined[i, : len(expected)], expected)
            assert not joined[i, len(expected) :].any()


@pytest.mark.parametrize("bidirectional", [True, False])
def test_prefix_mask_is_a_loops(bidirectional: bool):
    prefix_lengths, lengths, size = [0, 2, 4], [5, 6, 7], 7
    mask = prefix_lm_mask(torch.tensor(prefix_lengths), torch.tensor(lengths), size, bidirectional)
    assert mask.shape == (3, 1, size, size)
    for b in range(3):
        for i in range(size):
            for j in range(size):
                both_in_prefix = i < prefix_lengths[b] and j < prefix_lengths[b]
                expected = j < lengths[b] and (j <= i or (bidirectional and both_in_prefix))
                assert mask[b, 0, i, j] == expected
    assert mask.any(-1).all()


def test_pack_points_where_it_says():
    """Values name their kind and number: prefix 100 + i, text 200 + i, speech 300 + i; garbage is -1."""
    prefix_lengths, tokens, steps = [3, 1, 2], [2, 4, 1], [3, 1, 5]

    def part(kind: int, lengths: list[int], size: int) -> tuple[torch.Tensor, torch.Tensor]:
        values = torch.full((3, size, 2), -1.0)
        for i, n in enumerate(lengths):
            values[i, :n] = (kind + torch.arange(n))[:, None]
        return values, torch.tensor(lengths)

    text_lengths = [n + 2 for n in tokens]
    speech, _ = part(300, [n - 1 for n in steps], max(steps) - 1)
    packed = pack(
        *part(100, prefix_lengths, 4), *part(200, text_lengths, 6), speech, torch.tensor(steps), bidirectional=True
    )
    assert not (packed.embeddings == -1).any()
    fed_text = gather_positions(packed.embeddings, packed.text_index)[..., 0]
    fed_speech = gather_positions(packed.embeddings, packed.speech_index)[..., 0]
    for i in range(3):
        total = prefix_lengths[i] + text_lengths[i] + steps[i] - 1
        assert (packed.embeddings[i, :total] > 0).all() and not packed.embeddings[i, total:].any()
        assert packed.position_ids[i].tolist() == list(range(packed.embeddings.shape[1]))
        # y_1 .. y_U, eos come out where sos, y_1 .. y_U go in
        assert fed_text[i][packed.text_mask[i]].tolist() == [200 + n for n in range(tokens[i] + 1)]
        # step 1 comes out where eos goes in, step n + 1 where step n goes in
        eos = 200 + tokens[i] + 1
        assert fed_speech[i][packed.speech_mask[i]].tolist() == [eos, *(300 + n for n in range(steps[i] - 1))]
    expected = prefix_lm_mask(
        torch.tensor(prefix_lengths),
        torch.tensor([p + t + s - 1 for p, t, s in zip(prefix_lengths, text_lengths, steps, strict=True)]),
        packed.embeddings.shape[1],
        True,
    )
    assert torch.equal(packed.attention_mask, expected)
