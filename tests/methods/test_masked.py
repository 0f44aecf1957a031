"""A step of masked prediction: one graph for the compiler, and no wait of the host for the device."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import Tensor
from torch._dynamo.utils import counters

from tests.engine.without_data import DEVICE, act_as_on_a_device, host_waits
from videomaskfeat.config import load_config
from videomaskfeat.data.batches import PretrainBatch, count_hidden
from videomaskfeat.engine.optim import clip_gradients
from videomaskfeat.methods.build import build_method
from videomaskfeat.methods.masked import MaskedPrediction
from videomaskfeat.schemas.pretrain import PretrainConfig

SMALL = ["clip.frames=4", "clip.crop=32", "mask.kind=random", "mask.ratio=0.5"]
METHODS = {
    "maskfeat": [
        "model.name=maskfeat_mvitv2_nano",
        "model.arguments={depth: 2, width: 16, widen_at: [1], q_pool_at: [1]}",
        "mask.cell=[2,16,16]",
    ],
    "mae": [
        "model.name=mae_vit_nano",
        "model.arguments={depth: 2, width: 32, heads: 2, cube_stride: [2, 16, 16], decoder_depth: 1}",
        "target.name=pixels",
        "mask.cell=[2,16,16]",
    ],
    "hiera": [
        "model.name=mae_hiera_b",
        "model.arguments={width: 8, heads: 1, stages: [1, 1, 1, 1], decoder_depth: 1, decoder_width: 32}",
        "target.name=pixels",
        "clip.crop=64",
        "mask.cell=[2,32,32]",
    ],
}


def make_method(name: str) -> tuple[MaskedPrediction, PretrainBatch]:
    """A method with a tiny network, and a batch of noise."""
    torch.manual_seed(0)
    method = build_method(load_config(PretrainConfig, None, [*SMALL, *METHODS[name]]))
    assert isinstance(method, MaskedPrediction)
    rng = np.random.default_rng(0)
    masks = np.stack([method.recipe.draw_mask(rng) for _ in range(2)])
    clip = method.recipe.clip
    clips = torch.from_numpy(rng.integers(0, 256, (2, clip.frames, clip.crop, clip.crop, 3), dtype=np.uint8))
    batch = PretrainBatch(clips, torch.from_numpy(masks), torch.arange(2), hidden_cells=count_hidden(masks))
    return method, batch


@pytest.mark.parametrize("name", METHODS)
def test_network_and_loss_are_one_graph(name: str) -> None:
    method, batch = make_method(name)
    loss = method.loss(method.student, batch).loss
    expected = torch.autograd.grad(loss, list(method.student.parameters()), allow_unused=True)
    torch._dynamo.reset()
    counters.clear()
    method._compare = torch.compile(method.compare, backend="aot_eager")
    compiled = method.loss(method.student, batch).loss
    actual = torch.autograd.grad(compiled, list(method.student.parameters()), allow_unused=True)
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(compiled, loss, atol=1e-6, rtol=1e-5)
    for ours, plain in zip(actual, expected, strict=True):
        if plain is not None:
            torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_step_makes_the_host_wait_for_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors without data stand for those of a GPU: to read one is an error, and each copy is noted.

    The first step copies constant tables to the device and keeps them there.
    """
    act_as_on_a_device(monkeypatch)
    method, batch = make_method(name)
    network = method.student.to(DEVICE)
    method.to(DEVICE)
    batch = batch.to(DEVICE)
    for number in range(2):
        with host_waits() as waits:
            result = method.loss(network, batch)
            result.loss.backward()
            norm: Tensor = clip_gradients(list(network.parameters()), limit=0.1, limit_each=None)
        assert norm.is_meta
        assert number == 0 or waits == []


def test_hidden_cells_are_counted_if_all_masks_hide_as_many() -> None:
    masks = np.zeros((2, 1, 2, 2), bool)
    assert count_hidden(masks) is None  # nothing is hidden: the network refuses it
    masks[:, 0, 0] = True
    assert count_hidden(masks) == 2
    masks[1, 0, 1, 0] = True
    assert count_hidden(masks) is None
    assert count_hidden(np.ones((2, 1, 2, 2), bool)) is None
