"""The native core and the Python path read the same batches, and the core reads what it should."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import compress, cycle, islice, pairwise, product
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import shardio
from shardio.fields.geometry import PLAIN, Resampling
from shardio.native import is_active, status
from shardio.reading.chunks import CoreChunks
from shardio.testing import Damage, damaged, make_shard
from shardio.transforms import Crops

Pixels = NDArray[np.uint8]
Samples = Mapping[str, Mapping[str, bytes]]

pytestmark = pytest.mark.skipif(not is_active(), reason=f"the native core is {status()}")

# Files --------------------------------------------------------------------------------------------

SAMPLINGS = {
    "444": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444,
    "422": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_422,
    "420": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420,
    "440": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_440,
    "411": cv2.IMWRITE_JPEG_SAMPLING_FACTOR_411,
    "gray": 0,
}
CODINGS: dict[str, list[int]] = {
    "baseline": [],
    "progressive": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1],
    "restarts": [cv2.IMWRITE_JPEG_RST_INTERVAL, 3],
    "optimised": [cv2.IMWRITE_JPEG_OPTIMIZE, 1, cv2.IMWRITE_JPEG_QUALITY, 100],
    "both": [cv2.IMWRITE_JPEG_PROGRESSIVE, 1, cv2.IMWRITE_JPEG_RST_INTERVAL, 2],
}
SIZES = [(1, 1), (1, 2), (2, 1), (3, 3), (7, 9), (8, 8), (9, 17), (15, 16), (16, 15), (17, 33)]
SIZES += [(1, 70), (70, 1), (31, 64), (64, 31), (33, 47), (60, 81)]
SLOT = (24, 20)


def picture(height: int, width: int, seed: int = 0) -> Pixels:
    """Colours that change smoothly, an edge, and noise."""
    numbers = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    angle, steps = numbers.uniform(0, 6, 3), numbers.uniform(2, 30, 3)
    waves = np.sin((rows[..., None] * np.sin(angle) + columns[..., None] * np.cos(angle)) / steps)
    pixels = 128 + 100 * waves + numbers.normal(0, 12, (height, width, 3))
    pixels[rows * 2 > columns + height // 2] *= 0.6
    found: Pixels = np.clip(pixels, 0, 255).astype(np.uint8)
    return found


def jpeg(pixels: Pixels, sampling: str = "420", coding: str = "baseline") -> bytes:
    options = CODINGS[coding]
    if sampling == "gray":
        pixels = np.ascontiguousarray(pixels[..., 0])
    else:
        options = [*options, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, SAMPLINGS[sampling]]
    return cv2.imencode(".jpg", pixels, options)[1].tobytes()


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def flat_jpeg(height: int, width: int, factors: Sequence[int]) -> bytes:
    """A gray picture in any sampling of colours: all codes are 0, as bright and without detail."""
    tables = [bytes([kind, 1, *[0] * 15, 0]) for kind in (0, 0x10)]
    across, down = max(f >> 4 for f in factors), max(f & 15 for f in factors)
    units = -(-width // (8 * across)) * -(-height // (8 * down))
    bits = 2 * units * sum((f >> 4) * (f & 15) for f in factors)
    frame = struct.pack(">BHHB", 8, height, width, len(factors))
    frame += b"".join(bytes([at, factor, 0]) for at, factor in enumerate(factors, 1))
    scan = bytes([len(factors), *(each for at in range(len(factors)) for each in (at + 1, 0))])
    return b"".join(
        [
            b"\xff\xd8",
            segment(0xDB, b"\0" + bytes([1]) * 64),
            segment(0xC0, frame),
            *(segment(0xC4, table) for table in tables),
            segment(0xDA, scan + b"\0\x3f\0"),
            bytes(bits // 8),
            bytes([0xFF >> bits % 8]) if bits % 8 else b"",
            b"\xff\xd9",
        ]
    )


def tiff(orientation: int, order: str = "<") -> bytes:
    start = b"II*\0" if order == "<" else b"MM\0*"
    entry = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return start + struct.pack(order + "IH", 8, 1) + entry + bytes(4)


def turned_jpeg(data: bytes, orientation: int, how: str) -> bytes:
    """Add the orientation to a JPEG as EXIF or XMP, or both where they disagree."""
    exif = segment(0xE1, b"Exif\0\0" + tiff(orientation, ">" if how == "big" else "<"))
    shown = orientation if how == "XMP" else 9 - orientation
    text = b'<rdf:Description tiff:Orientation="%d"/>' % shown
    xmp = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + text)
    parts = {"little": exif, "big": exif, "both": exif + xmp, "XMP": xmp}
    return data[:2] + parts[how] + data[2:]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    height: int,
    width: int,
    colour: int,
    bits: int,
    *,
    seed: int = 0,
    interlace: int = 0,
    before: bytes = b"",
    pieces: int = 1,
) -> bytes:
    """A PNG of noise with every type of filter, and a palette with transparency if it needs one."""
    numbers = np.random.default_rng(seed)
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    if interlace:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2)]
        passes += [(0, 1, 2, 2), (1, 0, 2, 1)]
        sides = [
            (-((top - height) // down), -((left - width) // right))
            for top, left, down, right in passes
        ]
    else:
        sides = [(height, width)]
    rows = b""
    for down, across in sides:
        size = (across * samples * bits + 7) // 8
        if down > 0 and across > 0:
            some = numbers.integers(0, 256, (down, 1 + size), np.uint8)
            some[:, 0] = numbers.integers(0, 5, down)
            rows += some.tobytes()
    if colour == 3:
        entries = numbers.integers(max(1, 2**bits - 3), 2**bits + 1)  # some may be missing
        before = chunk(b"PLTE", numbers.bytes(3 * int(entries))) + before
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlace)
    data = zlib.compress(rows)
    ends = [len(data) * at // pieces for at in range(pieces + 1)]
    parts = [data[start:end] for start, end in pairwise(ends)]
    chunks = [chunk(b"IHDR", header), before, *(chunk(b"IDAT", part) for part in parts)]
    return b"".join([b"\x89PNG\r\n\x1a\n", *chunks, chunk(b"IEND", b"")])


def npy(array: NDArray[Any]) -> bytes:
    np.save(stream := io.BytesIO(), array)
    return stream.getvalue()


DEPTHS = [(0, 1), (0, 2), (0, 4), (0, 8), (2, 8), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (6, 8)]
DEEP = [(0, 16), (2, 16), (4, 16), (6, 16)]


# Transforms ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Edges:
    """Crops that begin or end at a border, one pixel from it, or elsewhere; some of one pixel."""

    size: tuple[int, int] = SLOT
    resampling: Resampling = PLAIN
    draws: int = 5

    def crop(self, height: int, width: int, uniforms: Sequence[float]) -> Any:
        sides = np.array([height]), np.array([width])
        return self.crops(*sides, np.array([uniforms]))[0]

    def crops(
        self, heights: NDArray[np.int64], widths: NDArray[np.int64], uniforms: NDArray[np.float64]
    ) -> Crops:
        top, rows = self._along(heights, uniforms[:, 0], uniforms[:, 1])
        left, columns = self._along(widths, uniforms[:, 2], uniforms[:, 3])
        how = self.resampling
        return Crops(top, left, rows, columns, uniforms[:, 4] < 0.5, resampling=how)

    def _along(
        self, sides: NDArray[np.int64], one: NDArray[np.float64], other: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        lengths = np.stack([0 * sides + 1, 0 * sides + 2, sides // 3, sides // 2, sides - 1, sides])
        length = np.maximum(1, np.minimum(sides, lengths[(one * 6).astype(int), range(len(one))]))
        last = sides - length
        starts = np.stack([0 * last, 0 * last, 0 * last + 1, last // 2, last - 1, last, last])
        start = starts[(other * 7).astype(int), range(len(other))]
        return np.clip(start, 0, last), length


METHODS = [
    Resampling("bilinear", antialias=False),
    Resampling("bilinear", antialias=True),
    Resampling("bicubic", antialias=True),
    Resampling("nearest", antialias=False),
]
TRANSFORMS = [
    *(Edges(resampling=how) for how in METHODS),
    Edges((7, 90), Resampling("bilinear", antialias=True)),
    shardio.RandomResizedCrop(SLOT),
    shardio.RandomResizedCrop(9, antialias=True, interpolation="bicubic"),
    shardio.RandomResizedCrop(50, interpolation="nearest"),
    shardio.CenterCrop(16, resize=20, flip=0.5),
    shardio.CenterCrop(16, resize=20, antialias=False),
    shardio.CenterCrop((12, 16), resize=16, interpolation="nearest"),
    shardio.Resize(SLOT, interpolation="bicubic"),
    shardio.Resize((5, 80), antialias=False),
    shardio.RandomCrop(16, padding=5),
    shardio.RandomCrop(40, fill=(1, 2, 3)),
    shardio.RandomCrop(16, padding=7, fill="reflect"),
    shardio.Letterbox(30, fill=(9, 8, 7)),
    shardio.Letterbox((20, 50), antialias=False),
    shardio.ScaleJitter(24),
    shardio.ScaleJitter(24, interpolation="nearest"),
]
NOT_TAKEN = [  # by the core, as it has no cubic interpolation without antialiasing
    shardio.RandomResizedCrop(9, interpolation="bicubic"),
    lambda image: image[:, :1, :1],
]


# Comparison ---------------------------------------------------------------------------------------


def no_key(key: str) -> bool:
    del key
    return False


def any_key(key: str) -> bool:
    del key
    return True


class Compare(Protocol):
    """Reads a source in both ways, and tells how many samples were compared."""

    def __call__(
        self,
        source: Path,
        *,
        most: int = ...,
        left: Callable[[str], bool] | None = ...,
        loader: Any = ...,
        **options: Any,
    ) -> int: ...


@pytest.fixture
def compare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Compare:
    log = tmp_path / "taken"  # by any process
    fill = CoreChunks.fill

    def watched(chunks: CoreChunks, slots: range, watch: Any) -> Sequence[int]:
        left = fill(chunks, slots, watch)
        done = [slot not in left for slot in slots]
        with log.open("a") as stream:
            stream.writelines(f"{key}\n" for key in compress(chunks.keys(slots), done))
        return left

    def run(
        source: Path,
        *,
        most: int = 0,
        left: Callable[[str], bool] | None = no_key,
        loader: Any = iter,
        core_resizes: bool = False,
        **options: Any,
    ) -> int:
        """Compare all batches, bit for bit or to `most` grey levels of pictures.

        The Python path resizes with OpenCV, unless `core_resizes`, as it does where the core is
        used for other samples. The core must have taken all samples but those whose keys are
        `left`, or some if None.
        """
        dataset: Any = partial(shardio.ShardDataset, source, **{"batch_size": 64, **options})
        log.write_text("")
        with monkeypatch.context() as patch:
            patch.setattr(CoreChunks, "fill", watched)
            ours = [*loader(dataset())]
        with monkeypatch.context() as patch:
            patch.setattr("shardio.reading.reader.is_active", lambda: False)
            if not core_resizes:
                patch.setattr("shardio.fields.image.resize_linear", lambda *_, **__: False)
            wanted = [*dataset()]
        assert len(ours) == len(wanted) > 0
        for one, other in zip(ours, wanted, strict=True):
            assert_equal(one, other, most)
        keys = [key for batch in wanted for key in batch["__key__"]]
        taken = {*log.read_text().splitlines()}
        assert taken if left is None else taken == {key for key in keys if not left(key)}
        return len({*keys})

    return run


def assert_equal(one: Any, other: Any, most: int) -> None:
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_equal(one[name], other[name], most)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, counterpart in zip(one, other, strict=True):
            assert_equal(each, counterpart, most)
    elif isinstance(one, torch.Tensor):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.stride() == other.stride() or not one.numel()
        if not torch.equal(one, other) and one.dtype != torch.float32:
            assert int((one.long() - other.long()).abs().max()) <= most
        elif one.dtype == torch.float32:
            torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    else:
        assert one == other


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[], Samples]], Path]:
    """Makes an indexed folder of three shards once, by its name."""
    root = tmp_path_factory.mktemp("shelf")

    def make(name: str, samples: Callable[[], Samples], *, indexed: bool = True) -> Path:
        folder = root / name
        if not folder.exists():
            folder.mkdir()
            made = [*samples().items()]
            for part in range(3):
                make_shard(folder / f"{part}.tar", dict(made[part::3]))
            if indexed:
                shardio.index(str(folder))
        return folder

    return make


# Tests --------------------------------------------------------------------------------------------


def jpegs() -> Samples:
    """All samplings and codings in all sizes, and all orientations."""
    made = {}
    kinds = product(SAMPLINGS, CODINGS)
    for number, ((sampling, coding), size) in enumerate(product(kinds, SIZES)):
        data = jpeg(picture(*size, seed=number), sampling, coding)
        made[f"{sampling}-{coding}-{size[0]}x{size[1]}"] = {"jpg": data}
    ways, sizes = cycle(("little", "big", "both")), cycle(SIZES)
    for sampling, coding, orientation in product(SAMPLINGS, CODINGS, range(1, 9)):
        size, way = next(sizes), next(ways)
        data = turned_jpeg(jpeg(picture(*size), sampling, coding), orientation, way)
        made[f"{sampling}-{coding}-{size[0]}x{size[1]}-turned{orientation}-{way}"] = {"jpg": data}
    return made


def some_jpegs() -> Samples:
    return dict([*jpegs().items()][::5])


@pytest.mark.parametrize("how", METHODS, ids=str)
def test_crops_at_all_edges_of_jpegs_of_all_kinds(
    how: Resampling, shelf: Any, compare: Compare
) -> None:
    assert compare(shelf("jpegs", jpegs), transform=Edges(resampling=how)) == 720


@pytest.mark.parametrize("transform", TRANSFORMS, ids=str)
def test_all_transforms_of_jpegs(transform: Any, shelf: Any, compare: Compare) -> None:
    source = shelf("some jpegs", some_jpegs)
    compare(source, transform=transform, reduced_decoding=False, crops=True)


@pytest.mark.parametrize("transform", NOT_TAKEN, ids=["cubic", "function"])
def test_transforms_that_the_core_leaves(transform: Any, shelf: Any, compare: Compare) -> None:
    source = shelf("some jpegs", some_jpegs)
    compare(source, transform=transform, left=any_key)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_of_jpegs(channels: int, shelf: Any, compare: Compare) -> None:
    """As OpenCV adds an alpha, the core leaves what needs one."""
    fields = {"image": shardio.Image("jpg", channels=channels)}
    left = any_key if channels == 4 else no_key
    for transform in (Edges(), Edges(resampling=METHODS[1])):
        compare(shelf("some jpegs", some_jpegs), transform=transform, fields=fields, left=left)


RARE = {
    "441": (0x14, 0x11, 0x11), "410": (0x42, 0x11, 0x11), "444 in twos": (0x21, 0x21, 0x21),
    "422 in twos": (0x22, 0x12, 0x12), "colours at more than luma": (0x11, 0x22, 0x22),
    "gray in fours": (0x22,),
}  # fmt: skip


def test_rare_jpegs(shelf: Any, compare: Compare) -> None:
    """Common and rare samplings, XMP alone, CMYK, arithmetic and odd but harmless headers."""

    def samples() -> Samples:
        made = {}
        for name, factors in {"common": (0x22, 0x11, 0x11), **RARE}.items():
            for height, width in SIZES:
                made[f"{name} {height}x{width}"] = {"jpg": flat_jpeg(height, width, factors)}
        for orientation in range(1, 9):
            data = turned_jpeg(jpeg(picture(20, 30)), orientation, "XMP")
            made[f"XMP {orientation}"] = {"jpg": data}
        data = jpeg(picture(20, 30))
        made["short JFIF"] = {"jpg": data[:2] + b"\xff\xe0\0\7JFIF\0" + data[2:]}
        made["junk between"] = {"jpg": data[:20] + b"junk" + data[20:]}
        made["followed"] = {"jpg": data + b"junk"}
        made["jfif of the future"] = {"jpg": data[:11] + b"\x09" + data[12:]}
        return made

    def left(key: str) -> bool:
        return not key.startswith(("common", "gray in fours", "short JFIF", "followed"))

    compare(shelf("rare", samples), transform=Edges(), on_bad_sample="skip", left=left)


def large_jpegs(*, turned: bool = True) -> Samples:
    """Pictures several times larger than the slot, of all samplings and codings."""
    made = {}
    sizes = cycle([(160, 240), (203, 167), (240, 161), (400, 90)])
    for number, (sampling, coding) in enumerate(product(SAMPLINGS, CODINGS)):
        data = jpeg(picture(*next(sizes), seed=number), sampling, coding)
        made[f"{sampling}-{coding}"] = {"jpg": data}
        if turned:
            data = turned_jpeg(data, 1 + number % 8, "little")
            made[f"{sampling}-{coding}-turned"] = {"jpg": data}
    return made


@pytest.mark.parametrize("size", [5, (9, 24), 40])
def test_jpegs_at_a_part_of_their_size_differ_by_a_grey_level_at_most(
    size: Any, shelf: Any, compare: Compare
) -> None:
    """From OpenCV's pixels, and from none that the Python path makes beside the core.

    A turned picture is left where its sides are not whole at that size.
    """
    source = shelf("large", large_jpegs)
    for transform in (
        shardio.RandomResizedCrop(size, scale=(0.3, 1)),
        shardio.Resize((5, 7), antialias=False, flip=0.5),
        shardio.Letterbox(11, antialias=False),
    ):
        compare(source, transform=transform, most=1, left=None)
        compare(source, transform=transform, core_resizes=True, left=None)
        compare(source, transform=transform, reduced_decoding=False)
        upright = shelf("upright", partial(large_jpegs, turned=False))
        compare(upright, transform=transform, most=1)


def pngs() -> Samples:
    made = {}
    for number, ((colour, bits), (height, width)) in enumerate(product(DEPTHS + DEEP, SIZES)):
        data = png(height, width, colour, bits, seed=number, pieces=1 + number % 3)
        made[f"{colour}-{bits}-{height}x{width}"] = {"png": data}
    for colour, bits in DEPTHS + DEEP:
        name = f"{colour}-{bits}"
        made[f"{name}-interlaced"] = {"png": png(21, 18, colour, bits, interlace=1)}
        hidden = chunk(b"tRNS", bytes(2 if colour == 0 else 6 if colour == 2 else 1))
        if colour < 4:
            made[f"{name}-tRNS"] = {"png": png(12, 10, colour, bits, before=hidden)}
        for orientation in range(1, 9):
            exif = chunk(b"eXIf", tiff(orientation, "<>"[orientation % 2]))
            data = png(20, 31, colour, bits, seed=orientation, before=exif)
            made[f"{name}-turned{orientation}"] = {"png": data}
        text = chunk(b"tEXt", b"Comment\0orientation") + chunk(b"gAMA", bytes(4))
        made[f"{name}-text"] = {"png": png(12, 10, colour, bits, before=text)}
        xmp = b"XML:com.adobe.xmp\0\0\0\0\0<tiff:Orientation>6</tiff:Orientation>"
        data = png(12, 10, colour, bits, before=chunk(b"iTXt", xmp))
        made[f"{name}-XMP"] = {"png": data}
    return made


def otherwise_packed_pngs() -> Samples:
    ways = [(level, cv2.IMWRITE_PNG_STRATEGY_DEFAULT) for level in (0, 1, 9)]
    ways += [(6, strategy) for strategy in range(1, 5)]  # the last one is that of fixed codes
    made = {}
    for (level, strategy), size in product(ways, [(1, 1), (3, 4), (90, 150), (400, 300)]):
        options = [cv2.IMWRITE_PNG_COMPRESSION, level, cv2.IMWRITE_PNG_STRATEGY, strategy]
        pixels = picture(*size)
        pixels[: size[0] // 2] //= 64
        data = cv2.imencode(".png", pixels, options)[1].tobytes()
        made[f"{level}-{strategy}-{size[0]}"] = {"png": data}
    return made


def test_pngs_that_are_packed_in_other_ways(shelf: Any, compare: Compare) -> None:
    source = shelf("otherwise", otherwise_packed_pngs)
    assert compare(source, fields={"image": "png"}, transform=Edges()) == 28


def left_png(key: str, channels: int = 3) -> bool:
    colour, bits, *rest = key.split("-")
    odd = bits == "16" or rest[0] in {"interlaced", "XMP"} or (channels == 4 and rest[0] == "tRNS")
    return odd or (channels == 1 and colour not in {"0", "4"})


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("how", METHODS, ids=str)
def test_pngs_of_all_kinds(channels: int, how: Resampling, shelf: Any, compare: Compare) -> None:
    fields = {"image": shardio.Image("png", channels=channels, bits=8)}
    left = partial(left_png, channels=channels)
    compare(shelf("png", pngs), transform=Edges(resampling=how), fields=fields, left=left)


@pytest.mark.parametrize("transform", [None, shardio.RandomCrop(16, padding=2), Edges((8, 8))])
def test_pictures_of_one_size(transform: Any, shelf: Any, compare: Compare) -> None:
    """Without a transform, with and without turned ones."""

    def samples() -> Samples:
        made = {f"png {at}": {"jpg": png(16, 16, *DEPTHS[at % 11], seed=at)} for at in range(60)}
        for at, orientation in enumerate(islice(cycle(range(9)), 60)):
            data = jpeg(picture(16, 16, at), [*SAMPLINGS][at % 6])
            data = turned_jpeg(data, orientation, "big") if orientation else data
            made[f"jpeg {at}"] = {"jpg": data}
        return made

    compare(shelf("equal", samples), transform=transform, crops=transform is not None)


def rich_samples() -> Samples:
    """Pictures with a mask, a second picture, boxes, an array, a label and a caption each."""
    made = {}
    for number, (sampling, coding) in enumerate(islice(cycle(product(SAMPLINGS, CODINGS)), 90)):
        height, width = 40 + number % 7, 60 - number % 5
        numbers = np.random.default_rng(number)
        array = numbers.normal(size=(3, 5)).astype(np.float32)
        boxes = [[1.0, 2.0, 30.0, 20.0 + number % 9]] * (number % 3)
        colour, bits = [(0, 8), (3, 8), (0, 1), (0, 4), (3, 2)][number % 5]
        made[f"{number:03d}"] = {
            "jpg": jpeg(picture(height, width, number), sampling, coding),
            "seg.png": png(height, width, colour, bits, seed=number),
            "right.png": png(height, width, 2, 8, seed=number),
            "npy": npy(array if number % 31 else array[:, :4]),
            "rgb.npy": npy(picture(height, width, number)),
            "json": json.dumps({"boxes": boxes, "labels": [number] * len(boxes)}).encode(),
            "cls": b"%d" % (number % 7),
            "txt": b"caption " * (number % 9),
        }
        if number % 4 == 0:
            del made[f"{number:03d}"]["txt"]
        if number % 13 == 5:
            del made[f"{number:03d}"]["seg.png"]
    return made


RICH: dict[str, Any] = {
    "image": shardio.Image("jpg"),
    "label": "cls",
    "boxes": shardio.Boxes("json", also=["labels"]),
    "mask": shardio.Mask("seg.png?", fill=255),
    "caption": "txt?",
}


def lacks(*fields: str) -> Callable[[str], bool]:
    rich = rich_samples()
    return lambda key: any(field not in rich[key] for field in fields)


@pytest.mark.parametrize(
    "transform", [*TRANSFORMS[:4], *TRANSFORMS[5:8], shardio.Letterbox(30), TRANSFORMS[13]], ids=str
)
@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_samples_of_many_fields(transform: Any, dtype: Any, shelf: Any, compare: Compare) -> None:
    """Masks in a margin are left, and so are samples that lack a field."""
    source = shelf("rich", rich_samples)
    fields = RICH | {"mask": shardio.Mask("seg.png?", fill=255, dtype=dtype)}
    left: Any = lacks("seg.png", "txt")
    if dtype == "uint8" and hasattr(transform, "fill"):
        left = any_key if isinstance(transform, shardio.Letterbox) else None
    compare(source, fields=fields, transform=transform, crops=True, left=left)


@pytest.mark.parametrize("name", ["own crop", "no pictures", "bytes", "alternatives", "pixels"])
def test_other_choices_of_fields(name: str, shelf: Any, compare: Compare) -> None:
    source, crop = shelf("rich", rich_samples), shardio.RandomResizedCrop(SLOT)
    if name == "own crop":
        fields = {"one": "jpg", "two": shardio.Image("right.png", crop="own")}
        compare(source, fields=fields, transform=crop, crops=True)
        fields["two"] = "right.png"
        compare(source, fields=fields, transform=crop, crops=True)
    elif name == "no pictures":
        compare(source, fields={"label": "cls", "x": "npy"}, on_bad_sample="skip", left=None)
    elif name == "bytes":
        fields = {"jpg": "jpg", "x": "cls", "t": "json"}
        compare(source, decode=False, fields=fields, left=any_key)
    elif name == "alternatives":
        fields = {"image": shardio.Image("seg.png;right.png;jpg"), "label": "cls"}
        compare(source, fields=fields, transform=crop)
    else:
        compare(source, fields={"x": "rgb.npy", "y": "jpg"}, transform=crop)


def jitter(sample: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    if rng.random() < 0.1:
        raise shardio.Skip("at random")
    shift = rng.integers(0, 5)
    return {"image": sample["image"] // 2 + int(shift), "area": len(sample["boxes"]["boxes"])}


def listed(samples: list[dict[str, Any]]) -> dict[str, Any]:
    return {"sums": torch.tensor([int(sample["image"].long().sum()) for sample in samples])}


@pytest.mark.parametrize("functions", [{"map": jitter}, {"collate": listed}])
def test_functions_of_the_user(functions: Any, shelf: Any, compare: Compare) -> None:
    source, crop = shelf("rich", rich_samples), shardio.RandomResizedCrop(SLOT)
    compare(source, fields=RICH, transform=crop, left=lacks("seg.png", "txt"), **functions)


LOADERS: dict[str, Any] = {
    "threads": partial(shardio.Loader, threads=3),
    "workers": partial(DataLoader, batch_size=None, num_workers=2),
}


@pytest.mark.parametrize("way", LOADERS)
def test_threads_and_workers(way: str, shelf: Any, compare: Compare) -> None:
    source, left = shelf("rich", rich_samples), lacks("seg.png", "txt")
    crop = shardio.RandomResizedCrop(SLOT)
    options: Any = {"transform": crop, "shuffle": True, "batch_size": 7}
    compare(source, fields=RICH, loader=LOADERS[way], left=left, **options)


@pytest.mark.parametrize("transform", [*TRANSFORMS[:2], shardio.RandomCrop(40)], ids=str)
def test_shards_without_an_index(transform: Any, tmp_path: Path, compare: Compare) -> None:
    """Headers of the tar are all that is known; those of pictures are read first."""
    shard = make_shard(tmp_path / "a.tar", some_jpegs())
    compare(shard, transform=transform)
    shard = make_shard(tmp_path / "b.tar", rich_samples())
    left = lacks("seg.png", "txt")
    has_margin = isinstance(transform, shardio.RandomCrop)
    compare(shard, transform=transform, fields=RICH, left=None if has_margin else left)


def test_a_packed_folder_of_several_fields(tmp_path: Path, compare: Compare) -> None:
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "in" / name).mkdir(parents=True)
        for at in range(40):
            data = jpeg(picture(30 + at, 50, label), [*SAMPLINGS][at % 6])
            (tmp_path / "in" / name / f"{at}.jpg").write_bytes(data)
    shardio.pack(tmp_path / "in", tmp_path / "out", shards=3)
    options: dict[str, Any] = {"transform": shardio.RandomResizedCrop(SLOT), "shuffle": True}
    assert compare(tmp_path / "out", **options) == 80


DAMAGES: list[Damage] = ["flip", "flip", "truncate", "swap", "double", "zero", "drop"]


def damaged_files() -> Samples:
    """JPEGs and PNGs of all kinds, damaged at random, and some that are not."""
    numbers, made = np.random.default_rng(0), {}
    files = [jpeg(picture(60, 81), *kind) for kind in product(SAMPLINGS, CODINGS)]
    files += [png(20, 31, *kind, pieces=2) for kind in DEPTHS]
    for number, data in enumerate(islice(cycle(files), 700)):
        damage = DAMAGES[number % 7]
        if number % 10 and (len(data) > 1024 or damage in {"flip", "truncate"}):
            data = damaged(data, damage, numbers)  # noqa: PLW2901  the file's
        made[f"{number}"] = {"jpg": data}
    return made


@pytest.mark.parametrize("transform", [Edges(), shardio.Resize((9, 9), antialias=False)], ids=str)
def test_damaged_files_that_no_checksum_vouches_for_are_refused_alike(
    transform: Any, tmp_path: Path, compare: Compare, capfd: pytest.CaptureFixture[str]
) -> None:
    shard, most = make_shard(tmp_path / "a.tar", damaged_files()), 1
    compare(shard, transform=transform, on_bad_sample="skip", left=None, most=most)
    assert capfd.readouterr() == ("", "")


def test_of_files_packed_with_damage_the_core_delivers_the_same(
    shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both look at damage as far below a crop, and no further."""
    folder, read = shelf("damaged", damaged_files), []
    for is_used in (True, False):
        monkeypatch.setattr("shardio.reading.reader.is_active", lambda used=is_used: used)
        dataset: Any = shardio.ShardDataset(
            folder, transform=Edges(), batch_size=50, on_bad_sample="skip"
        )
        batches = [*dataset]
        read.append({name: torch.cat([b[name] for b in batches]) for name in ("image", "valid")})
    ours, wanted = read
    assert torch.equal(ours["valid"], wanted["valid"])
    assert 20 < wanted["valid"].sum() < len(wanted["valid"]) - 20
    assert torch.equal(ours["image"], wanted["image"])


