"""The benchmark's networks in PyTorch: h_0 = x K + b, then h <- phi(h) K + b."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from measuring.machine import CORES

PHI: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "erf": torch.erf,
    "identity": lambda h: h,
}


class Weights(NamedTuple):
    """Kernels [layer, cell, n_in, n_out] and biases [layer, cell, n_out] of the blocks, and of what surrounds them."""

    embed: tuple[torch.Tensor, torch.Tensor]
    blocks: tuple[torch.Tensor, torch.Tensor]
    readout: tuple[torch.Tensor, torch.Tensor]
    x: torch.Tensor
    labels: torch.Tensor


def load(problem: Any, device: str) -> Weights:
    """The problem's arrays as tensors; a result of numbers below float32's normal range takes no detour.

    One thread, until `tuned` tries more.
    """
    torch.set_flush_denormal(True)
    torch.set_num_threads(1)
    tensor = lambda array: torch.from_numpy(array if array.flags.writeable else array.copy()).to(
        device
    )
    pair = lambda dense: (tensor(dense["dense"]["kernel"]), tensor(dense["dense"]["bias"]))
    params = problem.params
    labels = tensor(problem.labels.astype(np.int64))
    return Weights(
        pair(params.embed), pair(params.blocks), pair(params.readout), tensor(problem.x), labels
    )


def one(weights: Weights, cell: int) -> Weights:
    """Those of one cell, without the cell axis."""
    at = lambda pair: tuple(tensor[cell] for tensor in pair)
    blocks = tuple(tensor[:, cell] for tensor in weights.blocks)
    return Weights(
        at(weights.embed), blocks, at(weights.readout), weights.x[cell], weights.labels[cell]
    )


def hidden(phi: Callable, weights: Weights, x: torch.Tensor, depth: int) -> torch.Tensor:
    """h_depth of one network."""
    h = x @ weights.embed[0] + weights.embed[1]
    for kernel, bias in zip(weights.blocks[0][:depth], weights.blocks[1][:depth], strict=True):
        h = phi(h) @ kernel + bias
    return h


def profile(norms: Sequence[torch.Tensor], length: int) -> np.ndarray:
    """Logarithms of norms [layer, ...], NaN up to the length."""
    found = torch.stack([torch.as_tensor(n) for n in norms]).log().cpu().numpy()
    return np.concatenate(
        [found, np.full((length - len(found), *found.shape[1:]), np.nan, found.dtype)]
    )


def tuned(call: Callable[[], Any]) -> Callable[[], Any]:
    """The call on one thread or on all, whichever is faster on this machine: small products lose by threads."""

    def on(threads: int) -> Any:
        torch.set_num_threads(threads)
        try:
            return call()
        finally:
            torch.set_num_threads(1)

    def seconds(threads: int) -> float:
        start = time.perf_counter()
        on(threads)
        return time.perf_counter() - start

    best = min((1, CORES), key=seconds)
    return lambda: on(best)
