"""PyTorch written by hand and batched over networks: one forward pass gives every depth."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from measuring.machine import on_every_core

from rivals.torch_network import PHI, load, profile

SLOPE: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": lambda h: 1 - torch.tanh(h) ** 2,
    "relu": lambda h: (h > 0).to(h.dtype),
    "erf": lambda h: 2 / math.sqrt(math.pi) * torch.exp(-(h**2)),
    "gelu": lambda h: (
        (1 + torch.erf(h * 0.5**0.5)) / 2 + h * torch.exp(-(h**2) / 2) / math.sqrt(2 * math.pi)
    ),
    "identity": torch.ones_like,
}


def spectra(problem: Any, device: str, threads: bool = False) -> Callable[[], np.ndarray]:
    """Singular values [activation, cell, depth, n].

    Args:
        problem: the networks.
        device: for PyTorch.
        threads: a Python thread per core, each with a part of the cells.
    """
    weights = load(problem, device)

    def values(part: slice) -> np.ndarray:
        kernels, biases = weights.blocks
        found = []
        for name in problem.activations:
            jacobian = weights.embed[0][part]
            h = torch.baddbmm(weights.embed[1][part, None], weights.x[part, None], jacobian)
            kept = []
            for depth, (kernel, bias) in enumerate(zip(kernels, biases, strict=True), 1):
                jacobian = torch.bmm(jacobian * SLOPE[name](h), kernel[part])
                h = torch.baddbmm(bias[part, None], PHI[name](h), kernel[part])
                if depth in problem.depths:
                    kept.append(jacobian)
            found.append(torch.stack(kept, 1))
        return torch.linalg.svdvals(torch.stack(found)).cpu().numpy()

    def run() -> np.ndarray:
        if not threads:
            return values(slice(None))
        return np.concatenate(on_every_core(values, problem.cells), axis=1)

    return run


def gradients(
    problem: Any, device: str, chunk: int = 8
) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """ln of the norms of dL/dh_l and dL/dtheta_l [activation, cell, depth, layer]; a forward pass for all depths."""
    weights = load(problem, device)

    def norms(name: str, part: slice) -> tuple[np.ndarray, np.ndarray]:
        phi = PHI[name]
        pair = lambda kernel, bias: (
            kernel.detach().requires_grad_(),
            bias.detach().requires_grad_(),
        )
        layers = [pair(weights.embed[0][part], weights.embed[1][part])]
        layers += [pair(k[part], b[part]) for k, b in zip(*weights.blocks, strict=True)]
        h = torch.baddbmm(layers[0][1][:, None], weights.x[part], layers[0][0])
        states = [h]
        for kernel, bias in layers[1:]:
            h = torch.baddbmm(bias[:, None], phi(h), kernel)
            states.append(h)
        found = []
        for depth in problem.depths:
            kernel, bias = (tensor[part] for tensor in weights.readout)
            logits = torch.baddbmm(bias[:, None], phi(states[depth]), kernel)
            labels = weights.labels[part]
            # the networks share nothing: the gradient of the sum of their losses is that of each
            loss = (
                F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum")
                / labels.shape[1]
            )
            wanted = [
                *states[: depth + 1],
                *(k for k, _ in layers[: depth + 1]),
                *(b for _, b in layers[: depth + 1]),
            ]
            grads = torch.autograd.grad(loss, wanted, retain_graph=True)
            size = [g.flatten(1).norm(dim=1) for g in grads]
            h_norm, k_norm, b_norm = (
                size[i * (depth + 1) : (i + 1) * (depth + 1)] for i in range(3)
            )
            theta = [torch.hypot(k, b) for k, b in zip(k_norm, b_norm, strict=True)]
            found.append([profile(n, max(problem.depths) + 1).T for n in (h_norm, theta)])
        return tuple(np.stack([row[i] for row in found], 1) for i in range(2))

    def run() -> tuple[np.ndarray, np.ndarray]:
        parts = [slice(at, at + chunk) for at in range(0, problem.cells, chunk)]
        found = [[norms(name, part) for part in parts] for name in problem.activations]
        return tuple(
            np.stack([np.concatenate([pair[i] for pair in row]) for row in found]) for i in range(2)
        )

    return run
