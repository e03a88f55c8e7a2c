"""How far a figure would move with other utterances.

Shapes: N utterances, R resamples.
"""

import numpy as np

RESAMPLES = 2000
COVERAGE = 0.95


def resampled_ratios(numerators: np.ndarray, denominators: np.ndarray, seed: int = 0) -> np.ndarray:
    """A sum over a sum, over N utterances drawn with replacement, `RESAMPLES` times.

    As many utterances and the same seed give the same draws: the difference of two results is that of two systems on
    the same utterances.

    Args:
        numerators: (N,) or (N, metrics).
        denominators: The same shape.
        seed: Of the draws.

    Returns:
        (R,) or (R, metrics); NaN where what was drawn held nothing to count.

    Source: Bisani and Ney 2004, "Bootstrap estimates for confidence intervals in ASR performance evaluation".
    """
    count = len(numerators)
    times_drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), RESAMPLES).astype(float)
    sums = times_drawn @ denominators
    return np.divide(times_drawn @ numerators, sums, out=np.full(sums.shape, np.nan), where=sums != 0)


def interval(values: np.ndarray) -> tuple[float, float] | None:
    """The middle 95 % of (R,) resamples; None where more than 5 % are undefined."""
    if np.isnan(values).mean() > 1 - COVERAGE:
        return None
    tail = (1 - COVERAGE) / 2
    low, high = np.nanquantile(values, (tail, 1 - tail))
    return float(low), float(high)


def intervals(counts: dict[str, dict[str, tuple[float, float]]]) -> dict[str, tuple[float, float]]:
    """95 % intervals of metrics over two utterances or more.

    Args:
        counts: Of each utterance, numerator and denominator of each metric that it has a share in.
    """
    names = sorted({name for row in counts.values() for name in row})
    if len(counts) < 2 or not names:
        return {}
    table = np.array([[counts[utterance].get(name, (0, 0)) for name in names] for utterance in sorted(counts)])
    ratios = resampled_ratios(table[..., 0], table[..., 1])
    found = {name: interval(ratios[:, index]) for index, name in enumerate(names)}
    return {name: bounds for name, bounds in found.items() if bounds}
