"""torch.func: vmap over networks of jacrev, and of grad with a tap at every layer; one call per depth."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch.func import grad, jacrev, vmap

from rivals.torch_network import PHI, Weights, hidden, load, profile

_CELLS = Weights((0, 0), (1, 1), (0, 0), 0, 0)  # type: ignore[arg-type]


def spectra(problem: Any, device: str) -> Callable[[], np.ndarray]:
    """Singular values [activation, cell, depth, n]."""
    weights = load(problem, device)

    def values(name: str, depth: int) -> np.ndarray:
        one = jacrev(lambda x, net: hidden(PHI[name], net, x, depth))
        found = vmap(lambda net: one(net.x, net), in_dims=(_CELLS,))(weights)
        return torch.linalg.svdvals(found).cpu().numpy()

    return lambda: np.stack(
        [
            np.stack([values(name, depth) for depth in problem.depths], 1)
            for name in problem.activations
        ]
    )


def gradients(problem: Any, device: str) -> Callable[[], tuple[np.ndarray, np.ndarray]]:
    """ln of the norms of dL/dh_l and dL/dtheta_l [activation, cell, depth, layer]."""
    weights = load(problem, device)
    batch = problem.x.shape[1]

    def norms(name: str, depth: int) -> tuple[np.ndarray, np.ndarray]:
        phi = PHI[name]

        def loss(trained: list, taps: torch.Tensor, net: Weights) -> torch.Tensor:
            h = torch.addmm(trained[0][1], net.x, trained[0][0]) + taps[0]
            for layer, (kernel, bias) in enumerate(trained[1:], 1):
                h = torch.addmm(bias, phi(h), kernel) + taps[layer]
            return F.cross_entropy(phi(h) @ net.readout[0] + net.readout[1], net.labels)

        def one(net: Weights) -> tuple[torch.Tensor, torch.Tensor]:
            trained = [
                net.embed,
                *((net.blocks[0][layer], net.blocks[1][layer]) for layer in range(depth)),
            ]
            taps = torch.zeros(depth + 1, batch, problem.width, device=device)
            theta, h = grad(loss, argnums=(0, 1))(trained, taps, net)
            return h.flatten(1).norm(dim=1), torch.stack(
                [torch.hypot(k.norm(), b.norm()) for k, b in theta]
            )

        found = vmap(one, in_dims=(_CELLS,), chunk_size=8)(weights)
        return tuple(profile(list(part.T), max(problem.depths) + 1).T for part in found)

    def run() -> tuple[np.ndarray, np.ndarray]:
        found = [[norms(name, depth) for depth in problem.depths] for name in problem.activations]
        part = lambda index: np.stack([np.stack([pair[index] for pair in row], 1) for row in found])
        return part(0), part(1)

    return run
