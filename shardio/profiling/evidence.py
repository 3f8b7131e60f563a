"""What was observed of a loop and measured of a machine, as plain values, and what follows of them.

`Ceilings` are what a machine can do with some shards, each part alone: the limits of any loader.
`Evidence` is what was observed of a loop. `SampleCosts`, made of both, predict how fast a loader
would be with other threads, workers or cores:

Each producer takes the CPU time of a sample, longer where several cores are busy, and the time that
it only waits. All producers share the cores with the loop's own thread. Threads share the
interpreter's lock, which a thread releases some six times per sample, and wait longer the more of
them there are. The loop's thread takes the batches one after the other. The least of these limits
is the rate. What was not measured is assumed: further cores are of the same kind, with the same
loss for each that is busy, and storage keeps up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from shardio.errors import SituationError
from shardio.profiling.record import ThreadRecords, costs_of_recording


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Limits of a machine with some shards.

    Attributes:
        cold: bytes per second from storage, by eight threads; None where the page cache cannot
            be dropped for these files.
        warm: bytes per second from the page cache, by eight threads.
        loop_one: samples per second of a loop over the dataset, on one core.
        loop_all: samples per second of one such loop on each core, together.
        sharing: microseconds that a sample takes longer in two threads of one process than in two
            processes.
        loop_threads: samples per second of loops in threads of one process, one per core; None
            with two cores or fewer.
        decode_one: samples per second that one core decodes and transforms, from memory; None
            where fields are gathered as arrays, many samples at once.
        decode_all: samples per second that a process on each core decodes and transforms.
        decode_share: share of decoding in that time; the rest is the transform.
        copy: bytes per second that one core copies in memory.
        handoff: microseconds until a thread runs that waited for another, as threads do that
            contend for the interpreter's lock.
        handover: batches per second from one worker process that has nothing else to do.
        handover_loop: microseconds of CPU time per batch in the loop's thread.
        handover_worker: microseconds of CPU time per batch in the worker.
        to_device: bytes per second to a CUDA device; None without one.
        side: mean length of the images' shorter side in pixels; None without images.
    """

    cold: float | None
    warm: float
    loop_one: float
    loop_all: float
    sharing: float
    loop_threads: float | None
    decode_one: float | None
    decode_all: float | None
    decode_share: float | None
    copy: float
    handoff: float
    handover: float
    handover_loop: float
    handover_worker: float
    to_device: float | None
    side: float | None

    @property
    def speedup(self) -> float:
        """Rate of all cores over that of one."""
        return max(self.loop_all / self.loop_one, 1.0)


ProducerKind = Literal["processes", "threads", "here"]
"""Kind of what makes batches: worker processes, threads, or the loop's own thread."""

