"""The fixtures of the jobs: a sample data set, and `pretrain` as a function."""

from __future__ import annotations

from tests.jobs.conftest import _sample, pretrain, sample, verb

__all__ = ["_sample", "pretrain", "sample", "verb"]
