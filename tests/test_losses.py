"""Losses against their definitions, closed forms, torch and slow loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference import self_distillation as reference
from videomaskfeat.errors import UserError
from videomaskfeat.losses.distillation import (
    across_views,
    direction_error,
    masked_teacher_cross_entropy,
    teacher_cross_entropy,
)
from videomaskfeat.losses.labels import binary_cross_entropy, pose_cross_entropy, soft_cross_entropy
from videomaskfeat.losses.masked import (
    masked_cosine,
    masked_cross_entropy,
    masked_l1,
    masked_mse,
    masked_smooth_l1,
)
from videomaskfeat.metrics.accuracy import action_scores


def test_loss_is_the_mean_over_hidden_positions_and_values() -> None:
    torch.manual_seed(0)
    predictions, target = torch.randn(2, 2, 4, 6, 5), torch.randn(2, 2, 4, 6, 5)
    mask = torch.rand(2, 2, 4, 6) < 0.3
    expected = (predictions[mask] - target[mask]).square().mean()
    torch.testing.assert_close(masked_mse(predictions, target, mask), expected, atol=1e-6, rtol=1e-6)


def test_visible_positions_add_nothing_to_loss_or_gradient() -> None:
    predictions = torch.randn(1, 2, 4, 4, 3, requires_grad=True)
    mask = torch.zeros(1, 2, 2, 2, dtype=torch.bool)
    mask[0, 0, 0, 1] = True  # positions t 0, h 0..1, w 2..3
    masked_mse(predictions, torch.zeros(1, 2, 4, 4, 3), mask).backward()
    assert predictions.grad is not None
    touched = (predictions.grad != 0).any(dim=-1)[0]
    expected = torch.zeros(2, 4, 4, dtype=torch.bool)
    expected[0, :2, 2:] = True
    assert torch.equal(touched, expected)


def test_loss_is_float32_whatever_the_predictions() -> None:
    predictions = torch.randn(1, 1, 2, 2, 9)
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    target = predictions.bfloat16().float() + 0.01
    loss = masked_mse(predictions.bfloat16(), target, mask)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(1e-4, rel=1e-3)


def test_nothing_hidden_is_a_loss_of_zero() -> None:
    predictions = torch.randn(1, 1, 2, 2, 9, requires_grad=True)
    loss = masked_mse(predictions, torch.zeros(1, 1, 2, 2, 9), torch.zeros(1, 1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0
    assert predictions.grad is not None
    assert (predictions.grad == 0).all()


def test_shapes_that_do_not_fit_are_named() -> None:
    ones = torch.ones(1, 1, 4, 4, 9)
    with pytest.raises(
        UserError, match=r"predictions \(1, 1, 4, 4, 9\) and target \(1, 1, 4, 4, 27\) differ"
    ):
        masked_mse(ones, torch.ones(1, 1, 4, 4, 27), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    with pytest.raises(UserError, match="mask on the grid 1x3x3 does not divide"):
        masked_mse(ones, ones, torch.ones(1, 1, 3, 3, dtype=torch.bool))


def masked_batch() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(2, 2, 4, 6, 5), torch.randn(2, 2, 4, 6, 5), torch.rand(2, 2, 4, 6) < 0.3


def test_other_losses_are_torchs_own_over_the_hidden_positions() -> None:
    predictions, target, mask = masked_batch()
    p, t = predictions[mask], target[mask]
    tokens = target.argmax(-1)
    pairs = [
        (masked_l1(predictions, target, mask), F.l1_loss(p, t)),
        (masked_smooth_l1(predictions, target, mask, beta=0.3), F.smooth_l1_loss(p, t, beta=0.3)),
        (masked_cosine(predictions, target, mask), (1 - F.cosine_similarity(p, t)).mean()),
        (masked_cross_entropy(predictions, tokens, mask), F.cross_entropy(p, tokens[mask])),
    ]
    for own, expected in pairs:
        assert own.dtype == torch.float32
        torch.testing.assert_close(own, expected, atol=1e-6, rtol=1e-6)


def test_other_losses_are_zero_where_nothing_is_hidden() -> None:
    predictions, target, mask = masked_batch()
    for loss in (masked_l1, masked_smooth_l1, masked_cosine):
        assert loss(predictions, target, torch.zeros_like(mask)).item() == 0
    assert masked_cross_entropy(predictions, target.argmax(-1), torch.zeros_like(mask)).item() == 0


def test_tokens_on_another_grid_are_named() -> None:
    predictions, _, mask = masked_batch()
    with pytest.raises(UserError, match=r"\(2, 2, 4, 6, 5\) and tokens \(2, 2, 4, 3\) are not on one grid"):
        masked_cross_entropy(predictions, torch.zeros(2, 2, 4, 3, dtype=torch.int64), mask)


def test_soft_cross_entropy_of_hard_and_smoothed_labels_is_torchs_own() -> None:
    torch.manual_seed(0)
    logits, labels = 3 * torch.randn(5, 7), torch.tensor([0, 6, 3, 3, 1])
    for smoothing in (0.0, 0.1):
        hard = F.one_hot(labels, 7).float()
        targets = hard * (1 - smoothing) + smoothing / 7
        expected = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        torch.testing.assert_close(soft_cross_entropy(logits, targets), expected, atol=1e-6, rtol=1e-6)


def test_soft_cross_entropy_of_mixed_labels_is_the_mixture() -> None:
    logits = torch.randn(2, 4, dtype=torch.bfloat16)
    a, b = torch.tensor([0, 1]), torch.tensor([2, 1])
    mixed = 0.3 * F.one_hot(a, 4) + 0.7 * F.one_hot(b, 4)
    loss = soft_cross_entropy(logits, mixed)
    terms = [F.cross_entropy(logits.float(), labels) for labels in (a, b)]
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, 0.3 * terms[0] + 0.7 * terms[1], atol=1e-6, rtol=1e-6)


def test_logits_and_targets_of_other_class_counts_are_named() -> None:
    with pytest.raises(UserError, match=r"logits \(2, 4\) and targets \(2, 5\) differ"):
        soft_cross_entropy(torch.zeros(2, 4), torch.zeros(2, 5))


POSES = torch.tensor([True, True, False, True, False])
POSE_NUMBERS = torch.tensor([0, 1, 3])


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
    loss = pose_cross_entropy(logits, labels, POSE_NUMBERS)
    assert loss.item() == pytest.approx(plain_pose_loss(logits, labels, POSES), rel=1e-5)


def test_weights_and_focus_of_the_pose_loss_are_those_of_the_rest() -> None:
    logits, labels = draw()
    weights = torch.tensor([9.0, 9.0, 2.0, 9.0, 0.5])
    loss = pose_cross_entropy(logits, labels, POSE_NUMBERS, focusing=2.0, class_weights=weights)
    plain = pose_cross_entropy(logits, labels, POSE_NUMBERS)
    rest = binary_cross_entropy(logits[:, ~POSES], labels[:, ~POSES])
    changed = binary_cross_entropy(
        logits[:, ~POSES], labels[:, ~POSES], focusing=2.0, class_weights=weights[~POSES]
    )
    torch.testing.assert_close(loss - plain, changed - rest, atol=1e-6, rtol=1e-5)


def test_boxes_without_a_pose_teach_no_pose() -> None:
    logits, _ = draw()
    logits.requires_grad_()
    pose_cross_entropy(logits, torch.zeros(6, 5, dtype=torch.bool), POSE_NUMBERS).backward()
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
            lambda x, f=focusing: pose_cross_entropy(x, labels, POSE_NUMBERS, focusing=f) / size,
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
    (binary_cross_entropy(logits, nothing) + pose_cross_entropy(logits, nothing, POSE_NUMBERS)).backward()
    assert weight.grad is not None
    assert (weight.grad == 0).all()


def test_losses_are_float32_whatever_the_logits() -> None:
    logits, labels = draw()
    low = logits.bfloat16()
    for loss_of in (binary_cross_entropy, lambda x, y: pose_cross_entropy(x, y, POSE_NUMBERS)):
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


def test_scores_order_boxes_as_the_loss_was_learned() -> None:
    """At the minimum of each loss the scores are the labels."""
    labels = torch.tensor([[True, False, True, False, False], [False, False, False, True, True]])
    right = torch.where(labels, 60.0, -60.0)
    torch.testing.assert_close(action_scores(right, POSES), labels.float())
    assert pose_cross_entropy(right, labels, POSE_NUMBERS).item() == pytest.approx(0, abs=1e-20)


def test_mistakes_are_named() -> None:
    logits, labels = draw()
    with pytest.raises(UserError, match=r"logits \(6, 5\) and labels \(6, 4\) differ in shape; build the"):
        binary_cross_entropy(logits, labels[:, :4])
    with pytest.raises(UserError, match=r"logits \(6, 5\) and labels \(5, 5\) differ in shape"):
        pose_cross_entropy(logits, labels[:5], POSE_NUMBERS)
    with pytest.raises(UserError, match=r"focusing=-1 must be 0 \(plain cross-entropy\) or more"):
        binary_cross_entropy(logits, labels, focusing=-1.0)


TEMPERATURE = 0.1


def cosines(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def probabilities(*shape: int) -> torch.Tensor:
    return torch.softmax(cosines(*shape, seed=1) / 0.3, dim=-1)


def test_cross_entropy_is_torchs_own_and_its_gradient_is_the_difference_of_distributions() -> None:
    student, teacher = cosines(6, 9).requires_grad_(), probabilities(6, 9)
    loss = teacher_cross_entropy(student, teacher, temperature=TEMPERATURE)
    expected = F.cross_entropy(student / TEMPERATURE, teacher, reduction="none")
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)  # float32
    loss.sum().backward()
    difference = (torch.softmax(student.detach() / TEMPERATURE, dim=-1) - teacher) / TEMPERATURE
    torch.testing.assert_close(student.grad, difference, atol=1e-5, rtol=1e-4)


def test_a_student_that_agrees_has_the_teachers_entropy() -> None:
    teacher = probabilities(1, 5)
    loss = teacher_cross_entropy(TEMPERATURE * teacher.log(), teacher, temperature=TEMPERATURE)
    entropy = -(teacher * teacher.log()).sum().item()
    assert loss.item() == pytest.approx(entropy, rel=1e-5)


@pytest.mark.parametrize("crops", [0, 3])
def test_across_views_is_the_mean_over_pairs_of_different_views(crops: int) -> None:
    """Against a loop over videos and pairs in float64; float32, 1e-5."""
    student, local, teacher = cosines(3, 2, 7), cosines(3, crops, 7, seed=2), probabilities(3, 2, 7)
    loss = across_views(student, local if crops else None, teacher, temperature=TEMPERATURE)
    expected = reference.across_views(student.tolist(), local.tolist(), teacher.tolist(), TEMPERATURE)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_a_view_is_not_compared_with_itself() -> None:
    """The student's first view alone moves: only the teacher's second one pulls at it."""
    student, teacher = cosines(1, 2, 4).requires_grad_(), probabilities(1, 2, 4)
    across_views(student, None, teacher, temperature=1.0).backward()
    assert student.grad is not None
    pulled = (torch.softmax(student.detach()[0, 0], dim=-1) - teacher[0, 1]) / 2
    torch.testing.assert_close(student.grad[0, 0], pulled, atol=1e-6, rtol=1e-5)


def test_masked_cross_entropy_is_the_mean_of_the_clips_means() -> None:
    """Against a loop; the last clip is shown whole and counts as 0."""
    student, teacher = cosines(3, 2, 4, 4, 5), probabilities(3, 2, 4, 4, 5)
    mask = torch.rand(3, 1, 2, 2, generator=torch.Generator().manual_seed(3)) < 0.5
    mask[0, 0, 0, 0], mask[2] = True, False
    hidden = mask.repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    loss = masked_teacher_cross_entropy(student, teacher, mask, temperature=TEMPERATURE)
    expected = reference.at_hidden_cells(
        student.flatten(1, 3).tolist(),
        teacher.flatten(1, 3).tolist(),
        hidden.flatten(1).tolist(),
        TEMPERATURE,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert loss.dtype == torch.float32


def test_visible_cells_get_no_gradient() -> None:
    student = cosines(1, 1, 2, 2, 3).requires_grad_()
    mask = torch.tensor([[[[True, False], [False, False]]]])
    masked_teacher_cross_entropy(student, probabilities(1, 1, 2, 2, 3), mask, temperature=1.0).backward()
    assert student.grad is not None
    touched = (student.grad[0, 0] != 0).any(dim=-1)
    assert touched.tolist() == [[True, False], [False, False]]


def test_a_mask_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="mask on the grid 1x3x3 does not divide"):
        masked_teacher_cross_entropy(
            cosines(1, 1, 4, 4, 3),
            probabilities(1, 1, 4, 4, 3),
            torch.ones(1, 1, 3, 3, dtype=torch.bool),
            temperature=1.0,
        )


def test_direction_error_is_the_squared_distance_of_unit_vectors() -> None:
    one, two = cosines(4, 6), cosines(4, 6, seed=5)
    distance = F.normalize(one, dim=-1) - F.normalize(two, dim=-1)
    expected = distance.square().sum(dim=-1).mean().item()
    assert direction_error(one, two).item() == pytest.approx(expected, rel=1e-5)
    for degrees, error in ((0, 0.0), (60, 1.0), (180, 4.0)):
        turned = torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])
        assert direction_error(torch.tensor([[3.0, 0.0]]), turned).item() == pytest.approx(error, abs=1e-6)
