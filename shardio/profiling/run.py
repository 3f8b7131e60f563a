"""One measurement, in a process of its own: a request as JSON in, what was seen as JSON out.

`child.ask` starts it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from shardio.errors import SituationError
from shardio.plan.samples import Samples
from shardio.profiling.baseline import open_baseline
from shardio.profiling.ceilings import loop_speed, measure_ceilings
from shardio.profiling.failures import one_sentence
from shardio.profiling.loop import Monitor
from shardio.profiling.settings import Settings, Topology, load_callable
from shardio.profiling.system import drop_from_cache
from shardio.profiling.trace import write_trace
from shardio.reading.dataset import ShardDataset
from shardio.reading.loader import Loader
from shardio.reading.processes import count_cores
from shardio.transforms import RandomResizedCrop

_MOST_SAMPLES_PER_SECOND = 200_000
_BUDGET = 0.02  # of the reading, for recording
_PART = 0.25  # of a run: as long as each limit is measured, and the speed before and after
_MOST_POINTS = 300  # of the waiting over time
_SECONDS_BETWEEN_LOOKS = 0.5  # for the parent
_LEAST_RECEIVED = 3  # batches: the one that ends the start, and two to measure
_LEAST_GROUPED = 8  # batches; workers take turns, which is no news


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what a request asks for.

    Args:
        request: "settings", and "topology" for a run or none for the ceilings; "baseline" for a
            run of another loader, "trace" for a file to write.

    Returns:
        Of a run "evidence", "waits": [seconds since its begin, share of the time waited], and
        "speed": what loops without hand-over reached around it. Of the ceilings their attributes.

    Raises:
        ShardioError: the dataset cannot be read, or an argument cannot be meant.
    """
    settings = Settings(**request["settings"])
    # More workers than cores are measured to show what they cost.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    torch.set_num_threads(1)  # as in workers; and a fork of torch's own threads would hang
    if "topology" not in request:
        return measure_ceilings(_open(settings), _PART * settings.seconds)
    return _run(settings, Topology(**request["topology"]), request)


def _run(settings: Settings, topology: Topology, request: dict[str, Any]) -> dict[str, Any]:
    dataset = _open(settings)
    step = _step(settings)
    loader: Iterable[Any]
    if request.get("baseline"):
        loader = open_baseline(request["baseline"], settings, topology)
    else:
        loader = _loader(_repeated(settings, topology), topology)
    cores = 1 if topology.kind == "here" else count_cores()
    beside = _PART * settings.seconds
    speed = loop_speed(dataset, cores, beside)
    if settings.cold and not drop_from_cache([shard.path for shard in dataset.catalog.shards]):
        raise SituationError(
            "the shards cannot be dropped from the page cache here; leave out --cold"
        )
    with Monitor(loader, live=False, budget=_BUDGET).with_steps(len(dataset)) as seen:
        for batch in seen:
            step(batch)
            if seen.seconds >= settings.seconds and len(seen.received) >= _LEAST_RECEIVED:
                break
        del batch
    if len(seen.received) < _LEAST_RECEIVED:
        raise SituationError(
            "the loader ended before it could be measured: the shards are too few, or --seconds is "
            "too short"
        )
    speed = (speed + loop_speed(dataset, cores, beside)) / 2
    if request.get("trace"):
        write_trace(request["trace"], seen.received, seen.records)
    return {"evidence": seen.evidence.to_json(), "waits": _waits(seen), "speed": speed}


def _open(settings: Settings) -> ShardDataset:
    transform: Any = RandomResizedCrop(settings.size) if settings.size else None
    if settings.transform is not None:
        transform = load_callable(settings.transform)
    return ShardDataset(
        settings.source,
        transform=transform,
        batch_size=settings.batch_size,
        shuffle=True,
        on_bad_sample="skip",
        allow_empty=settings.allow_empty,
    )


def _repeated(settings: Settings, topology: Topology) -> ShardDataset:
    """The dataset, repeated so that an epoch outlasts the start and the measuring."""
    dataset = _open(settings)
    shards = dataset.catalog.shards
    ahead = max(topology.producers, 1) * topology.prefetch + _LEAST_RECEIVED
    wanted = int((settings.seconds + 1) * _MOST_SAMPLES_PER_SECOND)
    wanted = max(wanted, 2 * ahead * settings.batch_size)
    repeats = -(-wanted // sum(shard.samples for shard in shards))
    dataset.catalog = replace(dataset.catalog, shards=shards * repeats)
    dataset.samples = Samples([shard.samples for shard in dataset.catalog.shards])
    return dataset


def _loader(dataset: ShardDataset, topology: Topology) -> Iterable[Any]:
    if topology.kind == "threads":
        return Loader(dataset, threads=topology.producers, prefetch=topology.prefetch)
    workers = topology.producers if topology.kind == "processes" else 0
    ahead = topology.prefetch if workers else None
    return DataLoader(dataset, batch_size=None, num_workers=workers, prefetch_factor=ahead)


def _step(settings: Settings) -> Callable[[Any], object]:
    if settings.train is not None:
        train, place = load_callable(settings.train), settings.train

        def step(batch: Any) -> None:
            try:
                train(batch)
            except Exception as error:
                kind = type(error).__name__
                raise SituationError(f"{place} raised {kind} for a batch: {error}") from error

        return step
    seconds = settings.step_ms / 1e3
    return (lambda _: time.sleep(seconds)) if seconds else (lambda _: None)


def _waits(seen: Monitor) -> list[tuple[float, float]]:
    rows = [*seen.received]
    group = max(-(-len(rows) // _MOST_POINTS), _LEAST_GROUPED)
    points = []
    for at in range(0, len(rows) - group, group):
        start, end = rows[at].came, rows[at + group].came
        waited = sum(row.came - row.asked for row in rows[at + 1 : at + group + 1])
        points.append(((start - rows[0].came) / 1e9, waited / max(end - start, 1)))
    return points


def main(request: str, place: str, parent: str) -> None:
    """Answer a request.

    Args:
        request: JSON.
        place: of the file to write, in a folder that is the parent's to remove.
        parent: number of the process that asks; when it is gone, so are this one and its workers.
    """
    folder = str(Path(place).parent)
    threading.Thread(target=_end_with_parent, args=(int(parent), folder), daemon=True).start()
    try:
        found = answer(json.loads(request))
    except Exception as error:  # of a user's code, too
        found = {"error": one_sentence(error)}
    written = Path(f"{place}.part")
    written.write_text(json.dumps(found), "utf-8")
    written.rename(place)


def _end_with_parent(parent: int, folder: str) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)
