"""Models as people build them, taken apart into layers, against the same Flax modules called one after the other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from jax.flatten_util import ravel_pytree

from jaxstab import networks, propagation, spectra, theory
from jaxstab.networks.chains import Segments
from jaxstab.norms import log_norm

KEY = jax.random.key(0)
IMAGE = jax.random.normal(jax.random.key(1), (4, 4, 2), jnp.float32)
TOKENS = jnp.asarray([1, 3, 0])


class Patches(nn.Module):
    @nn.compact
    def __call__(self, x):
        h = nn.Conv(4, (2, 2), strides=(2, 2))(x)
        return h.reshape(-1, 4) + self.param(
            "position", nn.initializers.normal(0.1), (4, 4), x.dtype
        )


class Encoder(nn.Module):
    """A block of a vision transformer, or with a mask of a language model."""

    causal: bool = False

    @nn.compact
    def __call__(self, h):
        mask = nn.make_causal_mask(jnp.ones(len(h))) if self.causal else None
        h = h + nn.MultiHeadDotProductAttention(2)(nn.LayerNorm()(h), mask=mask)
        return h + nn.Dense(4)(nn.gelu(nn.Dense(5)(nn.LayerNorm()(h))))


class Pooled(nn.Module):
    @nn.compact
    def __call__(self, h):
        return nn.Dense(3)(jnp.mean(nn.relu(h), axis=tuple(range(h.ndim - 1))))


class Pool(nn.Module):
    @nn.compact
    def __call__(self, h):
        return nn.max_pool(nn.Conv(3, (3, 3))(nn.relu(h)), (2, 2), strides=(2, 2))


class Residual(nn.Module):
    """A residual block of convolutions; where it halves the image it widens it."""

    width: int = 2
    stride: int = 1

    @nn.compact
    def __call__(self, h):
        strides = (self.stride,) * 2
        branch = nn.Conv(self.width, (3, 3), strides=strides)(nn.relu(nn.LayerNorm()(h)))
        branch = nn.Conv(self.width, (3, 3))(nn.relu(branch))
        if self.stride > 1:
            h = nn.Conv(self.width, (1, 1), strides=strides)(h)
        return h + branch


class Dense(nn.Module):
    width: int

    @nn.compact
    def __call__(self, h):
        return nn.Dense(self.width)(nn.gelu(h))


class UShaped(nn.Module):
    """Down, across and up again, with a long skip: one block of a chain."""

    @nn.compact
    def __call__(self, h):
        down = nn.Conv(3, (3, 3), strides=(2, 2))(nn.tanh(h))
        across = nn.Conv(3, (3, 3))(nn.tanh(down))
        up = nn.ConvTranspose(2, (2, 2), strides=(2, 2))(nn.tanh(across))
        return nn.Conv(2, (1, 1))(jnp.concatenate([h, up], axis=-1))


class Shared(nn.Module):
    """One dense layer used twice."""

    @nn.compact
    def __call__(self, h):
        dense = nn.Dense(4)
        return dense(nn.tanh(dense(nn.tanh(h))))


class Branched(nn.Module):
    @nn.compact
    def __call__(self, h):
        left = nn.Dense(3)(nn.tanh(h))
        right = nn.Dense(2)(nn.relu(h))
        return h + nn.Dense(4)(jnp.concatenate([left, right], axis=-1)) * nn.sigmoid(nn.Dense(4)(h))


class Recurrent(nn.Module):
    """A recurrent layer over a sequence, its steps scanned by Flax."""

    @nn.compact
    def __call__(self, h):
        return nn.RNN(nn.GRUCell(4))(h)


class Causal(nnx.Module):
    def __init__(self, rngs, causal=True):
        self.causal = causal
        self.attention = nnx.MultiHeadAttention(2, 4, decode=False, rngs=rngs)
        self.norms = nnx.List([nnx.LayerNorm(4, rngs=rngs) for _ in range(2)])
        self.up = nnx.Linear(4, 5, rngs=rngs)
        self.down = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, h):
        mask = nnx.make_causal_mask(jnp.ones(len(h))) if self.causal else None
        h = h + self.attention(self.norms[0](h), mask=mask)
        return h + self.down(nnx.gelu(self.up(self.norms[1](h))))


class NnxPatches(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 4, (2, 2), strides=(2, 2), rngs=rngs)

    def __call__(self, x):
        return self.conv(x).reshape(-1, 4)


def vector(block, depth=3):
    x = jnp.linspace(-1, 1, 5, dtype=jnp.float32)
    return [nn.Dense(4), *[block] * depth, nn.Dense(3)], x


LINEN = {
    "changing widths": (
        [nn.Dense(4), Dense(6), Dense(6), Dense(3), Dense(5), nn.Dense(2)],
        jnp.linspace(-1, 1, 5, dtype=jnp.float32),
    ),
    "residual convolutions": (
        [nn.Conv(2, (3, 3)), Residual(), Residual(3, 2), Pooled()],
        IMAGE,
    ),
    "convolutions and pooling": ([nn.Conv(2, (3, 3)), Pool(), Pool(), Pooled()], IMAGE),
    "vision transformer": ([Patches(), Encoder(), Encoder(), Pooled()], IMAGE),
    "language model": ([nn.Embed(5, 4), Encoder(True), Encoder(True), nn.Dense(5)], TOKENS),
    "U-shaped": ([nn.Conv(2, (3, 3)), UShaped(), UShaped(), Pooled()], IMAGE),
    "recurrent": ([nn.Dense(4), Recurrent(), Recurrent(), nn.Dense(2)], IMAGE[0]),
    "shared module": vector(Shared()),
    "branches": vector(Branched()),
}


def nnx_layers(name):
    rngs = nnx.Rngs(0)
    if name == "nnx language model":
        return [
            nnx.Embed(5, 4, rngs=rngs),
            Causal(rngs),
            Causal(rngs),
            nnx.Linear(4, 5, rngs=rngs),
        ], TOKENS
    encoders = [Causal(rngs, causal=False) for _ in range(2)]
    return [NnxPatches(rngs), *encoders, nnx.Linear(4, 3, rngs=rngs)], IMAGE


def of_linen(modules, x):
    """The chain with its parameters, and the layers as Flax has them: function and parameters."""
    chain = networks.from_linen(modules)

    @jax.jit
    def drawn():
        thetas = []
        h = x
        for i, module in enumerate(modules):
            # as the chain draws them
            variables = module.init(jax.random.fold_in(KEY, i), h)
            thetas.append(variables["params"])
            h = module.apply(variables, h)
        return chain.init(KEY, x), thetas

    params, thetas = drawn()
    applies = [
        lambda theta, h, module=module: module.apply({"params": theta}, h) for module in modules
    ]
    return chain, params, applies, thetas


def of_nnx(modules, x):
    chain, params = networks.from_nnx(modules, x)
    parts = [nnx.split(module, nnx.Param, ...) for module in modules]
    applies = [
        lambda theta, h, graph=graph, rest=rest: nnx.merge(graph, theta, rest)(h)
        for graph, _, rest in parts
    ]
    return chain, params, applies, [theta for _, theta, _ in parts]


def loss(y):
    return jnp.sum(jnp.sin(y))


def flat(tree):
    return ravel_pytree(tree)[0]


@pytest.mark.slow
@pytest.mark.kernels
@pytest.mark.parametrize("name", [*LINEN, "nnx language model", "nnx vision transformer"])
def test_every_measurement_is_that_of_the_modules(name):
    modules, x = LINEN[name] if name in LINEN else nnx_layers(name)
    chain, params, applies, thetas = of_linen(modules, x) if name in LINEN else of_nnx(modules, x)
    depth = len(modules) - 2

    @jax.jit
    def measured(params):
        s = spectra.singular_values(chain, params, x, [depth], from_layer=0)[0]
        return (
            propagation.forward(chain, params, x).log_q,
            propagation.backward(chain, params, x, loss),
            s,
        )

    @jax.jit
    def by_hand(thetas):
        states = [applies[0](thetas[0], x)]
        for apply, theta in zip(applies[1:-1], thetas[1:-1], strict=True):
            states.append(apply(theta, states[-1]))

        def above(h):
            for apply, theta in zip(applies[1:-1], thetas[1:-1], strict=True):
                h = apply(theta, h)
            return h

        def shifted(thetas, shifts):
            h = x
            for apply, theta, shift in zip(applies[:-1], thetas[:-1], shifts, strict=True):
                h = apply(theta, h) + shift
            return loss(applies[-1](thetas[-1], h))

        log_q = [jnp.log(jnp.mean(flat(h) ** 2)) for h in states]
        # the gradient by the shift of a state is dL/dh
        zeros = [jnp.zeros_like(h) for h in states]
        gradient, by_shift = jax.grad(shifted, (0, 1))(thetas, zeros)
        log_grad_h = [log_norm(flat(cotangent)) for cotangent in by_shift]
        h_0, back = ravel_pytree(states[0])
        jacobian = jax.jacobian(lambda h: flat(above(back(h))))(h_0)
        return (
            jnp.stack(log_q),
            jnp.stack(log_grad_h),
            jnp.stack(list(map(log_norm, gradient[:-1]))),
            jacobian,
        )

    log_q, gradient, s = measured(params)
    wanted_q, wanted_h, wanted_theta, jacobian = by_hand(thetas)
    # float32, some layers
    np.testing.assert_allclose(log_q, wanted_q, atol=1e-5)
    np.testing.assert_allclose(gradient.log_grad_h, wanted_h, atol=1e-5)
    np.testing.assert_allclose(gradient.log_grad_theta, wanted_theta, atol=1e-5)
    wanted_s = np.linalg.svd(jacobian, compute_uv=False)
    np.testing.assert_allclose(s, wanted_s, atol=1e-5 * wanted_s[0])


@pytest.mark.slow
def test_linen_modules_of_our_networks_layers_are_our_network():
    """`from_linen` of an MLP's own blocks, and the MLP: everything equal."""
    mlp = networks.MLP(
        depth=3, width=6, activation="gelu", norm="layer", skip="sum", features_out=3
    )
    x = jnp.linspace(-1, 1, 5)
    params = networks.chain(mlp).init(KEY, x, 1.5, 0.1)
    embed, block, readout = mlp.layers(train=True)
    chain = networks.from_linen([embed, *[block] * 3, readout], activation="gelu")
    own = networks.Params(params.embed, Segments((params.blocks,)), params.readout)
    # theory takes of either what it may assume
    known = networks.from_linen([embed, *[block] * 3, readout], law=networks.chain(mlp).law)
    assert chain.law is None
    expected = theory.law("gelu", norm="layer", skip="sum", depth=3)
    assert theory.law(**known.law) == theory.law(**known.inference.law) == expected
    with pytest.raises(
        ValueError, match="law must be keywords of theory.law, .*, got {'skip': 'sum'}"
    ):
        networks.from_linen([embed, block, readout], law={"skip": "sum"})
    drawn = jax.eval_shape(lambda: chain.init(KEY, x))
    assert jax.tree.structure(drawn) == jax.tree.structure(own)

    def measured(chain, params):
        return (
            propagation.forward(chain, params, x),
            propagation.backward(chain, params, x, loss, [1, 3]),
            spectra.log_singular_values(chain, params, x, [3]),
            spectra.singular_values(chain, params, x, [3], readout=True),
        )

    found, wanted = jax.jit(lambda: (measured(chain, own), measured(networks.chain(mlp), params)))()
    # rounding of another order of sums
    tolerance = 1e-9 if x.dtype == jnp.float64 else 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), found, wanted)
