"""A linear model as a Module: what its parameters are, and what follows from being one.

A tensor becomes a parameter if it is an `nn.Parameter` and an attribute of a Module. Then
`parameters()` finds it, `state_dict()` saves it, and `to()` moves it. All three silently overlook
plain tensors, and Parameters in a Python list.
"""

import torch
from torch import Tensor, nn


class Line(nn.Module):
    """Model y = x · weight + bias, with three more tensors that are treated differently."""

    mean: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(features))
        self.bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("mean", torch.zeros(features))  # saved and moved, not learned
        self.plain = torch.zeros(features)  # neither
        self.hidden = [nn.Parameter(torch.zeros(features))]  # neither: nn.ParameterList is

    def forward(self, x: Tensor) -> Tensor:
        """Map [N, features] to [N]."""
        return (x - self.mean) @ self.weight + self.bias


def main() -> None:
    torch.manual_seed(0)
    truth, offset = torch.tensor([2.0, -3.0, 0.5]), 4.0
    x = torch.randn(500, 3)
    y = x @ truth + offset + 0.1 * torch.randn(500)

    model = Line(3)
    print("parameters:", [name for name, _ in model.named_parameters()])
    print("state dict:", [*model.state_dict()])
    moved = Line(3).to(torch.float64)
    print(f"moved to float64: mean {moved.mean.dtype}, plain {moved.plain.dtype}")
    assert [*model.state_dict()] == ["weight", "bias", "mean"]

    model.mean.copy_(x.mean(0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(101):
        loss = (model(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step:3}: loss {loss.item():8.4f}")
    weight, bias = model.weight.detach(), (model.bias - model.mean @ model.weight).item()
    print(f"found {weight.tolist()} and {bias:.3f}")
    torch.testing.assert_close(weight, truth, atol=0.05, rtol=0)

    # nn.Linear is the same with several outputs; its weight is [outputs, features].
    linear = nn.Linear(3, 1)
    with torch.no_grad():
        linear.weight.copy_(model.weight[None])
        linear.bias.fill_(bias)
    torch.testing.assert_close(linear(x)[:, 0], model(x))
    print("an nn.Linear with these parameters says the same")


if __name__ == "__main__":
    main()
