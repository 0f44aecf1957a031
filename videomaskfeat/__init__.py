"""Masked video pre-training: hide spacetime cubes, predict their content, fine-tune the encoder."""

from __future__ import annotations

import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the types of the names that __getattr__ imports
    from videomaskfeat.data.reader import VideoReadError as VideoReadError
    from videomaskfeat.data.video import open_video as open_video
    from videomaskfeat.errors import UserError as UserError
    from videomaskfeat.inference.classifiers import load_classifier as load_classifier
    from videomaskfeat.inference.classifiers import load_encoder as load_encoder
    from videomaskfeat.inference.detectors import load_detector as load_detector
    from videomaskfeat.inference.features import read_features as read_features
    from videomaskfeat.inference.hub import from_pretrained as from_pretrained
    from videomaskfeat.inference.persons import find_actions as find_actions
    from videomaskfeat.interop.slowfast import load_slowfast as load_slowfast
    from videomaskfeat.models import create_model as create_model
    from videomaskfeat.models import list_models as list_models
    from videomaskfeat.models.loading import load_model as load_model
    from videomaskfeat.models.saving import save_model as save_model

__version__ = "0.1.0"

_LAZY = {
    "create_model": "videomaskfeat.models",
    "find_actions": "videomaskfeat.inference.persons",
    "from_pretrained": "videomaskfeat.inference.hub",
    "load_classifier": "videomaskfeat.inference.classifiers",
    "load_detector": "videomaskfeat.inference.detectors",
    "load_encoder": "videomaskfeat.inference.classifiers",
    "load_model": "videomaskfeat.models.loading",
    "load_slowfast": "videomaskfeat.interop.slowfast",
    "list_models": "videomaskfeat.models",
    "open_video": "videomaskfeat.data.video",
    "read_features": "videomaskfeat.inference.features",
    "save_model": "videomaskfeat.models.saving",
    "UserError": "videomaskfeat.errors",
    "VideoReadError": "videomaskfeat.data.reader",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that ``import videomaskfeat`` is quick (PEP 562)."""
    if name in _LAZY:
        return import_object(f"{_LAZY[name]}:{name}")
    return import_submodule(__name__, name)


def __dir__() -> list[str]:
    import pkgutil  # takes longer than importing this package

    modules = {module.name for module in pkgutil.iter_modules(__path__)} - {"__main__"}
    return sorted({*__all__, *modules})


def import_object(entry: str) -> Any:
    """The object that an entry "module:name" of a registry names, such as ``TARGETS["hog"]``.

    A registry contains entries, so that a run imports only the parts that it uses.
    """
    module, _, name = entry.partition(":")
    return getattr(importlib.import_module(module), name)


def import_submodule(package: str, name: str) -> Any:
    """Import a module of a package on first use.

    It is the ``__getattr__`` of every package here, so ``videomaskfeat.data.video.open_video`` works after
    ``import videomaskfeat``.

    Raises:
        AttributeError: there is no such module.
    """
    module = f"{package}.{name}"
    # Python itself looks up private names; they need no search on disk.
    if name.startswith("_") or not name.isidentifier() or importlib.util.find_spec(module) is None:
        raise AttributeError(f"module {package!r} has no attribute {name!r}")
    return importlib.import_module(module)
