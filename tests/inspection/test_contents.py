"""What verify --deep tells of the values of fields, and of fields that do not fit together."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray
from PIL import Image as Pillow

import shardio
from shardio.cli import commands
from shardio.fields.annotations import Boxes, MultiLabel, Points
from shardio.fields.pictures import Depth, Mask
from shardio.fields.summary import MOST_CLASSES
from shardio.inspection.contents import Place, add_up, notes_of, statistics_of, totals_of
from shardio.inspection.findings import FieldStatistics, Verification
from shardio.testing import make_shard

HEIGHT, WIDTH = 24, 32
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
Samples = dict[str, dict[str, bytes]]


def png(pixels: NDArray[Any]) -> bytes:
    return cv2.imencode(".png", pixels)[1].tobytes()


def npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values))
    return stream.getvalue()


def turned_jpeg() -> bytes:
    """A JPEG stored HEIGHT × WIDTH, whose EXIF orientation turns it."""
    stream, exif = io.BytesIO(), Pillow.Exif()
    exif[0x0112] = 6
    Pillow.fromarray(PICTURE).save(stream, "jpeg", exif=exif)
    return stream.getvalue()


def look(folder: Path, *shards: Samples, jobs: int = 1, **fields: Any) -> Verification:
    folder.mkdir(exist_ok=True)
    for number, samples in enumerate(shards):
        make_shard(folder / f"{number}.tar", samples)
    return shardio.verify(folder, deep=True, jobs=jobs, fields=fields)


def of_field(found: Verification, name: str) -> FieldStatistics:
    (only,) = [each for each in found.statistics if each.name == name]
    return only


def counts_of(found: FieldStatistics) -> dict[int, tuple[int, int]]:
    assert found.classes is not None
    return {each.number: (each.values, each.samples) for each in found.classes}


@pytest.mark.parametrize(("dtype", "most"), [("uint8", 7), ("int32", 60_000)])
def test_masks_are_counted_by_pixels_and_samples(tmp_path: Path, dtype: Any, most: int) -> None:
    numbers = np.random.default_rng(1)
    pixels, samples, shards = Counter[int](), Counter[int](), list[Samples]()
    for shard in range(4):
        held: Samples = {}
        for place in range(5):
            mask = numbers.integers(0, most, (HEIGHT, WIDTH)).astype(np.uint16)
            pixels.update(mask.ravel().tolist())
            samples.update({*mask.ravel().tolist()})
            data = png(mask.astype(np.uint8) if most < 256 else mask)
            held[f"{shard}-{place}"] = {"png": png(PICTURE), "mask.png": data}
        shards.append(held)
    found = [look(tmp_path, *shards, jobs=jobs, m=Mask("mask.png", dtype=dtype)) for jobs in (1, 2)]
    assert found[0] == found[1]
    mask_found = of_field(found[0], "mask.png")
    expected = {number: (pixels[number], samples[number]) for number in sorted(pixels)}
    assert counts_of(mask_found) == dict([*expected.items()][:MOST_CLASSES])
    assert mask_found.complete == (len(expected) <= MOST_CLASSES)
    assert (mask_found.unit, mask_found.values) == ("pixels", 20 * HEIGHT * WIDTH)
    assert found[0].findings == ()


def test_the_smallest_class_numbers_are_exact_whatever_comes_first(tmp_path: Path) -> None:
    labels = [*range(MOST_CLASSES + 500), *range(0, MOST_CLASSES, 2)]
    expected = Counter(labels)
    np.random.default_rng(2).shuffle(labels)
    samples = {f"{place:06d}": {"cls": b"%d" % label} for place, label in enumerate(labels)}
    keys = [*samples]
    parts = [{key: samples[key] for key in keys[start::3]} for start in range(3)]
    found = of_field(look(tmp_path, *parts, jobs=2), "cls")
    assert not found.complete
    assert counts_of(found) == {n: (expected[n], expected[n]) for n in range(MOST_CLASSES)}
    assert found.values == found.samples == len(labels)


def test_sets_of_classes_are_counted(tmp_path: Path) -> None:
    samples = {"a": {"json": b"[0, 2]"}, "b": {"json": b"[2]"}, "c": {"json": b"[]"}}
    found = of_field(look(tmp_path, samples, tags=MultiLabel("json", classes=4)), "json")
    assert counts_of(found) == {0: (1, 1), 2: (2, 2)}
    assert (found.samples, found.values, found.complete) == (3, 3, True)


def test_depth_has_a_range_and_shares_of_zero_and_not_finite(tmp_path: Path) -> None:
    stored = np.full((HEIGHT, WIDTH), 512, np.uint16)
    stored[0], stored[1, 0] = 0, 65535
    floats = np.full((HEIGHT, WIDTH), 0.5, np.float32)
    floats[0, :3] = np.nan, np.inf, -np.inf
    shards: list[Samples] = [{"a": {"depth.png": png(stored)}}, {"b": {"depth.png": npy(floats)}}]
    found = of_field(look(tmp_path, *shards, d=Depth("depth.png", scale=1 / 256)), "depth.png")
    assert found.low == 0
    assert found.high == pytest.approx(65535 / 256)
    assert found.counts == {"zero": WIDTH, "not finite": 3}
    assert found.classes is None
    assert json.dumps(found.low)


def test_numbers_that_are_not_finite_are_one_note(tmp_path: Path) -> None:
    shards: list[Samples] = [
        {"a": {"npy": npy([1.0, 2.0])}, "b": {"npy": npy([np.nan, 3.0])}},
        {"c": {"npy": npy([np.inf, np.nan])}, "d": {"npy": npy(["text"])}},
    ]
    found = look(tmp_path, *shards, jobs=2)
    (note,) = found.findings
    assert (note.severity, note.key, note.field) == ("note", "b", "npy")
    assert note.what == "3 of 6 numbers, in 2 samples, are not finite, this one first"
    assert (of_field(found, "npy").low, of_field(found, "npy").high) == (1, 3)


def test_empty_texts_are_counted_and_what_tells_nothing_is_left_out(tmp_path: Path) -> None:
    samples = {
        "a": {"txt": b" \n", "png": png(PICTURE)},
        "b": {"txt": b"x", "rgb.npy": npy(PICTURE)},
    }
    found = look(tmp_path, samples, t="txt")
    assert [(each.name, each.counts) for each in found.statistics] == [("txt", {"empty": 1})]


# Fields that do not fit together


def test_a_mask_of_another_size_than_its_picture_is_a_problem(tmp_path: Path) -> None:
    small, half = png(PICTURE[:20, :, 0]), png(PICTURE[::2, ::2, 0])
    samples = {
        "a": {"mask.png": png(PICTURE[:, :, 0]), "png": png(PICTURE)},
        "b": {"mask.png": small, "png": png(PICTURE)},
        "c": {"mask.png": half, "png": png(PICTURE)},
        "d": {"depth.png": small, "png": png(PICTURE)},
        "e": {"mask.png": png(PICTURE[:, :, 0]), "jpg": turned_jpeg()},
    }
    found = look(tmp_path / "in", samples)
    assert [(each.key, each.field) for each in found.problems] == [
        ("b", "mask.png"),
        ("d", "depth.png"),
        ("e", "mask.png"),
    ]
    assert "it is 20 × 32, but the picture 'png' of the sample is 24 × 32" in str(found.problems[0])
    assert "is 32 × 24, which its EXIF orientation turned" in str(found.problems[2])
    assert of_field(found, "mask.png").samples == 2
    assert shardio.verify(tmp_path / "in").sound, "sizes are compared if deep"
    for problem in found.problems:  # and a problem is what readers refuse
        with pytest.raises(shardio.SampleError, match="but the picture"):
            list(
                shardio.ShardDataset(
                    make_shard(tmp_path / "one.tar", {"k": samples[problem.key or ""]})
                )
            )
    summary = shardio.repair(tmp_path / "in", tmp_path / "out", deep=True)
    assert (summary.samples, summary.dropped) == (2, 3)
    assert "but the picture 'png'" in (tmp_path / "out/dropped.jsonl").read_text("utf-8")
    assert shardio.verify(tmp_path / "out", deep=True).sound


def test_a_mask_is_not_held_against_a_picture_that_is_not_sound(tmp_path: Path) -> None:
    cut = b"\x89PNG\r\n\x1a\n" + bytes(9)
    found = look(tmp_path, {"a": {"mask.png": png(PICTURE[:5, :, 0]), "png": cut}})
    assert [each.field for each in found.problems] == ["png"]


def test_pictures_of_different_sizes_are_a_note_unless_one_is_a_view_of_its_own(
    tmp_path: Path,
) -> None:
    samples = {
        "a": {"left.png": png(PICTURE), "right.png": png(PICTURE)},
        "b": {"left.png": png(PICTURE), "right.png": png(PICTURE[:20])},
    }
    (note,) = look(tmp_path, samples).findings
    assert (note.severity, note.key, note.field) == ("note", "b", "right.png")
    assert note.what.startswith("1 of 2 pictures, in 1 sample, differ in size from the first")
    assert not look(tmp_path, samples, r=shardio.Image("right.png", crop="own")).statistics
    own: dict[str, Any] = {
        "l": shardio.Image("left.png"),
        "r": shardio.Image("right.png", crop="own"),
    }
    assert look(tmp_path, samples, **own).findings == ()


def boxes(*rows: list[float], labels: list[int] | None = None) -> bytes:
    given = [0] * len(rows) if labels is None else labels
    return json.dumps({"boxes": rows, "labels": given}).encode()


def test_odd_boxes_are_notes_and_classes_are_counted(tmp_path: Path) -> None:
    data = {
        "a": boxes([0, 0, 32, 24], [1, 1, 5, 5], labels=[3, 7]),
        "b": boxes([9, 9, 3, 12], [5, 5, 5, 9], [40, 2, 50, 9], [0, 0, 32.9, 9], labels=[3] * 4),
        "c": boxes([-1.5, 0, 9, 9], [1, -9, 4, 0], labels=[0, 0]),
        "d": boxes(),
    }
    samples = {key: {"json": each, "png": png(PICTURE)} for key, each in data.items()}
    field = Boxes("json", also=["labels"])
    found = look(tmp_path, samples, boxes=field)
    assert found.sound
    assert [(note.key, note.what) for note in found.findings] == [
        (
            "b",
            "1 of 8 boxes, in 1 sample, end before they begin, this one first",
        ),
        ("b", "1 of 8 boxes, in 1 sample, have no width or no height, this one first"),
        ("b", "2 of 8 boxes, in 2 samples, lie outside their pictures, this one first"),
        ("c", "1 of 8 boxes, in 1 sample, reach outside their pictures, this one first"),
    ]
    assert all(note.severity == "note" and note.field == "json" for note in found.findings)
    assert counts_of(of_field(found, "json")) == {0: (2, 1), 3: (5, 2), 7: (1, 1)}
    assert of_field(found, "json").samples == 4
    delivered = shardio.ShardDataset(tmp_path, fields={"image": "png", "boxes": field})
    assert len(list(delivered)) == 4, "readers deliver what is noted"


def test_boxes_of_yolo_are_held_against_the_size_of_the_picture(tmp_path: Path) -> None:
    lines = b"2 0.5 0.5 1 1\n0 0.9 0.5 0.4 0.5\n"
    samples = {"a": {"txt": lines, "png": png(PICTURE)}}
    found = look(tmp_path / "with", samples, boxes=Boxes("txt", format="yolo"))
    (note,) = found.findings
    assert note.what == "1 of 2 boxes, in 1 sample, reach outside their pictures, this one first"
    assert counts_of(of_field(found, "txt")) == {0: (1, 1), 2: (1, 1)}
    alone: Samples = {"a": {"txt": lines}}
    (problem,) = look(tmp_path / "alone", alone, boxes=Boxes("txt", format="yolo")).problems
    assert "fractions of a picture, and the sample has none" in problem.what


def test_points_outside_their_picture_are_a_note(tmp_path: Path) -> None:
    data = {"a": b"[[0, 0], [32, 24]]", "b": b"[[40, 3], [3, -2]]", "c": b"[[NaN, 90], [1, 1]]"}
    samples = {key: {"json": each, "png": png(PICTURE)} for key, each in data.items()}
    found = look(tmp_path, samples, points=Points("json"))
    assert [(note.key, note.what) for note in found.findings] == [
        ("b", "3 of 6 points, in 2 samples, lie outside their pictures, this one first"),
        ("c", "1 of 6 points, in 1 sample, have a coordinate that is not finite, this one first"),
    ]


class Celsius(shardio.FieldType):
    """A type of a user, with statistics and a rule of its own."""

    def decode(self, data: Any) -> float:
        return float(bytes(data))

    def summarize(self, value: float, view: Any) -> shardio.FieldSummary:
        del view
        if value < -273.15:
            raise shardio.CodecError("it is below absolute zero")
        hot = {("are above 100 degrees", "check the sensor"): 1} if value > 100 else {}
        number = np.float32(value)
        numpys: Any = {"low": number, "high": number, "counts": {"freezing": np.int64(value < 0)}}
        return shardio.FieldSummary(
            unit="readings",
            classes={0 if value < 0 else 1: 1},
            notes=hot,
            **numpys,
        )


def test_a_type_of_a_user_contributes_in_all_processes(tmp_path: Path) -> None:
    shards: list[Samples] = [
        {"a": {"deg": b"-10"}, "b": {"deg": b"20"}},
        {"c": {"deg": b"150"}, "d": {"deg": b"-300"}, "e": {"deg": b"x"}},
    ]
    found = look(tmp_path, *shards, jobs=2, t=Celsius("deg"))
    assert found == look(tmp_path, *shards, jobs=1, t=Celsius("deg"))
    assert [each.key for each in found.problems] == ["d", "e"]
    assert found.problems[0].what == "it is below absolute zero"
    (note,) = [each for each in found.findings if each.severity == "note"]
    assert note.what == "1 of 3 readings, in 1 sample, are above 100 degrees, this one first"
    assert note.remedy == "check the sensor"
    told = of_field(found, "deg")
    assert (told.kind, told.low, told.high, told.counts) == ("celsius", -10, 150, {"freezing": 1})
    assert counts_of(told) == {0: (1, 1), 1: (2, 2)}
    assert json.dumps([told.low, told.counts])


def test_totals_do_not_depend_on_how_they_are_divided() -> None:
    numbers = np.random.default_rng(5)
    parts = []
    for place in range(300):
        classes = dict.fromkeys(numbers.integers(0, 3 * MOST_CLASSES, 90).tolist(), 2)
        summary = shardio.FieldSummary(
            values=200,
            classes=classes,
            low=float(numbers.normal()),
            counts={"odd": place % 3},
            notes={("are odd", "look"): place % 5} if place % 5 else {},
        )
        parts.append(totals_of("f", "kind", summary, Place("shard", str(place), place)))
    (whole,) = add_up(parts)
    for size in (1, 7, 299):
        groups = [add_up(parts[at : at + size]) for at in range(0, len(parts), size)]
        (divided,) = add_up(each for group in groups for each in group)
        assert statistics_of([divided]) == statistics_of([whole])
        assert [*notes_of([divided])] == [*notes_of([whole])]
    (note,) = notes_of([whole])
    assert note.key == "1"
    assert not statistics_of([whole])[0].complete


# Words


def test_remedies_name_what_the_reader_has(tmp_path: Path) -> None:
    shard = make_shard(tmp_path / "in.tar", {"a": {"cls": b"1"}, "b": {"cls": b"2"}})
    shardio.pack(shard, tmp_path / "out", shards=1)
    packed = tmp_path / "out/shard-000000.tar"
    packed.write_bytes(packed.read_bytes()[:-1024])
    (problem,) = shardio.verify(tmp_path / "out").problems
    assert "`shardio.repair`" in problem.remedy
    assert "--" not in problem.remedy
    (line, *_) = CliRunner().invoke(commands, ["verify", str(tmp_path / "out")]).stdout.splitlines()
    assert line.endswith("write the intact samples to a new folder with `shardio verify --fix`")
    with pytest.raises(shardio.IndexFileError, match=r"as they are with force=True$"):
        shardio.index(tmp_path / "out")
    error = CliRunner().invoke(commands, ["index", str(tmp_path / "out")]).exception
    assert str(error).endswith("as they are with --force")


def test_a_tar_without_samples_is_allowed_in_the_words_of_the_reader(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("README"))
    (problem, *_) = shardio.verify(tmp_path / "a.tar").problems
    assert problem.remedy.endswith("or allow it with allow_empty=True")
    printed = CliRunner().invoke(commands, ["verify", str(tmp_path / "a.tar")]).stdout
    assert "or allow it with --allow-empty" in printed
