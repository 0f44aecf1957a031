"""The losses of self-distillation against slow loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.reference import self_distillation as reference
from videomaskfeat.errors import UserError
from videomaskfeat.losses import (
    across_views,
    direction_error,
    masked_teacher_cross_entropy,
    teacher_cross_entropy,
)

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
