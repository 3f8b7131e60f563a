"""One measurement: the limits of the machine, or a loader watched for some seconds, as JSON.

This runs in a process of its own, see shardio.profiling.profile.

The ceilings are what the machine can do with these shards, each part alone: the limits of any
loader. Storage, decoding, copying and the hand-over from a worker are measured one after the other,
and loops over the dataset in processes and in threads, in turns, since the speed of a machine
drifts.

For a loader the dataset is repeated, so that an epoch outlasts the start and the measuring. Another
loader, a baseline, is measured on the same shards with the same crop, decoder, batch size, workers
and prefetch; images that do not decode are skipped by both. The stages of other loaders are not
known. A timeline of what was observed is for Perfetto (https://ui.perfetto.dev), in the Trace Event
Format of Chromium: complete events ("X"), times in microseconds.
"""

from __future__ import annotations

import inspect
import json
import multiprocessing
import os
import threading
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from itertools import chain, pairwise, repeat
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from shardio.errors import CodecError, ShardioError, SituationError, argument
from shardio.fields.base import Bytes, FieldType
from shardio.fields.defaults import type_of
from shardio.fields.formats import IMAGE_FIELDS
from shardio.fields.image import forbid_opencv_threads, one_opencv_thread, write_crop
from shardio.fields.recorded import Unavailable
from shardio.indexing.catalog import Catalog, open_catalog
from shardio.processes import count_cores
from shardio.profiling.evidence import STAGES, Ceilings, ThreadRecords
from shardio.profiling.monitoring import Monitor, Received, look_at
from shardio.profiling.profile import as_ours
from shardio.profiling.settings import ProfileSettings, Topology, load_callable
from shardio.profiling.store import count_loaded, local_files, measure_store
from shardio.profiling.system import OtherLoad, drop_from_cache, thread_uses
from shardio.reading.dataset import ShardDataset
from shardio.reading.handover import Recycler, Sender
from shardio.reading.kinds import map_values
from shardio.reading.loader import Loader
from shardio.reading.shards import FieldBytes, ShardPool
from shardio.transforms import RandomResizedCrop, SizedTransform

_SLICE = 0.3  # of the seconds, for each turn of what is measured in turns
_ROUNDS = 7
_PAIR = 2
_SAMPLES = 256
_READERS = 8
_PIECE = 1 << 20
_MOST_READ = 256 << 20
_COPIED = 64 << 20
_BATCHES_SKIPPED = 8
_HANDOFFS = 300

Stored = list[FieldBytes | None]
T = TypeVar("T")

