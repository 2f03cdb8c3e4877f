"""Chains of the user's own layers: functions, linen modules or nnx modules, trained or not.

Neighbouring blocks with equal configuration and equal shapes of parameters and states are stacked
and scanned. Other blocks stand alone. States may be arrays of any shape or pytrees of arrays, and
may change from layer to layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.core import FrozenDict
from flax.errors import FlaxError
from jaxtyping import Array, Key, PyTree

from jaxstab.activations import Activation, get
from jaxstab.networks.chains import Chain, Params, Segments
from jaxstab.networks.layers import Dropout, as_layer
from jaxstab.networks.modules import Apply, OwnLayer, name_of, of_function, of_linen, of_nnx
from jaxstab.precision import FULL, check_precision

# keywords of `theory.law`
Law = Mapping[str, Any] | None
AnyActivation = str | Activation | Callable[[Array], Array] | None


def from_functions(
    layers: Sequence[Any],
    activation: AnyActivation = None,
    law: Law = None,
    precision: str | None = FULL,
) -> Chain:
    """Make a chain of layers that are pairs of pure functions.

    Args:
        layers: pairs (init, apply) with init: (key, h) -> parameters and apply: (parameters, h) ->
            state above. The first pair is the embedding, the last the readout, the others are
            blocks. Blocks that share both functions are scanned where shapes allow it.
        activation: phi at the input of each block, for saturation and dead units; None for blocks
            without one.
        law: keywords of `theory.law` that describe a block, {"activation": "tanh", "skip": "sum"};
            None for no predictions.
        precision: precision of matrix products, as in `networks.Chain`; a layer that sets its own
            keeps it.

    Returns:
        The chain, whose `chain.init(key, x)` draws parameters.

    Raises:
        ValueError: if there are fewer than three layers, or a layer is not a pair of functions.

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
    for i, layer in enumerate(_listed("layers", layers)):
        if not (isinstance(layer, tuple) and len(layer) == 2 and all(map(callable, layer))):
            raise ValueError(f"layer {i} must be a pair of functions (init, apply), got {layer!r}")
    return _chain([of_function(apply, init) for init, apply in layers], activation, law, precision)


def from_linen(
    modules: Any,
    activation: AnyActivation = None,
    law: Law = None,
    precision: str | None = FULL,
) -> Chain:
    """Make a chain of linen modules, each a layer.

    Collections other than "params", such as running statistics, stay with the parameters and are
    held constant under differentiation. The layers of `chain.update` return what modules write to
    them. `chain.bind(params, key=...)` gives a key to modules that draw random numbers.

    Args:
        modules: embedding, blocks and readout. Blocks that compare equal are scanned where shapes
            allow it.
        activation: phi at the input of each block, for saturation and dead units; None for blocks
            without one.
        law: keywords of `theory.law` that describe a block, {"activation": "tanh", "skip": "sum"};
            None for no predictions.
        precision: precision of matrix products, as in `networks.Chain`; a layer that sets its own
            keeps it.

    Returns:
        The chain, whose `chain.init(key, x)` draws parameters.

    Raises:
        ValueError: if there are fewer than three layers, or a layer is not a linen module.

    Example:
        >>> blocks = [nn.Sequential([nn.tanh, nn.Dense(16)]) for _ in range(8)]
        >>> chain = from_linen([nn.Dense(16), *blocks, nn.Dense(10)])
        >>> chain.init(jax.random.key(0), jnp.ones(5, jnp.float32)).depth
        8
    """
    for i, module in enumerate(_listed("modules", modules)):
        if not isinstance(module, nn.Module):
            raise ValueError(
                f"layer {i} must be a linen module, got {name_of(module)}; use networks.from_nnx "
                "for nnx modules"
            )
    return _chain([of_linen(module) for module in modules], activation, law, precision)


