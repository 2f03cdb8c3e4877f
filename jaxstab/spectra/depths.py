"""Products of Jacobians to every wanted depth in one pass."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxstab import networks
from jaxstab.checks import Count, Depths, check_depths, check_floating, integer
from jaxstab.networks import Chain, Here, Params
from jaxstab.networks.chains import Segments


def at_depths(
    chain: Chain,
    params: Params,
    x: Float[Array, " d_in"],
    depths: Depths,
    from_layer: Count | None,
    start: Callable,
    layer: Callable,
    end: Callable,
) -> PyTree[Float[Array, "depth ..."]]:
    """Fold a product of Jacobians over the layers and keep it at every wanted depth.

    Args:
        chain: the network.
        params: parameters of the network.
        x: one input.
        depths: wanted depths.
        from_layer: layer to differentiate by; None for the input.
        start: (Jacobian of the embedding or None, h) -> product.
        layer: (product, Here) -> product.
        end: (h, product) -> the result at a wanted depth.

    Returns:
        The results, with a leading depth axis.
    """
    first = int(from_layer or 0)
    jacobian = None
    if from_layer is None:
        h = chain.embed(params, x)
        # reverse mode, since rows are usually fewer than columns
        jacobian = jax.jacrev(lambda x: chain.embed(params, x))(x)
    else:
        h = networks.state(chain, params, x, first)
    product = start(jacobian, h)
    if len(depths) == 1:

        def onward(carry: tuple, here: Here) -> tuple[tuple, None]:
            product = layer(carry[1], here)
            return (here.out, product), None

        carry = h, product
        (h, product), _ = networks.upwards(
            chain, params, h, onward, carry, first=first + 1, last=int(depths[0])
        )
        return jax.tree.map(lambda leaf: leaf[None], end(h, product))
    # slot of each wanted depth; other layers write nothing
    slots = (
        jnp.full(params.depth + 1, len(depths)).at[jnp.asarray(depths)].set(jnp.arange(len(depths)))
    )

    def keep(kept: PyTree, h: Array, product: PyTree, slot: Array) -> PyTree:
        def put(kept: Array, one: Array) -> Array:
            return jax.lax.dynamic_update_index_in_dim(kept, one, slot, 0)

        def wanted(kept: PyTree) -> PyTree:
            return jax.tree.map(put, kept, end(h, product))

        return jax.lax.cond(slot < len(depths), wanted, lambda kept: kept, kept)

    def step(carry: tuple, here: Here) -> tuple[tuple, None]:
        product, kept = carry
        product = layer(product, here)
        return (product, keep(kept, here.out, product, slots[here.layer])), None

    # zeros like the results, so that within a shard_map they vary over the same mesh axes
    kept = jax.tree.map(
        lambda leaf: jnp.stack([jnp.zeros_like(leaf)] * len(depths)), end(h, product)
    )
    carry = product, keep(kept, h, product, slots[first])
    (_, kept), _ = networks.upwards(
        chain, params, h, step, carry, first=first + 1, last=int(depths[-1])
    )
    return kept


def count_values(
    chain: Chain, params: Params, x: Array, depth: Count, from_layer: Count | None, readout: bool
) -> int:
    """Count the singular values of the Jacobian to one depth.

    Args:
        chain: the network.
        params: parameters of the network.
        x: one input.
        depth: the depth.
        from_layer: layer to differentiate by; None for the input.
        readout: whether to include the readout.

    Returns:
        The smaller of the numbers of rows and columns.
    """

    def ends(params: Params, x: Array) -> tuple[Array, Array]:
        start = x
        if from_layer is not None:
            start = networks.state(chain, params, x, int(from_layer))
        end = networks.state(chain, params, x, int(depth))
        if readout:
            end = chain.readout(params, end)
        return start, end

    return min(end.size for end in jax.eval_shape(ends, params, x))


def unequal(params: Params) -> bool:
    """Check whether blocks, and so the sizes of states, may differ from layer to layer.

    Args:
        params: parameters of a chain.

    Returns:
        True for more than one segment.
    """
    return isinstance(params.blocks, Segments) and len(params.blocks.parts) > 1


def together(rows: Sequence[Array], depths: Sequence[Count]) -> Array:
    """Join the values at several depths.

    Args:
        rows: values at each depth, [1, index].
        depths: the depths.

    Returns:
        Values [depth, index].

    Raises:
        ValueError: if depths have unequal numbers of values.
    """
    sizes = [row.shape[-1] for row in rows]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"depths must have equally many singular values, got {sizes} at depths "
            f"{list(depths)}; give one depth at a time"
        )
    return jnp.concatenate(rows)


def check_layers(
    params: Params, x: Float[Array, " d_in"], depths: Depths, from_layer: Count | None
) -> tuple[int, ...]:
    """Check that an input and the layers of a Jacobian fit a chain.

    Args:
        params: parameters of the chain.
        x: one input.
        depths: wanted depths.
        from_layer: layer to differentiate by; None for the input.

    Returns:
        The depths as Python integers.

    Raises:
        ValueError: if depths are not ascending integers within the chain, from_layer is no integer
            up to the first depth, or x is not floating.
    """
    known = check_depths(depths, params.depth)
    check_floating("x", jnp.result_type(x))
    if from_layer is None and jnp.size(x) == 0:
        raise ValueError(
            "x must be floating to differentiate by it, got tokens; use from_layer=0 for their "
            "embedding"
        )
    if from_layer is None:
        from_layer = known[0]
    layer = integer(from_layer)
    if layer is None or not 0 <= layer <= known[0]:
        raise ValueError(
            f"from_layer must be an integer in [0, {known[0]}], the first depth, got {from_layer!r}"
        )
    return known
