"""A loop under watch gets what it would get, and is told what it waited for."""

from __future__ import annotations

import io
import json
import re
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset

import shardio
from shardio.profiling import monitor, system
from shardio.profiling.evidence import Recorder, ThreadRecords, stages_of
from shardio.profiling.measure import write_trace
from shardio.profiling.monitoring import count_samples, look_at
from shardio.profiling.system import Moved, Use
from shardio.profiling.verdict import judge
from shardio.reading.times import Stopwatch


def dataset(packed: Path) -> shardio.ShardDataset:
    return shardio.ShardDataset(
        packed, batch_size=20, shuffle=True, transform=shardio.RandomResizedCrop(16)
    )


def loader_of(kind: str, packed: Path) -> Any:
    made = dataset(packed)
    if kind == "threads":
        return shardio.Loader(made, threads=2)
    return DataLoader(made, batch_size=None, num_workers=2 if kind == "processes" else 0)


@pytest.mark.parametrize("kind", ["here", "threads", "processes"])
def test_batches_pass_unchanged_and_the_parts_of_a_samples_time_add_up(
    packed: Path, kind: str
) -> None:
    keys = [batch["__key__"] for batch in loader_of(kind, packed)]
    with monitor(loader_of(kind, packed), live=False, budget=1.0) as seen:
        watched = []
        for batch in seen:
            watched.append(batch["__key__"])
            time.sleep(0.01)
    assert watched == keys
    evidence = seen.evidence
    assert evidence.steps == 30
    assert evidence.batches < 30
    assert evidence.samples == 20 * evidence.batches
    assert evidence.step_seconds >= 0.01
    stages = evidence.stages
    assert stages is not None
    parts = [stages.read, stages.decode, stages.transform, stages.batch]
    assert min(part.wall for part in parts) > 0
    assert all(0 < part.p50 <= part.p99 for part in parts)
    threads = {"here": 1, "threads": 2, "processes": 2}[kind]
    whole = sum(part.wall for part in parts) + stages.outside + stages.waiting
    recorded = whole * evidence.samples / 1e6
    assert recorded == pytest.approx(threads * evidence.seconds, rel=0.45)  # but for both ends
    if kind == "here":
        filling = sum(part.wall for part in parts) * evidence.samples / 1e6
        assert 0.4 < filling / (evidence.waiting * evidence.seconds) < 1.05
    assert 100 < stages.bytes < 1000
    assert stages.recorded > 0.5
    assert 0 < stages.overhead < 0.5
    assert 0 < evidence.watching < 0.5
    assert seen.verdict.sentence[1:] in str(seen).replace("\n", " ")
    assert max(map(len, str(seen).splitlines())) <= 80


def test_the_workers_of_a_loader_are_its_producers(packed: Path) -> None:
    loader = shardio.Loader(dataset(packed), workers=2, prefetch=3)
    facts = look_at(loader)
    assert (facts.kind, facts.number, facts.ahead, facts.restarts) == ("processes", 2, 6, True)
    with monitor(loader, live=False, budget=1.0) as seen:
        for _ in seen:
            time.sleep(0.02)
    evidence = seen.evidence
    assert (evidence.kind, evidence.number, len(evidence.producers)) == ("processes", 2, 2)
    assert all(one.filling is not None for one in evidence.producers)
    few = replace(evidence, cores=4, waiting=0.9, starting=0.0, producers=(), sent=0.0, faults=0.0)
    text = " ".join(change.text for change in judge(few).changes)
    assert "Use workers=4 in shardio.Loader, one per core" in text
    assert "threads" not in text


