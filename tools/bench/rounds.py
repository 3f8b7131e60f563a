"""Compare loaders job by job in interleaved rounds: what tasks.py and pipelines.py have in common.

A job is a task of a module of peers. Before anything is timed, every loader runs once, and all must
give samples of the same shapes and dtypes with the same means. Then, in each round, every loader
runs once, in a process of its own, and repeats its data for about three seconds.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import runs
from peers import FILES
from peers.tasks import LOADERS, Task
from results import Run, ratios, spread
from runs import RunError
from sources import make_source
from tables import CHART, machine

PHOTOS, QUICK = 600, 32
SECONDS = 3.0
TOLERANCE = 2.5  # of a mean of one sample, since crops are random; of n, by √n less
OURS = "shardio"
GOAL = 1.3


@dataclass(slots=True)
class Found:
    """Runs of the loaders on a task.

    Attributes:
        runs: one run a round, by loader.
        absent: reason why a loader has none.
        entries: what each entry of a sample is, and its mean over all samples, by loader.
    """

    runs: dict[str, list[Run]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    entries: dict[str, dict[str, tuple[str, float]]] = field(default_factory=dict)

    def rates(self, name: str) -> list[float]:
        """Return samples per second of a loader."""
        return [run["images"] / run["seconds"] for run in self.runs[name]]

    def costs(self, name: str) -> list[float]:
        """Return the CPU time of a sample of a loader, in milliseconds."""
        return [1e3 * run["cpu"] / run["images"] for run in self.runs[name]]


Write = Callable[[str, Path, Path], None]
"""Function that writes the files of a task, by its name, in a folder, from photos."""
Verdict = Callable[[str, Found], str]
"""Function that says in a sentence whether a task's goal was met; empty if that is not known."""


def measure(
    module: str, name: str, folder: Path, files: Path, rounds: int, seconds: float
) -> Found:
    """Run the loaders of a task.

    Args:
        module: module of peers with the task.
        name: name of the task there.
        folder: folder for the data of the loaders.
        files: files of the task.
        rounds: number of rounds.
        seconds: time that a run takes at least.

    Raises:
        RunError: the loaders give different batches, or one fails that ran before.
    """
    count = len({path.name.partition(".")[0] for path in files.iterdir()})
    found, repeats = Found(), dict[str, int]()

    def run(loader: str, times: int) -> Run:
        place = files if LOADERS[loader].format == FILES else folder / LOADERS[loader].format
        request = {"module": module, "task": name, "loader": loader, "out": str(place)}
        if not place.exists():
            runs.run_child(job="prepare_task", files=str(files), **request)
        done = runs.run_child(job="run_task", repeats=times, count=count * times, **request)
        found.entries.setdefault(loader, done.pop("entries"))
        return done

    def begin(loader: str) -> None:
        try:
            repeats[loader] = max(1, math.ceil(seconds / run(loader, 1)["seconds"]))
            found.runs[loader] = []
        except RunError as error:
            found.absent[loader] = str(error)
            print(f"({name}) {loader} is absent: {error}", file=sys.stderr, flush=True)

    for loader in tasks_of(module)[name].loaders:
        begin(loader)
    check_equal(name, found, TOLERANCE / math.sqrt(count))
    names = [*found.runs]
    for number in range(rounds):
        first = number % len(names)
        for loader in names[first:] + names[:first]:
            found.runs[loader].append(run(loader, repeats[loader]))
    return found


def tasks_of(module: str) -> dict[str, Task]:
    found: dict[str, Task] = importlib.import_module(f"peers.{module}").TASKS
    return found


def check_equal(name: str, found: Found, tolerance: float) -> None:
    """Raise RunError unless all loaders give the same entries, with about the same means."""
    wanted: dict[str, Any] = next(iter(found.entries.values()), {})
    for loader, entries in found.entries.items():
        for key, (form, mean) in wanted.items():
            its_form, its_mean = entries[key]
            if its_form != form or abs(its_mean - mean) > tolerance * max(abs(mean), abs(its_mean)):
                raise RunError(
                    f"({name}) {loader} gives {key} as {its_form} with a mean of {its_mean:.4g}, "
                    f"not {form} with {mean:.4g}"
                )


def table(title: str, batch: int, name: str, found: Found) -> list[str]:
    """Format the runs of a task, with a row for each loader."""
    lines = [f"## {name}: {title}, batches of {batch}", ""]
    lines += [
        CHART,
        "| loader | samples/s | CPU ms per sample | means of the entries |",
        "|---|---|---|---|",
    ]
    for loader in found.runs:
        entries = found.entries[loader].items()
        shown = ", ".join(f"{key} {mean:.4g}" for key, (_, mean) in entries)
        rate, cost = spread(found.rates(loader)).show(), spread(found.costs(loader)).show(".3g")
        lines.append(f"| {loader} | {rate} | {cost} | {shown} |")
    forms = ", ".join(
        f"{key} {form}" for key, (form, _) in next(iter(found.entries.values())).items()
    )
    lines += ["", f"A sample of each: {forms}."]
    for loader, reason in found.absent.items():
        lines += ["", f"Absent: {loader}, because: {reason}"]
    return lines


