from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from lit_spectron.audio import AudioSpec
from lit_spectron.errors import UserError
from lit_spectron.masking import prefix_lm_mask
from lit_spectron.model import split_waveform
from lit_spectron.projection import ProjectionSettings

PROJECTIONS = pytest.mark.parametrize(
    "projection", [ProjectionSettings(2), ProjectionSettings(3, "convolution", 24)], ids=lambda p: p.kind
)


def with_garbage(batch, samples: int, tokens: int):
    """The batch with wider padding that holds garbage."""
    waveform = F.pad(batch.waveform, (0, samples))
    for i, n in enumerate(batch.lengths):
        waveform[i, n:] = 0.7
    padded = F.pad(batch.tokens, (0, tokens))
    for i, n in enumerate(batch.token_lengths):
        padded[i, n:] = 77
    return replace(batch, waveform=waveform, tokens=padded)


@PROJECTIONS
@pytest.mark.parametrize("prefix_attention", ["bidirectional", "causal"])
def test_padding_changes_no_loss(tiny_model, batch, prefix_attention, projection):
    model = tiny_model(prefix_attention=prefix_attention, projection=projection)
    expected = model(batch()).losses
    assert expected.keys() == {
        "text",
        "spectrogram",
        "spectrogram_feature_delta",
        "spectrogram_time_delta",
        "stop",
    }
    for name, value in model(with_garbage(batch(), 3000, 5)).losses.items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, msg=name)


@PROJECTIONS
def test_neighbours_change_no_loss(tiny_model, batch, projection):
    """With equally many elements each, a batch's losses are the plain means of its samples' own."""
    model = tiny_model(projection=projection)
    both = batch((1.0, 1.0), 0.5, ("abc def", "ghi jkl"))
    whole = model(both).losses
    singles = []
    for i in range(2):
        tensors = {
            name: getattr(both, name)[i : i + 1]
            for name in ("waveform", "lengths", "prompt_samples", "tokens", "token_lengths")
        }
        singles.append(model(replace(both, **tensors, text=both.text[i : i + 1])).losses)
    for name, value in whole.items():
        expected = (singles[0][name] + singles[1][name]) / 2
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-5, msg=name)


@PROJECTIONS
def test_neighbours_change_no_frame(tiny_model, batch, projection):
    """Prompts, texts and continuations of different lengths: the predicted frames are those of each sample alone."""
    model, both = tiny_model(projection=projection), batch((1.0, 1.6), (0.4, 0.7))
    output = model(both)
    for i in range(2):
        n, u = int(both.lengths[i]), int(both.token_lengths[i])
        row = slice(i, i + 1)
        alone = model(
            replace(
                both,
                waveform=both.waveform[row, :n],
                lengths=both.lengths[row],
                prompt_samples=both.prompt_samples[row],
                tokens=both.tokens[row, :u],
                token_lengths=both.token_lengths[row],
                text=both.text[row],
            )
        )
        frames = int(alone.frame_mask.sum())
        assert output.frame_mask[i].sum() == frames
        torch.testing.assert_close(output.frames[i, :frames], alone.frames[0, :frames], atol=1e-4, rtol=0)


