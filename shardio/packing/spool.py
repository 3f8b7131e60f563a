"""The list of samples on disk: what a source yields goes through once and stays out of memory.

In memory a sample is some numbers: where its line starts and a hash of it, its label, whether its
key is its path, and a hash of its key, by which samples with equal keys are found. So two million
samples take some hundred megabytes. The file lies where others may be able to write, so a line
counts only if it has the hash of the one that was written.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from shardio.errors import PackError, quoted, shown
from shardio.packing.names import LIST_NAME, WORK_FOLDER
from shardio.packing.samples import Problem, SourceSample, from_line, to_line
from shardio.storage.folder import Folder

_NO_LABEL = -1
_READ = 1024  # bytes; most lines are shorter
_HASH = 16  # bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spool:
    """Samples in a file of a work folder, a line each; any process reads them by iterating.

    Attributes:
        out: output folder, in which the work folder lies.
        name: name of the file.
        offsets: int64 [n], start of each line.
        hashes: uint8 [n, 16], BLAKE2b of each line.
    """

    out: str
    name: str
    offsets: NDArray[np.int64]
    hashes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.offsets)

    def __iter__(self) -> Iterator[SourceSample]:
        """Read the samples.

        Raises:
            PackError: a line is not what was written.
            OutputError: something else than a file has the name.
            OSError: the file cannot be read.
        """
        with (
            Folder.open(Path(self.out), WORK_FOLDER) as work,
            work.open_file(self.name, buffering=_READ) as stream,
        ):
            for offset, wanted in zip(self.offsets.tolist(), self.hashes, strict=True):
                stream.seek(offset)
                line = stream.readline()
                if _hash_line(line) != wanted.tobytes():
                    raise PackError(
                        f"{work.path / self.name}: the list of samples was changed while it was "
                        f"packed, at byte {offset}; let nobody else write to the output folder, "
                        "and pack again"
                    )
                yield from_line(line)

    def choose(self, numbers: NDArray[np.int64] | NDArray[np.bool_], *, out: str = "") -> Spool:
        """Choose some of the samples.

        Args:
            numbers: their numbers, or a mask of all.
            out: path of the output folder for those who read them; by default the same.
        """
        return Spool(
            out=out or self.out,
            name=self.name,
            offsets=self.offsets[numbers],
            hashes=self.hashes[numbers],
        )


class SpoolWriter:
    """Writes samples to a file as they come.

    Args:
        stream: the file, new.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offsets, self._hashes, self._end = array("q"), bytearray(), 0

    def write(self, sample: SourceSample) -> None:
        """Add a sample."""
        line = to_line(sample)
        self._offsets.append(self._end)
        self._hashes += _hash_line(line)
        self._end += self._stream.write(line)

    def spool(self, work: Folder, name: str) -> Spool:
        """All samples so far.

        Args:
            work: work folder of the file.
            name: name of the file.
        """
        return Spool(
            out=str(work.path.parent),
            name=name,
            offsets=np.frombuffer(self._offsets, np.int64),
            hashes=np.frombuffer(self._hashes, np.uint8).reshape(-1, _HASH),
        )


def _hash_line(line: bytes) -> bytes:
    return blake2b(line, digest_size=_HASH).digest()


class Listing:
    """The samples of a source, in order, and what it had that cannot be packed.

    Args:
        work: work folder, in which the list is made anew.
        found: what a source yields.
        measure: bytes that a sample will take in a shard, if they matter.

    Attributes:
        work: as given.
        problems: in the order in which they were met.
        spool: the samples.
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
        labels, sizes = array("q"), array("q")
        renamed, keys = bytearray(), array("Q")
        with work.create(LIST_NAME) as stream:
            writer = SpoolWriter(stream)
            for sample in found:
                if isinstance(sample, Problem):
                    self.problems.append(sample)
                    continue
                labels.append(_NO_LABEL if sample.label is None else sample.label)
                renamed.append(sample.renamed)
                if measure is not None:
                    sizes.append(measure(sample))
                keys.append(hash_key(sample.key))
                writer.write(sample)
        self.spool = writer.spool(work, LIST_NAME)
        self.labels = np.frombuffer(labels, np.int64)
        self.renamed = np.frombuffer(renamed, np.bool_)
        self.sizes = np.frombuffer(sizes, np.int64) if sizes else np.zeros(len(self), np.int64)
        self._leave_out_equal_keys(np.frombuffer(keys, np.uint64))

    def __len__(self) -> int:
        return len(self.spool)

    def samples(self, numbers: NDArray[np.int64]) -> Iterator[SourceSample]:
        """Samples by number, [n] int64."""
        return iter(self.spool.choose(numbers))

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
        self.spool, self.labels = self.spool.choose(kept), self.labels[kept]
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


def hash_key(key: str) -> int:
    """64 bits, by which keys that may be equal are found."""
    data = key.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
