"""What an installation promises: declared imports, a version, help without JAX, one line where an extra is missing."""

import ast
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import jaxstab
from jaxstab import cli, networks
from jaxstab.cli import settings
from jaxstab.precision import FULL
from jaxstab.sweeps.settings import OPTIMISERS
from jaxstab.theory import laws
from jaxstab.theory.shaping import METHODS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# names of packages that are imported under another name
DISTRIBUTIONS = {"sklearn": "scikit-learn", "google_crc32c": "google-crc32c"}
EXTRA_ROOMS = ("analysis", "datasets", "report", "store", "sweeps")


def _imported(folder):
    """Top-level names of the packages outside the standard library that the files of a folder import."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                yield node.module.split(".")[0]


def _declared(*extras):
    lines = [*PROJECT["dependencies"]]
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return {line.split(">")[0].split("[")[0] for line in lines}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("jaxstab", ["run", "tensorboard", "wandb"]), ("tests", ["run", "tensorboard", "test"])],
)
def test_every_import_is_declared(folder, extras):
    # helpers of the tests and of the benchmarks, beside them
    beside = {
        path.stem for path in [*ROOT.glob("tests/*.py"), *ROOT.glob("experiments/benchmarks/*")]
    }
    found = set(_imported(folder)) - set(sys.stdlib_module_names) - beside - {"jaxstab"}
    missing = {DISTRIBUTIONS.get(name, name) for name in found} - _declared(*extras)
    assert not missing


def test_version(capsys):
    assert jaxstab.__version__ == PROJECT["version"]
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"jaxstab {jaxstab.__version__}\n"
    with pytest.raises(AttributeError, match="module 'jaxstab' has no attribute 'thoery'"):
        _ = jaxstab.thoery
    assert {"training", "theory", "__version__"} <= set(dir(jaxstab))


def _in_a_fresh_process(code, *words):
    run = subprocess.run(
        [sys.executable, "-c", code, *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1]), run.stderr


def test_help_and_version_do_without_jax():
    code = """
import json, sys
from jaxstab import cli
try:
    cli.main(["--help"])
except SystemExit as stop:
    assert not stop.code
cli.main(["--version"])
print(json.dumps(sorted({"jax", "numpy", "matplotlib"} & set(sys.modules))))
"""
    assert _in_a_fresh_process(code)[0] == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("sweep --nope 3", "Unrecognized options: --nope, 3"),
        ("train --depths x", "Error parsing --depths"),
        ("theory --norm fish", "--norm must be one of None, batch, layer"),
        ("status", "Missing from jaxstab status: STR"),
    ],
)
def test_wrong_flags_are_refused_without_jax(words, said):
    code = """
import json, sys
from jaxstab import cli
assert cli.main(sys.argv[1:]) == 2
print(json.dumps(sorted({"jax", "xarray", "pandas", "scipy", "matplotlib"} & set(sys.modules))))
"""
    imported, err = _in_a_fresh_process(code, *words.split())
    assert imported == []
    assert err.startswith(f"jaxstab: {said}") and err.count("\n") == 1


def test_the_list_of_commands_says_what_each_says():
    for command in cli._COMMANDS.values():
        flags = getattr(settings, command.settings)
        assert flags.__doc__.splitlines()[0] == command.summary


def test_flags_list_the_names_of_the_tables():
    for names, *tables in (
        (settings.WEIGHTS, networks.WEIGHTS, laws.WEIGHT_VARIANCES),
        (settings.NORMS, networks.NORMS, laws.NORMS),
        (settings.SKIPS, networks.SKIPS, laws.SKIPS),
        (settings.OPTIMISERS, OPTIMISERS),
        (settings.SHAPES, METHODS),
    ):
        assert [tuple(table) for table in tables] == [names] * len(tables)
    assert settings.Family.precision == FULL


@pytest.mark.slow
def test_without_extras_one_line_names_the_command_that_installs_them():
    code = """
import importlib, json, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in sys.argv[1].split():
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
from jaxstab import cli
said = {"--version": cli.main(["--version"])}
for words in ("--help", "theory", "sweep"):
    said[words] = cli.main([words])
for room in sys.argv[2:]:
    try:
        module = importlib.import_module(f"jaxstab.{room}")
        if room == "datasets":
            module.load("digits")
        said[room] = "imported"
    except ImportError as error:
        said[room] = str(error)
print(json.dumps(said))
"""
    absent = _declared("run", "tensorboard") - _declared()
    absent = {*absent, "sklearn", "google_crc32c", "pandas"} - {
        "jaxstab",
        "scipy",
    }  # SciPy comes with JAX
    said, err = _in_a_fresh_process(code, " ".join(absent), *EXTRA_ROOMS)
    assert [said.pop(words) for words in ("--version", "--help", "theory", "sweep")] == [0, 2, 2, 2]
    lines = err.splitlines()
    assert len(lines) == 3
    for line in [*lines, *said.values()]:
        assert line.endswith(" is not installed: pip install 'jaxstab[run]'")


@pytest.mark.slow
def test_rooms_may_be_imported_first_while_jax_traces():
    # a module that computes an array as it is imported would keep a tracer of whoever used it first
    code = """
import importlib, json, pkgutil, sys
import jax, jaxstab

def first_use(x):
    for name in jaxstab.__all__:
        getattr(jaxstab, name)
    return x

jax.make_jaxpr(first_use)(1.0)
modules = [module for name, module in sys.modules.items() if name.startswith("jaxstab.")]
traced = [leaf for m in modules for leaf in jax.tree.leaves(vars(m)) if isinstance(leaf, jax.core.Tracer)]
print(json.dumps([len(modules) > 20, len(traced)]))
"""
    assert _in_a_fresh_process(code)[0] == [True, 0]
