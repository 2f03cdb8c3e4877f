"""README's section "To add ...": each row is added here, by the one line that it asks for."""

import contextlib
import io
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jaxtyping import Array, Float

from jaxstab import cli, clipping, networks, sweeps
from jaxstab.activations import Activation
from jaxstab.networks.normalization import NORMS, Norm
from jaxstab.networks.skips import SKIPS, Skip
from jaxstab.records import Data
from jaxstab.sweeps.settings import SETTINGS


class Halved(nn.Module):
    """A norm that halves."""

    @nn.compact
    def __call__(self, h):
        return h * self.param("scale", nn.initializers.constant(0.5), (), h.dtype)


@pytest.fixture
def tables(monkeypatch):
    monkeypatch.setitem(NORMS, "halved", Norm(lambda settings: Halved(name="norm")))
    monkeypatch.setitem(SKIPS, "twice", Skip(lambda block, h, branch, a: 2 * h + branch))


@pytest.mark.slow
def test_a_norm_and_a_skip_are_entries_of_their_tables(tables):
    mlp = networks.MLP(
        depth=2, width=4, activation="relu", norm="halved", skip="twice", features_out=1
    )
    x = jnp.arange(1.0, 4.0)
    params = networks.chain(mlp).init(jax.random.key(0), x)
    states = networks.states(networks.chain(mlp), params, x).stacked
    h = np.asarray(states[0])
    for index in range(2):
        layer = jax.tree.map(lambda leaf, index=index: np.asarray(leaf[index]), params.blocks)[
            "dense"
        ]
        h = 2 * h + np.maximum(0.5 * h, 0) @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(states[index + 1], h, rtol=1e-12)


def test_a_new_entry_is_a_setting_of_grids(tables):
    grid = sweeps.Grid({"norm": (None, "halved"), "skip": (None, "twice")}, depth=2, width=4)
    assert [kind["norm"] for kind in grid.kinds] == [None, None, "halved", "halved"]
    with pytest.raises(ValueError, match="norm must be one of .*halved, got 'thirded'"):
        sweeps.Grid({}, norm="thirded")


@pytest.mark.slow
def test_a_setting_is_an_axis_of_grids(monkeypatch):
    monkeypatch.setitem(SETTINGS, "b1", SETTINGS["momentum"])
    x = np.linspace(-1, 1, 48, dtype=np.float32).reshape(12, 4)
    data = Data(x, np.arange(12, dtype=np.int32) % 2, "twelve inputs")
    grid = sweeps.Grid({"b1": (0.0, 0.9)}, optimiser="adam", depth=1, width=4)
    found = sweeps.run(grid, sweeps.Train(3), data)
    assert found.loss.dims == ("b1", "step")
    assert found.loss.sel(b1=0.0)[1] == found.loss.sel(b1=0.9)[1] != found.loss.sel(b1=0.9)[2]


class Largest(NamedTuple):
    """A record: its annotations name the axes."""

    largest: Float[Array, " layer"]


def _largest(chain, params, sample, depths):
    """A measure."""
    return Largest(jnp.max(jnp.abs(networks.states(chain, params, sample.x).stacked), axis=-1))


def _cubic(h):
    """An activation."""
    return h - h**3 / 9


@pytest.mark.slow
def test_an_activation_and_a_measure_are_functions():
    x = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    data = Data(x, np.zeros(3, np.int32), "three inputs")
    cubic = Activation("cubic", _cubic)
    axes = {"activation": (cubic,), "seed": range(2), "sigma_w": (0.5, 1.0)}
    grid = sweeps.Grid(axes, depth=2, width=4)
    found = sweeps.run(grid, _largest, data)
    assert found.largest.dims == ("activation", "seed", "sigma_w", "input", "layer")
    assert list(found.activation.values) == ["cubic"]
    # with sigma_b = 0 layer 0 is linear in the gain
    np.testing.assert_allclose(
        found.largest.sel(sigma_w=1.0, layer=0), 2 * found.largest.sel(sigma_w=0.5, layer=0)
    )


def test_a_clipper_is_an_optax_transformation():
    halve = optax.stateless(lambda updates, params: jax.tree.map(lambda leaf: leaf / 2, updates))
    telling = clipping.monitored(halve)
    gradient = {"w": jnp.ones(4)}
    updates, state = telling.update(gradient, telling.init(gradient))
    assert float(updates["w"][0]) == 0.5
    assert float(optax.tree.get(state, "firing_rate")) == 1.0


def test_the_commands_list_what_is_in_the_tables():
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown), pytest.raises(SystemExit):
        cli.main(["sweep", "--help"])
    for name in (*NORMS, *SKIPS):
        assert name in shown.getvalue()
