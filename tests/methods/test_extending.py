"""The examples of docs/extending.md: a target and a method of one's own, trained for two steps."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.toy import metrics
from tests.extending import add_module, python_blocks
from videomaskfeat.methods import METHODS
from videomaskfeat.models.loading import load_model
from videomaskfeat.targets import TARGETS


def example(title: str, registry: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the file under a heading of the page, and add its line to the registry."""
    module, line = python_blocks(title)
    ((name, entry),) = ast.literal_eval(f"{{{line}}}").items()
    add_module(module, entry.partition(":")[0], monkeypatch)
    monkeypatch.setitem(registry, name, entry)


@pytest.mark.parametrize(
    ("title", "registry", "overrides", "logged"),
    [
        ("Add a target", TARGETS, ["target=color"], ()),
        ("Add a method", METHODS, ["method=arrow", "method.arguments={smoothing: 0.1}"], ("right",)),
    ],
    ids=["target", "method"],
)
def test_an_example_trains_two_steps_and_is_evaluated(
    title: str,
    registry: dict[str, str],
    overrides: list[str],
    logged: tuple[str, ...],
    pretrain: Callable[..., tuple[int, str]],
    sample: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    example(title, registry, monkeypatch)
    held_out = f"data.validation={sample / 'val.csv'}"
    code, text = pretrain(
        *overrides, held_out, "optim.epochs=1", "optim.warmup_epochs=0", "optim.batch_size=8"
    )
    assert code == 0, text
    rows = metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [1, 2]
    assert all(0 < row["loss"] < 10 and set(logged) <= row.keys() for row in rows)
    assert "trained model" in text
    model = load_model(tmp_path / "run" / "weights.safetensors")
    assert getattr(model, "values_per_token", None) == (3 if registry is TARGETS else None)
