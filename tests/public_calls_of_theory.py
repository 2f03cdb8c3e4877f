"""A right call of every public function of theory, by name."""

import jax.numpy as jnp

from jaxstab import theory

CALLS = {
    "theory.compare": (
        theory.compare,
        {
            "measured": jnp.ones(3),
            "predicted": jnp.ones(3),
            "standard_error": jnp.ones(3),
            "depth": 3,
            "width": 8,
        },
    ),
    "theory.correlation_map": (
        theory.correlation_map,
        {"activation": "tanh", "sigma_w": 1.0, "sigma_b": 0.1, "q": 1.0, "c": 0.5},
    ),
    "theory.correlation_slope": (
        theory.correlation_slope,
        {"activation": "tanh", "sigma_w": 1.0, "sigma_b": 0.1, "q": 1.0, "c": 0.5},
    ),
    "theory.critical_points": (theory.critical_points, {"block": "tanh", "sigma_b": 0.1}),
    "theory.critical_sigma_w": (theory.critical_sigma_w, {"block": "tanh", "sigma_b": 0.1}),
    "theory.derivative_moment": (theory.derivative_moment, {"activation": "tanh", "q": 1.0}),
    "theory.doubly_critical": (theory.doubly_critical, {"activation": "tanh"}),
    "theory.fixed_point": (
        theory.fixed_point,
        {"block": "tanh", "sigma_w": 1.0, "sigma_b": 0.1, "q0": 1.0},
    ),
    "theory.fixed_points": (
        theory.fixed_points,
        {"block": "tanh", "sigma_w": 1.0, "sigma_b": 0.1, "q0": 1.0},
    ),
    "theory.hermite_coefficients": (
        theory.hermite_coefficients,
        {"activation": "tanh", "count": 3, "q": 1.0},
    ),
    "theory.jacobian_law": (
        theory.jacobian_law,
        {"activation": "tanh", "sigma_w": 1.0, "q": 1.0, "depth": 3, "points": 16},
    ),
    "theory.jacobian_moments": (
        theory.jacobian_moments,
        {"activation": "tanh", "sigma_w": 1.0, "q": 1.0, "depth": 3},
    ),
    "theory.kernel_map": (theory.kernel_map, {"activation": "tanh", "q": 1.0}),
    "theory.kernels": (
        theory.kernels,
        {"block": "tanh", "sigma_w": 1.0, "sigma_b": 0.1, "depth": 3, "q0": (1.0, 1.0), "c0": 0.5},
    ),
    "theory.law": (
        theory.law,
        {
            "activation": "tanh",
            "keep": 1.0,
            "depth": 3,
            "alpha": 1.0,
            "epsilon": 1e-6,
            "gate_bias": 0.0,
        },
    ),
    "theory.length_map": (
        theory.length_map,
        {"activation": "tanh", "sigma_w": 1.0, "sigma_b": 0.1, "q": 1.0},
    ),
    "theory.log_growth": (theory.log_growth, {"activation": "relu", "width": 8, "sigma_w": 1.0}),
    "theory.lyapunov_exponents": (
        theory.lyapunov_exponents,
        {"width": 8, "sigma_w": 1.0, "alive": 0.5},
    ),
    "theory.missing": (theory.missing, {"block": "tanh", "q": 1.0}),
    "theory.predict": (
        theory.predict,
        {
            "block": "tanh",
            "sigma_w": 1.0,
            "sigma_b": 0.1,
            "depths": [3],
            "width": 8,
            "d_in": 4,
            "q0": 1.0,
            "c0": 0.5,
        },
    ),
    "theory.product_law": (
        theory.product_law,
        {"d": jnp.ones(3), "share": jnp.ones(3) / 3, "depth": 3, "points": 16},
    ),
    "theory.saturation": (theory.saturation, {"activation": "tanh", "q": 1.0, "threshold": 0.1}),
    "theory.second_moment": (theory.second_moment, {"activation": "tanh", "q": 1.0}),
    "theory.second_moment_slope": (theory.second_moment_slope, {"activation": "tanh", "q": 1.0}),
    "theory.shaped": (
        theory.shaped,
        {"activation": "tanh", "layers": 5, "method": "dks", "zeta": 1.5},
    ),
    "theory.sharpness": (
        theory.sharpness,
        {
            "block": "tanh",
            "sigma_w": 1.0,
            "sigma_b": 0.1,
            "depths": [3],
            "width": 8,
            "d_in": 4,
            "outputs": 2,
            "examples": 4,
        },
    ),
    "theory.squared_slopes": (
        theory.squared_slopes,
        {"activation": "tanh", "sigma_w": 1.0, "q": 1.0},
    ),
    "theory.typical_shift": (theory.typical_shift, {"block": "tanh", "q": 1.0, "width": 8}),
}
