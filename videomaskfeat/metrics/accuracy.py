"""Accuracies and the confusion matrix, scores of actions, use of a vocabulary, and spread of features.

Scores of classes are logits or probabilities, higher is better. Of equal scores the class with the lower
label comes first, so the prediction of a video is the class of rank 0, and top-1 is the trace of the
confusion matrix. (A model with equal scores for all classes is therefore right for the videos of class 0.)
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
    """Accuracies in percent, 0..100.

    Attributes:
        top1: share of the videos whose class has the highest score.
        top5: share of the videos whose class is among the 5 highest.
        mean_class: mean of the classes' own top-1, over the classes with videos.
        videos: number of videos.
    """

    top1: float
    top5: float
    mean_class: float
    videos: int


def accuracy(scores: np.ndarray, labels: np.ndarray) -> Accuracy:
    """The accuracies of a list.

    Args:
        scores: float [n, L], n >= 1.
        labels: int [n] in 0..L-1.

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


def predictions(scores: np.ndarray) -> np.ndarray:
    """The class of the highest score, int64 [n]; the first of equals."""
    return scores.argmax(axis=1)


def label_ranks(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place of each video's class among all, int64 [n], 0 for the highest score.

    Args:
        scores: float [n, L].
        labels: int [n] in 0..L-1.

    Raises:
        UserError: as `accuracy`.
    """
    _check(scores, labels)
    own = np.take_along_axis(scores, labels[:, None].astype(np.int64), axis=1)  # [n, 1]
    before = np.arange(scores.shape[1]) < labels[:, None]  # [n, L]: wins where the scores are equal
    return ((scores > own) | ((scores == own) & before)).sum(axis=1)


def confusion_matrix(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many videos of each class (row) were taken for each (column), int64 [L, L].

    Args:
        scores: float [n, L].
        labels: int [n] in 0..L-1.

    Raises:
        UserError: as `accuracy`.
    """
    _check(scores, labels)
    classes = scores.shape[1]
    cells = labels.astype(np.int64) * classes + predictions(scores)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes)


def class_accuracies(confusion: np.ndarray) -> np.ndarray:
    """Each class's own top-1 in percent, float64 [L]; NaN for a class without a video.

    Args:
        confusion: int [L, L], from `confusion_matrix`.
    """
    videos = confusion.sum(axis=1)
    return np.where(videos > 0, 100 * confusion.diagonal() / np.maximum(videos, 1), np.nan)


def _check(scores: np.ndarray, labels: np.ndarray) -> None:
    if not len(labels):
        raise UserError("no video was scored, so there is no accuracy")
    assert scores.shape[0] == len(labels)
    classes = scores.shape[1]
    outside = (labels < 0) | (labels >= classes)
    if outside.any():
        raise UserError(
            f"label {labels[outside][0]} is outside the {classes} classes that were scored "
            f"(0..{classes - 1}); score with a model of these classes, or mend the list"
        )
    if np.isnan(scores).any():
        raise UserError(
            f"{np.isnan(scores).any(axis=1).sum()} of {len(labels)} videos have a score that is not a number;"
            " their order means nothing"
        )


def action_scores(logits: Tensor, poses: Tensor | None = None) -> Tensor:
    """The probability of each action of each box, in 0..1.

    Args:
        logits: float [R, L].
        poses: bool [L], actions of which a person has exactly one, as they were trained by
            `losses.pose_cross_entropy`: their probabilities sum to 1. None: each action by itself.

    Returns:
        float32 [R, L]; float64 stays.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = torch.sigmoid(logits)
    if poses is None or not poses.any():
        return scores
    poses = poses.to(logits.device)
    chances = logits.masked_fill(~poses, -torch.inf).softmax(dim=1)
    return torch.where(poses, chances, scores)


def code_counts(tokens: Tensor, vocabulary: int) -> Tensor:
    """How often each number occurs: int64 [...] in 0..V-1 -> int64 [V]."""
    return torch.bincount(tokens.reshape(-1), minlength=vocabulary)


def perplexity(counts: Tensor) -> Tensor:
    """The exponential of the entropy of a usage: the number of codes that, used alike, would say as much.

    Args:
        counts: how often each code was used, [V], at least one above 0.

    Returns:
        float64 [], 1 (one code) to V (all codes, equally often).
    """
    shares = counts.double() / counts.sum()
    return torch.special.entr(shares).sum().exp()


def used_codes(counts: Tensor) -> Tensor:
    """How many codes were used at all: counts [V] -> int64 []."""
    return (counts > 0).sum()


def directions(features: Tensor) -> Tensor:
    """Features [..., D] as unit vectors, float32 [n, D], of which :func:`direction_std` wants the mean."""
    return F.normalize(features.detach().float().flatten(0, -2), dim=-1)


def direction_std(mean: Tensor) -> Tensor:
    """The standard deviation of unit vectors around their mean [D]: ``sqrt(1 - |mean|^2)``, in 0..1.

    The root of the sum over the D axes of each one's variance; with the mean of the axes' deviations instead
    it would be the monitor of SimSiam (arXiv 2011.10566, section 4.1) times sqrt(D). 0: all are one vector;
    1: they point in directions that cancel out. Rounding leaves some 3e-4 where it is 0 in truth.
    """
    return (1.0 - mean.double().square().sum()).clamp(min=0.0).sqrt().float()


def entropy(probabilities: Tensor) -> Tensor:
    """Of distributions [..., K], in nats [...], float32; a probability of 0 adds nothing."""
    return torch.special.entr(probabilities.float()).sum(dim=-1)
