"""PyTorch, one network after the other: torch.autograd.functional.jacobian for spectra, hooks for gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch.autograd.functional import jacobian

from rivals.torch_network import PHI, hidden, load, one, profile


def spectra(problem: Any, device: str, vectorize: bool = True) -> Callable[[], np.ndarray]:
    """Singular values [activation, cell, depth, n]."""
    weights = load(problem, device)

    def values(name: str, cell: int, depth: int) -> np.ndarray:
        net = one(weights, cell)
        found = jacobian(lambda x: hidden(PHI[name], net, x, depth), net.x, vectorize=vectorize)
        return torch.linalg.svdvals(found).cpu().numpy()

    return lambda: np.stack(
        [
            np.stack(
                [
                    np.stack([values(name, cell, depth) for depth in problem.depths])
                    for cell in range(problem.cells)
                ]
            )
            for name in problem.activations
        ]
    )


class _Phi(torch.nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.phi = PHI[name]

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return self.phi(h)


def _module(name: str, weights: Any, depth: int) -> torch.nn.Sequential:
    def linear(kernel: torch.Tensor, bias: torch.Tensor) -> torch.nn.Linear:
        with torch.device("meta"):
            made = torch.nn.Linear(*kernel.shape)
        made.weight, made.bias = torch.nn.Parameter(kernel.T), torch.nn.Parameter(bias)
        return made

    blocks = zip(weights.blocks[0][:depth], weights.blocks[1][:depth], strict=True)
    layers = [linear(*weights.embed)]
    for kernel, bias in (*blocks, weights.readout):
        layers += [_Phi(name), linear(kernel, bias)]
    return torch.nn.Sequential(*layers)


def gradients(problem: Any, device: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """ln of the norms of dL/dh_l and dL/dtheta_l [activation, cell, depth, layer]; modules are made beforehand."""
    weights = load(problem, device)
    cells = range(problem.cells)
    nets = [
        [[_module(name, one(weights, cell), depth) for depth in problem.depths] for cell in cells]
        for name in problem.activations
    ]

    def norms(net: torch.nn.Sequential, cell: int) -> tuple[list, list]:
        seen: dict[int, torch.Tensor] = {}
        linears = [module for module in net if isinstance(module, torch.nn.Linear)][:-1]
        hooks = [
            module.register_full_backward_hook(
                lambda _module, _grad_input, grad_output, layer=layer: seen.__setitem__(
                    layer, grad_output[0].norm()
                )
            )
            for layer, module in enumerate(linears)
        ]
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(weights.x[cell].requires_grad_()), weights.labels[cell]).backward()
        for hook in hooks:
            hook.remove()
        theta = [
            torch.hypot(linear.weight.grad.norm(), linear.bias.grad.norm()) for linear in linears
        ]
        return [seen[layer] for layer in range(len(linears))], theta

    def run() -> tuple[np.ndarray, np.ndarray]:
        found = np.stack(
            [
                np.stack(
                    [
                        np.stack(
                            [
                                [profile(n, max(problem.depths) + 1) for n in norms(net, cell)]
                                for net in row
                            ]
                        )
                        for cell, row in enumerate(rows)
                    ]
                )
                for rows in nets
            ]
        )
        return found[..., 0, :], found[..., 1, :]

    return run
