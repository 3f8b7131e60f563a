from __future__ import annotations

import fcntl
import gc
import gzip
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from hypothesis import HealthCheck, settings
from torch.utils.data import DataLoader
from webdataset.tariterators import group_by_keys, tar_file_expander

import shardio
from shardio.indexing.manifest import Manifest, ShardReceipt, index_path, write_manifest
from shardio.indexing.shard_index import read_index
from shardio.storage.folder import Folder
from shardio.testing import make_images, make_shard

# A busy machine is no fault of a test: nothing fails because it took long.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# There are as many pytest processes as cores. Threads of OpenMP would wait for each other by
# spinning, which makes torch's operations on small tensors ten times as long.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Tests start hundreds of processes, each of which would compile shardio.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# A process of the fork server has torch at once. Not shardio: that is imported as in training.
multiprocessing.set_forkserver_preload(["cv2", "pytest", "torch.distributed", "torch.utils.data"])

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture
def python_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have batches read without the native core."""
    monkeypatch.setattr("shardio.reading.reader.is_active", lambda: False)
    monkeypatch.setattr("shardio.fields.image.resize_linear", lambda *_, **__: False)


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Keep collections off what stays anyway: in a fork they would copy all of its pages."""
    gc.collect()
    gc.freeze()


_LOOPS = WeakSet[Any]()
_begin = DataLoader._get_iterator


def _begin_known(loader: DataLoader[Any]) -> Any:
    loop = _begin(loader)
    if loader.num_workers:
        _LOOPS.add(loop)
    return loop


DataLoader._get_iterator = _begin_known  # type: ignore[assignment, method-assign]


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """End the workers of loops that a test left.

    An error's traceback keeps a loop until the collector finds it, which closes the workers' queues
    first. Then torch waits five seconds for each worker, in whatever test runs by then.
    """
    for loop in [*_LOOPS]:
        loop._shutdown_workers()


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Calls a function in one pytest process, and gives its value in all: once(name, function)."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def call(name: str, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with (folder / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            file = folder / f"{name}.pickle"
            if not file.exists():
                file.write_bytes(pickle.dumps(function(*arguments, **options)))
            return pickle.loads(file.read_bytes())  # noqa: S301  our own

    return call


@pytest.fixture(scope="session", autouse=True)
def _one_job() -> Iterator[None]:
    """Pack in this process where a test gives no number of jobs: forks would take half the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("shardio.packing.engine.count_cores", lambda: 1)
        yield


@pytest.fixture(scope="module")
def as_if_idle() -> Iterator[None]:
    """Profiles withhold nothing, however busy the machine is with other tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("withhold", "missed"):
            patch.setattr(f"shardio.profiling.claims.{name}", lambda *_: {})
        yield


@pytest.fixture
def measured_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have profiles measure in this process, which has torch, not in one for each loader."""
    from shardio.profiling.measure import answer

    def ask(request: dict[str, Any]) -> Any:
        return json.loads(json.dumps(answer(json.loads(json.dumps(request)))))

    monkeypatch.setattr("shardio.profiling.profile.ask", ask)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m,mode=0755", "shardio-test", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode:
        pytest.skip("only root may mount a small file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S607


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 images of 8 × 8 pixels in 10 classes."""
    return make_images(tmp_path_factory.mktemp("images"), classes=10, per_class=60)


@pytest.fixture(scope="session")
def packed(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images in 8 shards; do not change."""
    out = tmp_path_factory.mktemp("packed") / "out"
    shardio.pack(images, out, shards=8)
    return out


@pytest.fixture(scope="session")
def make_packed() -> Callable[[Path, Mapping[str, Mapping[str, bytes]], Sequence[str]], Path]:
    """Makes a packed folder of one shard with a list of classes, whatever its samples are."""

    def make(
        folder: Path, samples: Mapping[str, Mapping[str, bytes]], classes: Sequence[str]
    ) -> Path:
        folder.mkdir(parents=True)
        shard = make_shard(folder / "shard-000000.tar", samples)
        indexed = shardio.index(str(folder))
        receipt = ShardReceipt(
            name=shard.name,
            samples=indexed.samples,
            size=indexed.bytes,
            sha256=read_index(index_path(shard)).shard_sha256 or "",
        )
        manifest = Manifest(shards=(receipt,), fields=indexed.fields, classes=(*classes,))
        with Folder.open(folder) as held:
            write_manifest(held, manifest)
        return folder

    return make


@pytest.fixture(scope="session")
def read_with_webdataset() -> Callable[[Path], list[dict[str, object]]]:
    """webdataset's own reading of a shard: samples of bytes."""

    def read(path: Path) -> list[dict[str, object]]:
        opened = gzip.open if path.suffix == ".tgz" else open
        with opened(path, "rb") as stream:
            files = tar_file_expander([{"url": str(path), "stream": stream}])
            samples = [*group_by_keys(files)]
        return [
            {name: value for name, value in sample.items() if name != "__url__"}
            for sample in samples
        ]

    return read


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photos, shards and hostile files, where they are at hand."""
    if not SHARED.is_dir():
        pytest.skip("the shared test data is not at ../shared/data")
    return SHARED
