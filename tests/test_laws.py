"""laws.py, frontiers.py and robust.py: gradients, the solver, recovery of known laws, coverage of the
intervals."""
import json

import numpy as np
import pytest

from runtime.basics import UserError
from scaling.laws import forms as laws
from scaling.laws import frontiers
from scaling.laws import solver as robust

SURFACE = {"E": 1.8, "A": 30.0, "B": 800.0, "alpha": 0.24, "beta": 0.33}
BROKEN = {"form": "broken", "range": {"x": 0}, "L_inf": 0.5, "A": 30.0, "c0": 0.1, "c1": 0.3, "x_break": 1e7,
          "f": 0.2}


def laptop(rng, sigma=0.004, law=SURFACE):
    """A laptop's study: five budgets over a factor 16, five sizes at each. Returns N, D, L."""
    C, m = np.repeat(np.geomspace(1e14, 1.6e15, 5), 5), np.tile([0.25, 0.5, 1, 2, 4], 5)
    N = 0.1 * np.sqrt(C / 6) * m
    D = C / (6 * N)
    return N, D, laws.surface_loss(law, N, D) * np.exp(sigma * rng.standard_normal(25))


def curves(rng, law, between=0.003, within=0.001, sizes=9, points=60):
    """Learning curves of nine sizes, each with an error of its own. Returns N, C, L, run."""
    N = np.repeat(np.geomspace(1e5, 1e7, sizes) * np.exp(0.1 * rng.standard_normal(sizes)), points)
    D = np.tile(np.geomspace(1, 4000, points), sizes) * np.repeat(np.geomspace(1e5, 1e7, sizes), points) / 10
    error = np.repeat(between * rng.standard_normal(sizes), points) + within * rng.standard_normal(len(N))
    run = np.repeat(np.arange(sizes).astype(str), points)
    return N, 6 * N * D, laws.surface_loss(law, N, D) * np.exp(error), run


# ---- Gradients and the solver. ----

@pytest.mark.parametrize("model, theta, k", [
    (laws.additive, [0.4, 0.1, 0.3], 1), (laws.additive, [0.4, 0.1, 0.3, -0.2, 0.5], 2),
    (laws.kaplan_nd, [3.0, 0.8, 2.0, 0.1], 2), (laws.broken, [0.1, 0.5, 0.2, 0.3, 0.4, -0.7], 1),
    (laws.repeated, [0.6, 6.2, 7.3, 0.35, 0.36, 2.7, 1.7], 3),
    (laws.repeated, [0.6, 5.0, 7.3, 0.3, 0.5, 0.0, -1.0], 3)])
def test_gradients_are_exact(model, theta, k):
    rng = np.random.default_rng(0)
    X = rng.normal(0, 2, (k, 20)) if k < 3 else rng.uniform([[16], [19], [18]], [[24], [26], [24]], (3, 20))
    theta = np.array([theta])
    _, gradient = model(theta, X)
    for j, step in enumerate(1e-6 * np.eye(theta.shape[1])):
        numeric = (model(theta + step, X)[0] - model(theta - step, X)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, j], numeric, atol=2e-8)


