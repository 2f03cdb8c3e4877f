"""Generated command lines, config files, archives and stores are refused in one line with exit code 2, or are right.

A run that begins is stopped before it computes: what is held here is how wrong input is answered.
"""

import contextlib
import importlib
import io
import os
import shutil
import sys
import time
from pathlib import Path

import hypothesis
import pytest
import wrong_inputs
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from jaxstab import cli, report
from jaxstab.store.groups import COPY

# what begins to compute, or to draw
BEGINS = {
    "sweep": ("tried", "_make"),
    "train": ("tried", "complete"),
    "theory": ("_answer",),
    "phase": ("_plane",),
}
# seconds of processor time: what is asked is two, but the first line of a command imports packages
LIMIT = 8.0
HEALTH = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


class _BegunError(BaseException):
    """The run begins: the input was right."""


def _begun(*args, **kwargs):
    raise _BegunError


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_computed():
    with pytest.MonkeyPatch.context() as patch:
        for name, functions in BEGINS.items():
            module = importlib.import_module(f"jaxstab.cli.{name}")
            for function in functions:
                patch.setattr(module, function, _begun)
        diagnose = importlib.import_module("jaxstab.cli.diagnose")
        patch.setattr(diagnose.diagnosis, "diagnose", _begun)
        patch.setattr(report, "write", _begun)
        yield


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    """A folder with files of all kinds, some of them right."""
    folder = tmp_path_factory.mktemp("template")
    wrong_inputs.furnish(folder)
    return folder


class Place:
    """A copy of the template, which is the current folder; made anew after a run that wrote to it."""

    def __init__(self, template, folder):
        self.template = template
        self.folder = folder
        self.renew()

    def renew(self):
        os.chdir(self.template)
        shutil.rmtree(self.folder, ignore_errors=True)
        copied = shutil.ignore_patterns("pipe*")
        shutil.copytree(self.template, self.folder, symlinks=True, ignore=copied)
        for name in ("pipe", "pipe.npz"):
            os.mkfifo(self.folder / name)
        os.chdir(self.folder)

    def files(self):
        """Kind, size and time of every file and folder."""
        found = {}
        for path in self.folder.rglob("*"):
            told = path.lstat()
            whole = not path.is_dir()
            found[path] = (told.st_mode, whole and told.st_size, whole and told.st_mtime_ns)
        return found

    def answer(self, words):
        """Give the words to the command line; where they are refused, check how."""
        before = self.files()
        out = io.StringIO()
        err = io.StringIO()
        start = time.process_time()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = cli.main(words)
            except _BegunError:
                code = "begun"
            except SystemExit as stop:
                # of --help
                code = stop.code or 0
        seconds = time.process_time() - start
        # modules of the folder are another example's too
        for name in [name for name in sys.modules if name.startswith("own_")]:
            del sys.modules[name]
        line = err.getvalue()
        assert code in (0, 2, "begun"), (words, code, line)
        after = self.files()
        if code == 2:
            assert line.startswith("jaxstab: ") and line.count("\n") == 1, (words, line)
            assert len(line) > len("jaxstab: \n") and "standard output" not in line, (words, line)
            assert out.getvalue() == "", (words, out.getvalue())
            assert after == before, (words, set(after) ^ set(before))
            assert seconds < LIMIT, (words, seconds)
        if after != before:
            self.renew()
        return code


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    # Python keeps what it compiles of a user's module beside it
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return Place(template, tmp_path / "work")


def sized(few, many):
    """Two sizes of a test: a few examples always, many where slow tests run."""
    return pytest.mark.parametrize(
        "size", [few, pytest.param(many, marks=[pytest.mark.slow, pytest.mark.long])]
    )


def try_all(size, strategy, check):
    """Check so many examples of a strategy, the same ones every time."""

    @hypothesis.settings(max_examples=size, suppress_health_check=HEALTH, database=None)
    @given(strategy)
    def checked(example):
        check(example)

    checked()


def refusable(command):
    """Words of a command that are right, but for its config file or data."""
    words = [command]
    for name, value in wrong_inputs.NEEDED.get(command, {}).items():
        words += [value] if name in ("store", "factory") else [f"--{name}", value]
    return words


@sized(5, 60)
@pytest.mark.parametrize("command", wrong_inputs.SETTINGS)
def test_lines(place, command, size):
    """Flags of every command, read from its settings, with values of which most are wrong."""
    try_all(size, wrong_inputs.lines(command), place.answer)


@pytest.mark.parametrize("out", ["dangling", "loop/x", f"new/{'x' * 300}", "file.txt/x"])
def test_a_folder_that_cannot_be_made_is_refused_before_the_diagnosis(place, out):
    assert place.answer([*refusable("diagnose"), "--out", out]) == 2


@sized(5, 60)
@pytest.mark.parametrize("command", ["sweep", "train"])
def test_configs(place, command, size):
    """Config files with wrong keys, types, nesting, duplicates and bytes."""

    def check(content):
        Path("wrong.toml").write_bytes(content)
        place.answer([*refusable(command), "--config", "wrong.toml"])

    try_all(size, wrong_inputs.configs(command), check)


@sized(5, 60)
@pytest.mark.parametrize("command", ["sweep", "train", "diagnose"])
def test_archives(place, command, size):
    """Archives that are torn, forged, of wrong dtypes, shapes and values; nothing in them runs."""
    small = {"sweep": ["--inputs", "2"], "train": ["--batch", "4"], "diagnose": []}[command]
    flag = "--batch" if command == "diagnose" else "--data"
    words = [command, *small, *(["own_model:made"] if command == "diagnose" else [])]

    def check(content):
        Path("wrong.npz").write_bytes(content)
        place.answer([*words, flag, "wrong.npz"])

    try_all(size, wrong_inputs.archives(), check)


@sized(10, 80)
@pytest.mark.parametrize("command", ["status", "report"])
def test_stores(place, template, command, size):
    """Stores of which a value of the root, or a file, is wrong or missing."""
    root = (template / "trained.zarr" / "zarr.json").read_text()
    names = sorted(
        path.relative_to(template / "trained.zarr").as_posix()
        for path in (template / "trained.zarr").rglob("*")
        if path.is_file()
    )
    roots = wrong_inputs.forged_roots(root).map(lambda content: [("zarr.json", content), (COPY, None)])  # fmt: skip

    def broken(name):
        content = (template / "trained.zarr" / name).read_bytes()
        return wrong_inputs.broken_files(content).map(lambda wrong: [(name, wrong)])

    files = st.sampled_from(names).flatmap(broken)

    def check(changes):
        shutil.rmtree("wrong.zarr", ignore_errors=True)
        shutil.copytree("trained.zarr", "wrong.zarr")
        for name, content in changes:
            path = Path("wrong.zarr", name)
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        place.answer([command, "wrong.zarr"])

    try_all(size, st.one_of(roots, files), check)
