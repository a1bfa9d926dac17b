"""scaling/laws: gradients, the solver, recovery of known laws, coverage of the intervals, health."""
import json

import numpy as np
import pytest
from scipy.optimize import least_squares, minimize_scalar

from runtime.basics import UserError
from scaling import fit as fits
from scaling import verdict
from scaling.laws import compare, difference, forms, frontiers, health, models, profiles, solver
from scaling.laws import hull as hulls
from scaling.tables.runs import select

SURFACE = {"E": 1.8, "A": 30.0, "B": 800.0, "alpha": 0.24, "beta": 0.33}
BROKEN = {"form": "broken", "L_inf": 0.5, "A": 30.0, "c0": 0.1, "c1": 0.3, "x_break": 1e7,
          "f": 0.2}


def laptop(rng, sigma=0.004, law=SURFACE):
    """A laptop's study: five budgets over a factor 16, five sizes at each. Returns N, D, L."""
    C, m = np.repeat(np.geomspace(1e14, 1.6e15, 5), 5), np.tile([0.25, 0.5, 1, 2, 4], 5)
    N = 0.1 * np.sqrt(C / 6) * m
    D = C / (6 * N)
    return N, D, forms.surface_loss(law, N, D) * np.exp(sigma * rng.standard_normal(25))


def curves(rng, law, between=0.003, within=0.001, sizes=9, points=60):
    """Learning curves of nine sizes, each with an error of its own. Returns N, C, L, run."""
    N = np.repeat(np.geomspace(1e5, 1e7, sizes) * np.exp(0.1 * rng.standard_normal(sizes)), points)
    D = np.tile(np.geomspace(1, 4000, points), sizes) * np.repeat(np.geomspace(1e5, 1e7, sizes), points) / 10
    error = np.repeat(between * rng.standard_normal(sizes), points) + within * rng.standard_normal(len(N))
    run = np.repeat(np.arange(sizes).astype(str), points)
    return N, 6 * N * D, forms.surface_loss(law, N, D) * np.exp(error), run


def flops_per_token(N):
    """What a count of all matmuls gives where N is the body alone: it takes head and attention too."""
    return 6 * N * (1 + 30 * N ** -0.25)


def best_run(law, C):
    """(N, D, loss) of the least loss for C FLOPs at `flops_per_token`, by a search."""
    def loss(x):
        return forms.surface_loss(law, np.exp(x), C / flops_per_token(np.exp(x)))
    n = minimize_scalar(loss, bounds=(8, 30), method="bounded", options={"xatol": 1e-10})
    return np.exp(n.x), C / flops_per_token(np.exp(n.x)), n.fun


def other_flops(rng, sigma=0.004):
    """`laptop` where C is not 6 N D: N, D, C, L of five sizes about the best one at each budget."""
    budgets = np.geomspace(1e14, 1e16, 5)
    C = np.repeat(budgets, 5)
    off = np.repeat(np.exp(rng.uniform(-0.3, 0.3, 5)), 5) * np.tile(2.0 ** np.arange(-2, 3), 5)
    N = np.repeat([best_run(SURFACE, c)[0] for c in budgets], 5) * off
    D = C / flops_per_token(N)
    return N, D, C, forms.surface_loss(SURFACE, N, D) * np.exp(sigma * rng.standard_normal(25))


# ---- Gradients and the solver. ----

@pytest.mark.parametrize("model, theta, k", [
    (models.additive, [0.4, 0.1, 0.3], 1), (models.additive, [0.4, 0.1, 0.3, -0.2, 0.5], 2),
    (models.one_exponent, [0.4, 0.1, -0.2, 0.3], 2),
    (models.kaplan_nd, [3.0, 0.8, 2.0, 0.1], 2), (models.broken, [0.1, 0.5, 0.2, 0.3, 0.4, -0.7], 1),
    (models.repeated, [0.6, 6.2, 0.35, 7.3, 0.36, 2.7, 1.7], 3),
    (models.repeated, [0.6, 5.0, 0.3, 7.3, 0.5, 0.0, -1.0], 3)])
def test_gradients_are_exact(model, theta, k):
    rng = np.random.default_rng(0)
    X = rng.normal(0, 2, (k, 20)) if k < 3 else rng.uniform([[16], [19], [18]], [[24], [26], [24]], (3, 20))
    theta = np.array([theta])
    value, gradient = model(theta, X)
    alone, slope = model(np.repeat(theta, 20, 0), X.T[:, :, None])      # 20 problems, each with its input
    np.testing.assert_allclose(alone[:, 0], value[0], rtol=1e-14)
    np.testing.assert_allclose(slope[:, :, 0].T, gradient[0], rtol=1e-12)
    for j, step in enumerate(1e-6 * np.eye(theta.shape[1])):
        numeric = (model(theta + step, X)[0] - model(theta - step, X)[0]) / 2e-6
        np.testing.assert_allclose(gradient[:, j], numeric, atol=2e-8)


def broken_loss(p, x):
    bend = (1 + (x / p["x_break"]) ** (1 / p["f"])) ** (-p["c1"] * p["f"])
    return p["L_inf"] + p["A"] * x ** -p["c0"] * bend


def repeated_loss(p, N, D, U):
    """Muennighoff et al. 2023, eqs. 5, 6 and 8, as they print them."""
    def worth(unique, total, R):
        return unique * (1 + R * (1 - np.exp(-(total / unique - 1) / R)))
    U = np.minimum(U, D)
    G = (p["alpha"] * p["A"] / (p["beta"] * p["B"])) ** (1 / (p["alpha"] + p["beta"]))
    N_opt = G * (U * G) ** (p["beta"] / p["alpha"])
    return (p["E"] + p["A"] / worth(np.minimum(N, N_opt), N, p["R_N"]) ** p["alpha"]
            + p["B"] / worth(U, D, p["R_D"]) ** p["beta"])


