"""How many shards, how large, and which splits."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import shardio
from shardio.fields.image import decode_image
from shardio.indexing.manifest import read_manifest
from shardio.packing.dedupe import group_alike, hamming
from shardio.packing.plan import PlannedShard, Sharding, Splits, plan_shards, split_samples
from shardio.testing import make_images

FRACTIONS = st.lists(st.integers(1, 9), min_size=1, max_size=4).map(
    lambda weights: {f"p{i}": weight / sum(weights) for i, weight in enumerate(weights)}
)


def ledger(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def keys_of(folder: Path) -> set[str]:
    return {sample["__key__"] for sample in shardio.ShardDataset(folder, decode=False)}


@given(st.integers(1, 300), FRACTIONS, st.integers(0, 3), st.integers(1, 4), st.booleans())
def test_splits_are_a_partition_with_fractions_to_within_a_sample(
    count: int, fractions: dict[str, float], seed: int, classes: int, stratify: bool
) -> None:
    labels = np.arange(count) % classes
    splits = Splits(fractions=fractions, stratify=stratify)
    parts = split_samples(count, splits, seed=seed, labels=labels, groups=None)
    assert sorted(np.concatenate([*parts.values()]).tolist()) == [*range(count)]
    strata = [labels == label for label in range(classes)] if stratify else [labels >= 0]
    for name, numbers in parts.items():
        for stratum in strata:
            wanted = fractions[name] * stratum.sum()
            assert abs(stratum[numbers].sum() - wanted) <= 1


@given(st.data())
def test_no_group_is_on_both_sides_of_a_split(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 60))
    heads = np.array([data.draw(st.integers(0, number)) for number in range(count)])
    while not np.array_equal(heads, heads[heads]):
        heads = heads[heads]
    splits = Splits(fractions=data.draw(FRACTIONS), stratify=data.draw(st.booleans()))
    labels = np.arange(count) % 3
    parts = split_samples(count, splits, seed=0, labels=labels, groups=heads)
    assert sorted(np.concatenate([*parts.values()]).tolist()) == [*range(count)]
    sides = [{*heads[numbers].tolist()} for numbers in parts.values()]
    assert sum(map(len, sides)) == len({*heads.tolist()})


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=80), st.integers(1, 3000), st.booleans())
def test_shards_of_a_size_are_as_few_as_can_be_and_even(
    sizes: list[int], limit: int, shuffle: bool
) -> None:
    parts = {"": np.arange(len(sizes))}
    seed = 0 if shuffle else None
    sharding = Sharding(shard_size=limit)
    if limit - 1024 < min(sizes):
        with pytest.raises(shardio.PackError, match="no sample fits into shards of"):
            plan_shards(parts, sharding, seed=seed, sizes=np.array(sizes))
        return
    planned = plan_shards(parts, sharding, seed=seed, sizes=np.array(sizes))
    orders = [shard.numbers.tolist() for shard in planned]
    order = [number for some in orders for number in some]
    assert sorted(order) == [*range(len(sizes))]
    most = limit - 1024  # what is left beside the end of the archive
    for some in orders:
        assert len(some) == 1 or sum(sizes[number] for number in some) <= most
    fewest, room = 0, -1
    for number in order:
        room -= sizes[number]
        if room < 0:
            fewest, room = fewest + 1, most - sizes[number]
    assert len(orders) == fewest


@given(st.integers(1, 200), FRACTIONS, st.integers(1, 40))
def test_splits_share_the_shards_by_their_sizes(
    count: int, fractions: dict[str, float], shards: int
) -> None:
    splits = Splits(fractions=fractions)
    parts = split_samples(count, splits, seed=0, labels=np.zeros(count, np.int64), groups=None)

    def plan() -> list[PlannedShard]:
        sizes = np.zeros(count, np.int64)
        return plan_shards(parts, Sharding(shards=shards), seed=0, sizes=sizes)

    if min(map(len, parts.values())) == 0 or not len(parts) <= shards <= count:
        with pytest.raises(shardio.PackError):
            plan()
        return
    found = Counter(shard.part for shard in plan())
    assert sum(found.values()) == shards
    assert found.keys() == parts.keys()
    sizes = [len(parts[name]) / number for name, number in found.items()]
    for name, number in found.items():  # nobody could give a shard away and both be better off
        assert number == 1 or max(sizes) <= len(parts[name]) / (number - 1)


def test_no_shard_is_larger_than_asked_for(tmp_path: Path) -> None:
    samples = [{"bin": bytes(512)} for _ in range(45)]  # header and data: 1,024 bytes each
    shardio.pack(samples, tmp_path / "out", shard_size=10_240)
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert sizes == [10_240] * 5  # 9 samples and the end of the archive


def test_each_split_is_a_packed_folder_of_its_own(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    summary = shardio.pack(images, out, shards=10, split={"train": 0.8, "val": 0.2}, stratify=True)
    assert summary.splits == {"train": 480, "val": 120}
    assert sorted(path.name for path in out.iterdir()) == ["train", "val"]
    train, val = (shardio.ShardDataset(out / name) for name in ("train", "val"))
    assert train.classes == val.classes
    assert len(train.classes or ()) == 10
    assert Counter(int(sample["label"]) for sample in val) == dict.fromkeys(range(10), 12)
    assert not keys_of(out / "train") & keys_of(out / "val")
    assert len(read_manifest(out / "train").shards) == 8
    with pytest.raises(shardio.UsageError, match=r"no shards .* it has train, val: name one"):
        shardio.ShardDataset(out)
    with pytest.raises(shardio.PackError, match=r"train: the folder has shards already"):
        shardio.pack(images, out, shards=10, split={"train": 0.8, "val": 0.2})


def test_another_split_takes_up_an_interrupted_one(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def start(_: int) -> Any:
        counts: list[int] = []

        def advance(count: int) -> None:
            counts.append(count)
            if sum(counts) > 400:
                raise RuntimeError("stop")

        return advance

    with pytest.raises(RuntimeError):
        shardio.pack(images, out, shards=10, split={"a": 0.8, "b": 0.2}, jobs=1, progress=start)
    with pytest.raises(shardio.IndexFileError, match="interrupted or still runs"):
        shardio.ShardDataset(out / "a")
    shardio.pack(images, out, shards=4, split={"a": 0.5, "c": 0.5})
    assert sorted(path.name for path in out.iterdir()) == ["a", "c"]
    assert keys_of(out / "a") | keys_of(out / "c") == keys_of_images(images)
    assert len([*(out / "a").iterdir()]) == 2 + 1 + 1


def keys_of_images(folder: Path) -> set[str]:
    return {str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.png")}


@pytest.fixture
def twins(tmp_path: Path) -> Path:
    """Ten pictures; of four there is a copy, of three one that only looks the same."""
    source = tmp_path / "in"
    make_pictures(source, 10)
    for number in range(4):
        data = (source / f"a/{number}.png").read_bytes()
        (source / f"b/{number}.png").write_bytes(data)
    for number in range(4, 7):
        picture = decode_image((source / f"a/{number}.png").read_bytes())[..., ::-1]
        smaller = cv2.resize(picture, (100, 80), interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(source / f"b/{number}.jpg"), smaller, [cv2.IMWRITE_JPEG_QUALITY, 70])
    return source


def make_pictures(source: Path, count: int) -> None:
    numbers = np.random.default_rng(1)
    for folder in ("a", "b"):
        (source / folder).mkdir(parents=True)
    for number in range(count):
        coarse = numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        picture = cv2.resize(coarse, (200, 160), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(source / f"a/{number}.png"), picture)


def test_copies_are_left_out_and_listed(twins: Path, tmp_path: Path) -> None:
    summary = shardio.pack(twins, tmp_path / "out", shards=1, dedupe="exact")
    assert (summary.samples, summary.duplicates) == (13, 4)
    assert ledger(tmp_path / "out/duplicates.jsonl") == [
        {
            "path": f"b/{number}.png",
            "key": f"b/{number}",
            "label": 1,
            "distance": 0,
            "of": f"a/{number}.png",
            "of_label": 0,
        }
        for number in range(4)
    ]
    assert keys_of(tmp_path / "out") == {f"a/{i}" for i in range(10)} | {"b/4", "b/5", "b/6"}


def test_what_looks_alike_is_found_too(twins: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"shards": 1, "dedupe": "perceptual", "dedupe_distance": 6}
    summary = shardio.pack(twins, tmp_path / "out", **options)
    assert (summary.samples, summary.duplicates) == (10, 7)
    assert keys_of(tmp_path / "out") == {f"a/{i}" for i in range(10)}


@pytest.mark.parametrize("jobs", [1, 2])
def test_duplicates_that_are_kept_stay_on_one_side(twins: Path, tmp_path: Path, jobs: int) -> None:
    for seed in range(5):
        out = tmp_path / f"out{seed}"
        summary = shardio.pack(
            twins,
            out,
            shards=2,
            split={"x": 0.5, "y": 0.5},
            seed=seed,
            dedupe="perceptual",
            dedupe_distance=6,
            keep_duplicates=True,
            jobs=jobs,
        )
        assert (summary.samples, summary.duplicates) == (17, 7)
        sides = keys_of(out / "x"), keys_of(out / "y")
        for number in range(7):
            assert any({f"a/{number}", f"b/{number}"} <= side for side in sides)


def test_an_image_that_does_not_decode_is_left_out_of_the_search(
    twins: Path, tmp_path: Path
) -> None:
    data = bytearray((twins / "a/3.png").read_bytes())
    data[data.index(b"IDAT") + 30] ^= 1
    (twins / "a/3.png").write_bytes(data)
    options: dict[str, Any] = {"shards": 1, "dedupe": "perceptual", "dedupe_distance": 6}
    with pytest.raises(shardio.PackError, match=r"a/3\.png: .*corrupt PNG"):
        shardio.pack(twins, tmp_path / "out", **options)
    summary = shardio.pack(twins, tmp_path / "out", **options, on_error="skip")
    assert (summary.samples, summary.duplicates, summary.skipped) == (10, 6, 1)


def test_images_of_one_colour_look_like_nothing(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for value in (0, 90, 255):
        cv2.imwrite(str(tmp_path / f"in/{value}.png"), np.full((50, 50, 3), value, np.uint8))
    summary = shardio.pack(tmp_path / "in", tmp_path / "out", shards=1, dedupe="perceptual")
    assert (summary.samples, summary.duplicates) == (3, 0)


@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=12),
    st.lists(st.tuples(st.integers(0, 11), st.sets(st.integers(0, 63), max_size=6)), max_size=12),
    st.integers(0, 6),
)
def test_groups_are_those_of_comparing_all_with_all(
    hashes: list[int], changes: list[tuple[int, set[int]]], distance: int
) -> None:
    for number, bits in changes:
        hashes = [*hashes, hashes[number % len(hashes)] ^ sum(1 << bit for bit in bits)]
    prints = np.zeros((len(hashes), 3), np.uint64)
    prints[:, 0] = np.arange(len(hashes))
    prints[:, 2] = np.array(hashes, np.uint64)
    expected = [*range(len(hashes))]
    for _ in hashes:
        for one, first in enumerate(hashes):
            for other, second in enumerate(hashes):
                if first and second and (first ^ second).bit_count() <= distance:
                    lower = min(expected[one], expected[other])
                    expected[one] = expected[other] = lower
    assert group_alike(prints, distance).tolist() == expected


def test_hamming_counts_the_bits_that_differ() -> None:
    one = np.array([0, 1, 2**64 - 1, 5], np.uint64)
    assert hamming(one, np.array([0, 0, 0, 6], np.uint64)).tolist() == [0, 1, 64, 2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_shard": 0}, "samples_per_shard=0: it must be a whole number"),
        ({"shards": 1, "split": {"a": 0.5}}, "must be above 0 and add up to 1"),
        (
            {"shards": 1, "split": {"index": 1.0}},
            "'index' cannot be the name of a folder of a split",
        ),
        ({"shards": 1, "dedupe": "nearly"}, "dedupe='nearly': it must be 'exact' or 'perceptual'"),
        (
            {"shards": 1, "dedupe": "perceptual", "dedupe_distance": 17},
            "must be a whole number from 0 to 16",
        ),
        (
            {"shards": 1, "dedupe": "exact", "dedupe_distance": 1},
            "dedupe_distance requires dedupe='perceptual'",
        ),
        ({"shards": 1, "jobs": 0}, "jobs=0: it must be a whole number, at least 1"),
        ({"shards": 1, "engine": "spark"}, "engine='spark': it must be 'local' or 'ray'"),
        ({"shards": 1, "classes": ["a", "a"]}, "'a' comes twice"),
        *(
            ({"shards": 1, "classes": classes}, "it must be a list of names")
            for classes in ("ab", Path, Path("names.txt"), 3, {"a", "b"})
        ),
        ({"shard_size": 9, "resize": 8}, "shard_size: it needs to know what samples take"),
    ],
)
def test_a_shape_that_cannot_be_meant_is_refused(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    make_images(tmp_path / "in", classes=0, per_class=2)
    with pytest.raises(shardio.UsageError, match=message):
        shardio.pack(tmp_path / "in", tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_split_without_samples_is_refused(tmp_path: Path) -> None:
    make_images(tmp_path / "in", classes=0, per_class=2)
    with pytest.raises(shardio.PackError, match="the split 'val' would have no samples"):
        shardio.pack(
            tmp_path / "in", tmp_path / "out", shards=2, split={"train": 0.99, "val": 0.01}
        )
    assert not (tmp_path / "out").exists()


def test_fractions_as_text_are_refused_by_their_form(images: Path, tmp_path: Path) -> None:
    with pytest.raises(
        shardio.UsageError, match=r"split='train=0.8,val=0.2': it must be a mapping"
    ):
        shardio.pack(images, tmp_path / "out", shards=2, split="train=0.8,val=0.2")  # type: ignore[arg-type]
