"""What a run says about its model."""

from __future__ import annotations

import pytest
import torch

from videomaskfeat.models import create_model
from videomaskfeat.tasks.plan import multiply_adds


@pytest.mark.parametrize(("name", "billions"), [("maskfeat_mvitv2_s_classifier", 71.4), ("mvitv2_s", 64.5)])
def test_multiply_adds_are_the_published_ones(name: str, billions: float) -> None:
    clip = torch.zeros(1, 3, 16, 224, 224)
    assert round(multiply_adds(create_model(name), (clip,)) / 1e9, 1) == billions
