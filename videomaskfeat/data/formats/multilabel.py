"""Lists of videos with any number of labels."""

from __future__ import annotations

import re

from videomaskfeat.data.formats.format import ListFormat, ListSource
from videomaskfeat.data.records import Records
from videomaskfeat.errors import UserError
from videomaskfeat.texts import show_text

HEADER = "path labels"
_ROW = re.compile(r'("(?P<quoted>[^"]+)"|(?P<plain>\S.*?))\s+(?P<labels>-1|\d{1,9}(?:,\d{1,9})*)')


class MultiLabel(ListFormat):
    """A header `path labels`, then rows such as `videos/a.mp4 3,17,92`; the labels -1: none of the classes.

    A path with spaces may be in double quotes.
    """

    def detect(self, source: ListSource) -> bool:
        return source.first_row.split() == HEADER.split()

    def read(self, source: ListSource) -> Records:
        if not self.detect(source):
            raise UserError(f"{source.path}: the first row must be `{HEADER}` (format=multilabel)")
        paths, label_sets = list[str](), list[tuple[int, ...]]()
        for number, line in enumerate(source.data.decode("utf-8", "surrogateescape").split("\n"), start=1):
            row = line.strip()
            if not row or (not paths and row.split() == HEADER.split()):
                continue
            match = _ROW.fullmatch(row)
            if match is None:
                raise UserError(
                    f"{source.path}:{number}: {show_text(row)!r} is not `path labels` with labels such as "
                    "3,17,92 (-1: none of the classes)"
                )
            paths.append(match["quoted"] or match["plain"])
            labels = [int(label) for label in match["labels"].split(",")]
            label_sets.append(() if labels == [-1] else tuple(dict.fromkeys(labels)))
        return Records.from_paths(
            paths,
            None,
            source=source.path,
            root=source.root,
            label_sets=None if source.labels == "no" else label_sets,
        )

    def lines(self, source: ListSource) -> tuple[list[str], list[str]]:
        _, lines = super().lines(source)
        return lines[:1], lines[1:]
