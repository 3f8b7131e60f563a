"""The same source gives the same bytes, wherever, whenever and by whomever it is packed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import shardio
from shardio.testing import digests, make_images

if TYPE_CHECKING:
    from typing_extensions import Self

OPTIONS: dict[str, Any] = {
    "shards": 6,
    "split": {"a": 0.7, "b": 0.3},
    "fields": "png,txt?",
    "dedupe": "perceptual",
    "keep_duplicates": True,
}
PACK = f"import sys, shardio; shardio.pack(*sys.argv[1:], **{OPTIONS})"
SURROUNDINGS = [
    ("C", "Asia/Tokyo", 0o077),
    ("POSIX", "America/Los_Angeles", 0o022),
    ("C.UTF-8", "UTC", 0o002),
    ("de_DE.UTF-8", "Europe/Berlin", 0o007),
    ("tr_TR.ISO-8859-9", "Pacific/Apia", 0o000),
]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_images(tmp_path_factory.mktemp("in") / "in", classes=3, per_class=12, size=20)
    for number in range(5):
        (folder / f"class01/image{number:04d}.txt").write_text("x")
        shutil.copy(folder / "class00/image0002.png", folder / f"class02/İ.ü.{number}.png")
    (folder / os.fsdecode(b"class01/latin-\xe9.png")).write_bytes(
        (folder / "class00/image0001.png").read_bytes()
    )
    return folder


@pytest.fixture(scope="module")
def expected(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("out") / "out"
    shardio.pack(source, out, jobs=1, **OPTIONS)
    return digests(out)


@pytest.mark.parametrize(("locale", "zone", "umask"), SURROUNDINGS)
def test_surroundings_change_no_byte(
    source: Path,
    expected: dict[str, str],
    tmp_path: Path,
    locale: str,
    zone: str,
    umask: int,
) -> None:
    environment = {**os.environ, "LC_ALL": locale, "TZ": zone, "PYTHONUTF8": "0"}
    environment["PYTHONHASHSEED"] = str(umask)
    command = [sys.executable, "-c", PACK, str(source), str(tmp_path / "out")]
    subprocess.run(command, check=True, env=environment, umask=umask, cwd=tmp_path)
    assert digests(tmp_path / "out") == expected


@pytest.mark.parametrize("jobs", [2, 4])
def test_the_number_of_jobs_changes_no_byte(
    source: Path, expected: dict[str, str], tmp_path: Path, jobs: int
) -> None:
    shardio.pack(source, tmp_path / "out", jobs=jobs, **OPTIONS)
    assert digests(tmp_path / "out") == expected


@pytest.mark.parametrize("seed", range(3))
def test_the_order_in_which_a_folder_lists_its_files_changes_no_byte(
    source: Path,
    expected: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    seed: int,
) -> None:
    real = os.scandir

    class Shuffled(list[os.DirEntry[Any]]):
        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            self.clear()

    def scandir(path: Any = ".") -> Shuffled:
        return Shuffled(sorted(real(path), key=lambda entry: digest(entry.name)))

    def digest(name: Any) -> bytes:
        return hashlib.sha256(b"%d %s" % (seed, os.fsencode(name))).digest()

    monkeypatch.setattr(os, "scandir", scandir)
    shardio.pack(source, tmp_path / "out", jobs=1, **OPTIONS)
    monkeypatch.undo()
    assert digests(tmp_path / "out") == expected


def test_the_file_system_changes_no_byte(
    source: Path, expected: dict[str, str], tmp_path: Path
) -> None:
    memory = Path("/dev/shm")  # noqa: S108  in a folder of its own
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system at /dev/shm")
    with tempfile.TemporaryDirectory(dir=memory) as name:
        shutil.copytree(source, Path(name, "in"))
        shardio.pack(Path(name, "in"), Path(name, "out"), **OPTIONS)
        assert digests(Path(name, "out")) == expected
