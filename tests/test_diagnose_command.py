"""`jaxstab diagnose`: a model of the user's own from the command line."""

import json
import zipfile
from html.parser import HTMLParser

import numpy as np
import pytest

from jaxstab import cli

HOSTILE = "<img src=x onerror=alert(1)>{{7*7}}"
MODELS = f"""
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jaxstab import networks

class Dead(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i in range(2):
            biases = nn.initializers.constant(-50.0 if i == 1 else 0.0)
            name = "{HOSTILE}" if i == 1 else None
            x = nn.relu(nn.Dense(6, bias_init=biases, name=name)(x))
        return nn.Dense(2)(x)

def loss(y, labels):
    return -jnp.mean(jax.nn.log_softmax(y)[jnp.arange(len(labels)), labels])

def dead():
    model = Dead()
    return model, jax.jit(model.init)(jax.random.key(0), jnp.ones((1, 3), "float32")), loss

def tagged():
    def model(params, x):
        return networks.tag("layer", jnp.tanh(x @ params["w"]))
    return model, {{"w": jnp.eye(3, dtype="float32")}}, lambda y: jnp.mean(y**2)

def vector():
    return tagged()[0], tagged()[1], lambda y: y[0]

def pair():
    return tagged()[:2]

def trained():
    return *tagged(), optax.sgd(1e4)

def no_tx():
    return *tagged(), 3

def of_a_number():
    return 3, None, loss

def no_loss():
    return *pair(), None

def takes(width):
    return tagged()

def stops():
    raise SystemExit("no GPU\\nhere")

number = 3
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with models and batches."""
    folder = tmp_path_factory.mktemp("project")
    (folder / "models_of_this_test.py").write_text(MODELS)
    x = np.random.default_rng(0).normal(size=(8, 3)).astype("float32")
    y = np.arange(8) % 2
    np.savez(folder / "batch.npz", x=x, y=y)
    np.savez(folder / "plain.npz", x=x)
    np.savez(folder / "wide.npz", x=np.ones((8, 5), "float32"))
    np.savez(folder / "short.npz", x=x, y=y[:7])
    np.savez(folder / "objects.npz", x=np.array([{}, {}], object))
    np.savez(folder / "words.npz", x=np.array(["a", "b"]))
    np.savez(folder / "nan.npz", x=np.full((2, 3), np.nan))
    np.savez(folder / "empty.npz", x=np.ones((0, 3)))
    np.savez(folder / "scalar.npz", x=1.0)
    np.savez(folder / "other.npz", x=x, mask=x)
    np.save(folder / "one.npy", x)
    np.savez(folder / "complex.npz", x=x.astype(complex))
    np.savez(folder / "swapped.npz", x=x.astype(">f4"))
    np.savez_compressed(folder / "bomb.npz", x=np.zeros((2**14, 2**13), "int8"))
    (folder / "text.npz").write_text("x")
    with zipfile.ZipFile(folder / "member.npz", "w") as archive:
        archive.writestr("x", "text")
    (folder / "taken").write_text("a file")
    return folder


@pytest.fixture(autouse=True)
def _in_project(project, monkeypatch):
    monkeypatch.chdir(project)


class _Page(HTMLParser):
    """Names of all tags, attributes that run code, and the text of cells."""

    def __init__(self):
        super().__init__()
        self.names, self.handlers, self.cells = [], [], []
        self.in_cell = False

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if tag == "td":
            self.cells.append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell = self.in_cell and tag != "td"

    def handle_data(self, data):
        if self.in_cell:
            self.cells[-1] += data


def _diagnose(factory, batch, out):
    return cli.main(
        ["diagnose", f"models_of_this_test:{factory}", "--batch", batch, "--out", str(out)]
    )


@pytest.mark.slow
def test_a_dead_layer_of_a_hostile_name_is_told_three_times(tmp_path, capsys):
    out = tmp_path / "runs" / "diagnosis"
    assert _diagnose("dead", "batch.npz", out) == 0
    printed = capsys.readouterr().out
    assert f"DEAD UNITS at {HOSTILE}: 1 " in printed
    numbers = json.loads((out / "diagnosis.json").read_text())
    (finding,) = numbers["findings"]
    assert (finding["fault"], finding["where"]) == ("dead units", HOSTILE)
    assert numbers["rows"][HOSTILE]["dead"] == 1
    page = _Page()
    page.feed((out / "diagnosis.html").read_text(encoding="utf-8"))
    # the one picture is ours, its text an image
    assert page.names.count("img") == 1 and not page.handlers
    what, where, sure, why, change = page.cells[:5]
    assert (what, where) == ("dead units", HOSTILE)
    assert sure.startswith("1 [") and sure.endswith("of its units give zero for every example")
    assert (why, change) == (finding["why"], finding["change"])
    # nothing else is left there
    assert sorted(file.name for file in out.iterdir()) == ["diagnosis.html", "diagnosis.json"]


