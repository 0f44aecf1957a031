"""Models as graphs in files that run where this package is not: torch.export's ``.pt2`` and ONNX."""

from __future__ import annotations

import importlib.util
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from videomaskfeat.errors import UserError

Run = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]
"""The inputs of a graph, in order -> its outputs, in order."""

OPSETS = range(18, 24)
"""Versions of ONNX's operators that torch's exporter writes; runtimes know all up to one of them."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_ONNX_LIMIT = 2**31 - 1  # bytes: a protobuf holds no more


@dataclass(frozen=True)
class Graph:
    """What is exported.

    Attributes:
        module: in evaluation mode, on the CPU; tensors in, a tensor or a tuple of tensors out.
        inputs: a name an input, those of the arguments of its ``forward``.
        outputs: a name an output.
        boxes: those of both whose first axis counts boxes, of which there may be any number; that of all
            others is the batch.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    boxes: tuple[str, ...] = ()

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """What the module itself makes of the inputs, without any file."""
        with torch.inference_mode():
            return _as_tuple(self.module(*inputs))


def save_program(
    path: str | os.PathLike[str],
    graph: Graph,
    example: Sequence[Tensor],
    *,
    any_batch: bool,
    metadata: Mapping[str, str],
) -> None:
    """Trace a module and write it as a program of torch's own operators, weights inside.

    Args:
        path: of the file; ``.pt2`` by custom.
        graph: see :class:`Graph`.
        example: inputs to trace with; at least two samples where ``any_batch`` is true.
        any_batch: whether the program takes batches of any size, or of the example's alone.
        metadata: texts that go into the file, by key: torch's ``extra_files``.

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # where a disk is full, torch's own writer aborts the process
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            graph.module, tuple(example), dynamic_shapes=_dynamic_shapes(graph, any_batch)
        )
        torch.export.save(program, content, extra_files=dict(metadata))
    with open(path, "wb") as file:
        file.write(content.getbuffer())


def load_program(path: str | os.PathLike[str]) -> Run:
    """Read a file of :func:`save_program`."""
    with _quiet():
        module = torch.export.load(os.fspath(path)).module()

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.inference_mode():
            return _as_tuple(module(*inputs))

    return run


def save_onnx(
    path: str | os.PathLike[str],
    graph: Graph,
    example: Sequence[Tensor],
    *,
    any_batch: bool,
    opset: int,
    metadata: Mapping[str, str],
) -> None:
    """Trace a module and write it as ONNX, weights inside.

    Args:
        path: of the file; ``.onnx`` by custom.
        graph: see :class:`Graph`; its names are those of the file's inputs and outputs.
        example: as in :func:`save_program`.
        any_batch: likewise; the dimension is then called "batch".
        opset: version of ONNX's operators, one of :data:`OPSETS`.
        metadata: texts that go into the file, by key.

    Raises:
        UserError: an opset that torch does not write, weights that no ONNX file can hold, or the packages of
            the extra ``export`` are missing.
        OSError: the file cannot be written.
    """
    require_onnx(opset)
    size = sum(value.numel() * value.element_size() for value in graph.module.state_dict().values())
    if size > _ONNX_LIMIT:
        raise UserError(
            f"{os.fspath(path)}: weights of {size / 2**30:.1f} GiB, and an ONNX file holds 2 GiB; "
            "export them with --format torch"
        )
    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            graph.module,
            tuple(example),
            input_names=graph.inputs,
            output_names=graph.outputs,
            dynamic_shapes=_dynamic_shapes(graph, any_batch),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
        assert program is not None
        program.model.metadata_props.update(metadata)
        program.save(os.fspath(path), external_data=False)


def load_onnx(path: str | os.PathLike[str]) -> Run:
    """Read a file of :func:`save_onnx` with onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        arrays = {name: value.numpy() for name, value in zip(names, inputs, strict=True)}
        return tuple(torch.from_numpy(array) for array in session.run(None, arrays))

    return run


def require_onnx(opset: int) -> None:
    """Do nothing where ONNX files of this opset can be written and read.

    Raises:
        UserError: they cannot: a package is missing, or torch does not write the opset.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX files need {' and '.join(missing)}, not installed here; "
            "pip install 'videomaskfeat[export]'"
        )
    if opset not in OPSETS:
        raise UserError(f"opset {opset}: torch writes {OPSETS[0]} to {OPSETS[-1]}; take one of these")


def _dynamic_shapes(graph: Graph, any_batch: bool) -> Any:
    """Of each input the axes that may have any length, or None if there are none."""
    batch, boxes = torch.export.Dim("batch"), torch.export.Dim("boxes")
    if not any_batch and not graph.boxes:
        return None
    shapes = [{0: boxes} if name in graph.boxes else {0: batch} if any_batch else {} for name in graph.inputs]
    return tuple(shapes)


def _as_tuple(output: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporters about their insides, such as operators of a torchvision that is absent."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
