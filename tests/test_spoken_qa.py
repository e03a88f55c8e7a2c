"""Spoken questions: a table of question, answers and audio."""

from pathlib import Path

import pytest

from datamodules import SpokenQADataModule
from lit_spectron.errors import UserError
from tests.test_datamodules import RATE, with_model

SAMPLE = Path(__file__).parents[2] / "shared/data/llama_questions_sample"


@pytest.fixture
def questions(corpus) -> Path:
    table = corpus / "questions.tsv"
    first, second = "small/s1/book/book_0000.wav", "small/s0/book/book_0000.flac"
    rows = [
        "Questions\tAnswer\tWav Filename",
        f"Where?\tCôte\t{first}",
        f'Who?\t["a", "b"]\t{second}',
        "When?\tnow\tgone.wav",
    ]
    table.write_bytes("\r\n".join(rows).encode())
    return table


def test_spoken_questions(questions):
    module = with_model(SpokenQADataModule(str(questions)))
    with pytest.warns(UserWarning, match=r"left out 1 of 3 questions without audio in .*corpus: gone\.wav$"):
        module.setup("predict")
    (batch,) = module.predict_dataloader()
    assert batch.text == ["Where?", "Who?"] and batch.answers == [["Côte"], ["a", "b"]] and batch.split == "predict"
    assert batch.lengths.tolist() == batch.prompt_samples.tolist() == [6 * RATE] * 2
    assert module.without_audio == ["gone.wav"] and batch.ids == [f"small/s{i}/book/book_0000" for i in (1, 0)]
    (questions.parent / "small/s1/book/book_0000.wav").write_bytes(b"no sound")
    (batch,) = module.predict_dataloader()
    with pytest.warns(UserWarning, match="question small/s1/book/book_0000 left out: .*unreadable"):
        module.on_after_batch_transfer(batch, 0)
    assert batch.text == ["Who?"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "none.tsv"}, "none.tsv"),
        ({"answer_column": "Answers"}, "no column Answers"),
        ({"audio_root": "/nowhere"}, "/nowhere"),
    ],
)
def test_bad_tables_of_questions_are_named(questions, change, message):
    with pytest.raises(UserError, match=message):
        SpokenQADataModule(**{"table": str(questions), **change}).setup("predict")
    whole = questions.read_bytes()
    for row in (b"Why?\t\tx.wav", b"Why?\t[]\tx.wav", b"\tx\tx.wav"):
        questions.write_bytes(whole + b"\r\n" + row)
        with pytest.raises(UserError, match=r"questions\.tsv:5"):
            SpokenQADataModule(str(questions)).setup("predict")
    questions.write_bytes(whole + b"\r\nWh\xe9?\tx\tx.wav")
    with pytest.raises(UserError, match="UTF-8"):
        SpokenQADataModule(str(questions)).setup("predict")
    questions.write_bytes(whole + b"\r\nWhy?\tx\tgone.flac")
    with pytest.raises(UserError, match=r"several questions have the audio gone;"):
        SpokenQADataModule(str(questions)).setup("predict")
    with pytest.raises(UserError, match="for predict"):
        SpokenQADataModule(str(questions)).setup("fit")


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no spoken questions at {SAMPLE}")
def test_llama_questions():
    module = with_model(SpokenQADataModule(str(SAMPLE / "llama_questions_300.tsv")))
    module.setup("predict")
    batches = list(module.predict_dataloader())
    assert sum(map(len, batches)) == len(list(SAMPLE.glob("*.wav"))) and not any(b.skipped for b in batches)
    answers = {text: answer for b in batches for text, answer in zip(b.text, b.answers, strict=True)}
    assert answers["What is the capital of Greenland?"] == ["Nuuk"]
