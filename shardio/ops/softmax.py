"""Softmax and its logarithm, right where the plain formulas are not.

torch's fused kernels take the maximum per row and are exact for finite logits of any size.
Rows with infinities are where they fail: a row of -inf alone, or with +inf, comes out as NaN,
values and gradients alike. Two facts make the remedy cheap:

1. On the CPU a value can be read. One pass over the values (a tenth of the time of a softmax),
   or over the losses of the samples, tells that all are finite, and torch's kernel is the answer.
2. Elsewhere (accelerators, ``torch.compile``, ``vmap``) every row takes a path without branches:
   the peak is clipped before it is subtracted, the sum is at least 1, and what is out of reach
   is set afterwards, one value a row where possible. Its gradients need no mask of the size
   of the logits, which a compiler would store.

An infinite logit is a constant: its gradient is 0. float16 and bfloat16 are computed in float32.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses

from shardio.ops import peek


def softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Turn logits into probabilities: ``exp(x) / exp(x).sum(dim)``, stably.

    Equal to ``torch.softmax`` for finite logits. Beyond it: an entry of -inf is a masked class,
    with probability 0 and gradient 0; a row of -inf alone has no class left and gives zeros
    (which do not add up to 1); entries of +inf share the probability of their row equally. The
    result is NaN only in rows that hold a NaN.

    Args:
        x: logits of any shape, floating point.
        dim: the dimension along which the probabilities add up to 1.

    Returns:
        The shape and dtype of ``x``; computed in float32 where ``x`` is narrower.

    Raises:
        TypeError: ``x`` is not floating point.
    """
    wide = widen(x)
    if peek.known_finite(wide):
        return torch.softmax(wide, dim).to(x.dtype)
    below = below_peak(wide, peak_of(wide, dim))
    probabilities = below.exp() / total_of(below, dim)
    # This changes no probability; it stops gradients, infinite ones too, where one is 0.
    return F.threshold(probabilities, 0, 0).to(x.dtype)


def log_softmax(x: Tensor, dim: int = -1) -> Tensor:
    """Take the logarithm of ``softmax`` without forming the softmax.

    Equal to ``torch.log_softmax`` for finite logits. Beyond it: an entry of -inf is a masked
    class, with log-probability -inf and gradient 0; a row of -inf alone stays -inf; entries
    of +inf share the probability of their row equally, the others get -inf. The result is NaN
    only in rows that hold a NaN.

    Args:
        x: logits of any shape, floating point.
        dim: the dimension along which the probabilities add up to 1.

    Returns:
        The shape of ``x``. float32 where ``x`` is narrower, as under autocast: a float16
        cannot hold the log-probability of a logit 70,000 below the largest.

    Raises:
        TypeError: ``x`` is not floating point.
    """
    wide = widen(x)
    if peek.known_finite(wide):
        return torch.log_softmax(wide, dim)
    peak = peak_of(wide, dim)
    below = below_peak(wide, peak)
    result = below - total_of(below, dim).log()
    return result.masked_fill(impossible(wide, peak), -math.inf)


def logsumexp(x: Tensor, dim: int = -1, *, keepdim: bool = False) -> Tensor:
    """Take the logarithm of ``exp(x).sum(dim)`` without overflow.

    Equal to ``torch.logsumexp`` for finite values, with a more exact gradient. Beyond it: entries
    of -inf add nothing and have gradient 0, a row of -inf alone (or of no entries) gives -inf
    with gradient 0, a row with +inf gives +inf with gradient 0. The result is NaN only for rows
    that hold a NaN.

    Args:
        x: any shape, floating point.
        dim: the dimension that is summed over.
        keepdim: keep it, at size 1.

    Returns:
        The shape of ``x`` without ``dim``. float32 where ``x`` is narrower: the sum of 65,504s
        is out of reach of float16.

    Raises:
        TypeError: ``x`` is not floating point.
    """
    wide = widen(x)
    if wide.dim() and not wide.shape[dim]:
        return torch.logsumexp(wide, dim, keepdim=keepdim)
    peak = peak_of(wide, dim)
    # torch's own gradient is exp(x - result), in which a large result has lost its last digits.
    if peek.known_finite(wide):
        result = total_of(wide - peak, dim).log() + peak
    else:
        limits = torch.finfo(wide.dtype)
        above = peak.clamp(limits.min, limits.max)
        result = total_of(below_peak(wide, peak), dim).log() + above
        # The peak itself stands in where it is infinite, as a constant.
        result = torch.where(peak.isinf(), peak, result)
    return result if keepdim or not wide.dim() else result.squeeze(dim)


def widen(x: Tensor) -> Tensor:
    """Give the values in the dtype that sums over them are taken in."""
    if not x.is_floating_point():
        raise TypeError(f"logits are floating point, not {x.dtype}: convert with logits.float().")
    return x if x.dtype is torch.float64 else x.float()


def peak_of(x: Tensor, dim: int) -> Tensor:
    """Find the largest logit of each row, as a constant, with the dimension kept at 1."""
    x = x.detach()
    return x.amax(dim, keepdim=True) if x.numel() or x.shape[dim] else x


def below_peak(x: Tensor, peak: Tensor) -> Tensor:
    """Subtract the peak, so that exp neither overflows nor makes NaN of infinities.

    Entries at the peak become 0, also at a peak of +inf, there without a gradient; others beside
    +inf become so low that exp gives 0. A row of -inf alone stays. Where there is a NaN the row
    becomes NaN, without a gradient.
    """
    limits = torch.finfo(x.dtype)
    return (x - peak.clamp(limits.min, limits.max)).clamp(max=0)


def total_of(below: Tensor, dim: int) -> Tensor:
    """Add up the exponentials: at least the 1 of the peak, but for a row of -inf alone."""
    return below.exp().sum(dim, keepdim=True).clamp(min=1)


def impossible(x: Tensor, peak: Tensor) -> Tensor:
    """Mark the logits with probability 0: masked classes, and finite ones beside +inf."""
    return x.detach() < torch.where(peak == math.inf, peak, torch.finfo(x.dtype).min)
