"""Pre-training: the verbs ``pretrain`` and ``compare``; what is learnt is in ``tasks/methods``."""
