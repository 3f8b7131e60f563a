"""Compare loaders: the rate of each, and its cost.

Usage: python tools/bench/compare.py [--photos DIR] [--large DIR] [--workloads a,b] [--rounds 5]

The packages of tools/bench/requirements-peers.txt and an idle machine are required. Without
--photos (one subfolder per class) and --large, images are made from scikit-learn's two photos. Data
are made once and kept in --cache. In each round, every peer runs once, in a process of its own. It
repeats its data for about three seconds. A peer that cannot be imported or fails is listed with the
reason.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import runs
import tables
from ceilings import READ_SIZES
from peers import FILES, PEERS
from results import Result, Table, rate, to_json
from runs import RunError
from sources import files_and_labels, make_source
from workloads import WORKLOADS, Workload

SECONDS = 3.0
CEILING = "ceiling"
CEILINGS = "adef"  # workloads with one
T = TypeVar("T")


@dataclass(slots=True)
class Bench:
    """Benchmark of one workload: the location of its data, and the repeats of each peer."""

    letter: str
    cache: Path
    quick: bool
    given: dict[str, Path | None]
    images: Path = field(init=False)
    few: Path = field(init=False)
    repeats: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the images; fewer on the slow mount for peers that read single files."""
        workload = self.workload
        count = workload.quick if self.quick else workload.count
        self.images = self._make(count)
        fewer = workload.single_files
        self.few = self.images if fewer is None else self._make(min(fewer, count // 4))

    @property
    def workload(self) -> Workload:
        """Workload to measure."""
        return WORKLOADS[self.letter]

    @property
    def backing(self) -> Path:
        """Folder of everything that the peers read."""
        return self.cache / f"{self.letter}-{self.images.name}"

    def _make(self, count: int) -> Path:
        source = self.workload.source
        given = self.given.get(source)
        origin = hashlib.sha256(str(given and given.resolve()).encode()).hexdigest()[:8]
        folder = self.cache / ("given" if given else "made") / f"{source}-{count}-{origin}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        return make_source(source, folder, count, given)

    def source(self, peer: str) -> Path:
        """Return the images from which a peer's data are made."""
        return self.few if PEERS[peer].format == FILES else self.images

    def prepare(self, peer: str) -> None:
        """Convert the images to the peer's format."""
        out = self.backing / PEERS[peer].format
        self.backing.mkdir(parents=True, exist_ok=True)
        if PEERS[peer].format != FILES:
            request = {"peer": peer, "workload": self.letter, "images": str(self.images)}
            runs.run_child(job="prepare", out=str(out), **request)
        elif not out.exists():
            out.symlink_to(self.few, target_is_directory=True)

    @contextlib.contextmanager
    def data(self, name: str) -> Iterator[str]:
        """Yield the path of a run's data, on the slow mount (cold at the start) or on the disk."""
        if not self.workload.slow:
            yield str((self.backing / name).resolve())
            return
        backing = (self.backing / name).resolve()
        with runs.slow_mount(backing.parent, self.cache / "mount") as mount:
            yield str(mount / backing.name)

    def request(self, peer: str) -> dict[str, Any]:
        """Return the request to a child process."""
        images, repeats = str(self.source(peer)), self.repeats.get(peer, 1)
        return {"peer": peer, "workload": self.letter, "images": images, "repeats": repeats}

    def run(self, peer: str) -> dict[str, float]:
        """Run a peer, or a ceiling, once."""
        if peer == CEILING:
            request = {"workload": self.letter, "images": str(self.few)}
            return runs.run_child(
                job="decode_ceiling", repeats=self.repeats.get(peer, 1), **request
            )
        with self.data(PEERS[peer].format) as out:
            return runs.run_child(job="run", out=out, **self.request(peer))

    def memory(self, peer: str) -> int:
        """Measure the peak memory of a run."""
        with self.data(PEERS[peer].format) as out:
            return runs.peak_memory(job="run", out=out, **self.request(peer))

    def sheet(self, peer: str, folder: Path) -> None:
        """Save the peer's first images as a contact sheet, for inspection."""
        folder.mkdir(parents=True, exist_ok=True)
        picture = folder / f"{self.letter} {peer}.png"
        with self.data(PEERS[peer].format) as out:
            found = runs.run_child(
                job="sheet", peer=peer, workload=self.letter, out=out, picture=str(picture)
            )
        say(f"({self.letter}) {peer}: mean colour {found['colour']}")

    def calibrate(self, peer: str) -> bool:
        """Find the number of repeats for three seconds; on the slow mount, peers do not repeat."""
        if self.workload.slow and peer != CEILING:
            return True
        seconds, before = 0.3 if self.quick else SECONDS, 0
        while (repeats := self.repeats.get(peer, 1)) > before * 2:
            run, before = self.run(peer), repeats
            speed = rate(run, compiles=peer != CEILING and PEERS[peer].compiles)
            self.repeats[peer] = max(1, math.ceil(seconds * speed * repeats / run["images"]))
        return True

    def mount_ceiling(self) -> dict[str, float]:
        """Return the better one of the two ways to read."""
        results = []
        for size in READ_SIZES.values():
            with self.data("shardio") as out:
                results.append(runs.run_child(job="mount_ceiling", out=out, read_size=size))
        return max(results, key=lambda result: float(result["bytes"] / result["seconds"]))


def measure(bench: Bench, arguments: argparse.Namespace) -> Table:
    """Measure all rounds of one workload."""
    stored = [Path(path).stat().st_size for path, _ in files_and_labels(bench.images)]
    table = Table(bench.letter, len(stored), sum(stored) / len(stored))
    chosen = [name for name in arguments.peers if bench.letter in PEERS[name].workloads]
    table.peers = {name: Result() for name in chosen}
    with_ceiling = bench.letter in CEILINGS and try_to(lambda: bench.calibrate(CEILING))
    if bench.workload.slow:
        bench.prepare("shardio Loader")  # its shards are what the mount's ceiling reads
    for name in chosen:
        attempt(table, name, bench.prepare)
        attempt(table, name, bench.calibrate)
        if arguments.sheets:
            attempt(table, name, lambda name: bench.sheet(name, arguments.sheets))
    for number in range(arguments.rounds):
        say(f"({bench.letter}) round {number + 1} of {arguments.rounds}")
        if with_ceiling:
            table.ceiling.append(bench.run(CEILING))
        if bench.workload.slow:
            table.mount.append(bench.mount_ceiling())
        first = number * 5 % max(len(chosen), 1)
        for name in chosen[first:] + chosen[:first]:  # nobody always follows the same one
            if run := attempt(table, name, bench.run):
                table.peers[name].runs.append(run)
    table.bare_memory = runs.peak_memory(job="bare")
    for name, result in table.peers.items():
        if result.absent is None:
            result.memory = try_to(lambda: bench.memory(name))  # noqa: B023  at once
    return table


def try_to(action: Callable[[], T]) -> T | None:
    """Call a function; return the reason if it fails."""
    try:
        return action()
    except RunError as error:
        say(f"it failed: {error}")
        return None


def attempt(table: Table, name: str, action: Callable[[str], T]) -> T | None:
    """Call a function for a peer and note the reason if it fails; a failed peer is skipped."""
    result = table.peers[name]
    if result.absent is not None:
        return None
    try:
        return action(name)
    except RunError as error:
        result.absent, result.runs = str(error), []
        say(f"({table.letter}) {name} is absent: {error}")
        return None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="a folder of photos, a subfolder a class")
    parser.add_argument("--large", type=Path, help="a folder of photos of 4 to 24 megapixels")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="letters, all by default")
    parser.add_argument("--peers", default=",".join(PEERS), help="names, all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few images, one round: a test")
    parser.add_argument("--cache", type=Path, help="keep the data there for the next time")
    parser.add_argument("--sheets", type=Path, help="save each peer's first images there")
    parser.add_argument("--json", type=Path, help="write every run there")
    parser.add_argument("--markdown", type=Path, help="write the page there")
    arguments = parser.parse_args()
    arguments.peers = arguments.peers.split(",")
    if unknown := set(arguments.workloads.split(",")) - WORKLOADS.keys():
        parser.error(
            f"no workload is called {', '.join(unknown)}; there are {', '.join(WORKLOADS)}"
        )
    if unknown := set(arguments.peers) - PEERS.keys():
        parser.error(f"no peer is called {', '.join(unknown)}; there are {', '.join(PEERS)}")
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def main() -> None:
    arguments = parse()
    given, measured = {"photos": arguments.photos, "large": arguments.large}, []
    print("Held equal:\n\n" + "\n".join([*tables.held_equal(), tables.native_core()]) + "\n")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TMPDIR"] = folder  # some peers leave lock files there
        cache = (arguments.cache or Path(folder)).resolve()
        for letter in arguments.workloads.split(","):
            bench = Bench(letter, cache, arguments.quick, given)
            measured.append(measure(bench, arguments))
            print("\n".join(tables.show_table(measured[-1])), flush=True)
            write(arguments, measured)


def write(arguments: argparse.Namespace, measured: list[Table]) -> None:
    """Write the results so far."""
    if arguments.json:
        result = to_json(measured, {"rounds": arguments.rounds, "machine": tables.machine()})
        arguments.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        given = [f"--{name} DIR" for name in ("photos", "large") if getattr(arguments, name)]
        letters = ",".join(table.letter for table in measured)
        command = ["python tools/bench/compare.py", *given, f"--workloads {letters}"]
        if arguments.peers != [*PEERS]:
            command.append(f'--peers "{",".join(arguments.peers)}"')
        command.append("--quick" if arguments.quick else f"--rounds {arguments.rounds}")
        text = tables.page(measured, " ".join(command), arguments.rounds)
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
