"""Comparison of a chain's gradient with the prediction of theory at the gains of its parameters."""

import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, PyTree

from jaxstab import theory
from jaxstab.diagnosis.intervals import slope
from jaxstab.diagnosis.measuring import Measured
from jaxstab.networks import Chain, Params
from jaxstab.networks.chains import layers_of
from jaxstab.networks.gains import is_kernel
from jaxstab.networks.interception import BLOCK
from jaxstab.networks.layers import as_layer
from jaxstab.norms.paths import named_leaves
from jaxstab.theory.laws import SMALLEST_BATCH, law_of

# variance of the slope of a random walk of n steps, times n over the variance of a step
_WALK = 6 / 5
NO_CHAIN = "theory needs a chain with a law: networks.from_linen(..., law={...})"


class Theory(NamedTuple):
    """Measured rate of a gradient compared with the predicted rate.

    Attributes:
        rate: rate predicted at infinite width, in nats per block, fitted like `Diagnosis.rate`.
        band: excess of a typical network's rate at finite width, to the order 1/width.
        standard_error: of measured - predicted, from the fit and the scatter between networks.
        z: measured - predicted at infinite width, in standard errors.
        beyond: distance outside `band` around the typical rate, in standard errors; 0 within.
        sigma_w: weight gain of the blocks' parameters, root mean square.
        sigma_b: standard deviation of the blocks' biases.
        why: reason for a missing prediction, with all numbers NaN; empty for a prediction.
    """

    rate: float
    band: float
    standard_error: float
    z: float
    beyond: float
    sigma_w: float
    sigma_b: float
    why: str = ""

    def __str__(self) -> str:
        """Format as one line."""
        if self.why:
            return f"no prediction: {self.why}"
        return (
            f"{self.rate:.3g} nats per block predicted at sigma_w {self.sigma_w:.3g}, sigma_b "
            f"{self.sigma_b:.3g}, up to {2 * self.band:.2g} more at this width; z = {self.z:.1f}, "
            f"beyond finite width {self.beyond:.1f}"
        )


def compared(chain: Chain | None, params: PyTree, measured: Measured) -> Theory:
    """Compare the gradient over a chain's blocks with the prediction of theory.

    The prediction takes its gains from the parameters, and its initial length and correlation from
    the measured h_0. The rate of a typical network lies |s| above the rate at infinite width, with
    s from `theory.typical_shift`. ln |dL/dh| of one network walks with variance |s| per layer.

    Args:
        chain: the network; None for a model that is no chain.
        params: parameters of the network.
        measured: measurement with these parameters.

    Returns:
        The comparison, or the reason why there is none.
    """
    if chain is None:
        return _unknown(NO_CHAIN)
    try:
        return _compared(chain, params, measured)
    except ValueError as error:
        return _unknown(str(error))


def _unknown(why: str) -> Theory:
    nan = math.nan
    return Theory(nan, nan, nan, nan, nan, nan, nan, why)


def _compared(chain: Chain, params: Params, measured: Measured) -> Theory:
    examples = measured.by_example.shape[1]
    batch = None
    if examples >= SMALLEST_BATCH:
        batch = examples
    of_run = {}
    if _over_batch(chain):
        of_run["batch"] = batch
    known = law_of(chain, depth=params.depth, **of_run)
    reasons = theory.missing(known)
    if "log_grad_h" in reasons:
        raise ValueError(reasons["log_grad_h"])
    numbers = list(measured.blocks)
    sites = [measured.sites[i] for i in numbers]
    if len(numbers) != params.depth or any(site.kind != BLOCK for site in sites):
        raise ValueError("the measured sites along the depth are not the chain's blocks")
    sigma_w, sigma_b = _gains(params, known)
    # h_0 is the row before the first block
    below = numbers[0] - 1
    weight = sigma_w**2 * math.exp(known.log_variance)
    q = float(np.exp(measured.signal.log_q[below]))
    fed = (q - sigma_b**2) / weight if weight > 0 else 0.0
    if not fed > 0:
        raise ValueError("the mean square of h_0 is no larger than the variance of the biases")
    alike = np.nan_to_num(float(measured.alike[below]))
    # measurement errors may put the correlation slightly outside of [-1, 1]
    c0 = float(np.clip((alike * q - sigma_b**2) / (weight * fed), -1.0, 1.0))
    width = sites[0].shape[-1]
    forward, _, backward, _ = theory.predict(
        known, sigma_w, sigma_b, [len(numbers)], width=width, d_in=width, q0=fed, c0=c0
    )
    # rows of the blocks are h_1 .. h_L
    predicted = np.asarray(backward.log_grad_h, float)[0, 1:]
    logs = measured.log_grad_h[numbers]
    nothing = np.full((len(logs), 1), np.nan)
    rate = slope(predicted, nothing).value
    apart = slope(logs - predicted, measured.by_example[numbers])
    if not math.isfinite(apart.value):
        raise ValueError("a gradient that is zero or not finite has no rate")
    middle = float(forward.q[len(numbers) // 2])
    shift = abs(float(theory.typical_shift(known, middle, width)))
    fit = (apart.high - apart.low) / 4
    error = math.sqrt(fit**2 + _WALK * shift / len(logs))
    typical = theory.compare(apart.value, shift, error, depth=1.0, width=1.0, size=shift)
    return Theory(rate, shift, error, apart.value / error, float(typical.beyond), sigma_w, sigma_b)


def _over_batch(chain: Chain) -> bool:
    return chain.law is not None and chain.law.get("norm") == "batch"


def _gains(params: Params, law: theory.Law) -> tuple[float, float]:
    """Weight gain and standard deviation of biases, as root mean squares over all blocks."""
    weights: list[float] = []
    biases: list[float] = []
    for stack in params.stacks[1:-1]:
        layer = as_layer(stack)
        if layer.dropout is not None and not _is_dry(layer.dropout.rate):
            raise ValueError("the law leaves out masks of dropout")
        leaves = dict(named_leaves(layer.params))
        kernels = [path for path, leaf in leaves.items() if is_kernel(path) and leaf.ndim >= 3]
        if len(kernels) != 1:
            raise ValueError(f"theory needs one parameter kernel per block, got {len(kernels)}")
        path = kernels[0]
        kernel = leaves[path]
        fan_in = math.prod(kernel.shape[1:-1])
        gain = 1.0 if layer.sigma_w is None else np.asarray(layer.sigma_w, float)
        squares = fan_in * _mean_squares(kernel) * np.square(gain)
        weights.extend(squares / math.exp(law.log_variance))
        bias: Any = leaves.get((*path[:-1], "bias"))
        biases.extend(np.zeros(layers_of(stack)) if bias is None else _mean_squares(bias))
    return math.sqrt(np.mean(weights)), math.sqrt(np.mean(biases))


def _mean_squares(stack: Any) -> Float[np.ndarray, " layer"]:
    """Mean square of the entries of each layer of a stack."""
    numbers = np.asarray(stack, float)
    return np.mean(np.square(numbers), axis=tuple(range(1, numbers.ndim)))


def _is_dry(rate: Any) -> bool:
    return rate is not None and bool(np.all(np.asarray(rate) == 0))
