"""Shared by all tests: the random state is restored after each, and `cuda` tests need a GPU."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden() -> Path:
    """The folder of values recorded from the reference implementations."""
    return GOLDEN


@pytest.fixture(autouse=True)
def _restore_random_state() -> Iterator[None]:
    state = torch.get_rng_state()
    yield
    torch.set_rng_state(state)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or os.environ.get("VIDEOMASKFEAT_REQUIRE_CUDA") == "1":
        return
    skip = pytest.mark.skip(reason="no NVIDIA GPU here")
    for item in items:
        if "cuda" in item.keywords:
            item.add_marker(skip)
