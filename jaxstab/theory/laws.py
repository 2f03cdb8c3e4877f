"""Laws of blocks: what theory assumes of one block.

A block is that of `networks.MLP`: h -> skip(h, W a + b) with a = dropout(phi(norm(h))) or
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
from jaxstab.arguments import explained
from jaxstab.checks import check_choice, check_count
from jaxstab.theory.maps import AnyActivation
from jaxstab.theory.squashes import SQUASHES, squashed

# copied, not imported from `networks`, which imports Flax
NORMS = ("batch", "layer", "rms", "peri", *SQUASHES)
SKIPS = ("sum", "scaled", "rezero", "highway", "dense")
# variance of the weights times fan_in, at unit gain and fan_in = fan_out
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
    'the chain has no law; give law={"activation": "tanh", ...} to networks.from_linen, from_nnx or '
    "from_functions"
)
# BatchNorm's mean squared gradient is infinite for smaller batches
SMALLEST_BATCH = 4


@dataclasses.dataclass(frozen=True)
class Law:
    """Assumptions of theory about a block: a pytree of traced numbers and static names and counts.

    Attributes:
        activation: phi, composed with a "dyt" or "derf" norm where the block has one.
        keep: keep rate of dropout, in (0, 1].
        alpha: factor of a "rezero" branch.
        epsilon: constant added to the variance in a norm, >= 0.
        gate_bias: bias of a highway's gate.
        norm: None, "batch", "layer" or "rms"; None also where the norm is part of `activation`.
        norm_after: whether the norm follows phi.
        skip: None, "sum", "scaled", "rezero", "highway" or "dense".
        weights: law of the weights, one of `networks.WEIGHTS`.
        depth: number of blocks of the network, for the scale of "scaled"; None for the deepest
            depth requested.
        batch: number of examples that pass the network together; None for one example, and for
            BatchNorm's limit of a large batch.
        shared_masks: whether the two inputs of a correlation share their dropout masks.
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
        """Logarithm of the weights' variance times fan_in, at unit gain and fan_in = fan_out."""
        return math.log(WEIGHT_VARIANCES[self.weights])

    def log_variance_of(self, fan_in: int, fan_out: int) -> float:
        """Compute ln of the variance times fan_in at unit gain, for any fan_in and fan_out.

        Args:
            fan_in: number of inputs.
            fan_out: number of outputs.

        Returns:
            Logarithm of the variance times fan_in.
        """
        if self.weights.startswith("glorot"):
            return math.log(2 * fan_in / (fan_in + fan_out))
        return self.log_variance

    @property
    def form(self) -> "Law":
        """The law with its numbers at their defaults, which leaves its static part."""
        return Law(get("identity"), **{name: getattr(self, name) for name in _NAMES})

    @property
    def residual(self) -> bool:
        """True where a skip adds the branch to h."""
        return self.skip in ("sum", "scaled", "rezero")

    @property
    def finite_batch(self) -> bool:
        """True for BatchNorm with statistics over a batch of a given size."""
        return self.norm == "batch" and self.batch is not None


@runtime_checkable
class Network(Protocol):
    """A network that carries keyword arguments of `law`, such as `networks.Chain`."""

    @property
    def law(self) -> Mapping[str, Any] | None:
        """Keyword arguments of `law`.

        Returns:
            The keyword arguments; None where the network has no law.
        """


# an activation stands for a plain block
AnyBlock = AnyActivation | Law | Network

_NUMBERS = ("activation", "keep", "alpha", "epsilon", "gate_bias")
_NAMES = tuple(field.name for field in dataclasses.fields(Law) if field.name not in _NUMBERS)
jax.tree_util.register_dataclass(Law, data_fields=_NUMBERS, meta_fields=_NAMES)


@explained
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
    """Describe a block for theory, as in `predict(law(...), sigma_w, sigma_b, depths, ...)`.

    Args:
        activation: name, `Activation` or elementwise callable.
        norm: None, "batch", "layer", "rms", "peri", "dyt" or "derf". "peri" is LayerNorm of h and
            of the branch. "dyt" and "derf" are elementwise, with alpha = 0.5 as at initialisation.
        norm_after: whether the norm follows phi instead of preceding it.
        skip: None, "sum", "scaled", "rezero", "highway" or "dense", as in `networks.MLP`.
        keep: keep rate of dropout, in (0, 1]; kept units are scaled by 1/keep.
        weights: name of the weights' law, one of `networks.WEIGHTS`.
        depth: number of blocks of the network, for the scale of "scaled"; None for the deepest
            depth requested.
        batch: number of examples that pass the network together, all pairs equally correlated; None
            for one example, and for BatchNorm's limit of a large batch. BatchNorm needs at least 4.
        alpha: factor of a "rezero" branch.
        epsilon: constant added to the variance in a norm, >= 0.
        gate_bias: bias of a highway's gate.
        shared_masks: whether the two inputs of a correlation share their dropout masks, as in
            `propagation.correlation` without `other`.

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
            f"weights must be one of {', '.join(WEIGHT_VARIANCES)} for theory, got {weights!r}"
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
    """Check that a number is finite and in a range; a traced number passes unchecked."""
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
    """Convert a block to its law; an activation gives the law of a plain block.

    Args:
        block: law, chain that carries one, or activation of a plain block.

    Returns:
        The law.

    Raises:
        ValueError: if a chain carries no law, or keyword arguments that `law` does not take.
    """
    if isinstance(block, Law):
        return block
    if isinstance(block, Network):
        return law_of(block)
    return Law(get(block))


def law_of(network: Network, **of_run: Any) -> Law:
    """Build the law that a network carries.

    Args:
        network: chain.
        of_run: further keyword arguments of `law`, such as `keep` and `batch`; the network's own
            take precedence.

    Returns:
        The law.

    Raises:
        ValueError: if the network carries no law, or keyword arguments that `law` does not take.
    """
    keywords = network.law
    if keywords is None:
        raise ValueError(NO_LAW)
    known = tuple(inspect.signature(law).parameters)
    for name in keywords:
        check_choice("a keyword of law", name, known)
    return law(**(of_run | dict(keywords)))
