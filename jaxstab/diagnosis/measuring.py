"""Measurement of signal and gradient at every site of a model at one batch."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key, PyTree

from jaxstab.diagnosis.depths import blocks, with_readers
from jaxstab.diagnosis.statistics import (
    GradientAtSite,
    Saliency,
    SignalAtSite,
    at_rows,
    gradient_of,
    log_norms_of_parameters,
    saliency_of,
    signal_of,
)
from jaxstab.diagnosis.steps import stepped
from jaxstab.networks import Probe, Site
from jaxstab.networks.sites import Row
from jaxstab.norms.logarithms import floating
from jaxstab.propagation.attention import Attention
from jaxstab.propagation.sites import gradients_at_sites
from jaxstab.records import SiteProfile

Loss = Callable[[PyTree], Float[Array, ""]]

# size of the disturbance of nearby inputs, relative to the first site
NEARBY = 1e-2
# factors of the gradient, largest first: an underflown entry scaled up is no longer zero
SCALES = (2.0**100, 2.0**60, 2.0**24, 2.0**12, 2.0**6)


class Measured(NamedTuple):
    """Measurement of a model at one batch, along the axis of its rows.

    Attributes:
        rows: rows of the model.
        sites: site of each row.
        blocks: numbers of the rows that are the model's blocks: calls of modules of one class, or
            steps of one scan.
        signal: statistics of the values.
        log_grad_h: ln |dL/dh| at each row; -inf for a zero gradient.
        log_grad_theta: ln |dL/dtheta| of the parameters of the row's submodule; NaN for a
            submodule without parameters.
        by_example: ln |dL/dh| of each example; NaN where the first axis is not the batch.
        cut_off: True where dL/dh is zero, now and after one small step down the gradient. The step
            excludes rows behind a kernel that starts at zero.
        frozen: True where dL/dtheta of the row's submodule is zero, now and after that step.
        nonfinite: share of the gradient that is not finite.
        zero: share of the gradient that is exactly zero.
        lost: share of the gradient that underflows to zero.
        alike: mean correlation of pairs of examples; NaN where the first axis is not the batch.
        tokens: mean correlation of pairs of positions, the axis before the last, within an example.
        nearby: correlation of the signals of two inputs that differ by `NEARBY`.
        attention: largest logit and entropy of softmaxes; NaN at other rows.
        saliency: similarity of the gradients of two inputs that differ by `NEARBY`.
        loss: value of the loss.
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
        """True where the values of a row are floats and have a gradient."""
        return np.asarray([site.floating for site in self.sites])

    @property
    def values(self) -> Bool[np.ndarray, " row"]:
        """True where the values of a row have a gradient and are not logits of a softmax."""
        return np.asarray([site.floating and not site.softmax for site in self.sites])

    def has(self, kind: str) -> bool:
        """Check for a module of a class.

        Args:
            kind: part of the name of the class.

        Returns:
            Boolean: True if the class of any site has `kind` in its name.
        """
        return any(kind in site.kind for site in self.sites)


@functools.lru_cache(16)
def measurement(
    probe: Probe, loss: Loss
) -> Callable[[PyTree, Sequence[PyTree], Key[Array, ""]], Measured]:
    """Make the function that measures a model, compiled at its first use.

    Measurements with one probe and one loss share their programs.

    Args:
        probe: the model.
        loss: scalar function of the output.

    Returns:
        Function of (parameters, inputs, key) that returns the measurement.
    """
    passes = _Passes(probe, loss)
    of_rows = tuple(passes.sites[row.site] for row in probe.rows)
    # logits that a mask hides have no gradient
    floats = np.asarray([site.floating and not site.softmax for site in of_rows])

    def measured(params: PyTree, inputs: Sequence[PyTree], key: Key[Array, ""]) -> Measured:
        signal, shifts = passes.signal(params, inputs, key)
        plain, d_theta, value = passes.gradient(params, inputs)
        grad = passes.of_gradient(plain, inputs)
        log_grad_theta = log_norms_of_parameters(probe, d_theta)
        cut_off = grad.log_norm == -np.inf
        frozen = log_grad_theta == -np.inf
        if np.any(cut_off[floats]) or np.any(frozen):
            later, later_theta, _ = passes.gradient(stepped(probe, params, d_theta), inputs)
            cut_off &= passes.of_gradient(later, inputs).log_norm == -np.inf
            frozen &= log_norms_of_parameters(probe, later_theta) == -np.inf
        disturbed, _, _ = passes.gradient(params, inputs, shifts=shifts)
        lost = np.zeros(len(of_rows))
        if np.any(grad.zero[floats] > 0) and not np.any(grad.nonfinite[floats] > 0):
            lost = _lost(passes, params, inputs, grad.zero, floats)
        return Measured(
            rows=probe.rows,
            sites=of_rows,
            blocks=with_readers(probe, blocks(probe), grad.log_norm),
            signal=signal.profile,
            log_grad_h=grad.log_norm,
            log_grad_theta=log_grad_theta,
            by_example=grad.by_example,
            cut_off=cut_off,
            frozen=frozen,
            nonfinite=grad.nonfinite,
            zero=grad.zero,
            lost=lost,
            alike=signal.alike,
            tokens=signal.tokens,
            nearby=signal.nearby,
            attention=signal.attention,
            saliency=at_rows(probe, saliency_of, _examples(inputs), plain, disturbed),
            loss=value,
        )

    return measured


