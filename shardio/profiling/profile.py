"""shardio.profile: the machine's limits, the loader in several topologies, a verdict.

Everything is measured in processes of their own. First the limits of the machine; then the loop's
own thread alone, which tells what a sample costs. From these follow predictions for threads,
workers and other machines. Some of them are then measured, and how far off the predictions were is
part of the result. The verdict is about the fastest loader that was measured.

A request goes to a measuring process as JSON, an answer or an error comes out as JSON. Memory and
start-up of a loader are its own only in a process of its own. Its standard output is the user's,
whose transform or step may print, and others see its arguments, so both are files. It leads a
session of its own, so that it can be ended with all the workers that it forked, and it ends when
its parent does. An error crosses as values: class, what happened, where, what to do. Whoever raises
it again reads no sentence and no traceback. Warnings are collected, for the dataset is read many
times: in the end the profile logs one of each kind, with the number of the others.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

from shardio.errors import MisfitError, ShardioError, SituationError, UsageError, argument, counted
from shardio.indexing.catalog import Catalog, open_catalog
from shardio.native import status
from shardio.options import with_options
from shardio.processes import count_cores
from shardio.profiling.claims import (
    Claim,
    Measurement,
    Prediction,
    best_of,
    conclude,
    forewarn,
    relative_speed,
)
from shardio.profiling.costs import SampleCosts, costs_of, predict
from shardio.profiling.evidence import Ceilings, Evidence
from shardio.profiling.report import check_plotting, write_html, write_png
from shardio.profiling.settings import (
    ProfileOptions,
    ProfileSettings,
    Topology,
    check_baseline,
    load_callable,
    topologies_of,
)
from shardio.profiling.store import StoreLimits
from shardio.profiling.system import OtherLoad
from shardio.profiling.verdict import Verdict
from shardio.storage.cache import fallback_folder
from shardio.storage.local import refuse_url
from shardio.storage.temporary import temporary_folder

_LOG = logging.getLogger("shardio")
_WARM_BYTES = 1 << 30
_SECONDS_BETWEEN_LOOKS = 0.5  # for the parent
_MOST_WARNINGS = 1000  # of a process
_SECONDS_LOOKED_AROUND = 0.5
_VALUES = "what", "where", "remedy", "shard", "offset", "key", "field"

_ROOT = str(Path(__file__).parents[2])
_SAFE = ["-P"] if sys.version_info >= (3, 11) else []
"""The current folder's queue.py is not the standard library's."""
_LONGEST = 107 - len("/pymp-12345678/listener-12345678")
"""Bytes of a folder's path in which multiprocessing has room for its sockets."""
_CODE = """
import sys
if sys.argv[1] not in sys.path:
    sys.path.insert(0, sys.argv[1])
from shardio.profiling.profile import main
main(*sys.argv[2:])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """Result of a profile.

    Attributes:
        settings: source, and what was held equal between the loaders.
        cores: number of cores of this machine.
        native: whether the native core decodes, or why not; see shardio.native.Status.
        samples: number of samples in the dataset.
        shards: number of shards in the dataset.
        ceilings: limits of the machine with these shards.
        store: limits of the store of the shards; None where they are local. The loaders are
            measured with some shards in the cache.
        runs: measured loaders, in order; the first is the loop's own thread.
        best: position in runs of the loader that the verdict is about.
        verdict: bottleneck of that loader, and changes.
        withheld: claims that the measurements do not allow, with reason and remedy; what they would
            say is None below.
        ceiling: samples per second that its bottleneck alone would allow, at the speed that the
            machine had then; None where not known.
        storage: samples per second that storage could deliver; None where not known.
        predictions: expected rates of what was not measured; None where all are withheld.
        ratio: rate of that loader over that of the baseline; None where not known.
        baseline: name and measurement of another loader; None if none was asked for, or it failed.
        baseline_error: reason why the baseline failed; None if it did not.
    """

    settings: ProfileSettings
    cores: int
    native: str
    samples: int
    shards: int
    ceilings: Ceilings
    store: StoreLimits | None
    runs: tuple[Measurement, ...]
    best: int
    verdict: Verdict
    withheld: Mapping[Claim, str]
    ceiling: float | None
    storage: float | None
    predictions: tuple[Prediction, ...] | None
    ratio: float | None
    baseline: tuple[str, Measurement] | None
    baseline_error: str | None

    @property
    def needed(self) -> float | None:
        """Samples per second of a step that never waits; None without a step."""
        if not self.settings.has_step:
            return None
        return self.settings.batch_size / self.runs[self.best].evidence.step_seconds

    def named_runs(self) -> list[tuple[str, Measurement]]:
        """List the measured loaders by name, the baseline last."""
        runs = [(str(run.topology), run) for run in self.runs]
        if self.baseline is not None:
            name, run = self.baseline
            runs.append((f"{name}, {run.topology}", run))
        return runs


@with_options(ProfileOptions)
def profile(source: str | PathLike[str], options: ProfileOptions) -> Profile:
    """Measure how fast shards reach a training loop, and say what limits it.

    As with `shardio.profile("out", batch_size=256, html="report.html")`. The machine should be
    idle; other work is measured, too.

    Args:
        source: packed folder, or anything else that ShardDataset reads.
        options: keywords, see ProfileOptions.

    Raises:
        UsageError: there is nothing to measure, an option is wrong, or a report cannot be written.
        ShardioError: a measurement failed.
    """
    settings = options.of(source)
    for report in filter(None, (options.html, options.png, options.trace)):
        refuse_url(report)
        check_writable(report)
    if options.png is not None:
        check_plotting()
    found = _measure(settings, options)
    if options.html is not None:
        write_html(found, options.html)
    if options.png is not None:
        write_png(found, options.png)
    return found


def _measure(settings: ProfileSettings, options: ProfileOptions) -> Profile:
    topologies = topologies_of(settings)
    catalog = open_catalog(
        settings.source, options=settings.storage_options, allow_empty=settings.allow_empty
    )
    samples = sum(shard.samples for shard in catalog.shards)
    _check(settings, samples)
    if options.baseline is not None:
        check_baseline(catalog.fields)
    if (warning := forewarn(_look_around(), count_cores())) is not None:
        _LOG.warning("%s", warning)
    stored_away = catalog.is_remote
    parts = 1 + stored_away + len(topologies)
    parts += (options.baseline is not None) + (options.trace is not None)
    child = _Child(settings, options.progress(parts) if options.progress else lambda _: None)
    store = StoreLimits.from_json(child.ask({"store": True})) if stored_away else None
    _warm(catalog)
    ceilings = Ceilings(**child.ask({}))
    alone = child.run(topologies[0])
    costs = costs_of(alone.evidence, ceilings, settings.batch_size)
    child.know(costs, ceilings)
    runs = [alone, *(child.run(one) for one in topologies[1:])]
    best = best_of(runs, settings)
    if options.trace is not None:
        where = str(Path(options.trace).absolute())
        child.ask({"topology": asdict(runs[best].topology), "trace": where})
    other, failure = _run_baseline(child, options.baseline, _workers(runs, settings))
    child.warn()
    concluded = conclude(settings, ceilings, costs, runs, other and other[1], store)
    return Profile(
        settings=settings.as_shown(),
        cores=costs.cores,
        native=str(status()),
        samples=samples,
        shards=len(catalog.shards),
        ceilings=ceilings,
        store=store,
        baseline=other,
        baseline_error=failure,
        **concluded,
    )


def _look_around() -> float | None:
    """Return the mean number of cores that others keep busy before anything is measured."""
    load = OtherLoad()
    time.sleep(_SECONDS_LOOKED_AROUND)
    return load.cores()


class _Child:
    """Measurements in processes of their own.

    Args:
        settings: settings of all of them.
        done: function that is called with 1 after each.
    """

    def __init__(self, settings: ProfileSettings, done: Callable[[int], None]) -> None:
        place = Path(settings.source)  # as datasets name it that are made from others
        source = str(place.absolute()) if place.exists() else settings.source
        self._settings = replace(settings, source=source)
        self._done = done
        self._known: tuple[SampleCosts, Ceilings] | None = None
        self._warnings: dict[str, dict[str, str]] = {}  # texts, by kind and first argument

    def know(self, costs: SampleCosts, ceilings: Ceilings) -> None:
        """Predict the measurements that follow."""
        self._known = costs, ceilings

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
            spread=evidence.spread,
            others=found["others"],
            megabytes_per_second=None if stored is None else evidence.rate * stored / 1e6,
            waits=tuple((second, share) for second, share in found["waits"]),
            peak_memory=evidence.memory,
        )

    def _predict(self, topology: Topology, speed: float) -> float | None:
        if self._known is None:
            return None
        costs, ceilings = self._known
        scaled = costs.at_speed(relative_speed(speed, topology.kind, ceilings))
        return predict(scaled, topology.kind, topology.producers)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Have a process answer."""
        try:
            answer = ask({**request, "settings": asdict(self._settings)})
        except MisfitError as error:
            equal = (
                f"give {argument('size')}, a {argument('transform')} that makes them equal, or "
                f"{argument('batch_size', 1)}"
            )
            raise MisfitError(error.what, where=error.where, remedy=equal) from error
        for kind, about, text in answer.pop("warnings", ()):
            self._warnings.setdefault(kind, {}).setdefault(about, text)
        self._done(1)
        return answer

    def warn(self) -> None:
        """Log one warning of each kind, and how many others there were."""
        for texts in self._warnings.values():
            first, *others = texts.values()
            more = f"; {counted(len(others), 'further warning')} of this kind" if others else ""
            _LOG.warning("%s%s", first, more)


