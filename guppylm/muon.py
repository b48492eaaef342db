"""Muon: an optimizer for the matrices inside the network (Keller Jordan et al., 2024).

A gradient matrix is usually dominated by a few directions, so that a plain step learns these and little else. Muon
replaces the (averaged) gradient by the nearest matrix whose directions are all equally strong, and steps along that.
"""

import math

import torch


class Muon(torch.optim.Optimizer):
    """Momentum whose average is orthogonalised before each step. For parameters with two dimensions, (m, n).

    lr: a step changes an entry by about 0.2 lr, as a typical step of AdamW does: both can share a learning rate.
    weight_decay: at each step weights shrink by lr * weight_decay.
    momentum: share of the average that each step keeps. 0.95 is usual; trainings as short as ours learn more with 0.9.
    dtype: precision of the matrix products; they correct their own rounding, so bfloat16 is enough.
    """

    def __init__(self, parameters, lr: float, weight_decay: float, momentum: float = 0.9, dtype=torch.float32):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if not state:  # the first step
                    state["average"] = torch.zeros_like(weight)
                average = state["average"].lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(average, group["momentum"])  # Nesterov: where the average is going
                direction = orthogonal(ahead.to(self.dtype)).to(weight.dtype)
                # An orthogonal (m, n) matrix has entries of about 1 / sqrt(max(m, n)); 0.2 is AdamW's typical step.
                size = 0.2 * math.sqrt(max(weight.shape))
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction, alpha=-group["lr"] * size)


def orthogonal(g: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """The matrix (m, n) with g's singular vectors and all singular values near 1, by Newton-Schulz iteration.

    Each round applies the polynomial a s + b s^3 + c s^5 to every singular value s at once, by products alone;
    with these coefficients five rounds bring all that were between 0.01 and 1 to between about 0.7 and 1.2.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g  # (m, n) with m <= n from here on: x @ x.T is the smaller product
    x = x / (x.norm() + 1e-7)  # no singular value is above the norm
    for _ in range(iterations):
        xx = x @ x.T  # (m, n) @ (n, m) -> (m, m)
        x = a * x + (b * xx + c * xx @ xx) @ x  # xx @ xx is (m, m), and (m, m) @ (m, n) -> (m, n)
    return x.T if g.shape[0] > g.shape[1] else x
