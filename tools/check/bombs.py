"""Can a small input cost much time or memory?

Images, archives, patterns and documents announce far more than they contain, or unpack to far more.

Each is read in a child. Right: it is read, or refused with an error of shardio, and the costs are
limited: at most 256 MiB of memory above the start, at most 8 times the CPU time of decoding a valid
JPEG of 16 megapixels, measured at the time, and at most 1.25 GiB in the cache. Wrong: higher costs,
a MemoryError, a crash or a hang. The ideas are those of 42.zip, Pillow's decompression bombs,
libjpeg-turbo's advice on scans (2014), and the billion laughs.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import struct
import tarfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import lz4.frame
import numpy as np
import zstandard

import campaign
import children
import shardio
from shardio.testing import make_images, make_shard

MOST_MEMORY = 256 * campaign.MIB
MOST_UNITS = 8.0
MOST_COMPRESSED_UNITS = 40.0  # a copy of a GiB is made of any file
MOST_DISK = 1280 * campaign.MIB
HUGE = 13_377  # pixels of a side, just within Pillow's limit

Make = Callable[[], bytes]
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "lz4": lz4.frame.compress,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


def chunk(kind: bytes, data: bytes) -> bytes:
    checked = kind + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def zeros(size: int) -> bytes:
    """Return a zlib stream of some MiB of zeros, in which one MiB is repeated."""
    packer = zlib.compressobj(9, wbits=-15)
    piece = packer.compress(bytes(campaign.MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = zlib.compressobj(9, wbits=-15).flush()
    sums = (size * campaign.MIB % 65521) << 16 | 1
    return b"\x78\xda" + piece * size + end + struct.pack(">I", sums)


def png(width: int, height: int, pixels: bytes, *, bits: int = 8, extra: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def empty_png() -> bytes:
    rows = zlib.compress(bytes((HUGE // 8 + 2) * HUGE), 9)
    return png(HUGE, HUGE, rows, bits=1)


def bmp() -> bytes:
    """Return a run-length coded BMP whose data end at once."""
    start = 54 + 1024
    header = struct.pack("<2sIHHI", b"BM", start + 2, 0, 0, start)
    header += struct.pack("<IiiHHIIiiII", 40, HUGE, HUGE, 1, 8, 1, 2, 0, 0, 256, 0)
    return header + bytes(1024) + b"\0\1"


def jpeg(side: int, *, progressive: bool = False, scans: int = 0) -> bytes:
    """Return a gray JPEG whose header announces a side, with its last scan repeated."""
    flags = [cv2.IMWRITE_JPEG_PROGRESSIVE, int(progressive)]
    data = cv2.imencode(".jpg", np.full((64, 64), 99, np.uint8), flags)[1].tobytes()
    frame = data.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    data = data[: frame + 5] + struct.pack(">HH", side, side) + data[frame + 9 :]
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * scans + b"\xff\xd9"


def sound_jpeg() -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), np.uint8)
    photo = cv2.resize(noise, (4096, 4096), interpolation=cv2.INTER_CUBIC)
    return cv2.imencode(".jpg", photo)[1].tobytes()


def webp() -> bytes:
    """Return a lossless WebP of one colour, whose pixels take no bits, with large sides."""
    flat = np.full((16, 16, 3), 77, np.uint8)
    data = bytearray(cv2.imencode(".webp", flat, [cv2.IMWRITE_WEBP_QUALITY, 101])[1].tobytes())
    at = data.index(b"VP8L") + 9
    word = int.from_bytes(data[at : at + 4], "little") & ~((1 << 28) - 1)
    side = HUGE - 1
    data[at : at + 4] = (word | side << 14 | side).to_bytes(4, "little")
    return bytes(data)


def npy(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin1")
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(text) & 0xFFFF) + text + data


def shaped(shape: str, descr: str = "'<u1'") -> bytes:
    return npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n")


FIELDS: dict[str, tuple[str, Make]] = {
    "PNG of 179 megapixels": ("png", empty_png),
    "PNG of 300 MB for 8 x 8": ("png", lambda: png(8, 8, zeros(300))),
    "PNG with 300 MB of text": (
        "png",
        lambda: png(8, 8, zlib.compress(bytes(72)), extra=chunk(b"zTXt", b"a\0\0" + zeros(300))),
    ),
    "PNG with a profile of 300 MB": (
        "png",
        lambda: png(8, 8, zlib.compress(bytes(72)), extra=chunk(b"iCCP", b"a\0\0" + zeros(300))),
    ),
    "PNG of 90,000 chunks": (
        "png",
        lambda: png(8, 8, zlib.compress(bytes(72)), extra=chunk(b"tEXt", b"a\0b") * 90_000),
    ),
    "BMP of 179 megapixels": ("bmp", bmp),
    "JPEG of 179 megapixels": ("jpg", lambda: jpeg(HUGE)),
    "JPEG of 4,294 megapixels": ("jpg", lambda: jpeg(65_500)),
    "JPEG of 90 scans, 100 megapixels": (
        "jpg",
        lambda: jpeg(10_000, progressive=True, scans=90),
    ),
    "JPEG of 90 scans, 16 megapixels": ("jpg", lambda: jpeg(4_000, progressive=True, scans=90)),
    "JPEG of 5,000 scans": ("jpg", lambda: jpeg(500, progressive=True, scans=5_000)),
    "JPEG of 100,000 comments": (
        "jpg",
        lambda: jpeg(64)[:2] + b"\xff\xfe\0\2" * 100_000 + jpeg(64)[2:],
    ),
    "WebP of 179 megapixels": ("webp", webp),
    "npy of an exabyte": ("npy", lambda: shaped("(1152921504606846976,)")),
    "npy of no items": ("npy", lambda: shaped("(0, 9223372036854775807, 9)")),
    "npy of a true side": ("npy", lambda: shaped("(True,)", "'<u1'") + b"1"),
    "npy of 3,000 sides": ("npy", lambda: shaped("(" + "1," * 3_000 + ")") + b"1"),
    "npy of wide items": ("npy", lambda: shaped("(0,)", "'V2147483647'")),
    "npy of nested brackets": ("npy", lambda: npy("(" * 9_000 + ")" * 9_000)),
    "npy of a long power": ("npy", lambda: shaped("(9**9**9,)")),
    "JSON of 10 million brackets": ("json", lambda: b"[" * 10_000_000),
    "JSON of a long number": ("json", lambda: b"1" * 10_000_000),
    "JSON of 100,000 objects": ("json", lambda: b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "class of 10 million digits": ("cls", lambda: b"1" * 10_000_000),
}


def tar_of(*parts: bytes) -> bytes:
    return b"".join(part + bytes(-len(part) % 512) for part in parts) + bytes(1024)


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def records(number: int) -> bytes:
    """Return an archive with a PAX header of some number of records."""
    data = b"".join(b"%d a=%s\n" % (6, b"x") for _ in range(number))
    return tar_of(header("h", len(data), tarfile.XHDTYPE), data, header("a.txt", 1), b"1")


ARCHIVES: dict[str, Make] = {
    "a PAX header of a million records": lambda: records(1_000_000),
    "a PAX header of 900 records": lambda: records(900),
    "a PAX size of 20 digits": lambda: tar_of(
        header("h", 28, tarfile.XHDTYPE), b"28 size=99999999999999999999\n"[:28], header("a.b", 1)
    ),
    "a PAX header of 1 TB": lambda: tar_of(header("h", 1 << 40, tarfile.XHDTYPE), b"x"),
    "a long name of 64 MB": lambda: tar_of(
        header("././@LongLink", 64 << 20, tarfile.GNUTYPE_LONGNAME), b"a" * (64 << 20)
    ),
    "100,000 long names in a row": lambda: tar_of(
        *[header("././@LongLink", 6, tarfile.GNUTYPE_LONGNAME), b"a.txt\0"] * 100_000,
        header("a.txt", 1),
        b"1",
    ),
    "a member of 8 exabytes": lambda: tar_of(header("a.txt", (1 << 63) - 1)),
    "20,000 empty members": lambda: tar_of(*[header("a/", 0, tarfile.DIRTYPE)] * 20_000),
    "a million zero blocks": lambda: bytes(512 << 17),
}

PATTERNS = (
    "{1..999999999}.tar",
    "{1..99999999999999999999}.tar",
    "{0000000001..1000000000}.tar",
    "{1..1000}{1..1000}{1..1000}.tar",
    "{a..z}" * 9 + ".tar",
    "{a,b}" * 40 + ".tar",
    "{" * 5_000 + ".tar",
    "*/" * 200 + "*.tar",
)


class Bounds:
    """Limits of what a bomb may cost; the unit of CPU time is measured at the start."""

    def __init__(self, folder: Path) -> None:
        self._sound = make_shard(folder / "sound.tar", {"a": {"jpg": sound_jpeg()}})
        self.unit = self._measure()

    def _measure(self) -> float:
        return children.in_child(partial(read, self._sound)).check().seconds

    def judge(
        self,
        trial: campaign.Trial,
        function: Callable[[], object],
        most_units: float = MOST_UNITS,
    ) -> None:
        """Run a function in a child and compare its costs with the limits."""
        most = most_units * self.unit
        ended = children.in_child(function, memory=6 * MOST_MEMORY, seconds=2 * most).check()
        units = ended.seconds / self.unit
        if units > most_units:  # work on other cores may have begun, which slows these down
            units = ended.seconds / max(self.unit, self._measure())
        disk = sum(path.stat().st_size for path in Path(os.environ["SHARDIO_CACHE"]).glob("*"))
        shutil.rmtree(os.environ["SHARDIO_CACHE"], ignore_errors=True)
        said = f"; {ended.error or 'read'}: {ended.message[:200]}"
        if ended.memory > MOST_MEMORY:
            raise campaign.Wrong("takes memory", f"{ended.memory // campaign.MIB} MiB{said}")
        if units > most_units:
            raise campaign.Wrong("takes time", f"{units:.0f} times a sound picture's{said}")
        if disk > MOST_DISK:
            raise campaign.Wrong("fills the cache", f"{disk // campaign.MIB} MiB{said}")
        if ended.error:
            trial.refused(ended.error)
        else:
            trial.right("read within bounds")


def read(source: Path | str) -> None:
    """Read all samples of a source."""
    for _ in shardio.ShardDataset(source):
        pass


def field_bomb(bounds: Bounds, field: str, make: Make, trial: campaign.Trial) -> None:
    shard = make_shard(trial.folder / "bomb.tar", {"a": {field: make()}})
    bounds.judge(trial, partial(read, shard))
    bounds.judge(trial, lambda: shardio.verify(shard, deep=True, jobs=1).sound)


def packed_bomb(bounds: Bounds, field: str, make: Make, trial: campaign.Trial) -> None:
    source = trial.folder / "source"
    source.mkdir()
    (source / f"a.{field}").write_bytes(make())
    out = trial.folder / "out"
    bounds.judge(
        trial,
        lambda: shardio.pack(source, out, shards=1, labels=False, jobs=1, resize=64).samples,
    )


def archive_bomb(bounds: Bounds, make: Make, trial: campaign.Trial) -> None:
    shard = trial.folder / "bomb.tar"
    shard.write_bytes(make())
    bounds.judge(trial, partial(read, shard))
    bounds.judge(trial, lambda: shardio.verify(shard, jobs=1).sound)


def compressed_bomb(bounds: Bounds, pack: Callable[[bytes], bytes], trial: campaign.Trial) -> None:
    """Try a member of 2 GiB of zeros, as consecutive gzip members."""
    shard, piece = trial.folder / "bomb.tar", pack(bytes(64 * campaign.MIB))
    shard.write_bytes(pack(header("a.bin", 2 << 30)) + piece * 33)
    bounds.judge(trial, partial(read, shard), MOST_COMPRESSED_UNITS)


def pattern_bomb(bounds: Bounds, pattern: str, trial: campaign.Trial) -> None:
    bounds.judge(trial, partial(read, str(trial.folder / pattern)))


def manifest_bomb(
    bounds: Bounds, change: Callable[[dict[str, object]], bytes], trial: campaign.Trial
) -> None:
    shardio.pack(
        make_images(trial.folder / "in", classes=1, per_class=4),
        trial.folder / "out",
        shards=1,
        jobs=1,
    )
    path = trial.folder / "out" / "shardio.json"
    path.write_bytes(change(json.loads(path.read_bytes())))
    bounds.judge(trial, partial(read, trial.folder / "out"))


def cases(folder: Path) -> list[campaign.Case]:
    bounds = Bounds(folder)
    found = []
    for name, (field, make) in FIELDS.items():
        found.append(campaign.Case(name, partial(field_bomb, bounds, field, make)))
        if field in {"png", "jpg", "webp", "bmp"}:
            found.append(
                campaign.Case(f"{name}, packed", partial(packed_bomb, bounds, field, make))
            )
    found += [
        campaign.Case(name, partial(archive_bomb, bounds, make)) for name, make in ARCHIVES.items()
    ]
    found += [
        campaign.Case(f"{name} of 2 GiB", partial(compressed_bomb, bounds, pack))
        for name, pack in PACKERS.items()
    ]
    found += [
        campaign.Case(f"pattern {number}", partial(pattern_bomb, bounds, pattern))
        for number, pattern in enumerate(PATTERNS)
    ]
    changes: dict[str, Callable[[dict[str, object]], bytes]] = {
        "manifest of nested brackets": lambda _: b"[" * 10_000_000,
        "manifest of a long number": lambda _: b'{"version": ' + b"1" * 10_000_000 + b"}",
        "manifest of a quintillion samples": lambda document: json.dumps(document)
        .replace('"nsamples": 4', '"nsamples": 1000000000000000000')
        .encode(),
    }
    return found + [
        campaign.Case(name, partial(manifest_bomb, bounds, change))
        for name, change in changes.items()
    ]


if __name__ == "__main__":
    campaign.main(__doc__, cases)
