"""CRC-32 by the core and by zlib."""

from __future__ import annotations

import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardio.native import crc32 as module
from shardio.native.crc32 import crc32

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


class _Lying:
    """A library whose function gives something else."""

    @staticmethod
    def shardio_crc32(*_: int) -> int:
        return 7


@pytest.mark.parametrize("core", [None, _Lying], ids=["without the core", "a core that is wrong"])
def test_zlib_takes_its_place(core: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "library", lambda **_: core)
    module._of_many.cache_clear()
    try:
        assert crc32(BYTES) == zlib.crc32(BYTES)
    finally:
        module._of_many.cache_clear()
