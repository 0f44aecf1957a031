"""Indexes of packed data sets."""

from __future__ import annotations

import os

from videomaskfeat.data.formats.format import ListFormat, ListSource
from videomaskfeat.data.records import Records
from videomaskfeat.data.shards import FORMAT, PackedVideo, check_shards, parse_index
from videomaskfeat.errors import UserError
from videomaskfeat.texts import parse_json


class Shards(ListFormat):
    """The ``index.json`` of `pack`; the shards are next to it, in a folder or at a URL."""

    def detect(self, source: ListSource) -> bool:
        return source.path.endswith(".json") and FORMAT.encode() in source.data[:100]

    def read(self, source: ListSource) -> Records:
        content = parse_json(source.data, source.path, remedy="write it again with `videomaskfeat pack`")
        shards, class_names = parse_index(content, source.path)
        check_shards(source.root, shards, source.path)
        paths = [
            PackedVideo(shard.name, offset, size, name).path
            for shard in shards
            for name, offset, size in zip(shard.names, shard.offsets, shard.sizes, strict=True)
        ]
        root = source.root
        if "://" in root:  # records keep URLs as they are
            paths, root = [f"{root}/{path}" for path in paths], ""
        columns = [shard.labels for shard in shards if shard.labels is not None]
        values = [value for column in columns for value in column]
        if source.labels == "yes" and not values:
            raise UserError(f"{source.path} has no labels, but labels=yes; pack a list with labels")
        several = bool(values) and isinstance(values[0], list)
        if source.labels == "no" or not values:
            values, several = [], False
        return Records.from_paths(
            paths,
            None if several or not values else [-1 if value is None else value for value in values],
            source=source.path,
            root=root,
            class_names=class_names,
            label_sets=values if several else None,
        )

    def clean(self, source: ListSource, records: Records, rows: object, target: str) -> str:
        raise UserError(
            f"{os.fspath(target)}: rows of an index cannot be removed; clean the list, and pack it again"
        )
