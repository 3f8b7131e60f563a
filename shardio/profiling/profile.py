"""What went wrong while measuring, in one sentence.

A measuring process: asked with JSON, it answers in a file, and nothing of it outlives this.

Its standard output is the user's, whose transform or step may print. It leads a session of its own,
so that it can be ended with all the workers that it forked.

Measuring a packed folder: the machine's limits, the loader in several topologies, a verdict.

Everything is measured in processes of their own, so that memory and start-up are their own too.
First the limits of the machine; then the loop's own thread alone, which tells what a sample costs.
From these follow predictions for threads, workers and other machines. Some are then run, and how
far they were off is part of the result. The verdict is about the fastest that was run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from shardio.errors import ShardioError, SituationError, UsageError
from shardio.indexing.catalog import Catalog, open_catalog
from shardio.profiling.evidence import (
    Ceilings,
    Evidence,
    ProducerKind,
    SampleCosts,
    costs_of,
    predict,
)
from shardio.profiling.settings import (
    ProfileSettings,
    SettingError,
    Topology,
    check_baseline,
    load_callable,
    topologies_of,
)
from shardio.profiling.verdict import Verdict, advise, judge
from shardio.storage.temporary import temporary_folder

_FROM_A_WORKER = "Original Traceback"
_UNEQUAL = "; give a transform that makes them equal"
_ON_THE_COMMAND_LINE = "; give --size, a --transform that makes them equal, or --batch-size 1"


def one_sentence(error: Exception) -> str:
    """Say what an error says, without the traceback that a DataLoader's worker sends along."""
    kind, text = type(error).__name__, str(error)
    if _FROM_A_WORKER in text:
        lines = text.splitlines()
        frames = [at for at, line in enumerate(lines) if line.startswith("  ")]
        text = " ".join(lines[frames[-1] + 1 :]) if frames else lines[-1]
        raised, _, message = text.partition(": ")
        kind, text = raised.rpartition(".")[2], message
    text = " ".join(text.split())
    what, unequal, _ = text.partition(_UNEQUAL)
    if unequal:
        text = what + _ON_THE_COMMAND_LINE
    if isinstance(error, ShardioError):
        return text
    return f"the measuring process met {kind}" + (f": {text}" if text else "")


_ROOT = str(Path(__file__).parents[2])
_SAFE = ["-P"] if sys.version_info >= (3, 11) else []
"""The current folder's queue.py is not the standard library's."""
_LONGEST = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of a folder's path in which multiprocessing has room for its sockets."""
_CODE = """
import sys
if sys.argv[1] not in sys.path:
    sys.path.insert(0, sys.argv[1])
from shardio.profiling.measure import main
main(*sys.argv[2:])
"""


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """What a new process answers; see run.answer.

    Raises:
        ShardioError: what it raised, or it ended without an answer.
    """
    with _end_in_order(), temporary_folder(_LONGEST) as place:
        answer = Path(place, "answer.json")
        words = _ROOT, json.dumps(request), str(answer), str(os.getpid())
        process = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, *_SAFE, "-c", _CODE, *words],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": place},
        )
        try:
            code = process.wait()
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if not answer.exists():
            raise ShardioError(f"the measuring process {_ending(code)} and gave no result")
        found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    if "error" in found:
        raise ShardioError(found["error"])
    return found