def _check(settings: ProfileSettings, samples: int) -> None:
    """Refuse what cannot be measured, before anything is."""
    if not samples:
        raise SituationError("the dataset has no samples to measure", where=settings.source)
    if settings.batch_size > samples:
        raise SituationError(
            f"the dataset has {counted(samples, 'sample')}, fewer than a batch",
            where=settings.source,
            remedy=f"give {argument('batch_size', samples)} or less",
        )
    for name in ("transform", "train"):
        if (place := getattr(settings, name)) is not None:
            try:
                load_callable(place)
            except UsageError as error:
                raise error.at(argument(name), type(error)) from error


def check_writable(path: str) -> None:
    """Refuse the path of a report that cannot be written.

    Raises:
        UsageError: there is something other than a file, or the folder is not writable.
    """
    place = Path(path)
    try:
        if place.is_symlink() or (place.exists() and not place.is_file()):
            raise SituationError(
                "it cannot be written: it is not a file", where=path, remedy="name another one"
            )
        if place.exists():
            place.open("ab").close()
        else:
            tempfile.TemporaryFile(dir=place.parent).close()
    except OSError as error:
        raise SituationError(f"it cannot be written: {error.strerror}", where=path) from error


def _workers(runs: Sequence[Measurement], settings: ProfileSettings) -> Topology:
    """Return the fastest topology of a DataLoader among those that were asked for."""
    kinds = {"processes", "here"} if 0 in (settings.workers or ()) else {"processes"}
    found = [run for run in runs if run.topology.kind in kinds]
    if found:
        return max(found, key=lambda run: run.evidence.rate).topology
    cores = runs[0].evidence.cores
    return Topology(kind="processes", producers=cores, prefetch=settings.prefetch)


