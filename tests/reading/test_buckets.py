"""Aspect-ratio buckets, as a training loop gets them."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import shardio
from shardio.cli import commands

BUCKETS = shardio.Buckets(32 * 32, step=8)  # 16×56 to 56×16 with ratios up to 2
SIZES = [(30, 64), (40, 50), (48, 48), (64, 33), (50, 40), (33, 64), (100, 20)]


@pytest.fixture(scope="module")
def art(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 pictures in seven sizes, unevenly many."""
    root, numbers = tmp_path_factory.mktemp("art"), np.random.default_rng(0)
    (root / "images").mkdir()
    for number in range(150):
        size = SIZES[min(int(numbers.exponential(2)), 6)]
        pixels = cv2.resize(numbers.integers(0, 256, (4, 4, 3), np.uint8), size[::-1])
        cv2.imwrite(str(root / "images" / f"{number:03}.png"), pixels)
    shardio.pack(root / "images", root / "out", shards=6)
    return root / "out"


def open_dataset(folder: Path | list[Path], **options: Any) -> shardio.ShardDataset:
    given: dict[str, Any] = {"transform": BUCKETS, "shuffle": True, "window": 2}
    return shardio.ShardDataset(folder, **given | {"global_batch_size": 12} | options)


def sizes_of(folder: Path) -> dict[str, tuple[int, int]]:
    """The bucket that each sample belongs to, from its decoded picture."""
    found = {}
    for sample in shardio.ShardDataset(folder):
        ratio = np.log(sample["image"].shape[1] / sample["image"].shape[2])
        near = [abs(ratio - np.log(height / width)) for height, width in BUCKETS.sizes]
        found[sample["__key__"]] = BUCKETS.sizes[int(np.argmin(near))]
    return found


Rows = dict[int, list[tuple[str, bool, bytes]]]


def read(
    folder: Path,
    ranks: int,
    workers: int,
    *,
    state: Any = None,
    steps: int | None = None,
    **options: Any,
) -> tuple[Rows, dict[str, Any]]:
    """Keys, validity and pixels of each step, and the state after the last one."""
    found: Rows = {}
    shapes: dict[int, set[tuple[int, ...]]] = {}
    for rank in range(ranks):
        dataset = open_dataset(folder, rank=rank, world_size=ranks, **options)
        if state is not None:
            dataset.load_state_dict(state)
        context: Any = {"multiprocessing_context": "fork"} if workers else {}
        loader = DataLoader(dataset, batch_size=None, num_workers=workers, **context)
        assert state is not None or len(loader) == len(dataset)
        for batch in islice(loader, steps):
            step, images = batch["__step__"], batch["image"]
            shapes.setdefault(step, set()).add((len(images), *images.shape[2:]))
            pixels = [image.tobytes() for image in images.permute(0, 2, 3, 1).numpy()]
            rows = zip(batch["__key__"], batch["valid"].tolist(), pixels, strict=True)
            found.setdefault(step, []).extend(rows)
            after = dataset.state_dict(batch)
    assert all(len(each) == 1 for each in shapes.values())  # one shape a step on all ranks
    return found, after


