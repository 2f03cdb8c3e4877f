"""Initialisers of residual networks whose branches start small or at 0."""

import jax
import jax.numpy as jnp
from jaxtyping import ArrayLike

from jaxstab.networks import MLP, Chain, Params
from jaxstab.networks.chains import with_network
from jaxstab.networks.family import module_of


@with_network
def fixup(network: MLP | Chain, params: Params) -> Params:
    """Set residual branches and readout to zero: Fixup (Zhang et al. 2019, section 3).

    Rule 1 sets the last layer of each branch and the classifier to 0. Rule 2 scales all other
    layers of a branch by L^(-1/(2m-2)); branches of m = 1 layer have none. Multipliers alpha start
    at 1, biases at 0.

    Args:
        network: network of `networks.mlp` with skip "sum", "scaled" or "rezero" and no norm.
        params: parameters of the network, drawn with the gain of He.

    Returns:
        Parameters after Fixup.

    Raises:
        ValueError: if the network has another skip, or a norm.
    """
    mlp = module_of(network)
    if mlp.skip not in ("sum", "scaled", "rezero") or mlp.norm:
        raise ValueError(
            "fixup needs a network with skip sum, scaled or rezero and no norm, got skip "
            f"{mlp.skip}, norm {mlp.norm}"
        )

    def zero(layer: dict) -> dict:
        return layer | {"dense": jax.tree.map(jnp.zeros_like, layer["dense"])}

    blocks = zero(params.blocks)
    if "alpha" in blocks:
        blocks |= {"alpha": jnp.ones_like(blocks["alpha"])}
    embed = params.embed["dense"] | {"bias": jnp.zeros_like(params.embed["dense"]["bias"])}
    return Params(params.embed | {"dense": embed}, blocks, zero(params.readout))


@with_network
def skip_init(params: Params, alpha: ArrayLike = 0.0) -> Params:
    """Set the multipliers alpha of residual branches h + alpha F; 0 is ReZero and SkipInit.

    Sources: Bachlechner et al. 2021 (ReZero); De & Smith 2020 (SkipInit, also with 1/sqrt(depth)).

    Args:
        params: parameters of a network with skip "rezero".
        alpha: multiplier, one for all blocks or one per block; may be traced.

    Returns:
        Parameters with the multipliers.

    Raises:
        ValueError: if there are no multipliers.
    """
    if "alpha" not in params.blocks:
        raise ValueError(
            'skip_init needs parameters with multipliers alpha, as of MLP(..., skip="rezero"), got '
            f"{', '.join(params.blocks)}"
        )
    old = params.blocks["alpha"]
    return params._replace(
        blocks=params.blocks | {"alpha": jnp.broadcast_to(jnp.asarray(alpha, old.dtype), old.shape)}
    )
