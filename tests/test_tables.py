"""Tables: what a spreadsheet would run is text."""

import csv

import numpy as np
import pytest
import xarray as xr

from jaxstab.diagnosis import writers
from jaxstab.store.export import write_table


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", 'tanh, "x"'])
def test_no_cell_of_text_is_a_formula(tmp_path, text):
    known = {"activation": [text], "depth": [-2], "step": range(2), "evaluation": [2]}
    results = {
        "train_accuracy": (("activation", "depth", "evaluation"), [[[0.5]]]),
        "test_accuracy": (("activation", "depth", "evaluation"), [[[0.5]]]),
        "loss": (("activation", "depth", "step"), [[[1.0, -0.5]]]),
        "first_nonfinite": (("activation", "depth"), [[-1]]),
        "done": (("activation", "depth"), np.ones((1, 1), bool)),
    }
    table = write_table(xr.Dataset(results, known), tmp_path / "table.csv")
    watched = tmp_path / "watched.csv"
    writers.csv(watched)(10, {text: -2.5})
    plain = text if text.startswith("tanh") else f"'{text}".replace("\r", " ")
    with table.open(newline="") as file:
        (row,) = csv.DictReader(file)
    # numbers stay numbers
    assert row["activation"] == plain and row["depth"] == "-2" and row["loss"] == "-0.5"
    with watched.open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row == {"step": "10", "name": plain, "value": "-2.5"}
