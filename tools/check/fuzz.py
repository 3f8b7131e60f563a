"""Do inputs, guided by coverage or random, raise anything but shardio's own errors?

Each target is a function that takes untrusted bytes: members of a tar, the index of a shard, the
manifest of a folder, the records of a TFRecord file, an Example in one, or a field of each kind. A
case starts with valid inputs and changes them 4,000 times. If atheris is installed, its libFuzzer
keeps and changes the inputs that reach new code of shardio. Otherwise the changes are random. Half
of the inputs get valid checksums.

Right: the input is read. Refused: an error of shardio. Wrong: any other exception, a crash, a hang,
or more than 1 GiB of memory; the input is kept.
"""

from __future__ import annotations

import json
import mmap
import re
import struct
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

try:
    import atheris
except ImportError:
    atheris = None

watched: AbstractContextManager[object] = nullcontext()
if atheris is not None:
    watched = atheris.instrument_imports(include=["shardio"])
with watched:
    import campaign
    import children
    import headers
    import images
    import shardio
    from oracles import read_with_shardio
    from shardio.fields.defaults import decode_field
    from shardio.fields.formats import IMAGE_FIELDS, probe_image
    from shardio.fields.geometry import Crop
    from shardio.fields.image import Scratch, decode_part, write_part
    from shardio.indexing.manifest import MANIFEST_NAME, read_manifest
    from shardio.indexing.shard_index import read_index
    from shardio.packing.sources.records import (
        encode_example,
        frame_record,
        parse_example,
        scan_records,
    )
    from shardio.testing import make_images, make_shard

ROUNDS = 60  # of each target
TIMES = 4_000
LONGEST = 1 << 16  # bytes of an input
MEMORY = 1024 * campaign.MIB
BLOCK = 512
CHECKSUM = re.compile(rb'"crc32": ?"([^"]{8})"')


@dataclass(frozen=True)
class Target:
    """Reader of untrusted bytes.

    Attributes:
        seeds: valid inputs.
        read: function that reads an input and may use a folder.
        mend: function that gives an input valid checksums.
    """

    seeds: list[bytes]
    read: Callable[[bytes, Path], object]
    mend: Callable[[bytes], bytes] = bytes


@dataclass
class Outcome:
    """Results of the inputs of a case: counts, and one input for each kind of wrong result."""

    right: int
    refused: Counter[str]
    wrong: dict[str, tuple[str, bytes]]


class Hunt:
    """Series of inputs for a target in a child process.

    Args:
        target: target of the attack.
        folder: empty folder.
        last: memory shared with the parent, for the current input.
    """

    def __init__(self, target: Target, folder: Path, last: mmap.mmap) -> None:
        self._target, self._folder, self._last = target, folder, last
        self._outcome = Outcome(0, Counter(), {})
        self._left = TIMES

    def attack(self, data: bytes) -> None:
        """Try one input."""
        if zlib.crc32(data) & 1:
            data = self._target.mend(data)
        write_last(self._last, data)
        self._left -= 1
        try:
            self._target.read(data, self._folder)
            self._outcome.right += 1
        except shardio.ShardioError as error:
            self._outcome.refused[type(error).__name__] += 1
        except Exception as error:
            self._outcome.wrong.setdefault(f"raises {type(error).__name__}", (str(error), data))

    def at_random(self, random: Random) -> Outcome:
        """Change valid inputs, each by itself."""
        seeds = self._target.seeds
        while self._left:
            self.attack(images.mutate(random, random.choice(seeds), random.choice(seeds)))
        return self._outcome

    def guided(self, random: Random) -> Outcome:
        """Let libFuzzer choose; it ends the process."""
        corpus = self._folder / "corpus"
        corpus.mkdir()
        for number, seed in enumerate(self._target.seeds):
            (corpus / str(number)).write_bytes(seed)
        options = [f"-seed={random.randrange(1, 1 << 31)}", f"-max_len={LONGEST}", "-verbosity=0"]
        options += ["-rss_limit_mb=0", "-handle_segv=0", "-handle_abrt=0", "-handle_bus=0"]
        atheris.Setup(["fuzz", *options, str(corpus)], self._attack_and_end)
        atheris.Fuzz()
        raise AssertionError("libFuzzer returned")

    def _attack_and_end(self, data: bytes) -> None:
        self.attack(data)
        if not self._left:
            children.end(self._outcome)


def hunt(target: Target, trial: campaign.Trial) -> None:
    with mmap.mmap(-1, 8 + 2 * LONGEST) as last:
        work = Hunt(target, trial.folder, last)
        way = work.at_random if atheris is None else work.guided
        ended = children.in_child(partial(way, trial.random), memory=MEMORY)
        try:
            ended.check()
        except campaign.Wrong as wrong:
            kept = campaign.keep(read_last(last))
            raise campaign.Wrong(wrong.kind, f"kept at {kept}: {wrong.detail}") from None
    if ended.error:
        raise campaign.Wrong(f"raises {ended.error}", ended.message)
    outcome: Outcome = ended.value
    if outcome.right:
        trial.right("read", outcome.right)
    for reason, times in outcome.refused.items():
        trial.refused(reason, times)
    for kind, (message, data) in outcome.wrong.items():
        trial.wrong(kind, f"kept at {campaign.keep(data)}: {message}")


def write_last(last: mmap.mmap, data: bytes) -> None:
    last[:8] = struct.pack("<Q", len(data))
    last[8 : 8 + len(data)] = data


def read_last(last: mmap.mmap) -> bytes:
    return last[8 : 8 + struct.unpack("<Q", last[:8])[0]]


