"""Confidence intervals of mean average precisions, by drawing the videos again (bootstrap)."""

from __future__ import annotations

import numpy as np

_VALUES_AT_ONCE = 4_000_000  # resamples x detections of an action, or x videos


def mean_ap_interval(
    truth_videos: np.ndarray,
    truth_actions: np.ndarray,
    detected_videos: np.ndarray,
    detected_actions: np.ndarray,
    hits: np.ndarray,
    *,
    resamples: int = 200,
    seed: int = 0,
) -> tuple[float, float] | None:
    """The 95 % confidence interval of the mean of interpolated average precisions.

    The usual bootstrap (Efron, 1979) over videos, since the boxes of one video are not independent: as many
    videos as there are, drawn with replacement, form a resample, whose score counts each video as often as it
    was drawn. The interval reaches from the 2.5 % to the 97.5 % quantile of the scores of all resamples. It
    covers the choice of the test videos, not that of the training, and is too narrow for a few videos.

    Args:
        truth_videos, truth_actions: int64 [n], video and action of each ground truth row.
        detected_videos, detected_actions: int64 [m], those of each detection, those of an action by
            descending score.
        hits: bool [m], True for true positives.
        resamples: number of resamples.
        seed: seed of the draws.

    Returns:
        Lower and upper end, 0..1; None for less than two videos.
    """
    videos, places = np.unique(np.concatenate([truth_videos, detected_videos]), return_inverse=True)
    if len(videos) < 2:
        return None
    truths, detections = places[: len(truth_videos)], places[len(truth_videos) :]
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(len(videos), np.full(len(videos), 1 / len(videos)), size=resamples)  # [B, V]
    actions = np.unique(truth_actions)
    precisions = np.full((resamples, len(actions)), np.nan)
    for column, action in enumerate(actions):
        counts = np.bincount(truths[truth_actions == action], minlength=len(videos))  # [V]
        rows = detected_actions == action
        precisions[:, column] = _average_precisions(drawn, drawn @ counts, detections[rows], hits[rows])
    known = precisions[np.isfinite(precisions).any(axis=1)]
    low, high = np.quantile(np.nanmean(known, axis=1), [0.025, 0.975])
    return float(low), float(high)


def multi_label_interval(
    scores: np.ndarray, targets: np.ndarray, *, resamples: int = 1000, seed: int = 0
) -> tuple[float, float] | None:
    """The 95 % confidence interval of `multi_label_score`'s mAP, by the bootstrap of `mean_ap_interval`.

    A resample in which no video has a class leaves this class out of its mean.

    Args:
        scores: float [n, L].
        targets: bool [n, L], the classes of each video.
        resamples: number of resamples.
        seed: seed of the draws.

    Returns:
        Lower and upper end, percent; None for less than two videos, or if no video has a class.
    """
    videos = len(scores)
    if videos < 2 or not targets.any():
        return None
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(videos, np.full(videos, 1 / videos), size=resamples)  # [B, n]
    sums, counts = np.zeros(resamples), np.zeros(resamples, np.int64)
    for column in np.flatnonzero(targets.any(axis=0)):
        precisions = _weighted_precisions(drawn, scores[:, column], targets[:, column])
        known = np.isfinite(precisions)
        sums += np.where(known, precisions, 0.0)
        counts += known
    means = 100 * sums[counts > 0] / counts[counts > 0]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _weighted_precisions(drawn: np.ndarray, scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Average precision of a class in each resample, float64 [B]; NaN without positives.

    It is that of `accuracy.average_precision` if each video occurs as often as it was drawn. Copies of a
    video have equal scores, which count together.

    Args:
        drawn: int64 [B, n], copies of each video.
        scores, targets: float [n] and bool [n].
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # last place of each score
    precisions = np.empty(len(drawn))
    step = max(_VALUES_AT_ONCE // len(scores), 1)
    for first in range(0, len(drawn), step):
        copies = drawn[first : first + step, order]  # [b, n]
        hits = np.cumsum(copies * targets[order], axis=1)[:, last]
        totals = np.cumsum(copies, axis=1)[:, last]
        areas = (np.diff(hits, axis=1, prepend=0) * hits / np.maximum(totals, 1)).sum(axis=1)
        with np.errstate(invalid="ignore"):
            precisions[first : first + step] = areas / hits[:, -1]
    return precisions


def _average_precisions(
    drawn: np.ndarray, totals: np.ndarray, videos: np.ndarray, hits: np.ndarray
) -> np.ndarray:
    """Average precision of an action in each resample, float64 [B]; NaN without ground truth.

    Copies of a hit follow each other, and precision rises from one to the next, so all of them have the
    interpolated precision of the last copy: one value per detection is exact.

    Args:
        drawn: int64 [B, V], copies of each video.
        totals: int64 [B], ground truth rows.
        videos, hits: int64 [m] and bool [m], highest score first.
    """
    areas = np.zeros(len(drawn))
    step = max(_VALUES_AT_ONCE // max(len(videos), 1), 1)
    for first in range(0, len(drawn) if len(videos) else 0, step):
        copies = drawn[first : first + step, videos]  # [b, m]
        hit_copies = copies * hits
        precision = np.cumsum(hit_copies, axis=1) / np.maximum(np.cumsum(copies, axis=1), 1)
        precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        areas[first : first + step] = (precision * hit_copies).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(totals > 0, areas / totals, np.nan)