def test_models_say_what_loss_of_says():
    N, D, U = np.array([1e8, 5e9]), np.array([4e10, 9e10]), np.array([1e10, 2e10])
    c = laws.C4
    logs = {k: np.log(c[k]) for k in ("E", "A", "B", "R_D", "R_N")}
    theta = np.array([[(c | logs)[k] for k in ("E", "A", "B", "alpha", "beta", "R_D", "R_N")]])
    log_loss, _ = laws.repeated(theta, np.log([N, D, U]))
    np.testing.assert_allclose(np.exp(log_loss[0]), laws.repeated_loss(c, N, D, U))
    p = {"form": "kaplan_nd", "alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
    r = 0.076 / 0.103
    theta = np.array([[r * np.log(6.4e13), r, np.log(1.8e13), 0.103]])
    log_loss, _ = laws.kaplan_nd(theta, np.log([N, D]))
    np.testing.assert_allclose(np.exp(log_loss[0]), laws.loss_of(p, {"N": N, "D": D}))


def test_the_solver_finds_what_brute_force_finds():
    """Nelder-Mead with restarts on the same objective gets no lower, on data where the answer is no
    secret."""
    from scipy.optimize import minimize
    N, D, L = laptop(np.random.default_rng(3), 0.02)
    fit = laws.fit_surface(N, D, L, bootstrap=0)

    def objective(t):
        return robust.huber(np.log(L) - np.log(np.exp(t[0]) + np.exp(t[1] - t[2] * np.log(N))
                                               + np.exp(t[3] - t[4] * np.log(D)))).sum() * 1e3
    x = np.array([np.log(1.8), np.log(30), 0.24, np.log(800), 0.33])
    options = {"maxfev": 4000, "xatol": 1e-10, "fatol": 1e-12}
    for _ in range(5):
        x = minimize(objective, x, method="Nelder-Mead", options=options).x
    assert fit["objective"] <= objective(x) / 1e3 * (1 + 1e-6)
    assert fit["health"]["improvable"] < 1e-6 and fit["health"]["moved"] > 0.1


def test_batches_in_chunks_give_the_same(monkeypatch):
    N, D, L = laptop(np.random.default_rng(0))
    whole = laws.fit_surface(N, D, L, bootstrap=50)
    monkeypatch.setattr(robust, "CHUNK", 1000)
    parts = laws.fit_surface(N, D, L, bootstrap=50)
    np.testing.assert_allclose(parts["boot"]["alpha"], whole["boot"]["alpha"], rtol=1e-5)


# ---- Recovery without noise. ----

def test_exact_data_give_exact_laws():
    N, D, L = laptop(np.random.default_rng(0), 0.0)
    fit = laws.fit_surface(N, D, L, bootstrap=0)
    for k, v in SURFACE.items():
        assert fit[k] == pytest.approx(v, rel=1e-4)
    x = np.geomspace(1e5, 1e8, 8)
    fit = laws.fit_power(x, 2 + (1e7 / x) ** 0.3, bootstrap=0)
    assert (fit["alpha"], fit["L_inf"], fit["N_c"]) == pytest.approx((0.3, 2.0, 1e7), rel=1e-4)
    fit = laws.fit_power(x, (1e7 / x) ** 0.3, irreducible=False, name="C", bootstrap=0)
    assert (fit["alpha"], fit["L_inf"], fit["C_c"]) == pytest.approx((0.3, 0.0, 1e7), rel=1e-4)
    grid = np.repeat(np.geomspace(1e5, 1e8, 5), 5), np.tile(np.geomspace(1e6, 1e10, 5), 5)
    kaplan = {"form": "kaplan_nd", "alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
    fit = laws.fit_kaplan_nd(*grid, laws.loss_of(kaplan, dict(zip("ND", grid))), bootstrap=0)
    assert (fit["alpha_N"], fit["alpha_D"]) == pytest.approx((0.076, 0.103), rel=1e-4)
    assert (fit["N_c"], fit["D_c"]) == pytest.approx((6.4e13, 1.8e13), rel=1e-2)
    kaplan = {"form": "kaplan_ns", "alpha_N": 0.077, "alpha_S": 0.76, "N_c": 6.5e13, "S_c": 2.1e3}
    fit = laws.fit_kaplan_ns(*grid, laws.loss_of(kaplan, dict(zip("NS", grid))), bootstrap=0)
    assert (fit["alpha_N"], fit["alpha_S"]) == pytest.approx((0.077, 0.76), rel=1e-3)


def test_surface_with_e_fixed():
    law = SURFACE | {"E": 0.0}
    N, D, L = laptop(np.random.default_rng(0), 0.0, law)
    fit = laws.fit_surface(N, D, L, E=0.0, bootstrap=20)
    assert fit["E"] == 0 and fit["free"] == 4 and "E" not in fit["ci"]
    assert (fit["alpha"], fit["beta"]) == pytest.approx((0.24, 0.33), rel=1e-4)


def test_isoflop_methods_find_the_vertex_of_a_parabola():
    C = np.repeat(np.geomspace(1e15, 1e17, 4), 7)
    best = 0.2 * C ** 0.5
    N = best * np.tile(2.0 ** np.arange(-3, 4), 4) * 1.1
    L = (3 * (C / 1e15) ** -0.05) * np.exp(0.02 * np.log(N / best) ** 2)
    for method, tolerance in (("parabola", 1e-9), ("parabola5", 1e-9), ("akima", 0.01)):
        fit = frontiers.fit_isoflop(N, C, L, method=method, bootstrap=0)
        assert fit["a"] == pytest.approx(0.5, abs=tolerance)
        found = [p["N_opt"] for p in fit["points"]]
        assert found == pytest.approx(0.2 * np.unique(C) ** 0.5, rel=max(tolerance, 1e-6))


def test_optimum_agrees_with_a_search():
    N, D, L = laptop(np.random.default_rng(0))
    fit = laws.fit_surface(N, D, L, bootstrap=50)
    o = laws.optimum(fit, 1e16)
    grid = np.geomspace(1e5, 1e9, 200_001)
    loss = laws.predict_surface(fit, grid, 1e16 / (6 * grid))
    assert o["N_opt"] == pytest.approx(grid[loss.argmin()], rel=1e-3)
    assert o["loss"] == pytest.approx(loss.min(), rel=1e-9)
    assert o["N_opt"] * o["D_opt"] * 6 == pytest.approx(1e16)
    assert o["outside"] == {"C": pytest.approx(1e16 / 1.6e15)}
    assert o["ci"]["loss"][0] < o["loss"] < o["ci"]["loss"][1]


# ---- Coverage: 95 % intervals hold the truth in 90 to 98 % of 200 simulations, for every form. ----

def simulate_surface(rng):
    N, D, L = laptop(rng)
    fit = laws.fit_surface(N, D, L, bootstrap=200)
    C = 4.8e15                                                          # three times the largest budget
    n, d, loss = laws.surface_optimum(SURFACE, C)
    new = laws.predict_interval(fit, n, d)
    measured = loss * np.exp(0.004 * rng.standard_normal())
    intervals = fit["ci"] | laws.optimum(fit, C)["ci"] | {"measured": [new["lo"][0], new["hi"][0]]}
    truth = SURFACE | {"a": 0.33 / 0.57, "N_opt": n, "loss": loss, "measured": measured}
    return intervals, {k: truth[k] for k in ("E", "alpha", "beta", "a", "N_opt", "loss", "measured")}


def simulate_clustered(rng):
    N, D = np.repeat(np.geomspace(1e5, 1e7, 10), 15), np.tile(np.geomspace(5e6, 1e9, 15), 10)
    L = laws.surface_loss(SURFACE, N, D) * np.exp(np.repeat(0.004 * rng.standard_normal(10), 15)
                                                  + 0.002 * rng.standard_normal(150))
    fit = laws.fit_surface(N, D, L, np.repeat(np.arange(10), 15), bootstrap=100)
    return fit["ci"], {k: SURFACE[k] for k in ("E", "alpha")}


def simulate_power(rng, n=12, floor=2.0):
    x = np.geomspace(1e5, 3e7, n)
    L = (floor + (1e7 / x) ** 0.3) * np.exp(0.003 * rng.standard_normal(n))
    fit = laws.fit_power(x, L, irreducible=floor > 0, bootstrap=200)
    return fit["ci"], {"alpha": 0.3, "N_c": 1e7} | ({"L_inf": floor} if floor else {})


def simulate_kaplan_nd(rng):
    N, D = np.repeat(np.geomspace(1e5, 1e8, 6), 6), np.tile(np.geomspace(1e7, 1e10, 6), 6)
    law = {"form": "kaplan_nd", "alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
    L = laws.loss_of(law, {"N": N, "D": D}) * np.exp(0.01 * rng.standard_normal(36))
    return laws.fit_kaplan_nd(N, D, L, bootstrap=200)["ci"], {k: law[k] for k in ("alpha_N", "alpha_D")}


def simulate_kaplan_ns(rng):
    N, S = np.repeat(np.geomspace(1e5, 1e8, 6), 8), np.tile(np.geomspace(3e2, 1e5, 8), 6)
    law = {"form": "kaplan_ns", "alpha_N": 0.077, "alpha_S": 0.76, "N_c": 6.5e13, "S_c": 2.1e3}
    L = laws.loss_of(law, {"N": N, "S": S}) * np.exp(0.01 * rng.standard_normal(48))
    return laws.fit_kaplan_ns(N, S, L, bootstrap=200)["ci"], {k: law[k] for k in ("alpha_N", "alpha_S")}


def simulate_repeated(rng):
    U = 10 ** rng.uniform(8, 10, 60)
    D, N = U * 10 ** rng.uniform(0, 2, 60), 10 ** rng.uniform(7, 9.5, 60)
    L = laws.repeated_loss(laws.C4, N, D, U) * np.exp(0.005 * rng.standard_normal(60))
    return laws.fit_repeated(N, D, U, L, bootstrap=200)["ci"], {k: laws.C4[k] for k in ("R_D", "R_N")}


def simulate_broken(rng):
    x = np.geomspace(1e4, 1e9, 40)
    law = BROKEN | {"L_inf": 1.0, "c0": 0.2, "c1": 0.2, "x_break": 3e6, "f": 0.3}
    L = laws.loss_of(law, {"x": x}) * np.exp(0.002 * rng.standard_normal(40))
    return laws.fit_broken(x, L, name="x", bootstrap=100)["ci"], {k: law[k] for k in ("c0", "x_break")}


def simulate_isoflop(rng):
    law = {"E": 1.8, "A": 48.0, "B": 120.0, "alpha": 0.34, "beta": 0.36}
    C = np.repeat(np.geomspace(1e14, 1.6e15, 5), 5)
    off = np.repeat(np.exp(rng.uniform(-0.4, 0.4, 5)), 5)
    N = laws.surface_optimum(law, C)[0] * off * np.tile(2.0 ** np.arange(-2, 3), 5)
    L = laws.surface_loss(law, N, C / (6 * N)) * np.exp(0.004 * rng.standard_normal(25))
    fit = frontiers.fit_isoflop(N, C, L, bootstrap=200)
    n, _, loss = laws.surface_optimum(law, 4.8e15)
    return fit["ci"] | laws.optimum(fit, 4.8e15)["ci"], {"a": 0.36 / 0.7, "N_opt": n, "loss": loss}


def simulate_envelope(rng):
    law = {"E": 1.5, "A": 50.0, "B": 200.0, "alpha": 0.3, "beta": 0.34}
    return frontiers.fit_envelope(*curves(rng, law), bootstrap=200)["ci"], {"a": 0.34 / 0.64}


def simulate_frontier_of_curves(rng):
    law = {"E": 0.0, "A": 50.0, "B": 123.0, "alpha": 0.3, "beta": 0.3}      # its frontier is C^-0.15
    _, C, L, run = curves(rng, law)
    return frontiers.fit_loss_vs_compute(C, L, run, bootstrap=100)["ci"], {"between": 0.15}


def simulate_frontier_of_runs(rng):
    C = np.geomspace(1e13, 1e16, 20)
    L = (1e25 / C) ** 0.055 * np.exp(0.005 * rng.standard_normal(20))
    return frontiers.fit_loss_vs_compute(C, L, bootstrap=100)["ci"], {"alpha": 0.055}


SIMULATIONS = [simulate_surface, simulate_clustered, simulate_power, lambda rng: simulate_power(rng, 8, 0.0),
               simulate_kaplan_nd, simulate_kaplan_ns, simulate_repeated, simulate_broken, simulate_isoflop,
               simulate_envelope, simulate_frontier_of_curves, simulate_frontier_of_runs]


@pytest.mark.parametrize("simulate", SIMULATIONS, ids=lambda f: f.__name__)
def test_coverage(simulate):
    hits, refused = [], 0
    for s in range(200):
        try:
            intervals, truth = simulate(np.random.default_rng(s))
        except UserError:                       # noise may leave a hull of two points, which is refused
            refused += 1
            continue
        hits.append([intervals[k][0] <= v <= intervals[k][1] for k, v in truth.items()])
    share = dict(zip(truth, np.mean(hits, 0)))
    assert refused <= 10
    assert all(0.90 <= v <= 0.98 for v in share.values()), share


def test_profile_of_e_covers_and_knows_when_e_is_not_identified():
    inside = []
    for s in range(60):
        p = laws.profile_E(*laptop(np.random.default_rng(s)), bootstrap=100)
        inside.append((p["lo"] or 0) <= SURFACE["E"] <= (p["hi"] or np.inf))
    assert 0.88 <= np.mean(inside) <= 1
    noisy = laptop(np.random.default_rng(0), 0.02)                     # 2 % noise: E could be nothing
    assert laws.profile_E(*noisy)["lo"] is None and not laws.profile_E(*noisy)["identified"]
    lines = laws.fit_surface(*laptop(np.random.default_rng(1), 0.01, SURFACE | {"E": 0.0}))["health"]["lines"]
    assert any(line.startswith("E is not identified") for line in lines)


# ---- Health, comparison, refusals. ----

def test_one_run_that_carries_the_fit_is_named():
    rng = np.random.default_rng(1)
    x = np.append(np.geomspace(1e6, 2e6, 24), 1e11)        # the last run alone says how steep the law is
    L = (1e9 / x) ** 0.1 * np.exp(0.005 * rng.standard_normal(25))
    fit = laws.fit_power(x, L, irreducible=False)
    assert fit["health"]["influence"]["row"] == 24 and fit["health"]["influence"]["shift"] > 2
    assert any(line.startswith("one run (row 25) moves alpha") for line in fit["health"]["lines"])
    even = np.geomspace(1e6, 1e9, 25)
    L = (1e9 / even) ** 0.1 * np.exp(0.005 * rng.standard_normal(25))
    fit = laws.fit_power(even, L, irreducible=False)
    assert not fit["health"]["lines"]


def test_residuals_far_above_seed_noise_are_flagged():
    N, D, L = laptop(np.random.default_rng(0), 0.01)
    for noise, flagged in ((0.001, True), (0.01, False)):
        lines = laws.fit_surface(N, D, L, noise=noise)["health"]["lines"]
        assert any("noise between seeds" in line for line in lines) == flagged


def test_seed_noise_is_recovered():
    rng = np.random.default_rng(0)
    key = np.repeat(np.arange(200), 3).astype(str)[:, None]
    sd, df = robust.seed_noise(key, rng.normal(np.repeat(rng.normal(size=200), 3), 0.004))
    assert df == 400 and sd == pytest.approx(0.004, rel=0.1)
    assert robust.seed_noise(np.arange(5).astype(str)[:, None], np.ones(5))[1] == 0


def test_the_right_form_is_preferred():
    rng = np.random.default_rng(1)
    N, D = np.repeat(np.geomspace(1e5, 1e8, 7), 7), np.tile(np.geomspace(1e7, 1e10, 7), 7)
    noise = np.exp(0.003 * rng.standard_normal(49))
    kaplan = {"form": "kaplan_nd", "alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
    for law, want in ((SURFACE | {"form": "surface"}, "E + A/N^alpha + B/D^beta"), (kaplan, "Kaplan L(N, D)"),
                      (SURFACE | {"form": "surface", "E": 0.0}, "A/N^alpha + B/D^beta")):
        found = laws.compare_surfaces(N, D, laws.loss_of(law, {"N": N, "D": D}) * noise)
        assert found["preferred"]["aicc"] == want and found["forms"][want]["held_out"] < 0.01
    x = np.geomspace(1e4, 1e10, 40)
    L = laws.loss_of(BROKEN, {"x": x}) * np.exp(0.002 * rng.standard_normal(40))
    found = laws.compare_powers(x, L, "x")
    assert found["preferred"]["aicc"] == "broken power law"


def test_isoflop_refuses_a_budget_without_a_minimum_inside():
    C = np.repeat([1e15, 4e15, 1.6e16], 5)
    N = 0.1 * np.sqrt(C) * np.tile(2.0 ** np.arange(-2, 3), 3)
    L = 3 * C ** -0.02 * np.exp(0.02 * np.log(N / (0.1 * np.sqrt(C))) ** 2)
    L[10:] = 3.0 - 0.1 * np.log(N[10:] / N[10])                        # the last budget only falls
    fit = frontiers.fit_isoflop(N, C, L)
    why = [p["refused"] for p in fit["points"]]
    assert not why[0] and not why[1] and why[2] and fit["budgets"] == 2
    assert any("refused" in line for line in fit["health"]["lines"])
    L[5:10] = 2 - 0.02 * np.log(N[5:10] / 3e6) ** 2
    with pytest.raises(UserError, match="opens downward"):
        frontiers.fit_isoflop(N, C, L)


def test_budgets_are_groups_not_a_continuum():
    C = np.concatenate([1e15 * np.array([0.97, 1, 1.03]), 4e15 * np.array([1, 1.05, 1.02])])
    assert len(np.unique(frontiers.group_budgets(C))) == 2
    assert np.isnan(frontiers.group_budgets(np.geomspace(1e15, 1e17, 100))).all()


def test_hull_and_kink():
    u = np.linspace(0, 10, 40)
    v = np.maximum(-0.3 * u, -0.9 - 0.1 * (u - 3))
    hull = frontiers.lower_hull(np.append(u, u), np.append(v, v + 0.1))
    assert set(hull) <= set(range(40)) and hull[0] == 0 and hull[-1] == 39
    kink = frontiers.find_kink(u, v + 1e-3 * np.random.default_rng(0).standard_normal(40), 39)
    assert np.log(kink["between"][0]) == pytest.approx(3, abs=0.6)
    assert kink["slopes"] == pytest.approx([-0.3, -0.1], abs=0.01)
    assert frontiers.find_kink(u, -0.2 * u + 1e-3 * np.random.default_rng(0).standard_normal(40), 39) is None
    assert list(frontiers.pareto(np.array([1., 2, 3, 4]), np.array([3., 4, 2, 2]))) == [0, 2]


def test_intervals_are_reproducible_and_plain_json():
    N, D, L = laptop(np.random.default_rng(0))
    first, second = (laws.fit_surface(N, D, L, bootstrap=100, seed=4) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    again = json.loads(json.dumps(first))
    assert laws.optimum(again, 1e16) == laws.optimum(first, 1e16)
    wide, law = laws.predict_interval(first, 1e6, 1e9), laws.predict_interval(first, 1e6, 1e9, noise=0.0)
    assert wide["lo"][0] < law["lo"][0] < law["hi"][0] < wide["hi"][0]
    with pytest.raises(UserError, match="no bootstrap"):
        laws.predict_interval(laws.fit_surface(N, D, L, bootstrap=0), 1e6, 1e9)


@pytest.mark.parametrize("change, message", [
    (lambda N, D, L: (N[:5], D[:5], L[:5]), "5 runs cannot determine 5 parameters"),
    (lambda N, D, L: (N, D, -L), "loss must be a positive number: row 1"),
    (lambda N, D, L: (N, D, np.where(np.arange(25) == 3, np.nan, L)), "positive number: row 4 holds nan"),
    (lambda N, D, L: (N * 0 + 1e6, D, L), "all runs have the same value of params"),
    (lambda N, D, L: (N, D * 0, L), "tokens must be a positive number: row 1"),
    (lambda N, D, L: (N, D[:-1], L), "tokens has 24 values where params has 25"),
])
def test_bad_data_are_one_clear_line(change, message):
    with pytest.raises(UserError) as e:
        laws.fit_surface(*change(*laptop(np.random.default_rng(0))))
    assert message in str(e.value) and "\n" not in str(e.value)
