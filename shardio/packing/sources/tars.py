"""Tars that exist already: packed folders, WebDataset's shards, img2dataset's output.

Their members are taken as they are, in their order; an index says where they lie, one that is
there or one that a header scan makes. Where it has checksums, what is read is held against them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass

from shardio.codecs.basic import decode_cls
from shardio.errors import CodecError
from shardio.index.catalog import Catalog, ShardEntry
from shardio.packing.samples import FromRange, Problem, SourceField, SourceSample

_LABEL = "cls"


@dataclass(frozen=True, slots=True, kw_only=True)
class Tars:
    """The samples of existing shards.

    Attributes:
        catalog: of the shards.
        with_labels: read the class number of each sample while listing, to split by it.
    """

    catalog: Catalog
    with_labels: bool = False

    @property
    def root(self) -> str:
        """Where relative paths would start; those of shards are absolute."""
        return "/"

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes by label, where a manifest has them."""
        return self.catalog.classes

    def samples(self) -> Iterator[SourceSample | Problem]:
        """All samples, shard by shard.

        Raises:
            IndexFileError: an index is stale or damaged.
            OSError: a shard cannot be read.
        """
        for entry in self.catalog.shards:
            yield from self._of_shard(entry)

    def _of_shard(self, entry: ShardEntry) -> Iterator[SourceSample]:
        index, path = entry.load_index(), os.fsencode(os.path.abspath(entry.path))  # noqa: PTH100
        for number in range(len(index)):
            offsets, sizes = index.offsets[number].tolist(), index.sizes[number].tolist()
            sums = [None] * len(sizes)
            if index.checksums is not None:
                sums = index.checksums[number].tolist()
            places = sorted(
                (offset, size, checksum, name)
                for name, offset, size, checksum in zip(
                    index.fields, offsets, sizes, sums, strict=True
                )
                if offset >= 0
            )
            fields = {name: FromRange(path, *place) for *place, name in places}
            key = index.key(number)
            yield SourceSample(
                key=key,
                name=f"{entry.name}: {key}",
                fields=tuple(SourceField(*field) for field in fields.items()),
                label=_read_label(fields.get(_LABEL)) if self.with_labels else None,
            )


def _read_label(origin: FromRange | None) -> int | None:
    """A class number; None where there is none, so that the sample has no class to split by."""
    if origin is None:
        return None
    with open(origin.path, "rb") as shard:  # noqa: PTH123  bytes
        data = os.pread(shard.fileno(), origin.size, origin.offset)
    with suppress(CodecError):
        return decode_cls(data)
    return None
