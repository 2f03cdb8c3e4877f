"""Chains of the user's own layers: functions, linen modules, nnx modules, trained or not.

Neighbours of equal configuration, whose parameters and states have equal shapes, are stacked and scanned; any other
block stands alone. States may be arrays of any shape or pytrees of them, and may change from layer to layer.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.errors import FlaxError
from jaxtyping import Array, Key, PyTree

from jaxstab.activations import Activation, get
from jaxstab.networks.chains import Chain, Layer, Params, Segments

Init = Callable[[Key[Array, ""], PyTree], PyTree]
Apply = Callable[[PyTree, PyTree], PyTree]
AnyActivation = str | Activation | Callable[[Array], Array] | None


def from_functions(layers: Sequence[Any], activation: AnyActivation = None) -> Chain:
    """Make a chain of layers that are pairs of pure functions.

    Args:
        layers: pairs (init, apply), init: (key, h) -> parameters, apply: (parameters, h) -> state above. The first is
            the embedding, the last the readout, those between are the blocks. Blocks that share both functions are
            scanned where shapes allow it.
        activation: phi at the head of each block, for saturation and dead units; None where there is no such thing.

    Returns:
        The chain; `chain.init(key, x)` draws its parameters.

    Raises:
        ValueError: if there are fewer than three layers, or one is not a pair of functions.

    Example:
        >>> def init(key, h):
        ...     return {"w": jax.random.normal(key, (h.size, 8)) / h.size**0.5}
        >>> def apply(theta, h):
        ...     return jnp.tanh(h) @ theta["w"]
        >>> chain = from_functions([(init, apply)] * 6)
        >>> params = chain.init(jax.random.key(0), jnp.ones(3))
        >>> params.depth, [part["w"].shape for part in params.blocks.parts]
        (4, [(4, 8, 8)])
    """
    for i, layer in enumerate(layers):
        if not (isinstance(layer, tuple) and len(layer) == 2 and all(map(callable, layer))):
            raise ValueError(f"layer {i} must be a pair of functions (init, apply), got {layer!r}")
    inits = [init for init, _ in layers]
    applies = [apply for _, apply in layers]
    return _chain(inits, applies, list(layers), activation)


def from_linen(modules: Sequence[Any], activation: AnyActivation = None) -> Chain:
    """Make a chain of linen modules, each a layer.

    Collections besides "params", such as running statistics, go along with the parameters and are not differentiated
    by; what a module writes to them is dropped. A module that draws random numbers has to be deterministic.

    Args:
        modules: embedding, blocks and readout. Blocks that compare equal are scanned where shapes allow it.
        activation: phi at the head of each block, for saturation and dead units; None where there is no such thing.

    Returns:
        The chain; `chain.init(key, x)` draws its parameters.

    Raises:
        ValueError: if there are fewer than three layers, or one is not a linen module.

    Example:
        >>> blocks = [nn.Sequential([nn.tanh, nn.Dense(16)]) for _ in range(8)]
        >>> chain = from_linen([nn.Dense(16), *blocks, nn.Dense(10)])
        >>> chain.init(jax.random.key(0), jnp.ones(5, jnp.float32)).depth
        8
    """
    for i, module in enumerate(modules):
        if not isinstance(module, nn.Module):
            raise ValueError(f"layer {i} must be a linen module, got {_kind(module)}; networks.from_nnx takes nnx's")
    return _chain(
        [_linen_init(module) for module in modules],
        [_linen_apply(module) for module in modules],
        list(modules),
        activation,
    )


def from_nnx(modules: Any, x: PyTree = None, activation: AnyActivation = None) -> tuple[Chain, Params]:
    """Make a chain of nnx modules, each a layer, with the parameters that they hold.

    Variables that are not `nnx.Param`, such as running statistics, go along and are not differentiated by; what a
    module writes to them is dropped.

    Args:
        modules: embedding, blocks and readout, or an `nnx.Sequential` of them; functions without parameters count too.
        x: one input, for its shape: equal neighbours are then scanned. None, and every block stands alone: compile
            time grows with depth.
        activation: phi at the head of each block, for saturation and dead units; None where there is no such thing.

    Returns:
        The chain and its parameters.

    Raises:
        ValueError: if there are fewer than three layers, one is not an nnx module or a function, or shapes do not
            chain.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> blocks = [nnx.Sequential(jnp.tanh, nnx.Linear(16, 16, rngs=rngs)) for _ in range(8)]
        >>> embed, head = nnx.Linear(5, 16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)
        >>> chain, params = from_nnx([embed, *blocks, head], jnp.ones(5, jnp.float32))
        >>> params.depth, len(params.blocks.parts)
        (8, 1)
    """
    layers = list(modules.layers) if isinstance(modules, nnx.Sequential) else list(modules)
    graphs: list[Any] = []
    bounds: list[PyTree] = []
    for i, module in enumerate(layers):
        if isinstance(module, nnx.Module):
            graph, *states = nnx.split(module, nnx.Param, ...)
            theta, rest = states
            graphs.append(graph)
            bounds.append(Layer(theta, rest) if jax.tree.leaves(rest) else theta)
        elif callable(module) and not isinstance(module, (type, nn.Module)):
            graphs.append(module)
            bounds.append({})
        else:
            raise ValueError(f"layer {i} must be an nnx module or a function, got {_kind(module)}")
    applies = [_nnx_apply(graph) for graph in graphs]
    params = _params(applies, bounds, graphs, list(map(_kind, layers)), x)
    return _of(applies, activation), params


def from_params(
    applies: Sequence[Any], params: Sequence[PyTree], x: PyTree = None, activation: AnyActivation = None
) -> tuple[Chain, Params]:
    """Make a chain of functions and parameters of a model that is already there.

    Args:
        applies: for each layer, (parameters, h) -> state above: embedding, blocks and readout.
        params: for each layer, its parameters.
        x: one input, for its shape: neighbours that share a function are then scanned. None, and every block stands
            alone: compile time grows with depth.
        activation: phi at the head of each block, for saturation and dead units; None where there is no such thing.

    Returns:
        The chain and its parameters.

    Raises:
        ValueError: if there are fewer than three layers, not as many parameters as functions, or shapes do not chain.

    Example:
        >>> def dense(w, h):
        ...     return jnp.tanh(h) @ w
        >>> weights = [jnp.ones((5, 4)), jnp.eye(4), jnp.eye(4), jnp.ones((4, 2))]
        >>> chain, params = from_params([dense] * 4, weights, jnp.ones(5))
        >>> params.blocks.parts[0].shape
        (2, 4, 4)
    """
    if len(applies) != len(params):
        raise ValueError(f"needs parameters for each layer, got {len(applies)} functions and {len(params)} parameters")
    for i, apply in enumerate(applies):
        if not callable(apply):
            raise ValueError(f"layer {i} must be a function (parameters, h) -> h, got {_kind(apply)}")
    functions = list(applies)
    return _of(functions, activation), _params(functions, list(params), functions, list(map(_kind, functions)), x)


def _chain(inits: list[Init], applies: list[Apply], layers: list[Any], activation: AnyActivation) -> Chain:
    """The chain of layers that draw parameters at the state that they meet."""

    def init(key: Key[Array, ""], x: PyTree) -> Params:
        bounds: list[PyTree] = []
        h = _shape(x)
        for i, (draw, apply) in enumerate(zip(inits, applies, strict=True)):
            met = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), h)
            with _named(i, names, h):
                bounds.append(draw(jax.random.fold_in(key, i), met))
                h = jax.eval_shape(apply, bounds[-1], h)
        return _params(applies, bounds, layers, names, x)

    names = [_kind(layer[1] if isinstance(layer, tuple) else layer) for layer in layers]
    return _of(applies, activation)._replace(init=init)


def _of(applies: list[Apply], activation: AnyActivation) -> Chain:
    if len(applies) < 3:
        raise ValueError(f"a chain has an embedding, blocks and a readout: three layers at least, got {len(applies)}")
    return Chain(
        embed=lambda params, x: applies[0](params.embed, x),
        block=tuple(applies[1:-1]),
        readout=lambda params, h: applies[-1](params.readout, h),
        activation=None if activation is None else get(activation),
    )


def _params(applies: list[Apply], bounds: list[PyTree], layers: list[Any], names: list[str], x: PyTree) -> Params:
    """The parameters, those of equal neighbours stacked."""
    if x is None:
        groups = [[i] for i in range(1, len(applies) - 1)]
    else:
        groups = _groups(applies, bounds, layers, names, _shape(x))
    parts = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *[bounds[i] for i in group]) for group in groups]
    return Params(bounds[0], Segments(tuple(parts)), bounds[-1])


def _groups(
    applies: list[Apply], bounds: list[PyTree], layers: list[Any], names: list[str], x: PyTree
) -> list[list[int]]:
    """Blocks that may be scanned together, by number of layer."""
    states = [x]
    for i, (apply, bound) in enumerate(zip(applies, bounds, strict=True)):
        with _named(i, names, states[-1]):
            states.append(jax.eval_shape(apply, bound, states[-1]))
    groups: list[list[int]] = []
    for i in range(1, len(applies) - 1):
        # without parameters there is no layer axis to tell how many they are
        alike = bool(groups) and bool(jax.tree.leaves(bounds[i])) and _equal(layers[i], layers[i - 1])
        if alike and _shape(bounds[i]) == _shape(bounds[i - 1]) and states[i - 1] == states[i] == states[i + 1]:
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError):
        # arrays in the configuration of a module are not told apart by ==
        return False


def _shape(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree)


@contextmanager
def _named(i: int, names: list[str], h: PyTree) -> Iterator[None]:
    """Say which layer does not take the state that it meets."""
    try:
        yield
    except (TypeError, ValueError, FlaxError) as error:
        before = f"layer {i - 1} ({names[i - 1]})" if i else "the input"
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(h))
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"layer {i} ({names[i]}) does not take what {before} gives, {shapes}: {reason}") from error


def _linen_init(module: nn.Module) -> Init:
    def init(key: Key[Array, ""], h: PyTree) -> PyTree:
        drawn = dict(module.init(key, h))
        theta = drawn.pop("params", {})
        return Layer(theta, drawn) if drawn else theta

    return init


def _linen_apply(module: nn.Module) -> Apply:
    def apply(bound: PyTree, h: PyTree) -> PyTree:
        layer = bound if isinstance(bound, Layer) else Layer(bound)
        rest = jax.lax.stop_gradient(layer.batch_stats or {})
        variables = {"params": layer.params} | rest
        if rest:
            return module.apply(variables, h, mutable=list(rest))[0]
        return module.apply(variables, h)

    return apply


def _nnx_apply(graph: Any) -> Apply:
    def apply(bound: PyTree, h: PyTree) -> PyTree:
        if not isinstance(graph, nnx.GraphDef):
            return graph(h)
        layer = bound if isinstance(bound, Layer) else Layer(bound, nnx.State({}))
        return nnx.merge(graph, layer.params, jax.lax.stop_gradient(layer.batch_stats))(h)

    return apply


def _kind(layer: Any) -> str:
    return getattr(layer, "__name__", type(layer).__name__)
