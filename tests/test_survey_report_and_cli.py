"""The main job end to end on a small grid: survey, store, report and the command line."""

import base64
import io
import json
import re
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from groups_at_work import files, wait_for
from matplotlib.text import Text

from jaxstab import analysis, cli, datasets, report, store, sweeps, theory
from jaxstab.analysis.survey import parts
from jaxstab.cli import interrupts
from jaxstab.cli.arguments import parse
from jaxstab.cli.blocks import strict
from jaxstab.cli.settings import Sweep
from jaxstab.report.theory_figures import law_profiles

ROOT = Path(__file__).parent.parent
FLAGS = (
    "sweep --data digits --depths 1 2 5 --sigma-w 0.7 1.4 2.8 --activations erf relu "
    "--seeds 2 --width 24 --inputs 1"
)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "small"
    code = cli.main([*FLAGS.split(), "--out", str(out)])
    return code, out


def _fails(capsys, *arguments):
    code = cli.main(list(map(str, arguments)))
    out, err = capsys.readouterr()
    assert code == 2, err
    assert err.startswith("jaxstab: ") and err.count("\n") == 1, f"not one line: {err!r}"
    assert "Traceback" not in err and out == ""
    return err


@pytest.mark.slow
def test_sweep_writes_a_store_with_everything_promised(ran):
    code, out = ran
    assert code == 0
    dataset = store.load(out / "store.zarr")
    for field in (
        "log_q",
        "saturation",
        "dead",
        "c",
        "log_grad_h",
        "log_grad_theta",
        "log_s",
        "log_mean_square",
    ):
        assert f"predicted_{field}" in dataset, field
        assert {"activation", "sigma_w"} <= set(dataset[field].dims) & set(
            dataset[f"predicted_{field}"].dims
        )
    assert dataset.log_s.dims == ("activation", "seed", "sigma_w", "depth", "index")
    assert set(np.unique(dataset.verdict)) <= {"vanish", "critical", "explode", "undefined"}
    assert dataset.attrs["data"] == "digits" and json.loads(dataset.attrs["grid"])["width"] == 24
    assert dataset.predicted_log_q.dtype == np.float64 and dataset.log_q.dtype == np.float32
    # width 24: the prediction is right to a few tens of per cent, and to the sign of every clear verdict
    gap = np.abs(dataset.log_q.mean(("seed", "input")) - dataset.predicted_log_q).sel(layer=1)
    assert float(gap.max()) < 1.0
    assert dataset.verdict.sel(activation="erf", sigma_w=0.7).item() in ("vanish", "critical")


def pictures(page):
    """The figures of a page, wide and narrow, as SVG; nothing but data is referred to."""
    assert not re.search(r"""(src|href|srcset)=['"](?!data:)""", page), (
        "nothing is fetched from elsewhere"
    )
    found = re.findall(r'src(?:set)?="data:image/svg\+xml;base64,([^"]+)"', page)
    drawn = [base64.b64decode(picture).decode() for picture in found]
    for picture in drawn:
        ElementTree.fromstring(picture)
        assert "prefers-color-scheme: dark" in picture and "<script" not in picture
    return drawn


@pytest.mark.slow
def test_report_is_one_self_contained_page(ran):
    page = (ran[1] / "report.html").read_text(encoding="utf-8")
    assert len(pictures(page)) == 10 and page.count("<img alt=") == 5
    for said in (
        "erf",
        "relu",
        "vanish",
        "explode",
        "critical line",
        "standard error",
        "digits",
        "version_jax",
    ):
        assert said in page, said


@pytest.mark.slow
def test_data_behind_every_figure_is_in_the_page(ran):
    page = (ran[1] / "report.html").read_text(encoding="utf-8")
    dataset = store.load(ran[1] / "store.zarr")
    found = re.findall(r'download="(\w+).csv" href="data:text/csv;base64,([^"]+)"', page)
    tables = {name: pd.read_csv(io.BytesIO(base64.b64decode(table))) for name, table in found}
    assert set(tables) == {
        "phase_diagram", "gradient_norms", "gradient_heat_map", "singular_values", "forward_signal",
    }  # fmt: skip
    heat = tables["gradient_heat_map"].set_index(["activation", "sigma_w", "depth"]).gradient_ratio
    wanted = dataset.gradient_ratio.sel(activation="relu", sigma_w=2.8, depth=5).item()
    # six digits are written
    assert heat["relu", 2.8, 5] == pytest.approx(wanted, rel=1e-5)
    assert tables["forward_signal"].c.between(-1, 1).all()


