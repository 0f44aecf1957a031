"""Depthwise pooling the plain way: into image layout, torch's convolution, and back."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def plain_depthwise_conv3d(x: Tensor, weight: Tensor, stride: tuple[int, int, int]) -> Tensor:
    """x [B, t, h, w, C], weight [C, 1, kt, kh, kw] -> [B, t', h', w', C]."""
    padding = tuple(size // 2 for size in weight.shape[2:])
    image = x.permute(0, 4, 1, 2, 3).contiguous()
    image = F.conv3d(image, weight, None, stride, padding, 1, x.shape[4])
    return image.permute(0, 2, 3, 4, 1).contiguous()