KAPLAN_ND = {"form": "kaplan_nd", "alpha_N": 0.076, "alpha_D": 0.103, "N_c": 6.4e13, "D_c": 1.8e13}
KAPLAN_NS = {"form": "kaplan_ns", "alpha_N": 0.077, "alpha_S": 0.76, "N_c": 6.5e13, "S_c": 2.1e3}
INPUTS = {"N": np.array([1e8, 2e9, 5e9]), "D": np.array([4e10, 5e9, 9e10]), "U": np.array([1e10, 8e9, 2e10]),
          "S": np.array([3e3, 1e4, 1e5]), "C": np.array([1e18, 1e20, 1e21]), "x": np.array([1e5, 1e7, 1e9])}
IN_PRINT = [                                            # each law as its paper prints it
    (SURFACE | {"form": "surface"},
     lambda p, N, D: p["E"] + p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]),
    ({"form": "power", "alpha": 0.3, "x_c": 1e7, "L_inf": 0.0}, lambda p, x: (p["x_c"] / x) ** p["alpha"]),
    ({"form": "frontier", "gamma": 0.05, "log_C_c": 60.0, "L_inf": 1.5},
     lambda p, C: p["L_inf"] + (np.exp(p["log_C_c"]) / C) ** p["gamma"]),
    ({"form": "one_exponent", "E": 1.7, "A": 90.0, "B": 400.0, "eta": 0.31},
     lambda p, N, D: p["E"] + p["A"] / N ** p["eta"] + p["B"] / D ** p["eta"]),
    (KAPLAN_ND,
     lambda p, N, D: ((p["N_c"] / N) ** (p["alpha_N"] / p["alpha_D"]) + p["D_c"] / D) ** p["alpha_D"]),
    (KAPLAN_NS, lambda p, N, S: (p["N_c"] / N) ** p["alpha_N"] + (p["S_c"] / S) ** p["alpha_S"]),
    (BROKEN, broken_loss),
    (forms.C4 | {"form": "repeated"}, repeated_loss)]


@pytest.mark.parametrize("law, in_print", IN_PRINT, ids=lambda v: v["form"] if isinstance(v, dict) else "")
def test_loss_of_says_what_the_papers_print(law, in_print):
    form = models.FORMS[law["form"]]
    inputs = {k: INPUTS[k] for k in form.inputs.split()}
    loss = in_print(law, *inputs.values())
    assert forms.loss_of(law, inputs) == pytest.approx(loss, rel=1e-12)
    draws = {k: v if k == "form" else np.array([[v], [v]]) for k, v in law.items()}
    assert forms.loss_of(draws, inputs) == pytest.approx(np.array([loss, loss]), rel=1e-12)
    at_one = forms.loss_of(law, {k: float(v[0]) for k, v in inputs.items()})
    assert isinstance(at_one, float) and at_one == pytest.approx(loss[0], rel=1e-12)
    # There and back again, and with inputs centred somewhere, as the fits have them.
    with np.errstate(divide="ignore"):                  # log 0 is the floor of a law without one
        theta = np.array([form.theta(**law)])
    back = form.natural(theta, *np.zeros(len(inputs)))
    assert all(back[k][0] == pytest.approx(law[k], rel=1e-12) for k in law if k in back)
    center = np.full(len(inputs), 0.0 if law["form"] == "repeated" else 17.0)
    there, _ = form.model(theta, np.log(list(inputs.values())) - center[:, None])
    shifted = {"form": law["form"]} | {k: v[0] for k, v in form.natural(theta, *center).items()}
    assert forms.loss_of(shifted, inputs) == pytest.approx(np.exp(there[0]), rel=1e-12)


def test_every_form_is_tested():
    assert {law["form"] for law, _ in IN_PRINT} == set(models.FORMS)


def test_the_solver_finds_what_scipy_finds_from_every_start():
    """least_squares(loss="huber") has the same objective, to the digit, and the same optimum."""
    N, D, L = laptop(np.random.default_rng(3), 0.02)
    fit = forms.fit_surface(N, D, L, bootstrap=0)
    problem = forms.surface_problem(N, D, L)

    def residuals(theta):
        return problem.y - problem.model(theta[None], problem.X)[0][0]

    def jacobian(theta):
        return -problem.model(theta[None], problem.X)[1][0].T

    box = problem.lo, problem.hi
    for start in problem.starts[::8]:
        found = least_squares(residuals, np.clip(start, *box), jacobian, box, loss="huber",
                              f_scale=solver.DELTA, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15)
        assert found.cost == pytest.approx(solver.huber(residuals(found.x)).sum(), rel=1e-12)
        assert fit["objective"] <= found.cost * (1 + 1e-9)
        assert found.cost == pytest.approx(fit["objective"], rel=1e-5)
    assert fit["health"]["improvable"] < 1e-6


def test_batches_in_chunks_give_the_same(monkeypatch):
    N, D, L = laptop(np.random.default_rng(0))
    whole = forms.fit_surface(N, D, L, bootstrap=50)
    monkeypatch.setattr(solver, "CHUNK", 1000)
    parts = forms.fit_surface(N, D, L, bootstrap=50)
    np.testing.assert_allclose(parts["boot"]["alpha"], whole["boot"]["alpha"], rtol=1e-5)


# ---- Recovery without noise. ----

def test_exact_data_give_exact_laws():
    N, D, L = laptop(np.random.default_rng(0), 0.0)
    fit = forms.fit_surface(N, D, L, bootstrap=0)
    for k, v in SURFACE.items():
        assert fit[k] == pytest.approx(v, rel=1e-4)
    x = np.geomspace(1e5, 1e8, 8)
    fit = forms.fit_power(x, 2 + (1e7 / x) ** 0.3, bootstrap=0)
    assert (fit["alpha"], fit["L_inf"], fit["N_c"]) == pytest.approx((0.3, 2.0, 1e7), rel=1e-4)
    fit = forms.fit_power(x, (1e7 / x) ** 0.3, irreducible=False, name="C", bootstrap=0)
    assert (fit["alpha"], fit["L_inf"], fit["C_c"]) == pytest.approx((0.3, 0.0, 1e7), rel=1e-4)
    grid = np.repeat(np.geomspace(1e5, 1e8, 5), 5), np.tile(np.geomspace(1e6, 1e10, 5), 5)
    fit = forms.fit_kaplan_nd(*grid, forms.loss_of(KAPLAN_ND, dict(zip("ND", grid))), bootstrap=0)
    assert (fit["alpha_N"], fit["alpha_D"]) == pytest.approx((0.076, 0.103), rel=1e-4)
    assert (fit["N_c"], fit["D_c"]) == pytest.approx((6.4e13, 1.8e13), rel=1e-2)
    fit = forms.fit_kaplan_ns(*grid, forms.loss_of(KAPLAN_NS, dict(zip("NS", grid))), bootstrap=0)
    assert (fit["alpha_N"], fit["alpha_S"]) == pytest.approx((0.077, 0.76), rel=1e-3)


