"""Weights of and for other programs: the verbs ``import-slowfast`` and ``export``."""
