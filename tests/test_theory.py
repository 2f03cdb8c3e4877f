"""Fixed points, critical gains and predictions against root finding and the papers' numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_moments import LENGTHS, hard_tanh, moments, reference
from scipy import optimize

from jaxstab import theory
from jaxstab.activations import names


def _fixed(name):
    return functools.partial(theory.fixed_point, name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tanh", "relu", "gelu", "hard_tanh", "softplus"])
def test_fixed_points_agree_with_scalar_root_finding(name):
    for sigma_w in (0.1, 0.6, 1.0, 1.35, 2.5, 10.0):
        point = _fixed(name)(sigma_w, 0.4)
        excess = lambda q, w=sigma_w: w**2 * reference(name, q)[0] + 0.16 - q
        first = sigma_w**2 + 0.16
        if excess(first) > 0 and excess(1e9) > 0:
            assert np.isinf(point.q), f"sigma_w = {sigma_w}: the length grows without bound"
            assert float(point.chi_1) == pytest.approx(
                sigma_w**2 * reference(name, 1e20)[1], rel=1e-8
            )
            continue
        bracket = (first, 1e9) if excess(first) > 0 else (1e-9, first)
        q = optimize.brentq(excess, *bracket, xtol=1e-15, rtol=1e-14)
        assert float(point.q) == pytest.approx(q, rel=1e-10)
        assert float(point.chi_1) == pytest.approx(sigma_w**2 * reference(name, q)[1], rel=1e-10)


@pytest.mark.parametrize(
    ("sigma_w", "q", "chi_1", "c"),
    [(1.3, 0.6070, 0.9398, 1.0), (2.5, 4.0791, 1.5852, 0.1221), (4.0, 12.604, 2.367, 0.0297)],
)
def test_poole_2016_points(sigma_w, q, chi_1, c):
    point = _fixed("tanh")(sigma_w, 0.3)
    np.testing.assert_allclose([point.q, point.chi_1, point.c], [q, chi_1, c], rtol=4e-4)


@pytest.mark.parametrize(
    ("squared", "xi_c"),
    [(1.0, 3.63), (1.4, 10.73), (1.7, 74.9), (2.0, 25.2), (3.0, 9.05), (4.0, 6.98)],
)
def test_schoenholz_2017_depth_scales(squared, xi_c):
    point = _fixed("tanh")(squared**0.5, 0.05**0.5)
    assert float(point.xi_c) == pytest.approx(xi_c, rel=2e-3)


def _critical(name):
    return lambda b: (theory.critical_points(name, b), theory.critical_sigma_w(name, b))


def test_critical_tanh():
    points, _ = _critical("tanh")(0.05**0.5)
    assert float(points.sigma_w[0] ** 2) == pytest.approx(1.76095, abs=5e-6)
    assert float(points.q[0]) == pytest.approx(0.57005, abs=5e-6)
    on_line = _fixed("tanh")(points.sigma_w[0], 0.05**0.5)
    assert float(on_line.chi_1) == pytest.approx(1.0, abs=1e-10)


def test_relu_closed_forms():
    he = _fixed("relu")(2**0.5, 0.0)
    assert [float(v) for v in (he.chi_1, he.c, he.q)] == pytest.approx([1.0, 1.0, 2.0], abs=1e-12)
    assert np.isinf([he.xi_q, he.xi_c, he.xi_grad]).all() and not he.stable
    growing = _fixed("relu")(1.7, 0.2)
    assert np.isinf(growing.q) and not growing.stable
    assert float(growing.chi_1) == pytest.approx(1.7**2 / 2, rel=1e-12)
    assert float(growing.c) == 1.0 and float(growing.xi_q) < 0
    shrinking = _fixed("relu")(1.0, 0.2)
    assert float(shrinking.q) == pytest.approx(0.04 / 0.5, rel=1e-12)
    assert bool(shrinking.stable) and float(shrinking.xi_grad) == pytest.approx(
        1 / np.log(2), rel=1e-12
    )


def test_tanh_without_bias_below_criticality_dies_to_zero_length():
    point = _fixed("tanh")(0.8, 0.0)
    assert float(point.q) == 0.0 and bool(point.stable)
    assert float(point.chi_1) == pytest.approx(0.64, rel=1e-10)
    critical = _fixed("tanh")(1.0, 0.0)
    assert float(critical.q) == 0.0 and np.isinf(critical.xi_grad) and np.isinf(critical.xi_q)


def test_selu_at_lecun_initialisation():
    point = _fixed("selu")(1.0, 0.0)
    assert float(point.q) == pytest.approx(1.0, abs=1e-9)
    assert float(point.c) == pytest.approx(0.0, abs=1e-9)
    assert 1.0 < float(point.chi_1) < 1.2


def _all_fixed(name):
    def lengths(w, b):
        points = theory.fixed_points(name, w, b)
        return points.q, points.stable, points.chi_1

    return lengths


@pytest.mark.parametrize(
    ("name", "squared", "sigma_b"),
    [("gelu", 1.99, 0.4), ("gelu", 1.999, 0.3), ("silu", 1.9999, 0.4)],
)
def test_gelu_and_silu_have_three_length_fixed_points(name, squared, sigma_b):
    q, stable, chi_1 = _all_fixed(name)(squared**0.5, sigma_b)
    found = np.isfinite(q)
    assert found.sum() == 3 and list(stable[found]) == [True, False, True]
    assert chi_1[0] < 1 < chi_1[2], "the low one is ordered, the high one chaotic"
    lengths = np.geomspace(1e-3, 1e7, 4001)
    v = (
        np.asarray([reference(name, x)[0] for x in lengths])
        if name == "gelu"
        else np.asarray(moments(name)(jnp.asarray(lengths))[0])
    )
    excess = squared * v + sigma_b**2 - lengths
    crossings = lengths[:-1][np.sign(excess[1:]) != np.sign(excess[:-1])]
    np.testing.assert_allclose(q[found], crossings, rtol=6e-3)


def test_two_fixed_points_about_to_merge_are_both_found():
    # just below the fold they are 4e-4 apart, far inside one step (10 %) of the search grid; just above both are gone
    below, above = (
        np.asarray(_all_fixed("gelu")((1.9957162025 + step) ** 0.5, 0.4)[0])
        for step in (-1e-9, 1e-9)
    )
    assert np.isfinite(below).sum() == 3
    assert below[1] / below[0] - 1 < 1e-3
    assert np.isfinite(above).sum() == 1


def test_which_fixed_point_is_reached_depends_on_the_input():
    low, high = (theory.fixed_point("gelu", 1.99**0.5, 0.4, q0).q for q0 in (0.1, 50.0))
    assert float(low) == pytest.approx(1.2617, rel=1e-4) and float(high) == pytest.approx(
        13.4468, rel=1e-4
    )


@pytest.mark.parametrize("name", ["gelu", "silu"])
def test_critical_point_on_a_repelling_length_is_listed_but_not_usable(name):
    points, usable = _critical(name)(0.05**0.5)
    assert float(points.sigma_w[0]) > 2**0.5 and not points.usable[0]
    assert np.isnan(usable)
    # its length map repels there: the slope exceeds 1
    slope = points.sigma_w[0] ** 2 * moments(name)(jnp.full(len(LENGTHS), points.q[0]))[2][0]
    assert float(slope) > 1


def test_usable_critical_gains():
    critical = lambda name, b: float(_critical(name)(b)[1])
    assert critical("relu", 0.0) == pytest.approx(2**0.5, rel=1e-12)
    assert critical("relu", 0.3) == pytest.approx(2**0.5, rel=1e-12), (
        "chi_1 is sigma_w^2 / 2 at every length"
    )
    assert critical("identity", 0.3) == pytest.approx(1.0, rel=1e-12)
    assert critical("tanh", 0.0) == pytest.approx(1.0, rel=1e-9)
    assert critical("sigmoid", 0.05**0.5) ** 2 == pytest.approx(103.1, rel=1e-3), "near 100"


@pytest.mark.slow
@pytest.mark.long
def test_no_nan_over_the_whole_range_of_gains():
    for name in names():
        for gain in np.linspace(0.1, 10.0, 8):
            point = jax.device_get(_fixed(name)(float(gain), 0.2))
            assert not np.isnan(np.asarray(point, float)).any(), f"{name} at {gain}: {point}"
            assert 0 <= point.c <= 1
            assert point.c == 1 or point.chi_1 > 1 or np.isinf(point.q), (
                f"{name} at {gain}: ordered, yet {point}"
            )


@pytest.mark.slow
def test_fixed_points_are_differentiable_in_the_gains():
    fields = ("q", "c", "chi_1", "xi_c", "xi_grad")
    several = lambda w: jnp.stack(
        [theory.fixed_point("erf", w, 0.3)._asdict()[field] for field in fields]
    )
    gradient = jax.jit(jax.jacrev(several))(2.5)
    above, below = (_fixed("erf")(2.5 + step, 0.3)._asdict() for step in (1e-5, -1e-5))
    np.testing.assert_allclose(gradient, [(above[f] - below[f]) / 2e-5 for f in fields], rtol=1e-6)


@pytest.mark.slow
def test_critical_line_is_differentiable_in_sigma_b():
    line = jax.jit(jax.grad(lambda b: theory.critical_sigma_w("tanh", b)))(0.3)
    above, below = (_critical("tanh")(0.3 + step)[1] for step in (1e-5, -1e-5))
    assert float(line) == pytest.approx(float((above - below) / 2e-5), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "tanh"])
def test_jit_and_vmap_change_nothing(name):
    # by NumPy at once, as a program, and as a program over gains: a closed form, and a table with quadrature
    eager = theory.fixed_point(name, 1.7, 0.2)
    several = jax.vmap(lambda w: theory.fixed_point(name, w, 0.2))
    mapped = jax.jit(several)(jnp.asarray([1.7, 1.0]))
    for field, one, two in zip(eager._fields, eager, mapped, strict=True):
        # 1 - c and ln chi_c keep fewer digits than c and chi_c
        np.testing.assert_allclose(two[0], one, rtol=1e-10, err_msg=field)


@pytest.mark.slow
def test_jit_changes_no_list_of_fixed_points():
    at_once, compiled = (f(1.995**0.5) for f in (_list_of_lengths, jax.jit(_list_of_lengths)))
    # two of them are about to merge: half of the digits are gone
    np.testing.assert_allclose(compiled, at_once, rtol=1e-9)


def _list_of_lengths(w):
    return theory.fixed_points("gelu", w, 0.4).q


@pytest.mark.kernels
def test_theory_is_right_to_the_precision_at_hand():
    point = _fixed("tanh")(2.5, 0.3)
    assert point.q.dtype == jnp.result_type(float)
    # the sums run over some 10^4 nodes; float32 keeps five digits of them
    rtol = 300 * float(jnp.finfo(point.q.dtype).eps) + 1e-8
    np.testing.assert_allclose(
        [point.q, point.chi_1, point.c], [4.07912388, 1.58522477, 0.122103747], rtol=rtol
    )


@pytest.mark.parametrize(
    ("w", "b", "named"),
    [(-1.0, 0.0, "sigma_w"), (np.nan, 0.0, "sigma_w"), (1.0, np.inf, "sigma_b")],
)
def test_bad_gains_are_refused(w, b, named):
    for function in (theory.fixed_point, theory.fixed_points):
        with pytest.raises(ValueError, match=f"{named} must be finite"):
            function("tanh", w, b)


def test_hard_tanh_length_scale_feels_its_kinks():
    point = theory.fixed_point("hard_tanh", 2.0, 0.3)
    q = float(point.q)
    slope = 4 * optimize.approx_fprime([q], lambda q: hard_tanh(q[0])[0], 1e-7)[0]
    assert float(point.xi_q) == pytest.approx(-1 / np.log(slope), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["hard_tanh", "gelu"])
def test_correlation_map_is_1_at_1_and_has_chi_1_as_slope_there(name):
    point = _fixed(name)(1.2, 0.3)
    at_one = jax.jit(
        lambda q: (
            theory.correlation_map(name, 1.2, 0.3, q, 1.0),
            theory.correlation_slope(name, 1.2, 0.3, q, 1.0),
        )
    )
    np.testing.assert_allclose(at_one(point.q), [1.0, point.chi_1], atol=1e-9)


# ---- the fold -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_relu_correlation_decays_polynomially_at_criticality():
    # 1 - c ~ 9 pi^2 / (2 l^2): logarithmic corrections leave a tenth at l = 2000
    _, correlation, _, _ = jax.jit(
        lambda: theory.predict("relu", 2**0.5, 0.0, [2000], width=8, d_in=8)
    )()
    assert float((1 - correlation.c[-1]) * 2000**2 / (4.5 * np.pi**2)) == pytest.approx(
        1.0, abs=0.1
    )


@pytest.mark.slow
def test_prediction_is_the_iterated_maps():
    forward, correlation, backward, spectrum = jax.jit(
        lambda: theory.predict("tanh", 1.5, 0.3, [2, 5], width=32, d_in=20, q0=1.3, c0=0.2)
    )()
    q, c, chi = [1.5**2 * 1.3 + 0.09], [(1.5**2 * 1.3 * 0.2 + 0.09) / (1.5**2 * 1.3 + 0.09)], []
    for _ in range(5):
        chi.append(1.5**2 * float(theory.derivative_moment("tanh", q[-1])))
        c.append(float(theory.correlation_map("tanh", 1.5, 0.3, q[-1], c[-1])))
        q.append(float(theory.length_map("tanh", 1.5, 0.3, q[-1])))
    np.testing.assert_allclose(forward.q, q, rtol=1e-10)
    np.testing.assert_allclose(correlation.c, c, rtol=1e-8)
    np.testing.assert_allclose(
        backward.log_grad_h[1], [sum(np.log(chi[i:])) / 2 for i in range(6)], atol=1e-10
    )
    assert np.isnan(backward.log_grad_h[0, 3:]).all() and float(backward.log_grad_h[0, 2]) == 0.0
    fed = np.asarray([20 * 1.3, *(32 * float(theory.second_moment("tanh", x)) for x in q[:-1])])
    np.testing.assert_allclose(
        backward.log_grad_theta[1] - backward.log_grad_h[1], np.log1p(fed) / 2, rtol=1e-9
    )
    assert np.isnan(spectrum.log_s).all() and spectrum.log_s.shape == (2, 20)
    expected = np.log(1.5**2 * 32 / 20) + np.asarray([sum(np.log(chi[:2])), sum(np.log(chi))])
    np.testing.assert_allclose(spectrum.log_mean_square, expected, rtol=1e-10)


def test_prediction_survives_lengths_that_grow():
    forward, correlation, backward, _ = jax.jit(
        lambda: theory.predict("relu", 4.0, 0.2, [64], width=8, d_in=8)
    )()
    assert np.isfinite(forward.log_q).all() and float(forward.log_q[-1]) > 130
    assert np.isfinite(backward.log_grad_h).all() and 0.9 < float(correlation.c[-1]) <= 1


@pytest.mark.parametrize("solve", [theory.fixed_point, theory.fixed_points])
def test_numbers_of_no_network_give_nan_where_they_are_traced(solve):
    """They came out as a stable point at q = 0 or at sigma_b^2, with finite scales."""
    traced = jax.jit(lambda w, b, q0: solve("tanh", w, b, q0))
    for wrong in (
        (1.5, 0.1, -1.0),
        (1.5, 0.1, np.nan),
        (np.nan, 0.1, 1.0),
        (-1.5, 0.1, 1.0),
        (1.5, -0.1, 1.0),
    ):
        point = traced(*wrong)
        assert not np.any(point.stable)
        assert np.isnan(point.q).all()
        assert np.isnan(point.chi_1).all()
        assert np.isnan(point.xi_c).all()
    right = traced(1.5, 0.1, 1.0)
    assert np.isclose(np.nanmax(right.q), 0.8133223, atol=1e-6)


def test_maps_of_numbers_of_no_network_are_nan():
    """A correlation of 1.5 had kernels of a matrix that is none, and a map to 1."""
    maps = jax.jit(
        lambda w, q, c: (
            theory.length_map("tanh", w, 0.1, q),
            theory.correlation_map("tanh", w, 0.1, q, c),
            theory.correlation_slope("tanh", w, 0.1, q, c),
        )
    )
    assert np.isnan(maps(-1.5, 1.0, 0.5)).all()
    assert np.isnan(maps(1.5, -1.0, 0.5)).all()
    for wrong in (1.5, -1.5, np.nan):
        assert np.isnan(maps(1.5, 1.0, wrong)[1:]).all()
        assert np.isnan(theory.correlation_map("tanh", 1.5, 0.1, 1.0, wrong))
    assert np.isfinite(maps(1.5, 1.0, 1.0)).all()
    # rounding of a float32 correlation is none of these
    assert np.isfinite(maps(1.5, 1.0, 1 + 1e-7)).all()
    known = jax.jit(lambda c0: theory.kernels("tanh", 1.5, 0.1, 2, c0=c0).nngp)(1.5)
    assert np.isnan(known[:, 0, 1]).all()
    forward, pair, *_ = jax.jit(
        lambda c0: theory.predict("tanh", 1.5, 0.1, (2,), c0=c0, width=4, d_in=4)
    )(1.5)
    assert np.isnan(pair.c).all()
    assert np.isfinite(forward.log_q).all()
