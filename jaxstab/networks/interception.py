"""Unmodified models as pure functions whose submodules tag their outputs."""

import contextlib
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
from flax import linen as nn
from flax import nnx
from jaxtyping import PyTree

from jaxstab.activations import Activation
from jaxstab.networks.chains import Chain, Params, layers_of
from jaxstab.networks.family import chain
from jaxstab.networks.folds import state
from jaxstab.networks.perceptron import MLP
from jaxstab.networks.tagged import tag

# prefix of the names of our own tags
_OURS = "jaxstab:"
# prefix of the names of our scopes, which carry the path of the running submodule
_SCOPE = "jaxstab@"
# kinds of logits: of any softmax, and of a softmax whose weights average over positions
SOFTMAX = "softmax"
ATTENTION = "attention"
# kinds of the sites of a chain to which its activation is applied
EMBED = "embed"
BLOCK = "block"


class Model(NamedTuple):
    """Model as a pure function of theta (trained parameters) and rest (its other variables).

    Attributes:
        call: function of (theta, rest, inputs, rngs) that returns (output, changed rest).
        split: function of the user's parameters that returns (theta, rest).
        join: function of (theta, rest) that returns the user's parameters.
        owners: function of theta that lists, for each leaf, the path of the submodule that owns it.
        activation: activation applied to the states of a chain; None where unknown.
        chain: the model itself if it is a chain, else None.
        scopes: True if scopes of `jax.named_scope` replace submodules where the model has no tags.
    """

    call: Callable[[PyTree, PyTree, tuple, PyTree], tuple[PyTree, PyTree]]
    split: Callable[[PyTree], tuple[PyTree, PyTree]]
    join: Callable[[PyTree, PyTree], PyTree]
    owners: Callable[[PyTree], list[str]]
    activation: Activation | None = None
    chain: Chain | None = None
    scopes: bool = False


class Label(NamedTuple):
    """Content of a tag's name.

    Attributes:
        path: path of the submodule, "encoder/Dense_0"; "" for the model itself; the name of an
            explicit tag.
        kind: class of the submodule; "tag" for an explicit tag.
        suffix: name of the method, unless it is `__call__`, and key of the value in its output.
    """

    path: str
    kind: str
    suffix: str


def label_of(name: str) -> Label:
    """Parse the name of a tag.

    Args:
        name: name of the tag.

    Returns:
        Path, kind and suffix.
    """
    if not name.startswith(_OURS):
        return Label(name, "tag", "")
    # the key of the value within a tree follows the JSON of the name
    (path, kind, method), end = json.JSONDecoder().raw_decode(name, len(_OURS))
    return Label(path, kind, ("" if method == "__call__" else f".{method}") + name[end:])


def softmax_name(stack: str, kind: str = SOFTMAX) -> str:
    """Name the tag of a softmax's logits.

    Args:
        stack: JAX's name stack at the softmax.
        kind: `SOFTMAX` or `ATTENTION`.

    Returns:
        Name that `label_of` parses.
    """
    scopes = re.findall(f"{_SCOPE}([^/()]*)", stack)
    path = scopes[-1].replace("|", "/") if scopes else ""
    return _OURS + json.dumps([path, kind, "logits"])


def scope_name(path: str) -> str:
    """Name the tag of a value that leaves a scope of the user's.

    Args:
        path: names of the scopes around the value, joined by "/".

    Returns:
        Name that `label_of` parses.
    """
    return _OURS + json.dumps([path, "scope", "__call__"])


def _scope(path: str) -> contextlib.AbstractContextManager:
    """Open a scope that carries the path of a submodule."""
    return jax.named_scope(_SCOPE + path.replace("/", "|"))


def inputs_of(x: PyTree) -> tuple:
    """List the inputs of a probed model.

    Args:
        x: one input, or a tuple of inputs.

    Returns:
        The tuple.
    """
    if isinstance(x, tuple):
        return x
    return (x,)


