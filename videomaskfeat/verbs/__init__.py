"""The verbs of the command line, a file per subject: options, help and function of each.

A new verb is a function and a line of ``VERBS`` in one of the files. The functions import their jobs when
they run, so that ``--help`` does not load torch.
"""

from __future__ import annotations

from functools import partial

from videomaskfeat import import_submodule
from videomaskfeat.verbs import (
    classification,
    data,
    detection,
    installation,
    pages,
    planning,
    training,
    weights,
)
from videomaskfeat.verbs.verb import Verb

__getattr__ = partial(import_submodule, __name__)

VERBS: dict[str, Verb] = {
    **training.VERBS,
    **planning.VERBS,
    **classification.VERBS,
    **detection.VERBS,
    **pages.VERBS,
    **weights.VERBS,
    **data.VERBS,
    **installation.VERBS,
}
"""All verbs by name, in the order of ``--help``."""
