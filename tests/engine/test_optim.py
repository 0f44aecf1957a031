"""Parameter groups against those of the reference's recipes, and learning rates against its recorded ones."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from videomaskfeat.engine.optim import (
    WarmupCosine,
    WarmupSteps,
    adamw,
    clip_gradients,
    lars,
    layers_behind,
    parameter_groups,
    set_learning_rate,
    set_weight_decay,
    sgd,
)
from videomaskfeat.engine.sections import build_schedule
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.maskfeat import MaskedEncoder
from videomaskfeat.schemas.sections import OptimConfig


def recorded(golden: Path, recipe: str) -> dict[str, list[float]]:
    """Parameter name -> [learning-rate factor, weight decay]."""
    content = json.loads((golden / "protocol.json").read_text())[f"param_groups_{recipe}"]
    assert len(content) > 390
    return dict(content)


@pytest.mark.parametrize(
    ("recipe", "layer_decay", "name"),
    [("finetune_s", 0.75, "maskfeat_mvitv2_s_classifier"), ("pretrain_s", 1.0, "maskfeat_mvitv2_s")],
)
def test_groups_of_the_published_models_match_the_reference(
    golden: Path, recipe: str, layer_decay: float, name: str
) -> None:
    with torch.device("meta"):
        model = create_model(name)
    groups = parameter_groups(
        model.named_parameters(),
        base_lr=2.0,
        weight_decay=0.05,
        layer_decay=layer_decay,
        layers=layers_behind(model),
    )
    actual = {name: [group["lr_scale"], group["weight_decay"]] for group in groups for name in group["names"]}
    expected = recorded(golden, recipe)
    assert actual.keys() == expected.keys()
    for name, values in expected.items():
        assert actual[name] == pytest.approx(values, rel=1e-12), name
    assert all(group["lr"] == 2.0 * group["lr_scale"] for group in groups)
    assert len({(group["lr_scale"], group["weight_decay"]) for group in groups}) == len(groups)


@pytest.mark.parametrize(
    ("head", "learning"),
    [
        ("linear", {"head.projection.weight", "head.projection.bias"}),
        ("attentive", {"head.query", "head.kv.bias"}),
    ],
)
def test_probes_give_the_optimizer_their_heads_alone(head: str, learning: set[str]) -> None:
    model = create_model("maskfeat_mvitv2_nano_classifier", head=head)
    groups = parameter_groups(
        model.named_parameters(),
        base_lr=1.0,
        weight_decay=0.05,
        layer_decay=0.75,
        layers=layers_behind(model),
    )
    names = {name for group in groups for name in group["names"]}
    assert learning <= names
    assert all(name.startswith("head.") for name in names)
    assert all(group["lr_scale"] == 1.0 for group in groups)


class Wrapped(nn.Module):
    """An encoder and a head, as in self-distillation."""

    def __init__(self) -> None:
        super().__init__()
        self.masked = MaskedEncoder(create_model("vit_encoder", depth=3, width=16, heads=2), summary="mean")
        self.head = nn.Linear(16, 4)


@pytest.mark.parametrize(
    ("model", "name", "layers"),
    [
        ("mae", "patch_embed.proj.weight", 13),
        ("mae", "cls_token", 13),
        ("mae", "mask_token", 13),
        ("mae", "pos_embed_spatial", 13),
        ("mae", "blocks.0.norm1.weight", 12),
        ("mae", "blocks.11.norm1.weight", 1),
        ("mae", "norm.weight", 0),
        ("mae", "decoder_pos_embed", 0),
        ("mae", "pred_head.transforms.0.0.norm1.weight", 0),
        ("wrapped", "masked.mask_token", 4),
        ("wrapped", "masked.encoder.cls_token", 4),
        ("wrapped", "masked.encoder.blocks.1.attn.qkv.weight", 2),
        ("wrapped", "masked.encoder.norm.bias", 0),
        ("wrapped", "head.weight", 0),
    ],
)
def test_layers_behind_a_parameter(model: str, name: str, layers: int) -> None:
    with torch.device("meta"):
        built = Wrapped() if model == "wrapped" else create_model("mae_vit_b", decoder_depth=1)
    assert name in built.state_dict()
    assert layers_behind(built)(name) == layers


def test_layer_decay_without_an_encoder_is_refused() -> None:
    with pytest.raises(UserError, match="layer decay needs an encoder, and a Linear has none"):
        layers_behind(nn.Linear(1, 1))


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), base_lr=1.0, weight_decay=0.1)
    assert [(group["names"], group["weight_decay"]) for group in groups] == [(["weight"], 0.1)]


def test_set_learning_rate_keeps_the_factors() -> None:
    named = [("blocks.0.w", nn.Parameter(torch.zeros(1, 1))), ("head.w", nn.Parameter(torch.zeros(1, 1)))]
    groups = parameter_groups(
        named, base_lr=1.0, weight_decay=0.0, layer_decay=0.5, layers=lambda name: int("blocks" in name)
    )
    optimizer = adamw(groups)
    set_learning_rate(optimizer, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.2]


def test_adamw_first_step_closed_form() -> None:
    """The first step of Adam moves each weight by lr * sign(gradient), after the decay by lr * decay."""
    weight = nn.Parameter(torch.tensor([[2.0, -3.0]]))
    optimizer = adamw(parameter_groups([("w", weight)], base_lr=0.1, weight_decay=0.5))
    weight.grad = torch.tensor([[4.0, -0.5]])
    optimizer.step()
    torch.testing.assert_close(weight.detach(), torch.tensor([[2.0 * 0.95 - 0.1, -3.0 * 0.95 + 0.1]]))


def test_lars_two_steps_closed_form() -> None:
    """Matrix: |w| = 5 and |g| = 1 give 0.001 * 5 / (1 + 0.5 * 5) of g + 0.5 w; a vector is plain SGD."""
    pytest.importorskip("pytorch_optimizer")
    matrix = torch.nn.Parameter(torch.tensor([[3.0, 4.0]], dtype=torch.float64))
    vector = torch.nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    named = [("w", matrix), ("b", vector)]
    optimizer = lars(parameter_groups(named, base_lr=0.1, weight_decay=0.5), momentum=0.9)
    place, speed, bias, bias_speed = [3.0, 4.0], [0.0, 0.0], 1.0, 0.0
    for _ in range(2):
        matrix.grad, vector.grad = torch.full_like(matrix, 0.5**0.5), torch.full_like(vector, 2.0)
        optimizer.step()
        length = math.hypot(*place)
        factor = 0.001 * length / (1 + 0.5 * length)
        speed = [0.9 * v + factor * (0.5**0.5 + 0.5 * w) for v, w in zip(speed, place, strict=True)]
        place = [w - 0.1 * v for w, v in zip(place, speed, strict=True)]
        bias_speed = 0.9 * bias_speed + 2.0
        bias -= 0.1 * bias_speed
    assert matrix[0].tolist() == pytest.approx(place, rel=1e-12)
    assert vector.item() == pytest.approx(bias, rel=1e-12)


def test_missing_package_of_lars_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=r"pip install 'videomaskfeat\[lars\]', or use adamw"):
        lars([])
    with pytest.raises(UserError, match=r"momentum=1\.5: must be at least 0 and below 1"):
        lars([], momentum=1.5)


def test_sgd_two_steps_closed_form() -> None:
    """Nesterov: v = m v + g, and the weight moves by lr (g + m v), where g holds the decay too."""
    weight = nn.Parameter(torch.tensor([[2.0]]))
    optimizer = sgd(parameter_groups([("w", weight)], base_lr=0.1, weight_decay=0.5), momentum=0.9)
    value, velocity = 2.0, 0.0
    for gradient in (4.0, -1.0):
        weight.grad = torch.tensor([[gradient]])
        optimizer.step()
        whole = gradient + 0.5 * value
        velocity = 0.9 * velocity + whole
        value -= 0.1 * (whole + 0.9 * velocity)
    assert weight.item() == pytest.approx(value, rel=1e-6)


def test_momentum_out_of_range_is_named() -> None:
    with pytest.raises(UserError, match=r"momentum=1\.5: must be at least 0 and below 1"):
        sgd([], momentum=1.5)


PRETRAIN_S = WarmupCosine(base_lr=1e-4, start_lr=1e-6, end_lr=1e-6, warmup_epochs=10, epochs=300)
FINETUNE_S = WarmupCosine(base_lr=6e-4, start_lr=1e-6, end_lr=1e-6, warmup_epochs=20, epochs=100)


@pytest.mark.parametrize(("name", "schedule"), [("pretrain_s", PRETRAIN_S), ("finetune_s", FINETUNE_S)])
def test_rates_match_the_reference(golden: Path, name: str, schedule: WarmupCosine) -> None:
    """Both sides compute in float64: equal except for the last digits."""
    points = json.loads((golden / "protocol.json").read_text())[f"lr_{name}"]
    assert len(points) >= 6
    for epoch, rate in points:
        assert schedule(epoch) == pytest.approx(rate, rel=1e-12), epoch


def test_ends_at_end_rate_and_stays_there() -> None:
    schedule = WarmupCosine(base_lr=1.0, start_lr=0.0, end_lr=0.25, warmup_epochs=0, epochs=4)
    assert schedule(0.0) == 1.0
    assert schedule(2.0) == pytest.approx(0.625)
    assert schedule(4.0) == schedule(9.0) == 0.25


def test_all_rates_scale_with_the_batch() -> None:
    scaled = PRETRAIN_S.scaled(256, 32)
    assert scaled.base_lr == pytest.approx(8e-4)
    for epoch in (0.0, 3.3, 10.0, 200.0, 300.0):
        assert scaled(epoch) == pytest.approx(8 * PRETRAIN_S(epoch))


def simmim(epoch: float) -> float:
    """SimMIM's multistep schedule of ViT-B, 800 epochs, for a batch of 512."""
    if epoch < 10:
        return 5e-7 + epoch * (1e-4 - 5e-7) / 10
    return 1e-4 if epoch < 700 else 1e-5 if epoch < 750 else 1e-6


