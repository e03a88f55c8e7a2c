"""Every decoder of the package keeps the slot's promises; then the numerics of each."""

import inspect
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lit_spectron import decoders
from lit_spectron.audio import AudioSpec
from lit_spectron.decoders import FlowMatchingDecoder, MLPDecoder, SpectrogramDecoder, TacotronDecoder
from lit_spectron.decoders.flow_matching import euler, straight_path
from lit_spectron.decoders.layers import normal_like
from lit_spectron.decoders.melle import gaussian_kl, spectrogram_flux
from lit_spectron.generation import GenerationSettings, SampleRandom, generate
from lit_spectron.masking import lengths_to_mask
from lit_spectron.model import DecoderFactory, split_waveform
from lit_spectron.module import LitSpectron
from lit_spectron.optim import OptimizerSettings
from lit_spectron.vocoders import GriffinLim
from tests.discovery import implementations

DECODERS = implementations(decoders, SpectrogramDecoder)
WIDTH = 24
every_decoder = pytest.mark.parametrize("cls", DECODERS, ids=lambda cls: cls.__name__)


def build(cls: type[SpectrogramDecoder], audio: AudioSpec, factor: int = 4, width: int = WIDTH) -> SpectrogramDecoder:
    """With random weights everywhere: what starts as zero hides what lies behind it."""
    torch.manual_seed(0)
    decoder = cls(audio, width, reduction_factor=factor)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += 0.03 * torch.randn_like(parameter)
    return decoder.eval()


def uniform(batch: int) -> SampleRandom:
    return SampleRandom(list(range(batch)), torch.device("cpu"))


@every_decoder
@pytest.mark.parametrize("factor", [1, 3])
def test_shapes(cls, audio: AudioSpec, factor: int):
    decoder = build(cls, audio, factor)
    assert decoder.reduction_factor == factor
    frames, hidden = torch.randn(2, 5, factor, audio.n_mels), torch.randn(2, 5, WIDTH)
    assert decoder.prenet(frames).shape == (2, 5, WIDTH)
    assert decoder.prenet(frames[:, :0]).shape == (2, 0, WIDTH)
    step, stop = decoder.step(hidden[:, 1])
    assert step.shape == (2, factor, audio.n_mels) and stop.shape == (2,) and ((stop > 0) & (stop < 1)).all()
    mask = torch.ones(2, 5 * factor, dtype=torch.bool)
    losses, prediction = decoder.loss(hidden, frames.flatten(1, 2), mask)
    assert "stop" in losses and "text" not in losses and len(losses) >= 2
    assert all(value.shape == () and value.isfinite() for value in losses.values())
    assert prediction.shape == decoder.refine(prediction, mask).shape == (2, 5 * factor, audio.n_mels)


