"""Results out: labelled arrays with their provenance, whole or group by group. The only writer of results."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.store.chunks import Axis, Field, part
    from jaxstab.store.claims import Claim, claim, runs
    from jaxstab.store.dataset import attributes, check_writable, load, provenance, remove, save, versions
    from jaxstab.store.export import check_events, write_events, write_table
    from jaxstab.store.files import check_file, whole_file
    from jaxstab.store.fingerprint import code_version, differences, machine
    from jaxstab.store.groups import Groups
    from jaxstab.store.locks import Run, owned
    from jaxstab.store.opening import OtherSweepError, open_grid, open_groups
    from jaxstab.store.reading import Progress, column, load_groups, progress

__all__ = [
    "Axis",
    "Claim",
    "Field",
    "Groups",
    "OtherSweepError",
    "Progress",
    "Run",
    "attributes",
    "check_events",
    "check_file",
    "check_writable",
    "claim",
    "code_version",
    "column",
    "differences",
    "load",
    "load_groups",
    "machine",
    "open_grid",
    "open_groups",
    "owned",
    "part",
    "progress",
    "provenance",
    "remove",
    "runs",
    "save",
    "versions",
    "whole_file",
    "write_events",
    "write_table",
]
