"""One bottleneck is named, from what was seen: the rules on plain values."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.errors import as_options
from shardio.profiling.claims import advise, judge_watched
from shardio.profiling.costs import SampleCosts, predict
from shardio.profiling.evidence import (
    Ceilings,
    Evidence,
    Producer,
    ProducerKind,
    Stage,
    Stages,
)
from shardio.profiling.settings import ProfileSettings
from shardio.profiling.store import StoreLimits
from shardio.profiling.verdict import Bottleneck, Verdict, judge


def stage(wall: float, cpu: float | None = None) -> Stage:
    return Stage(wall=wall, cpu=wall if cpu is None else cpu, p50=wall, p99=2 * wall)


def stages(**changes: Any) -> Stages:
    values: dict[str, Any] = {
        "read": stage(50),
        "decode": stage(700),
        "transform": stage(200),
        "batch": stage(30),
        "outside": 5.0,
        "waiting": 15.0,
        "total": 1000.0,
        "delay": 10.0,
        "lock": 10.0,
        "bytes": 64_000.0,
        "recorded": 1.0,
        "overhead": 0.01,
    }
    return Stages(**{**values, **changes})


def producer(cpu: float = 0.95, filling: float | None = 0.98, **changes: Any) -> Producer:
    values = {"number": 1, "delay": 0.02, "busy_threads": 1}
    return Producer(cpu=cpu, filling=filling, **{**values, **changes})


def seen(**changes: Any) -> Evidence:
    """A healthy loop of two threads that decode."""
    values: dict[str, Any] = {
        "cores": 2,
        "kind": "threads",
        "producers": (producer(), producer()),
        "seconds": 4.0,
        "batches": 100,
        "samples": 6400,
        "slices": (1600.0,) * 5,
        "waiting": 0.97,
        "receiving": 0.01,
        "ready": 0.1,
        "turns": (),
        "first_batch": 0.1,
        "starting": 0.01,
        "restarts": False,
        "watching": 0.001,
        "steps": 10_000,
        "lock_wait": 0.0001,
        "cached": 1.0,
        "from_disk": 0.0,
        "sent": 0.0,
        "faults": 0.0,
        "memory": 100_000_000,
        "stages": stages(),
    }
    values |= changes
    return Evidence(**{"number": len(values["producers"]), **values})


WORKERS: dict[str, Any] = {"kind": "processes", "turns": (0.5, 0.5)}
STARVED = (producer(cpu=0.45, delay=0.5),) * 6
HELD: dict[str, Any] = {
    "producers": (producer(cpu=0.2, delay=0.7),) * 2,
    "stages": stages(
        read=stage(40, 20),
        decode=stage(949, 445),
        transform=stage(5),
        batch=stage(1908, 43),
        delay=2212.0,
        lock=120.0,
        total=3020.0,
    ),
}
"""Two threads on two cores that others hold: `batch` has much time, and hardly any CPU time."""
PLANTED: list[tuple[str, dict[str, Any]]] = [
    ("decode", {}),
    ("decode", WORKERS),
    ("step", {"waiting": 0.01}),
    ("start", {"starting": 0.6}),
    ("handover", {**WORKERS, "receiving": 0.8, "stages": None}),
    ("handover", {**WORKERS, "sent": 1e9, "stages": None}),
    ("handover", {**WORKERS, "faults": 1e6, "stages": None}),
    ("opencv", {**WORKERS, "producers": (producer(delay=1.5, busy_threads=8),) * 2}),
    ("opencv", {"producers": (producer(delay=2.0), producer(filling=None)), "number": 2}),
    ("cores", {**WORKERS, "producers": STARVED, "turns": (1 / 6,) * 6}),
    ("cores", {"producers": STARVED}),
    ("busy", HELD),
    ("busy", {**HELD, "kind": "here", "producers": ()}),
    ("busy", {**WORKERS, "producers": (producer(cpu=0.2, delay=0.7),) * 2, "stages": None}),
    (
        "worker",
        {**WORKERS, "producers": (producer(), producer(cpu=0.3, filling=0.4)), "turns": (0.9, 0.1)},
    ),
    (
        "worker",
        {
            **WORKERS,
            "producers": (producer(filling=None), producer(cpu=0.3, filling=None)),
            "turns": (0.95, 0.05),
            "stages": None,
        },
    ),
    ("storage", {"stages": stages(read=stage(2000, 40), total=3000.0)}),
    ("store", {"stages": stages(read=stage(2000, 40), total=3000.0), "remote": True}),
    ("cold", {"stages": stages(read=stage(2000, 40), total=3000.0), "cached": 0.0}),
    (
        "lock",
        {
            "stages": stages(transform=stage(4000, 2000), lock=2000.0, total=5000.0),
            "lock_wait": 0.005,
        },
    ),
    ("lock", {"stages": stages(lock=500.0)}),
    ("transform", {"stages": stages(transform=stage(3000), total=4000.0)}),
    ("transform", {"stages": stages(transform=stage(3000, 10), lock=2990.0, total=4000.0)}),
    ("map", {"stages": stages(map=stage(3000), total=4000.0)}),
    ("map", {"stages": stages(map=stage(3000, 10), lock=2990.0, total=4000.0)}),
    ("prefetch", {"producers": (producer(filling=0.5),) * 2, "waiting": 0.4}),
    ("loader", {"stages": stages(decode=stage(1), transform=stage(0), read=stage(40))}),
    ("workers", {**WORKERS, "producers": (producer(filling=None),) * 2, "stages": None}),
]


@pytest.mark.parametrize(("name", "changes"), PLANTED, ids=[name for name, _ in PLANTED])
def test_the_bottleneck_is_named_with_figures_and_something_to_change(
    name: str, changes: dict[str, Any]
) -> None:
    verdict = judge(seen(**changes))
    assert verdict.bottleneck == name
    assert len(verdict.sentence) < 200
    assert any(character.isdigit() for character in verdict.sentence)
    assert "\n" not in verdict.sentence
    assert verdict.sentence[0] == verdict.sentence[0].upper()
    assert verdict.sentence.endswith(".")
    assert all(change.text[0].isupper() for change in verdict.changes)
    assert verdict.rate_without is None or verdict.rate_without >= seen(**changes).rate
    assert verdict.changes or name in {"decode", "transform", "map", "loader", "workers"}


def test_every_bottleneck_is_planted_and_described() -> None:
    names = [*get_args(Bottleneck)]
    assert {name for name, _ in PLANTED} == {*names}
    text = (Path(__file__).parents[2] / "docs/pages/explanation/profile.md").read_text("utf-8")
    rows = text.partition("| bottleneck | when |")[2].partition("\n\n")[0].splitlines()
    described = [re.findall(r"`(\w+)`", row.split("|")[1]) for row in rows if row.startswith("| `")]
    assert [name for of_row in described for name in of_row] == names


ALONE: dict[str, Any] = {"kind": "here", "producers": (), "stages": None}


def test_without_stages_it_says_why_and_advises_what_the_loader_has() -> None:
    own = judge(seen(**ALONE, ours=False))
    assert "The loader itself, in the loop's own thread, limits this loop to 1,600" in own.sentence
    assert "stages are known only for shardio's datasets" in own.sentence
    assert [change.text for change in own.changes] == [
        "Use a loader that has workers or threads, such as shardio.Loader"
    ]
    assert own.changes[0].gain is None
    texts = [
        judge(seen(**ALONE, ours=ours, torch=torch)).changes[0].text
        for ours, torch in ((False, True), (True, True), (True, False))
    ]
    advice = "Use num_workers=2 in the DataLoader, one per core"
    assert texts == [advice, advice, "Use shardio.Loader with 2 threads, one per core"]
    one = judge(seen(**{**WORKERS, "turns": (1.0,)}, producers=(producer(),), stages=None))
    assert one.sentence.startswith("1 worker limits this loop")
    assert "since the worker was started before the monitor" in one.sentence
    several = judge(seen(**WORKERS, stages=None))
    assert "since the workers were started before the monitor" in several.sentence
    two = judge(seen(**WORKERS, producers=(producer(filling=None),) * 2, stages=None, ours=False))
    assert two.sentence.startswith("2 workers limit this loop")
    assert "only for shardio's datasets" in two.sentence


@pytest.mark.parametrize(
    ("others", "holders", "advised"),
    [
        (None, "the step or other programs hold the cores", "Close the other programs"),
        (1.4, "other programs hold 1.4 of 2 cores", "Close the other programs"),
        (0.1, "the step and other threads of the loop hold the cores", "torch.set_num_threads"),
    ],
)
@pytest.mark.parametrize("waiting", [0.12, 0.8])
def test_who_waits_for_a_core_is_told_who_holds_it_and_not_to_change_the_loader(
    waiting: float, others: float | None, holders: str, advised: str
) -> None:
    verdict = judge(seen(**HELD, waiting=waiting, others=others))
    blamed = "The loader does not limit this loop, " if waiting < 0.15 else "The threads wait for "
    assert verdict.sentence.startswith(blamed)
    assert "wait for a core" in verdict.sentence
    assert holders in verdict.sentence
    text = " ".join(change.text for change in verdict.changes)
    assert advised in text
    for word in ("larger batches", "batches made ahead", "workers"):
        assert word not in text


def test_chunks_too_short_to_ask_for_their_delay_have_that_of_their_thread() -> None:
    held = stages(batch=stage(1908, 43), decode=stage(949, 445), delay=0.0, lock=2300.0)
    own = (producer(cpu=0.2, delay=0.6),) * 2
    assert judge(seen(producers=own, stages=held)).bottleneck == "busy"
    verdict = judge(seen(stages=held))
    assert verdict.bottleneck == "lock"
    assert verdict.changes[0].text == "Use workers=2 in shardio.Loader in place of threads"


def test_stages_are_compared_without_the_wait_for_a_core() -> None:
    """Half the time is a wait for a core, most of it in `batch`, which hardly runs."""
    half = stages(decode=stage(950, 750), batch=stage(1000, 100), delay=1100.0, total=2200.0)
    verdict = judge(seen(stages=half))
    assert verdict.sentence.startswith("Decoding on 2 cores limits this loop to 1,600 samples/s")
    assert "it takes 750 of the 1,120 µs of a sample" in verdict.sentence


@pytest.mark.parametrize(
    ("part", "what", "changes"),
    [
        ("batch", "Filling batches", ["Use larger batches: a larger batch_size= of the Sha"]),
        ("outside", "Planning batches and handing them over", ["Use larger batches"]),
        ("read", "Reading bytes and checking them", []),
    ],
)
def test_the_loaders_own_time_is_named_by_its_part(
    part: str, what: str, changes: list[str]
) -> None:
    long = 4000.0 if part == "outside" else stage(4000)
    verdict = judge(seen(stages=stages(**{part: long}, total=5000.0)))
    assert verdict.bottleneck == "loader"
    assert verdict.sentence.startswith(f"{what} on 2 cores limits this loop")
    assert "it takes 4,000 of" in verdict.sentence
    for said, change in zip(verdict.changes, changes, strict=True):
        assert said.text.startswith(change)


def test_a_loader_that_the_loop_hardly_waits_for_is_not_said_to_limit_it() -> None:
    for name, changes in PLANTED:
        verdict = judge(seen(**{**changes, "waiting": 0.12}))
        if name not in {"step", "start"}:
            assert verdict.sentence.startswith("The loader does not limit this loop"), name
            assert "limits this loop" not in verdict.sentence
            assert verdict.rate_without is None or verdict.rate_without <= 1600 / 0.88
        if name not in {"step", "start", "busy"}:
            assert [change.text[:20] for change in verdict.changes] == ["Make the step faster"]


@pytest.mark.parametrize(
    ("changes", "argument"),
    [
        ({}, ": a larger prefetch= of shardio.Loader"),
        ({**WORKERS, "torch": True}, ": a larger prefetch_factor= of the DataLoader"),
        (WORKERS, ": a larger prefetch= of shardio.Loader"),
        ({**WORKERS, "ours": False}, ""),
    ],
)
def test_more_batches_ahead_are_advised_by_the_argument_of_the_watched_loader(
    changes: dict[str, Any], argument: str
) -> None:
    few = seen(**changes, producers=(producer(filling=0.5),) * 2, waiting=0.4)
    assert [change.text for change in judge(few).changes] == [
        f"Have more batches made ahead{argument}"
    ]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"batches": 100}, None),
        ({"batches": 12}, "No verdict: 12 batches after the first ones are too few; watch at le"),
        ({"batches": 1}, "1 batch after the first ones is too few; watch at least 16."),
        (
            {"batches": 25, "producers": (producer(),) * 8, "cores": 8},
            "25 batches after the first ones are too few; watch at least 32.",
        ),
        ({"others": 0.3}, None),
        (
            {"others": 1.1},
            "No verdict: other programs, or the host of a virtual machine, took 1.1 of the 2 "
            "cores during the measurement of the loop; close them and run again.",
        ),
        (
            {"slices": (500.0, 1600.0, 2700.0, 1600.0, 1600.0)},
            "of the loop varied by ±64%; watch more batches on an idle machine.",
        ),
        ({"others": 1.1, "waiting": 0.01}, None),
        ({**HELD, "others": 1.1}, None),
        ({"others": 1.1, "starting": 0.6, "batches": 2, "steps": 3}, None),
        ({"starting": 0.6, "batches": 2, "steps": None}, "2 batches after the first ones are"),
    ],
)
def test_a_watched_loop_has_no_verdict_where_a_profile_would_have_none(
    changes: dict[str, Any], reason: str | None
) -> None:
    watched = seen(**changes)
    verdict = judge_watched(watched)
    if reason is None:
        assert verdict == judge(watched)
    else:
        assert (verdict.bottleneck, verdict.changes) == (None, ())
        assert reason in verdict.sentence


def test_batches_are_named_where_samples_were_not_counted() -> None:
    for name, changes in PLANTED:
        sentence = judge(seen(**changes, unit="batches")).sentence
        assert "samples/s" not in sentence, name


def test_workers_that_start_in_each_epoch_are_to_be_kept() -> None:
    for restarts in (False, True):
        changes = judge(seen(**WORKERS, torch=True, starting=0.6, restarts=restarts)).changes
        gains = [change.gain for change in changes if "persistent_workers=True" in change.text]
        assert gains == [pytest.approx(2.5)] * restarts


@pytest.mark.parametrize(
    ("filling", "said"), [(0.5, "; the loader alone would reach 3,200."), (1.0, "% of the time.")]
)
def test_a_step_that_limits_leaves_the_loader_what_it_could_reach(
    filling: float, said: str
) -> None:
    verdict = judge(seen(waiting=0.01, producers=(producer(filling=filling),) * 2))
    assert verdict.sentence.endswith(said)
    elsewhere = judge(seen(waiting=0.01, others=0.9, producers=(producer(filling=filling),) * 2))
    assert (elsewhere.sentence[-14:], elsewhere.rate_without) == ("% of the time.", None)
    assert "busy" not in verdict.sentence
    assert len(verdict.changes) == 1
    crowded = judge(seen(waiting=0.01, producers=(producer(cpu=0.4, delay=0.4),) * 2))
    assert "torch.set_num_threads" in crowded.changes[1].text


SLOW: dict[str, Any] = {"stages": stages(transform=stage(3000, 2900), total=4000.0)}
SLOW_MAP: dict[str, Any] = {"stages": stages(map=stage(3000, 2900), total=4000.0)}


@pytest.mark.parametrize(
    ("changes", "named", "advised"),
    [
        (SLOW, "The transform", ["Pack images of nearly the size of the crop"]),
        (
            {**SLOW, "transform": "mine"},
            "transform=mine",
            ["Transform whole batches, on the device"],
        ),
        (
            {**SLOW, "maps": ("mine",)},
            "The transform",
            ["Pack images of nearly the size of the crop"],
        ),
        (
            {**SLOW_MAP, "maps": ("mine",)},
            "map=mine",
            ["Vectorise map=mine, run it in workers, "],
        ),
        (
            {**SLOW_MAP, "maps": ("mine", "other"), "whole": True, **WORKERS},
            "map=mine, other",
            ["Vectorise map=mine, other, or store its result", "If map= makes pictures smaller"],
        ),
        (
            {**SLOW_MAP, "transform": "one", "maps": ("mine",), "whole": True},
            "map=mine",
            ["Vectorise map=mine", "If map= makes pictures smaller: transform=shardio.Resize(…)"],
        ),
    ],
)
def test_a_slow_function_is_named_by_its_argument_and_gets_advice_that_fits(
    changes: dict[str, Any], named: str, advised: list[str]
) -> None:
    verdict = judge(seen(**changes))
    assert verdict.sentence.startswith(f"{named} on 2 cores limits this loop")
    assert verdict.sentence.endswith("µs of a sample, 2,900 of CPU time.")
    for change, text in zip(verdict.changes, advised, strict=True):
        assert change.text.startswith(text)
    decoding = judge(seen(**{**changes, "stages": stages()})).changes
    assert any("map= makes" in one.text for one in decoding) == (len(advised) == 2)


def test_a_start_that_waits_for_a_store_is_no_short_epoch() -> None:
    cold: dict[str, Any] = {"remote": True, "cached": 0.0, "starting": 0.65}
    for waiting in (0.01, 0.5):
        verdict = judge_watched(seen(**cold, waiting=waiting, batches=8, slices=(0.0, 9000.0)))
        assert verdict.bottleneck == "store"
        assert verdict.sentence.startswith("Fetching from the store limits this loop to 1,600")
        assert "the first batch takes 65% of an epoch" in verdict.sentence
        assert "cache_limit" in verdict.changes[0].text
    assert judge(seen(**{**cold, "cached": 1.0})).bottleneck == "start"


def test_a_short_epoch_is_not_told_to_use_what_it_uses() -> None:
    threads = judge(seen(starting=0.6, steps=3))
    assert [change.text for change in threads.changes] == [
        "Use a larger dataset: the start takes as long for any"
    ]
    assert threads.sentence.endswith("; after that decoding limits.")
    unknown = judge(seen(starting=0.6, steps=3, stages=None)).sentence
    assert unknown.endswith("which leaves 1,600 samples/s.")
    workers = judge(seen(**WORKERS, starting=0.6, restarts=True))
    assert [change.text for change in workers.changes] == [
        "Use shardio.Loader without workers=, whose threads start faster than workers"
    ]


def test_evidence_goes_through_json_unchanged() -> None:
    for evidence in (seen(), seen(**WORKERS, stages=None)):
        assert Evidence.from_json(json.loads(json.dumps(asdict(evidence)))) == evidence


def costs(**changes: Any) -> SampleCosts:
    values: dict[str, Any] = {
        "cpu": 1000.0,
        "idle": 0.0,
        "locked": 100.0,
        "lock_bound": 0.0,
        "handoff": 0.0,
        "sent": 5.0,
        "received": 5.0,
        "planned": 10.0,
        "step": 1.0,
        "cores": 2,
        "speedup": 1.8,
        "measured_cores": 2,
    }
    return SampleCosts(**{**values, **changes})


def limits(**changes: Any) -> Ceilings:
    values: dict[str, Any] = {
        "cold": None,
        "warm": 2e9,
        "loop_one": 1000.0,
        "loop_all": 1800.0,
        "sharing": 20.0,
        "loop_threads": None,
        "decode_one": 1100.0,
        "decode_all": 1980.0,
        "decode_share": 0.8,
        "copy": 1e10,
        "handoff": 20.0,
        "handover": 1000.0,
        "handover_loop": 300.0,
        "handover_worker": 300.0,
        "to_device": None,
        "side": 512.0,
    }
    return Ceilings(**{**values, **changes})


def test_predictions_follow_from_the_parts() -> None:
    alone = predict(costs(), "here", 0)
    assert alone == pytest.approx(1e6 / 1011)
    assert predict(costs(), "processes", 1) == pytest.approx(1e6 / 1005)
    assert predict(costs(), "threads", 2) == pytest.approx(1.8e6 / 1010)
    assert predict(costs(), "processes", 4) == pytest.approx(1.8e6 / 1010)
    assert predict(costs(idle=3000.0), "threads", 2) == pytest.approx(2e6 / (1000 / 0.9 + 3000))
    assert predict(costs(step=2000.0), "threads", 2) == pytest.approx(1e6 / 2010)
    assert predict(costs(locked=900.0), "threads", 2) == pytest.approx(1e6 / 910)
    assert predict(costs(lock_bound=300.0).with_cores(8), "threads", 8) == pytest.approx(1e6 / 300)
    contended = 6 * 0.3 * 50
    many = costs(handoff=50.0).with_cores(8)
    assert predict(many, "threads", 4) == pytest.approx(4e6 / (1000 * 4 / 3.4 + contended))
    assert predict(many, "threads", 8) < 8e6 / (100 + 6 * 0.7 * 50 + 10)
    assert predict(costs().with_cores(8), "processes", 8) == pytest.approx(6.6e6 / 1010)


@given(
    kind=st.sampled_from(["threads", "processes"]),
    producers=st.integers(1, 64),
    cores=st.integers(1, 64),
    speedup=st.floats(1.0, 2.0),
    cpu=st.floats(1.0, 1e5),
    idle=st.floats(0.0, 1e5),
)
def test_no_prediction_exceeds_what_the_cores_or_one_more_producer_could_do(
    kind: ProducerKind, producers: int, cores: int, speedup: float, cpu: float, idle: float
) -> None:
    some = replace(costs(cpu=cpu, idle=idle, speedup=speedup), cores=cores)
    rate = predict(some, kind, producers)
    assert 0 < rate <= 1e6 * min(cores, producers) / cpu * (1 + 1e-9)
    assert predict(some, kind, producers + 1) >= rate * (1 - 1e-9)
    busy = replace(some, idle=0.0)
    more = predict(busy.with_cores(cores + 1), kind, producers)
    assert more >= predict(busy, kind, producers) * (1 - 1e-9)


def advice(evidence: Evidence, **changes: Any) -> Verdict:
    settings = ProfileSettings(source="out")
    return advise(evidence, costs(), limits(**changes), settings, {})


def test_advice_orders_changes_by_gain() -> None:
    verdict = advice(seen())
    gains = [change.gain for change in verdict.changes if change.gain is not None]
    assert gains == sorted(gains, reverse=True)
    assert min(gains) >= 1.05
    texts = [change.text for change in verdict.changes]
    assert "Pack again: shardio pack --resize 256" in texts
    assert not [text for text in texts if "--store raw" in text]
    assert "Use 4 such cores" in texts
    assert not [text for text in texts if "one per core" in text]


def test_where_packing_cannot_help_it_is_advised_in_general() -> None:
    for side in (None, 200.0):
        texts = [change.text for change in advice(seen(), side=side).changes]
        assert "Pack smaller images (shardio pack --resize), or tiny ones as pixels" in texts


def test_tiny_pictures_are_to_be_stored_raw() -> None:
    verdict = advice(seen(), side=32.0)
    changes = verdict.changes
    texts = [change.text for change in changes]
    raw = texts.index("Pack again: shardio pack --store raw --resize 32")
    decoding = 0.8 * 1000 / 1100 * 1010  # of the 1000 µs of a sample
    most = (verdict.rate_without or 0.0) / seen().rate
    assert changes[raw].gain == pytest.approx(min(1000 / (1000 - decoding), most))
    assert most > 1.5
    assert not [text for text in texts if "--resize 256" in text]


def test_more_threads_are_no_advice_where_the_step_or_storage_limits() -> None:
    for changes in ({"waiting": 0.01}, {"stages": stages(read=stage(2000, 40), total=3000.0)}):
        texts = " ".join(change.text for change in advice(seen(**changes)).changes)
        assert "such cores" not in texts
        assert "workers" not in texts.replace("threads or workers", "")


def store(**changes: Any) -> StoreLimits:
    """30 ms to the first byte, 50 MB/s in all, photos of 64 kB in shards of 64 MB."""
    values: dict[str, Any] = {
        "first_byte": 0.03,
        "rates": ((1, 40e6), (4, 50e6), (16, 50e6)),
        "shard_bytes": 64e6,
        "sample_bytes": 64e3,
        "total_bytes": 64_000_000_000,
        "cache_bytes": 64_000_000_000,
        "measured_bytes": 100_000_000,
        "measured_seconds": 4.0,
        "loaded": 4,
        "loaded_bytes": 256_000_000,
    }
    return StoreLimits(**{**values, **changes})


def limited(changes: dict[str, Any], step: float = 0.0) -> Verdict:
    settings = ProfileSettings(source="s3://bucket/out", step_ms=step)
    return advise(seen(), costs(), limits(), settings, {}, store(**changes))


def test_a_store_that_is_slower_than_the_loop_is_named_with_what_it_delivers() -> None:
    verdict = limited({})
    assert verdict.bottleneck == "store"
    rate = 16 * 64e6 / (0.03 + 16 * 64e6 / 50e6) / 64e3
    assert rate == pytest.approx(store().samples_per_second)
    assert verdict.sentence == (
        f"The store limits the first epoch to {rate:,.0f} samples/s, 50 MB/s by 16 connections (4 "
        "are as fast); later ones come at 1,600 samples/s, where decoding limits."
    )
    assert verdict.rate_without == seen().rate
    assert [change.text.partition(",")[0] for change in verdict.changes] == ["With several nodes"]
    assert advise(seen(), costs(), limits(), ProfileSettings(source="a"), {}).changes


def test_a_store_that_is_faster_than_the_loop_changes_nothing() -> None:
    fast = limited({"rates": ((1, 40e6), (4, 160e6), (16, 640e6))})
    assert fast == advise(seen(), costs(), limits(), ProfileSettings(source="a"), {})


def test_more_connections_are_advised_while_they_make_a_difference() -> None:
    growing = {"rates": ((1, 5e6), (4, 20e6), (16, 80e6))}
    verdict = limited(growing)
    assert "(more would be faster)" in verdict.sentence
    assert "Use more workers, each of which fetches 16 shards" in verdict.changes[0].text
    assert not store(rates=((1, 5e6), (4, 60e6), (16, 80e6))).grows


def test_larger_shards_are_advised_where_the_wait_before_the_first_byte_counts() -> None:
    verdict = limited({"shard_bytes": 200e3, "rates": ((1, 50e6), (4, 200e6), (16, 400e6))})
    first = verdict.changes[0]
    share = 0.03 / (0.03 + 200e3 / 25e6)
    assert (
        f"Make larger shards, shardio reshard --shard-size 256MB: of a request for one of 0.20 "
        f"MB, {share:.0%} is the wait" in first.text
    )
    rate = store(shard_bytes=200e3, rates=((16, 400e6),)).samples_per_second
    assert first.gain == pytest.approx(min(1 / (1 - share), seen().rate / rate), rel=0.02)


def test_a_larger_cache_is_advised_where_later_epochs_fetch_again() -> None:
    verdict = limited({"cache_bytes": 16_000_000_000})
    assert "what the cache holds comes at" in verdict.sentence
    assert verdict.changes[0].text == (
        "Raise cache_limit to 64.0 GB: the cache may hold 25% of the dataset, and later epochs "
        "fetch the rest again"
    )
    with as_options({"cache_limit": ["--cache-limit"]}):
        assert limited({"cache_bytes": 1}).changes[0].text.startswith("Raise --cache-limit to 64")


def test_a_loop_that_waits_for_a_store_is_told_so_where_nothing_else_is_known() -> None:
    verdict = judge(seen(stages=stages(read=stage(2000, 40), total=3000.0), remote=True))
    assert verdict.sentence.startswith("Fetching from the store limits this loop to 1,600 samples")
    texts = " ".join(change.text for change in verdict.changes)
    for word in ("cache_limit", "predownload", "streams"):
        assert word in texts
    with as_options({"cache_limit": ["--cache-limit"]}):
        assert (
            "--cache-limit"
            in judge(seen(stages=stages(read=stage(2000, 40)), remote=True)).changes[0].text
        )
