import math
from dataclasses import replace

import pytest
import torch

from lit_spectron.audio import frame_level_db
from lit_spectron.errors import UserError
from lit_spectron.generation import FROZEN, Decoding, GenerationSettings, _Breaker, generate
from lit_spectron.masking import gather_positions, lengths_to_mask, pack
from lit_spectron.model import SpectronModel, split_waveform
from lit_spectron.types import Generation

SHORT = GenerationSettings(
    max_text_tokens=6, max_speech_seconds=0.5, stop_threshold=1.0, silence_seconds=None, repeat_seconds=None
)


@pytest.fixture
def prompts(batch):
    """Three prompts of different lengths and levels, padded with zeros."""
    both = batch((1.0, 1.4, 0.9), (0.3, 0.6, 0.45), ("a", "b", "c"))
    return split_waveform(both.waveform, both.lengths, both.prompt_samples)[0], both.prompt_samples, both.ids


def generated_tokens(model: SpectronModel, prompts, settings: GenerationSettings) -> tuple[Generation, list[list[int]]]:
    """Generates, and listens to what the LLM is fed: text does not give random bytes back."""
    fed, original = [], model.llm.embed

    def spy(tokens):
        fed.append(tokens)
        return original(tokens)

    model.llm.embed = spy
    try:
        generation = generate(model, prompts[0], prompts[1], settings, prompts[2])
    finally:
        model.llm.embed = original
    eos = model.llm.tokenizer.eos_id
    rows = torch.cat(fed, 1)[:, 1:].tolist()
    return generation, [row[: row.index(eos)] for row in rows]


def assert_same(generation: Generation, index: int, alone: Generation) -> None:
    assert generation.text[index] == alone.text[0]
    assert generation.text_stop_reason[index] == alone.text_stop_reason[0]
    assert generation.stop_reason[index] == alone.stop_reason[0]
    assert generation.lengths[index] == alone.lengths[0]
    frames = int(alone.lengths[0])
    torch.testing.assert_close(generation.log_mel[index, :frames], alone.log_mel[0, :frames], atol=1e-3, rtol=0)
    torch.testing.assert_close(generation.silence_level_db[index], alone.silence_level_db[0], atol=1e-3, rtol=0)


