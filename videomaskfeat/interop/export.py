"""Export of models to files that run without this package: torch.export's ``.pt2`` and ONNX."""

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
"""From the inputs of a graph to its outputs, both in order."""

OPSETS = range(18, 24)
"""ONNX operator set versions that torch's exporter writes; a runtime supports all up to its own version."""

_ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
_MAX_ONNX_BYTES = 2**31 - 1  # limit of protobuf


@dataclass(frozen=True)
class Graph:
    """A module to export.

    Attributes:
        module: in evaluation mode, on the CPU; from tensors to a tensor or a tuple of tensors.
        inputs: names of the arguments of its ``forward``.
        outputs: names of the outputs.
        boxes: names of inputs and outputs whose first axis is the number of boxes, which may vary; for all
            others it is the batch.
    """

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    boxes: tuple[str, ...] = ()

    def run(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The module's own outputs for these inputs."""
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
    """Trace a module and write it with its weights as a program of torch's own operators.

    Args:
        path: path of the file, usually ``.pt2``.
        graph: see :class:`Graph`.
        example: inputs for tracing; at least two samples if ``any_batch`` is True.
        any_batch: whether the program accepts any batch size, or only the example's.
        metadata: texts to store in the file, by key (torch's ``extra_files``).

    Raises:
        OSError: the file cannot be written.
    """
    content = io.BytesIO()  # torch's own writer aborts the process if the disk is full
    with torch.no_grad(), _quiet():
        program = torch.export.export(
            graph.module, tuple(example), dynamic_shapes=_dynamic_shapes(graph, any_batch)
        )
        torch.export.save(program, content, extra_files=dict(metadata))
    with open(path, "wb") as file:
        file.write(content.getbuffer())


def load_program(path: str | os.PathLike[str]) -> Run:
    """Load a file of :func:`save_program`."""
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
    """Trace a module and write it with its weights as ONNX.

    Args:
        path: path of the file, usually ``.onnx``.
        graph: see :class:`Graph`; its names become those of the file's inputs and outputs.
        example, any_batch: see :func:`save_program`; the batch dimension is called "batch".
        opset: ONNX operator set version, one of :data:`OPSETS`.
        metadata: texts to store in the file, by key.

    Raises:
        UserError: an unsupported opset, weights above the size limit of ONNX, or missing packages of the
            extra ``export``.
        OSError: the file cannot be written.
    """
    require_onnx(opset)
    size = sum(value.numel() * value.element_size() for value in graph.module.state_dict().values())
    if size > _MAX_ONNX_BYTES:
        raise UserError(
            f"{os.fspath(path)}: the weights have {size / 2**30:.1f} GiB, but the limit of an ONNX file is "
            "2 GiB; use --format torch"
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
    """Load a file of :func:`save_onnx` with onnxruntime, on the CPU."""
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
    """Check that ONNX files of this opset can be written and read.

    Raises:
        UserError: a package is missing, or torch does not write the opset.
    """
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"ONNX files need {' and '.join(missing)}, which is not installed; "
            "pip install 'videomaskfeat[export]'"
        )
    if opset not in OPSETS:
        raise UserError(f"opset {opset} is not supported; use one of {OPSETS[0]} to {OPSETS[-1]}")


def _dynamic_shapes(graph: Graph, any_batch: bool) -> Any:
    """Dynamic axes of each input; None without dynamic axes."""
    batch, boxes = torch.export.Dim("batch"), torch.export.Dim("boxes")
    if not any_batch and not graph.boxes:
        return None
    return tuple(
        {0: boxes} if name in graph.boxes else {0: batch} if any_batch else {} for name in graph.inputs
    )


def _as_tuple(output: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (output,) if isinstance(output, Tensor) else tuple(output)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence messages of torch's exporters about their internals, such as missing torchvision operators."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.export", "onnxscript", "onnx_ir")]
    log_levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, log_levels, strict=True):
            logger.setLevel(level)
