"""Who does what, where: the verbs ``detect-train``, ``detect-evaluate``, ``detect`` and ``score-ava``."""
