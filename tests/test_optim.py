import math
from itertools import pairwise

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lit_spectron.errors import UserError
from lit_spectron.optim import OptimizerSettings, PartSchedule, build_optimizer, freeze, parameter_groups


@pytest.mark.parametrize("lively", [False, True])  # tied and untied embeddings
def test_every_trainable_parameter_is_in_one_group(tiny_model, lively):
    model = tiny_model(lively=lively)
    model.encoder.requires_grad_(False)
    groups = parameter_groups(model, OptimizerSettings(total_steps=1))
    grouped = [id(p) for group in groups for p in group["params"]]
    trainable = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(trainable)
    assert not any(name.startswith("encoder") for name in trainable.values())


def test_no_decay_on_biases_norms_and_embeddings(tiny_model):
    model = tiny_model()
    decayed, kept = parameter_groups(model, OptimizerSettings(total_steps=1, weight_decay=0.1))
    assert decayed["weight_decay"] == 0.1 and kept["weight_decay"] == 0.0
    decayed_ids, kept_ids = ({id(p) for p in group["params"]} for group in (decayed, kept))
    assert id(model.llm.network.model.embed_tokens.weight) in kept_ids
    assert id(model.llm.network.model.norm.weight) in kept_ids
    assert id(model.projection.map.bias) in kept_ids
    assert id(model.projection.map.weight) in decayed_ids
    assert id(model.llm.network.model.layers[0].self_attn.q_proj.weight) in decayed_ids


def test_schedule():
    settings = OptimizerSettings(total_steps=100, learning_rate=0.5, warmup_steps=10, final_share=0.1)
    optimizer, schedule = build_optimizer(nn.Linear(2, 2), settings)
    rates = []
    for _ in range(121):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.05) and rates[4] == pytest.approx(0.25)
    assert rates[9] == rates[10] == pytest.approx(0.5)
    assert rates[55] == pytest.approx(0.5 * (0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2))
    assert rates[100] == rates[120] == pytest.approx(0.05)
    assert all(a > b for a, b in pairwise(rates[10:101]))
    assert optimizer.param_groups[0]["lr"] == optimizer.param_groups[1]["lr"]


def test_no_warmup_begins_at_the_peak():
    optimizer, _ = build_optimizer(nn.Linear(2, 2), OptimizerSettings(total_steps=5, warmup_steps=0))
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)
    assert isinstance(optimizer, torch.optim.AdamW)


def test_gradients_can_be_clipped_in_mixed_precision():
    model = nn.Linear(2, 2)
    optimizer, _ = build_optimizer(model, OptimizerSettings(total_steps=5))
    model(torch.ones(1, 2)).sum().backward()
    plugin = MixedPrecision("bf16-mixed", "cpu")
    plugin.clip_gradients(optimizer, 1e-3)
    assert nn.utils.get_total_norm(p.grad for p in model.parameters()).item() == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("steps", [0, -1])
def test_a_schedule_without_end_is_refused(steps):
    with pytest.raises(UserError, match="max_steps"):
        OptimizerSettings(total_steps=steps)


def test_parts_have_rates_and_starts_of_their_own(tiny_model):
    model = tiny_model()
    parts = {"llm.*": PartSchedule(1e-4, start_step=5), "*.bias": PartSchedule(2e-3)}
    settings = OptimizerSettings(total_steps=20, learning_rate=1e-3, warmup_steps=2, parts=parts)
    optimizer, schedule = build_optimizer(model, settings)
    grouped = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in model.named_parameters()}
    assert set(grouped) == set(names)
    for key, group in grouped.items():
        name = names[key]
        expected = 1e-4 if name.startswith("llm.") else 2e-3 if name.endswith(".bias") else 1e-3
        assert group["initial_lr"] == expected, name
    late, early = (grouped[id(p)] for p in (model.llm.network.model.norm.weight, model.projection.map.weight))
    shares = []
    for _ in range(20):
        shares.append((late["lr"] / 1e-4, early["lr"] / 1e-3))
        optimizer.step()
        schedule.step()
    assert [a for a, _ in shares[:5]] == [0.0] * 5
    assert shares[5][0] == pytest.approx(shares[5][1] / 2)  # the first of two steps of warm-up
    assert all(a == pytest.approx(b) for a, b in shares[6:])  # then the common cosine, without a jump


def test_freezing_by_pattern(tiny_model):
    model = tiny_model()
    freeze(model, ["encoder.*", "llm.*embed_tokens*"])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "llm.network.model.embed_tokens.weight" in frozen and "llm.network.model.norm.weight" not in frozen
    assert {name for name in frozen if not name.startswith("llm.")} == {
        name for name, _ in model.named_parameters() if name.startswith("encoder.")
    }


def test_a_pattern_that_matches_nothing_is_an_error(tiny_model):
    with pytest.raises(UserError, match=r"freeze: encodr\.\*"):
        freeze(tiny_model(), ["encodr.*"])
    model = tiny_model()
    freeze(model, ["encoder.*"])
    for pattern in ("nothing.*", "encoder.*"):  # frozen parameters have no learning rate
        with pytest.raises(UserError, match=r"parts: "):
            build_optimizer(model, OptimizerSettings(total_steps=1, parts={pattern: PartSchedule(1e-3)}))
