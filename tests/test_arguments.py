"""Public functions called with None, text, lists and objects: one line that names the argument."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from jaxstab.arguments import explained

# pytest checks annotations itself; users have no such check
PROGRAM = """
import json, sys, warnings
import numpy as np
from public_calls import CALLS, UNCALLED, public
warnings.simplefilter("ignore")
BAD = {"None": None, "text": "x", "lists": [[1.0, 2.0], [3.0]], "object": object(), "int": -7,
       "texts": np.array(["a", "b"]), "dict": {}}
print(json.dumps([sorted(CALLS), sorted(UNCALLED), sorted(public())]))
for name, (function, good) in CALLS.items():
    for argument in good:
        for kind, bad in BAD.items():
            told = ("", "")
            try:
                function(**good | {argument: bad})
            except Exception as error:
                told = (type(error).__name__, str(error))
            print(json.dumps([f"{name}({argument})", kind, *told]))
"""
# what a step of the user's own raises is theirs to read
OF_STEPS = ("networks.upwards(start)", "networks.upwards(carry)", "networks.downwards(carry)")


@pytest.fixture(scope="module")
def answers():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=500,
        cwd=Path(__file__).parent,
    )
    assert run.returncode == 0, run.stderr
    return [json.loads(line) for line in run.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.long
def test_one_line_for_each_wrong_argument(answers):
    called, uncalled, public = answers.pop(0)
    functions = [name for name in called if not name.startswith("Chain.")]
    assert sorted(functions + uncalled) == public
    assert len(answers) > 2000
    # whole settings may be left out, or are not looked at where nothing is dropped
    accepted = {(name, kind) for name, kind, error, _ in answers if not error and kind != "int"}
    assert {name for name, kind in accepted if kind != "None"} <= {
        "Chain.bind(rate)",
        "curvature.ravel(params)",
        "curvature.hessian_by_gradient(params)",
    }
    refused = [row for row in answers if row[2] and row[0] not in OF_STEPS]
    unclear = []
    for name, kind, error, line in refused:
        clear = error in ("ValueError", "TypeError") and "\n" not in line and len(line) < 400
        # of JAX, NumPy and Flax, in words of their own
        foreign = (
            "<class",
            "<function",
            "Error interpreting",
            "ufunc",
            "not callable",
            "attribute",
        )
        if not clear or any(word in line for word in foreign):
            unclear.append((name, kind, error, line[:200]))
    assert not unclear, f"{len(unclear)} of {len(refused)}: {unclear[:9]}"


SAID = {
    "net.init(0, x)": "key must be a PRNG key, such as jax.random.key(0), got 0",
    "net.init(key, None)": "x must be an array [*batch, d_in], got None",
    "net.init(key, x, sigma_w=None)": "sigma_w must be a real number or an array of such, got None",
    "net.apply(params, x[1:])": "x has 3 features, the parameters take 4: got shape (3,)",
    "net.apply(params, [1.0] * 4)": "x must be an array [..., d_in], got a list: jnp.asarray",
    "propagation.backward(net, params, x, 3)": "loss must be a function, got 3",
    "spectra.product_log_singular_values(None)": "factors must be an array [layers, n, n], got None",
    "spectra.extremes(None, key)": "operator must be a spectra.Operator, got None",
    "theory.length_map('tanh', None, 0.0, 1.0)": (
        "sigma_w must be a real number or an array of such, got None"
    ),
    "clipping.guarded(3, 'skip')": "tx must be a GradientTransformation, got 3",
    "curvature.ravel({'a': 'text'})": "params must be a pytree of arrays, got one that holds 'text'",
}


def test_what_is_said():
    program = """
import json, sys
import jax, jax.numpy as jnp
from jaxstab import clipping, curvature, networks, propagation, spectra, theory
key, x = jax.random.key(0), jnp.ones(4)
net = networks.mlp(2, 4)
params = net.init(key, x)
# keys of the older style are keys
assert net.init(jax.random.PRNGKey(0), x).depth == 2
for call in json.loads(sys.argv[1]):
    try:
        print(json.dumps(repr(eval(call))))
    except ValueError as error:
        print(json.dumps(str(error)))
"""
    run = subprocess.run(
        [sys.executable, "-c", program, json.dumps(list(SAID))],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert run.returncode == 0, run.stderr
    said = list(map(json.loads, run.stdout.splitlines()))
    assert said == list(SAID.values())


def test_errors_of_the_users_own_functions_pass_as_they_are():
    class OwnError(Exception):
        pass

    def loss(y):
        raise OwnError("mine")

    @explained
    def called(x: jax.Array, loss: Callable) -> jax.Array:
        return loss(x)

    with pytest.raises(OwnError, match="mine"):
        called(jnp.ones(2), loss)
    with pytest.raises(TypeError, match="missing 1 required"):
        called(jnp.ones(2))


def test_a_program_is_traced_as_without_the_check():
    def length(x: jax.Array) -> jax.Array:
        return jnp.sum(x**2)

    x = jnp.ones(3)
    assert str(jax.make_jaxpr(explained(length))(x)) == str(jax.make_jaxpr(length)(x))
