"""Measures of a cell: records of a network, or its training."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from jaxstab import networks, propagation, spectra, training
from jaxstab.checks import Integer, Integers, check_count, check_looks, plain_axis, plain_number
from jaxstab.records import Spectrum
from jaxstab.sweeps.examples import Sample
from jaxstab.training.examples import Loss

Record = Any
Measure = Callable[
    [networks.Chain, networks.Params, Sample, Sequence[int]], Record | tuple[Record, ...]
]


def signal(
    chain: networks.Chain, params: networks.Params, sample: Sample, depths: Sequence[int]
) -> tuple[Record, ...]:
    """Measure forward, correlation and backward profiles; the loss is (mean) softmax cross-entropy.

    Args:
        chain: the network.
        params: parameters of the network.
        sample: inputs and label.
        depths: depths at which the loss is attached.

    Returns:
        ForwardProfile, CorrelationProfile, BackwardProfile.
    """
    return (
        propagation.forward(chain, params, sample.x),
        propagation.correlation(chain, params, sample.x, sample.other),
        propagation.backward(chain, params, sample.x, _loss(sample), depths),
    )


def jacobian(
    chain: networks.Chain, params: networks.Params, sample: Sample, depths: Sequence[int]
) -> Record:
    """Measure log singular values of the input-output Jacobian at every depth; a batch is one input.

    Args:
        chain: the network.
        params: parameters of the network.
        sample: inputs and label.
        depths: depths of the spectra.

    Returns:
        Spectrum.
    """
    if isinstance(chain.block, tuple):
        return Spectrum.of(spectra.log_singular_values(chain, params, sample.x, depths))
    if sample.x.ndim == 2:
        chain = networks.flatten(chain, len(sample.x))
    return Spectrum.of(spectra.log_singular_values(chain, params, sample.x.ravel(), depths))


def sharpness(
    chain: networks.Chain, params: networks.Params, sample: Sample, depths: Sequence[int]
) -> Record:
    """Measure the largest eigenvalues of the Hessian and of the Gauss-Newton matrix at every depth.

    The loss is (mean) softmax cross-entropy, as in `signal`.

    Args:
        chain: the network.
        params: parameters of the network.
        sample: inputs and label.
        depths: depths at which the loss is attached.

    Returns:
        Sharpness.
    """
    return training.sharpness(chain, params, sample.x, _loss(sample), depths)


def _loss(sample: Sample) -> Callable[[Any], Any]:
    """Make the softmax cross-entropy with the sample's labels, the mean over a batch."""

    def loss(y: Any) -> Any:
        return training.cross_entropy(y, sample.label)

    return loss


# measures of jaxstab, none of which reads the activation's name
OURS = (signal, jacobian, sharpness)


@dataclasses.dataclass(frozen=True)
class Train:
    """Train each cell by `training.train`.

    Attributes:
        steps: number of updates.
        evaluate: numbers of updates after which all data are evaluated and gradients are recorded,
            besides the last update.
        curvature_every: updates from one record of the sharpness to the next, as in
            `training.train`; None for no record.
        loss: (outputs, labels) -> scalar.
    """

    steps: Integer = 200
    evaluate: Integers = (0,)
    loss: Loss = training.cross_entropy
    curvature_every: Integer | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            ValueError: if steps or curvature_every is no integer >= 1, or an evaluation is not in
                [0, steps].
        """
        steps = check_count("steps", plain_number("steps", self.steps, integer=True), 1)
        evaluate = plain_axis("evaluate", self.evaluate, integer=True)
        check_looks(evaluate, steps)
        # a frozen dataclass allows no plain assignment
        object.__setattr__(self, "steps", steps)
        object.__setattr__(self, "evaluate", evaluate)
        if self.curvature_every is not None:
            every = plain_number("curvature_every", self.curvature_every, integer=True)
            object.__setattr__(self, "curvature_every", check_count("curvature_every", every, 1))

    @property
    def evaluations(self) -> tuple[int, ...]:
        """Numbers of updates after which all data are evaluated, ascending, the last included."""
        return tuple(sorted({*self.evaluate, self.steps}))

    @property
    def records(self) -> tuple[int, ...]:
        """Numbers of updates after which the sharpness is recorded, ascending."""
        if self.curvature_every is None:
            return ()
        return tuple(range(0, self.steps, self.curvature_every))
