"""Stores of results: labelled arrays with their provenance, written whole or group by group."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.store.dataset import load, save
    from jaxstab.store.fields import Axis as Axis
    from jaxstab.store.fields import Field as Field
    from jaxstab.store.opening import OtherSweepError
    from jaxstab.store.reading import Progress, progress

__all__ = [
    "OtherSweepError",
    "Progress",
    "load",
    "progress",
    "save",
]