@pytest.mark.parametrize("indexed", [False, True])
def test_a_truncated_jpeg_is_refused_whatever_its_crop(indexed: bool, shelf: Any) -> None:
    data = jpeg(picture(200, 100))
    files = {f"{at}": {"jpg": data[: -1 - at * 7]} for at in range(40)}
    folder = shelf(f"truncated {indexed}", lambda: files, indexed=indexed)
    dataset: Any = shardio.ShardDataset(
        folder, transform=Edges(), batch_size=40, on_bad_sample="skip"
    )
    with pytest.raises(shardio.SampleError, match="none of the 40 samples"):
        next(iter(dataset))


@dataclass(frozen=True)
class Outside(Edges):
    """Crops that reach beyond a side of the picture."""

    def crops(self, heights: Any, widths: Any, uniforms: Any) -> Crops:
        found = super().crops(heights, widths, uniforms)
        side = (uniforms[:, 4] * 8).astype(int)
        return replace(
            found,
            top=found.top - 3000 * (side == 0) + 3000 * (side == 1),
            left=found.left - 3000 * (side == 2) + 3000 * (side == 3),
            height=found.height * (side != 4) + 3000 * (side == 5),
            width=found.width * (side != 6) + 3000 * (side == 7),
        )


@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_the_core_leaves_crops_that_reach_out_of_the_picture(
    kind: str, shelf: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shelf("png", pngs) if kind == "png" else shelf("some jpegs", some_jpegs)
    taken = []
    fill = CoreChunks.fill

    def watched(chunks: CoreChunks, slots: range, watch: Any) -> Sequence[int]:
        left = fill(chunks, slots, watch)
        taken.append(len(slots) - len(left))
        return left

    monkeypatch.setattr(CoreChunks, "fill", watched)
    fields = {"image": shardio.Image(kind, bits=8)}
    dataset: Any = shardio.ShardDataset(folder, fields=fields, transform=Outside(), batch_size=16)
    with pytest.raises(Exception):  # noqa: B017, PT011  of whichever library meets it
        next(iter(dataset))
    assert taken
    assert not any(taken)
