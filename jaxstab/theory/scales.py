"""Correlations, slopes and depth scales at a fixed point.

Without a skip the slopes are those of the block. With a residual branch of factor s, and R = q'/q
in the limit,

    chi_1 = 1 + s^2 sigma_w^2 D,    c* is the branch's,    chi_c = (1 + (R - 1) chi_branch) / R.

With dense skips q* and c* are those of the plain block, and every rate per layer tends to 0.
"""

from typing import NamedTuple

import jax
import numpy as np

from jaxstab.records import FixedPoint
from jaxstab.theory import host
from jaxstab.theory.block_maps import Gains, Pairing, batch_state, branch_of, pairing
from jaxstab.theory.block_moments import block_moments
from jaxstab.theory.blocks import Block
from jaxstab.theory.correlations import Stable, stable_distance
from jaxstab.theory.host import AnyArray
from jaxstab.theory.maps import Length, log_length_map
from jaxstab.theory.moments import CANCELLED, CANCELLED_SQUARE, LogMoments
from jaxstab.theory.roots import ROUNDING

# ln q at which tanh is a step to 1e-6; at longer lengths quadrature of pairs has a larger error
_LONGEST_PAIR = 27.6


# factors this close to 1 at a large finite length are 1 at the infinite one
_TOWARDS_INFINITY = 1e-10


def depth_scale(chi: AnyArray, rounding: AnyArray | float = ROUNDING) -> AnyArray:
    """Compute the depth scale -1/ln |chi|, inf where chi is 1 to working precision.

    Args:
        chi: factor per layer.
        rounding: error of ln chi.

    Returns:
        Depth scale, in layers.
    """
    xp = host.namespace(chi)
    rate = xp.log(xp.abs(chi))
    critical = xp.abs(rate) <= rounding
    return xp.where(critical, np.inf, -1.0 / xp.where(critical, 1.0, rate))


class Slopes(NamedTuple):
    """Factors per layer.

    Attributes:
        length: dq'/dq.
        chi_1: factor of the mean squared gradient.
        chi_c: slope of the correlation map at c*.
    """

    length: AnyArray
    chi_1: AnyArray
    chi_c: AnyArray


def with_skip(block: Block, log_ratio: AnyArray, of_branch: Slopes) -> Slopes:
    """Compute the factors of a block with its skip from those of the branch.

    Args:
        block: the block.
        log_ratio: ln of the branch's length over q.
        of_branch: factors without the skip.

    Returns:
        Factors with the skip.
    """
    if block.law.skip == "dense":
        return of_branch._replace(
            chi_1=of_branch.chi_1 * 0.0 + 1.0, chi_c=of_branch.chi_c * 0.0 + 1.0
        )
    if not block.law.residual:
        return of_branch
    xp = host.namespace(log_ratio)
    square = xp.exp(branch_of(block))
    kept = 1.0 / (1.0 + square * xp.exp(log_ratio))
    return Slopes(
        1.0 + square * of_branch.length,
        1.0 + square * of_branch.chi_1,
        kept + (1.0 - kept) * of_branch.chi_c,
    )


