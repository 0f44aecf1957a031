"""The loop: what a step does, what is logged, and what stops it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from tests.engine.toy import ToyLoader, final_state, metrics, toy_model, train_toy
from videomaskfeat.engine.contracts import LoopOptions
from videomaskfeat.engine.optim import CosineRamp, WarmupCosine, adamw, parameter_groups
from videomaskfeat.engine.steps import TrainingStopped
from videomaskfeat.errors import RunFailed, UserError


def plain_training(steps: int) -> tuple[nn.Module, list[float], list[float]]:
    """The same training written out without the engine, whole batches at once, no dropout."""
    model = toy_model(dropout=0.0)
    optimizer = adamw(parameter_groups(model.named_parameters(), base_lr=0.02, weight_decay=0.05))
    schedule = WarmupCosine(base_lr=0.02, start_lr=0.001, end_lr=0.0, warmup_epochs=1, epochs=3)
    losses, norms = [], []
    loader = ToyLoader(accumulate=1)
    for number in range(steps):
        epoch, step = divmod(number, 6)
        batch = next(loader.epoch(epoch, step))
        for group in optimizer.param_groups:
            group["lr"] = schedule(number / 6)
        loss = mse_loss(model(batch.inputs), batch.inputs)
        optimizer.zero_grad()
        loss.backward()
        norms.append(nn.utils.clip_grad_norm_(model.parameters(), 0.5).item())
        optimizer.step()
        losses.append(loss.item())
    return model, losses, norms


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_training_equals_one_written_out(tmp_path: Path, accumulate: int) -> None:
    """Micro-batches change only the order of sums: float32, 1e-5."""
    model, losses, norms = plain_training(18)
    result = train_toy(tmp_path, accumulate=accumulate, dropout=0.0)
    lines = metrics(tmp_path)
    assert [line["step"] for line in lines] == list(range(1, 19))
    assert [line["loss"] for line in lines] == pytest.approx(losses, rel=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(norms, rel=1e-4)
    assert max(norms) > 0.5  # the limit was at work
    torch.testing.assert_close(final_state(tmp_path)["model"], model.state_dict(), atol=1e-5, rtol=1e-4)
    assert (result.progress.epoch, result.progress.epoch_step, result.progress.samples) == (3, 0, 18 * 8)
    assert losses[-1] < 0.8 * losses[0]


class Follower:
    """A small teacher: follows the model's first bias, faster toward the end of the run."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.value = self.before = torch.zeros(12)
        self.shares: list[float] = []
        self.states: list[list[int]] = []

    def __call__(self, progress: float, states: Sequence[int]) -> dict[str, float]:
        self.shares.append(progress)
        self.states.append(list(states))
        bias = dict(self.model.named_parameters())["0.bias"].detach()
        self.before = self.value
        self.value = 0.9 * self.value + 0.1 * progress * bias
        return {"followed": float(self.value.norm())}

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Any) -> None:
        self.value = state["value"]


def test_after_step_gets_the_share_done_and_sees_the_new_weights(tmp_path: Path) -> None:
    model = toy_model()
    follower = Follower(model)
    train_toy(tmp_path, model=model, after_step=follower, extra={"follower": follower})
    assert follower.shares == [step / 18 for step in range(1, 19)]
    last = dict(model.named_parameters())["0.bias"].detach()
    assert torch.equal(last, final_state(tmp_path)["model"]["0.bias"])
    assert torch.equal(follower.value, 0.9 * follower.before + 0.1 * last)  # the step's own weights
    assert metrics(tmp_path)[-1]["followed"] == float(follower.value.norm())


def test_after_step_gets_the_state_of_each_micro_batch(tmp_path: Path) -> None:
    """The toy step returns the number of its first sample; micro-batches of 2 instead of 4 samples."""
    firsts = {}
    for accumulate in (1, 2):
        model = toy_model()
        follower = Follower(model)
        train_toy(tmp_path / str(accumulate), model=model, accumulate=accumulate, after_step=follower)
        firsts[accumulate] = follower.states
    assert [len(states) for states in firsts[2]] == [2] * 18
    assert [states[:1] for states in firsts[2]] == firsts[1]


