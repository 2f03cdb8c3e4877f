"""Norms against NumPy in float64, at every magnitude."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import given, strategies

from jaxstab.networks import Params
from jaxstab.norms import group_norms, log_norm, norm
from jaxstab.norms.groups import map_groups, quick_norm
from jaxstab.norms.logarithms import Product
from jaxstab.norms.paths import Grouping, stacked_leaves

MAGNITUDES = [
    0.0,
    1e-45,
    1e-38,
    3e-23,
    1.0,
    -2.0,
    1e10,
    1e25,
    -3e38,
    float("nan"),
    float("inf"),
    -float("inf"),
]

jitted = jax.jit(norm)
gradient = jax.jit(jax.grad(lambda x: norm(x).value))


def _params(dtype=np.float32):
    draw = lambda *shape: np.random.default_rng(shape).normal(size=shape).astype(dtype)
    return Params(
        embed={"kernel": draw(3, 2), "bias": draw(2)},
        blocks={"dense": {"kernel": draw(4, 2, 2), "bias": draw(4, 2)}},
        readout={"dense": {"kernel": draw(2, 1)}},
    )


def _length(*arrays):
    return np.sqrt(sum(np.sum(np.asarray(a, float) ** 2) for a in arrays))


@given(
    strategies.lists(
        strategies.sampled_from(MAGNITUDES) | strategies.floats(width=32), min_size=6, max_size=6
    )
)
@pytest.mark.kernels
def test_any_float32(entries):
    x = np.asarray(entries, np.float32)
    finite = x[np.isfinite(x)]
    n = jitted([jnp.asarray(x[:2]), jnp.asarray(x[2:])])
    assert int(n.nonfinite) == 6 - len(finite)
    # subnormal entries may be flushed to zero: 6 of them at most
    measured = float(n.scale) * float(n.root)
    assert measured == pytest.approx(
        _length(finite), rel=1e-6, abs=6 * float(np.finfo(np.float32).tiny)
    )


@pytest.mark.kernels
def test_ten_million_entries_in_float32():
    x = np.random.default_rng(0).normal(size=10_000_000).astype(np.float32)
    # XLA sums in a tree, so errors grow with the logarithm of the size; a running sum loses 8e-3 here
    assert float(jitted(jnp.asarray(x)).value) == pytest.approx(_length(x), rel=1e-6)


def test_a_norm_beyond_the_float_range_is_held_in_two_factors():
    n = jitted(jnp.full(16, 3e38, jnp.float32))
    assert float(n.value) == np.inf
    assert float(n.log) == pytest.approx(np.log(3e38) + np.log(4), rel=1e-6)


@pytest.mark.kernels
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_small_dtypes_are_summed_in_float32(dtype):
    # 40,000 entries of 3: the sum of squares is beyond float16, and beyond bfloat16's 8 bits term by term
    n = jitted(jnp.full(40_000, 3, dtype))
    assert n.root.dtype == jnp.float32 and float(n.value) == pytest.approx(600.0, rel=1e-6)


def test_gradient_of_the_norm():
    assert np.all(gradient(jnp.zeros(3)) == 0)
    for scale in (1.0, 1e-30, 1e25):
        g = gradient(jnp.asarray([3.0, 4.0], jnp.float32) * jnp.asarray(scale, jnp.float32))
        np.testing.assert_allclose(g, [0.6, 0.8], rtol=1e-6)
    # under vmap both branches of the conditional are taken
    rows = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [3e25, 4e25]], jnp.float32)
    np.testing.assert_allclose(
        jax.vmap(gradient)(rows), [[0.6, 0.8], [0, 0], [0.6, 0.8]], rtol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1.0, 1e25, 1e-30])
def test_groups(scale):
    params = jax.tree.map(lambda p: p * np.float32(scale), _params())
    e, b, r = params
    dense = b["dense"]
    by_layer = jax.jit(lambda tree: group_norms(tree, "layer"))
    expected = {
        "embed": _length(*e.values()),
        "blocks/dense": [_length(dense["kernel"][i], dense["bias"][i]) for i in range(4)],
        "readout/dense": _length(r["dense"]["kernel"]),
    }
    measured = by_layer(params)
    assert set(measured) == set(expected)
    for label, value in expected.items():
        np.testing.assert_allclose(measured[label].value, value, rtol=1e-6)
    # Flax's variables have the same layers
    variables = group_norms({"params": params._asdict()}, "layer", "params/blocks")
    assert {f"params/{label}" for label in expected} == set(variables)
    np.testing.assert_array_equal(
        variables["params/blocks/dense"].value, measured["blocks/dense"].value
    )
    leaves = group_norms(params, "leaf")
    assert leaves["blocks/dense/kernel"].value == pytest.approx(_length(dense["kernel"]), rel=1e-6)
    kinds = group_norms(params, lambda path: path[-1])
    assert kinds["bias"].value == pytest.approx(_length(e["bias"], dense["bias"]), rel=1e-6)
    assert norm(params).value == pytest.approx(_length(*jax.tree.leaves(params)), rel=1e-6)


@pytest.mark.slow
def test_what_is_stacked_is_told_and_never_guessed():
    ones = {
        "blocks": {"a": {"w": jnp.ones((4, 4))}},
        "encoder": {"w": jnp.ones((3, 4))},
        "b": jnp.ones((2, 4)),
    }
    values = lambda *stacked: {
        k: n.value.tolist() for k, n in group_norms(ones, "layer", *stacked).items()
    }
    plain = {"blocks/a": 4.0, "encoder": pytest.approx(12**0.5), "root": pytest.approx(8**0.5)}
    assert values() == values([]) == plain
    assert values("encoder") == plain | {"encoder": [2.0, 2.0, 2.0]}
    # a prefix of a path, not of a name
    assert values(("encoder/w", "blocks")) == {
        "encoder/w": [2.0] * 3,
        "blocks/a": [2.0] * 4,
        "root": plain["root"],
    }
    assert values(lambda path: path[0] == "encoder") == plain | {"encoder": [2.0, 2.0, 2.0]}
    assert values("b") == {"blocks/a": 4.0, "encoder": plain["encoder"], "b": [2.0, 2.0]}
    # a chain's parameters say it themselves, wherever they stand
    inside = {
        "net": Params(
            {"w": jnp.ones(4)}, {"w": jnp.ones((2, 4))}, {"blocks": {"w": jnp.ones((2, 2))}}
        )
    }
    found = {k: n.value.tolist() for k, n in group_norms(inside, "layer").items()}
    assert found == {"net/embed": 2.0, "net/blocks": [2.0, 2.0], "net/readout/blocks": 2.0}
    # a part of the tree may be masked
    group_norms({"encoder": optax.MaskedNode(), "b": jnp.ones(2)}, "layer", "encoder/w")
    for wrong in ("enc", "encoder/v", ["blocks", "blocks/b"]):
        with pytest.raises(ValueError, match="stacked must name paths of the tree"):
            values(wrong)
    with pytest.raises(ValueError, match="s must have a layer axis to be stacked, got a scalar"):
        group_norms({"s": jnp.ones(())}, "layer", "s")
    with pytest.raises(ValueError, match='stacked needs per="layer"'):
        group_norms(ones, "leaf", "encoder")


def test_boxes_add_nothing_to_paths():
    tree = {"l": [{"bias": jnp.ones(4)}], "value": {"value": jnp.ones(4)}}
    variables = nnx.State(
        jax.tree.map(nnx.Param, {"l": {0: {"bias": jnp.ones(4)}}, "value": {"value": jnp.ones(4)}})
    )
    boxed = jax.tree.map(lambda x: linen.Partitioned(x, ("a",)), tree)
    for per, labels in (("leaf", {"l/0/bias", "value/value"}), ("layer", {"l/0", "value"})):
        assert (
            set(group_norms(tree, per))
            == set(group_norms(variables, per))
            == set(group_norms(boxed, per))
            == labels
        )


def test_one_bad_layer_leaves_the_others():
    params = _params()
    params.blocks["dense"]["kernel"][2, 0, :] = np.nan, np.inf
    norms = group_norms(params, "layer")
    assert (
        norms["blocks/dense"].nonfinite.tolist() == [0, 0, 2, 0]
        and int(norms["embed"].nonfinite) == 0
    )
    clean = _params().blocks["dense"]
    rest = _length(clean["kernel"][2, 1], clean["bias"][2])
    assert float(norms["blocks/dense"].value[2]) == pytest.approx(rest, rel=1e-6)


@pytest.mark.parametrize(
    ("entry", "scale"), [(1.0, 1e15), (0.0, 1e30), (1e30, 1e15), (1e30, 1e30), (1e-30, 1e-15)]
)
def test_quick_norm(entry, scale):
    n = quick_norm({"a": jnp.full(4, entry, jnp.float32)}, jnp.asarray(scale, jnp.float32))
    assert float(n.value) == pytest.approx(2 * entry, rel=1e-6)


def test_map_groups_and_layers():
    params = _params()
    scales = {
        k: jnp.arange(n.value.size, dtype=jnp.float32).reshape(n.value.shape)
        for k, n in group_norms(params, "layer").items()
    }
    mapped = map_groups(lambda x, s: x * s, params, Grouping("layer"), scales)
    np.testing.assert_allclose(
        mapped.blocks["dense"]["kernel"][3], 3 * params.blocks["dense"]["kernel"][3]
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(params)
    assert jax.tree.leaves(stacked_leaves(params)) == [False, False, True, True, False]


def test_a_bare_array_is_a_tree():
    for per in ("tree", "leaf", "layer"):
        (n,) = group_norms(jnp.asarray([3.0, 4.0]), per).values()
        assert float(n.value) == pytest.approx(5.0)


def test_mistakes():
    with pytest.raises(ValueError, match="must be floating, got dtype int"):
        norm([jnp.arange(3)])
    with pytest.raises(
        ValueError, match=r"group 'blocks/a' disagree on the number of layers: \[\(2,\), \(3,\)\]"
    ):
        group_norms(
            {"blocks": {"a": {"w": jnp.ones((2, 1)), "b": jnp.ones((3, 1))}}}, "layer", "blocks"
        )


@pytest.mark.parametrize("shape", [(), (5,), (2, 3)], ids=str)
@pytest.mark.kernels
def test_a_product_that_is_not_multiplied_out(shape):
    left, right = (
        np.random.default_rng(n).normal(size=(*shape, n)).astype(np.float32) for n in (6, 4)
    )
    size = lambda a, b: _length(a.reshape(-1, 6).astype(float).T @ b.reshape(-1, 4).astype(float))
    of = jax.jit(lambda left, right: log_norm([Product(left, right)]))
    for scale in (1.0, 1e-30, 1e30):
        # 1e-60 and 1e60 are no float32
        expected = np.log(size(left, right)) + 2 * np.log(scale)
        assert float(of(left * np.float32(scale), right * np.float32(scale))) == pytest.approx(
            expected, rel=1e-6
        )
    assert float(of(np.zeros_like(left), right)) == -np.inf
    assert np.isnan(of(left, np.full_like(right, np.nan)))
    gradients = jax.jit(jax.grad(of, argnums=(0, 1)))
    assert all(np.isfinite(g).all() for g in gradients(left, right))
    if shape:
        mixed = left.copy()
        mixed.reshape(-1, 6)[1:] *= np.float32(1e-25)
        alone = right.copy()
        alone.reshape(-1, 4)[0] = 0
        # the one example with a signal has no gradient: what is left is below where squares vanish
        assert float(of(mixed, alone)) == pytest.approx(np.log(size(mixed, alone)), rel=1e-6)
