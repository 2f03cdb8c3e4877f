"""Laws: what theory knows of one block of a network, and of which quantities it knows nothing.

A block is the one of `networks.MLP`, h -> skip(h, W a + b) with a = dropout(phi(norm(h))) or
dropout(norm(phi(h))).
"""

import dataclasses
import inspect
import math
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import ArrayLike

from jaxstab.activations import Activation, get
from jaxstab.checks import check_choice, check_count
from jaxstab.theory.maps import AnyActivation
from jaxstab.theory.squashes import SQUASHES, squashed

# those of `networks` that have a law; imported from there, theory would wait for Flax
NORMS = ("batch", "layer", "rms", "peri", *SQUASHES)
SKIPS = ("sum", "scaled", "rezero", "highway", "dense")
# variance of the weights times fan_in, at unit gain and as many inputs as outputs
WEIGHT_VARIANCES = {
    "gaussian": 1.0,
    "orthogonal": 1.0,
    "lecun_normal": 1.0,
    "lecun_uniform": 1.0,
    "glorot_normal": 1.0,
    "glorot_uniform": 1.0,
    "he_normal": 2.0,
    "he_uniform": 2.0,
}
NO_LAW = (
    'the chain carries no law: law={"activation": "tanh", ...} of networks.from_linen, from_nnx or '
    "from_functions says what theory may assume of a block"
)
# BatchNorm's mean squared gradient is infinite for smaller batches
SMALLEST_BATCH = 4


@dataclasses.dataclass(frozen=True)
class Law:
    """What theory assumes of a block. A pytree: numbers are traced, names and counts are static.

    Attributes:
        activation: phi; behind or before a "dyt" or "derf" norm the two in one.
        keep: keep rate of dropout, in (0, 1].
        alpha: factor of a "rezero" branch.
        epsilon: added to the variance in a norm, >= 0.
        gate_bias: of a highway's gate.
        norm: None, "batch", "layer" or "rms"; also None where it is part of the activation.
        norm_after: whether the norm follows phi.
        skip: None, "sum", "scaled", "rezero", "highway" or "dense".
        weights: law of the weights, one of `networks.WEIGHTS`.
        depth: number of blocks of the network, for the scale of "scaled"; None for the deepest
            depth asked for.
        batch: examples that go through the network together; None for one, and for BatchNorm's
            limit of many.
        shared_masks: whether the two inputs of a correlation go through the same masks of dropout.
        branch_norm: whether the branch W a + b is normalised too, as by "peri".
    """

    activation: Activation
    keep: Any = 1.0
    alpha: Any = 0.0
    epsilon: Any = 1e-5
    gate_bias: Any = -2.0
    norm: str | None = None
    norm_after: bool = False
    skip: str | None = None
    weights: str = "gaussian"
    depth: int | None = None
    batch: int | None = None
    shared_masks: bool = True
    branch_norm: bool = False

    @property
    def log_variance(self) -> float:
        """ln of the weights' variance times fan_in, at unit gain."""
        return math.log(WEIGHT_VARIANCES[self.weights])

    def log_variance_of(self, fan_in: int, fan_out: int) -> float:
        """ln of the variance times fan_in, of weights that are not square.

        Args:
            fan_in: inputs.
            fan_out: outputs.

        Returns:
            The logarithm.
        """
        if self.weights.startswith("glorot"):
            return math.log(2 * fan_in / (fan_in + fan_out))
        return self.log_variance

    @property
    def form(self) -> "Law":
        """The law with its numbers at their defaults: what is static of it."""
        return Law(get("identity"), **{name: getattr(self, name) for name in _NAMES})

    @property
    def residual(self) -> bool:
        """Whether a skip adds the branch to h."""
        return self.skip in ("sum", "scaled", "rezero")

    @property
    def finite_batch(self) -> bool:
        """Whether BatchNorm takes its statistics over a batch of a given size."""
        return self.norm == "batch" and self.batch is not None


@runtime_checkable
class Network(Protocol):
    """A network that carries keywords of `law`, such as `networks.Chain`."""

    @property
    def law(self) -> Mapping[str, Any] | None:
        """The keywords.

        Returns:
            The keywords; None where nobody gave any.
        """


# what stands for a block: an activation for a plain one, a law, or a chain that carries one
AnyBlock = AnyActivation | Law | Network

_NUMBERS = ("activation", "keep", "alpha", "epsilon", "gate_bias")
_NAMES = tuple(field.name for field in dataclasses.fields(Law) if field.name not in _NUMBERS)
jax.tree_util.register_dataclass(Law, data_fields=_NUMBERS, meta_fields=_NAMES)


