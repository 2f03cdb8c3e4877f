"""Lyapunov exponents: rates, in nats per layer, at which a chain stretches directions.

At finite depth the exponents are ln s_i / L, with s_i the singular values of dh_L/dh_0. In the
limit of many equally distributed layers they are means over layers, with an error bar. Functions
take one network and one input; the caller vmaps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxstab import decompositions, networks
from jaxstab.checks import check_floating
from jaxstab.networks import Chain, Here, Params
from jaxstab.networks.views import at_one_input
from jaxstab.norms.meshes import varying_like
from jaxstab.records import standard_error
from jaxstab.spectra.graded import pushed


class LyapunovExponents(NamedTuple):
    """Lyapunov exponents in the limit of depth, estimated from finitely many layers.

    Attributes:
        exponent: nats per layer, descending; -inf for directions killed exactly.
        standard_error: standard error from the spread over groups of consecutive layers; NaN for an
            exponent of -inf.
        running: mean over the layers so far, [layer, index], which shows convergence; NaN in
            skipped layers.
    """

    exponent: Float[Array, " n"]
    standard_error: Float[Array, " n"]
    running: Float[Array, "layer n"]


@at_one_input
def lyapunov_exponents(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    key: Key[Array, ""],
    skip: int = 0,
    groups: int = 16,
) -> LyapunovExponents:
    """Estimate Lyapunov exponents in the limit of depth.

    Means of ln r_ii over layers, with F_l Q_{l-1} = Q_l R_l (Benettin, Galgani, Giorgilli & Strelcyn
    1980). The means estimate a limit if layers are equally distributed and the signal is stationary
    after `skip` layers. Exponents whose gap has not opened within `skip` layers have a bias of
    O(1/depth). The error bar is right if groups are longer than the correlation length of layers.

    Args:
        chain: the network; blocks of one width.
        params: parameters of the network, depth L.
        x: one input.
        key: PRNG key of the random orthonormal Q_0.
        skip: number of first layers to skip, >= 0.
        groups: number of groups of consecutive layers whose means give the standard error, in
            [2, L - skip]. Layers that do not fill a group are skipped as well.

    Returns:
        Record of `exponent`, `standard_error`, and `running`, the mean over the layers so far.

    Raises:
        ValueError: if skip < 0, groups < 2, there are fewer layers than groups, or x is not
            floating.
    """
    if skip < 0 or groups < 2 or params.depth - skip < groups:
        raise ValueError(
            f"skip must be >= 0 and groups in [2, depth - skip], got {skip=}, {groups=}, depth "
            f"{params.depth}"
        )
    check_floating("x", jnp.result_type(x))
    h_0 = chain.embed(params, x)
    q_0 = decompositions.qr(jax.random.normal(key, (h_0.size, h_0.size), h_0.dtype))[0]

    def layer(carry: tuple[Array, Array], here: Here) -> tuple[tuple[Array, Array], Array]:
        q, rank = carry
        columns, most = pushed(here.push, here.h, q)
        # columns up to the rank do not depend on later columns
        q, r = decompositions.qr(columns)
        rank = jnp.minimum(rank, most)
        dead = (jnp.arange(h_0.size) >= rank) | (jnp.diagonal(r) == 0)
        steps = jnp.where(dead, -jnp.inf, jnp.log(jnp.abs(jnp.where(dead, 1.0, jnp.diagonal(r)))))
        return (q, rank), steps

    start = varying_like((q_0, jnp.asarray(h_0.size)), h_0)
    _, steps = networks.upwards(chain, params, h_0, layer, start, first=1)
    return _mean_of_steps(steps, (params.depth - skip) // groups * groups, groups)


def _mean_of_steps(steps: Float[Array, "layer n"], kept: int, groups: int) -> LyapunovExponents:
    left_out = steps.shape[0] - kept
    by_group = jnp.mean(steps[left_out:].reshape(groups, kept // groups, -1), axis=1)
    mean = jnp.mean(by_group, axis=0)
    order = jnp.argsort(-mean)
    finite = jnp.isfinite(mean)
    spread = standard_error(jnp.where(finite[None], by_group, 0.0).T)
    so_far = (
        jnp.cumsum(steps[left_out:], axis=0) / jnp.arange(1, kept + 1, dtype=steps.dtype)[:, None]
    )
    running = jnp.concatenate([jnp.full_like(steps[:left_out], jnp.nan), so_far])
    return LyapunovExponents(
        mean[order], jnp.where(finite, spread, jnp.nan)[order], running[:, order]
    )
