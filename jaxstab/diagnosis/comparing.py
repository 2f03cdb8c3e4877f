"""The gradient of a chain beside what theory predicts at the gains that its parameters have."""

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
NO_CHAIN = "theory is of chains that carry a law: networks.from_linen(..., law={...})"


class Theory(NamedTuple):
    """A gradient's rate beside the predicted one.

    Attributes:
        rate: predicted at infinite width, nats per block, as `Diagnosis.rate` is fitted.
        band: by which finite width makes a typical network's rate larger, to the order 1/width.
        standard_error: of measured - predicted: of the fit, and of networks around the typical one.
        z: measured - predicted at infinite width, in standard errors.
        beyond: what lies further than `band` from the typical rate, in standard errors; 0 within.
        sigma_w: weight gain of the blocks' parameters, root mean square.
        sigma_b: standard deviation of their biases.
        why: why nothing is predicted, all else NaN; empty where something is.
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
        """One line."""
        if self.why:
            return f"no prediction: {self.why}"
        return (
            f"{self.rate:.3g} nats a block are predicted at sigma_w {self.sigma_w:.3g}, sigma_b "
            f"{self.sigma_b:.3g}, and up to {2 * self.band:.2g} more at this width; z = "
            f"{self.z:.1f}, "
            f"beyond finite width {self.beyond:.1f}"
        )


def compared(chain: Chain | None, params: PyTree, measured: Measured) -> Theory:
    """Compare the gradient over a chain's blocks with the one that theory predicts.

    The gains are those of the parameters, and length and correlation start from the measured ones
    of h_0. A typical network's rate lies |s| above the one at infinite width, s as in
    `theory.typical_shift`, and ln |dL/dh| of one network walks by a variance of |s| a layer.

    Args:
        chain: the network; None for a model that is none.
        params: its parameters.
        measured: what was measured with them.

    Returns:
        The comparison, or why there is none.
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
        raise ValueError("the places of the depth are not the chain's blocks")
    sigma_w, sigma_b = _gains(params, known)
    # h_0 is the row before the first block
    below = numbers[0] - 1
    weight = sigma_w**2 * math.exp(known.log_variance)
    q = float(np.exp(measured.signal.log_q[below]))
    fed = (q - sigma_b**2) / weight if weight > 0 else 0.0
    if not fed > 0:
        raise ValueError("h_0 is no larger than the biases, so that no input would give it")
    alike = np.nan_to_num(float(measured.alike[below]))
    # measured numbers may lie a little beyond what two inputs can have
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
    """Weight gain and deviation of the biases of the blocks: root mean squares over all of them."""
    weights: list[float] = []
    biases: list[float] = []
    for stack in params.stacks[1:-1]:
        layer = as_layer(stack)
        if layer.dropout is not None and not _is_dry(layer.dropout.rate):
            raise ValueError("masks of dropout are not part of the law")
        leaves = dict(named_leaves(layer.params))
        kernels = [path for path, leaf in leaves.items() if is_kernel(path) and leaf.ndim >= 3]
        if len(kernels) != 1:
            raise ValueError(f"a block has one parameter called kernel, got {len(kernels)}")
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
