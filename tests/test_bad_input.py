"""What a user gets wrong, generated: exit code 2, one line on stderr, at once, nothing written."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import wrong_inputs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trained_cells import dataset_of, store_of

from jaxstab import cli, report, sweeps
from jaxstab.cli import interrupts
from jaxstab.cli.arguments import as_toml, parse
from jaxstab.cli.settings import Sweep, Train
from jaxstab.store.groups import COPY

ROOT = Path(__file__).parent.parent
GENERATED = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with files to refer to."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def files(folder):
    # matplotlib keeps a list of fonts in the home folder
    return sorted(
        path.relative_to(folder) for path in folder.rglob("*") if "home" not in path.parts
    )


def refused(folder, words, said=""):
    """The one line that a command answers with; nothing else is printed, nothing written."""
    before, out, err = files(folder), io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(list(words))
    line = err.getvalue()
    assert code == 2, (words, code, line)
    assert line.startswith("jaxstab: ") and line.count("\n") == 1 and line.strip() != "jaxstab:", (
        line
    )
    assert out.getvalue() == "" and files(folder) == before
    assert said in line, (words, line)
    return line


LINES = {
    "train --memory inf": "--memory must be in (0, 65536] GiB, got inf",
    "train --memory 1e300": "--memory must be",
    "train --memory nan": "--memory must be",
    "train --memory 0": "--memory must be",
    "train --seeds 99999999999999999999": "--seeds must be at most 2147483647 in size",
    "train --seeds 1000000000": "at most 10000000 networks, got 60000000000",
    "train --group 1000000000": "--group must be in 1..60, the number of networks",
    "train --lanes 1000000000": "--lanes must be in 1..60",
    "train --group 0": "--group must be in 1..60",
    "train --cpu-devices 100000": "--cpu-devices must be in 1..",
    "train --cpu-devices 99999999999": "--cpu-devices must be at most",
    "train --depths 2000000000": "one network must fit into",
    "train --width 10000000": "one network must fit into",
    "train --steps 2000000000": "training one of the largest networks takes",
    "train --evaluate 201": "evaluate must be integers in [0, 200]",
    "train --coordinator nonsense": "must be given together with --distributed",
    "train --processes 3 --process 1": "must be given together with --distributed",
    "train --csv nowhere/table.csv": "there is no folder nowhere",
    "train --csv .": "it is a folder",
    "train --tensorboard /dev/null/events": "cannot write to /dev/null/events: /dev/null is not a folder",
    "train --out ~nobody-here/x.zarr": "--out: no home folder is known for '~nobody-here'",
    "sweep --depths 3000000000": "--depths must be at most",
    "sweep --width 10000000": "one network must fit into",
    "sweep --seeds 1000000000": "a grid must have at most 10000000 networks",
    "sweep --seeds 90000": "the results must fit into",
    "sweep --inputs 1000000000": "1000000000 inputs need 2000000000 examples",
    "sweep --weights wide": "weights must be one of gaussian, orthogonal",
    "sweep --config .": ".: not a file",
    "sweep --config /dev/zero": "/dev/zero: not a file",
    "sweep --config ~nobody-here/x.toml": "no home folder is known",
    "status .": "not a",
    "report nothing.zarr": "no such store",
    "report dir://x": "dir://x: cannot be opened",
    "train --out=": "--out= needs a value",
    f"status {'x' * 300}": "File name too long",
    f"sweep --out new/{'x' * 300}": "xxx... is longer than 255 bytes",
    f"train --out new/{'x' * 252}.zarr": "xxx... is longer than 255 bytes",
}


@pytest.mark.parametrize("line", LINES)
def test_command_lines(folder, line):
    data = ["--data", "digits"] if line.startswith(("train", "sweep")) else []
    refused(folder, [*line.split(), *data], LINES[line])


def test_a_home_folder_is_read_as_one_wherever_it_stands(folder):
    (folder / "home").mkdir()
    (folder / "home" / "s.toml").write_text("out = '~/sw'\ndata = '~/x.npz'")
    read = parse({"sweep": Sweep}, "", ["sweep", "--config", "~/s.toml"])
    assert read.out == folder / "home" / "sw" and read.data == str(folder / "home" / "x.npz")
    read = parse(
        {"train": Train},
        "",
        ["train", "--out", "~/t.zarr", "--csv", "~/c.csv", "--tensorboard", "~"],
    )
    assert read.out == str(folder / "home" / "t.zarr") and read.csv == folder / "home" / "c.csv"
    assert read.tensorboard == folder / "home"


@pytest.mark.parametrize(
    "words",
    [
        ["sweep"],
        ["sweep", "--norm", "batch", "--batch", "8", "--out", 'a "b"\\c', "--overwrite"],
        [
            "train",
            "--batch",
            "None",
            "--clips",
            "1",
            "inf",
            "--optimizer",
            "adam",
            "--csv",
            "x.csv",
        ],
    ],
)
def test_a_printed_config_gives_the_same_settings(folder, words, capsys):
    kinds = {"sweep": Sweep, "train": Train}
    wanted = parse(kinds, "", words)
    assert cli.main([*words, "--print-config"]) == 0
    (folder / "s.toml").write_text(capsys.readouterr().out)
    found = parse(kinds, "", [words[0], "--config", "s.toml"])
    assert as_toml(found) == as_toml(wanted)


@pytest.mark.slow
def test_a_dry_run_says_what_would_be_computed_and_writes_nothing(folder, capsys):
    small = "--data digits --width 8 --depths 1 2 --seeds 2 --dry-run".split()
    assert cli.main(["sweep", *small, "--activations", "tanh"]) == 0
    said, profiles, spectra = capsys.readouterr().out.splitlines()
    assert said.startswith("48 networks (1 activations x 24 gains x 2 seeds)") and "about" in said
    for line, name in ((profiles, "profiles"), (spectra, "spectra")):
        assert re.match(
            rf"{name}, tried: \d+ networks on \d+ devices took \S+ s and \S+ MiB on each", line
        )
    assert cli.main(["train", *small, "--steps", "2", "--csv", "table.csv"]) == 0
    said, tried = capsys.readouterr().out.splitlines()
    assert re.match(r"\d+ networks in \d+ groups", said) and "programs" in said and "MiB" in said
    assert re.match(r"trainings, tried: \d+ networks on \d+ devices took", tried)
    assert files(folder) == []


COUNTS = (
    "seeds",
    "width",
    "depths",
    "inputs",
    "batch",
    "chunk-size",
    "cpu-devices",
    "steps",
    "lanes",
    "group",
)
REALS = (
    "sigma-w",
    "sigma-b",
    "dropout",
    "learning-rates",
    "clips",
    "dropouts",
    "memory",
    "coordinator-timeout",
)
NAMES = ("weights", "norm", "skip", "dtype", "optimiser", "activations", "data", "shard")
junk = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=12
)
no_count = st.sampled_from(
    ["0", "-1", "1.5", "x", "", "99999999999999999999", "1e3", "-99999999999", "nan", "0x8"]
)
no_real = st.sampled_from(["nan", "-1", "x", "", "-inf", "1,5", "-1e-300"])
wrong_flags = st.one_of(
    st.tuples(st.sampled_from(COUNTS), no_count),
    st.tuples(st.sampled_from(REALS), no_real),
    st.tuples(st.sampled_from(NAMES), junk.map(lambda text: f"?{text}")),
    st.tuples(junk.map(lambda text: f"no-flag-{text}"), junk),
)


@pytest.mark.slow
@GENERATED
@given(st.sampled_from(["sweep", "train"]), wrong_flags)
def test_generated_flags(folder, command, flag):
    name, value = flag
    # the equals sign keeps a value that begins with a dash one
    refused(
        folder, [command, f"--{name}={value}", *([] if name == "data" else ["--data", "digits"])]
    )


values = wrong_inputs.nested(
    st.one_of(st.none(), st.booleans(), st.integers(-(10**30), 10**30), st.floats(), junk)
)


@pytest.mark.slow
@GENERATED
@given(st.sampled_from(["width", "sigma_w", "weights", "no_key", "norm_after", "out"]), values)
def test_generated_configs(folder, key, value):
    # a flag that no grid takes, so that a config that happens to be right is refused too
    (folder / "s.toml").write_text(f"{key} = {wrong_inputs.toml(value)}\n", encoding="utf-8")
    refused(folder, ["sweep", "--config", "s.toml", "--data", "digits", "--seeds", "0"])


@pytest.mark.slow
@settings(GENERATED, max_examples=30)
@given(st.binary(max_size=200), st.sampled_from(["plain", "archive", "behind a mark"]))
def test_generated_files(folder, content, kind):
    if kind == "plain":
        (folder / "x.npz").write_bytes(content)
    else:
        whole = io.BytesIO()
        np.savez(whole, x=np.ones((4, 3)), y=np.arange(4) % 2)
        torn = bytearray(whole.getvalue())
        # the header of x, or the directory at the end
        at = 60 if kind == "archive" else len(torn) - 60
        torn[at : at + len(content) + 1] = bytes([255, *content])
        (folder / "x.npz").write_bytes(torn)
    (folder / "s.toml").write_bytes(b"\xef\xbb\xbf" + content)
    refused(
        folder, ["sweep", "--data", "x.npz", "--depths", "1", "--width", "2", "--inputs", "999"]
    )
    refused(folder, ["train", "--config", "s.toml", "--data", "digits", "--steps", "0"])


@pytest.mark.slow
@pytest.mark.long
def test_one_line_takes_little_memory(folder):
    """In processes of their own: 1 GiB is enough, imports of JAX and all else included."""
    (folder / "s.toml").write_text("depths = " + "[" * 5000 + "]" * 5000)
    lines = ("sweep --config s.toml", "train --seeds 1000000000", "sweep --dephts 3")
    limits = "import resource; resource.setrlimit(resource.RLIMIT_DATA, (2**30, 2**30))\n"
    code = f"{limits}import sys; from jaxstab.cli import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for line in lines:
        command = [sys.executable, "-c", code, *line.split()]
        run = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240
        )
        assert run.returncode == 2 and run.stderr.count("\n") == 1 and run.stdout == "", run.stderr


GRID = sweeps.Grid({"depth": (1,), "seed": (0,)}, width=2)
DATASET = dataset_of(GRID, sweeps.Train(2, ()), {})


def settings_of_trainings():
    """As a store of trainings has them."""
    return {
        "grid": json.loads(GRID.to_json()),
        "measure": {"name": "train", "steps": 2},
        "data": {"name": "none", "classes": 10, "chance": 0.1},
    }


def answers(words):
    """The exit code of a command on a store; where it is 2, the reason is one line."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(words)
    assert code in (0, 2), err.getvalue()
    if code:
        line = err.getvalue()
        assert (
            line.startswith("jaxstab: ")
            and line.count("\n") == 1
            and words[1] in line
            and out.getvalue() == ""
        )
    return code


