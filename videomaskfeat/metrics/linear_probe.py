"""A linear classifier on frozen features, fitted exactly: no rates, no epochs, the same result every time."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError

_STEPS = 500  # L-BFGS is done long before, but on features that are nearly alike


def linear_probe_scores(
    train: np.ndarray,
    train_labels: np.ndarray,
    test: np.ndarray,
    *,
    classes: int,
    penalty: float = 1e-2,
) -> np.ndarray:
    """Multinomial logistic regression: fitted on some features, asked about others.

    Each feature is brought to mean 0 and deviation 1 over the training set (one that never changes is left
    out), then the mean cross-entropy plus ``penalty / 2`` times the squared weights is brought to its one
    minimum. A full fit on stored features, as self-supervised encoders are often compared by; the ``linear``
    head of a fine-tuning is the other kind of probe, trained on augmented clips.

    Args:
        train: float [m, D].
        train_labels: int [m] in 0..L-1.
        test: float [n, D].
        classes: L.
        penalty: on the squared weights (not on the biases), above 0.

    Returns:
        Probabilities float32 [n, L].

    Raises:
        UserError: a label outside the classes, a penalty out of its range, or features of two widths.
    """
    if penalty <= 0:
        raise UserError(
            f"penalty={penalty:g}: must be above 0; without one, separable classes have no best fit"
        )
    if train_labels.min() < 0 or train_labels.max() >= classes:
        raise UserError(
            f"the labels are {train_labels.min()}..{train_labels.max()}, and there are {classes} "
            f"classes (0..{classes - 1})"
        )
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f"features of shape {train.shape} and {test.shape} differ in width; take both from one encoder"
        )
    mean, deviation = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    kept = deviation > 1e-6 * np.abs(mean).max()  # what varies less does so by float32's rounding
    known, asked = (
        torch.from_numpy((part[:, kept] - mean[kept]) / deviation[kept]) for part in (train, test)
    )
    weight, bias = _fit(known, torch.from_numpy(np.asarray(train_labels, np.int64)), classes, penalty)
    return torch.softmax(F.linear(asked, weight, bias), dim=1).float().numpy()


def _fit(features: Tensor, labels: Tensor, classes: int, penalty: float) -> tuple[Tensor, Tensor]:
    """Weight [L, D] and bias [L] of the least penalised cross-entropy, float64."""
    weight = torch.zeros(classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=_STEPS,
        tolerance_grad=1e-9,
        tolerance_change=0.0,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        solver.zero_grad()
        with torch.enable_grad():
            value = F.cross_entropy(F.linear(features, weight, bias), labels)
            value = value + penalty / 2 * weight.square().sum()
            value.backward()
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()
