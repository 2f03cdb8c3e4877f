"""Initialisers that keep signal and gradient alive at depth, and gains with their reasons.

Two kinds. What acts on one matrix is an initialiser as jax.nn.initializers has them, for
`MLP(weights=...)` or any Flax layer: `critical` here, and by name in `networks.WEIGHTS` those of
Glorot, He and LeCun, and Haar-orthogonal ones. What must see the network draws or changes its
parameters: `looks_linear`, `lsuv`, `auto_init`, `fixup`, `skip_init`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, Key, PyTree

from jaxstab import theory
from jaxstab.activations import Activation, get
from jaxstab.checks import check_count, check_gains
from jaxstab.networks import MLP, WEIGHTS, Chain, Here, Params, chain, init, scale_kernels, upwards
from jaxstab.networks.blocks import UNIT_WEIGHTS
from jaxstab.networks.chains import with_network
from jaxstab.networks.family import branch, module_of
from jaxstab.networks.gains import Kernels, count_kernels, scale_layer
from jaxstab.networks.layers import as_layer, with_trained
from jaxstab.theory.gains import Gain as Gain
from jaxstab.theory.gains import gain as gain
from jaxstab.theory.gains import length_gain as length_gain

AnyActivation = str | Activation | Callable[[Array], Array]
Initializer = Callable[..., Array]


def critical(
    activation: AnyActivation,
    sigma_b: float = 0.0,
    weights: str = "gaussian",
    width: int | None = None,
) -> Initializer:
    """Make the initialiser on the critical line: sigma_w of `gain` times unit weights.

    At a finite width n typical gradients of that gain shrink by exp(-O(1/n)) per layer. With
    `width` the gain is the one at which ln |J u| has mean 0, which is known exactly for phi linear
    either side of 0.

    Args:
        activation: name, `Activation` or elementwise callable: that of the layers.
        sigma_b: bias standard deviation that the network will have, >= 0.
        weights: one of `networks.blocks.UNIT_WEIGHTS`, such as "gaussian" or "orthogonal".
        width: units per layer, for relu, leaky_relu and their like; None for the gain of infinite
            width.

    Returns:
        (key, shape, dtype) -> weights, for `MLP(weights=...)` or a Flax layer's kernel_init.

    Raises:
        ValueError: if the activation has no critical gain at this sigma_b or width, or weights are
            not of unit gain.

    Example:
        >>> import flax.linen as nn
        >>> layer = nn.Dense(64, kernel_init=critical("tanh", weights="orthogonal"))
        >>> typical = nn.Dense(64, kernel_init=critical("relu", width=64))
    """
    if weights not in UNIT_WEIGHTS:
        *most, last = UNIT_WEIGHTS
        raise ValueError(f"weights must be {', '.join(most)} or {last}, got {weights!r}")
    if width is not None:
        check_gains(0.0, sigma_b)
        return _scaled(weights, theory.critical_width_gain(activation, width, weights))
    found = gain(activation, sigma_b)
    if not found.critical:
        name = get(activation).name
        raise ValueError(
            f"{name} has no critical gain at sigma_b = {sigma_b}; gain({name!r}, {sigma_b}) keeps its length"
        )

    return _scaled(weights, found.sigma_w)


def _scaled(weights: str, sigma_w: float) -> Initializer:
    """Make the initialiser of unit weights times a gain."""

    def draw(key: Array, shape: tuple[int, ...], dtype: DTypeLike = float) -> Array:
        drawn = WEIGHTS[weights](key, shape, dtype)
        return drawn * jnp.asarray(sigma_w, drawn.dtype)

    return draw


@with_network
def looks_linear(
    network: MLP | Chain,
    key: Array,
    x: Float[Array, "*batch d_in"],
    sigma_w: ArrayLike = 1.0,
    sigma_b: ArrayLike = 0.0,
) -> Params:
    """Draw parameters with which a relu-like network is a linear one of half its width.

    Weights mirrored in sign, W = [[A, -A], [-A, A]]/c with phi(z) - phi(-z) = c z (Balduzzi et al.
    2017, section 4), A drawn by the network's `weights`. The output is that of the linear network,
    singular values of dy/dx included. The state h = (g, -g) holds that network's state g twice, so
    that its derivatives carry sqrt 2. With orthogonal A, relu and no skip, half of the singular
    values of dh_L/dh_l are sqrt(2) sigma_w^(L - l), half are 0, and those of dh_L/dx are sqrt(2)
    sigma_w^(L + 1) for d_in = width / 2.

    Args:
        network: one of our family, of relu, leaky_relu, gelu, silu, softplus or another such phi;
            even width; no norm; skip None, "sum", "scaled" or "rezero".
        key: PRNG key.
        x: an input, for its size and dtype.
        sigma_w: gain of A.
        sigma_b: standard deviation of the biases, mirrored too.

    Returns:
        Parameters.

    Raises:
        ValueError: if the network is not such a one.

    Example:
        >>> from jaxstab import networks
        >>> net = networks.mlp(depth=50, width=16, activation="relu", weights="orthogonal")
        >>> params = looks_linear(net, jax.random.key(0), jnp.ones(8))
        >>> kernel = params.blocks["dense"]["kernel"][0]
        >>> bool(jnp.all(kernel[:8, :8] == -kernel[:8, 8:]))
        True
    """
    mlp = module_of(network)
    phi = get(mlp.activation)
    z = np.linspace(0.1, 3.0, 4)
    # numbers at once, also where a network is drawn while something around it is traced
    with jax.ensure_compile_time_eval():
        odd = np.asarray(phi(jnp.asarray(z)) - phi(jnp.asarray(-z))) / z
    if not (np.allclose(odd, odd[0], rtol=1e-5) and abs(odd[0]) > 1e-5):
        raise ValueError(
            f"looks_linear needs phi(z) - phi(-z) = c z, as relu and gelu have it, got {phi.name}"
        )
    if mlp.width % 2 or mlp.norm or mlp.skip not in (None, "sum", "scaled", "rezero"):
        raise ValueError(
            "looks_linear needs an even width, no norm, and skip None, sum, scaled or rezero, got "
            f"width {mlp.width}, norm {mlp.norm}, skip {mlp.skip}"
        )
    half = init(
        mlp.clone(width=mlp.width // 2, activation="identity", dropout=False),
        key,
        x,
        sigma_w,
        sigma_b,
    )

    def mirrored(a: Array, axis: int) -> Array:
        return jnp.concatenate([a, -a], axis)

    def columns(layer: dict) -> dict:
        return layer | {"dense": jax.tree.map(lambda a: mirrored(a, -1), layer["dense"])}

    def rows(layer: dict) -> dict:
        kernel = mirrored(layer["dense"]["kernel"] / odd[0], -2)
        return layer | {"dense": layer["dense"] | {"kernel": kernel}}

    return Params(columns(half.embed), columns(rows(half.blocks)), rows(half.readout))


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

    From the input on, the weights of each layer are divided by sqrt(Var(W a + b) / target), the
    variance over units and examples without the skip, before the next layer is measured. Start from
    orthogonal weights to follow the paper. Without biases one step is exact.

    Where a layer of the user's own has n weights, each is divided by the n-th root, and steps
    repeat. Its variance is that of the whole state above, unless `part` selects another.

    Args:
        network: an MLP, any norm and skip, dropout off; or a chain that takes a batch, with the
            masks that it is given.
        params: its parameters, before `bind`; of layers of the user's own, bound or not.
        x: a batch of data.
        target: variance wanted, > 0; may be traced.
        steps: rescalings per layer, >= 1.
        kernels: which parameters of the user's own layers are weights, as in
            `networks.scale_kernels`.
        part: of blocks of the user's own, (state below, state above) -> what has the variance, such
            as their difference where a skip is a sum; None for the state above.

    Returns:
        Parameters; layers without variance, or without weights, are left alone.

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
        raise ValueError(
            "kernels and part are for chains of your own layers; those of an MLP are known"
        )
    if jnp.ndim(x) != 2:
        raise ValueError(f"lsuv looks at a batch [batch, d_in], got shape {jnp.shape(x)}")
    mlp = module_of(network).clone(dropout=False)
    dry = chain(mlp)
    without_skip = branch(mlp)

    def scaled(layer: dict, output: Callable[[dict], Array]) -> dict:
        def times(layer: dict, factor: Array) -> dict:
            return layer | {"dense": layer["dense"] | {"kernel": layer["dense"]["kernel"] * factor}}

        return _to_size(layer, lambda layer: jnp.var(output(layer)), times, target, steps)

    def block(h: Array, here: Here) -> tuple[Array, dict]:
        new = scaled(here.theta, lambda layer: without_skip(layer, h))
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
    """Rescale the weights of each block until its partial Jacobian has norm 1 (AutoInit; Doshi et al. 2023).

    From the input on, the weights of block l are divided by the square root of

        J^{l-1,l} = sum_ij (dh_{l,i} / dh_{l-1,j})^2 / N_l  =  E |u^T dh_l/dh_{l-1}|^2 / N_l,

    u standard normal, so that gradients keep their mean square at these data.

    Args:
        network: a chain, or an MLP, without skips, beside which no weights bring J to 1.
        params: its parameters, bound or not.
        x: an input, or a batch where the layers take one.
        key: PRNG key of u.
        steps: rescalings per block, >= 1; one is exact where a block ends in its only kernel.
        samples: vectors u, >= 1.
        kernels: which parameters are weights, as in `networks.scale_kernels`.

    Returns:
        Parameters; blocks without weights, or whose Jacobian is 0, are left alone.

    Raises:
        ValueError: if steps or samples < 1, no layer has weights, or the network's law has a skip.
    """
    check_count("steps", steps, 1)
    check_count("samples", samples, 1)
    known = network if isinstance(network, Chain) else chain(network)
    skip = (known.law or {}).get("skip")
    if skip is not None:
        raise ValueError(
            f"auto_init is for blocks without a skip, got {skip!r}: scale its branch instead, as skip_init does"
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


# what the weights of a layer at a state bring to a target: it grows as their square
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
    """Rescale the weights of each layer, from the input on, until `size` has the wanted value."""
    # refuses a chain without weights
    scale_kernels(params, 1.0, kernels)

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
        at = _number(here, stacks)
        stacks = (*stacks[:at], _written(stacks[at], theta, here), *stacks[at + 1 :])
        return (here.f(theta, h), stacks), None

    start = (x, tuple(as_layer(stack).params for stack in params.stacks))
    (_, stacks), _ = upwards(chain, params, None, layer, start, readout=True)
    return params.restacked(list(map(with_trained, params.stacks, stacks)))


def _number(here: Here, stacks: tuple) -> int:
    """Return the place of a layer's segment among embedding, segments and readout."""
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
    """Rescale the weights of a layer until a size that grows as their square has the wanted value."""

    def step(_: Array | int, theta: PyTree) -> PyTree:
        square = size(theta)
        factor = jnp.sqrt(jnp.asarray(target, square.dtype) / jnp.where(square > 0, square, 1))
        return times(theta, jnp.where(square > 0, factor, 1))

    return jax.lax.fori_loop(0, steps, step, theta)