@pytest.mark.slow
def test_titles_of_theory_are_mathematics():
    """What `panels` titles is not parsed, and a title that is set again stays so unless told."""
    profiles = theory.predict("tanh", 1.5, 0.3, [3], width=4, d_in=4)[:3]
    texts = law_profiles("tanh", *profiles).findobj(Text)
    formulas = [text for text in texts if "$" in text.get_text()]
    assert len(formulas) >= 3 and all(text.get_parse_math() for text in formulas)


def test_figures_say_what_is_seen(ran):
    page = (ran[1] / "report.html").read_text(encoding="utf-8")
    alts = re.findall(r'<img alt="([^"]+)"', page)
    assert len(set(alts)) == 5 and all("erf: " in alt and "relu: " in alt for alt in alts)


HOSTILE = (
    "</td><script>alert(1)</script><img src=x onerror='alert(2)' "
    '" onload="alert(3)"> $\\frac{{{{7*7}}}} \x1b[31m'
)


@pytest.mark.slow
def test_nothing_in_a_store_becomes_markup(ran, tmp_path):
    dataset = store.load(ran[1] / "store.zarr")
    grid = json.loads(dataset.attrs["grid"])
    hostile = grid | dict.fromkeys(("weights", "dtype", "width", "inputs"), HOSTILE)
    hostile["depth"] = [HOSTILE, HOSTILE]
    dataset = dataset.assign_coords(activation=[HOSTILE, "relu"])
    dataset["verdict"] = dataset.verdict.astype(str)
    dataset.attrs |= {
        "grid": json.dumps(hostile),
        "data": HOSTILE,
        HOSTILE: HOSTILE,
        "command": HOSTILE,
    }
    page = report.write(dataset, tmp_path / "page.html").read_text(encoding="utf-8")
    pictures(page)
    tags = _Tags()
    tags.feed(page)
    assert "script" not in tags.names and not tags.handlers
    assert tags.names.count("img") == 5 and "7*7" in page


class _Tags(HTMLParser):
    """Names of all tags, and attributes that run code."""

    def __init__(self):
        super().__init__()
        self.names, self.handlers = [], []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]


@pytest.mark.slow
def test_report_of_a_stored_run_is_drawn_again(ran, tmp_path, capsys):
    assert cli.main(["report", str(ran[1]), "--out", str(tmp_path / "again.html")]) == 0
    assert "again.html" in capsys.readouterr().out
    assert (tmp_path / "again.html").stat().st_size > 100_000


@pytest.mark.slow
def test_status_of_a_sweep(ran, capsys):
    for place in (ran[1], ran[1] / "store.zarr"):
        assert cli.main(["status", str(place)]) == 0
        said = capsys.readouterr().out
        assert said.startswith("a sweep over 2 activations, 3 gains, 2 seeds") and said.endswith(
            "finished\n"
        )


@pytest.mark.slow
def test_sweep_refuses_the_store_of_another_at_once(ran, capsys):
    before = sorted(p.stat().st_mtime_ns for p in ran[1].rglob("*"))
    said = _fails(capsys, *FLAGS.split(), "--width", 25, "--out", ran[1])
    assert "exists; pass --overwrite" in said and "width: 24 -> 25" in said
    assert before == sorted(p.stat().st_mtime_ns for p in ran[1].rglob("*"))


@pytest.mark.slow
def test_sweep_once_finished_has_nothing_left_to_do(ran, tmp_path, monkeypatch, capsys):
    command = [*FLAGS.split(), "--out", str(ran[1])]
    page, before = ran[1] / "report.html", files(ran[1] / "store.zarr")
    # a run that was killed while it drew its page leaves a part, and the page of an older sweep
    page.write_text("an older sweep")
    (ran[1] / "spectra.zarr").mkdir()
    assert cli.main(command) == 0
    assert "nothing was left to do" in capsys.readouterr().out
    assert files(ran[1] / "store.zarr") == before and "older sweep" not in page.read_text()
    drawn = page.read_bytes()
    assert cli.main(command) == 0 and page.read_bytes() == drawn
    page.rename(tmp_path / "report.html")
    monkeypatch.setattr(report, "write", lambda _, page: page.write_bytes(drawn))
    assert cli.main(command) == 0 and page.exists()
    kept = {path.name for path in ran[1].iterdir()}
    assert kept == {"store.zarr", "store.zarr.runs", "report.html"}, "no litter"


