"""BYOL: its loss against the formula, view by view."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.methods.tiny import heldout_loss, make_batch, tiny_method
from videomaskfeat.methods.byol import Byol


def tiny_byol(model: str = "mvit") -> Byol:
    method = tiny_method("byol", model)
    assert isinstance(method, Byol)
    return method


@pytest.mark.parametrize("model", ["mvit", "vit", "image"])
def test_loss_is_the_papers_in_both_directions(model: str) -> None:
    """2 - 2 cos of the online network's prediction of one view and the target's projection of the other.

    Each view is normalized by itself, over its own batch. Float32: 1e-4.
    """
    method = tiny_byol(model)
    batch = make_batch(method)
    first, second = (method.pixels(batch.clips[view::2]) for view in (0, 1))
    online, target = method.student.online, method.teacher.module

    def normed(features: torch.Tensor, mlp: torch.nn.Module) -> torch.Tensor:
        hidden = F.batch_norm(mlp.fc1(features), None, None, mlp.norm.weight, mlp.norm.bias, training=True)
        return mlp.fc2(F.relu(hidden))

    loss = 0.0
    for seen, other in ((first, second), (second, first)):
        projection = normed(online.encoder.encoder.features(seen), online.projector)
        prediction = normed(projection, method.student.predictor)
        projected = normed(target.encoder.encoder.features(other), target.projector)
        distance = F.normalize(prediction, dim=-1) - F.normalize(projected, dim=-1)
        loss += distance.square().sum(dim=-1).mean().item()
    assert method.compare(method.student, batch, progress=0.0).loss.item() == pytest.approx(loss, rel=1e-4)


def test_loss_does_not_change_where_the_two_clips_change_places() -> None:
    method = tiny_byol()
    batch = make_batch(method)
    swapped = replace(batch, clips=batch.clips.unflatten(0, (-1, 2)).flip(1).flatten(0, 1))
    one, two = (method.compare(method.student, part, progress=0.0).loss.item() for part in (batch, swapped))
    assert one == pytest.approx(two, rel=1e-5)


def test_teacher_normalizes_by_the_batch_in_training_only() -> None:
    method = tiny_byol()
    teacher = method.teacher.module
    assert teacher.projector.training
    assert not teacher.encoder.training
    batch = make_batch(method)
    method.loss(method.student, batch)
    running = teacher.projector.norm.running_mean.clone()
    heldout_loss(method, batch)
    assert torch.equal(teacher.projector.norm.running_mean, running)
    assert teacher.projector.training


def test_best_constant_points_along_the_mean_direction() -> None:
    """Against the loss with that prediction everywhere; float32, 1e-4."""
    method = tiny_byol()
    batch = make_batch(method)
    constant = heldout_loss(method, batch).constant
    method.train(method.student, False)
    directions = method.compare(method.student, batch, progress=1.0).rows["projection_std"]
    mean = F.normalize(directions.mean(dim=0), dim=0)
    distances = (mean - directions).square().sum(dim=1)
    assert constant == pytest.approx(2 * distances.mean().item(), rel=1e-4)
