"""Sweeps over factories of a user's own layers, against cells measured one by one."""

import re

import jax
import numpy as np
import pytest
import xarray as xr
from flax import linen as nn

from jaxstab import analysis, networks, propagation, sweeps, theory, training
from jaxstab.records import Data
from jaxstab.sweeps.examples import samples

RNG = np.random.default_rng(0)
DATA = Data(
    RNG.normal(size=(12, 5)).astype("float32"), RNG.integers(0, 3, 12).astype("int32"), "noise"
)


def factory(depth):
    """Widths that depend on the depth: no prefix of a deeper network."""
    width = 4 + depth
    blocks = [nn.Sequential([nn.tanh, nn.Dense(width)]) for _ in range(depth)]
    return networks.from_linen([nn.Dense(width), *blocks, nn.Dense(3)])


AXES = {"depth": (1, 3), "seed": range(2), "sigma_w": (0.5, 1.0, 2.0)}
GRID = sweeps.Grid(AXES, network=factory, inputs=2)


@pytest.fixture(scope="module")
def found():
    return sweeps.run(GRID, sweeps.signal, DATA, chunk_size=2)


@pytest.mark.slow
def test_a_cell_is_what_it_is_by_itself(found):
    assert found.log_grad_h.dims == ("depth", "seed", "sigma_w", "input", "layer")
    assert found.sizes["layer"] == 4 and found.depth.values.tolist() == [1, 3]
    assert "no law" in found.attrs["theory"]
    sample = jax.tree.map(lambda field: field[1, 1], samples(GRID, DATA))

    def measured(depth):
        chain = factory(depth)
        unit = chain.init(jax.random.key(1), sample.x)
        params = networks.rescale(unit, 2.0)
        forward = propagation.forward(chain, params, sample.x)
        backward = propagation.backward(
            chain, params, sample.x, lambda y: training.cross_entropy(y, sample.label), [depth]
        )
        return forward.log_q, backward.log_grad_h[0]

    wanted = jax.jit(lambda: [measured(depth) for depth in (1, 3)])()
    for depth, (log_q, log_grad_h) in zip((1, 3), wanted, strict=True):
        cell = found.sel(depth=depth, seed=1, sigma_w=2.0, input=1)
        np.testing.assert_allclose(cell.log_q[: depth + 1], log_q, atol=1e-5)
        np.testing.assert_allclose(cell.log_grad_h[: depth + 1], log_grad_h, atol=1e-5)
        # layers that this depth does not have
        assert np.all(np.isnan(cell.log_q[depth + 1 :]))


@pytest.mark.slow
def test_a_store_of_them_is_the_same_and_resumes(found, tmp_path):
    place = tmp_path / "own.zarr"

    def interrupted(results):
        for count, result in enumerate(results):
            if count == 3:
                raise KeyboardInterrupt
            yield result

    with pytest.raises(KeyboardInterrupt):
        sweeps.run_into(place, GRID, sweeps.signal, DATA, chunk_size=2, progress=interrupted)
    whole = sweeps.run_into(place, GRID, sweeps.signal, DATA, chunk_size=2)
    assert bool(whole.done.all())
    xr.testing.assert_equal(whole[list(found.data_vars)].load(), found)
    other = sweeps.Grid({"depth": (1,)}, network=lambda depth: factory(depth + 1))
    with pytest.raises(ValueError, match=r"network\(1\) must be of 1 blocks, got 2"):
        sweeps.run_into(place, other, sweeps.signal, DATA)


