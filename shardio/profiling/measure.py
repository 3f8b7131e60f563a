"""One measurement: a loader is watched for some seconds, and what was observed is JSON.

This runs in a process of its own, see shardio.profiling.process. The dataset is repeated, so that
an epoch outlasts the start and the measuring. Another loader, a baseline, is measured on the same
shards with the same crop, decoder, batch size, workers and prefetch; images that do not decode are
skipped by both. The stages of other loaders are not known.

A timeline of what was observed is for Perfetto (https://ui.perfetto.dev), in the Trace Event Format
of Chromium: complete events ("X"), times in microseconds.
"""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from shardio.errors import CodecError, ShardioError, SituationError
from shardio.fields.image import decode_image, forbid_opencv_threads, write_crop
from shardio.indexing.catalog import open_catalog
from shardio.processes import count_cores
from shardio.profiling.ceilings import loop_speed, measure_ceilings
from shardio.profiling.monitoring import Monitor, Received, look_at
from shardio.profiling.process import as_ours
from shardio.profiling.record import ThreadRecords
from shardio.profiling.settings import IMAGES, ProfileSettings, Topology, load_callable
from shardio.profiling.system import drop_from_cache
from shardio.reading.dataset import ShardDataset
from shardio.reading.loader import Loader
from shardio.transforms import RandomResizedCrop, SizedTransform

_MOST_SAMPLES_PER_SECOND = 200_000
_BUDGET = 0.02  # of the reading, for recording
_PART = 0.25  # of a run: as long as each limit is measured, and the speed before and after
_MOST_POINTS = 300  # of the waiting over time
_LEAST_RECEIVED = 3  # batches: the one that ends the start, and two to measure
_LEAST_GROUPED = 8  # batches; workers take turns, which is no news
_BUFFER = 1000  # samples that webdataset shuffles
_STAGES = "read", "decode", "transform"


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what a request asks for.

    Args:
        request: "settings"; "topology" of a loader, or none to measure the ceilings; "baseline" to
            measure another loader; "trace" to write a timeline.

    Returns:
        The attributes of the ceilings; or of a loader its "evidence", "waits" (seconds since the
        beginning, share of the time waited) and "speed" (rate of loops without hand-over around
        it).

    Raises:
        ShardioError: the dataset cannot be read, or a callable of the user failed.
    """
    settings = ProfileSettings(**request["settings"])
    # More workers than cores are measured to show what they cost.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    torch.set_num_threads(1)  # as in workers; and a fork of torch's own threads would hang
    if "topology" not in request:
        return measure_ceilings(_open(settings), _PART * settings.seconds)
    return _run(settings, Topology(**request["topology"]), request)


def _run(settings: ProfileSettings, topology: Topology, request: dict[str, Any]) -> dict[str, Any]:
    dataset = _open(settings)
    step = _step(settings)
    loader: Iterable[Any]
    read: tuple[ShardDataset, ...]
    if request.get("baseline"):
        loader, read = open_baseline(settings, topology), ()
    else:
        repeated = _repeated(settings, topology)
        loader, read = _loader(repeated, topology), (repeated,)
    cores = 1 if topology.kind == "here" else count_cores()
    beside = _PART * settings.seconds
    speed = loop_speed(dataset, cores, beside)
    if settings.cold and not drop_from_cache([shard.path for shard in dataset.catalog.shards]):
        raise SituationError(
            "the shards cannot be dropped from the page cache here", remedy="leave out cold"
        )
    facts = replace(look_at(loader, read), steps=len(dataset))
    with Monitor(loader, live=False, budget=_BUDGET, facts=facts) as seen:
        for batch in seen:
            if isinstance(batch, ShardioError):
                raise batch
            step(batch)
            if seen.seconds >= settings.seconds and len(seen.received) >= _LEAST_RECEIVED:
                break
        del batch
    if len(seen.received) < _LEAST_RECEIVED:
        raise SituationError(
            "the loader ended before it could be measured",
            remedy="give more shards or more seconds",
        )
    speed = (speed + loop_speed(dataset, cores, beside)) / 2
    if request.get("trace"):
        write_trace(request["trace"], seen.received, seen.records)
    return {"evidence": seen.evidence.to_json(), "waits": _waits(seen), "speed": speed}


def _open(settings: ProfileSettings) -> ShardDataset:
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


def _repeated(settings: ProfileSettings, topology: Topology) -> ShardDataset:
    """Open the dataset, repeated until an epoch outlasts the start and the measuring."""
    dataset = _open(settings)
    ahead = max(topology.producers, 1) * topology.prefetch + _LEAST_RECEIVED
    wanted = int((settings.seconds + 1) * _MOST_SAMPLES_PER_SECOND)
    wanted = max(wanted, 2 * ahead * settings.batch_size)
    repeats = -(-wanted // len(dataset.samples))
    return dataset.repeated(repeats)


def _loader(dataset: ShardDataset, topology: Topology) -> Iterable[Any]:
    if topology.kind == "threads":
        return Loader(dataset, threads=topology.producers, prefetch=topology.prefetch)
    workers = topology.producers if topology.kind == "processes" else 0
    ahead = topology.prefetch if workers else None
    return DataLoader(
        _ErrorsAsBatches(dataset), batch_size=None, num_workers=workers, prefetch_factor=ahead
    )


class _ErrorsAsBatches(IterableDataset[Any]):
    """Passes batches on, and an error of theirs as the last one.

    A DataLoader turns an error that leaves its worker into text with a traceback. A batch keeps
    what the error says as values.

    Args:
        dataset: dataset of batches.
    """

    def __init__(self, dataset: Iterable[Any]) -> None:
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._dataset
        except Exception as error:  # whatever it is, the measuring process raises it
            yield as_ours(error)


def _step(settings: ProfileSettings) -> Callable[[Any], object]:
    if settings.train is not None:
        train, place = load_callable(settings.train), settings.train

        def step(batch: Any) -> None:
            try:
                train(batch)
            except Exception as error:
                kind = type(error).__name__
                raise SituationError(
                    f"it raised {kind} for a batch: {error}", where=place
                ) from error

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


def open_baseline(settings: ProfileSettings, topology: Topology) -> Iterable[Any]:
    """Open webdataset, the only baseline, over the same shards."""
    import webdataset  # noqa: PLC0415  only a baseline needs it

    catalog = open_catalog(settings.source, allow_empty=settings.allow_empty)
    shards = [shard.path for shard in catalog.shards]
    dataset = (
        webdataset.WebDataset(
            shards, shardshuffle=len(shards), empty_check=False, nodesplitter=None
        )
        .repeat()
        .shuffle(_BUFFER)
        .map(partial(_sample, _transform(settings)), handler=_skip_bad)
        .batched(settings.batch_size)
    )
    workers = topology.producers if topology.kind == "processes" else 0
    ahead = topology.prefetch if workers else None
    return webdataset.WebLoader(  # type: ignore[no-any-return]
        _ErrorsAsBatches(dataset),
        batch_size=None,
        num_workers=workers,
        worker_init_fn=_begin,
        prefetch_factor=ahead,
    )


def _skip_bad(error: Exception) -> bool:
    """Go on after an image that does not decode, as shardio's loaders do here."""
    if isinstance(error, CodecError):
        return True
    raise error


