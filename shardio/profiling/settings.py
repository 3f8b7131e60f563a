"""What is measured: values that go to the measuring processes as JSON."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shardio.errors import SituationError, UsageError
from shardio.processes import count_cores
from shardio.profiling.evidence import ProducerKind

IMAGES = "jpg", "jpeg", "png", "webp", "bmp"
"""Fields of pictures that other loaders decode."""
BASELINES = ("webdataset",)
"""Other loaders that run on the same shards."""

_PREFETCH = 2  # of torch's DataLoader for each worker, and of shardio.Loader
_MOST_A_CORE, _MOST = 16, 128  # workers or threads


class SettingError(UsageError):
    """A setting that cannot be meant.

    Args:
        message: says why.
        setting: its name.
    """

    def __init__(self, message: str, *, setting: str) -> None:
        super().__init__(message)
        self.setting = setting


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileSettings:
    """What is held equal between the runs.

    Attributes:
        source: packed folder or shards.
        batch_size: samples in a batch.
        size: images are cropped and resized to size × size; 0 leaves them as they are.
        seconds: of measuring, each run.
        transform: "FILE:NAME" of a callable for images, in place of the crop.
        workers: numbers of workers to measure, 0 for the loop's own thread alone; None for one a
            core, unless threads are given.
        threads: numbers of threads, likewise.
        prefetch: batches made ahead, by each worker or by all threads together.
        step_ms: milliseconds that the loop's step is made to take; it sleeps, as a loop does
            that waits for a GPU.
        train: "FILE:NAME" of a callable that takes a batch and is the step.
        cold: drop the shards from the page cache before each run.
        allow_empty: as ShardDataset takes it.
    """

    source: str
    batch_size: int = 64
    size: int = 224
    seconds: float = 4.0
    transform: str | None = None
    workers: tuple[int, ...] | None = None
    threads: tuple[int, ...] | None = None
    prefetch: int = _PREFETCH
    step_ms: float = 0.0
    train: str | None = None
    cold: bool = False
    allow_empty: bool = False

    @property
    def has_step(self) -> bool:
        """Whether the loop has a step that takes time."""
        return bool(self.step_ms or self.train)


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """What makes the batches.

    Attributes:
        kind: worker processes, threads, or the loop's own thread.
        producers: how many; 0 of the loop's own thread.
        prefetch: batches made ahead, by each worker or by all threads together.
    """

    kind: ProducerKind
    producers: int = 0
    prefetch: int = _PREFETCH

    def __str__(self) -> str:
        one = {"processes": "worker", "threads": "thread", "here": "the loop's own thread"}
        if self.kind == "here":
            return one["here"]
        return f"{self.producers} {one[self.kind]}{'s' if self.producers != 1 else ''}"


ALONE = Topology(kind="here")


def topologies_of(settings: ProfileSettings) -> list[Topology]:
    """What to measure: the loop's own thread, of which all else is predicted, before the rest.

    Raises:
        SettingError: a number cannot be meant.
    """
    cores = count_cores()
    numbers: dict[ProducerKind, tuple[int, ...] | None] = {
        "processes": settings.workers,
        "threads": settings.threads,
    }
    if settings.workers is None and settings.threads is None:
        numbers = {"threads": (cores,), "processes": (cores,)}
    found = [ALONE]
    for kind, several in numbers.items():
        for number in several or ():
            _check_number(number, kind, cores)
            found.append(Topology(kind=kind, producers=number, prefetch=settings.prefetch))
    return [*dict.fromkeys(one if one.producers else ALONE for one in found)]


def _check_number(number: int, kind: ProducerKind, cores: int) -> None:
    name = "workers" if kind == "processes" else "threads"
    most = max(min(_MOST_A_CORE * cores, _MOST), cores)
    if not 0 <= number <= most:
        raise SettingError(
            f"{number} {name}: give from 0 to {most}; more on {cores} "
            f"{'core' if cores == 1 else 'cores'} only take memory",
            setting=name,
        )


def load_callable(place: str) -> Callable[..., Any]:
    """Import a callable from a file, which may import what lies beside it.

    Args:
        place: "FILE:NAME".

    Raises:
        UsageError: the file cannot be imported, or has no such callable.
    """
    path, colon, name = place.rpartition(":")
    if not colon:
        raise UsageError("give FILE:NAME, a Python file and a callable in it", where=place)
    if not Path(path).is_file():
        raise SituationError(f"there is no file {path}", where=place)
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise SituationError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # last, so that what lies there takes no other module's name
    try:
        with redirect_stdout(sys.stderr):  # standard output is for results
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise SituationError(
            f"{path} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    found = getattr(module, name, None)
    if not callable(found):
        raise SituationError(f"{path} has no callable {name!r}")
    return found  # type: ignore[no-any-return]


def check_baseline(name: str, fields: Iterable[str]) -> None:
    """Refuse what is no baseline, and what it cannot read.

    Args:
        name: of the baseline.
        fields: of the dataset.

    Raises:
        UsageError: there is none of that name, or no picture for it to decode.
    """
    if not set(IMAGES) & set(fields):
        raise SituationError(
            f"the baseline decodes {', '.join(IMAGES)}, which the dataset does not have",
            remedy="leave out --baseline",
        )
    if name not in BASELINES:
        raise UsageError(
            f"there is no baseline {name!r}", remedy=f"choose {' or '.join(BASELINES)}"
        )
