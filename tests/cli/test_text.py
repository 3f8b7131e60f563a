"""What commands print fits any terminal, and errors name arguments as their reader knows them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO, TextIOWrapper
from math import nan
from pathlib import Path
from typing import Any

import pytest

import shardio
from shardio.cli import _COMMANDS, main
from shardio.errors import argument, as_options

ONE = ["--shards", "1"]
ARGUMENTS = {
    "cache": ["ls"],
    "convert": ["out", "records", "--to", "tfrecord"],
    "index": ["out"],
    "info": ["out", "--shards", "--preview", "sheet.png"],
    "pack": ["out", "again", "--shards", "2"],
    "plan": ["out", "--batch-size", "4", "--ranks", "20", "--nodes", "20"],
    "profile": ["out", "--seconds", "0.1", "--size", "8", "--batch-size", "8", "--workers", "0"],
    "replay": ["out", "--batch-size", "4", "--step", "0", "--to", "batch"],
    "reshard": ["out", "other", "--shards", "1"],
    "verify": ["out"],
}

Run = Callable[..., tuple[object, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, packed: Path) -> Run:
    """Runs a command beside a packed folder `out`; returns its exit code and what it printed."""
    shutil.copytree(packed, tmp_path / "out")
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, encoding: str = "ascii") -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["shardio", *arguments])
        streams = BytesIO(), BytesIO()
        for name, stream in zip(("stdout", "stderr"), streams, strict=True):
            monkeypatch.setattr(sys, name, TextIOWrapper(stream, encoding, write_through=True))
        code: object = 0
        try:
            main()
        except SystemExit as error:
            code = error.code
        return code, "".join(stream.getvalue().decode(encoding) for stream in streams)

    return run


@pytest.mark.usefixtures("measured_here")
@pytest.mark.parametrize("command", _COMMANDS)
def test_every_command_prints_what_an_ascii_terminal_shows(command: str, run: Run) -> None:
    code, printed = run(command, *ARGUMENTS[command])
    assert code == 0, printed
    assert printed
    assert "\\x" not in printed
    assert "\\u" not in printed
    code, printed = run(command, "--help")
    assert (code, printed.isascii()) == (0, True)


@pytest.mark.parametrize("command", ["plan", "info"])
def test_an_ascii_terminal_shows_the_figures_that_others_do(command: str, run: Run) -> None:
    _, plain = run(command, *ARGUMENTS[command])
    _, usual = run(command, *ARGUMENTS[command], encoding="utf-8")
    assert "×" in usual
    for one, other in (("×", "x"), ("─", "-"), ("…", "...")):
        usual = usual.replace(one, other)
    assert plain == usual


def on_terminal(
    *arguments: str | Path, columns: int, interrupt_at: bytes | None = None
) -> tuple[int, str]:
    """Run a command on a terminal; returns its exit code and all that it shows."""
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    process = subprocess.Popen(
        [sys.executable, "-m", "shardio", *map(str, arguments)],
        stdin=child,
        stdout=child,
        stderr=child,
        env={**environment, "TERM": "xterm"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        start_new_session=True,
    )
    os.close(child)
    shown = b""
    with suppress(OSError):  # which ends it
        while piece := os.read(parent, 4096):
            shown += piece
            if interrupt_at is not None and interrupt_at in shown:
                interrupt_at = None
                os.killpg(process.pid, signal.SIGINT)
    os.close(parent)
    return process.wait(), shown.decode().replace("\r\n", "\n")


SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


@pytest.mark.parametrize("columns", [60, 80, 120])
@pytest.mark.parametrize("command", ["plan", "info"])
def test_what_is_laid_out_fits_the_terminal_and_has_no_trailing_blanks(
    command: str, columns: int, packed: Path
) -> None:
    options = ["--batch-size", "4"] if command == "plan" else []
    code, shown = on_terminal(command, packed, *options, columns=columns)
    assert code == 0, shown
    lines = [SEQUENCE.sub("", line) for line in shown.rpartition("\x1b[2K")[2].split("\n")]
    assert len(lines) > 10
    widest = max(map(len, lines))
    assert min(columns, 80) - 15 < widest <= min(columns, 80)
    assert not [line for line in lines if line != line.rstrip()]


def piped(*arguments: str | Path) -> tuple[int, list[str]]:
    """Run a command without a terminal; returns its exit code and the words that it prints."""
    command = [sys.executable, "-m", "shardio", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, (done.stdout or done.stderr).split()


LONG = "a-folder/of-a-name/longer/than-any/terminal/in/this/file"


@pytest.mark.parametrize("columns", [40, 60])
@pytest.mark.parametrize(
    "arguments",
    [
        ["info", LONG],
        ["pack", ".", LONG, "--shards", "0"],
        ["verify", "--nosuch"],
        ["index", "photos", "--jobs", "1"],
        ["pack", "--help"],
        ["cache", "ls", "--cache-dir", LONG],
    ],
)
def test_sentences_fit_a_terminal_between_words_and_are_not_divided_elsewhere(
    arguments: list[str], columns: int, images: Path, packed: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    shutil.copytree(packed, tmp_path / "out")
    shutil.copytree(images, tmp_path / "photos")
    monkeypatch.chdir(tmp_path)
    code, sequences = on_terminal(*arguments, columns=columns)
    shown = SEQUENCE.sub("", sequences)
    assert (code, shown.split()) == piped(*arguments)
    sentences = shown.partition("\n  Example:")[0].split("\n")
    assert not [line for line in sentences if len(line) > columns and " " in line.strip()]


@pytest.mark.parametrize(
    ("arguments", "more"),
    [(["info"], ["--shards"]), (["plan", "--batch-size", "4"], [])],
)
def test_a_table_that_does_not_fit_a_terminal_is_a_list_of_whole_words(
    arguments: list[str], more: list[str], packed: Path
) -> None:
    code, shown = on_terminal(*arguments, packed, *more, columns=40)
    assert code == 0, shown
    lines = [SEQUENCE.sub("", line) for line in shown.rpartition("\x1b[2K")[2].split("\n")]
    assert max(len(line) for line in lines if " " in line.strip()) <= 40
    assert "samples" in {line.partition(":")[0] for line in lines}
    words = re.sub("[:─]", " ", " ".join(lines)).split()
    found = re.sub("[:─]", " ", " ".join(piped(*arguments, packed)[1])).split()
    assert {*found} <= {*words}
    assert not more or str(packed / "shard-000003.tar") in words


def test_an_interrupted_pack_says_that_the_same_command_goes_on(
    images: Path, tmp_path: Path
) -> None:
    pack = ("pack", images, tmp_path / "out", "--shards", "100", "--jobs", "1")
    code, shown = on_terminal(*pack, columns=80, interrupt_at=b"packing")
    assert code == 128 + signal.SIGINT, shown
    assert shown.endswith("shardio: interrupted; the same command goes on where it stopped\n")
    code, shown = on_terminal(*pack, columns=80)
    assert code == 0, shown


def test_an_interrupted_profile_says_no_more_than_that(packed: Path) -> None:
    code, shown = on_terminal("profile", packed, columns=80, interrupt_at=b"measuring")
    assert code == 128 + signal.SIGINT
    assert shown.endswith("shardio: interrupted\n")


def test_the_c_locale_without_utf_8_is_an_ascii_terminal(packed: Path) -> None:
    command = [sys.executable, "-m", "shardio", "plan", str(packed), "--batch-size", "4"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        command, env={**os.environ, **locale}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "1 x 4 samples a step" in " ".join(done.stdout.split())


def test_names_of_shards_are_no_markup(run: Run, packed: Path) -> None:
    shutil.copytree(packed, "[red]")
    _, printed = run("plan", "[red]", "--batch-size", "4")
    assert "[red]: shuffle" in printed


@pytest.mark.parametrize(
    ("arguments", "options", "said", "in_python"),
    [
        (["--seconds", "nan"], {"seconds": nan}, "--seconds nan: it must", "seconds=nan: it must"),
        (
            ["--step-ms", "1", "--train", "a.py:f"],
            {"step_ms": 1.0, "train": "a.py:f"},
            "--step-ms and --train exclude",
            "step_ms and train exclude",
        ),
        (
            ["--batch-size", "9999"],
            {"batch_size": 9999},
            "give --batch-size 600 or less",
            "give batch_size=600 or less",
        ),
    ],
)
def test_errors_name_options_for_a_command_and_arguments_in_python(
    run: Run, arguments: list[str], options: dict[str, object], said: str, in_python: str
) -> None:
    code, printed = run("profile", "out", *arguments)
    assert code in {1, 2}
    assert said in printed
    with pytest.raises(shardio.UsageError) as caught:
        shardio.profile("out", **options)  # type: ignore[arg-type]
    assert in_python in str(caught.value)


@pytest.mark.parametrize(
    ("files", "arguments", "options", "said", "in_python"),
    [
        (
            ["a/x.jpg"],
            [],
            {},
            "Give --shards, --samples-per-shard or --shard-size, as --shards 8, not none",
            "Give shards, samples_per_shard or shard_size, as shards=8, not none",
        ),
        (["a/x.jpg"], [*ONE], {"shards": 1}, "with --on-error skip", "with on_error='skip'"),
        (
            ["a/x.jpg"],
            [*ONE, "--coco", "no"],
            {"shards": 1, "coco": "no"},
            "annotations with --coco",
            "annotations with coco",
        ),
        (
            ["a/x.jpg", "b.jpg"],
            [*ONE],
            {"shards": 1},
            "without classes: --no-labels",
            "without classes: labels=False",
        ),
        (
            ["images/x.jpg", "masks/x.png"],
            [*ONE],
            {"shards": 1},
            "with --path-column image --path-column mask.png=mask, a",
            "with path_columns=['image', 'mask.png=mask'], a",
        ),
        (
            ["a.txt"],
            [*ONE],
            {"shards": 1},
            "with --fields or --type wav=Audio",
            "with fields or types={'wav': Audio()}",
        ),
        (
            ["a/x.jpg"],
            [*ONE, "--feature", "jpg=x"],
            {"shards": 1, "features": ["jpg=x"]},
            "leave it out; options that apply: --labels, --classes, --fields",
            "leave it out; options that apply: labels, classes, fields",
        ),
    ],
)
def test_errors_of_a_pack_have_one_spelling_for_each_reader(
    run: Run,
    tmp_path: Path,
    files: list[str],
    arguments: list[str],
    options: dict[str, Any],
    said: str,
    in_python: str,
) -> None:
    for file in files:
        (tmp_path / "in" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / file).write_bytes(b"\xff\xd8")
    _, printed = run("pack", str(tmp_path / "in"), str(tmp_path / "new"), *arguments)
    assert said in " ".join(printed.split())
    with pytest.raises(shardio.ShardioError) as caught:
        shardio.pack(tmp_path / "in", tmp_path / "new", **options)
    assert in_python in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "option", "in_python"),
    [
        (("shuffle", False), "--no-shuffle", "shuffle=False"),
        (("shuffle", True), "--shuffle", "shuffle=True"),
        (("tail", "drop"), "--tail drop", "tail='drop'"),
        (("tail", True), "--tail true", "tail=True"),
        (("tail",), "--tail", "tail"),
        (("where", 3), "where=3", "where=3"),
        (("tail", "a b?"), "--tail 'a b?'", "tail='a b?'"),
        (("tail", ["a", "b"]), "--tail a --tail b", "tail=['a', 'b']"),
    ],
)
def test_an_argument_is_an_option_or_a_flag_of_the_command_that_runs(
    given: tuple[str, object], option: str, in_python: str
) -> None:
    assert argument(*given) == in_python
    with as_options({"shuffle": ["--shuffle", "--no-shuffle"], "tail": ["--tail"]}):
        assert argument(*given) == option
        with as_options({}):
            assert argument(*given) == in_python
        assert argument(*given) == option
    assert argument(*given) == in_python