_STAGES = "read", "decode", "transform"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Microseconds of a sample in one stage.

    Attributes:
        wall: mean wall time.
        cpu: mean CPU time.
        p50: median wall time.
        p99: wall time that one sample of a hundred exceeds.
    """

    wall: float
    cpu: float
    p50: float
    p99: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Stages:
    """Time of a sample by stage, in the thread that makes it, in microseconds.

    Attributes:
        read: getting the bytes from storage and checking them.
        decode: turning bytes into pixels or values.
        transform: crop, resize, the user's transform.
        batch: the rest of filling a batch; its p50 and p99 are those of chunks.
        outside: CPU time between chunks: the plan, and handing batches over.
        waiting: other time between chunks, when nobody asked for a batch.
        total: wall time of all these parts, measured as one.
        delay: part of the total that threads waited for a core.
        lock: part of decode, transform and batch in which the thread neither ran nor waited for a
            core: the wait for the interpreter's lock, or for what a transform waits for.
        bytes: stored bytes.
        recorded: share of the samples that was recorded.
        overhead: share of the time that recording took.
    """

    read: Stage
    decode: Stage
    transform: Stage
    batch: Stage
    outside: float
    waiting: float
    total: float
    delay: float
    lock: float
    bytes: float
    recorded: float
    overhead: float

    @property
    def cpu(self) -> float:
        """CPU time of a sample in its thread."""
        return sum(part.cpu for part in (self.read, self.decode, self.transform, self.batch))

    @property
    def blocked_read(self) -> float:
        """Time of read other than CPU time."""
        return max(self.read.wall - self.read.cpu, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Producer:
    """A process or thread that makes batches.

    Attributes:
        number: number of the process or thread.
        cpu: share of the time that it ran; in a process, all threads together.
        delay: share of the time that its threads waited for a core.
        busy_threads: number of its threads that ran for more than a twentieth of its CPU time.
        filling: share of the time that it filled batches; None where not recorded.
    """

    number: int
    cpu: float
    delay: float
    busy_threads: int
    filling: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Observations of a loop, after its first batches.

    Attributes:
        cores: number of cores that the process may use.
        kind: kind of the producers.
        producers: what made batches; none for the loop's own thread. Each epoch may have others.
        number: number of producers at the same time.
        seconds: seconds observed.
        batches: batches received.
        samples: samples in these batches.
        slices: samples per second in equal parts of the time.
        waiting: share of the time that the loop waited for batches.
        receiving: share of the time that the loop's thread ran while it waited.
        ready: share of the batches that the loop did not wait for.
        turns: share of the waiting by turn of the producers.
        first_batch: seconds from asking for an iterator to the first batch.
        starting: share of an epoch's time before its first batch.
        restarts: whether each epoch starts workers.
        steps: number of steps of an epoch; None where not known.
        lock_wait: mean seconds that another thread of this process waited for the interpreter's
            lock; None if it was not tried.
        cached: share of the shards that was in the page cache before; None where not known.
        from_disk: bytes per second from a local disk; None where the kernel does not say.
        sent: bytes per second that workers wrote, mostly to pipes; None where not known.
        faults: new pages of memory per second in workers; None where not known.
        memory: most bytes that the process and its children were seen to hold themselves, at looks
            after a second and then every half minute; None where not known.
        watching: share of a core that looking at the processes took.
        stages: time of a sample by stage; None where not recorded.
        unit: "samples", or "batches" where nothing tells how many samples they hold.
        ours: whether shardio's datasets, whose stages can be recorded, are read.
        torch: whether a DataLoader makes the batches.
    """

    cores: int
    kind: ProducerKind
    producers: tuple[Producer, ...]
    number: int
    seconds: float
    batches: int
    samples: int
    slices: tuple[float, ...]
    waiting: float
    receiving: float
    ready: float
    turns: tuple[float, ...]
    first_batch: float
    starting: float
    restarts: bool
    steps: int | None
    lock_wait: float | None
    cached: float | None
    from_disk: float | None
    sent: float | None
    faults: float | None
    memory: int | None
    watching: float
    stages: Stages | None
    unit: str = "samples"
    ours: bool = True
    torch: bool = False

    @property
    def rate(self) -> float:
        """Samples per second."""
        return self.samples / self.seconds

    @property
    def spread(self) -> float:
        """Half the difference between the fastest and the slowest slice, over the rate."""
        return (max(self.slices) - min(self.slices)) / 2 / self.rate

    @property
    def step_seconds(self) -> float:
        """Seconds of the loop's own for a batch."""
        return (1 - self.waiting) * self.seconds / self.batches

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Evidence:
        """Make the evidence that to_json was called on."""
        found = dict(values)
        found["producers"] = tuple(Producer(**part) for part in found["producers"])
        found["slices"], found["turns"] = tuple(found["slices"]), tuple(found["turns"])
        if found["stages"] is not None:
            parts = dict(found["stages"])
            for name in (*_STAGES, "batch"):
                parts[name] = Stage(**parts[name])
            found["stages"] = Stages(**parts)
        return cls(**found)

    def to_json(self) -> dict[str, Any]:
        """Return the values as JSON takes them."""
        return asdict(self)


