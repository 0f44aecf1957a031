"""Damaged files for the real entry points: each is read, or rejected with a one-line error.

``test_fuzz.py`` runs a fixed set of cases of each kind; ``python -m tests.fuzz`` runs more, or repeats one.
A case depends only on (kind, seed). A traceback, a crash, a hang or a growth in memory is a finding.
"""
