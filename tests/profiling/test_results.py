"""What is measured, and what follows from it: with answers that no process has to give."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from shardio.errors import MisfitError, ShardioError, UsageError
from shardio.profiling.claims import NEEDS, conclude
from shardio.profiling.costs import costs_of, predict
from shardio.profiling.evidence import Ceilings, Evidence, Stage, Stages
from shardio.profiling.profile import Profile, profile
from shardio.profiling.report import compare, facts
from shardio.profiling.settings import ProfileSettings, Topology, topologies_of
from shardio.profiling.store import StoreLimits

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

    def measured(
        answer: Answer,
        *,
        baseline: str | None = None,
        ceilings: Ceilings = CEILINGS,
        others: Mapping[str, float] | None = None,
        before: float | None = None,
        **settings: Any,
    ) -> Profile:
        def ask(request: dict[str, Any]) -> dict[str, Any]:
            if "topology" not in request:
                return asdict(ceilings)
            topology = Topology(**request["topology"])
            seen, speed = answer(topology, request)
            name = request["baseline"] or str(topology)
            load = (others or {}).get(name, 0.01)
            return {"evidence": asdict(seen), "waits": [], "speed": speed, "others": load}

        monkeypatch.setattr("shardio.profiling.profile.ask", ask)
        monkeypatch.setattr("shardio.profiling.profile._look_around", lambda: before)
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
    twice = [one.rate for one in found.predictions or () if one.cores == 4]
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
    return at_rate(1440, topology, waiting=1 - 1440 * 650e-6), 1800.0


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
    for one in found.predictions or ():
        assert one.rate == pytest.approx(needed * (1 - one.waiting))
    workers = [one for one in found.predictions or () if one.topology.kind == "processes"]
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


def steady(topology: Topology, request: dict[str, Any]) -> tuple[Evidence, float]:
    """An idle machine, on which predictions are right."""
    if request["baseline"]:
        return at_rate(1180, topology), 1800.0
    rates = {"here": (970, 1000.0), "threads": (1760, 1800.0), "processes": (1720, 1800.0)}
    rate, speed = rates[topology.kind]
    return at_rate(rate, topology), speed


def vary(by: float, kind: str, *, baseline: bool = False) -> Answer:
    """Have the rate of one kind of loader vary by a share of it."""

    def varied(topology: Topology, request: dict[str, Any]) -> tuple[Evidence, float]:
        seen, speed = steady(topology, request)
        if topology.kind != kind or bool(request["baseline"]) != baseline:
            return seen, speed
        rates = tuple(seen.rate * (1 + by * step / 2) for step in range(-2, 3))
        return replace(seen, slices=rates), speed

    return varied


def faster(rate: float, kind: str) -> Answer:
    """Have one kind of loader reach another rate."""

    def reached(topology: Topology, request: dict[str, Any]) -> tuple[Evidence, float]:
        seen, speed = steady(topology, request)
        return (at_rate(rate, topology) if topology.kind == kind else seen), speed

    return reached


PREDICTIONS = {"threads", "processes"}
ALL = {"verdict", "limit", *PREDICTIONS, "ratio"}
BUSY = "other programs, or the host of a virtual machine, took "


@pytest.mark.parametrize(
    ("answer", "conditions", "claims", "reason"),
    [
        (steady, {}, set(), ""),
        (steady, {"others": {"2 threads": 0.15, "webdataset": 0.15}}, set(), ""),
        (
            steady,
            {"others": {"2 threads": 0.3}},
            ALL - {"verdict"},
            f"No limits, predictions or ratio to the baseline: {BUSY}0.3 of the 2 cores during the "
            "measurement of 2 threads; close them and run again.",
        ),
        (
            steady,
            {"others": {"2 workers": 1.1, "2 threads": 0.9}},
            ALL,
            f"No verdict, limits, predictions or ratio to the baseline: {BUSY}1.1 of the 2 cores "
            "during the measurement of 2 workers; close them and run again.",
        ),
        (
            steady,
            {"ceilings": replace(CEILINGS, others=0.5)},
            {"limit", *PREDICTIONS},
            f"No limits or predictions: {BUSY}0.5 of the 2 cores during the measurement of the "
            "machine's limits; close them and run again.",
        ),
        (
            steady,
            {"others": {"webdataset": 0.7}},
            {"ratio"},
            f"No ratio to the baseline: {BUSY}0.7 of the 2 cores during the measurement of the "
            "baseline; close them and run again.",
        ),
        (
            steady,
            {"ceilings": replace(CEILINGS, spread=0.3)},
            {"limit", *PREDICTIONS},
            "No limits or predictions: the measurement of the machine's limits varied by ±30%; "
            "measure for longer (seconds=16.0) on an idle machine.",
        ),
        (vary(0.14, "threads"), {}, set(), ""),
        (
            vary(0.2, "threads"),
            {},
            ALL - {"verdict"},
            "the measurement of 2 threads varied by ±19%",
        ),
        (vary(0.5, "threads"), {}, ALL, "No verdict, limits, predictions or ratio to the baseline"),
        (vary(0.5, "here"), {}, PREDICTIONS, "the measurement of the loop's own thread varied by"),
        (
            vary(0.6, "processes", baseline=True),
            {},
            {"ratio"},
            "No ratio to the baseline: the measurement of the baseline varied by ±59%",
        ),
        (
            faster(2300, "threads"),
            {},
            {"limit", *PREDICTIONS},
            "No limits or predictions: 2 threads reached 16% more than was measured as the most "
            "possible; run again on an idle machine.",
        ),
        (
            steady,
            {"ceilings": replace(CEILINGS, loop_all=900.0)},
            {"limit", *PREDICTIONS},
            "No limits or predictions: 2 cores together were slower than one of them; run again",
        ),
        (
            faster(1300, "processes"),
            {},
            {"processes"},
            "No predictions for workers: 2 workers were 27% slower than predicted; measure the "
            "numbers that matter (workers).",
        ),
    ],
)
def test_what_the_measurements_do_not_allow_is_withheld_with_the_reason(
    measure: Callable[..., Profile],
    answer: Answer,
    conditions: dict[str, Any],
    claims: set[str],
    reason: str,
) -> None:
    found = measure(answer, baseline="webdataset", **conditions)
    assert {*found.withheld} == claims
    assert (found.verdict.bottleneck is None) == ("verdict" in claims)
    assert (found.ceiling is None, found.storage is None) == ("limit" in claims,) * 2
    assert (found.ratio is None) == ("ratio" in claims)
    kinds = {one.topology.kind for one in found.predictions or ()}
    assert kinds == PREDICTIONS - claims
    assert (found.predictions is None) == (not kinds)
    promises = [found.verdict.rate_without, *(change.gain for change in found.verdict.changes)]
    assert any(promises) == ("threads" not in claims)  # which are the fastest
    said = " ".join([found.verdict.sentence, *facts(found)])
    assert reason in said
    assert said.count("No ") == len({*found.withheld.values()})
    for claim, word in (("ratio", " ×"), ("limit", "could deliver"), ("verdict", "limits this")):
        assert not (claim in claims and word in said + compare(found)), claim


@pytest.mark.parametrize(("before", "warned"), [(None, False), (0.3, False), (1.3, True)])
def test_a_profile_of_a_busy_machine_is_forewarned_before_anything_is_measured(
    measure: Callable[..., Profile],
    caplog: pytest.LogCaptureFixture,
    before: float | None,
    warned: bool,
) -> None:
    def fails(*_: object) -> tuple[Evidence, float]:
        raise ShardioError("it is measured")

    with pytest.raises(ShardioError, match="it is measured"):
        measure(fails, before=before)
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == warned
    for text in texts:
        assert text.startswith(f"{BUSY.replace('took', 'take')}1.3 of the 2 cores now; if they go")
        assert "withholds verdict, limits and predictions" in text


def waits(share: float, held: Stages | None = None) -> Answer:
    """Have all loaders make a step wait for a share of the time."""

    def waited(topology: Topology, request: dict[str, Any]) -> tuple[Evidence, float]:
        seen, speed = steady(topology, request)
        return replace(seen, waiting=share, stages=held or seen.stages), speed

    return waited


def test_a_withheld_verdict_leaves_the_cpu_time_and_the_wait_of_the_step(
    measure: Callable[..., Profile],
) -> None:
    found = measure(waits(0.4), others={"2 threads": 1.1}, step_ms=5)
    assert found.verdict.bottleneck is None
    said = " ".join(facts(found))
    assert re.search(
        r"The step alone could take [\d,]+ samples/s; it waits 40\.0% of the time", said
    )
    assert (
        "A sample takes 980 µs of CPU time: read 50, decode 750, transform 150, batch 30." in said
    )
    assert "The step alone" not in " ".join(facts(measure(steady, others={"2 threads": 1.1})))


@pytest.mark.parametrize(("times", "named"), [(20, True), (2, False)])
def test_a_store_that_is_far_slower_is_named_on_busy_cores_too(
    measure: Callable[..., Profile], times: float, named: bool
) -> None:
    found = measure(steady, others={"2 threads": 1.0, "2 workers": 1.0})
    assert found.verdict.bottleneck is None
    best = found.runs[found.best]
    speed = best.evidence.rate / times * 1000
    store = StoreLimits(
        first_byte=0.0,
        rates=((1, speed), (4, speed), (16, speed)),
        shard_bytes=1e6,
        sample_bytes=1000.0,
        total_bytes=10**9,
        cache_bytes=10**9,
        measured_bytes=10**6,
        measured_seconds=1.0,
        loaded=1,
        loaded_bytes=10**6,
    )
    costs = costs_of(found.runs[0].evidence, found.ceilings, BATCH)
    concluded = conclude(found.settings, found.ceilings, costs, found.runs, None, store)
    verdict = concluded["verdict"]
    assert ("verdict" in concluded["withheld"]) == (not named)
    assert (verdict.bottleneck == "store") == named
    said = f"which allows {store.samples_per_second:,.0f} samples/s where an epoch is fetched."
    assert said in " ".join(facts(replace(found, store=store, **concluded)))
    if named:
        assert f"to {best.evidence.rate / times:,.0f} samples/s" in verdict.sentence
        assert f"later ones come at {best.evidence.rate:,.0f} samples/s." in verdict.sentence
        assert not any(change.gain for change in verdict.changes)


@pytest.mark.parametrize(("others", "withheld"), [(0.1, set()), (1.1, ALL - {"verdict", "ratio"})])
def test_a_step_that_does_not_wait_is_said_on_a_busy_machine_too(
    measure: Callable[..., Profile], others: float, withheld: set[str]
) -> None:
    found = measure(waits(0.01), others={"2 threads": others}, step_ms=5)
    assert found.verdict.bottleneck == "step"
    assert {*found.withheld} >= withheld
    assert "verdict" not in found.withheld


def test_a_profile_names_the_wait_for_a_core_as_monitor_does(
    measure: Callable[..., Profile],
) -> None:
    held = replace(stages(), batch=Stage(wall=4e3, cpu=9, p50=0, p99=0), delay=3990.0)
    found = measure(waits(0.9, held), step_ms=5)
    assert found.verdict.bottleneck == "busy"
    assert "wait for a core" in found.verdict.sentence
    assert not [change for change in found.verdict.changes if "batches" in change.text]


def test_the_page_has_what_each_claim_needs() -> None:
    text = (Path(__file__).parents[2] / "docs/pages/explanation/profile.md").read_text("utf-8")
    table = text.partition("| claim | rests on |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)`.*\| (\d+) % \| (\d+) % \|$", table, re.MULTILINE)
    needs = {
        name: (round(100 * need.others), round(100 * need.spread)) for name, need in NEEDS.items()
    }
    assert {name: (int(others), int(spread)) for name, others, spread in rows} == needs


def test_a_step_that_limits_both_loaders_allows_no_ratio(measure: Callable[..., Profile]) -> None:
    def waits(topology: Topology, _: dict[str, Any]) -> tuple[Evidence, float]:
        return at_rate(500, topology, waiting=0.01), 1800.0

    found = measure(waits, baseline="webdataset", step_ms=20)
    assert (found.ratio, found.verdict.bottleneck) == (None, "step")
    assert "the step limits both loaders; measure without a step" in found.withheld["ratio"]


@pytest.mark.parametrize("sharing", [0.0, 20.0, 400.0, 3000.0])
def test_two_threads_are_predicted_as_two_were_measured(sharing: float) -> None:
    limits = replace(CEILINGS, sharing=sharing)
    costs = costs_of(at_rate(970, Topology(kind="here")), limits, BATCH)
    apart = 1e6 * 2 / limits.loop_all
    assert predict(costs, "threads", 2) == pytest.approx(2e6 / (apart + sharing), rel=0.1)
    assert predict(costs, "threads", 1) == pytest.approx(limits.loop_one, rel=0.1)
    assert predict(costs, "processes", 2) == pytest.approx(limits.loop_all, rel=0.1)


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
