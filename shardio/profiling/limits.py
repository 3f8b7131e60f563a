"""What a machine could do with some shards, each part alone: the limits of any loader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Limits, measured.

    Attributes:
        cold: bytes per second from storage, by eight threads; None where the page cache cannot
            be dropped for these files.
        warm: bytes per second from the page cache, likewise.
        loop_one: samples per second of a loop over the dataset, on one core.
        loop_all: the same of a loop on each core, together: what is lost to no hand-over.
        sharing: microseconds that a sample takes longer in two threads of one process than in two
            processes.
        loop_threads: samples per second of loops in threads of one process, one a core; None with
            two cores or less.
        decode_one: samples per second that one core decodes and transforms, from memory; None
            where fields are gathered as arrays, many samples at once.
        decode_all: the same by a process on each core.
        decode_share: share of that time that is decoding; the rest is the transform.
        copy: bytes per second that one core copies in memory.
        handoff: microseconds until a thread runs that waited for another, which the interpreter's
            lock costs wherever threads contend for it.
        handover: batches per second from one worker process that has nothing else to do.
        handover_loop: microseconds of CPU time of the loop's thread for each batch.
        handover_worker: the same of the worker.
        to_device: bytes per second to a CUDA device; None without one.
        side: pixels of the pictures' shorter side, on average; None without pictures.
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
        """How much more all cores do than one."""
        return max(self.loop_all / self.loop_one, 1.0)
