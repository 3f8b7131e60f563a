"""Dense layer over several features that broadcast against each other.

A Linear over concatenated features equals the sum of one Linear per feature. A sum broadcasts, so
no feature has to be tiled. Each feature is multiplied at its own size by its columns of the weight.
The products are added from the smallest to the largest, so that few additions have the size of the
result and none is larger. An addition is done in place if one operand already has the shape of the
sum; autograd does not need the overwritten values.

The parameters have the names, shapes and initial values of those of the concatenated Linear, so
each of the two layers can load the other's state dict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - the name that torch's own manual uses


class Merge(nn.Module):
    """Dense layer over two or more features, which are broadcast instead of tiled.

    Equal to `nn.Linear(sum(in_features), out_features)` on the concatenation of the features
    along the last dimension, after expanding them to common leading dimensions. Leading dimensions
    broadcast as in numpy: they are aligned at the right, sizes must be equal or 1, and missing
    dimensions count as 1. Hence `[B, 256]` does not broadcast with `[B, N, 128]`, or wrongly
    if B happens to equal N; pass it as `[B, 1, 256]`.

    The sizes are passed as `Merge([5, 6], 10)` or, as for `torch.nn.Bilinear`, as
    `Merge(5, 6, 10)`.

    Args:
        in_features: sizes of the last dimension of all features, in the order of `forward`;
            or that of the first feature only.
        *sizes: sizes of the other features if in_features is a single number, followed by
            out_features.
        out_features: size of the last dimension of the result, unless it is the last of sizes.
        bias: whether to add a learned bias.
        activation: function applied to the result; a module is registered as a child.

    Attributes:
        in_features: sizes of all features, as a tuple.
        out_features: size of the last dimension of the result.
        weight: parameter of shape `[out_features, sum(in_features)]`, with the columns in the
            order of the features.
        bias: parameter of shape `[out_features]`, or None.
        activation: function applied to the result, or None.

    Raises:
        ValueError: there are fewer than two features, the size of the result is missing or
            ambiguous, or a size is not a positive whole number.
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
                f"Merge takes two or more features, not {len(self.in_features)}; "
                "for a single feature, use nn.Linear"
            )
        if not all(
            isinstance(n, Integral) and n > 0 for n in (*self.in_features, self.out_features)
        ):
            raise ValueError(
                "the sizes of a Merge must be positive whole numbers, not "
                f"in_features={self.in_features} and out_features={self.out_features}"
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
        """Create a Merge from an equivalent Linear over concatenated features.

        Args:
            linear: layer whose parameters are copied, with their dtype and device.
            in_features: sizes of the features in the Linear's input.
            activation: function applied to the result.

        Raises:
            ValueError: `in_features` does not add up to the input of the Linear.
        """
        if sum(in_features) != linear.in_features:
            raise ValueError(
                f"in_features={tuple(in_features)} add up to {sum(in_features)}, but the Linear "
                f"takes {linear.in_features} features"
            )
        bias = linear.bias is not None
        merge = cls(in_features, linear.out_features, bias=bias, activation=activation)
        _copy_parameters(linear, merge)
        return merge

    def to_linear(self) -> nn.Linear:
        """Create an equivalent Linear over concatenated features, without the activation."""
        linear = nn.Linear(sum(self.in_features), self.out_features, bias=self.bias is not None)
        _copy_parameters(self, linear)
        return linear

    def reset_parameters(self) -> None:
        """Initialize the parameters as nn.Linear does, uniformly within ±1/sqrt(sum(in_features)).

        The random numbers are drawn as in nn.Linear, so the same seed gives the same values.
        """
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(sum(self.in_features))
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, *features: Tensor) -> Tensor:
        """Merge the features.

        Args:
            *features: tensor of shape `[*leading, in_features[i]]` for each feature.

        Returns:
            Tensor of shape `[*leading, out_features]`, with the leading dimensions broadcast.

        Raises:
            ValueError: the number of features or a last dimension does not match, or the leading
                dimensions do not broadcast.
        """
        self._check(features)
        weights = self.weight.split_with_sizes(list(self.in_features), dim=1)
        pairs = list(zip(features, weights, strict=True))
        if not torch.compiler.is_compiling():  # a compiler chooses the order itself
            pairs.sort(key=lambda pair: math.prod(pair[0].shape[:-1]))
        # The bias is added to the first product, which has the fewest elements.
        fused = F.linear(*pairs[0], self.bias)
        for feature, weight in pairs[1:]:
            fused = _add(fused, F.linear(feature, weight))
        return fused if self.activation is None else self.activation(fused)

    def extra_repr(self) -> str:
        """Return the sizes for the printed module."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )

    def _check(self, features: Sequence[Tensor]) -> None:
        if len(features) != len(self.in_features):
            raise ValueError(
                f"expected {len(self.in_features)} features, of sizes {self.in_features}, "
                f"got {len(features)}"
            )
        for i, (feature, size) in enumerate(zip(features, self.in_features, strict=True)):
            if feature.dim() == 0 or feature.shape[-1] != size:
                raise ValueError(
                    f"feature {i} has shape {tuple(feature.shape)}, but its last dimension "
                    f"must be {size}"
                )
        leading = [feature.shape[:-1] for feature in features]
        try:
            torch.broadcast_shapes(*leading)
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(feature.shape)) for feature in features)
            raise ValueError(
                f"the leading dimensions of the shapes {shapes} do not broadcast: aligned at "
                "the right, sizes must be equal or 1; insert a dimension of size 1 with "
                "unsqueeze to repeat a feature"
            ) from error


def _split_sizes(
    in_features: int | Sequence[int], sizes: Sequence[int], out_features: int | None
) -> tuple[tuple[int, ...], int]:
    """Split the size arguments of a Merge into those of the features and that of the result."""
    rest = sizes if out_features is None else (*sizes, out_features)
    if isinstance(in_features, Sequence):
        first, fitting = tuple(in_features), len(rest) == 1
    else:
        first, fitting = (in_features,), len(rest) >= 1
    if not fitting:
        given = ", ".join(map(str, [in_features, *rest]))
        raise ValueError(
            f"Merge({given}) does not specify the sizes of the features and that of the result; "
            "write Merge([5, 6], 10) or Merge(5, 6, 10)"
        )
    return (*first, *rest[:-1]), rest[-1]


def _add(total: Tensor, part: Tensor) -> Tensor:
    """Add two tensors, in place if either has the shape of the sum; both may be overwritten."""
    target, other = (part, total) if _broadcasts(total.shape, part.shape) else (total, part)
    if not torch.compiler.is_compiling() and _broadcasts(other.shape, target.shape):
        try:
            return target.add_(other)
        except RuntimeError:  # only the other tensor is batched by vmap
            pass
    return total + part


def _broadcasts(shape: Sequence[int], target: Sequence[int]) -> bool:
    """Return whether a shape broadcasts to a target shape."""
    missing = len(target) - len(shape)
    return missing >= 0 and all(
        size in (1, wanted) for size, wanted in zip(shape, target[missing:], strict=True)
    )


def _copy_parameters(source: Merge | nn.Linear, target: Merge | nn.Linear) -> None:
    """Copy weight and bias with their dtype and device."""
    target.weight = nn.Parameter(source.weight.detach().clone())
    if source.bias is not None:
        target.bias = nn.Parameter(source.bias.detach().clone())
