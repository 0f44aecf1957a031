"""Every config key of every job, with its default, meaning and rules; a module per job.

The modules do not import torch: ``--help`` and ``--keys`` are quick, and a comparison can read the configs of
its trainings.
"""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
