"""Detectors: the definition of their logits, frame sizes, batches without boxes, and weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.models.test_heads import layer_norm
from tests.models.test_models import MVIT as SMALL
from tests.reference.roi_align import plain_roi_align
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.detector import TEMPORAL, Detector
from videomaskfeat.models.loading import load_into
from videomaskfeat.models.mvit import MViT

# Pixels of clips of 32x48: one inside, a larger one, one that leaves the frame, two of the second clip.
BOXES = torch.tensor(
    [
        [0, 3.0, 4.0, 20.0, 30.0],
        [0, 0.0, 0.0, 48.0, 32.0],
        [1, -5.0, 10.0, 12.0, 40.0],
        [1, 30.0, 2.0, 44.0, 14.0],
        [1, 30.5, 2.5, 31.0, 3.0],
    ]
)


def small(**changes: Any) -> Detector:
    """A detector with large weights, so that all of them affect the output."""
    torch.manual_seed(0)
    model = create_model("maskfeat_mvitv2_nano_detector", **{**SMALL, "classes": 5, **changes})
    assert isinstance(model, Detector)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def maps_of(model: Detector, clips: Tensor, **changes: Any) -> Tensor:
    """Normalized tokens [B, t, h, w, D] from a plain encoder of the same weights."""
    encoder = MViT(**{**SMALL, **changes}, final_norm=False).eval()
    missing, _ = encoder.load_state_dict(model.state_dict(), strict=False)
    assert not missing
    return layer_norm(encoder(clips)[:, 1:], model.norm).unflatten(1, encoder.output_grid(clips.shape).shape)


def crop_boxes(maps: Tensor, boxes: Tensor, stride: int, bins: int = 7) -> Tensor:
    """Maximum over the cells of each box, maps [B, h, w, D] -> [R, D], by the slow version."""
    return plain_roi_align(maps.permute(0, 3, 1, 2), boxes, (bins, bins), 1 / stride, -1, True).amax((2, 3))


@torch.no_grad()
@pytest.mark.parametrize(("q_pool_at", "stride"), [((1, 3), 16), ((1,), 8)])
def test_logits_follow_the_definition_at_both_strides(q_pool_at: tuple[int, ...], stride: int) -> None:
    model, clips = small(q_pool_at=q_pool_at).eval(), torch.randn(2, 3, 4, 32, 48)
    features = crop_boxes(maps_of(model, clips, q_pool_at=q_pool_at).mean(1), BOXES, stride)
    expected = features @ model.head.projection.weight.T + model.head.projection.bias
    # Another order of summation in float32.
    torch.testing.assert_close(model(clips, BOXES), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("temporal", ["late_mean", "late_max"])
def test_late_pooling_crops_boxes_at_each_step(temporal: str) -> None:
    model, clips = small(temporal=temporal).eval(), torch.randn(2, 3, 6, 32, 48)
    maps = maps_of(model, clips)  # 3 steps
    steps = torch.stack([crop_boxes(maps[:, step], BOXES, 16) for step in range(3)])
    features = steps.amax(0) if temporal == "late_max" else steps.mean(0)
    torch.testing.assert_close(model(clips, BOXES), model.head(features), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_scene_is_the_mean_of_the_boxs_clip() -> None:
    model, clips = small(scene=True, bins=3).eval(), torch.randn(2, 3, 4, 32, 48)
    maps = maps_of(model, clips)
    whole = maps.mean((1, 2, 3))[[0, 0, 1, 1, 1]]
    features = torch.cat([crop_boxes(maps.mean(1), BOXES, 16, bins=3), whole], dim=1)
    torch.testing.assert_close(model(clips, BOXES), model.head(features), atol=1e-4, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("temporal", TEMPORAL)
def test_logits_of_a_box_depend_on_its_own_clip_only(temporal: str) -> None:
    model, clips = small(temporal=temporal, scene=True).eval(), torch.randn(2, 3, 4, 32, 48)
    logits = model(clips, BOXES)
    order = torch.tensor([4, 0, 2, 3, 1])
    torch.testing.assert_close(model(clips, BOXES[order]), logits[order], atol=1e-5, rtol=1e-5)
    alone = BOXES[3:4].clone()
    alone[:, 0] = 0
    torch.testing.assert_close(model(clips[1:], alone), logits[3:4], atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_other_frame_shapes_equal_a_model_of_that_size() -> None:
    """Interpolating position tables in each forward pass equals resizing them once."""
    square = small().eval()
    wide = small(clip_size=(4, 48, 64)).eval()
    report = load_into(wide, square.state_dict())
    assert {name.rpartition(".")[2] for name in report.resized} == {"rel_pos_h", "rel_pos_w"}
    clips = torch.randn(2, 3, 4, 48, 64)
    torch.testing.assert_close(square(clips, BOXES), wide(clips, BOXES), atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_odd_numbers_of_tokens_do_not_shift_cells() -> None:
    """Poolings start at the first token, so a longer frame only adds cells at the end."""
    model, clips = small(relative_space=False).eval(), torch.randn(1, 3, 4, 36, 52)
    maps = model.maps(clips)
    assert maps.shape[1:4] == (2, 3, 4)  # 9x13 tokens, halved twice
    torch.testing.assert_close(maps, maps_of(model, clips, relative_space=False), atol=1e-4, rtol=1e-4)


def test_a_batch_without_boxes_has_no_logits_and_a_gradient_of_zero() -> None:
    """For example after a crop without boxes: other ranks wait for the gradient of every parameter."""
    for temporal in TEMPORAL:
        model = small(temporal=temporal, scene=True)
        logits = model(torch.randn(2, 3, 4, 32, 48), torch.zeros(0, 5))
        assert logits.shape == (0, 5)
        logits.sum().backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert (parameter.grad == 0).all(), name


def test_parameters_have_pyslowfast_names() -> None:
    names = {name for name in small().state_dict() if not name.startswith("blocks.")}
    stem = {"cls_token", "patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert names == {*stem, "norm.weight", "norm.bias", "head.projection.weight", "head.projection.bias"}


@pytest.mark.parametrize(
    ("name", "arguments", "stride"),
    [
        ("maskfeat_mvitv2_nano_detector", {}, (2, 16, 16)),
        ("maskfeat_mvitv2_s_detector", {}, (2, 16, 16)),
        ("maskfeat_mvitv2_l_detector", {}, (2, 16, 16)),
        ("maskfeat_mvitv2_s_detector", {"q_pool_at": (1, 3, 14)}, (2, 32, 32)),
    ],
)
def test_named_detectors_keep_the_maps_of_pre_training(
    name: str, arguments: dict[str, Any], stride: tuple[int, int, int]
) -> None:
    with torch.device("meta"):
        model = create_model(name, **arguments)
        pretrained = create_model(name.removesuffix("_detector"))
    assert isinstance(model, Detector)
    assert model.classes == 80
    assert model.output_stride == stride
    own = {key: value.shape for key, value in model.state_dict().items()}
    shared = {key: value.shape for key, value in pretrained.state_dict().items() if key in own}
    assert set(own) - set(shared) == {
        "norm.weight",
        "norm.bias",
        "head.projection.weight",
        "head.projection.bias",
    }
    if not arguments:
        assert all(own[key] == shape for key, shape in shared.items())


def test_box_index_outside_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match="boxes have batch indices 0 to 1 in a batch of 1"):
        small()(torch.randn(1, 3, 4, 32, 48), BOXES)


@pytest.mark.slow
def test_compiled_detector_takes_any_number_of_boxes() -> None:
    """In one graph for any number of boxes, with gradients."""
    model = small(dropout=0.0, scene=True, depth=2, widen_at=(1,), q_pool_at=(1,))
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    clips = torch.randn(2, 3, 4, 32, 48)
    for rows in (5, 3):
        model.zero_grad()
        expected = model(clips, BOXES[:rows])
        expected.square().sum().backward()
        gradient = model.get_parameter("blocks.0.attn.qkv.weight").grad
        model.zero_grad()
        logits = compiled(clips, BOXES[:rows])
        logits.square().sum().backward()
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        again = model.get_parameter("blocks.0.attn.qkv.weight").grad
        torch.testing.assert_close(again, gradient, atol=1e-3, rtol=1e-3)


@pytest.mark.cuda
def test_cuda_equals_cpu() -> None:
    """Logits and gradients, in float64."""
    model = small(dropout=0.0).double()
    clips, boxes = torch.randn(2, 3, 4, 32, 48, dtype=torch.float64), BOXES.double()
    expected = model(clips, boxes)
    expected.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    model.cuda()
    logits = model(clips.cuda(), boxes.cuda())
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-8, rtol=1e-8)
    logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad.cpu(), gradients[name], atol=1e-6, rtol=1e-6, msg=name)
