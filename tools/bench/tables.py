"""Format the results as Markdown: what was held equal, one table per workload, and notes."""

from __future__ import annotations

import os
import platform
import re
import statistics
from importlib import metadata
from pathlib import Path

from peers import PEERS
from results import Result, Spread, Table, rate, ratios, rounded, spread
from shardio import native
from workloads import CORES_USED, SHARDS, SHUFFLE_BUFFER, WORKLOADS

HEAD = (
    "img/s",
    "img/s per core",
    "CPU s per 1,000 images",
    "peak memory, MB",
    "first batch, ms",
    "share of ceiling",
)
CHART = "<!-- chart -->"  # the site draws the table after it, see tools/docs_hooks.py
COLOURS = ("red", "green", "blue")
SAME_COLOUR = 6  # of 255; random crops of few images differ by some
OURS = "shardio Loader", "shardio DataLoader"


def held_equal() -> list[str]:
    """List what is the same for all peers."""
    return [
        f"- {CORES_USED} threads or {CORES_USED} processes decode, on {count_cores()} cores; "
        "OpenCV and torch start no threads of their own",
        "- the encoded bytes (in the raw workload, the pixels) and their random order are the "
        f"same; {SHARDS} shards where the number can be chosen",
        "- batches have the same size, uint8 [B, 3, H, W]; some pixels of every image are read, "
        "and every class must have the expected number of samples",
        "- random crops and flips have torchvision's distribution; interpolation is linear, unless "
        "a note says otherwise",
        "- JPEGs are decoded by simplejpeg where the user can choose, other images by OpenCV",
        f"- {SHUFFLE_BUFFER:,} samples or more are shuffled, by each peer in its own way",
        "- every run is a process of its own, and in each round the peers take turns; the page "
        "cache is warm, except on the slow mount, which is mounted again for each run",
        "- img/s is measured from the creation of the loader to its last batch, for about three "
        f"seconds (on the slow mount, one pass); per core, it is divided by {CORES_USED}",
        "- peak memory is Pss_Anon + Pss_Shmem of all processes, less that of a process that "
        "imports torch, cv2 and numpy, measured in a separate run; mapped files do not count",
        "- without --photos and --large, crops of scikit-learn's two photos are used",
        "- the ceiling is the rate of two threads (with Python code, two processes) that decode, "
        "crop and resize images in memory without a loader, in the same rounds; on the slow mount, "
        "it is the lower one of that and of reading the shards with 64 threads; a peer that "
        "decodes less can exceed it",
    ]


def count_cores() -> int:
    return len(os.sched_getaffinity(0))


def machine() -> list[str]:
    """Describe the machine and the versions."""
    lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    packages = sorted({"torch", "numpy", "simplejpeg", *(peer.package for peer in PEERS.values())})
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return [
        f"- {names[0] if names else platform.machine()}, {count_cores()} cores, "
        f"Linux {platform.release().partition('-')[0]}; load average at the end "
        f"{os.getloadavg()[2]:.1f}",
        f"- Python {platform.python_version()}, {versions}",
        native_core(),
    ]


def native_core() -> str:
    """Say whether shardio's native core is used where it is not switched off."""
    return f"- shardio's native core: {native.status()}"


def version(package: str) -> str:
    if package == "shardio":  # of this checkout; an editable install keeps the one it was made with
        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(re.findall(r'^version = "(.+)"$', project.read_text("utf-8"), re.MULTILINE)[0])
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(absent)"


def show_table(table: Table) -> list[str]:
    """Format a workload, with one row per peer."""
    workload = WORKLOADS[table.letter]
    lines = [
        f"## ({table.letter}) {workload.title}",
        "",
        f"{table.images:,} images of {rounded(table.mean_bytes / 1e3, 3)} kB, "
        f"batches of {workload.batch}. Medians of all rounds, least to most in brackets.",
        "",
        *ceilings(table),
        CHART,
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
    """List the peers whose mean colour differs from that of the others."""
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
    """Format the ceilings, in images per second."""
    lines = []
    if table.ceiling:
        decoded = spread([rate(run) for run in table.ceiling])
        lines += [f"Ceiling of decoding: {decoded.show()} img/s.", ""]
    if table.mount:
        read = spread([run["bytes"] / run["seconds"] for run in table.mount])
        megabytes = Spread(read.median / 1e6, read.least / 1e6, read.most / 1e6)
        images = read.median / table.mean_bytes
        lines += [f"Ceiling of the mount: {megabytes.show()} MB/s, {rounded(images)} img/s.", ""]
    return lines


def row(table: Table, name: str, result: Result) -> str:
    """Format the results of one peer."""
    runs, rates = result.runs, rates_of(name, result)
    memory = "" if result.memory is None else f"{(result.memory - table.bare_memory) / 1e6:,.0f}"
    share = ratios(rates, lowest_ceilings(table))
    cells = [
        name,
        spread(rates).show(),
        rounded(spread(rates).median / CORES_USED),
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
    """Return the lowest ceiling of each round, which a loader exceeds only by decoding less."""
    decoded = [rate(run) for run in table.ceiling]
    read = [run["bytes"] / run["seconds"] / table.mean_bytes for run in table.mount]
    return [*map(min, decoded, read)] if read else decoded


def rates_of(name: str, result: Result) -> list[float]:
    return [rate(run, compiles=PEERS[name].compiles) for run in result.runs]


def page(tables: list[Table], command: str, rounds: int) -> str:
    """Format the whole page."""
    names = list(dict.fromkeys(name for table in tables for name in table.peers))
    notes = [f"- {name}: {PEERS[name].note}." for name in names]
    parts = [
        [
            "# Benchmarks",
            "",
            "shardio compared with its peers: [how it was measured](#how-it-was-measured).",
            "This page is generated by a program:",
            "",
        ],
        ["```sh", command, "```", "", f"Rounds: {rounds}.", ""],
        *(show_table(table) for table in tables),
        ["## How it was measured", "", "Machine and versions:", "", *machine(), ""],
        ["Held equal:", "", *held_equal(), "", "What differs:", "", *notes, ""],
    ]
    return "\n".join(line for part in parts for line in part)
