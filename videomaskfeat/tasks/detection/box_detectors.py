"""Detectors of persons as plug-ins: any Python callable from pictures to boxes, given by name.

The callable takes pictures uint8 [n, H, W, 3] (RGB, all of one size) and returns n arrays, one a picture:
float [k, 5], a row x1, y1, x2, y2 in pixels and a score in 0..1 for each person; k may be 0.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from videomaskfeat.errors import PlugInFailed, RunFailed, UserError, nearest

BoxDetector = Callable[[np.ndarray], Sequence[Any]]

_PROMISE = (
    "a detector takes pictures uint8 [n, H, W, 3] and returns n arrays [k, 5], x1, y1, x2, y2 in pixels and "
    "a score"
)


def load_box_detector(name: str, options: Mapping[str, Any] | None = None) -> BoxDetector:
    """The callable that ``package.module:name`` names.

    The module is looked for among the installed packages and in the current folder. A class is called first,
    with the options as keyword arguments, and so is anything else where there are options: what it returns is
    the detector.

    Args:
        name: such as ``my_boxes:find_persons``.
        options: keyword arguments of the class, or of a function that makes a detector.

    Raises:
        UserError: no such module or name, a module that cannot be imported, wrong options, or the result is
            not callable.
        PlugInFailed: the class or function raised an error.
    """
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UserError(
            f"detector {name!r} is not of the form package.module:name, such as my_boxes:find_persons"
        )
    module = _import(module_name, name)
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            known = [word for word in vars(found) if not word.startswith("_")]
            raise UserError(
                f"detector {name!r}: {module_name} has no {attribute}{nearest(part, known)}; {_PROMISE}"
            )
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"detector {name!r} is {_kind(found)}, which cannot be called; {_PROMISE}")
    if inspect.isclass(found) or options:
        found = _made(found, dict(options or {}), name)
    if not callable(found):
        raise UserError(f"detector {name!r} made {_kind(found)}, which cannot be called; {_PROMISE}")
    return found


def find_boxes(
    detector: BoxDetector,
    pictures: np.ndarray,
    *,
    name: str,
    score_threshold: float,
    video: str = "pictures",
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The persons in pictures, checked.

    Boxes are cut to the picture; those below the score, and those of which nothing lies in it, are left out.

    Args:
        detector: see the module.
        pictures: uint8 [n, H, W, 3].
        name: of the detector, for messages.
        score_threshold: the least score.
        video: that the pictures are of, for messages.

    Returns:
        Of each picture float32 [k, 4], x1, y1, x2, y2 in shares of its width and height, and float32 [k],
        scores, the surest first.

    Raises:
        UserError: the detector returns something else than it should.
        PlugInFailed: the detector raised an error.
    """
    try:
        found = detector(pictures)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # whatever the user's own code does
        raise PlugInFailed(f"detector {name!r} failed on {video}: {_told(error)}") from error
    if not isinstance(found, Sequence | np.ndarray) or len(found) != len(pictures):
        many = f"{len(found)} results" if hasattr(found, "__len__") else _kind(found)
        raise UserError(f"detector {name!r} returned {many} for {len(pictures)} pictures; {_PROMISE}")
    height, width = pictures.shape[1:3]
    return [_checked(rows, height, width, name, score_threshold) for rows in found]


def _import(module_name: str, name: str) -> Any:
    here = os.getcwd()
    added = here not in sys.path and "" not in sys.path
    if added:  # an installed command does not look there, and `python -m` does
        sys.path.insert(0, here)
    try:
        return importlib.import_module(module_name)
    except UserError:
        raise
    except ModuleNotFoundError as error:
        parts = module_name.split(".")
        if error.name in {".".join(parts[: count + 1]) for count in range(len(parts))}:
            raise UserError(
                f"detector {name!r}: there is no module {error.name}, neither installed nor in {here}"
            ) from error
        raise UserError(
            f"detector {name!r}: {module_name} needs the module {error.name}, which is not installed"
        ) from error
    except Exception as error:  # whatever the user's own module does when it is run
        raise UserError(
            f"detector {name!r}: importing {module_name} failed: {type(error).__name__}: {error}"
        ) from error
    finally:
        if added:
            sys.path.remove(here)


def _made(maker: Any, options: dict[str, Any], name: str) -> Any:
    """What a class, or a function that makes detectors, gives for these options."""
    try:
        signature = inspect.signature(maker)
    except ValueError:  # written in C: it will say itself what is wrong
        signature = None
    if signature is not None:
        try:
            signature.bind(**options)
        except TypeError as error:
            known = ", ".join(signature.parameters) or "none"
            raise UserError(
                f"detector {name!r}: its options do not fit ({error}); it takes: {known}"
            ) from error
    try:
        return maker(**options)
    except (UserError, RunFailed):
        raise
    except Exception as error:  # whatever the user's own code does
        raise PlugInFailed(f"detector {name!r} could not be made: {_told(error)}") from error


def _checked(
    rows: Any, height: int, width: int, name: str, score_threshold: float
) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = np.asarray(rows, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"detector {name!r} returned {_kind(rows)} for a picture, which is no array; {_PROMISE}"
        ) from error
    if table.size == 0:
        table = table.reshape(0, 5)
    if table.ndim != 2 or table.shape[1] != 5:
        shape = list(table.shape)
        raise UserError(f"detector {name!r} returned an array {shape} for a picture; {_PROMISE}")
    boxes, scores = table[:, :4], table[:, 4]
    if not np.isfinite(table).all():
        raise UserError(f"detector {name!r} returned a number that is not finite; {_PROMISE}")
    if ((scores < 0) | (scores > 1)).any():
        wrong = scores[(scores < 0) | (scores > 1)][0]
        raise UserError(
            f"detector {name!r} returned the score {wrong:g}; scores are between 0 and 1, after the softmax "
            "or sigmoid"
        )
    if (boxes[:, 2:] < boxes[:, :2]).any():
        wrong_box = boxes[(boxes[:, 2:] < boxes[:, :2]).any(axis=1)][0]
        raise UserError(
            f"detector {name!r} returned the box {np.round(wrong_box, 2).tolist()}, which ends before it "
            "begins; a box is x1, y1, x2, y2 (left, top, right, bottom), and not width and height"
        )
    if len(boxes) and boxes.max() <= 1.0 and min(height, width) > 2:
        raise UserError(
            f"detector {name!r} returned boxes within 0..1 for pictures of {width}x{height}; give pixels, "
            "and not shares of the picture"
        )
    boxes = np.clip(boxes, 0, [width, height, width, height]) / [width, height, width, height]
    kept = (scores >= score_threshold) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    order = np.flatnonzero(kept)[np.argsort(-scores[kept], kind="stable")]
    return boxes[order].astype(np.float32), scores[order].astype(np.float32)


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _kind(thing: Any) -> str:
    name = type(thing).__name__
    return "None" if thing is None else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