def filling_shares(records: Sequence[ThreadRecords]) -> dict[tuple[int, int], float]:
    """Return the share of the time that each thread filled batches, by process and thread."""
    shares = {}
    for thread in records:
        chunks = thread.chunks
        if len(chunks) > 1:
            walls = chunks["wall"][:, 0]
            whole = int(chunks["start"][-1] + walls[-1] - chunks["start"][0])
            shares[thread.process, thread.thread] = float(walls.sum()) / max(whole, 1)
    return shares


def stages_of(records: Sequence[ThreadRecords]) -> Stages | None:
    """Return the stages of a sample, from the records of all threads; None if there are none."""
    chunks = np.concatenate([thread.chunks for thread in records]) if records else None
    samples = np.concatenate([thread.samples for thread in records]) if records else None
    if chunks is None or samples is None or not len(samples) or not chunks["samples"].sum():
        return None
    count = int(chunks["samples"].sum())
    weights = samples["samples"]
    walls, cpus = samples["wall"][:, :3], samples["cpu"][:, :3]
    means = chunks["wall"].sum(axis=0) / count / 1e3
    cpu_means = cpus.sum(axis=0) / weights.sum() / 1e3
    per_sample = walls / weights[:, None] / 1e3
    stages = {
        name: _stage(means[place + 1], cpu_means[place], per_sample[:, place])
        for place, name in enumerate(_STAGES)
    }
    rest = chunks["wall"][:, 0] - chunks["wall"][:, 1:].sum(axis=1)
    whole_cpu, delay = (float(chunks["cpu"][:, at].sum()) / count / 1e3 for at in (0, 1))
    batch_cpu = max(whole_cpu - float(cpu_means.sum()), 0.0)
    batch = _stage(float(rest.sum()) / count / 1e3, batch_cpu, rest / chunks["samples"] / 1e3)
    outside, waiting, total = (value / count / 1e3 for value in _gaps(records))
    cpu = stages["decode"].cpu + stages["transform"].cpu + batch.cpu
    wall = stages["decode"].wall + stages["transform"].wall + batch.wall
    share = cpu / max(whole_cpu, 1e-9)
    sample_cost, chunk_cost = costs_of_recording()
    recorded = min(float(weights.sum()) / count, 1.0)
    return Stages(
        **stages,
        batch=batch,
        outside=outside,
        waiting=waiting,
        total=total,
        delay=delay,
        lock=max(wall - cpu - delay * share, 0.0),
        bytes=float(chunks["bytes"].sum()) / count,
        recorded=recorded,
        overhead=(len(samples) * sample_cost + len(chunks) * chunk_cost)
        / count
        * 1e6
        / max(total, 1e-9),
    )


def _stage(wall: float, cpu: float, walls: NDArray[np.float64]) -> Stage:
    p50, p99 = np.percentile(walls, [50, 99]).tolist()
    return Stage(wall=float(wall), cpu=float(cpu), p50=p50, p99=p99)


def _gaps(records: Sequence[ThreadRecords]) -> tuple[float, float, float]:
    """Sum up CPU time and waiting between chunks, and the whole time, over all threads; ns."""
    outside = waiting = total = 0.0
    for thread in records:
        chunks = thread.chunks
        if not len(chunks):
            continue
        ends = chunks["start"] + chunks["wall"][:, 0]
        cpu_ends = chunks["cpu"][:, 2] + chunks["cpu"][:, 0]
        gaps = chunks["start"][1:] - ends[:-1]
        cpu = float((chunks["cpu"][1:, 2] - cpu_ends[:-1]).sum())
        outside += cpu
        waiting += max(float(gaps.sum()) - cpu, 0.0)
        total += float(ends[-1] - chunks["start"][0])
    return outside, waiting, total


_RELEASES = 6
"""Releases of the interpreter's lock: read, checksum, decode (twice), resize, mirror."""


