"""Errors that `log_singular_values` states cover the true ones, and are not far above: families it was not tuned on."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

FOLDER = str(Path(__file__).parent.parent / "experiments" / "benchmarks")


@pytest.mark.slow
@pytest.mark.kernels
def test_stated_errors_cover_and_are_tight_on_held_out_families(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    from spectral import products

    dtype = str(jnp.result_type(float))
    ratios = []
    for family in products.FAMILIES:
        factors = products.factors(family, layers=14, n=6, seed=11)
        # the smallest values are e^-200 of the largest
        ratio, missed = products.excess(
            products.found(factors, dtype), products.truth(factors, 250)
        )
        assert missed == 0, family
        ratios.append(ratio)
    # 30 was asked; over more products it is 25 in float32 and 24 in float64 (experiments/benchmarks). A median of so
    # few values has a standard error of 1.25 deviations over sqrt(n)
    logs = np.log(np.concatenate(ratios))
    error = 1.25 * np.std(logs) / np.sqrt(logs.size)
    assert np.median(logs) - 3 * error <= np.log(30)