_MOST_SAMPLES_PER_SECOND = 200_000
_BUDGET = 0.02  # of the reading, for recording
_PART = 0.25  # of a run: as long as each limit is measured, and the speed before and after
_MOST_POINTS = 300  # of the waiting over time
_LEAST_RECEIVED = 3  # batches: the one that ends the start, and two to measure
_LEAST_GROUPED = 8  # batches; workers take turns, which is no news
_BUFFER = 1000  # samples that webdataset shuffles


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """Measure what a request asks for.

    Args:
        request: "settings"; "topology" of a loader, or none to measure the ceilings, or with
            "store" those of a store, whose shards then are in the cache; "baseline" to measure
            another loader; "trace" to write a timeline.

    Returns:
        The attributes of the ceilings or of StoreLimits; or of a loader its "evidence", "waits"
        (seconds since the beginning, share of the time waited), "speed" (rate of loops without
        hand-over around it) and "others" (see Ceilings).

    Raises:
        ShardioError: the dataset cannot be read, or a callable of the user failed.
    """
    settings = ProfileSettings(**request["settings"])
    # More workers than cores are measured to show what they cost.
    warnings.filterwarnings("ignore", "This DataLoader will create")
    torch.set_num_threads(1)  # as in workers; and a fork of torch's own threads would hang
    if "store" in request:
        catalog = _catalog(settings)
        return measure_store(catalog, count_loaded(catalog.shards, settings.batch_size))
    load = OtherLoad()
    if "topology" in request:
        found = _run(settings, Topology(**request["topology"]), request)
    else:
        found = measure_ceilings(_open(settings), _PART * settings.seconds)
    return {**found, "others": load.cores()}


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
    if settings.cold and not drop_from_cache(local_files(dataset.catalog)):
        raise SituationError(
            "the shards cannot be dropped from the page cache here",
            remedy=f"leave out {argument('cold', True)}",
        )
    whole = sum(shard.samples for shard in dataset.catalog.shards)
    facts = replace(look_at(loader, read), steps=-(-whole // settings.batch_size))
    if facts.remote:  # of a larger dataset, only what is in the cache is read
        facts = replace(facts, cached=1.0)
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
            remedy=f"give more shards, or measure for longer ({argument('seconds')})",
        )
    speed = (speed + loop_speed(dataset, cores, beside)) / 2
    if request.get("trace"):
        write_trace(request["trace"], seen.received, seen.records)
    return {"evidence": asdict(seen.evidence), "waits": _waits(seen), "speed": speed}


def _open(settings: ProfileSettings) -> ShardDataset:
    transform: Any = RandomResizedCrop(settings.size) if settings.size else None
    if settings.transform is not None:
        transform = load_callable(settings.transform)
    dataset = ShardDataset(
        settings.source,
        storage_options=settings.storage_options,
        fields=_fields(settings),
        transform=transform,
        batch_size=settings.batch_size,
        shuffle=True,
        on_bad_sample="skip",
        allow_empty=settings.allow_empty,
    )
    shards = dataset.catalog.shards
    if dataset.catalog.is_remote:
        loaded = count_loaded(shards, settings.batch_size)
        return dataset.subset(range(sum(shard.samples for shard in shards[:loaded])))
    return dataset


def _catalog(settings: ProfileSettings) -> Catalog:
    return open_catalog(
        settings.source, options=settings.storage_options, allow_empty=settings.allow_empty
    )


def _fields(settings: ProfileSettings) -> dict[str, str | FieldType] | None:
    """Return a mapping that reads fields as bytes whose types are not known; None without such."""
    catalog = _catalog(settings)
    unknown = {name for name, each in catalog.types.items() if isinstance(each, Unavailable)}
    if not unknown:
        return None
    stored = ShardDataset(
        settings.source,
        storage_options=settings.storage_options,
        decode=False,
        allow_empty=settings.allow_empty,
    )
    entries = {entry: ";".join(names) for entry, names in stored.fields.items()}
    return {
        entry: Bytes(names) if unknown & {*stored.fields[entry]} else names
        for entry, names in entries.items()
    }


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
            except Exception as error:  # of the user's function
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

    catalog = _catalog(settings)
    shards = local_files(catalog)
    # Versions that know it refuse a worker without shards otherwise; older ones do not mind.
    known = inspect.signature(webdataset.WebDataset).parameters
    unchecked = {"empty_check": False} if "empty_check" in known else {}
    dataset = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), nodesplitter=iter, **unchecked)
        .repeat()
        .shuffle(_BUFFER)
        .map(partial(_sample, _transform(settings), catalog.types), handler=_skip_bad)
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


def _sample(
    transform: Any, types: Mapping[str, FieldType], sample: dict[str, Any]
) -> tuple[torch.Tensor, int]:
    name = next(field for field in sample if field in IMAGE_FIELDS)
    type_ = type_of(name, given=types)
    return _image(transform, type_, sample[name]), int(sample.get("cls", 0))


def _image(transform: Any, type_: FieldType, data: bytes) -> torch.Tensor:
    pixels = type_.decode(data)
    if isinstance(transform, SizedTransform):
        uniforms = torch.rand(transform.draws).tolist()
        out = np.empty((*transform.size, type_.channels), np.uint8)
        write_crop(pixels, transform.crop(pixels.shape[0], pixels.shape[1], uniforms), out)
        return torch.from_numpy(out)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    return torch.as_tensor(transform(image)) if transform is not None else image


