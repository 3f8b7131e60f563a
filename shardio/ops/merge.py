"""Merge: a dense layer over several features that broadcast against each other.

A Linear over concatenated features is a sum of one Linear per feature, and a sum broadcasts:
nothing has to be tiled first. Each feature is multiplied at its own size by its columns of the
weight, and the parts are added from the smallest to the largest, so that few additions have the
size of the result and nothing is larger. They are added in place wherever one already has the
shape of the sum: autograd needs none of the values so overwritten.

The parameters are those of the concatenated Linear, names, shapes and start values included,
so that either loads the other's state dict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses


class Merge(nn.Module):
    """Fuse two or more features densely, broadcasting instead of tiling.

    Equal to ``nn.Linear(sum(in_features), out_features)`` on the concatenation along the last
    dimension of the features, each first expanded to the leading dimensions of all of them.
    Leading dimensions broadcast as in numpy: they are aligned at the right, sizes must be equal
    or 1, and missing ones count as 1. So ``[B, 256]`` beside ``[B, N, 128]`` is refused, or
    fused wrongly where B happens to equal N: give it as ``[B, 1, 256]``.

    The sizes are given as ``Merge([5, 6], 10)`` or, like those of torch.nn.Bilinear, as
    ``Merge(5, 6, 10)``.

    Args:
        in_features: sizes of the last dimension of the features, in the order of ``forward``;
            or that of the first feature alone.
        *sizes: size of each further feature where in_features is one number, then out_features.
        out_features: size of the last dimension of the result, unless it ends the sizes.
        bias: whether to add a learned bias, once.
        activation: function of the result; a module is registered as a child.

    Attributes:
        in_features: sizes of all features, a tuple.
        weight: shape ``[out_features, sum(in_features)]``, columns in the order of the features.
        bias: shape ``[out_features]``, or None.

    Raises:
        ValueError: fewer than two features, no single size for the result, or a size that is not
            a positive whole number.
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        *sizes: int,
        out_features: int | None = None,
        bias: bool = True,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = _split_sizes(in_features, sizes, out_features)
        if len(self.in_features) < 2:
            raise ValueError(
                f"Merge fuses two or more features, not {len(self.in_features)}: "
                "for one, use nn.Linear."
            )
        if not all(
            isinstance(n, Integral) and n > 0 for n in (*self.in_features, self.out_features)
        ):
            raise ValueError(
                "the sizes of a Merge are positive whole numbers, not "
                f"in_features={self.in_features} and out_features={self.out_features}."
            )
        self.weight = nn.Parameter(torch.empty(self.out_features, sum(self.in_features)))
        self.bias = nn.Parameter(torch.empty(self.out_features)) if bias else None
        self.activation = activation
        self.reset_parameters()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        in_features: Sequence[int],
        *,
        activation: Callable[[Tensor], Tensor] | None = None,
    ) -> Merge:
        """Make the Merge that computes what a Linear over concatenated features computes.

        Args:
            linear: its parameters are copied; dtype and device are kept.
            in_features: how the Linear's input is made up of features.
            activation: applied to the result.

        Raises:
            ValueError: ``in_features`` does not add up to the input of the Linear.
        """
        if sum(in_features) != linear.in_features:
            raise ValueError(
                f"in_features={tuple(in_features)} add up to {sum(in_features)}, but the Linear "
                f"takes {linear.in_features} features."
            )
        bias = linear.bias is not None
        merge = cls(in_features, linear.out_features, bias=bias, activation=activation)
        _copy_parameters(linear, merge)
        return merge

    def to_linear(self) -> nn.Linear:
        """Make the Linear that takes the concatenated features; without the activation."""
        linear = nn.Linear(sum(self.in_features), self.out_features, bias=self.bias is not None)
        _copy_parameters(self, linear)
        return linear

    def reset_parameters(self) -> None:
        """Draw the start values as nn.Linear does, from ±1/sqrt(sum(in_features)).

        The calls and their order are those of nn.Linear: the same seed gives the same values.
        """
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(sum(self.in_features))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, *features: Tensor) -> Tensor:
        """Fuse the features.

        Args:
            *features: one tensor ``[*leading, in_features[i]]`` for each of ``in_features``.

        Returns:
            Shape ``[*leading dimensions broadcast, out_features]``.

        Raises:
            ValueError: the number of features, a last dimension or the leading dimensions do
                not fit.
        """
        self._check(features)
        weights = self.weight.split_with_sizes(list(self.in_features), dim=1)
        pairs = list(zip(features, weights, strict=True))
        if not torch.compiler.is_compiling():  # a compiler orders and places results by itself
            pairs.sort(key=lambda pair: math.prod(pair[0].shape[:-1]))
        # The first feature carries the bias: there it is added to the fewest elements.
        fused = F.linear(*pairs[0], self.bias)
        for feature, weight in pairs[1:]:
            fused = _add(fused, F.linear(feature, weight))
        return fused if self.activation is None else self.activation(fused)

    def extra_repr(self) -> str:
        """Show the sizes in the printed module."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )

    def _check(self, features: Sequence[Tensor]) -> None:
        if len(features) != len(self.in_features):
            raise ValueError(
                f"this Merge takes {len(self.in_features)} features, of sizes "
                f"{self.in_features}, but was given {len(features)}."
            )
        for i, (feature, size) in enumerate(zip(features, self.in_features, strict=True)):
            if feature.dim() == 0 or feature.shape[-1] != size:
                raise ValueError(
                    f"feature {i} has shape {tuple(feature.shape)}, but its last dimension "
                    f"must be {size}."
                )
        leading = [feature.shape[:-1] for feature in features]
        try:
            torch.broadcast_shapes(*leading)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(feature.shape)) for feature in features)
            raise ValueError(
                f"the leading dimensions of the shapes {shapes} do not broadcast: aligned at "
                "the right, sizes must be equal or 1; insert a dimension of size 1 with "
                "unsqueeze where a feature is to be repeated."
            ) from error


def _split_sizes(
    in_features: int | Sequence[int], sizes: Sequence[int], out_features: int | None
) -> tuple[tuple[int, ...], int]:
    """Split the sizes that a Merge was given into those of its features and of its result."""
    rest = sizes if out_features is None else (*sizes, out_features)
    if isinstance(in_features, Sequence):
        first, fitting = tuple(in_features), len(rest) == 1
    else:
        first, fitting = (in_features,), len(rest) >= 1
    if not fitting:
        given = ", ".join(map(str, [in_features, *rest]))
        raise ValueError(
            f"Merge({given}) does not give the sizes of the features and that of the result: "
            "write Merge([5, 6], 10) or Merge(5, 6, 10)."
        )
    return (*first, *rest[:-1]), rest[-1]


def _add(total: Tensor, part: Tensor) -> Tensor:
    """Add, in place of whichever already has the shape of the sum; both are consumed."""
    target, other = (part, total) if _broadcasts(total.shape, part.shape) else (total, part)
    if not torch.compiler.is_compiling() and _broadcasts(other.shape, target.shape):
        try:
            return target.add_(other)
        except RuntimeError:  # under vmap, if only the other one is batched
            pass
    return total + part


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Tell whether a tensor of one shape can be added in place to one of the other."""
    missing = len(target) - len(shape)
    return missing >= 0 and all(
        size in (1, wanted) for size, wanted in zip(shape, target[missing:], strict=True)
    )


def _copy_parameters(source: Merge | nn.Linear, target: Merge | nn.Linear) -> None:
    """Copy weight and bias, with their dtype and device."""
    target.weight = nn.Parameter(source.weight.detach().clone())
    if source.bias is not None:
        target.bias = nn.Parameter(source.bias.detach().clone())
