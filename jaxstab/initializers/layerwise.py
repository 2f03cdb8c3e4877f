"""Data-dependent initialisers that rescale weights layer by layer, from the input on."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, ArrayLike, Key, PyTree

from jaxstab.checks import check_count
from jaxstab.networks import MLP, Chain, Here, Params, chain, rescale, upwards
from jaxstab.networks.chains import with_network
from jaxstab.networks.family import module_of
from jaxstab.networks.gains import Kernels, count_kernels, scale_layer
from jaxstab.networks.layers import as_layer, with_trained


@with_network
def lsuv(
    network: MLP | Chain,
    params: Params,
    x: PyTree,
    target: ArrayLike = 1.0,
    steps: int = 10,
    kernels: Kernels | None = None,
    part: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> Params:
    """Rescale weights to unit variance, layer by layer, from data (LSUV; Mishkin & Matas 2016).

    From the input on, the weights of each layer are divided by sqrt(Var(W a + b) / target). The
    variance is over units and examples and excludes the skip. The next layer is measured after the
    rescaling. The paper starts from orthogonal weights. Without biases one step is exact.

    In a layer of the user's own with n weights, each weight is divided by the n-th root, in each
    step. The variance is that of the whole state above, unless `part` selects another.

    Args:
        network: MLP with any norm and skip, used without dropout; or chain that takes a batch, used
            with the masks given.
        params: parameters of the network, before `bind`; for layers of the user's own, bound or
            not.
        x: batch of data.
        target: target variance, > 0; may be traced.
        steps: number of rescalings per layer, >= 1.
        kernels: selection of the weights among the parameters of the user's own layers, as in
            `networks.rescale`.
        part: function (state below, state above) -> array whose variance is rescaled, for blocks of
            the user's own, such as the difference at a sum skip; None for the state above.

    Returns:
        Rescaled parameters; layers without variance or without weights are unchanged.

    Raises:
        ValueError: if x is not a batch, steps < 1, kernels or part is given for an MLP, or no layer
            has weights.

    Example:
        >>> from flax import linen as nn
        >>> from jaxstab import networks
        >>> chain = networks.from_linen([nn.Dense(8), *[nn.Sequential([nn.relu, nn.Dense(8)])] * 9, nn.Dense(2)])
        >>> x = jax.random.normal(jax.random.key(0), (16, 4), jnp.float32)
        >>> params = lsuv(chain, chain.init(jax.random.key(1), x), x)
        >>> round(float(jnp.var(networks.state(chain, params, x))), 3)
        1.0
    """
    check_count("steps", steps, 1)
    if isinstance(network, Chain) and network.family is None:
        return _lsuv_of_own(network, params, x, target, steps, kernels, part)
    if kernels is not None or part is not None:
        raise ValueError("kernels and part must be None for an MLP, whose kernels are known")
    if jnp.ndim(x) != 2:
        raise ValueError(f"x must be a batch [batch, d_in], got shape {jnp.shape(x)}")
    mlp = module_of(network).clone(dropout=False)
    dry = chain(mlp)
    branch = mlp.layers(train=True)[1].clone(skip=None)

    def scaled(layer: dict, output: Callable[[dict], Array]) -> dict:
        def times(layer: dict, factor: Array) -> dict:
            return layer | {"dense": layer["dense"] | {"kernel": layer["dense"]["kernel"] * factor}}

        return _to_size(layer, lambda layer: jnp.var(output(layer)), times, target, steps)

    def block(h: Array, here: Here) -> tuple[Array, dict]:
        new = scaled(here.theta, lambda layer: jnp.asarray(branch.apply({"params": layer}, h)))
        return here.f(new, h), new

    embed = scaled(
        params.embed, lambda layer: dry.embed(params._replace(embed=layer), x)[..., : mlp.width]
    )
    h_0 = dry.embed(params._replace(embed=embed), x)
    h, blocks = upwards(dry, params, None, block, h_0, first=1)
    readout = scaled(params.readout, lambda layer: dry.readout(params._replace(readout=layer), h))
    return Params(embed, blocks, readout)


def _lsuv_of_own(
    chain: Chain,
    params: Params,
    x: PyTree,
    target: ArrayLike,
    steps: int,
    kernels: Kernels | None,
    part: Callable[[PyTree, PyTree], PyTree] | None,
) -> Params:
    def variance(here: Here, h: PyTree) -> Callable[[PyTree], Array]:
        selected = part if here.segment is not None else None

        def of(theta: PyTree) -> Array:
            above = here.f(theta, h)
            return jnp.var(ravel_pytree(above if selected is None else selected(h, above))[0])

        return of

    return _layer_by_layer(chain, params, x, variance, target, steps, kernels)


@with_network
def auto_init(
    network: MLP | Chain,
    params: Params,
    x: PyTree,
    key: Key[Array, ""],
    *,
    steps: int = 10,
    samples: int = 4,
    kernels: Kernels | None = None,
) -> Params:
    """Rescale each block's weights to a partial Jacobian of norm 1 (AutoInit; Doshi et al. 2023).

    From the input on, the weights of block l are divided by the square root of

        J^{l-1,l} = sum_ij (dh_{l,i} / dh_{l-1,j})^2 / N_l  =  E |u^T dh_l/dh_{l-1}|^2 / N_l,

    u standard normal, so that gradients keep their mean square on these data.

    Args:
        network: chain or MLP without skips, as no weights bring J to 1 next to a skip.
        params: parameters of the network, bound or not.
        x: input, or batch where the layers take one.
        key: random key of u.
        steps: number of rescalings per block, >= 1; one is exact where a block ends in its only
            kernel.
        samples: number of vectors u, >= 1.
        kernels: selection of the weights among the parameters, as in `networks.rescale`.

    Returns:
        Rescaled parameters; blocks without weights or with a Jacobian of 0 are unchanged.

    Raises:
        ValueError: if steps or samples < 1, no layer has weights, or the network's law has a skip.
    """
    check_count("steps", steps, 1)
    check_count("samples", samples, 1)
    known = network if isinstance(network, Chain) else chain(network)
    skip = (known.law or {}).get("skip")
    if skip is not None:
        raise ValueError(
            f"auto_init needs blocks without a skip, got skip {skip!r}; scale the branch instead, "
            "as skip_init does"
        )

    def squared_jacobian(here: Here, h: PyTree) -> Callable[[PyTree], Array] | None:
        if here.segment is None:
            return None
        own = jax.random.fold_in(key, here.layer)

        def of(theta: PyTree) -> Array:
            above, pull = jax.vjp(lambda h: here.f(theta, h), h)
            flat, tree = ravel_pytree(above)
            draws = jax.random.normal(own, (samples, flat.size), flat.dtype)
            pulled = jax.vmap(lambda u: ravel_pytree(pull(tree(u)))[0])(draws)
            return jnp.sum(pulled**2) / (samples * flat.size)

        return of

    return _layer_by_layer(known, params, x, squared_jacobian, 1.0, steps, kernels)


# (layer, state) -> function of parameters that grows as the square of the weights
Size = Callable[[Here, PyTree], Callable[[PyTree], Array] | None]


def _layer_by_layer(
    chain: Chain,
    params: Params,
    x: PyTree,
    size: Size,
    target: ArrayLike,
    steps: int,
    kernels: Kernels | None,
) -> Params:
    """Rescale the weights of each layer, from the input on, until `size` has the target value."""
    # raises an error for a chain without weights
    rescale(params, 1.0, kernels=kernels)

    def new_theta(here: Here, h: PyTree) -> PyTree:
        many = count_kernels(here.theta, kernels)
        own = size(here, h)
        if not many or own is None:
            return here.theta

        def times(theta: PyTree, factor: Array) -> PyTree:
            return scale_layer(theta, factor ** (1 / many), kernels)

        return _to_size(here.theta, own, times, target, steps)

    def layer(carry: tuple[PyTree, tuple], here: Here) -> tuple[tuple[PyTree, tuple], None]:
        h, stacks = carry
        theta = new_theta(here, h)
        number = _number(here, stacks)
        stacks = (*stacks[:number], _written(stacks[number], theta, here), *stacks[number + 1 :])
        return (here.f(theta, h), stacks), None

    start = (x, tuple(as_layer(stack).params for stack in params.stacks))
    (_, stacks), _ = upwards(chain, params, None, layer, start, readout=True)
    return params.restacked(list(map(with_trained, params.stacks, stacks)))


def _number(here: Here, stacks: tuple) -> int:
    """Return the index of a layer's segment among embedding, segments and readout."""
    if here.segment is not None:
        return here.segment + 1
    if here.layer == 0:
        return 0
    return len(stacks) - 1


def _written(stack: PyTree, theta: PyTree, here: Here) -> PyTree:
    if here.segment is None:
        return theta
    return jax.tree.map(
        lambda all_, one: jax.lax.dynamic_update_index_in_dim(all_, one, here.index, 0),
        stack,
        theta,
    )


def _to_size(
    theta: PyTree,
    size: Callable[[PyTree], Array],
    times: Callable[[PyTree, Array], PyTree],
    target: ArrayLike,
    steps: int,
) -> PyTree:
    """Rescale the weights of a layer until `size`, which grows as their square, has the target."""

    def step(_: Array | int, theta: PyTree) -> PyTree:
        square = size(theta)
        factor = jnp.sqrt(jnp.asarray(target, square.dtype) / jnp.where(square > 0, square, 1))
        return times(theta, jnp.where(square > 0, factor, 1))

    return jax.lax.fori_loop(0, steps, step, theta)
