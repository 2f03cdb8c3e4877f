"""Reasons why theory cannot predict a quantity of a block."""

import jax
import numpy as np

from jaxstab.arguments import explained
from jaxstab.theory.laws import AnyBlock, Law, as_law
from jaxstab.theory.moment_errors import missing_moments

# fields of the records of `predict`
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


@explained
def missing(block: AnyBlock, q: float | None = None) -> dict[str, str]:
    """List what theory cannot predict for a block, with reasons.

    Args:
        block: law, chain that carries one, or activation of a plain block.
        q: length, > 0, not traced, at which moments of the activation are checked; None for no
            check.

    Returns:
        Reasons by name. A name is a field of `predict`'s records that is NaN; "fixed_point" where
        there is none or its fields are limits of infinite depth; "critical_points" where no gain
        has chi_1 = 1; "kernels" where theory has no kernels; "moments" where E phi^2, E phi'^2,
        xi_q or xi_c is infinite or lacks a relative accuracy of 1e-8 at q.

    Example:
        >>> from jaxstab import theory
        >>> sorted(theory.missing(theory.law("relu", norm="batch", batch=32)))
        ['dead', 'kernels', 'log_s']
        >>> theory.missing(theory.law("tanh", skip="sum"))["fixed_point"]
        'residual: q grows with every block; c* and the rates are limits of infinite depth'
        >>> theory.missing(lambda z: jax.numpy.sqrt(jax.numpy.abs(z)), q=1.0)["moments"]
        "E phi'^2 is infinite: phi' grows too fast towards z = 0"
    """
    known = as_law(block)
    functions = {
        "fixed_point": missing_fixed_point(known),
        "critical_points": missing_critical_points(known),
        "kernels": missing_kernels(known),
    }
    if q is not None:
        functions["moments"] = missing_moments(known.activation, q)
    return missing_fields(known) | {name: why for name, why in functions.items() if why}


def missing_fields(known: Law) -> dict[str, str]:
    """List the fields that `predict` leaves NaN for a law, with reasons.

    Args:
        known: law of the block.

    Returns:
        Reasons by the name of a record's field.
    """
    reasons = {"log_s": "single singular values are random; their mean square is predicted"}
    why = _no_law(known)
    if why:
        return dict.fromkeys(FIELDS, why)
    if known.norm == "batch" and known.shared_masks and _thinned(known):
        reasons["c"] = (
            "two batches under the same masks of dropout are correlated example by example, which "
            "BatchNorm's law leaves out; shared_masks=False has c"
        )
    if known.norm == "batch" and known.norm_after:
        reasons["log_grad_theta"] = (
            "gradients of weights add up over a batch, and those of its examples are correlated"
        )
    if known.batch is not None and known.batch > 1:
        reasons["dead"] = "units dead for every example of a batch"
        if known.norm != "batch":
            reasons["log_grad_theta"] = (
                "the sum of weight gradients over a batch depends on the labels"
            )
    return reasons


def _thinned(known: Law) -> bool:
    """Check that dropout drops units; a traced keep rate counts as 1."""
    if isinstance(known.keep, jax.core.Tracer):
        return False
    return bool(np.any(np.asarray(known.keep) != 1.0))


def missing_kernels(known: Law) -> str:
    """Give the reason why `kernels` has none for a law.

    Args:
        known: law of the block.

    Returns:
        The reason; empty where kernels are known.
    """
    if known.norm == "batch":
        return "BatchNorm mixes examples, so that kernels depend on the whole batch"
    return _no_law(known)


def _no_law(known: Law) -> str:
    """Give the reason why theory predicts nothing for a law; empty where it predicts something."""
    if known.skip == "highway":
        return "highway: states are not Gaussian, as gates differ from unit to unit"
    if known.finite_batch and known.norm_after:
        return (
            "BatchNorm after phi: moments of a finite batch have no closed form; batch=None is the "
            "limit of many examples"
        )
    if known.branch_norm and known.skip == "dense":
        return "peri with dense: the length of the branch depends on the features of all layers"
    return ""


def missing_fixed_point(known: Law) -> str:
    """Give the reason why a law has no fixed point, or only one of limits of infinite depth.

    Args:
        known: law of the block.

    Returns:
        The reason; empty where the fixed point is exact. All fields of `fixed_point` are NaN where
        `unsolvable` gives a reason too.
    """
    why = unsolvable(known)
    if why:
        return why
    if known.residual:
        return "residual: q grows with every block; c* and the rates are limits of infinite depth"
    if known.skip == "dense":
        return "dense: q* and c* are approached as a power of depth; rates per layer tend to 0"
    return ""


def unsolvable(known: Law) -> str:
    """Give the reason why a law has no fixed point at all.

    Args:
        known: law of the block.

    Returns:
        The reason; empty where there is a fixed point.
    """
    if known.skip == "scaled" and known.depth is None:
        return "scaled: the scale of branches depends on the depth, which the law must give"
    if known.norm == "batch" and known.norm_after:
        return "BatchNorm after phi: rates depend on q and c together; predict gives them by layer"
    if known.branch_norm and not known.residual:
        return "peri without a skip: normalised twice, with the rates of norm layer at length 1"
    return _no_law(known)


def missing_critical_points(known: Law) -> str:
    """Give the reason why no gain of a law has chi_1 = 1.

    Args:
        known: law of the block.

    Returns:
        The reason; empty where a gain may have chi_1 = 1.
    """
    why = unsolvable(known)
    if why:
        return why
    if known.residual:
        return "residual: chi_1 = 1 + s^2 sigma_w^2 D exceeds 1 at every gain, and may tend to 1 with depth"
    if known.skip == "dense":
        return "dense: chi_1 tends to 1 with depth at every gain"
    return ""
