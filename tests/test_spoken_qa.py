"""Spoken questions: a table of question, answers and audio."""

import json
from pathlib import Path

import pytest
from transformers import pipeline

from callbacks.spoken_qa import answer_words, is_right
from datamodules import SpokenQADataModule
from lit_spectron.cli import main
from lit_spectron.errors import UserError
from lit_spectron.evaluators import CausalLMAnswerer
from tests.test_datamodules import RATE, with_model
from tests.test_pretrained import SMOLLM2, save_sources

ROOT = Path(__file__).parents[1]
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
    assert batch.prompt_text == batch.text  # all that is said is the question
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
    questions.write_bytes(whole + b"\r\nWhy?\tx\tgone.mp3")
    with pytest.raises(UserError, match=r"several questions have the audio gone;"):
        SpokenQADataModule(str(questions)).setup("predict")
    for stage in ("fit", "validate"):
        with pytest.raises(UserError, match="for test and predict"):
            SpokenQADataModule(str(questions)).setup(stage)


JUDGES = """
trainer:
  callbacks:
  - class_path: callbacks.WordErrorRate
  - class_path: callbacks.SpokenQA
    init_args:
      recognizer: tests.judges.CountingRecognizer
      llm_alone:
        class_path: lit_spectron.evaluators.CausalLMAnswerer
        init_args:
          source: ${model.llm.init_args.source}
          max_new_tokens: 5
  - class_path: callbacks.LastCheckpoint
"""


@pytest.mark.slow
def test_what_is_known_before_and_after(questions, tmp_path, monkeypatch):
    """The LLM that the config names answers in writing, whatever became of it in training."""
    monkeypatch.chdir(ROOT)
    _, source = save_sources(tmp_path)
    (tmp_path / "judges.yaml").write_text(JUDGES)
    base = (
        *("--config", "conf/quickstart.yaml", "--config", tmp_path / "judges.yaml", "--trainer.accelerator", "cpu"),
        *("--model.llm", "conf/llm/smollm2_135m.yaml", "--model.llm.init_args.source", source),
        *("--model.generation.max_speech_seconds", 0.4, "--model.generation.max_text_tokens", 3),
        *("--trainer.logger.init_args.save_dir", tmp_path, "--trainer.enable_progress_bar", "false"),
    )
    fit = ("--trainer.max_steps", 1, "--trainer.limit_val_batches", 0, "--data.batch_size", 2)
    main(list(map(str, ("fit", *base, *fit))))
    answers = CausalLMAnswerer(str(source), max_new_tokens=5).answer(["Where?", "Who?"])
    audio = "small/s1/book/book_0000.wav"
    other = questions.with_name("other.wav")
    other.write_bytes((questions.parent / audio).read_bytes())
    rows = [["Questions", "Answer", "Wav Filename"], ["Where?", json.dumps([answers[0]]), audio]]
    rows.append(["Who?", "nobody", other.name])
    questions.write_text("\n".join("\t".join(row) for row in rows))
    run = tmp_path / "quickstart/version_0"
    data = ("--data", "conf/data/llama_questions.yaml", "--data.table", questions)
    main(list(map(str, ("test", *base, *data, "--ckpt_path", run / "checkpoints/last.ckpt"))))
    report = json.loads((run / "report.json").read_text())
    found = report["metrics"]
    assert found["test/qa_accuracy_llm_alone"] == 0.5 and found["test/qa_accuracy_text"] == 0
    assert found["test/qa_knowledge_kept"] == 0 and found["test/qa_accuracy_speech"] is not None
    assert found["test/wer_prompt"] is not None and not any("loss" in name for name in found)
    assert f"CausalLMAnswerer {source}" in report["evaluators"]
    assert report["samples"]["other"]["counts"]["qa_accuracy_llm_alone"] == [0, 1]


@pytest.mark.skipif(not SAMPLE.is_dir(), reason=f"no spoken questions at {SAMPLE}")
def test_llama_questions():
    module = with_model(SpokenQADataModule(str(SAMPLE / "llama_questions_300.tsv")))
    module.setup("predict")
    batches = list(module.predict_dataloader())
    assert sum(map(len, batches)) == len(list(SAMPLE.glob("*.wav"))) and not any(b.skipped for b in batches)
    answers = {text: answer for b in batches for text, answer in zip(b.text, b.answers, strict=True)}
    assert answers["What is the capital of Greenland?"] == ["Nuuk"]


@pytest.mark.slow
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason=f"no SmolLM2 at {SMOLLM2}")
def test_smollm2_answers_in_writing():
    """As Hugging Face's own chat does, greedily."""
    answerer, questions = CausalLMAnswerer(str(SMOLLM2), max_new_tokens=24), ["What is the capital of France?"]
    (answer,) = answerer.answer(questions)
    assert is_right(answer_words(answer), ["Paris"])
    chat = pipeline("text-generation", model=str(SMOLLM2), dtype="float32")
    reply = chat([{"role": "user", "content": questions[0]}], max_new_tokens=24, do_sample=False)
    assert reply[0]["generated_text"][-1]["content"].strip() == answer
