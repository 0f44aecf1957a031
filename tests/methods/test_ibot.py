"""iBOT: its losses against slow loops, its teacher, centers, frozen prototypes and schedules."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.methods.tiny import heldout_loss, make_batch, tiny_method
from tests.reference import self_distillation as reference
from videomaskfeat.grid import resize_mask
from videomaskfeat.losses.distillation import across_views, masked_teacher_cross_entropy
from videomaskfeat.methods.ibot import EpochRamp, Ibot


def tiny_ibot(model: str = "mvit", *overrides: str) -> Ibot:
    method = tiny_method("ibot", model, *overrides)
    assert isinstance(method, Ibot)
    return method


@pytest.mark.parametrize("model", ["mvit", "image"])
def test_loss_is_the_sum_of_class_and_cube_losses(model: str) -> None:
    """Against loops over videos, views, cells and prototypes in float64; float32 at 1/0.04, 1e-4."""
    method = tiny_ibot(model)
    method.centers["class_centre"].value = 0.3 * torch.randn(12)
    method.centers["cube_centre"].value = 0.3 * torch.randn(12)
    batch, progress = make_batch(method), 0.25
    pixels, small = method.pixels(batch.clips), method.pixels(batch.local)
    with torch.no_grad():
        classes, cubes, local = method.student(pixels, batch.mask, small)
        teacher = method.teacher.module
        clip, cells = teacher.masked(pixels)
        temperature = 0.04  # of the first of two epochs, which is the whole warm-up
        outputs = {"class": teacher.class_head(clip), "cube": teacher.cube_head(cells).flatten(1, 3)}
    taught = {
        kind: [
            [reference.softmax((row - center).tolist(), temperature) for row in rows]
            for rows, center in ((part, method.centers[f"{kind}_centre"].value) for part in groups)
        ]
        for kind, groups in (("class", outputs["class"].unflatten(0, (-1, 2))), ("cube", outputs["cube"]))
    }
    views, crops = classes.unflatten(0, (-1, 2)).tolist(), local.unflatten(0, (-1, 2)).tolist()
    class_loss = reference.across_views(views, crops, taught["class"], 0.1)
    grid = cubes.shape[1:4]
    hidden = batch.mask
    for axis in range(3):
        hidden = hidden.repeat_interleave(grid[axis] // hidden.shape[axis + 1], dim=axis + 1)
    cube_loss = reference.at_hidden_cells(
        cubes.flatten(1, 3).tolist(), taught["cube"], hidden.flatten(1).tolist(), 0.1
    )
    compared = method.compare(method.student, batch, progress=progress)
    assert compared.metrics["class_loss"].item() == pytest.approx(class_loss, rel=1e-4)
    assert compared.metrics["cube_loss"].item() == pytest.approx(cube_loss, rel=1e-4)
    assert compared.loss.item() == pytest.approx(class_loss + cube_loss, rel=1e-4)


def test_teacher_sees_the_whole_clip_and_no_local_crops() -> None:
    method = tiny_ibot()
    batch = make_batch(method)
    whole = replace(batch, mask=torch.zeros_like(batch.mask), local=torch.zeros_like(batch.local))
    one, two = (method.compare(method.student, part, progress=0.0) for part in (batch, whole))
    assert one.rows.keys() == two.rows.keys()
    for name, rows in one.rows.items():
        assert torch.equal(rows, two.rows[name]), name
    assert one.metrics["class_loss"] != two.metrics["class_loss"]
    assert two.metrics["cube_loss"].item() == 0


def test_centers_follow_the_teachers_outputs_separately() -> None:
    """After two steps of different batches, the first of two micro-batches; from zero with momentum 0.9."""
    method, seen = tiny_ibot(), {"class_centre": [], "cube_centre": []}
    for step, seeds in enumerate(((1, 2), (3,))):
        micro_batches = [make_batch(method, seed=seed) for seed in seeds]
        for name, batches in seen.items():
            rows = [
                method.compare(method.student, part, progress=step / 2).rows[name] for part in micro_batches
            ]
            batches.append(torch.cat(rows).tolist())
        states = [method.loss(method.student, part).state for part in micro_batches]
        method.after_step((step + 1) / 2, states)
    for name, batches in seen.items():
        expected = torch.tensor(reference.centered(batches, 0.9))
        torch.testing.assert_close(method.centers[name].value, expected, atol=1e-6, rtol=1e-5)


def test_prototypes_are_not_learned_in_the_first_epoch() -> None:
    method = tiny_ibot()
    head = method.student.class_head
    assert head is method.student.cube_head
    for progress, learns in ((0.0, False), (0.49, False), (0.5, True)):
        head.zero_grad()
        method.compare(method.student, make_batch(method), progress=progress).loss.backward()
        assert head.directions.grad is not None
        assert bool(head.directions.grad.any()) == learns


def test_frozen_prototypes_are_not_even_decayed() -> None:
    method = tiny_ibot()
    directions = method.student.class_head.directions
    before = directions.detach().clone()
    optimizer = torch.optim.AdamW(method.student.parameters(), lr=1e-2, weight_decay=0.5)
    states = [method.loss(method.student, make_batch(method)).state]
    for progress, moves in ((0.0, False), (0.5, True)):
        if progress:
            method.after_step(progress, states)
        optimizer.zero_grad()
        method.loss(method.student, make_batch(method)).loss.backward()
        method.before_step()
        optimizer.step()
        assert torch.equal(directions, before) != moves
    assert optimizer.state[directions]["step"] == 1


def test_heads_may_be_separate() -> None:
    method = tiny_ibot(
        "vit",
        "method.arguments={shared_head: false, ratios: [0.2, 0.5], local: {count: 2, size: 16}, "
        "head: {prototypes: 12, hidden_width: 16, bottleneck: 8}, temperature_warmup_epochs: 1}",
    )
    assert method.student.class_head is not method.student.cube_head
    method.loss(method.student, make_batch(method)).loss.backward()
    assert not [key for key, weight in method.student.named_parameters() if weight.grad is None]


def test_figures_are_entropies_of_the_steps_distributions() -> None:
    """Against the definition on all rows at once; the micro-batches are of unequal size; float32, 1e-5."""
    method = tiny_ibot()
    micro_batches = [make_batch(method, videos=videos, seed=videos) for videos in (1, 3)]
    rows = [method.compare(method.student, part, progress=0.0).rows for part in micro_batches]
    figures = method.after_step(0.1, [method.loss(method.student, part).state for part in micro_batches])
    for kind in ("class", "cube"):
        shares = torch.cat([part[f"{kind}_distribution"] for part in rows]).double()
        whole = torch.special.entr(shares.mean(dim=0)).sum().item()
        within = torch.special.entr(shares).sum(dim=1).mean().item()
        assert figures[f"{kind}_entropy"] == pytest.approx(whole, rel=1e-5)
        assert figures[f"{kind}_information"] == pytest.approx(whole - within, rel=1e-4)
    features = torch.cat([part["feature_std"] for part in rows])
    std = (features - features.mean(dim=0)).square().sum(dim=1).mean().sqrt().item()
    assert figures["feature_std"] == pytest.approx(std, rel=1e-4)
    assert figures["teacher_temperature"] == pytest.approx(0.04)


def test_best_constant_is_the_loss_of_the_mean_distributions() -> None:
    """Against the losses with that student, which is better than one that differs a little; float32, 1e-4."""
    method = tiny_ibot()
    batch = make_batch(method)
    rows = method.compare(method.student, batch, progress=1.0).rows
    best = heldout_loss(method, batch).constant
    grid = method.student.masked.encoder.output_grid((4, 32, 32))
    taught = {
        "class": rows["class_distribution"].unflatten(0, (-1, 2)),
        "cube": rows["cube_distribution"].unflatten(0, (len(batch.clips), *grid.shape)),
    }

    def constant(whole: torch.Tensor, cells: torch.Tensor) -> float:
        student = {
            "class": (whole.log() * 0.1).expand_as(taught["class"]),
            "cube": (cells.log() * 0.1).expand_as(taught["cube"]),
        }
        local = student["class"]  # as many local crops as clips
        one = across_views(student["class"], local, taught["class"], temperature=0.1)
        two = masked_teacher_cross_entropy(student["cube"], taught["cube"], batch.mask, temperature=0.1)
        return float(one + two)

    hidden = resize_mask(batch.mask, grid).float()
    weight = hidden / hidden.sum(dim=(1, 2, 3), keepdim=True).clamp(min=1)
    cells = (weight[..., None] * taught["cube"]).sum(dim=(0, 1, 2, 3)) / 5  # of 6 clips one is shown whole
    whole = taught["class"].mean(dim=(0, 1))
    assert best == pytest.approx(constant(whole, cells), rel=1e-4)
    other = torch.softmax(torch.arange(12) / 20, dim=0)
    assert best < constant(0.9 * whole + 0.1 * other, cells)
    assert best < constant(whole, 0.9 * cells + 0.1 * other)


@pytest.mark.parametrize("warmup", [0, 1, 2, 30])
def test_teacher_temperature_is_that_of_the_epoch(warmup: int) -> None:
    """Against iBOT's table per epoch, numpy's linspace and then the end; 7 steps per epoch, 1e-12."""
    ramp = EpochRamp(0.04, 0.07, warmup_epochs=warmup, epochs=40)
    table = np.concatenate([np.linspace(0.04, 0.07, warmup), np.full(40 - warmup, 0.07)])
    values = [ramp(step / 280) for step in range(280)]
    assert values == pytest.approx(np.repeat(table, 7), abs=1e-12)
