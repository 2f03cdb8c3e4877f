"""Records of a diagnosis: findings and prescriptions, with what was measured of each."""

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
    """One thing that is wrong with a model.

    Attributes:
        what: name of the fault, such as "vanishing gradient".
        where: name of the row, or path of the submodule.
        measured: how much.
        unit: what the number counts.
        why: one line of theory with its source.
        change: what to do.
    """

    what: str
    where: str
    measured: Interval
    unit: str
    why: str
    change: str

    def __str__(self) -> str:
        """Four lines."""
        return (
            f"{self.what.upper()} at {self.where}: {self.measured} {self.unit}\n"
            f"    why:    {self.why}\n    change: {self.change}"
        )


class Prescription(NamedTuple):
    """Other parameters that were measured to be better.

    Attributes:
        name: of the cure.
        what: what was done to the parameters.
        quantity: what it promised to bring towards zero.
        before: that quantity with the parameters given.
        after: with the new ones.
        params: the new parameters, of the same shapes.
    """

    name: str
    what: str
    quantity: str
    before: float
    after: float
    params: PyTree

    def __str__(self) -> str:
        """One line with what was measured."""
        return f"{self.name}: {self.what}; {self.quantity}: {self.before:.3g} before, {self.after:.3g} after"


class Diagnosis(NamedTuple):
    """What is wrong with a model at one batch, and what was seen to help.

    Attributes:
        findings: the worst first; none for a healthy model.
        prescriptions: cures that were measured to help, for `apply`.
        rate: d ln |dL/dh| / dl over the blocks, in nats per block; positive where the gradient
            vanishes.
        small: share of the blocks below 1 % of the largest gradient of a block.
        theory: the rate beside the predicted one, or why nothing is predicted.
        missed: submodules that could not be measured.
        measured: the numbers.
        stability: how large steps the loss stands; None where no optimiser was given, or signal or
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
        """Whether nothing was found."""
        return not self.findings

    def __str__(self) -> str:
        """A page."""
        return "\n".join([*self.summary, "", *self._body()])

    def as_json(self) -> str:
        """Everything but parameters as JSON.

        Returns:
            The text; numbers that are not finite are null.
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
        """What was measured, one sentence a line."""
        measured = self.measured
        lines = [f"{len(measured.rows)} places measured, loss {measured.loss:.4g}"]
        if measured.blocks:
            first, last = (measured.rows[measured.blocks[i]].name for i in (0, -1))
            lines.append(f"depth: {len(measured.blocks)} blocks, {first} to {last}")
            lines.append(
                f"ln of the gradient: {self.rate} nats a block, positive where it vanishes towards "
                "the input"
            )
            lines.append(f"blocks below 1 % of the largest gradient: {self.small:.0%}")
            lines.append(f"theory: {self.theory}")
        else:
            lines.append(
                "depth: no three modules of one class side by side, so that no rate is fitted"
            )
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
            return ["nothing found: signal and gradient survive the depth"]
        lines = [f"{i + 1}. {finding}" for i, finding in enumerate(self.findings)]
        if self.prescriptions:
            lines += ["", "measured to help (diagnosis.apply gives the parameters):"]
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
    """Python's own types, numbers that are not finite as None."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        if math.isfinite(value):
            return float(value)
        return None
    return value
