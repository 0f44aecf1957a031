"""Accuracies, the confusion matrix, action scores, codebook use, and the spread of features.

Class scores are logits or probabilities, higher is better. Of equal scores, the class with the lower label
ranks first, so top-1 accuracy is the trace of the confusion matrix. (A model with equal scores for all
classes is therefore correct for the videos of class 0.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from videomaskfeat.errors import UserError


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in percent, 0..100, and the number of videos.

    Attributes:
        top1, top5: share of videos whose label has the highest score, or one of the 5 highest.
        mean_class: mean of the top-1 accuracies per class, over the classes with videos.
    """

    top1: float
    top5: float
    mean_class: float
    videos: int


def accuracy(scores: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Compute the accuracies from scores float [n, L] and labels int [n] in 0..L-1.

    Raises:
        UserError: no video, a label outside the classes, or a score that is not a number.
    """
    ranks = label_ranks(scores, labels)
    own = class_accuracies(confusion_matrix(scores, labels))
    return Accuracy(
        top1=100 * float(np.mean(ranks < 1)),
        top5=100 * float(np.mean(ranks < 5)),
        mean_class=float(np.nanmean(own)),
        videos=len(labels),
    )


@dataclass(frozen=True)
class MultiLabelScore:
    """Mean average precision of a multi-label classifier.

    Attributes:
        mean_ap: mean of ``ap`` over the classes with videos, percent.
        chance: the expected value of ``mean_ap`` for random scores, percent; see `chance_precision`.
        ap: average precision per class, percent, float64 [L]; NaN without videos.
        counts: videos with each class, int64 [L].
        videos: number of videos.
    """

    mean_ap: float
    chance: float
    ap: np.ndarray
    counts: np.ndarray
    videos: int


def multi_label_score(scores: np.ndarray, targets: np.ndarray) -> MultiLabelScore:
    """Compute the mAP from scores float [n, L] and targets bool [n, L], as scikit-learn and PySlowFast do.

    Raises:
        UserError: no video has a label, or a score is not a number.
    """
    if np.isnan(scores).any():
        raise UserError("a score is not a number; check the model")
    counts = targets.sum(axis=0)
    if not counts.any():
        raise UserError("no scored video has a label, so there is no mAP")
    ap = np.array([average_precision(*column) for column in zip(scores.T, targets.T, strict=True)])
    return MultiLabelScore(
        mean_ap=100 * float(np.nanmean(ap)),
        chance=100 * float(np.mean([chance_precision(int(n), len(targets)) for n in counts[counts > 0]])),
        ap=100 * ap,
        counts=counts,
        videos=len(targets),
    )


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Average precision of one class, 0..1: the sum of precision times increase of recall, from the highest
    score down; NaN without positives.

    Args:
        scores: float [n]; equal ones are counted together.
        targets: bool [n].
    """
    if not targets.any():
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # last place of each score
    hits = np.cumsum(targets[order])[last]
    precision = hits / (np.flatnonzero(last) + 1)
    return float((np.diff(hits, prepend=0) * precision).sum() / hits[-1])


def chance_precision(positives: int, videos: int) -> float:
    """Expected average precision of one class for scores in random order, 0..1.

    It is above the share of positives, and much above it for few videos: a positive at place k has a
    precision of (1 + (k - 1) * (P - 1) / (n - 1)) / k on average, and each place is equally likely.

    >>> chance_precision(1, 2), round(chance_precision(4, 40), 3)
    (0.75, 0.176)
    """
    if videos == 1:
        return float(positives)
    others = (positives - 1) / (videos - 1)  # share of positives among the other videos
    mean_inverse = float((1 / np.arange(1, videos + 1)).mean())
    return others + (1 - others) * mean_inverse


def predictions(scores: np.ndarray) -> np.ndarray:
    """The class with the highest score, int64 [n]; the first of equal ones."""
    return scores.argmax(axis=1)


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Rank of each label among the classes, int64 [n], 0 for the highest score; see :func:`accuracy`."""
    _check(scores, labels)
    own = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)  # [n, 1]
    before = np.arange(scores.shape[1]) < labels[:, None]  # [n, L]: ranks first if the scores are equal
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Videos per label (row) and prediction (column), int64 [L, L]; see :func:`accuracy`."""
    _check(scores, labels)
    classes = scores.shape[1]
    cells = labels.astype(np.int64) * classes + predictions(scores)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_accuracies(confusion: np.ndarray) -> np.ndarray:
    """Top-1 accuracy per class in percent from a `confusion_matrix`, float64 [L]; NaN without videos."""
    videos = confusion.sum(axis=1)
    return np.where(videos > 0, 100 * confusion.diagonal() / np.maximum(videos, 1), np.nan)


def _check(scores: np.ndarray, labels: np.ndarray) -> None:
    if not len(labels):
        raise UserError("there are no scored videos, so there is no accuracy")
    assert scores.shape[0] == len(labels)
    classes = scores.shape[1]
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise UserError(
            f"label {labels[outside][0]} is outside the {classes} scored classes (0..{classes - 1}); use a "
            "model of these classes, or correct the list"
        )
    if np.isnan(scores).any():
        raise UserError(
            f"{np.isnan(scores).any(axis=1).sum()} of {len(labels)} videos have a score that is not a "
            "number; check the model"
        )


def action_scores(logits: Tensor, poses: Tensor | None = None) -> Tensor:
    """Probability of each action per box: logits float [R, L] -> float32 [R, L] in 0..1 (float64 stays).

    ``poses``, bool [L], marks mutually exclusive actions, trained with `pose_cross_entropy`: their
    probabilities sum to 1. None if all actions are independent.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = torch.sigmoid(logits)
    if poses is None or not poses.any():
        return scores
    poses = poses.to(logits.device)
    pose_scores = logits.masked_fill(~poses, -torch.inf).softmax(dim=1)
    return torch.where(poses, pose_scores, scores)


def perplexity(counts: Tensor) -> Tensor:
    """Exponential of the entropy of codebook use: counts [V], not all 0 -> float64 [].

    It is 1 if a single code is used, and V if all codes are used equally often.
    """
    shares = counts.double() / counts.sum()
    return torch.special.entr(shares).sum().exp()


def directions(features: Tensor) -> Tensor:
    """Features [..., D] as unit vectors, float32 [n, D], for :func:`direction_std`."""
    return F.normalize(features.detach().float().flatten(0, -2), dim=-1)


def direction_std(mean: Tensor) -> Tensor:
    """Standard deviation of unit vectors with mean [D]: ``sqrt(1 - |mean|^2)``, in 0..1.

    0 means that all vectors are equal (rounding gives about 3e-4), 1 that they cancel out. It is the root of
    the variance summed over axes; SimSiam's monitor (arXiv 2011.10566, section 4.1) times sqrt(D) averages
    the standard deviations over axes instead.
    """
    return (1.0 - mean.double().square().sum()).clamp(min=0.0).sqrt().float()


def entropy(probabilities: Tensor) -> Tensor:
    """Entropy of distributions [..., K] in nats, float32 [...]; a probability of 0 contributes 0."""
    return torch.special.entr(probabilities.float()).sum(dim=-1)
