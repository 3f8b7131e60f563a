"""CRC-32 by the core and by zlib."""

from __future__ import annotations

import random
import zlib
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.native import checksum
from shardio.native.checksum import crc32

BYTES = random.Random(1).randbytes(70_000)  # noqa: S311
FOR_CORE = 1 << 14  # bytes from which the core is asked


@given(
    start=st.integers(0, 70),
    size=st.one_of(st.integers(0, 200), st.integers(FOR_CORE - 2, len(BYTES) - 70)),
    before=st.integers(0, 2**32 - 1),
)
def test_it_is_that_of_zlib(start: int, size: int, before: int) -> None:
    data = memoryview(BYTES)[start : start + size]
    assert crc32(data) == zlib.crc32(data)
    assert crc32(data, before) == zlib.crc32(data, before)
    assert crc32(bytearray(data), before) == zlib.crc32(data, before)


@pytest.mark.parametrize("dtype", ["u1", "u4", "f8"])
def test_bytes_count_and_not_items_or_rows(dtype: str) -> None:
    items = np.frombuffer(BYTES, dtype)
    assert crc32(items.data) == crc32(items.reshape(-1, 2).data) == zlib.crc32(BYTES)


def test_memory_is_held_while_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(BYTES)

    def resize(start: int, _: int, size: int) -> int:
        if size < FOR_CORE:
            return zlib.crc32(bytes(range(size)), start)
        data.append(0)  # as another thread may
        return 0

    use_core(monkeypatch, SimpleNamespace(shardio_crc32=resize))
    with pytest.raises(BufferError):
        crc32(data)


def lie(*_: int) -> int:
    return 7


CORES = {
    "no core": None,
    "one without it": SimpleNamespace(),
    "a wrong one": SimpleNamespace(shardio_crc32=lie),
}


@pytest.mark.parametrize("core", CORES.values(), ids=CORES)
def test_zlib_takes_the_place_of_the_core(core: object, monkeypatch: pytest.MonkeyPatch) -> None:
    use_core(monkeypatch, core)
    assert crc32(BYTES) == zlib.crc32(BYTES)


def use_core(monkeypatch: pytest.MonkeyPatch, core: object) -> None:
    monkeypatch.setattr(checksum, "library", lambda **_: core)
    monkeypatch.setattr(checksum, "_of_many", cache(checksum._of_many.__wrapped__))
