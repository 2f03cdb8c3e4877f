"""PyTorch: modules trained one network after the other, and ensembles of all networks of a depth."""

import sys
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from measuring.machine import CORES, on_every_core
from torch.func import grad_and_value, vmap
from training_runs.problem import LEARNING_RATE, Problem, Result, Weights

# a setting whose first attempt takes so many times what the best has taken is out
PATIENCE = 1.5


class Setting(NamedTuple):
    """How the networks of a depth are trained.

    Attributes:
        trainer: (weights [cell, ...], x, y, batches) -> losses [cell, step], which are right [cell, example].
        at_once: networks in a call.
        threads: PyTorch's own, in a call.
        apart: whether a Python thread per core takes some of the networks.
    """

    trainer: Callable
    at_once: int
    threads: int = 1
    apart: bool = False

    def __str__(self) -> str:
        return f"{self.trainer.__name__} of {self.at_once}, " + (
            "a Python thread per core" if self.apart else f"{self.threads} threads"
        )


def settings(trainers: Sequence[Callable], sizes: Sequence[int], device: str) -> list[Setting]:
    """All there are: on a CPU without threads, with some around operations, with some inside them."""
    ways = (
        [(1, False)] if device != "cpu" or CORES == 1 else [(1, False), (1, True), (CORES, False)]
    )
    return [Setting(trainer, size, *way) for trainer in trainers for size in sizes for way in ways]


class Trained:
    """The call that trains all networks, each depth in a setting of its own."""

    def __init__(self, problem: Problem, device: str, choices: Sequence[Setting]) -> None:
        # results below float32's normal range take no detour
        torch.set_flush_denormal(True)
        tensor = lambda a: torch.from_numpy(np.ascontiguousarray(a)).to(device)
        self.weights = {
            depth: _tree(tensor, problem.weights(depth).listed()) for depth in problem.depths
        }
        self.data = (
            tensor(problem.x),
            tensor(problem.y.astype(np.int64)),
            tensor(problem.batches.astype(np.int64)),
        )
        self.choices, self.chosen = choices, dict.fromkeys(problem.depths, choices[0])
        self.accuracy = problem.accuracy

    def __call__(self) -> Result:
        losses, hits = zip(
            *(self._depth(depth, self.chosen[depth], None) for depth in self.weights), strict=True
        )
        return Result(np.stack(losses), self.accuracy(np.stack(hits)))

    def tune(self, steps: int = 4) -> "Trained":
        """Choose by a few steps of every depth, the best of two attempts."""
        for depth in self.weights:
            seconds: dict[Setting, float] = {}
            for choice in self.choices:
                seconds[choice] = self._seconds(depth, choice, steps)
                if seconds[choice] < PATIENCE * min(seconds.values()):
                    seconds[choice] = min(seconds[choice], self._seconds(depth, choice, steps))
            self.chosen[depth] = min(seconds, key=seconds.__getitem__)
            print(f"    depth {depth}: {self.chosen[depth]}", file=sys.stderr, flush=True)
        return self

    def _seconds(self, depth: int, choice: Setting, steps: int) -> float:
        start = time.perf_counter()
        self._depth(depth, choice, steps)
        return time.perf_counter() - start

    def _depth(
        self, depth: int, choice: Setting, steps: int | None
    ) -> tuple[np.ndarray, np.ndarray]:
        weights, (x, y, batches) = self.weights[depth], self.data
        cells = len(weights.embed[0])

        def some(part: slice) -> list[tuple[np.ndarray, ...]]:
            torch.set_num_threads(choice.threads)
            found = []
            for start in range(part.start, part.stop, choice.at_once):
                group = slice(start, min(start + choice.at_once, part.stop))
                own = _tree(lambda t, group=group: t[group].clone(), weights)
                found.append(
                    tuple(t.cpu().numpy() for t in choice.trainer(own, x, y, batches[:steps]))
                )
            return found

        try:
            parts = on_every_core(some, cells) if choice.apart else [some(slice(0, cells))]
        finally:
            torch.set_num_threads(1)
        return tuple(
            np.concatenate(arrays)
            for arrays in zip(*(f for part in parts for f in part), strict=True)
        )