class _Passes:
    """Forward and backward passes of a model, compiled at their first use.

    Sites of one shape share the program of their statistics.
    """

    def __init__(self, probe: Probe, loss: Loss) -> None:
        self.probe = probe
        self.sites = {site.name: site for site in probe.sites}
        self._first = next((site for site in probe.sites if site.floating), None)
        self._no_shift: dict[str, Array] = {}
        if self._first is not None:
            zeros = jnp.zeros(self._first.shape, self._first.dtype)
            self._no_shift = {self._first.name: zeros}

        @jax.jit
        def values(
            params: PyTree, inputs: Sequence[PyTree], shifts: dict[str, Array]
        ) -> dict[str, Array]:
            return probe.read(params, *inputs, shifts=shifts).sites

        @jax.jit
        def gradients(
            params: PyTree,
            inputs: Sequence[PyTree],
            scale: Float[Array, ""],
            shifts: dict[str, Array],
        ) -> tuple:
            return gradients_at_sites(probe, params, *inputs, loss=loss, scale=scale, shifts=shifts)

        self._values = values
        self._gradients = gradients

    def signal(
        self, params: PyTree, inputs: Sequence[PyTree], key: Key[Array, ""]
    ) -> tuple[SignalAtSite, dict[str, Array]]:
        """Compute statistics of the values at all rows, and the shift that makes a nearby input."""
        plain = self._values(params, inputs, self._no_shift)
        if self._first is None:
            shifts = self._no_shift
        else:
            shifts = _disturbance(self._first, plain[self._first.name], key)
        disturbed = self._values(params, inputs, shifts)
        return at_rows(self.probe, signal_of, _examples(inputs), plain, disturbed), shifts

    def gradient(
        self,
        params: PyTree,
        inputs: Sequence[PyTree],
        scale: float = 1.0,
        shifts: dict[str, Array] | None = None,
    ) -> tuple[dict[str, Array], PyTree, float]:
        """Compute the gradients by the values of all sites and by the parameters, and the loss."""
        if shifts is None:
            shifts = self._no_shift
        value, d_theta, d_sites = self._gradients(params, inputs, jnp.float32(scale), shifts)
        known = {name: d_sites.get(name, _no_gradient(site)) for name, site in self.sites.items()}
        return known, d_theta, float(value)

    def of_gradient(self, known: dict[str, Array], inputs: Sequence[PyTree]) -> GradientAtSite:
        """Compute statistics of gradients at all rows."""
        return at_rows(self.probe, gradient_of, _examples(inputs), known)


def _lost(
    passes: _Passes,
    params: PyTree,
    inputs: Sequence[PyTree],
    zero: Float[np.ndarray, " row"],
    floats: Bool[np.ndarray, " row"],
) -> Float[np.ndarray, " row"]:
    """Compute the share of the gradient that underflows, from a gradient scaled up."""
    for scale in SCALES:
        scaled = passes.of_gradient(passes.gradient(params, inputs, scale)[0], inputs)
        if not np.any(scaled.nonfinite[floats] > 0):
            return zero - scaled.zero
    return np.zeros(len(zero))


def check_loss(probe: Probe, loss: Loss, params: PyTree, inputs: Sequence[PyTree]) -> None:
    """Check that the loss is a real scalar.

    Args:
        probe: the model.
        loss: scalar function of the output.
        params: parameters of the model.
        inputs: inputs of the model.

    Raises:
        ValueError: if the loss is not a real scalar.
    """

    def of_output(params: PyTree, inputs: Sequence[PyTree]) -> Any:
        return loss(probe.read(params, *inputs, sites=()).output)

    check_scalar(jax.eval_shape(of_output, params, inputs))


def check_scalar(value: Any) -> None:
    """Check that the value of a loss is a real scalar.

    Args:
        value: shape and dtype of the loss, from `jax.eval_shape`.

    Raises:
        ValueError: if the value is not a real scalar.
    """
    shape = getattr(value, "shape", None)
    if shape == () and jnp.issubdtype(value.dtype, jnp.floating):
        return
    got = type(value).__name__
    if shape is not None:
        got = f"{value.dtype} of shape {shape}"
    raise ValueError(f"the loss must be a scalar float, got {got}")


def _no_gradient(site: Site) -> Array:
    return jnp.full(site.shape, jnp.nan, jnp.float32)


def _examples(inputs: Sequence[PyTree]) -> int:
    """Size of the first axis of the first input; 0 for a scalar."""
    shape = jnp.shape(jax.tree.leaves(inputs)[0])
    if shape:
        return shape[0]
    return 0


@functools.partial(jax.jit, static_argnums=0)
def _disturbance(site: Site, value: Array, key: Key[Array, ""]) -> dict[str, Array]:
    """Draw a small random shift of a site."""
    noise = jax.random.normal(key, site.shape, jnp.float32)
    size = NEARBY * jnp.sqrt(jnp.mean(jnp.square(floating(value)))).astype(jnp.float32)
    return {site.name: (size * noise).astype(site.dtype)}