def test_what_after_step_changes_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    """From step 8 of 18 on; the share that is left to follow shows every earlier value."""
    model = toy_model()
    whole = Follower(model)
    train_toy(tmp_path / "whole", model=model, after_step=whole, extra={"follower": whole})
    for checkpoint in (tmp_path / "whole" / "checkpoints").iterdir():
        if checkpoint.name > "step_00000008.pt":
            checkpoint.unlink()
    model = toy_model()
    resumed = Follower(model)
    train_toy(tmp_path / "whole", model=model, after_step=resumed, extra={"follower": resumed})
    assert resumed.shares == [step / 18 for step in range(9, 19)]
    assert torch.equal(resumed.value, whole.value)


def test_record_holds_every_number(tmp_path: Path) -> None:
    record = train_toy(tmp_path, epochs=0.5).metrics
    assert list(record) == [
        *("step", "epoch", "loss", "lr", "grad_norm", "absolute_error", "data_ms", "step_ms"),
        *("samples_per_second", "memory_mb", "failures"),
    ]
    assert record["epoch"] == 0.5
    assert record["step_ms"] > record["data_ms"] > 0
    assert record["samples_per_second"] == pytest.approx(8 / record["step_ms"] * 1e3)


def test_learning_rate_follows_the_fractional_epoch(tmp_path: Path) -> None:
    train_toy(tmp_path, epochs=2)
    schedule = WarmupCosine(base_lr=0.02, start_lr=0.001, end_lr=0.0, warmup_epochs=1, epochs=3)
    assert [line["lr"] for line in metrics(tmp_path)] == pytest.approx([schedule(i / 6) for i in range(12)])


def test_average_is_saved(tmp_path: Path) -> None:
    train_toy(tmp_path, epochs=1)
    state = final_state(tmp_path, step=6)
    assert state["ema"].keys() == state["model"].keys()
    assert not torch.equal(state["ema"]["0.weight"], state["model"]["0.weight"])


def test_bf16_stays_near_fp32(tmp_path: Path) -> None:
    """bfloat16 has 8 bits: losses within 2 %; the weights themselves stay float32."""
    train_toy(tmp_path / "fp32", dropout=0.0, epochs=1)
    train_toy(tmp_path / "bf16", dropout=0.0, epochs=1, precision="bf16")
    fp32, bf16 = ([line["loss"] for line in metrics(tmp_path / name)] for name in ("fp32", "bf16"))
    assert bf16 == pytest.approx(fp32, rel=2e-2)
    assert bf16 != fp32
    weights = final_state(tmp_path / "bf16", step=6)["model"]
    assert {value.dtype for value in weights.values()} == {torch.float32}


def test_non_finite_loss_stops_before_the_optimizer_step(tmp_path: Path) -> None:
    """Sample 3 is poisoned; its micro-batch is named, and the weights of the model are the last good ones."""
    loader = ToyLoader(accumulate=2, poisoned=3)
    order = torch.cat([batch.index for batch in loader.epoch(0)]).tolist()
    micro, step = order.index(3) // 4, order.index(3) // 8
    named = sorted(order[4 * micro : 4 * micro + 4])
    model = toy_model()
    words = (
        rf"step {step + 1} \(epoch .*\): the loss is nan; samples \[{', '.join(map(str, named))}\]; stopped"
    )
    with pytest.raises(TrainingStopped, match=words) as info:
        train_toy(tmp_path, loader=loader, model=model, save_minutes=0)
    assert isinstance(info.value, RunFailed)
    assert len(metrics(tmp_path)) == step > 0
    good = final_state(tmp_path, step=step)["model"]
    assert all(torch.equal(value, good[name]) for name, value in model.state_dict().items())


