"""Classifiers and features: the verbs ``finetune``, ``evaluate``, ``predict`` and ``extract-features``."""