def test_surface_with_e_fixed():
    law = SURFACE | {"E": 0.0}
    N, D, L = laptop(np.random.default_rng(0), 0.0, law)
    fit = forms.fit_surface(N, D, L, E=0.0, bootstrap=20)
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
    fit = forms.fit_surface(N, D, L, bootstrap=50)
    o = forms.optimum(fit, 1e16)
    grid = np.geomspace(1e5, 1e9, 200_001)
    loss = forms.surface_loss(fit, grid, 1e16 / (6 * grid))
    assert o["N_opt"] == pytest.approx(grid[loss.argmin()], rel=1e-3)
    assert o["loss"] == pytest.approx(loss.min(), rel=1e-9)
    assert o["N_opt"] * o["D_opt"] * 6 == pytest.approx(1e16)
    assert o["outside"] == {"C": pytest.approx(1e16 / 1.6e15)}
    assert o["ci"]["loss"][0] < o["loss"] < o["ci"]["loss"][1]


# ---- Tokens are data, and C is what the table says. ----

def test_the_cost_of_a_run_is_learned_from_the_table():
    rng = np.random.default_rng(0)
    N, D = 10 ** rng.uniform(5, 8, 40), 10 ** rng.uniform(7, 10, 40)
    rounded = 6 * N * D * np.exp(0.009 * rng.uniform(-1, 1, 40))
    assert forms.cost_of(N, D, rounded) is None
    for C in (2 * N * D, flops_per_token(N) * D, 6 * N * D ** 1.1, flops_per_token(N) * D ** 0.9):
        law = {"cost": forms.cost_of(N, D, C)}
        assert forms.flops_of(law, N, D) == pytest.approx(C, rel=0.02)
        assert forms.tokens_of(law, N, forms.flops_of(law, N, D)) == pytest.approx(D, rel=1e-9)
    vague = forms.cost_of(N, D, 6 * N * D * rng.choice([1, 2], 40))    # two lengths of context, say
    fit = forms.fit_surface(N, D, forms.surface_loss(SURFACE, N, D), bootstrap=0) | {"cost": vague}
    assert "only to 3" in " ".join(health.judge(fit)["health"]["lines"])
    third = SURFACE | {"cost": forms.cost_of(N, D, 2 * N * D)}
    assert forms.surface_optimum(third, 2e15) == pytest.approx(forms.surface_optimum(SURFACE, 6e15), rel=1e-9)


def test_all_approaches_find_the_runs_own_tokens():
    """Where C is not 6 N D, D_opt is not C/(6 N), nor b = 1 - a."""
    N, D, C, L = other_flops(np.random.default_rng(0), 0.0)
    surface = forms.counted(forms.fit_surface(N, D, L, bootstrap=0), N, D, C)
    lines = frontiers.fit_isoflop(N, C, L, bootstrap=0, D=D)
    rows = np.repeat(np.geomspace(1e5, 1e8, 12), 80), np.tile(np.geomspace(1e6, 1e11, 80), 12)
    at = flops_per_token(rows[0]) * rows[1]
    run = np.repeat(np.arange(12), 80)
    curves = frontiers.fit_envelope(rows[0], at, forms.surface_loss(SURFACE, *rows), run, 0, D=rows[1])
    for c in (1e14, 1e15, 1e16):
        for law, within in ((surface, 0.01), (lines, 0.03), (curves, 0.12)):
            found = forms.optimum(law, c)
            true = best_run(SURFACE, c)
            assert [found["N_opt"], found["D_opt"]] == pytest.approx(true[:2], rel=within), law["form"]
            assert found["loss"] == pytest.approx(true[2], rel=0.003)
    for law in (surface, lines, curves):
        assert law["a"] + law["b"] > 1.02                   # a token costs less than 6 N more, as N grows
    without = frontiers.fit_isoflop(N, C, L, bootstrap=0)
    assert without["a"] == lines["a"] and without["b"] == pytest.approx(1 - without["a"])
    assert without["points"][0]["D_opt"] > 1.5 * lines["points"][0]["D_opt"]


def test_a_budget_that_is_only_a_name_takes_the_compute_of_its_runs():
    C = np.repeat([1e15, 4e15], 3)
    assert profiles.named_budgets(np.repeat([1.0, 2.0], 3), C) == pytest.approx(C)
    assert (profiles.named_budgets(1.005 * C, C) == 1.005 * C).all()


# ---- Coverage: 95 % intervals hold the truth about 95 % of the time, for every form. ----

def simulate_surface(rng):
    N, D, L = laptop(rng)
    fit = forms.fit_surface(N, D, L, bootstrap=200)
    C = 4.8e15                                                          # three times the largest budget
    n, d, loss = forms.surface_optimum(SURFACE, C)
    draws = forms.with_noise(forms.surface_loss(forms.draws_of(fit), n, d), fit["noise"])
    measured = loss * np.exp(0.004 * rng.standard_normal())
    intervals = fit["ci"] | forms.optimum(fit, C)["ci"] | {"measured": solver.interval(draws[:, 0])}
    truth = SURFACE | {"a": 0.33 / 0.57, "N_opt": n, "loss": loss, "measured": measured}
    return intervals, {k: truth[k] for k in ("E", "alpha", "beta", "a", "N_opt", "loss", "measured")}


