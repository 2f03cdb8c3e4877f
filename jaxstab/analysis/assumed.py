"""Laws of the networks of a grid: a law and a width for theory, or the reason for their absence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxstab import networks, theory
from jaxstab.networks.chains import state_shapes
from jaxstab.sweeps import Grid
from jaxstab.sweeps.grid import Kind
from jaxstab.sweeps.settings import label
from jaxstab.theory.laws import law_of

# stands for a block where only shapes are needed
_ANY = theory.law("identity")


class Assumed(NamedTuple):
    """Law and width that theory assumes for the blocks of one kind of network.

    Attributes:
        law: law of a block; None where there is none.
        width: units of a state.
        why: reason for a missing law; empty where there is a law.
    """

    law: theory.Law | None
    width: int
    why: str

    @property
    def block(self) -> theory.Law:
        """The law, or a placeholder whose predictions have the same shapes."""
        return self.law or _ANY


def assumed(grid: Grid, kind: Kind, d_in: int, depth: int | None = None) -> Assumed:
    """Find the law and the width of the blocks of a kind of network.

    Args:
        grid: the grid.
        kind: one kind of the grid.
        d_in: input features.
        depth: number of blocks; None for the deepest.

    Returns:
        The law, or the reason for its absence: a chain without a law, states of several shapes,
        weights drawn by a function, a norm without a law, or BatchNorm over fewer than four
        examples.
    """
    if depth is None:
        depth = grid.deepest
    of_run = {"keep": 1.0 - grid.fixed["dropout"], "batch": kind["batch"]}
    try:
        if grid.network is None:
            chain = networks.chain(grid.mlp(kind, depth, 1))
            return Assumed(law_of(chain, **of_run), kind["width"], "")
        chain = grid.chain(kind, depth)
        law = law_of(chain, depth=depth, **of_run)
        return Assumed(law, _width(chain, kind["batch"], d_in), "")
    except ValueError as error:
        return Assumed(None, kind["width"], str(error))


def laws(grid: Grid, kind: Kind, d_in: int) -> dict[int, Assumed]:
    """Find the law and the width at each depth.

    The networks of `networks.mlp` share one law, since shallower ones are prefixes of the deepest.

    Args:
        grid: the grid.
        kind: one kind of the grid.
        d_in: input features.

    Returns:
        Law and width by depth.
    """
    deepest = assumed(grid, kind, d_in)
    if grid.network is None:
        return dict.fromkeys(grid.values("depth"), deepest)
    return {depth: assumed(grid, kind, d_in, depth) for depth in grid.values("depth")}


def names(grid: Grid) -> list[str]:
    """Label the networks of a grid by activation, or a network of the caller's own by its name.

    Args:
        grid: grid of one kind, or with the activation as the axis of kinds.

    Returns:
        Labels in the order of the kinds.
    """
    if grid.network is not None and "activation" not in grid.axes:
        return [label(grid.network)]
    return grid.labels("activation")


def _width(chain: networks.Chain, batch: int | None, d_in: int) -> int:
    """Number of units of a state, which must be equal for all states."""
    shape = (d_in,) if batch is None else (batch, d_in)
    x = jax.ShapeDtypeStruct(shape, jnp.float32)

    def drawn(x: PyTree) -> networks.Params:
        assert chain.init is not None
        return chain.init(jax.random.key(0), x)

    params = jax.eval_shape(drawn, x)
    states = state_shapes(chain, params, x)
    shapes = {tuple(leaf.shape) for state in states for leaf in jax.tree.leaves(state)}
    wanted = len(jax.tree.leaves(states)) == len(states) and len(shapes) == 1
    if not wanted or len(next(iter(shapes))) != len(shape):
        told = ", ".join(str(list(one)) for one in sorted(shapes))
        raise ValueError(f"theory takes states of one width, got states of shapes {told}")
    return next(iter(shapes))[-1]