def write_trace(path: str, received: Sequence[Received], records: Sequence[ThreadRecords]) -> None:
    """Write a timeline: the loop's waits and steps, each thread's chunks and their samples.

    Raises:
        UsageError: the file cannot be written.
    """
    events = [*_trace_loop(received)]
    for thread in records:
        events += _trace_thread(thread)
    try:
        Path(path).write_text(json.dumps({"traceEvents": events}), "utf-8")
    except OSError as error:
        raise SituationError(f"it cannot be written: {error.strerror}", where=path) from error


def _trace_loop(received: Sequence[Received]) -> Iterator[dict[str, Any]]:
    process = os.getpid()
    yield _name("process_name", process, 0, "training loop")
    yield _name("thread_name", process, process, "the loop")
    for row in received:
        yield _event("wait", process, process, row.asked, row.came - row.asked)
    for row, following in pairwise(received):
        yield _event("step", process, process, row.came, following.asked - row.came)


def _trace_thread(thread: ThreadRecords) -> Iterator[dict[str, Any]]:
    process, number = thread.process, thread.thread
    if process != os.getpid():
        yield _name("process_name", process, 0, "worker")
    yield _name("thread_name", process, number, "makes batches")
    for chunk in thread.chunks:
        samples = {"samples": int(chunk["samples"]), "bytes": int(chunk["bytes"])}
        yield _event("chunk", process, number, chunk["start"], chunk["wall"][0], samples)
    for sample in thread.samples:
        start = int(sample["start"])
        for stage, wall in zip(STAGES, sample["wall"].tolist(), strict=False):
            if wall:
                yield _event(stage, process, number, start, wall)
            start += wall
    for one in thread.maps:
        yield _event("map", process, number, one["start"], one["wall"][0])


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


def measure_ceilings(dataset: ShardDataset, seconds: float) -> dict[str, Any]:
    """Measure the Ceilings of a dataset of batches, as values for JSON.

    Args:
        dataset: dataset of batches.
        seconds: seconds for each part.

    Raises:
        ShardioError: the dataset cannot be read.
    """
    shards = local_files(dataset.catalog)
    some, total = [], 0
    for path in dict.fromkeys(shards):
        if total < _MOST_READ:
            some.append(path)
            total += Path(path).stat().st_size
    cold = _read_all(some, seconds) if drop_from_cache(some) else None
    warm = max(_read_all(some, seconds) for _ in range(2))
    stored = _in_memory(dataset)
    return asdict(
        Ceilings(
            cold=cold,
            warm=warm,
            **_rates(dataset, seconds, decodes=bool(stored)),
            copy=_copy(),
            **_hand_over(next(iter(dataset.replace(shuffle=False))), seconds),
            to_device=_to_device() if torch.cuda.is_available() else None,
            side=_side(stored, dataset.catalog.types),
        )
    )


def loop_speed(dataset: ShardDataset, cores: int, seconds: float) -> float:
    """Return samples per second of one loop per core at once, each in a process of its own.

    It is measured beside each loader, since the speed of a machine drifts: others share its caches,
    its memory and its clock. What the loader loses beside it is the price of working together.

    Args:
        dataset: dataset of batches.
        cores: number of loops.
        seconds: length of each loop.
    """
    return sum(loop.rate for loop in _loops(dataset, cores, seconds))


def _loops(dataset: ShardDataset, cores: int, seconds: float) -> list[_Loop]:
    return _on_cores(partial(_loop, dataset, seconds), cores)


