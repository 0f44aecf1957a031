"""What is predicted in the hidden places: one file a target.

Each is a module ``(clips float [B, C, T, H, W]) -> targets float32 [B, t, h, w, K]`` with the attribute
``values_per_token`` = K. A new one is one more file and one more line here.
"""

from __future__ import annotations

from torch import nn

from videomaskfeat.targets.hog import HogTarget

TARGETS: dict[str, type[nn.Module]] = {"hog": HogTarget}
