"""From where someone speaks to utterances: cut at gaps, nothing longer than asked for. All times in seconds."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np

Interval = tuple[float, float]

PAUSE_SECONDS = 0.05  # a place is as quiet as so much around it


def merged(activity: Iterable[Interval], end: float) -> list[Interval]:
    """Intervals in order, those that overlap joined, and nothing beyond ``end``."""
    result: list[Interval] = []
    for start, stop in sorted((max(0.0, a), min(b, end)) for a, b in activity):
        if stop <= start:
            continue
        if result and start <= result[-1][1]:
            result[-1] = (result[-1][0], max(result[-1][1], stop))
        else:
            result.append((start, stop))
    return result


def segments(
    activity: Iterable[Interval],
    min_seconds: float,
    max_seconds: float,
    max_gap_seconds: float,
    quiet_place: Callable[[float, float], float],
) -> Iterator[Interval]:
    """Neighbouring activity joined to segments of at most ``max_seconds``.

    Args:
        activity: In order, not overlapping.
        min_seconds: Shortest piece that longer activity is cut into, where that can be.
        max_seconds: Longest segment. Longer activity is cut at quiet places.
        max_gap_seconds: Longest silence inside a segment.
        quiet_place: Where to cut between two times.
    """
    begin = end = None
    for start, stop in (piece for a in activity for piece in _pieces(*a, min_seconds, max_seconds, quiet_place)):
        if begin is not None and end is not None:
            if start - end <= max_gap_seconds and stop - begin <= max_seconds:
                end = stop
                continue
            yield begin, end
        begin, end = start, stop
    if begin is not None and end is not None:
        yield begin, end


def _pieces(
    start: float, stop: float, min_seconds: float, max_seconds: float, quiet_place: Callable[[float, float], float]
) -> Iterator[Interval]:
    """One stretch in pieces of at least half of ``max_seconds``, unless it is short enough as it is."""
    shortest = max(max_seconds / 2, min_seconds)
    while stop - start > max_seconds:
        latest = min(max_seconds, stop - start - shortest)
        # Where two pieces would both be too short, one is as long as can be.
        cut = quiet_place(start + shortest, start + latest) if latest > shortest else start + max_seconds
        yield start, cut
        start = cut
    yield start, stop


def quietest(samples: np.ndarray, sample_rate_hz: int) -> int:
    """The sample around which a stretch of audio (T,) has the least energy."""
    width = max(1, round(PAUSE_SECONDS * sample_rate_hz))
    if len(samples) <= width:
        return len(samples) // 2
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples, dtype=np.float64))])
    return int(np.argmin(energy[width:] - energy[:-width])) + width // 2
