"""The list of a source's samples, on disk.

A sample crosses from listing to packing as one line of JSON. So a list of millions stays out of
memory, and any process, on any machine that sees the folder, reads the lines of its shard. In
memory a sample is some numbers: where its line starts and a hash of it, its label, whether its key
is its path, and a hash of its key, by which samples with equal keys are found; two million samples
take some hundred megabytes. The file lies where others may be able to write, so a line counts only
if it has the hash of the one that was written.
"""

from __future__ import annotations

import json
import os
from array import array
from binascii import a2b_base64, b2a_base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from shardio.errors import PackError, quoted, shown
from shardio.naming import join_member_name
from shardio.packing.layout import LIST_NAME, WORK_FOLDER
from shardio.packing.sources.base import (
    FromFile,
    FromMemory,
    FromRange,
    Origin,
    Problem,
    Source,
    SourceField,
    SourceSample,
    Stored,
    stored_of,
    text_of,
)
from shardio.storage.folder import Folder
from shardio.tar.header import padded
from shardio.tar.writer import header_size

_encode = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode
_NO_LABEL = -1
_LINE_BYTES = 1024  # bytes; most lines are shorter
_HASH = 16  # bytes


def to_line(sample: SourceSample) -> bytes:
    """Write a sample as one line of JSON, in ASCII."""
    fields = [(name, *_to_json(origin)) for name, origin in sample.fields]
    row = (sample.key, sample.path, sample.label, sample.renamed, fields, sample.place)
    return _encode(row).encode("ascii") + b"\n"


def from_line(line: bytes) -> SourceSample:
    """Read the sample that a line was made of."""
    key, path, label, renamed, fields, place = json.loads(line)
    found = [SourceField(field, _from_json(*origin)) for field, *origin in fields]
    return SourceSample(key, path, tuple(found), label, renamed, place)


def _to_json(origin: Origin) -> tuple[Any, ...]:
    if isinstance(origin, FromMemory):
        return (b2a_base64(origin.data, newline=False).decode("ascii"), None)
    return (text_of(origin.path), *origin[1:])


def _from_json(text: str, *rest: Any) -> Origin:
    if rest == (None,):
        return FromMemory(a2b_base64(text))
    path = text.encode("utf-8", "surrogateescape")
    return FromRange(path, *rest) if rest else FromFile(path)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SampleList:
    """Samples in a file of a work folder, a line each, which any process reads by iterating.

    Attributes:
        out: path of the output folder, in which the work folder lies.
        name: name of the file.
        offsets: start of each line, int64 [n].
        hashes: BLAKE2b of each line, uint8 [n, 16].
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
            work.open_file(self.name, buffering=_LINE_BYTES) as stream,
        ):
            for offset, wanted in zip(self.offsets.tolist(), self.hashes, strict=True):
                stream.seek(offset)
                line = stream.readline()
                if _hash_line(line) != wanted.tobytes():
                    raise PackError(
                        f"the list of samples was changed while it was packed, at byte {offset}",
                        where=work.path / self.name,
                        remedy="let nobody else write to the output folder, and pack again",
                    )
                yield from_line(line)

    def choose(
        self, numbers: NDArray[np.int64] | NDArray[np.bool_], *, out: str = ""
    ) -> SampleList:
        """Choose some of the samples.

        Args:
            numbers: numbers of the samples, or a mask of all.
            out: path of the output folder as readers of the list find it; by default the same.
        """
        return SampleList(
            out=out or self.out,
            name=self.name,
            offsets=self.offsets[numbers],
            hashes=self.hashes[numbers],
        )


class SampleListWriter:
    """Writes a list of samples to a file as they come.

    Args:
        stream: new file.
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

    def finish(self, work: Folder, name: str) -> SampleList:
        """Return the list of what was written.

        Args:
            work: work folder of the file.
            name: name of the file.
        """
        return SampleList(
            out=str(work.path.parent),
            name=name,
            offsets=np.frombuffer(self._offsets, np.int64),
            hashes=np.frombuffer(self._hashes, np.uint8).reshape(-1, _HASH),
        )


def _hash_line(line: bytes) -> bytes:
    return blake2b(line, digest_size=_HASH).digest()


