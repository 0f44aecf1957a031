"""The choice of kernels: equal results, by times that the tests set, stored per machine."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.autograd import assert_same_gradients
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.models.cost import multiply_adds
from videomaskfeat.models.kernels import attention as attention_kernel
from videomaskfeat.models.kernels import dense, measure
from videomaskfeat.models.kernels.choice import (
    CHOICES,
    VARIABLE,
    Kernels,
    current_kernels,
    parse_kernels,
    using_kernels,
)
from videomaskfeat.models.kernels.measure import Shapes, choose_kernels

EQUAL = {name: dict.fromkeys(kernels, 10.0) for name, kernels in CHOICES.items()}
TINY = Shapes(in_width=8, out_width=8, head_width=8)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[Any]]:
    """``measured(times)``: a machine with these milliseconds; the returned list has each measurement."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv(VARIABLE, "auto")
    monkeypatch.setattr(measure, "keep_freed_memory", lambda keep=True: True)
    before = current_kernels()

    def make(**times: dict[str, float]) -> list[Any]:
        calls: list[Any] = []

        def answer(bf16: bool, shapes: Shapes) -> dict[str, dict[str, float]]:
            calls.append((bf16, shapes))
            return {**EQUAL, **times}

        monkeypatch.setattr(measure, "_measure", answer)
        return calls

    yield make  # type: ignore[misc]
    measure.use_kernels(before)


@pytest.mark.parametrize("operation", ["products", "gradients"])
def test_mkl_and_onednn_are_equal(operation: str) -> None:
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(size, requires_grad=True) for size in ((70, 12), (9, 12), (9,)))
    for gelu in (False, True):
        with using_kernels(Kernels()):
            expected = dense.linear(x, weight, bias, gelu=gelu)
            gradients = torch.autograd.grad(expected.square().sum(), (x, weight, bias))
        with using_kernels(replace(Kernels(), **{operation: "mkl"})):  # type: ignore[arg-type]
            ours = dense.linear(x, weight, bias, gelu=gelu)
            torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
            actual = torch.autograd.grad(ours.square().sum(), (x, weight, bias))
        torch.testing.assert_close(actual, gradients, atol=1e-4, rtol=1e-4)


def test_library_of_products_is_the_chosen_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and input gradient belong to ``products``, the weight's gradient to ``gradients``."""
    calls: list[str] = []
    original = dense._product

    def watch(a: Any, b: Any, bias: Any = None, *, library: str) -> Any:
        calls.append(library)
        return original(a, b, bias, library=library)

    monkeypatch.setattr(dense, "_product", watch)
    x, weight = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    with using_kernels(Kernels(products="onednn", gradients="mkl")):
        dense.linear(x, weight, None).sum().backward()
    assert calls == ["onednn", "onednn", "mkl"]


def test_fused_attention_is_used_and_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(attention_kernel, "_FEW_SCORES", 0)
    sizes = ((2, 37, 3, 6), (2, 11, 3, 6), (2, 11, 3, 4))
    heads = [torch.randn(size, requires_grad=True) for size in sizes]
    with using_kernels(Kernels(attention="blocked")):
        blocked = attention_kernel.attention(*heads)
    monkeypatch.setattr(attention_kernel, "_blocked_attention", None)  # fails if it is called
    with using_kernels(Kernels(attention="fused")):
        fused = attention_kernel.attention(*heads)
    assert_same_gradients(fused, blocked, heads)


def test_default_kernels_win_unless_others_are_clearly_faster(measured: Callable[..., list[Any]]) -> None:
    calls = measured(products={"onednn": 10.0, "mkl": 9.1}, attention={"blocked": 10.0, "fused": 8.9})
    choice = choose_kernels(shapes=TINY)
    assert choice.kernels == current_kernels() == Kernels(attention="fused")
    assert calls == [(False, TINY)]
    assert str(choice).startswith(
        "products=onednn, gradients=onednn, attention=fused, memory=kept, gpu_attention=widened (measured: "
    )
    assert "attention blocked 10 ms, fused 8.9 ms" in str(choice)


