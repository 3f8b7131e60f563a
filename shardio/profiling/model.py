"""How fast a loader would be with other threads, workers or cores: arithmetic of measured parts.

Every producer takes the CPU time of a sample, longer where several cores are busy, and the time
that it only waits. All producers share the cores with the loop's own thread; all threads share the
interpreter's lock, which a thread releases some six times a sample, and waits for the longer the
more threads there are; the loop's thread takes batches one after the other. The least of these
limits is the rate. What no run has shown is assumed: more cores of the same kind, with the same
loss for each further busy core, and storage that keeps up.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from shardio.errors import SituationError
from shardio.profiling.evidence import Evidence, Kind
from shardio.profiling.limits import Ceilings

_RELEASES = 6
"""Of the interpreter's lock: to read, for the checksum, twice to decode, to resize, to mirror."""


_MOST_LOCKED = 0.25
"""Of a sample's CPU time; what two threads lose beyond that, they lose to something else."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a sample costs, in microseconds, on a machine.

    Attributes:
        cpu: CPU time of its producer, while one core is busy.
        idle: time that its producer only waits, for storage or in a transform.
        locked: CPU time of its producer that holds the interpreter's lock.
        lock_bound: of the whole loader, what a sample takes at least with a thread on each of more
            than two cores; 0 where that was not measured.
        handoff: time until a thread runs again that waited for the interpreter's lock.
        sent: CPU time of a worker, besides, to plan it and hand it over.
        received: CPU time of the loop's thread to take it from a worker.
        planned: CPU time of the loop's thread to have it made by threads.
        step: time of the loop's own step.
        cores: of the machine.
        speedup: how much more all measured cores do than one.
        measured_cores: of the machine that the speed-up was measured on.
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

    def with_cores(self, cores: int) -> Parts:
        """The same on another machine."""
        return replace(self, cores=cores)

    def at_speed(self, factor: float) -> Parts:
        """The same while the cores are that much faster."""
        names = "cpu", "locked", "lock_bound", "sent", "received", "planned"
        return replace(self, **{name: getattr(self, name) / factor for name in names})

    def busy(self, cores: float) -> float:
        """How much more so many busy cores do than one."""
        cores = min(max(cores, 1.0), float(self.cores))
        if self.measured_cores == 1:
            return cores
        return 1 + (cores - 1) * (self.speedup - 1) / (self.measured_cores - 1)


def parts_of(alone: Evidence, ceilings: Ceilings, batch_size: int) -> Parts:
    """What a sample costs.

    Args:
        alone: a run of the loop's own thread.
        ceilings: of the same machine.
        batch_size: of the run.

    Raises:
        UsageError: the run was too short to tell.
    """
    stages = alone.stages
    if stages is None:
        raise SituationError(
            "the runs are too short to tell where time goes; give them more seconds"
        )
    waited = alone.receiving * alone.seconds / alone.samples * 1e6
    wall = sum(part.wall for part in (stages.read, stages.decode, stages.transform, stages.batch))
    planned = max(waited - stages.cpu, 0.0)
    idle = max(wall - stages.cpu - stages.delay, 0.0)
    whole = max(1e6 / ceilings.loop_one - planned, 1.0)  # of shares: a run alone may be off
    cpu = whole * stages.cpu / (stages.cpu + idle)
    return Parts(
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


def predict(parts: Parts, kind: Kind, producers: int) -> float:
    """Samples per second.

    Args:
        parts: of the loader and machine.
        kind: of producers.
        producers: how many; 0 with the loop's own thread.
    """
    if kind == "here":
        return 1e6 / (parts.cpu + parts.idle + parts.planned + parts.step)
    return 1e6 / max(cost for _, cost in costs(parts, kind, producers))


def costs(parts: Parts, kind: Kind, producers: int) -> list[tuple[str, float]]:
    """What each limit makes a sample cost, in microseconds of the whole loader."""
    own = parts.received if kind == "processes" else parts.planned
    cpu = parts.cpu + (parts.sent if kind == "processes" else 0)
    handing = 0.0
    if kind == "threads":
        contended = min((producers - 1) * parts.locked / (parts.cpu + parts.idle), 1.0)
        handing = _RELEASES * contended * parts.handoff
    running = min(producers, parts.cores)
    slowed = running / parts.busy(running)
    found = [
        ("producers", (cpu * slowed + parts.idle + handing) / producers),
        ("cores", (cpu + own) / parts.busy(min(producers + 1, parts.cores))),
        ("loop", own + parts.step),
    ]
    if kind == "threads":
        lock = parts.lock_bound or parts.locked + handing + own
        found.append(("lock", lock))
    return found
