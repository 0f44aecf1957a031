"""The report of loading weights into a model: the use of every weight."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from videomaskfeat.texts import show_text

_INDEX = re.compile(r"\.\d+(?=\.|$)")
_WIDTH = 100  # characters per row


@dataclass(frozen=True)
class LoadReport:
    """The use of every weight, by name.

    Attributes:
        loaded: loaded unchanged.
        resized: position tables interpolated to the model's length.
        new: weights of the model that keep their initial values: missing in the file, or of another shape.
        unused: weights in the file that the model does not have.
        reset: those of ``new`` that have another shape in the file, such as a layer for other classes.
        inflated: made from an image model's stem and positions.
        inflation: "repeated" or "centered": see :func:`~videomaskfeat.models.inflation.inflate_images`; empty
            if nothing was inflated.
        prefix: common prefix of all names in the file, such as "module.", that was removed.
        key: key of the weights in a checkpoint; empty if the file contains only weights.
        beside: keys of other weights in the file.
        format: name of another project's format from which the weights were converted; empty for our names.
        normalization: mean and standard deviation of the pixels of a converted model; None if unknown.
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
    format: str = ""
    normalization: tuple[Any, Any] | None = None

    def __str__(self) -> str:
        counts = [f"{len(self.loaded)} weights loaded"]
        if self.inflated:
            count = f"{len(self.inflated)} inflated from an image model, kernel {self.inflation}"
            counts.append(f"{count} ({list_names(self.inflated)})")
        for kind in ("resized", "new", "unused"):
            names = getattr(self, kind)
            if names:
                counts.append(f"{len(names)} {kind} ({list_names(names)})")
        return ", ".join([*counts, *self._origin()])

    def table(self) -> str:
        """A row per kind of use, with the number and names of weights; numbered names are grouped.

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
            how = (
                f"from an image model: kernel {self.inflation} over the frames, positions repeated over time"
            )
            rows.insert(1, f"inflated {len(self.inflated):5d}  {self._grouped(self.inflated)}, {how}")
        return "\n".join([*rows, *self._origin()])

    def to_dict(self) -> dict[str, list[str]]:
        """Names by kind of use, for JSON."""
        kinds = ("loaded", "resized", "new", "unused", "reset", *["inflated"] * bool(self.inflated))
        origin = {
            "prefix": [self.prefix] * bool(self.prefix),
            "key": [self.key] * bool(self.beside),
            "format": [self.format] * bool(self.format),
        }
        return {kind: list(getattr(self, kind)) for kind in kinds} | {k: v for k, v in origin.items() if v}

    def _origin(self) -> list[str]:
        """Sentences about format, prefix and key, if they are not obvious."""
        sentences = []
        if self.format:
            sentences.append(f"converted from {self.format}")
        if self.prefix:
            sentences.append(f"common prefix {show_text(self.prefix)!r} removed from all names")
        if self.beside:
            others = ", ".join(map(show_text, self.beside))
            sentences.append(
                f"weights read from {show_text(self.key)!r}; the file also contains {others} "
                "(set weights_key to choose)"
            )
        return sentences

    def _grouped(self, names: Iterable[str]) -> str:
        """Groups of names, as many as fit in a row."""
        counts = Counter(_INDEX.sub(".*", name) for name in names)
        reset = {_INDEX.sub(".*", name) for name in self.reset}
        row = ""
        for index, (name, count) in enumerate(counts.items()):
            entry = f"{', ' if row else ''}{name}{f' ({count})' if count > 1 else ''}"
            entry += " (other shape)" if name in reset else ""
            if len(row) + len(entry) > _WIDTH and index:
                left = len(counts) - index
                return f"{row} and {left} more {'groups' if left > 1 else 'group'} of names"
            row += entry
        return row


def list_names(names: Iterable[str], count: int = 3) -> str:
    """The first names, and the number of the others."""
    names = [show_text(name, _WIDTH) for name in names]
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
