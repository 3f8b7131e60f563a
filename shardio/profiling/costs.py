"""What a sample costs, and the rate that follows with other threads, workers or cores.

`SampleCosts` predict how fast a loader would be: each producer takes the CPU time of a sample,
longer where several cores are busy, and the time that it only waits. All producers share the cores
with the loop's own thread. Threads share the interpreter's lock, which a thread releases some six
times per sample, with the native core a few times per chunk, and wait longer the more of them there
are. The loop's thread takes the batches
one after the other. The least of these limits is the rate. What was not measured is assumed:
further cores are of the same kind, with the same loss for each that is busy, and storage keeps up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shardio.errors import SituationError, argument
from shardio.native import is_active
from shardio.profiling.evidence import Ceilings, Evidence, ProducerKind

_RELEASES = 6
"""Releases of the interpreter's lock: read, checksum, decode (twice), resize, mirror."""
_RELEASES_OF_CORE = 1 / 4
"""Releases with the native core: some four a chunk of 16 samples."""
_MOST_LOCKED = 0.25
"""Share of a sample's CPU time; what two threads lose beyond it has another cause."""


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
        releases: releases of the interpreter's lock per sample.
        crowded: time that a sample takes longer in each of several threads, for other reasons than
            the wait for the interpreter's lock.
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
    releases: float = _RELEASES
    crowded: float = 0.0

    def with_cores(self, cores: int) -> SampleCosts:
        """Return the costs on a machine with other cores."""
        return replace(self, cores=cores)

    def at_speed(self, factor: float) -> SampleCosts:
        """Return the costs while the cores are faster by a factor."""
        names = "cpu", "locked", "lock_bound", "sent", "received", "planned", "crowded"
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
            "the measurements are too short to tell where time goes",
            remedy=f"give greater {argument('seconds')}",
        )
    waited = alone.receiving * alone.seconds / alone.samples * 1e6
    planned = max(waited - stages.cpu, 0.0)
    idle = max(stages.wall - stages.cpu - stages.delay, 0.0)
    whole = max(1e6 / ceilings.loop_one - planned, 1.0)  # of shares: one loop alone may be off
    cpu = whole * stages.cpu / (stages.cpu + idle)
    releases = _RELEASES_OF_CORE if is_active() else _RELEASES
    handing = releases * max(ceilings.handoff, 1e-3)
    share = ceilings.sharing / handing
    if is_active():  # which has the lock in no other stage
        share = stages.batch.cpu / max(stages.cpu, 1e-3)
    locked = min(share, _MOST_LOCKED) * cpu
    return SampleCosts(
        cpu=cpu,
        idle=whole - cpu,
        locked=locked,
        lock_bound=1e6 / ceilings.loop_threads if ceilings.loop_threads else 0.0,
        handoff=ceilings.handoff,
        sent=planned + ceilings.handover_worker / batch_size,
        received=ceilings.handover_loop / batch_size,
        planned=planned,
        step=alone.step_seconds / batch_size * 1e6,
        cores=alone.cores,
        speedup=ceilings.speedup,
        measured_cores=alone.cores,
        releases=releases,
        crowded=max(ceilings.sharing - handing * locked / whole, 0.0),
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
    handing = costs.releases * contended * costs.handoff if threads else 0.0
    crowded = costs.crowded if threads and producers > 1 else 0.0
    running = min(producers, costs.cores)
    slowed = running / costs.busy(running)
    limits = [
        (cpu * slowed + costs.idle + handing + crowded) / producers,  # the producers
        (cpu + own) / costs.busy(min(producers + 1, costs.cores)),  # the cores
        own + costs.step,  # the loop's thread
    ]
    if threads:
        limits.append(costs.lock_bound or costs.locked + handing + own)
    return 1e6 / max(limits)
