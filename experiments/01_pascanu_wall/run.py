"""Pascanu's wall, with and without clipping: python run.py [--small] [--out DIR] writes result.npz, measured.json."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxstab.clipping import clip_by_norm

STEPS, X_0, TARGET = 50, 0.5, 0.7
SIGMOID_0 = 1 / (1 + np.exp(-X_0))
SLOPE_0 = SIGMOID_0 * (1 - SIGMOID_0)
# the wall ends where an error at x_0 no longer grows from step to step: w sigma'(x_0) = 1
END = np.array([1 / SLOPE_0, X_0 - SIGMOID_0 / SLOPE_0])
REACHED, PLATEAU = 1e-4, 0.04  # errors: within 0.01 of the target; further than 0.2 from it
UPDATES, LAST = 20_000, 100
NEAR, SHOWN = 128, 8


class Starts(NamedTuple):
    """Where a descent begins and how it goes on; arrays of one shape."""

    growth: (
        np.ndarray
    )  # w sigma'(x_0): factor by which the wall's unstable state amplifies, per step
    above: np.ndarray  # b minus that of the wall
    rate: np.ndarray  # learning rate, in units of 1 / the valley's sharpest curvature
    clip: np.ndarray  # threshold, in units of the gradient's norm at the start

    @property
    def place(self):
        """[..., (w, b)]."""
        w = self.growth / SLOPE_0
        return np.stack([w, wall(w) + self.above], axis=-1)


def wall(w):
    """The b at which x_0 is itself the unstable state: x_0 = w sigma(x_0) + b."""
    return X_0 - w * SIGMOID_0


def output(place):
    """sigma(x_50)."""
    w, b = place
    x, _ = jax.lax.scan(
        lambda x, _: (w * jax.nn.sigmoid(x) + b, None), jnp.full_like(w, X_0), length=STEPS
    )
    return jax.nn.sigmoid(x)


def error(place):
    return (output(place) - TARGET) ** 2


@partial(jax.jit, static_argnums=1)
def crossing(w, level):
    """The b where the output crosses a level, by bisection: it grows with b."""

    def halve(ends, _):
        low, high = ends
        middle = (low + high) / 2
        below = jax.vmap(output)(jnp.stack([w, middle], 1)) < level
        return (jnp.where(below, middle, low), jnp.where(below, high, middle)), None

    (low, high), _ = jax.lax.scan(halve, (wall(w) - 1, wall(w) + 1), length=60)
    return (low + high) / 2


class Descent(NamedTuple):
    """What a run came to; the last two, if kept, at every update."""

    worst: jax.Array  # largest error in the last updates
    longest: jax.Array  # longest step
    errors: jax.Array
    places: jax.Array


@partial(jax.jit, static_argnums=3)
def descend(place, rate, threshold, keep):
    """Gradient descent from one place."""
    clip = clip_by_norm(threshold)

    def update(carry, index):
        place, worst, longest = carry
        value, gradient = jax.value_and_grad(error)(place)
        step = rate * clip.update(gradient, clip.init(place))[0]
        worst = jnp.where(index >= UPDATES - LAST, jnp.maximum(worst, value), worst)
        longest = jnp.maximum(longest, jnp.linalg.norm(step))
        return (place - step, worst, longest), (value, place) if keep else (None, None)

    nothing = jnp.zeros((), place.dtype)
    (_, worst, longest), (errors, places) = jax.lax.scan(
        update, (place, nothing, nothing), jnp.arange(UPDATES)
    )
    return Descent(worst, longest, errors, places)


def compare(starts, curvature, keep=False):
    """Every run at once, with the longest step over the way from its start to the wall's end."""
    place = jnp.asarray(starts.place).reshape(-1, 2)
    threshold = starts.clip.ravel() * jnp.linalg.norm(
        jax.jit(jax.vmap(jax.grad(error)))(place), axis=1
    )
    runs = jax.vmap(descend, (0, 0, 0, None))(
        place, jnp.asarray(starts.rate.ravel() / curvature), threshold, keep
    )
    return jax.tree.map(np.asarray, runs), np.asarray(
        runs.longest / jnp.linalg.norm(END[None] - place, axis=1)
    )


