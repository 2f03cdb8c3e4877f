"""Records of a diagnosis: findings and prescriptions with their measured numbers."""

import json
import math
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import PyTree

from jaxstab.diagnosis.comparing import Theory
from jaxstab.diagnosis.intervals import Interval
from jaxstab.diagnosis.measuring import Measured
from jaxstab.diagnosis.stability import Stability
from jaxstab.networks.sites import Missed


class Finding(NamedTuple):
    """One fault of a model.

    Attributes:
        fault: name of the fault, such as "vanishing gradient".
        where: name of the row, or path of the submodule.
        measured: measured number with its interval.
        unit: phrase after the number that names its unit and meaning.
        why: one line of theory with its source.
        change: remedy.
    """

    fault: str
    where: str
    measured: Interval
    unit: str
    why: str
    change: str

    def __str__(self) -> str:
        """Format as three lines."""
        return (
            f"{self.fault.upper()} at {self.where}: {self.measured} {self.unit}\n"
            f"    why:    {self.why}\n    change: {self.change}"
        )


class Prescription(NamedTuple):
    """Changed parameters that a measurement shows to be better.

    Attributes:
        name: name of the cure.
        change: change of the parameters.
        quantity: quantity that the cure brings towards zero.
        before: that quantity with the given parameters.
        after: that quantity with the new parameters.
        params: new parameters, of the same shapes.
    """

    name: str
    change: str
    quantity: str
    before: float
    after: float
    params: PyTree

    def __str__(self) -> str:
        """Format as one line with the measured quantity."""
        return f"{self.name}: {self.change}; {self.quantity}: {self.before:.3g} before, {self.after:.3g} after"


class Diagnosis(NamedTuple):
    """Faults of a model at one batch, with the cures that a measurement shows to help.

    Attributes:
        findings: faults, the worst first; empty for a healthy model.
        prescriptions: cures that a measurement shows to help, for `apply`.
        rate: d ln |dL/dh| / dl over the blocks, in nats per block; positive where the gradient
            vanishes.
        small: share of the blocks whose gradient is below 1 % of the largest.
        theory: measured rate compared with the predicted one, or the reason for no prediction.
        missed: submodules that could not be measured.
        measured: measurement of signal and gradient.
        stability: largest stable step of the loss; None without an optimiser, or where signal or
            gradient is not finite.
    """

    findings: tuple[Finding, ...]
    prescriptions: tuple[Prescription, ...]
    rate: Interval
    small: float
    theory: Theory
    missed: tuple[Missed, ...]
    measured: Measured
    stability: Stability | None = None

    @property
    def healthy(self) -> bool:
        """True if there are no findings."""
        return not self.findings

    def apply(self, name: str | None = None) -> PyTree:
        """Return the parameters of a prescription.

        Args:
            name: name of the prescription; None for the first.

        Returns:
            Parameters of the same shapes as the diagnosed ones.

        Raises:
            ValueError: if there is no such prescription.
        """
        for cure in self.prescriptions:
            if name in (None, cure.name):
                return cure.params
        known = ", ".join(cure.name for cure in self.prescriptions) or "none"
        if name is None:
            raise ValueError("the report has no prescription: no cure was measured to help")
        raise ValueError(f"name must be one of the prescriptions, {known}, got {name!r}")

    def __str__(self) -> str:
        """Format as a page."""
        return "\n".join([*self.summary, "", *self._body()])

    def as_json(self) -> str:
        """Encode the diagnosis without parameters as JSON.

        Returns:
            JSON text; numbers that are not finite are null.
        """
        measured = self.measured
        rows = {
            row.name: {
                "class": site.kind,
                "log_grad_h": measured.log_grad_h[i],
                "log_grad_theta": measured.log_grad_theta[i],
                **{field: values[i] for field, values in measured.signal._asdict().items()},
                "alike": measured.alike[i],
                "tokens": measured.tokens[i],
                "max_logit": measured.attention.max_logit[i],
                "share_of_entropy": measured.attention.entropy[i],
                "gradient_cosine_nearby": measured.saliency.cosine[i],
                "saliency_signal_to_noise": measured.saliency.signal_to_noise[i],
            }
            for i, (row, site) in enumerate(zip(measured.rows, measured.sites, strict=True))
        }
        text = {
            "findings": [
                finding._asdict() | {"measured": finding.measured._asdict()}
                for finding in self.findings
            ],
            "prescriptions": [_without_params(cure) for cure in self.prescriptions],
            "rate": self.rate._asdict(),
            "blocks": [measured.rows[i].name for i in measured.blocks],
            "share_of_blocks_below_1_percent": self.small,
            "theory": self.theory._asdict(),
            "missed": [missed._asdict() for missed in self.missed],
            "loss": measured.loss,
            "stability": _of_steps(self.stability),
            "rows": rows,
        }
        return json.dumps(_plain(text), indent=1, allow_nan=False)

    @property
    def summary(self) -> list[str]:
        """Lines that summarise the measurement, one sentence each."""
        measured = self.measured
        lines = [f"{len(measured.rows)} places measured, loss {measured.loss:.4g}"]
        if measured.blocks:
            first, last = (measured.rows[measured.blocks[i]].name for i in (0, -1))
            lines.append(f"depth: {len(measured.blocks)} blocks, {first} to {last}")
            lines.append(
                f"ln of the gradient: {self.rate} nats per block, positive if it vanishes towards "
                "the input"
            )
            lines.append(f"blocks below 1 % of the largest gradient: {self.small:.0%}")
            lines.append(f"theory: {self.theory}")
        else:
            lines.append("depth: no rate is fitted without three adjacent modules of one class")
        if self.stability is not None:
            lines.append(f"steps: {self.stability}")
        if self.missed:
            shown = list(map(str, self.missed[:5]))
            if len(self.missed) > 5:
                shown.append("...")
            lines.append(f"not measured: {'; '.join(shown)}")
        return lines

    def _body(self) -> list[str]:
        if self.healthy:
            return ["no finding: signal and gradient survive the depth"]
        lines = [f"{i + 1}. {finding}" for i, finding in enumerate(self.findings)]
        if self.prescriptions:
            lines += ["", "measured to help (the method `apply` returns the parameters):"]
            lines += [f"  - {cure}" for cure in self.prescriptions]
        return lines


def _without_params(cure: Prescription) -> dict[str, Any]:
    return {name: value for name, value in cure._asdict().items() if name != "params"}


def _of_steps(stability: Stability | None) -> dict[str, Any] | None:
    if stability is None:
        return None
    named = stability._asdict()
    return named | {name: named[name]._asdict() for name in ("sharpness", "share")}


def _plain(value: Any) -> Any:
    """Convert to Python's own types, with None for numbers that are not finite."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        if math.isfinite(value):
            return float(value)
        return None
    return value
