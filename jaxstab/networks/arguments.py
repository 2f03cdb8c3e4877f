"""Checks of the arguments of functions that take a network.

A wrong model, wrong parameters or a batch in place of one input is refused in one line, before
anything is computed.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
from flax.errors import FlaxError

from jaxstab.arguments import explained, is_ours
from jaxstab.checks import check_floating
from jaxstab.precision import at_precision_of

P = ParamSpec("P")
R = TypeVar("R")

_OWN = "for your own layers use networks.from_linen([...]), from_nnx, from_functions or from_params"
_PROBED = (
    ": propagation and spectra.jacobian take probes, and curvature takes the function that "
    "probe.function(params) gives"
)


def takes_network(
    chain: type,
    params: type,
    mlp: type,
    one_input: bool,
    as_vectors: Callable | None = None,
    walk: Callable | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Make the decorator that checks arguments called network, chain, params, mlp and x.

    What it decorates multiplies matrices at the precision of its network.

    Args:
        chain: the class of chains.
        params: the class of their parameters.
        mlp: the class of this house's networks.
        one_input: whether x is one input, not a batch.
        as_vectors: (chain, params, x) -> the chain of vectors and x, for layers of the user's own
            at one input.
        walk: (chain, params, x) -> raises in one line where a layer of the user's own does not take
            what it meets.

    Returns:
        The decorator.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        function = explained(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                call = signature.bind(*args, **kwargs)
                given = call.arguments
            except TypeError:
                # a missing or an unknown argument: Python's own message names it
                return function(*args, **kwargs)
            _check_models(given, chain, mlp)
            _check_params(given, params)
            own = given.get("chain", given.get("network", given.get("mlp")))
            blocks = getattr(own, "block", None)
            if blocks is not None and "params" in given:
                _check_kind(isinstance(blocks, tuple), hasattr(given["params"].blocks, "parts"))
            if as_vectors and isinstance(given["chain"].block, tuple):
                given["chain"], given["x"] = as_vectors(given["chain"], given["params"], given["x"])
                with at_precision_of(own):
                    return function(*call.args, **call.kwargs)
            if one_input and hasattr(given["x"], "shape") and jnp.ndim(given["x"]) != 1:
                raise ValueError(
                    f"x must be one input [d_in], got shape {jnp.shape(given['x'])}; use jax.vmap "
                    "over a batch, or networks.flatten if blocks mix examples"
                )
            try:
                with at_precision_of(own):
                    return function(*args, **kwargs)
            except Exception as error:
                x = given.get("x", given.get("x1"))
                own_layers = isinstance(blocks, tuple) and x is not None and "params" in given
                if walk and own_layers and isinstance(error, TypeError | FlaxError):
                    walk(own, given["params"], x)
                if getattr(own, "family", own) is not None and not is_ours(error):
                    _check_inputs(given)
                raise

        return checked

    return decorate


def _check_models(given: dict[str, Any], chain: type, mlp: type) -> None:
    _check_model(given, "mlp", mlp, chain, f"networks.MLP; {_OWN}")
    _check_model(
        given,
        "chain",
        chain,
        mlp,
        f"networks.Chain, as networks.chain(mlp) makes it; {_OWN}",
    )
    if not isinstance(given.get("network"), mlp | chain | None):
        raise ValueError(
            "network must be a networks.MLP or a networks.Chain, got "
            f"{_kind(given['network'])}: {_OWN}"
        )


def _check_model(given: dict[str, Any], name: str, wanted: type, other: type, words: str) -> None:
    if name not in given or isinstance(given[name], wanted):
        return
    model = given[name]
    if isinstance(model, other):
        hint = "networks.chain(mlp) makes a chain of it"
        if name == "mlp":
            hint = "call init and bind of the chain"
        raise ValueError(
            f"{name} must be a networks.{wanted.__name__}, got a networks.{other.__name__}: {hint}"
        )
    # a probe, whose file is above this one
    hint = _PROBED if hasattr(model, "sites") and hasattr(model, "function") else ""
    raise ValueError(f"{name} must be a {words}, got {_kind(model)}{hint}")


def _check_kind(own_chain: bool, own_params: bool) -> None:
    if own_chain != own_params:
        names = {True: "layers of your own", False: "a networks.MLP"}
        raise ValueError(
            f"params must be those of the chain, of {names[own_chain]}, got params of "
            f"{names[own_params]}"
        )


def _check_params(given: dict[str, Any], wanted: type) -> None:
    if "params" in given and not isinstance(given["params"], wanted):
        raise ValueError(
            "params must be networks.Params(embed, blocks, readout), as from chain.init(key, x), "
            f"got {_kind(given['params'])}"
        )


def _check_inputs(given: dict[str, Any]) -> None:
    """Check that inputs of this house's networks are arrays, as wide as the parameters take."""
    # the only matrix of an embedding is its kernel
    kernels = []
    if "params" in given:
        leaves = jax.tree.leaves(given["params"].embed)
        kernels = [leaf for leaf in leaves if jnp.ndim(leaf) == 2]
    for name in ("x", "x1", "x2"):
        if name not in given:
            continue
        x = given[name]
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise ValueError(f"{name} must be an array [..., d_in], got {_kind(x)}: jnp.asarray")
        check_floating(name, x.dtype)
        if not x.shape or not x.shape[-1]:
            raise ValueError(f"{name} must be an array [..., d_in], got shape {x.shape}")
        if kernels and x.shape[-1] != kernels[0].shape[0]:
            raise ValueError(
                f"{name} has {x.shape[-1]} features, the parameters take {kernels[0].shape[0]}: got "
                f"shape {x.shape}"
            )


def _kind(thing: Any) -> str:
    if isinstance(thing, type):
        return f"the class {thing.__name__}"
    return f"a {type(thing).__name__}"
