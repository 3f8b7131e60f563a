"""Numerics of a training loop: stable losses, vectorized gather and Merge.

All functions depend on torch alone. They work in eager mode, under `torch.compile`,
`torch.func.vmap` and `torch.func.grad`, and under autocast.
"""

from shardio.ops.binary import binary_focal_loss, sigmoid_cross_entropy
from shardio.ops.cross_entropy import softmax_cross_entropy
from shardio.ops.divergence import kl_divergence
from shardio.ops.gather import batch_gather
from shardio.ops.linear import linear_cross_entropy
from shardio.ops.merge import Merge
from shardio.ops.reduction import masked_mean
from shardio.ops.scatter import batch_scatter
from shardio.ops.softmax import log_softmax, logsumexp, softmax

__all__ = [
    "Merge",
    "batch_gather",
    "batch_scatter",
    "binary_focal_loss",
    "kl_divergence",
    "linear_cross_entropy",
    "log_softmax",
    "logsumexp",
    "masked_mean",
    "sigmoid_cross_entropy",
    "softmax",
    "softmax_cross_entropy",
]