def simulate_clustered(rng):
    N, D = np.repeat(np.geomspace(1e5, 1e7, 10), 15), np.tile(np.geomspace(5e6, 1e9, 15), 10)
    L = forms.surface_loss(SURFACE, N, D) * np.exp(np.repeat(0.004 * rng.standard_normal(10), 15)
                                                  + 0.002 * rng.standard_normal(150))
    fit = forms.fit_surface(N, D, L, np.repeat(np.arange(10), 15), bootstrap=100)
    return fit["ci"], {k: SURFACE[k] for k in ("E", "alpha")}


def simulate_power(rng, n=12, floor=2.0):
    x = np.geomspace(1e5, 3e7, n)
    L = (floor + (1e7 / x) ** 0.3) * np.exp(0.003 * rng.standard_normal(n))
    fit = forms.fit_power(x, L, irreducible=floor > 0, bootstrap=200)
    return fit["ci"], {"alpha": 0.3, "N_c": 1e7} | ({"L_inf": floor} if floor else {})


def simulate_power_without_floor(rng):
    return simulate_power(rng, 8, 0.0)


def simulate_kaplan_nd(rng):
    N, D = np.repeat(np.geomspace(1e5, 1e8, 6), 6), np.tile(np.geomspace(1e7, 1e10, 6), 6)
    L = forms.loss_of(KAPLAN_ND, {"N": N, "D": D}) * np.exp(0.01 * rng.standard_normal(36))
    fit = forms.fit_kaplan_nd(N, D, L, bootstrap=200)
    return fit["ci"], {k: KAPLAN_ND[k] for k in ("alpha_N", "alpha_D")}


def simulate_kaplan_ns(rng):
    N, S = np.repeat(np.geomspace(1e5, 1e8, 6), 8), np.tile(np.geomspace(3e2, 1e5, 8), 6)
    L = forms.loss_of(KAPLAN_NS, {"N": N, "S": S}) * np.exp(0.01 * rng.standard_normal(48))
    fit = forms.fit_kaplan_ns(N, S, L, bootstrap=200)
    return fit["ci"], {k: KAPLAN_NS[k] for k in ("alpha_N", "alpha_S")}


def simulate_repeated(rng):
    U = 10 ** rng.uniform(8, 10, 60)
    D, N = U * 10 ** rng.uniform(0, 2, 60), 10 ** rng.uniform(7, 9.5, 60)
    L = forms.repeated_loss(forms.C4, N, D, U) * np.exp(0.005 * rng.standard_normal(60))
    return forms.fit_repeated(N, D, U, L, bootstrap=200)["ci"], {k: forms.C4[k] for k in ("R_D", "R_N")}


def simulate_broken(rng):
    x = np.geomspace(1e4, 1e9, 40)
    law = BROKEN | {"L_inf": 1.0, "c0": 0.2, "c1": 0.2, "x_break": 3e6, "f": 0.3}
    L = forms.loss_of(law, {"x": x}) * np.exp(0.002 * rng.standard_normal(40))
    return forms.fit_broken(x, L, name="x", bootstrap=100)["ci"], {k: law[k] for k in ("c0", "x_break")}


def simulate_isoflop(rng):
    law = {"E": 1.8, "A": 48.0, "B": 120.0, "alpha": 0.34, "beta": 0.36}
    C = np.repeat(np.geomspace(1e14, 1.6e15, 5), 5)
    off = np.repeat(np.exp(rng.uniform(-0.4, 0.4, 5)), 5)
    N = forms.surface_optimum(law, C)[0] * off * np.tile(2.0 ** np.arange(-2, 3), 5)
    L = forms.surface_loss(law, N, C / (6 * N)) * np.exp(0.004 * rng.standard_normal(25))
    fit = frontiers.fit_isoflop(N, C, L, bootstrap=200)
    n, _, loss = forms.surface_optimum(law, 4.8e15)
    return fit["ci"] | forms.optimum(fit, 4.8e15)["ci"], {"a": 0.36 / 0.7, "N_opt": n, "loss": loss}


def simulate_other_flops(rng):
    N, D, C, L = other_flops(rng)
    surface = forms.counted(forms.fit_surface(N, D, L, bootstrap=200), N, D, C)
    lines = frontiers.fit_isoflop(N, C, L, bootstrap=200, D=D)
    ends = np.log([best_run(SURFACE, c)[:2] for c in (1e14, 1e16)])
    true = dict(zip("ab", np.diff(ends, axis=0)[0] / np.log(100)))
    true |= dict(zip(("N_opt", "D_opt"), best_run(SURFACE, 1e16)[:2]))
    found = {k: f["ci"] | forms.optimum(f, 1e16)["ci"] for k, f in (("surface", surface), ("lines", lines))}
    return ({(k, name): ci[name] for k, ci in found.items() for name in true},
            {(k, name): v for k in found for name, v in true.items()})


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


# How often the 95 % intervals may hold the truth. An interval that covers 95 % breaks these bounds in 1 % of
# the cases, in 200 simulations as in 100; one that covers 85 % is caught in 97 % of the cases by 200 and in
# 84 % by the 100 that the slow forms get, one that covers 80 % in 99.99 and in 98.7 %.
BOUNDS = {200: (0.90, 0.98), 100: (0.89, 0.99)}
SIMULATIONS = [(simulate_surface, 200), (simulate_clustered, 200), (simulate_power, 200),
               (simulate_power_without_floor, 200), (simulate_kaplan_nd, 200), (simulate_kaplan_ns, 200),
               (simulate_repeated, 100), (simulate_broken, 100), (simulate_isoflop, 200),
               (simulate_other_flops, 100),
               (simulate_envelope, 100), (simulate_frontier_of_curves, 100), (simulate_frontier_of_runs, 200)]


@pytest.fixture
def few_starts(monkeypatch):
    """Every seventh start of the grid: simulated intervals are the same, for most of the time."""
    def best(problem):
        return all_starts(problem._replace(starts=problem.starts[::7]))
    all_starts = solver.Problem.best
    monkeypatch.setattr(solver.Problem, "best", best)