def test_every_step_has_one_bucket_and_every_sample_comes_once(art: Path) -> None:
    """sd-scripts#473: leftovers. novelai-aspect-ratio-bucketing#3: shapes that differ by rank."""
    expected = sizes_of(art)
    for tail in ("pad", "even"):
        found, _ = read(art, 3, 2, tail=tail)
        times = Counter(key for rows in found.values() for key, valid, _ in rows if valid)
        assert times == dict.fromkeys(expected, 1)
        for rows in found.values():
            (size,) = {expected[key] for key, _, _ in rows}
            assert {len(pixels) for _, _, pixels in rows} == {size[0] * size[1] * 3}
        pads = sum(not valid for rows in found.values() for _, valid, _ in rows)
        assert pads <= (2 if tail == "even" else 11) * len({*expected.values()})
    full = sum(count // 12 for count in Counter(expected.values()).values())
    assert len(open_dataset(art, tail="drop")) == full == len([*open_dataset(art, tail="drop")])


@pytest.mark.parametrize(("before", "then"), [((1, 0), (3, 2)), ((4, 2), (2, 0)), ((2, 3), (6, 1))])
def test_a_run_goes_on_with_the_same_steps_on_other_ranks_and_workers(
    art: Path, before: tuple[int, int], then: tuple[int, int]
) -> None:
    whole, _ = read(art, 1, 0)
    first, state = read(art, *before, steps=5)
    rest, state = read(art, *then, state=state)
    assert first | rest == whole
    assert not first.keys() & rest.keys()
    assert (state["epoch"], state["step"]) == (1, 0)
    with pytest.raises(shardio.UsageError, match=r"buckets was '[0-9a-f]+', is "):
        open_dataset(art, transform=shardio.Buckets(32 * 32, step=4)).load_state_dict(state)


def test_threads_deliver_the_same_batches(art: Path) -> None:
    plain = [batch["image"] for batch in open_dataset(art)]
    loaded = [batch["image"].clone() for batch in shardio.Loader(open_dataset(art), threads=3)]
    assert all(torch.equal(one, other) for one, other in zip(plain, loaded, strict=True))


def test_an_image_is_cropped_to_its_bucket_and_resized(art: Path) -> None:
    """To the pixel as OpenCV does it, for the central crop without averaging."""
    plain = shardio.Buckets(32 * 32, step=8, place="center", antialias=False)
    originals = {
        sample["__key__"]: sample["image"].permute(1, 2, 0).numpy()
        for sample in shardio.ShardDataset(art)
    }
    expected: dict[str, NDArray[np.uint8]] = {}
    for key, (rows, columns) in sizes_of(art).items():
        height, width = originals[key].shape[:2]
        high, wide = (
            min(height, round(width * rows / columns)),
            min(width, round(height * columns / rows)),
        )
        top, left = (height - high) // 2, (width - wide) // 2
        crop = np.ascontiguousarray(originals[key][top : top + high, left : left + wide])
        expected[key] = cv2.resize(crop, (columns, rows)).astype(np.uint8)
    for batch in open_dataset(art, transform=plain):
        for key, image in zip(batch["__key__"], batch["image"], strict=True):
            difference = image.permute(1, 2, 0).numpy().astype(int) - expected[key]
            assert np.abs(difference).max() <= 1


def test_an_image_that_has_the_size_of_a_bucket_stays_as_it_is(tmp_path: Path) -> None:
    """sd-scripts#543: pictures of exactly a bucket's size were shrunk to another one."""
    numbers = np.random.default_rng(0)
    images = [numbers.integers(0, 256, (*size, 3), np.uint8) for size in BUCKETS.sizes * 2]
    samples = {
        f"{at:02}": {"png": cv2.imencode(".png", image[..., ::-1])[1].tobytes()}
        for at, image in enumerate(images)
    }
    shardio.testing.make_shard(tmp_path / "a.tar", samples)
    seen = 0
    for batch in open_dataset(tmp_path, global_batch_size=2, tail="drop"):
        for key, image in zip(batch["__key__"], batch["image"], strict=True):
            assert torch.equal(image.permute(1, 2, 0), torch.from_numpy(images[int(key)]))
            seen += 1
    assert seen == len(images)


def test_random_crops_move_along_the_side_that_is_too_long(art: Path) -> None:
    dataset = open_dataset(art, crops=True, transform=shardio.Buckets(32 * 32, step=8, flip=0.5))
    fitting, offsets, flips = 0, set(), set()
    for batch in dataset:
        rows, columns = batch["image"].shape[2:]
        boxes, sizes = batch["__crop__"]["box"], batch["__crop__"]["size"]
        flips |= {*batch["__crop__"]["flip"].tolist()}
        for (left, top, right, bottom), (height, width) in zip(
            boxes.tolist(), sizes.tolist(), strict=True
        ):
            assert (bottom - top == height) or (right - left == width)
            assert (bottom - top) / (right - left) == pytest.approx(rows / columns, rel=0.05)
            fitting += bottom - top == height and right - left == width
            offsets.add((left, top))
    assert len(offsets) > 10
    assert flips == {True, False}


def test_samples_and_parts_have_the_sizes_of_their_buckets(art: Path) -> None:
    expected = sizes_of(art)
    dataset = open_dataset(art)
    for index in (0, 17, -1):
        sample = dataset[index]
        assert tuple(sample["image"].shape[1:]) == expected[sample["__key__"]]
    part = dataset.subset(range(20, 90)).split(0.5)[0].replace(tail="even", shuffle=False)
    keys = []
    for batch in part:
        assert {tuple(batch["image"].shape[2:])} == {expected[key] for key in batch["__key__"]}
        keys += batch["__key__"]
    assert len(keys) == len({*keys}) == 35
    assert sum(int(batch["valid"].sum()) for batch in dataset.repeated(2)) == 300


def test_samples_that_never_come_are_counted(art: Path, caplog: pytest.LogCaptureFixture) -> None:
    """OneTrainer#573: buckets of less than a batch were left out whole, and nobody knew of whom."""
    expected = sizes_of(art)
    counts = Counter(expected.values())
    rare = {key for key, size in expected.items() if counts[size] < 30}
    assert 0 < len(rare) < 60
    dataset = open_dataset(art, tail="drop", global_batch_size=30)
    seen = {key for _ in range(40) for batch in dataset for key in batch["__key__"]}
    assert seen == {*expected} - rare
    noted = (
        f"{len(rare)} samples are in buckets that never fill a global batch of 30, and tail='drop'"
    )
    assert caplog.text.count(noted) == 1
    caplog.clear()
    assert {key for batch in open_dataset(art) for key in batch["__key__"]} == {*expected}
    assert not caplog.text


def test_sizes_that_no_index_has_are_read_once(
    art: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = []
    for shard in sorted(art.glob("*.tar")):
        shards.append(tmp_path / shard.name)
        shards[-1].write_bytes(shard.read_bytes())
    foreign = open_dataset([*shards])
    assert "150 samples were read for the size of the picture" in caplog.text
    for one, other in zip(foreign, open_dataset(art), strict=True):
        assert one["__key__"] == other["__key__"]
        assert torch.equal(one["image"], other["image"])


def test_a_damaged_picture_is_replaced_in_its_step(art: Path, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for sample in shardio.ShardDataset(art, fields={"png": "png"}, decode=False):
        (tmp_path / "images" / f"{sample['__key__']}.png").write_bytes(sample["png"])
    (tmp_path / "images" / "017.png").write_bytes(b"no picture")
    tar = tmp_path / "all.tar"
    shardio.testing.make_shard(
        tar,
        {path.stem: {"png": path.read_bytes()} for path in sorted((tmp_path / "images").iterdir())},
    )
    with pytest.raises(shardio.SampleError, match="017"):
        [*open_dataset(tar)]
    dataset = open_dataset(tar, on_bad_sample="skip", tail="even")
    assert sum(int(batch["valid"].sum()) for batch in dataset) == 149
    assert dataset.num_bad_samples == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": 4}, r"streams with transform=Buckets\(…\): .* differ from stream to stream"),
        ({"weights": [1] * 150}, "weights with transform=.* differ from epoch to epoch"),
        ({"epoch_size": 12}, "epoch_size with transform=.* differ from epoch to epoch"),
        ({"global_batch_size": None}, "given with batch_size or global_batch_size"),
        ({"decode": False}, "left out with decode=False"),
        ({"global_batch_size": 200, "tail": "drop"}, "do not fill one global batch"),
    ],
)
def test_what_does_not_go_with_buckets_is_refused(art: Path, options: Any, message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        open_dataset(art, **options)


def test_buckets_that_are_set_are_refused_since_they_decide_the_order(art: Path) -> None:
    bucketed, plain = open_dataset(art), open_dataset(art, transform=shardio.Resize((16, 16)))
    for dataset, other in ((bucketed, plain), (plain, bucketed)):
        kept = dataset.transform
        with pytest.raises(shardio.UsageError, match="decide the order of the samples; make ano"):
            dataset.transform = other.transform
        assert dataset.transform == kept


def test_a_mixture_refuses_buckets(art: Path) -> None:
    with pytest.raises(shardio.UsageError, match=r"source 0 has transform=Buckets"):
        shardio.Mix([open_dataset(art)], weights=[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"area": 63, "step": 8}, "area=63: it must be a whole number, at least 64"),
        ({"step": 0}, "step=0"),
        ({"ratio": 0.5}, "ratio=0.5: it must be a number, at least 1"),
        ({"area": 192, "step": 8, "ratio": 1}, "ratio=1: it must be larger, as no size with area="),
        ({"place": "left"}, "place='left': it must be 'random' or 'center'"),
        ({"area": 10**10}, r"area=10000000000: it must be at most 2\*\*30 - 1"),
        ({"area": 10**9, "step": 1}, "step=1: it must be larger for so large an area"),
    ],
)
def test_buckets_that_cannot_be_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(shardio.UsageError, match=message):
        shardio.Buckets(**arguments)


