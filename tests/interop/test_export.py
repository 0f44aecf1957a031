"""Exported graphs: names, batch sizes, opsets and metadata, and the errors of exporting."""

from __future__ import annotations

import functools
import logging
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import onnx
import pytest
import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError
from videomaskfeat.interop import export
from videomaskfeat.interop.export import (
    Graph,
    Run,
    load_onnx,
    load_program,
    require_onnx,
    save_onnx,
    save_program,
)


class Toy(nn.Module):
    """Two inputs of two types, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, clips: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """[B, 4, 3] and bool [B, 4] -> [B, 2] and [B, 4, 2]."""
        tokens = self.layer(clips).masked_fill(mask[..., None], 0.0)
        return tokens.sum(dim=1), tokens


@pytest.fixture
def toy() -> Graph:
    torch.manual_seed(0)
    return Graph(Toy().eval(), ("clips", "mask"), ("features", "tokens"))


def inputs(batch: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 4, 3), torch.rand(batch, 4) < 0.5


def by_hand(graph: Graph, clips: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    tokens = clips @ graph.module.layer.weight.t() + graph.module.layer.bias
    tokens = tokens * ~mask[..., None]
    return tokens.sum(dim=1), tokens


SAVE = {"torch": save_program, "onnx": functools.partial(save_onnx, opset=20)}


def save_and_load(path: Path, graph: Graph, format: str, *, batch: int, any_batch: bool) -> Run:
    SAVE[format](path, graph, inputs(batch), any_batch=any_batch, metadata={})
    return load_program(path) if format == "torch" else load_onnx(path)


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_file_accepts_any_batch_size(tmp_path: Path, toy: Graph, format: str) -> None:
    run = save_and_load(tmp_path / "toy", toy, format, batch=2, any_batch=True)
    for batch in (1, 3, 7):
        clips, mask = inputs(batch)
        outputs = run((clips, mask))
        assert len(outputs) == 2
        for own, expected in zip(outputs, by_hand(toy, clips, mask), strict=True):
            torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-6)  # four sums of three products
    assert [file.name for file in tmp_path.iterdir()] == ["toy"]  # no weights beside it


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_file_with_fixed_batch_size_rejects_others(tmp_path: Path, toy: Graph, format: str) -> None:
    run = save_and_load(tmp_path / "toy", toy, format, batch=1, any_batch=False)
    assert run(inputs(1))[0].shape == (1, 2)
    with pytest.raises(Exception, match=r"(?i)dimension|size"):
        run(inputs(2))


@pytest.mark.parametrize("opset", [18, 23])
def test_onnx_file_contains_names_shapes_opset_and_texts(tmp_path: Path, toy: Graph, opset: int) -> None:
    path = tmp_path / "toy.onnx"
    save_onnx(path, toy, inputs(2), any_batch=True, opset=opset, metadata={"classify": "{}", "model": "x"})
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", opset)]
    assert {entry.key: entry.value for entry in model.metadata_props} == {"classify": "{}", "model": "x"}
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "clips": ["batch", 4, 3],
        "mask": ["batch", 4],
        "features": ["batch", 2],
        "tokens": ["batch", 4, 2],
    }


def test_program_runs_without_this_package(tmp_path: Path, toy: Graph) -> None:
    path = tmp_path / "toy.pt2"
    save_program(path, toy, inputs(2), any_batch=True, metadata={"classify": "of it"})
    code = (
        "import sys, torch; texts = {'classify': ''}\n"
        f"program = torch.export.load({str(path)!r}, extra_files=texts).module()\n"
        "features, tokens = program(torch.ones(3, 4, 3), torch.zeros(3, 4, dtype=torch.bool))\n"
        "assert not [name for name in sys.modules if name.split('.')[0] == 'videomaskfeat']\n"
        "print(texts['classify'], *features[0].tolist())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    text, first, second = done.stdout.rsplit(maxsplit=2)
    assert text == "of it"
    expected = 4 * (toy.module.layer.weight.sum(dim=1) + toy.module.layer.bias)
    torch.testing.assert_close(torch.tensor([float(first), float(second)]), expected.detach())


def test_exporters_print_nothing(
    tmp_path: Path, toy: Graph, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    level = logging.getLogger("torch.onnx").level
    save_onnx(tmp_path / "toy.onnx", toy, inputs(2), any_batch=True, opset=20, metadata={})
    save_program(tmp_path / "toy.pt2", toy, inputs(2), any_batch=True, metadata={})
    load_program(tmp_path / "toy.pt2")
    load_onnx(tmp_path / "toy.onnx")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    assert logging.getLogger("torch.onnx").level == level


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_error_for_missing_package_names_the_extra(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, missing, None)  # as if it were not installed
    words = rf"ONNX files need {missing}, which is not installed; pip install 'videomaskfeat\[export\]'"
    with pytest.raises(UserError, match=words):
        require_onnx(20)


@pytest.mark.parametrize("opset", [17, 24])
def test_unsupported_opset_is_refused(tmp_path: Path, toy: Graph, opset: int) -> None:
    with pytest.raises(UserError, match=f"opset {opset} is not supported; use one of 18 to 23"):
        save_onnx(tmp_path / "x", toy, inputs(2), any_batch=True, opset=opset, metadata={})


def test_weights_above_the_onnx_limit_are_refused(
    tmp_path: Path, toy: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    bytes_of_toy = 4 * (2 * 3 + 2)
    monkeypatch.setattr(export, "_MAX_ONNX_BYTES", bytes_of_toy - 1)
    with pytest.raises(UserError, match="but the limit of an ONNX file is 2 GiB; use --format torch"):
        save_onnx(tmp_path / "x", toy, inputs(2), any_batch=True, opset=20, metadata={})
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(export, "_MAX_ONNX_BYTES", bytes_of_toy)
    save_onnx(tmp_path / "x", toy, inputs(2), any_batch=True, opset=20, metadata={})


@pytest.mark.parametrize("format", ["torch", "onnx"])
def test_full_disk_raises_os_error(
    tmp_path: Path, toy: Graph, format: str, full_disk: Callable[[int], AbstractContextManager[None]]
) -> None:
    """Torch's own writer would abort the process."""
    with full_disk(100), pytest.raises(OSError, match="File too large"):
        SAVE[format](tmp_path / "x", toy, inputs(2), any_batch=True, metadata={})
