"""How likely recordings are to a model, and pairs of them."""

import math

import pytest
import soundfile
import torch

from lit_spectron.errors import UserError
from lit_spectron.generation import GenerationSettings
from lit_spectron.losses import spectrogram_losses
from lit_spectron.masking import prefix_lm_mask
from lit_spectron.pairs import judge_pairs
from lit_spectron.pipeline import SpectronPipeline
from lit_spectron.vocoders import GriffinLim

RATE = 16000


@pytest.fixture
def build(tiny_model, audio):
    """A pipeline of a random model; keywords go to the decoder."""
    settings = GenerationSettings(max_text_tokens=4)
    return lambda **decoder: SpectronPipeline(tiny_model(lively=True, **decoder), GriffinLim(audio), settings, 0.5)


@pytest.fixture
def waveforms() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator) * 0.1 for n in (16000, 20100, 12345)]


@torch.inference_mode()
def step_by_step(model, waveform: torch.Tensor, text: str, split: int) -> tuple[float, float]:
    """Log-probability of the text and eos, and minus the spectrogram terms: one position after the other."""
    tokenizer, factor = model.llm.tokenizer, model.decoder.reduction_factor
    prefix, lengths = model.encode_prompt(waveform[None, :split], torch.tensor([split]))
    size, cache = int(lengths), model.llm.new_cache()
    mask = prefix_lm_mask(lengths, lengths, size, model.bidirectional_prefix)
    model.llm(prefix, mask, torch.arange(size)[None], cache)

    def feed(embedding: torch.Tensor) -> torch.Tensor:
        nonlocal size
        hidden, _ = model.llm(embedding, torch.ones(1, 1, 1, size + 1, dtype=torch.bool), torch.tensor([[size]]), cache)
        size += 1
        return hidden[:, 0]

    nats, last = 0.0, tokenizer.sos_id
    for token in [*tokenizer.encode(text), tokenizer.eos_id]:
        hidden = feed(model.llm.embed(torch.tensor([[last]])))
        nats += float(model.llm.logits(hidden).log_softmax(-1)[0, token])
        last = token
    log_mel, frames = model.log_mel(waveform[None, split:], torch.tensor([len(waveform) - split]))
    steps = -(-int(frames) // factor)
    target = torch.nn.functional.pad(log_mel, (0, 0, 0, steps * factor - int(frames)))
    hidden, predicted = feed(model.llm.embed(torch.tensor([[last]]))), []
    for step in range(steps):
        predicted.append(model.decoder.step(hidden)[0])
        true = target[:, step * factor : (step + 1) * factor]
        hidden = feed(model.decoder.prenet(true[:, None])) if step < steps - 1 else hidden
    valid = (torch.arange(steps * factor) < frames)[None]
    return nats, -float(sum(spectrogram_losses(torch.cat(predicted, 1), target, valid).values()))


def test_likelihood_is_the_models_step_by_step(build, waveforms):
    pipeline = build()
    for waveform, text in zip(waveforms, ("one two", "", "three"), strict=True):
        (found,) = pipeline.log_likelihood([waveform], [text], 0.5)
        nats, spectrogram = step_by_step(pipeline.model, waveform, text, 8000)
        assert found.text == pytest.approx(nats, abs=1e-3) and found.tokens == len(text) + 1
        assert found.spectrogram == pytest.approx(spectrogram, rel=1e-4)
        (whole,) = pipeline.log_likelihood([waveform[:8000]], [text])
        assert whole.text == pytest.approx(nats, abs=1e-3) and whole.spectrogram is None


def test_neighbours_and_the_state_of_chance_do_not_matter(build, waveforms):
    pipeline, texts = build(prenet_dropout=0.5), ["a", None, "bc"]
    torch.manual_seed(5)
    together = pipeline.log_likelihood(waveforms, texts, 0.5)
    state = torch.get_rng_state()
    alone = [pipeline.log_likelihood([w], [t], 0.5)[0] for w, t in zip(waveforms[::-1], texts[::-1], strict=True)]
    assert together == alone[::-1] and torch.equal(state, torch.get_rng_state())
    assert len({found.spectrogram for found in together}) == 3


def test_without_a_text_it_is_the_models_own(build, waveforms):
    pipeline = build()
    own = pipeline.generate([waveforms[0][:8000]])[0].text[0]
    assert own and pipeline.log_likelihood(waveforms[:1], None, 0.5) == pipeline.log_likelihood(
        waveforms[:1], [own], 0.5
    )


def test_what_is_too_short_is_refused(build, waveforms):
    for seconds, message in ((2.0, "nothing after its prompt"), (0.001, "at least")):
        with pytest.raises(UserError, match=message):
            build().log_likelihood(waveforms[:1], ["a"], seconds)


@pytest.fixture
def table(tmp_path, waveforms):
    for name, waveform in zip("abc", waveforms, strict=True):
        soundfile.write(tmp_path / f"{name}.wav", waveform.numpy(), RATE, subtype="FLOAT")
    rows = ["better\tworse\tbetter_text\tworse_text", "a.wav\tb.wav\tone\ttwenty", "b.wav\ta.wav\ttwenty\tone"]
    (tmp_path / "pairs.tsv").write_text("\n".join([*rows, "c.wav\tc.wav\tx\tx"]) + "\n")
    return tmp_path / "pairs.tsv"


def test_pairs(build, waveforms, table, tmp_path):
    """Of a pair and its mirror image one is right; of two equal recordings, half."""
    pipeline, said = build(), []
    for by in ("text", "text_per_token", "spectrogram"):
        assert judge_pairs(pipeline, table, by, 0.5, tmp_path / "out/scores.tsv", said.append) == 0.5
    assert said[0].startswith("accuracy by text: 0.5000 [0.") and said[0].endswith("of 3 pairs")
    header, first, *_ = [line.split("\t") for line in (tmp_path / "out/scores.tsv").read_text().splitlines()]
    assert header[-2:] == ["better_score", "worse_score"] and first[:4] == ["a.wav", "b.wav", "one", "twenty"]
    likelihoods = pipeline.log_likelihood(waveforms[:2], ["one", "twenty"], 0.5)
    assert [float(value) for value in first[4:]] == pytest.approx(
        [found.spectrogram for found in likelihoods], abs=1e-5
    )
    judge_pairs(pipeline, table, "text_per_token", None, tmp_path / "scores.tsv", said.append)
    score = float((tmp_path / "scores.tsv").read_text().splitlines()[1].split("\t")[4])
    (whole,) = pipeline.log_likelihood(waveforms[:1], ["one"])
    assert score == pytest.approx(whole.text / 4, abs=1e-5) and not math.isclose(score, whole.text)
    with pytest.raises(UserError, match="needs --prompt_seconds"):
        judge_pairs(pipeline, table, "spectrogram")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read"),
        ("", "no column better, but nothing"),
        ("better\tother\n", "no column worse"),
        ("better\tworse\n", "holds no pairs"),
        ("better\tworse\na.wav\tgone.wav\n", ":2: worse: no such file: gone.wav"),
        ("better\tworse\na.wav\n", ":2: worse"),
    ],
)
def test_bad_tables_of_pairs_are_named(table, content, message):
    table.unlink()
    if content is not None:
        table.write_text(content)
    with pytest.raises(UserError, match=rf"pairs\.tsv.*{message}"):
        judge_pairs(None, table)