def _run_baseline(
    child: _Child, name: str | None, topology: Topology
) -> tuple[tuple[str, Measurement] | None, str | None]:
    """Measure a baseline; if it fails, return the reason, and keep the other measurements."""
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
        if left <= 0 or shard.remote is not None:
            break
        with Path(shard.path).open("rb") as stream:
            while left > 0 and (piece := stream.read(1 << 20)):
                left -= len(piece)


def ask(request: dict[str, Any]) -> dict[str, Any]:
    """Have a new process measure something, and return its answer; see measure.answer.

    Raises:
        ShardioError: the process raised it, or ended without an answer.
    """
    with _end_in_order(), temporary_folder(_LONGEST) as place:
        asked, answer = Path(place, "request.json"), Path(place, "answer.json")
        asked.write_text(json.dumps(request), "utf-8")  # others see the words of a command
        words = _ROOT, str(asked), str(answer), str(os.getpid())
        cache = fallback_folder()  # TMPDIR is another one there
        process = subprocess.Popen(  # noqa: S603  our own module
            [sys.executable, *_SAFE, "-c", _CODE, *words],
            stdout=subprocess.DEVNULL,
            start_new_session=True,
            env={**os.environ, "TMPDIR": place} | ({"SHARDIO_CACHE": str(cache)} if cache else {}),
        )
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C, above all: nothing is left that measures
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        if not answer.exists():
            raise ShardioError(f"the measuring process {_ending(code)} and gave no result")
        found: dict[str, Any] = json.loads(answer.read_text("utf-8"))
    if "error" in found:
        raise _error_of(found["error"])
    return found


