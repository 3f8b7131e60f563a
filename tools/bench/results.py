"""Results of the runs, and the figures derived from them."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass, field
from typing import Any

Run = dict[str, float]


@dataclass(slots=True)
class Result:
    """Result of a peer on a workload: one run per round, or the reason why there is none."""

    runs: list[Run] = field(default_factory=list)
    memory: int | None = None
    absent: str | None = None


@dataclass(slots=True)
class Table:
    """Results of a workload: its peers and the ceilings, in runs of the same rounds."""

    letter: str
    images: int
    mean_bytes: float
    peers: dict[str, Result] = field(default_factory=dict)
    ceiling: list[Run] = field(default_factory=list)
    mount: list[Run] = field(default_factory=list)
    bare_memory: int = 0


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, minimum and maximum of some figures."""

    median: float
    least: float
    most: float

    def show(self, digits: str | None = None) -> str:
        """Format the figures as text, rounded to four digits if no format is given."""
        median, least, most = (
            rounded(value) if digits is None else format(value, digits)
            for value in (self.median, self.least, self.most)
        )
        return f"{median} ({least} to {most})"


def rounded(value: float, digits: int = 4) -> str:
    """Format a figure with some significant digits, and never as a power of ten."""
    return f"{float(f'{value:.{digits}g}'):,.10g}"


def spread(values: list[float]) -> Spread:
    return Spread(statistics.median(values), min(values), max(values))


def rate(run: Run, *, compiles: bool = False) -> float:
    """Return the images per second of a run, after the first batch if the peer compiles itself."""
    images, seconds = run["images"] - run["first_images"], run["seconds"] - run["first"]
    return images / seconds if compiles and images else run["images"] / run["seconds"]


def ratios(ours: list[float], theirs: list[float]) -> Spread | None:
    """Return the ratios within each round."""
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=False)]
    return spread(pairs) if pairs else None


def to_json(tables: list[Table], about: dict[str, Any]) -> dict[str, Any]:
    return {**about, "workloads": [asdict(table) for table in tables]}
