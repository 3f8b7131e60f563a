"""No field of a sample is lost without a word, and a stand-in takes nothing from a bad sample."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import shardio
from shardio.testing import make_shard


def png(value: int, height: int = 4, width: int = 6) -> bytes:
    return cv2.imencode(".png", np.full((height, width, 3), value, np.uint8))[1].tobytes()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cls": b"1", "label": b"2"}, "the shards have a field 'label', a name that cls takes"),
        ({"png": png(1), "image": b"2"}, "the shards have a field 'image', a name that png takes"),
        ({"png": png(1), "valid": b"2"}, "a field 'valid', a name that shardio itself takes"),
        ({"png": png(1), "__step__": b"2"}, "a field '__step__', a name that shardio itself"),
    ],
)
def test_fields_whose_names_are_taken_are_refused(
    tmp_path: Path, fields: dict[str, bytes], message: str
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a": fields})
    with pytest.raises(shardio.UsageError, match=message):
        shardio.ShardDataset(shard)
    other = {f"entry{number}": field for number, field in enumerate(fields)}
    (sample,) = shardio.ShardDataset(shard, fields=other, decode=False)
    assert [sample[name] for name in other] == [*fields.values()]


def test_a_second_image_that_only_some_samples_have_is_not_dropped(tmp_path: Path) -> None:
    first = {str(i): {"png": png(i)} for i in range(3)}
    make_shard(tmp_path / "a.tar", first)
    make_shard(tmp_path / "b.tar", {"x": {"png": png(7), "bmp": png(8)}})
    dataset = shardio.ShardDataset(tmp_path)
    with pytest.raises(shardio.UsageError, match="the sample has bmp and png for 'image'; say whi"):
        list(dataset)
    chosen = shardio.ShardDataset(tmp_path, fields={"image": "png;bmp"})
    assert [int(sample["image"].max()) for sample in chosen] == [0, 1, 2, 7]


@pytest.mark.parametrize("alternatives", ["img;png", "cls;txt"])
def test_alternatives_that_decode_differently_are_refused(
    tmp_path: Path, alternatives: str
) -> None:
    shard = make_shard(tmp_path / "a.tar", {"a": dict.fromkeys(alternatives.split(";"), b"1")})
    with pytest.raises(shardio.UsageError, match="give alternatives of one kind, or read with dec"):
        shardio.ShardDataset(shard, fields={"x": alternatives})
    (sample,) = shardio.ShardDataset(shard, fields={"x": alternatives}, decode=False)
    assert sample["x"] == b"1"


def test_a_stand_in_has_all_its_own_fields(tmp_path: Path) -> None:
    shard = make_shard(
        tmp_path / "a.tar", {"bad": {"png": b"no image"}, "good": {"png": png(3), "cls": b"1"}}
    )
    sample = next(iter(shardio.ShardDataset(shard, on_bad_sample="skip")))
    assert sample["valid"] is False
    assert sample["label"] == 1
    assert int(sample["image"].max()) == 3


def test_a_bad_sample_does_not_set_the_shape_of_its_batch(tmp_path: Path) -> None:
    samples: dict[str, Any] = {"bad": {"png": png(9, 8, 8), "cls": b"no number"}}
    samples |= {str(i): {"png": png(i), "cls": b"1"} for i in range(3)}
    dataset = shardio.ShardDataset(
        make_shard(tmp_path / "a.tar", samples), batch_size=4, on_bad_sample="skip"
    )
    (batch,) = dataset
    assert batch["image"].shape == (4, 3, 4, 6)
    assert batch["valid"].tolist() == [False, True, True, True]
    assert batch["image"].amax(dim=(1, 2, 3)).tolist() == [0, 0, 1, 2]


def test_random_crops_differ_between_shards(packed: Path) -> None:
    """Their numbers belong to the place in the epoch, not to the place in a shard."""
    dataset = shardio.ShardDataset(packed, shuffle=False)
    plan = dataset.plan(0)
    references = plan.references(np.arange(600))
    first = np.flatnonzero(references.indices == 0)
    assert len(first) == 8
    assert len(set(references.positions[first].tolist())) == 8
