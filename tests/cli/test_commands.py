"""The commands as a user types them."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import tarfile
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from shardio.cli import _COMMANDS, commands
from shardio.indexing.shard_index import read_index
from shardio.testing import make_images
from tests.programs import command as run

PACK = ["pack", "in", "out", "--shards", "2"]


def alone(*arguments: object, cwd: Path | None = None, **environment: str) -> Any:
    """Run a command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "shardio", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**os.environ, **environment},
    )


def test_pack_says_what_it_did(images: Path, tmp_path: Path) -> None:
    done = alone("pack", images, tmp_path / "out", "--shards", 8)
    assert done.returncode == 0
    assert done.stdout.startswith("packed 600 samples of 10 classes, 1.2 MB, into 8 shards in ")
    first, fields = done.stdout.splitlines()
    assert re.fullmatch(r"[\d,]+ samples/s, [\d.]+ MB/s\)", first.rpartition("(")[2])
    assert fields == "fields: cls, png (image)"
    assert done.stderr == "packing: 600 of 600\n"


def test_pack_shows_a_bar_on_a_terminal(images: Path, tmp_path: Path) -> None:
    parent, child = pty.openpty()
    command = [sys.executable, "-m", "shardio", "pack", str(images), str(tmp_path / "out")]
    process = subprocess.Popen(
        [*command, "--shards", "8"],
        stdout=subprocess.PIPE,
        stderr=child,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:
        pass
    finally:
        os.close(parent)
    assert process.communicate()[0].startswith(b"packed 600 samples")
    assert "━".encode() in shown
    assert b"600/600" in shown


def test_pack_prints_its_summary_as_json(images: Path, tmp_path: Path) -> None:
    done = run("pack", images, tmp_path / "out", "--shards", 2, "--json")
    summary = json.loads(done.stdout)
    assert summary.pop("seconds") > 0
    assert summary.pop("bytes") == sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))
    counts = {"samples": 600, "shards": 2, "classes": 10, "skipped": 0, "renamed": 0}
    nothing = {"image_sizes": None, "splits": None, "duplicates": None}
    assert summary == {**counts, **nothing, "fields": {"cls": "cls", "png": "image"}}
    assert done.stderr == ""


def test_pack_says_that_it_found_no_duplicates(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=1, per_class=4)
    pack = ("pack", source, tmp_path / "out", "--shards", 2)
    done = run(*pack, "--dedupe", "exact")
    assert done.stdout.endswith("\nfound no duplicates\n")


def test_pack_lists_what_it_skipped(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=1, per_class=4)
    (source / "class00/readme.txt").write_text("hello")
    refused = run("pack", source, tmp_path / "out", "--shards", 2)
    assert refused.returncode == 1
    assert refused.stderr.startswith("shardio: class00/readme.txt: not a JPEG, PNG, WebP or BMP")
    assert refused.stderr.count("\n") == 1
    assert refused.stderr.endswith(", or leave all such samples out with --on-error skip\n")
    done = run("pack", source, tmp_path / "out", "--shards", 2, "--on-error", "skip")
    assert done.returncode == 0
    assert done.stderr == "checking: 5 of 5\npacking: 4 of 4\n"
    assert "\n1 file was left out, see skipped.jsonl\n" in run("info", tmp_path / "out").stdout
    assert f"left out 1 file, listed in {tmp_path}/out/skipped.jsonl" in done.stdout


