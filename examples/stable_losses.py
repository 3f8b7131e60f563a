"""Naive and stable softmax and cross entropy: the same formula, with different results in floats.

exp(1000) overflows, and inf / inf is NaN. Subtracting the largest logit of each row changes nothing
in exact arithmetic, but everything here. So does taking the logarithm before the division.
"""

import torch
from torch import Tensor
from torch.nn import functional

from shardio import ops


def naive_softmax(x: Tensor) -> Tensor:
    return x.exp() / x.exp().sum(-1, keepdim=True)


def naive_cross_entropy(x: Tensor, label: int) -> Tensor:
    return -naive_softmax(x)[label].log()


def stable(x: Tensor, label: int) -> Tensor:
    return ops.softmax_cross_entropy(x, torch.tensor(label))


def show(name: str, value: Tensor) -> None:
    numbers = ", ".join(f"{number:.4g}" for number in value.flatten().tolist())
    print(f"  {name:34} {numbers}")


def main() -> None:
    for row in ([1.0, 2.0], [1000.0, 1000.0], [-1000.0, -999.0]):
        print(f"logits {row}")
        show("naive softmax", naive_softmax(torch.tensor(row)))
        show("shardio.ops.softmax", ops.softmax(torch.tensor(row)))
        for name, loss_of in (("naive", naive_cross_entropy), ("shardio.ops", stable)):
            x = torch.tensor(row, requires_grad=True)
            loss = loss_of(x, 1)
            (gradient,) = torch.autograd.grad(loss, x)
            show(f"{name} cross entropy", loss)
            show(f"{name} gradient", gradient)

    x = torch.tensor([1000.0, 1000.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(ops.softmax_cross_entropy(x, torch.tensor(1)), x)
    assert gradient.tolist() == [0.5, -0.5]

    print("the maximum of the whole batch is no remedy: rows far below it underflow")
    batch = torch.tensor([[1000.0, 999.0], [0.0, 1.0]])
    shifted = (batch - batch.max()).exp()
    show("exp of the second row", shifted[1])
    show("its softmax, by the batch's maximum", (shifted / shifted.sum(-1, keepdim=True))[1])
    show("its softmax, by its own", ops.softmax(batch)[1])

    print("a masked class (-inf) with a label of 0, as distributions have it")
    logits, labels = torch.tensor([[1.0, 2.0, -torch.inf]]), torch.tensor([[0.5, 0.5, 0.0]])
    show("torch's cross_entropy", functional.cross_entropy(logits, labels))
    show("shardio.ops", ops.softmax_cross_entropy(logits, labels))

    print("a loss of yes or no, for a logit of -50 and the label 0: exp(-50) is 1.929e-22")
    logit, no = torch.tensor(-50.0), torch.tensor(0.0)
    show("naive: -log(1 - sigmoid)", -(1 - torch.sigmoid(logit)).log())
    show("torch", functional.binary_cross_entropy_with_logits(logit, no))
    show("shardio.ops", ops.sigmoid_cross_entropy(logit, no))

    print("the last batch of an epoch, filled up with a repeat that is marked as padding")
    logits, valid = torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([True, False])
    labels = torch.tensor([0, 1])
    show("counting it", ops.softmax_cross_entropy(logits, labels))
    show("valid=batch['valid']", ops.softmax_cross_entropy(logits, labels, valid=valid))


if __name__ == "__main__":
    main()
