"""What to train: kinds of networks, and the axes along which each is trained."""

import dataclasses
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import optax
from jaxtyping import ArrayLike, Float, Int

from jaxstab import clipping, networks
from jaxstab.activations import Activation, get
from jaxstab.checks import (
    Integer,
    Integers,
    Reals,
    check_ascending,
    check_choice,
    check_count,
    check_looks,
    plain_axis,
    plain_number,
)
from jaxstab.records import Data

OPTIMISERS: dict[str, Callable[..., optax.GradientTransformation]] = {
    "sgd": optax.sgd,
    "momentum": lambda rate: optax.sgd(rate, momentum=0.9),
    "nesterov": lambda rate: optax.sgd(rate, momentum=0.9, nesterov=True),
    "rmsprop": optax.rmsprop,
    "adagrad": optax.adagrad,
    "adam": optax.adam,
    "adamw": optax.adamw,
    "lion": optax.lion,
}


@dataclasses.dataclass(frozen=True)
class Variant:
    """A kind of network: what cannot change without a compile.

    Attributes:
        name: its label.
        activation: name, or `Activation`.
        weights: one of `networks.WEIGHTS`.
        norm: None or one of `networks.NORMS`.
        norm_after: whether the norm follows phi instead of preceding it.
        skip: None or one of `networks.SKIPS`.
    """

    name: str
    activation: str | Activation = "tanh"
    weights: str = "gaussian"
    norm: str | None = None
    norm_after: bool = False
    skip: str | None = None


class Split(NamedTuple):
    """Data to train on, and to test on.

    Attributes:
        train: training data.
        test: test data.
    """

    train: Data
    test: Data

    @property
    def features(self) -> int:
        """Input features."""
        return self.train.x.shape[1]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return int(max(self.train.y.max(), self.test.y.max())) + 1

    @property
    def chance(self) -> float:
        """Share of the training data right by always naming the commonest class."""
        return float(np.bincount(self.train.y).max() / len(self.train.y))


