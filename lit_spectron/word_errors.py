"""Words and their errors: what counts as a word is said here once."""

import re
from functools import cache

from lit_spectron.errors import UserError


def words(text: str) -> list[str]:
    """Lower-case words without punctuation: ``"Well, X-ray!"`` is ``["well", "x", "ray"]``; apostrophes stay."""
    return re.sub(r"[^\w']|_", " ", text.lower()).split()


@cache
def _english_normalizer():
    try:
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        raise UserError('normalization: english needs pip install -c constraints.txt -e ".[evaluation]"') from error
    return EnglishTextNormalizer()


def english_words(text: str) -> list[str]:
    """Words as Whisper's authors compare them: ``"Mr. Ray's colours: twenty-five"`` is
    ``["mister", "ray", "is", "colors", "25"]``. Numbers are digits, contractions are written out, spelling is American,
    fillers ("uh") and what stands in brackets are dropped.

    Raises:
        UserError: The extra ``evaluation`` is not installed.

    Source: Radford et al. 2022, appendix C.
    """
    return _english_normalizer()(text).split()


def count_errors(reference: list[str], hypothesis: list[str]) -> int:
    """Substitutions, deletions and insertions that turn one into the other."""
    import jiwer

    if not reference:
        return len(hypothesis)
    result = jiwer.process_words(" ".join(reference), " ".join(hypothesis))
    return result.substitutions + result.deletions + result.insertions


def match_beginning(reference: list[str], hypothesis: list[str]) -> tuple[int, int]:
    """The beginning of ``hypothesis`` that is nearest to ``reference``: an edit distance with a free end.

    Returns:
        Errors, and the length in words of the shortest best beginning.
    """
    distance = list(range(len(hypothesis) + 1))
    for row, wanted in enumerate(reference, start=1):
        previous, distance = distance, [row]
        for column, found in enumerate(hypothesis, start=1):
            distance.append(
                min(previous[column - 1] + (wanted != found), previous[column] + 1, distance[column - 1] + 1)
            )
    best = min(distance)
    return best, distance.index(best)
