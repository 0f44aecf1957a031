"""Frames for tests of augmentation, and a classifier for tests of the sample data."""

from __future__ import annotations

import cv2
import numpy as np


def noisy_frames(frames: int = 2, height: int = 90, width: int = 121, *, seed: int = 0) -> np.ndarray:
    """Independent pixels, uint8 [T, H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (frames, height, width, 3), dtype=np.uint8)


def smooth_frames(frames: int = 2, height: int = 90, width: int = 121, *, seed: int = 0) -> np.ndarray:
    """Blobs some 5 pixels wide with levels from 20 to 230, uint8 [T, H, W, 3]."""
    blurred = [cv2.GaussianBlur(noise, (0, 0), 2) for noise in noisy_frames(frames, height, width, seed=seed)]
    return np.stack([cv2.normalize(frame, frame, 20, 230, cv2.NORM_MINMAX) for frame in blurred])


def still_clip(frames: int = 4, height: int = 60, width: int = 80, *, seed: int = 0) -> np.ndarray:
    """The same smooth frame over and over, uint8 [T, H, W, 3]."""
    return np.repeat(smooth_frames(1, height, width, seed=seed), frames, axis=0)


def held_out_accuracy(features: np.ndarray, labels: np.ndarray, *, train_fraction: float) -> float:
    """Top-1 accuracy of a ridge classifier on the last rows, fitted on the first ones."""
    features = (features - features.mean(axis=0)) / (features.std(axis=0) + 1e-6)
    cut = int(len(labels) * train_fraction)
    train, test = features[:cut], features[cut:]
    classes = labels.max() + 1
    onehot = np.eye(classes)[labels[:cut]] - 1 / classes
    # The dual form: there may be fewer samples than features.
    gram = train @ train.T + 0.3 * features.shape[1] * np.eye(cut)
    scores = test @ (train.T @ np.linalg.solve(gram, onehot))
    return float((scores.argmax(axis=1) == labels[cut:]).mean())