def model_of(model: Any, keywords: Mapping[str, Any]) -> Model:
    """Convert an unmodified model to a pure function.

    Args:
        model: a linen module, an nnx module, a chain, or a function (params, *inputs) -> output.
        keywords: static arguments of the model's call.

    Returns:
        The pure function, with functions that split and join its parameters.

    Raises:
        ValueError: if the model is none of these.
    """
    if isinstance(model, Chain):
        return _chain(model)
    if isinstance(model, MLP):
        return _chain(chain(model, **keywords))
    if isinstance(model, nn.Module):
        return _linen(model, keywords)
    if isinstance(model, nnx.Module):
        return _nnx(model, keywords)
    if callable(model) and not isinstance(model, type):
        return _function(model, keywords)
    wanted = "a linen module, an nnx module, a chain or a function (params, x) -> y"
    raise ValueError(f"a model must be {wanted}, got {type(model).__name__}")


def _named(path: str, kind: str, method: str, output: PyTree) -> PyTree:
    return tag(_OURS + json.dumps([path, kind, method]), output)


def _is_public(method: str) -> bool:
    return method == "__call__" or not method.startswith("_")


def _linen(module: nn.Module, keywords: Mapping[str, Any]) -> Model:
    def call(theta: PyTree, rest: PyTree, inputs: tuple, rngs: PyTree) -> tuple[PyTree, PyTree]:
        variables = {"params": theta} | rest
        with nn.intercept_methods(_tagging()):
            return module.apply(
                variables, *inputs, rngs=rngs or None, mutable=list(rest), **keywords
            )

    def split(params: PyTree) -> tuple[PyTree, PyTree]:
        if not (isinstance(params, Mapping) and "params" in params):
            raise ValueError(
                'params of a linen module must be its variables, a dict with "params", got '
                f"{_described(params)}"
            )
        rest = dict(params)
        theta = rest.pop("params")
        return theta, rest

    return Model(call, split, lambda theta, rest: {"params": theta} | rest, _owners)