@contextmanager
def _end_in_order() -> Iterator[None]:
    """Have SIGTERM unwind what is inside, unless the program handles it in its own way."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return

    def leave(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one would interrupt the unwinding
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    want = ", perhaps for want of memory," if code == -signal.SIGKILL else ""
    return f"was ended by {signal.Signals(-code).name}{want}"


_WARM_BYTES = 1 << 30
_KINDS: tuple[ProducerKind, ...] = ("threads", "processes")
_OF_THE_CORES = frozenset({"decode", "transform", "loader", "lock", "cores", "opencv"})
_PREDICTED = (1, 2, 4, 8)
_MACHINES = (2, 4, 8)  # times the cores of this one


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One topology, measured.

    Attributes:
        topology: what made the batches.
        evidence: what was seen.
        samples_per_second: the rate.
        speed: samples per second of loops without hand-over just before and after, one loop
            beside the loop's own thread, else one on each core.
        predicted: samples per second, from other runs and this speed; None where nothing was
            known yet.
        error: measured over predicted, less 1.
        megabytes_per_second: of stored bytes; 1 MB is 10^6 bytes; None where the stages are not
            known.
        waits: seconds since the beginning, and the share of the time waited from there on.
        peak_memory: bytes of the process and its workers; None where it cannot be measured.
    """

    topology: Topology
    evidence: Evidence
    samples_per_second: float
    speed: float
    predicted: float | None
    error: float | None
    megabytes_per_second: float | None
    waits: tuple[tuple[float, float], ...]
    peak_memory: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A topology that was not measured, or a machine.

    Attributes:
        topology: what would make the batches.
        cores: of the machine.
        rate: samples per second.
        waiting: share of the time that a loop with this step would wait.
    """

    topology: Topology
    cores: int
    rate: float
    waiting: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """All that was found.

    Attributes:
        settings: held equal between the runs.
        cores: of this machine.
        samples: of the dataset.
        shards: of the dataset.
        ceilings: of the machine with these shards.
        runs: in the order in which they were made; the first is the loop's own thread.
        best: position in runs of the one that the verdict is about.
        verdict: on it.
        ceiling: samples per second that its bottleneck allows at most, at the speed that the
            machine had then; None where none is known.
        storage: samples per second that storage could deliver.
        predictions: what was not run.
        baseline: another loader's name and run; None if none was asked for, or it failed.
        baseline_error: why it failed.
    """

    settings: ProfileSettings
    cores: int
    samples: int
    shards: int
    ceilings: Ceilings
    runs: tuple[Measurement, ...]
    best: int
    verdict: Verdict
    ceiling: float | None
    storage: float | None
    predictions: tuple[Prediction, ...]
    baseline: tuple[str, Measurement] | None
    baseline_error: str | None

    @property
    def needed(self) -> float | None:
        """Samples per second that a step takes that never waits; None without a step."""
        if not self.settings.has_step:
            return None
        return self.settings.batch_size / self.runs[self.best].evidence.step_seconds

    def named_runs(self) -> list[tuple[str, Measurement]]:
        """All runs, the baseline's last."""
        runs = [(str(run.topology), run) for run in self.runs]
        if self.baseline is not None:
            name, run = self.baseline
            runs.append((f"{name}, {run.topology}", run))
        return runs


def profile(
    settings: ProfileSettings,
    *,
    baseline: str | None = None,
    trace: str | None = None,
    on_part: Callable[[int], None] | None = None,
) -> Profile:
    """Measure a dataset; the machine should be idle.

    Args:
        settings: held equal between the runs.
        baseline: another loader to run on the same shards, with the best of the measured numbers of
            workers: "webdataset".
        trace: where to write a timeline of the best run, for Perfetto.
        on_part: called with 1 after each part, of which count_parts tells the number.

    Raises:
        UsageError: nothing is at the source, it has no samples, or an argument cannot be meant.
        ShardioError: a run failed; the message is the run's.
    """
    topologies = topologies_of(settings)
    catalog = open_catalog(settings.source, allow_empty=settings.allow_empty)
    samples = sum(shard.samples for shard in catalog.shards)
    _check(settings, samples, trace)
    if baseline is not None:
        check_baseline(baseline, catalog.fields)
    _warm(catalog)
    child = _Child(settings, on_part or (lambda _: None))
    ceilings = Ceilings(**child.ask({}))
    alone = child.run(topologies[0])
    parts = costs_of(alone.evidence, ceilings, settings.batch_size)
    child.know(parts, ceilings)
    runs = [alone, *(child.run(one) for one in topologies[1:])]
    best = _best(runs, settings)
    if trace is not None:
        where = str(Path(trace).absolute())
        child.ask({"topology": asdict(runs[best].topology), "trace": where})
    other, failure = _run_baseline(child, baseline, _workers(runs, settings))
    stored = alone.evidence.stages.bytes if alone.evidence.stages else 0.0
    parts = _parts_of_best(parts, ceilings, runs[best], settings)
    rates = {(run.topology.kind, run.topology.producers): run.evidence.rate for run in runs}
    seen = runs[best].evidence
    verdict = advise(judge(seen), seen, parts, ceilings, settings, rates)
    return Profile(
        settings=settings,
        cores=parts.cores,
        samples=samples,
        shards=len(catalog.shards),
        ceilings=ceilings,
        runs=tuple(runs),
        best=best,
        verdict=verdict,
        ceiling=_ceiling(verdict, ceilings, runs[best], stored),
        storage=(ceilings.cold or ceilings.warm) / stored if stored else None,
        predictions=_predictions(parts, runs),
        baseline=other,
        baseline_error=failure,
    )


