"""`jaxstab phase`: draw the phase diagram of one block."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxstab import theory
from jaxstab.checks import check_gains
from jaxstab.cli.blocks import check_figure, law_of, strict
from jaxstab.cli.faults import UserError, users_fault
from jaxstab.cli.settings import Phase
from jaxstab.theory.reasons import unsolvable

# most points along either axis
_MOST = 1024


def draw_phase(settings: Phase) -> None:
    """Run `jaxstab phase`.

    Args:
        settings: the flags.

    Raises:
        UserError: if the activation is unknown, a gain is out of range, or the file is not writable.
    """
    law = law_of(settings)
    with users_fault():
        check_gains(np.array(settings.sigma_w), np.array(settings.sigma_b))
    for flag, (low, high) in (("--sigma-w", settings.sigma_w), ("--sigma-b", settings.sigma_b)):
        if not low < high:
            raise UserError(
                f"{flag} must be two numbers, the lower one first, got {low:g} {high:g}"
            )
    if not 2 <= settings.points <= _MOST:
        raise UserError(f"--points must be in [2, {_MOST}], got {settings.points}")
    reason = unsolvable(law)
    if reason:
        raise UserError(f"no phase diagram: {reason}")
    check_figure("--out", settings.out)
    sigma_w = np.linspace(*settings.sigma_w, settings.points)
    sigma_b = np.linspace(*settings.sigma_b, settings.points)
    chi_1, line = (
        np.asarray(values) for values in _plane(law, jnp.asarray(sigma_w), jnp.asarray(sigma_b))
    )

    from jaxstab.report.theory_figures import phase_plane, save  # matplotlib is slow to import

    with users_fault():
        save(phase_plane(_name(settings), sigma_w, sigma_b, chi_1, line), settings.out)
    if settings.json:
        plane = {"sigma_w": sigma_w, "sigma_b": sigma_b, "chi_1": chi_1, "critical_sigma_w": line}
        print(json.dumps(strict({name: values.tolist() for name, values in plane.items()})))
        return
    print(f"phase diagram: {settings.out}")
    if reason := theory.missing(law).get("critical_points", ""):
        print(f"no critical line: {reason}")
        return
    shown = np.linspace(0, settings.points - 1, min(settings.points, 5)).astype(int)
    points = (
        f"sigma_w {line[i]:.6g} at sigma_b {sigma_b[i]:.4g}" for i in shown if np.isfinite(line[i])
    )
    print(f"critical line: {'; '.join(points) or 'none at these sigma_b'}")


def _plane(law: theory.Law, sigma_w: Array, sigma_b: Array) -> tuple[Array, Array]:
    """Compute chi_1 over (sigma_b, sigma_w), and the critical gain at each sigma_b."""

    def row(b: Array) -> Array:
        return jax.vmap(lambda w: theory.fixed_point(law, w, b).chi_1)(sigma_w)

    return jax.jit(jax.vmap(row))(sigma_b), jax.jit(
        jax.vmap(lambda b: theory.critical_sigma_w(law, b))
    )(sigma_b)


def _name(settings: Phase) -> str:
    cures = [settings.norm and f"{settings.norm} norm", settings.skip and f"{settings.skip} skip"]
    if settings.dropout:
        cures.append(f"dropout {settings.dropout:g}")
    return ", ".join(filter(None, [settings.activation, *cures]))
