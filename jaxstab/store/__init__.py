"""Results out: labelled arrays with their provenance, whole or group by group. The only writer of results."""

from jaxstab.extras import extra

with extra("run"):
    from jaxstab.store.chunks import Field
    from jaxstab.store.claims import Claim, claim, runs
    from jaxstab.store.dataset import check_writable, load, provenance, save
    from jaxstab.store.export import check_events, write_events, write_table
    from jaxstab.store.files import check_file, whole_file
    from jaxstab.store.fingerprint import code_version, differences
    from jaxstab.store.groups import Groups, Progress, column, load_groups, open_groups, progress
    from jaxstab.store.locks import Run

__all__ = [
    "Claim",
    "Field",
    "Groups",
    "Progress",
    "Run",
    "check_events",
    "check_file",
    "check_writable",
    "claim",
    "code_version",
    "column",
    "differences",
    "load",
    "load_groups",
    "open_groups",
    "progress",
    "provenance",
    "runs",
    "save",
    "whole_file",
    "write_events",
    "write_table",
]
