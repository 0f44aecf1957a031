"""How an encoder is pre-trained: one file a method.

Each is a :class:`~videomaskfeat.methods.method.Method`, built from a config; ``pretrain`` runs it. A
new one is one more file and one more line here.
"""

from __future__ import annotations

from functools import partial

from videomaskfeat import import_submodule
from videomaskfeat.errors import UserError, check_name
from videomaskfeat.methods.byol import Byol
from videomaskfeat.methods.ibot import Ibot
from videomaskfeat.methods.latent import Latent
from videomaskfeat.methods.masked import MaskedPrediction
from videomaskfeat.methods.method import Method, check_arguments
from videomaskfeat.schemas import PretrainConfig

__getattr__ = partial(import_submodule, __name__)

METHODS: dict[str, type[Method]] = {
    "masked": MaskedPrediction,
    "ibot": Ibot,
    "byol": Byol,
    "latent": Latent,
}


def build_method(config: PretrainConfig) -> Method:
    """The config's method with all its parts, on the CPU.

    Raises:
        UserError: an unknown name or argument, or parts that cannot be or do not fit each other.
    """
    name, arguments = config.method.name, config.method.arguments
    check_name("method.name", name, METHODS)
    check_arguments("method.arguments", name, METHODS[name], arguments, supplied=("config",))
    try:
        return METHODS[name](config, **arguments)
    except TypeError as error:
        raise UserError(f"method.arguments of {name!r}: {error}") from error
