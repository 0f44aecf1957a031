"""The published 8192-token image dVAE: its encoder, under the names of its own state dict."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from videomaskfeat.errors import UserError
from videomaskfeat.models.tokenizers import FrameTokenizer
from videomaskfeat.models.weights import PickledCode, load_into, read_state

STRIDE = 8
"""Pixels behind a token: three poolings of 2."""
_GROUPS = 4
_PIXEL_MARGIN = 0.1  # keeps the pixels clear of 0 and 1, where the logit-Laplace likelihood has its poles
_FIRST, _LAST = "blocks.input.w", "blocks.output.conv.w"


def map_pixels(pictures: Tensor) -> Tensor:
    """Pixels in 0..1 -> 0.1..0.9, as the encoder was trained on."""
    return (1 - 2 * _PIXEL_MARGIN) * pictures + _PIXEL_MARGIN


class Convolution(nn.Module):
    """A convolution of stride 1 with an odd kernel and padding; its parameters are called ``w`` and ``b``."""

    def __init__(self, in_width: int, out_width: int, kernel: int) -> None:
        super().__init__()
        std = 1 / math.sqrt(in_width * kernel**2)
        self.w = nn.Parameter(torch.empty(out_width, in_width, kernel, kernel).normal_(std=std))
        self.b = nn.Parameter(torch.zeros(out_width))

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, H, W] -> [B, D', H, W]."""
        return F.conv2d(x, self.w, self.b, padding=self.w.shape[-1] // 2)


class EncoderBlock(nn.Module):
    """Three 3x3 and one 1x1 convolution, a ReLU before each, at a gain of 1 / layers^2 beside the identity.

    Args:
        in_width: channels of the input; a 1x1 convolution replaces the identity if they are not
            ``out_width``.
        out_width: channels of the output; the block works on a quarter of them.
        layers: blocks of the whole encoder.
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
    """The encoder of the discrete VAE that DALL-E published and BEiT took its tokens from.

    Four groups of blocks, of 1, 2, 4 and 8 times ``width`` channels, with a 2x2 max pooling between them: a
    token stands for 8x8 pixels. On a GPU all but the last convolution compute in float16, as the published
    code does; elsewhere in float32.

    Source: github.com/openai/DALL-E at 5be4b23, ``dall_e/encoder.py`` (names, sizes), ``utils.py`` (pixels).

    Args:
        vocabulary: tokens; 8192 in the published file.
        width: channels of the first group; 256 in the published file.
        blocks: blocks per group; 2 in the published file.
        channels: color channels.
    """

    def __init__(
        self, *, vocabulary: int = 8192, width: int = 256, blocks: int = 2, channels: int = 3
    ) -> None:
        super().__init__(vocabulary=vocabulary, stride=STRIDE)
        parts: OrderedDict[str, nn.Module] = OrderedDict(input=Convolution(channels, width, 7))
        widths = [width * 2**group for group in range(_GROUPS)]
        before = width
        for number, after in enumerate(widths, start=1):
            group: OrderedDict[str, nn.Module] = OrderedDict()
            for block in range(1, blocks + 1):
                group[f"block_{block}"] = EncoderBlock(before, after, _GROUPS * blocks)
                before = after
            if number < _GROUPS:
                group["pool"] = nn.MaxPool2d(2)
            parts[f"group_{number}"] = nn.Sequential(group)
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Convolution(before, vocabulary, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, pictures: Tensor) -> Tensor:
        """Pictures float32 [B, C, H, W], mapped to 0.1..0.9 -> logits float32 [B, V, H/8, W/8]."""
        device = pictures.device.type
        with torch.autocast(device, torch.float16, enabled=device == "cuda"):
            x = self.blocks[:-1](pictures)
        with torch.autocast(device, enabled=False):
            return self.blocks[-1](x.float())

    def tokens(self, pictures: Tensor) -> Tensor:
        """The likeliest token of each cell: pictures in 0..1 [B, C, H, W] -> int64 [B, H/8, W/8]."""
        return torch.argmax(self(map_pixels(pictures)), dim=1)


def load_published_encoder(path: str | os.PathLike[str]) -> PublishedEncoder:
    """The published encoder with the weights in a file of the user's, whose pickled code is never run.

    Args:
        path: its state dict, as ``torch.save`` or safetensors write it. The file that was published is a
            whole pickled module, and so is refused.

    Returns:
        The encoder in evaluation mode, on the CPU.

    Raises:
        UserError: no such file, a damaged one, pickled code, or weights of something else.
    """
    name = os.fspath(path)
    try:
        state = read_state(name)
    except PickledCode as error:
        raise UserError(
            f"{name}: is a pickled module, as the published encoder.pkl is, and pickled code is never run "
            "here; where the dall_e package is installed and the file is trusted, write its state dict once: "
            "torch.save(torch.load('encoder.pkl', weights_only=False).state_dict(), 'encoder.pt'), and give "
            "that file"
        ) from error
    sizes = _sizes(state, name)
    with torch.device("meta"):  # drawing 54 million initial weights would take longer than reading them
        encoder = PublishedEncoder(**sizes)
    encoder = encoder.to_empty(device="cpu")
    load_into(encoder, state, source=name)
    return encoder.eval()


def _sizes(state: Mapping[str, Tensor], name: str) -> dict[str, int]:
    """The arguments of the encoder that a state dict belongs to."""
    missing = [key for key in (_FIRST, _LAST) if key not in state or state[key].ndim != 4]
    if missing:
        raise UserError(
            f"{name}: holds no weights of the published dVAE encoder ({missing[0]!r} is missing); give its "
            "state dict, or the weights.safetensors of a train-tokenizer run"
        )
    first = state[_FIRST]
    if first.shape[-1] == 1:
        raise UserError(
            f"{name}: holds the published dVAE's decoder; tokens come from its encoder, give that"
        )
    blocks = {key.split(".")[2] for key in state if key.startswith("blocks.group_1.block_")}
    return {
        "vocabulary": state[_LAST].shape[0],
        "width": first.shape[0],
        "channels": first.shape[1],
        "blocks": len(blocks),
    }