@pytest.mark.slow
def test_spectra_of_tokens_by_a_measure_of_the_users():
    """One gain leaves the weights alone; the widths of states decide how many singular values there are."""
    data = Data(RNG.integers(0, 5, (6, 2)), RNG.integers(0, 3, 6), "tokens")

    def network(depth):
        block = nn.Sequential([nn.tanh, nn.Dense(3)])
        return networks.from_linen([nn.Embed(5, 3), *[block] * depth, nn.Dense(2)])

    def measure(chain, params, sample, depths):
        return propagation.forward(chain, params, sample.x)

    grid = sweeps.Grid({"depth": [2]}, network=network)
    found = sweeps.run(grid, measure, data)
    sample = jax.tree.map(lambda field: field[0, 0], samples(grid, data))
    chain = network(2)

    @jax.jit
    def by_itself():
        params = chain.init(jax.random.key(0), sample.x)
        return propagation.forward(chain, params, sample.x).log_q

    np.testing.assert_allclose(found.log_q.squeeze(), by_itself(), atol=1e-5)
    spectra = sweeps.run(sweeps.Grid({"depth": (1, 2)}, network=factory), sweeps.jacobian, DATA)
    assert spectra.log_s.squeeze().shape == (2, 5) and np.all(np.isfinite(spectra.log_s))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"network": nn.Dense(3)},
            "network must be a function depth -> networks.Chain, got a Dense",
        ),
        ({"depth": (3, 1)}, "depth must be ascending"),
        ({"depth": (0,)}, "depth must be an integer >= 1, got 0"),
        ({"sigma_w": (-1.0,)}, "sigma_w must be finite and >= 0"),
        ({"seed": ()}, "seed must be ascending values, at least one"),
        ({"sigma_b": (0.0, 0.1)}, "sigma_b must be left out"),
        (
            {"network": lambda depth: nn.Dense(3)},
            r"network\(1\) must be a networks.Chain, got a Dense",
        ),
        ({"inputs": 7}, "7 inputs need 14 examples, noise has 12"),
    ],
)
def test_what_makes_no_sweep_is_said(change, said):
    axes = {"depth": (1,)} | {n: v for n, v in change.items() if n not in ("network", "inputs")}
    fixed = {"network": factory} | {n: v for n, v in change.items() if n not in axes}
    with pytest.raises(ValueError, match=said):
        sweeps.run(sweeps.Grid(axes, **fixed), sweeps.signal, DATA)


LAW = {"activation": "tanh", "norm": "layer", "skip": "scaled"}


def residual(depth):
    """Layers of an MLP of ours, and the law that it carries."""
    mlp = networks.MLP(depth, 8, "tanh", norm="layer", skip="scaled", features_out=3)
    embed, block, readout = mlp.layers(train=True)
    return networks.from_linen([embed, *[block] * depth, readout], law=LAW)


@pytest.mark.slow
def test_layers_with_a_law_are_predicted_as_our_network_of_the_same_blocks():
    """Every predicted field of `from_linen(..., law=)` is that of networks.mlp."""
    axes = {"depth": (3,), "sigma_w": (0.8, 1.5)}
    fixed = {"width": 8, "sigma_b": 0.1}
    own = analysis.predict(sweeps.Grid(axes, network=residual, **fixed), 5, 0.3)
    cures = {"norm": "layer", "skip": "scaled"}
    ours = sweeps.Grid(axes | {"activation": ("tanh",)}, **cures, **fixed)
    wanted = analysis.predict(ours, 5, 0.3)
    assert own.activation.values.tolist() == ["residual"]
    assert own.no_theory.values.tolist() == wanted.no_theory.values.tolist() == [""]
    assert np.all(np.isfinite(wanted.log_grad_h)) and np.all(np.isfinite(wanted.fixed_point_c))
    assert set(own) == set(wanted)
    for name in set(own) - {"no_theory"}:
        np.testing.assert_allclose(own[name], wanted[name], rtol=1e-12, err_msg=str(name))
    assert "theory" not in sweeps.measuring.settings(sweeps.Grid(axes, network=residual), DATA)


@pytest.mark.slow
def test_each_depth_is_predicted_by_its_own_law_or_says_why_not():
    grid = sweeps.Grid({"depth": (2, 4), "sigma_w": (1.2,)}, network=residual, width=8)
    found = analysis.predict(grid, 5, 0.3).squeeze()
    for depth in (2, 4):
        # the branch of a block is the weaker the deeper the network is
        _, _, backward, spectrum = theory.predict(
            residual(depth)._replace(law=LAW | {"depth": depth}),
            1.2,
            0.0,
            [depth],
            width=8,
            d_in=5,
            c0=0.3,
        )
        row = found.sel(depth=depth)
        np.testing.assert_allclose(row.log_grad_h[: depth + 1], backward.log_grad_h[0], rtol=1e-10)
        np.testing.assert_allclose(row.log_mean_square, spectrum.log_mean_square[0], rtol=1e-10)
        assert np.all(np.isnan(row.log_grad_h[depth + 1 :]))
    changing = [nn.Dense(4), nn.Dense(5), nn.Dense(3)]
    lawless = {
        factory: "the chain has no law",
        lambda depth: networks.from_linen(changing, law=LAW): r"states of one width, got .*\[4\]",
        lambda depth: networks.from_linen(changing, law=LAW | {"skp": 1}): "keyword of law must be",
    }
    for network, why in lawless.items():
        found = analysis.predict(sweeps.Grid({"depth": (1,)}, network=network), 5, 0.3)
        assert np.all(np.isnan(found.log_grad_h)) and np.all(np.isnan(found.finite_width_rate))
        assert re.search(why, str(found.no_theory.item())), found.no_theory.item()
