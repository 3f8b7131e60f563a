"""Softmax and its logarithm, correct for infinite logits.

torch's fused kernels subtract the maximum of each row and are exact for finite logits of any
magnitude. For a row of -inf only, or one with +inf, their values and gradients are NaN. Two ways
avoid this at little cost:

1. On the CPU, values can be read. One pass over the logits (a tenth of the time of a softmax), or
   over the losses of the samples, shows whether all are finite. If so, torch's kernel is used.
2. Elsewhere (accelerators, `torch.compile`, `vmap`), a computation without branches is used.
   The peak is clipped before it is subtracted, the sum is at least 1, and impossible values are
   set afterwards, one per row where possible. The gradients need no mask of the size of the
   logits, which a compiler would store.

An infinite logit is a constant, so its gradient is 0. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio.ops import peek


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Compute `exp(x) / exp(x).sum(dim)` stably, with support for infinite logits.

    Equal to `torch.softmax` for finite logits. An entry of -inf is a masked class, with
    probability 0 and gradient 0. A row of -inf only gives zeros, which do not add up to 1. Entries
    of +inf share the probability of their row equally. The result is NaN only in rows with a NaN.

    Args:
        x: floating point logits of any shape.
        dim: dimension of the classes, along which the probabilities add up to 1.

    Returns:
        Tensor of the shape and dtype of `x`, computed at least in float32.

    Raises:
        TypeError: `x` is not floating point.
    """
    wide = widen(x)
    if peek.known_finite(wide):
        return torch.softmax(wide, dim).to(x.dtype)
    below = below_peak(wide, peak_of(wide, dim))
    probabilities = below.exp() / total_of(below, dim)
    # Block the gradient, which may be infinite, where a probability is 0.
    return F.threshold(probabilities, 0, 0).to(x.dtype)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Compute the logarithm of `softmax` without computing the softmax.

    Equal to `torch.log_softmax` for finite logits. An entry of -inf is a masked class, with
    log-probability -inf and gradient 0. A row of -inf only stays -inf. Entries of +inf share the
    probability of their row equally, and the others get -inf. The result is NaN only in rows with
    a NaN.

    Args:
        x: floating point logits of any shape.
        dim: dimension of the classes, along which the probabilities add up to 1.

    Returns:
        Tensor of the shape of `x`, at least float32, as under autocast. float16 could not
        represent the log-probability of a logit that is 70,000 below the largest.

    Raises:
        TypeError: `x` is not floating point.
    """
    wide = widen(x)
    if peek.known_finite(wide):
        return torch.log_softmax(wide, dim)
    peak = peak_of(wide, dim)
    below = below_peak(wide, peak)
    result = below - total_of(below, dim).log()
    return result.masked_fill(impossible(wide, peak), -math.inf)


def logsumexp(x: Tensor, dim: int = -1, *, keepdim: bool = False) -> Tensor:
    """Compute the logarithm of `exp(x).sum(dim)` without overflow.

    Equal to `torch.logsumexp` for finite values, with a more exact gradient. Entries of -inf
    contribute nothing and have gradient 0. A row of -inf only, or without entries, gives -inf with
    gradient 0, and a row with +inf gives +inf with gradient 0. The result is NaN only for rows with
    a NaN.

    Args:
        x: floating point tensor of any shape.
        dim: dimension to reduce.
        keepdim: whether to keep the reduced dimension, with size 1.

    Returns:
        Tensor of the shape of `x` without `dim`, at least float32, since the result may exceed
        the range of float16.

    Raises:
        TypeError: `x` is not floating point.
    """
    wide = widen(x)
    if wide.dim() and not wide.shape[dim]:
        return torch.logsumexp(wide, dim, keepdim=keepdim)
    peak = peak_of(wide, dim)
    # torch's own gradient is exp(x - result), which is inexact if the result is large.
    if peek.known_finite(wide):
        result = total_of(wide - peak, dim).log() + peak
    else:
        limits = torch.finfo(wide.dtype)
        above = peak.clamp(limits.min, limits.max)
        result = total_of(below_peak(wide, peak), dim).log() + above
        # An infinite peak is the result itself, as a constant.
        result = torch.where(peak.isinf(), peak, result)
    return result if keepdim or not wide.dim() else result.squeeze(dim)


def widen(x: Tensor) -> Tensor:
    """Convert values to the dtype of their sums, at least float32."""
    if not x.is_floating_point():
        raise TypeError(
            f"logits must be floating point, not {x.dtype}; convert them with logits.float()"
        )
    return x if x.dtype is torch.float64 else x.float()


def peak_of(x: Tensor, dim: int) -> Tensor:
    """Return the largest logit of each row as a constant, with the dimension kept at size 1."""
    x = x.detach()
    return x.amax(dim, keepdim=True) if x.numel() or x.shape[dim] else x


def below_peak(x: Tensor, peak: Tensor) -> Tensor:
    """Subtract the peak, so that exp neither overflows nor turns infinities into NaN.

    Entries at the peak become 0; at a peak of +inf they have no gradient. Other entries beside
    +inf become so low that exp gives 0. A row of -inf only does not change. A row with a NaN
    becomes NaN, without a gradient.
    """
    limits = torch.finfo(x.dtype)
    return (x - peak.clamp(limits.min, limits.max)).clamp(max=0)


def total_of(below: Tensor, dim: int) -> Tensor:
    """Sum the exponentials; at least 1, which the peak contributes except in a row of -inf."""
    return below.exp().sum(dim, keepdim=True).clamp(min=1)


def impossible(x: Tensor, peak: Tensor) -> Tensor:
    """Return a mask of the logits with probability 0: masked classes, and finite beside +inf."""
    return x.detach() < torch.where(peak == math.inf, peak, torch.finfo(x.dtype).min)
