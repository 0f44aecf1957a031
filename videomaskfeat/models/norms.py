"""Layer norm with float32 sums in its gradients, also in bfloat16 on the CPU."""

from __future__ import annotations

from torch import Tensor, nn


class LayerNorm(nn.LayerNorm):
    """`torch.nn.LayerNorm`, on the CPU in float32 if its weights are.

    There, torch sums the gradients of weight and bias in the input's type: in bfloat16 over 25,000 tokens,
    they are wrong by 15 to 40 %.
    """

    def forward(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D], in the type of ``x``."""
        if x.device.type != "cpu":
            return super().forward(x)
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def set_norm_eps(module: nn.Module, eps: float) -> None:
    """Set the number that all layer norms of a module add to the variance."""
    for layer in module.modules():
        if isinstance(layer, nn.LayerNorm):
            layer.eps = eps