@with_network
def fixup(network: MLP | Chain, params: Params) -> Params:
    """Set residual branches and readout to zero: Fixup (Zhang et al. 2019, section 3).

    Its rule 1, the last layer of each branch and the classifier at 0, is all that applies where a
    branch has m = 1 layers: rule 2 scales the others by L^(-1/(2m-2)), and there are none.
    Multipliers alpha start at 1, biases at 0.

    Args:
        network: one of our family, with skip "sum", "scaled" or "rezero" and no norm.
        params: its parameters, drawn with He's gain.

    Returns:
        Parameters.

    Raises:
        ValueError: if the network is not such a one.
    """
    mlp = module_of(network)
    if mlp.skip not in ("sum", "scaled", "rezero") or mlp.norm:
        raise ValueError(
            f"fixup is for networks with skip sum, scaled or rezero and no norm, got skip {mlp.skip}, norm {mlp.norm}"
        )

    def zero(layer: dict) -> dict:
        return layer | {"dense": jax.tree.map(jnp.zeros_like, layer["dense"])}

    blocks = zero(params.blocks)
    if "alpha" in blocks:
        blocks |= {"alpha": jnp.ones_like(blocks["alpha"])}
    embed = params.embed["dense"] | {"bias": jnp.zeros_like(params.embed["dense"]["bias"])}
    return Params(params.embed | {"dense": embed}, blocks, zero(params.readout))


@with_network
def skip_init(params: Params, alpha: ArrayLike = 0.0) -> Params:
    """Set the multipliers alpha of residual branches h + alpha F; 0 is ReZero and SkipInit.

    Bachlechner et al. 2021 (ReZero); De & Smith 2020 (SkipInit), who also try 1/sqrt(depth).

    Args:
        params: parameters of a network with skip "rezero".
        alpha: the multiplier, one or one per block; may be traced.

    Returns:
        Parameters.

    Raises:
        ValueError: if there are no multipliers.
    """
    if "alpha" not in params.blocks:
        raise ValueError(
            'skip_init sets the multipliers alpha of MLP(..., skip="rezero"); these parameters have none'
        )
    old = params.blocks["alpha"]
    return params._replace(
        blocks=params.blocks | {"alpha": jnp.broadcast_to(jnp.asarray(alpha, old.dtype), old.shape)}
    )
