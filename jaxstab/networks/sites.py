"""Sites that a probe reads, their steps within scans, and submodules that it misses."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from jaxstab.activations import Activation
from jaxstab.networks.interception import ATTENTION, BLOCK, EMBED, SOFTMAX, Label, label_of
from jaxstab.networks.pieces import Loop, Mark
from jaxstab.networks.tagged import Program

# reasons why the values in these constructs cannot be read
_REASONS = {
    "cond": "in a branch, which may not run",
    "while": "in a loop of unknown length",
    "custom_jvp_call": "in a function with a derivative rule of its own",
    "custom_vjp_call": "in a function with a derivative rule of its own",
    "shard_map": "in a program of each device",
    "unused": "no output of the model depends on it",
}


class Site(NamedTuple):
    """Value within a model: an output of one call of one submodule.

    Attributes:
        name: path of the submodule, "encoder/Dense_0", with ".method" for methods other than
            `__call__`, the key of the value in a tuple, and ":1" at the second call. The model's
            own output has the name of its class.
        path: path of the submodule; "" for the model itself; the name of an explicit tag.
        kind: class of the submodule; "tag" for an explicit tag.
        call: number of earlier calls of the same submodule.
        shape: shape of the value, with the axes of scans in front.
        dtype: dtype of the value.
        loops: scans around the value, the outermost first.
        activation: activation applied to the value: "relu", "tanh", "sigmoid", or a chain's
            activation; None for others.
    """

    name: str
    path: str
    kind: str
    call: int
    shape: tuple[int, ...]
    dtype: Any
    loops: tuple[Loop, ...]
    activation: str | Activation | None

    @property
    def floating(self) -> bool:
        """True if the site can be shifted, as real and complex floats can."""
        return bool(jnp.issubdtype(self.dtype, jnp.inexact))

    @property
    def softmax(self) -> bool:
        """True if the site holds the logits of a softmax."""
        return self.kind in (SOFTMAX, ATTENTION)

    def __str__(self) -> str:
        """Format as name, class, dtype and shape."""
        return f"{self.name} ({self.kind}) {self.dtype}{list(self.shape)}"


class Row(NamedTuple):
    """One value of a site: the site itself, or one step of the scans around it.

    Attributes:
        name: name of the site, with the step within a scan: "ScanBlock_0/Dense_0@3".
        site: name of the site.
        steps: step of each scan around the site, the outermost first.
    """

    name: str
    site: str
    steps: tuple[int, ...]


class Missed(NamedTuple):
    """Submodule that a probe cannot read.

    Attributes:
        name: name that its site would have.
        kind: class of the submodule; "" where unknown.
        reason: reason why the submodule cannot be read.
    """

    name: str
    kind: str
    reason: str

    def __str__(self) -> str:
        """Format as name, class and reason."""
        if self.kind:
            return f"{self.name} ({self.kind}): {self.reason}"
        return f"{self.name}: {self.reason}"


def named_sites(marks: Sequence[Mark], of_states: Activation | None) -> list[Site]:
    """Make the sites of all tags, and number the calls of the same submodule.

    Args:
        marks: the tags.
        of_states: activation applied to the states of a chain.

    Returns:
        One site per tag.
    """
    labels = [label_of(mark.name) for mark in marks]
    calls: Counter[Label] = Counter()
    sites = []
    for mark, label in zip(marks, labels, strict=True):
        call = calls[label]
        calls[label] += 1
        activation = of_states if label.kind in (EMBED, BLOCK) else mark.activation
        name = (label.path or label.kind) + label.suffix
        if call:
            name += f":{call}"
        sites.append(
            Site(name, label.path, label.kind, call, mark.shape, mark.dtype, mark.loops, activation)
        )
    return sites


def rows_of(sites: Sequence[Site], index: tuple[int, ...] = ()) -> Iterator[Row]:
    """List the rows in order of execution, with the sites of one scan step by step.

    Args:
        sites: sites in order of execution within a step.
        index: steps of the scans around all sites.

    Yields:
        Rows in order of execution.
    """
    level = len(index)
    for loop, group in itertools.groupby(sites, lambda site: site.loops[level : level + 1]):
        within = list(group)
        if not loop:
            step = "".join(f"@{i}" for i in index)
            yield from (Row(site.name + step, site.name, index) for site in within)
            continue
        steps = range(loop[0].length)
        for i in reversed(steps) if loop[0].reverse else steps:
            yield from rows_of(within, (*index, i))


def missed_by(program: Program, owners: set[str], sites: Sequence[Site]) -> list[Missed]:
    """List tags in constructs that cannot be read, and owners of parameters without a tag.

    Args:
        program: the traced model.
        owners: paths of submodules that own parameters.
        sites: sites that can be read.

    Returns:
        Missed submodules with their reasons.
    """
    missed = []
    names = {site.name for site in sites}
    for name, construct in program.unreached:
        label = label_of(name)
        place = (label.path or label.kind) + label.suffix
        reason = _REASONS.get(construct, "values cannot leave it")
        if construct != "unused":
            reason = f"within {construct}: {reason}"
        if construct != "unused" or place not in names:
            missed.append(Missed(place, label.kind, reason))
    # parameters of the model itself belong to no submodule
    known = {"", *(site.path for site in sites)}
    known |= {label_of(name).path for name, _ in program.unreached}
    reason = "it has parameters, but no public method of it returned an array"
    return missed + [Missed(path, "", reason) for path in sorted(owners - known)]