@every_decoder
def test_every_parameter_learns(cls, audio: AudioSpec):
    decoder = build(cls, audio).train()
    target, hidden = torch.randn(2, 12, audio.n_mels), torch.randn(2, 3, WIDTH)
    mask = lengths_to_mask(torch.tensor([12, 7]), 12)
    losses, _ = decoder.loss(hidden, target, mask)
    (sum(losses.values()) + decoder.prenet(target.unflatten(1, (3, 4))).square().sum()).backward()
    silent = [name for name, p in decoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == [] and all(p.grad.isfinite().all() for p in decoder.parameters())


@every_decoder
@torch.no_grad()
def test_padding_and_neighbours_are_never_looked_at(cls, audio: AudioSpec):
    """In evaluation, where a loss draws nothing that depends on the batch."""
    decoder = build(cls, audio)
    hidden, target = torch.randn(2, 5, WIDTH), torch.randn(2, 20, audio.n_mels)
    lengths = torch.tensor([10, 20])  # the first ends in the middle of its third step
    mask = lengths_to_mask(lengths, 20)
    target[0, 10:], hidden[0, 3:] = float("nan"), 1e3
    alone, together = [], decoder.loss(hidden, target, mask)[1]
    for i, steps in enumerate((3, 5)):
        row, frames = slice(i, i + 1), int(lengths[i])
        losses, prediction = decoder.loss(hidden[row, :steps], target[row, : 4 * steps], mask[row, : 4 * steps])
        padded, _ = decoder.loss(hidden[row], target[row], mask[row])
        for name, value in losses.items():
            torch.testing.assert_close(padded[name], value, atol=1e-5, rtol=1e-5, msg=name)
        torch.testing.assert_close(together[row, :frames], prediction[:, :frames], atol=1e-4, rtol=1e-4)
        alone.append(decoder.refine(target[row, :frames], mask[row, :frames]))
    refined = decoder.refine(target, mask)
    for i, expected in enumerate(alone):
        torch.testing.assert_close(refined[i, : lengths[i]], expected[0], atol=1e-4, rtol=1e-4)


@every_decoder
@torch.no_grad()
def test_a_sample_depends_on_its_own_numbers_alone(cls, audio: AudioSpec):
    decoder = build(cls, audio)
    hidden, frames = torch.randn(3, WIDTH), torch.randn(3, 2, 4, audio.n_mels)
    step, stop = decoder.step(hidden, uniform(3))
    fed = decoder.prenet(frames, uniform(3))
    for i in range(3):
        row, own = slice(i, i + 1), [SampleRandom([i], torch.device("cpu")) for _ in range(2)]
        torch.testing.assert_close(decoder.step(hidden[row], own[0]), (step[row], stop[row]), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(decoder.prenet(frames[row], own[1]), fed[row], atol=1e-5, rtol=1e-5)


@every_decoder
@torch.no_grad()
def test_a_saved_decoder_speaks_the_same(cls, audio: AudioSpec, tmp_path: Path):
    decoder, hidden = build(cls, audio), torch.randn(2, WIDTH)
    torch.save(decoder.state_dict(), tmp_path / "decoder.pt")
    other = cls(audio, WIDTH, reduction_factor=4).eval()
    other.load_state_dict(torch.load(tmp_path / "decoder.pt", weights_only=True))
    for a, b in zip(decoder.step(hidden, uniform(2)), other.step(hidden, uniform(2)), strict=True):
        assert torch.equal(a, b)


@every_decoder
def test_generation_together_is_one_by_one(cls, tiny_model, batch, audio: AudioSpec):
    model = tiny_model(lively=True)
    model.decoder = build(cls, audio, width=model.llm.hidden_size)
    with torch.no_grad():  # a stop unit that listens
        model.decoder.stop.weight.normal_(0, 2.0)
        model.decoder.stop.bias.fill_(-4.0)
    settings = GenerationSettings(max_text_tokens=4, max_speech_seconds=0.5, silence_seconds=None, repeat_seconds=None)
    both = batch((1.0, 1.4, 0.9), (0.3, 0.6, 0.45), ("a", "b", "c"))
    prompts, lengths = split_waveform(both.waveform, both.lengths, both.prompt_samples)[0], both.prompt_samples
    together = generate(model, prompts, lengths, settings, both.ids)
    assert together.log_mel.isfinite().all() and len(set(together.lengths.tolist())) > 1
    for i, n in enumerate(lengths.tolist()):
        alone = generate(model, prompts[i : i + 1, :n], lengths[i : i + 1], settings, both.ids[i : i + 1])
        frames = int(alone.lengths[0])
        assert together.lengths[i] == frames
        torch.testing.assert_close(together.log_mel[i, :frames], alone.log_mel[0], atol=1e-3, rtol=0)
        assert (together.log_mel[i, frames:] == audio.log_mel_floor).all()


@every_decoder
def test_training_logs_what_configs_choose_checkpoints_by(cls, tiny_model, batch, audio: AudioSpec):
    parts = tiny_model()
    module = LitSpectron(
        audio,
        lambda _: parts.encoder,
        parts.llm,
        lambda _, width: build(cls, audio, width=width),
        GriffinLim,
        OptimizerSettings(total_steps=1),
    )
    module.trainer = trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    logged = {}
    module.log_dict = lambda named, **_: logged.update(named)
    module.log = lambda name, value, **_: logged.update({name: value})
    total = module.training_step(batch(), 0)
    assert {"train/loss", "train/loss_text", "train/loss_stop", "train/loss_spectrogram"} <= logged.keys()
    assert total.isfinite() and total == logged["train/loss"] and trainer.world_size == 1


def test_a_whole_spectrogram_is_refined_once_at_the_end(tiny_model, batch):
    """What is fed back is unrefined, and silence and repetition are judged by it."""
    model, both, seen = tiny_model(lively=True), batch(), []
    settings = GenerationSettings(max_text_tokens=3, max_speech_seconds=0.2, silence_seconds=None, repeat_seconds=0.1)
    prompts = split_waveform(both.waveform, both.lengths, both.prompt_samples)[0], both.prompt_samples
    plain = generate(model, *prompts, settings)

    def refine(frames, mask):
        seen.append(mask.sum(1))
        return frames + 0.5

    model.decoder.refine = refine
    refined = generate(model, *prompts, settings)
    assert len(seen) == 1 and seen[0].tolist() == plain.lengths.tolist() == refined.lengths.tolist()
    valid = lengths_to_mask(plain.lengths, plain.log_mel.shape[1])
    torch.testing.assert_close(refined.log_mel[valid], plain.log_mel[valid] + 0.5)
    assert (refined.log_mel[~valid] == model.audio.log_mel_floor).all()


@every_decoder
@torch.no_grad()
def test_a_part_is_refined_as_in_the_whole(cls, audio: AudioSpec):
    decoder = build(cls, audio)
    context, frames = decoder.context_frames, torch.randn(1, 90, audio.n_mels)
    whole = decoder.refine(frames, torch.ones(1, 90, dtype=torch.bool))
    part = frames[:, 40 - context : 50 + context]
    part = decoder.refine(part, torch.ones(1, 10 + 2 * context, dtype=torch.bool))[:, context : context + 10]
    torch.testing.assert_close(part, whole[:, 40:50], atol=1e-5, rtol=1e-5)


@every_decoder
def test_a_tiny_distribution_is_learned(cls):
    """Six LM outputs, each with its own frames: `step` says them, and how many there are."""
    torch.manual_seed(0)
    widths = [name for name in inspect.signature(cls).parameters if name.endswith(("_size", "_channels"))]
    small = {name: 64 for name in widths if name != "hidden_size"}
    decoder = cls(AudioSpec(n_mels=8), 32, reduction_factor=2, **small).train()
    hidden, target = torch.randn(1, 6, 32), torch.randn(1, 12, 8)
    mask = torch.ones(1, 12, dtype=torch.bool)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=4e-3)
    for _ in range(300):
        losses, _ = decoder.loss(hidden, target, mask)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    decoder.eval()
    with torch.no_grad():
        frames, stop = decoder.step(hidden[0])
        frames = decoder.refine(frames.flatten(0, 1)[None], mask)
    assert (frames - target).abs().mean() < 0.15 < 0.6 < target.abs().mean()
    assert stop[-1] > 0.5 > stop[:-1].max()


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "conf/decoder").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_config_builds(path: Path, audio: AudioSpec):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--decoder", type=DecoderFactory)
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    factory = parser.instantiate_classes(parser.parse_object({"decoder": config})).decoder
    decoder = factory(audio, WIDTH)
    name = config["class_path"].rsplit(".", 1)[1]
    assert type(decoder) is getattr(decoders, name)
    assert decoder.reduction_factor == config["init_args"]["reduction_factor"] == (4 if "tiny" in path.stem else 1)
    # Every argument is in the file, for its user to see.
    assert set(config["init_args"]) == set(inspect.signature(type(decoder)).parameters) - {"audio", "hidden_size"}


