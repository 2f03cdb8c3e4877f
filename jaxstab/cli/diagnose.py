"""`jaxstab diagnose`: find the faults of a user's own model, and measure cures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, PyTree

from jaxstab import diagnosis, networks
from jaxstab.cli.faults import UserError, users_fault
from jaxstab.cli.own import imported, users_code
from jaxstab.cli.settings import Diagnose
from jaxstab.datasets import npz_arrays
from jaxstab.diagnosis.diagnosing import probed
from jaxstab.diagnosis.measuring import check_scalar
from jaxstab.store.dataset import provenance
from jaxstab.store.files import check_file, check_folder, whole_file

# files that the command writes into its folder
_JSON = "diagnosis.json"
_PAGE = "diagnosis.html"
# kinds of dtype of a batch: bool, integers, floats
_NUMBERS = "biuf"
# most bytes of one number
_LARGEST = 8


def print_diagnosis(settings: Diagnose) -> None:
    """Run `jaxstab diagnose`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the batch or the folder cannot be used, the factory does not return a model,
            or model, parameters, loss and batch do not fit together.
    """
    _check_folder(settings.out)
    batch = _batch(settings.batch)
    x = batch["x"]
    model, params, loss, tx = _made(settings.factory)
    probe = _probe(model, params, x)
    loss = _of_output(loss, batch)
    _check_loss(loss, probe, params, x)
    with users_fault():
        found = diagnosis.diagnose(probe, params, x, loss, tx=tx)

    from jaxstab import report  # matplotlib is slow to import

    shapes = ", ".join(f"{name} {a.dtype} {list(a.shape)}" for name, a in batch.items())
    subject = f"{settings.factory} at {settings.batch}: {shapes}"
    text = found.as_json()
    with users_fault():
        settings.out.mkdir(parents=True, exist_ok=True)
        page = report.write(found, settings.out / _PAGE, subject, provenance())
        with whole_file(settings.out / _JSON) as aside:
            aside.write_text(f"{text}\n", encoding="utf-8")
    print(found)
    print(f"\nreport: {page}\nnumbers: {settings.out / _JSON}")


def _check_folder(out: Path) -> None:
    """Check that the folder can be made and written to, before anything is computed."""
    with users_fault():
        check_folder(out)
        if out.is_dir():
            for name in (_JSON, _PAGE):
                check_file(out / name)


def _batch(path: Path) -> dict[str, Array]:
    """Read the arrays x and, if present, y."""
    if not path.is_file():
        raise UserError(f"--batch {path}: no such file")
    try:
        arrays = npz_arrays(path, ("x", "y"))
    except ValueError as error:
        raise UserError(f"--batch {error}; np.savez(path, x=x) writes such a file") from error
    if "x" not in arrays or set(arrays) - {"x", "y"}:
        held = ", ".join(sorted(arrays)[:9]) or "nothing"
        raise UserError(f"--batch {path}: must hold x and, for labels, y; holds {held}")
    batch = {name: _array(f"--batch {path}: {name}", values) for name, values in arrays.items()}
    if len({len(array) for array in batch.values()}) > 1:
        counts = " and ".join(f"{len(array)} in {name}" for name, array in batch.items())
        raise UserError(f"--batch {path}: x and y must have equally many examples, got {counts}")
    return batch


def _array(what: str, values: np.ndarray) -> Array:
    """Check an array of the batch, and move it to the device at JAX's precision."""
    if values.dtype.kind not in _NUMBERS or values.dtype.itemsize > _LARGEST:
        wanted = "bool, integers or floats of at most 64 bits"
        raise UserError(f"{what} must be {wanted}, got dtype {values.dtype}")
    if not values.size or not values.ndim:
        raise UserError(f"{what} must hold examples along its first axis, got shape {values.shape}")
    # converted to this machine's byte order; a float64 may overflow float32
    with np.errstate(over="ignore"):
        array = jnp.asarray(values.astype(values.dtype.newbyteorder("=")))
    bad = values.size - np.count_nonzero(np.isfinite(np.asarray(array)))
    if bad:
        raise UserError(f"{what} must be finite in {array.dtype}, {bad} of {values.size} are not")
    return array


def _made(
    word: str,
) -> tuple[Any, PyTree, Callable[..., Any], optax.GradientTransformation | None]:
    """Call the factory: model, parameters, loss, and optimiser or None."""
    module, colon, name = word.partition(":")
    if not (module and colon and name):
        raise UserError(f"the factory must be module:function, got {word!r}")
    factory = imported(word, module, name)
    if not callable(factory):
        raise UserError(f"{word}: must be a function, got {type(factory).__name__}")
    with users_code(f"{word}()"):
        made = factory()
    if not isinstance(made, tuple) or len(made) not in (3, 4):
        got = type(made).__name__
        if isinstance(made, tuple):
            got += f" of {len(made)}"
        raise UserError(
            f"{word}: must return a tuple (model, params, loss) or (model, params, loss, tx), "
            f"returned {got}"
        )
    model, params, loss, tx = (*made, None)[:4]
    if not callable(loss):
        raise UserError(f"{word}: loss must be a function, got {type(loss).__name__}")
    if tx is not None and not isinstance(tx, optax.GradientTransformation):
        raise UserError(
            f"{word}: tx must be an optax.GradientTransformation, got {type(tx).__name__}"
        )
    return model, params, loss, tx


def _probe(model: Any, params: PyTree, x: Array) -> networks.Probe:
    if isinstance(model, networks.Probe):
        return model
    with users_code(f"the model at x of shape {x.shape}"):
        return probed(model, params, x)


def _of_output(loss: Callable[..., Any], batch: dict[str, Array]) -> Callable[[PyTree], Any]:
    """Bind the labels, so that the loss is a function of the output alone."""
    if "y" not in batch:
        return loss

    def of_output(output: PyTree) -> Any:
        return loss(output, batch["y"])

    return of_output


def _check_loss(
    loss: Callable[[PyTree], Any], probe: networks.Probe, params: PyTree, x: Array
) -> None:
    """Trace model and loss, so that their errors are reported as those of the user's code."""

    def value(params: PyTree, x: Array) -> Any:
        return loss(probe.read(params, x).output)

    with users_code(f"the loss of the output at x of shape {x.shape}"):
        value_shape = jax.eval_shape(value, params, x)
    with users_fault():
        check_scalar(value_shape)