_MOST_LOCKED = 0.25
"""Share of a sample's CPU time; whatever two threads lose beyond it has another cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCosts:
    """Costs of a sample on a machine, in microseconds.

    Attributes:
        cpu: CPU time of its producer, while one core is busy.
        idle: time that its producer only waits, for storage or in a transform.
        locked: CPU time of its producer that holds the interpreter's lock.
        lock_bound: least time of the whole loader per sample with a thread on each of more than
            two cores; 0 where not measured.
        handoff: time until a thread runs that waited for the interpreter's lock.
        sent: further CPU time of a worker, to plan it and hand it over.
        received: CPU time of the loop's thread to take it from a worker.
        planned: CPU time of the loop's thread to have threads make it.
        step: time of the loop's own step.
        cores: number of cores of the machine.
        speedup: rate of all measured cores over that of one.
        measured_cores: number of cores that the speed-up was measured on.
    """

    cpu: float
    idle: float
    locked: float
    lock_bound: float
    handoff: float
    sent: float
    received: float
    planned: float
    step: float
    cores: int
    speedup: float
    measured_cores: int

    def with_cores(self, cores: int) -> SampleCosts:
        """Return the costs on a machine with other cores."""
        return replace(self, cores=cores)

    def at_speed(self, factor: float) -> SampleCosts:
        """Return the costs while the cores are faster by a factor."""
        names = "cpu", "locked", "lock_bound", "sent", "received", "planned"
        return replace(self, **{name: getattr(self, name) / factor for name in names})

    def busy(self, cores: float) -> float:
        """Return the rate of a number of busy cores over that of one."""
        cores = min(max(cores, 1.0), float(self.cores))
        if self.measured_cores == 1:
            return cores
        return 1 + (cores - 1) * (self.speedup - 1) / (self.measured_cores - 1)


def costs_of(alone: Evidence, ceilings: Ceilings, batch_size: int) -> SampleCosts:
    """Return the costs of a sample.

    Args:
        alone: observations of the loop's own thread.
        ceilings: limits of the same machine.
        batch_size: samples in a batch.

    Raises:
        UsageError: too little was observed.
    """
    stages = alone.stages
    if stages is None:
        raise SituationError(
            "the measurements are too short to tell where time goes", remedy="give more seconds"
        )
    waited = alone.receiving * alone.seconds / alone.samples * 1e6
    wall = sum(part.wall for part in (stages.read, stages.decode, stages.transform, stages.batch))
    planned = max(waited - stages.cpu, 0.0)
    idle = max(wall - stages.cpu - stages.delay, 0.0)
    whole = max(1e6 / ceilings.loop_one - planned, 1.0)  # of shares: one loop alone may be off
    cpu = whole * stages.cpu / (stages.cpu + idle)
    return SampleCosts(
        cpu=cpu,
        idle=whole - cpu,
        locked=min(ceilings.sharing / max(ceilings.handoff, 1e-3) / _RELEASES, _MOST_LOCKED) * cpu,
        lock_bound=1e6 / ceilings.loop_threads if ceilings.loop_threads else 0.0,
        handoff=ceilings.handoff,
        sent=planned + ceilings.handover_worker / batch_size,
        received=ceilings.handover_loop / batch_size,
        planned=planned,
        step=alone.step_seconds / batch_size * 1e6,
        cores=alone.cores,
        speedup=ceilings.speedup,
        measured_cores=alone.cores,
    )


def predict(costs: SampleCosts, kind: ProducerKind, producers: int) -> float:
    """Predict samples per second.

    Args:
        costs: costs of a sample on the machine.
        kind: kind of the producers.
        producers: number of producers; 0 for the loop's own thread.
    """
    if kind == "here":
        return 1e6 / (costs.cpu + costs.idle + costs.planned + costs.step)
    threads = kind == "threads"
    own = costs.planned if threads else costs.received
    cpu = costs.cpu if threads else costs.cpu + costs.sent
    contended = min((producers - 1) * costs.locked / (costs.cpu + costs.idle), 1.0)
    handing = _RELEASES * contended * costs.handoff if threads else 0.0
    running = min(producers, costs.cores)
    slowed = running / costs.busy(running)
    limits = [
        (cpu * slowed + costs.idle + handing) / producers,  # the producers
        (cpu + own) / costs.busy(min(producers + 1, costs.cores)),  # the cores
        own + costs.step,  # the loop's thread
    ]
    if threads:
        limits.append(costs.lock_bound or costs.locked + handing + own)
    return 1e6 / max(limits)