def law(
    activation: AnyActivation,
    *,
    norm: str | None = None,
    norm_after: bool = False,
    skip: str | None = None,
    keep: ArrayLike = 1.0,
    weights: Any = "gaussian",
    depth: int | None = None,
    batch: int | None = None,
    alpha: ArrayLike = 0.0,
    epsilon: ArrayLike = 1e-5,
    gate_bias: ArrayLike = -2.0,
    shared_masks: bool = True,
) -> Law:
    """The law of a block, to be predicted as an activation is: `predict(law(...), sigma_w, sigma_b, depths, ...)`.

    Args:
        activation: name, `Activation` or elementwise callable.
        norm: None, "batch", "layer", "rms", "peri", "dyt" or "derf"; the last two are elementwise,
            at the alpha = 0.5 of a fresh network, "peri" is LayerNorm of h and of the branch.
        norm_after: whether the norm follows phi instead of preceding it.
        skip: None, "sum", "scaled", "rezero", "highway" or "dense", as `networks.MLP` has them.
        keep: keep rate of dropout, in (0, 1]; those kept grow by 1/keep.
        weights: one of `networks.WEIGHTS`, by name.
        depth: number of blocks of the network, for the scale of "scaled"; None for the deepest
            depth asked for.
        batch: examples that go through the network together, any two of the same correlation; None
            for one, and for BatchNorm's limit of many. BatchNorm needs at least 4.
        alpha: factor of a "rezero" branch.
        epsilon: added to the variance in a norm, >= 0.
        gate_bias: of a highway's gate.
        shared_masks: whether the two inputs of a correlation go through the same masks of dropout,
            as in `propagation.correlation` without `other`.

    Returns:
        The law.

    Raises:
        ValueError: if a name is unknown or a number out of range.

    Example:
        >>> from jaxstab import theory
        >>> block = theory.law("relu", norm="layer", skip="sum", keep=0.9)
        >>> forward, _, backward, _ = theory.predict(block, 1.0, 0.0, [2], width=64, d_in=64)
        >>> [f"{q:.3f}" for q in forward.q.tolist()]
        ['1.000', '1.556', '2.111']
    """
    if norm is not None:
        check_choice("norm", norm, NORMS)
    if skip is not None:
        check_choice("skip", skip, SKIPS)
    if not isinstance(weights, str):
        raise ValueError(
            f"weights must be named for theory, one of {', '.join(WEIGHT_VARIANCES)}, got "
            f"{weights!r}"
        )
    check_choice("weights", weights, tuple(WEIGHT_VARIANCES))
    if depth is not None:
        depth = check_count("depth", depth, 1)
    if batch is not None:
        batch = check_count("batch", batch, SMALLEST_BATCH if norm == "batch" else 1)
    _check_number("keep", keep, 0.0, 1.0, open_below=True)
    _check_number("epsilon", epsilon, 0.0, math.inf)
    _check_number("alpha", alpha, -math.inf, math.inf)
    _check_number("gate_bias", gate_bias, -math.inf, math.inf)
    phi = get(activation)
    if norm in SQUASHES:
        phi = squashed(phi, norm, norm_after)
        norm = None
    branch_norm = norm == "peri"
    if branch_norm:
        norm = "layer"
    return Law(
        phi,
        keep,
        alpha,
        epsilon,
        gate_bias,
        norm,
        bool(norm_after) and norm is not None,
        skip,
        weights,
        depth,
        batch,
        shared_masks,
        branch_norm,
    )


def _check_number(
    name: str, value: ArrayLike, low: float, high: float, open_below: bool = False
) -> None:
    """Check that a number is finite and in a range; traced ones have no value to check and pass."""
    if isinstance(value, jax.core.Tracer):
        return
    number = np.asarray(value, float)
    above = number > low if open_below else number >= low
    if np.all(np.isfinite(number) & above & (number <= high)):
        return
    if math.isinf(low):
        allowed = "finite"
    elif math.isinf(high):
        allowed = f">= {low:g} and finite"
    else:
        allowed = f"in {'(' if open_below else '['}{low:g}, {high:g}]"
    raise ValueError(f"{name} must be {allowed}, got {value}")


def as_law(block: AnyBlock) -> Law:
    """The law of a block, which for an activation is the plain one.

    Args:
        block: a law, a chain that carries one, or the activation of a plain block.

    Returns:
        The law.

    Raises:
        ValueError: if a chain carries no law, or one that `law` does not take.
    """
    if isinstance(block, Law):
        return block
    if isinstance(block, Network):
        return law_of(block)
    return Law(get(block))


def law_of(network: Network, **of_run: Any) -> Law:
    """The law that a network carries.

    Args:
        network: a chain.
        of_run: further keywords of `law`, such as the keep rate and the batch; the network's own
            precede them.

    Returns:
        The law.

    Raises:
        ValueError: if it carries none, or one that `law` does not take.
    """
    keywords = network.law
    if keywords is None:
        raise ValueError(NO_LAW)
    known = tuple(inspect.signature(law).parameters)
    for name in keywords:
        check_choice("a keyword of law", name, known)
    return law(**(of_run | dict(keywords)))


