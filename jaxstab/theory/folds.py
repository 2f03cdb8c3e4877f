"""Fold over blocks behind `predict`, which carries the signal of two inputs and records each layer.

With A and D the moments of a block's head (`heads`), and weights of variance sigma_w^2 / fan_in:

    none       q' = sigma_w^2 A + sigma_b^2                 |dL/dh|^2 = sigma_w^2 D |dL/dh'|^2
    residual   q' = q + s^2 (sigma_w^2 A + sigma_b^2)       |dL/dh|^2 = (1 + s^2 sigma_w^2 D) |dL/dh'|^2
    dense      q_l = sigma_w^2 mean_{k<l} A_k + sigma_b^2   |dL/dh|^2 = (1 + sigma_w^2 D_l/l) (S_{l-1}/S_l) |dL/dh'|^2

Here s = 1 for "sum" (Yang & Schoenholz 2017, arXiv:1712.08969), depth^-1/2 for "scaled" and alpha
for "rezero". S_l = sum_{k<=l} D_k belongs to the state (h_0, .., h_l) of "dense" skips, whose
gradient at the last layer is that of a readout. Where "peri" normalises the branch, sigma_w^2 and
sigma_b^2 are divided by the branch's length sigma_w^2 A + sigma_b^2 + epsilon.
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxstab.activations import Activation
from jaxstab.theory.batches import spheres
from jaxstab.theory.dense_folds import dense
from jaxstab.theory.features import Features
from jaxstab.theory.heads import head
from jaxstab.theory.laws import Law
from jaxstab.theory.maps import log_sum
from jaxstab.theory.signals import Head, Signal
from jaxstab.theory.steps import Layers, Variances, carried, normed, parameter_ratios, step


def layers(
    law: Law, phi: Activation, about: Features, variances: Variances, first: Signal, depth: int
) -> Layers:
    """Fold the signal over all blocks.

    Args:
        law: law of each block.
        phi: activation of each block.
        about: features of the activation.
        variances: variances of each block.
        first: signal of layer 0.
        depth: number of blocks L.

    Returns:
        Records of layers 0..L.
    """
    table = spheres(law, phi, about, first.log_q.dtype)
    head_of = functools.partial(head, law, phi, about, table)
    fold = dense if law.skip == "dense" else _sequential
    return fold(law, variances, head_of, first, depth)


def _sequential(
    law: Law, variances: Variances, head_of: Callable[[Signal], Head], first: Signal, depth: int
) -> Layers:
    log_none = jnp.full_like(first.log_q, -jnp.inf)

    def layer(
        carry: tuple[Signal, Array, Array], _: None
    ) -> tuple[tuple[Signal, Array, Array], Layers]:
        signal, climbed, isotropic = carry
        known = head_of(signal)
        own = normed(law, variances, known)
        stepped = step(law, own, signal, known)
        many, few = parameter_ratios(law, own, signal, known, shrunk=own.weight - variances.weight)
        few = own.branch + few
        if law.skip == "rezero":
            # the gradient of alpha is the inner product of branch and cotangent
            if law.norm == "batch":
                summed = own.weight + many
            else:
                summed = log_sum(own.weight + known.log_power, own.bias)
            few = log_sum(few, summed)
        if not math.isinf(carried(law)):
            kept = carried(law) + isotropic
        else:
            kept = log_none
        new = (
            stepped.signal,
            climbed + stepped.log_chi,
            log_sum(kept, climbed + stepped.log_isotropic),
        )
        read = Layers(
            signal.log_q,
            signal.log_q,
            signal.distance,
            stepped.log_chi,
            own.branch + many,
            few,
            isotropic,
        )
        return new, read

    zero = jnp.zeros_like(first.log_q)
    # the step of the last layer is needed only for its moments
    _, read = jax.lax.scan(layer, (first, zero, zero), None, length=depth + 1)
    return read
