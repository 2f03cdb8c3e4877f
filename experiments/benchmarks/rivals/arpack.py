"""ARPACK through SciPy on matrix-vector products written out in PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds

from rivals.torch_network import PHI, load, one
from rivals.torch_product import SLOPE

# of the eigenvalues s^2 of J^T J
TOLERANCE = 1e-4


def products(problem: Any, device: str, top: int, vectors: int) -> int:
    """How many products with J or its transpose `largest` takes."""
    count = [0]
    largest(problem, device, top, vectors, count)()
    return count[0]


def largest(
    problem: Any, device: str, top: int, vectors: int, count: list[int] | None = None
) -> Callable[[], np.ndarray]:
    """The largest singular values of dh_L/dx of the first network, from so many Lanczos vectors, restarted."""
    count = [0] if count is None else count
    name, weights = problem.activations[0], one(load(problem, device), 0)
    # rows of these are outputs, so that a product with a vector reads them in order; the transpose reads the other way
    kernels = [weights.embed[0], *weights.blocks[0]]

    def run() -> np.ndarray:
        h = weights.x @ weights.embed[0] + weights.embed[1]
        slopes = []
        for kernel, bias in zip(*weights.blocks, strict=True):
            slopes.append(SLOPE[name](h))
            h = PHI[name](h) @ kernel + bias

        def push(v: np.ndarray) -> np.ndarray:
            count[0] += 1
            v = kernels[0].T.mv(torch.from_numpy(v.ravel()).to(device))
            for kernel, slope in zip(kernels[1:], slopes, strict=True):
                v = kernel.T.mv(slope * v)
            return v.cpu().numpy()

        def pull(u: np.ndarray) -> np.ndarray:
            count[0] += 1
            u = torch.from_numpy(u.ravel()).to(device)
            for kernel, slope in zip(reversed(kernels[1:]), reversed(slopes), strict=True):
                u = slope * kernel.mv(u)
            return kernels[0].mv(u).cpu().numpy()

        size = problem.width
        operator = LinearOperator((size, size), matvec=push, rmatvec=pull, dtype=np.float32)
        v0 = np.ones(size, np.float32)
        found = svds(
            operator, k=top, ncv=vectors, tol=TOLERANCE, v0=v0, return_singular_vectors=False
        )
        return np.sort(found)[::-1]

    return run