def _begin(_: int) -> None:
    forbid_opencv_threads()


def _transform(settings: ProfileSettings) -> Any:
    if settings.transform is not None:
        return load_callable(settings.transform)
    return RandomResizedCrop(settings.size) if settings.size else None


def _sample(transform: Any, sample: dict[str, Any]) -> tuple[torch.Tensor, int]:
    name = next(field for field in IMAGES if field in sample)
    return _image(transform, sample[name]), int(sample.get("cls", 0))


def _image(transform: Any, data: bytes) -> torch.Tensor:
    pixels = decode_image(data)
    if isinstance(transform, SizedTransform):
        uniforms = torch.rand(transform.draws).tolist()
        out = np.empty((*transform.size, 3), np.uint8)
        write_crop(pixels, transform.crop(pixels.shape[0], pixels.shape[1], uniforms), out)
        return torch.from_numpy(out)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return torch.as_tensor(transform(image)) if transform is not None else image


def write_trace(path: str, received: Sequence[Received], records: Sequence[ThreadRecords]) -> None:
    """Write a timeline: the loop's waits and steps, each thread's chunks and their samples.

    Raises:
        UsageError: the file cannot be written.
    """
    events = [*_loop(received)]
    for thread in records:
        events += _thread(thread)
    try:
        Path(path).write_text(json.dumps({"traceEvents": events}), "utf-8")
    except OSError as error:
        raise SituationError(f"it cannot be written: {error.strerror}", where=path) from error


def _loop(received: Sequence[Received]) -> Iterator[dict[str, Any]]:
    process = os.getpid()
    yield _name("process_name", process, 0, "training loop")
    yield _name("thread_name", process, process, "the loop")
    for row in received:
        yield _event("wait", process, process, row.asked, row.came - row.asked)
    for row, following in pairwise(received):
        yield _event("step", process, process, row.came, following.asked - row.came)


def _thread(thread: ThreadRecords) -> Iterator[dict[str, Any]]:
    process, number = thread.process, thread.thread
    if process != os.getpid():
        yield _name("process_name", process, 0, "worker")
    yield _name("thread_name", process, number, "makes batches")
    for chunk in thread.chunks:
        samples = {"samples": int(chunk["samples"]), "bytes": int(chunk["bytes"])}
        yield _event("chunk", process, number, chunk["start"], chunk["wall"][0], samples)
    for sample in thread.samples:
        start = int(sample["start"])
        for stage, wall in zip(_STAGES, sample["wall"].tolist(), strict=False):
            if wall:
                yield _event(stage, process, number, start, wall)
            start += wall


def _event(
    name: str, process: int, thread: int, start: int, wall: int, arguments: Any = None
) -> dict[str, Any]:
    event = {
        "name": name,
        "ph": "X",
        "pid": process,
        "tid": thread,
        "ts": int(start) / 1e3,
        "dur": int(wall) / 1e3,
    }
    return event | {"args": arguments} if arguments else event


def _name(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}
