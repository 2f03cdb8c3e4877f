"""Blocks whose phase diagrams are timed: keywords of `theory.law` by name."""

BLOCKS = {
    "plain": {},
    "dropout": {"keep": 0.9},
    "layer": {"norm": "layer"},
    "rms": {"norm": "rms"},
    "layer-after": {"norm": "layer", "norm_after": True},
    "rms-after": {"norm": "rms", "norm_after": True},
    "batch-limit": {"norm": "batch"},
    "batch-32": {"norm": "batch", "batch": 32},
    "dyt": {"norm": "dyt"},
    "derf-after": {"norm": "derf", "norm_after": True},
    "sum": {"skip": "sum"},
    "sum-layer": {"skip": "sum", "norm": "layer"},
    "sum-batch": {"skip": "sum", "norm": "batch"},
    "scaled": {"skip": "scaled", "depth": 32},
    "rezero": {"skip": "rezero", "alpha": 0.1},
    "peri": {"skip": "sum", "norm": "peri"},
    "dense": {"skip": "dense"},
}