def test_measurement_is_stored_per_precision_threads_and_shapes(
    measured: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measured(gradients={"onednn": 10.0, "mkl": 5.0})
    first = choose_kernels(shapes=TINY)
    again = choose_kernels(shapes=TINY)
    assert again.kernels == first.kernels == Kernels(gradients="mkl")
    assert len(calls) == 1
    assert again.reason.startswith("measured before: ")
    choose_kernels(shapes=TINY, bf16=True)
    choose_kernels(shapes=replace(TINY, head_width=16))
    monkeypatch.setattr(measure.torch, "get_num_threads", lambda: 77)
    choose_kernels(shapes=TINY)
    monkeypatch.setattr(measure, "processor_name", lambda: "another")
    choose_kernels(shapes=TINY)
    assert len(calls) == 5
    assert len(list((Path(os.environ["XDG_CACHE_HOME"]) / "videomaskfeat" / "kernels").iterdir())) == 5


@pytest.mark.parametrize(
    "damage",
    ["", "{", "[]", '{"key": 1}', "\0\0", "null", '{"milliseconds": {"products": {"onednn": "fast"}}}'],
)
def test_damaged_file_is_measured_again(measured: Callable[..., list[Any]], damage: str) -> None:
    calls = measured()
    choose_kernels(shapes=TINY)
    (path,) = (Path(os.environ["XDG_CACHE_HOME"]) / "videomaskfeat" / "kernels").iterdir()
    content = json.loads(path.read_text())
    try:
        content = json.dumps({**content, **json.loads(damage)})
    except (ValueError, TypeError):
        content = damage
    path.write_text(content)
    choose_kernels(shapes=TINY)
    choose_kernels(shapes=TINY)  # the file is whole again
    assert len(calls) == 2


@pytest.mark.parametrize("where", ["/proc/none", "file", "relative"])
def test_folder_that_cannot_be_written_is_no_failure(
    measured: Callable[..., list[Any]], where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file") if where == "file" else where)
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    calls = measured()
    choose_kernels(shapes=TINY)
    choose_kernels(shapes=TINY)
    assert len(calls) == 2


def test_several_processes_at_once_leave_whole_files(measured: Callable[..., list[Any]]) -> None:
    measured()
    key = measure._key(False, TINY)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(30):
                measure._store(key, EQUAL)
                assert measure._load(key) == EQUAL
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not failures
    assert len(list(measure._path(key).parent.iterdir())) == 1  # no temporary files are left


def test_key_and_variable_fix_kernels(
    measured: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = measured(products={"onednn": 10.0, "mkl": 5.0}, gradients={"onednn": 10.0, "mkl": 5.0})
    assert choose_kernels("default").kernels == Kernels()
    assert choose_kernels("products=mkl gradients=onednn attention=fused memory=returned").kernels == Kernels(
        products="mkl", attention="fused", memory="returned"
    )
    assert not calls  # nothing is left to measure
    choice = choose_kernels("products=onednn", shapes=TINY)
    assert choice.kernels == Kernels(gradients="mkl")
    assert set(choice.milliseconds) == {"gradients", "attention", "memory"}
    monkeypatch.setenv(VARIABLE, "default")
    assert choose_kernels("auto").kernels == Kernels()
    assert choose_kernels("attention=fused", shapes=TINY).kernels.gradients == "mkl"  # the key overrides it
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "fast",
            "run.kernels 'fast': must be auto, default, or a kernel per operation, such as 'products=mkl",
        ),
        ("product=mkl", "run.kernels: operation 'product' is unknown.*products"),
        ("products=blas", "run.kernels: kernel of products 'blas' is unknown.*onednn, mkl"),
    ],
)
def test_unknown_kernels_are_refused(text: str, words: str) -> None:
    with pytest.raises(UserError, match=words):
        parse_kernels(text, name="run.kernels")


def test_text_of_kernels_is_read_back() -> None:
    kernels = Kernels(products="mkl", attention="fused", memory="returned")
    assert Kernels(**parse_kernels(str(kernels), name="")) == kernels  # type: ignore[arg-type]


def test_measurement_measures_every_kernel_and_changes_nothing() -> None:
    """The real measurement, of small layers: positive times, and no trace in random state or kernels."""
    before, state = current_kernels(), torch.get_rng_state()
    for bf16 in (False, True):
        times = measure._measure(bf16, TINY)
        assert {name: tuple(each) for name, each in times.items()} == CHOICES
        assert all(0 < value < 60_000 for each in times.values() for value in each.values())
    assert current_kernels() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_measurement_of_an_operation_uses_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that the kernel in use moves on."""
    clock = [0.0]
    monkeypatch.setattr(measure.time, "process_time", lambda: clock[0])

    def run() -> None:
        clock[0] += {"onednn": 0.004, "mkl": 0.003}[current_kernels().gradients]

    assert measure._times("gradients", run, Kernels()) == pytest.approx({"onednn": 4.0, "mkl": 3.0})


def test_shapes_are_those_of_the_model() -> None:
    model = create_model("maskfeat_mvitv2_nano")
    shapes = Shapes.of(model)
    layers = {
        (one.in_features, one.out_features) for one in model.modules() if isinstance(one, torch.nn.Linear)
    }
    assert (shapes.in_width, shapes.out_width) in layers
    assert shapes.head_width == model.blocks[0].attn.head_width
    assert Shapes.of(torch.nn.ReLU()) == Shapes()


def test_multiply_adds_do_not_depend_on_the_kernels() -> None:
    model = create_model("maskfeat_mvitv2_nano")
    inputs = torch.randn(1, 3, 8, 64, 64), torch.zeros(1, 4, 2, 2, dtype=torch.bool)
    expected = multiply_adds(model, inputs)
    with using_kernels(Kernels(products="mkl", gradients="mkl", attention="fused")):
        assert multiply_adds(model, inputs) == expected
