"""Features of boxes, against torchvision's recorded numbers and against sampling point after point."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch._dynamo.utils
from torch import Tensor, nn

from tests.autograd import assert_same_gradients
from tests.reference.roi_align import plain_roi_align
from videomaskfeat.errors import UserError
from videomaskfeat.models.roi_align import roi_align


def make_features(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=dtype)


def random_boxes(count: int, *, batch: int, height: float, width: float, spread: float = 0.0) -> Tensor:
    """Boxes whose corners lie in a picture, or beyond it by a share of its size."""
    generator = torch.Generator().manual_seed(1)
    corners = torch.rand(count, 2, 2, generator=generator, dtype=torch.float64) * (1 + 2 * spread) - spread
    corners = corners.sort(dim=1).values * torch.tensor([width, height], dtype=torch.float64)
    places = torch.randint(batch, (count, 1), generator=generator).double()
    return torch.cat([places, corners.flatten(1)], dim=1)


@pytest.mark.parametrize("case", range(4))
def test_golden_values_and_gradients(golden: Path, case: int) -> None:
    recorded = torch.load(golden / "roi_align.pt", weights_only=True)["cases"][case]
    features = recorded["features"].requires_grad_()
    output = roi_align(
        features,
        recorded["boxes"],
        recorded["output_size"],
        recorded["spatial_scale"],
        recorded["sampling_ratio"],
        recorded["aligned"],
    )
    # float32: sums of at most a few hundred products of order 1. Gradients reach 100, so they are relative.
    torch.testing.assert_close(output, recorded["output"], atol=1e-5, rtol=0)
    (gradient,) = torch.autograd.grad(output.square().sum(), features)
    torch.testing.assert_close(gradient, recorded["grad_features"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling_ratio", [-1, 0, 1, 3])
@pytest.mark.parametrize(
    ("shape", "output_size", "scale"),
    [((9, 13), (7, 7), 1 / 16), ((13, 9), (2, 5), 1 / 32), ((1, 6), (3, 2), 0.25), ((1, 1), (1, 1), 1.0)],
)
def test_values_and_gradients_equal_sample_after_sample(
    shape: tuple[int, int], output_size: tuple[int, int], scale: float, sampling_ratio: int, aligned: bool
) -> None:
    high, wide = (length / scale for length in shape)
    features = make_features(2, 3, *shape).requires_grad_()
    boxes = torch.cat(
        [
            random_boxes(6, batch=2, height=high, width=wide, spread=0.3),
            torch.tensor([[1.0, 0, 0, wide, high], [0, -wide, -high, 2 * wide, 2 * high]]).double(),
            torch.tensor(
                [
                    [1.0, 5 * wide, 0, 6 * wide, high],  # far outside
                    [0, 0.3, 0.3, 0.3 + 0.01 / scale, 0.4],  # a hundredth of a cell wide
                    [0, 0.25 * wide, 0, 0.25 * wide, high],  # without area
                    [1, 2, 2, 2, 2],  # a point
                    [1, 0.5 / scale, 0.5 / scale, 2.5 / scale, 4.5 / scale],  # exactly on cells
                    [1, wide, high, 0, 0],  # turned round
                ],
                dtype=torch.float64,
            ),
        ]
    )
    arguments = (output_size, scale, sampling_ratio, aligned)
    ours, plain = roi_align(features, boxes, *arguments), plain_roi_align(features, boxes, *arguments)
    assert_same_gradients(ours, plain, [features], atol=1e-12, rtol=1e-12)  # float64


@pytest.mark.parametrize("cells", [1.0, 1.0001, 2.0, 2.0001, 2.1, 3.0001, 3.5, 40.0, 70.3])
def test_adaptive_grids_of_any_size_lose_no_sample(cells: float) -> None:
    """Bins above a whole number of cells have the densest samples, long ones more than there are cells."""
    features = make_features(1, 2, 11, 5)
    for start in (-cells / 2, -0.7, 0.0, 0.5, 3.3):
        boxes = torch.tensor([[0, start, start, start + 2 * cells, start + 3 * cells]], dtype=torch.float64)
        arguments = ((3, 2), 1.0, 0, True)
        ours, plain = roi_align(features, boxes, *arguments), plain_roi_align(features, boxes, *arguments)
        torch.testing.assert_close(ours, plain, atol=1e-12, rtol=0)


def test_bins_of_a_slope_are_their_centers() -> None:
    """A linear picture is sampled exactly, so a bin's mean is the value at its middle."""
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(16.0), indexing="ij")
    features = torch.stack([rows, columns])[None]
    box = torch.tensor([[0.0, 32.0, 24.0, 144.0, 136.0]])  # cells 2 to 9 and 1.5 to 8.5
    pooled = roi_align(features, box, 7, 1 / 16, 0, True)[0]
    middle = torch.arange(7.0) + 0.5
    torch.testing.assert_close(pooled[0], (1.5 + middle - 0.5)[:, None].expand(7, 7), atol=1e-5, rtol=0)
    torch.testing.assert_close(pooled[1], (2 + middle - 0.5)[None].expand(7, 7), atol=1e-5, rtol=0)


def test_gradients_are_the_derivatives() -> None:
    features = make_features(2, 2, 5, 6).requires_grad_()
    boxes = random_boxes(4, batch=2, height=5, width=6, spread=0.2)
    assert torch.autograd.gradcheck(lambda x: roi_align(x, boxes, (2, 3), 1.0, 0, True), (features,))
    assert not roi_align(features, boxes.clone().requires_grad_(), 2).detach().isnan().any()