def faster_and_cheaper(name: str, found: Found) -> str:
    """Compare the fastest and the cheapest of shardio with those of the others."""
    del name
    ours = [loader for loader in found.runs if loader.startswith(OURS)]
    others = [loader for loader in found.runs if loader not in ours]
    if not others or not ours:
        return ""

    def fastest(loaders: list[str]) -> str:
        return max(loaders, key=lambda loader: spread(found.rates(loader)).median)

    def cheapest(loaders: list[str]) -> str:
        return min(loaders, key=lambda loader: spread(found.costs(loader)).median)

    mine, theirs = fastest(ours), fastest(others)
    faster = ratios(found.rates(mine), found.rates(theirs))
    saving, dear = cheapest(ours), cheapest(others)
    cheaper = ratios(found.costs(dear), found.costs(saving))
    if not faster or not cheaper:
        return ""
    return (
        f"{mine} is {faster.show('.2f')} times as fast as {theirs}, and the CPU time of {dear} is "
        f"{cheaper.show('.2f')} times that of {saving}; the goal is {GOAL}."
    )


def compare(about: str, module: str, write: Write, verdict: Verdict = faster_and_cheaper) -> None:
    """Compare the loaders of the tasks of a module, as the command line says.

    Args:
        about: docstring of the program, whose part from "Held equal" on is printed.
        module: module of peers with the tasks.
        write: function that writes the files of a task.
        verdict: function that says what was found.
    """
    parser = argparse.ArgumentParser(description=about.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="a folder of photos, a subfolder a class")
    parser.add_argument("--only", default=",".join(tasks_of(module)), help="names, all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few samples, one round: a test")
    parser.add_argument("--cache", type=Path, help="keep the data there for the next time")
    parser.add_argument("--json", type=Path, help="write every run there")
    parser.add_argument("--markdown", type=Path, help="write the tables there")
    arguments = parser.parse_args()
    names = arguments.only.split(",")
    if unknown := set(names) - tasks_of(module).keys():
        known = ", ".join(tasks_of(module))
        parser.error(f"no task is called {', '.join(sorted(unknown))}; there are {known}")
    rounds, seconds = (1, 0.1) if arguments.quick else (arguments.rounds, SECONDS)
    count = QUICK if arguments.quick else PHOTOS
    title, equal = about.partition("\n")[0].rstrip("."), about[about.index("Held equal") :].rstrip()
    page, results = [f"# {title}", "", equal, ""], dict[str, Any]()
    print("\n".join(page), flush=True)
    with tempfile.TemporaryDirectory() as temporary:
        cache = (arguments.cache or Path(temporary)).resolve()
        cache.mkdir(parents=True, exist_ok=True)
        photos = make_source("photos", cache / f"photos-{count}", count, arguments.photos)
        for name in names:
            folder, task = cache / f"{name}-{count}", tasks_of(module)[name]
            files = written(folder, name, photos, write)
            found = measure(module, name, folder, files, rounds, seconds)
            part = [*table(task.title, task.batch, name, found), "", verdict(name, found), ""]
            print("\n".join(part), flush=True)
            page += part
            results[name] = asdict(found)
            save(arguments, page, results, rounds)


def written(folder: Path, name: str, photos: Path, write: Write) -> Path:
    """Return the files of a task, written before or now; a folder with a mark is complete."""
    files = folder / "files"
    if not (folder / "whole").exists():
        files.mkdir(parents=True, exist_ok=True)
        write(name, files, photos)
        (folder / "whole").touch()
    return files


def save(arguments: argparse.Namespace, page: list[str], results: Any, rounds: int) -> None:
    """Write the results so far."""
    if arguments.json:
        found = {"rounds": rounds, "machine": machine(), "tasks": results}
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    if arguments.markdown:
        text = [*page[:2], *head(arguments, rounds), *page[2:]]
        arguments.markdown.write_text("\n".join(text), "utf-8")


def head(arguments: argparse.Namespace, rounds: int) -> list[str]:
    """Say how a page was made, and where."""
    command = f"python tools/bench/{Path(sys.argv[0]).name} --only {arguments.only}"
    command += " --photos DIR" if arguments.photos else ""
    command += " --quick" if arguments.quick else f" --rounds {rounds}"
    lines = ["This page is generated by a program:", "", "```sh", command, "```", ""]
    return [*lines, "Machine and versions:", "", *machine(), ""]
