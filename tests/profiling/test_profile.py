"""shardio.profile, the command, and the reports: of one measured profile where that will do."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

import shardio
from shardio.cli import main
from shardio.profiling.claims import NEEDS
from shardio.profiling.profile import Profile
from shardio.profiling.report import (
    Bar,
    Scale,
    Series,
    bar_chart,
    ceiling_name,
    facts,
    line_chart,
    write_html,
    write_png,
)
from shardio.profiling.settings import ProfileOptions, Topology, load_callable
from shardio.profiling.system import OtherLoad, cached_share, drop_from_cache, tree_memory
from shardio.profiling.verdict import Change, Verdict
from shardio.testing import make_shard


def run(*arguments: object) -> Any:
    command = [sys.executable, "-m", "shardio", "profile", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def run_quickly(seconds: float, *arguments: object) -> Any:
    """Profile for so many seconds, or for more where a busy machine has no time for anything."""
    done = run(*arguments, "--seconds", seconds)
    while "too short to tell" in done.stderr and seconds < 10:
        seconds *= 4
        done = run(*arguments, "--seconds", seconds)
    return done


class Done(NamedTuple):
    """What a command line left: its exit code and what it printed."""

    code: object
    out: str
    err: str


@pytest.fixture
def type_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Runs a command line in this process."""

    def typed(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["shardio", "profile", *map(str, arguments)])
        monkeypatch.setattr("shardio.profiling.profile._look_around", lambda: None)
        code: object = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        return Done(code, *capsys.readouterr())

    return typed


@pytest.fixture(scope="module")
def found(as_if_idle: None, packed: Path, once: Callable[..., Profile]) -> Profile:
    del as_if_idle
    return once("profile", shardio.profile, packed, seconds=0.6, size=16, baseline="webdataset")


def test_runs_are_measured_and_predicted(found: Profile, images: Path) -> None:
    assert (found.samples, found.shards) == (600, 8)
    cores = found.cores
    topologies = [(run.topology.kind, run.topology.producers) for run in found.runs]
    assert topologies == [("here", 0), ("threads", cores), ("processes", cores)]
    stored = np.mean([path.stat().st_size for path in images.rglob("*.png")])
    for one in found.runs:
        seen = one.evidence
        assert seen.rate > 0
        assert len(seen.slices) == 5
        assert seen.stages is not None
        assert seen.stages.bytes == pytest.approx(stored + len("0"), rel=0.02)
        assert one.samples_per_second == seen.rate
        assert one.megabytes_per_second == pytest.approx(seen.rate * seen.stages.bytes / 1e6)
        assert (one.peak_memory or 0) > 20e6
    assert found.runs[0].predicted is None
    for one in found.runs[1:]:
        assert one.predicted is not None
        assert one.error == pytest.approx(one.evidence.rate / one.predicted - 1)
    limits = found.ceilings
    assert limits.side == 8
    assert min(limits.warm, limits.copy, limits.handover, limits.decode_one or 0) > 0
    assert 0 < (limits.decode_share or 0) < 1
    assert found.baseline is not None
    assert found.baseline[0] == "webdataset"
    assert found.baseline[1].evidence.samples > 0
    assert found.baseline[1].topology == Topology(kind="processes", producers=cores)
    machines = {one.cores for one in found.predictions or ()}
    assert machines == {cores, 2 * cores, 4 * cores, 8 * cores}