def test_no_boxes_give_no_features_and_no_gradient() -> None:
    features = make_features(2, 3, 4, 5, dtype=torch.float32).requires_grad_()
    output = roi_align(features, torch.zeros(0, 5), (2, 3), 1 / 16, 0, True)
    assert output.shape == (0, 3, 2, 3)
    output.sum().backward()
    assert features.grad is not None
    assert not features.grad.any()


def test_order_of_boxes_and_layout_in_memory_change_nothing() -> None:
    features = make_features(3, 4, 6, 7, dtype=torch.float32)
    boxes = random_boxes(5, batch=3, height=96, width=112).float()
    order = torch.tensor([3, 0, 4, 1, 2])
    whole = roi_align(features, boxes, 7, 1 / 16, 0, True)
    assert torch.equal(roi_align(features, boxes[order], 7, 1 / 16, 0, True), whole[order])
    last = features.contiguous(memory_format=torch.channels_last)
    assert torch.equal(roi_align(last, boxes, 7, 1 / 16, 0, True), whole)


def test_half_precision_is_pooled_in_float32() -> None:
    features = make_features(1, 8, 6, 7, dtype=torch.bfloat16)
    boxes = random_boxes(4, batch=1, height=96, width=112).float()
    exact = roi_align(features.float(), boxes, 7, 1 / 16, 0, True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = roi_align(features, boxes, 7, 1 / 16, 0, True)
        wide = roi_align(features.float(), boxes.bfloat16().float(), 7, 1 / 16, 0, True)
    assert torch.equal(half, exact.bfloat16())  # rounded once, at the end
    assert torch.equal(wide, roi_align(features.float(), boxes.bfloat16().float(), 7, 1 / 16, 0, True))


def test_compiles_without_graph_breaks_for_any_boxes() -> None:
    def loss(features: Tensor, boxes: Tensor) -> Tensor:
        return roi_align(features, boxes, 7, 1 / 16, 0, True).square().sum()

    features = make_features(2, 3, 6, 8, dtype=torch.float32).requires_grad_()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")  # a graph break raises
    for count, spread in ((5, 0.0), (5, 2.0), (9, 0.3)):  # more samples per bin, more boxes: the same graph
        boxes = random_boxes(count, batch=2, height=96, width=128, spread=spread).float()
        torch._dynamo.mark_dynamic(boxes, 0)
        assert_same_gradients(compiled(features, boxes), loss(features, boxes), [features])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class _Pooling(nn.Module):
    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        return roi_align(features, boxes, 7, 1 / 16, 0, True)


def test_exports_as_plain_products_with_the_same_values_and_gradients() -> None:
    """The exported graph holds the products that GPUs run."""
    features = make_features(2, 3, 6, 8, dtype=torch.float32).requires_grad_()
    boxes = random_boxes(5, batch=2, height=96, width=128, spread=0.3).float()
    dynamic = {"features": None, "boxes": {0: torch.export.Dim("boxes", min=2)}}
    program = torch.export.export(_Pooling(), (features, boxes), dynamic_shapes=dynamic)
    assert not [node for node in program.graph.nodes if "videomaskfeat" in str(node.target)]
    boxes = random_boxes(8, batch=2, height=96, width=128, spread=0.3).float()
    assert_same_gradients(program.module()(features, boxes), _Pooling()(features, boxes), [features])


def test_custom_operator_is_registered_soundly() -> None:
    maps = make_features(2, 4, 5, 3).requires_grad_()
    places, rows, columns = torch.tensor([1, 0, 1]), make_features(3, 2, 4), make_features(3, 3, 5)
    torch.library.opcheck(torch.ops.videomaskfeat.pool_boxes.default, (maps, places, rows, columns))


@pytest.mark.parametrize(
    ("features", "boxes", "output_size", "words"),
    [
        ((2, 3, 4, 5, 6), (1, 5), 7, r"features \[2, 3, 4, 5, 6\] .* are not float \[B, C, H, W\]; average"),
        ((2, 3, 4, 5), (1, 4), 7, r"boxes \[1, 4\] are not \[R, 5\]: each row is index in the batch, x1"),
        ((2, 3, 4, 5), (5,), 7, r"boxes \[5\] are not \[R, 5\]"),
        ((2, 3, 4, 5), (1, 5), (7, 0), r"output_size=\(7, 0\) and spatial_scale=1.0 must be positive"),
    ],
)
def test_invalid_shapes_are_refused(
    features: tuple[int, ...], boxes: tuple[int, ...], output_size: int | tuple[int, int], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        roi_align(torch.zeros(features), torch.zeros(boxes), output_size)


@pytest.mark.parametrize("place", [-1.0, 2.0, float("nan")])
def test_box_index_outside_the_batch_is_refused(place: float) -> None:
    boxes = torch.tensor([[0.0, 0, 0, 9, 9], [place, 0, 0, 9, 9]])
    with pytest.raises(UserError, match=r"in a batch of 2; their first column must be in 0\.\.1"):
        roi_align(torch.zeros(2, 3, 4, 5), boxes, 7)
    with pytest.raises(UserError, match=r"features .* of torch\.int64 are not float"):
        roi_align(torch.zeros(2, 3, 4, 5, dtype=torch.int64), boxes, 7)


@pytest.mark.cuda
def test_cuda_equals_cpu() -> None:
    features = make_features(2, 3, 9, 13).requires_grad_()
    boxes = random_boxes(8, batch=2, height=144, width=208, spread=0.3)
    cpu = roi_align(features, boxes, 7, 1 / 16, 0, True)
    with torch.autocast("cuda", torch.bfloat16):  # of no effect
        cuda = roi_align(features.cuda(), boxes.cuda(), 7, 1 / 16, 0, True).cpu()
    assert_same_gradients(cuda, cpu, [features])
