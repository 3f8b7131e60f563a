from __future__ import annotations

import pickle

import pytest
from torch._utils import ExceptionWrapper

import shardio
from shardio import errors

CLASSES = [value for value in vars(errors).values() if isinstance(value, type)]


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_is_ours_and_survives_pickling(
    error: type[errors.ShardioError],
) -> None:
    assert issubclass(error, shardio.ShardioError)
    raised = error("a.tar: broken", shard="a.tar", offset=512, key="k", field="jpg")
    copied = pickle.loads(pickle.dumps(raised))  # noqa: S301  our own
    assert type(copied) is error
    assert str(copied) == "a.tar: broken"
    assert (copied.shard, copied.offset, copied.key, copied.field) == ("a.tar", 512, "k", "jpg")


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_leaves_a_dataloader_as_it_is(error: type[errors.ShardioError]) -> None:
    """DataLoader raises a worker's error again, built from its message alone."""
    try:
        raise error("a.tar: broken", shard="a.tar")
    except errors.ShardioError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(error, match=r"a\.tar: broken"):
        wrapped.reraise()