def from_nnx(
    modules: Any,
    x: PyTree = None,
    activation: AnyActivation = None,
    law: Law = None,
    precision: str | None = FULL,
) -> tuple[Chain, Params]:
    """Make a chain of nnx modules, each a layer, with the parameters that they hold.

    Variables other than `nnx.Param`, such as running statistics, stay with the parameters and are
    held constant under differentiation. The layers of `chain.update` return what modules write to
    them.

    Args:
        modules: embedding, blocks and readout, as a list or an `nnx.Sequential`; functions without
            parameters are layers too.
        x: one input, whose shape lets equal neighbours be scanned. Without x every block stands
            alone, and compile time grows with depth.
        activation: phi at the input of each block, for saturation and dead units; None for blocks
            without one.
        law: keywords of `theory.law` that describe a block, {"activation": "tanh", "skip": "sum"};
            None for no predictions.
        precision: precision of matrix products, as in `networks.Chain`; a layer that sets its own
            keeps it.

    Returns:
        The chain and its parameters.

    Raises:
        ValueError: if there are fewer than three layers, a layer is not an nnx module or a
            function, or the shapes of neighbouring layers do not match.

    Example:
        >>> rngs = nnx.Rngs(0)
        >>> blocks = [nnx.Sequential(jnp.tanh, nnx.Linear(16, 16, rngs=rngs)) for _ in range(8)]
        >>> embed, head = nnx.Linear(5, 16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)
        >>> chain, params = from_nnx([embed, *blocks, head], jnp.ones(5, jnp.float32))
        >>> params.depth, len(params.blocks.parts)
        (8, 1)
    """
    if isinstance(modules, nnx.Sequential):
        layers = list(modules.layers)
    else:
        layers = _listed("modules", modules)
    own: list[OwnLayer] = []
    bounds: list[PyTree] = []
    for i, module in enumerate(layers):
        try:
            layer, bound = of_nnx(module)
        except ValueError as error:
            raise ValueError(f"layer {i} {error}") from error
        own.append(layer)
        bounds.append(bound)
    chain = _of(own, activation, law, precision)
    return chain, _params(own, bounds, x)


def from_params(
    applies: Sequence[Any],
    params: Sequence[PyTree],
    x: PyTree = None,
    activation: AnyActivation = None,
    law: Law = None,
    precision: str | None = FULL,
) -> tuple[Chain, Params]:
    """Make a chain of functions and parameters of an existing model.

    Args:
        applies: functions (parameters, h) -> state above of embedding, blocks and readout.
        params: parameters of each layer.
        x: one input, whose shape lets neighbours that share a function be scanned. Without x every
            block stands alone, and compile time grows with depth.
        activation: phi at the input of each block, for saturation and dead units; None for blocks
            without one.
        law: keywords of `theory.law` that describe a block, {"activation": "tanh", "skip": "sum"};
            None for no predictions.
        precision: precision of matrix products, as in `networks.Chain`; a layer that sets its own
            keeps it.

    Returns:
        The chain and its parameters.

    Raises:
        ValueError: if there are fewer than three layers, not as many parameters as functions, or
            the shapes of neighbouring layers do not match.

    Example:
        >>> def dense(w, h):
        ...     return jnp.tanh(h) @ w
        >>> weights = [jnp.ones((5, 4)), jnp.eye(4), jnp.eye(4), jnp.ones((4, 2))]
        >>> chain, params = from_params([dense] * 4, weights, jnp.ones(5))
        >>> params.blocks.parts[0].shape
        (2, 4, 4)
    """
    applies = _listed("applies", applies)
    params = _listed("params", params)
    if len(applies) != len(params):
        raise ValueError(
            f"params must be a list with an entry for each of {len(applies)} functions, got "
            f"{len(params)} entries"
        )
    for i, apply in enumerate(applies):
        if not callable(apply):
            raise ValueError(
                f"layer {i} must be a function (parameters, h) -> h, got {name_of(apply)}"
            )
    own = [of_function(apply) for apply in applies]
    chain = _of(own, activation, law, precision)
    return chain, _params(own, list(params), x)


def _listed(name: str, layers: Any) -> list[Any]:
    if not isinstance(layers, list | tuple):
        raise ValueError(
            f"{name} must be a list of embedding, blocks and readout, got {name_of(layers)}; use "
            "networks.probe for a whole model"
        )
    return list(layers)


def _chain(
    layers: list[OwnLayer], activation: AnyActivation, law: Law, precision: str | None
) -> Chain:
    """Make a chain whose layers draw their parameters from the shape of their input state."""

    def init(key: Key[Array, ""], x: PyTree) -> Params:
        bounds: list[PyTree] = []
        h = _shape(x)
        for i, layer in enumerate(layers):
            assert layer.init is not None
            met = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), h)
            with _named(i, layers, h):
                bounds.append(layer.init(jax.random.fold_in(key, i), met))
            h = _above(i, layers, bounds[-1], h)
        return _params(layers, bounds, x)

    return _of(layers, activation, law, precision)._replace(init=init)


