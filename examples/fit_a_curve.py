"""Fit 5x² + 3 to noisy points by gradient descent: what autograd does, and what it does not.

Autograd only computes gradients. The loop itself must take the step and clear the gradients:
`backward()` adds to `.grad`, so a loop that does not clear it takes steps by sums of gradients.
"""

import torch
from torch import Tensor
from torch.nn import functional


def loss_of(parameters: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Return the mean squared error of a curve a·x² + b with the parameters [a, b]."""
    curve = parameters[0] * x**2 + parameters[1]
    return functional.mse_loss(curve, y)


def descend(x: Tensor, y: Tensor, steps: int, *, clear: bool) -> Tensor:
    parameters = torch.zeros(2, requires_grad=True)
    for _ in range(steps):
        loss_of(parameters, x, y).backward()
        assert parameters.grad is not None
        with torch.no_grad():  # a step is no part of what is derived
            parameters -= 0.5 * parameters.grad
        if clear:
            parameters.grad = None
    return parameters.detach()


def main() -> None:
    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 200)
    y = 5 * x**2 + 3 + 0.1 * torch.randn(200)

    # One gradient by hand: d/da mean((a·x² + b - y)²) = mean(2·(a·x² + b - y)·x²).
    start = torch.zeros(2, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss_of(start, x, y), start)
    by_hand = torch.stack([(2 * (0 - y) * x**2).mean(), (2 * (0 - y)).mean()])
    print(f"first gradient: autograd {gradient.tolist()}, by hand {by_hand.tolist()}")
    torch.testing.assert_close(gradient, by_hand)

    for steps in (10, 100, 1000):
        a, b = descend(x, y, steps, clear=True).tolist()
        print(f"after {steps:4} steps: {a:.3f} x² + {b:.3f}")
    torch.testing.assert_close(torch.tensor([a, b]), torch.tensor([5.0, 3.0]), atol=0.05, rtol=0)

    # The same in closed form, since the curve is linear in its parameters.
    columns = torch.stack([x**2, torch.ones_like(x)], dim=1)
    a, b = torch.linalg.lstsq(columns, y[:, None]).solution[:, 0].tolist()
    print(f"least squares:    {a:.3f} x² + {b:.3f}")

    wild = descend(x, y, 100, clear=False)
    print(f"gradients never cleared, after 100 steps: {wild[0]:.3f} x² + {wild[1]:.3f}")


if __name__ == "__main__":
    main()