@pytest.mark.slow
def test_a_function_without_labels(tmp_path, capsys):
    # a file of a machine of the other byte order
    assert _diagnose("tagged", "swapped.npz", tmp_path) == 0
    assert "no finding" in capsys.readouterr().out
    assert "No finding" in (tmp_path / "diagnosis.html").read_text(encoding="utf-8")


def test_an_optimiser(tmp_path, capsys):
    assert _diagnose("trained", "plain.npz", tmp_path) == 0
    assert "LEARNING RATE TOO LARGE at the first update" in capsys.readouterr().out
    assert "largest stable rate" in (tmp_path / "diagnosis.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("factory", "batch", "said"),
    [
        ("nothing", "plain.npz", "has no attribute 'nothing'"),
        ("number", "plain.npz", "models_of_this_test:number: must be a function, got int"),
        (
            "pair",
            "plain.npz",
            "must return a tuple (model, params, loss) or (model, params, loss, tx), returned "
            "tuple of 2",
        ),
        ("no_tx", "plain.npz", "tx must be an optax.GradientTransformation, got int"),
        ("takes", "plain.npz", "takes() missing 1 required positional argument: 'width'"),
        ("stops", "plain.npz", "models_of_this_test:stops(): SystemExit: no GPU here"),
        ("no_loss", "plain.npz", "loss must be a function, got NoneType"),
        ("of_a_number", "plain.npz", "a model must be a linen module"),
        ("vector", "plain.npz", "the loss must be a scalar float, got float32 of shape (3,)"),
        ("dead", "plain.npz", "loss() missing 1 required positional argument: 'labels'"),
        ("tagged", "batch.npz", "takes 1 positional argument but 2 were given"),
        (
            "tagged",
            "wide.npz",
            "fails with these parameters on an input float32[8, 5]: dot_general",
        ),
        ("tagged", "short.npz", "x and y must have equally many examples, got 8 in x and 7 in y"),
        ("tagged", "objects.npz", "array x must be numbers, got dtype object"),
        (
            "tagged",
            "words.npz",
            "array x must be numbers, got dtype <U1",
        ),
        ("tagged", "nan.npz", "x must be finite in float64, 6 of 6 are not"),
        ("tagged", "empty.npz", "x must hold examples along its first axis, got shape (0, 3)"),
        ("tagged", "scalar.npz", "x must hold examples along its first axis, got shape ()"),
        ("tagged", "other.npz", "must hold x and, for labels, y; holds mask, x"),
        ("tagged", "one.npy", "File is not a zip file); np.savez(path, x=x) writes such a file"),
        ("tagged", "text.npz", "not a readable .npz file"),
        ("tagged", "member.npz", "holds x (no array)"),
        ("tagged", "bomb.npz", "more than data can"),
        ("tagged", "complex.npz", "at most 64 bits, got dtype complex128"),
        ("tagged", "none.npz", "no such file"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line_and_nothing_is_written(
    factory, batch, said, tmp_path, capsys
):
    out = tmp_path / "out"
    assert _diagnose(factory, batch, out) == 2
    printed, complaint = capsys.readouterr()
    assert said in complaint and complaint.startswith("jaxstab: ")
    assert complaint.count("\n") == 1 and printed == ""
    assert not out.exists()


def test_a_damaged_batch_is_one_line(tmp_path, capsys):
    """zipfile, zlib and NumPy's parser of headers raise errors of ten kinds."""
    draws = np.random.default_rng(1)
    np.savez_compressed(tmp_path / "good.npz", x=draws.normal(size=(8, 3)))
    good = (tmp_path / "good.npz").read_bytes()
    damaged = tmp_path / "damaged.npz"
    for _ in range(120):
        content = np.frombuffer(good[: draws.integers(1, 2 * len(good))], np.uint8).copy()
        content[draws.integers(0, len(content), 3)] = draws.integers(0, 256, 3)
        damaged.write_bytes(content.tobytes())
        # the factory is looked for once the batch is read: that is refused in any case
        assert _diagnose("nothing", str(damaged), tmp_path / "out") == 2
        assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no_such_module:make", "--batch", "plain.npz"], "No module named 'no_such_module'"),
        (["models_of_this_test", "--batch", "plain.npz"], "the factory must be module:function"),
        (
            ["./models.py:make", "--batch", "plain.npz"],
            "such as models:make or package.models:make, not a file",
        ),
        (["models_of_this_test:tagged"], "--batch"),
        (
            ["models_of_this_test:tagged", "--batch", "plain.npz", "--out", "taken"],
            "cannot write to taken: {project}/taken is not a folder",
        ),
    ],
)
def test_bad_words_are_one_line_as_well(words, said, capsys, project):
    before = sorted(project.iterdir())
    assert cli.main(["diagnose", *words]) == 2
    complaint = capsys.readouterr().err
    assert said.format(project=project) in complaint and complaint.count("\n") == 1
    assert [place for place in sorted(project.iterdir()) if place.name != "__pycache__"] == [
        place for place in before if place.name != "__pycache__"
    ]
