"""Errors of theory's fixed points over a phase diagram, against quadrature in NumPy and bracketing in SciPy."""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from phase_diagrams import reference

from jaxstab import activations, theory

# activations whose parameters are traced, at the values of those without
TRACED: dict[str, Callable] = {"silu": activations.swish, "elu": activations.elu}
# how near chi_1 or the length map's slope must be to 1 to count as critical
NEAR = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("activations", nargs="*", default=list(reference.ACTIVATIONS))
    parser.add_argument("--points", type=int, default=64, help="of either axis")
    parser.add_argument("--no-traced", action="store_true", help="leave traced parameters out")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    sigma_w = np.linspace(0.5, 3.0, args.points)
    sigma_b = np.linspace(0.01, 1.0, args.points)
    print("| activation | points | where | " + " | ".join(reference.Point._fields) + " |")
    print("|---|---|---|" + "---|" * len(reference.Point._fields))
    for name in args.activations:
        start = time.process_time()
        known = reference.Reference(name)
        truth = [[known.at(w, b) for b in sigma_b] for w in sigma_w]
        seconds = time.process_time() - start
        state(name, plane(lambda _, name=name: name, sigma_w, sigma_b), truth)
        if name in TRACED and not args.no_traced:
            state(f"{name}, parameter traced", plane(TRACED[name], sigma_w, sigma_b), truth)
        print(f"{name}: the reference took {seconds:.0f} s of processors", flush=True)


def plane(make: Callable, sigma_w: np.ndarray, sigma_b: np.ndarray) -> np.ndarray:
    """Theory's fields at all points, [field, sigma_w, sigma_b]; `make` gives an activation of a traced 1."""

    def point(parameter: jax.Array, w: jax.Array, b: jax.Array) -> list[jax.Array]:
        found = theory.fixed_point(make(parameter), w, b)
        return [getattr(found, field) for field in reference.Point._fields]

    points = jax.jit(jax.vmap(jax.vmap(point, (None, None, 0)), (None, 0, None)))
    return np.array(points(jnp.asarray(1.0), jnp.asarray(sigma_w), jnp.asarray(sigma_b)))


def state(name: str, found: np.ndarray, truth: list[list[reference.Point | None]]) -> None:
    """Print the largest relative errors, away from criticality and near it, and what is there in one only."""
    ours = found.reshape(len(found), -1)
    theirs = [point for row in truth for point in row]
    finite = np.array([point is not None for point in theirs])
    wanted = np.array([point for point in theirs if point is not None]).T
    unlike = int(np.sum(finite != np.isfinite(ours[0])))
    with np.errstate(invalid="ignore"):
        errors = np.abs(ours[:, finite] / wanted - 1)
    slope = np.exp(-1 / wanted[4])
    near = (np.abs(wanted[2] - 1) < NEAR) | (np.abs(slope - 1) < NEAR)
    for where, chosen in (("elsewhere", ~near), ("near criticality", near)):
        largest = [f"{np.max(row[chosen], initial=0.0):.1e}" for row in errors]
        print(f"| {name} | {np.sum(chosen)} | {where} | " + " | ".join(largest) + " |", flush=True)
    if unlike:
        print(f"{name}: {unlike} points are finite in one of the two only")


if __name__ == "__main__":
    main()
