"""Datasets and stores of trainings whose outcome is made up, as a sweep would keep them."""

import json

import numpy as np
import xarray as xr

from jaxstab import store
from jaxstab.store import opening
from jaxstab.store.fields import part as part_of
from jaxstab.sweeps.plan import cell_axes
from jaxstab.sweeps.training_plan import fields as fields_of


def cells(grid):
    """Values of every axis at every cell, arrays over the axes; of axes of names their places."""
    names = cell_axes(grid, prefixes=False)
    along = [grid.labels(name) for name in names]
    numbers = [v if isinstance(v[0], int | float) else range(len(v)) for v in along]
    return dict(zip(names, np.meshgrid(*numbers, indexing="ij"), strict=True))


def dataset_of(grid, measure, values, done=None):
    """Trainings with these values over the axes of their cells, zero where none is given."""
    names = cell_axes(grid, prefixes=False)
    shape = tuple(len(grid.values(name)) for name in names)
    done = np.ones(shape, bool) if done is None else np.broadcast_to(done, shape)
    found = {"done": (names, done)}
    for name, field in fields_of(grid, measure).items():
        whole = np.zeros((*shape, *field.shape), field.dtype)
        whole[...] = values.get(name, 0)
        if whole.dtype.kind == "f":
            whole[~done] = np.nan
        else:
            whole[~done] = -1
        found[name] = ((*names, *field.dims), whole)
    known = {name: grid.labels(name) for name in names} | {
        "step": range(measure.steps),
        "evaluation": list(measure.evaluations),
        "layer": range(grid.deepest + 1),
    }
    attributes = {"grid": grid.to_json(), "measure": json.dumps({"steps": measure.steps})}
    return xr.Dataset(found, known).assign_attrs(attributes)


def store_of(url, dataset, size=1, settings=None):
    """The store of such a dataset, cut along its seeds, of which every other group is written."""
    fields = {
        name: store.Field(
            variable.shape[dataset.done.ndim :],
            variable.dtype.name,
            variable.dims[dataset.done.ndim :],
        )
        for name, variable in dataset.data_vars.items()
        if name != "done"
    }
    axes = {
        str(name): store.Axis(dataset.sizes[name], size if name == "seed" else 1)
        for name in dataset.done.dims
    }
    settings = settings or {
        "grid": json.loads(dataset.attrs["grid"]),
        "measure": json.loads(dataset.attrs["measure"]) | {"name": "train"},
        "data": {"name": "none", "classes": 10, "chance": 0.1},
    }
    known = {str(name): (values.dims, values.values) for name, values in dataset.coords.items()}
    groups = opening.open_grid(url, settings, fields, axes, known)
    for group in range(groups.count):
        at = dict(zip(axes, part_of(axes, group), strict=True))
        part = dataset.isel(at)
        if bool(part.done.all()):
            groups.write(group, {name: part[name].values for name in fields})
    return groups