@pytest.mark.parametrize("simulate, count", SIMULATIONS, ids=lambda v: getattr(v, "__name__", ""))
def test_coverage(simulate, count, few_starts):
    hits, refused = [], 0
    for s in range(count):
        try:
            intervals, truth = simulate(np.random.default_rng(s))
        except UserError:                       # noise may leave a hull of two points, which is refused
            refused += 1
            continue
        hits.append([intervals[k][0] <= v <= intervals[k][1] for k, v in truth.items()])
    share = dict(zip(truth, np.mean(hits, 0)))
    low, high = BOUNDS[count]
    assert refused <= count / 20
    assert all(low <= v <= high for v in share.values()), share


def test_profile_of_e_covers_and_knows_when_e_is_not_identified(few_starts):
    inside = []
    for s in range(60):
        p = forms.profile_E(*laptop(np.random.default_rng(s)), bootstrap=100)
        inside.append((p["lo"] or 0) <= SURFACE["E"] <= (p["hi"] or np.inf))
    assert 0.88 <= np.mean(inside) <= 1
    noisy = laptop(np.random.default_rng(0), 0.02)                     # 2 % noise: E could be nothing
    assert forms.profile_E(*noisy)["lo"] is None and not forms.profile_E(*noisy)["identified"]
    fit = forms.fit_surface(*laptop(np.random.default_rng(1), 0.01, SURFACE | {"E": 0.0}))
    lines = fit["health"]["lines"]
    assert any(line.startswith("E is not identified") for line in lines)


# ---- Health, comparison, refusals. ----

def clean_table(design, seed, sigma):
    """A study that is what it seems: a law and its noise."""
    rng = np.random.default_rng(seed)
    C = np.repeat(np.geomspace(1e14, 1.6e16, 5), 5)
    best, _, _ = forms.surface_optimum(SURFACE, C)
    if design == "isoflop":
        N = best * np.tile([0.25, 0.5, 1, 2, 4], 5)
        D = C / (6 * N)
    if design == "grid":
        N, D = np.repeat(np.geomspace(1e5, 1e7, 5), 5), np.tile(np.geomspace(1e7, 1e9, 5), 5)
    if design == "random":
        N, D = 10 ** rng.uniform(5, 7.5, 40), 10 ** rng.uniform(7, 9.5, 40)
    if design == "sizes":
        N, D = np.geomspace(1e4, 1e8, 10), np.full(10, 1e12)
    L = forms.surface_loss(SURFACE, N, D) * np.exp(sigma * rng.standard_normal(len(N)))
    return select({"params": N, "tokens": D, "loss": L})


@pytest.mark.parametrize("design", ["isoflop", "grid", "random", "sizes"])
def test_clean_tables_are_not_called_sick(design):
    """In simulation at most 2 % are; of these few, none."""
    laws = {"sizes": ["loss_vs_params"], "isoflop": ["surface", "isoflop"]}.get(design, ["surface"])
    for seed, sigma in enumerate((0.0005, 0.001, 0.002, 0.004)):
        data = clean_table(design, seed, sigma)
        for name in laws:
            assert fits.LAWS[name].fit(data, 100)["health"]["lines"] == [], (name, sigma)
    if design in ("grid", "random"):                   # runs that happen to lie near are no budgets
        with pytest.raises(UserError, match="these runs have 0"):
            fits.isoflop(data, 0)


def budgets_of(cost, law=SURFACE, sigma=0.001, seed=0):
    """N, D, C, L of five sizes about the best one at five budgets, where a token costs `cost(N)` FLOPs."""
    rng = np.random.default_rng(seed)
    C = np.repeat(np.geomspace(1e17, 1e19, 5), 5)
    sizes = np.geomspace(1e4, 1e11, 2000)
    best = [sizes[forms.surface_loss(law, sizes, c / cost(sizes)).argmin()] for c in C[::5]]
    N = np.repeat(best, 5) * np.tile(2.0 ** np.arange(-2, 3), 5)
    D = C / cost(N)
    return N, D, C, forms.surface_loss(law, N, D) * np.exp(sigma * rng.standard_normal(25))


def embedded(N):
    """N and its embeddings: 50257 rows, of a width that grows with N^(1/3)."""
    return N + 50257 * (16 * N / 3) ** (1 / 3)


