"""What may stand in the ``arguments`` of a config's targets, methods and tokenizers."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from videomaskfeat.models.tokenizers import TOKENIZERS
from videomaskfeat.targets import TARGETS
from videomaskfeat.tasks.methods import METHODS

_SUPPLIED = ("config", "build", "clip_mean", "clip_std")
"""By the run itself."""


def pretrain_arguments() -> dict[str, list[str]]:
    """Title of each target and method -> what it takes: ``name=default``, or the name of what it needs."""
    return _arguments("target.arguments", TARGETS) | _arguments("method.arguments", METHODS)


def tokenizer_arguments() -> dict[str, list[str]]:
    """Likewise of the tokenizers that ``train-tokenizer`` trains."""
    return _arguments("model.arguments", TOKENIZERS)


def _arguments(where: str, builders: Mapping[str, Callable[..., object]]) -> dict[str, list[str]]:
    return {
        f"{where} of {name}": [
            argument.name if argument.default is argument.empty else f"{argument.name}={argument.default}"
            for argument in inspect.signature(build).parameters.values()
            if argument.name not in _SUPPLIED
        ]
        for name, build in builders.items()
    }
