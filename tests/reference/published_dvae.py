"""The published dVAE encoder from a state dict; convolutions are sums over kernel positions."""

from __future__ import annotations

import numpy as np

State = dict[str, np.ndarray]


def convolve(x: np.ndarray, state: State, name: str) -> np.ndarray:
    """Zero-padded convolution of stride 1: [D, H, W] and kernel [D', D, k, k] -> [D', H, W]."""
    kernel, bias = state[f"{name}.w"].astype(np.float64), state[f"{name}.b"].astype(np.float64)
    _, height, width = x.shape
    margin = kernel.shape[-1] // 2
    padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin)))
    result = np.zeros((kernel.shape[0], height, width)) + bias[:, None, None]
    for row in range(kernel.shape[2]):
        for column in range(kernel.shape[3]):
            window = padded[:, row : row + height, column : column + width]
            result += np.einsum("od,dhw->ohw", kernel[:, :, row, column], window)
    return result


def block(x: np.ndarray, state: State, name: str, layers: int) -> np.ndarray:
    """A residual block of the encoder."""
    inner = x
    for number in (1, 2, 3, 4):
        inner = convolve(np.maximum(inner, 0), state, f"{name}.res_path.conv_{number}")
    same = convolve(x, state, f"{name}.id_path") if f"{name}.id_path.w" in state else x
    return same + inner / layers**2


def pool(x: np.ndarray) -> np.ndarray:
    """2x2 max pooling, [D, H, W] -> [D, H/2, W/2]."""
    corners = [x[:, row::2, column::2] for row in (0, 1) for column in (0, 1)]
    return np.maximum.reduce(corners)


def logits(picture: np.ndarray, state: State, *, blocks: int) -> np.ndarray:
    """A picture float [C, H, W] in 0..1 -> float64 [V, H/8, W/8]."""
    x = convolve(picture.astype(np.float64) * 0.8 + 0.1, state, "blocks.input")
    for group in (1, 2, 3, 4):
        for number in range(1, blocks + 1):
            x = block(x, state, f"blocks.group_{group}.block_{number}", 4 * blocks)
        if group < 4:
            x = pool(x)
    return convolve(np.maximum(x, 0), state, "blocks.output.conv")
