"""Layers of the user's own as pure functions, from functions, linen modules and nnx modules.

A layer that reads more than trained parameters, such as running statistics or a key, takes bound
parameters, a `Layer`. A module keeps its configuration; if its mode is an argument, the mode is
training.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.errors import InvalidRngError
from jaxtyping import Array, Key, PyTree

from jaxstab.networks.layers import Dropout, Layer, as_layer

Init = Callable[[Key[Array, ""], PyTree], PyTree]
Apply = Callable[[PyTree, PyTree], PyTree]
# names of mode arguments in Flax and in many users' modules: True in training, True in inference
_TRAINING = ("train", "training", "is_training")
_INFERENCE = ("deterministic", "use_running_average")


class OwnLayer(NamedTuple):
    """Layer of the user's own.

    Attributes:
        name: name for messages.
        apply: (bound, h) -> state above, in training mode.
        inference: (bound, h) -> state above, in inference mode.
        update: (bound, h) -> collections after a pass in training mode.
        kind: value that is equal for layers that may be scanned together.
        init: (key, h) -> bound; None for a layer that brings its parameters.
    """

    name: str
    apply: Apply
    inference: Apply
    update: Apply
    kind: Any
    init: Init | None = None


def name_of(layer: Any) -> str:
    """Name a layer for a message.

    Args:
        layer: a function or a module.

    Returns:
        Name of the function or of the module's class.
    """
    return getattr(layer, "__name__", type(layer).__name__)


def of_function(apply: Apply, init: Init | None = None) -> OwnLayer:
    """Make a layer from a pure function.

    Args:
        apply: function of (parameters, h) that returns the state above.
        init: function of (key, h) that returns parameters, or None.

    Returns:
        The layer.
    """

    def plain(bound: PyTree, h: PyTree) -> PyTree:
        return apply(as_layer(bound).params, h)

    return OwnLayer(name_of(apply), plain, plain, _unchanged, (init, apply), init)


def of_linen(module: nn.Module) -> OwnLayer:
    """Make a layer from a linen module.

    Args:
        module: the module.

    Returns:
        The layer.
    """

    def init(key: Key[Array, ""], h: PyTree) -> PyTree:
        drawn = dict(module.init(key, h, **_mode(module, train=True)))
        theta = drawn.pop("params", {})
        if drawn:
            return Layer(theta, drawn)
        return theta

    def passed(module: nn.Module, train: bool) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
        keywords = _mode(module, train)

        def both(bound: PyTree, h: PyTree) -> tuple[PyTree, PyTree]:
            layer = as_layer(bound)
            rest = jax.lax.stop_gradient(layer.batch_stats or {})
            key = layer.dropout and layer.dropout.key
            rngs = {}
            if key is not None:
                rngs = {"dropout": key, "params": key}
            try:
                return module.apply(
                    {"params": layer.params} | rest, h, rngs=rngs, mutable=list(rest), **keywords
                )
            except InvalidRngError as error:
                raise ValueError(
                    f"{name_of(module)} needs a key for random numbers: use chain.bind(params, "
                    "key=...), or chain.inference, which draws none"
                ) from error

        return both

    training = passed(module, True)
    still = passed(_in_inference(module), False)

    def update(bound: PyTree, h: PyTree) -> PyTree:
        if not as_layer(bound).batch_stats:
            return None
        return training(bound, h)[1]

    return OwnLayer(
        name=name_of(module),
        apply=lambda bound, h: training(bound, h)[0],
        inference=lambda bound, h: still(bound, h)[0],
        update=update,
        kind=module,
        init=init,
    )


def of_nnx(module: Any) -> tuple[OwnLayer, PyTree]:
    """Make a layer from an nnx module, or from a function without parameters.

    Args:
        module: the module or function.

    Returns:
        The layer and its parameters.

    Raises:
        ValueError: if the module is neither an nnx module nor a function.
    """
    if not isinstance(module, nnx.Module):
        if not callable(module) or isinstance(module, type | nn.Module):
            raise ValueError(f"must be an nnx module or a function, got {name_of(module)}")
        return of_function(lambda theta, h: module(h))._replace(
            name=name_of(module), kind=module
        ), {}
    # the chain binds the keys of random streams, whose counts start at zero
    graph, theta, streams, rest = _split(module)

    def passed(train: bool) -> Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]:
        keywords = _mode(module, train)

        def both(bound: PyTree, h: PyTree) -> tuple[PyTree, PyTree]:
            layer = as_layer(bound)
            collections: PyTree = nnx.State({})
            if layer.batch_stats is not None:
                collections = jax.lax.stop_gradient(layer.batch_stats)
            states = (layer.params, _keyed(streams, layer.dropout), collections)
            model = nnx.merge(graph, *_own_variables(states))
            if not train:
                model.eval()
            out = model(h, **keywords)
            return out, _split(model)[3]

        return both

    training = passed(True)
    still = passed(False)

    def update(bound: PyTree, h: PyTree) -> PyTree:
        if as_layer(bound).batch_stats is None:
            return None
        return training(bound, h)[1]

    layer = OwnLayer(
        name=name_of(module),
        apply=lambda bound, h: training(bound, h)[0],
        inference=lambda bound, h: still(bound, h)[0],
        update=update,
        kind=graph,
    )
    keys = [leaf for leaf in jax.tree.leaves(streams) if _is_key(leaf)]
    bound: PyTree = theta
    if jax.tree.leaves(rest):
        bound = Layer(theta, rest)
    if keys:
        bound = as_layer(bound)._replace(dropout=Dropout(keys[0]))
    return layer, bound


def _split(module: nnx.Module) -> tuple[Any, PyTree, PyTree, PyTree]:
    """Split a module into graph, parameters, streams of random numbers, and the rest."""
    graph, *states = nnx.split(module, nnx.Param, nnx.RngState, ...)
    theta, streams, rest = states
    return graph, theta, streams, rest


def _own_variables(states: PyTree) -> PyTree:
    """Copy variables, since nnx lets a module change only variables of the current trace."""
    return jax.tree.map(lambda leaf: leaf, states)


def _unchanged(bound: PyTree, h: PyTree) -> PyTree:
    return as_layer(bound).batch_stats


def _is_key(leaf: Array) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _keyed(streams: PyTree, dropout: Dropout | None) -> PyTree:
    """Give each stream of random numbers a key of its own, and reset its count."""
    leaves, tree = jax.tree.flatten(streams)
    if dropout is not None:
        keys = [jax.random.fold_in(dropout.key, i) for i in range(len(leaves))]
        leaves = [
            key if _is_key(leaf) else jnp.zeros_like(leaf)
            for key, leaf in zip(keys, leaves, strict=True)
        ]
    return jax.tree.unflatten(tree, leaves)


def _mode(module: Any, train: bool) -> dict[str, Any]:
    """Return the keywords that set a module's mode, except modes set by an attribute."""
    takes = inspect.signature(type(module).__call__).parameters
    told = dict.fromkeys(_TRAINING, train) | dict.fromkeys(_INFERENCE, not train)
    return {
        name: value
        for name, value in told.items()
        if name in takes and getattr(module, name, None) is None
    }


def _in_inference(module: nn.Module) -> nn.Module:
    """Set every mode attribute of a module and its submodules to inference."""
    told = dict.fromkeys(_TRAINING, False) | dict.fromkeys(_INFERENCE, True)
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name in ("parent", "name") or value is None:
            continue
        if field.name in told:
            new = told[field.name]
        else:
            new = _submodules_in_inference(value)
        if new is not value:
            changes[field.name] = new
    if not changes:
        return module
    return module.clone(**changes)


def _submodules_in_inference(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return _in_inference(value)
    if type(value) in (list, tuple):
        new = [_submodules_in_inference(one) for one in value]
        if all(one is old for one, old in zip(new, value, strict=True)):
            return value
        return type(value)(new)
    if type(value) is dict:
        named = {name: _submodules_in_inference(one) for name, one in value.items()}
        if all(named[name] is value[name] for name in value):
            return value
        return named
    return value
