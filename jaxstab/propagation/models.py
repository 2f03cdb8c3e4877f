"""Signal, correlation and gradient of a model: a chain layer by layer, a probe site by site."""

from collections.abc import Callable
from typing import Any, overload

from jaxtyping import Array, Float, PyTree

from jaxstab.arguments import explained
from jaxstab.checks import Depths
from jaxstab.networks import Chain, Params, Probe
from jaxstab.propagation import gradients, profiles, sites
from jaxstab.propagation.sites import SiteGradients
from jaxstab.records import BackwardProfile, CorrelationProfile, ForwardProfile, SiteProfile

Loss = Callable[[PyTree], Float[Array, ""]]


@overload
def forward(model: Chain, params: Params, x: PyTree) -> ForwardProfile: ...
@overload
def forward(model: Probe, params: PyTree, x: PyTree) -> SiteProfile: ...
@explained
def forward(model: Chain | Probe, params: Any, x: PyTree) -> ForwardProfile | SiteProfile:
    """Compute length, saturation and dead units at every layer 0..L, or at every site of a probe.

    With "dense" skips a layer has its own units and the units of all layers below.

    Args:
        model: the chain, or the probe.
        params: parameters of the model.
        x: one input [d_in], or a batch [batch, d_in] to average over; for a probe the model's
            input, or a tuple of inputs.

    Returns:
        Profile over layers, or over `probe.rows` with the mean and the share that is not finite;
        saturation and dead units are NaN where no activation is known.

    Raises:
        ValueError: if x or params do not fit the model.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=2, width=64, activation="identity", weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(64))
        >>> forward(net, params, jnp.ones(64)).q.round(4).tolist()
        [1.0, 1.0, 1.0]
        >>> probe = networks.probe(lambda w, x: jnp.tanh(networks.tag("h", x @ w)), jnp.eye(3), jnp.ones((2, 3)))
        >>> forward(probe, jnp.eye(3), jnp.ones((2, 3))).mean.tolist()
        [1.0]
    """
    if isinstance(model, Probe):
        return sites.forward(model, params, x)
    return profiles.forward(model, params, x)


@explained
def correlation(
    model: Chain | Probe, params: Any, x1: PyTree, x2: PyTree, other: Any = None
) -> CorrelationProfile:
    """Compute the correlation c of the signals of two inputs at every layer 0..L, or at every site.

    c = h . h' / (|h| |h'|) is computed as 1 - |u - u'|^2 / 2 from the unit vectors u, u', which
    keeps the relative precision of 1 - c where c approaches 1. A batch counts as one long input.

    Args:
        model: the chain, or the probe.
        params: parameters of the model.
        x1: first input; for a probe of several inputs, a tuple.
        x2: second input, of the same shape.
        other: parameters for x2, such as the same weights with other masks of dropout; None for
            params.

    Returns:
        Profile over layers, or over `probe.rows`; NaN where a signal is zero or not finite, and in
        a chain from that layer on.

    Raises:
        ValueError: if an input or params do not fit the model.
    """
    if isinstance(model, Probe):
        return sites.correlation(model, params, x1, x2, other)
    return profiles.correlation(model, params, x1, x2, other)


@overload
def backward(
    model: Chain, params: Params, x: PyTree, loss: Loss, depths: Depths | None = None
) -> BackwardProfile: ...
@overload
def backward(model: Probe, params: PyTree, x: PyTree, loss: Loss) -> SiteGradients: ...
@explained
def backward(
    model: Chain | Probe, params: Any, x: PyTree, loss: Loss, depths: Depths | None = None
) -> BackwardProfile | SiteGradients:
    """Compute gradient norms of a loss at every layer 0..L, or at every site of a probe.

    For a chain, all wanted depths come from one reverse sweep: the network of depth D is the first
    D blocks with the same readout, cot_{l-1} = (d block_l / dh)^T cot_l. Unit cotangents are
    carried, so that no gradient underflows. A probe runs the model in its own dtypes; a loss times
    a large factor saves gradients from underflow there.

    Args:
        model: the chain, or the probe.
        params: parameters of the model, of depth L.
        x: one input [d_in], or a batch where blocks mix examples; for a probe the model's input, or
            a tuple of inputs.
        loss: scalar function of the output.
        depths: wanted depths of a chain, each in [0, L]; None for depth L alone, without a depth
            axis.

    Returns:
        For a chain, profile [depth, layer], or [layer] for depths=None; NaN beyond each depth. For
        a probe, norms over `probe.rows`, and the gradients.

    Raises:
        ValueError: if depths are not ascending integers in [0, L] or given for a probe, states of
            the wanted depths have several shapes, or x or params do not fit the model.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=2, width=64, activation="identity", weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(64))
        >>> g = backward(net, params, jnp.ones(64), jnp.sum).log_grad_h
        >>> g.shape, bool(jnp.allclose(g, g[0], atol=1e-5))
        ((3,), True)
        >>> probe = networks.probe(lambda w, x: networks.tag("h", x @ w), jnp.eye(3), jnp.ones((2, 3)))
        >>> jax.jit(lambda w: backward(probe, w, jnp.ones((2, 3)), jnp.sum).sites["h"])(jnp.eye(3)).tolist()
        [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]
    """
    if isinstance(model, Probe):
        if depths is not None:
            raise ValueError(
                f"depths must be None for a probe, whose model has one depth, got {depths}"
            )
        return sites.backward(model, params, x, loss)
    return gradients.backward(model, params, x, loss, depths)
