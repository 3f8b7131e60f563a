from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

import shardio
from shardio.testing import make_images

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHARDIO_CACHE", str(tmp_path_factory.mktemp("cache")))


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
