from __future__ import annotations

import numpy as np
import torch

from shardio.reading.handover import Recycler

SHAPE = (64, 64, 64)


def test_memory_that_nobody_holds_is_lent_again() -> None:
    allocate = Recycler()
    first = allocate(SHAPE, torch.uint8)
    place = first.data_ptr()
    assert allocate(SHAPE, torch.uint8).data_ptr() != place
    view = first.permute(2, 0, 1)[:3]
    array = view.numpy()
    del first, view
    array[:] = 7
    other = allocate(SHAPE, torch.uint8)
    assert other.data_ptr() != place
    assert (array == 7).all()
    del array
    again = [allocate(SHAPE, torch.uint8) for _ in range(2)]
    assert place in {tensor.data_ptr() for tensor in again}


def test_tensors_have_the_shape_and_dtype_asked_for() -> None:
    allocate = Recycler()
    for dtype in (torch.uint8, torch.int64, torch.float16, torch.bool):
        for shape in (SHAPE, (3,), ()):
            tensor = allocate(shape, dtype)
            assert tensor.shape == shape
            assert tensor.dtype == dtype
            assert tensor.is_contiguous()
            tensor.fill_(1)


def test_memory_can_be_made_by_others() -> None:
    made: list[int] = []

    def make(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        made.append(size)
        return np.zeros(size, np.uint8)

    allocate = Recycler(make)
    for _ in range(3):
        allocate(SHAPE, torch.float32)
    assert made == [4 * 64**3]
