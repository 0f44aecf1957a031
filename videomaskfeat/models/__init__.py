"""Encoders, heads and weights: tensors in, tensors out; no losses and no pictures."""