class Page(HTMLParser):
    """Refuses what would need a network or a script."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self.open: list[str] = []
        self.charts = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "link", "img", "iframe"}
        assert not {"src", "href", "onload"} & {name for name, _ in attrs}
        self.charts += tag == "svg"
        if tag not in {"meta", "line", "rect", "circle", "polyline"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in {"line", "rect", "circle", "polyline"}:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "


def test_the_page_needs_nothing_else_and_says_the_verdict_first(
    found: Profile, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    write_html(found, str(page))
    text = page.read_text("utf-8")
    assert "url(" not in text
    assert "http" not in text
    parser = Page()
    parser.feed(text)
    assert not parser.open
    assert parser.charts == 4 + (len(found.runs[found.best].waits) > 1)
    _, _, body = parser.text.partition("}")
    assert found.verdict.sentence in body
    for words in (*facts(found), "p99", "idle", "Swipe the table"):
        assert words in body
    assert body.index(found.verdict.sentence[1:]) < body.index("What to change")
    assert "NaN" not in text
    assert "inf" not in re.sub("[a-z]*inf[a-z]+|[a-z]+inf", "", body)


def test_the_page_leaves_out_what_is_not_known(found: Profile, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    for gain in (None, 1.5):
        changes = (Change(text="larger batches", gain=gain),)
        verdict = replace(found.verdict, changes=changes)
        write_html(replace(found, verdict=verdict), str(page))
        assert ("expected</th>" in page.read_text("utf-8")) == (gain is not None)
    here = [run for run in found.runs if run.topology.kind == "here"]
    write_html(replace(found, runs=tuple(here), best=0, predictions=None), str(page))
    assert ">threads or workers<" not in page.read_text("utf-8")


def changed(found: Profile, **values: Any) -> Profile:
    """A profile but for some values."""
    limits = replace(found.ceilings, **values.pop("limits", {}))
    return replace(found, ceilings=limits, **{"ceiling": None, **values})


def test_the_facts_say_what_storage_could_deliver(found: Profile) -> None:
    decode = replace(found.verdict, bottleneck="decode")
    rate = found.runs[found.best].evidence.rate
    for limits, where in (({"cold": None}, "The page cache"), ({"cold": 64e6}, "Storage")):
        texts = facts(changed(found, limits=limits, verdict=decode, storage=2 * rate))
        assert f"{where} could deliver {2 * rate:,.0f} samples/s." in texts
    texts = facts(changed(found, limits={"cold": 64e6}, verdict=decode, storage=rate / 2))
    slower = f"Storage could deliver {rate / 2:,.0f} samples/s to an epoch that is not cached."
    assert slower in texts
    step = replace(found.verdict, bottleneck="step")
    assert not [text for text in facts(replace(found, verdict=step)) if "deliver" in text]


def test_the_facts_are_sentences_and_no_limit_below_the_rate_is_printed(found: Profile) -> None:
    rate = found.runs[found.best].evidence.rate
    reaches = f"50% of the {2 * rate:,.0f} samples/s that {ceiling_name(found)} would reach."
    for factor, said in ((2.0, reaches), (0.95, f"what {ceiling_name(found)} would reach.")):
        texts = facts(changed(found, ceiling=factor * rate))
        assert texts[0] == f"This loop reaches {said}"
        assert all(text[0] == text[0].upper() and text.endswith(".") for text in texts)
    names = {"storage": "storage alone", "handover": "the hand-over alone"}
    for bottleneck in ("storage", "handover", "decode"):
        verdict = replace(found.verdict, bottleneck=bottleneck)
        expected = names.get(bottleneck, "decoding and transforming alone")
        assert ceiling_name(replace(found, verdict=verdict)) == expected


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ((0.29, 0.74), [0.0, 0.2, 0.4, 0.6, 0.8]),
        ((900.0, 1000.0), [0.0, 500.0, 1000.0]),
        ((521.0, 176_688.0), [1e2, 1e3, 1e4, 1e5, 1e6]),
        ((1.0, 1e9), [0.1, 1e2, 1e5, 1e8]),
    ],
)
def test_scales_are_labelled_with_round_numbers(
    values: tuple[float, float], ticks: list[float]
) -> None:
    scale = Scale.of(values)
    assert scale.ticks() == pytest.approx(ticks)
    assert all(0 <= scale.place(value) <= 1 for value in (*values, *scale.ticks()))


def test_what_is_measured_at_odd_times_is_labelled_at_even_ones() -> None:
    points = [(0.0, 1.0), (0.296304, 0.5), (0.61, 0.2)]
    chart = line_chart("waits", [Series(style="curve one", points=points)], across="s", up="%")
    assert ">0.2<" in chart
    assert "0.296" not in chart


def test_a_label_has_the_room_that_it_needs() -> None:
    label = "webdataset, 2 workers"
    chart = bar_chart("memory", [Bar(label=label, value=1.0, text="261 MB")])
    place = re.search(rf'<text x="([0-9.]+)"[^>]*>{label}<', chart)
    assert place is not None
    assert float(place[1]) > 7 * len(label)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_shows_the_page_in_light_and_dark_and_on_a_phone(
    found: Profile, tmp_path: Path
) -> None:
    page = tmp_path / "report.html"
    write_html(found, str(page))
    sizes = {"light": (1200, 1500), "dark": (1200, 1500), "phone": (500, 1500)}
    for name, (width, height) in sizes.items():
        picture = tmp_path / f"{name}.png"
        command = ["chromium", "--headless", "--no-sandbox", "--hide-scrollbars"]
        command += [f"--screenshot={picture}", f"--window-size={width},{height}"]
        command += ["--blink-settings=preferredColorScheme=0"] if name == "dark" else []
        subprocess.run([*command, page.as_uri()], check=True, capture_output=True, timeout=60)
        pixels = cv2.imread(str(picture))
        assert pixels is not None
        assert pixels.shape[:2] == (height, width)
        corner = int(pixels[2, 2].mean())
        assert corner < 64 if name == "dark" else corner > 192
        blue = (pixels[..., 0].astype(int) - pixels[..., 2]) > 60
        assert blue.mean() > 0.005  # the bars
        beyond = pixels[:, -4:].reshape(-1, 3)
        assert np.ptp(beyond, axis=0).max() < 40  # nothing is cut off at the right


def test_what_is_withheld_is_in_no_report(
    found: Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    type_in: Callable[..., Done],
) -> None:
    sentence = "No verdict, limits, predictions or ratio to the baseline: the room is loud."
    withheld = replace(
        found,
        verdict=Verdict.withheld(sentence),
        withheld=dict.fromkeys(NEEDS, "the room is loud"),
        runs=tuple(replace(run, predicted=None, error=None) for run in found.runs),
        ceiling=None,
        storage=None,
        predictions=None,
        ratio=None,
    )
    monkeypatch.setattr("shardio.cli.profile.measure", lambda *_, **__: withheld)
    done = type_in("out")
    flat = " ".join(done.out.split())
    assert re.match(rf"{re.escape(sentence)} A sample takes [\d,]+ µs of CPU time: .*\. meas", flat)
    page = tmp_path / "report.html"
    write_html(withheld, str(page))
    write_png(withheld, str(tmp_path / "rates.png"))
    text = page.read_text("utf-8")
    assert f"<h1>{sentence}</h1>" in text
    for words in ("What to change", "The limits", "×", "could deliver", "would be expected"):
        assert words not in text + flat
    for title in ("<h2>Predicted</h2>", "predicted cores"):
        assert title not in text + flat


SPIN = """
import os, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    pass
"""


@contextmanager
def spinning(seconds: float, every: int = 1) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Has a process on each core, or on every second one, do nothing but run."""
    cores = sorted(os.sched_getaffinity(0))[::every]
    command = (sys.executable, "-c", SPIN)
    spins = [subprocess.Popen([*command, str(core), str(seconds)]) for core in cores]
    try:
        yield spins
    finally:
        for one in spins:
            one.kill()
            one.wait()


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc")
def test_beside_other_programs_no_verdict_and_no_ratio_is_given(packed: Path) -> None:
    quick = ("--size", "16", "--threads", "0")
    with spinning(300, every=2):
        done = run_quickly(0.3, packed, *quick, "--baseline", "webdataset")
    assert done.returncode == 0, done.stderr
    flat = " ".join(done.stdout.split())
    assert flat.startswith(
        "No verdict, limits, predictions or ratio to the baseline: other programs, or the host of "
        "a virtual machine, took "
    )
    assert "webdataset, " in flat
    for words in ("×", "could deliver", "limits this loop", "predicted cores", "The limits of"):
        assert words not in flat, words