def test_pack_stores_pixels_and_says_when_their_sizes_differ(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=0, per_class=4, size=12)
    make_images(source / "more", classes=0, per_class=3, size=20)
    pack = ("pack", source, tmp_path / "out", "--no-labels", "--shards", 2, "--store", "raw")
    done = run(*pack)
    assert done.returncode == 0
    assert done.stdout.splitlines()[1:] == [
        "fields: rgb.npy (pixels)",
        "the images have 2 different sizes, so batches cannot be gathered and need a transform; "
        "--resize HxW makes the sizes equal",
    ]
    with tarfile.open(tmp_path / "out/shard-000000.tar") as archive:
        assert all(name.endswith(".rgb.npy") for name in archive.getnames())
    for number, (size, shape) in enumerate({"10": (10, 10, 3), "6x8": (6, 8, 3)}.items()):
        out = tmp_path / f"out{number}"
        done = run("pack", source, out, *pack[3:], "--resize", size)
        assert done.stdout.count("\n") == 2
        with tarfile.open(out / "shard-000000.tar") as archive:
            member = archive.extractfile(archive.getmembers()[0])
            assert member is not None
            assert np.load(io.BytesIO(member.read()), allow_pickle=False).shape == shape


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["pack", "nothing", "out", "--shards", "2"], 1, "shardio: nothing: no such folder"),
        (["pack", "in", "out", "--shards", "9"], 1, "shardio: 4 samples do not fill 9 shards"),
        (["pack", "in", "out", "--shards", "0"], 2, "0 is not in the range x>=1"),
        (
            ["pack", "in", "out"],
            2,
            "how many shards? Give --shards, --samples-per-shard or --shard-size, as --shards 8, "
            "not none",
        ),
        (["pack", "nothing", "out"], 1, "shardio: nothing: no such folder or file"),
        ([*PACK, "--shard-size", "5MB"], 2, "as --shards 8, not --shards and --shard-size"),
        (["pack", "in", "out", "--shard-size", "big"], 2, "'big' is not a size, as 512MB or 1GiB"),
        ([*PACK, "--split", "a=1,b"], 2, "'a=1,b' is not a list of fractions by name"),
        ([*PACK, "--split", "a=.5,b=.4"], 2, "must be above 0 and add up to 1"),
        ([*PACK, "--split", "../a=1"], 2, "'../a' cannot be the name of a folder of a split"),
        ([*PACK, "--stratify"], 2, "--stratify requires --split; give it as train=0.9,val=0.1"),
        ([*PACK, "--classes", "nothing"], 2, "nothing: it cannot be read as text"),
        ([*PACK, "--fields", "jpg,,"], 2, "--fields jpg,,: '' names no field"),
        ([*PACK, "--manifest", "a.csv"], 1, "shardio: a.csv: No such file or directory"),
        ([*PACK, "--label-column", "x"], 2, "--label-column and --key-column require --manifest"),
        (
            [*PACK, "--keep-duplicates"],
            2,
            "--keep-duplicates requires --dedupe; give --dedupe exact",
        ),
        ([*PACK, "--engine", "ray", "--jobs", "2"], 2, "--jobs is for --engine local"),
        ([*PACK, "--store", "png"], 2, "'png' is not one of 'original', 'raw'"),
        ([*PACK, "--store", "raw", "--resize", "32x"], 2, "'32x' is neither a number, as 256,"),
        ([*PACK, "--store", "raw", "--resize", "0x9"], 2, "--resize 0x9: it must be a whole"),
        (["pack", "in", "/proc/no/out", "--shards", "2"], 1, "shardio: /proc/no"),
        (["pack", "in", "file", "--shards", "1"], 1, "shardio: file: it is a file; name a folder"),
        (["index", "nothing"], 1, "shardio: nothing: no such folder or shard"),
        (["index", "in"], 1, "shardio: in: no shards"),
        (["profile", "nothing"], 1, "shardio: nothing: no such folder or shard"),
        (["profile", "in", "--workers", "two"], 2, "'two' is not a list of numbers"),
        (
            ["profile", "in", "--workers", "1,-2"],
            2,
            "--workers -2: it must be a whole number from 0 to 32",
        ),
        (["frobnicate"], 2, "No such command 'frobnicate'.\n"),
        (["profle", "out"], 2, "No such command 'profle'. Did you mean 'profile'?"),
        (["help", "profle"], 2, "No such command 'profle'. Did you mean 'profile'?"),
    ],
)
def test_mistakes_get_one_sentence_and_an_exit_code(
    tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    make_images(tmp_path / "in", classes=1, per_class=4)
    (tmp_path / "file").touch()
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert code == 2 or done.stderr.count("\n") == 1


def test_a_full_disk_gets_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    source = make_images(tmp_path / "in", classes=1, per_class=40, size=64)
    command = f"ulimit -f 64; exec {sys.executable} -m shardio pack in out --shards 1"
    done = subprocess.run(
        ["/bin/sh", "-c", command], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert source.exists()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "shardio: out/shard-000000.tar: File too large"
    assert not (tmp_path / "out").exists()


def test_names_that_no_terminal_can_show_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / os.fsdecode(b"caf\xe9\n.png")).write_bytes(b"no")
    done = alone("pack", "in", "out", "--shards", 1, cwd=tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 1
    assert done.stderr.startswith("shardio: caf\\udce9\\n.png: not a JPEG")
    assert done.stderr.count("\n") == 1


def test_index_writes_indexes_beside_the_shards(tmp_path: Path) -> None:
    for name in ("a.tar", "b.tgz"):
        mode: Any = "w:gz" if name.endswith("z") else "w"
        with tarfile.open(tmp_path / name, mode) as archive:
            for member in ("x.txt", "x.cls"):
                info = tarfile.TarInfo(member)
                info.size = 3
                archive.addfile(info, io.BytesIO(b"123"))
    done = run("index", tmp_path)
    assert done.returncode == 0
    expected = "indexed 2 samples with the fields cls, txt in 2 shards, 20.5 kB\n"
    assert done.stdout == expected
    for name in ("a.tar", "b.tgz"):
        index = read_index(tmp_path / "index" / f"{name}.idx")
        assert index.checksums is not None
        assert index.shard_sha256
    done = run("index", tmp_path, "--json")
    assert json.loads(done.stdout)["samples"] == 2


def test_index_names_shard_and_offset_of_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for member in ("x.txt", "y.txt"):
            info = tarfile.TarInfo(member)
            info.size = 3
            archive.addfile(info, io.BytesIO(b"123"))
    data = bytearray(path.read_bytes())
    data[1024 + 3] ^= 1
    path.write_bytes(data)
    done = run("index", path)
    assert done.returncode == 1
    assert f"shardio: {path}, byte 1024: " in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["", "pack", "index", "info", "profile", "verify"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    done = run(*command.split(), "--help")
    assert done.returncode == 0
    assert (f"Example: shardio {command}" if command else "Commands:") in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("command", ["", "pack", "cache ls"])
def test_help_is_a_command_too(command: str) -> None:
    done = run("help", *command.split())
    assert (done.returncode, done.stdout) == (0, run(*command.split(), "--help").stdout)


@pytest.mark.parametrize("name", _COMMANDS)
def test_help_says_the_limits_of_numbers(name: str) -> None:
    """Any whole number is a seed of a pack."""
    command = getattr(import_module(f"shardio.cli.{name}"), name)
    free = {
        option.name
        for option in command.params
        if isinstance(option.type, type(click.INT) | type(click.FLOAT))
        and not isinstance(option.type, click.IntRange | click.FloatRange)
    }
    assert free == ({"seed"} if name in ("pack", "reshard") else set())


def test_lists_of_commands_cut_no_sentence() -> None:
    for group in ((), ("cache",)):
        said = " ".join(run(*group, "--help").stdout.split())
        assert "Commands:" in said
        assert "... " not in said.partition("Commands:")[2]


def test_help_says_the_limits_of_workers() -> None:
    said = " ".join(run("profile", "--help").stdout.split())
    assert said.count("at most 16 per core, and at most 128 or one per core") == 2
    assert "x>=0.1" in said


def test_without_arguments_the_three_uses_are_shown() -> None:
    done = alone()
    assert (done.returncode, done.stderr) == (0, "")
    for use in ("shardio pack images/ out/", 'ShardDataset("out"', "shardio profile out/"):
        assert use in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize(
    "command", [["pack", "out"], ["info"], ["plan"], ["convert", "out", "--to", "dali"]]
)
def test_a_pattern_that_the_shell_expanded_is_to_be_quoted(command: list[str]) -> None:
    name, *out = command
    done = run(name, "my tars/a.tar", "my tars/b.tar", "my tars/c.tar", *out)
    assert done.returncode == 2
    assert done.stderr.endswith("quote it, as 'my tars/*.tar'\n")


def test_an_argument_too_many_is_named() -> None:
    done = run("pack", "images", "out", "8")
    assert done.returncode == 2
    assert done.stderr.endswith("Error: 3 arguments in place of SRC and OUT; leave out 8\n")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_help_says_how_a_shell_completes_commands_and_options(shell: str, tmp_path: Path) -> None:
    script = tmp_path / "shardio"
    script.write_text(
        f"#!{sys.executable}\nimport sys\nfrom shardio.cli import main\n"
        "sys.argv[0] = 'shardio'\nmain()\n"
    )
    script.chmod(0o755)
    (line,) = (
        words[1].strip()
        for text in run("--help").stdout.splitlines()
        if (words := text.strip().partition(" ")[::2])[0] == shell
    )
    assert f"_SHARDIO_COMPLETE={shell}_source shardio" in line
    source = line.removeprefix('eval "$(').removesuffix(')"').removesuffix(" | source")
    path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    made = subprocess.run(
        ["/bin/sh", "-c", source], capture_output=True, text=True, check=True, env=path
    )
    assert f"{shell}_complete" in made.stdout
    for typed, last, expected in (
        ("shardio pl", "pl", {"plan"}),
        ("shardio pack in out --eng", "--eng", {"--engine"}),
        ("shardio plan out --shuffle f", "f", {"full", "false"}),
    ):
        place = last if shell == "fish" else str(len(typed.split()) - 1)
        done = run_as_shell(script, shell, typed, place)
        assert expected == {name for name in expected if name in done.split()}, done


def run_as_shell(script: Path, shell: str, typed: str, place: str) -> str:
    """Ask for completions as the function of a shell does."""
    asked = {
        "_SHARDIO_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": typed,
        "COMP_CWORD": place,
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run([script], capture_output=True, text=True, check=True, env=asked)
    return done.stdout.replace(",", " ")


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        (["pack", "in", "out", "--label-column", "a", "--label-column", "b"], "--label-column"),
        (["info", "out", "--sample", "1", "--sample=2"], "--sample"),
        (["cache", "prune", "--limit", "1GB", "--limit", "2GB"], "--limit"),
    ],
)
def test_an_option_with_one_value_is_given_once(arguments: list[str], option: str) -> None:
    done = CliRunner().invoke(commands, arguments)
    assert done.exit_code == 2
    assert f"{option} is given 2 times; give it once" in done.stderr
