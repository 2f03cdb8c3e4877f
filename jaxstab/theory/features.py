"""What quadrature must know of an activation: where it bends, on which scale it varies, what it cannot integrate."""

from typing import NamedTuple

from jaxstab.activations import Activation


class Nodes(NamedTuple):
    """Gauss-Legendre nodes of a half-panel.

    Attributes:
        single: of a lone integral.
        outer: of the outer one of two nested integrals.
        inner: of the inner one.
    """

    single: int
    outer: int
    inner: int


class Features(NamedTuple):
    """Breaks of the real line between which an activation is smooth, and the scale on which it varies around them.

    Attributes:
        breaks: ascending points z.
        scales: around each, nodes are graded towards it from this distance on.
        sharp: whether phi or a derivative of it jumps at some break.
        jumps: whether phi itself jumps at some break.
        growth: rate g where phi grows as e^(g |z|), else 0.
        nodes: of the rule whose result counts.
        check: of the rule that it is held against; None where tests have held it.
        no_length: why E phi^2 is infinite; empty where it is not known to be.
        no_slope: why E phi'^2 is infinite, likewise.
    """

    breaks: tuple[float, ...] = (0.0,)
    scales: tuple[float, ...] = (1.0,)
    sharp: bool = False
    jumps: bool = False
    growth: float = 0.0
    nodes: Nodes = Nodes(96, 32, 40)
    check: Nodes | None = None
    no_length: str = ""
    no_slope: str = ""


def features(phi: Activation) -> Features:
    """The features of an activation: those that it declares, at scale 1.

    Args:
        phi: the activation.

    Returns:
        Its features.
    """
    if not phi.kinks:
        return Features()
    return Features(phi.kinks, (1.0,) * len(phi.kinks), sharp=True, nodes=Nodes(96, 40, 28))
