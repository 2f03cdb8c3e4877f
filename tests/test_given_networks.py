"""Whoever gives something else in a network's place is told in one line what is wanted."""

import inspect

import jax
import jax.numpy as jnp
import pytest
from flax import linen, nnx

from jaxstab import initializers, networks, propagation, regularizers, spectra
from jaxstab.networks import MLP

KEY = jax.random.key(0)
MINE = MLP(depth=2, width=4)
PARAMS = networks.chain(MINE).init(KEY, jnp.ones(3))
ROOMS = (networks, propagation, spectra, regularizers, initializers)


class LinenModel(linen.Module):
    @linen.compact
    def __call__(self, x):
        return linen.Dense(4)(x)


class NnxModel(nnx.Module):
    def __init__(self):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=nnx.Rngs(0))])


def _functions(argument):
    """Public functions with such an argument."""
    for room in ROOMS:
        for name, function in vars(room).items():
            own = (
                inspect.isfunction(function)
                and not name.startswith("_")
                and function.__module__.startswith(room.__name__)
            )
            if own and argument in inspect.signature(function).parameters:
                yield pytest.param(function, id=f"{room.__name__}.{name}")


def _call(function, **given):
    """The function called with nothing in the place of whatever else it wants."""
    names = inspect.signature(function).parameters
    wanted = {
        name: given.get(name) for name, p in names.items() if p.default is p.empty or name in given
    }
    return function(**{name: value for name, value in wanted.items() if name in names})


@pytest.mark.parametrize("function", list(_functions("chain")))
def test_every_function_of_a_chain_says_what_it_wants(function):
    given = {"params": PARAMS, "x": jnp.ones(3)}
    with pytest.raises(
        ValueError,
        match=r"chain must be a networks\.Chain, got a networks\.MLP: networks\.chain\(mlp\)",
    ):
        _call(function, chain=MINE, **given)
    for model in (LinenModel(), NnxModel(), LinenModel):
        with pytest.raises(
            ValueError, match=r"chain must be a networks\.Chain, as .* got (a|the class) \w+Model$"
        ):
            _call(function, chain=model, **given)
    if "params" not in inspect.signature(function).parameters:
        return
    with pytest.raises(ValueError, match=r"params must be networks\.Params\(.*, got a dict$"):
        _call(function, chain=networks.chain(MINE), params={"params": {}}, x=jnp.ones(3))


@pytest.mark.parametrize("function", list(_functions("mlp")))
def test_every_function_of_an_mlp_says_what_it_wants(function):
    for model in (LinenModel(), NnxModel(), LinenModel):
        with pytest.raises(
            ValueError,
            match=r"mlp must be a networks\.MLP; for your own layers use networks\.from_linen",
        ):
            _call(function, mlp=model, params=PARAMS)
    with pytest.raises(
        ValueError,
        match=r"mlp must be a networks\.MLP, got a networks\.Chain: call init and bind of the chain",
    ):
        _call(function, mlp=networks.chain(MINE), params=PARAMS)


@pytest.mark.parametrize(
    "function",
    [
        p
        for p in _functions("chain")
        if p.id.startswith("jaxstab.spectra")
        and not any(w in p.id for w in ("tangent", "gauss", "parameter"))
    ],
)
def test_spectra_of_a_batch_are_a_vmap(function):
    with pytest.raises(
        ValueError, match=r"x must be one input \[d_in\], got shape \(5, 3\); use jax\.vmap"
    ):
        _call(function, chain=networks.chain(MINE), params=PARAMS, x=jnp.ones((5, 3)))


def test_a_missing_argument_is_named_by_python():
    with pytest.raises(TypeError, match="missing"):
        propagation.forward(networks.chain(MINE))