def around(
    block: Block, gains: Gains, log_length: AnyArray, moments: LogMoments, log_x: AnyArray
) -> FixedPoint:
    """Compute the record of the fixed point at a length.

    Args:
        block: the block.
        gains: gains of the block.
        log_length: finite ln x at which all fields but q are computed.
        moments: moments of the block at that length.
        log_x: ln x of the fixed point; +-inf for limits, NaN for no fixed point.

    Returns:
        Record of the fixed point; NaN where `log_x` is.
    """
    xp = host.namespace(gains.weight, log_length)
    nowhere = xp.isnan(log_x)
    length = log_length_map(moments, gains.weight, gains.bias, log_length)
    growth = xp.exp(gains.weight + moments.log_growth)
    if block.law.norm == "batch":
        log_q, stable, lost = _batch(block, gains, log_length, moments, growth)
        log_q = xp.where(xp.isfinite(log_q) & (log_x < np.inf), log_q, log_x)
    else:
        log_q = log_x
        stable, lost = _correlations(
            block, paired_at(block, gains, log_length, moments, length), nowhere
        )
    branch = Slopes(
        growth * moments.length_power, xp.exp(gains.weight + moments.log_slope), stable.chi
    )
    slopes = with_skip(block, length.log_ratio, branch)
    # where terms cancel, the sum has no digits, and neither has the logarithm
    cancelled = xp.abs(slopes.length) < CANCELLED * growth * moments.power_size
    rounding = xp.where(log_x == np.inf, _TOWARDS_INFINITY, ROUNDING)
    xi_q = xp.where(cancelled, np.nan, depth_scale(slopes.length, rounding))
    if block.law.skip == "dense":
        xi_q = xp.full_like(xi_q, np.inf)
    xi_c = xp.where(lost, np.nan, depth_scale(slopes.chi_c, rounding))
    is_stable = (xp.abs(slopes.length) < 1.0 - ROUNDING) & (log_x < np.inf)
    record = FixedPoint(
        q=xp.exp(log_q),
        c=1.0 - stable.distance,
        chi_1=slopes.chi_1,
        chi_c=slopes.chi_c,
        xi_q=xi_q,
        xi_c=xi_c,
        xi_grad=xp.abs(depth_scale(slopes.chi_1, rounding)),
        stable=is_stable,
        log_q=log_q,
        distance=stable.distance,
    )
    return FixedPoint(
        *(field if field is is_stable else xp.where(nowhere, np.nan, field) for field in record)
    )


def paired_at(
    block: Block, gains: Gains, log_x: AnyArray, moments: LogMoments, length: Length
) -> Pairing:
    """Compute the correlation map at a length; residual blocks clip long lengths.

    Args:
        block: the block.
        gains: gains of the block.
        log_x: ln q.
        moments: moments of the block at q.
        length: length map of the block at q.

    Returns:
        Parameters of the correlation map.
    """
    if block.law.residual:
        log_x = host.namespace(log_x).minimum(log_x, _LONGEST_PAIR)
        moments = block_moments(block, log_x)
        length = log_length_map(moments, gains.weight, gains.bias, log_x)
    return pairing(block, log_x, moments, length, gains)


def _batch(
    block: Block, gains: Gains, log_x: AnyArray, moments: LogMoments, growth: AnyArray
) -> tuple[AnyArray, Stable, bool]:
    """Compute length and correlation within a batch; the slope of both maps is that of v."""
    state = lambda at, moments: batch_state(block, at, moments, gains)
    log_q, distance = state(log_x, moments) if log_x.ndim == 0 else jax.vmap(state)(log_x, moments)
    return log_q, Stable(distance, growth * moments.length_power), False


def _correlations(block: Block, paired: Pairing, nowhere: AnyArray) -> tuple[Stable, AnyArray]:
    """Find stable correlations at one or several lengths; True where a slope is only noise."""
    xp = host.namespace(paired.share)

    def one(paired: Pairing) -> Stable:
        return stable_distance(
            block.phi, block.about, paired.log_z, paired.share, paired.moments, paired.field
        )

    if paired.log_z.ndim == 0:
        stable = one(paired)
    elif xp is not np:
        stable = jax.vmap(one)(paired)
    else:
        missing = Stable(np.float64(np.nan), np.float64(np.nan))
        rows = (jax.tree.map(lambda column, i=i: column[i], paired) for i in range(len(nowhere)))
        records = [missing if skip else one(row) for skip, row in zip(nowhere, rows, strict=True)]
        stable = Stable(*map(np.stack, zip(*records, strict=True)))
    known = paired.moments
    smoothed = xp.minimum(known.near_slope, known.near_growth - xp.log(stable.distance))
    lost = (stable.distance > 0) & (stable.chi < CANCELLED_SQUARE * paired.share * xp.exp(smoothed))
    return stable, lost & (block.phi.kernel is None)
