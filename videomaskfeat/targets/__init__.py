"""What is predicted in the hidden places: one file a target.

Each is a :class:`~videomaskfeat.targets.target.Target`: a module from whole clips to what is to be predicted,
with its loss. A new one is one more file and one more line here.
"""

from __future__ import annotations

from functools import partial

from videomaskfeat import import_submodule
from videomaskfeat.targets.combined import CombinedTarget
from videomaskfeat.targets.features import FeatureTarget
from videomaskfeat.targets.hog import HogTarget
from videomaskfeat.targets.pixels import PixelTarget
from videomaskfeat.targets.target import Target
from videomaskfeat.targets.tokens import CodebookTarget, DvaeTarget

__getattr__ = partial(import_submodule, __name__)

TARGETS: dict[str, type[Target]] = {
    "hog": HogTarget,
    "pixels": PixelTarget,
    "features": FeatureTarget,
    "combined": CombinedTarget,
    "dvae": DvaeTarget,
    "codebook": CodebookTarget,
}