def test_an_n_that_counts_embeddings_bends_the_losses_and_says_so():
    """By it N_opt is .18 off (in ln) at ten times the largest budget, many times its interval."""
    law = {"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}
    for seed in range(3):
        N, D, C, L = budgets_of(lambda N: 6 * embedded(N), law, seed=seed)
        fit = forms.fit_surface(embedded(N), D, L, bootstrap=20)
        lines = frontiers_of(embedded(N), D, C, L)["health"]["lines"]
        assert "bend along N" in " ".join(fit["health"]["lines"]) and "bend along N" in " ".join(lines)
        N, D, C, L = budgets_of(lambda N: 6 * N, law, seed=seed)
        assert forms.fit_surface(N, D, L, bootstrap=20)["health"]["lines"] == []
        assert frontiers_of(N, D, C, L)["health"]["lines"] == []


def frontiers_of(N, D, C, L):
    """The IsoFLOP fit of a table, as fit.py makes it."""
    return fits.isoflop(select({"params": N, "tokens": D, "flops": C, "loss": L}), 60)


def test_n_opt_is_no_power_of_c_where_the_cost_of_a_parameter_changes():
    def with_head(N):
        return 6 * N + 1e6 * N ** 0.4
    N, D, C, L = budgets_of(with_head)
    low, high = (slope(with_head, N) for N in (N[2], N[22]))
    fit = frontiers.fit_isoflop(N, C, L, bootstrap=60, D=D)
    assert fit["health"]["cost_slopes"] == pytest.approx([low, high], abs=0.03) and high - low > 0.1
    assert any("no powers of C" in line for line in fit["health"]["lines"])
    for cost in (lambda N: 2 * N, lambda N: 6 * N):
        N, D, C, L = budgets_of(cost)
        fit = frontiers.fit_isoflop(N, C, L, bootstrap=60, D=D)
        assert not any("no powers of C" in line for line in fit["health"]["lines"])


def slope(cost, N):
    """d log cost / d log N."""
    return np.log(cost(1.01 * N) / cost(0.99 * N)) / np.log(1.01 / 0.99)


@pytest.mark.parametrize("which, off", [("N", 0.1), ("D", -0.03), ("C", 0.03)])
def test_a_size_a_length_or_a_budget_off_the_law_of_all_others_is_named(which, off):
    """The smallest size, 10 % worse than the law as if it were not tuned, makes an a of .58 one of .40."""
    for seed in range(3):
        data = clean_table("isoflop" if which == "C" else "grid", seed, 0.002)
        N, D, C, L = (data[k] for k in "NDCL")
        own = data[which] < 1.01 * data[which].min()
        fit = forms.fit_surface(N, D, np.where(own, L * (1 + off), L), bootstrap=20)
        line, = [line for line in fit["health"]["lines"] if "the law of all others" in line]
        assert line.startswith(f"the runs of {which} = {data[which].min():.3g} lie")
        assert ("above" if off > 0 else "below") in line
        shift = np.exp(fit["health"]["off_law"]["shift"]) - 1
        assert shift == pytest.approx(off, rel=0.4)


def test_few_clean_tables_have_runs_off_the_law(few_starts):
    named = 0
    for seed in range(100):
        data = clean_table(("isoflop", "grid", "random")[seed % 3], seed, 0.002)
        fit = forms.fit_surface(*(data[k] for k in "NDL"), bootstrap=0)
        named += forms.off_law(fit, *(data[k] for k in "NDL"))["chance"] < health.STRANGE
    assert named <= 2


def test_optima_scatter_only_where_the_noise_is_known_so_well():
    """About a line through few optima, and with a noise from few residuals, 2.4 times is luck."""
    fit = frontiers_of(*budgets_of(lambda N: 6 * N))
    for df, said in ((10, False), (1000, True)):
        fit["health"] |= {"widened": 2.4, "noise_df": df}
        assert any("optima scatter" in line for line in health.judge(fit)["health"]["lines"]) == said


def test_four_budgets_have_four_corners():
    C = np.geomspace(1e13, 1e16, 4)
    fit = frontiers.fit_loss_vs_compute(C, 1.5 + (1e15 / C) ** 0.1, bootstrap=20)
    assert fit["hull"]["fitted"] == 4 and fit["health"]["lines"] == []


def test_a_hull_whose_slopes_drift_is_no_law_to_extrapolate():
    C = np.geomspace(1e13, 1e17, 6)
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(6))
    bent = frontiers.fit_loss_vs_compute(C, (1.5 + (1e15 / C) ** 0.2) * noise, bootstrap=20)
    line, = bent["health"]["lines"]
    assert line.startswith("the slope drifts along the hull") and "no law to extrapolate" in line
    assert bent["health"]["drift"]["L_inf"] == pytest.approx(1.5, abs=0.03)
    assert bent["health"]["drift"]["alpha"] == pytest.approx(0.2, abs=0.02)
    for count in (4, 6):
        C = np.geomspace(1e13, 1e17, count)
        straight = frontiers.fit_loss_vs_compute(C, (1e25 / C) ** 0.055 * noise[:count], bootstrap=20)
        assert straight["health"]["lines"] == []


@pytest.mark.parametrize("C, clustered", [([1e13, 1.2e13, 1.4e13, 7e16, 1e17], True),
                                          (np.geomspace(1e13, 1e17, 5), False)], ids=["two", "none"])
def test_a_line_that_joins_two_clusters_says_so(C, clustered):
    """Best losses and IsoFLOP optima of a true surface: where they are clusters, and nowhere else."""
    C = np.array(C)
    best, _, loss = forms.surface_optimum(SURFACE, C)
    budget, N = np.repeat(C, 5), np.repeat(best, 5) * np.tile([0.25, 0.5, 1, 2, 4], 5)
    said = {"loss_vs_compute": [], "isoflop": []}
    for seed in range(20):
        rng = np.random.default_rng(seed)
        hull = frontiers.fit_loss_vs_compute(C, loss * np.exp(0.001 * rng.standard_normal(5)), bootstrap=0)
        L = forms.surface_loss(SURFACE, N, budget / (6 * N)) * np.exp(0.001 * rng.standard_normal(25))
        for fit in (hull, frontiers.fit_isoflop(N, budget, L, budget, bootstrap=50)):
            said[fit["form"]] += [line for line in fit["health"]["lines"] if "two clusters" in line]
    if not clustered:
        assert said == {"loss_vs_compute": [], "isoflop": []}
        return
    assert len(said["isoflop"]) == 20 and len(said["loss_vs_compute"]) >= 18   # noise takes points off hulls
    assert "clusters of C, 3 at 1e+13 to 1.4e+13 and 2 at 7e+16 to 1e+17:" in said["isoflop"][0]
    ends = [forms.surface_optimum(SURFACE, np.array([c, 1.01 * c]))[2] for c in (1e13, 1e17)]
    first, last = (-np.diff(np.log(pair))[0] / np.log(1.01) for pair in ends)
    assert last < 0.8 * hull["alpha"] < 0.8 * first    # the line has the slope of neither


def test_frontiers_of_curves_and_of_strewn_runs_are_not_called_clusters(few_starts):
    law = {"E": 1.5, "A": 50.0, "B": 200.0, "alpha": 0.3, "beta": 0.34}
    named = 0
    for seed in range(60):
        rng = np.random.default_rng(seed)
        N, C, L, run = curves(rng, law)
        n, d = 10 ** rng.uniform(5, 7.5, 12), 10 ** rng.uniform(7, 9.5, 12)
        fits_of = [frontiers.fit_envelope(N, C, L, run, bootstrap=0),
                   frontiers.fit_loss_vs_compute(C, L, run, bootstrap=0),
                   frontiers.fit_loss_vs_compute(6 * n * d, forms.surface_loss(law, n, d), bootstrap=0)]
        named += sum("two clusters" in " ".join(fit["health"]["lines"]) for fit in fits_of)
    assert named <= 1


def test_of_three_points_between_the_runs_no_drift_can_be_told():
    """A parabola goes through them, so its bend is no finding, however large."""
    hull = np.column_stack([np.arange(5), [0, -0.2, -0.3, -0.31, -0.311], [0, 0, 1, 2, 2]])
    found = frontiers.drift(hull)
    assert len(hulls.between_runs(hull)) == 3 and found["p"] == 1
    first, last = found["slopes"]
    assert first < 0 and last / first < health.DRIFTS and health.of_drift(found, 5) == []


