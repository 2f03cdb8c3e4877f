"""Grid of a sweep: axes of settings; each combination of their values is a cell."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optax

from jaxstab import clipping, networks
from jaxstab.checks import check_choice
from jaxstab.networks.blocks import UNIT_WEIGHTS
from jaxstab.sweeps.axes import Variant, along, for_json, kind_of, with_variant
from jaxstab.sweeps.settings import (
    OPTIMISERS,
    SETTINGS,
    STATIC,
    TRACED,
    check_hyperparameters,
    hyperparameters,
    label,
)

# traced settings that only our own networks have
_OF_FAMILY = ("sigma_b", "dropout")
Kind = Mapping[str, Any]


@dataclasses.dataclass(frozen=True, init=False, repr=False, eq=False)
class Grid:
    """Every combination of the values along some axes, all other settings fixed.

    An axis is static (a program for each of its values) or traced (one program for all values).
    Depths of networks may also be read off from one pass to the largest depth. Settings of the
    network: activation, weights, norm, norm_after, skip, width, depth, sigma_w, sigma_b, dropout,
    seed, precision. Settings of the measured inputs: inputs, batch, outputs, dtype. Settings of
    trainings: optimiser, learning_rate, momentum, weight_decay, clip, batch.

    Attributes:
        axes: values by name; numbers ascend. Values of "variant" are `Variant`s.
        fixed: the other settings.
        network: None for `networks.MLP`, or a function depth -> chain, which takes other axes as
            keyword arguments.
        kernels: parameters of the user's own network that sigma_w multiplies, as in
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
        """Check and store the settings.

        Args:
            axes: values by name of the setting.
            network: factory of a user's own network.
            kernels: parameters of that network that sigma_w multiplies.
            **fixed: settings with one value.

        Raises:
            ValueError: if a setting is unknown, an axis is empty or out of order, or a value is out
                of range.
        """
        # a Flax module is callable, too
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
        checked = {name: along(name, values) for name, values in axes.items()}
        plain = {name: SETTINGS[name].check(name, value) for name, value in fixed.items()}
        defaults = {name: one.default for name, one in SETTINGS.items() if name not in checked}
        # a frozen dataclass allows no plain assignment
        object.__setattr__(self, "axes", checked)
        object.__setattr__(self, "fixed", defaults | plain)
        object.__setattr__(self, "network", network)
        object.__setattr__(self, "kernels", kernels)
        self._check()

    def _check(self) -> None:
        """Check settings against one another."""
        if self.network is not None:
            unknown = [name for name in _OF_FAMILY if name in self.axes]
            if unknown:
                raise ValueError(
                    f"{', '.join(unknown)} must be left out: a network of your own has no such axis"
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
        """Return the values of a setting: those along its axis, or its fixed value.

        Args:
            name: name of the setting.

        Returns:
            One or more values.
        """
        if name in self.axes:
            return self.axes[name]
        return (self.fixed[name],)

    def labels(self, name: str) -> list[Any]:
        """Return the values of a setting as coordinates.

        Args:
            name: name of the setting.

        Returns:
            Numbers or names.
        """
        return [label(value) for value in self.values(name)]

    @property
    def static_axes(self) -> tuple[str, ...]:
        """Names of axes with a program for each value, without depth."""
        return tuple(name for name in self.axes if kind_of(name) == STATIC and name != "depth")

    @property
    def traced_axes(self) -> tuple[str, ...]:
        """Names of axes with one program for all values."""
        return tuple(name for name in self.axes if kind_of(name) == TRACED)

    @property
    def kinds(self) -> list[Kind]:
        """Static settings of every kind of network; the last axis varies fastest."""
        names = self.static_axes
        fixed = {name: value for name, value in self.fixed.items() if kind_of(name) == STATIC}
        combinations = itertools.product(*(self.axes[name] for name in names))
        return [
            with_variant(fixed | dict(zip(names, values, strict=True))) for values in combinations
        ]

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
        """True if any cell has dropout."""
        return any(rate > 0 for rate in self.values("dropout"))

    def mlp(self, kind: Kind, depth: int, outputs: int) -> networks.MLP:
        """Make the MLP of one kind.

        Args:
            kind: one of `kinds`.
            depth: number of blocks.
            outputs: number of outputs, unless the grid sets it.

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
        """Make the chain of a user's own network.

        Args:
            kind: one of `kinds`.
            depth: number of blocks.

        Returns:
            The chain.

        Raises:
            ValueError: if the factory returns no chain.
        """
        assert self.network is not None
        network = self.network(depth, **{name: kind[name] for name in self.static_axes})
        if not isinstance(network, networks.Chain):
            raise ValueError(
                f"network({depth}) must be a networks.Chain, got a {type(network).__name__}"
            )
        if network.init is None:
            raise ValueError(
                "network must be a chain with init, as from networks.from_linen or "
                "networks.from_functions"
            )
        if isinstance(network.block, tuple) and len(network.block) != depth:
            raise ValueError(
                f"network({depth}) must be of {depth} blocks, got {len(network.block)}"
            )
        return network

    def optimise(self, kind: Kind, cell: Mapping[str, Any]) -> optax.GradientTransformation:
        """Make the optimiser of one cell.

        Args:
            kind: one of `kinds`.
            cell: traced settings by name.

        Returns:
            The optimiser, with clipping if any cell of the grid clips.
        """
        factory = kind["optimiser"]
        if isinstance(factory, str):
            factory = OPTIMISERS[factory]
        given = {name: cell[name] for name in hyperparameters() if cell[name] is not None}
        optimiser = factory(cell["learning_rate"], **given)
        if not self.clips:
            return optimiser
        return optax.chain(clipping.monitored(clipping.clip_by_norm(cell["clip"])), optimiser)

    @property
    def clips(self) -> bool:
        """True if any cell clips its gradient."""
        return tuple(self.values("clip")) != (math.inf,)

    def is_plain(self, kind: Kind) -> bool:
        """Check whether the layers of a kind are h -> W phi(h) + b with weights of unit gain.

        Args:
            kind: one of `kinds`.

        Returns:
            True for such layers, with or without dropout.
        """
        return not (kind["norm"] or kind["skip"]) and kind["weights"] in UNIT_WEIGHTS

    def but(self, **changes: Any) -> "Grid":
        """Return the grid with some settings changed.

        Args:
            **changes: by name, several values for a setting that is an axis, one value otherwise.

        Returns:
            The changed grid.

        Example:
            >>> Grid({"depth": (2, 4)}, width=8).but(depth=(2,), width=16).values("width")
            (16,)
        """
        axes = {name: changes.get(name, values) for name, values in self.axes.items()}
        fixed = self.fixed | {name: v for name, v in changes.items() if name not in self.axes}
        return Grid(axes, network=self.network, kernels=self.kernels, **fixed)

    def to_json(self) -> str:
        """Write all settings as JSON: axes are lists, and infinity is the string "inf"."""
        settings = {name: for_json(self.values(name), name in self.axes) for name in self._order}
        if self.network is not None:
            settings["network"] = label(self.network)
        return json.dumps(settings)

    @property
    def _order(self) -> tuple[str, ...]:
        return (*self.axes, *self.fixed)

    @classmethod
    def from_json(cls, text: str) -> "Grid":
        """Read a grid that `to_json` wrote, of our own MLPs with activations and optimisers by name.

        Args:
            text: JSON of a grid.

        Returns:
            The grid.

        Raises:
            ValueError: if the text is no such JSON, or a name is not built in.

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
            raise ValueError(f"not a grid of a sweep: {error}") from error

    def __eq__(self, other: object) -> bool:
        """Compare the cells of two grids; a range of seeds equals a list of the same seeds."""
        if not isinstance(other, Grid):
            return NotImplemented
        own = self.to_json(), self.kinds, self.network, self.kernels
        return own == (other.to_json(), other.kinds, other.network, other.kernels)

    def __hash__(self) -> int:
        """Hash the settings as JSON."""
        return hash(self.to_json())

    def __repr__(self) -> str:
        """Show the axes, and fixed settings that differ from the default."""
        own = {n: v for n, v in self.fixed.items() if v != SETTINGS[n].default}
        return f"Grid({self.axes}{''.join(f', {n}={v!r}' for n, v in own.items())})"
