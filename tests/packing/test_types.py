"""Types of fields from packing to reading: what is given is what is read, wherever shards go."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

import shardio
from shardio.fields import recorded
from shardio.fields.pictures import PixelMask, Pixels
from shardio.indexing.manifest import read_manifest
from shardio.testing import digests, make_shard, read_members

COUNT, HEIGHT, WIDTH = 4, 9, 7


class Case(NamedTuple):
    """A type, values that a program packs, and those that a batch holds; None for the same."""

    type_: shardio.FieldType
    given: list[Any]
    read: list[Any] | None = None


def integers(most: int, dtype: Any, *shape: int, least: int = 0) -> list[np.ndarray[Any, Any]]:
    draw = np.random.default_rng(most).integers
    return [draw(least, most + 1, shape or (HEIGHT, WIDTH)).astype(dtype) for _ in range(COUNT)]


def floats(*shape: int) -> list[np.ndarray[Any, Any]]:
    return [*np.random.default_rng(3).normal(size=(COUNT, *shape)).astype(np.float32)]


PICTURES = integers(255, np.uint8, HEIGHT, WIDTH, 3)
DEPTHS = integers(65535, np.uint16)
BOXES = [
    {"boxes": np.abs(boxes), "labels": np.arange(3), "names": ["a", "é", ""]}
    for boxes in floats(3, 4)
]
SOUNDS = [sound[None] for sound in floats(50)]
CASES = {
    "image": Case(shardio.Image("png"), PICTURES, [each.transpose(2, 0, 1) for each in PICTURES]),
    "image of its own": Case(
        shardio.Image("left.png", crop="own", bits=8),
        PICTURES,
        [each.transpose(2, 0, 1) for each in PICTURES],
    ),
    "mask": Case(shardio.Mask("mask.png"), integers(255, np.int64)),
    "mask of 16 bits": Case(shardio.Mask("mask.png", dtype="int32"), integers(65535, np.int32)),
    "mask of booleans": Case(shardio.Mask("seg.png"), integers(1, bool)),
    "mask in an array": Case(
        shardio.Mask("mask.npy", dtype="int32"), integers(1 << 20, np.int32, least=-1)
    ),
    "depth": Case(
        shardio.Depth("depth.png", scale=1 / 256),
        DEPTHS,
        [each[None].astype(np.float32) / 256 for each in DEPTHS],
    ),
    "depth in an array": Case(
        shardio.Depth("depth.npy"), depths := floats(HEIGHT, WIDTH), [each[None] for each in depths]
    ),
    "boxes": Case(shardio.Boxes("boxes.json", also=["labels", "names"]), BOXES),
    "boxes of YOLO": Case(
        shardio.Boxes("boxes.txt", format="yolo"),
        [b"2 0.5 0.5 0.5 1\n"] * COUNT,
        [
            {"boxes": np.array([[1.75, 0, 5.25, HEIGHT]], np.float32), "labels": np.array([2])}
            for _ in range(COUNT)
        ],
    ),
    "points": Case(shardio.Points("points.json", flip_pairs=[(0, 2), (1, 3)]), floats(4, 3)),
    "ragged points": Case(
        shardio.Points("kp.json", points="kp", ragged=True),
        [points[: number + 1] for number, points in enumerate(floats(COUNT, 2))],
    ),
    "class sets": Case(
        shardio.MultiLabel("tags.json", classes=5),
        [[0, 3], [], torch.tensor([0, 0, 0, 0, 1]), np.array([0, 1, 1, 0, 0], bool)],
        [np.isin(np.arange(5), some).astype(np.float32) for some in ([0, 3], [], [4], [1, 2])],
    ),
    "sound": Case(shardio.Audio("wav", rate=8000), [sound[0] * 2 for sound in SOUNDS]),
    "sound of 24 bits": Case(
        shardio.Audio("flac", rate=8000, mono=False),
        quiet := [np.clip(np.round(sound * 2**12) / 2**15, -1, 1) for sound in SOUNDS],
        quiet,
    ),
    "pixels": Case(Pixels("rgb.npy"), PICTURES, [each.transpose(2, 0, 1) for each in PICTURES]),
    "pixels of a mask": Case(
        PixelMask("mask.rgb.npy"), PICTURES, [each.transpose(2, 0, 1) for each in PICTURES]
    ),
    "label": Case(shardio.Label("target"), [0, -1, 5, 2**40]),
    "text": Case(shardio.Text("caption"), ["", " é\n", "b", "c"]),
    "json": Case(shardio.Json("meta"), [{"a": [1, None]}, [], "x", 1.5]),
    "array": Case(shardio.Array("vector"), floats(3)),
    "bytes": Case(shardio.Bytes("txt"), [b"", b"\xff", b"a", b"b"]),
}
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def assert_same(found: Any, wanted: Any) -> None:
    if isinstance(wanted, Mapping):
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            assert_same(found[name], value)
    elif isinstance(wanted, np.ndarray):
        found = found.numpy()
        if wanted.dtype.kind == "f":
            assert found.dtype == np.float32
        np.testing.assert_array_equal(found.reshape(wanted.shape), wanted)
    else:
        assert found == wanted


def pack(case: Case, out: Path) -> str:
    """Pack the values of a case beside a picture; returns the name of their field."""
    (field,) = case.type_.alternatives
    first = {"png": PICTURE} if field != "png" else {}
    samples = [{"__key__": f"s{n}", **first, field: each} for n, each in enumerate(case.given)]
    shardio.pack(samples, out, shards=2, shuffle=False, fields={"x": case.type_}, jobs=1)
    return field


def check(case: Case, folder: Path, field: str) -> None:
    """Read without a word about types, and with the type given."""
    for asked in (field, case.type_):
        entries: dict[str, Any] = {"x": asked}
        if field != "png" and case.type_.geometry == "follows":
            entries["image"] = "png"
        dataset = shardio.ShardDataset(folder, fields=entries)
        wanted = case.read or case.given
        assert len(dataset) == len(wanted)
        for found, value in zip(dataset, wanted, strict=True):
            assert_same(found["x"], value)


@pytest.mark.parametrize("name", CASES)
def test_what_is_packed_is_read_wherever_the_shards_go(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    field = pack(case, tmp_path / "a")
    shardio.reshard(tmp_path / "a", tmp_path / "b", shards=3, jobs=1)
    shardio.repair(tmp_path / "a", tmp_path / "c", jobs=1)
    shardio.pack(tmp_path / "b", tmp_path / "d", shards=1, shuffle=False, jobs=1)
    wanted = read_manifest(tmp_path / "a").types
    for folder in (tmp_path / each for each in "abcd"):
        check(case, folder, field)
        assert read_manifest(folder).types == wanted
        kinds = {each.name: each.kind for each in shardio.info(folder).fields}
        assert kinds[field] == recorded.describe_type(case.type_)
        assert not [
            each for each in shardio.verify(folder, deep=True).findings if each.severity != "note"
        ]
    shards = [str(tmp_path / "a" / f"shard-00000{number}.tar") for number in range(2)]
    check(case, shards, field)  # type: ignore[arg-type]  # a list of shards of the folder


@pytest.mark.parametrize("name", CASES)
def test_a_type_is_the_same_after_it_was_recorded(name: str) -> None:
    type_ = CASES[name].type_
    record = json.loads(json.dumps(recorded.record_type("x", type_)))
    found = recorded.restore_type("x", record)
    assert replace(found, fields=type_.fields) == type_
    assert recorded.record_type("x", found) == record


def test_every_type_of_shardio_is_recorded() -> None:
    assert {type(case.type_) for case in CASES.values()} == {*recorded._CLASSES.values()}


def document(folder: Path) -> dict[str, Any]:
    own: dict[str, Any] = json.loads((folder / "shardio.json").read_text())["shardio"]
    return own


ONE: dict[str, Any] = {"png": PICTURE, "cls": 1, "json": {"boxes": []}}
MASK = np.full((HEIGHT, WIDTH), 200, np.uint8)


@pytest.mark.parametrize(
    ("sample", "fields", "types"),
    [
        (ONE, None, None),
        (ONE, {"x": shardio.Image("png"), "y": shardio.Json("json")}, None),
        (ONE | {"mask.npy": MASK}, None, None),
        (ONE | {"mask.png": MASK}, None, {"mask.png": {"type": "Mask"}}),
        (ONE | {"disparity.png": MASK}, None, {"disparity.png": {"type": "Depth"}}),
        (
            ONE | {"mask.png": PICTURE},
            {"x": shardio.Image("mask.png")},
            {"mask.png": {"type": "Image"}},
        ),
        (ONE, {"x": shardio.Boxes("json")}, {"json": {"type": "Boxes"}}),
        (
            ONE | {"mask.npy": MASK},
            {"x": shardio.Mask("mask.npy?", max_pixels=1 << 20)},
            {"mask.npy": {"type": "Mask"}},
        ),
        (ONE, {"x": shardio.Image("png", bits=8)}, {"png": {"type": "Image", "bits": 8}}),
    ],
)
def test_the_second_version_is_for_what_readers_of_the_first_would_take_for_something_else(
    sample: dict[str, Any], fields: Any, types: dict[str, Any] | None, tmp_path: Path
) -> None:
    shardio.pack([sample], tmp_path / "out", shards=1, fields=fields, jobs=1)
    own = document(tmp_path / "out")
    if types is None:
        assert own["version"] == 1
        assert "types" not in own
        return
    assert own["version"] == 2
    others = {"png": {"type": "Image"}, "cls": {"type": "Label"}, "json": {"type": "Json"}}
    assert own["types"] == others | types
    assert not shardio.verify(tmp_path / "out").findings


def test_the_types_of_a_manifest_hold_until_others_are_given(tmp_path: Path) -> None:
    out = tmp_path / "out"
    sample = {"mask.png": PICTURE, "json": {"boxes": [[0, 0, 2, 3]]}}
    fields = {"x": shardio.Image("mask.png"), "y": shardio.Boxes("json")}
    shardio.pack([sample], out, shards=1, fields=fields, jobs=1)
    (found,) = shardio.ShardDataset(out)
    assert found["mask.png"].shape == (3, HEIGHT, WIDTH)
    assert found["json"]["boxes"].tolist() == [[0, 0, 2, 3]]
    (found,) = shardio.ShardDataset(out, fields={"x": shardio.Json("json")})
    assert found["x"] == {"boxes": [[0, 0, 2, 3]]}
    kinds = shardio.info(out, fields={"x": shardio.Json("json")}).fields
    assert [(each.name, each.kind) for each in kinds] == [("json", "json"), ("mask.png", "image")]
    assert not shardio.verify(out, deep=True).findings
    found_by = shardio.verify(out, deep=True, fields={"x": shardio.Mask("mask.png")}).findings
    assert ["colours, not class numbers" in each.what for each in found_by] == [True]
    summary = shardio.reshard(
        out,
        tmp_path / "new",
        shards=1,
        jobs=1,
        where=lambda _, fields: fields["json"]["boxes"].tolist() == [[0, 0, 2, 3]],
    )
    assert summary.samples == 1


def test_a_manifest_of_the_first_version_is_read_by_names(tmp_path: Path) -> None:
    """As one that was written before there were masks."""
    out = tmp_path / "out"
    shardio.pack([{"mask.png": MASK}], out, shards=1, jobs=1)
    text = json.loads((out / "shardio.json").read_text())
    del text["shardio"]["types"], text["shardio"]["crc32"]
    text["shardio"]["version"] = 1
    (out / "shardio.json").write_text(json.dumps(text))
    (found,) = shardio.ShardDataset(out)
    assert np.array_equal(found["mask.png"].numpy(), MASK)
    assert [each.severity for each in shardio.verify(out).findings] == ["note"]
    shardio.index(out, force=True)
    assert document(out)["version"] == 2
    assert not shardio.verify(out).findings


class Reversed(shardio.FieldType):
    """A type of a program."""

    def decode(self, data: Any) -> Any:
        return bytes(data)[::-1].decode()

    def encode(self, value: Any) -> bytes:
        return bytes(value, "ascii")[::-1]


@pytest.mark.usefixtures("measured_here")
def test_a_type_of_a_program_must_be_given_to_readers(tmp_path: Path) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    own = Reversed("text")
    shardio.pack([{"text": "abc", "cls": 1}], out, shards=1, fields={"x": own}, jobs=1)
    assert document(out)["types"]["text"] == {"own": "Reversed"}
    shardio.reshard(out, new, shards=1, jobs=1)
    shardio.repair(new, tmp_path / "repaired", jobs=1, deep=True)
    for folder in (out, new, tmp_path / "repaired"):
        for fields in (None, {"x": "text"}):
            with pytest.raises(shardio.UsageError, match=r"'text' was packed with the type Reversed"
                               r".*pass it with fields=\{…: Reversed\('text'\)\}"):  # fmt: skip
                shardio.ShardDataset(folder, fields=fields)
        assert next(iter(shardio.ShardDataset(folder, fields={"x": own})))["x"] == "abc"
        assert next(iter(shardio.ShardDataset(folder, fields={"x": "cls"})))["x"] == 1
        (raw,) = shardio.ShardDataset(folder, decode=False)
        assert raw["text"] == b"cba"
        assert not shardio.verify(folder, deep=True).findings
        assert shardio.info(folder).fields[1].kind == "Reversed (not given)"
    assert shardio.profile(out, seconds=0.1, workers=(0,), batch_size=1).runs
    with pytest.raises(shardio.PackError, match=r"field 'text'.*packed with the type Reversed"):
        shardio.reshard(out, tmp_path / "x", shards=1, where=lambda _, fields: fields["text"])


def change(folder: Path, record: Any) -> None:
    path = folder / "shardio.json"
    text = json.loads(path.read_text())
    text["shardio"].pop("crc32", None)
    text["shardio"]["types"]["mask.png"] = record
    path.write_text(json.dumps(text))


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"type": "Video"}, "field 'mask.png' has the type Video, which this version"),
        ({"type": "Mask", "void": 255}, "the type Mask with 'void', which this version"),
        ({"type": "Mask", "dtype": "int8"}, "the type Mask with a value .*dtype='int8'"),
        ({"type": "Mask", "max_pixels": 1}, "the type Mask with 'max_pixels'"),
        ({"type": 3}, "damaged or of another version"),
        ("Mask", "damaged or of another version"),
        ({}, "damaged or of another version"),
    ],
)
def test_types_of_a_newer_version_are_refused_by_name(
    record: Any, message: str, tmp_path: Path
) -> None:
    shardio.pack([{"mask.png": MASK}], tmp_path / "out", shards=1, jobs=1)
    change(tmp_path / "out", record)
    with pytest.raises(shardio.IndexFileError, match=message):
        shardio.ShardDataset(tmp_path / "out")
    (finding, *_) = shardio.verify(tmp_path / "out").findings
    assert finding.severity == "problem"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(max_size=4), inside),
    max_leaves=6,
)
NAMES = ["type", "own", "dtype", "scale", "classes", "flip_pairs", "points", "boxes", "also",
         "format", "rate", "mono", "bits", "crop", "ragged", "x"]  # fmt: skip


@given(
    name=st.sampled_from([*recorded._CLASSES]),
    record=st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=3),
)
def test_no_record_of_a_type_does_more_than_be_refused(name: str, record: dict[str, Any]) -> None:
    """What is made of it asks for little memory, can be recorded again, and tells its batches."""
    try:
        made = recorded.restore_type("x", {"type": name, **record})
    except (shardio.IndexFileError, TypeError, KeyError):
        return
    assert recorded.restore_type("x", json.loads(json.dumps(recorded.record_type("x", made))))
    assert hash(made) == hash(made)
    with suppress(shardio.CodecError):
        made.decode(b"[]")


def test_folders_that_differ_in_a_type_are_not_merged(tmp_path: Path) -> None:
    one, other, third = (tmp_path / name for name in ("one", "other", "third"))
    values = {"json": {"boxes": [[1, 2, 3, 4]]}, "cls": 3}
    formats: tuple[Any, ...] = ("xyxy", "xywh", "xyxy")
    for folder, format_ in zip((one, other, third), formats, strict=True):
        fields = {"x": shardio.Boxes("json", format=format_)}
        data = {**values, "__key__": folder.name, "json": json.dumps(values["json"]).encode()}
        shardio.pack([data], folder, shards=1, fields=fields, jobs=1)
    shard = make_shard(tmp_path / "a.tar", {"z": {"json": b"[]", "cls": b"2"}})
    shardio.reshard([one, third], tmp_path / "same", shards=1, jobs=1)
    assert document(tmp_path / "same")["types"]["json"] == {"type": "Boxes"}
    for second, kind in ((other, r"boxes \(format='xywh'\)"), (shard, "json")):
        names = f"in .*one and {kind} in .*{second.name}" if second == other else kind
        for asked in (None, {"x": "json"}):
            with pytest.raises(shardio.UsageError, match=f"'json' is boxes .*{names}"):
                shardio.ShardDataset([one, second], fields=asked)
        with pytest.raises(shardio.UsageError, match=f"'json' is boxes .*{names}"):
            shardio.reshard([one, second], tmp_path / "new", shards=1)
        assert not (tmp_path / "new" / "shardio.json").exists()
        own: Any = {"x": shardio.Json("json"), "y": "cls"}
        for wanted in (own, {"y": "cls"}):
            dataset = shardio.ShardDataset([one, second], fields=wanted)
            assert [int(each["y"]) for each in dataset] == [3, 3 if second == other else 2]


def palette(mode: str) -> Pillow.Image:
    image = Pillow.fromarray((MASK % 4).astype(np.uint8), mode)
    if mode == "P":
        image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
    return image


TURNED = Pillow.fromarray(PICTURE)
TURNED.getexif()[0x0112] = 6
WIDE = (MASK.astype(np.uint16) * 300).astype(np.uint16)


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("mask.png", palette("P"), MASK % 4),
        ("mask.png", palette("L"), MASK % 4),
        ("mask.png", Pillow.fromarray(MASK > 0), MASK > 0),
        ("mask.png", torch.from_numpy(MASK), MASK),
        ("mask.png", torch.from_numpy(MASK)[None].long(), MASK),
        ("depth.png", Pillow.fromarray(WIDE), WIDE),
        ("depth.png", Pillow.fromarray(WIDE.astype(np.int32)), WIDE),
        ("depth.png", torch.from_numpy(WIDE.astype(np.int32)), WIDE),
        ("png", Pillow.fromarray(PICTURE), PICTURE),
        ("png", torch.from_numpy(PICTURE), PICTURE),
        ("npy", torch.ones(3), np.ones(3)),
    ],
)
def test_tensors_and_pillow_images_are_packed_as_they_are(
    field: str, value: Any, wanted: np.ndarray[Any, Any], tmp_path: Path
) -> None:
    shardio.pack([{field: value}], tmp_path / "out", shards=1, jobs=1)
    (data,) = read_members(tmp_path / "out").values()
    if field != "npy":
        with Pillow.open(io.BytesIO(data)) as image:
            assert np.array_equal(np.asarray(image), wanted)
            assert image.mode in {"png": ("RGB",)}.get(field, ("L", "I;16", "I"))
    (found,) = shardio.ShardDataset(tmp_path / "out")
    assert_same(next(value for name, value in found.items() if not name.startswith("__")),
                wanted.transpose(2, 0, 1) if field == "png" else wanted)  # fmt: skip


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("mask.png", PICTURE, r"the array is \[9, 7, 3\], and must be \[H, W\]"),
        ("mask.png", Pillow.fromarray(PICTURE), r"must be \[H, W\]"),
        ("mask.png", MASK.astype(np.float32), "class numbers are whole numbers, not float32"),
        ("mask.png", MASK.astype(np.int64) * 1000, r"0 to 65535.*Mask\('x.npy'\)"),
        ("mask.png", MASK.astype(np.int64) - 201, r"0 to 65535, not -1 to -1; name the field x"),
        ("mask.jpg", MASK, "jpg does not keep class numbers; name the field png or npy"),
        ("mask.png", np.ma.masked_equal(MASK, 3), "a masked array, whose mask would be lost"),
        ("depth.png", MASK / 7, r"whole numbers, not float64; .*Depth\('x.npy'\)"),
        ("depth.png", torch.ones(3, 3), r"whole numbers, not float32; .*Depth\('x.npy'\)"),
        ("depth.png", MASK > 0, "depth is numbers, not bool"),
        ("png", MASK, r"uint8 \[H, W, 3\] in RGB, not uint8 \[9, 7\]"),
        ("png", palette("P"), r"uint8 \[H, W, 3\] in RGB"),
        ("png", torch.ones(3, HEIGHT, WIDTH), r"not float32 \[3, 9, 7\]"),
        ("png", TURNED, "EXIF orientation turns"),
        ("png", Pillow.fromarray(PICTURE).convert("HSV"), "mode HSV; convert it to RGB"),
        ("jpg", PICTURE, "jpg changes colours; encode it yourself, or name the field png"),
    ],
)
def test_values_that_would_change_are_refused(
    field: str, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(shardio.PackError, match=message):
        shardio.pack([{field: value}], tmp_path / "out", shards=1, jobs=1)


@pytest.mark.parametrize(
    ("type_", "value", "message"),
    [
        (shardio.Depth("d.npy", scale=0.5), MASK / 7, "readers would multiply by scale=0.5"),
        (shardio.Mask("m.npy"), MASK.astype(np.int64) << 40, "class numbers are of 32 bits"),
        (shardio.Audio("wav", rate=8), np.arange(5), "sound is floats .* not int64"),
        (shardio.Audio("flac", rate=8), np.full(5, 1.5), "FLAC holds values from -1 to 1"),
        (shardio.Audio("mp3", rate=8), np.zeros(5), "mp3 changes sound"),
        (shardio.Audio("wav"), np.zeros(5), "the rate is not known"),
        (shardio.Audio("wav", rate=8), np.zeros(0), "wav' cannot hold float64 .0.: .*is empty"),
        (shardio.Audio("flac", rate=8), np.zeros((1, 0)), "the sound is empty"),
        (
            shardio.Audio("wav", rate=8),
            np.zeros((80_000, 2)),
            r"it is \[80000, 2\], which is 80,000 channels of 2 values; if it is .* transpose it",
        ),
        (shardio.Audio("flac", rate=8), np.zeros((9, 50)), "9 channels of 50 values"),
        (
            shardio.Boxes("json"),
            {"boxes": [[0, 0, 1, 1]], "kind": ["cat"]},
            "'kind' would be lost, since also= does not name it",
        ),
    ],
)
def test_values_that_do_not_fit_the_given_type_are_refused(
    type_: shardio.FieldType, value: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(shardio.PackError, match=message):
        shardio.pack(
            [{type_.fields: value}], tmp_path / "out", shards=1, fields={"x": type_}, jobs=1
        )


def sound_of(length: int) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros((length, 1)), 8000, format="WAV")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("type_", "data", "message"),
    [
        (shardio.Boxes("json"), b'{"boxes": [[1, 2, 3]]}', r"'boxes' is \[1, 3\], and must be"),
        (shardio.Boxes("json", also=["a"]), b'{"boxes": []}', "the JSON object has no 'a'"),
        (shardio.Boxes("txt", format="yolo"), b"0 1 2", "line 1 has 3 numbers, and a box is five"),
        (shardio.Boxes("txt"), b"0 .5 .5 .1 .1", r"write Boxes\('txt', format='yolo'\)"),
        (shardio.Boxes("txt"), b"", r"the text is empty; .* write Boxes\('txt', format='yolo'\)"),
        (shardio.Points("json"), b"[[1, 2, 3, 4]]", "the points are .*, and must be"),
        (shardio.MultiLabel("txt", classes=3), b"7", "class 7 is not one of the 3 classes"),
        (shardio.Audio("wav"), b"RIFF", "libsndfile does not decode the sound"),
        (shardio.Audio("wav"), sound_of(0), "the sound is empty"),
        (shardio.Audio("wav", rate=800_000), sound_of(800), "more than 64 times that"),
        (shardio.Audio("wav", max_seconds=0.01), sound_of(800), "seconds long, more than 0.01"),
        (shardio.Label("cls"), b"", "its field 'cls': it is empty; write what it says"),
        (shardio.Json("json"), b"", "its field 'json': it is empty; write what it says"),
    ],
)
def test_data_that_readers_would_refuse_are_refused_when_they_are_packed(
    type_: shardio.FieldType, data: bytes, message: str, tmp_path: Path
) -> None:
    samples = [{"png": PICTURE, type_.fields: data}]
    with pytest.raises(shardio.PackError, match=message) as caught:
        shardio.pack(samples, tmp_path / "out", shards=1, fields={"x": type_}, jobs=1)
    assert "\n" not in str(caught.value)
    with pytest.raises(shardio.CodecError):
        type_.decode(data)


def test_types_are_part_of_what_is_packed(tmp_path: Path) -> None:
    """A finished folder is not taken for that of another type."""
    data = [{"json": b'{"boxes": []}'}]
    first = {"x": shardio.Boxes("json")}
    shardio.pack(data, tmp_path / "out", shards=1, fields=first, jobs=1)
    before = read_members(tmp_path / "out")
    with pytest.raises(shardio.PackError):
        shardio.pack(
            data, tmp_path / "out", shards=1, fields={"x": shardio.Boxes("json", format="xywh")}
        )
    assert read_members(tmp_path / "out") == before


def shown(pixels: np.ndarray[Any, Any], orientation: int = 1) -> bytes:
    stream = io.BytesIO()
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    Pillow.fromarray(pixels).save(stream, "PNG", exif=exif)
    return stream.getvalue()


class Lines(shardio.FieldType):
    """Says that it follows the picture, and not how it does when that is resized."""

    geometry = "follows"

    def decode(self, data: Any) -> str:
        return str(data.decode())


ROWS, COLUMNS = np.mgrid[:90, :140]
PLACES = np.stack([ROWS, COLUMNS, 0 * ROWS], axis=2).astype(np.uint8)
FAR = (ROWS * 256 + COLUMNS).astype(np.uint16)


@pytest.mark.parametrize("options", [
    {"resize": 40}, {"max_side": 70}, {"resize": (60, 33)}, {"resize": (200, 201)},
    {"resize": (30, 40), "store": "raw"}, {"quality": 80}, {"store": "raw"},
])  # fmt: skip
def test_masks_and_depth_follow_a_picture_that_is_packed_at_another_size(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever order fields have; Pillow is the oracle of nearest."""
    names = (ROWS // 9 * 16 + COLUMNS // 9).astype(np.uint8)
    sample = {
        "depth.png": FAR,
        "mask.png": names,
        "mask.npy": FAR.astype(np.int32) - 1,
        "small.mask.png": names[::2, ::2],
        "mask.rgb.npy": PLACES,
        "png": shown(PLACES.transpose(1, 0, 2)[::-1].copy(), 6),
    }
    fields = {"x": shardio.Mask("mask.npy", dtype="int32")}
    shardio.pack([sample], tmp_path / "out", shards=1, fields=fields, jobs=1, **options)
    (found,) = shardio.ShardDataset(tmp_path / "out")
    picture = found["image"].numpy()
    height, width = picture.shape[1:]
    resize = options.get("resize")
    if isinstance(resize, tuple):
        assert (height, width) == resize
    rows = min(90, max(1, round(140 * height / width))) if isinstance(resize, tuple) else 90
    columns = min(140, max(1, round(90 * width / height))) if isinstance(resize, tuple) else 140
    top, left = (90 - rows) // 2, (140 - columns) // 2

    def nearest(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        part = Pillow.fromarray(values[top : top + rows, left : left + columns].astype(np.int32))
        return np.asarray(part.resize((width, height), Pillow.Resampling.NEAREST))

    assert np.array_equal(found["mask.png"].numpy(), nearest(names))
    assert np.array_equal(found["depth.png"].numpy()[0], nearest(FAR).astype(np.float32))
    assert np.array_equal(found["mask.npy"].numpy(), nearest(FAR.astype(np.int32) - 1))
    assert found["small.mask.png"].shape == ((height, width) if "resize" in options
                                             or "max_side" in options else (45, 70))  # fmt: skip
    assert {*found["small.mask.png"].unique().tolist()} <= {*names.ravel().tolist()}
    assert np.array_equal(found["mask.rgb.npy"].numpy()[1], nearest(COLUMNS))
    assert abs(picture[0].astype(int) - nearest(ROWS)).max() <= 3
    assert not shardio.verify(tmp_path / "out", deep=True).findings


@pytest.mark.parametrize(
    ("sample", "fields", "message"),
    [
        (
            {"png": PLACES, "lines": b"0 0 1 1"},
            {"x": Lines("lines")},
            "lines belongs to the picture as it is, .*without an option that resizes, or give Li",
        ),
        (
            {"png": PLACES, "json": b'{"boxes": [[0, 0, 1, 1]], "kind": ["cat"]}'},
            {"x": shardio.Boxes("json")},
            "a box leaves .* 'kind' has as many values as there are boxes; name it in also=",
        ),
        ({"png": PLACES, "mask.png": MASK}, None, "'mask.png': it is 9 × 7, but the picture 'png'"),
        ({"mask.png": MASK}, None, "mask.png belongs to a picture, and the sample has none"),
        ({"png": PLACES, "rgb.npy": PLACES}, None, "rgb.npy holds pixels"),
    ],
)
def test_what_cannot_follow_a_picture_is_refused(
    sample: dict[str, Any], fields: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(shardio.PackError, match=message):
        shardio.pack([sample], tmp_path / "out", shards=1, resize=20, fields=fields, jobs=1)
    sample = {**sample, "__key__": "a"}
    good = {"png": PLACES, "cls": 1, "__key__": "b"}
    shardio.pack(
        [good, sample], tmp_path / "out", shards=1, resize=20, fields=fields, on_error="skip"
    )
    (line,) = (tmp_path / "out" / "skipped.jsonl").read_text().splitlines()
    assert "'a'" in json.loads(line)["path"]


def test_a_finished_pack_of_resized_masks_is_taken_up(tmp_path: Path) -> None:
    for name in "abcd":
        Pillow.fromarray(PLACES).save(tmp_path / f"{name}.png")
        Pillow.fromarray(FAR).save(tmp_path / f"{name}.depth.png")
    fields: Any = {"fields": "depth.png,png", "resize": 30, "shards": 4, "jobs": 1}
    (tmp_path / "in").mkdir()
    for path in tmp_path.glob("*.png"):
        path.rename(tmp_path / "in" / path.name)
    shardio.pack(tmp_path / "in", tmp_path / "whole", **fields)
    stopped = tmp_path / "stopped"

    def stop(_: int) -> Callable[[int], None]:
        done = [0]

        def tick(number: int) -> None:
            done[0] += number
            if done[0] == 3:
                raise KeyboardInterrupt

        return tick

    with pytest.raises(KeyboardInterrupt):
        shardio.pack(tmp_path / "in", stopped, **fields, progress=stop)
    before = {path.name: path.stat().st_mtime_ns for path in stopped.glob("*.tar")}
    assert before
    shardio.pack(tmp_path / "in", stopped, **fields)
    assert digests(stopped) == digests(tmp_path / "whole")
    for name, written in before.items():
        assert (stopped / name).stat().st_mtime_ns == written