@pytest.mark.parametrize("prefix_attention", ["bidirectional", "causal"])
@pytest.mark.parametrize(("factor", "attention"), [(1, "sdpa"), (3, "sdpa"), (3, "eager")])
@torch.inference_mode()
def test_decoding_with_a_cache_is_the_teacher_forced_pass(tiny_model, prompts, prefix_attention, factor, attention):
    """Fed with what was generated, one uncached pass predicts every token and frame that was generated."""
    model = tiny_model(prefix_attention=prefix_attention, lively=True, reduction_factor=factor)
    model.llm.network.set_attn_implementation(attention)
    model.set_mel_statistics(torch.full_like(model.mel_mean, -3.0), torch.full_like(model.mel_std, 2.0), 1)
    generation, tokens = generated_tokens(model, prompts, SHORT)
    assert len({tuple(t) for t in tokens}) == 3 and max(len(set(t)) for t in tokens) > 2  # there is something to check
    assert generation.log_mel.std(1).max() > 0.01

    prefix, prefix_lengths = model.encode_prompt(prompts[0], prompts[1])
    text, text_lengths = model.text_input(
        torch.nn.utils.rnn.pad_sequence([torch.tensor(t) for t in tokens], batch_first=True),
        torch.tensor([len(t) for t in tokens]),
    )
    frames = model.normalise(generation.log_mel).unflatten(1, (-1, factor))
    packed = pack(
        prefix,
        prefix_lengths,
        model.llm.embed(text),
        text_lengths,
        model.decoder.prenet(frames[:, :-1]),
        generation.lengths // factor,
        model.bidirectional_prefix,
    )
    hidden, _ = model.llm(packed.embeddings, packed.attention_mask, packed.position_ids)
    chosen = model.llm.logits(gather_positions(hidden, packed.text_index)).argmax(-1)
    for i, wanted in enumerate(tokens):
        assert chosen[i, : len(wanted)].tolist() == wanted
    speech = gather_positions(hidden, packed.speech_index)
    predicted = torch.stack([model.denormalise(model.decoder.step(speech[:, n])[0]) for n in range(speech.shape[1])], 1)
    valid = lengths_to_mask(generation.lengths, generation.log_mel.shape[1])
    torch.testing.assert_close(predicted.flatten(1, 2)[valid], generation.log_mel[valid], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_together_is_one_by_one(tiny_model, prompts, dropout, temperature):
    model = tiny_model(lively=True, prenet_dropout=dropout)
    settings = replace(SHORT, temperature=temperature)
    waveform, lengths, ids = prompts
    together = generate(model, waveform, lengths, settings, ids)
    assert together.text[0] != together.text[1]
    for i, n in enumerate(lengths.tolist()):
        assert_same(together, i, generate(model, waveform[i : i + 1, :n], lengths[i : i + 1], settings, ids[i : i + 1]))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_samples_stop_each_at_its_own_pace(tiny_model, prompts, attention):
    """A stop unit that listens: some samples end early, and what the others say does not change."""
    model = tiny_model(lively=True)
    model.llm.network.set_attn_implementation(attention)
    settings = replace(SHORT, max_speech_seconds=1.0)
    with torch.no_grad():
        model.decoder.stop.weight.normal_(0, 2.0, generator=torch.Generator().manual_seed(1))
        model.decoder.stop.bias.fill_(-4.0)
    waveform, lengths, ids = prompts
    settings = replace(settings, stop_threshold=0.5)
    together = generate(model, waveform, lengths, settings, ids)
    assert len(set(together.lengths.tolist())) > 1
    for i, n in enumerate(lengths.tolist()):
        assert_same(together, i, generate(model, waveform[i : i + 1, :n], lengths[i : i + 1], settings, ids[i : i + 1]))
        assert (together.log_mel[i, together.lengths[i] :] == model.audio.log_mel_floor).all()


def test_seeds(tiny_model, prompts):
    model = tiny_model(lively=True, prenet_dropout=0.5)
    waveform, lengths, ids = prompts
    settings = replace(SHORT, temperature=1.0)
    first, again, other = (generate(model, waveform, lengths, replace(settings, seed=s), ids) for s in (0, 0, 1))
    assert first.text == again.text and torch.equal(first.log_mel, again.log_mel)
    assert first.text != other.text
    greedy = [generate(model, waveform, lengths, replace(SHORT, seed=s), ids) for s in (0, 1)]
    assert greedy[0].text == greedy[1].text and not torch.equal(greedy[0].log_mel, greedy[1].log_mel)


def constant_frames(model: SpectronModel, value: float) -> None:
    with torch.no_grad():
        model.decoder.postnet[2].weight.zero_()
        model.decoder.postnet[2].bias.fill_(value)


def test_stop_by_length(tiny_model, prompts):
    generation = generate(tiny_model(), *prompts[:2], SHORT)
    assert generation.stop_reason == ["length"] * 3
    assert generation.lengths.tolist() == [40] * 3  # 0.5 s at 80 frames a second
    assert generation.log_mel.shape[1] == 40


def test_a_length_that_is_no_multiple_of_the_step_is_not_exceeded(tiny_model, prompts):
    generation = generate(tiny_model(reduction_factor=3), *prompts[:2], SHORT)
    assert generation.lengths.tolist() == [39] * 3


def test_stop_as_learned(tiny_model, prompts):
    model = tiny_model()
    with torch.no_grad():
        model.decoder.stop.bias.fill_(100.0)
    generation = generate(model, *prompts[:2], replace(SHORT, stop_threshold=0.5))
    assert generation.stop_reason == ["stop"] * 3 and generation.lengths.tolist() == [4] * 3


@pytest.mark.parametrize(("value", "reason"), [(-100.0, "silence"), (1.0, "repeat")])
def test_breakers(tiny_model, prompts, value, reason):
    model = tiny_model()
    constant_frames(model, value)
    settings = replace(SHORT, max_speech_seconds=2.0, silence_db=20.0)
    assert generate(model, *prompts[:2], settings).stop_reason == ["length"] * 3
    generation = generate(model, *prompts[:2], replace(settings, **{f"{reason}_seconds": 0.5}))
    assert generation.stop_reason == [reason] * 3 and generation.lengths.tolist() == [40] * 3


@pytest.mark.parametrize("factor", [1, 3])
def test_breakers_count_what_lies_behind(tiny_model, prompts, audio, factor):
    """Samples that begin at different steps, now and then silent, now and then still: each ends where its last frames,
    looked at together, say so, and nowhere else."""
    model = tiny_model(reduction_factor=factor)
    settings = replace(SHORT, silence_seconds=6 * audio.hop_seconds, repeat_seconds=9 * audio.hop_seconds)
    breaker = _Breaker(model, settings, *prompts[:2])
    generator, began = torch.Generator().manual_seed(0), (0, 3, 5)

    def draw() -> torch.Tensor:
        return torch.rand(3, 1, 1, generator=generator)

    threshold = float(breaker.silence_level_db.max()) / 20 * math.log(10)
    frames = [torch.full((3, 1, audio.n_mels), threshold + 3)]
    for _ in range(300 * factor):
        fresh = torch.where(draw() < 0.5, threshold - 3, threshold + 3) + draw()
        frames.append(torch.where(draw() < 0.8, frames[-1], fresh))
    steps, found = torch.cat(frames[1:], 1).unflatten(1, (-1, factor)), set()
    for n in range(steps.shape[1]):
        ended = breaker(steps[:, n], torch.tensor([n >= start for start in began])).tolist()
        for i, start in enumerate(began):
            own = steps[i, start : n + 1].flatten(0, 1)
            silent, same = (factor * max(2, count // factor) for count in (6, 9))
            last = own[-silent:], own[-same:]
            expected = ""
            if len(own) >= same and (last[1].diff(dim=0).abs().mean(1) < FROZEN).all():
                expected = "repeat"
            if len(own) >= silent and (frame_level_db(last[0]) < breaker.silence_level_db[i]).all():
                expected = "silence"
            if n >= start:
                assert Decoding.REASONS[ended[i]] == expected
                found.add(expected)
    assert found == {"", "silence", "repeat"}


def test_text_is_cut_off(tiny_model, prompts):
    generation, tokens = generated_tokens(tiny_model(lively=True), prompts, replace(SHORT, max_text_tokens=3))
    assert generation.text_stop_reason == ["length"] * 3
    # what it says it wrote is what it read before it spoke
    assert [len(t) for t in tokens] == [3] * 3


def test_text_ends_by_eos(tiny_model, prompts):
    model = tiny_model()
    with torch.no_grad():  # tied embeddings: every output points to eos
        model.llm.network.model.norm.weight.zero_()
        model.llm.network.lm_head = torch.nn.Linear(32, len(model.llm.tokenizer))
        model.llm.network.lm_head.bias.zero_()[model.llm.tokenizer.eos_id] = 1.0
    generation = generate(model, *prompts[:2], SHORT)
    assert generation.text_stop_reason == ["eos"] * 3 and generation.text == [""] * 3


@pytest.mark.parametrize("narrow", [{"top_k": 1}, {"top_p": 1e-6}])
def test_the_likeliest_alone_is_greedy(tiny_model, prompts, narrow):
    model = tiny_model(lively=True)
    greedy, sampled, narrowed = (
        generate(model, *prompts[:2], replace(SHORT, **change), prompts[2])
        for change in ({}, {"temperature": 1.0}, {"temperature": 1.0, **narrow})
    )
    assert narrowed.text == greedy.text != sampled.text


@pytest.mark.parametrize(
    "change",
    [
        {"max_text_tokens": 0},
        {"max_speech_seconds": 0.0},
        {"temperature": -0.1},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
    ],
)
def test_bad_settings_are_refused(change):
    with pytest.raises(UserError, match=next(iter(change))):
        GenerationSettings(**change)


def test_never_nan(tiny_model, prompts):
    """Loud, silent and one-sample prompts; extreme frames."""
    waveform = torch.stack([prompts[0][0].sign(), torch.zeros_like(prompts[0][0]), prompts[0][2]])
    lengths = torch.tensor([waveform.shape[1], waveform.shape[1], 1])
    for value in (0.0, -1e4, 1e4):
        model = tiny_model(lively=True, prenet_dropout=0.5)
        if value:
            constant_frames(model, value)
        generation = generate(model, waveform, lengths, replace(SHORT, temperature=2.0, repeat_seconds=0.2))
        assert generation.log_mel.isfinite().all() and generation.silence_level_db.isfinite().all()
        assert (generation.log_mel >= model.audio.log_mel_floor).all()
