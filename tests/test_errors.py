from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from torch._utils import ExceptionWrapper

import shardio
from shardio import errors

CLASSES = [
    value
    for value in vars(errors).values()
    if isinstance(value, type) and issubclass(value, Exception)
]


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
def test_a_sentence_is_made_of_values(error: type[errors.ShardioError]) -> None:
    raised = error("broken", where=Path("a.tar"), remedy="get it again", offset=512)
    copied = pickle.loads(pickle.dumps(raised))  # noqa: S301  our own
    for each in (raised, copied):
        assert str(each) == "a.tar: broken; get it again"
        assert (each.what, each.where, each.remedy) == ("broken", "a.tar", "get it again")
    assert str(error("broken")) == "broken"
    assert str(error("broken", remedy="get it")) == "broken; get it"


def test_an_error_of_a_place_says_what_it_was_and_both_ways_out() -> None:
    inner = shardio.CodecError("it is no image", remedy="look at it")
    outer = inner.at("a.tar: k.jpg", shardio.SampleError, remedy="leave it out", key="k")
    assert type(outer) is shardio.SampleError
    assert str(outer) == "a.tar: k.jpg: it is no image; look at it; leave it out"
    assert (outer.what, outer.key) == ("it is no image", "k")


@pytest.mark.parametrize("error", CLASSES)
def test_every_error_leaves_a_dataloader_as_it_is(error: type[errors.ShardioError]) -> None:
    """DataLoader raises a worker's error again, built from its message alone."""
    try:
        raise error("a.tar: broken", shard="a.tar")
    except errors.ShardioError:
        wrapped = ExceptionWrapper(where="in DataLoader worker process 0")
    with pytest.raises(error, match=r"a\.tar: broken"):
        wrapped.reraise()
