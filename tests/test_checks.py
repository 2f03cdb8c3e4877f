"""What is refused before anything is traced; every public function names what it got."""

import jax
import jax.numpy as jnp
import pytest

from jaxstab.checks import check_count, check_depths, check_floating, check_gains


def test_gains():
    check_gains(0.0, jnp.asarray([0.1, 2.0]))
    jax.jit(lambda w: (check_gains(w, 0.0), w)[1])(-1.0)  # traced: no value to check
    for bad in (-0.1, float("nan"), float("inf"), jnp.asarray([1.0, -1.0])):
        with pytest.raises(ValueError, match="sigma_b must be finite and >= 0, got"):
            check_gains(1.0, bad)


def test_depths():
    check_depths([0, 3, 7], 7)
    for bad in ([], [8], [-1], [3, 2], [2, 2]):
        with pytest.raises(ValueError, match=r"ascending integers in \[0, 7\], at least one, got"):
            check_depths(bad, 7)


def test_floating():
    check_floating("x", jnp.float32)
    with pytest.raises(ValueError, match="x must be floating, got dtype int32; convert it first"):
        check_floating("x", jnp.dtype("int32"))


def test_counts():
    check_count("steps", 2, 2)
    for bad in (1, -3, True):
        with pytest.raises(ValueError, match=f"steps must be an integer >= 2, got {bad}"):
            check_count("steps", bad, 2)
