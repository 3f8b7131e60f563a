"""Do fields mean what was stored, after any crop, in any topology, after every rewriting?

Scenes are pictures of random size and orientation with masks (gray and palette PNGs of every depth,
interlaced or not, and arrays), depth, boxes and points, read with random transforms. Right: class
numbers and depth are Pillow's, of nearest pixels, and never others than those stored; pictures are
torchvision's to one gray level; boxes and points are where albumentations has them. NumPy judges
the last three too, alone where the peers are not installed.

Datasets of four kinds (segmentation, detection, stereo with depth, speech) are read by processes of
1, 2 and 4 ranks with 0, 1 and 3 workers and 1 and 3 threads, and resumed from every step on another
topology. Right: every sample of every global batch is the same in all entries.

Values of every field type are packed, resharded, and repaired from a damaged copy. Right: the
values are read that were packed; of a damaged copy, all but the damaged samples.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

import campaign
import children
import kinds
import scenes
import shardio
from shardio.fields.pictures import PixelMask, Pixels
from shardio.testing import make_shard

SCENES = 1000
AT_ONCE = 20
PLACES = 2e-2  # pixels; albumentations counts in 32-bit fractions of a side
BORDER = 1e-3  # around one pixel, where a box may leave or stay
SAMPLES, SHARDS, GLOBAL_BATCH, EPOCHS = 26, 3, 8, 2
STEPS = -(-SAMPLES // GLOBAL_BATCH)


def random_transform(random: np.random.Generator) -> Any:
    size = tuple(random.integers(1, 100, 2).tolist())
    options: dict[str, Any] = {
        "interpolation": str(random.choice(["bilinear", "bicubic", "nearest"])),
        "antialias": bool(random.random() < 0.7),
        "flip": float(random.choice([0, 0.5, 1])),
    }
    kind = random.integers(3)
    if kind == 0:
        return shardio.Resize(size, **options)
    if kind == 1:
        resize = int(random.integers(max(size), 2 * max(size) + 1))
        return shardio.CenterCrop(size, resize=resize, **options)
    return shardio.RandomResizedCrop(size, scale=(0.005, 1), ratio=(0.3, 3), **options)


def part_of(transform: Any, crop: Mapping[str, Any], slot: int) -> scenes.Part:
    """Return the part of a picture that a batch says is in a slot."""
    flip, (height, width) = bool(crop["flip"][slot]), crop["size"][slot].tolist()
    edges = crop["box"][slot].tolist()
    if isinstance(transform, shardio.CenterCrop) and transform.antialias:
        shorter = min(height, width)
        rows, columns = (transform.resize * side // shorter for side in (height, width))
        window = tuple(
            round((a - b) / 2) for a, b in zip((rows, columns), transform.size, strict=True)
        )
        part = scenes.Part((0, 0, width, height), (rows, columns), window, transform.size, flip)
        scale = np.array([width / columns, height / rows])
        start = np.array(window[::-1])
        wanted = [*(start * scale), *((start + transform.size[::-1]) * scale)]
        if not np.allclose(edges, wanted, atol=1e-3):
            raise campaign.Wrong("__crop__ is another box", f"{edges}, not {wanted}")
        return part
    left, top, right, bottom = (round(edge) for edge in edges)
    if not np.allclose(edges, [left, top, right, bottom], atol=1e-3) or not (
        0 <= left < right <= width and 0 <= top < bottom <= height
    ):
        raise campaign.Wrong("__crop__ is no box of whole pixels", edges)
    if isinstance(transform, shardio.Resize) and (right - left, bottom - top) != (width, height):
        raise campaign.Wrong("Resize shows a part", edges)
    return scenes.Part((left, top, right, bottom), transform.size, (0, 0), transform.size, flip)


def judge_scenes(trial: campaign.Trial) -> None:
    random = np.random.default_rng(trial.random.randrange(1 << 32))
    made = {f"{number:03d}": scenes.make_scene(random) for number in range(AT_ONCE)}
    shard = make_shard(
        trial.folder / "scenes.tar", {key: each.fields for key, each in made.items()}
    )
    transform = random_transform(random)
    dataset = shardio.ShardDataset(
        shard, fields=scenes.TYPES, transform=transform, batch_size=AT_ONCE, crops=True
    )
    (batch,) = dataset
    for slot, key in enumerate(batch["__key__"]):
        part, scene = part_of(transform, batch["__crop__"], slot), made[key]
        at = f"{key} of {transform}: {part}"
        judge_values(trial, batch, slot, scene, part, at)
        judge_picture(trial, batch["image"][slot].permute(1, 2, 0).numpy(), scene, part, transform)
        judge_boxes(trial, batch["target"][slot], scene, part, at)
        judge_points(trial, batch["points"][slot].numpy(), scene, part, at)


def judge_values(
    trial: campaign.Trial,
    batch: Mapping[str, Any],
    slot: int,
    scene: scenes.Scene,
    part: scenes.Part,
    at: str,
) -> None:
    for name, values in scene.values.items():
        file = scene.fields.get(f"{name}.png")
        if file is not None and not np.array_equal(scenes.pillow_indices(file), values):
            raise campaign.Wrong("Pillow reads other values than those of the scene", name)
        found, scale = batch[name][slot].numpy(), 1.0
        if name.endswith("depth"):
            found, scale = found[0], 1 / 256 if file else 1.0
        stored = (values * np.float32(scale)).astype(found.dtype)
        wanted = scenes.pillow_nearest(stored, part, scene.picture.shape[:2])
        if not np.isin(found, stored).all():
            trial.wrong(f"{name}: values that are not stored", at)
        elif not np.array_equal(found, wanted):
            trial.wrong(f"{name}: other values than Pillow's nearest", at)
        else:
            trial.right(f"{name}: as Pillow")


def judge_picture(
    trial: campaign.Trial,
    found: NDArray[np.uint8],
    scene: scenes.Scene,
    part: scenes.Part,
    transform: Any,
) -> None:
    interpolation = transform.interpolation
    if not transform.antialias and interpolation != "nearest":
        trial.reasons["not judged: pixels without antialiasing, which are OpenCV's"] += 1
        return
    if interpolation == "nearest":
        planes = [
            scenes.pillow_nearest(plane.astype(np.int32), part, scene.picture.shape[:2])
            for plane in np.moveaxis(scene.picture, -1, 0)
        ]
        wanted = {"Pillow": (np.stack(planes, axis=-1), 0.0)}
    else:
        wanted = {"NumPy": (scenes.numpy_picture(scene.picture, part, interpolation), 1.2)}
        if interpolation == "bicubic":  # bytes between the two passes, of negative weights
            wanted["NumPy"] = wanted["NumPy"][0], 2.0
        if scenes.INSTALLED["torchvision"]:
            theirs = scenes.torchvision_picture(scene.picture, part, interpolation)
            wanted["torchvision"] = theirs.astype(np.float64), 1.0
    for name, (pixels, most) in wanted.items():
        apart = float(np.abs(found.astype(np.float64) - pixels).max())
        if apart > most:
            trial.wrong(f"picture unlike {name}'s", f"by {apart}, {transform}: {part}")
        else:
            trial.right(f"picture: as {name}")


def judge_boxes(
    trial: campaign.Trial,
    found: Mapping[str, Any],
    scene: scenes.Scene,
    part: scenes.Part,
    at: str,
) -> None:
    moved = scenes.numpy_boxes(scene.boxes, part)
    sides = (moved[:, 2:] - moved[:, :2]).min(axis=1)
    clear = {*np.flatnonzero(np.abs(sides - 1) > BORDER).tolist()}  # whether they stay
    numbers = np.flatnonzero(sides >= 1)
    wanted = {"NumPy": (moved[numbers], numbers)}
    if scenes.INSTALLED["albumentations"]:
        wanted["albumentations"] = scenes.albumentations_places(scene, part)[:2]
    labels = found["labels"].tolist()
    if [*found["names"]] != [f"box {label}" for label in labels]:
        trial.wrong("what belongs to boxes is torn apart", at)
    ours = dict(zip(labels, found["boxes"].numpy(), strict=True))
    for name, (boxes, kept) in wanted.items():
        theirs = dict(zip(kept.tolist(), boxes, strict=True))
        if clear & ours.keys() != clear & theirs.keys() or labels != sorted(labels):
            trial.wrong(
                f"other boxes stay than with {name}", f"{sorted(theirs)}, not {labels} {at}"
            )
        elif any(
            np.abs(ours[label] - theirs[label]).max() > PLACES
            for label in ours.keys() & theirs.keys()
        ):
            trial.wrong(f"boxes are not where {name} has them", at)
        else:
            trial.right(f"boxes: as {name}")


def judge_points(
    trial: campaign.Trial, found: NDArray[Any], scene: scenes.Scene, part: scenes.Part, at: str
) -> None:
    wanted = {"NumPy": scenes.numpy_places(scene.points, part)}
    if scenes.INSTALLED["albumentations"]:
        wanted["albumentations"] = scenes.albumentations_places(scene, part)[2]
    order = np.arange(scenes.POINTS)
    if part.flip:
        for one, other in scenes.PAIRS:
            order[[one, other]] = order[[other, one]]
    for name, points in wanted.items():
        apart = np.abs(found - points[order])
        if (apart > PLACES * np.maximum(1, np.abs(points[order]) / 1000)).any():
            trial.wrong(f"points are not where {name} has them", f"{apart.max()} {at}")
        else:
            trial.right(f"points: as {name}")


@dataclass(frozen=True)
class Topology:
    """Numbers of ranks, and of workers and threads of each."""

    ranks: int
    workers: int
    threads: int

    def __str__(self) -> str:
        return f"{self.ranks} ranks, {self.workers} workers, {self.threads} threads"


TOPOLOGIES = [Topology(*each) for each in product((1, 2, 4), (0, 1, 3), (1, 3))]


def read_rank(
    folder: Path, kind: str, topology: Topology, rank: int, state: str, stop: int
) -> tuple[list[list[str]], str]:
    """Read epochs as one rank, from a state on, and stop after so many steps.

    Returns:
        Digests of the samples of each step, and the state behind the last.
    """
    dataset = shardio.ShardDataset(
        folder,
        global_batch_size=GLOBAL_BATCH,
        shuffle=True,
        seed=5,
        rank=rank,
        world_size=topology.ranks,
        **kinds.OPTIONS[kind],
    )
    if state:
        dataset.load_state_dict(json.loads(state))
    threaded = topology.threads > 1 or not topology.workers
    loader: Any = shardio.Loader(dataset, threads=topology.threads) if threaded else dataset
    if topology.workers:
        loader = DataLoader(loader, batch_size=None, num_workers=topology.workers)
    found: list[list[str]] = []
    for _ in range(EPOCHS):
        for batch in loader:
            place = [f"{batch['__epoch__']}, {batch['__step__']}"]
            found.append(place + kinds.digests(batch))
            if len(found) == stop:
                return found, json.dumps(dataset.state_dict(batch))
    return found, ""


def read(
    folder: Path, kind: str, topology: Topology, state: str = "", stop: int = 0
) -> tuple[list[list[str]], str]:
    """Read as read_rank does, a process for each rank, and join the parts of each global batch."""
    parts, states = [], set()
    for rank in range(topology.ranks):
        job = partial(read_rank, folder, kind, topology, rank, state, stop)
        ended = children.in_child(job).check()
        if ended.error:
            raise campaign.Wrong(f"{kind} is refused: {ended.error}", ended.message)
        found, after = ended.value
        parts.append(found)
        states.add(after)
    if len(states) > 1:
        raise campaign.Wrong("ranks have other states", states)
    joined = []
    for steps in zip(*parts, strict=True):
        if len({step[0] for step in steps}) > 1:
            raise campaign.Wrong("ranks are at other steps", [step[0] for step in steps])
        joined.append([digest for step in steps for digest in step[1:]])
    return joined, states.pop()


class Datasets:
    """Datasets of all kinds, made when they are first read, and what one process reads of them."""

    def __init__(self, work: Path) -> None:
        self._work = work
        self._wanted: dict[str, list[list[str]]] = {}

    def folder(self, kind: str) -> Path:
        """Return the folder of a dataset."""
        folder = self._work / kind
        return folder if folder.exists() else kinds.make(kind, folder, SAMPLES, SHARDS)

    def wanted(self, kind: str) -> list[list[str]]:
        """Return digests of all steps, read by one process with one thread."""
        if kind not in self._wanted:
            steps, _ = read(self.folder(kind), kind, Topology(1, 0, 1))
            different = {digest for step in steps for digest in step}
            if len(steps) != EPOCHS * STEPS or len(different) < SAMPLES:
                raise campaign.Wrong("samples of a dataset are missing, or equal", len(different))
            self._wanted[kind] = steps
        return self._wanted[kind]


def judge_topology(
    datasets: Datasets, kind: str, topology: Topology, trial: campaign.Trial
) -> None:
    found, _ = read(datasets.folder(kind), kind, topology)
    compare(trial, found, datasets.wanted(kind), f"{kind}: {topology}")


def judge_resume(datasets: Datasets, kind: str, step: int, trial: campaign.Trial) -> None:
    one, other = trial.random.sample(TOPOLOGIES, 2)
    folder, wanted = datasets.folder(kind), datasets.wanted(kind)
    begun, state = read(folder, kind, one, stop=step)
    compare(trial, begun, wanted[:step], f"{kind}: {step} steps of {one}")
    rest, _ = read(folder, kind, other, state)
    # The rest of the first epoch, or all of the second, counts as the first of EPOCHS.
    compare(
        trial, rest[: len(wanted) - step], wanted[step:], f"{kind}: {step}, {one}, then {other}"
    )


def compare(
    trial: campaign.Trial, found: list[list[str]], wanted: list[list[str]], where: str
) -> None:
    if found == wanted:
        trial.right("same batches")
        return
    apart = [
        step for step, pair in enumerate(zip(found, wanted, strict=False)) if pair[0] != pair[1]
    ]
    lengths = f"{len(found)} steps, not {len(wanted)}" if len(found) != len(wanted) else ""
    trial.wrong("other batches", f"{where}: steps {apart} {lengths}")


def values_of_types() -> dict[str, tuple[Any, list[Any]]]:
    """Return field types with three values of each; bytes where the type encodes no values."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (3, 9, 12, 3), np.uint8)
    planes = pixels[..., 0]
    boxes = [
        {"boxes": random.random((n, 4)).cumsum(axis=1), "labels": [*range(n)]} for n in (2, 0, 5)
    ]
    yolo = [b"0 0.5 0.5 0.25 0.25\n", b"", b"3 0.1 0.2 0.1 0.1\n7 1 1 0 0\n"]
    sounds = [random.uniform(-1, 1, (1, n)).astype(np.float32) for n in (90, 4000, 1)]
    return {
        "Image png": (shardio.Image("png"), [kinds.png(each) for each in pixels]),
        "Image jpg": (shardio.Image("jpg"), [kinds.jpeg(each) for each in pixels]),
        "Mask": (shardio.Mask("mask.png"), [*planes]),
        "Mask of a palette": (
            shardio.Mask("mask.png"),
            [kinds.palette_png(each, random) for each in planes],
        ),
        "Mask int32": (shardio.Mask("mask.png", dtype="int32"), [*planes.astype(np.int32) * 200]),
        "Depth": (shardio.Depth("depth.png", scale=1 / 256), [*planes.astype(np.uint16) * 257]),
        "Depth npy": (shardio.Depth("depth.npy"), [scenes.npy(each / 3) for each in planes]),
        "Boxes": (shardio.Boxes("json", also=["labels"]), boxes),
        "Boxes yolo": (shardio.Boxes("txt", format="yolo"), yolo),
        "Points": (
            shardio.Points("json", flip_pairs=[(0, 1)]),
            [random.random((3, 2)) for _ in range(3)],
        ),
        "Label": (shardio.Label("cls"), [0, -7, 2**62]),
        "MultiLabel": (shardio.MultiLabel("json", classes=5), [[0, 4], [], [2]]),
        "Text": (shardio.Text("txt"), ["", "naïve\r\n", "\u2028 x"]),
        "Json": (shardio.Json("json"), [{"a": [1, None]}, [], "é"]),
        "Array": (shardio.Array("npy"), [*random.normal(size=(3, 2, 5))]),
        "Bytes": (shardio.Bytes("bin"), [b"", b"\0\xff", bytes(513)]),
        "Audio": (shardio.Audio("flac", rate=8000), sounds),
        "Pixels": (Pixels("rgb.npy"), [*pixels]),
        "PixelMask": (PixelMask("mask.rgb.npy"), [*pixels]),
    }


