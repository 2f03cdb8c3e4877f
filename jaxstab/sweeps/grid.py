"""What to sweep over: axes of settings, each combination of which is a cell."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import optax

from jaxstab import clipping, networks
from jaxstab.activations import get
from jaxstab.checks import check_ascending, check_choice, check_count, plain_axis
from jaxstab.networks.blocks import UNIT_WEIGHTS
from jaxstab.sweeps.settings import (
    OPTIMISERS,
    SETTINGS,
    STATIC,
    TRACED,
    WHOLE,
    check_hyperparameters,
    hyperparameters,
    label,
)

# settings of a network of the house, which a variant may have of its own
_OF_NETWORK = ("activation", "weights", "norm", "norm_after", "skip")
# traced settings that only networks of the house have
_OF_FAMILY = ("sigma_b", "dropout")
Kind = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Variant:
    """A network under a name of its own: settings that go together, along the axis "variant".

    Attributes:
        name: its label.
        activation: name, or `Activation`.
        weights: one of `networks.WEIGHTS`.
        norm: None or one of `networks.NORMS`.
        norm_after: whether the norm follows phi instead of preceding it.
        skip: None or one of `networks.SKIPS`.
    """

    name: str
    activation: Any = "tanh"
    weights: str = "gaussian"
    norm: str | None = None
    norm_after: bool = False
    skip: str | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The settings by name."""
        own = {name: getattr(self, name) for name in _OF_NETWORK}
        return own | {"activation": get(self.activation)}