def divided(data: Data) -> Split:
    """Divide data at random, the same way each time: a fifth to test on, the rest to train on.

    Args:
        data: two examples at least.

    Returns:
        The two parts.

    Raises:
        ValueError: if there are fewer.
    """
    if len(data.x) < 2:
        raise ValueError(
            f"{data.name}: one example to train on and one to test on are the least, got {len(data.x)}"
        )
    order = np.random.default_rng(0).permutation(len(data.x))
    cut = max(1, len(order) // 5)
    train = order[cut:]
    test = order[:cut]
    return Split(
        Data(data.x[train], data.y[train], f"{data.name}, training"),
        Data(data.x[test], data.y[test], f"{data.name}, test"),
    )


class Cells(NamedTuple):
    """Cells of a grid, arrays of one length: where each stands on every axis.

    Attributes:
        variant: index of the kind of network.
        depth: blocks.
        sigma_w: weight gain.
        sigma_b: standard deviation of the biases.
        learning_rate: of the optimiser.
        clip: largest norm of a gradient; inf for no clipping.
        dropout: share of features dropped.
        seed: of weights, minibatches and masks.
    """

    variant: Int[np.ndarray, " cell"]
    depth: Int[np.ndarray, " cell"]
    sigma_w: Float[np.ndarray, " cell"]
    sigma_b: Float[np.ndarray, " cell"]
    learning_rate: Float[np.ndarray, " cell"]
    clip: Float[np.ndarray, " cell"]
    dropout: Float[np.ndarray, " cell"]
    seed: Int[np.ndarray, " cell"]


AXES = Cells._fields


@dataclasses.dataclass(frozen=True)
class Grid:
    """What to train: all combinations of the axes.

    Attributes:
        variants: kinds of networks, of different names.
        depths: blocks, ascending.
        sigma_w: weight gains (standard deviations), ascending.
        sigma_b: standard deviations of the biases, ascending.
        learning_rates: ascending, > 0.
        clips: largest norms of a gradient, ascending, > 0; inf for no clipping.
        dropouts: shares of features dropped, ascending, in [0, 1).
        seeds: independent runs of each.
        width: units per layer.
        steps: updates.
        batch: examples per update; None for all.
        optimiser: one of OPTIMISERS.
        evaluate: numbers of updates after which to look at all data, besides the end; gradients are
            kept there too.
        dtype: "float32" or "float64".
    """

    variants: tuple[Variant, ...] = (Variant("tanh"),)
    depths: Integers = (4, 8, 16, 32, 64)
    sigma_w: Reals = tuple(float(g) for g in np.linspace(0.5, 2.5, 12).round(4))
    sigma_b: Reals = (0.05**0.5,)
    learning_rates: Reals = (0.01,)
    clips: Reals = (math.inf,)
    dropouts: Reals = (0.0,)
    seeds: Integer = 1
    width: Integer = 128
    steps: Integer = 200
    batch: Integer | None = 128
    optimiser: str = "sgd"
    evaluate: Integers = (0,)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        """Check what Python can know.

        Raises:
            ValueError: if an axis is empty or out of order, or a value is out of range or unknown.
        """
        whole = ("depths", "evaluate")
        axes = ("sigma_w", "sigma_b", "learning_rates", "clips", "dropouts")
        plain = {
            name: plain_axis(name, getattr(self, name), name in whole) for name in (*whole, *axes)
        }
        plain |= {
            name: plain_number(name, getattr(self, name), integer=True)
            for name in ("seeds", "width", "steps", "batch")
            if getattr(self, name) is not None
        }
        for name, value in (plain | {"variants": tuple(self.variants)}).items():
            # frozen: set as dataclasses do it
            object.__setattr__(self, name, value)
        for name, low, fits, wanted in (
            ("depths", 1, lambda v: isinstance(v, int), "integers >= 1"),
            ("sigma_w", 0, math.isfinite, "finite and >= 0"),
            ("sigma_b", 0, math.isfinite, "finite and >= 0"),
            ("learning_rates", 0, lambda v: math.isfinite(v) and v > 0, "finite and > 0"),
            ("clips", 0, lambda v: v > 0, "> 0"),
            ("dropouts", 0, lambda v: v < 1, "in [0, 1)"),
        ):
            values = getattr(self, name)
            check_ascending(name, values)
            if not all(v >= low and fits(v) for v in values):
                raise ValueError(f"{name} must be {wanted}, got {list(values)}")
        for name in ("seeds", "width", "steps", *(("batch",) if self.batch is not None else ())):
            check_count(name, getattr(self, name), 1)
        for name, known in (("optimiser", tuple(OPTIMISERS)), ("dtype", ("float32", "float64"))):
            check_choice(name, getattr(self, name), known)
        check_looks(self.evaluate, self.steps)
        names = [variant.name for variant in self.variants]
        if len(names) == 0 or len(set(names)) < len(names):
            raise ValueError(f"variants must be one or more of different names, got {names}")
        built = [self.network(index, 1, 1) for index in range(len(names))]
        if self.batch == 1 and any(network.mixes_examples for network in built):
            raise ValueError("BatchNorm needs a batch of at least 2 examples, got 1")

    def network(self, variant: int, depth: int, classes: int) -> networks.MLP:
        """The network of one kind.

        Args:
            variant: its index.
            depth: blocks.
            classes: outputs.

        Returns:
            The module.
        """
        kind = self.variants[variant]
        settings = {name: getattr(kind, name) for name in ("weights", "norm", "norm_after", "skip")}
        wet = any(rate > 0 for rate in self.dropouts)
        return networks.MLP(
            depth, self.width, get(kind.activation), features_out=classes, dropout=wet, **settings
        )

    def optimise(self, learning_rate: ArrayLike, clip: ArrayLike) -> optax.GradientTransformation:
        """The optimiser of one cell.

        Args:
            learning_rate: may be traced.
            clip: largest norm of a gradient; may be traced.

        Returns:
            The transformation; clipping is left out where no cell clips.
        """
        optimiser = OPTIMISERS[self.optimiser](learning_rate)
        if self.clips == (math.inf,):
            return optimiser
        return optax.chain(clipping.monitored(clipping.clip_by_norm(clip)), optimiser)

    @property
    def axes(self) -> dict[str, tuple]:
        """Values along every axis of `AXES`."""
        values = (
            tuple(variant.name for variant in self.variants), self.depths, self.sigma_w, self.sigma_b,
            self.learning_rates, self.clips, self.dropouts, tuple(range(self.seeds)),
        )  # fmt: skip
        return dict(zip(AXES, values, strict=True))

    @property
    def count(self) -> int:
        """Number of cells."""
        along = (
            self.depths,
            self.sigma_w,
            self.sigma_b,
            self.learning_rates,
            self.clips,
            self.dropouts,
        )
        # the seeds are not listed: there may be more than memory holds
        return len(self.variants) * math.prod(map(len, along)) * self.seeds

    @property
    def looks(self) -> tuple[int, ...]:
        """Numbers of updates after which all data are looked at, ascending, the end among them."""
        return tuple(sorted({*self.evaluate, self.steps}))

    @property
    def cells(self) -> Cells:
        """All cells, the last axis the fastest."""
        axes = self.axes | {"variant": tuple(range(len(self.variants)))}
        kinds = {"variant": np.int32, "depth": np.int32, "seed": np.int32}
        along = [np.array(values, kinds.get(name, self.dtype)) for name, values in axes.items()]
        return Cells(*(column.ravel() for column in np.meshgrid(*along, indexing="ij")))

    def to_json(self) -> str:
        """All settings, for the provenance of results; infinity as the string "inf"."""
        kinds = [
            dataclasses.asdict(v) | {"activation": get(v.activation).name} for v in self.variants
        ]
        settings = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        clips = ["inf" if math.isinf(clip) else clip for clip in self.clips]
        return json.dumps(settings | {"variants": kinds, "clips": clips})

    @classmethod
    def from_json(cls, text: str) -> "Grid":
        """The grid that `to_json` wrote, exactly; activations by name.

        Args:
            text: what it wrote.

        Returns:
            The grid.

        Raises:
            ValueError: if it is no such text, or an activation is not a built-in one.

        Example:
            >>> grid = Grid((Variant("selu", "selu"),), clips=(1.0, math.inf))
            >>> Grid.from_json(grid.to_json()) == grid
            True
        """
        try:
            settings = json.loads(text)
            variants = tuple(Variant(**kind) for kind in settings["variants"])
            values: dict[str, Any] = {
                key: tuple(value) if isinstance(value, list) else value
                for key, value in settings.items()
            }
            clips = tuple(float(clip) for clip in values["clips"])
            return cls(**values | {"variants": variants, "clips": clips})
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"no grid of trainings: {error}") from error