def measure(small):
    """All that is claimed, as numbers, and what the figure shows, as arrays."""
    valley = crossing(jnp.asarray(END[:1]), TARGET)
    curvature = float(
        jnp.linalg.eigvalsh(
            jax.jit(jax.hessian(error))(jnp.stack([jnp.asarray(END[0]), valley[0]]))
        )[1]
    )
    w = np.linspace(1.2, 1.5, 31) / SLOPE_0
    found = np.asarray(crossing(jnp.asarray(w), 0.5))
    steepness = jax.jit(jax.vmap(jax.grad(error)))(
        jnp.stack([jnp.asarray(w), jnp.asarray(found)], 1)
    )

    # in the middle of all ranges; no single run, as the wall amplifies even rounding errors
    many = 32 if small else NEAR
    above, clip = np.meshgrid(0.01 * np.linspace(0.95, 1.05, many), [np.inf, 1.0])
    near, near_length = compare(
        Starts(np.full_like(above, 1.3), above, np.ones_like(above), clip), curvature, keep=True
    )
    near_reached, near_thrown = (
        (near.worst < REACHED).reshape(2, -1),
        (near_length > 1).reshape(2, -1),
    )
    ranges = {
        "growth": np.linspace(1.1, 1.5, 3 if small else 9),
        "above": np.geomspace(1e-3, 1e-1, 5 if small else 7),
        "rate": np.array([0.5, 1.0] if small else [0.25, 0.5, 1.0, 1.5]),
        # Pascanu et al. recommend half to ten times the average norm
        "clip": np.array([np.inf, 1.0, 10.0] if small else [np.inf, 0.5, 1.0, 2.0, 5.0, 10.0]),
    }
    around = Starts(*np.meshgrid(*ranges.values(), indexing="ij"))
    shape = around.clip.shape
    others, length = compare(around, curvature)
    reached, thrown = (others.worst < REACHED).reshape(shape), (length > 1).reshape(shape)
    clipped, in_time = reached[..., 1:], ranges["rate"][:, None] * ranges["clip"][None, 1:] >= 0.5
    w_axis, b_axis = np.linspace(3.5, 7.0, 281), np.linspace(-4.2, -1.2, 301)
    plane = jnp.asarray(np.stack(np.meshgrid(w_axis, b_axis), -1).reshape(-1, 2))
    measured = {
        "wall_displacement": float(np.max(np.abs(found - wall(w)))),
        "wall_steepness": float(np.min(np.linalg.norm(steepness, axis=1))),
        "clipped_error": float(np.max(near.worst[many:])),
        "clipped_longest_step": float(np.max(near_length[many:])),
        "near_unclipped_thrown": float(np.mean(near_thrown[0])),
        "near_unclipped_reached": float(np.mean(near_reached[0])),
        "share_clipped_reached": float(np.mean(clipped)),
        "share_clipped_reached_in_time": float(np.mean(clipped[:, :, in_time])),
        "share_clipped_thrown": float(np.mean(thrown[..., 1:])),
        "share_unclipped_thrown": float(np.mean(thrown[..., 0])),
        "share_unclipped_reached": float(np.mean(reached[..., 0])),
        "curvature": curvature,
        "clipped_runs": clipped.size,
        "unclipped_runs": reached[..., 0].size,
    }
    surface = np.asarray(jax.jit(jax.vmap(error))(plane)).reshape(len(b_axis), len(w_axis))
    ends = np.array([END[0], w_axis[-1]])
    arrays = {
        "wall": np.stack([ends, wall(ends)], axis=-1),
        "w": w_axis,
        "b": b_axis,
        "surface": surface,
        "errors": near.errors.reshape(2, many, -1)[:, :: many // SHOWN],
        "places": near.places.reshape(2, many, UPDATES, 2)[:, :: many // SHOWN],
        "reached": reached,
    }
    return measured, arrays | {f"range_{name}": values for name, values in ranges.items()}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--small", action="store_true", help="fewer starts, learning rates and thresholds"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parents[2] / "runs" / Path(__file__).parent.name
    )
    arguments = parser.parse_args(argv)
    # near the wall 50 steps amplify a rounding error by up to 1.5^50 = 6e8
    with jax.enable_x64(True):
        measured, arrays = measure(arguments.small)
    arguments.out.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(arguments.out / "result.npz", **arrays)
    (arguments.out / "measured.json").write_text(json.dumps(measured, indent=1) + "\n")
    for name, value in measured.items():
        print(f"{name:24} {value:.6g}")


if __name__ == "__main__":
    main()
