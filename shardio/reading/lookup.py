"""What the indexes say of the samples of several batches, looked up when the first is filled.

NumPy's calls cost about the same for one batch as for many. Where the joint look-up fails, as a
shard of one batch is at fault, each batch is looked up alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from shardio.planning.epoch import References
from shardio.processes import new_lock
from shardio.reading.geometry import Known, SampleGeometry
from shardio.reading.shards import Entries, ShardPool
from shardio.reading.tables import SampleTables, ViewTable, make_tables

_MOST_SHARDS = 64  # of what is looked up at once: their files stay open while a batch is filled
_SEVERAL = 16  # samples whose crops are chosen at once; fewer are faster one by one
_LEAST_SAMPLES = 4  # of a batch for which the core is worth calling


class Lookup(NamedTuple):
    """What the indexes say of samples.

    Attributes:
        known: sizes and crops of their pictures, as far as they are known.
        tables: their tables for the core; None without it, or where it cannot take them.
    """

    known: Sequence[Known] = ()
    tables: SampleTables | None = None

    def part(self, slots: slice) -> Lookup:
        """Return what is said of some of the samples."""
        known = [each.part(slots) for each in self.known]
        is_for_core = self.tables is not None and slots.stop - slots.start >= _LEAST_SAMPLES
        return Lookup(known, self.tables.part(slots) if self.tables and is_for_core else None)


class Finder:
    """Looks up samples in the indexes of their shards.

    Args:
        pool: shards of the dataset.
        geometry: chooser of the views of a sample.
        entries: alternatives of each entry.
        strict: entries of which a sample must not have more than one alternative.
        for_core: whether to make tables for the native core.
        reduced: let large JPEGs be decoded at a part of their size.
    """

    def __init__(
        self,
        pool: ShardPool,
        geometry: SampleGeometry,
        entries: Entries,
        *,
        strict: Collection[int],
        for_core: bool,
        reduced: bool,
    ) -> None:
        self._pool, self._geometry = pool, geometry
        self._entries, self._strict = entries, strict
        self._for_core, self._reduced = for_core, reduced

    def find(
        self, references: References, uniforms: NDArray[np.float64], *, is_batch: bool = True
    ) -> Lookup | None:
        """Look samples up.

        Args:
            references: samples.
            uniforms: their random numbers, float64 [B, draws].
            is_batch: whether they are one batch; of several a fault gives None.

        Returns:
            What is found; None if they are of several batches and each must be looked up alone.

        Raises:
            IndexFileError, TarError, OSError: an index cannot be opened.
        """
        least = _LEAST_SAMPLES if self._for_core else _SEVERAL
        if len(references) < least or not (self._for_core or self._geometry.knows_sizes):
            return Lookup()
        numbers = {*references.shards.tolist()}
        if len(numbers) > _MOST_SHARDS:
            return Lookup() if is_batch else None
        shards = self._pool.indexed(numbers, room=2 if is_batch else 4)
        if len(shards) < len(numbers):
            if not is_batch:
                return None
            if self._for_core:
                shards = {
                    number: self._pool.get(number, only="index") for number in sorted(numbers)
                }
        known = self._geometry.know(shards, references, uniforms)
        if not self._for_core:
            return Lookup(known)
        views = ViewTable(known, uniforms, self._geometry, reduced=self._reduced)
        tables = make_tables(self._pool, shards, references, views, self._entries, self._strict)
        if tables is None and not is_batch:
            return None  # the shards of each batch may be alike
        return Lookup(known, tables)


class Lookups:
    """Looks up the samples of consecutive batches together, once.

    Args:
        finder: finder of the dataset's samples.
        references: samples.
        uniforms: their random numbers, float64 [N, draws].

    Attributes:
        references: samples.
        uniforms: their random numbers, float64 [N, draws].
    """

    def __init__(
        self, finder: Finder, references: References, uniforms: NDArray[np.float64]
    ) -> None:
        self._finder, self.references, self.uniforms = finder, references, uniforms
        self._lock = new_lock()
        self._is_tried = False
        self._all: Lookup | None = None

    def of(self, slots: slice) -> Lookup:
        """Look some of the samples up, a batch.

        Raises:
            IndexFileError, TarError, OSError: an index cannot be opened.
        """
        with self._lock:
            if not self._is_tried and slots != slice(0, len(self.references)):
                with suppress(Exception):  # whatever it is, it is raised again with its batch
                    self._all = self._finder.find(self.references, self.uniforms, is_batch=False)
            self._is_tried = True
        if self._all is not None:
            return self._all.part(slots)
        found = self._finder.find(self.references.part(slots), self.uniforms[slots])
        return found or Lookup()
