"""Parameter groups against those of the reference's recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from videomaskfeat.engine.optim import adamw, layer_of, parameter_groups, set_learning_rate, sgd
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model


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
        model.named_parameters(), base_lr=1.0, weight_decay=0.05, layer_decay=layer_decay, depth=16
    )
    found = {name: [group["lr_scale"], group["weight_decay"]] for group in groups for name in group["names"]}
    expected = recorded(golden, recipe)
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name] == pytest.approx(values, rel=1e-12), name


@pytest.mark.parametrize(
    ("head", "learning"),
    [
        ("linear", {"head.projection.weight", "head.projection.bias"}),
        ("attentive", {"head.query", "head.kv.bias"}),
    ],
)
def test_probes_give_the_optimiser_their_heads_alone(head: str, learning: set[str]) -> None:
    model = create_model("maskfeat_mvitv2_nano_classifier", head=head)
    groups = parameter_groups(
        model.named_parameters(), base_lr=1.0, weight_decay=0.05, layer_decay=0.75, depth=6
    )
    names = {name for group in groups for name in group["names"]}
    assert learning <= names
    assert all(name.startswith("head.") for name in names)
    assert all(group["lr_scale"] == 1.0 for group in groups)


def parameters_named(names: list[str]) -> list[tuple[str, nn.Parameter]]:
    """Stand-ins of the right number of dimensions: biases and norms (also the head's) have one."""
    norms = ("norm", "transforms.0.0")
    return [
        (
            name,
            nn.Parameter(
                torch.zeros([1] if name.endswith("bias") or any(n in name for n in norms) else [1, 1])
            ),
        )
        for name in names
    ]


@pytest.mark.parametrize(("recipe", "layer_decay"), [("finetune_s", 0.75), ("pretrain_s", 1.0)])
def test_groups_match_the_reference(golden: Path, recipe: str, layer_decay: float) -> None:
    expected = recorded(golden, recipe)
    groups = parameter_groups(
        parameters_named(list(expected)), base_lr=2.0, weight_decay=0.05, layer_decay=layer_decay, depth=16
    )
    found = {name: [group["lr_scale"], group["weight_decay"]] for group in groups for name in group["names"]}
    assert found.keys() == expected.keys()
    for name, (factor, decay) in expected.items():
        assert found[name] == pytest.approx([factor, decay], rel=1e-12), name
    assert all(group["lr"] == 2.0 * group["lr_scale"] for group in groups)
    assert len({(group["lr_scale"], group["weight_decay"]) for group in groups}) == len(groups)


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("patch_embed.proj.weight", 0),
        ("encoder.cls_token", 0),
        ("module.mask_token", 0),
        ("pos_embed_spatial", 0),
        ("encoder.blocks.0.attn.rel_pos_h", 1),
        ("blocks.15.norm1.weight", 16),
        ("norm.weight", 17),
        ("decoder_pos_embed", 17),
        ("decoder_blocks.0.norm1.weight", 17),
    ],
)
def test_layer_of_parameter(name: str, layer: int) -> None:
    assert layer_of(name, depth=16) == layer


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Linear(2, 2)
    model.bias.requires_grad_(False)
    groups = parameter_groups(model.named_parameters(), base_lr=1.0, weight_decay=0.1)
    assert [(group["names"], group["weight_decay"]) for group in groups] == [(["weight"], 0.1)]


def test_set_learning_rate_keeps_the_factors() -> None:
    groups = parameter_groups(
        parameters_named(["blocks.0.w", "head.w"]), base_lr=1.0, weight_decay=0.0, layer_decay=0.5, depth=1
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
