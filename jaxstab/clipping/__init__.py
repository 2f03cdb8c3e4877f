"""Optax transformations that clip gradients, guard against non-finite ones, and record statistics.

Each function returns an `optax.GradientTransformationExtraArgs`, to be chained with optax's own
(which already has clipping by value, by global norm, by block RMS and adaptive gradient clipping).
Thresholds are numbers, traced arrays or schedules, so that `jax.vmap` sweeps over them in one
compile. Norms are right for any magnitude. Entries that are not finite pass a clipper unchanged and
do not count in norms or statistics; `guarded` sets a policy for them.
"""

from jaxstab.clipping.adaptive import auto_clip, clip_by_running_mean, z_clip
from jaxstab.clipping.by_norm import clip_by_norm, normalize
from jaxstab.clipping.guards import GuardState, guarded
from jaxstab.clipping.spectral import clip_by_spectral_norm
from jaxstab.clipping.spikes import clip_spikes, with_momentum_reset
from jaxstab.clipping.telemetry import TelemetryState, monitored
from jaxstab.clipping.updates import clip_updates

__all__ = [
    "GuardState",
    "TelemetryState",
    "auto_clip",
    "clip_by_norm",
    "clip_by_running_mean",
    "clip_by_spectral_norm",
    "clip_spikes",
    "clip_updates",
    "guarded",
    "monitored",
    "normalize",
    "with_momentum_reset",
    "z_clip",
]
