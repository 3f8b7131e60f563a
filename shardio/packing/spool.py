"""The list of samples on disk: what a source yields goes through once and stays out of memory.

In memory a sample is some numbers: where its line starts, its label, whether its key is its path,
and a hash of its key, by which samples with equal keys are found. So two million samples take
some sixty megabytes.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from shardio.errors import quoted, shown
from shardio.packing.names import LIST_NAME
from shardio.packing.samples import Problem, SourceSample, from_line, to_line
from shardio.storage.folder import Folder

_NO_LABEL = -1
_READ = 1024  # bytes; most lines are shorter


class Listing:
    """The samples of a source, in order, and what it had that cannot be packed.

    Args:
        work: work folder, in which the list is made anew.
        found: what a source yields.
        measure: bytes that a sample will take in a shard, if they matter.

    Attributes:
        work: as given.
        problems: in the order in which they were met.
        offsets: int64 [n], where each sample's line starts.
        labels: int64 [n], -1 for samples without one.
        renamed: bool [n], the key is not simply the path without its extension.
        sizes: int64 [n], what `measure` said; zeros without it.
    """

    def __init__(
        self,
        work: Folder,
        found: Iterable[SourceSample | Problem],
        measure: Callable[[SourceSample], int] | None = None,
    ) -> None:
        self.work = work
        self.problems: list[Problem] = []
        offsets, labels, sizes = array("q"), array("q"), array("q")
        renamed, keys, end = bytearray(), array("Q"), 0
        with work.create(LIST_NAME) as stream:
            for sample in found:
                if isinstance(sample, Problem):
                    self.problems.append(sample)
                    continue
                offsets.append(end)
                labels.append(_NO_LABEL if sample.label is None else sample.label)
                renamed.append(sample.renamed)
                if measure is not None:
                    sizes.append(measure(sample))
                keys.append(hash_key(sample.key))
                end += stream.write(to_line(sample))
        self.offsets = np.frombuffer(offsets, np.int64)
        self.labels = np.frombuffer(labels, np.int64)
        self.renamed = np.frombuffer(renamed, np.bool_)
        self.sizes = np.frombuffer(sizes, np.int64) if sizes else np.zeros(len(self), np.int64)
        self._leave_out_equal_keys(np.frombuffer(keys, np.uint64))

    def __len__(self) -> int:
        return len(self.offsets)

    def samples(self, numbers: NDArray[np.int64]) -> Iterator[SourceSample]:
        """Samples by number, [n] int64."""
        return map(from_line, read_lines(self.work.path / LIST_NAME, self.offsets[numbers]))

    def leave_out(self, problems: Mapping[int, Problem]) -> None:
        """Take samples out, because of problems by their numbers."""
        self.problems += [problems[number] for number in sorted(problems)]
        kept = np.ones(len(self), np.bool_)
        kept[[*problems]] = False
        self.keep(kept)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Keep some of the samples alone.

        Args:
            kept: bool [n], which.
        """
        self.offsets, self.labels = self.offsets[kept], self.labels[kept]
        self.renamed, self.sizes = self.renamed[kept], self.sizes[kept]

    def _leave_out_equal_keys(self, hashes: NDArray[np.uint64]) -> None:
        """Keep the first of the samples with one key."""
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        again = np.flatnonzero(hashes[1:] == hashes[:-1])
        suspects = np.array(sorted({*order[again].tolist(), *order[again + 1].tolist()}), np.int64)
        first: dict[str, SourceSample] = {}
        problems: dict[int, Problem] = {}
        for number, sample in zip(suspects.tolist(), self.samples(suspects), strict=True):
            holder = first.setdefault(sample.key, sample)
            if holder is not sample:
                reason = f"its key would be {quoted(sample.key)}, as that of {shown(holder.name)}"
                if holder.name == sample.name:
                    reason += (
                        ": it comes twice, and all of a sample must be in one row of a table, or "
                        "side by side in one tar"
                    )
                problems[number] = Problem(path=sample.name, reason=reason)
        if problems:
            self.leave_out(problems)


def read_lines(path: Path, offsets: NDArray[np.int64]) -> Iterator[bytes]:
    """Lines of a list of samples.

    Args:
        path: of the list.
        offsets: int64 [n], where each line starts.
    """
    with path.open("rb", buffering=_READ) as stream:
        for offset in offsets.tolist():
            stream.seek(offset)
            yield stream.readline()


def hash_key(key: str) -> int:
    """64 bits, by which keys that may be equal are found."""
    data = key.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
