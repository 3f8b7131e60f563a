"""Check of a function on samples: the same result in any thread, worker and order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from shardio.checks import whole_number
from shardio.errors import UsageError, quoted

if TYPE_CHECKING:
    from shardio.reading.dataset import ShardDataset

_PLACE = ("__key__", "__epoch__", "__step__")


def check_map(dataset: ShardDataset, *, batches: int = 4) -> None:
    """Check that the functions of a dataset give the same batches however they are run.

        shardio.testing.check_map(ds)

    The first batches are read one after the other, from the last to the first, by threads and by
    worker processes. A function that draws random numbers must take `rng` for that, or be a
    transform of albumentations or torchvision. Threads are left out where a Loader refuses them.

    Args:
        dataset: dataset with a batch size, and functions as `map=`, `transform=` or `collate=`.
        batches: number of batches that are compared.

    Raises:
        AssertionError: a value differs; the message names how it was read, the sample and the
            entry.
        UsageError: the dataset makes no batches.
    """
    from torch.utils.data import DataLoader  # noqa: PLC0415  see shardio.testing

    from shardio.reading.loader import Loader  # noqa: PLC0415

    if dataset.batch_size is None:
        raise UsageError("check_map compares batches", remedy="open the dataset with batch_size=")
    count = min(whole_number("batches", batches, least=1), len(dataset))
    dataset = dataset.replace(as_tuple=None)
    wanted = [dataset.read_batch(epoch=0, step=step) for step in range(count)]

    def check(how: str, found: Iterable[Mapping[str, Any]]) -> None:
        for batch in islice(found, count):
            _compare(how, batch, wanted[batch["__step__"]])

    check("in another order", (dataset.read_batch(epoch=0, step=s) for s in reversed(range(count))))
    check("by workers", DataLoader(dataset.replace(), batch_size=None, num_workers=2))
    try:
        loader = Loader(dataset.replace(), threads=4)
    except UsageError:
        return
    with loader:
        check("by threads", loader)


def _compare(how: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for name in wanted:
        one, other = found.get(name), wanted[name]
        if _equal(one, other):
            continue
        if name in _PLACE:
            raise AssertionError(f"{how}, step {wanted['__step__']} has other samples")
        pairs = zip(_slots(one), _slots(other), wanted["__key__"], strict=False)
        key = next((key for left, right, key in pairs if not _equal(left, right)), None)
        whose = "" if key is None else f" of sample {quoted(key)}"
        raise AssertionError(
            f"{how}, {quoted(name)}{whose} in step {wanted['__step__']} differs: the map does not "
            "depend on the sample and rng alone"
        )


def _equal(found: Any, wanted: Any) -> bool:
    import torch  # noqa: PLC0415

    if type(found) is not type(wanted):
        return False
    if isinstance(wanted, torch.Tensor):
        alike = found.shape == wanted.shape and found.dtype == wanted.dtype
        return alike and torch.allclose(found, wanted, rtol=0, atol=0, equal_nan=True)
    if isinstance(wanted, dict):
        return [*found] == [*wanted] and all(_equal(found[name], wanted[name]) for name in wanted)
    if isinstance(wanted, list | tuple):
        return len(found) == len(wanted) and all(map(_equal, found, wanted))
    return bool(found == wanted)


def _slots(value: Any) -> list[Any]:
    """Return the values of the samples of an entry."""
    if isinstance(value, dict):
        return [*zip(*map(_slots, value.values()), strict=False)]
    return [*value] if hasattr(value, "__len__") else [value]
