"""Rule of a gradient whose rate theory does not predict."""

from jaxstab.diagnosis.comparing import Theory
from jaxstab.diagnosis.findings import Finding
from jaxstab.diagnosis.intervals import Interval
from jaxstab.diagnosis.measuring import Measured

# a rate differs from the predicted one above both limits: standard errors beyond the band of finite
# width, and nats over the depth
APART_FROM_THEORY = 4.0
MATTERS = 1.0


def disagreement(measured: Measured, theory: Theory) -> list[Finding]:
    """Find a gradient whose rate differs from the prediction of theory for the chain's law.

    Args:
        measured: measurement of the model.
        theory: comparison of the rates.

    Returns:
        List of one finding, or of none.
    """
    apart = theory.z * theory.standard_error
    far = abs(apart) * (len(measured.blocks) - 1)
    if not (abs(theory.beyond) > APART_FROM_THEORY and far > MATTERS):
        return []
    value = theory.rate + apart
    reach = 2 * theory.standard_error
    return [
        Finding(
            "gradient unlike theory",
            measured.rows[measured.blocks[0]].name,
            Interval(value, value - reach, value + reach),
            f"nats per block, {theory.rate:.3g} predicted; z = {theory.z:.1f}, beyond finite width "
            f"{theory.beyond:.1f}",
            f"blocks of the chain's law at sigma_w {theory.sigma_w:.3g}, sigma_b "
            f"{theory.sigma_b:.3g} have one rate, up to the scatter of finite width (Schoenholz et "
            "al. 2017; Hanin & Nica 2018)",
            "check the blocks against the law: activation, norm, skip; or whether training or an "
            "initialiser made weights dependent",
        )
    ]
