"""Strict numerics for every test: x64, no silent dtype or rank promotion, warnings as errors."""

import gc
from pathlib import Path

import jax
import matplotlib as mpl
import pytest
from hypothesis import settings

pytest.register_assert_rewrite("groups_at_work")
# called in a process of its own, with JAX's default numerics
collect_ignore = ["public_calls.py", "public_calls_of_theory.py"]

# the same examples every time; compiling takes longer than any deadline
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_addoption(parser):
    parser.addoption(
        "--float32", action="store_true", help="leave x64 off, as JAX has it by default"
    )


def pytest_configure(config):
    jax.config.update("jax_enable_x64", not config.getoption("--float32"))
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    jax.config.update("jax_numpy_rank_promotion", "raise")
    # references are products too, which an accelerator rounds to ten bits by default
    jax.config.update("jax_default_matmul_precision", "highest")
    mpl.use("agg")
    # tracing makes many objects and few cycles, for which Python looks every 700 objects otherwise
    gc.set_threshold(200_000, 50, 1000)


@pytest.fixture(autouse=True, scope="module")
def _programs_are_dropped():
    """A compiled program is mapped in many pieces, of which Linux gives a process 65,530: beyond, XLA crashes."""
    yield
    pieces = Path("/proc/self/maps")
    if pieces.exists() and len(pieces.read_bytes().splitlines()) > 20_000:
        jax.clear_caches()


@pytest.fixture
def whole(tmp_path):
    """Files of a store of groups, `whole.zarr`, whose run nothing interrupted."""
    from groups_at_work import files, run

    run(tmp_path / "whole.zarr")
    return files(tmp_path / "whole.zarr")