def test_sizes_are_multiples_with_all_of_the_area_that_fits() -> None:
    sizes = shardio.Buckets(1024**2, step=64).sizes
    assert len(sizes) == 13
    assert (1024, 1024) in sizes
    assert {(width, height) for height, width in sizes} == {*sizes}
    for height, width in sizes:
        assert height % 64 == width % 64 == 0
        assert height * width <= 1024**2 < (height + 64) * (width + 64)
    assert shardio.Buckets(64, step=8).sizes == ((8, 8),)


def test_plan_shows_the_buckets(art: Path) -> None:
    found = shardio.plan(
        art, global_batch_size=12, ranks=3, buckets=BUCKETS, tail="even", shuffle=True
    )
    assert found.exact
    assert found.buckets is not None
    counts = Counter(sizes_of(art).values())
    assert {(each.height, each.width): each.samples for each in found.buckets} == counts
    assert all(each.steps == -(-each.samples // 12) for each in found.buckets)
    assert all(each.pads == -each.samples % 3 for each in found.buckets)
    assert found.steps == sum(each.steps for each in found.buckets)
    options = ["--batch-size", "4", "--bucket-area", "1024", "--bucket-step", "8"]
    done = CliRunner().invoke(commands, ["plan", str(art), *options, "--ranks", "3"])
    assert done.exit_code == 0, done.output
    assert "32 × 32" in done.output
    assert "bucket" in done.output
