"""A codebook of moving averages, one latent and one code at a time."""

from __future__ import annotations

from collections.abc import Sequence

Vector = list[float]


def nearest(latent: Sequence[float], codes: Sequence[Sequence[float]]) -> int:
    """The index of the nearest code, the first if equal."""
    distances = [sum((a - b) ** 2 for a, b in zip(latent, code, strict=True)) for code in codes]
    return distances.index(min(distances))


def update(
    counts: list[float],
    sums: list[Vector],
    latents: Sequence[Vector],
    numbers: Sequence[int],
    candidates: Sequence[Vector],
    *,
    decay: float,
    revive_below: float,
) -> tuple[list[float], list[Vector], list[Vector]]:
    """New counts, sums and codes after a batch of latents and code indices."""
    new_counts, new_sums = [], []
    for code in range(len(counts)):
        own = [latent for latent, number in zip(latents, numbers, strict=True) if number == code]
        new_counts.append(decay * counts[code] + (1 - decay) * len(own))
        new_sums.append(
            [
                decay * old + (1 - decay) * sum(latent[axis] for latent in own)
                for axis, old in enumerate(sums[code])
            ]
        )
    mean = sum(new_counts) / len(new_counts)
    for code, count in enumerate(new_counts):
        if count == 0 or count < revive_below * mean:
            new_counts[code] = mean
            new_sums[code] = [mean * value for value in candidates[code]]
    codes = [[value / new_counts[code] for value in total] for code, total in enumerate(new_sums)]
    return new_counts, new_sums, codes
