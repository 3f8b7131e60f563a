from __future__ import annotations

import zlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from shardio.reading.gather import MOST_SHORT, check_rows


@given(st.integers(1, 40), st.integers(1, 200), st.integers(0, 99), st.data())
def test_rows_pass_with_their_own_checksums_and_fail_with_any_other(
    count: int, width: int, seed: int, draw: st.DataObject
) -> None:
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 256, (count, width), np.uint8)
    sizes = np.full(count, width)
    if width <= MOST_SHORT:
        sizes = rng.integers(0, width + 1, count)
    checksums = np.array(
        [zlib.crc32(row[:size]) for row, size in zip(block, sizes, strict=True)], np.uint32
    )
    assert check_rows(block, sizes, checksums)
    row = draw.draw(st.integers(0, count - 1))
    wrong = checksums.copy()
    wrong[row] ^= np.uint32(1 << draw.draw(st.integers(0, 31)))
    assert not check_rows(block, sizes, wrong)
    if sizes[row]:
        block[row, draw.draw(st.integers(0, int(sizes[row]) - 1))] ^= 1 << draw.draw(
            st.integers(0, 7)
        )
        assert not check_rows(block, sizes, checksums)