def test_a_slice_that_the_other_input_limits_says_only_that():
    """What else it lacks, here a floor, follows from it."""
    data = clean_table("random", 0, 0.001)
    for name in ("loss_vs_params", "loss_vs_tokens"):
        fit = fits.LAWS[name].fit(data, 60)
        fit["health"] |= {"bounds": ["L_inf"], "agree": 0.1}
        line, = health.judge(fit)["health"]["lines"]
        assert "was a limit too" in line


def test_a_sharp_profile_is_a_floor_that_is_known():
    """However narrow the interval of E is, the profile rises on both of its sides, and agrees with it."""
    for sigma in (1e-6, 1e-4):
        rows = laptop(np.random.default_rng(0), sigma)
        found = forms.profile_E(*rows, bootstrap=60)
        low, high = forms.fit_surface(*rows, bootstrap=200)["ci"]["E"]
        assert found["identified"] and low < SURFACE["E"] < high
        assert found["hi"] - found["lo"] == pytest.approx(high - low, rel=0.6)


@pytest.mark.parametrize("power, said", [(1.0, "N in all runs"), (0.7, "D ~ N^0.7")])
def test_what_falls_with_n_and_with_d_cannot_be_told_where_d_follows_n(power, said):
    rng = np.random.default_rng(0)
    N = np.geomspace(1e5, 1e8, 10)
    D = 20 * N ** power * np.exp(0.01 * rng.uniform(-1, 1, 10))        # whole steps
    L = forms.surface_loss(SURFACE, N, D) * np.exp(0.002 * rng.standard_normal(10))
    for bootstrap in (0, 50):
        h = forms.fit_surface(N, D, L, bootstrap=bootstrap)["health"]
        assert said in h["lines"][0] and h["lines"][0] in h["undetermined"]
        assert not any("a wider range would pin it" in line for line in h["lines"])
    assert forms.fit_surface(N, D * np.tile([1, 3], 5), L, bootstrap=0)["health"]["D_follows_N"] is None


def test_a_sharp_break_is_found_within_the_bounds():
    x = np.geomspace(1e6, 1e9, 30)
    law = BROKEN | {"c0": 0.03, "c1": 6.0, "A": 8.0, "x_break": 8e7, "f": 0.05, "L_inf": 0.7}
    fit = forms.fit_broken(x, forms.loss_of(law, {"x": x}), name="x", bootstrap=0)
    assert fit["health"]["lines"] == []
    del law["form"]
    assert {k: fit[k] for k in law} == pytest.approx(law, rel=1e-3)


def test_two_runs_of_one_budget_are_one_corner_of_the_hull():
    C = np.geomspace(1e13, 1e16, 7)
    L = (1e25 / C) ** 0.055
    alone = frontiers.fit_loss_vs_compute(C, L, bootstrap=0)
    near = frontiers.fit_loss_vs_compute(np.append(C, 0.9996 * C), np.append(L, 1.02 * L), bootstrap=0)
    assert near["alpha"] == pytest.approx(alone["alpha"]) == pytest.approx(0.055)
    assert near["hull"]["C"] == alone["hull"]["C"]


def test_the_worst_of_twelve_clean_runs_is_no_finding(few_starts):
    """Without it an exponent moves by two standard errors in one study of eight, by chance."""
    moved = named = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        N, D = 10 ** rng.uniform(5, 7.5, 12), 10 ** rng.uniform(7, 9.5, 12)
        L = forms.surface_loss(SURFACE, N, D) * np.exp(0.002 * rng.standard_normal(12))
        h = forms.fit_surface(N, D, L, bootstrap=60)["health"]
        moved += h["influence"]["shift"] > 2
        named += "standard errors" in " ".join(h["lines"])
    assert moved > 3 and named < 2


def test_too_few_runs_for_aicc_is_inf_and_no_nan():
    x = np.geomspace(1e6, 1e8, 4)
    found = compare.compare_powers(x, 2 + (1e7 / x) ** 0.3)
    assert found["forms"]["power law"]["aicc"] == np.inf

def test_one_run_that_carries_the_fit_is_named():
    rng = np.random.default_rng(1)
    x = np.append(np.geomspace(1e6, 2e6, 24), 1e11)        # the last run alone says how steep the law is
    L = (1e9 / x) ** 0.1 * np.exp(0.005 * rng.standard_normal(25))
    fit = forms.fit_power(x, L, irreducible=False)
    assert fit["health"]["influence"]["row"] == 24 and fit["health"]["influence"]["shift"] > 2
    assert any(line.startswith("one run (row 25) moves alpha") for line in fit["health"]["lines"])
    even = np.geomspace(1e6, 1e9, 25)
    L = (1e9 / even) ** 0.1 * np.exp(0.005 * rng.standard_normal(25))
    fit = forms.fit_power(even, L, irreducible=False)
    assert not fit["health"]["lines"]


def test_residuals_far_above_seed_noise_are_flagged():
    N, D, L = laptop(np.random.default_rng(0), 0.01)
    fit = forms.fit_surface(N, D, L)
    for noise, flagged in ((0.001, True), (0.01, False)):
        fit["health"]["lack_of_fit"] = fit["noise"] / noise
        lines = health.judge(fit)["health"]["lines"]
        assert any("noise between seeds" in line for line in lines) == flagged


def test_findings_are_worded_once_and_in_one_place():
    """Findings may be added to a fit later; `judge` words all of them anew, and loses none."""
    fit = forms.fit_surface(*laptop(np.random.default_rng(0)), bootstrap=50)
    before = list(fit["health"]["lines"])
    fit["health"] |= {"lack_of_fit": 5.0, "profile_open": True, "repeated_rows": 3}
    said = list(health.judge(fit)["health"]["lines"])
    assert said[:len(before)] == before and not fit["health"]["ok"]
    assert [line.split(":")[0] for line in said[len(before):]] == [
        "residuals are 5.0 times the noise between seeds", "E is not identified",
        "3 rows repeat their data, which this form ignores; see 'repeated'"]
    assert health.judge(fit)["health"]["lines"] == said
    for finding in ("lack_of_fit", "profile_open", "repeated_rows"):
        del fit["health"][finding]
    assert health.judge(fit)["health"]["lines"] == before


