"""The results as text: what was held equal, a table a workload, notes; all of it Markdown."""

from __future__ import annotations

import os
import platform
import statistics
from importlib import metadata
from pathlib import Path

from peers import PEERS
from results import Result, Spread, Table, rate, ratios, spread
from workloads import CORES_USED, SHARDS, SHUFFLE_BUFFER, WORKLOADS

HEAD = (
    "img/s",
    "img/s per core",
    "CPU s per 1,000 images",
    "peak memory, MB",
    "first batch, ms",
    "share of ceiling",
)
COLOURS = ("red", "green", "blue")
SAME_COLOUR = 6  # of 255; random crops of few images differ by some
OURS = "shardio Loader", "shardio DataLoader"


def held_equal() -> list[str]:
    """What is the same for all."""
    return [
        f"- {CORES_USED} threads or {CORES_USED} processes that decode, on {count_cores()} cores; "
        "OpenCV and torch start no threads of their own",
        "- the same encoded bytes (or, in the raw workload, the same pixels), written in one "
        f"random order; {SHARDS} shards where the number can be chosen",
        "- batches of one size, uint8 [B, 3, H, W]; some pixels of every image are read, and every "
        "class must come as often as it should",
        "- torchvision's distribution of random crops and flips; linear interpolation, except "
        "where a note says otherwise",
        "- simplejpeg decodes where the user can choose, OpenCV what is not JPEG",
        f"- shuffled: {SHUFFLE_BUFFER:,} samples or more, in the way of each peer",
        "- a process for each run, peers in turn in each round; the page cache is warm, except on "
        "the slow mount, which is mounted anew for each run",
        "- img/s counts from the creation of the loader to its last batch, about three seconds (on "
        f"the slow mount one pass); per core it is divided by {CORES_USED}",
        "- peak memory is Pss_Anon + Pss_Shmem of all processes, less that of a process that "
        "imports torch, cv2 and numpy, in a run of its own; what is mapped from files is in none",
        "- without other images (--photos, --large) crops of scikit-learn's two photos are used",
        "- the ceiling is two threads (with Python code, two processes) that decode, crop and "
        "resize images in memory, with no loader at all, in the same rounds; on the slow mount the "
        "lower of that and of reading the shards with 64 threads; who decodes less can exceed it",
    ]


def count_cores() -> int:
    return len(os.sched_getaffinity(0))


def machine() -> list[str]:
    """The machine and the versions."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = sorted({"torch", "numpy", "simplejpeg", *(peer.package for peer in PEERS.values())})
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [
        f"- {names[0] if names else platform.machine()}, {count_cores()} cores, "
        f"Linux {platform.release().partition('-')[0]}; load average at the end "
        f"{os.getloadavg()[2]:.1f}",
        f"- Python {platform.python_version()}, {versions}",
    ]


def version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(absent)"


def show_table(table: Table) -> list[str]:
    """A workload: one row a peer."""
    workload = WORKLOADS[table.letter]
    lines = [
        f"## ({table.letter}) {workload.title}",
        "",
        f"{table.images:,} images of {table.mean_bytes / 1e3:,.3g} kB, batches of {workload.batch}."
        " Medians of all rounds, least to most in brackets.",
        "",
        *ceilings(table),
        "| peer | " + " | ".join([*HEAD, *(f"{name} is × its rate" for name in OURS)]) + " |",
        "|---" * (1 + len(HEAD) + len(OURS)) + "|",
    ]
    lines += [row(table, name, result) for name, result in table.peers.items() if result.runs]
    lines += strange_colours(table)
    for name, result in table.peers.items():
        if result.absent:
            lines += ["", f"Absent: {name}, because: {result.absent}"]
    return [*lines, ""]


def strange_colours(table: Table) -> list[str]:
    """Who delivers pixels that on average are not those of the others."""
    colours = {
        name: [statistics.median([run[part] for run in result.runs]) for part in COLOURS]
        for name, result in table.peers.items()
        if result.runs
    }
    usual = [statistics.median(values) for values in zip(*colours.values(), strict=True)]
    return [
        line
        for name, found in colours.items()
        if max(abs(a - b) for a, b in zip(found, usual, strict=True)) > SAME_COLOUR
        for line in ("", f"Other pixels: {name} has a mean colour of {found}, the others {usual}.")
    ]


def ceilings(table: Table) -> list[str]:
    """The ceilings, in images a second."""
    lines = []
    if table.ceiling:
        decoded = spread([rate(run) for run in table.ceiling])
        lines += [f"Ceiling of decoding: {decoded.show()} img/s.", ""]
    if table.mount:
        read = spread([run["bytes"] / run["seconds"] for run in table.mount])
        megabytes = Spread(read.median / 1e6, read.least / 1e6, read.most / 1e6)
        images = read.median / table.mean_bytes
        lines += [f"Ceiling of the mount: {megabytes.show()} MB/s, {images:,.4g} img/s.", ""]
    return lines


def row(table: Table, name: str, result: Result) -> str:
    """What one peer did."""
    runs, rates = result.runs, rates_of(name, result)
    memory = "" if result.memory is None else f"{(result.memory - table.bare_memory) / 1e6:,.0f}"
    share = ratios(rates, lowest_ceilings(table))
    cells = [
        name,
        spread(rates).show(),
        f"{spread(rates).median / CORES_USED:,.4g}",
        spread([run["cpu"] / run["images"] * 1000 for run in runs]).show(".3g"),
        memory,
        spread([run["first"] * 1000 for run in runs]).show(",.0f"),
        "" if share is None else f"{share.median:.0%}",
    ]
    for ours in OURS:
        mine = table.peers.get(ours)
        compared = ratios(rates_of(ours, mine), rates) if mine and ours != name else None
        cells.append("" if compared is None else compared.show(".3g"))
    return "| " + " | ".join(cells) + " |"


def lowest_ceilings(table: Table) -> list[float]:
    """Images a second that no loader exceeds unless it decodes less, in each round."""
    decoded = [rate(run) for run in table.ceiling]
    read = [run["bytes"] / run["seconds"] / table.mean_bytes for run in table.mount]
    return [*map(min, decoded, read)] if read else decoded


def rates_of(name: str, result: Result) -> list[float]:
    return [rate(run, compiles=PEERS[name].compiles) for run in result.runs]


def page(tables: list[Table], command: str, rounds: int) -> str:
    """The whole page."""
    names = list(dict.fromkeys(name for table in tables for name in table.peers))
    notes = [f"- {name}: {PEERS[name].note}." for name in names]
    parts = [
        ["# Benchmarks", "", "shardio beside its peers. This page is written by a program:", ""],
        ["```sh", command, "```", "", f"Rounds: {rounds}.", "", "Machine and versions:", ""],
        [*machine(), "", "Held equal:", "", *held_equal(), "", "What differs:", "", *notes, ""],
        *(show_table(table) for table in tables),
    ]
    return "\n".join(line for part in parts for line in part)
