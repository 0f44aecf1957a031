"""How an encoder is pre-trained: one file per method.

Each is a :class:`~videomaskfeat.methods.method.Method`; ``pretrain`` runs it. A new one is one more file and
one more line here (docs/extending.md).
"""

from __future__ import annotations

from functools import partial

from videomaskfeat import import_submodule
from videomaskfeat.methods.byol import Byol
from videomaskfeat.methods.ibot import Ibot
from videomaskfeat.methods.latent import Latent
from videomaskfeat.methods.masked import MaskedPrediction
from videomaskfeat.methods.method import Method

__getattr__ = partial(import_submodule, __name__)

METHODS: dict[str, type[Method]] = {
    "masked": MaskedPrediction,
    "ibot": Ibot,
    "byol": Byol,
    "latent": Latent,
}
