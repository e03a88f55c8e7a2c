"""The corpus of scripts/smollm2_whisper.sh: what the LLM asks and answers, and where recordings are cut."""

import random

import pytest

from datamodules.manifest import Word

corpus = pytest.importorskip("scripts.make_transcription_corpus", reason="soxr is not installed")


class Scribbler:
    """Writes what the message asks for, by chance alone, as a sampling LLM does; answers follow from the question."""

    def __init__(self, rounds: int):
        self.rounds = rounds

    def write(self, messages, most_tokens, **sampling):
        assert most_tokens == (160 if sampling else corpus.ANSWER_TOKENS)
        if not sampling:
            return [f"It is number {m.split()[3]} of them. More of it." for m in messages]
        self.rounds -= 1
        if self.rounds < 0:
            raise KeyboardInterrupt
        words = ["one", "two", "red", "blue", "7", "sea"]
        chooser = random.Random(int(corpus.torch.randint(2**31, ())))
        asked = [f"1. What is the {' '.join(chooser.choices(words, k=3))} called? Why?" for _ in messages]
        return [" ".join(asked[i : i + 2]) for i in range(len(messages))]


def test_interrupted_questions_are_those_of_an_uninterrupted_run(tmp_path):
    whole = corpus.write_questions(Scribbler(100), 90, 0, tmp_path / "whole.tsv")
    assert len(whole) == 90 == len(dict(whole))
    with pytest.raises(KeyboardInterrupt):
        corpus.write_questions(Scribbler(1), 90, 0, tmp_path / "parts.tsv")
    assert 0 < len((tmp_path / "parts.tsv").read_text().splitlines()) < 90
    assert corpus.write_questions(Scribbler(100), 90, 0, tmp_path / "parts.tsv") == whole
    for question, answer in whole:
        # First sentences only, nothing that is written in digits, and no question of a single word.
        assert question.startswith("what is the ") and "7" not in question
        assert answer == f"it is number {question.split()[3]} of them"


def test_recordings_are_cut_between_words_and_never_where_one_is_written_in_digits():
    texts = ["a", "b", "c", "1850", "d", "e", "f", "g", "h", "i"]
    words = [Word(text, 0.5 * i, 0.4) for i, text in enumerate(texts)]
    found = list(corpus.segments(words, 5.0, (1.0, 2.0), 0.5))
    assert found and all("1850" not in [w.text for w in inside] for _, _, inside in found)
    for start, end, inside in found:
        assert 1.0 <= end - start <= 2.05
        for word in inside:
            assert word.start_seconds >= 0 and start + word.start_seconds + word.duration_seconds <= end
            assert Word(word.text, pytest.approx(start + word.start_seconds), 0.4) in words
