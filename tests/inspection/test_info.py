"""What info says of shards, beside what is in them."""

from __future__ import annotations

import io
import statistics
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import shardio
from shardio.fields.image import encode_values
from shardio.indexing.entry import ShardEntry
from shardio.indexing.labels import TOLD_BY_CHECKSUM
from shardio.indexing.manifest import index_path, read_manifest, write_manifest
from shardio.inspection import counts as counting
from shardio.inspection.counts import Tally
from shardio.inspection.info import ClassCount
from shardio.inspection.preview import CELL_HEIGHT, CELL_WIDTH, GAP, LABEL_HEIGHT, MARGIN
from shardio.storage.base import StoredFile
from shardio.storage.folder import Folder
from shardio.testing import make_images, make_shard

Pixels = NDArray[np.uint8]
MakePacked = Callable[[Path, Mapping[str, Mapping[str, bytes]], Sequence[str]], Path]
COLOURS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255))


def encode(pixels: Pixels, extension: str = ".png") -> bytes:
    return cv2.imencode(extension, np.ascontiguousarray(pixels[..., ::-1]))[1].tobytes()


def plain(colour: tuple[int, int, int], height: int = 6, width: int = 8) -> Pixels:
    return np.full((height, width, 3), colour, np.uint8)


def array(value: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(value), allow_pickle=False)
    return stream.getvalue()


def values(source: Path, sample: int | str = 0) -> dict[str, str]:
    found = shardio.info(source, sample=sample).sample
    assert found is not None
    return {field.name: field.value for field in found.fields}


def test_info_says_what_is_in_the_shards(
    packed: Path, read_with_webdataset: Callable[[Path], list[dict[str, Any]]]
) -> None:
    shards = sorted(packed.glob("*.tar"))
    samples = [read_with_webdataset(shard) for shard in shards]
    found = shardio.info(packed)
    assert found.source == (str(packed),)
    assert [(shard.name, shard.samples, shard.bytes) for shard in found.shards] == [
        (str(shard), len(inside), shard.stat().st_size)
        for shard, inside in zip(shards, samples, strict=True)
    ]
    assert (found.samples, found.bytes) == (600, sum(shard.stat().st_size for shard in shards))
    assert [(field.name, field.kind) for field in found.fields] == [
        ("cls", "cls"),
        ("png", "image"),
    ]
    for field in found.fields:
        sizes = [len(sample[field.name]) for inside in samples for sample in inside]
        assert (field.samples, field.bytes) == (len(sizes), sum(sizes))
        assert (field.median, field.largest) == (statistics.median_low(sizes), max(sizes))
    assert found.classes is not None
    assert found.classes.named == 10
    assert found.classes.counts == tuple(
        ClassCount(number=number, name=f"class{number:02d}", samples=60) for number in range(10)
    )
    assert found.sample is not None
    assert found.sample.key == samples[0][0]["__key__"]


@given(st.lists(st.lists(st.integers(0, 1 << 40)), max_size=6), st.integers(0, 6))
def test_a_tally_knows_the_median_of_all_it_counted(parts: list[list[int]], cut: int) -> None:
    first, second = Tally(), Tally()
    for place, part in enumerate(parts):
        (first if place < cut else second).add(np.array(part, np.int64))
    first.median()
    first.merge(second)
    numbers = [number for part in parts for number in part]
    assert first.median() == (statistics.median_low(numbers) if numbers else 0)
    found = Counter(dict(zip(*(each.tolist() for each in first.counts()), strict=True)))
    assert found == Counter(numbers)


NUMBERS = st.one_of(
    st.integers(-5, 20),
    st.integers(0, 99_999_999),
    st.integers(-(1 << 63), (1 << 63) - 1),
).map(str)
TEXTS = st.one_of(
    st.none(),
    NUMBERS,
    NUMBERS.map(lambda text: f" {text}\n"),
    st.sampled_from(["", "cat", "1.5", "9" * 19, "7" * 100, "3\0", " " * 60 + "12345"]),
)