def _of(
    layers: list[OwnLayer], activation: AnyActivation, law: Law, precision: str | None
) -> Chain:
    if law is not None and not (isinstance(law, Mapping) and "activation" in law):
        raise ValueError(
            f'law must be keywords of theory.law, such as {{"activation": "tanh"}}, got {law!r}'
        )
    if len(layers) < 3:
        raise ValueError(
            f"a chain needs at least three layers, embedding, blocks and readout, got {len(layers)}"
        )
    check_precision("precision", precision)
    phi = None if activation is None else get(activation)
    # a chain is hashable, as a static argument of jax.jit has to be
    known: dict[str, Any] = {"law": law and FrozenDict(law), "precision": precision}
    trained = _functions([layer.apply for layer in layers], phi)
    return trained._replace(
        update=_functions([layer.update for layer in layers], None),
        in_inference=_functions([layer.inference for layer in layers], phi)._replace(**known),
        **known,
    )


def _functions(applies: list[Apply], activation: Activation | None) -> Chain:
    return Chain(
        embed=lambda params, x: applies[0](params.embed, x),
        block=tuple(applies[1:-1]),
        readout=lambda params, h: applies[-1](params.readout, h),
        activation=activation,
    )


def _params(layers: list[OwnLayer], bounds: list[PyTree], x: PyTree) -> Params:
    """Arrange parameters, and stack those of equal neighbours."""
    groups = [[i] for i in range(1, len(layers) - 1)]
    if x is not None:
        groups = _groups(layers, bounds, _shape(x))
    parts = [_stacked([bounds[i] for i in group]) for group in groups]
    return Params(bounds[0], Segments(tuple(parts)), bounds[-1])


def _stacked(bounds: list[PyTree]) -> PyTree:
    """Stack equal layers along a leading layer axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *bounds)


def _groups(layers: list[OwnLayer], bounds: list[PyTree], x: PyTree) -> list[list[int]]:
    """Group the numbers of blocks that may be scanned together."""
    states = [x]
    for i, bound in enumerate(bounds):
        states.append(_above(i, layers, bound, states[-1]))
    groups: list[list[int]] = []
    for i in range(1, len(layers) - 1):
        # blocks without parameters have no layer axis that could count them
        alike = (
            bool(groups)
            and bool(jax.tree.leaves(bounds[i]))
            and _equal(layers[i].kind, layers[i - 1].kind)
        )
        if (
            alike
            and _shape(bounds[i]) == _shape(bounds[i - 1])
            and states[i - 1] == states[i] == states[i + 1]
        ):
            groups[-1].append(i)
        else:
            groups.append([i])
    return groups


def _above(i: int, layers: list[OwnLayer], bound: PyTree, h: PyTree) -> PyTree:
    """Return the shape of the state above a layer."""
    with _named(i, layers, h):
        above = jax.eval_shape(
            layers[i].apply, as_layer(bound)._replace(dropout=Dropout(jax.random.key(0))), h
        )
    for leaf in jax.tree.leaves(above):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise ValueError(
                f"layer {i} ({layers[i].name}) must return real states, got {leaf.dtype}; return "
                "real and imaginary parts, or use networks.probe"
            )
    return above


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (TypeError, ValueError):
        # == has no truth value for arrays in the configuration of a module
        return False


def _shape(tree: PyTree) -> PyTree:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), tree
    )


@contextmanager
def _named(i: int, layers: list[OwnLayer], h: PyTree) -> Iterator[None]:
    """Name the layer in the error of a layer that does not take its input state."""
    try:
        yield
    except (TypeError, ValueError, FlaxError) as error:
        before = "the input"
        if i > 0:
            before = f"the output of layer {i - 1} ({layers[i - 1].name})"
        shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(h))
        reason = str(error).strip().splitlines()[0].split(" (https:")[0]
        raise ValueError(
            f"layer {i} ({layers[i].name}) fails on {before}, {shapes}: {reason}"
        ) from error