@PROJECTIONS
def test_every_parameter_learns(tiny_model, batch, projection):
    model = tiny_model(projection=projection).train()
    sum(model(batch()).losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    # transformers gives the Conformer a vector for masking that only its own SpecAugment uses
    assert [name for name in missing if "masked_spec_embed" not in name] == []
    for part in (model.encoder, model.projection, model.llm, model.decoder):
        assert sum(p.grad.abs().sum() for p in part.parameters() if p.grad is not None) > 0


def test_tokens_need_an_encoder_that_tells_them(tiny_model):
    with pytest.raises(UserError, match=r"model\.projection\.kind: ConformerEncoder does not tell tokens"):
        tiny_model(projection=ProjectionSettings(kind="tokens"))


def test_logits_at_text_positions_only(tiny_model, batch):
    model, shapes = tiny_model(), []
    original = model.llm.logits

    def spy(hidden):
        shapes.append(tuple(hidden.shape))
        return original(hidden)

    model.llm.logits = spy
    both = batch()
    model(both)
    assert shapes == [(2, int(both.token_lengths.max()) + 1, model.llm.hidden_size)]


def test_the_prefix_is_seen_both_ways_or_causally(tiny_model, batch):
    both = batch()
    losses = {kind: tiny_model(prefix_attention=kind)(both).losses["text"] for kind in ("bidirectional", "causal")}
    assert abs(losses["bidirectional"] - losses["causal"]) > 1e-6


@pytest.mark.parametrize("bidirectional", [True, False])
def test_outputs_change_only_where_attention_allows(tiny_model, bidirectional):
    """Changing input j changes output i exactly where the mask says that i sees j, directly or through the prefix."""
    llm, size = tiny_model(lively=True).llm, 8
    lengths, prefix_lengths = torch.tensor([7]), torch.tensor([3])
    mask = prefix_lm_mask(prefix_lengths, lengths, size, bidirectional)
    embeddings, positions = torch.randn(1, size, llm.hidden_size), torch.arange(size)[None]
    with torch.no_grad():
        before, _ = llm(embeddings, mask, positions)
        for j in range(size):
            changed = embeddings.clone()
            changed[0, j] = torch.randn(llm.hidden_size)
            after, _ = llm(changed, mask, positions)
            moved = (after - before).abs().amax(-1)[0] > 1e-5
            sees = mask[0, 0, :, j].clone()
            sees[j] = True  # through its own residual stream, padded or not
            assert moved.tolist() == sees.tolist(), j


def test_llm_is_hugging_faces_own(tiny_model):
    llm = tiny_model(lively=True).llm
    tokens = torch.randint(0, len(llm.tokenizer), (2, 9))
    mask = prefix_lm_mask(torch.zeros(2, dtype=torch.long), torch.tensor([9, 9]), 9, True)
    with torch.no_grad():
        hidden, cache = llm(llm.embed(tokens), mask, torch.arange(9).expand(2, 9))
        torch.testing.assert_close(llm.logits(hidden), llm.network(tokens).logits, atol=1e-5, rtol=1e-5)
    assert cache is None


def test_the_cache_continues_the_sequence(tiny_model):
    llm = tiny_model(lively=True).llm
    embeddings, positions = torch.randn(1, 6, llm.hidden_size), torch.arange(6)[None]
    mask = prefix_lm_mask(torch.tensor([2]), torch.tensor([6]), 6, True)
    with torch.no_grad():
        expected, _ = llm(embeddings, mask, positions)
        cache = llm.new_cache()
        start, cache = llm(embeddings[:, :4], mask[:, :, :4, :4], positions[:, :4], cache)
        rest, _ = llm(embeddings[:, 4:], mask[:, :, 4:], positions[:, 4:], cache)
    torch.testing.assert_close(torch.cat([start, rest], 1), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("n_mels", "hop_seconds", "factor"), [(40, 0.0125, 1), (80, 0.01, 2), (20, 0.02, 3)])
def test_one_geometry_reaches_every_part(tiny_model, batch, audio, n_mels, hop_seconds, factor):
    spec = replace(audio, n_mels=n_mels, hop_seconds=hop_seconds, log_floor=1e-2)
    model, both = tiny_model(spec, reduction_factor=factor), batch((1.0, 1.5), 0.5)
    frames = round(0.5 / hop_seconds), round(1.0 / hop_seconds)
    output = model(both)
    assert output.frames.shape == (2, -(-frames[1] // factor) * factor, n_mels)
    assert output.frame_mask.sum(1).tolist() == list(frames)
    assert output.frames.min() >= spec.log_mel_floor
    prefix, lengths = model.encode_prompt(*_prompts(both))
    assert lengths.tolist() == [-(-frames[0] // 2)] * 2 and prefix.shape == (2, int(lengths[0]), 32)
    assert model.encoder.frames_per_second == pytest.approx(0.5 / hop_seconds)
    assert model.encoder.log_mel.audio == model.log_mel.audio == spec
    assert model.mel_mean.shape == model.mel_std.shape == (n_mels,)
    assert model.decoder.squeeze.in_features == n_mels * factor
    first, stop = model.decoder.step(torch.randn(2, 32))
    assert first.shape == (2, factor, n_mels) and stop.shape == (2,)
    normalised, mask, steps = model.speech_steps(both.waveform, both.lengths)
    assert steps.tolist() == [-(-int(n) // factor) for n in mask.sum(1)]
    assert (normalised[0, mask[0].sum() :] == spec.log_mel_floor).all()  # mean 0, deviation 1


def _prompts(both):
    return split_waveform(both.waveform, both.lengths, both.prompt_samples)[0], both.prompt_samples


def test_normalisation_and_its_inverse(tiny_model, audio: AudioSpec):
    model = tiny_model()
    assert not model.has_mel_statistics
    mean, std = torch.randn(audio.n_mels), torch.rand(audio.n_mels) + 0.5
    model.set_mel_statistics(mean, std, 10)
    assert model.has_mel_statistics
    log_mel = torch.randn(2, 5, audio.n_mels) + 3
    torch.testing.assert_close(model.normalise(log_mel), (log_mel - mean) / std)
    torch.testing.assert_close(model.denormalise(model.normalise(log_mel)), log_mel)
    assert model.denormalise(torch.full((1, 1, audio.n_mels), -1e3)).unique().tolist() == pytest.approx(
        [audio.log_mel_floor]
    )


def test_text_gets_sos_and_eos(tiny_model):
    model = tiny_model()
    tokenizer = model.llm.tokenizer
    tokens = torch.tensor([[7, 8, 9], [5, 99, 99]])
    wrapped, lengths = model.text_input(tokens, torch.tensor([3, 1]))
    assert lengths.tolist() == [5, 3]
    assert wrapped[0].tolist() == [tokenizer.sos_id, 7, 8, 9, tokenizer.eos_id]
    assert wrapped[1, :3].tolist() == [tokenizer.sos_id, 5, tokenizer.eos_id]


def test_splitting_at_each_samples_own_place():
    waveform = torch.arange(1, 21).view(2, 10).float()
    prompt, continuation = split_waveform(waveform, torch.tensor([10, 7]), torch.tensor([3, 5]))
    assert prompt.tolist() == [[1, 2, 3, 0, 0], [11, 12, 13, 14, 15]]
    assert continuation.tolist() == [[4, 5, 6, 7, 8, 9, 10], [16, 17, 0, 0, 0, 0, 0]]
