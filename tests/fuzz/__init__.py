"""Damaged files through the real entry points: each is read, or refused in one line.

``test_fuzz.py`` runs a fixed set of cases of each kind; ``python -m tests.fuzz`` runs more, or repeats one.
A case is made from (kind, seed) alone. A traceback, a crash, a hang or a growth in memory is a finding.
"""