def stored(place, told):
    """A store of one training with these settings."""
    store_of(place, DATASET, settings=told)


PATHS = (
    "grid", "measure", "data", "measure.steps", "measure.name", "data.classes", "data.chance", "data.name",
    *(f"grid.{name}" for name in json.loads(GRID.to_json())), "grid.depth.0",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.long
@settings(GENERATED, max_examples=50)
@given(
    st.sampled_from(PATHS),
    st.one_of(values, st.sampled_from([0, [], {}, None, "gone", 10**9, [10**9]])),
)
def test_generated_stores(path, value):
    told = settings_of_trainings()
    *above, last = path.split(".")
    at = told
    for key in above:
        at = at[int(key) if isinstance(at, list) else key]
    at[int(last) if isinstance(at, list) else last] = value
    if value == "gone":
        del at[int(last) if isinstance(at, list) else last]
    with tempfile.TemporaryDirectory() as folder:
        place = str(Path(folder) / "t.zarr")
        stored(place, told)
        answers(["status", place])
        # drawing is another test's matter, and takes seconds
        with mock.patch.object(report, "write", lambda summary, path: path):
            answers(["report", place])


def test_status_does_not_pass_on_what_commands_a_terminal(tmp_path, capsys):
    told = settings_of_trainings()
    told["measure"]["steps"] = "\x1b]0;title\x07\nfinished\x9b31m"
    stored(str(tmp_path / "t.zarr"), told)
    assert cli.main(["status", str(tmp_path / "t.zarr")]) == 0
    said = capsys.readouterr().out
    assert " ]0;title  finished 31m steps" in said
    assert said.replace("\n", "").isprintable()


def test_stores_whose_root_is_junk(tmp_path):
    for number, junk in enumerate((b"", b"{}", b"[" * 10**5, b"\xff", b'{"attributes": null}')):
        place = tmp_path / f"{number}.zarr"
        stored(str(place), settings_of_trainings())
        (place / "zarr.json").write_bytes(junk)
        # the copy of the root is whole
        assert answers(["status", str(place)]) == 0
        (place / COPY).write_bytes(junk)
        assert answers(["status", str(place)]) == answers(["report", str(place)]) == 2


OWN = """
import sys
import jax.numpy as jnp
class Stop(BaseException): pass
def exits(z): sys.exit(3)
def stops(z): raise Stop("no\\nmore")
def interrupts(z): raise KeyboardInterrupt
def exits_later(z):
    if z.shape not in ((4,), (1,)): sys.exit()
    return jnp.tanh(z)
def fails_later(z):
    if z.shape not in ((4,), (1,)): raise RuntimeError("no more")
    return jnp.tanh(z)
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("exits", "exits (own_that_ends.py, line 5): SystemExit: 3"),
        ("stops", "stops (own_that_ends.py, line 6): Stop: no more"),
        ("interrupts", "interrupts (own_that_ends.py, line 7): KeyboardInterrupt"),
        ("exits_later", "exits_later (own_that_ends.py, line 9): SystemExit"),
        ("fails_later", "fails_later (own_that_ends.py, line 12): RuntimeError: no more"),
    ],
)
def test_what_a_function_of_the_users_raises_is_theirs_wherever_it_is_called(
    folder, monkeypatch, name, told
):
    # as the program itself watches signals, of which none comes here
    monkeypatch.setattr(interrupts._state, "watched", True)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (folder / "own_that_ends.py").write_text(OWN)
    refused(folder, ["theory", "--activation", f"own_that_ends:{name}"], told)


def test_factories_that_end_the_process(folder, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (folder / "own_that_ends.py").write_text(f"{OWN}\ndef made(): raise Stop('no')\n")
    np.savez(folder / "batch.npz", x=np.ones((4, 3)))
    sys.modules.pop("own_that_ends", None)
    words = ["diagnose", "own_that_ends:made", "--batch", "batch.npz"]
    refused(folder, words, "own_that_ends:made(): Stop: no")
