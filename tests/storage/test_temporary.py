"""Of a process that was killed nothing stays in the temporary directory for long."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import shardio
from shardio.storage.private import own_subfolder
from shardio.storage.temporary import locked_contents, path_of_process, temporary_folder

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")
needs_proc = pytest.mark.skipif(not Path("/proc/self/ns/pid").exists(), reason="needs /proc")

TRAINER = """
import sys, shardio
dataset = shardio.ShardDataset(sys.argv[1], decode=False, batch_size=100)
dataset.set_epoch(1)
with shardio.profiling.monitor(dataset, live=False) as seen:
    next(iter(seen))
    print("trains", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary directory like /tmp."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    return folder


@pytest.fixture
def own(shared: Path) -> Path:
    """The folder in it where things of this user lie."""
    return own_subfolder(shared)


@contextmanager
def trainer(packed: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has trained for a batch and waits for its standard input to end."""
    command = [sys.executable, "-c", TRAINER, str(packed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"trains\n"
        yield process


def everything(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if not path.name.startswith("shardio-")}


@needs_proc
def test_what_a_killed_trainer_left_is_taken_away_by_the_next_and_what_lives_stays(
    packed: Path, shared: Path
) -> None:
    with trainer(packed) as living:
        of_living = everything(shared)
        with trainer(packed) as killed:
            both = everything(shared)
            killed.send_signal(signal.SIGKILL)
        assert everything(shared) == both
        assert len(both) > len(of_living) > 1
        with trainer(packed) as following:
            following.send_signal(signal.SIGKILL)
        left = everything(shared)
        assert of_living < left
        assert not left & (both - of_living)
        living.communicate()
        assert living.returncode == 0
    with trainer(packed) as last:
        last.communicate()
    assert not everything(shared)


@needs_proc
def test_only_what_belongs_to_an_ended_process_of_this_place_is_removed(own: Path) -> None:
    place, number, start, _ = path_of_process(os.getpid(), "x").name.split("-")
    elsewhere = "0" * 8
    assert elsewhere != place
    shutil.rmtree(own)
    own = own_subfolder(own.parent)
    stay = {
        f"{place}-{number}-{start}-of this process",
        f"{elsewhere}-{number}-1-of another place",
        f"unknown-{number}-1-of nobody knows where",
        "notes.txt",
        place,
    }
    go = {
        f"{place}-{number}-1-of an earlier process of that number",
        f"{place}-999999999-{start}-of no process",
        f"{place}-{'9' * 40}-1-of no number",
    }
    for name in stay | go:
        (own / name).mkdir()
        (own / name / "file").touch()
    victim = own.parent / "victim"
    victim.mkdir()
    (victim / "file").touch()
    (own / f"{place}-999999999-1-link").symlink_to(victim)
    (own / f"{place}-999999999-1-dangling").symlink_to("nothing")
    code = "from shardio.storage.temporary import *; temporary_folder().cleanup()"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert {path.name for path in own.iterdir()} == stay
    assert (victim / "file").exists()


def test_the_folder_is_closed_to_others_and_its_names_tell_processes_apart(own: Path) -> None:
    assert own.stat().st_mode & 0o777 == 0o700
    path = path_of_process(os.getpid(), "x")
    assert path.parent == own
    assert path == path_of_process(os.getpid(), "x")
    assert path != path_of_process(os.getppid(), "x")


def _link(own: Path, victim: Path) -> None:
    own.symlink_to(victim)


def _open(own: Path, _: Path) -> None:
    own.mkdir()
    own.chmod(0o755)


def _file(own: Path, _: Path) -> None:
    own.touch()


def _of_another_user(own: Path, _: Path) -> None:
    own.mkdir(0o700)
    os.chown(own, 12345, -1)


@pytest.mark.parametrize(
    "plant", [_link, _open, _file, pytest.param(_of_another_user, marks=as_root)]
)
def test_a_folder_that_others_made_is_left_alone(
    packed: Path, shared: Path, tmp_path: Path, plant: object
) -> None:
    victim = tmp_path / "victim"
    victim.mkdir(0o700)
    planted = shared / f"shardio-{os.geteuid()}"
    assert callable(plant)
    plant(planted, victim)
    before = planted.lstat()
    dataset = shardio.ShardDataset(packed, decode=False, batch_size=100)
    dataset.set_epoch(3)
    assert next(iter(dataset))["__epoch__"] == 3
    with temporary_folder() as folder:
        assert Path(folder).parent == shared
    assert planted.lstat() == before
    assert not [*victim.iterdir()]
    del dataset
    assert [*shared.iterdir()] == [planted]


@as_root
def test_a_file_of_another_user_is_not_believed(own: Path) -> None:
    (own / "file").write_text("{}")
    os.chown(own / "file", 12345, -1)
    with (
        pytest.raises(shardio.ShardioError, match="belongs to another user"),
        locked_contents(own / "file"),
    ):
        pass


def test_a_link_in_place_of_a_file_is_not_followed(own: Path, tmp_path: Path) -> None:
    (own / "file").symlink_to(tmp_path / "victim")
    with (
        pytest.raises(shardio.ShardioError, match="cannot be written"),
        locked_contents(own / "file"),
    ):
        pass
    assert not (tmp_path / "victim").exists()


def test_a_monitor_on_a_full_disk_does_not_end_the_process(
    packed: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records are memory maps: touching one for which there is no room is the end."""
    monkeypatch.setattr("tempfile.tempdir", str(small_disk))
    dataset = shardio.ShardDataset(packed, decode=False, batch_size=100)
    dataset.set_epoch(0)
    with shardio.profiling.monitor(dataset, live=False) as seen:
        (small_disk / "full").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
        assert len([*seen]) == 6