@pytest.mark.skipif(not Path("/proc/stat").exists(), reason="needs /proc")
def test_own_processes_are_not_others() -> None:
    def used() -> float:
        return sum(os.times()[2:4])

    load, start, before = OtherLoad(), time.perf_counter(), used()
    with spinning(1.0) as spins:
        for one in spins:
            one.wait()
    others = load.cores()
    own = (used() - before) / (time.perf_counter() - start)
    assert others is not None
    assert others < len(spins) - own + 0.25


def test_names_in_the_page_are_text(tmp_path: Path, found: Profile) -> None:
    settings = replace(found.settings, source="<b>&out", transform="<i>:x")
    page = tmp_path / "report.html"
    write_html(replace(found, settings=settings), str(page))
    assert "<b>" not in page.read_text("utf-8")
    assert "<i>" not in page.read_text("utf-8")


def test_the_command_measures_and_writes_the_reports(packed: Path, tmp_path: Path) -> None:
    html, png, trace = (tmp_path / name for name in ("a.html", "b.png", "c.json"))
    reports = ("--html", html, "--png", png, "--trace", trace)
    code = tmp_path / "mine.py"
    code.write_text("print('noise')\ndef step(batch):\n    print('more')\n")
    quick = ("--size", "16", "--threads", "0", "--train", f"{code}:step")
    done = run_quickly(0.6, packed, *quick, *reports, "--json")
    assert done.returncode == 0, done.stderr
    (one,) = json.loads(done.stdout)["runs"]
    assert one["topology"]["kind"] == "here"
    assert "<svg" in html.read_text("utf-8")
    pixels = cv2.imread(str(png))
    assert pixels is not None
    assert pixels.std() > 5
    events = json.loads(trace.read_text("utf-8"))["traceEvents"]
    names = {event["name"] for event in events}
    assert {"wait", "step", "chunk", "read", "decode", "transform"} <= names
    assert min(event["dur"] for event in events if event["ph"] == "X") >= 0