def _rates(dataset: ShardDataset, seconds: float, *, decodes: bool) -> dict[str, Any]:
    """Measure loops, in turns, and the decoding in them, on one core and on all."""
    cores, found, turn = count_cores(), defaultdict[str, list[float]](list), _SLICE * seconds
    for _ in range(_ROUNDS):
        (alone,), loops = _loops(dataset, 1, turn), _loops(dataset, cores, turn)
        one, every = alone.rate, sum(loop.rate for loop in loops)
        found["one"].append(one)
        found["handoff"].append(_hand_on())
        found["speedup"].append(every / one)
        if cores > 1:
            apart = every if cores == _PAIR else loop_speed(dataset, _PAIR, turn)
            together = _loops_in_threads(dataset, _PAIR, turn)
            found["sharing"].append((_PAIR / together - _PAIR / apart) * 1e6)
        if cores > _PAIR:
            found["threads"].append(_loops_in_threads(dataset, cores, turn))
        if decodes:
            found["decode_one"].append(alone.decoding)
            found["decode_all"].append(sum(loop.decoding for loop in loops))
            found["decode_share"].append(alone.decode_share)
    one = median(found["one"])
    rates: dict[str, Any] = {
        "loop_one": one,
        "handoff": median(found["handoff"]),
        "loop_all": one * median(found["speedup"]),
        "sharing": max(median(found["sharing"] or [0.0]), 0.0),
        "loop_threads": median(found["threads"]) if found["threads"] else None,
        "spread": max(_spread(found["one"]), _spread(found["speedup"])),
    }
    names = "decode_one", "decode_all", "decode_share"
    return rates | {name: median(found[name]) if decodes else None for name in names}


def _spread(rounds: Sequence[float]) -> float:
    """Return the spread of rounds, see Ceilings."""
    _, slow, *_, fast, _ = sorted(rounds)
    return (fast - slow) / 2 / median(rounds)


def _loops_in_threads(dataset: ShardDataset, threads: int, seconds: float) -> float:
    """Return samples per second of several loops in threads of this process."""
    datasets = [dataset.replace() for _ in range(threads)]
    return sum(
        loop.rate
        for loop in _on_cores(
            lambda number: _loop(datasets[number], seconds, number), threads, forks=False
        )
    )


def _read_all(paths: list[str], seconds: float) -> float:
    """Return bytes per second of reading files in large pieces, several at once."""
    pieces = [
        (path, offset) for path in paths for offset in range(0, Path(path).stat().st_size, _PIECE)
    ]
    end = time.perf_counter() + 2 * seconds

    def read(piece: tuple[str, int]) -> int:
        if time.perf_counter() > end:
            return 0
        with Path(piece[0]).open("rb", buffering=0) as stream:
            stream.seek(piece[1])
            return len(stream.read(_PIECE))

    start = time.perf_counter()
    with ThreadPoolExecutor(_READERS) as pool:
        total = sum(pool.map(read, pieces))
    return total / (time.perf_counter() - start)


