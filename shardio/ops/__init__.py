"""Stable losses, vectorised gather and Merge: the numerics of a training loop.

Everything here depends on torch alone, and works in eager mode, under ``torch.compile``,
``torch.func.vmap`` and ``torch.func.grad``, and under autocast.
"""

from shardio.ops.gather import batch_gather
from shardio.ops.losses import log_softmax, softmax, softmax_cross_entropy
from shardio.ops.merge import Merge

__all__ = ["Merge", "batch_gather", "log_softmax", "softmax", "softmax_cross_entropy"]
