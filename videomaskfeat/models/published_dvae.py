"""The encoder of the published 8192-token image dVAE, with the parameter names of its state dict."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.errors import UserError
from videomaskfeat.models.loading import load_into
from videomaskfeat.models.tokenizers import FrameTokenizer
from videomaskfeat.models.weights import read_state
from videomaskfeat.tensor_files import PickledCode

STRIDE = 8
"""Rows and columns of pixels per token: three poolings by 2."""
_GROUPS = 4
_PIXEL_MARGIN = 0.1  # keeps pixels away from 0 and 1, the poles of the logit-Laplace likelihood
_FIRST, _LAST = "blocks.input.w", "blocks.output.conv.w"


def map_pixels(pictures: Tensor) -> Tensor:
    """Pixels in 0..1 -> 0.1..0.9, as in the encoder's training."""
    return (1 - 2 * _PIXEL_MARGIN) * pictures + _PIXEL_MARGIN


class Convolution(nn.Module):
    """A padded convolution of stride 1 with an odd kernel; its parameters are called ``w`` and ``b``."""

    def __init__(self, in_width: int, out_width: int, kernel: int) -> None:
        super().__init__()
        std = 1 / math.sqrt(in_width * kernel**2)
        self.w = nn.Parameter(torch.empty(out_width, in_width, kernel, kernel).normal_(std=std))
        self.b = nn.Parameter(torch.zeros(out_width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D', H, W]."""
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class EncoderBlock(nn.Module):
    """Three 3x3 convolutions and one 1x1, each after a ReLU, scaled by 1 / layers^2 and added to the input.

    A 1x1 convolution projects the input if its width changes; the hidden width is a quarter of ``out_width``.
    ``layers``: number of blocks of the whole encoder.
    """

    def __init__(self, in_width: int, out_width: int, layers: int) -> None:
        super().__init__()
        inner = out_width // 4
        self.gain = 1 / layers**2
        self.id_path = nn.Identity() if in_width == out_width else Convolution(in_width, out_width, 1)
        self.res_path = nn.Sequential(
            OrderedDict(
                relu_1=nn.ReLU(),
                conv_1=Convolution(in_width, inner, 3),
                relu_2=nn.ReLU(),
                conv_2=Convolution(inner, inner, 3),
                relu_3=nn.ReLU(),
                conv_3=Convolution(inner, inner, 3),
                relu_4=nn.ReLU(),
                conv_4=Convolution(inner, out_width, 1),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D', H, W]."""
        return self.id_path(x) + self.gain * self.res_path(x)


class PublishedEncoder(FrameTokenizer):
    """The encoder of DALL-E's published discrete VAE, whose tokens BEiT predicts.

    Four groups of blocks with 1, 2, 4 and 8 times ``width`` channels, and 2x2 max pooling between groups: one
    token per 8x8 pixels. On a GPU, all layers except the last convolution compute in float16, as in the
    published code; elsewhere in float32.

    Source: github.com/openai/DALL-E at 5be4b23, ``dall_e/encoder.py`` (names, sizes), ``utils.py`` (pixels).

    Args:
        vocabulary, width: number of tokens, and channels of the first group.
        blocks, channels: blocks per group, and color channels. The defaults are those of the published file.
    """

    def __init__(
        self, *, vocabulary: int = 8192, width: int = 256, blocks: int = 2, channels: int = 3
    ) -> None:
        super().__init__(vocabulary=vocabulary, stride=STRIDE)
        groups: OrderedDict[str, nn.Module] = OrderedDict(input=Convolution(channels, width, 7))
        before = width
        for number in range(1, _GROUPS + 1):
            after = width * 2 ** (number - 1)
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(1, blocks + 1):
                group[f"block_{block}"] = EncoderBlock(before, after, _GROUPS * blocks)
                before = after
            if number < _GROUPS:
                group["pool"] = nn.MaxPool2d(2)
            groups[f"group_{number}"] = nn.Sequential(group)
        groups["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Convolution(before, vocabulary, 1)))
        self.blocks = nn.Sequential(groups)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures float32 [B, C, H, W], mapped to 0.1..0.9 -> logits float32 [B, V, H/8, W/8]."""
        device = pictures.device.type
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            x = self.blocks[:-1](pictures)
        with torch.autocast(device, enabled=False):
            return self.blocks[-1](x.float())

    def tokens(self, pictures: Tensor) -> Tensor:
        """Most likely token per cell: pictures in 0..1 [B, C, H, W] -> int64 [B, H/8, W/8]."""
        return torch.argmax(self(map_pixels(pictures)), dim=1)


def load_published_encoder(path: str | os.PathLike[str]) -> PublishedEncoder:
    """Load the published encoder from a state dict, without running pickled code.

    Args:
        path: its state dict, written by ``torch.save`` or as safetensors. The published file itself is a
            pickled module and is refused.

    Returns:
        The encoder in evaluation mode, on the CPU.

    Raises:
        UserError: the file is missing or damaged, contains pickled code, or has other weights.
    """
    name = os.fspath(path)
    try:
        state = read_state(name)
    except PickledCode as error:
        raise UserError(
            f"{name} is a pickled module, like the published encoder.pkl; no pickled code is run here. If "
            "the dall_e package is installed and you trust the file, write its state dict once: "
            "torch.save(torch.load('encoder.pkl', weights_only=False).state_dict(), 'encoder.pt'), and use "
            "that file"
        ) from error
    sizes = _sizes(state, name)
    with torch.device("meta"):  # drawing 54 million initial weights takes longer than reading them
        encoder = PublishedEncoder(**sizes)
    encoder = encoder.to_empty(device="cpu")
    load_into(encoder, state, source=name)
    return encoder.eval()


def _sizes(state: Mapping[str, Tensor], name: str) -> dict[str, int]:
    """Arguments of the encoder with this state dict."""
    missing = [key for key in (_FIRST, _LAST) if key not in state or state[key].ndim != 4]
    if missing:
        raise UserError(
            f"{name} contains no weights of the published dVAE encoder ({missing[0]!r} is missing); use its "
            "state dict, or the weights.safetensors of a train-tokenizer run"
        )
    first = state[_FIRST]
    if first.shape[-1] == 1:
        raise UserError(f"{name} contains the decoder of the published dVAE; use its encoder")
    blocks = {key.split(".")[2] for key in state if key.startswith("blocks.group_1.block_")}
    return {
        "vocabulary": state[_LAST].shape[0],
        "width": first.shape[0],
        "channels": first.shape[1],
        "blocks": len(blocks),
    }
