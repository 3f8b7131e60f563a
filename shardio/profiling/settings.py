"""What a profile measures: options, loaders and callables of the user.

Settings go to the measuring processes as JSON, so callables are named by file and name. Whatever
the settings alone can tell is refused here, before anything is measured.
"""

from __future__ import annotations

import importlib.util
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field, fields, replace
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from shardio.checks import flag, one_of, require, whole_number
from shardio.errors import SituationError, UsageError, argument, counted, quoted, without_secrets
from shardio.fields.formats import IMAGE_FIELDS
from shardio.processes import count_cores
from shardio.profiling.evidence import ProducerKind
from shardio.storage.location import Options

BASELINES = ("webdataset",)
"""Other loaders that can be measured on the same shards."""

_PREFETCH = 2  # default of torch's DataLoader for each worker, and of shardio.Loader
MOST_A_CORE, MOST = 16, 128  # workers or threads
SHORTEST = 0.1  # seconds of a measurement


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringOptions:
    """What is held equal between the measured loaders.

    Attributes:
        batch_size: samples in a batch.
        size: height and width that images are cropped and resized to; 0 leaves them as they are.
        seconds: seconds that each loader is measured.
        transform: "FILE:NAME" of a callable for images, in place of the crop.
        workers: numbers of workers to measure, 0 for the loop's own thread alone; None for one
            per core, unless threads are given.
        threads: numbers of threads to measure, likewise.
        prefetch: batches made ahead, by each worker or by all threads together.
        step_ms: milliseconds of the loop's step, which sleeps as if it waited for a GPU.
        train: "FILE:NAME" of a callable that takes a batch, in place of such a step.
        cold: whether the shards are dropped from the page cache before each loader.
        allow_empty: whether tars without fields of samples are accepted.

    Raises:
        UsageError: a value is outside its bounds, or does not fit another.
    """

    batch_size: int = 64
    size: int = 224
    seconds: float = 4.0
    transform: str | None = None
    workers: Sequence[int] | None = None
    threads: Sequence[int] | None = None
    prefetch: int = _PREFETCH
    step_ms: float = 0.0
    train: str | None = None
    cold: bool = False
    allow_empty: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("size", 0), ("prefetch", 1)):
            whole_number(name, getattr(self, name), least=least)
        for name, shortest in (("seconds", SHORTEST), ("step_ms", 0.0)):
            value = getattr(self, name)
            good = isinstance(value, int | float) and shortest <= value < math.inf
            require(good, name, value, f"a number, {shortest:g} or more")
        for name in ("cold", "allow_empty"):
            flag(name, getattr(self, name))
        if self.step_ms and self.train:
            raise UsageError(
                f"{argument('step_ms')} and {argument('train')} exclude each other",
                remedy="give one of them",
            )

    @property
    def has_step(self) -> bool:
        """Whether the loop has a step that takes time."""
        return bool(self.step_ms or self.train)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings(MeasuringOptions):
    """Source of a profile, and what is held equal between the measured loaders.

    Attributes:
        source: packed folder or shards.
        storage_options: settings of the store of a URL, as ShardDataset takes them; None
            in results, since they may hold secrets.
    """

    source: str
    storage_options: Options | None = field(default=None, repr=False)

    def as_shown(self) -> ProfileSettings:
        """Return the settings without secrets, for results."""
        return replace(self, source=without_secrets(self.source), storage_options=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileOptions(MeasuringOptions):
    """Options of `shardio.profile`: what is measured, see MeasuringOptions, and the reports.

    Attributes:
        baseline: name of another loader to measure, "webdataset".
        html: path of a report for a browser.
        png: path of a chart of the rates; needs shardio[plot].
        trace: path of a timeline of the fastest loader, for ui.perfetto.dev.
        storage_options: settings of the store of a URL, as ShardDataset takes them.
        progress: function that takes the number of parts to measure and returns one that is called
            with the number of further parts done.

    Raises:
        UsageError: a value is outside its bounds, or does not fit another.
    """

    baseline: str | None = None
    html: str | None = None
    png: str | None = None
    trace: str | None = None
    storage_options: Options | None = field(default=None, repr=False)
    progress: Callable[[int], Callable[[int], None]] | None = None

    def __post_init__(self) -> None:
        MeasuringOptions.__post_init__(self)
        if self.baseline is not None:
            one_of("baseline", self.baseline, BASELINES)

    def of(self, source: str | PathLike[str]) -> ProfileSettings:
        """Return the settings of a profile of a source."""
        own = {each.name: getattr(self, each.name) for each in fields(MeasuringOptions)}
        return ProfileSettings(source=fspath(source), storage_options=self.storage_options, **own)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """Number and kind of the producers, which make the batches.

    Attributes:
        kind: worker processes, threads, or the loop's own thread.
        producers: number of processes or threads; 0 for the loop's own thread.
        prefetch: batches made ahead, by each worker or by all threads together.
    """

    kind: ProducerKind
    producers: int = 0
    prefetch: int = _PREFETCH

    def __str__(self) -> str:
        if self.kind == "here":
            return "the loop's own thread"
        return counted(self.producers, "worker" if self.kind == "processes" else "thread")


ALONE = Topology(kind="here")


def topologies_of(settings: ProfileSettings) -> list[Topology]:
    """List what to measure: the loop's own thread, which all predictions rest on, and the rest.

    Raises:
        UsageError: a number is out of range.
    """
    cores = count_cores()
    most = max(min(MOST_A_CORE * cores, MOST), cores)  # more only take memory
    workers, threads = settings.workers, settings.threads
    numbers: tuple[tuple[ProducerKind, str, Sequence[int] | None], ...] = (
        ("processes", "workers", workers),
        ("threads", "threads", threads),
    )
    if workers is None and threads is None:
        numbers = (("threads", "threads", (cores,)), ("processes", "workers", (cores,)))
    found = [ALONE]
    for kind, name, several in numbers:
        for number in several or ():
            whole_number(name, number, least=0, most=most)
            found.append(Topology(kind=kind, producers=number, prefetch=settings.prefetch))
    return [*dict.fromkeys(one if one.producers else ALONE for one in found)]


def load_callable(place: str) -> Callable[..., Any]:
    """Import a callable from a file, which may import what lies beside it.

    Args:
        place: "FILE:NAME".

    Raises:
        UsageError: the file cannot be imported, or has no such callable.
    """
    path, colon, name = place.rpartition(":")
    if not colon:
        raise UsageError(
            "it is not FILE:NAME", where=place, remedy="give a Python file and a callable in it"
        )
    if not Path(path).is_file():
        raise UsageError(f"there is no file {path}", where=place)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise UsageError("it is not a Python file", where=path)
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that what lies there takes no other module's name
    try:
        with redirect_stdout(sys.stderr):  # standard output is for results
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise UsageError(f"{path} has no callable {quoted(name)}")
    return found  # type: ignore[no-any-return]


def check_baseline(fields: Iterable[str]) -> None:
    """Refuse a dataset that no baseline can read.

    Args:
        fields: names of the dataset's fields.

    Raises:
        UsageError: there is no image to decode.
    """
    if IMAGE_FIELDS.isdisjoint(fields):
        names = ", ".join(sorted(IMAGE_FIELDS))
        raise SituationError(
            f"the baseline decodes {names}, and the dataset has none of these fields",
            remedy=f"leave out {argument('baseline')}",
        )
