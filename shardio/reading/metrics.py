"""The mean over the samples of all ranks, with each sample counted once."""

from __future__ import annotations

import torch
import torch.distributed

from shardio.errors import UsageError


class MaskedMean:
    """The mean of a value per sample, where samples that are not valid count for nothing.

    Every rank adds its batches; the result is over all ranks. Sums are float64, so that a mean of
    zeros and ones, such as an accuracy, is the same for every number of ranks.

        accuracy = shardio.MaskedMean()
        for batch in loader:
            accuracy.add(network(batch["image"]).argmax(1) == batch["label"], batch["valid"])
        print(f"{accuracy.result():.2%} of {accuracy.count()} samples")
    """

    def __init__(self) -> None:
        self._sum_and_count: torch.Tensor | None = None

    def add(self, values: torch.Tensor, valid: torch.Tensor) -> None:
        """Count a batch.

        Args:
            values: [B], of any real dtype or bool.
            valid: [B] bool, as batch["valid"], on any device.

        Raises:
            UsageError: they are not tensors, have other shapes, or valid is not bool.
        """
        if not (isinstance(values, torch.Tensor) and isinstance(valid, torch.Tensor)):
            raise UsageError("values and valid must be tensors, as batch['valid'] is")
        if valid.dtype != torch.bool:
            raise UsageError(
                f"valid has dtype {valid.dtype}: pass batch['valid'], after the values"
            )
        if values.ndim != 1 or values.shape != valid.shape:
            raise UsageError(
                f"values are {list(values.shape)} and valid is {list(valid.shape)}, both must be "
                "[B]: give one value and one flag for each sample; of pixels, flatten() both"
            )
        valid = valid.to(values.device)
        kept = torch.where(valid, values.detach().double(), 0.0)
        both = torch.stack([kept.sum(), valid.sum().double()])
        self._sum_and_count = both if self._sum_and_count is None else self._sum_and_count + both

    def result(self) -> float:
        """Compute the mean over all ranks; every rank of torch.distributed has to call it.

        Returns:
            The mean; NaN if no valid sample was added.
        """
        total = self._total()
        return float(total[0] / total[1])

    def count(self) -> int:
        """Count the valid samples of all ranks; every rank of torch.distributed has to call it."""
        return int(self._total()[1])

    def _total(self) -> torch.Tensor:
        total = self._sum_and_count
        total = torch.zeros(2, dtype=torch.float64) if total is None else total.clone()
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(total)
        return total