def test_mlp_says_what_it_is_trained_to(audio: AudioSpec):
    decoder, hidden = build(MLPDecoder, audio), torch.randn(2, 3, WIDTH)
    losses, prediction = decoder.loss(hidden, torch.randn(2, 12, audio.n_mels), torch.ones(2, 12, dtype=torch.bool))
    assert losses.keys() == {"spectrogram", "spectrogram_feature_delta", "spectrogram_time_delta", "stop"}
    torch.testing.assert_close(prediction[:, 4:8], decoder.step(hidden[:, 1])[0])


def test_prenet_dropout(audio: AudioSpec):
    decoder = MLPDecoder(audio, 24, 1000, 16, 1, prenet_dropout=0.5).eval()
    with torch.no_grad():
        decoder.expand = torch.nn.Identity()
        decoder.squeeze.bias.fill_(100.0)
        frames = torch.zeros(1, 1, 1, audio.n_mels)
        seen = decoder.prenet(frames)
        assert 0.4 < (seen == 0).float().mean() < 0.6  # on in evaluation too
        torch.testing.assert_close(seen[seen != 0], torch.full_like(seen[seen != 0], 200.0))
        numbers = torch.rand(1, 1, 1000)
        assert torch.equal(decoder.prenet(frames, lambda _: numbers) == 0, numbers < 0.5)


def test_normal_numbers_from_uniform_ones():
    numbers = normal_like(torch.empty(4, 5000), uniform(4))
    assert numbers.mean().abs() < 0.02 and (numbers.std() - 1).abs() < 0.02
    assert ((numbers.abs() < 1).float().mean() - 0.6827).abs() < 0.01
    assert normal_like(torch.empty(2), lambda _: torch.tensor([0.0, 1.0])).isfinite().all()


