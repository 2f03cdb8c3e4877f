"""Draws figure.png, the README's picture, from a stored run of the main job: python plot.py [STORE]."""

import sys
from pathlib import Path

from jaxstab import store
from jaxstab.report import figures

here = Path(__file__).parent
dataset = store.load(
    sys.argv[1] if len(sys.argv) > 1 else here.parent.parent / "runs/main/store.zarr"
)
figures.gradient_heat_map(dataset).savefig(here / "figure.png", dpi=110, facecolor="white")
