"""What the report of a run says where the run trains a tokenizer of frames."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from videomaskfeat.viz import page

TOKEN_CHARTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    (
        "Reconstruction, mean squared error",
        {"reconstruction": "training", "evaluation/reconstruction": "held out"},
    ),
    (
        "Perplexity of the codes",
        {"perplexity": "a training batch", "evaluation/perplexity": "held out"},
    ),
    ("Codes in use", {"used_codes": "a training batch", "evaluation/used_codes": "held out"}),
    ("Perceptual distance", {"perceptual": "training"}),
    ("Temperature of the draws", {"temperature": "temperature"}),
    ("KL divergence to uniform codes, nats", {"kl": "training"}),
    ("Distance of the latents to their codes", {"commitment": "training"}),
)
"""Title -> metric -> its name in the chart; one whose metrics were not recorded is left out."""


def token_verdict(summary: Mapping[str, Any]) -> str:
    """Reconstruction against one colour and the untrained tokenizer, and the codes in use, as HTML."""
    names = {
        "heldout_trained": "This tokenizer",
        "heldout_constant": "Best one colour",
        "heldout_untrained": "Untrained tokenizer",
    }
    errors = {key: summary[key] for key in names if _is_number(summary.get(key))}
    if not errors:
        return f"<p>{page.NOT_RECORDED}</p>"
    most = max(errors.values()) or 1.0
    cards = [
        page.card(
            names[key],
            f"{error:.4f}",
            share=error / most,
            best=key == "heldout_trained" and error == min(errors.values()),
        )
        for key, error in errors.items()
    ]
    vocabulary: Any = summary.get("vocabulary")
    used: Any = summary.get("heldout_used_codes")
    perplexity: Any = summary.get("heldout_perplexity")
    if all(map(_is_number, (vocabulary, used, perplexity))):
        cards.append(page.card("Codes in use", f"{used} of {vocabulary}", share=used / vocabulary))
        cards.append(page.card("Perplexity", f"{perplexity:.1f}", "codes that would say as much, used alike"))
    frames = summary.get("heldout_frames")
    on = f" of {frames} frames that it never saw" if frames else ""
    return page.cards(cards) + (
        f"<p>Mean squared error of the normalised pixels{on}, decoded from nothing but their tokens.</p>"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