@torch.no_grad()
def test_tacotrons_refinement_is_a_loop_over_samples_and_frames(audio: AudioSpec):
    decoder, lengths = build(TacotronDecoder, audio), [7, 2]
    frames = torch.randn(2, 7, audio.n_mels)
    refined = decoder.refine(frames, lengths_to_mask(torch.tensor(lengths), 7)).numpy()
    assert np.array_equal(refined[1, 2:], frames[1, 2:].numpy())
    for i, n in enumerate(lengths):
        x = frames[i, :n].double().numpy()
        for number, convolution in enumerate(decoder.refiner.convolutions):
            weight, padded = convolution.weight.double().numpy(), np.pad(x, ((2, 2), (0, 0)))
            x = np.stack([np.einsum("kc,dck->d", padded[t : t + 5], weight) for t in range(n)])
            x += convolution.bias.double().numpy()
            if number < 4:
                x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
                norm = decoder.refiner.norms[number]
                x = np.tanh(x * norm.weight.double().numpy() + norm.bias.double().numpy())
        assert np.abs(frames[i, :n].numpy() + x - refined[i, :n]).max() < 1e-4


def test_melles_terms():
    rng, lengths = np.random.default_rng(0), [5, 3]
    mean, log_variance, target = rng.standard_normal((3, 2, 5, 4))
    kl, flux = [], []
    for i, n in enumerate(lengths):
        for t in range(n):
            for m in range(4):
                d, variance = mean[i, t, m] - target[i, t, m], np.exp(log_variance[i, t, m])
                kl.append((variance + d * d - 1) / 2 - np.log(variance) / 2)
                if t:
                    real = abs(target[i, t, m] - target[i, t - 1, m])
                    flux.append(-min(abs(mean[i, t, m] - target[i, t - 1, m]), real))
    target[1, 3:] = np.nan
    a, b, c = (torch.from_numpy(x) for x in (mean, log_variance, target))
    mask = lengths_to_mask(torch.tensor(lengths), 5)
    assert gaussian_kl(a, b, c, mask).item() == pytest.approx(np.mean(kl), abs=1e-5)
    assert spectrogram_flux(a, c, mask).item() == pytest.approx(np.mean(flux), abs=1e-5)
    # PyTorch's own divergence, where a sum of terms could hide a wrong sign
    normal = torch.distributions.Normal
    expected = torch.distributions.kl_divergence(normal(a[0], (b[0] / 2).exp()), normal(c[0], 1.0)).mean()
    assert gaussian_kl(a[:1], b[:1], c[:1], mask[:1]).item() == pytest.approx(expected.item(), abs=1e-5)


def test_melles_mean_is_not_rewarded_for_running_away():
    target, mask = torch.randn(2, 6, 4), torch.ones(2, 6, dtype=torch.bool)
    mean = target.clone().requires_grad_()
    descent = torch.optim.SGD([mean], lr=1.0)
    for _ in range(200):
        divergence = gaussian_kl(mean, torch.zeros_like(mean), target, mask)
        loss = 0.1 * divergence + 0.5 * spectrogram_flux(mean, target, mask)
        descent.zero_grad()
        loss.backward()
        descent.step()
    assert (mean - target).abs().max() < 0.1


def test_the_flows_path_and_where_it_leads():
    noise, data = torch.randn(2, 3), torch.randn(2, 3)
    for time in (0.0, 0.3, 1.0):
        x, velocity = straight_path(noise, data, torch.tensor(time))
        expected = np.array([(1 - time) * a + time * b for a, b in zip(noise.numpy(), data.numpy(), strict=True)])
        assert np.allclose(x.numpy(), expected, atol=1e-6) and torch.equal(velocity, data - noise)
    # dx/dt = a x + b from 2, five steps: a geometric sum
    a, b, steps = -0.7, 0.4, 5
    growth = 1 + a / steps
    expected = 2 * growth**steps + b / steps * sum(growth**i for i in range(steps))
    assert euler(lambda x, _: a * x + b, torch.tensor(2.0), steps).item() == pytest.approx(expected, abs=1e-6)
    # the straight path's own field for one possible outcome ends there in any number of steps
    for steps in (1, 4):
        torch.testing.assert_close(euler(lambda x, t: (data - x) / (1 - t), noise, steps), data)


def test_the_flow_samples_one_of_two_outcomes_where_regression_says_their_mean():
    torch.manual_seed(0)
    decoder = FlowMatchingDecoder(AudioSpec(n_mels=4), 8, velocity_size=64, draws=8).train()
    hidden, mask = torch.ones(1, 32, 8), torch.ones(1, 32, dtype=torch.bool)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=2e-3)
    for _ in range(400):
        outcome = torch.randint(0, 2, (1, 32, 1)) * 2.0 - 1
        losses, _ = decoder.loss(hidden, outcome.expand(-1, -1, 4), mask)
        loss = losses["spectrogram"] + losses["flow"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = decoder.step(torch.ones(200, 8))[0].mean((1, 2))
        _, prediction = decoder.loss(hidden, torch.zeros(1, 32, 4), mask)
    assert 0.3 < (said > 0).float().mean() < 0.7
    assert ((said.abs() - 1).abs() < 0.3).float().mean() > 0.8
    assert prediction.abs().max() < 0.2
