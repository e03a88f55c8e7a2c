"""Lengths and masks, and the packing of prefix, text and speech into one right-padded sequence.

Shapes: B batch, S prefix positions, U text tokens, N speech steps, L packed positions, D model width.

One packed sample, with its targets (METHOD "Training example"):

    input   prefix_1 .. prefix_S   sos  y_1 .. y_U  eos      step_1 .. step_{N-1}
    target  (none)                 y_1  ..  y_U eos step_1   step_2 .. step_N
"""

from dataclasses import dataclass

import torch
from torch import Tensor


def lengths_to_mask(lengths: Tensor, size: int) -> Tensor:
    """(B,) lengths to a (B, size) bool mask, true on the first ``lengths`` positions."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def concatenate_ragged(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Joins right-padded sequences sample by sample, with padding (zeros) only at the end.

    Args:
        parts: Pairs of a (B, X, D) tensor and its (B,) lengths.

    Returns:
        (B, L, D) and lengths (B,), where L is the longest sum of lengths.
    """
    lengths = torch.stack([length for _, length in parts])
    total = lengths.sum(0)
    joined = torch.cat([tensor for tensor, _ in parts], dim=1)
    valid = torch.cat([lengths_to_mask(length, tensor.shape[1]) for tensor, length in parts], dim=1)
    # A stable sort on "is padding" moves the valid positions to the front and keeps their order.
    order = valid.logical_not().long().argsort(dim=1, stable=True)[:, : int(total.max())]
    packed = joined.gather(1, order[..., None].expand(-1, -1, joined.shape[2]))
    return packed * lengths_to_mask(total, packed.shape[1])[..., None], total


def prefix_lm_mask(prefix_lengths: Tensor, lengths: Tensor, size: int, bidirectional: bool) -> Tensor:
    """Attention mask of a prefix LM.

    Args:
        prefix_lengths: (B,) positions of the prefix.
        lengths: (B,) all valid positions.
        size: L.
        bidirectional: Whether prefix positions see the whole prefix, or only what precedes them.

    Returns:
        (B, 1, L, L) bool; [b, 0, i, j] says that position i attends to position j. Padded rows keep the causal
        pattern over valid positions, so no row is empty and no softmax is NaN.
    """
    index = torch.arange(size, device=lengths.device)
    allowed = (index[:, None] >= index[None, :])[None]
    if bidirectional:
        in_prefix = index < prefix_lengths[:, None]
        allowed = allowed | (in_prefix[:, :, None] & in_prefix[:, None, :])
    return (allowed & lengths_to_mask(lengths, size)[:, None, :])[:, None]


@dataclass
class PackedSequence:
    """What the LM is fed in training.

    Attributes:
        embeddings: (B, L, D).
        attention_mask: (B, 1, L, L) bool.
        position_ids: (B, L).
        text_index: (B, U + 1) positions whose output is y_1 .. y_U, eos.
        text_mask: (B, U + 1) bool.
        speech_index: (B, N) positions whose output is speech step 1 .. N.
        speech_mask: (B, N) bool.
    """

    embeddings: Tensor
    attention_mask: Tensor
    position_ids: Tensor
    text_index: Tensor
    text_mask: Tensor
    speech_index: Tensor
    speech_mask: Tensor


def pack(
    prefix: Tensor,
    prefix_lengths: Tensor,
    text: Tensor,
    text_lengths: Tensor,
    speech: Tensor,
    speech_lengths: Tensor,
    bidirectional: bool,
) -> PackedSequence:
    """
    Args:
        prefix: (B, S, D) projected prompt features.
        prefix_lengths: (B,).
        text: (B, U + 2, D) embeddings of sos, y, eos.
        text_lengths: (B,) sos and eos counted in.
        speech: (B, N - 1, D) pre-net outputs of every step but each sample's last.
        speech_lengths: (B,) steps to predict (N of each sample), at least 1.
        bidirectional: See `prefix_lm_mask`.
    """
    embeddings, lengths = concatenate_ragged(
        [(prefix, prefix_lengths), (text, text_lengths), (speech, speech_lengths - 1)]
    )
    size, device = embeddings.shape[1], embeddings.device
    text_steps, speech_steps = text.shape[1] - 1, speech.shape[1] + 1
    text_index = prefix_lengths[:, None] + torch.arange(text_steps, device=device)
    speech_index = (prefix_lengths + text_lengths - 1)[:, None] + torch.arange(speech_steps, device=device)
    return PackedSequence(
        embeddings=embeddings,
        attention_mask=prefix_lm_mask(prefix_lengths, lengths, size, bidirectional),
        position_ids=torch.arange(size, device=device).expand(len(lengths), size),
        text_index=text_index.clamp(max=size - 1),
        text_mask=lengths_to_mask(text_lengths - 1, text_steps),
        speech_index=speech_index.clamp(max=size - 1),
        speech_mask=lengths_to_mask(speech_lengths, speech_steps),
    )


def gather_positions(hidden: Tensor, index: Tensor) -> Tensor:
    """(B, L, D) at positions (B, X) to (B, X, D)."""
    return hidden.gather(1, index[..., None].expand(-1, -1, hidden.shape[2]))