class _Child:
    """Measures in processes of their own.

    Args:
        settings: of all.
        done: called with 1 after each.
    """

    def __init__(self, settings: ProfileSettings, done: Callable[[int], None]) -> None:
        self._settings = settings
        self._done = done
        self._known: tuple[SampleCosts, Ceilings] | None = None

    def know(self, parts: SampleCosts, ceilings: Ceilings) -> None:
        """Predict the runs from now on."""
        self._known = parts, ceilings

    def run(self, topology: Topology, *, baseline: str | None = None) -> Measurement:
        """Measure a topology."""
        found = self.ask({"topology": asdict(topology), "baseline": baseline})
        evidence, speed = Evidence.from_json(found["evidence"]), found["speed"]
        predicted = None if baseline else self._predict(topology, speed)
        stored = evidence.stages.bytes if evidence.stages else None
        return Measurement(
            topology=topology,
            evidence=evidence,
            samples_per_second=evidence.rate,
            speed=speed,
            predicted=predicted,
            error=evidence.rate / predicted - 1 if predicted else None,
            megabytes_per_second=None if stored is None else evidence.rate * stored / 1e6,
            waits=tuple((second, share) for second, share in found["waits"]),
            peak_memory=evidence.memory,
        )

    def _predict(self, topology: Topology, speed: float) -> float | None:
        if self._known is None:
            return None
        parts, ceilings = self._known
        scaled = parts.at_speed(_relative(speed, topology.kind, ceilings))
        return predict(scaled, topology.kind, topology.producers)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """What a process answers."""
        answer = ask({**request, "settings": asdict(self._settings)})
        self._done(1)
        return answer


def count_parts(settings: ProfileSettings, baseline: str | None, trace: str | None) -> int:
    """How many parts profile measures: the ceilings, each run, what else was asked for."""
    return 1 + len(topologies_of(settings)) + (baseline is not None) + (trace is not None)


def _check(settings: ProfileSettings, samples: int, trace: str | None) -> None:
    """Refuse what cannot be measured, before anything is."""
    if not samples:
        raise SituationError("the dataset has no samples to measure", where=settings.source)
    if settings.batch_size > samples:
        raise SituationError(
            f"the dataset has {samples:,} samples",
            where=settings.source,
            remedy=f"pass --batch-size {samples} or less",
        )
    for name in ("transform", "train"):
        if (place := getattr(settings, name)) is not None:
            try:
                load_callable(place)
            except SituationError as error:
                raise error.at(name, SituationError) from error
            except UsageError as error:
                raise SettingError(str(error), setting=name) from error
    if trace is not None:
        check_writable(trace)


def check_writable(path: str) -> None:
    """Refuse a place for a report before anything is measured.

    Raises:
        UsageError: the file cannot be written.
    """
    place = Path(path)
    try:
        if place.is_symlink() or (place.exists() and not place.is_file()):
            raise SituationError(
                f"{path} cannot be written: it is not a file", remedy="name another one"
            )
        if place.exists():
            place.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=place.parent).close()
    except OSError as error:
        raise SituationError(f"{path} cannot be written: {error.strerror}") from error


