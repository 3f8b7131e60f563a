"""Run one peer on one workload in this process, and print a JSON object.

Some pixels of every image are read. Batches must be uint8 [B, 3, H, W], and every class must have
the expected number of samples.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from peers import PEERS
from sources import files_and_labels
from workloads import WORKLOADS, Workload

LOOKED_AT = 8  # rows and columns of each image, so that somebody reads what was delivered
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> None:
    request = json.loads(sys.argv[1])
    result = JOBS[request.pop("job")](**request)
    print(json.dumps(result), flush=True)


def prepare(peer: str, workload: str, images: str, out: str) -> dict[str, str]:
    """Convert the images; an existing folder is complete and is used as it is."""
    module, folder = importlib.import_module(f"peers.{PEERS[peer].module}"), Path(out)
    if not folder.exists():
        publish(folder, lambda place: module.prepare(Path(images), place, WORKLOADS[workload]))
    return {}


def publish(folder: Path, write: Callable[[Path], None]) -> None:
    """Write a folder that is complete or absent."""
    unfinished = folder.parent / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    write(unfinished / folder.name)
    (unfinished / folder.name).rename(folder)
    unfinished.rmdir()


def run(peer: str, workload: str, images: str, out: str, repeats: int) -> dict[str, float]:
    """Read everything; `images` is the folder of the expected labels."""
    wanted = np.bincount([label for _, label in files_and_labels(Path(images))]) * repeats
    task = WORKLOADS[workload]
    module = importlib.import_module(f"peers.{PEERS[peer].module}")
    reads: Callable[..., Iterator[Any]] = getattr(module, PEERS[peer].reads)
    cpu, start = cpu_seconds(), time.perf_counter()
    first, seconds, first_images = 0.0, 0.0, 0
    found, colours, looked_at = np.zeros(len(wanted), np.int64), np.zeros(3), 0
    for pixels, labels in reads(Path(out), task, repeats):
        check(pixels, len(labels), task)
        some = np.asarray(pixels)[:, :, :: task.size // LOOKED_AT, :: task.size // LOOKED_AT]
        colours, looked_at = colours + some.sum((0, 2, 3)), looked_at + some[:, 0].size
        found += np.bincount(np.asarray(labels, np.int64).ravel(), minlength=len(wanted))
        seconds = time.perf_counter() - start
        if not first:
            first, first_images = seconds, len(labels)
    if not np.array_equal(found, wanted):
        raise ValueError(f"it gave {found.tolist()} samples of the classes, not {wanted.tolist()}")
    return {
        "images": int(found.sum()),
        "seconds": seconds,
        "first": first,
        "first_images": first_images,
        "cpu": cpu_seconds() - cpu,
        **dict(zip(("red", "green", "blue"), (colours / looked_at).tolist(), strict=True)),
    }


def prepare_task(module: str, task: str, loader: str, files: str, out: str) -> dict[str, str]:
    """Convert the files of a task."""
    from peers.tasks import LOADERS  # noqa: PLC0415  only where it is run

    chosen = importlib.import_module(f"peers.{module}").TASKS[task]
    publish(Path(out), lambda place: LOADERS[loader].prepare(chosen, Path(files), place))
    return {}


def run_task(
    module: str, task: str, loader: str, out: str, repeats: int, count: int
) -> dict[str, Any]:
    """Read all samples of a task `repeats` times, which must be `count`."""
    from peers.tasks import LOADERS  # noqa: PLC0415  as above

    chosen = importlib.import_module(f"peers.{module}").TASKS[task]
    forms, sums = dict[str, str](), dict[str, float]()
    cpu, start = cpu_seconds(), time.perf_counter()
    images, seconds, first, first_images = 0, 0.0, 0.0, 0
    step = chosen.transform.size[0] // LOOKED_AT
    for batch in LOADERS[loader].batches(chosen, Path(out), repeats):
        size = len(batch[next(iter(chosen.fields))])
        for name in chosen.fields:
            form, mean = look_at(batch[name], step)
            if forms.setdefault(name, form) != form:
                raise ValueError(f"{name} is {form} after {forms[name]}")
            sums[name] = sums.get(name, 0.0) + mean * size
        images += size
        seconds = time.perf_counter() - start
        if not first:
            first, first_images = seconds, images
    if images != count:
        raise ValueError(f"it gave {images} samples, not {count}")
    entries = {name: (form, sums[name] / images) for name, form in forms.items()}
    found = {"images": images, "seconds": seconds, "first": first, "first_images": first_images}
    return {**found, "cpu": cpu_seconds() - cpu, "entries": entries}


def look_at(entry: Any, step: int) -> tuple[str, float]:
    """Return what a sample of an entry is, and the mean of some values; of boxes their number."""
    if not isinstance(entry, torch.Tensor):
        return "boxes", sum(len(each["boxes"]) for each in entry) / len(entry)
    shape = "×".join(map(str, entry.shape[1:])) or "number"
    some = entry[..., ::step, ::step] if entry.ndim > 2 else entry
    return f"{shape} {str(entry.dtype).removeprefix('torch.')}", float(some.double().mean())


def check(pixels: Any, count: int, workload: Workload) -> None:
    shape, dtype = tuple(pixels.shape), str(pixels.dtype).removeprefix("torch.")
    if (shape, dtype) != ((count, 3, workload.size, workload.size), "uint8"):
        raise ValueError(f"a batch is {dtype} {shape}")


def cpu_seconds() -> float:
    """Return the CPU time of this process and of all its descendants, running or not."""
    return cpu_of_tree(os.getpid())


def cpu_of_tree(process: int) -> float:
    own, children = 0.0, list[str]()
    with suppress(OSError):  # the process has ended
        fields = Path(f"/proc/{process}/stat").read_text("ascii").rpartition(")")[2].split()
        own = sum(map(int, fields[11:15])) / TICKS
        for path in Path(f"/proc/{process}/task").glob("*/children"):
            with suppress(OSError):  # the thread has ended
                children += path.read_text("ascii").split()
    return own + sum(cpu_of_tree(int(child)) for child in children)


def decode_ceiling(workload: str, images: str, repeats: int) -> dict[str, float]:
    import ceilings  # noqa: PLC0415  as a peer's module, only where it is run

    cpu = cpu_seconds()
    count, seconds = ceilings.decode_at_most(Path(images), WORKLOADS[workload], repeats)
    result = {"images": count, "seconds": seconds, "cpu": cpu_seconds() - cpu}
    return {**result, "first": 0.0, "first_images": 0}


def mount_ceiling(out: str, read_size: int) -> dict[str, float]:
    import ceilings  # noqa: PLC0415

    count, seconds = ceilings.read_at_most(Path(out), read_size)
    return {"bytes": count, "seconds": seconds}


def remote(measure: str, **request: Any) -> dict[str, Any]:
    """Measure reading from a store."""
    import remote_jobs  # noqa: PLC0415

    return remote_jobs.MEASURES[measure](**request)


def bare() -> dict[str, float]:
    """Import what every peer imports, and do nothing else."""
    time.sleep(0.5)
    return {"modules": len((cv2.__name__, np.__name__, torch.__name__))}


def sheet(peer: str, workload: str, out: str, picture: str) -> dict[str, Any]:
    """Save the first batch as a contact sheet and return its mean colour."""
    module = importlib.import_module(f"peers.{PEERS[peer].module}")
    pixels, _ = next(iter(getattr(module, PEERS[peer].reads)(Path(out), WORKLOADS[workload], 1)))
    shown = np.asarray(pixels)[:16].transpose(0, 2, 3, 1)
    rows = [np.hstack([*shown[start : start + 8]]) for start in range(0, len(shown) // 8 * 8, 8)]
    cv2.imwrite(picture, cv2.cvtColor(np.vstack(rows), cv2.COLOR_RGB2BGR))
    return {"colour": np.asarray(pixels).mean((0, 2, 3)).round(1).tolist()}


JOBS: dict[str, Callable[..., dict[str, Any]]] = {
    "prepare": prepare,
    "run": run,
    "prepare_task": prepare_task,
    "run_task": run_task,
    "decode_ceiling": decode_ceiling,
    "mount_ceiling": mount_ceiling,
    "remote": remote,
    "bare": bare,
    "sheet": sheet,
}

if __name__ == "__main__":
    main()
