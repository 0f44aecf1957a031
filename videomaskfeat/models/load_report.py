"""What became of the weights of a file, by name and as a short table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from videomaskfeat.texts import show_text

_INDEX = re.compile(r"\.\d+(?=\.|$)")
_WIDTH = 100  # characters of a row


@dataclass(frozen=True)
class LoadReport:
    """What became of every weight, by name.

    Attributes:
        loaded: taken as they were.
        resized: position tables that were interpolated to the model's length.
        new: the model's own initial values stay: the file lacks them, or has them in another shape.
        unused: weights in the file that the model does not have.
        reset: those of ``new`` that the file has in another shape, such as the layer for other classes.
        inflated: made of an image model's: the stem's kernel, and positions repeated over time.
        inflation: how that kernel was made, "repeated" or "centred"; empty where nothing was inflated.
        prefix: what all names in the file begin with and the model's do not, such as "module."; removed.
        key: where in a checkpoint the weights stand; empty if the file holds nothing else.
        beside: keys of other weights in it, which were not taken.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    reset: tuple[str, ...] = ()
    inflated: tuple[str, ...] = ()
    inflation: str = ""
    prefix: str = ""
    key: str = ""
    beside: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} weights loaded"]
        if self.inflated:
            what = f"{len(self.inflated)} inflated from images, the kernel {self.inflation}"
            parts.append(f"{what} ({some(self.inflated)})")
        for kind in ("resized", "new", "unused"):
            names = getattr(self, kind)
            if names:
                parts.append(f"{len(names)} {kind} ({some(names)})")
        return ", ".join([*parts, *self._origin()])

    def table(self) -> str:
        """A row a kind: how many weights, and which, the members of lists together.

        ::

            loaded     395  blocks.*.attn.norm_k.bias (16), blocks.*.attn.norm_k.weight (16) and 27 kinds more
            resized      2  blocks.*.attn.rel_pos_h, blocks.*.attn.rel_pos_w
            new          4  head.projection.weight (other shape), norm.bias, norm.weight ...
            unused       0
        """
        rows = []
        for kind in ("loaded", "resized", "new", "unused"):
            names = getattr(self, kind)
            rows.append(f"{kind:8s} {len(names):5d}  {self._grouped(names)}".rstrip())
        if self.inflated:
            how = f"from images: the kernel {self.inflation} over the frames, positions repeated over time"
            rows.insert(1, f"inflated {len(self.inflated):5d}  {self._grouped(self.inflated)}, {how}")
        return "\n".join([*rows, *self._origin()])

    def to_dict(self) -> dict[str, list[str]]:
        """Kind -> names, for JSON."""
        kinds = ("loaded", "resized", "new", "unused", "reset", *["inflated"] * bool(self.inflated))
        origin = {"prefix": [self.prefix] * bool(self.prefix), "key": [self.key] * bool(self.beside)}
        return {kind: list(getattr(self, kind)) for kind in kinds} | {k: v for k, v in origin.items() if v}

    def _origin(self) -> list[str]:
        """Sentences on what was taken from the file, unless that goes without saying."""
        sentences = []
        if self.prefix:
            sentences.append(f"names taken without the prefix {show_text(self.prefix)!r} that all share")
        if self.beside:
            others = ", ".join(map(show_text, self.beside))
            sentences.append(
                f"weights taken from {show_text(self.key)!r}; the file also holds {others} "
                "(weights_key chooses)"
            )
        return sentences

    def _grouped(self, names: Iterable[str]) -> str:
        """The kinds of names, as many as fit a row."""
        counts = Counter(_INDEX.sub(".*", name) for name in names)
        reset = {_INDEX.sub(".*", name) for name in self.reset}
        row = ""
        for place, (name, count) in enumerate(counts.items()):
            entry = f"{', ' if row else ''}{name}{f' ({count})' if count > 1 else ''}"
            entry += " (other shape)" if name in reset else ""
            if len(row) + len(entry) > _WIDTH and place:
                left = len(counts) - place
                return f"{row} and {left} {'kinds' if left > 1 else 'kind'} more"
            row += entry
        return row


def some(names: Iterable[str], count: int = 3) -> str:
    """The first names, and how many more there are."""
    names = [show_text(name, _WIDTH) for name in names]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