def test_json_says_all_of_it(
    found: Profile, monkeypatch: pytest.MonkeyPatch, type_in: Callable[..., Done]
) -> None:
    asked: list[tuple[Any, dict[str, Any]]] = []

    def measured(source: str, **options: Any) -> Profile:
        asked.append((source, options))
        return found

    monkeypatch.setattr("shardio.cli.profile.measure", measured)
    done = type_in("out", "--workers", "1,2", "--step-ms", "5", "--cold", "--json")
    assert done.code == 0
    assert json.loads(done.out) == json.loads(json.dumps(asdict(found)))
    ((source, options),) = asked
    assert source == "out"
    assert (options["workers"], options["step_ms"], options["cold"]) == ((1, 2), 5.0, True)
    given = {*options} - {"progress"}
    assert given == {field.name for field in fields(ProfileOptions)} - {"progress"}


def test_the_command_prints_the_verdict_then_tables_that_fit_a_terminal(
    found: Profile, monkeypatch: pytest.MonkeyPatch, type_in: Callable[..., Done]
) -> None:
    def measured(_: str, **options: Any) -> Profile:
        assert ProfileOptions(**options) == ProfileOptions(progress=options["progress"])
        return found

    monkeypatch.setattr("shardio.cli.profile.measure", measured)
    done = type_in("out")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line for line in lines if line != line.rstrip()] == []
    assert [line for line in lines if line.startswith(" ")] == []
    assert any(line.startswith("±: spread") for line in lines)
    assert any(line.startswith("the loop's own thread ") for line in lines)
    flat = " ".join(done.out.split())
    assert flat.startswith(found.verdict.sentence)
    words = "measured", "predicted", "decode", "total", f"{found.cores} threads", "webdataset, "
    for word in (*words, "page cache", "600 samples in 8 shards"):
        assert word in flat, word
    assert "\x1b" not in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--html", "no/such/folder/a.html"], r"a\.html: it cannot be written: No such file"),
        (["--trace", "/proc/nothing"], r"/proc/nothing: it cannot be written"),
        (["--batch-size", "601"], r"has 600 samples, fewer than a batch; give --batch-size 600 or"),
    ],
)
def test_what_does_not_fit_the_files_is_one_sentence(
    packed: Path, arguments: list[str], message: str, type_in: Callable[..., Done]
) -> None:
    done = type_in(packed, *arguments)
    assert done.code == 1, done
    assert re.search(message, done.err), done.err
    assert done.err.count("\n") == 1


