"""Families of products on which `log_singular_values` was not tuned, and their singular values in many digits."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np

from jaxstab import networks, spectra

# ln of values and their stated errors
Found = tuple[np.ndarray, np.ndarray]


class _Draws:
    """Random matrices of one product."""

    def __init__(self, layers: int, n: int, seed: int) -> None:
        self.layers = layers
        self.n = n
        self.random = np.random.default_rng(seed)
        self.index = np.arange(n)

    def normal(self) -> np.ndarray:
        return self.random.normal(size=(self.layers, self.n, self.n))

    def uniform(self, low: float, high: float) -> np.ndarray:
        return self.random.uniform(low, high, (self.layers, self.n))

    def haar(self) -> np.ndarray:
        return np.linalg.qr(self.random.normal(size=(self.n, self.n)))[0]

    def turned(self, values: np.ndarray) -> np.ndarray:
        """Factors with these values between random bases."""
        return np.stack([self.haar() @ np.diag(values) @ self.haar() for _ in range(self.layers)])


def _diagonal(rows: np.ndarray) -> np.ndarray:
    return np.stack([np.diag(row) for row in rows])


def _repeated(factor: np.ndarray, layers: int) -> np.ndarray:
    return np.stack([factor] * layers)


def _shift(n: int, offset: int) -> np.ndarray:
    return np.eye(n, k=offset)


def _vandermonde(draws: _Draws) -> np.ndarray:
    points = np.sort(draws.uniform(-1, 1), axis=1)
    return np.stack([2 * np.vander(row, draws.n) for row in points])


def _vandermonde_ascending(draws: _Draws) -> np.ndarray:
    points = np.sort(draws.uniform(-1, 1), axis=1)
    return np.stack([np.vander(row, draws.n, increasing=True) for row in points])


def _hilbert(draws: _Draws) -> np.ndarray:
    return _repeated(1 / (1 + draws.index[:, None] + draws.index[None]), draws.layers)


def _noisy_hilbert(draws: _Draws) -> np.ndarray:
    return _hilbert(draws) * (1 + 0.1 * draws.normal())


def _cauchy(draws: _Draws) -> np.ndarray:
    rows = np.sort(draws.uniform(0, 1), axis=1)
    columns = np.sort(draws.uniform(0, 1), axis=1)
    return 1 / (rows[:, :, None] + columns[:, None] + 0.1)


def _sparse(draws: _Draws) -> np.ndarray:
    entries = draws.normal() * (draws.random.uniform(size=(draws.layers, draws.n, draws.n)) < 0.35)
    permutations = [np.eye(draws.n)[draws.random.permutation(draws.n)] for _ in range(draws.layers)]
    return entries + 0.3 * np.stack(permutations)


def _in_two_blocks(draws: _Draws) -> np.ndarray:
    lower = draws.index >= draws.n // 2
    same = lower[:, None] == lower[None]
    return draws.normal() * same * np.where(lower, 1e-3, 1.0)[None, :, None]


def _in_two_coupled_blocks(draws: _Draws) -> np.ndarray:
    lower = draws.index >= draws.n // 2
    same = lower[:, None] == lower[None]
    return draws.normal() * (same + 1e-4) * np.where(lower, 0.3, 1.5)[None, :, None]


def _upper_bidiagonal(draws: _Draws) -> np.ndarray:
    return _diagonal(draws.uniform(0.2, 2)) + draws.normal() * _shift(draws.n, 1)


def _lower_bidiagonal(draws: _Draws) -> np.ndarray:
    return _diagonal(draws.uniform(0.2, 2)) + draws.normal() * _shift(draws.n, -1)


def _strongly_lower(draws: _Draws) -> np.ndarray:
    return 2 * np.tril(draws.normal(), -1) + _diagonal(draws.uniform(0.3, 1))


def _strongly_upper(draws: _Draws) -> np.ndarray:
    return 2 * np.triu(draws.normal(), 1) + _diagonal(draws.uniform(0.3, 1))


def _triangular_in_turn(draws: _Draws) -> np.ndarray:
    even = (np.arange(draws.layers) % 2 == 0)[:, None, None]
    return np.where(even, np.tril(draws.normal()), np.triu(draws.normal()))


def _companion(draws: _Draws) -> np.ndarray:
    first_row = draws.normal() * (draws.index == 0)[None, :, None]
    return _shift(draws.n, -1) + first_row


def _toeplitz(draws: _Draws) -> np.ndarray:
    decay = 0.5 ** np.abs(draws.index[:, None] - draws.index[None])
    return decay * draws.random.uniform(0.5, 1.5, (draws.layers, 1, 1))


def _grcar(draws: _Draws) -> np.ndarray:
    ones = np.ones((draws.n, draws.n))
    return _repeated(np.triu(np.tril(ones, 3)) - _shift(draws.n, -1), draws.layers)


def _nearly_of_rank_one(draws: _Draws) -> np.ndarray:
    column = draws.random.normal(size=(draws.layers, draws.n, 1))
    row = draws.random.normal(size=(draws.layers, 1, draws.n))
    return column * row + 1e-3 * draws.turned(np.ones(draws.n))


def _graded_against(draws: _Draws) -> np.ndarray:
    rows = np.exp(-0.7 * draws.index)
    columns = np.exp(0.9 * draws.index)
    return draws.normal() * rows[None, :, None] * columns[None, None]


def _graded_at_random(draws: _Draws) -> np.ndarray:
    rows = np.exp(3 * draws.random.normal(size=(draws.layers, draws.n, 1)))
    columns = np.exp(3 * draws.random.normal(size=(draws.layers, 1, draws.n)))
    return draws.normal() * rows * columns


def _tight_clusters(draws: _Draws) -> np.ndarray:
    values = np.where(draws.index < draws.n // 2, 2.0, 0.5)
    return draws.turned(values * (1 + 1e-7 * draws.random.normal(size=draws.n)))


def _aligned_clusters(draws: _Draws) -> np.ndarray:
    bases = [draws.haar() for _ in range(draws.layers + 1)]
    values = np.choose(draws.index % 3, (1.1, 0.9, 0.5)) * (1 + 1e-9 * draws.index)
    pairs = zip(bases[1:], bases[:-1], strict=True)
    return np.stack([after @ np.diag(values) @ before.T for after, before in pairs])


def _kahan(draws: _Draws) -> np.ndarray:
    above = np.triu(np.ones((draws.n, draws.n)), 1)
    factor = np.diag(np.sin(1.0) ** draws.index) @ (np.eye(draws.n) - np.cos(1.0) * above)
    return _repeated(factor, draws.layers)


def _turned_kahan(draws: _Draws) -> np.ndarray:
    return draws.turned(np.ones(draws.n)) @ _kahan(draws)


def _jordan(draws: _Draws) -> np.ndarray:
    return _repeated(0.5 * np.eye(draws.n) + _shift(draws.n, 1), draws.layers)


def _lower_jordan(draws: _Draws) -> np.ndarray:
    return _repeated(1.1 * np.eye(draws.n) + 3 * _shift(draws.n, -1), draws.layers)


def _positive(draws: _Draws) -> np.ndarray:
    return np.abs(draws.normal())


def _stochastic(draws: _Draws) -> np.ndarray:
    entries = _positive(draws)
    return entries / entries.sum(2, keepdims=True)


def _isometric(draws: _Draws) -> np.ndarray:
    return draws.turned(np.ones(draws.n))


def _inverse_in_turn(draws: _Draws) -> np.ndarray:
    factor = draws.random.normal(size=(draws.n, draws.n))
    pair = (factor, np.linalg.inv(factor))
    return np.stack([pair[layer % 2] for layer in range(draws.layers)])


def _cayley(draws: _Draws) -> np.ndarray:
    entries = draws.normal()
    skew = 0.3 * (entries - np.swapaxes(entries, 1, 2))
    return np.linalg.solve(np.eye(draws.n) - skew, np.eye(draws.n) + skew)


def _gaussian(draws: _Draws) -> np.ndarray:
    return draws.normal() / draws.n**0.5


FAMILIES: dict[str, Callable[[_Draws], np.ndarray]] = {
    "Vandermonde": _vandermonde,
    "Vandermonde, ascending": _vandermonde_ascending,
    "Hilbert": _hilbert,
    "Hilbert, noisy": _noisy_hilbert,
    "Cauchy": _cauchy,
    "sparse": _sparse,
    "two blocks": _in_two_blocks,
    "two coupled blocks": _in_two_coupled_blocks,
    "upper bidiagonal": _upper_bidiagonal,
    "lower bidiagonal": _lower_bidiagonal,
    "strongly lower": _strongly_lower,
    "strongly upper": _strongly_upper,
    "lower and upper in turn": _triangular_in_turn,
    "companion": _companion,
    "Toeplitz": _toeplitz,
    "Grcar": _grcar,
    "nearly of rank one": _nearly_of_rank_one,
    "graded against each other": _graded_against,
    "graded at random": _graded_at_random,
    "tight clusters": _tight_clusters,
    "aligned clusters": _aligned_clusters,
    "Kahan": _kahan,
    "Kahan, turned": _turned_kahan,
    "Jordan": _jordan,
    "Jordan, lower": _lower_jordan,
    "positive": _positive,
    "stochastic": _stochastic,
    "isometric": _isometric,
    "a matrix and its inverse": _inverse_in_turn,
    "Cayley": _cayley,
    "Gaussian": _gaussian,
}


def factors(family: str, layers: int, n: int, seed: int) -> np.ndarray:
    """Factors of a product, rounded to float32, so that both precisions see the same ones: [layer, n, n]."""
    drawn = FAMILIES[family](_Draws(layers, n, seed))
    return drawn.astype(np.float32).astype(float)


def truth(factors: np.ndarray, digits: int = 500) -> np.ndarray:
    """ln of the singular values of factors[-1] ... factors[0], descending; -inf where they vanish to these digits."""
    with mp.workdps(digits):
        product = mp.matrix(factors[0].tolist())
        for factor in factors[1:]:
            product = mp.matrix(factor.tolist()) * product
        values = mp.svd_r(product, compute_uv=False)
        floor = mp.mpf(10) ** (30 - digits) * max(values)
        logs = [float(mp.log(value)) if value > floor else -np.inf for value in values]
    return np.array(sorted(logs, reverse=True))


def _next(factor: jax.Array, h: jax.Array) -> jax.Array:
    return factor @ h


_LINEAR = networks.Chain(
    embed=lambda params, x: x,
    block=_next,
    readout=lambda params, h: h,
    activation=None,
)


@jax.jit
def _with_errors(stack: jax.Array) -> tuple[jax.Array, jax.Array]:
    layers, n, _ = stack.shape
    params = networks.Params((), stack, ())
    x = jnp.zeros(n, stack.dtype)
    spectrum = spectra.log_singular_values(_LINEAR, params, x, [layers], from_layer=0, errors=True)
    return spectrum.log_s[0], spectrum.error[0]


def found(factors: np.ndarray, dtype: str) -> Found:
    """What `spectra.log_singular_values` says of a linear network with these layers."""
    with jax.default_matmul_precision("highest"):
        log_s, error = _with_errors(jnp.asarray(factors, dtype))
    return np.asarray(log_s, float), np.asarray(error, float)


def excess(found: Found, truth: np.ndarray) -> tuple[np.ndarray, int]:
    """Stated over true errors where both are known and not 0, and how many true ones were above the stated."""
    log_s, error = found
    # of two zeros the difference is no number
    off = np.abs(np.where(log_s == truth, 0.0, log_s - np.where(log_s == truth, 0.0, truth)))
    known = np.isfinite(error) & np.isfinite(off) & (off > 0)
    missed = np.sum(~(off <= error))
    return error[known] / off[known], int(missed)
