"""Jacobians between two sites of an unmodified model, as operators."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from jaxstab.checks import check_floating
from jaxstab.networks import Probe
from jaxstab.spectra.operators import Operator, scaled


def jacobian_at_sites(
    probe: Probe, params: PyTree, *inputs: PyTree, from_site: str | None = None, to_site: str
) -> Operator:
    """Make the Jacobian of one site by another as an operator, along all paths between them.

    The value of a site includes its batch axis: for the Jacobian of one input, make the probe at
    one input.

    Args:
        probe: the model.
        params: its parameters.
        inputs: of the model.
        from_site: name of a site or row; None for all inputs together.
        to_site: name of a site or row, not before `from_site`.

    Returns:
        The operator, for `moments`, `extremes` and `density`. Products run in the model's floats.

    Raises:
        ValueError: if a site is unknown or not floating, or sites are out of order.

    Example:
        >>> from jaxstab import networks, spectra
        >>> def model(w, x):
        ...     return networks.tag("y", w @ networks.tag("h", 2 * x))
        >>> w, x = jnp.eye(3), jnp.ones(3)
        >>> J = jacobian_at_sites(networks.probe(model, w, x), w, x, from_site="h", to_site="y")
        >>> J.matvec(jnp.asarray([1.0, 2.0, 4.0])).tolist()
        [1.0, 2.0, 4.0]
    """
    end = probe.row(to_site)
    dtypes = {site.name: site.dtype for site in probe.sites}
    check_floating(f"site {to_site}", dtypes[end.site])
    if from_site is None:
        vector, given = ravel_pytree(inputs)
        check_floating("inputs", vector.dtype)
        start = vector

        def value(x: Array) -> Array:
            return (
                probe.read(params, *given(x), sites=[end.site]).sites[end.site][end.steps].ravel()
            )
    else:
        begin = probe.row(from_site)
        check_floating(f"site {from_site}", dtypes[begin.site])
        if probe.rows.index(begin) > probe.rows.index(end):
            raise ValueError(
                f"to_site must not come before from_site, got {from_site!r} and {to_site!r}"
            )
        whole = probe.zeros()[begin.site]
        start = whole[begin.steps].ravel()

        def value(x: Array) -> Array:
            shift = whole.at[begin.steps].set(x.reshape(whole[begin.steps].shape))
            read = probe.read(params, *inputs, shifts={begin.site: shift}, sites=[end.site])
            return read.sites[end.site][end.steps].ravel()

    out, push = jax.linearize(value, start)
    transposed = jax.linear_transpose(push, start)

    def product(function: Callable[[Array], Array]) -> Callable:
        def run(v: Array) -> tuple[Array, Array]:
            v, exponent = scaled(v, jnp.zeros(len(v), jnp.int32))
            return scaled(jax.vmap(function)(v), exponent)

        return run

    def pull(u: Array) -> Array:
        return transposed(u)[0]

    return Operator(product(push), product(pull), out.size, start.size, out.dtype)