def test_non_finite_gradient_stops_too(tmp_path: Path) -> None:
    """The root of 0 has a finite value and an infinite slope."""

    class Root(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.detach() + self.weight.sqrt()

    model = Root()
    with pytest.raises(
        TrainingStopped, match=r"step 1 .* the gradient norm is (nan|inf) \(the loss 0\); samples"
    ):
        train_toy(tmp_path, model=model)
    assert model.weight.item() == 0.0


def test_evaluation_does_not_disturb_training(tmp_path: Path) -> None:
    model = toy_model()
    modes: list[tuple[bool, bool]] = []

    def evaluate() -> dict[str, float]:
        torch.rand(5)
        modes.append((model.training, torch.is_grad_enabled()))
        return {"loss": 1.5}

    train_toy(tmp_path / "with", model=model, evaluate=evaluate, evaluate_every=4)
    train_toy(tmp_path / "without")
    assert modes == [(False, False)] * 5  # after 4, 8, 12, 16 and the last step
    evaluated = [line["step"] for line in metrics(tmp_path / "with") if line.get("evaluation/loss") == 1.5]
    assert evaluated == [4, 8, 12, 16, 18]
    one, two = (final_state(tmp_path / name)["model"] for name in ("with", "without"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_failures_are_counted_and_reported(tmp_path: Path) -> None:
    seen: list[Any] = []
    result = train_toy(tmp_path, loader=ToyLoader(accumulate=2, failing=(1, 2)), on_failures=seen.extend)
    assert {"bad 1", "bad 2"} == set(seen)
    assert result.progress.failures == len(seen) == metrics(tmp_path)[-1]["failures"]


def test_too_many_failures_save_before_the_end(tmp_path: Path) -> None:
    def refuse(failures: Sequence[Any]) -> None:
        raise UserError(f"too many: {failures}")

    with pytest.raises(UserError, match=r"too many: \['bad 1'\]"):
        train_toy(tmp_path, loader=ToyLoader(accumulate=2, failing=(1,)), on_failures=refuse)
    steps = len(metrics(tmp_path))
    assert final_state(tmp_path, step=steps)["progress"]["failures"] == 1


def test_weight_decay_follows_its_schedule_and_each_gradient_is_clipped(tmp_path: Path) -> None:
    """The last of 18 steps reads 17/18; an average of gradients is as short as the longest of them."""
    schedule = CosineRamp(0.05, 0.5)
    train_toy(tmp_path, weight_decay=schedule, clip_norm_each=1e-9)
    optimizer = final_state(tmp_path)["optimizer"]
    assert {group["weight_decay"] for group in optimizer["param_groups"]} == {0.0, schedule(17 / 18)}
    norms = [entry["exp_avg"].norm().item() for entry in optimizer["state"].values()]
    assert 0 < max(norms) <= 1e-9


def test_not_one_whole_step_is_refused(tmp_path: Path) -> None:
    loader = ToyLoader(accumulate=1)
    with pytest.raises(
        UserError, match="accumulate=7 with 6 batches per epoch: fewer batches than one optimizer step needs"
    ):
        train_toy(tmp_path, accumulate=7, loader=loader)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epochs", 0, "epochs=0: must be above 0"),
        ("accumulate", 0, "accumulate=0: must be 1 or more"),
        ("keep_last", 0, "keep_last=0: must be 1 or more"),
        ("save_minutes", -1.0, r"save_minutes=-1\.0: must not be negative"),
        ("clip_norm", 0.0, r"clip_norm=0\.0: must be above 0, or null"),
        ("clip_norm_each", 0.0, r"clip_norm_each=0\.0: must be above 0, or null"),
        ("precision", "fp16", "precision='fp16': must be fp32 or bf16"),
    ],
)
def test_impossible_options_are_refused(name: str, value: Any, words: str) -> None:
    arguments: dict[str, Any] = {"epochs": 1, name: value}
    with pytest.raises(UserError, match=words):
        LoopOptions(**arguments)