def main(request: str, place: str, parent: str) -> None:
    """Measure what a request asks for, and write the answer.

    Args:
        request: path of a file with the request as JSON, see measure.answer.
        place: path of the file to write, in a folder that is the parent's to remove.
        parent: number of the parent process; this process and its workers end when it does.
    """
    folder = str(Path(place).parent)
    threading.Thread(target=_end_with_parent, args=(int(parent), folder), daemon=True).start()
    collected = _Warnings(Path(folder, "warnings"))
    _LOG.addHandler(collected)
    _LOG.propagate = False
    warnings.showwarning = collected.note
    try:
        from shardio.profiling.measure import answer  # noqa: PLC0415  needs torch

        found = answer(json.loads(Path(request).read_text("utf-8")))
        found["warnings"] = collected.read()
    except Exception as error:  # of a user's code, too
        found = {"error": _values_of(as_ours(error))}
    written = Path(f"{place}.part")
    written.write_text(json.dumps(found), "utf-8")
    written.rename(place)


class _Warnings(logging.Handler):
    """Handler that collects the warnings of this process and its children.

    Each process writes a warning once, whose kind and first argument, such as a sample, are new.

    Args:
        path: path of the file that takes them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(logging.WARNING)
        self._path = path
        self._seen: set[tuple[str, str]] = set()

    def emit(self, record: logging.LogRecord) -> None:
        """Collect a warning of shardio."""
        arguments = record.args if isinstance(record.args, tuple) else ()
        self._collect(str(record.msg), "".join(map(str, arguments[:1])), record.getMessage())

    def note(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Collect a warning of Python's, one of each process, as warnings.showwarning."""
        del file, line
        words = " ".join(str(message).split())
        text = f"{filename}:{lineno}: {category.__name__}: {words}"
        self._collect(text, str(os.getpid()), text)

    def _collect(self, kind: str, about: str, text: str) -> None:
        if (kind, about) not in self._seen and len(self._seen) < _MOST_WARNINGS:
            self._seen.add((kind, about))
            with self._path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps([kind, about, text]) + "\n")

    def read(self) -> list[list[str]]:
        """Return kind, first argument and text of each warning."""
        if not self._path.exists():
            return []
        return [json.loads(line) for line in self._path.read_text("utf-8").splitlines()]


def as_ours(error: Exception) -> ShardioError:
    """Return an error of shardio as it is, and any other as one that names its class."""
    if isinstance(error, ShardioError):
        return error
    text = " ".join(str(error).split())
    return ShardioError(
        f"the measuring process met {type(error).__name__}" + f": {text}" * bool(text)
    )


def _values_of(error: ShardioError) -> dict[str, Any]:
    classes = [kind.__name__ for kind in type(error).__mro__]
    return {"classes": classes, **{name: getattr(error, name) for name in _VALUES}}


def _error_of(values: dict[str, Any]) -> ShardioError:
    known = {kind.__name__: kind for kind in _tree(ShardioError)}
    kind = next(known[name] for name in values.pop("classes") if name in known)
    return kind(**values)


def _tree(kind: type[ShardioError]) -> list[type[ShardioError]]:
    return [kind, *(one for part in kind.__subclasses__() for one in _tree(part))]


def _end_with_parent(parent: int, folder: str) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    ended = f"{folder}-ended"
    with suppress(OSError):  # its workers, which still run, cannot add a file by the old name
        os.rename(folder, ended)  # noqa: PTH104  the path is a string
    shutil.rmtree(ended, ignore_errors=True)
    os.killpg(os.getpid(), signal.SIGKILL)


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