def test_seed_noise_is_recovered():
    rng = np.random.default_rng(0)
    key = np.repeat(np.arange(200), 3).astype(str)[:, None]
    sd, df = solver.seed_noise(key, rng.normal(np.repeat(rng.normal(size=200), 3), 0.004))
    assert df == 400 and sd == pytest.approx(0.004, rel=0.1)
    assert solver.seed_noise(np.arange(5).astype(str)[:, None], np.ones(5))[1] == 0


def test_the_right_form_is_preferred():
    rng = np.random.default_rng(1)
    N, D = np.repeat(np.geomspace(1e5, 1e8, 7), 7), np.tile(np.geomspace(1e7, 1e10, 7), 7)
    noise = np.exp(0.003 * rng.standard_normal(49))
    for law, want in ((SURFACE | {"form": "surface"}, "E + A/N^alpha + B/D^beta"),
                      (SURFACE | {"form": "surface", "E": 0.0}, "A/N^alpha + B/D^beta"),
                      (KAPLAN_ND, "Kaplan L(N, D)")):
        found = compare.compare_surfaces(N, D, forms.loss_of(law, {"N": N, "D": D}) * noise)
        assert preferred(found) == want and found["forms"][want]["held_out"] < 0.01
    x = np.geomspace(1e4, 1e10, 40)
    L = forms.loss_of(BROKEN, {"x": x}) * np.exp(0.002 * rng.standard_normal(40))
    found = compare.compare_powers(x, L, "x")
    assert preferred(found) == "broken power law"


def preferred(found):
    """The form with the lowest AICc, which is 0, as it is relative to the best."""
    best = min(found["forms"], key=lambda name: found["forms"][name]["aicc"])
    assert found["forms"][best]["aicc"] == 0
    return best


def profiles_less_surface(rng, tilt=0.0, noise=0.0):
    """The differences of a simulated study whose profiles lean by `tilt`, amid its budgets the other way."""
    C = np.repeat(np.geomspace(1e14, 1.6e15, 5), 5)
    x = np.tile(np.log([0.25, 0.5, 1, 2, 4]), 5)
    N = forms.surface_optimum(SURFACE, C)[0] * np.exp(x)
    D = C / (6 * N)
    lean = tilt * x * np.repeat([1, -1, -1, -1, 1], 5)
    L = forms.surface_loss(SURFACE, N, D) * np.exp(lean + 0.003 * rng.standard_normal(25))
    surface = forms.fit_surface(N, D, L, bootstrap=0)
    return difference.differences(surface, N, D, C, L, [1.6e15], 200, noise)


def test_approaches_differ_by_noise_alone_where_the_surface_is_true(few_starts):
    seen = [profiles_less_surface(np.random.default_rng(seed)) for seed in range(60)]
    for rows in zip(*seen):                            # a, N_opt, D_opt, loss: 95 % of the intervals hold 0
        inside = np.mean([low <= 0 <= high for low, high in (row["ci"] for row in rows)])
        assert 0.88 <= inside <= 1, rows[0]["what"]
        assert np.mean([row["p"] < 0.05 for row in rows]) == pytest.approx(1 - inside, abs=0.03)
    assert sum(any(verdict.beyond_noise(row, len(rows)) for row in rows) for rows in seen) <= 4


def test_approaches_that_differ_are_found_out_by_the_scatter_and_by_seeds():
    for noise in (0.0, 0.003):                         # that of the parabolas, or one known from seeds
        seen = [profiles_less_surface(np.random.default_rng(s), tilt=0.012, noise=noise) for s in range(8)]
        found = [any(verdict.beyond_noise(row, len(rows)) for row in rows) for rows in seen]
        assert sum(found) >= 7


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
    hull = hulls.lower_hull(np.append(u, u), np.append(v, v + 0.1))
    assert set(hull) <= set(range(40)) and hull[0] == 0 and hull[-1] == 39
    kink = hulls.find_kink(u, v + 1e-3 * np.random.default_rng(0).standard_normal(40), 39)
    assert np.log(kink["between"][0]) == pytest.approx(3, abs=0.6)
    assert kink["slopes"] == pytest.approx([-0.3, -0.1], abs=0.01)
    assert hulls.find_kink(u, -0.2 * u + 1e-3 * np.random.default_rng(0).standard_normal(40), 39) is None
    assert list(hulls.pareto(np.array([1., 2, 3, 4]), np.array([3., 4, 2, 2]))) == [0, 2]


def test_intervals_are_reproducible_and_plain_json():
    N, D, L = laptop(np.random.default_rng(0))
    first, second = (forms.fit_surface(N, D, L, bootstrap=100) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    again = json.loads(json.dumps(first))
    assert forms.optimum(again, 1e16) == forms.optimum(first, 1e16)
    law = forms.surface_loss(forms.draws_of(first), 1e6, 1e9)
    narrow = solver.interval(law[:, 0])
    wide = solver.interval(forms.with_noise(law, first["noise"])[:, 0])
    assert wide[0] < narrow[0] < narrow[1] < wide[1]
    with pytest.raises(UserError, match="no bootstrap"):
        forms.draws_of(forms.fit_surface(N, D, L, bootstrap=0))


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
        forms.fit_surface(*change(*laptop(np.random.default_rng(0))))
    assert message in str(e.value) and "\n" not in str(e.value)


def test_three_sizes_per_budget_give_a_line_and_no_intervals():
    C = np.repeat(np.geomspace(1e15, 1e17, 4), 3)
    best = 0.2 * C ** 0.5
    N = best * np.tile([0.55, 1.1, 2.2], 4)
    L = 3 * (C / 1e15) ** -0.05 * np.exp(0.02 * np.log(N / best) ** 2)
    fit = frontiers.fit_isoflop(N, C, L)
    assert fit["a"] == pytest.approx(0.5) and fit["ci"] == {} and not fit["health"]["ok"]
