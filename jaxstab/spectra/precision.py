"""Effect of the precision of matrix products on a spectrum.

Decompositions run in the dtype of their input on every device, but a device may lower the precision
of products: TF32 rounds the inputs to 10 mantissa bits and bfloat16 to 7, with sums in float32.
Both are emulated on any device by rounding the inputs of every product, so that the precision of a
GPU can be studied on a laptop.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend import core
from jaxtyping import Array, Float, Int, PyTree

from jaxstab.checks import Depths, check_depths, check_floating
from jaxstab.derivatives import NAME
from jaxstab.networks import Chain, Params
from jaxstab.networks.views import at_one_input
from jaxstab.spectra.exact import log_singular_values

# settings of `jax.default_matmul_precision` for products in float32 on this device
SETTINGS = ("highest", "high", "default")
# mantissa bits of the inputs of emulated products, with float32's exponent
EMULATED = {"tf32": 10, "bfloat16": 7}
# primitives that only call a program once derivatives are taken
CALLS = (
    "jit",
    "pjit",
    "closed_call",
    "checkpoint",
    "remat",
    "remat2",
    "custom_jvp_call",
    "custom_vjp_call",
    NAME,
)
# error of ln s for a value that is right to 1 %
RIGHT = 0.01


class PrecisionError(NamedTuple):
    """Errors of the spectrum at every wanted depth in one precision.

    Attributes:
        error: |ln s - ln s of the reference| by index, about the relative error of s; inf if only
            one value is zero.
        largest: largest error over the index.
        median: median error over the index.
        right: number of leading values that are all right to 1 %.
    """

    error: Float[Array, "depth index"]
    largest: Float[Array, " depth"]
    median: Float[Array, " depth"]
    right: Int[Array, " depth"]


class PrecisionReport(NamedTuple):
    """Spectra of one network at one input in several precisions.

    Attributes:
        reference: ln s in float64, with which the modes are compared. Without x64, the reference is
            float32 with "highest" products, which is then not among the modes and has unknown
            error.
        modes: errors by mode: "highest", "high" and "default" for products of this device, "tf32"
            and "bfloat16" for emulated products.
    """

    reference: Float[Array, "depth index"]
    modes: dict[str, PrecisionError]

    def table(self, depths: Depths) -> str:
        """Format the report for one input, outside jit.

        Args:
            depths: as given to `precision_report`.

        Returns:
            Text with one line per precision and depth.
        """
        total = self.reference.shape[-1]
        lines = [
            f"error in ln s against {self.reference.dtype}, {total} values",
            "mode      depth  largest   median    right to 1 %",
        ]
        # jit sorts the keys of a dict
        for name, mode in sorted(
            self.modes.items(), key=lambda item: [*SETTINGS, *EMULATED].index(item[0])
        ):
            for depth, largest, median, right in zip(
                depths, mode.largest, mode.median, mode.right, strict=True
            ):
                lines.append(
                    f"{name:9} {depth:5}  {float(largest):.1e}   {float(median):.1e}   first "
                    f"{int(right)}"
                )
        return "\n".join(lines)


@at_one_input
def precision_report(
    chain: Chain, params: Params, x: Float[Array, " d_in"], depths: Depths
) -> PrecisionReport:
    """Compute `log_singular_values` of one network in several precisions of its matrix products.

    The report shows whether a spectrum computed on a GPU is accurate.

    Parameters and input are rounded to float32 first, in every precision, so that errors are those
    of the computation. Errors include the forward pass: in a chaotic network a rounded product acts
    like another input and changes the whole spectrum. There is a program per precision, six in all;
    jit compiles them together. No configuration is changed.

    Args:
        chain: the network; blocks of one width.
        params: parameters of the network.
        x: one input.
        depths: wanted depths L, each in [0, depth of the chain], ascending.

    Returns:
        Record of `reference`, ln s that is compared with, and `modes`, the `error` of each
        precision by name; its method `table` formats it.

    Raises:
        ValueError: as `log_singular_values`.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=4, width=4)
        >>> params = net.init(jax.random.key(0), jnp.ones(3))
        >>> ask = jax.jit(lambda params, x: precision_report(net, params, x, [4]))
        >>> report = ask(params, jnp.ones(3))
        >>> bool(report.modes["bfloat16"].median[0] > report.modes["tf32"].median[0])
        True
    """
    depths = check_depths(depths, params.depth)
    check_floating("x", jnp.result_type(x))
    given = _cast((params, x), jnp.float32)

    def at(precision: str) -> Callable[[Params, Array], Array]:
        precise = chain._replace(precision=precision)
        return lambda params, x: log_singular_values(precise, params, x, depths)

    spectra = {name: at(name) for name in SETTINGS}
    spectra |= {name: _rounding(at("highest"), bits) for name, bits in EMULATED.items()}
    if jnp.result_type(float) == jnp.float64:
        spectra |= {"float64": lambda params, x: at("highest")(*_cast((params, x), jnp.float64))}
    # one at a time: concurrent batched decompositions can deadlock a small thread pool
    branches = [lambda of=of: of(*given).astype(float) for of in spectra.values()]
    each = jax.lax.map(lambda i: jax.lax.switch(i, branches), jnp.arange(len(branches)))
    by_mode = dict(zip(spectra, each, strict=True))
    best = "highest"
    if "float64" in by_mode:
        best = "float64"
    reference = by_mode.pop(best)
    return PrecisionReport(
        reference, {name: _error(log_s, reference) for name, log_s in by_mode.items()}
    )


def _error(
    log_s: Float[Array, "depth index"], reference: Float[Array, "depth index"]
) -> PrecisionError:
    log_s = log_s.astype(reference.dtype)
    # the difference of two -inf is NaN
    error = jnp.where(log_s == reference, 0.0, jnp.abs(log_s - reference))
    right = jnp.cumprod(error <= RIGHT, axis=-1, dtype=jnp.int32).sum(axis=-1)
    return PrecisionError(error, jnp.max(error, axis=-1), jnp.median(error, axis=-1), right)


def _cast(tree: PyTree, dtype: Any) -> PyTree:
    """Cast floating leaves to another dtype."""

    def one(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            return jnp.asarray(leaf, dtype)
        return leaf

    return jax.tree.map(one, tree)


def _rounding(f: Callable, bits: int) -> Callable:
    """Make f round the inputs of every matrix product to a number of mantissa bits."""

    def rounded(*args: PyTree) -> PyTree:
        jaxpr, shape = jax.make_jaxpr(f, return_shape=True)(*args)
        return jax.tree.unflatten(
            jax.tree.structure(shape), _evaluate(jaxpr, jax.tree.leaves(args), bits)
        )

    return rounded


def _evaluate(closed: core.ClosedJaxpr, args: Sequence[Any], bits: int) -> list[Any]:
    jaxpr = closed.jaxpr
    values: dict[core.Var, Any] = dict(
        zip((*jaxpr.constvars, *jaxpr.invars), (*closed.consts, *args), strict=True)
    )

    def read(atom: Any) -> Any:
        if isinstance(atom, core.Literal):
            return atom.val
        return values[atom]

    for equation in jaxpr.eqns:
        inputs = [read(atom) for atom in equation.invars]
        given = equation.params
        name = equation.primitive.name
        if name in CALLS:
            called = given.get("jaxpr", given.get("call_jaxpr"))
            if not isinstance(called, core.ClosedJaxpr):
                called = core.ClosedJaxpr(called, ())
            outputs = _evaluate(called, inputs, bits)
        else:
            if name == "dot_general":
                inputs = [jax.lax.reduce_precision(a, 8, bits) for a in inputs]
            outputs = equation.primitive.bind(
                *inputs, **{k: _inner(v, bits) for k, v in given.items()}
            )
        if not isinstance(outputs, list | tuple):
            outputs = [outputs]
        values.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _inner(given: Any, bits: int) -> Any:
    """Rewrite the programs of loops and branches in a primitive's parameters."""
    if (
        isinstance(given, tuple)
        and given
        and all(isinstance(one, core.ClosedJaxpr) for one in given)
    ):
        return tuple(_inner(one, bits) for one in given)
    if not isinstance(given, core.ClosedJaxpr):
        return given
    # in_avals also state the mesh axes along which values vary within a shard_map
    return jax.make_jaxpr(lambda *args: _evaluate(given, args, bits))(*given.in_avals)
