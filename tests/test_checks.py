"""What is refused before anything is traced; every public function names what it got."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxstab import networks, propagation, spectra
from jaxstab.checks import check_count, check_depths, check_floating, check_gains


def test_gains():
    check_gains(0.0, jnp.asarray([0.1, 2.0]))
    jax.jit(lambda w: (check_gains(w, 0.0), w)[1])(-1.0)  # traced: no value to check
    for bad in (-0.1, float("nan"), float("inf"), jnp.asarray([1.0, -1.0])):
        with pytest.raises(ValueError, match="sigma_b must be finite and >= 0, got"):
            check_gains(1.0, bad)


def test_depths():
    check_depths([0, 3, 7], 7)
    # integers are integers, whoever made them
    for good in (
        np.arange(1, 4),
        list(np.arange(1, 4)),
        jnp.arange(1, 4),
        range(1, 4),
        (np.int32(1), 2, np.uint8(3)),
    ):
        assert check_depths(good, 7) == (1, 2, 3)
    for bad in ([], [8], [-1], [3, 2], [2, 2], np.asarray([1.0, 2.0]), [True]):
        with pytest.raises(ValueError, match=r"ascending integers in \[0, 7\], at least one, got"):
            check_depths(bad, 7)


def test_floating():
    check_floating("x", jnp.float32)
    with pytest.raises(ValueError, match="x must be floating, got dtype int32; convert it first"):
        check_floating("x", jnp.dtype("int32"))


def test_counts():
    for good in (2, np.int64(2), np.uint8(2), jnp.asarray(2)):
        assert check_count("steps", good, 2) == 2
    for bad in (1, -3, True, 2.0, "2", None):
        with pytest.raises(ValueError, match=f"steps must be an integer >= 2, got {bad!r}"):
            check_count("steps", bad, 2)


@pytest.mark.slow
def test_integers_of_numpy_are_depths():
    x = jnp.ones(5)
    mlp = networks.MLP(4, 8, features_out=2)
    params = networks.chain(mlp).init(jax.random.key(0), x)
    chain, depths = networks.chain(mlp), np.arange(1, 4)
    profile = jax.jit(lambda params: propagation.backward(chain, params, x, jnp.sum, depths))(
        params
    )
    assert profile.log_grad_h.shape == (3, 5)
    log_s = jax.jit(
        lambda params: spectra.log_singular_values(chain, params, x, depths, from_layer=np.int64(0))
    )(params)
    assert log_s.shape == (3, 8)


def test_integers_of_numpy_are_sizes():
    # in a process without the checker of types, whose int is Python's
    code = (
        "import numpy as np; from jaxstab.networks import MLP; "
        "mlp = MLP(np.int64(4), np.int32(8), features_out=np.uint8(2)); "
        "assert mlp == MLP(4, 8, features_out=2) and type(mlp.depth) is int"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=240)
