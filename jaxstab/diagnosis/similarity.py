"""Rules of similarity: collapsing correlation, chaos, entropy collapse and shattered gradients."""

import numpy as np

from jaxstab.diagnosis.findings import Finding
from jaxstab.diagnosis.intervals import Interval, certain
from jaxstab.diagnosis.measuring import NEARBY, Measured

# correlation above which a linear readout cannot separate examples, and largest correlation of
# examples that are separate at the first row
COLLAPSED = 0.999
APART = 0.95
# cosine of the gradients of nearby inputs below which a saliency map is mostly noise
SHATTERED = 0.5
# share of the entropy of equal weights below which attention looks at single positions
SETTLED = 0.1


def collapsing(measured: Measured) -> list[Finding]:
    """Find correlations of examples or positions that tend to one.

    Args:
        measured: measurement of the model.

    Returns:
        List of findings, at most one of examples and one of positions.
    """
    found = []
    for correlations, members in ((measured.alike, "examples"), (measured.tokens, "positions")):
        known = np.flatnonzero(np.isfinite(correlations) & measured.floating)
        bad = [i for i in measured.blocks if correlations[i] > COLLAPSED]
        if not len(known) or not bad or correlations[known[0]] > APART:
            continue
        if members == "examples":
            source = "(Schoenholz et al. 2017)"
        else:
            source = "(Dong et al. 2021)"
        first = f"{1 - float(correlations[known[0]]):.2g} at {measured.rows[known[0]].name}"
        found.append(
            Finding(
                "collapsing correlation",
                measured.rows[bad[0]].name,
                certain(1 - float(correlations[bad[0]])),
                f"is 1 - c of pairs of {members}, {first}",
                f"in the ordered phase c tends to 1 with depth: deep layers no longer tell {members} "
                f"apart {source}",
                _apart(measured, members),
            )
        )
    return found


def _apart(measured: Measured, members: str) -> str:
    """Text of the change that keeps examples or positions apart."""
    normed = measured.has("LayerNorm") or measured.has("RMSNorm")
    if members == "positions" and normed:
        return (
            "attention averages positions: put the norm within the residual branch (pre-norm; "
            "Xiong et al. 2020), "
            "or scale the branches by 1/sqrt(L) (Noci et al. 2022)"
        )
    return "raise the gain to the critical one, centre the activation (tanh for sigmoid), or add skip connections"


def settled(measured: Measured) -> list[Finding]:
    """Find attention that looks at single positions.

    Args:
        measured: measurement of the model.

    Returns:
        List of one finding, or of none.
    """
    entropy = measured.attention.entropy
    bad = np.flatnonzero(entropy < SETTLED)
    if not len(bad):
        return []
    first = int(bad[0])
    value = float(entropy[first])
    reach = 2 * float(measured.attention.error[first])
    count = int(np.sum(np.isfinite(entropy)))
    return [
        Finding(
            "entropy collapse",
            measured.rows[first].name,
            Interval(value, value - reach, value + reach),
            "of the entropy of equal weights is left; largest logit "
            f"{measured.attention.max_logit[first]:.3g}; "
            f"{len(bad)} of {count} softmaxes are below {SETTLED:.0%}",
            "attention to single positions passes almost no gradient to its logits, and training "
            "becomes unstable (Zhai et al. 2023); it arises when the spread of logits exceeds "
            "sqrt(2 ln T) (Derrida 1981)",
            "normalise queries and keys (Dehghani et al. 2023), or scale their kernels down; if "
            "it arose in training, lower the learning rate or clip updates",
        )
    ]


def chaotic(measured: Measured) -> list[Finding]:
    """Find nearby inputs whose signals decorrelate with depth.

    Args:
        measured: measurement of the model.

    Returns:
        List of one finding, or of none.
    """
    if not measured.blocks:
        return []
    bad = [i for i in measured.blocks if measured.nearby[i] < 0.5]
    if not bad:
        return []
    return [
        Finding(
            "chaos",
            measured.rows[bad[0]].name,
            certain(float(measured.nearby[bad[0]])),
            f"is the correlation of inputs that differ by {NEARBY:.0%}",
            "in the chaotic phase, chi_1 > 1, nearby inputs decorrelate, and so do their gradients "
            "(Poole et al. 2016; Balduzzi et al. 2017)",
            "lower the gain to the critical one, or add skip connections",
        )
    ]


def shattered(measured: Measured) -> list[Finding]:
    """Find gradients that differ between nearby inputs.

    Args:
        measured: measurement of the model.

    Returns:
        List of one finding, or of none.
    """
    saliency = measured.saliency
    bad = [i for i in measured.blocks if saliency.cosine[i] < SHATTERED]
    if not bad:
        return []
    # each block towards the input shatters the gradient further
    lowest = measured.blocks[0]
    value = float(saliency.cosine[lowest])
    reach = 2 * float(saliency.error[lowest])
    return [
        Finding(
            "shattered gradient",
            measured.rows[bad[-1]].name,
            Interval(value, value - reach, value + reach),
            f"is the cosine of the gradients at {measured.rows[lowest].name} of inputs that differ "
            f"by {NEARBY:.0%}; "
            f"signal to noise of a saliency map {saliency.signal_to_noise[lowest]:.2g}",
            "without skip connections gradients of nearby inputs decorrelate with depth, like "
            "noise (Balduzzi et al. 2017)",
            "add skip connections, scaled down with depth where BatchNorm is used, or lower the "
            "gain",
        )
    ]
