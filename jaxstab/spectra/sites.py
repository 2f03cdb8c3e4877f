"""Jacobians of a chain between two layers, or of a probe between two sites, as operators."""

from collections.abc import Callable
from typing import Any, overload

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import check_floating
from jaxstab.networks import Chain, Params, Probe
from jaxstab.networks.interception import inputs_of
from jaxstab.spectra.operators import Operator, chain_jacobian, scaled


@overload
def jacobian(
    model: Chain,
    params: Params,
    x: PyTree,
    from_layer: int | None = None,
    to_layer: int | None = None,
    readout: bool = False,
) -> Operator: ...
@overload
def jacobian(
    model: Probe,
    params: PyTree,
    x: PyTree,
    from_layer: str | None = None,
    to_layer: str | None = None,
) -> Operator: ...
@explained
def jacobian(
    model: Chain | Probe,
    params: PyTree,
    x: PyTree,
    from_layer: Any = None,
    to_layer: Any = None,
    readout: bool = False,
) -> Operator:
    """Make the Jacobian dh_l/dh_k = F_l ... F_(k+1) of a model at one input as an operator.

    The layers of a probe are its sites, and the Jacobian runs along all paths between two. The
    value of a site includes its batch axis: for the Jacobian of one input, make the probe at one
    input.

    Args:
        model: the chain, see `networks.flatten` where a block mixes examples; or the probe.
        params: parameters of the model, of depth L.
        x: one input; for a probe, a tuple of several.
        from_layer: k in [0, L], or the name of a site or row of a probe; None for dh_l/dx, the
            embedding included.
        to_layer: l in [k, L], or such a name, not before k; None for L, or the last row.
        readout: whether to include the readout of a chain, y = readout(h_l).

    Returns:
        The operator, for `moments`, `extremes` and `density`. The layers of a chain are a scan, so
        that compile time does not depend on depth. A probe's products run in the model's floats.

    Raises:
        ValueError: if a layer or a site is unknown, not floating, or out of order; x is not one
            floating vector, or readout is given for a probe.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=500, width=16, activation="identity", weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(16), sigma_w=0.25)
        >>> y, exponent = jacobian(net, params, jnp.ones(16), from_layer=0).apply(jnp.ones((1, 16)))
        >>> round(float(jnp.log2(jnp.linalg.norm(y)))) + int(exponent[0])
        -998
        >>> def model(w, x):
        ...     return networks.tag("y", w @ networks.tag("h", 2 * x))
        >>> w, x = jnp.eye(3), jnp.ones(3)
        >>> J = jacobian(networks.probe(model, w, x), w, x, from_layer="h")
        >>> J.matvec(jnp.asarray([1.0, 2.0, 4.0])).tolist()
        [1.0, 2.0, 4.0]
    """
    if not isinstance(model, Probe):
        return chain_jacobian(model, params, x, from_layer, to_layer, readout)
    if readout:
        raise ValueError("readout must be False for a probe, whose output is a site")
    return _probe_jacobian(model, params, x, from_layer, to_layer)


def _probe_jacobian(
    probe: Probe, params: PyTree, x: PyTree, from_site: Any, to_site: Any
) -> Operator:
    """Make the Jacobian of one site by another as an operator.

    Args:
        probe: the model.
        params: its parameters.
        x: one input, or a tuple of several.
        from_site: name of a site or row; None for all inputs together.
        to_site: name of a site or row, not before `from_site`; None for the last row.

    Returns:
        The operator, for `moments`, `extremes` and `density`. Products run in the model's floats.

    Raises:
        ValueError: if a site is unknown or not floating, or sites are out of order.
    """
    inputs = inputs_of(x)
    if to_site is None:
        to_site = probe.rows[-1].name
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
                f"to_layer must not come before from_layer, got {to_site!r} and {from_site!r}"
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
