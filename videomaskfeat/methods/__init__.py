"""How an encoder is pre-trained: one file per method.

Each is a :class:`~videomaskfeat.methods.method.Method`; ``pretrain`` runs it. A new one is one more file and
one more line here (docs/extending.md).
"""

from __future__ import annotations

from functools import partial

from videomaskfeat import import_submodule
from videomaskfeat.methods.method import Method
from videomaskfeat.plugins import find_class

__getattr__ = partial(import_submodule, __name__)

METHODS: dict[str, str] = {
    "masked": "videomaskfeat.methods.masked:MaskedPrediction",
    "ibot": "videomaskfeat.methods.ibot:Ibot",
    "byol": "videomaskfeat.methods.byol:Byol",
    "latent": "videomaskfeat.methods.latent:Latent",
}
"""Methods by ``method.name``: "module:class", imported by :func:`method_class`."""


def method_class(name: str) -> type[Method]:
    """The class of a method in :data:`METHODS`, or of a plug-in ``package.module:Class``.

    Raises:
        UserError: the name is unknown, or the plug-in cannot be imported or is no :class:`Method`.
    """
    return find_class("method.name", name, METHODS, Method)
