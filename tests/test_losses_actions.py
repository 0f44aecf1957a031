"""The losses of detectors against closed forms, torch's own and a loop, and the scores they lead to."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError
from videomaskfeat.losses import binary_cross_entropy, pose_cross_entropy
from videomaskfeat.metrics.accuracy import action_scores

POSES = torch.tensor([True, True, False, True, False])


def draw(rows: int = 6, classes: int = 5) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return 3 * torch.randn(rows, classes), torch.rand(rows, classes) < 0.4


def plain_pose_loss(logits: Tensor, labels: Tensor, poses: Tensor) -> float:
    """Box by box and class by class."""
    posed, rest = [], []
    for row, truth in zip(logits.double().tolist(), labels.tolist(), strict=True):
        total = sum(math.exp(x) for x, pose in zip(row, poses, strict=True) if pose)
        own = [math.log(total) - x for x, yes, pose in zip(row, truth, poses, strict=True) if pose and yes]
        if own:
            posed.append(sum(own) / len(own))
        rest += [
            math.log1p(math.exp(-x if yes else x))
            for x, yes, pose in zip(row, truth, poses, strict=True)
            if not pose
        ]
    return sum(posed) / len(posed) + sum(rest) / len(rest)


def test_binary_cross_entropy_is_torchs() -> None:
    logits, labels = draw()
    expected = F.binary_cross_entropy_with_logits(logits, labels.float())
    torch.testing.assert_close(binary_cross_entropy(logits, labels), expected, atol=1e-6, rtol=1e-6)
    weights = torch.tensor([0.0, 1.0, 2.0, 0.5, 3.0])
    expected = F.binary_cross_entropy_with_logits(logits, labels.float(), weight=weights)
    weighted = binary_cross_entropy(logits, labels, class_weights=weights)
    torch.testing.assert_close(weighted, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("focusing", [1.0, 2.0, 0.5])
def test_focal_loss_follows_its_equation(focusing: float) -> None:
    logits, labels = draw()
    right = torch.where(labels, logits.sigmoid(), 1 - logits.sigmoid()).double()
    expected = (-((1 - right) ** focusing) * right.log()).mean().float()
    focal = binary_cross_entropy(logits, labels, focusing=focusing)
    torch.testing.assert_close(focal, expected, atol=1e-5, rtol=1e-5)  # 1 - p in float32


def test_pose_loss_is_that_of_a_loop() -> None:
    logits, labels = draw(20)
    labels[3] = False  # a negative
    assert not labels[3, POSES].any()
    assert (labels[:, POSES].sum(1) > 1).any()
    loss = pose_cross_entropy(logits, labels, POSES)
    assert loss.item() == pytest.approx(plain_pose_loss(logits, labels, POSES), rel=1e-5)


def test_weights_and_focus_of_the_pose_loss_are_those_of_the_rest() -> None:
    logits, labels = draw()
    weights = torch.tensor([9.0, 9.0, 2.0, 9.0, 0.5])
    loss = pose_cross_entropy(logits, labels, POSES, focusing=2.0, class_weights=weights)
    plain = pose_cross_entropy(logits, labels, POSES)
    rest = binary_cross_entropy(logits[:, ~POSES], labels[:, ~POSES])
    changed = binary_cross_entropy(
        logits[:, ~POSES], labels[:, ~POSES], focusing=2.0, class_weights=weights[~POSES]
    )
    torch.testing.assert_close(loss - plain, changed - rest, atol=1e-6, rtol=1e-5)


def test_boxes_without_a_pose_teach_no_pose() -> None:
    logits, _ = draw()
    logits.requires_grad_()
    pose_cross_entropy(logits, torch.zeros(6, 5, dtype=torch.bool), POSES).backward()
    assert logits.grad is not None
    assert (logits.grad[:, POSES] == 0).all()
    assert (logits.grad[:, ~POSES] > 0).all()


@pytest.mark.parametrize("size", [80.0, 1e4, 1e30])
def test_large_logits_give_finite_losses_and_gradients(size: float) -> None:
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, -1.0, 1.0, -1.0]])
    labels = torch.tensor([[True, False, False, True, True], [False, True, True, True, False]])
    for focusing in (0.0, 0.5, 2.0):
        for loss_of in (
            lambda x, f=focusing: binary_cross_entropy(x, labels, focusing=f) / size,
            lambda x, f=focusing: pose_cross_entropy(x, labels, POSES, focusing=f) / size,
        ):
            logits = (size * signs).requires_grad_()
            loss = loss_of(logits)
            loss.backward()
            assert loss.isfinite()
            assert logits.grad is not None
            assert logits.grad.isfinite().all(), (size, focusing)
    right = torch.where(labels, size, -size)
    assert binary_cross_entropy(right, labels).item() == pytest.approx(0, abs=1e-30)


def test_no_boxes_are_a_loss_of_zero_with_a_gradient() -> None:
    nothing = torch.zeros(0, 5, dtype=torch.bool)
    weight = torch.ones(3, 5, requires_grad=True)
    logits = torch.zeros(0, 3) @ weight
    (binary_cross_entropy(logits, nothing) + pose_cross_entropy(logits, nothing, POSES)).backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_losses_are_float32_whatever_the_logits() -> None:
    logits, labels = draw()
    low = logits.bfloat16()
    for loss_of in (binary_cross_entropy, lambda x, y: pose_cross_entropy(x, y, POSES)):
        loss = loss_of(low, labels)
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, loss_of(low.float(), labels), atol=0, rtol=0)


def test_scores_are_sigmoids_and_those_of_poses_a_softmax() -> None:
    logits, _ = draw()
    torch.testing.assert_close(action_scores(logits), 1 / (1 + (-logits).exp()))
    scores = action_scores(logits, POSES)
    torch.testing.assert_close(scores[:, ~POSES], 1 / (1 + (-logits[:, ~POSES]).exp()))
    chances = logits[:, POSES].exp()
    torch.testing.assert_close(scores[:, POSES], chances / chances.sum(1, keepdim=True))
    assert torch.equal(action_scores(logits, torch.zeros(5, dtype=torch.bool)), action_scores(logits))
    assert action_scores(torch.tensor([[-3e38, 3e38, 0.0]])).tolist() == [[0.0, 1.0, 0.5]]
    assert action_scores(torch.zeros(0, 5), POSES).shape == (0, 5)


def test_scores_order_boxes_as_the_loss_was_learnt() -> None:
    """At the minimum of each loss the scores are the labels."""
    labels = torch.tensor([[True, False, True, False, False], [False, False, False, True, True]])
    right = torch.where(labels, 60.0, -60.0)
    torch.testing.assert_close(action_scores(right, POSES), labels.float())
    assert pose_cross_entropy(right, labels, POSES).item() == pytest.approx(0, abs=1e-20)


def test_mistakes_are_named() -> None:
    logits, labels = draw()
    with pytest.raises(UserError, match=r"logits \(6, 5\) and labels \(6, 4\) differ in shape; build the"):
        binary_cross_entropy(logits, labels[:, :4])
    with pytest.raises(UserError, match=r"logits \(6, 5\) and labels \(5, 5\) differ in shape"):
        pose_cross_entropy(logits, labels[:5], POSES)
    with pytest.raises(UserError, match=r"focusing=-1 must be 0 \(plain cross-entropy\) or more"):
        binary_cross_entropy(logits, labels, focusing=-1.0)