def _interrupted(monkeypatch, steps):
    """Have the command be told to stop after so many steps."""
    left = iter(range(steps))

    def check():
        if next(left, None) is None:
            raise KeyboardInterrupt

    monkeypatch.setattr(interrupts, "check", check)


@pytest.mark.slow
@pytest.mark.long
def test_a_sweep_that_is_stopped_goes_on_to_the_same_bytes(ran, tmp_path, monkeypatch, capsys):
    out = tmp_path / "stopped"
    command = [*FLAGS.split(), "--out", str(out)]
    # killed without a word as soon as something is kept
    script = "import sys; from jaxstab.cli import main; sys.exit(main())"
    killed = subprocess.Popen(
        [sys.executable, "-c", script, *command], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    profiles, spectra, _ = parts(out).values()
    wait_for(
        lambda: killed.poll() is not None or (profiles.exists() and store.progress(profiles).done),
        200,
    )
    # stopped in its tracks, it has the groups still
    killed.send_signal(signal.SIGSTOP)
    assert cli.main(command) == 2
    assert f"is being made by pid {killed.pid} on" in capsys.readouterr().err
    assert cli.main(["status", str(out)]) == 0
    said = capsys.readouterr().out
    assert "profiles: " in said and f"running: pid {killed.pid} on" in said
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    done = store.progress(profiles).done
    groups = store.progress(profiles).groups
    assert done >= 1
    # the rest of the profiles, and one group of spectra
    with monkeypatch.context() as patch:
        _interrupted(patch, groups - done + 1)
        assert cli.main(command) == interrupts.STOPPED
    assert "the same command resumes the run" in capsys.readouterr().err
    assert store.progress(spectra).done == 1 and not (out / "store.zarr").exists()
    other = _fails(capsys, *command, "--seeds", 3)
    assert "holds another sweep (seed: 0, 1 -> 0, 1, 2" in other and "pass --overwrite" in other
    # drawing the page is tested elsewhere
    monkeypatch.setattr(report, "write", lambda *_: None)
    assert cli.main(command) == 0
    assert files(out / "store.zarr") == files(ran[1] / "store.zarr")
    assert not profiles.exists() and not spectra.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sweep --depths 0", "depth must be an integer >= 1"),
        ("sweep --width 0", "width must be an integer >= 1, got 0"),
        ("sweep --sigma-w 1 nan", "sigma_w must be"),
        ("sweep --sigma-w", "sigma_w must be ascending values, at least one"),
        ("sweep --activations tanh geluu", "unknown activation 'geluu'; did you mean gelu"),
        ("sweep --data cifar", "unknown data set 'cifar'"),
        ("sweep --data none.npz", "none.npz: no such file"),
        ("sweep --inputs 9999", "9999 inputs need"),
        ("sweep --chunk-size 0", "chunk_size must be an integer >= 1"),
        ("sweep --out /proc/nowhere", "cannot write to /proc/nowhere"),
        ("sweep --dephts 3", "Unrecognized options: --dephts"),
        ("sweep --seeds many", "invalid"),
        ("theory --activation thanh", "did you mean tanh"),
        ("theory --sigma-w -1", "sigma_w must be finite and >= 0, got -1.0"),
        ("theory --q0 0", "q0 must be finite and > 0"),
        ("theory --norm layr", "norm must be"),
        ("theory --dropout 1", "--dropout must be in [0, 1), got 1"),
        ("theory --norm batch --batch 3", "batch must be an integer >= 4"),
        ("theory --activation nothing:here", "--activation nothing:here: ModuleNotFoundError"),
        ("theory --shape tat", "--shape needs --depth"),
        ("theory --shape-target 2", "--shape-target must be given together with --shape"),
        ("theory --shape dks --depth 5 --norm layer", "--shape needs a plain network"),
        ("theory --shape dks --depth 5 --shape-target 0.5", "zeta must lie in (1, inf), got 0.5"),
        ("theory --activation relu --shape tat --depth 5", "use dks, or tat of leaky_relu"),
        ("theory --plot x.gif", "--plot must end in .pdf, .png, .svg, got x.gif"),
        ("theory --plot none/x.png", "there is no folder none"),
        ("phase --sigma-w 2 1", "--sigma-w must be two numbers, the lower one first, got 2 1"),
        ("phase --points 1", "--points must be in [2, 1024], got 1"),
        ("phase --skip highway", "no phase diagram: highway"),
        ("report none.zarr", "none.zarr: no such store"),
        ("swep", "swep"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_exit_code_2(
    capsys, tmp_path, monkeypatch, arguments, said
):
    monkeypatch.chdir(tmp_path)
    if arguments.startswith("sweep") and "--data" not in arguments:
        arguments += " --data digits"
    assert said in _fails(capsys, *arguments.split()) or said == "invalid"
    assert list(tmp_path.glob("**/*.zarr")) == []


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ("width = 8\ndepths = [1, 2", r"sweep\.toml: .*line 2"),
        ("widht = 8", r"sweep\.toml: unknown key 'widht'; did you mean 'width'"),
        ("width = 'wide'", r"sweep\.toml: width must be int, got 'wide'"),
        ("depths = 3", r"sweep\.toml: depths must be tuple\[int, \.\.\.\], got 3"),
        ("seeds = true", r"sweep\.toml: seeds must be int, got True"),
    ],
)
def test_config_errors_name_file_and_place(capsys, tmp_path, toml, said):
    file = tmp_path / "sweep.toml"
    file.write_text(toml)
    assert re.search(said, _fails(capsys, "sweep", "--config", file))


