"""Weighted sums of targets."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from videomaskfeat.errors import UserError
from videomaskfeat.recipe import ClipRecipe
from videomaskfeat.targets import build_target
from videomaskfeat.targets.combined import CombinedTarget
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget

build = functools.partial(build_target, clip=ClipRecipe(frames=4, stride=2, crop=32))
RAW = {"name": "pixels", "weight": 0.25, "arguments": {"normalized": False, "loss": "l1"}}


def test_loss_is_the_weighted_sum_of_the_parts_on_their_own_values() -> None:
    target = CombinedTarget(parts={"hog": {"weight": 2}, "raw": RAW}, build=build)
    clips = torch.randn(2, 3, 4, 32, 32)
    output = target(clips)
    hog, raw = HogTarget(), PixelTarget(normalized=False, loss="l1")
    assert torch.equal(output[0], hog(clips))
    assert torch.equal(output[1], raw(clips))
    assert target.values_per_token == 108 + 768
    predictions = torch.randn(2, 2, 2, 2, 876)
    mask = torch.rand(2, 2, 2, 2) < 0.5
    loss, terms = target.loss_parts(predictions, output, mask)
    own = hog.loss(predictions[..., :108], output[0], mask), raw.loss(predictions[..., 108:], output[1], mask)
    torch.testing.assert_close(terms, {"loss_hog": own[0], "loss_raw": own[1]})
    torch.testing.assert_close(loss, 2 * own[0] + 0.25 * own[1])
    assert torch.equal(target.loss(predictions, output, mask), loss)
    assert target.loss_name == "weighted sum of mean squared error (hog) and mean absolute error (raw)"


def test_defaults_of_a_part_are_its_key_and_weight_one() -> None:
    target = CombinedTarget(parts={"hog": None, "pixels": {}}, build=build)
    assert target.weights == {"hog": 1.0, "pixels": 1.0}
    assert [type(part) for part in target.targets] == [HogTarget, PixelTarget]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({}, r"combined parts \{\} must be a mapping of targets"),
        (
            {"hogs": {}},
            r"part 'hogs' of the combined target: target\.name 'hogs' is unknown; did you mean 'hog'",
        ),
        ({"hog": {"weight": 0}}, r"part 'hog' .* has weight 0; it must be above 0"),
        ({"hog": {"weight": -1.0}}, r"has weight -1\.0; it must be above 0"),
        ({"hog": {"weight": float("nan")}}, r"has weight nan; it must be above 0"),
        (
            {"hog": {"wight": 1}},
            r"key 'wight' is unknown; did you mean 'weight'\? Choose from name, weight, arguments",
        ),
        ({"hog": 2}, r"part 'hog' of the combined target is 2; it must be a mapping"),
        (
            {"hog": {}, "pixels": {"arguments": {"output_stride": [2, 8, 8]}}},
            r"different output strides \(hog \(2, 16, 16\), pixels \(2, 8, 8\)\).*set the target's output_",
        ),
    ],
)
def test_invalid_parts_are_refused(parts: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        CombinedTarget(parts=parts, build=build)