@pytest.mark.parametrize("indexed", [True, False])
@settings(max_examples=40)
@given(texts=st.lists(TEXTS, max_size=40))
def test_classes_are_counted_from_checksums_as_from_members(
    indexed: bool, texts: list[str | None], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("shards")
    samples = {
        f"{number:03d}": {"txt": b"", **({} if text is None else {"cls": text.encode()})}
        for number, text in enumerate([*texts, "0"])
    }
    for name in ("a.tar", "b.tar"):
        make_shard(folder / name, samples)
    if indexed:
        shardio.index(str(folder))
    expected, unreadable = Counter[int](), 0
    for text in [*texts, "0"]:
        if text is not None:
            try:
                number = int(text) if "\0" not in text and len(text) <= 64 else 1 << 63
            except ValueError:
                number = 1 << 63
            readable = -(1 << 63) <= number < 1 << 63
            expected.update([number] * 2 * readable)
            unreadable += 2 * (not readable)
    found = shardio.info(folder).classes
    assert found is not None
    assert found.named is None
    assert {count.number: count.samples for count in found.counts} == dict(expected)
    assert (found.unreadable, found.missing) == (unreadable, 2 * texts.count(None))
    assert found.complete


@pytest.mark.parametrize("digits", range(1, TOLD_BY_CHECKSUM + 1))
def test_no_two_numbers_of_one_length_have_the_same_checksum(digits: int) -> None:
    """Digits differ in their low four bits, and CRC-32 is linear: on these its rank is full."""
    zeros = zlib.crc32(bytes(digits))
    rank: dict[int, int] = {}  # by highest bit
    for bit in range(4 * digits):
        place, value = divmod(bit, 4)
        row = bytes([*bytes(place), 1 << value, *bytes(digits - place - 1)])
        rest = zlib.crc32(row) ^ zeros
        while rest.bit_length() in rank:
            rest ^= rank[rest.bit_length()]
        rank[rest.bit_length()] = rest
    assert 0 not in rank


def test_no_shard_is_opened_to_count_what_checksums_tell(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    real = ShardEntry.open_file

    def open_file(entry: ShardEntry) -> StoredFile:
        opened.append(entry.name)
        return real(entry)

    monkeypatch.setattr(ShardEntry, "open_file", open_file)
    shardio.info(packed, sample=599)
    assert opened == [str(packed / "shard-000007.tar")]


def test_class_numbers_outside_the_list_of_names_are_counted_as_such(
    make_packed: MakePacked, tmp_path: Path
) -> None:
    samples = {f"{number}": {"cls": b"%d" % (number % 4)} for number in range(10)}
    make_packed(tmp_path / "out", samples, ["ant", "bee"])
    found = shardio.info(tmp_path / "out", sample=3)
    assert found.classes is not None
    assert (found.classes.named, found.classes.outside) == (2, 4)
    named = [(count.number, count.name, count.samples) for count in found.classes.counts]
    assert named == [(0, "ant", 3), (1, "bee", 3), (2, None, 2), (3, None, 2)]
    assert values(tmp_path / "out", 3)["cls"] == "3 (not in the list of classes)"
    assert values(tmp_path / "out", 1)["cls"] == "1 (bee)"


def test_classes_without_samples_are_listed(make_packed: MakePacked, tmp_path: Path) -> None:
    out = make_packed(tmp_path / "out", {"a": {"cls": b"1"}}, ["ant", "bee"])
    found = shardio.info(out).classes
    assert found is not None
    assert [count.samples for count in found.counts] == [0, 1]


def test_endless_class_numbers_are_not_all_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(counting, "MOST_CLASSES", 5)
    make_shard(tmp_path / "a.tar", {f"{n}": {"cls": b"%d" % (n % 9)} for n in range(18)})
    found = shardio.info(tmp_path).classes
    assert found is not None
    assert not found.complete
    assert [count.samples for count in found.counts] == [2] * 5


def test_a_sample_is_shown_with_a_look_at_each_field(tmp_path: Path) -> None:
    long = "é" * 100
    sample = {
        "jpg": encode(plain((9, 9, 9), 30, 40), ".jpg"),
        "seg.png": encode(plain((9, 9, 9), 3, 5)[:, :, 0]),
        "rgb.npy": array(np.zeros((2, 4, 3), np.uint8)),
        "npy": array(np.zeros((0, 7), np.float32)),
        "x.npy": array(np.float32(0.1)),
        "x.y.npy": array(np.array("a" * 9000)),
        "txt": long.encode(),
        "json": b'{"a": 1}',
        "cls": b" 12\n",
        "bin": bytes(range(20)),
        "webp": encode(plain((9, 9, 9)), ".webp")[:-9],
        "bad.npy": b"no",
        "bad.cls": b"no",
    }
    make_shard(tmp_path / "a.tar", {"x": {"txt": b"other"}, "y": sample})
    found = shardio.info(tmp_path, sample="y").sample
    assert found is not None
    assert (found.key, found.number, found.shard) == ("y", 1, str(tmp_path / "a.tar"))
    shown = values(tmp_path, 1)
    broken = {name: shown.pop(name) for name in ("webp", "bad.npy", "bad.cls")}
    assert shown == {
        "jpg": "jpeg, 30 × 40",
        "seg.png": "mask, 3 × 5, classes 9",
        "rgb.npy": "uint8 [2, 4, 3]",
        "npy": "float32 [0, 7]",
        "x.npy": "float32 0.1",
        "x.y.npy": "<U9000 []",
        "txt": long[:60],
        "json": '{"a": 1}',
        "cls": "12",
        "bin": "00 01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f",
    }
    assert all(value.startswith("cannot be decoded: ") for value in broken.values())
    data = (tmp_path / "a.tar").read_bytes()
    assert [field.name for field in found.fields] == list(sample)
    for field in found.fields:
        assert data[field.offset : field.offset + field.bytes] == sample[field.name]


def test_a_sample_is_found_by_key_before_position(tmp_path: Path) -> None:
    for shard in range(3):
        keys = [f"{10 - 3 * shard - place}" for place in range(3)]
        make_shard(tmp_path / f"{shard}.tar", {key: {"txt": key.encode()} for key in keys})
    for key, position in {"10": 0, "9": 1, "2": 8, "7": 3}.items():
        found = shardio.info(tmp_path, sample=key).sample
        assert found is not None
        assert (found.key, found.number) == (key, position)
    make_shard(tmp_path / "3.tar", {"7": {"txt": b"again"}})
    assert values(tmp_path, "7")["txt"] == "7"
    assert values(tmp_path, "0")["txt"] == "10"
    assert values(tmp_path, 2)["txt"] == "8"


@settings(max_examples=40)
@given(keys=st.lists(st.text("ab/é", max_size=4), unique=True, min_size=1), data=st.data())
def test_every_key_is_found(
    keys: list[str], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    out = tmp_path_factory.mktemp("out")
    shard = make_shard(out / "a.tar", {f"k{key}a": {"txt": key.encode()} for key in keys})
    key = data.draw(st.sampled_from(keys))
    assert values(shard, f"k{key}a")["txt"] == key


@pytest.mark.parametrize("sample", ["nothing", "", "600", 600, -1, "²"])
def test_a_sample_that_is_not_there_is_refused(packed: Path, sample: str | int) -> None:
    with pytest.raises(shardio.UsageError, match="no sample"):
        shardio.info(packed, sample=sample)


def test_a_folder_of_splits_is_shown_whole_and_split_by_split(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shardio.pack(images, out, shards=6, split={"train": 0.8, "val": 0.2}, stratify=True)
    found = shardio.info(out)
    alone = {name: shardio.info(out / name) for name in ("train", "val")}
    assert {name: split.samples for name, split in found.splits.items()} == {
        "train": 480,
        "val": 120,
    }
    for name, split in found.splits.items():
        assert replace(split, sample=alone[name].sample) == alone[name]
    together = shardio.info([out / "train", out / "val"])
    assert replace(found, source=together.source, splits={}) == together
    assert together.classes is not None
    assert together.classes.named == 10


def test_splits_that_number_classes_differently_are_counted_by_name(
    make_packed: MakePacked, tmp_path: Path
) -> None:
    samples = {"a": {"cls": b"0"}, "b": {"cls": b"no"}, "c": {"txt": b"no cls"}, "d": {"cls": b"2"}}
    make_packed(tmp_path / "out/train", samples, ["fog", "rain"])
    make_packed(tmp_path / "out/val", {f"v{key}": some for key, some in samples.items()}, ["rain"])
    found = shardio.info(tmp_path / "out", sample="va")
    assert found.classes is not None
    assert (found.classes.unreadable, found.classes.missing, found.classes.outside) == (2, 2, 2)
    assert [(each.number, each.name, each.samples) for each in found.classes.counts] == [
        (None, "fog", 1),
        (None, "rain", 1),
    ]
    assert found.sample is not None
    assert found.sample.fields[0].value == "0 (rain)"
    (tmp_path / "out/.shardio-pack").touch()
    with pytest.raises(shardio.IndexFileError, match="interrupted or still runs"):
        shardio.info(tmp_path / "out")


def test_a_split_that_lacks_the_last_classes_counts_by_number(
    make_packed: MakePacked, tmp_path: Path
) -> None:
    make_packed(tmp_path / "out/train", {"a": {"cls": b"1"}}, ["fog", "rain"])
    make_packed(tmp_path / "out/val", {"b": {"cls": b"0"}}, ["fog"])
    found = shardio.info(tmp_path / "out").classes
    assert found is not None
    assert [(each.number, each.name, each.samples) for each in found.counts] == [
        (0, "fog", 1),
        (1, "rain", 1),
    ]
    assert shardio.verify(tmp_path / "out").sound


def test_lines_of_ledgers_are_counted(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=1, per_class=4)
    (source / "class00/a.b.png").write_bytes((source / "class00/image0000.png").read_bytes())
    for name in ("bad.png", "worse.png"):
        (source / "class00" / name).write_text("no")
    shardio.pack(source, tmp_path / "out", shards=1, on_error="skip", dedupe="exact")
    ledgers = {"skipped.jsonl": 2, "duplicates.jsonl": 1}
    found = dict(shardio.info(tmp_path / "out").ledgers)
    renamed = found.pop("renamed.jsonl", 0)
    assert found == ledgers
    assert renamed == 1
    assert shardio.info(tmp_path / "out/shard-000000.tar").ledgers == {}


def test_a_shard_without_samples_is_no_error(tmp_path: Path) -> None:
    make_shard(tmp_path / "a.tar", {})
    found = shardio.info(tmp_path)
    assert (found.samples, found.fields, found.classes, found.sample) == (0, (), None, None)
    with pytest.raises(shardio.UsageError, match="no image to preview in 0 samples"):
        shardio.info(tmp_path, preview=tmp_path / "sheet.png")


def test_what_is_damaged_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(shardio.UsageError, match="no shards"):
        shardio.info(tmp_path)
    out = tmp_path / "out"
    shardio.pack(images, out, shards=2)
    index = index_path(out / "shard-000001.tar")
    data = index.read_bytes()
    index.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(shardio.IndexFileError, match=r"shard-000001\.tar\.idx: the index is dam"):
        shardio.info(out)
    index.write_bytes(data)
    shard = out / "shard-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(shardio.TarError, match=r"shard-000001\.tar: the shard has \d+ bytes"):
        shardio.info(out)
    shard.unlink()
    with pytest.raises(shardio.IndexFileError, match=r"1 of 2 shards are missing"):
        shardio.info(out)
    (out / ".shardio-pack").touch()
    with pytest.raises(shardio.IndexFileError, match="interrupted or still runs"):
        shardio.info(out)


def sheet_of(source: Path, path: Path, count: int = 48) -> Pixels:
    shardio.info(source, preview=path, preview_count=count)
    read = cv2.imread(str(path))
    assert read is not None
    return np.asarray(read[..., ::-1], np.uint8)


def cell_of(sheet: Pixels, row: int, column: int) -> Pixels:
    top = MARGIN + row * (CELL_HEIGHT + LABEL_HEIGHT + GAP)
    left = MARGIN + column * (CELL_WIDTH + GAP)
    return sheet[top : top + CELL_HEIGHT, left : left + CELL_WIDTH]


def label_of(sheet: Pixels, row: int, column: int) -> Pixels:
    top = MARGIN + row * (CELL_HEIGHT + LABEL_HEIGHT + GAP) + CELL_HEIGHT
    left = MARGIN + column * (CELL_WIDTH + GAP)
    return sheet[top : top + LABEL_HEIGHT, left - GAP // 2 : left + CELL_WIDTH + GAP // 2]


def test_the_preview_shows_evenly_spread_images_in_order(tmp_path: Path) -> None:
    for shard in range(3):
        samples = {
            f"{shard}{place:02d}": {"png": encode(plain(COLOURS[(10 * shard + place) % 6]))}
            for place in range(10)
        }
        make_shard(tmp_path / f"{shard}.tar", samples)
    sheet = sheet_of(tmp_path, tmp_path / "sheet.png", 10)
    height = 2 * MARGIN + 2 * (CELL_HEIGHT + LABEL_HEIGHT) + GAP
    assert sheet.shape == (height, 2 * MARGIN + 8 * CELL_WIDTH + 7 * GAP, 3)
    for place in range(10):
        cell = cell_of(sheet, *divmod(place, 8))
        expected = COLOURS[(3 * place + 1) % 6]  # the middle of each tenth of 30 samples
        assert cell[CELL_HEIGHT // 2, CELL_WIDTH // 2].tolist() == [*expected]
        assert (label_of(sheet, *divmod(place, 8)) < 128).any()
    assert (cell_of(sheet, 1, 2) == 255).all()
    again = tmp_path / "again.png"
    sheet_of(tmp_path, again, 10)
    assert again.read_bytes() == (tmp_path / "sheet.png").read_bytes()


@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [
        (1000, 500, (150, 75)),
        (300, 1000, (60, 200)),
        (150, 200, (150, 200)),
        (8, 8, (144, 144)),
        (100, 150, (100, 150)),
        (1, 5000, (1, 200)),
    ],
)
def test_images_in_the_preview_keep_their_aspect_ratio(
    tmp_path: Path, height: int, width: int, shown: tuple[int, int]
) -> None:
    make_shard(tmp_path / "a.tar", {"a": {"png": encode(plain((200, 0, 0), height, width))}})
    sheet = sheet_of(tmp_path, tmp_path / "sheet.png")
    assert sheet.shape[1] == 2 * MARGIN + CELL_WIDTH
    red = (cell_of(sheet, 0, 0) == (200, 0, 0)).all(axis=2)
    rows, columns = np.flatnonzero(red.any(axis=1)), np.flatnonzero(red.any(axis=0))
    assert (len(rows), len(columns)) == shown
    assert red.sum() == shown[0] * shown[1]
    assert abs(rows[0] - (CELL_HEIGHT - 1 - rows[-1])) <= 1
    assert abs(columns[0] - (CELL_WIDTH - 1 - columns[-1])) <= 1


def test_the_preview_shows_pixels_and_goes_on_over_what_is_damaged(tmp_path: Path) -> None:
    samples = {
        "a": {"rgb.npy": array(plain((0, 0, 200)))},
        "b": {"png": encode(plain((0, 200, 0)))[:-20]},
        "c": {"txt": b"no image"},
        "d/é\n" + "long" * 30: {"png": encode(plain((0, 200, 0))), "cls": b"no"},
    }
    make_shard(tmp_path / "a.tar", samples)
    sheet = sheet_of(tmp_path, tmp_path / "sheet.png")
    middles = [
        cell_of(sheet, 0, place)[CELL_HEIGHT // 2, CELL_WIDTH // 2].tolist() for place in range(4)
    ]
    assert middles == [[0, 0, 200], [238] * 3, [238] * 3, [0, 200, 0]]
    for place in range(4):
        label = label_of(sheet, 0, place)
        assert (label < 128).any()
        assert (label[:, : GAP // 4] == 255).all()  # labels of neighbours do not touch
        assert (label[:, -GAP // 4 :] == 255).all()


def test_the_preview_shows_masks_and_depth_of_samples_without_a_picture(tmp_path: Path) -> None:
    """In colours of classes, which reducing does not blend, and in gray; a picture comes first."""
    rows, columns = np.mgrid[:600, :800]
    classes = (rows // 300 * 2 + columns // 400).astype(np.uint8)
    depth = (columns * 80).astype(np.uint16)
    samples = {
        "a": {"mask.png": encode_values(classes, np.uint8), "txt": b"a"},
        "b": {"depth.png": encode_values(depth, np.uint16)},
        "c": {"mask.png": encode_values(classes, np.uint8), "png": encode(plain((0, 200, 0)))},
        "d": {"mask.png": encode_values(depth, np.uint16)},
        "e": {"mask.png": b"no mask"},
    }
    make_shard(tmp_path / "a.tar", samples)
    sheet = sheet_of(tmp_path, tmp_path / "sheet.png")
    mask, gray, picture, many, bad = (cell_of(sheet, 0, place) for place in range(5))
    corners = [mask[row, column] for row in (3, -3) for column in (3, -3)]
    colours = {tuple(corner.tolist()) for corner in corners}
    assert len(colours) == 4
    assert {tuple(pixel) for pixel in mask.reshape(-1, 3).tolist()} == colours
    assert (gray == gray[..., :1]).all()
    assert (np.diff(gray[0, :, 0].astype(int)) >= 0).all()
    assert gray[0, 0, 0] <= 2
    assert gray[0, -1, 0] >= 253
    assert picture[CELL_HEIGHT // 2, CELL_WIDTH // 2].tolist() == [0, 200, 0]
    assert len(np.unique(many.reshape(-1, 3), axis=0)) > 100
    assert (bad == 238).all()


def test_the_preview_labels_images_with_their_class(images: Path, tmp_path: Path) -> None:
    shardio.pack(images, tmp_path / "a", shards=1, shuffle=False)
    shardio.pack(images, tmp_path / "b", shards=1, shuffle=False)
    manifest = read_manifest(tmp_path / "b")
    with Folder.open(tmp_path / "b") as held:
        classes = ("other", *(manifest.classes or ())[1:])
        write_manifest(held, replace(manifest, classes=classes))
    one, other = (sheet_of(tmp_path / name, tmp_path / "sheet.png", 10) for name in "ab")
    same = [
        np.array_equal(label_of(one, *place), label_of(other, *place))
        for place in (divmod(number, 8) for number in range(10))
    ]
    assert same == [False, *[True] * 9]


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("sheet.jpg", 48, r"sheet\.jpg: the preview must be a PNG file"),
        ("sheet.png", 0, "preview_count=0: it must be 1 to 960"),
        ("sheet.png", 961, "preview_count=961"),
    ],
)
def test_a_preview_that_cannot_be_meant_is_refused(
    packed: Path, tmp_path: Path, name: str, count: int, message: str
) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.info(packed, preview=tmp_path / name, preview_count=count)
    with pytest.raises(OSError, match="No such file"):
        shardio.info(packed, preview=tmp_path / "no/sheet.png")
    assert [*tmp_path.iterdir()] == []


def test_progress_counts_shards(packed: Path) -> None:
    told: list[int] = []

    def start(total: int) -> Callable[[int], None]:
        assert total == 8
        return told.append

    shardio.info(packed, progress=start)
    assert sum(told) == 8


def test_a_field_over_the_limit_is_described_with_its_remedy(tmp_path: Path) -> None:
    image = cv2.imencode(".png", np.zeros((30, 40, 3), np.uint8))[1].tobytes()
    shard = make_shard(tmp_path / "limit.tar", {"x": {"png": image, "txt": b"text"}})
    sample = shardio.info(shard, max_pixels=100).sample
    assert sample is not None
    png, txt = sample.fields
    assert png.value.startswith("cannot be decoded: ")
    assert "max_pixels" in png.value
    assert txt.value == "text"
