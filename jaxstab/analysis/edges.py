"""How far trainings are from the edge of stability: sharpness over the largest that is stable."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxstab import curvature
from jaxstab.analysis.verdicts import standard_error

# momentum of the optimisers that have some unless told otherwise
_MOMENTUM = {"sgd": 0.0, "momentum": 0.9, "nesterov": 0.9}


def stable_product(kind: Mapping[str, Any]) -> float:
    """The product of learning rate and sharpness from which on an optimiser diverges.

    Args:
        kind: settings of the optimiser by name.

    Returns:
        2 of gradient descent, 2 (1 + beta) with momentum, see `curvature.largest_stable_rate`; NaN
        of optimisers whose edge is not at the sharpness of the loss.

    Example:
        >>> [stable_product({"optimiser": name, "momentum": None}) for name in ("sgd", "momentum", "adam")]
        [2.0, 3.8, nan]
    """
    name = kind["optimiser"]
    if not isinstance(name, str) or name not in _MOMENTUM:
        return math.nan
    beta = kind["momentum"]
    if beta is None:
        beta = _MOMENTUM[name]
    if name == "sgd":
        name = "momentum"
    return float(curvature.largest_stable_rate(np.float64(1.0), name, np.float64(beta)))


def over_edge(
    sharpness: xr.DataArray, learning_rate: xr.DataArray, kinds: Sequence[Mapping[str, Any]]
) -> xr.Dataset:
    """Sharpness in units of the largest that is stable, along the run.

    Args:
        sharpness: over (kind, depth, seed, record).
        learning_rate: over (kind, depth).
        kinds: settings of each kind.

    Returns:
        `sharpness_over_edge` with its standard error over seeds, over (kind, depth, record): 1 at
        the edge of stability. NaN where a seed has no sharpness.
    """
    products = xr.DataArray([stable_product(kind) for kind in kinds], dims="kind")
    share = sharpness * learning_rate / products
    known = share.notnull().all("seed")
    return xr.Dataset(
        {
            "sharpness_over_edge": share.mean("seed").where(known),
            "sharpness_over_edge_se": standard_error(share.where(known)),
        }
    )
