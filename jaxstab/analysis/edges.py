"""Distance of trainings from the edge of stability: sharpness over its largest stable value."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from jaxstab import curvature
from jaxstab.analysis.verdicts import standard_error

# default momentum of each optimiser
_MOMENTUM = {"sgd": 0.0, "momentum": 0.9, "nesterov": 0.9}


def stable_product(kind: Mapping[str, Any]) -> float:
    """Compute the product of learning rate and sharpness above which an optimiser diverges.

    Args:
        kind: settings of the optimiser by name.

    Returns:
        2 for gradient descent, 2 (1 + beta) for momentum, see `curvature.largest_stable_rate`; NaN
        for optimisers whose edge does not depend on the sharpness of the loss.

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
    """Compute the sharpness in units of its largest stable value, along the run.

    Args:
        sharpness: sharpness over (kind, depth, seed, record).
        learning_rate: learning rate over (kind, depth).
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