def test_steps_follow_the_published_schedule() -> None:
    rates = {"learning_rate": 1e-4, "start_learning_rate": 5e-7, "warmup_epochs": 10, "epochs": 800}
    steps = {"schedule": "steps", "step_epochs": [700, 750], "batch_size": 2048, "base_batch_size": 512}
    schedule = build_schedule(OptimConfig(**rates, **steps))  # type: ignore[arg-type]
    for epoch in (0.0, 0.5, 9.999, 10.0, 400.0, 699.999, 700.0, 749.9, 750.0, 799.0, 801.0):
        assert schedule(epoch) == pytest.approx(4 * simmim(epoch), rel=1e-12), epoch


@pytest.mark.parametrize(
    ("steps", "factor", "words"),
    [
        ((), 0.1, r"step_epochs \[\] must be ascending"),
        (
            (4.0, 3.0),
            0.1,
            r"step_epochs \[4\.0, 3\.0\] must be ascending epochs after the warm-up of 2 epochs",
        ),
        ((1.0,), 0.1, "must be ascending epochs after the warm-up"),
        ((3.0,), 0.0, "step_factor 0 must be above 0"),
    ],
)
def test_impossible_steps_are_refused(steps: tuple[float, ...], factor: float, words: str) -> None:
    with pytest.raises(UserError, match=words):
        WarmupSteps(
            base_lr=1.0, start_lr=0.0, end_lr=0.0, warmup_epochs=2, epochs=5, steps=steps, factor=factor
        )


