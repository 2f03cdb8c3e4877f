"""Groups of a sweep: what is in a store, what readers see, what is refused."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from groups_at_work import (
    FIELDS,
    SETTINGS,
    assert_finished,
    assert_holds,
    compute,
    files,
    forge,
    opened,
    run,
)
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from jaxstab import store
from jaxstab.store import claims, fingerprint, opening, reading
from jaxstab.store.places import Place
from jaxstab.store.reading import load_groups


def test_a_run_and_what_any_zarr_reader_sees(tmp_path):
    path = tmp_path / "deep" / "sweep.zarr"
    run(path)
    dataset = load_groups(path)
    assert dataset.loss.dims == ("row", "step") and dataset.log_grad.dims == (
        "row",
        "checkpoint",
        "layer",
    )
    assert dataset.attrs["grid"] == SETTINGS["grid"] | {"clip": "inf"}
    assert_holds(dataset, set(range(8)))
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["log_grad"][:], dataset.log_grad)
    assert group["done"][:].all()
    # without a warning, which would be an error here
    other = xr.open_zarr(path).load()
    xr.testing.assert_identical(other.drop_attrs(), dataset.drop_attrs())
    assert other.attrs["grid"] == dataset.attrs["grid"]
    assert (
        other.loss.attrs
        == {"long_name": "loss of each step's minibatch", "units": "nats"}
        == dataset.loss.attrs
    )


def test_rows_of_groups_to_come_are_fill_values_for_every_reader(tmp_path):
    sweep = opened(tmp_path / "a.zarr")
    sweep.write(2, compute(2))
    assert_holds(load_groups(tmp_path / "a.zarr"), {2})
    group = zarr.open_group(tmp_path / "a.zarr", mode="r")
    assert group["steps"][:6].tolist() == [-1] * 6 and np.isnan(group["loss"][:6]).all()
    assert store.progress(tmp_path / "a.zarr")[:4] == (8, 1, 24, 3)
    assert store.progress(tmp_path / "a.zarr").settings["plan"] == {"memory": 2**20}


@pytest.mark.slow
@hypothesis_settings(max_examples=30)
@given(st.sets(st.integers(0, 6)), st.integers(1, 4), st.sampled_from(["local", "memory"]))
def test_any_subset_of_groups_reads_back_exactly(tmp_path_factory, groups, size, kind):
    place = tmp_path_factory.mktemp("subset") / "a.zarr"
    url = place if kind == "local" else f"memory:/{place}"
    sweep = opened(url, 7, size)
    for group in groups:
        sweep.write(group, compute(group, size))
    assert sweep.finished() == groups == opened(url, 7, size).finished()
    assert store.progress(url).done == len(groups)
    assert_holds(load_groups(url), groups, size)
    wanted = [compute(group, size)["steps"] for group in sorted(groups)]
    np.testing.assert_array_equal(
        reading.column(url, "steps"), np.concatenate([np.zeros(0, np.int32), *wanted])
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            {"grid": SETTINGS["grid"] | {"sigma_w": [0.5, 2.0]}},
            r"sigma_w: 4 values 0.5..4 -> 0.5, 2",
        ),
        (
            {"grid": SETTINGS["grid"] | {"sigma_w": [0.5, 1.0, 3.0, 4.0]}},
            r"0.5..4, value 2: 2.0 -> 3.0",
        ),
        ({"grid": SETTINGS["grid"] | {"clip": 1.0}}, "clip: inf -> 1"),
        ({"versions": {"jax": "0.11.0"}}, r"jax: 0.10.2 -> 0.11.0"),
        ({"data_sha256": "cd" * 32}, r"data_sha256: abababababab... -> cdcdcdcdcdcd..."),
        ({"seed": 1}, "seed: absent -> 1"),
        ({"grid": {}}, r"sigma_w: 4 values 0.5..4 -> absent; width: 128 -> absent"),
        ({"many": {f"x{i}": i for i in range(9)}}, "x5: absent -> 5; and 3 more"),
    ],
)
def test_another_sweep_is_refused_with_what_changed(tmp_path, changed, said):
    before = opened(tmp_path / "a.zarr")
    before.write(1, compute(1))
    kept = files(tmp_path / "a.zarr")
    with pytest.raises(
        ValueError, match=r"a\.zarr holds another sweep \(.*\); choose another place"
    ) as refused:
        opened(tmp_path / "a.zarr", **changed)
    assert said in str(refused.value) and "\n" not in str(refused.value)
    assert files(tmp_path / "a.zarr") == kept


def test_other_fields_or_groups_are_another_sweep(tmp_path):
    opened(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="length: 24 -> 30; chunk: 3 -> 6"):
        opened(tmp_path / "a.zarr", groups=5, size=6)
    fields = FIELDS | {"steps": store.Field((), "int64", ())}
    with pytest.raises(ValueError, match=r"steps.dtype: int32 -> int64"):
        opening.open_groups(tmp_path / "a.zarr", SETTINGS, fields, 8, 3)


def test_the_code_that_decides_a_number_is_named_and_no_other():
    named = fingerprint.code_version()["sources"]
    deciding = {f"{name}.py" for name in (
        "training/run", "training/gradient", "sweeps/trainings", "sweeps/training_plan", "sweeps/grid",
        "networks/blocks", "networks/perceptron", "networks/chains", "networks/pullbacks", "clipping/by_norm",
        "activations/activation",
    )}  # fmt: skip
    assert deciding <= set(named) and len(set(named.values())) > len(deciding)
    judging = {f"analysis/{name}.py" for name in ("boundary", "censored", "trained", "verdicts")}
    assert not judging & set(named) and not any(
        name.startswith(("cli/", "report/", "store/")) for name in named
    )
    assert all((Path(store.__file__).parent.parent / name).exists() for name in judging)


def test_settings_that_are_equal_are_the_same_sweep(tmp_path):
    opened(tmp_path / "a.zarr", lr=(0.1, 1.0), n=4)
    opened(tmp_path / "a.zarr", lr=np.array([0.1, 1.0]), n=np.int64(4))
    opened(tmp_path / "a.zarr", n=4.0, lr=[0.1, 1])
    with pytest.raises(ValueError, match=r"settings.lr\[1\] must be plain values .*, got function"):
        opened(tmp_path / "a.zarr", lr=[0.1, compute])


@pytest.mark.parametrize("entry", ["folder", "full folder", "file", "dataset"])
def test_what_is_no_sweep_is_refused_and_left_alone(tmp_path, entry):
    place = tmp_path / "thesis"
    if entry == "file":
        place.write_text("years of work")
    elif entry == "dataset":
        store.save(xr.Dataset({"x": ("row", [1.0])}), place)
    else:
        place.mkdir()
        if entry == "full folder":
            (place / "chapter.tex").write_text("years of work")
    kept = files(tmp_path)
    with pytest.raises(
        FileExistsError, match="thesis exists and is .*not a sweep; choose another place"
    ):
        opened(place)
    for reader in (store.progress, *([load_groups] if entry != "dataset" else [])):
        with pytest.raises(ValueError, match="thesis: not a sweep"):
            reader(place)
    assert files(tmp_path) == kept


def own(**changed):
    return lambda attributes: attributes | {"jaxstab": attributes["jaxstab"] | changed}


@pytest.mark.parametrize(
    "edit",
    [
        own(axes={"row": {"length": -1, "chunk": 1}}),
        own(axes={"row": {"length": 24}}),
        own(axes={"row": {"length": 2**61, "chunk": 2**61}}),
        own(axes={"row": {"length": 2**70, "chunk": 1}}),
        own(axes=3),
        own(fields={"../../etc/passwd": {"shape": [], "dtype": "bool", "dims": []}}),
        own(fields={"loss": {"shape": [], "dtype": "object", "dims": []}}),
        own(fields={"loss": {"shape": [], "dtype": "O", "dims": []}}),
        own(fields={"loss": {"shape": [2**50], "dtype": "float64", "dims": ["x"]}}),
        own(fields=[]),
        own(fields=None),
        lambda attributes: (
            attributes | {"coordinates": 3, "jaxstab": attributes["jaxstab"] | {"axes": None}}
        ),
    ],
)
def test_a_damaged_or_forged_root_is_one_clear_line(tmp_path, edit):
    path = tmp_path / "a.zarr"
    opened(path)
    forge(path, edit)
    for reader in (load_groups, store.progress):
        with pytest.raises(
            ValueError, match=r"a\.zarr: (damaged store|its \d+ bytes do not fit)"
        ) as refused:
            reader(path)
        assert "\n" not in str(refused.value)


TORN = ["", "{torn", "[]", "3", '{"attributes": 3}', "[" * 100000, "\xff"]


@pytest.mark.parametrize("text", TORN)
def test_two_roots_that_are_no_json_objects_cannot_be_read(tmp_path, text):
    opened(tmp_path / "a.zarr")
    for name in ("zarr.json", "mark/root"):
        (tmp_path / "a.zarr" / name).write_bytes(text.encode("latin1"))
    for reader in (load_groups, store.progress):
        with pytest.raises(ValueError, match=r"a\.zarr: damaged store"):
            reader(tmp_path / "a.zarr")


def test_a_missing_store_and_an_unknown_url():
    for reader in (load_groups, store.progress):
        with pytest.raises(ValueError, match=r"none\.zarr: no such store"):
            reader("none.zarr")
    with pytest.raises(ValueError, match="ftpz://a: Protocol not known"):
        opened("ftpz://a")


@pytest.mark.slow
def test_reading_imports_and_runs_nothing(tmp_path, whole):
    path = tmp_path / "whole.zarr"
    # what zarr itself would look up and run
    document = json.loads((path / "loss/zarr.json").read_text())
    document["codecs"] = [{"name": "numcodecs.pickle", "configuration": {}}]
    (path / "loss/zarr.json").write_text(json.dumps(document))
    code = (
        "import sys; from jaxstab import store; path = sys.argv[1]; store.load(path); seen, on = [], [True]\n"
        "bad = ('import', 'exec', 'compile', 'pickle.find_class', 'marshal.loads', 'os.system', 'subprocess.Popen')\n"
        "sys.addaudithook(lambda event, args: on and event in bad and seen.append((event, args)))\n"
        "done = bool(store.load(path).done.all()); store.progress(path); on.clear(); print(done, seen)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=True, timeout=120
    )
    assert ran.stdout.strip() == "True []"


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "at least one field"),
        ({"done": store.Field((), "bool", ())}, "identifier other than done"),
        ({"a/b": store.Field((), "bool", ())}, "identifier other than"),
        ({"a": store.Field((), "object", ())}, "dtype must be one of bool, int8"),
        ({"a": store.Field((), "uint8", ())}, "dtype must be one of bool, int8"),
        ({"a": store.Field((0,), "bool", ("x",))}, "shape must be integers >= 1"),
        ({"a": store.Field((2,), "bool", ())}, "needs a name for each axis"),
        ({"a": store.Field((2, 2), "bool", ("x", "x"))}, "must differ from one another"),
        ({"a": store.Field((2,), "bool", ("row",))}, "and from row"),
        ({"a": store.Field((2,), "bool", ("a",))}, "dimension a of length 2 is a field too"),
        (
            {"a": store.Field((2,), "bool", ("x",)), "b": store.Field((3,), "bool", ("x",))},
            "dimension x of length 3 is 2 long in another field",
        ),
    ],
)
def test_fields_a_store_cannot_hold(tmp_path, fields, said):
    with pytest.raises(ValueError, match=said):
        opening.open_groups(tmp_path / "a.zarr", {}, fields, 1, 1)
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_the_fields(tmp_path):
    sweep = opened(tmp_path / "a.zarr")
    values = compute(0)
    for wrong, said in (
        (
            values | {"loss": values["loss"].astype(np.float64)},
            r"loss must be float32\[3, 5\], got float64\[3, 5\]",
        ),
        (
            values | {"loss": values["loss"][:2]},
            r"loss must be float32\[3, 5\], got float32\[2, 5\]",
        ),
        (values | {"extra": values["loss"]}, "values must be those of loss, steps"),
        ({"loss": values["loss"]}, "values must be those of loss, steps"),
    ):
        with pytest.raises(ValueError, match=said):
            sweep.write(0, wrong)
    for group in (-1, 8):
        with pytest.raises(ValueError, match=r"group must be in 0\.\.7"):
            sweep.write(group, values)
    for groups, size in ((0, 3), (8, 0), (True, 3)):
        with pytest.raises(ValueError, match="must be an integer >= 1"):
            opened(tmp_path / "b.zarr", groups, size)
    assert sweep.finished() == set()


def test_behind_a_url(tmp_path):
    url = f"memory:/{tmp_path}/a.zarr"
    run(url, shard=(1, 2))
    assert opened(url).finished() == {0, 2, 4, 6}
    with pytest.raises(ValueError, match="behind a URL, has none; use --shard"):
        run(url, join=True)
    with pytest.raises(ValueError, match=r"width: absent -> 9"):
        opened(url, width=9)
    place = Place(url)
    place.put("loss/c.2.0", (place.get(["loss/c.2.0"])[0] or b"")[:-1])
    place.put("done/c.4", b"\x01")
    assert opened(url).finished() == {0, 6}
    run(url)
    assert claims.runs(url) == []
    assert_holds(load_groups(url), set(range(8)))
    np.testing.assert_array_equal(
        zarr.open_group(url, mode="r")["steps"][:], load_groups(url).steps
    )
    # a run that was killed while it made the store
    half = Place(f"memory:/{tmp_path}/half.zarr")
    half.fill({"loss/zarr.json": b"{"})
    run(half.url)
    assert_holds(load_groups(half.url), set(range(8)))
    other = Place(f"memory:/{tmp_path}/thesis")
    other.fill({"chapter.tex": b"years of work"})
    with pytest.raises(FileExistsError, match="thesis exists and is not a sweep"):
        opened(other.url)


def test_a_url_of_this_machine_is_a_local_store(tmp_path, whole):
    run(f"file://{tmp_path}/a.zarr")
    assert_finished(tmp_path / "a.zarr", whole)


@pytest.mark.parametrize(
    "name", ["a::b", "file:a", "local:a", "a#?*[b]%20", "\u00fc \u65e5", "link/../a"]
)
def test_what_is_no_url_is_the_path_that_every_program_sees(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("elsewhere/deep")
    opened(name).write(2, compute(2))
    assert Path(name, "zarr.json").is_file()
    assert store.progress(name).done == 1


def test_code_version_names_what_decides_numbers():
    versions = fingerprint.code_version()
    counted = {"clipping/by_norm.py", "networks/chains.py", "initializers/weights.py"}
    assert counted <= versions["sources"].keys()
    assert not {"cli.py", "store/groups.py", "report/page.py"} & versions["sources"].keys()
    changed = versions | {"sources": versions["sources"] | {"initializers/weights.py": "0" * 12}}
    assert fingerprint.differences(versions, changed).startswith("initializers/weights.py: ")
    assert fingerprint.differences(versions, versions) == ""


@pytest.mark.parametrize(
    ("flags", "cpu"), [("--xla_cpu_enable_fast_math=true", None), ("", "flags : sse avx")]
)
def test_a_store_is_not_continued_on_a_machine_of_other_bits(tmp_path, monkeypatch, flags, cpu):
    opened(tmp_path / "a.zarr", machine=fingerprint.machine())
    opened(tmp_path / "a.zarr", machine=fingerprint.machine())
    monkeypatch.setenv("XLA_FLAGS", f"--xla_dump_to=x {flags}")
    if cpu:
        monkeypatch.setattr(fingerprint, "_cpu", lambda: cpu)
    with pytest.raises(
        ValueError, match=r"holds another sweep \((instructions|flags): .* -> "
    ) as refused:
        opened(tmp_path / "a.zarr", machine=fingerprint.machine())
    assert "\n" not in str(refused.value)
