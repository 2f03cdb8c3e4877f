"""Every experiment is complete, runs small, and measures what it claims."""

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
EXPERIMENTS = sorted(path.parent for path in ROOT.glob("experiments/[0-9][0-9]_*/run.py"))


def _load(path):
    spec = importlib.util.spec_from_file_location(f"{path.parent.name}_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _claims(folder):
    return tomllib.loads((folder / "expected.toml").read_text())


@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_an_experiment_says_what_it_asks_and_expects(folder):
    readme = (folder / "README.md").read_text()
    assert all(f"**{part}.**" in readme for part in ("Question", "Claim", "Source", "Run")), readme
    claims = _claims(folder)
    assert claims
    for name, claim in claims.items():
        assert claim["claim"] and claim["reason"], name
        bounds = {"at_least", "at_most"} & set(claim)
        assert bounds and set(claim) <= {"claim", "reason", "full_size_only", *bounds}, name
    figure = folder / "figure.png"
    assert figure.stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("folder", EXPERIMENTS, ids=lambda folder: folder.name)
def test_an_experiment_run_small_measures_what_it_claims(folder, tmp_path, monkeypatch):
    # a script finds the modules beside it
    monkeypatch.syspath_prepend(folder)
    _load(folder / "run.py").main(["--small", "--out", str(tmp_path)])
    measured = json.loads((tmp_path / "measured.json").read_text())
    for name, claim in _claims(folder).items():
        low, high = claim.get("at_least", -float("inf")), claim.get("at_most", float("inf"))
        holds = low <= measured[name] <= high
        assert holds or claim.get("full_size_only", False), (
            f"{name} = {measured[name]}: {claim['claim']}"
        )
    _load(folder / "plot.py").main(tmp_path, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0