@pytest.mark.parametrize("warmup", [-1.0, 5.0, 7.0, float("nan")])
def test_impossible_warmup_is_refused(warmup: float) -> None:
    with pytest.raises(UserError, match=r"warmup_epochs=.* with epochs=5: the warm-up must be 0 or longer"):
        WarmupCosine(base_lr=1.0, start_lr=0.0, end_lr=0.0, warmup_epochs=warmup, epochs=5)


def test_negative_rate_is_refused() -> None:
    with pytest.raises(UserError, match=r"end_lr=-1e-06: a learning rate must not be negative"):
        WarmupCosine(base_lr=1.0, start_lr=0.0, end_lr=-1e-6, warmup_epochs=0, epochs=5)


def test_each_gradient_is_clipped_by_its_own_norm() -> None:
    """Against DINO's loop: g *= limit / (|g| + 1e-6) if that is below 1; float32, 1e-6."""
    weights = [nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2,), (1,))]
    for number, weight in enumerate(weights[:3]):
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 10**-number
    expected = [weight.grad * min(1.0, 0.5 / (weight.grad.norm().item() + 1e-6)) for weight in weights[:3]]
    total = nn.utils.get_total_norm([weight.grad for weight in weights[:3]])
    torch.testing.assert_close(clip_gradients(weights, limit=None, limit_each=0.5), total)
    for weight, gradient in zip(weights[:3], expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, atol=1e-6, rtol=1e-6)
    assert weights[3].grad is None
    assert weights[0].grad is not None
    assert weights[0].grad.norm().item() == pytest.approx(0.5, rel=1e-5)


def test_all_gradients_are_clipped_by_their_common_norm() -> None:
    """As torch's own function, bit for bit, then each by its own."""
    weights, others = ([nn.Parameter(torch.zeros(3)) for _ in range(2)] for _ in range(2))
    for pair in (weights, others):
        pair[0].grad, pair[1].grad = torch.tensor([3.0, 0.0, 4.0]), torch.tensor([0.0, 12.0, 0.0])
    assert clip_gradients(weights, limit=1.0, limit_each=0.5) == 13.0
    nn.utils.clip_grad_norm_(others, 1.0)
    assert torch.equal(weights[0].grad, others[0].grad)  # 5 / 13
    assert weights[1].grad[1] == pytest.approx(0.5, rel=1e-5)  # not 12 / 13


def test_weight_decay_is_set_only_where_there_is_one() -> None:
    weights = [("w", nn.Parameter(torch.zeros(2, 2))), ("b", nn.Parameter(torch.zeros(2)))]
    optimizer = adamw(parameter_groups(weights, base_lr=0.1, weight_decay=0.04))
    set_weight_decay(optimizer, 0.4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.4, 0.0]


def test_without_gradients_their_norm_is_0() -> None:
    assert clip_gradients([nn.Parameter(torch.ones(2))], limit=1.0, limit_each=1.0) == 0
    elsewhere = nn.Parameter(torch.ones(2, device="meta"))  # the norm is joined with losses of that device
    assert clip_gradients([elsewhere], limit=1.0, limit_each=1.0).is_meta