def loop(problem: Problem, device: str) -> Trained:
    """Modules and torch.optim.SGD, one network after the other."""
    return Trained(problem, device, settings([module], [1], device))


def ensemble(problem: Problem, device: str) -> Trained:
    """All networks of a depth at once, or four at a time."""
    sizes = dict.fromkeys((problem.cells, min(4, problem.cells)))
    return Trained(problem, device, settings([by_hand, functional], list(sizes), device))


def _tree(function: Callable, weights: Weights) -> Weights:
    pair = lambda both: (function(both[0]), function(both[1]))
    return Weights(
        pair(weights.embed), [pair(both) for both in weights.blocks], pair(weights.readout)
    )


def _layers(weights: Weights) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [weights.embed, *weights.blocks, weights.readout]


def module(weights: Weights, x: torch.Tensor, y: torch.Tensor, batches: torch.Tensor) -> tuple:
    """torch.nn.Sequential of one network, an optimiser, and the loop of the tutorials."""
    made: list[torch.nn.Module] = []
    for kernel, bias in _layers(weights):
        with torch.device("meta"):
            linear = torch.nn.Linear(*kernel.shape[1:])
        linear.weight, linear.bias = (
            torch.nn.Parameter(kernel[0].T.contiguous()),
            torch.nn.Parameter(bias[0]),
        )
        made += [linear, torch.nn.Tanh()]
    net, losses = torch.nn.Sequential(*made[:-1]), []
    optimiser = torch.optim.SGD(net.parameters(), lr=LEARNING_RATE)
    for examples in batches:
        logits = net(x[examples])
        loss = F.cross_entropy(logits, y[examples])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    with torch.no_grad():
        return torch.stack(losses)[None], (net(x).argmax(-1) == y)[None]


def by_hand(weights: Weights, x: torch.Tensor, y: torch.Tensor, batches: torch.Tensor) -> tuple:
    """Batched products written out, with autograd: the gradient of the sum of losses is that of each."""
    layers, losses = (
        [(k.requires_grad_(), b[:, None].requires_grad_()) for k, b in _layers(weights)],
        [],
    )
    trained, nets = [t for pair in layers for t in pair], len(weights.embed[0])

    def forwards(x: torch.Tensor) -> torch.Tensor:
        h = torch.baddbmm(layers[0][1], x.expand(nets, -1, -1), layers[0][0])
        for kernel, bias in layers[1:]:
            h = torch.baddbmm(bias, torch.tanh(h), kernel)
        return h

    for examples in batches:
        logits = forwards(x[examples]).flatten(0, 1)
        each = (
            F.cross_entropy(logits, y[examples].repeat(nets), reduction="none")
            .view(nets, -1)
            .mean(1)
        )
        grads = torch.autograd.grad(each.sum(), trained)
        with torch.no_grad():
            torch._foreach_add_(trained, grads, alpha=-LEARNING_RATE)
        losses.append(each.detach())
    with torch.no_grad():
        return torch.stack(losses, 1), forwards(x).argmax(-1) == y


def functional(weights: Weights, x: torch.Tensor, y: torch.Tensor, batches: torch.Tensor) -> tuple:
    """torch.func: vmap over networks of the gradient of one."""

    def forwards(layers: list, x: torch.Tensor) -> torch.Tensor:
        h = torch.addmm(layers[0][1], x, layers[0][0])
        for kernel, bias in layers[1:]:
            h = torch.addmm(bias, torch.tanh(h), kernel)
        return h

    layers, losses = _layers(weights), []
    loss = lambda layers, x, y: F.cross_entropy(forwards(layers, x), y)
    step = vmap(grad_and_value(loss), in_dims=(0, None, None))
    trained = [t for pair in layers for t in pair]
    for examples in batches:
        grads, each = step(layers, x[examples], y[examples])
        torch._foreach_add_(trained, [t for pair in grads for t in pair], alpha=-LEARNING_RATE)
        losses.append(each)
    return torch.stack(losses, 1), vmap(forwards, in_dims=(0, None))(layers, x).argmax(-1) == y