def read_values(folder: Path, type_: Any) -> dict[str, bytes]:
    """Read the samples of a folder with their picture: all of an entry, in bytes, by key."""
    fields = {"picture": "p.png", "entry": type_}
    samples = shardio.ShardDataset(folder, fields=fields)
    return {str(sample["__key__"]): b"\n".join(kinds.parts(sample["entry"])) for sample in samples}


def shown(type_: Any, value: Any) -> Any:
    """Return what a sample holds of a value that was packed as bytes or as itself."""
    decoded = type_.decode(value if isinstance(value, bytes) else type_.encode(value))
    if isinstance(type_, shardio.Boxes) and type_.format == "yolo":
        decoded = {**decoded, "boxes": decoded["boxes"] * np.array([12, 9, 12, 9], np.float32)}
    if type_.geometry == "leads":
        decoded = np.moveaxis(decoded, -1, 0)
    return as_tensors(decoded)


def as_tensors(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: as_tensors(each) for name, each in value.items()}
    return torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value


def judge_identity(name: str, trial: campaign.Trial) -> None:
    type_, values = values_of_types()[name]
    field = type_.alternatives[0]
    picture = kinds.png(np.zeros((9, 12, 3), np.uint8))
    entries = {"entry": type_, "picture": "p.png"}
    rounds = 8
    samples = [
        {"__key__": f"{number:03d}", field: value, "p.png": picture}
        for number, value in enumerate(values * rounds)
    ]
    folder = trial.folder / "packed"
    shardio.pack(samples, folder, shards=3, fields=entries, jobs=1)
    found = read_values(folder, type_)
    for number, value in enumerate(values * rounds):
        if found[f"{number:03d}"] != b"\n".join(kinds.parts(shown(type_, value))):
            raise campaign.Wrong("other values are read than were packed", f"{name} {number}")
    trial.right("read as packed")
    shardio.reshard(folder, trial.folder / "resharded", shards=2, shuffle=True, jobs=1)
    if read_values(trial.folder / "resharded", type_) != found:
        raise campaign.Wrong("other values after reshard", name)
    trial.right("read as packed after reshard")
    path = trial.random.choice(sorted(folder.glob("*.tar")))
    data = bytearray(path.read_bytes())
    data[trial.random.randrange(len(data))] ^= 1 << trial.random.randrange(8)
    path.write_bytes(data)
    shardio.repair(folder, trial.folder / "repaired", jobs=1)
    kept = read_values(trial.folder / "repaired", type_)
    if kept.items() - found.items() or len(kept) < len(found) - 2:
        raise campaign.Wrong("other values after repair", f"{name}: {len(kept)} of {len(found)}")
    trial.right(f"read as packed after repair, {len(found) - len(kept)} samples lost")


def cases(work: Path) -> Iterator[campaign.Case]:
    torch.set_num_threads(1)  # a forked child would wait for threads of OpenMP that it has not
    for name, installed in scenes.INSTALLED.items():
        if not installed:
            yield campaign.skipped(f"{name} is not installed, NumPy judges alone")
    for number in range(SCENES // AT_ONCE):
        yield campaign.Case(f"scenes {number}", judge_scenes)
    datasets = Datasets(work)
    for kind in kinds.SAMPLES:
        for topology in TOPOLOGIES:
            run = partial(judge_topology, datasets, kind, topology)
            yield campaign.Case(f"topology: {kind}, {topology}", run)
        for step in range(1, EPOCHS * STEPS):
            run = partial(judge_resume, datasets, kind, step)
            yield campaign.Case(f"resume: {kind}, step {step}", run)
    for name in values_of_types():
        yield campaign.Case(f"identity: {name}", partial(judge_identity, name))


if __name__ == "__main__":
    campaign.main(__doc__, cases)
