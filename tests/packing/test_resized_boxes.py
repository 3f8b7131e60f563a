"""Boxes and points of pictures that are packed at another size are those that readers make."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardio
from shardio.fields.geometry import Crop, View
from shardio.testing import read_members

HEIGHT, WIDTH = 30, 40
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
VIEWS = {
    20: View(HEIGHT, WIDTH, size=(20, 27), crop=Crop(0, 0, HEIGHT, WIDTH)),
    (15, 15): View(HEIGHT, WIDTH, size=(15, 15), crop=Crop(0, 5, 30, 30)),
    (60, 20): View(HEIGHT, WIDTH, size=(60, 20), crop=Crop(0, 15, 30, 10)),
}
numbers = st.floats(-10, 50, width=32)
boxes = st.lists(st.tuples(numbers, numbers, numbers, numbers), max_size=6)


def as_npy(values: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.asarray(values, np.float32).reshape(-1, 4))
    return stream.getvalue()


@given(boxes, st.sampled_from(["xyxy", "xywh", "cxcywh"]), st.sampled_from([*VIEWS.values()]))
def test_boxes_are_those_that_follow_the_picture(given_: Any, format_: Any, view: View) -> None:
    labels = [*range(len(given_))]
    forms: list[tuple[bytes, Any]] = [
        (json.dumps({"b": given_, "labels": labels, "w": 1.5}).encode(), ["labels"]),
        (json.dumps([{"b": b, "labels": n} for n, b in enumerate(given_)]).encode(), ["labels"]),
        (as_npy(given_), []),
    ]
    for data, also in forms:
        type_ = shardio.Boxes("json", boxes="b", format=format_, also=also)
        expected = type_.follow(type_.decode(data), view)
        made = type_.resized(data, view)
        assert made is not None
        found = type_.decode(made)
        assert found.keys() == expected.keys()
        assert np.allclose(found["boxes"], expected["boxes"], rtol=0, atol=1e-5)
        assert found.get("labels", labels) is labels or (
            found["labels"].tolist() == expected["labels"].tolist()
        )


@given(st.lists(st.tuples(numbers, numbers, st.integers(0, 2)), min_size=1, max_size=6))
def test_points_are_those_that_follow_the_picture(points: Any) -> None:
    flat = [each for point in points for each in point]
    forms = [
        (shardio.Points("json"), points),
        (shardio.Points("json", points="kp"), {"kp": [points, points], "w": "x"}),
        (shardio.Points("json", points="kp", width=3), [{"kp": flat, "w": n} for n in range(2)]),
        (shardio.Points("json", width=3), [flat]),
    ]
    for view in VIEWS.values():
        for type_, value in forms:
            data = json.dumps(value).encode()
            made = type_.resized(data, view)
            assert made is not None
            expected = type_.follow(type_.decode(data), view)
            assert np.array_equal(type_.decode(made), expected)
            if isinstance(value, dict):
                assert json.loads(made)["w"] == "x"


@pytest.mark.parametrize("resize", [*VIEWS])
def test_all_else_keeps_its_value_and_rows_leave_together(resize: Any, tmp_path: Path) -> None:
    """Of the second box less than a pixel is left in each of the crops."""
    document = {
        "boxes": [[15, 0, 25, 30], [0, 0, 0.5, 30]],
        "labels": [2**60, 3],
        "words": ["é", None],
        "about": {"id": 12345678901234567890, "e": 1e-7, "nested": [[1], {}]},
    }
    fields: Any = {
        "json": shardio.Boxes("json", also=["labels", "words"]),
        "kp.json": shardio.Points("kp.json", points="kp"),
    }
    data = {"png": PICTURE, "json": json.dumps(document).encode(), "kp.json": b'{"kp": [[20, 15]]}'}
    shardio.pack([data], tmp_path / "out", shards=1, fields=fields, resize=resize, jobs=1)
    members = {
        name.partition(".")[2]: each for name, each in read_members(tmp_path / "out").items()
    }
    view = VIEWS[resize]
    (height, width), middle = view.size, view.move(np.array([[20, 15]])).tolist()
    found = json.loads(members["json"])
    assert found["about"] == document["about"]
    assert (found["labels"], found["words"]) == ([2**60], ["é"])
    assert json.loads(members["kp.json"])["kp"] == middle
    left, top, right, bottom = found["boxes"][0]
    assert (top, bottom) == (0, height)
    assert right - left == pytest.approx(10 * width / view.crop.width if view.crop else 0)


def test_data_beside_pictures_that_keep_their_size_stay_as_they_are(tmp_path: Path) -> None:
    data = {"png": PICTURE, "json": b' {"boxes" : [[1.0, 2, 3, 4]]}', "kp.json": b"[[1,  2]]"}
    fields: Any = {"b": shardio.Boxes("json"), "k": shardio.Points("kp.json")}
    options: Any = {"shards": 1, "fields": fields, "jobs": 1, "resize": 100}
    shardio.pack([data], tmp_path / "out", **options)
    assert {data["json"], data["kp.json"]} < {*read_members(tmp_path / "out").values()}
    with pytest.raises(shardio.PackError, match=r"'boxes' is \[1, 1\]"):
        shardio.pack([{**data, "json": b'{"boxes": [[1]]}'}], tmp_path / "bad", **options)


def test_what_json_does_not_hold_is_refused(tmp_path: Path) -> None:
    data = {"png": PICTURE, "json": b'{"boxes": [[0, 0, 9, 9]], "x": NaN}'}
    fields: Any = {"b": shardio.Boxes("json")}
    with pytest.raises(shardio.PackError, match="JSON cannot hold what it holds"):
        shardio.pack([data], tmp_path / "out", shards=1, fields=fields, resize=20, jobs=1)