def _tagging() -> Callable:
    """Make an interceptor of methods that tags the outputs of public methods."""
    active: list[tuple[tuple[str, ...], str]] = []

    def tagging(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        module = context.module
        method = context.method_name
        if method == "setup" or not _is_public(method):
            return call(*args, **kwargs)
        here = (module.path, method)
        # a method that calls the method of its parent class has one output, not two
        inherited = bool(active) and active[-1] == here
        active.append(here)
        try:
            with _scope("/".join(module.path)):
                output = call(*args, **kwargs)
        finally:
            active.pop()
        if inherited:
            return output
        return _named("/".join(module.path), type(module).__name__, method, output)

    return tagging


def _owners(theta: PyTree) -> list[str]:
    """List the path of each leaf without its last key; a boxed leaf counts as one."""
    boxed = jax.tree_util.tree_leaves_with_path(
        theta, is_leaf=lambda leaf: isinstance(leaf, nn.meta.AxisMetadata)
    )
    paths = [path[:-1] for path, box in boxed for _ in jax.tree.leaves(box)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def _nnx(module: nnx.Module, keywords: Mapping[str, Any]) -> Model:
    graph, *states = nnx.split(module, nnx.Param, ...)
    own = states[1]

    def call(theta: PyTree, rest: PyTree, inputs: tuple, rngs: PyTree) -> tuple[PyTree, PyTree]:
        copy = nnx.merge(graph, theta, rest)
        _tag_methods(copy)
        output = copy(*inputs, **({"rngs": nnx.Rngs(**rngs)} if rngs else {}), **keywords)
        return output, nnx.state(copy, _not_param)

    def split(params: PyTree) -> tuple[PyTree, PyTree]:
        if isinstance(params, nnx.Module):
            params = nnx.state(params)
        if params is None:
            params = nnx.state(module)
        if not isinstance(params, nnx.State):
            raise ValueError(
                "params of an nnx module must be an nnx.State, or None for the module's own, got "
                f"{_described(params)}"
            )
        theta, *others = nnx.split_state(params, nnx.Param, ...)
        return theta, others[0] if jax.tree.leaves(others) else own

    return Model(call, split, nnx.merge_state, _nnx_owners)


def _not_param(path: Any, value: Any) -> bool:
    return not isinstance(value, nnx.Param)


def _nnx_owners(theta: PyTree) -> list[str]:
    """List the path of each variable's leaf without the variable's name."""
    variables = jax.tree_util.tree_leaves_with_path(
        theta, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)
    )
    paths = [path[:-1] for path, variable in variables for _ in jax.tree.leaves(variable)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def _tag_methods(module: nnx.Module) -> None:
    """Make the public methods of a module and its submodules tag their outputs.

    Each object gets a derived class of its own, so that no other object changes.
    """
    for path, submodule in nnx.iter_modules(module):
        if _public_methods(type(submodule)):
            derived = _tagged_class(type(submodule), "/".join(map(str, path)))
            object.__setattr__(submodule, "__class__", derived)


@functools.lru_cache(4096)
def _tagged_class(kind: type, path: str) -> type:
    """Derive a class whose public methods also tag their outputs."""

    def tagged(method: str, function: Callable) -> Callable:
        @functools.wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            with _scope(path):
                output = function.__get__(self, type(self))(*args, **kwargs)
            return _named(path, kind.__name__, method, output)

        return call

    body: dict[str, Any] = {
        method: tagged(method, function) for method, function in _public_methods(kind)
    }
    body |= {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
    return type(kind)(kind.__name__, (kind,), body)


@functools.lru_cache(4096)
def _public_methods(kind: type) -> list[tuple[str, Callable]]:
    """List the public methods that a class of modules adds to `nnx.Module`."""

    def own() -> Iterator[tuple[str, Callable]]:
        for name in dict.fromkeys(name for base in kind.__mro__ for name in vars(base)):
            function = inspect.getattr_static(kind, name)
            inherited = inspect.getattr_static(nnx.Module, name, None)
            if _is_public(name) and _is_method(function) and function is not inherited:
                yield name, function

    containers = tuple(getattr(nnx, name) for name in ("List", "Dict") if hasattr(nnx, name))
    if issubclass(kind, containers):
        return []
    return list(own())


def _is_method(attribute: Any) -> bool:
    """Return True if a class attribute is a method, plain or wrapped, such as by `nnx.jit`."""
    wrapped = callable(attribute) and hasattr(attribute, "__wrapped__")
    return inspect.isfunction(attribute) or (
        wrapped and not isinstance(attribute, staticmethod | classmethod | type)
    )


def _function(function: Callable, keywords: Mapping[str, Any]) -> Model:
    def call(theta: PyTree, rest: PyTree, inputs: tuple, rngs: PyTree) -> tuple[PyTree, PyTree]:
        return function(theta, *inputs, **({"rngs": rngs} if rngs else {}), **keywords), rest

    return Model(call, lambda params: (params, {}), lambda theta, rest: theta, _owners, scopes=True)


def _chain(network: Chain) -> Model:
    def call(theta: PyTree, rest: PyTree, inputs: tuple, rngs: PyTree) -> tuple[PyTree, PyTree]:
        def named(path: str, kind: str, layer: Callable) -> Callable:
            def call(*given: Any) -> PyTree:
                with _scope(path):
                    output = layer(*given)
                return _named(path, kind, "__call__", output)

            return call

        if isinstance(network.block, tuple):
            parts = [
                f"blocks/parts/{i}"
                for i, part in enumerate(theta.blocks.parts)
                for _ in range(layers_of(part))
            ]
            block: Any = tuple(
                named(path, BLOCK, one) for path, one in zip(parts, network.block, strict=True)
            )
        else:
            block = named("blocks", BLOCK, network.block)
        tagged = network._replace(
            embed=named("embed", EMBED, network.embed),
            block=block,
            readout=named("readout", "readout", network.readout),
        )
        return tagged.readout(theta, state(tagged, theta, *inputs)), rest

    def split(params: PyTree) -> tuple[PyTree, PyTree]:
        if not isinstance(params, Params):
            raise ValueError(
                "params of a chain must be networks.Params(embed, blocks, readout), got "
                f"{_described(params)}"
            )
        return params, {}

    return Model(
        call, split, lambda theta, rest: theta, _layers_of_leaves, network.activation, network
    )


def _layers_of_leaves(params: Params) -> list[str]:
    """List, for each leaf of a chain's parameters, the path of its layer or segment."""
    layers = []
    for keys, _ in jax.tree_util.tree_leaves_with_path(params):
        path = jax.tree_util.keystr(keys, simple=True, separator="/").split("/")
        in_segment = path[:2] == ["blocks", "parts"]
        layers.append("/".join(path[: 3 if in_segment else 1]))
    return layers


def _described(params: PyTree) -> str:
    if isinstance(params, Mapping):
        keys = f" of {', '.join(map(str, params))}"
    else:
        keys = ""
    return type(params).__name__ + keys
