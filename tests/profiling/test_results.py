"""What is measured, and what follows from it: with answers that no process has to give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from shardio.errors import MisfitError, ShardioError, UsageError
from shardio.profiling.evidence import Ceilings, Evidence, Stage, Stages
from shardio.profiling.profile import Profile, profile
from shardio.profiling.settings import ProfileSettings, Topology, topologies_of

BATCH = 10
CEILINGS = Ceilings(
    cold=None,
    warm=2e9,
    loop_one=1000.0,
    loop_all=1800.0,
    sharing=2.0,
    loop_threads=None,
    decode_one=1100.0,
    decode_all=1980.0,
    decode_share=0.8,
    copy=1e10,
    handoff=20.0,
    handover=1000.0,
    handover_loop=30.0,
    handover_worker=30.0,
    to_device=None,
    side=512.0,
)


def stage(wall: float) -> Stage:
    return Stage(wall=wall, cpu=wall, p50=wall, p99=wall)


def stages(factor: float = 1.0) -> Stages:
    """Of a machine that is so many times as fast."""
    return Stages(
        read=stage(50 / factor),
        decode=stage(750 / factor),
        transform=stage(150 / factor),
        batch=stage(30 / factor),
        outside=5.0,
        waiting=15.0,
        total=1000.0 / factor,
        delay=0.0,
        lock=0.0,
        bytes=64_000.0,
        recorded=1.0,
        overhead=0.01,
    )


SEEN = Evidence(
    cores=2,
    kind="here",
    producers=(),
    number=0,
    seconds=4.0,
    batches=400,
    samples=400 * BATCH,
    slices=(1000.0,) * 5,
    waiting=0.99,
    receiving=0.99,
    ready=0.0,
    turns=(),
    first_batch=0.01,
    starting=0.0,
    restarts=False,
    steps=60,
    lock_wait=None,
    cached=1.0,
    from_disk=None,
    sent=None,
    faults=None,
    memory=None,
    watching=0.0,
    stages=stages(),
)

Answer = Callable[[Topology, dict[str, Any]], tuple[Evidence, float]]


@pytest.fixture
def measure(packed: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Profile]:
    """Profiles the packed images, with answers of a function in place of measurements."""

    def measured(answer: Answer, *, baseline: str | None = None, **settings: Any) -> Profile:
        def ask(request: dict[str, Any]) -> dict[str, Any]:
            if "topology" not in request:
                return asdict(CEILINGS)
            seen, speed = answer(Topology(**request["topology"]), request)
            return {"evidence": seen.to_json(), "waits": [], "speed": speed}

        monkeypatch.setattr("shardio.profiling.profile.ask", ask)
        monkeypatch.setattr("shardio.profiling.settings.count_cores", lambda: 2)
        totals: list[int] = []
        parts: list[int] = []

        def progress(total: int) -> Callable[[int], None]:
            totals.append(total)
            return parts.append

        found = profile(packed, batch_size=BATCH, baseline=baseline, progress=progress, **settings)
        failed = found.baseline_error is not None
        assert [sum(parts)] == [total - failed for total in totals]
        return found

    return measured


def at_rate(rate: float, topology: Topology, waiting: float = 0.99) -> Evidence:
    batches = round(rate * SEEN.seconds / BATCH)
    return replace(
        SEEN,
        kind=topology.kind,
        number=topology.producers,
        batches=batches,
        samples=batches * BATCH,
        waiting=waiting,
        receiving=min(waiting, 0.99 if topology.kind == "here" else 0.01),
    )


def drifting(topology: Topology, _: dict[str, Any]) -> tuple[Evidence, float]:
    """The machine is 0.7 times as fast in the runs as it was before."""
    if topology.kind == "here":
        return replace(at_rate(700, topology), stages=stages(0.7)), 700.0
    return replace(at_rate(1240, topology), stages=stages(0.7)), 1260.0


def test_a_machine_that_slows_down_promises_no_gain(measure: Callable[..., Profile]) -> None:
    found = measure(drifting)
    gains = {change.text: change.gain or 0 for change in found.verdict.changes}
    assert 1.5 < gains["Use 4 such cores"] <= 2
    twice = [one.rate for one in found.predictions if one.cores == 4]
    assert len(twice) == 2
    assert all(1.5 * 1260 < rate < 2.1 * 1260 for rate in twice)
    assert found.ceiling == pytest.approx(0.7 * 1980)


def test_the_loops_own_thread_has_the_ceiling_of_a_core(measure: Callable[..., Profile]) -> None:
    found = measure(drifting, workers=(0,))
    assert found.ceiling == pytest.approx(0.7 * 1100)


def with_step(topology: Topology, _: dict[str, Any]) -> tuple[Evidence, float]:
    """A step of 6.5 ms for 10 samples, which was 6.4 ms in the first run."""
    if topology.kind == "here":
        return at_rate(610, topology, waiting=1 - 610 * 640e-6), 1000.0
    return at_rate(1350, topology, waiting=1 - 1350 * 650e-6), 1800.0


def test_with_a_step_what_is_needed_is_the_most_that_is_expected(
    measure: Callable[..., Profile],
) -> None:
    found = measure(with_step, step_ms=6.5)
    needed = found.needed or 0
    assert needed == pytest.approx(1e6 / 650)
    best = found.runs[found.best].samples_per_second
    assert found.verdict.bottleneck != "step"
    assert best < (found.verdict.rate_without or best + 1) <= needed * (1 + 1e-9)
    for change in found.verdict.changes:
        assert change.gain is None or 1.05 <= change.gain <= needed / best * (1 + 1e-9)
    for one in found.predictions:
        assert one.rate == pytest.approx(needed * (1 - one.waiting))
    workers = [one for one in found.predictions if one.topology.kind == "processes"]
    assert workers[-1].rate == max(one.rate for one in workers)
    assert workers[-1].waiting < 0.02


def test_a_failing_baseline_leaves_the_runs(measure: Callable[..., Profile]) -> None:
    def fails(topology: Topology, request: dict[str, Any]) -> tuple[Evidence, float]:
        if request["baseline"]:
            raise ShardioError("it broke")
        return drifting(topology, request)

    found = measure(fails, baseline="webdataset")
    assert len(found.runs) == 3
    assert (found.baseline, found.baseline_error) == (None, "it broke")


def test_a_baseline_without_stages_has_no_megabytes_and_the_best_number_of_workers(
    measure: Callable[..., Profile],
) -> None:
    def more_is_better(topology: Topology, request: dict[str, Any]) -> tuple[Evidence, float]:
        seen = at_rate(500 + 100 * topology.producers, topology)
        return (replace(seen, stages=None) if request["baseline"] else seen), 1800.0

    found = measure(more_is_better, baseline="webdataset", workers=(1, 4, 2), prefetch=5)
    assert found.baseline is not None
    assert found.baseline[1].topology == Topology(kind="processes", producers=4, prefetch=5)
    assert found.baseline[1].megabytes_per_second is None
    found = measure(more_is_better, baseline="webdataset", threads=(4,), prefetch=5)
    assert found.baseline is not None
    assert found.baseline[1].topology == Topology(kind="processes", producers=2, prefetch=5)


def test_prefetch_and_numbers_say_what_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardio.profiling.settings.count_cores", lambda: 2)

    def kinds(**settings: Any) -> list[tuple[str, int]]:
        found = topologies_of(ProfileSettings(source="out", prefetch=7, **settings))
        assert {one.prefetch for one in found[1:]} <= {7}
        return [(one.kind, one.producers) for one in found]

    assert kinds() == [("here", 0), ("threads", 2), ("processes", 2)]
    assert kinds(workers=(1, 0, 1)) == [("here", 0), ("processes", 1)]
    assert kinds(threads=(0,), workers=(3,)) == [("here", 0), ("processes", 3)]
    assert kinds(threads=(0,)) == [("here", 0)]
    for numbers in ({"workers": (33,)}, {"threads": (-1,)}):
        (name,) = numbers
        with pytest.raises(UsageError, match=f"{name}=.* a whole number from 0 to 32"):
            kinds(**numbers)


def test_a_misfit_is_remedied_by_what_a_profile_takes(measure: Callable[..., Profile]) -> None:
    def misfits(*_: object) -> tuple[Evidence, float]:
        raise MisfitError("it is 3×8×8", where="a.tar", remedy="read samples")

    with pytest.raises(MisfitError) as refused:
        measure(misfits)
    error = refused.value
    assert (error.what, error.where) == ("it is 3×8×8", "a.tar")
    assert error.remedy == "give size, a transform that makes them equal, or batch_size=1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: it must be a whole number, at least 1"),
        ({"seconds": 0.01}, "seconds=0.01: it must be a number, 0.1 or more"),
        ({"step_ms": float("inf")}, "step_ms=inf: it must be a number, 0 or more"),
        ({"cold": 1}, "cold=1: it must be True or False"),
        ({"step_ms": 5, "train": "a.py:f"}, "step_ms and train exclude each other"),
        ({"baseline": "nothing"}, "baseline='nothing': it must be 'webdataset'"),
    ],
)
def test_options_that_are_wrong_are_refused(
    packed: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        profile(packed, **options)
