"""Measure signal and gradient at every site of one model at one batch."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from jaxstab.diagnosis.depths import blocks, with_readers
from jaxstab.diagnosis.steps import stepped
from jaxstab.networks import Probe, Site
from jaxstab.networks.sites import Row
from jaxstab.norms.logarithms import unit
from jaxstab.propagation.attention import Attention, attention
from jaxstab.propagation.sites import (
    floating,
    gradients_at_sites,
    site_correlation,
    site_statistics,
)
from jaxstab.records import SiteProfile

Loss = Callable[[PyTree], Float[Array, ""]]

# size of the disturbance of nearby inputs, relative to the first site
NEARBY = 1e-2
# factors of the gradient, largest first: one that changes what is zero tells underflow from a
# gradient that is none
SCALES = (2.0**100, 2.0**60, 2.0**24, 2.0**12, 2.0**6)


class Saliency(NamedTuple):
    """Gradients dL/dh, dL/dh' of two nearby inputs, at one row or along the axis of rows.

    Attributes:
        cosine: of the two, mean over examples.
        error: standard error of that mean; NaN where the first axis is not the batch.
        signal_to_noise: |E g|^2 / E |g - E g|^2 from the two, as `signal_to_noise` of
            `propagation.saliency` estimates it.
    """

    cosine: Float[Array, ""]
    error: Float[Array, ""]
    signal_to_noise: Float[Array, ""]


class Measured(NamedTuple):
    """A model at one batch, along the axis of its rows.

    Attributes:
        rows: the rows.
        sites: the site of each row.
        blocks: numbers of the rows that are the model's depth: calls of modules of one class, or
            steps of one scan.
        signal: statistics of the values.
        log_grad_h: ln |dL/dh| at each row; -inf for a gradient that is zero.
        log_grad_theta: ln |dL/dtheta| of the parameters of the row's submodule; NaN where it has
            none.
        by_example: ln |dL/dh| of each example; NaN where the first axis is not the batch.
        cut_off: rows without a gradient, here and one small step down the gradient: not only behind
            a kernel that starts at zero.
        frozen: rows without a gradient by the parameters of their submodule, likewise.
        nonfinite: share of the gradient that is not finite.
        zero: share of the gradient that is exactly zero.
        lost: share of the gradient that is zero only because floats end.
        alike: mean correlation of pairs of examples; NaN where the first axis is not the batch.
        tokens: mean correlation of pairs of positions, the axis before the last, within an example.
        nearby: correlation of the signals of two inputs that differ by `NEARBY`.
        attention: largest logit and entropy of softmaxes; NaN at other rows.
        saliency: how alike gradients of two inputs are that differ by `NEARBY`.
        loss: its value.
    """

    rows: tuple[Row, ...]
    sites: tuple[Site, ...]
    blocks: tuple[int, ...]
    signal: SiteProfile
    log_grad_h: Float[np.ndarray, " row"]
    log_grad_theta: Float[np.ndarray, " row"]
    by_example: Float[np.ndarray, "row example"]
    cut_off: Bool[np.ndarray, " row"]
    frozen: Bool[np.ndarray, " row"]
    nonfinite: Float[np.ndarray, " row"]
    zero: Float[np.ndarray, " row"]
    lost: Float[np.ndarray, " row"]
    alike: Float[np.ndarray, " row"]
    tokens: Float[np.ndarray, " row"]
    nearby: Float[np.ndarray, " row"]
    attention: Attention
    saliency: Saliency
    loss: float

    @property
    def floating(self) -> Bool[np.ndarray, " row"]:
        """Which rows have a gradient."""
        return np.asarray([site.floating for site in self.sites])

    @property
    def values(self) -> Bool[np.ndarray, " row"]:
        """Which rows are values of the model that have a gradient, not what a softmax reads."""
        return np.asarray([site.floating and not site.softmax for site in self.sites])

    def has(self, kind: str) -> bool:
        """Whether a module of a class is there.

        Args:
            kind: part of the name of the class.

        Returns:
            Whether it is.
        """
        return any(kind in site.kind for site in self.sites)


@functools.lru_cache(16)
def measurement(
    probe: Probe, loss: Loss
) -> Callable[[PyTree, Sequence[PyTree], Key[Array, ""]], Measured]:
    """Make the measurement of a model, compiled at its first use.

    Measurements of one probe and one loss share their programs.

    Statistics of a site are a program of their own, which sites of one shape share.

    Args:
        probe: the model.
        loss: scalar function of the output.

    Returns:
        (parameters, inputs, key) -> what is measured.
    """
    sites = {site.name: site for site in probe.sites}
    of_rows = tuple(sites[row.site] for row in probe.rows)
    # what a mask hides from a softmax has no gradient
    floats = np.asarray([site.floating and not site.softmax for site in of_rows])
    first = next((site for site in probe.sites if site.floating), None)

    @jax.jit
    def values(
        params: PyTree, inputs: Sequence[PyTree], shifts: dict[str, Array]
    ) -> dict[str, Array]:
        return probe.read(params, *inputs, shifts=shifts).sites

    if first is None:
        nothing = {}
    else:
        nothing = {first.name: jnp.zeros(first.shape, first.dtype)}

    @jax.jit
    def gradients(
        params: PyTree,
        inputs: Sequence[PyTree],
        scale: Float[Array, ""],
        shifts: dict[str, Array],
    ) -> tuple:
        return gradients_at_sites(probe, params, *inputs, loss=loss, scale=scale, shifts=shifts)

    def signal(
        params: PyTree, inputs: Sequence[PyTree], key: Key[Array, ""]
    ) -> tuple[_Signal, dict[str, Array]]:
        plain = values(params, inputs, nothing)
        if first is None:
            shifts = nothing
        else:
            shifts = _disturbance(first, plain[first.name], key)
        disturbed = values(params, inputs, shifts)
        return _at_rows(probe, _of_signal, _examples(inputs), plain, disturbed), shifts

    def gradient(
        params: PyTree, inputs: Sequence[PyTree], scale: float, shifts: dict[str, Array] = nothing
    ) -> tuple[dict[str, Array], PyTree, float]:
        value, d_theta, d_sites = gradients(params, inputs, jnp.float32(scale), shifts)
        known = {name: d_sites.get(name, _no_gradient(site)) for name, site in sites.items()}
        return known, d_theta, float(value)

    def of_gradient(known: dict[str, Array], inputs: Sequence[PyTree]) -> _Gradient:
        return _at_rows(probe, _of_gradient, _examples(inputs), known)

    def measured(params: PyTree, inputs: Sequence[PyTree], key: Key[Array, ""]) -> Measured:
        at_rows, shifts = signal(params, inputs, key)
        plain, d_theta, value = gradient(params, inputs, 1.0)
        grad = of_gradient(plain, inputs)
        log_grad_theta = _of_parameters(probe, d_theta)
        cut_off = grad.log_norm == -np.inf
        frozen = log_grad_theta == -np.inf
        if np.any(cut_off[floats]) or np.any(frozen):
            later, later_theta, _ = gradient(stepped(probe, params, d_theta), inputs, 1.0)
            cut_off &= of_gradient(later, inputs).log_norm == -np.inf
            frozen &= _of_parameters(probe, later_theta) == -np.inf
        disturbed, _, _ = gradient(params, inputs, 1.0, shifts)
        saliency = _at_rows(probe, _of_saliency, _examples(inputs), plain, disturbed)
        lost = np.zeros(len(of_rows))
        if np.any(grad.zero[floats] > 0) and not np.any(grad.nonfinite[floats] > 0):
            for scale in SCALES:
                scaled = of_gradient(gradient(params, inputs, scale)[0], inputs)
                if not np.any(scaled.nonfinite[floats] > 0):
                    lost = grad.zero - scaled.zero
                    break
        return Measured(
            rows=probe.rows,
            sites=of_rows,
            blocks=with_readers(probe, blocks(probe), grad.log_norm),
            signal=at_rows.profile,
            log_grad_h=grad.log_norm,
            log_grad_theta=log_grad_theta,
            by_example=grad.by_example,
            cut_off=cut_off,
            frozen=frozen,
            nonfinite=grad.nonfinite,
            zero=grad.zero,
            lost=lost,
            alike=at_rows.alike,
            tokens=at_rows.tokens,
            nearby=at_rows.nearby,
            attention=at_rows.attention,
            saliency=saliency,
            loss=value,
        )

    return measured


def check_loss(probe: Probe, loss: Loss, params: PyTree, inputs: Sequence[PyTree]) -> None:
    """Check that the loss is a real scalar.

    Args:
        probe: the model.
        loss: scalar function of the output.
        params: of the model.
        inputs: likewise.

    Raises:
        ValueError: if it is something else.
    """

    def of_output(params: PyTree, inputs: Sequence[PyTree]) -> Any:
        return loss(probe.read(params, *inputs, sites=()).output)

    check_scalar(jax.eval_shape(of_output, params, inputs))


def check_scalar(value: Any) -> None:
    """Check that what a loss gives is a real scalar.

    Args:
        value: its shape, as `jax.eval_shape` has it.

    Raises:
        ValueError: if it is something else.
    """
    shape = getattr(value, "shape", None)
    if shape == () and jnp.issubdtype(value.dtype, jnp.floating):
        return
    got = type(value).__name__
    if shape is not None:
        got = f"{value.dtype} of shape {shape}"
    raise ValueError(f"the loss must be a scalar float, got {got}")


class _Signal(NamedTuple):
    """At one site while traced, at all rows afterwards."""

    profile: SiteProfile
    alike: Any
    tokens: Any
    nearby: Any
    attention: Any


class _Gradient(NamedTuple):
    """Likewise."""

    log_norm: Any
    by_example: Any
    zero: Any
    nonfinite: Any


def _of_signal(site: Site, examples: int, h: Array, disturbed: Array) -> _Signal:
    nearby = site_correlation(site, h, disturbed)
    return _Signal(
        profile=site_statistics(site, h),
        alike=_pairs(h, examples),
        tokens=_positions(h, examples),
        nearby=nearby,
        attention=attention(site, h),
    )


def _of_gradient(site: Site, examples: int, gradient: Array) -> _Gradient:
    numbers = floating(gradient)
    return _Gradient(
        unit(numbers)[1],
        _by_example(gradient, examples),
        jnp.mean(numbers == 0, dtype=numbers.dtype),
        jnp.mean(~jnp.isfinite(numbers), dtype=numbers.dtype),
    )


def _of_saliency(site: Site, examples: int, one: Array, other: Array) -> Saliency:
    gradients = [floating(one), floating(other)]
    if not _is_batch(one, examples):
        gradients = [gradient[None] for gradient in gradients]

    def of_example(one: Array, other: Array) -> tuple[Array, Array]:
        cosine = site_correlation(site, one, other)
        log_ratio = unit(one)[1] - unit(other)[1]
        return cosine, cosine / (jnp.cosh(log_ratio) - cosine)

    cosines, ratios = jax.vmap(of_example)(*gradients)
    count = len(cosines)
    if count > 1:
        error = jnp.std(cosines, ddof=1) / count**0.5
    else:
        error = cosines[0] * jnp.nan
    # a ratio of nearly equal gradients is nearly infinite: the median has a meaning
    return Saliency(jnp.mean(cosines), error, jnp.median(ratios))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _at_site(function: Callable, site: Site, examples: int, *values: Array) -> PyTree:
    """Numbers of a site, [step, ...]."""
    at_step = functools.partial(function, site, examples)
    for _ in site.loops:
        at_step = jax.vmap(at_step)
    loops = len(site.loops)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[loops:]), at_step(*values))


def _at_rows(probe: Probe, function: Callable, examples: int, *values: Mapping[str, Array]) -> Any:
    """Numbers of all sites along the axis of rows, sites of one shape by one program."""
    parts = []
    for site in probe.sites:
        # what sites of one shape do not share, their program does not read
        kind = site.kind if site.softmax else ""
        alike = site._replace(name="", path="", kind=kind, call=0)
        parts.append(
            jax.device_get(
                _at_site(function, alike, examples, *(known[site.name] for known in values))
            )
        )
    places = probe.places()
    return jax.tree.map(lambda *stacks: np.concatenate(stacks)[places].astype(np.float64), *parts)


@jax.jit
def _leaf_norm(leaf: Array) -> Float[Array, ""]:
    return unit(floating(leaf))[1]


@jax.jit
def _step_norms(leaf: Array) -> Float[Array, " step"]:
    return jax.vmap(lambda part: unit(part)[1])(floating(leaf))


def _of_parameters(probe: Probe, d_theta: PyTree) -> Float[np.ndarray, " row"]:
    """ln of the gradient's norm by the parameters of each row's submodule; NaN where it has none."""
    whole = []
    by_step: dict[int, np.ndarray] = {}
    for i, (leaf, sliced) in enumerate(probe.parameters(d_theta, "")):
        known = leaf.dtype != jax.dtypes.float0
        whole.append(float(_leaf_norm(leaf)) if known else -np.inf)
        if known and sliced:
            by_step[i] = np.asarray(_step_norms(leaf))
    own = {site.path: probe.owned(d_theta, site.path) for site in probe.sites}
    sites = {site.name: site for site in probe.sites}
    logs = []
    for row in probe.rows:
        numbers = own[sites[row.site].path]
        if not numbers:
            logs.append(np.nan)
            continue
        of_step = {}
        if row.steps:
            of_step = {i: by_step[i][row.steps[0]] for i in numbers if i in by_step}
        norms = np.array([of_step.get(i, whole[i]) for i in numbers], float)
        with np.errstate(invalid="ignore"):
            # -inf and NaN come back as such
            logs.append(np.logaddexp.reduce(2 * norms) / 2)
    return np.asarray(logs)


def _no_gradient(site: Site) -> Array:
    return jnp.full(site.shape, jnp.nan, jnp.float32)


def _examples(inputs: Sequence[PyTree]) -> int:
    """Size of the first axis of the first input; 0 where there is none."""
    shape = jnp.shape(jax.tree.leaves(inputs)[0])
    if shape:
        return shape[0]
    return 0


@functools.partial(jax.jit, static_argnums=0)
def _disturbance(site: Site, value: Array, key: Key[Array, ""]) -> dict[str, Array]:
    """A small random shift of a site."""
    noise = jax.random.normal(key, site.shape, jnp.float32)
    size = NEARBY * jnp.sqrt(jnp.mean(jnp.square(floating(value)))).astype(jnp.float32)
    return {site.name: (size * noise).astype(site.dtype)}


def _is_batch(h: Array, examples: int) -> bool:
    return h.ndim >= 2 and examples >= 2 and h.shape[0] == examples


def _by_example(gradient: Array, examples: int) -> Float[Array, " example"]:
    if not _is_batch(gradient, examples):
        return jnp.full(max(examples, 1), jnp.nan)
    return jax.vmap(lambda row: unit(row)[1])(floating(gradient))


def _pairs(h: Array, examples: int) -> Float[Array, ""]:
    """Mean correlation of pairs of examples."""
    if not _is_batch(h, examples):
        return jnp.full((), jnp.nan)
    return _mean_correlation(floating(h).reshape(examples, -1))


def _positions(h: Array, examples: int) -> Float[Array, ""]:
    """Mean correlation of pairs of positions within an example."""
    if not _is_batch(h, examples) or h.ndim < 3 or h.shape[-2] < 2:
        return jnp.full((), jnp.nan)
    rows = floating(h).reshape(math.prod(h.shape[:-2]), h.shape[-2], -1)
    return jnp.mean(jax.vmap(_mean_correlation)(rows))


def _mean_correlation(rows: Float[Array, "n d"]) -> Float[Array, ""]:
    """(|sum of u_i|^2 - n) / (n (n - 1)) of the unit vectors u_i."""
    count = len(rows)
    units = jax.vmap(lambda row: unit(row)[0])(rows)
    return (jnp.sum(jnp.sum(units, axis=0) ** 2) - count) / (count * (count - 1))