def test_an_error_of_a_measuring_process_is_one_sentence(packed: Path, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text("def fail(image):\n    raise KeyError('mine')\n")
    done = run(packed, "--seconds", "0.1", "--transform", f"{code}:fail")
    assert done.returncode == 1, done.stdout + done.stderr
    *before, said = done.stderr.splitlines()
    assert "the transform raised KeyError: 'mine'" in said
    assert all(line.startswith("other programs") for line in before)  # a busy machine's warning
    assert len(before) <= 1


def test_images_of_two_sizes_are_explained_in_the_words_of_the_command(
    tmp_path: Path, type_in: Callable[..., Done]
) -> None:
    pictures = [cv2.imencode(".png", np.zeros((8, 8 + n % 2, 3), np.uint8))[1] for n in range(64)]
    samples = [{"png": picture.tobytes(), "cls": 0} for picture in pictures]
    shardio.pack(samples, tmp_path / "out", shards=1)
    done = type_in(tmp_path / "out", "--seconds", "0.1", "--size", "0")
    assert done.code == 1
    assert "give --size, a --transform that makes them equal, or --batch-size 1" in done.err
    assert "RandomResizedCrop" not in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize(("bad", "workers"), [(1, 0), (3, 1)])
def test_bad_samples_are_warned_of_once_however_often_they_are_read(
    images: Path, tmp_path: Path, bad: int, workers: int
) -> None:
    good = next(images.rglob("*.png")).read_bytes()
    samples = {f"{n}": {"png": b"broken" if n < bad else good, "cls": b"1"} for n in range(32)}
    shard = os.path.relpath(make_shard(tmp_path / "a.tar", samples))
    code = tmp_path / "mine.py"
    code.write_text("import warnings\ndef f(image):\n    warnings.warn('old')\n    return image\n")
    options = ("--seconds", "0.1", "--batch-size", "8", "--transform", f"{code}:f")
    done = run(shard, *options, "--workers", workers)
    assert done.returncode == 0, done.stderr
    (old,) = [line for line in done.stderr.splitlines() if "UserWarning: old" in line]
    assert re.search(r"mine\.py:3: UserWarning: old; \d+ further warnings of this kind$", old)
    (warning,) = [line for line in done.stderr.splitlines() if "takes its place" in line]
    others = {1: "", 3: "; 2 further warnings of this kind"}[bad]
    assert warning.endswith(f"takes its place{others}")
    assert "RuntimeWarning" not in done.stderr


def test_a_module_that_prints_does_not_get_into_the_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = tmp_path / "mine.py"
    code.write_text("print('noise')\ndef step(batch):\n    pass\n")
    assert callable(load_callable(f"{code}:step"))
    assert capsys.readouterr() == ("", "noise\n")
    code.write_text("import sys\nsys.exit(5)\n")
    with pytest.raises(shardio.UsageError, match=r"mine\.py cannot be imported: SystemExit"):
        load_callable(f"{code}:step")


def test_no_baseline_without_images(tmp_path: Path) -> None:
    samples = [{"txt": b"some", "cls": 0} for _ in range(100)]
    shardio.pack(samples, tmp_path / "out", shards=1)
    with pytest.raises(shardio.SituationError, match="the baseline decodes bmp, jfif, jpe, jpeg"):
        shardio.profile(tmp_path / "out", baseline="webdataset")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "nothing"], r"Invalid value for '--baseline'"),
        (["--transform", "nothing.py:f"], r"--transform: nothing\.py:f: there is no file nothing"),
        (
            ["--train", f"{__file__}:nothing"],
            r"--train: .*test_profile\.py has no callable 'nothing'",
        ),
        (["--workers", "two"], r"'--workers': 'two' is not a list of numbers such as 1,2,4"),
        (["--threads", ""], r"'--threads': '' is not a list of numbers such as 1,2,4"),
        (["--workers", "-1"], r"--workers -1: it must be a whole number from 0 to \d+"),
        (["--workers", "100000"], r"--workers 100000: it must be a whole number from 0 to \d+"),
        (["--step-ms", "abc"], r"'--step-ms': 'abc' is not a valid float"),
        (["--seconds", "inf"], r"--seconds inf: it must be a number, 0.1 or more"),
        (["--transform", "mine.py"], r"transform: mine\.py: it is not FILE:NAME"),
        (["--step-ms", "1", "--train", "a.py:f"], r"--step-ms and --train exclude each other"),
    ],
)
def test_wrong_usage_has_its_own_exit_code(
    packed: Path, arguments: list[str], message: str, type_in: Callable[..., Done]
) -> None:
    done = type_in(packed, *arguments)
    assert done.code == 2, done
    assert re.search(message, done.err), done.err
    assert "Traceback" not in done.err


def test_an_empty_dataset_and_a_broken_shard_are_named(packed: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "a.tar").write_bytes(bytes(10240))
    with pytest.raises(shardio.SituationError, match="no samples to measure"):
        shardio.profile(empty)
    folder = tmp_path / "out"
    (folder / "index").mkdir(parents=True)
    for path in packed.rglob("*"):
        if path.is_file():
            (folder / path.relative_to(packed)).write_bytes(path.read_bytes())
    (folder / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(shardio.TarError, match=r"shard-000000\.tar: the shard has 0 bytes"):
        shardio.profile(folder, seconds=0.1, workers=(0,))


def test_memory_counts_child_processes() -> None:
    hold = "import sys; block = bytearray(b'x') * {} ; print(flush=True); sys.stdin.read()"
    before = tree_memory(os.getpid())
    with subprocess.Popen(
        [sys.executable, "-c", hold.format(64 << 20)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        after = tree_memory(os.getpid())
        process.communicate()
    assert before is not None
    assert after is not None
    assert (64 << 20) < after - before < (64 << 20) + 40e6


def test_the_page_cache_is_looked_into(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    assert cached_share(str(path)) == 1.0
    os.sync()
    if drop_from_cache([str(path)]):  # not on tmpfs
        assert (cached_share(str(path)) or 0.0) < 0.1
    assert cached_share(str(tmp_path / "nothing")) is None
    assert not drop_from_cache([str(tmp_path / "nothing")])
