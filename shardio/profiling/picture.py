"""The chart of rates as a PNG, by matplotlib, which only this needs."""

from __future__ import annotations

import importlib.util
import textwrap
from typing import TYPE_CHECKING

from shardio.errors import SituationError
from shardio.profiling.phrases import as_sentence
from shardio.profiling.words import ceiling_name

if TYPE_CHECKING:
    from shardio.profiling.profile import Profile


def check_plotting() -> None:
    """Refuse a chart where there is nothing to draw it with.

    Raises:
        UsageError: matplotlib is missing.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SituationError("--png needs matplotlib: pip install 'shardio[plot]'")


def write_png(result: Profile, path: str) -> None:
    """Draw rates by threads and workers, predicted and measured, under the verdict.

    Raises:
        UsageError: matplotlib is missing, or the file cannot be written.
    """
    check_plotting()
    from matplotlib.figure import Figure  # noqa: PLC0415  an extra

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for kind, name, colour in (
        ("threads", "threads", "#1f6fb2"),
        ("processes", "workers", "#b4540a"),
    ):
        runs = [run for run in result.runs if run.topology.kind == kind]
        curve = [(run.topology.producers, run.predicted or 0.0) for run in runs]
        curve += [
            (one.topology.producers, one.rate)
            for one in result.predictions
            if one.topology.kind == kind and one.cores == result.cores
        ]
        if curve:
            axes.plot(*zip(*sorted(curve), strict=True), color=colour, label=f"{name}, predicted")
        for number, run in enumerate(runs):
            label = None if number else f"{name}, measured"
            axes.plot(run.topology.producers, run.evidence.rate, "o", color=colour, label=label)
    if result.ceiling:
        axes.axhline(result.ceiling, linestyle="--", color="0.5", label=ceiling_name(result))
    axes.set(xlabel="threads or workers", ylabel="samples/s", ylim=(0, None))
    axes.set_title(_wrapped(as_sentence(result.verdict.sentence)), fontsize="medium", loc="left")
    axes.legend()
    try:
        figure.savefig(path, format="png", dpi=120)
    except OSError as error:
        raise SituationError(f"{path} cannot be written: {error.strerror}") from error


def _wrapped(sentence: str) -> str:
    return "\n".join(textwrap.wrap(sentence, 90))