def _in_memory(dataset: ShardDataset) -> list[Stored]:
    """Read the stored bytes of some samples, of none if all fields are gathered as arrays."""
    pool = ShardPool(dataset.catalog.shards)
    columns = dataset.reader(pool, Recycler()).columns(1)
    if all(hasattr(column, "place_rows") for column in columns.values()):
        return []
    plan = dataset.plan(0)
    steps = range(min(plan.num_steps, -(-_SAMPLES // dataset.global_batch_size)))
    references = plan.references(plan.share(steps, 0, dataset.share.world_size))
    wanted = tuple(dataset.fields.values())
    found: list[Stored] = []
    for shard, sample in zip(references.shards.tolist(), references.indices.tolist(), strict=True):
        try:
            fields = pool.get(shard).read(sample, wanted)
        except ShardioError:
            continue
        found.append([one and one._replace(data=bytes(one.data)) for one in fields])
    return found[:_SAMPLES]


def _side(stored: list[Stored], types: Mapping[str, FieldType]) -> float | None:
    sides = []
    for found in filter(None, chain.from_iterable(stored)):
        with suppress(CodecError):
            info = type_of(found.field, given=types).probe(found.data)
            if info is not None:
                sides.append(min(info.height, info.width))
    return sum(sides) / len(sides) if sides else None


def _on_cores(work: Callable[[int], T], cores: int, *, forks: bool = True) -> list[T]:
    """Call a function in several processes at once, with their numbers, and return the results.

    Where processes cannot be forked, threads call it, which share the interpreter's lock.
    """
    pool: Executor
    _work.append(work)
    if forks and "fork" in multiprocessing.get_all_start_methods():
        pool = ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("fork"))
    else:
        pool = ThreadPoolExecutor(cores)
    try:
        with one_opencv_thread(), pool:
            return [*pool.map(_do, range(cores))]
    finally:
        _work.pop()


_work: list[Callable[[int], Any]] = []  # for forks, which need not pickle it


def _do(number: int) -> Any:
    return _work[-1](number)


class _Loop(NamedTuple):
    """Speed of a loop in a process of its own.

    Attributes:
        rate: samples per second.
        decoding: samples per second if nothing but decoding and transforming took time.
        decode_share: share of decoding in the time of both.
    """

    rate: float
    decoding: float
    decode_share: float


def _loop(dataset: ShardDataset, seconds: float, number: int) -> _Loop:
    """Measure a loop over an epoch of its own."""
    batches = chain.from_iterable(iter(dataset) for _ in repeat(None))
    dataset.set_epoch(number)
    next(batches)
    times, before = dataset.times, replace(dataset.times)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        count += len(next(batches)["__key__"])
    rate = count / (time.perf_counter() - start)
    decode = times.decode - before.decode
    both = max(decode + times.transform - before.transform, 1)
    return _Loop(rate, (times.samples - before.samples) / both * 1e9, decode / both)


def _copy() -> float:
    source = np.ones(_COPIED, np.uint8)
    target = np.ones(_COPIED, np.uint8)
    best = 0.0
    for _ in range(5):
        start = time.perf_counter()
        np.copyto(target, source)
        best = max(best, _COPIED / (time.perf_counter() - start))
    return best


def _hand_on() -> float:
    """Return microseconds from the release of a lock until a thread runs that waited for it."""
    here, there = threading.Semaphore(0), threading.Semaphore(0)

    def answer() -> None:
        for _ in range(_HANDOFFS):
            there.acquire()
            here.release()

    other = threading.Thread(target=answer)
    other.start()
    start = time.perf_counter()
    for _ in range(_HANDOFFS):
        there.release()
        here.acquire()
    seconds = time.perf_counter() - start
    other.join()
    return seconds / _HANDOFFS / 2 * 1e6


class _Ready(IterableDataset[dict[str, Any]]):
    """Dataset of batches that take no time to make.

    Args:
        batch: batch like which all are.
    """

    def __init__(self, batch: dict[str, Any]) -> None:
        self._batch = batch

    def __iter__(self) -> Iterator[dict[str, Any]]:
        sender = Sender()
        return sender.send(self._make(sender))

    def _make(self, sender: Sender) -> Any:
        while True:
            yield map_values(partial(_like, sender), self._batch)


def _like(sender: Sender, value: Any) -> Any:
    """Make a tensor of the same shape and dtype; a value of another kind stays as it is."""
    return sender(value.shape, value.dtype) if isinstance(value, torch.Tensor) else value


def _hand_over(batch: dict[str, Any], seconds: float) -> dict[str, float]:
    batches = iter(DataLoader(_Ready(batch), batch_size=None, num_workers=1))
    for _ in range(_BATCHES_SKIPPED):
        next(batches)
    (worker,) = batches._workers  # type: ignore[attr-defined]
    before, cpu, start, count = _cpu_of(worker.pid), time.thread_time(), time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        next(batches)
        count += 1
    return {
        "handover": count / (time.perf_counter() - start),
        "handover_loop": (time.thread_time() - cpu) / count * 1e6,
        "handover_worker": (_cpu_of(worker.pid) - before) / count / 1e3,
    }


def _cpu_of(process: int) -> int:
    return sum(use.cpu for use in thread_uses(process).values())


def _to_device() -> float:
    source = torch.empty(_COPIED, dtype=torch.uint8, pin_memory=True)
    target = torch.empty(_COPIED, dtype=torch.uint8, device="cuda")
    best = 0.0
    for _ in range(5):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = max(best, _COPIED / (time.perf_counter() - start))
    return best
