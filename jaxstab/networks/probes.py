"""Probes that read and shift the outputs of the submodules of an unmodified model.

The model is traced once, and each public method of each submodule leaves a tag in the trace. A
probe runs the unchanged trace, and reads values or adds shifts at the tags.
"""

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import FlaxError
from jaxtyping import Array, PyTree

from jaxstab.checks import check_count
from jaxstab.networks.interception import (
    ATTENTION,
    SOFTMAX,
    Model,
    label_of,
    model_of,
    scope_name,
    softmax_name,
)
from jaxstab.networks.shapes import check_alike, shape_of, text_of
from jaxstab.networks.sites import Missed, Row, Site, missed_by, named_sites, rows_of
from jaxstab.networks.tagged import Program

_SOFTMAXES = (SOFTMAX, ATTENTION)


class Reading(NamedTuple):
    """Result of a run of a probed model.

    Attributes:
        output: output of the model.
        sites: values by name of site.
        updates: other variables that the model changed, such as running statistics.
    """

    output: PyTree
    sites: dict[str, Array]
    updates: PyTree


@dataclass(frozen=True, eq=False)
class Probe:
    """Unmodified model with named sites, for inputs of fixed shapes.

    Attributes:
        sites: sites in order of execution.
        rows: sites, or their steps within scans, in order of execution: the axis of profiles over
            sites.
        missed: submodules that cannot be read, with reasons.
        model: the model as a pure function.
    """

    sites: tuple[Site, ...]
    rows: tuple[Row, ...]
    missed: tuple[Missed, ...]
    model: Model
    _program: Program
    # number of the mark of each site
    _marks: Mapping[str, int]
    # shapes and structure of the traced arguments, and structure of the results
    _given: PyTree
    _gives: Any
    _rngs: PyTree
    # number of inputs of the model
    _inputs: int
    # numbers of the leaves of theta that scans slice
    _sliced: frozenset[int]

    def read(
        self,
        params: PyTree,
        *inputs: PyTree,
        shifts: Mapping[str, Array] | None = None,
        sites: Sequence[str] | None = None,
        rngs: PyTree = None,
    ) -> Reading:
        """Run the model, read its sites and shift them.

        Args:
            params: parameters of the model.
            inputs: inputs of the model.
            shifts: arrays to add to the values of sites, by name; zeros change no bit of the
                output.
            sites: names of the sites to read, after their shifts; None for all.
            rngs: keys by name of stream, as for linen's `apply`; None for the keys that the probe
                was made with.

        Returns:
            Record of `output`, `sites` (values by name) and `updates` (other variables that the
            model changed).

        Raises:
            ValueError: if a site is unknown, a shift has another shape than its site, or parameters
                and inputs differ in shape from those that the probe was made with.
        """
        if sites is None:
            names = [site.name for site in self.sites]
        else:
            names = list(sites)
        shifts = dict(shifts or {})
        for name in [*names, *shifts]:
            self._site(name)
        for name, shift in shifts.items():
            if jnp.shape(shift) != self._site(name).shape:
                shape = self._site(name).shape
                raise ValueError(
                    f"the shift of {name} must have its shape {shape}, got {jnp.shape(shift)}"
                )
        theta, rest = self.model.split(params)
        given = (theta, rest, inputs, self._rngs if rngs is None else rngs)
        check_alike(self._given, given)
        added = {self._marks[name]: shift for name, shift in shifts.items()}
        wanted = [self._marks[name] for name in names]
        flat, read = self._program.run(jax.tree.leaves(given), added, wanted)
        output, updates = jax.tree.unflatten(self._gives, flat)
        return Reading(output, {name: read[self._marks[name]] for name in names}, updates)

    def function(self, params: PyTree, rngs: PyTree = None) -> tuple[Callable[..., PyTree], PyTree]:
        """Return the model as a function of its trained parameters, for `curvature` and `jax.grad`.

        Args:
            params: parameters of the model.
            rngs: keys by name of stream; None for the keys that the probe was made with.

        Returns:
            Function f and trained parameters theta, such that f(theta, *inputs) is the output.
            Inputs may have other shapes than the probe's. Variables that the model changes are
            dropped.

        Example:
            >>> from jaxstab import curvature, networks
            >>> layer = lambda w, x: networks.tag("h", x @ w)
            >>> model = probe(layer, jnp.ones((3, 2)), jnp.ones((5, 3)))
            >>> outputs, theta = model.function(jnp.ones((3, 2)))
            >>> curvature.tangent_kernel(outputs, theta, jnp.ones((4, 3))).shape
            (8, 8)
        """
        theta, rest = self.model.split(params)
        keys = self._rngs if rngs is None else rngs

        def outputs(theta: PyTree, *inputs: PyTree) -> PyTree:
            # nnx variables may be changed only within the trace that created them
            own = jax.tree.map(lambda leaf: leaf, rest)
            return self.model.call(theta, own, inputs, keys)[0]

        return outputs, theta

    def zeros(self) -> dict[str, Array]:
        """Make zero shifts of all floating sites, by which the gradient is dL/dsite.

        Returns:
            Zeros by name of site.
        """
        return {
            site.name: jnp.zeros(site.shape, site.dtype) for site in self.sites if site.floating
        }

    def over_rows(self, function: Callable[..., PyTree], *values: Mapping[str, Array]) -> PyTree:
        """Apply a function of the values at one row along the axis of rows.

        Args:
            function: function of (site, values at one row) that returns numbers of the same shapes
                at every site.
            values: values by name of site.

        Returns:
            Numbers [row, ...].
        """
        parts = []
        for site in self.sites:
            at_row = functools.partial(function, site)
            for _ in site.loops:
                at_row = jax.vmap(at_row)
            numbers = at_row(*(known[site.name] for known in values))
            parts.append(jax.tree.map(functools.partial(_rows_first, len(site.loops)), numbers))
        places = self.places()

        def joined(*stacks: Array) -> Array:
            # sites of several precisions share an axis in the widest dtype
            widest = functools.reduce(jnp.promote_types, [stack.dtype for stack in stacks])
            return jnp.concatenate([stack.astype(widest) for stack in stacks])[places]

        return jax.tree.map(joined, *parts)

    def row(self, name: str) -> Row:
        """Find a row by its name, or the first row of a site.

        Args:
            name: name of the row or the site.

        Returns:
            The row.

        Raises:
            ValueError: if no row or site has that name.
        """
        for row in self.rows:
            if name in (row.name, row.site):
                return row
        raise ValueError(self._unknown(name))

    def places(self) -> np.ndarray:
        """Index the rows in the order of sites, with all steps of a site together.

        Returns:
            For each row, its index in that order.
        """
        starts = {}
        start = 0
        for site in self.sites:
            starts[site.name] = start
            start += math.prod(loop.length for loop in site.loops)
        lengths = {site.name: [loop.length for loop in site.loops] for site in self.sites}
        steps = [
            int(np.ravel_multi_index(row.steps, lengths[row.site])) if row.steps else 0
            for row in self.rows
        ]
        return np.asarray(
            [starts[row.site] + step for row, step in zip(self.rows, steps, strict=True)]
        )

    def parameters(self, theta: PyTree, path: str) -> list[tuple[Array, bool]]:
        """List the parameters of a submodule and of the submodules within it.

        Args:
            theta: trained parameters, or their gradient.
            path: path of the submodule.

        Returns:
            Pairs of a leaf and a boolean: True if scans slice the leaf in each step.
        """
        leaves = jax.tree.leaves(theta)
        return [(leaves[i], i in self._sliced) for i in self.owned(theta, path)]

    def owned(self, theta: PyTree, path: str) -> list[int]:
        """List the numbers of the parameters of a submodule and of the submodules within it.

        Args:
            theta: trained parameters, or their gradient.
            path: path of the submodule.

        Returns:
            Numbers of leaves of theta.
        """
        owners = enumerate(self.model.owners(theta))
        return [
            i for i, owner in owners if not path or owner == path or owner.startswith(f"{path}/")
        ]

    def _site(self, name: str) -> Site:
        for site in self.sites:
            if site.name == name:
                return site
        raise ValueError(self._unknown(name))

    def _unknown(self, name: str) -> str:
        return f"no site is named {name!r}; there are {_first([site.name for site in self.sites])}"


