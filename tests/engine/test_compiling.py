"""What is compiled, with one process and with several, and where CUDA graphs are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch._dynamo.utils import counters

from tests.engine.processes import exit_codes_of_ranks
from videomaskfeat.config import load_config
from videomaskfeat.engine import compiling, distributed
from videomaskfeat.engine.compiling import (
    check_compile_mode,
    compile_function,
    compile_network,
    compiled_mode,
)
from videomaskfeat.engine.sharding import blocks_of, build_mesh, shard
from videomaskfeat.errors import UserError
from videomaskfeat.models import create_model
from videomaskfeat.schemas.pretrain import PretrainConfig

GPU = torch.device("cuda", 0)


def config_with(*overrides: str) -> PretrainConfig:
    return load_config(PretrainConfig, None, ["run.compile=true", *overrides])


@pytest.mark.parametrize(
    ("overrides", "device", "ranks", "words"),
    [
        (["run.compile=false"], GPU, 1, r"has no effect without run\.compile=true; set it"),
        ([], torch.device("cpu"), 1, r"records CUDA graphs, and run\.device is cpu; leave it at default"),
        ([], GPU, 4, r"with 4 processes \(ddp\): CUDA graphs work with one process only"),
        (["run.parallel=fsdp"], GPU, 4, r"with 4 processes \(fsdp\)"),
        (["optim.accumulate=2"], GPU, 1, r"with optim\.accumulate=2: the graph of the next micro-batch"),
    ],
)
def test_cuda_graphs_are_refused_where_they_cannot_work(
    overrides: list[str], device: torch.device, ranks: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    config = config_with("run.compile_mode=reduce-overhead", *overrides)
    with pytest.raises(UserError, match=rf"^run\.compile_mode=reduce-overhead.*{words}"):
        check_compile_mode(config, device)
    check_compile_mode(config_with(*overrides), device)  # the default mode has no such limits


def test_cuda_graphs_are_accepted_with_one_process_on_a_gpu() -> None:
    check_compile_mode(config_with("run.compile_mode=reduce-overhead"), GPU)


@pytest.mark.parametrize(
    ("ranks", "overrides", "mode"),
    [
        (1, [], "default"),
        (1, ["run.compile_mode=reduce-overhead"], "reduce-overhead"),
        (1, ["run.compile=false"], ""),
        (2, [], ""),
    ],
)
def test_network_and_loss_are_one_function_with_one_process(
    ranks: int, overrides: list[str], mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    assert compiled_mode(config_with(*overrides).run) == mode


def test_results_of_a_graph_are_released_before_its_next_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise torch records a new graph in every step, or refuses to overwrite the results."""
    calls: list[Any] = []

    def fake_compile(function: Any, mode: str | None = None) -> Any:
        calls.append(mode)
        return lambda *arguments: (calls.append("run"), function(*arguments))[1]

    monkeypatch.setattr(torch, "compile", fake_compile)
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: calls.append("begin"))
    double = compile_function(lambda x: 2 * x, compiling.GRAPHS)
    assert (double(1), double(2)) == (2, 4)
    assert calls == ["reduce-overhead", "begin", "run", "begin", "run"]


def step_on_two_ranks(parallel: str) -> None:
    """The network inside the wrapper is one graph for dynamo, without a break; its gradients are right.

    DDP then splits the graph after each bucket of gradients, to average them while the backward pass goes on.
    """
    torch._dynamo.reset()
    counters.clear()
    for name, arguments in (
        ("maskfeat_mvitv2_nano", {"depth": 2, "width": 16, "widen_at": (1,), "q_pool_at": (1,)}),
        ("mae_vit_nano", {"depth": 2, "width": 32, "heads": 2, "decoder_depth": 1, "decoder_width": 32}),
    ):
        torch.manual_seed(0)
        model = create_model(name, clip_size=(4, 32, 32), **arguments)
        shape = (2, 2, 2) if name.startswith("maskfeat") else tuple(model.token_grid((4, 32, 32)).shape)
        mask = torch.zeros(2, *shape, dtype=torch.bool)
        mask.flatten(1)[:, ::2] = True
        known = [] if name.startswith("maskfeat") else [mask[0].numel() // 2]
        clips = torch.randn(2, 3, 4, 32, 32)
        model(clips, mask).square().mean().backward()
        expected = [parameter.grad.clone() for parameter in model.parameters()]  # type: ignore[union-attr]
        model.zero_grad()
        sharded = parallel == "fsdp"
        run = config_with(f"run.parallel={parallel}").run
        compile_network(run, model, blocks_of(model) if sharded else [], backend="aot_eager")
        if sharded:
            shard(model, build_mesh("fsdp", torch.device("cpu")))
        network = model if sharded else distributed.parallel(model, torch.device("cpu"))
        network(clips, mask, *known).square().mean().backward()
        assert not counters["graph_break"], dict(counters["graph_break"])
        graphs = counters["stats"]["unique_graphs"]
        assert graphs >= 1
        for parameter, right in zip(model.parameters(), expected, strict=True):
            gradient: Any = parameter.grad
            gradient = gradient.full_tensor() if sharded else gradient
            torch.testing.assert_close(gradient, right, atol=1e-6, rtol=1e-3)
        network.eval()
        with torch.no_grad():
            network(clips[:, :, :2], mask[:, :1], *(count // 2 for count in known))  # another shape
        assert counters["stats"]["unique_graphs"] == graphs  # evaluations are not compiled
        counters.clear()


@pytest.mark.parametrize("parallel", ["ddp", pytest.param("fsdp", marks=pytest.mark.slow)])
def test_step_of_two_ranks_compiles_without_graph_breaks(parallel: str, tmp_path: Path) -> None:
    assert exit_codes_of_ranks(2, step_on_two_ranks, parallel, seconds=240) == [0, 0]


def test_every_block_of_several_processes_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """MViTv2-L has more forms of blocks than torch compiles per code; others would run uncompiled."""
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    torch._dynamo.reset()
    counters.clear()
    graphs: list[torch.fx.GraphModule] = []

    def count(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph

    model = create_model("maskfeat_mvitv2_l", clip_size=(4, 64, 64), width=16)
    blocks = blocks_of(model)
    run: Any = config_with("run.parallel=fsdp").run
    with torch._dynamo.config.patch(recompile_limit=8):  # torch's default; restored afterwards
        compile_network(run, model, blocks, backend=count)  # type: ignore[arg-type]
        model(torch.randn(1, 3, 4, 64, 64), torch.ones(1, 2, 2, 2, dtype=torch.bool)).sum().backward()
    assert len(blocks) == 48
    assert len(graphs) > 8
    assert not counters["unimplemented"], dict(counters["unimplemented"])
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["frames"]["ok"] == counters["frames"]["total"]
