"""Fast CPU forms of three functions that models call, each beside its plain version.

``dense.linear``, ``pooling.pool_tokens`` and ``attention.attention``. The plain versions are torch's own
operators: exported graphs, which must run where this package is not installed, consist of them.
"""

from functools import partial

from videomaskfeat import import_submodule

__getattr__ = partial(import_submodule, __name__)