def test_a_missing_config_is_named(capsys, tmp_path):
    assert "none.toml: No such file" in _fails(capsys, "sweep", "--config", tmp_path / "none.toml")


def test_flags_override_the_config_which_overrides_the_defaults(tmp_path):
    file = tmp_path / "sweep.toml"
    file.write_text("width = 8\ndepths = [1, 2]\nsigma_w = [1, 2.5]\nsigma-b = 0.1\nout = 'here'\n")
    settings = parse({"sweep": Sweep}, "", ["sweep", "--config", str(file), "--width", "16"])
    assert settings.width == 16 and settings.depths == (1, 2) and settings.sigma_w == (1.0, 2.5)
    assert (
        settings.sigma_b == 0.1 and settings.seeds == Sweep().seeds and str(settings.out) == "here"
    )


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["--help"],
        ["sweep", "--help"],
        ["theory", "--help"],
        ["diagnose", "--help"],
        ["report", "--help"],
    ],
)
def test_help_says_what_each_command_does(capsys, words):
    with pytest.raises(SystemExit) as stop:
        cli.main(words)
    assert stop.value.code in (0, None)
    said = capsys.readouterr().out
    if words in ([], ["--help"]):
        assert all(command in said for command in ("sweep", "theory", "diagnose", "report"))
    else:
        assert len(said) > 200 and (words[0] != "sweep" or "--overwrite" in said)


def test_theory_as_json(capsys):
    assert cli.main("theory --activation tanh --sigma-w 1.3 --sigma-b 0.3 --json".split()) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["q"] == pytest.approx(0.6070, abs=1e-4) and answer["chi_1"] == pytest.approx(
        0.9398, abs=1e-4
    )
    assert answer["stability"] == "stable" and answer["c"] == 1.0
    assert set(answer) >= {
        "q",
        "c",
        "chi_1",
        "chi_c",
        "xi_q",
        "xi_c",
        "xi_grad",
        "stability",
        "critical_sigma_w",
    }
    assert answer["critical_sigma_w"] == pytest.approx(1.3956, abs=1e-4)


