"""``run.kernels``: measured for a new run, written into its folder, and kept on resume."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from videomaskfeat.config import load_config
from videomaskfeat.models.kernels import measure
from videomaskfeat.models.kernels.choice import CHOICES, VARIABLE, Kernels, current_kernels, use_kernels
from videomaskfeat.schemas.pretrain import PretrainConfig

Pretrain = Callable[..., tuple[int, str]]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Times of a machine, which the test may change; on it, MKL and fused attention are faster."""
    times: dict[str, Any] = {name: dict(zip(kernels, (10.0, 4.0))) for name, kernels in CHOICES.items()}  # noqa: B905
    monkeypatch.setenv(VARIABLE, "auto")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(measure, "_measure", lambda bf16, shapes: times)
    monkeypatch.setattr(measure, "_load", lambda key, operations: None)
    before = current_kernels()
    yield times
    measure.apply_kernels(before)


def stored(folder: Path) -> str:
    return load_config(PretrainConfig, str(folder / "config.yaml")).run.kernels


FAST = Kernels("mkl", "mkl", "fused", "returned")


def test_new_run_prints_and_stores_its_kernels(
    pretrain: Pretrain, tmp_path: Path, machine: dict[str, Any]
) -> None:
    code, text = pretrain()
    assert code == 0, text
    assert f"kernels   {FAST} (measured: products onednn 10 ms, mkl 4 ms; " in text
    assert stored(tmp_path / "run") == str(FAST) == str(current_kernels())


def test_resumed_run_keeps_its_kernels(pretrain: Pretrain, tmp_path: Path, machine: dict[str, Any]) -> None:
    assert pretrain()[0] == 0
    for operation, (first, second) in CHOICES.items():
        machine[operation] = {first: 1.0, second: 2.0}
    use_kernels(Kernels())
    code, text = pretrain()
    assert code == 0, text
    assert f"kernels   {FAST} (not measured)" in text
    assert stored(tmp_path / "run") == str(FAST) == str(current_kernels())
    code, text = pretrain("run.kernels=attention=blocked")  # the others stay
    assert code == 0, text
    assert stored(tmp_path / "run") == str(Kernels("mkl", "mkl", "blocked", "returned"))
    assert pretrain("run.kernels=default")[0] == 0
    assert stored(tmp_path / "run") == str(Kernels())


def test_run_folder_from_before_the_key_has_the_default_kernels(
    pretrain: Pretrain, tmp_path: Path, machine: dict[str, Any]
) -> None:
    assert pretrain("run.kernels=default")[0] == 0
    config = tmp_path / "run" / "config.yaml"
    lines = [line for line in config.read_text().splitlines() if not line.startswith("  kernels:")]
    config.write_text("\n".join(lines) + "\n")
    assert pretrain()[0] == 0
    assert stored(tmp_path / "run") == str(Kernels())


def test_unknown_kernel_is_refused(pretrain: Pretrain, tmp_path: Path) -> None:
    code, text = pretrain("run.kernels=attention=flash")
    assert code == 2
    assert "run.kernels: kernel of attention 'flash' is unknown" in text
    assert not (tmp_path / "run").exists()