@dataclasses.dataclass(frozen=True, init=False, repr=False, eq=False)
class Grid:
    """Every combination of the values along some axes, all other settings fixed.

    An axis is static (a program for each of its values), traced (one program for all of them), or
    the depths of networks whose shallower ones are read off from the deepest. Settings of the
    network: activation, weights, norm, norm_after, skip, width, depth, sigma_w, sigma_b, dropout,
    seed, precision; of what it is measured at: inputs, batch, outputs, dtype; of trainings: optimiser,
    learning_rate, momentum, weight_decay, clip, batch.

    Attributes:
        axes: values by name; numbers ascend. "variant" has `Variant`s.
        fixed: the other settings.
        network: None for the MLPs of `networks.MLP`, or depth -> the chain of that depth; other axes
            that it takes are arguments by their names.
        kernels: which parameters of a network of the caller's own sigma_w multiplies, as in
            `networks.rescale`.

    Example:
        >>> grid = Grid({"depth": (8, 32), "sigma_w": (1.0, 1.5), "seed": range(4)}, width=64)
        >>> grid.count, grid.values("depth"), grid.values("width")
        (16, (8, 32), (64,))
    """

    axes: dict[str, Sequence[Any]]
    fixed: dict[str, Any]
    network: Callable[..., networks.Chain] | None
    kernels: networks.Kernels | None

    def __init__(
        self,
        axes: Mapping[str, Any],
        *,
        network: Callable[..., networks.Chain] | None = None,
        kernels: networks.Kernels | None = None,
        **fixed: Any,
    ) -> None:
        """Check what Python can know.

        Args:
            axes: values by name of the setting.
            network: of layers of the caller's own.
            kernels: of such a network.
            **fixed: settings that have one value.

        Raises:
            ValueError: if a setting is unknown, an axis is empty or out of order, or a value is out
                of range.
        """
        # a Flax module can be called, too
        if network is not None and (not callable(network) or hasattr(network, "init")):
            raise ValueError(
                "network must be a function depth -> networks.Chain, got a "
                f"{type(network).__name__}"
            )
        twice = sorted(set(axes) & set(fixed))
        if twice:
            raise ValueError(f"{', '.join(twice)} must be an axis or a fixed setting, got both")
        for name in (*axes, *fixed):
            own = network is not None and name in axes
            if name != "variant" and not own:
                check_choice("a setting", name, tuple(SETTINGS))
        along = {name: _along(name, values) for name, values in axes.items()}
        plain = {name: SETTINGS[name].check(name, value) for name, value in fixed.items()}
        defaults = {name: one.default for name, one in SETTINGS.items() if name not in along}
        # frozen: set as dataclasses do it
        object.__setattr__(self, "axes", along)
        object.__setattr__(self, "fixed", defaults | plain)
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "kernels", kernels)
        self._check()

    def _check(self) -> None:
        """Check what settings have to do with one another."""
        if self.network is not None:
            unknown = [name for name in _OF_FAMILY if name in self.axes]
            if unknown:
                raise ValueError(
                    f"{', '.join(unknown)} must be left out: a network of your own knows no such "
                    "axis"
                )
        given = tuple(name for name in hyperparameters() if self.values(name) != (None,))
        for kind in self.kinds:
            check_hyperparameters(kind["optimiser"], given)
            if self.network is not None:
                continue
            mixes = self.mlp(kind, 1, 1).mixes_examples
            if mixes and kind["batch"] == 1:
                raise ValueError("BatchNorm needs a batch of at least 2 examples, got 1")

    def values(self, name: str) -> Sequence[Any]:
        """The values of a setting: those along its axis, or the one it has.

        Args:
            name: of the setting.

        Returns:
            One or more.
        """
        if name in self.axes:
            return self.axes[name]
        return (self.fixed[name],)

    def labels(self, name: str) -> list[Any]:
        """The values of a setting as coordinates show them.

        Args:
            name: of the setting.

        Returns:
            Numbers or names.
        """
        return [label(value) for value in self.values(name)]

    @property
    def static_axes(self) -> tuple[str, ...]:
        """Axes, but for depth, each of whose values needs a program."""
        return tuple(name for name in self.axes if _kind_of(name) == STATIC and name != "depth")

    @property
    def traced_axes(self) -> tuple[str, ...]:
        """Axes whose values share a program."""
        return tuple(name for name in self.axes if _kind_of(name) == TRACED)

    @property
    def kinds(self) -> list[Kind]:
        """The static settings of every kind of network, the last axis the fastest."""
        names = self.static_axes
        fixed = {name: value for name, value in self.fixed.items() if _kind_of(name) == STATIC}
        every_kind: list[Kind] = []
        for values in itertools.product(*(self.axes[name] for name in names)):
            own = dict(zip(names, values, strict=True))
            variant = own["variant"].settings if "variant" in own else {}
            every_kind.append(fixed | own | variant)
        return every_kind

    @property
    def count(self) -> int:
        """Number of cells."""
        return math.prod(len(values) for values in self.axes.values())

    @property
    def deepest(self) -> int:
        """The largest depth."""
        return max(self.values("depth"))

    @property
    def wet(self) -> bool:
        """Whether any cell drops features."""
        return any(rate > 0 for rate in self.values("dropout"))

    def mlp(self, kind: Kind, depth: int, outputs: int) -> networks.MLP:
        """The MLP of one kind.

        Args:
            kind: one of `kinds`.
            depth: blocks.
            outputs: of the network, unless the grid says how many.

        Returns:
            The module.
        """
        return networks.MLP(
            depth,
            kind["width"],
            kind["activation"],
            features_out=self.fixed["outputs"] or outputs,
            weights=kind["weights"],
            norm=kind["norm"],
            norm_after=kind["norm_after"],
            dropout=self.wet,
            skip=kind["skip"],
            precision=kind["precision"],
        )

    def chain(self, kind: Kind, depth: int) -> networks.Chain:
        """The chain of the caller's own layers.

        Args:
            kind: one of `kinds`.
            depth: number of blocks.

        Returns:
            The chain.

        Raises:
            ValueError: if the factory gives something else.
        """
        assert self.network is not None
        network = self.network(depth, **{name: kind[name] for name in self.static_axes})
        if not isinstance(network, networks.Chain):
            raise ValueError(
                f"network({depth}) must be a networks.Chain, got a {type(network).__name__}"
            )
        if network.init is None:
            raise ValueError(
                "network must draw its parameters: networks.from_linen or networks.from_functions"
            )
        if isinstance(network.block, tuple) and len(network.block) != depth:
            raise ValueError(
                f"network({depth}) must be of {depth} blocks, got {len(network.block)}"
            )
        return network

    def optimise(self, kind: Kind, cell: Mapping[str, Any]) -> optax.GradientTransformation:
        """The optimiser of one cell.

        Args:
            kind: one of `kinds`.
            cell: traced settings by name.

        Returns:
            The transformation; clipping is left out where no cell clips.
        """
        chosen = kind["optimiser"]
        factory = OPTIMISERS[chosen] if isinstance(chosen, str) else chosen
        given = {name: cell[name] for name in hyperparameters() if cell[name] is not None}
        optimiser = factory(cell["learning_rate"], **given)
        if not self.clips:
            return optimiser
        return optax.chain(clipping.monitored(clipping.clip_by_norm(cell["clip"])), optimiser)

    @property
    def clips(self) -> bool:
        """Whether any cell clips its gradient."""
        return tuple(self.values("clip")) != (math.inf,)

    def is_plain(self, kind: Kind) -> bool:
        """Whether a kind is of mean-field theory: h -> W phi(h) + b, weights of unit gain.

        Args:
            kind: one of `kinds`.

        Returns:
            Whether it is, dropout left aside.
        """
        return not (kind["norm"] or kind["skip"]) and kind["weights"] in UNIT_WEIGHTS

    def but(self, **changes: Any) -> "Grid":
        """The same grid with other settings.

        Args:
            **changes: values by name: along the axis of a setting that has one, else fixed.

        Returns:
            The grid.

        Example:
            >>> Grid({"depth": (2, 4)}, width=8).but(depth=(2,), width=16).values("width")
            (16,)
        """
        axes = {name: changes.get(name, values) for name, values in self.axes.items()}
        fixed = self.fixed | {name: v for name, v in changes.items() if name not in self.axes}
        return Grid(axes, network=self.network, kernels=self.kernels, **fixed)

    def to_json(self) -> str:
        """All settings, for the provenance of results: a list is an axis; infinity is the string "inf"."""
        settings = {name: _told(self.values(name), name in self.axes) for name in self._order}
        if self.network is not None:
            settings["network"] = label(self.network)
        return json.dumps(settings)

    @property
    def _order(self) -> tuple[str, ...]:
        return (*self.axes, *self.fixed)

    @classmethod
    def from_json(cls, text: str) -> "Grid":
        """The grid that `to_json` wrote, of the MLPs of the house; activations and optimisers by name.

        Args:
            text: what it wrote.

        Returns:
            The grid.

        Raises:
            ValueError: if it is no such text, or a name is not a built-in one.

        Example:
            >>> grid = Grid({"variant": (Variant("selu", "selu"),), "clip": (1.0, math.inf)})
            >>> Grid.from_json(grid.to_json()) == grid
            True
        """
        try:
            settings = json.loads(text)
            axes = {name: v for name, v in settings.items() if isinstance(v, list)}
            fixed = {name: v for name, v in settings.items() if name not in axes}
            if "variant" in axes:
                axes["variant"] = [Variant(**one) for one in axes["variant"]]
            if "clip" in axes:
                axes["clip"] = [float(clip) for clip in axes["clip"]]
            else:
                fixed["clip"] = float(fixed["clip"])
            return cls(axes, **fixed)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"no grid of a sweep: {error}") from error

    def __eq__(self, other: object) -> bool:
        """Whether two grids have the same cells: a range of seeds is as good as a list of them."""
        if not isinstance(other, Grid):
            return NotImplemented
        own = self.to_json(), self.kinds, self.network, self.kernels
        return own == (other.to_json(), other.kinds, other.network, other.kernels)

    def __hash__(self) -> int:
        """Of the settings, as they are written."""
        return hash(self.to_json())

    def __repr__(self) -> str:
        """The axes and what is not the default."""
        own = {n: v for n, v in self.fixed.items() if v != SETTINGS[n].default}
        return f"Grid({self.axes}{''.join(f', {n}={v!r}' for n, v in own.items())})"