class Listing:
    """The samples of a source, in order, and what it has that cannot be packed.

    Args:
        work: work folder, in which the list is made anew.
        source: source to list.
        sized: whether the sizes of samples matter.

    Attributes:
        work: work folder.
        problems: problems in the order in which they were met.
        samples: the samples.
        labels: label of each sample, -1 for none, int64 [n].
        renamed: whether its key is another than the path without its extension, bool [n].
        sizes: bytes that it takes in a shard, int64 [n]; zeros if they do not matter.
        fields: names of the fields of all samples; None among them for images without a name.
    """

    def __init__(self, work: Folder, source: Source, *, sized: bool) -> None:
        self.work = work
        self.problems: list[Problem] = []
        self._stored = stored_of(source)
        self._paths: dict[bytes, int] = {}
        self._numbers: dict[str, int] = {}
        labels, sizes, files, splits = array("q"), array("q"), array("i"), array("i")
        renamed, keys = bytearray(), array("Q")
        self.fields: set[str | None] = set()
        with work.create(LIST_NAME) as stream:
            writer = SampleListWriter(stream)
            for sample in source.samples():
                if isinstance(sample, Problem):
                    self.problems.append(sample)
                    continue
                labels.append(_NO_LABEL if sample.label is None else sample.label)
                renamed.append(sample.renamed)
                splits.append(self._numbers.setdefault(sample.split, len(self._numbers)))
                if sized:
                    sizes.append(packed_size(sample, source.root))
                if self._stored:
                    files.append(self._file_of(sample))
                keys.append(hash_key(sample.key))
                self.fields.update(name for name, _ in sample.fields)
                writer.write(sample)
        self.samples = writer.finish(work, LIST_NAME)
        self.labels = np.frombuffer(labels, np.int64)
        self.renamed = np.frombuffer(renamed, np.bool_)
        self._splits = np.frombuffer(splits, np.int32)
        self.sizes = np.frombuffer(sizes, np.int64) if sizes else np.zeros(len(self), np.int64)
        self._files = np.frombuffer(files, np.int32) if files else np.full(len(self), -1, np.int32)
        self._leave_out_equal_keys(np.frombuffer(keys, np.uint64))

    def stored(self, numbers: NDArray[np.int64]) -> dict[bytes, Stored]:
        """Return the files of samples that are not read by their paths, by these.

        Args:
            numbers: numbers of the samples.
        """
        if not self._paths:
            return {}
        paths = [*self._paths]
        wanted = [paths[number] for number in np.unique(self._files[numbers]) if number >= 0]
        return {path: self._stored[path] for path in wanted}

    def _file_of(self, sample: SourceSample) -> int:
        """Number the stored file that a sample lies in; -1 for none."""
        for _, origin in sample.fields:
            if isinstance(origin, FromRange) and origin.path in self._stored:
                return self._paths.setdefault(origin.path, len(self._paths))
        return -1

    def __len__(self) -> int:
        return len(self.samples)

    def by_split(self, names: Iterable[str]) -> dict[str, NDArray[np.int64]]:
        """Return the numbers of the samples of each split that the source names."""
        return {name: np.flatnonzero(self._splits == self._numbers.get(name, -1)) for name in names}

    def leave_out(self, problems: Mapping[int, Problem]) -> None:
        """Take samples out.

        Args:
            problems: why, by the numbers of the samples.
        """
        self.problems += [problems[number] for number in sorted(problems)]
        kept = np.ones(len(self), np.bool_)
        kept[[*problems]] = False
        self.keep(kept)

    def keep(self, kept: NDArray[np.bool_]) -> None:
        """Keep some of the samples alone.

        Args:
            kept: whether to keep each, bool [n].
        """
        self.samples, self.labels = self.samples.choose(kept), self.labels[kept]
        self.renamed, self.sizes = self.renamed[kept], self.sizes[kept]
        self._files, self._splits = self._files[kept], self._splits[kept]

    def _leave_out_equal_keys(self, hashes: NDArray[np.uint64]) -> None:
        """Keep the first of the samples with one key."""
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        again = np.flatnonzero(hashes[1:] == hashes[:-1])
        suspects = np.array(sorted({*order[again].tolist(), *order[again + 1].tolist()}), np.int64)
        first: dict[str, SourceSample] = {}
        problems: dict[int, Problem] = {}
        for number, sample in zip(suspects.tolist(), self.samples.choose(suspects), strict=True):
            holder = first.setdefault(sample.key, sample)
            if holder is not sample:
                reason = f"its key would be {quoted(sample.key)}, as that of {shown(holder.path)}"
                if holder.path == sample.path:
                    reason += (
                        ": it comes twice, and all of a sample must be in one row of a table, or "
                        "side by side in one tar"
                    )
                if sample.place:
                    reason += f" (first in {shown(holder.place)})"
                problems[number] = Problem(path=sample.place or sample.path, reason=reason)
        if problems:
            self.leave_out(problems)


def packed_size(sample: SourceSample, root: str) -> int:
    """Count the bytes that a sample takes in a shard, if its data are stored as they are.

    Headers and padding are included. A file that is not there counts as empty: packing tells it.

    Args:
        sample: the sample.
        root: folder that relative paths start from.
    """
    total = 0
    for field, origin in sample.fields:
        if isinstance(origin, FromMemory):
            size = len(origin.data)
        elif isinstance(origin, FromFile):
            try:
                size = os.stat(os.path.join(os.fsencode(root), origin.path)).st_size  # noqa: PTH116, PTH118
            except OSError:
                size = 0
        else:
            size = origin.size
        name = join_member_name(sample.key, field or "jpeg")
        total += header_size(name.encode("utf-8", "surrogateescape")) + padded(size)
    return total


def hash_key(key: str) -> int:
    """Hash a key to 64 bits, by which keys that may be equal are found."""
    data = key.encode("utf-8", "surrogateescape")
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")
