"""What to sweep over: the grid, and the inputs of each cell."""

import dataclasses
import json
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import xarray as xr
from jaxtyping import Array, Float, Int

from jaxstab import networks
from jaxstab.activations import Activation, get
from jaxstab.checks import (
    Integer,
    Integers,
    Real,
    Reals,
    check_ascending,
    check_labels,
    plain_axis,
    plain_number,
)
from jaxstab.networks.blocks import UNIT_WEIGHTS
from jaxstab.records import Data


class Sample(NamedTuple):
    """What one measurement of a network looks at.

    Attributes:
        x: input, of mean square 1; a batch of them where the grid has one.
        other: a second input, for correlations.
        label: class of x.
    """

    x: Float[Array, "*cells d_in"]
    other: Float[Array, "*cells d_in"]
    label: Int[Array, "*cells"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """What to sweep over.

    Attributes:
        depths: depths at which gradients and spectra are read, ascending.
        sigma_w: weight gains (standard deviations), ascending.
        activations: names, or `Activation`s.
        seeds: number of independent networks per cell.
        sigma_b: standard deviation of the biases.
        width: units per layer.
        inputs: inputs per network, or batches of them.
        weights: one of `networks.WEIGHTS`.
        norm: None or one of `networks.NORMS`.
        norm_after: whether the norm follows phi instead of preceding it.
        skip: None or one of `networks.SKIPS`.
        dropout: share of features dropped, in [0, 1); masks differ from input to input.
        batch: examples that make up one input; BatchNorm needs two or more.
        dtype: "float32" or "float64" of the measurement.
        outputs: of the networks; labels are below it.
    """

    depths: Integers = (1, 2, 4, 8, 16, 32, 64)
    sigma_w: Reals = tuple(float(g) for g in np.linspace(0.5, 4.0, 24).round(4))
    activations: tuple[str | Activation, ...] = ("tanh", "relu", "gelu", "sigmoid")
    seeds: Integer = 4
    sigma_b: Real = 0.05**0.5
    width: Integer = 128
    inputs: Integer = 4
    weights: str = "gaussian"
    norm: str | None = None
    norm_after: bool = False
    skip: str | None = None
    dropout: Real = 0.0
    batch: Integer | None = None
    dtype: str = "float32"
    outputs: Integer = 10

    def __post_init__(self) -> None:
        """Check what Python can know.

        Raises:
            ValueError: if an axis is empty or out of order, or a value is out of range or unknown.
        """
        plain = {
            "depths": plain_axis("depths", self.depths, integer=True),
            "sigma_w": plain_axis("sigma_w", self.sigma_w),
            "sigma_b": plain_number("sigma_b", self.sigma_b),
            "dropout": plain_number("dropout", self.dropout),
            "activations": tuple(self.activations),
        } | {
            name: plain_number(name, getattr(self, name), integer=True)
            for name in ("seeds", "width", "inputs", "outputs", "batch")
            if getattr(self, name) is not None
        }
        for name, value in plain.items():
            # frozen: set as dataclasses do it
            object.__setattr__(self, name, value)
        for axis in ("depths", "sigma_w"):
            check_ascending(axis, getattr(self, axis))
        if len(self.activations) == 0 or len({get(a).name for a in self.activations}) < len(
            self.activations
        ):
            raise ValueError(
                f"activations must be one or more different ones, got {self.activations}"
            )
        for name, values in (("sigma_w", self.sigma_w), ("sigma_b", (self.sigma_b,))):
            if not all(math.isfinite(v) and v >= 0 for v in values):
                raise ValueError(f"{name} must be finite and >= 0, got {getattr(self, name)}")
        for name, values in (
            ("depths", self.depths),
            *((n, (getattr(self, n),)) for n in ("seeds", "width", "inputs", "outputs")),
        ):
            if not all(isinstance(v, int) and v >= 1 for v in values):
                raise ValueError(f"{name} must be integers >= 1, got {getattr(self, name)}")
        if self.dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be float32 or float64, got {self.dtype!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")
        needs_batch = self.network(self.activations[0]).mixes_examples
        has_batch = isinstance(self.batch, int) and self.batch >= 2
        if (needs_batch or self.batch is not None) and not has_batch:
            raise ValueError(
                f"batch must be an integer >= 2, and BatchNorm needs one, got {self.batch}"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the activations."""
        return tuple(get(a).name for a in self.activations)

    def network(self, activation: str | Activation) -> networks.MLP:
        """The network of the deepest depth with this activation."""
        return networks.MLP(
            max(self.depths),
            self.width,
            get(activation),
            features_out=self.outputs,
            weights=self.weights,
            norm=self.norm,
            norm_after=self.norm_after,
            dropout=self.dropout > 0,
            skip=self.skip,
        )

    @property
    def plain(self) -> bool:
        """Whether the networks are those of mean-field theory: h -> W phi(h) + b, weights of unit gain."""
        return not (self.norm or self.skip or self.dropout) and self.weights in UNIT_WEIGHTS

    def to_json(self) -> str:
        """All settings, for the provenance of results."""
        return json.dumps(dataclasses.asdict(self) | {"activations": self.names})


def samples(grid: Grid, data: Data) -> Sample:
    """The inputs of every seed: pairs of different examples, drawn without replacement, of mean square 1.

    Args:
        grid: says how many seeds and inputs.
        data: examples.

    Returns:
        A sample with leading axes [seeds, inputs], and [batch] where the grid has one.

    Raises:
        ValueError: if there are fewer examples than one seed needs, or a label has no output.
    """
    check_labels(data.y, grid.outputs)
    shape = (2, grid.inputs) if grid.batch is None else (2, grid.inputs, grid.batch)
    needed = math.prod(shape)
    if len(data.x) < needed:
        raise ValueError(
            f"{needed // 2} inputs need {needed} examples, {data.name} has {len(data.x)}"
        )
    draws = [
        np.random.default_rng(seed).choice(len(data.x), needed, replace=False)
        for seed in range(grid.seeds)
    ]
    first, second = np.moveaxis(np.stack(draws).reshape(grid.seeds, *shape), 1, 0)
    x = data.normalised().x
    return Sample(
        *map(
            jnp.asarray, (x[first].astype(grid.dtype), x[second].astype(grid.dtype), data.y[first])
        )
    )


def with_coordinates(dataset: xr.Dataset, grid: Grid) -> xr.Dataset:
    """Label a dataset's dimensions with the grid's values, or with 0, 1, ... where the grid has none.

    Args:
        dataset: dimensions without coordinates.
        grid: the grid.

    Returns:
        The dataset with coordinates.
    """
    known = {
        "activation": list(grid.names),
        "sigma_w": list(grid.sigma_w),
        "depth": list(grid.depths),
    }
    return dataset.assign_coords(
        {d: known.get(str(d), np.arange(size)) for d, size in dataset.sizes.items()}
    )