def _relative(speed: float, kind: ProducerKind, ceilings: Ceilings) -> float:
    """How fast the machine was beside a run, of when its limits were measured."""
    return speed / (ceilings.loop_one if kind == "here" else ceilings.loop_all)


def _parts_of_best(
    parts: SampleCosts, ceilings: Ceilings, run: Measurement, settings: ProfileSettings
) -> SampleCosts:
    """What a sample costs at the speed that the machine had then, with the step as it was then."""
    parts = parts.at_speed(_relative(run.speed, run.topology.kind, ceilings))
    if not settings.has_step:
        return parts
    return replace(parts, step=run.evidence.step_seconds / settings.batch_size * 1e6)


def _ceiling(verdict: Verdict, ceilings: Ceilings, run: Measurement, stored: float) -> float | None:
    """What the named bottleneck alone would allow."""
    batch, kind = run.evidence.samples / run.evidence.batches, run.topology.kind
    decode = ceilings.decode_one if kind == "here" else ceilings.decode_all
    if verdict.bottleneck in {"storage", "cold"} and stored:
        return (ceilings.cold or ceilings.warm) / stored
    if verdict.bottleneck == "handover":
        return ceilings.handover * batch
    if verdict.bottleneck in _OF_THE_CORES and decode:
        return decode * _relative(run.speed, kind, ceilings)
    return None


def _best(runs: Sequence[Measurement], settings: ProfileSettings) -> int:
    """Position of the fastest run, of those that were asked for."""
    numbers = settings.workers, settings.threads
    alone = numbers == (None, None) or any(0 in (several or ()) for several in numbers)
    asked = runs if alone else runs[1:] or runs
    return [*runs].index(max(asked, key=lambda run: run.evidence.rate))


def _workers(runs: Sequence[Measurement], settings: ProfileSettings) -> Topology:
    """The fastest topology that a DataLoader can have, of those that were asked for."""
    kinds = {"processes", "here"} if 0 in (settings.workers or ()) else {"processes"}
    found = [run for run in runs if run.topology.kind in kinds]
    if found:
        return max(found, key=lambda run: run.evidence.rate).topology
    cores = runs[0].evidence.cores
    return Topology(kind="processes", producers=cores, prefetch=settings.prefetch)


def _run_baseline(
    child: _Child, name: str | None, topology: Topology
) -> tuple[tuple[str, Measurement] | None, str | None]:
    """A baseline's name and run, or why there is none: it takes no other run along."""
    if name is None:
        return None, None
    try:
        return (name, child.run(topology, baseline=name)), None
    except ShardioError as error:
        return None, str(error)


def _warm(catalog: Catalog) -> None:
    """Read shards into the page cache, so that the first run is not the slowest."""
    left = _WARM_BYTES
    for shard in catalog.shards:
        if left <= 0:
            break
        with Path(shard.path).open("rb") as stream:
            while left > 0 and (piece := stream.read(1 << 20)):
                left -= len(piece)


def _predictions(parts: SampleCosts, runs: Sequence[Measurement]) -> tuple[Prediction, ...]:
    """For other numbers of threads and workers, and for machines with more cores."""
    ran = {(run.topology.kind, run.topology.producers) for run in runs}
    found = []
    for kind in _KINDS:
        found += [
            _prediction(parts, Topology(kind=kind, producers=number))
            for number in _PREDICTED
            if (kind, number) not in ran
        ]
        for times in _MACHINES if parts.cores > 1 else ():  # one core says nothing of several
            cores = times * parts.cores
            topology = Topology(kind=kind, producers=cores)
            found.append(_prediction(parts.with_cores(cores), topology))
    return tuple(found)


def _prediction(parts: SampleCosts, topology: Topology) -> Prediction:
    rate = predict(parts, topology.kind, topology.producers)
    return Prediction(
        topology=topology,
        cores=parts.cores,
        rate=rate,
        waiting=max(1 - parts.step * rate / 1e6, 0.0) if parts.step else 1.0,
    )