def with_tar_checksums(data: bytes) -> bytes:
    """Return an archive with valid checksums in its headers, which are found by their sizes."""
    changed, at = bytearray(data), 0
    while at + BLOCK <= len(changed):
        block = bytearray(changed[at : at + BLOCK])
        if any(block):
            changed[at : at + BLOCK] = headers.with_checksum(block, 0)
        size = re.match(rb"[0-7]{1,11}", block[124:136])
        at += BLOCK + (int(size[0], 8) + BLOCK - 1) // BLOCK * BLOCK if size else BLOCK
    return bytes(changed)


def with_index_checksum(data: bytes) -> bytes:
    """Return an index with a valid checksum."""
    found = CHECKSUM.search(data)
    if found is None:
        return data
    zeroed = data.replace(found[1], b"0" * 8, 1)
    return data.replace(found[1], b"%08x" % zlib.crc32(zeroed), 1)


def read_members(data: bytes, _: Path) -> None:
    read_with_shardio(data)


def write_anew(path: Path, data: bytes) -> Path:
    """Write a new file; some file systems would sync an overwritten one to disk."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def read_keys(data: bytes, folder: Path) -> None:
    index = read_index(write_anew(folder / "shard.idx", data))
    for number in range(len(index)):
        index.key(number)
        index.members(number)
    index.walk()


def read_shards(data: bytes, folder: Path) -> None:
    write_anew(folder / MANIFEST_NAME, data)
    read_manifest(folder)


def read_records(data: bytes, _: Path) -> None:
    for record in scan_records(data, name="records"):
        if record.sound:
            parse_example(record.data, 0, len(record.data))


def read_example(data: bytes, _: Path) -> None:
    parse_example(data, 0, len(data))


def read_field(field: str, data: bytes, _: Path) -> None:
    decode_field(field, data)


def read_crop(data: bytes, _: Path) -> None:
    """Decode the lower right of an image, as for a crop."""
    info = probe_image(data)
    top, left = info.height // 2, info.width // 2
    crop = Crop(top, left, info.height - top, info.width - left)
    scratch, out = Scratch(), np.empty((16, 16, 3), np.uint8)
    part = decode_part(data, info, crop, (16, 16), scratch=scratch, reduced=True, verified=False)
    write_part(part, info, crop, out)


def frame(data: bytes) -> bytes:
    return b"".join(bytes(piece) for piece in frame_record([data]))


def example() -> bytes:
    features: dict[str, Any] = {
        "image": [b"abc", b""],
        "floats": np.array([1, 2.5], np.float32),
        "few": np.array([3, -1, 1 << 40]),
        "many": np.arange(40),
    }
    return b"".join(bytes(piece) for piece in encode_example(features))


def fields() -> dict[str, list[bytes]]:
    """Return valid bytes by the name of a field."""
    arrays = [np.arange(6, dtype=np.float32).reshape(2, 3), np.zeros((2, 2, 3), np.uint8)]
    arrays += [
        np.array(b"abc"),
        np.zeros(2, [("a", "<i4"), ("b", "u1", 2)]),
        np.ones((3, 2), order="F"),
    ]
    packed = []
    for array in arrays:
        with tempfile.TemporaryFile() as stream:
            np.save(stream, np.asarray(array))
            stream.seek(0)
            packed.append(stream.read())
    pictures = images.made_pictures()
    found = {
        "cls": [b"12", b" -9223372036854775808\n"],
        "txt": ["aäé\U0001f600".encode(), b"plain text\n"],
        "json": [b'{"a": [1, -2.5e3, null, true], "b\\u00e4": "c"}', b"[[[[]]]]", b"NaN"],
        "npy": packed,
        "rgb.npy": packed,
        "bin": [b"any"],
    }
    for field, form in {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP"}.items():
        found[field] = [data for name, data in pictures.items() if form in name]
    return found


def targets(folder: Path) -> dict[str, Target]:
    source = make_images(folder / "images", classes=2, per_class=3)
    shardio.pack(source, folder / "packed", shards=1, jobs=1)
    manifest = (folder / "packed" / MANIFEST_NAME).read_bytes()
    document = json.loads(manifest)
    del document["shardio"]["crc32"]
    made = {f"{n}": {f"v1.{n}.txt": b"", "txt": b""} for n in range(600)}
    (folder / "rare").mkdir()
    shardio.index(make_shard(folder / "rare" / "a.tar", made))
    indexes = [path.read_bytes() for path in folder.glob("*/index/*")]
    record = frame(example())
    found = {
        "tar": Target([*headers.made().values()], read_members, with_tar_checksums),
        "index": Target(indexes, read_keys, with_index_checksum),
        "manifest": Target([manifest, json.dumps(document).encode()], read_shards),
        "records": Target([record, record * 2], read_records),
        "framed example": Target([example()], read_records, frame),
        "example": Target([example()], read_example),
    }
    pictures: list[bytes] = []
    for field, seeds in fields().items():
        mend = images.with_png_checksums if field == "png" else bytes
        found[f"field {field}"] = Target(seeds, partial(read_field, field), mend)
        pictures += seeds if field in IMAGE_FIELDS else []
    found["field cropped"] = Target(pictures, read_crop, images.with_png_checksums)
    return found


def cases(folder: Path) -> list[campaign.Case]:
    return [
        campaign.Case(f"{name} {number}", partial(hunt, target))
        for name, target in targets(folder).items()
        for number in range(ROUNDS)
    ]


if __name__ == "__main__":
    campaign.main(__doc__, cases)
