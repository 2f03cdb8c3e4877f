"""The house: arrows point down, nothing private of others is used, everything public is documented."""

import ast
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxstab

ROOT = Path(__file__).parent.parent
FLOORS = {
    "activations": 0, "arguments": 0, "checks": 0, "decompositions": 0, "derivatives": 0, "devices": 0, "extras": 0,
    "networks": 0, "norms": 0, "precision": 0, "records": 0, "tables": 0,
    "clipping": 1, "curvature": 1, "initializers": 1, "propagation": 1, "regularizers": 1, "spectra": 1, "theory": 1,
    "training": 1,
    "analysis": 2, "diagnosis": 2, "store": 2, "sweeps": 2,
    "datasets": 3, "report": 3, "cli": 3, "__main__": 3,
}  # fmt: skip
MODULES = sorted(m.name for m in pkgutil.walk_packages(jaxstab.__path__, "jaxstab."))
SOURCES = {m: Path(importlib.util.find_spec(m).origin) for m in MODULES}


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def _room(module):
    return module.split(".")[1]


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_down(module):
    own = _room(module)
    for source, name in _imports(SOURCES[module]):
        if source.split(".")[0] == "jaxstab":
            room = _room(source) if "." in source else name
            if room not in (own, "__version__"):
                assert FLOORS[room] <= FLOORS[own], (
                    f"{module} (floor {FLOORS[own]}) imports {room} (floor {FLOORS[room]})"
                )


@pytest.mark.parametrize("module", MODULES)
def test_rooms_keep_to_what_is_theirs(module):
    source, own = SOURCES[module].read_text(), _room(module)
    used = {
        ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)
    }
    packages = {s.split(".")[0] for s, _ in _imports(SOURCES[module])}
    assert "matplotlib" not in packages or own == "report"
    assert "zarr" not in packages
    assert "flax" not in packages or own == "networks"
    assert "tyro" not in packages or own == "cli"
    assert not {"filelock", "fsspec", "google_crc32c"} & packages or own == "store"
    if FLOORS[own] < 2:
        assert not {"xarray", "tqdm"} & packages
        assert "threadpoolctl" not in packages or own == "devices"
        # un-jitted, a first call of theory took 14 s, and Flax's scan of `init` compiled at every call;
        # what a user jitted within a probed model stays jitted
        own_programs = ("jaxstab.networks.tagged", "jaxstab.networks.family")
        jits = own in ("theory", "devices") or module in own_programs
        assert jits or not {"jax.jit", "jax.pmap"} & used, "jit belongs to the orchestration"
    if own not in ("cli", "devices"):
        assert "jax.config.update" not in used, (
            "no global configuration is changed but where a user asks for it"
        )
    assert len(source.splitlines()) <= 460, "would a newcomer find two rooms in it?"
    assert not re.search(r"\b(utils|helpers|common)\b", module)


@pytest.mark.parametrize(
    "path", [*SOURCES.values(), *(ROOT / "tests").glob("*.py")], ids=lambda p: p.name
)
def test_nothing_private_of_others(path):
    for source, name in _imports(path):
        parts = [*source.split("."), *([name] if name else [])]
        outside = parts[0] != "jaxstab"
        assert not (outside and any(p.startswith("_") and p != "__future__" for p in parts)), (
            f"{path.name}: {parts}"
        )


@pytest.mark.parametrize("module", MODULES)
def test_loops_over_layers_are_the_folds(module):
    """Nobody else calls a chain's block: every quantity is a step of `networks.upwards` or `networks.downwards`."""
    calls = [
        node
        for node in ast.walk(ast.parse(SOURCES[module].read_text()))
        if isinstance(node, ast.Call)
    ]
    loops = [
        node
        for node in calls
        if ast.unparse(node.func) in ("jax.lax.scan", "jax.lax.fori_loop", "jax.lax.map")
    ]
    blocks = [ast.unparse(node) for node in loops if "params.blocks" in ast.unparse(node)]
    blocks += [
        ast.unparse(node)
        for node in calls
        if ast.unparse(node.func) in ("chain.block", "network.block")
    ]
    assert not blocks, f"{module} folds over layers by itself: {blocks}"


def _public(module):
    loaded = importlib.import_module(module)
    for name, thing in vars(loaded).items():
        own = not name.startswith("_") and getattr(thing, "__module__", None) == module
        if own and (inspect.isfunction(thing) or inspect.isclass(thing)):
            yield f"{module}.{name}", thing


@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_is_documented(module):
    assert importlib.import_module(module).__doc__
    for name, thing in _public(module):
        doc = inspect.getdoc(thing)
        assert doc, name
        if inspect.isfunction(thing) and len(inspect.signature(thing).parameters) > 0:
            assert "Args:" in doc, f"{name} does not say what it takes"
            for parameter in inspect.signature(thing).parameters:
                assert re.search(rf"^ *{parameter}: ", doc, re.MULTILINE), (
                    f"{name} does not document {parameter}"
                )
        fields = getattr(thing, "_fields", ())
        for field in fields:
            assert re.search(rf"^ *{field}: ", doc, re.MULTILINE), (
                f"{name} does not document {field}"
            )


@pytest.mark.parametrize("module", MODULES)
def test_names_in_docstrings_exist(module):
    """A reader of `room.name` in a docstring, and the reference built from it, find that name."""
    nodes = [
        n
        for n in ast.walk(ast.parse(SOURCES[module].read_text()))
        if isinstance(n, ast.Module | ast.FunctionDef)
    ]
    text = "\n".join(ast.get_docstring(node) or "" for node in nodes)
    for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", text):
        path = name.removeprefix("jaxstab.").split(".")
        if path[0] in FLOORS:
            found = importlib.import_module(f"jaxstab.{path[0]}")
            for part in path[1:]:
                assert hasattr(found, part), f"{module} names {name}, which does not exist"
                found = getattr(found, part)


def test_importing_changes_nothing_and_needs_no_extra():
    code = (
        "import jax, json, sys; before = dict(jax.config.values); import jaxstab; "
        "print(json.dumps([before == dict(jax.config.values), sorted(set(sys.modules) & "
        "{'matplotlib', 'xarray', 'zarr', 'tyro', 'tqdm', 'mlxtend', 'sklearn', 'threadpoolctl'})]))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert json.loads(run.stdout) == [True, []]


def test_records_name_every_axis():
    from jaxstab import records

    assert records.dimensions(records.ForwardProfile, "log_q", 1) == ("layer",)
    assert records.dimensions(records.Spectrum, "log_s", 2) == ("depth", "index")
    with pytest.raises(ValueError, match="has 3 axes"):
        records.dimensions(records.Spectrum, "log_s", 3)


def test_no_absolute_paths_or_hosts_in_what_is_committed():
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    ours = (".py", ".toml", ".md", "run", "test", "check", "bench", "venv", "fetch_mnist")
    for name in listed.stdout.split():
        if name.endswith(ours) and ROOT / name != Path(__file__):
            text = (ROOT / name).read_text()
            assert not re.search(r"(/home|/root|/work)/\w|pypi\.org|npmjs|pythonhosted", text), name
