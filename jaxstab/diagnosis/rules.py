"""Rules that derive findings from a measurement: one rule per fault, in one table.

A rule fires where a model is at fault by a wide margin: a factor of 30 in the gradient over the
depth, most units of a layer dead. The scatter of a healthy network of a few dozen units is no
finding.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jaxstab.diagnosis.findings import Finding
from jaxstab.diagnosis.intervals import Interval, certain, share, slope
from jaxstab.diagnosis.measuring import Measured
from jaxstab.diagnosis.similarity import chaotic, collapsing, settled, shattered
from jaxstab.networks import Site

# nats; a factor of 30 over the depth
FAR = math.log(30.0)
# share of the largest gradient below which a block learns nothing next to the others
SMALL = 0.01
# share of dead units: with equal examples half of the units of a healthy relu layer are off
DEAD = 0.75
SATURATED = 0.5
# share of a gradient that may underflow
LOST = 0.1
# nats by which one block may differ from the others
JUMP = 1.0


def gradient_rate(measured: Measured) -> Interval:
    """Fit the slope of ln |dL/dh_l| against l over the blocks, like `analysis.rate`.

    The interval is two standard errors to either side, from the slopes of single examples and the
    residuals of the fit.

    Args:
        measured: measurement of the model.

    Returns:
        Rate in nats per block, positive where the gradient vanishes; NaN for fewer than three
        blocks, or a gradient that is zero or not finite.
    """
    numbers = list(measured.blocks)
    return slope(measured.log_grad_h[numbers], measured.by_example[numbers])


def small_share(measured: Measured) -> float:
    """Compute the share of the blocks whose gradient is below 1 % of the largest.

    Args:
        measured: measurement of the model.

    Returns:
        Share in [0, 1]; NaN without blocks.
    """
    logs = measured.log_grad_h[list(measured.blocks)]
    if not len(logs) or np.isnan(logs).all():
        return math.nan
    return float(np.mean(logs < np.nanmax(logs) + math.log(SMALL)))


def findings(measured: Measured) -> tuple[Finding, ...]:
    """Find all faults of a measured model.

    Args:
        measured: measurement of the model.

    Returns:
        Findings in the order of the rules; a fault that voids the other rules is returned alone.
    """
    nonfinite = [*_nonfinite_signal(measured), *_nonfinite_gradient(measured)]
    if nonfinite:
        return tuple(nonfinite)
    if small := _signal_underflow(measured):
        return tuple(small)
    if np.any(measured.signal.dead == 1):
        # all layers above are dead as well, and no layer below learns
        return tuple(_dead(measured)[:1])
    return tuple(finding for rule in RULES for finding in rule(measured))


def _nonfinite_signal(measured: Measured) -> list[Finding]:
    bad = np.flatnonzero(_nonfinite(measured))
    if not len(bad):
        return []
    first = int(bad[0])
    if first:
        before = f"all values are finite up to {measured.rows[first - 1].name}"
    else:
        before = "this is the first place measured"
    return [
        Finding(
            "non-finite signal, forward",
            measured.rows[first].name,
            certain(float(measured.signal.nonfinite[first])),
            "of its values are NaN or infinite",
            f"{before}; operations on NaN give NaN (IEEE 754)",
            "look for log, sqrt, a division or an overflow in this module; guard its argument, not "
            "its result",
        )
    ]


def _nonfinite(measured: Measured) -> Bool[np.ndarray, " row"]:
    """True where values are not finite; logits are exempt, since a mask may set them to -inf."""
    read = np.asarray([site.softmax for site in measured.sites])
    return (np.asarray(measured.signal.nonfinite) > 0) & ~read


def _nonfinite_gradient(measured: Measured) -> list[Finding]:
    bad = np.flatnonzero((measured.nonfinite > 0) & measured.values)
    if not len(bad) or np.any(_nonfinite(measured)):
        return []
    last = int(bad[-1])
    after = min(last + 1, len(measured.rows) - 1)
    return [
        Finding(
            "non-finite gradient, backward",
            measured.rows[after].name,
            certain(float(measured.nonfinite[last])),
            f"of the gradient at its input, {measured.rows[last].name}, is not finite",
            "the signal is finite, a derivative is not: 0 times an infinite slope is NaN, also "
            "behind jnp.where",
            "give sqrt, log or norm a safe argument at zero (the double where), in the forward pass",
        )
    ]


def _signal_underflow(measured: Measured) -> list[Finding]:
    for i, site in enumerate(measured.sites):
        # only floats of two bytes have a range that signals leave
        if not site.floating or site.softmax or jnp.dtype(site.dtype).itemsize > 2:
            continue
        normal = float(jnp.finfo(site.dtype).smallest_normal)
        log_q = float(measured.signal.log_q[i])
        # a signal that is zero because its parameters start at zero still gives them a gradient
        lost = log_q == -np.inf and measured.log_grad_theta[i] == -np.inf
        if not lost and not -np.inf < log_q < 2 * math.log(normal):
            continue
        return [
            Finding(
                "signal underflow",
                measured.rows[i].name,
                certain(math.exp(log_q / 2)),
                f"is the root mean square of its values; {site.dtype} loses digits below "
                f"{normal:.2g}",
                "values below the range of a float of two bytes become zero (IEEE 754)",
                "scale its input up, normalise it, or keep this part in bfloat16 or float32",
            )
        ]
    return []


def _vanishing_or_exploding(measured: Measured) -> list[Finding]:
    rate = gradient_rate(measured)
    numbers = list(measured.blocks)
    far = abs(rate.value) * (len(numbers) - 1)
    if not (far > FAR and rate.low * rate.high > 0):
        return []
    logs = measured.log_grad_h[numbers]
    vanishes = rate.value > 0
    order = range(len(numbers) - 1, -1, -1)
    bad = next((i for i in order if abs(logs[i] - logs[-1]) > FAR), 0)
    return [
        Finding(
            "vanishing gradient" if vanishes else "exploding gradient",
            measured.rows[numbers[bad]].name,
            rate,
            f"nats per block towards the input, over {len(numbers)} blocks; depth scale "
            f"{1 / abs(rate.value):.2g} blocks",
            f"each block multiplies the squared gradient by chi = {math.exp(-2 * rate.value):.3g}, "
            "which must be 1 "
            "(Schoenholz et al. 2017)" + _reason(measured, vanishes),
            _change(measured, vanishes),
        )
    ]


def _reason(measured: Measured, vanishes: bool) -> str:
    if not vanishes and measured.has("BatchNorm"):
        return "; BatchNorm without skips explodes at any gain, by pi/(pi - 1) per layer with relu (Yang et al. 2019)"
    if not vanishes:
        return ""
    if "relu" in _activations(measured):
        return "; relu passes half of the squared gradient: chi = sigma_w^2 / 2 (He et al. 2015)"
    if "sigmoid" in _activations(measured):
        return "; the slope of a sigmoid is at most 1/4"
    return ""


def _change(measured: Measured, vanishes: bool) -> str:
    if not vanishes and measured.has("BatchNorm"):
        return "add skip connections around the blocks, or leave BatchNorm out: no initialisation helps"
    if measured.has("LayerNorm") or measured.has("RMSNorm"):
        return "put the norm within the residual branch (pre-norm; Xiong et al. 2020), or scale the branches"
    gains = {"relu": "variance_scaling(2.0, 'fan_in')", "tanh": "variance_scaling(1.0, 'fan_in')"}
    for activation in _activations(measured):
        if activation in gains:
            return f"draw kernels with {gains[activation]}, biases zero (initializers.critical), or add skips"
    if "sigmoid" in _activations(measured):
        return "use tanh or relu, or add skip connections with a norm"
    return "scale the kernels of the blocks to the critical gain (initializers.critical), or add skip connections"


def _one_block_apart(measured: Measured) -> list[Finding]:
    numbers = list(measured.blocks)
    if len(numbers) < 5:
        return []
    with np.errstate(invalid="ignore"):
        growth = np.diff(measured.signal.log_q[numbers]) / 2
        gradient = -np.diff(measured.log_grad_h[numbers])
    shapes = [measured.sites[i].shape for i in numbers]
    # a readout may have the class of the layers before it, but another shape
    equal = np.asarray([below == above for below, above in itertools.pairwise(shapes)])
    ratios: dict[int, float] = {}
    for steps in (np.where(equal, growth, np.nan), np.where(equal, gradient, np.nan)):
        known = steps[np.isfinite(steps)]
        if len(known) < 4:
            continue
        apart = steps - np.median(known)
        scatter = 1.4826 * np.median(np.abs(known - np.median(known)))
        for i in np.flatnonzero(np.isfinite(apart) & (np.abs(apart) > max(JUMP, 6 * scatter))):
            ratios.setdefault(int(i), float(apart[i]))
    return [
        Finding(
            "one block unlike the others",
            measured.rows[numbers[i + 1]].name,
            certain(math.exp(apart)),
            "times the factor by which the other blocks change the signal or the gradient",
            "equal blocks of one initialisation have one gain, up to the scatter of finite width "
            "(Hanin 2018)",
            "compare the scale of its branch, its initialiser and its parameters with those of its "
            "neighbours",
        )
        for i, apart in sorted(ratios.items())
    ]


def _signal_scale(measured: Measured) -> list[Finding]:
    numbers = list(measured.blocks)
    rate = slope(np.asarray(measured.signal.log_q)[numbers] / 2, np.full((len(numbers), 1), np.nan))
    if not (abs(rate.value) * (len(numbers) - 1) > FAR and rate.low * rate.high > 0):
        return []
    grows = rate.value > 0
    return [
        Finding(
            "exploding signal" if grows else "vanishing signal",
            measured.rows[numbers[-1]].name,
            rate,
            f"nats of the root mean square per block, over {len(numbers)} blocks",
            "the length map q' = sigma_w^2 E phi^2 + sigma_b^2 has no fixed point nearby (Poole et "
            "al. 2016)",
            "scale kernels to unit variance (LSUV), scale residual branches by 1/sqrt(L), or "
            "normalise",
        )
    ]


def _dead(measured: Measured) -> list[Finding]:
    return _units(
        measured,
        np.asarray(measured.signal.dead),
        DEAD,
        "dead units",
        "of its units give zero for every example",
        "a relu that is zero for all data has no gradient and stays zero (Lu et al. 2019)",
        "draw its biases at zero, lower the learning rate that drove them down, or use leaky_relu",
    )


def _saturated(measured: Measured) -> list[Finding]:
    return _units(
        measured,
        np.asarray(measured.signal.saturation),
        SATURATED,
        "saturated units",
        "of its units have a slope below a tenth of the largest",
        "a saturated unit passes almost no gradient (Glorot & Bengio 2010)",
        "lower the gain of its kernel or normalise before it",
        skip=("relu",),
    )


def _units(
    measured: Measured,
    shares: Float[np.ndarray, " row"],
    limit: float,
    fault: str,
    unit: str,
    why: str,
    change: str,
    skip: Sequence[str] = (),
) -> list[Finding]:
    findings = []
    for i in np.flatnonzero(shares >= limit):
        site = measured.sites[i]
        if _name(site) not in skip:
            units = share(float(shares[i]), site.shape[-1])
            findings.append(Finding(fault, measured.rows[i].name, units, unit, why, change))
    # report many such layers as one finding at the first
    if len(findings) > 3:
        return findings[:1]
    return findings


def _no_gradient(measured: Measured) -> list[Finding]:
    if np.all(~np.isfinite(measured.log_grad_h[measured.values])):
        return []
    by_site: dict[str, bool] = {}
    # an output of the model that the loss does not read is no fault
    inside = np.asarray([bool(site.path) for site in measured.sites])
    nothing = measured.cut_off & measured.values & inside
    for row, none in zip(measured.rows, nothing, strict=True):
        by_site[row.site] = by_site.get(row.site, True) and bool(none)
    stopped = [
        i for i, row in enumerate(measured.rows) if by_site[row.site] and measured.lost[i] == 0
    ]
    theory = "by the chain rule, parameters before a factor of zero get no gradient"
    if stopped:
        last = stopped[-1]
        # dead units stop the gradient themselves; otherwise the next row does
        cause = last
        if measured.signal.dead[last] != 1 and last + 1 < len(measured.rows):
            cause = last + 1
        return [
            Finding(
                "no gradient",
                measured.rows[cause].name,
                certain(len(stopped) / len(measured.rows)),
                f"of all places get no gradient, up to {measured.rows[last].name}",
                theory,
                "look for stop_gradient, an argmax, rounding, an output that the loss does not "
                "use, or dead units",
            )
        ]
    frozen = [
        i
        for i in np.flatnonzero(measured.frozen)
        if np.isfinite(measured.log_grad_h[i]) and measured.values[i]
    ]
    return [
        Finding(
            "frozen parameters",
            measured.rows[i].name,
            certain(1.0),
            "of its parameters get no gradient, though its output gets one",
            theory,
            "look for stop_gradient on its parameters, or an input that is zero",
        )
        for i in frozen
        if not any(
            _within(measured.sites[j].path, measured.sites[i].path) for j in frozen if j != i
        )
    ]


def _underflow(measured: Measured) -> list[Finding]:
    bad = np.flatnonzero((measured.lost > LOST) & measured.values)
    if not len(bad):
        return []
    last = int(bad[-1])
    dtype = measured.sites[last].dtype
    return [
        Finding(
            "gradient underflow",
            measured.rows[last].name,
            certain(float(measured.lost[last])),
            f"of the gradient is below the range of {dtype}; {len(bad)} places lose more than "
            "a tenth",
            "a gradient scaled up is within the range (Micikevicius et al. 2018)",
            "scale the loss (dynamic loss scaling), or keep this part in bfloat16 or float32",
        )
    ]


RULES: tuple[Callable[[Measured], list[Finding]], ...] = (
    _no_gradient,
    _underflow,
    _vanishing_or_exploding,
    _one_block_apart,
    _signal_scale,
    _dead,
    _saturated,
    settled,
    collapsing,
    chaotic,
    shattered,
)


def _within(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(f"{parent}/")


def _name(site: Site) -> str:
    """Name of the activation applied to a site; "" for none."""
    if isinstance(site.activation, str):
        return site.activation
    return getattr(site.activation, "name", "")


def _activations(measured: Measured) -> list[str]:
    """Names of the activations of the model, the most frequent first."""
    names = [_name(site) for site in measured.sites if site.activation is not None]
    return sorted(set(names), key=names.count, reverse=True)