# what `predict` gives, by the name of its field
FIELDS = (
    "log_q",
    "saturation",
    "dead",
    "c",
    "log_grad_h",
    "log_grad_theta",
    "log_s",
    "log_mean_square",
)


def missing(block: AnyBlock) -> dict[str, str]:
    """What theory does not know of a block, and why.

    Args:
        block: a law, a chain that carries one, or the activation of a plain block.

    Returns:
        Reasons by name: of a field of `predict`'s records, which is NaN; "fixed_point", where
        there is none or its fields are limits of infinite depth; "critical_points", where no gain
        has chi_1 = 1; "kernels", where there are none.

    Example:
        >>> from jaxstab import theory
        >>> sorted(theory.missing(theory.law("relu", norm="batch", batch=32)))
        ['dead', 'kernels', 'log_s']
        >>> theory.missing(theory.law("tanh", skip="sum"))["fixed_point"]
        'residual: q grows with every block, c* and the rates are those it tends to'
    """
    known = as_law(block)
    functions = {
        "fixed_point": missing_fixed_point(known),
        "critical_points": missing_critical_points(known),
        "kernels": missing_kernels(known),
    }
    return missing_fields(known) | {name: why for name, why in functions.items() if why}


def missing_fields(known: Law) -> dict[str, str]:
    """What `predict` does not know of a block, and why; those fields are NaN.

    Args:
        known: the law.

    Returns:
        Reasons by the name of a record's field.
    """
    reasons = {"log_s": "single singular values are random; their mean square is predicted"}
    why = _no_law(known)
    if why:
        return dict.fromkeys(FIELDS, why)
    if known.norm == "batch" and known.norm_after:
        reasons["log_grad_theta"] = (
            "gradients of weights add up over a batch, and those of its examples are correlated"
        )
    if known.batch is not None and known.batch > 1:
        reasons["dead"] = "units dead for every example of a batch"
        if known.norm != "batch":
            reasons["log_grad_theta"] = (
                "gradients of weights add up over a batch as its labels have it"
            )
    return reasons


def missing_kernels(known: Law) -> str:
    """Why no kernel is known of a block; empty where one is.

    Args:
        known: the law.

    Returns:
        The reason.
    """
    if known.norm == "batch":
        return "BatchNorm mixes the examples, and kernels are those of a whole batch"
    return _no_law(known)


def _no_law(known: Law) -> str:
    """Why nothing is known of a block; empty where something is."""
    if known.skip == "highway":
        return "highway: states are no Gaussians, as gates differ from unit to unit"
    if known.finite_batch and known.norm_after:
        return (
            "BatchNorm after phi: a quotient of moments of the whole batch, without a closed form; "
            "batch None is its limit of many examples"
        )
    if known.branch_norm and known.skip == "dense":
        return "peri beside dense: the branch's length is that of all layers' features together"
    return ""


def missing_fixed_point(known: Law) -> str:
    """Why a law has no fixed point, or which of its fields are limits of infinite depth; empty where all is known.

    Args:
        known: the law.

    Returns:
        The reason. `fixed_point` is NaN throughout where `unsolvable` has one too.
    """
    why = unsolvable(known)
    if why:
        return why
    if known.residual:
        return "residual: q grows with every block, c* and the rates are those it tends to"
    if known.skip == "dense":
        return "dense: q* and c* are neared as a power of depth, and rates per layer tend to 0"
    return ""


def unsolvable(known: Law) -> str:
    """Why a law has no fixed point at all; empty where it has.

    Args:
        known: the law.

    Returns:
        The reason.
    """
    if known.skip == "scaled" and known.depth is None:
        return "scaled: branches get weaker with the depth of the network, which the law must say"
    if known.norm == "batch" and known.norm_after:
        return (
            "BatchNorm after phi: rates depend on q and c together, and predict has them by layer"
        )
    if known.branch_norm and not known.residual:
        return "peri without a skip: normalised twice, it has the rates of norm layer at length 1"
    return _no_law(known)


def missing_critical_points(known: Law) -> str:
    """Why no gain of a law has chi_1 = 1; empty where one may.

    Args:
        known: the law.

    Returns:
        The reason.
    """
    why = unsolvable(known)
    if why:
        return why
    if known.residual:
        return "residual: chi_1 = 1 + s^2 sigma_w^2 D exceeds 1 at every gain, and may tend to 1 with depth"
    if known.skip == "dense":
        return "dense: chi_1 tends to 1 with depth at every gain"
    return ""
