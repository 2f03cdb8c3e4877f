"""The largest Hessian eigenvalue in PyTorch: curvlinops' operator under SciPy's ARPACK, and power iteration by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from curvlinops import HessianLinearOperator
from scipy.sparse.linalg import eigsh


def network(weights: list[tuple[np.ndarray, np.ndarray]]) -> torch.nn.Sequential:
    """Dense layers with tanh between them, of given kernels [n_in, n_out] and biases."""
    layers: list[torch.nn.Module] = []
    for kernel, bias in weights:
        layer = torch.nn.Linear(*kernel.shape)
        layer.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.T))
        layer.bias.data = torch.from_numpy(bias.copy())
        layers += [torch.nn.Tanh(), layer]
    return torch.nn.Sequential(*layers[1:])


def curvlinops_arpack(
    weights: Any, x: np.ndarray, y: np.ndarray, basis: int, tol: float
) -> Callable[[int], float]:
    """`eigsh` to a relative tolerance with a basis of some vectors, on curvlinops' products with the Hessian."""
    model = network(weights)
    data = [(torch.from_numpy(x), torch.from_numpy(y))]
    operator = HessianLinearOperator(
        model,
        torch.nn.CrossEntropyLoss(),
        [p for p in model.parameters() if p.requires_grad],
        data,
        check_deterministic=False,
    ).to_scipy(dtype=np.float32)
    size = operator.shape[0]

    def run(start: int) -> float:
        v0 = np.random.default_rng(start).standard_normal(size).astype(np.float32)
        found = eigsh(
            operator, k=1, which="LA", ncv=basis, tol=tol, v0=v0, return_eigenvectors=False
        )
        return found[0]

    return run


def power_iteration(
    weights: Any, x: np.ndarray, y: np.ndarray, steps: int
) -> Callable[[int], float]:
    """What a user writes by hand: double back-propagation, the Rayleigh quotient of the last vector."""
    model = network(weights)
    inputs, labels = torch.from_numpy(x), torch.from_numpy(y)
    params = list(model.parameters())

    def run(start: int) -> float:
        torch.manual_seed(start)
        loss = torch.nn.functional.cross_entropy(model(inputs), labels)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        v = [torch.randn_like(p) for p in params]
        value = torch.zeros(())
        for _ in range(steps):
            length = torch.sqrt(sum(torch.sum(part**2) for part in v))
            v = [part / length for part in v]
            product = torch.autograd.grad(gradients, params, v, retain_graph=True)
            value = sum(torch.sum(a * b) for a, b in zip(v, product, strict=True))
            v = list(product)
        return float(value)

    return run