def probe(
    model: Any,
    params: PyTree,
    *inputs: PyTree,
    path: str = "*",
    kind: str | Sequence[str] = "*",
    every: int = 1,
    rngs: PyTree = None,
    **keywords: Any,
) -> Probe:
    """Make a probe of an unmodified model by finding its sites.

    Args:
        model: a linen module, an nnx module, a chain, or a function (params, *inputs) -> output.
            The sites of a function are its `networks.tag`s, else the ends of its scopes of
            `jax.named_scope`. Names of `jax.ad_checkpoint.checkpoint_name` are sites too.
        params: parameters: the variables of a linen module; the `nnx.State` of an nnx module, or
            None for the module's own; any pytree for a function. Collections other than "params"
            and variables other than `nnx.Param` may be changed by the model, and are held constant
            under differentiation.
        inputs: inputs of the model; arrays or their shapes.
        path: pattern of the paths of sites to select, such as "encoder/*".
        kind: pattern, or several, of the classes of sites to select, such as "Dense". The literal
            "softmax" selects the logits of softmaxes over the last axis, wherever they are
            computed, "attention" those of softmaxes whose weights average over positions. See
            `propagation.attention`.
        every: stride over the selected sites, in order of execution.
        rngs: keys by name of stream, {"dropout": key}.
        keywords: other, static arguments of the call, such as train=False.

    Returns:
        The probe.

    Raises:
        ValueError: if the model is none of these, does not take these parameters and inputs, or has
            no site that is selected.

    Example:
        >>> from flax import linen as nn
        >>> module = nn.Sequential([nn.Dense(8), nn.tanh, nn.Dense(1)])
        >>> x = jnp.ones((5, 3), jnp.float32)
        >>> params = jax.jit(module.init)(jax.random.key(0), x)
        >>> probed = probe(module, params, x)
        >>> [site.name for site in probed.sites]
        ['layers_0', 'layers_2', 'Sequential']
        >>> def loss(shifts):
        ...     return probed.read(params, x, shifts=shifts).output.sum()
        >>> jax.jit(jax.grad(loss))(probed.zeros())["layers_2"].tolist()
        [[1.0], [1.0], [1.0], [1.0], [1.0]]
    """
    check_count("every", every, 1)
    pure = model_of(model, keywords)
    theta, rest = pure.split(params)
    if rngs is None:
        rngs = {}
    given = (theta, rest, inputs, rngs)
    closed, gives = _traced(pure, given)
    patterns = [kind] if isinstance(kind, str) else list(kind)
    softmax = next((one for one in (SOFTMAX, ATTENTION) if one in patterns), None)
    if softmax is None:
        name = None
    else:
        name = functools.partial(softmax_name, kind=softmax)
    program = Program.of(closed, name, softmax == ATTENTION)
    if pure.scopes and all(label_of(mark.name).kind in _SOFTMAXES for mark in program.marks):
        program = Program.of(closed, name, softmax == ATTENTION, scope_name)
    found = named_sites(program.marks, pure.activation)
    missed = missed_by(program, set(pure.owners(theta)), found)
    if not found:
        message = (
            "the model has no readable value; name values by networks.tag(name, value) or "
            "jax.named_scope(name)"
        )
        if missed:
            message += f": {'; '.join(map(str, missed[:3]))}"
        raise ValueError(message)
    chosen = [
        (number, site)
        for number, site in enumerate(found)
        if fnmatch.fnmatchcase(site.path, path)
        and any(fnmatch.fnmatchcase(site.kind, one) for one in patterns)
    ][::every]
    if not chosen:
        raise ValueError(
            f"no site has a path like {path!r} and a class like {kind!r}; there are {_some(found)}"
        )
    return Probe(
        sites=tuple(site for _, site in chosen),
        rows=tuple(rows_of([site for _, site in chosen])),
        missed=tuple(missed),
        model=pure,
        _program=program,
        _marks={site.name: number for number, site in chosen},
        _given=jax.tree.map(shape_of, given),
        _gives=jax.tree.structure(gives),
        _rngs=given[3],
        _inputs=len(inputs),
        _sliced=frozenset(program.sliced),
    )


def _traced(model: Model, given: PyTree) -> tuple[Any, PyTree]:
    """Trace the model, and return its jaxpr with the shapes of its results."""
    try:
        return jax.make_jaxpr(model.call, return_shape=True)(*given)
    except (TypeError, ValueError, FlaxError) as error:
        _, _, inputs, _ = given
        shapes = ", ".join(text_of(shape_of(leaf)) for leaf in jax.tree.leaves(inputs))
        reason = str(error).strip().splitlines()[0].split(" (https:")[0]
        raise ValueError(
            f"the model fails with these parameters on an input {shapes}: {reason}"
        ) from error


def _rows_first(loops: int, leaf: Array) -> Array:
    return leaf.reshape(-1, *leaf.shape[loops:])


def _some(sites: Sequence[Site]) -> str:
    return _first([f"{site.name} ({site.kind})" for site in sites])


def _first(names: Sequence[str]) -> str:
    """Join the first eight names, with an ellipsis where there are more."""
    shown = list(names[:8])
    if len(names) > 8:
        shown.append("...")
    return ", ".join(shown)
