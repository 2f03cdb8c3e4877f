"""Penalties on a loss, for gradients that neither vanish nor explode.

Two penalties act on signal propagation: `omega` preserves the norm of the back-propagated gradient
from layer to layer, `jacobian_norm` shrinks the input-output Jacobian. Two act on the weights
alone: `orthogonality` and `spectral_norm`. All are plain functions of parameters: multiply by a
strength, add to the loss, differentiate.

Weights are floating leaves named "kernel", Flax's name, including the gates of a highway. Biases,
norms, PRNG keys and counters are no weights. A bare array is a weight too. The last two axes are
the matrix and all earlier axes a stack: [depth, n, n] holds depth matrices.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, PyTree

from jaxstab import networks
from jaxstab.checks import check_count, check_floating
from jaxstab.networks import Chain, Here, Params
from jaxstab.networks.chains import with_network
from jaxstab.networks.views import vector_states
from jaxstab.norms.logarithms import unit
from jaxstab.records import Estimate, standard_error


@with_network
def omega(
    chain: Chain,
    params: Params,
    x: PyTree,
    loss: Callable[[PyTree], Float[Array, ""]],
    immediate: bool = True,
) -> Float[Array, ""]:
    """Compute Pascanu's Omega: the squared relative change of the gradient's norm at each block.

    Omega = sum_l (|(dE/dh_l) dh_l/dh_{l-1}| / |dE/dh_l| - 1)^2, l = 1..L: Pascanu, Mikolov & Bengio
    2013, eq. 9. The layers of a chain, each with its own weights, replace their time steps (our
    reading). One reverse sweep takes one vector-Jacobian product per block. Cotangents have unit
    norm, so that no depth under- or overflows them. A block that no gradient reaches (dE/dh_l = 0)
    adds 0. A block that reduces the gradient to zero adds 1.

    Args:
        chain: the network.
        params: parameters of the network, of depth L.
        x: one input, tokens included, or a batch where blocks mix examples, whose gradient then has
            one norm.
        loss: E, scalar function of the output.
        immediate: True for derivatives of Omega that hold h_{l-1} and dE/dh_l constant, as in their
            eq. 10, so that only a block's own parameters act on its term. False differentiates
            through everything. The value of Omega is the same.

    Returns:
        Penalty, >= 0.

    Raises:
        ValueError: if x of a chain of `networks.mlp` is not floating.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=4, width=8, activation="identity", features_out=8, weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(8), sigma_w=1.5)
        >>> penalty = lambda params: omega(net, params, jnp.ones(8), jnp.sum)
        >>> round(float(penalty(params)), 4)  # every block multiplies the gradient by 1.5: 4 * 0.5^2
        1.0
        >>> slope = jax.grad(penalty)(params).blocks["dense"]["kernel"].shape
    """
    if isinstance(chain.block, tuple):
        chain = vector_states(chain, params, x)
    else:
        check_floating("x", jnp.result_type(x))
    hold = jax.lax.stop_gradient if immediate else lambda held: held
    states = hold(networks.states(chain, params, x))
    arriving = hold(unit(jax.grad(lambda h: loss(chain.readout(params, h)))(states.last))[0])

    def layer(arriving: Array, here: Here) -> tuple[Array, Array]:
        passed, log_ratio = unit(here.pull(arriving))
        term = jnp.where(jnp.any(arriving != 0), (jnp.exp(log_ratio) - 1) ** 2, 0.0)
        return hold(passed), term

    return jnp.sum(networks.downwards(chain, params, states, layer, arriving, first=1)[1])


@with_network
def jacobian_norm(
    fn: Callable[[Float[Array, " d_in"]], Float[Array, " d_out"]],
    x: Float[Array, " d_in"],
    key: Array,
    projections: int = 1,
) -> Estimate:
    """Estimate the squared Frobenius norm of the Jacobian of y = fn(x) by random projections.

    |J|_F^2 = d_out E|v^T J|^2, v uniform on the unit sphere: Hoffman, Roberts & Yaida 2019, section
    2.3 and algorithm 1. The estimate is unbiased and takes one vector-Jacobian product per
    projection. The variance of one projection, 2 (d_out tr A^2 - (tr A)^2) / (d_out + 2) with
    A = J J^T, is zero where all singular values are equal.

    Args:
        fn: the map, closed over the parameters to regularise.
        x: one input; vmap over several, with a key for each.
        key: PRNG key; a fresh one for every training step.
        projections: number n of independent projections, >= 1; one is enough for training.

    Returns:
        Estimate of |J|_F^2. Add `strength / 2 * value` to the loss.

    Raises:
        ValueError: if projections is no positive integer, x is not floating or fn does not return a
            vector.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(4, 8, "identity", features_out=8, weights="orthogonal")
        >>> params = net.init(jax.random.key(0), jnp.ones(8))
        >>> def penalty(params, x, key):
        ...     return jacobian_norm(lambda x: net.apply(params, x), x, key).value
        >>> round(float(penalty(params, jnp.ones(8), jax.random.key(1))), 4)  # eight singular values of 1
        8.0
        >>> slope = jax.grad(penalty)(params, jnp.ones(8), jax.random.key(1)).blocks["dense"]["kernel"].shape
    """
    check_count("projections", projections, 1)
    check_floating("x", jnp.result_type(x))
    y, pullback = jax.vjp(fn, x)
    if jnp.ndim(y) != 1:
        raise ValueError(
            f"fn must return a vector [d_out], got shape {jnp.shape(y)}; use jax.vmap over examples"
        )
    directions = jax.vmap(lambda v: unit(v)[0])(
        jax.random.normal(key, (projections, y.size), y.dtype)
    )
    samples = y.size * jnp.sum(jax.vmap(pullback)(directions)[0] ** 2, axis=1)
    return Estimate(jnp.mean(samples), standard_error(jax.lax.stop_gradient(samples)))


def orthogonality(weights: PyTree, gain: ArrayLike = 1.0) -> Float[Array, ""]:
    """Compute the soft orthogonality penalty: the distance of weights from gain times an isometry.

    The penalty is the sum over kernels of |W^T W / g^2 - I|_F^2: Bansal, Chen & Wang 2018, section
    3.1, there with g = 1. A matrix that is not square uses the smaller of W^T W and W W^T, since
    only that one can be the identity.

    Args:
        weights: parameters, of which leaves named "kernel" count, or one array [*stack, m, n].
        gain: wanted gain g > 0 of the weights, such as the critical sigma_w of the activation; may
            be traced.

    Returns:
        Penalty, >= 0, in float32 or wider.

    Raises:
        ValueError: if there is no weight, a weight is not a matrix, or gain is not a positive
            finite number.

    Example:
        >>> round(float(orthogonality({"kernel": jnp.diag(jnp.asarray([1.0, 2.0])), "bias": jnp.ones(2)})), 3)
        9.0
    """
    if not isinstance(gain, jax.core.Tracer) and not (
        np.ndim(gain) == 0 and np.isfinite(gain) and np.asarray(gain) > 0
    ):
        raise ValueError(f"gain must be one finite number > 0, got {gain}")

    def penalty(w: Array) -> Array:
        scaled = w / jnp.asarray(gain, w.dtype)
        if w.shape[0] < w.shape[1]:
            scaled = scaled.T
        gram = scaled.T @ scaled
        return jnp.sum((gram - jnp.eye(len(gram), dtype=w.dtype)) ** 2)

    return jnp.sum(jnp.stack([jnp.sum(jax.vmap(penalty)(stack)) for stack in _stacks(weights)]))


def spectral_norm(weights: PyTree, key: Array, iterations: int = 20) -> Float[Array, ""]:
    """Compute half the squared largest singular values of all weights.

    The penalty is 1/2 sum over kernels of sigma_max(W)^2: Yoshida & Miyato 2017, section 3.2. Power
    iteration from a random vector gives u and v. With u and v held constant, sigma = u^T W v, and
    the gradient is sigma u v^T. The paper carries u from step to step and iterates once; this
    function carries nothing, and needs more iterations. sigma is approached from below:
    E[1 - sigma_k^2 / sigma^2] <= 0.871 ln(n) / k after k iterations for any gap (Kuczynski &
    Wozniakowski 1992, section 3, n >= 8), and geometrically for a positive gap.

    Args:
        weights: parameters, of which leaves named "kernel" count, or one array [*stack, m, n].
        key: PRNG key of the starting vectors.
        iterations: number k >= 1 of iterations, of two matrix-vector products each.

    Returns:
        Penalty, >= 0, in float32 or wider; 0 with gradient 0 at W = 0.

    Raises:
        ValueError: if there is no weight, a weight is not a matrix, or iterations is no positive
            integer.

    Example:
        >>> round(float(spectral_norm({"kernel": jnp.diag(jnp.asarray([1.0, 2.0]))}, jax.random.key(0))), 4)
        2.0
    """
    check_count("iterations", iterations, 1)
    stacks = _stacks(weights)

    def sigma(w: Array, start: Array) -> Array:
        held = jax.lax.stop_gradient(w)

        def onward(v: Array) -> Array:
            return unit(held @ v)[0]

        v, _ = jax.lax.scan(
            lambda v, _: (unit(onward(v) @ held)[0], None), unit(start)[0], length=iterations
        )
        return onward(v) @ w @ v

    def penalty(stack: Array, key: Array) -> Array:
        starts = jax.random.normal(key, (stack.shape[0], stack.shape[2]), stack.dtype)
        return jnp.sum(jax.vmap(sigma)(stack, starts) ** 2) / 2

    keys = jax.random.split(key, len(stacks))
    return jnp.sum(
        jnp.stack([penalty(stack, part) for stack, part in zip(stacks, keys, strict=True)])
    )


def _stacks(weights: PyTree) -> list[Float[Array, "stack m n"]]:
    """Return every weight as a stack of matrices, in the widest dtype found, at least float32."""
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    names = [
        jax.tree_util.keystr(path[-1:], simple=True) if path else "kernel" for path, _ in leaves
    ]
    stacks = [
        leaf
        for name, (_, leaf) in zip(names, leaves, strict=True)
        if name == "kernel" and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
    ]
    if not stacks:
        raise ValueError(
            f'params must have a floating leaf named "kernel", got leaves {sorted(set(names))}'
        )
    for leaf in stacks:
        if jnp.ndim(leaf) < 2:
            raise ValueError(
                f"a weight must be a matrix or a stack of them, got shape {jnp.shape(leaf)}"
            )
    dtype = max(
        (jnp.result_type(leaf) for leaf in [*stacks, jnp.float32]), key=lambda dtype: dtype.itemsize
    )
    return [jnp.asarray(leaf, dtype).reshape(-1, *leaf.shape[-2:]) for leaf in stacks]