def _kind_of(name: str) -> str:
    """STATIC, TRACED or WHOLE; what only a network of the caller's own knows is static."""
    if name in SETTINGS:
        return SETTINGS[name].kind
    return STATIC


def _along(name: str, values: Any) -> Sequence[Any]:
    """Values along an axis, checked."""
    if name == "variant":
        return _variants(values)
    if name not in SETTINGS:
        return _some(name, values)
    setting = SETTINGS[name]
    if setting.kind == WHOLE:
        raise ValueError(f"{name} must be one value of the whole grid, got an axis")
    # a range is not listed: there may be more seeds than memory holds
    if name == "seed" and isinstance(values, range) and len(values) > 0 and values.step > 0:
        check_count(name, values[0], 0)
        return values
    if not setting.number:
        checked = tuple(setting.check(name, value) for value in _some(name, values))
        if len({label(value) for value in checked}) < len(checked):
            raise ValueError(
                f"{name} must be of different values, got {[label(v) for v in checked]}"
            )
        return checked
    plain = plain_axis(name, values, integer=True)
    checked = tuple(setting.check(name, value) for value in plain)
    check_ascending(name, checked)
    return checked


def _some(name: str, values: Iterable[Any]) -> tuple[Any, ...]:
    several = () if isinstance(values, str) else tuple(values)
    if not several:
        raise ValueError(f"{name} must be one or more values, got {values!r}")
    return several


def _variants(values: Iterable[Any]) -> tuple[Variant, ...]:
    variants = tuple(values)
    names = [getattr(variant, "name", None) for variant in variants]
    if (
        not variants
        or len(set(names)) < len(names)
        or not all(isinstance(v, Variant) for v in variants)
    ):
        raise ValueError(f"variant must be one or more Variants of different names, got {names}")
    return variants


def _told(values: Sequence[Any], several: bool) -> Any:
    """Values of a setting for JSON."""

    def one(value: Any) -> Any:
        if isinstance(value, Variant):
            return dataclasses.asdict(value) | {"activation": label(get(value.activation))}
        if isinstance(value, float) and math.isinf(value):
            return "inf"
        if value is None:
            return value
        return label(value)

    told = [one(value) for value in values]
    if several:
        return told
    return told[0]