@pytest.mark.parametrize("fixture", ["packed", "python_path"])
def test_a_map_has_a_stage_of_its_own(
    packed: Path, tmp_path: Path, fixture: str, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue(fixture)

    def spin(sample: dict[str, Any]) -> dict[str, Any]:
        sum(range(100_000))
        return sample

    with monitor(dataset(packed).replace(map=spin), live=False, budget=1.0) as seen:
        assert len([*seen]) == 30
    stages = seen.evidence.stages
    assert stages is not None
    assert stages.map.cpu > 0.5 * stages.cpu
    assert stages.transform.wall < 0.5 * stages.map.wall
    assert 0 < stages.map.p50 <= stages.map.p99
    assert stages.cpu * seen.evidence.samples < 1.1e6 * seen.evidence.seconds
    alone = replace(seen.evidence, waiting=0.9, starting=0.0, producers=())
    verdict = judge(replace(alone, stages=replace(stages, delay=0.0)))  # whatever else runs here
    assert verdict.sentence.startswith("map=spin on 1 core limits this loop")
    assert re.search(r"\n *map ", str(seen))
    write_trace(str(tmp_path / "trace.json"), seen.received, seen.records)
    events = json.loads((tmp_path / "trace.json").read_text("utf-8"))["traceEvents"]
    maps = [each["dur"] for each in events if each["name"] == "map"]
    assert np.median(maps) == pytest.approx(stages.map.p50, rel=0.01)


def test_without_a_map_there_is_no_row_for_one(packed: Path) -> None:
    with monitor(dataset(packed), live=False, budget=1.0) as seen:
        assert len([*seen]) == 30
    assert "map" not in str(seen)


def test_a_step_in_the_thread_that_reads_is_no_stage_of_reading(packed: Path) -> None:
    with monitor(loader_of("here", packed), live=False, budget=1.0) as seen:
        spent = time.thread_time()
        for _ in seen:
            sum(range(2_000_000))
        spent = time.thread_time() - spent
    stages = seen.evidence.stages
    assert stages is not None
    assert stages.outside < 0.1 * spent * 1e6 / 600
    assert stages.waiting > 0.5 * spent * 1e6 / 600


def test_cpu_time_beside_the_stages_of_the_native_core_is_not_that_of_reading() -> None:
    recorder = Recorder(budget=1.0)
    watch = recorder()
    watch.start()
    sum(range(1_000_000))
    watch.add(2000, 3000, 4000, 1)
    watch.stop()
    watch.finish()
    stages = stages_of(recorder.read())
    recorder.close()
    assert stages is not None
    assert (stages.read.cpu, stages.decode.cpu, stages.transform.cpu) == (2.0, 3.0, 4.0)
    assert stages.batch.cpu > 1000


def test_functions_on_samples_are_known_by_name(packed: Path) -> None:
    def mine(sample: dict[str, Any]) -> dict[str, Any]:
        return sample

    whole = dataset(packed).replace(map=mine, transform=None)
    facts = look_at(shardio.Loader(whole, threads=1))
    assert (facts.transform, facts.maps, facts.whole) == (None, ("mine",), True)
    facts = look_at(dataset(packed))
    assert (facts.transform, facts.maps, facts.whole) == (None, (), False)
    facts = look_at(whole.replace(map=None, transform=torch.nn.Identity()))
    assert (facts.transform, facts.maps, facts.whole) == ("Identity", (), True)


def test_the_dataset_is_left_as_it_was(packed: Path) -> None:
    watched = dataset(packed)
    with monitor(watched, live=False) as seen:
        assert watched.stopwatch is not Stopwatch
        next(iter(seen))
    assert watched.stopwatch is Stopwatch


def test_a_slow_step_is_told_from_a_slow_loader(packed: Path) -> None:
    with monitor(shardio.Loader(dataset(packed), threads=2), live=False) as seen:
        for _ in seen:
            time.sleep(0.1)
    assert seen.evidence.waiting < 0.05
    assert seen.verdict.bottleneck == "step"


def test_what_threads_waited_for_is_printed(packed: Path) -> None:
    with monitor(shardio.Loader(dataset(packed), threads=2), live=False, budget=1.0) as seen:
        for _ in seen:
            time.sleep(0.005)  # so that the threads have not made all batches before the first ones
    said = str(seen).replace("\n", " ")
    core, lock = (f"{value:,.0f} for" for value in (seen.evidence.for_core, seen.evidence.for_lock))
    assert (
        f"of a sample, its thread waited {core} a core and {lock} the interpreter's lock." in said
    )
    assert (seen.evidence.others is None) == (not Path("/proc/self/task").exists())


def test_any_iterable_is_watched(packed: Path) -> None:
    def slow() -> Any:
        for _ in range(20):
            time.sleep(0.01)
            yield [torch.zeros(7, 3), torch.zeros(7)]

    with monitor(slow(), live=False) as seen:
        assert len([*seen]) == 20
    assert seen.evidence.waiting > 0.9
    assert seen.evidence.steps is None
    assert seen.evidence.samples == 7 * seen.evidence.batches
    assert seen.evidence.stages is None
    shards = [str(path) for path in sorted(packed.glob("*.tar"))]
    others = webdataset.WebDataset(shards, shardshuffle=False).batched(20)
    with monitor(webdataset.WebLoader(others, batch_size=None, num_workers=2), live=False) as seen:
        assert sum(len(batch["__key__"]) for batch in seen) == 600
    assert seen.evidence.stages is None
    assert seen.verdict.sentence


@pytest.mark.parametrize(
    ("batch", "samples"),
    [
        ({"__key__": ["a", "b"], "image": torch.zeros(2, 3)}, 2),
        ({"name": "text", "x": torch.zeros(3)}, 3),
        ([torch.zeros(4, 2), 7], 4),
        ((torch.tensor(1.0), [1, 2]), 2),
        (torch.zeros(5, 1), 5),
        (np.zeros((6, 2)), 6),
        ({"meta": {"a": 1, "b": 2}, "image": torch.zeros(16, 3)}, 16),
        ({"version": [1], "x": torch.zeros(16)}, 16),
        (((torch.zeros(16), torch.zeros(16, 2)), torch.zeros(16)), 16),
        ({"images": {"left": torch.zeros(16, 3)}, "names": ["a"]}, 16),
        (([torch.zeros(3, 8)] * 16, [{"boxes": torch.zeros(k, 4)} for k in range(16)]), 16),
        ((["a"] * 5, [1] * 5), 5),
        ({"__key__": "a", "image": torch.zeros(3, 4)}, 1),
        (torch.tensor(1.0), None),
        ([1, 2, 3], None),
        (7, None),
        ("text", None),
    ],
)
def test_samples_of_a_batch_are_counted(batch: Any, samples: int | None) -> None:
    assert count_samples(batch) == samples


@pytest.mark.parametrize("batches", range(2, 7))
def test_few_batches_are_evidence_too(batches: int) -> None:
    with monitor([torch.zeros(4)] * batches, live=False) as seen:
        assert len([*seen]) == batches
    steady = batches - 3  # so many are held to be made ahead
    assert seen.evidence.batches == (steady if steady >= 2 else batches) - 1
    assert seen.evidence.samples == 4 * seen.evidence.batches
    assert repr(seen) == str(seen)


@pytest.mark.parametrize(("batches", "words"), [(0, "0 batches"), (1, "1 batch,")])
def test_too_few_batches_are_counted_in_the_error(batches: int, words: str) -> None:
    with monitor([torch.zeros(4)] * batches, live=False) as seen:
        assert len([*seen]) == batches
    with pytest.raises(shardio.UsageError, match=f"the monitor has seen {words}.*too few"):
        seen.evidence  # noqa: B018  reading it is the test
    assert "too few" in repr(seen)


def test_seconds_go_on_where_batches_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardio.profiling.monitoring._MOST_BATCHES", 5)
    with monitor([torch.zeros(4)] * 20, live=False) as seen:
        for _ in seen:
            time.sleep(0.005)
    assert len(seen.received) == 5
    assert seen.seconds > seen.evidence.seconds
    assert seen.seconds == seen.seconds  # it has ended
    assert seen.evidence.batches == 4


def test_batches_are_counted_where_their_samples_are_not_known() -> None:
    with monitor(range(50), live=False) as seen:
        for _ in seen:
            time.sleep(0.001)
    evidence = seen.evidence
    assert (evidence.unit, evidence.samples) == ("batches", evidence.batches)
    assert (evidence.kind, evidence.number) == ("here", 0)
    assert "batches/s" in str(seen)
    assert "samples" not in str(seen)


def test_a_webloader_is_the_dataloader_inside_it(packed: Path) -> None:
    shards = [str(path) for path in sorted(packed.glob("*.tar"))]
    some = webdataset.WebDataset(shards, shardshuffle=False).batched(20)
    loader = webdataset.WebLoader(
        some, batch_size=None, num_workers=3, prefetch_factor=4, persistent_workers=True
    )
    facts = look_at(loader)
    assert (facts.kind, facts.number, facts.ahead) == ("processes", 3, 12)
    assert not facts.restarts
    assert facts.torch
    assert facts.steps is None
    facts = look_at(webdataset.WebLoader([*range(12)], batch_size=4, num_workers=1).shuffle(5))
    assert (facts.kind, facts.ahead, facts.restarts) == ("processes", 2, True)
    assert look_at(webdataset.WebLoader([*range(12)], batch_size=4)).steps == 3


def spent(since: float, until: float, cpu: float) -> Any:
    """What was seen of a thread, in seconds."""
    times = [round(value * 1e9) for value in (since, until, cpu)]
    return system._Seen(times[0], Use(0, 0), times[1], Use(times[2], 0))


@pytest.fixture
def watcher() -> system.Watcher:
    made = system.Watcher(budget=0.01)
    made.close()
    return made


def test_producers_are_counted_by_how_many_live_at_once(watcher: system.Watcher) -> None:
    epochs = [(0.0, 1.0), (1.1, 2.0), (2.1, 3.0)]
    watcher._threads = {
        (10 * epoch + worker, thread): spent(since, until, 0.5)
        for epoch, (since, until) in enumerate(epochs)
        for worker in (1, 2)
        for thread in (1, 2)
    }
    kind, producers = watcher.producers(None)
    assert (kind, len(producers)) == ("processes", 6)
    assert watcher.at_once(kind, producers) == 2
    assert watcher.at_once(kind, ()) == 0


def test_who_runs_for_milliseconds_makes_no_batches(watcher: system.Watcher) -> None:
    pid = watcher._pid
    watcher._threads = {(pid, -1): spent(0, 0.1, 0.004), (-2, -3): spent(0, 0.1, 0.004)}
    assert watcher.producers(None) == ("here", ())
    assert len(watcher.producers("threads")[1]) == 1
    assert len(watcher.producers("processes")[1]) == 1
    watcher._threads = {(pid, -1): spent(0, 10, 4)}
    assert watcher.producers(None)[0] == "threads"
    assert watcher.producers("here") == ("here", ())


def test_reading_the_records_for_the_line_keeps_to_the_budget(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shardio.profiling.monitoring._SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    read, readings = Recorder.read, []

    def slow(recorder: Recorder, since: int = 0) -> list[ThreadRecords]:
        readings.append(since)
        time.sleep(0.02)
        return read(recorder, since)

    monkeypatch.setattr(Recorder, "read", slow)
    with monitor(dataset(packed), live=True, budget=0.001) as seen:
        assert len([*seen]) == 30
    assert len(readings) == 2  # for the first line, and at the end


def test_records_of_ended_threads_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardio.profiling.evidence._MOST_FILES", 3)
    recorder = Recorder(budget=0.01)
    recorder().finish()  # of this thread, which lives
    for _ in range(8):
        thread = threading.Thread(target=lambda: recorder().finish())
        thread.start()
        thread.join()
    assert len([*recorder._path.iterdir()]) <= 4
    assert len(recorder.read()) == 3
    recorder.close()


@pytest.mark.parametrize("columns", [45, 80])
def test_a_line_is_shown_while_the_loop_runs(
    columns: int, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("shardio.profiling.monitoring._SECONDS_BETWEEN_LINES", 0.0)
    with monitor(dataset(packed), live=True) as seen:
        for _ in seen:
            pass
    lines = stream.getvalue().rstrip("\n").split("\r")
    assert len(lines) > 5
    assert max(map(len, lines)) < columns
    assert "samples/s" in lines[-1]
    assert "waiting" in lines[-1]


def test_a_dataset_is_watched_by_one_monitor_at_a_time(packed: Path) -> None:
    watched = dataset(packed)
    with monitor(watched, live=False) as seen:
        other = monitor(watched, live=False)
        with pytest.raises(shardio.UsageError, match="the dataset is timed already"):
            other.__enter__()
        assert len([*seen]) == 30
    with pytest.raises(shardio.UsageError, match="has been used"):
        seen.__enter__()
    assert len([*watched]) == 30


def test_workers_that_go_on_after_the_watching_read_on(packed: Path) -> None:
    made = shardio.Loader(dataset(packed), threads=2)
    loader = DataLoader(made, batch_size=None, num_workers=1, persistent_workers=True)
    with monitor(loader, live=False) as seen:
        assert len([*seen]) == 30
    assert len([*loader]) == 30
    with monitor(loader, live=False) as again:
        assert len([*again]) == 30
    assert again.evidence.stages is None
    assert not again.evidence.restarts
    assert again.evidence.ours


def test_a_mixture_has_stages(packed: Path) -> None:
    mixture = shardio.Mix([dataset(packed), dataset(packed)], weights=[0.5, 0.5])
    with monitor(shardio.Loader(mixture, threads=2), live=False, budget=1.0) as seen:
        assert [*seen]
    assert seen.evidence.stages is not None
    assert (seen.evidence.kind, seen.evidence.number) == ("threads", 2)


def test_what_workers_move_does_not_add_up_over_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    workers = iter([[1], [1], [2], [2]])
    faults = iter([0, 1000, 0, 1000])
    monkeypatch.setattr(system, "thread_uses", lambda _: {})
    watcher = system.Watcher(budget=0.01)
    watcher.close()
    monkeypatch.setattr(system, "descendants", lambda _: next(workers))
    monkeypatch.setattr(
        system, "bytes_moved", lambda pid: Moved(0, 0, next(faults)) if pid < 3 else None
    )
    start = time.perf_counter()
    watcher.restart()
    for _ in range(3):
        time.sleep(0.05)
        watcher._look()
    passed = time.perf_counter() - start
    moved = watcher.moved()
    assert moved is not None
    assert moved[2] * passed == pytest.approx(2000, rel=0.2)


def test_workers_that_only_wait_are_workers() -> None:
    loader = DataLoader(Slow(), batch_size=4, num_workers=2)
    with monitor(loader, live=False) as seen:
        assert len([*seen]) == 10
    assert (seen.evidence.kind, seen.evidence.number) == ("processes", 2)
    assert "2 workers" in judge(seen.evidence).sentence


def test_a_loop_that_is_left_open_is_judged_by_what_came(packed: Path) -> None:
    with monitor(dataset(packed), live=False) as seen:
        batches = iter(seen)
        for _ in range(8):
            next(batches)
    assert 0 < seen.evidence.waiting <= 1
    assert seen.evidence.rate < 1e5
    assert seen.seconds >= 0


def test_starting_is_what_an_epoch_waits_more_than_usual(packed: Path) -> None:
    few = dataset(packed).subset(range(80))
    loader = DataLoader(few, batch_size=None, num_workers=1, persistent_workers=True)
    with monitor(loader, live=False) as seen:
        for _ in range(5):
            for _ in seen:
                time.sleep(0.05)
    assert seen.evidence.starting < 0.5
    assert not seen.evidence.restarts
    with monitor(DataLoader(few, batch_size=None, num_workers=1), live=False) as seen:
        for _ in range(3):
            for _ in seen:
                pass
    assert 0 < seen.evidence.starting <= 1
    assert seen.evidence.restarts


class Slow(Dataset[torch.Tensor]):
    """Its workers wait."""

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        time.sleep(0.02)
        return torch.zeros(2)


def test_it_says_how_it_is_used(packed: Path) -> None:
    watched = monitor(dataset(packed))
    with pytest.raises(shardio.UsageError, match="inside its context"):
        next(iter(watched))
    with pytest.raises(shardio.UsageError, match="context has not been entered"):
        watched.verdict  # noqa: B018  reading it is the test
    assert repr(watched) == "<Monitor of ShardDataset>"
    with watched:
        pass
    with pytest.raises(shardio.UsageError, match="context has ended; make another one"):
        next(iter(watched))
    with pytest.raises(shardio.UsageError, match="got 5, which cannot be looped over"):
        monitor(5)  # type: ignore[arg-type]


def test_what_is_known_is_printed_in_the_loop_and_when_it_is_interrupted(
    packed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(seen: Any) -> None:
        with seen:
            for number, _ in enumerate(seen):
                if number == 0:
                    assert "seen 1 batch, too few" in str(seen)
                if number == 25:
                    assert seen.evidence.samples > 0
                    assert "\ndecode " in str(seen)
                    raise KeyboardInterrupt

    seen = monitor(dataset(packed), live=False, budget=1.0)
    with pytest.raises(KeyboardInterrupt):
        train(seen)
    assert capsys.readouterr().err == f"{seen}\n"
    stages = seen.evidence.stages
    assert stages is not None
    lines = str(seen).splitlines()
    assert max(map(len, lines)) <= 80
    (row,) = (line.split() for line in lines if line.startswith("decode "))
    assert row[1:3] == [f"{stages.decode.wall:,.1f}", f"{stages.decode.cpu:,.1f}"]


def test_an_error_in_the_loop_ends_the_watching(packed: Path) -> None:
    watched = dataset(packed)

    def train() -> None:
        with monitor(watched, live=False) as seen:
            for batch in seen:
                batch["nothing"]

    with pytest.raises(KeyError):
        train()
    assert not [one for one in threading.enumerate() if one.name == "shardio-watch"]
    assert watched.stopwatch is Stopwatch