def test_theory_writes_infinity_as_a_string_and_the_undefined_as_null(capsys):
    assert cli.main(["theory", "--activation", "relu", "--sigma-w", str(2**0.5), "--json"]) == 0
    he = json.loads(
        capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON")
    )
    assert he["xi_grad"] == he["xi_c"] == "inf" and he["stability"] == "marginal"
    assert cli.main("theory --activation relu --sigma-w 2 --sigma-b 0.1 --json".split()) == 0
    growing = json.loads(capsys.readouterr().out)
    assert growing["q"] == "inf" and growing["fixed_points"] == [] and growing["xi_q"] < 0
    assert strict({"critical_sigma_w": [float("nan"), -float("inf")]}) == {
        "critical_sigma_w": [None, "-inf"]
    }
    assert cli.main("theory --activation relu --sigma-w 1".split()) == 0
    assert "chi_1             0.5" in capsys.readouterr().out


@pytest.mark.slow
def test_theory_takes_cures_and_draws(capsys, tmp_path):
    words = (
        "theory --activation tanh --sigma-w 1.5 --sigma-b 0.3 --dropout 0.1 --json --plot".split()
    )
    assert cli.main([*words, str(tmp_path / "profile.svg")]) == 0
    answer = json.loads(capsys.readouterr().out)
    known = theory.fixed_point(theory.law("tanh", keep=0.9, shared_masks=False), 1.5, 0.3)
    assert (
        answer["distance"] == pytest.approx(float(known.distance), rel=1e-12)
        and answer["dropout"] == 0.1
    )
    assert (tmp_path / "profile.svg").read_text().startswith("<?xml")
    assert cli.main("theory --skip sum".split()) == 0
    assert "no_fixed_point    residual: q grows" in capsys.readouterr().out


@pytest.mark.slow
def test_theory_shapes_an_activation(capsys):
    words = "theory --activation leaky_relu --shape tat --depth 50 --shape-target 0.8"
    assert cli.main([*words.split(), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    found = theory.shaped("leaky_relu", 50, "tat", eta=0.8)
    assert answer["shaped"]["slope"] == found.base.parameters["slope"]
    assert answer["shaped"]["gamma"] == found.gamma
    assert answer["chi_1"] == pytest.approx(1.0, abs=1e-12)
    assert cli.main("theory --activation tanh --shape dks --depth 50".split()) == 0
    assert "alpha                 0.128440478" in capsys.readouterr().out


@pytest.mark.slow
def test_phase_diagram_of_ones_own_activation(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_of_this_test.py").write_text(
        "import jax.numpy as jnp\n\ndef half(z):\n    return jnp.tanh(z / 2)\n"
    )
    words = "phase --activation mine_of_this_test:half --points 3 --sigma-b 0.1 0.3 --json --out mine.png".split()
    assert cli.main(words) == 0
    found = json.loads(capsys.readouterr().out)
    # tanh(z/2): the gain doubles, in pre-activations half as long
    wanted = [2 * float(theory.critical_sigma_w("tanh", b / 2)) for b in found["sigma_b"]]
    assert found["critical_sigma_w"] == pytest.approx(wanted, rel=1e-8)
    assert np.shape(found["chi_1"]) == (3, 3) and (tmp_path / "mine.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.long
def test_survey_of_a_single_cell_still_reports(tmp_path):
    grid = sweeps.Grid(
        {"activation": ("relu",), "depth": (2,), "seed": (0,), "sigma_w": (1.0,)}, width=8
    )
    dataset = analysis.survey(grid, datasets.load("digits"), sharp=4)
    # width 8 is not wide: within a nat of the prediction
    missed = dataset.mean_log_gauss_newton - dataset.predicted_log_gauss_newton
    assert abs(missed.item()) < 1 and dataset.attrs["sharpness"] == 4
    assert np.isnan(dataset.measured_critical).all() and np.isnan(dataset.rate_se).all()
    page = report.write(dataset, tmp_path / "one.html")
    assert page.stat().st_size > 50_000 and "Curvature of the loss" in page.read_text()


@pytest.mark.slow
def test_a_dataset_that_is_no_survey_is_refused(tmp_path):
    grid = sweeps.Grid(
        {"activation": ("relu",), "depth": (2,), "seed": (0,), "sigma_w": (1.0,)}, width=8
    )
    with pytest.raises(
        ValueError, match="a survey or a summary of trainings; as a survey .* lacks .*verdict"
    ):
        report.write(analysis.predict(grid, 64, 0.3), tmp_path / "none.html")
