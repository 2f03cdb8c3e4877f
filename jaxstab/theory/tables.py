"""Tables of an activation's moments over all lengths, for programs and root finding.

E phi(sqrt(q) u)^2 is analytic in ln q within pi/2 of the real axis: a polynomial through 16
lengths, a sixteenth of a nat apart, interpolates with an error of 1e-14.
"""

import functools
from fractions import Fraction

import numpy as np
from jaxtyping import Float

from jaxstab.activations import Activation, Mixture
from jaxstab.theory import host
from jaxstab.theory.features import Features, features
from jaxstab.theory.host import AnyArray
from jaxstab.theory.quadrature import LONGEST, SHORTEST, Single, single

_STEP = 0.0625
_POINTS = 16
# the table is compared with quadrature in every 8th cell, with this tolerance
_CHECKED = 8
_ALLOWED = 1e-10
# with more breaks a table costs more time than it saves
_FEW_BREAKS = 24
# (E phi)^2 / E phi^2 up to which the variance loses at most two digits
_VARIES = 0.99
# number of lengths in one call of quadrature
_AT_ONCE = 64
_LOW = float(np.log(SHORTEST))
_CELLS = int(np.ceil((np.log(LONGEST) - _LOW) / _STEP)) + 1


@functools.cache
def _coefficients() -> Float[np.ndarray, "power point"]:
    """Compute the map from values at the points to coefficients of powers of t, in cells."""
    # in half cells the points are odd integers, and Lagrange polynomials have rational coefficients
    points = [2 * place - _POINTS + 1 for place in range(_POINTS)]
    columns = []
    for point in points:
        product = [1]
        scale = 1
        for other in points:
            if other != point:
                shifted = [0, *product]
                scaled = [-other * value for value in [*product, 0]]
                product = [up + down for up, down in zip(shifted, scaled, strict=True)]
                scale *= point - other
        columns.append(
            [float(Fraction(value * 2**power, scale)) for power, value in enumerate(product)]
        )
    return np.array(columns).T


class Table:
    """Moments on a grid of ln q, a static argument of programs as it is hashed by identity.

    Attributes:
        values: logarithms and powers at the points; 0 where not finite.
        beyond: 0 in each cell, or inf or NaN where a value near the cell is not finite.
        varies: whether (E phi)^2 is at all lengths well below E phi^2, so that the variance does
            not cancel.
    """

    def __init__(self, values: Float[np.ndarray, "point column"]) -> None:
        """Build a table from values at the points."""
        finite = np.isfinite(values)
        self.values = np.where(finite, values, 0.0)
        with np.errstate(invalid="ignore"):
            wrong = np.lib.stride_tricks.sliding_window_view(
                np.where(finite, 0.0, values), _POINTS, 0
            )
            self.beyond = wrong.sum(-1)
            mean = values[:, 0]
            log_growth = values[:, 2]
            self.varies = bool(np.all(mean**2 < _VARIES * np.exp(log_growth)))

    def __call__(self, log_q: Float[AnyArray, "*b"]) -> list[Float[AnyArray, "*b"]]:
        """Interpolate the columns.

        Args:
            log_q: ln q, inside the range of quadrature.

        Returns:
            Columns at log_q.
        """
        xp = host.namespace(log_q)
        place = (log_q - _LOW) / _STEP
        cell = xp.clip(xp.floor(place), 0, _CELLS - 1)
        cell = xp.where(xp.isnan(cell), 0.0, cell)
        t = place - cell - 0.5
        first = cell.astype(np.int32)
        steps = np.arange(_POINTS, dtype=np.int32).reshape((1,) * t.ndim + (-1,))
        window = xp.asarray(self.values)[first[..., None] + steps]
        # matrix products, as XLA would recompute cheaper operations for every use of a column
        exponents = np.broadcast_to(np.arange(float(_POINTS)), (*t.shape, _POINTS))
        powers = xp.broadcast_to(t[..., None], exponents.shape) ** exponents
        weights = xp.matmul(powers, _coefficients())
        columns = xp.matmul(weights[..., None, :], window)[..., 0, :]
        columns = columns + xp.asarray(self.beyond)[first]
        return [columns[..., column] for column in range(columns.shape[-1])]


def _points() -> Float[np.ndarray, " point"]:
    return _LOW + _STEP * (np.arange(_CELLS + _POINTS - 1) - _POINTS / 2 + 1)


def logarithms(moments: Single, q: AnyArray) -> list[AnyArray]:
    """Convert moments of one Gaussian to the columns of a table.

    Args:
        moments: moments from quadrature.
        q: variance of the Gaussian.

    Returns:
        E phi / sqrt(q), E phi', ln (E phi^2 / q), d ln E phi^2 / d ln q and the size of its terms,
        ln E phi'^2, d ln E phi'^2 / d ln q.
    """
    xp = host.namespace(moments.length)
    return [
        moments.mean / xp.sqrt(q),
        moments.mean_slope,
        xp.log(moments.length),
        moments.length_power,
        moments.power_size,
        xp.log(moments.slope),
        moments.slope_power,
    ]


@functools.lru_cache(maxsize=256)
def tabulated(phi: Activation) -> Features:
    """Find the features of an activation and tabulate its moments.

    Args:
        phi: activation without traced parameters.

    Returns:
        Features with a table; without a table where phi has a closed form or oscillates, or where
        table and quadrature differ.
    """
    about = features(phi)
    if isinstance(phi, Mixture):
        # tables of the parts do not depend on the share
        own = (tabulated(phi.first), tabulated(phi.second))
        parts = tuple(
            part._replace(table=each.table) for part, each in zip(about.parts, own, strict=True)
        )
        return about._replace(parts=parts)
    if phi.kernel is not None or len(about.breaks) > _FEW_BREAKS:
        return about
    points = _points()
    table = Table(_columns(phi, about, points))
    middles = (points + _STEP / 2)[_POINTS // 2 - 1 : -_POINTS // 2 : _CHECKED]
    direct = _columns(phi, about, middles)
    looked_up = np.stack(table(middles), -1)
    with np.errstate(invalid="ignore"):
        off = np.abs(direct - looked_up) / np.maximum(1.0, np.abs(direct))
    if np.any(off > _ALLOWED):
        return about
    return about._replace(table=table)


def _columns(
    phi: Activation, about: Features, log_q: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "n column"]:
    cuts = np.arange(_AT_ONCE, len(log_q), _AT_ONCE)
    with np.errstate(all="ignore"):
        columns = [
            np.stack(logarithms(single(phi, about, q), q), -1)
            for q in np.split(np.exp(log_q), cuts)
        ]
    return np.concatenate(columns)
