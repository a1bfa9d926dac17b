"""The loss far beyond the data: what the law holds, and whether a 95 % interval is right 95 % of the time."""
from pathlib import Path

import numpy as np
import pytest
from conftest import published_table

from runtime.basics import UserError
from scaling import forecast
from scaling.laws import extrapolate, forms
from scaling.tables.csv import read_table
from scaling.tables.runs import final_runs

RESULTS = Path(__file__).parents[1] / "scaling" / "results"

SURFACE = {"E": 1.2, "A": 48.0, "alpha": 0.25, "B": 180.0, "beta": 0.3}
KAPLAN = {"form": "kaplan_nd", "alpha_N": 0.11, "alpha_D": 0.14, "N_c": 6e10, "D_c": 4e10}


def hoffmann(N, D):
    return forms.surface_loss(SURFACE, N, D)


def kaplan(N, D):
    return forms.loss_of(KAPLAN, {"N": N, "D": D})


def grid(truth=hoffmann, noise=0.003, seed=0, budgets=(1e13, 4e13, 1.6e14, 6.4e14)):
    """An IsoFLOP study of 6 sizes a budget: N, D, L (24,)."""
    C = np.repeat(budgets, 6)
    N = np.sqrt(C / 120) * np.tile(np.geomspace(1 / 4, 4, 6), len(budgets))
    D = C / (6 * N)
    return N, D, truth(N, D) * np.exp(noise * np.random.default_rng(seed).standard_normal(len(N)))


def runs_of(N, D, L):
    return {"N": N, "D": D, "C": 6 * N * D, "L": L}


def ahead(train, N, D):
    """(log-loss, sd) that runs (N, D, L) predict at one N, D."""
    law = extrapolate.fit(runs_of(*train))
    (mean,), (sd,) = extrapolate.predict(law, np.array([N]), np.array([D]), 6 * N * D)
    return mean, sd


# ---- The form. ----

def test_it_holds_the_three_published_forms():
    n, d = np.log([[0.1, 1, 3], [2, 1, 0.3]])
    half = np.log(0.5)
    share = np.log(0.7 / 0.3)                          # the logit of a floor of .7
    hoffmann = 0.7 + 0.2 * np.exp(-0.3 * n) + 0.1 * np.exp(-0.4 * d)
    theta = np.array([share, np.log(0.2), np.log(0.3), np.log(0.1), np.log(0.4), 0])
    assert np.exp(extrapolate.log_loss(theta, n, d)) == pytest.approx(hoffmann)
    kaplan = (np.exp(half / 0.1 - 0.7 * n) + np.exp(half / 0.1 - d)) ** 0.1
    theta = np.array([-40, half, np.log(0.07), half, np.log(0.1), np.log(0.1)])
    assert np.exp(extrapolate.log_loss(theta, n, d)) == pytest.approx(kaplan)


def test_one_exponent_is_found_and_is_a_law_as_others_are():
    N, D, _ = grid()
    L = 1.5 + 90 / N ** 0.31 + 400 / D ** 0.31
    found = forms.fit_one_exponent(N, D, L, bootstrap=50)
    assert [found[k] for k in ("E", "A", "B", "eta")] == pytest.approx([1.5, 90, 400, 0.31], rel=1e-4)
    assert found["free"] == 4 and found["ci"]["eta"][0] <= 0.3101 and found["health"]["lines"] == []
    far = 1.5 + 90 / 1e9 ** 0.31 + 400 / 1e10 ** 0.31
    assert forms.loss_of(found, {"N": 1e9, "D": 1e10}) == pytest.approx(far)


def test_runs_of_few_tokens_a_parameter_do_not_count():
    N, D, L = grid(noise=0)
    few = np.array([2e7, 4e7, 8e7])
    more = [np.append(a, b) for a, b in zip((N, D, L), (few, 3 * few, [9.0, 9.0, 9.0]))]
    assert ahead(more, 4e6, 8e7) == pytest.approx(ahead((N, D, L), 4e6, 8e7))
    assert extrapolate.fit(runs_of(*more)).n == (D >= 5 * N).sum() == 16
    with pytest.raises(UserError, match="only 3 runs have 5 tokens a parameter or more"):
        extrapolate.fit(runs_of(*(v[:3] for v in (N, D, L))))


def test_an_outlier_moves_little():
    N, D, L = grid()
    spoilt = L * np.where(np.arange(len(L)) == 14, 1.3, 1)
    assert ahead((N, D, spoilt), 4e6, 8e7)[0] == pytest.approx(ahead((N, D, L), 4e6, 8e7)[0], abs=0.006)


def test_nothing_jumps_when_runs_are_added():
    """Kaplan's form is true here, and the more runs there are the better that can be seen."""
    seeds = [grid(kaplan, noise=0.006, seed=seed) for seed in range(4)]
    said = [ahead(np.concatenate(seeds[:k], axis=1), 8e6, 1.6e8)[0] for k in (1, 2, 3, 4)]
    steps = list(np.abs(np.diff(said)))
    assert steps[0] < 0.015 and steps == sorted(steps, reverse=True)


def test_intervals_widen_with_the_distance():
    far = [ahead(grid(), 4e6 * k, 8e7 * k)[1] for k in (1, 3, 10)]
    assert far == sorted(far) and far[2] > extrapolate.DRIFT * np.log(300)


# ---- Rollout. ----

def test_rollout_never_sees_the_budget_that_it_predicts():
    N, D, L = grid()
    rows = extrapolate.rollout(runs_of(N, D, L))
    assert [r["fitted_runs"] for r in rows] == [12, 18]
    assert [round(r["beyond"], 3) for r in rows] == [4, 4] and rows[-1]["rms_error"] < 0.02
    spoilt = np.where(6 * N * D > 3e14, 1.5 * L, L)
    again = extrapolate.rollout(runs_of(N, D, spoilt))
    assert again[0] == rows[0]
    assert again[1]["mean_error"] == pytest.approx(rows[1]["mean_error"] - np.log(1.5), abs=1e-9)


def test_rollout_works_without_common_budgets_and_says_when_it_cannot():
    rng = np.random.default_rng(1)
    N, D = 1e5 * 100 ** rng.uniform(size=30), 1e7 * 100 ** rng.uniform(size=30)
    rows = extrapolate.rollout(runs_of(N, D, hoffmann(N, D)))
    assert len(rows) == 3 and all(r["beyond"] > 1 and r["rms_error"] < 0.03 for r in rows)
    few = [v[:11] for v in grid(budgets=(1e13, 4e13))]
    assert extrapolate.rollout(runs_of(*few)) == [] and "not possible" in forecast.rollout_text([])


def test_rollout_leaves_out_budgets_below_which_few_runs_count():
    """The two smallest have fewer than 5 tokens a parameter: the whole is forecast, they predict nothing."""
    C = np.repeat([1e13, 4e13, 1.6e14, 6.4e14], 6)
    ratio = np.where(C < 1e14, 2, 20) * np.tile(np.geomspace(0.5, 2, 6), 4)
    N = np.sqrt(C / 6 / ratio)
    runs = runs_of(N, ratio * N, hoffmann(N, ratio * N))
    assert extrapolate.fit(runs).n == 12 and extrapolate.rollout(runs) == []


# ---- Is a 95 % interval right 95 % of the time? ----

@pytest.mark.parametrize("truth", [hoffmann, kaplan, lambda N, D: np.sqrt(hoffmann(N, D) * kaplan(N, D))],
                         ids=["hoffmann", "kaplan", "between"])
@pytest.mark.parametrize("far", [3, 12])
def test_coverage_in_simulated_studies(truth, far):
    """Whatever form made the runs, the loss at so many times their compute lies inside, seeds included."""
    N, D = 4e6 * np.sqrt(far / 3), 8e7 * np.sqrt(far / 3)
    inside = []
    for seed in range(20):
        measured = truth(N, D) * np.exp(0.003 * np.random.default_rng(1000 + seed).standard_normal())
        mean, sd = ahead(grid(truth, seed=seed), N, D)
        inside.append(abs(mean - np.log(measured)) < extrapolate.Z95 * sd)
    assert sum(inside) >= 17                           # 19 at 95 %: 16 or fewer happen twice in a hundred


def test_coverage_on_real_runs():
    """Porian et al.'s settings, each cut at three budgets: all runs up to 110 times beyond are predicted."""
    table = read_table(published_table("porian"))
    z, beyond = [], []
    for config in np.unique(table["config"]):
        N, D, L, C = (table[k][table["config"] == config] for k in ("params", "tokens", "loss", "flops"))
        for cut in np.quantile(np.unique(C), [0.3, 0.5, 0.7]):
            law = extrapolate.fit({"N": N[C <= cut], "D": D[C <= cut], "C": C[C <= cut], "L": L[C <= cut]})
            at = (C > cut) & (D >= 5 * N) & (C < 110 * law.C)
            mean, sd = extrapolate.predict(law, N[at], D[at], C[at])
            z += list(abs(mean - np.log(L[at])) / sd)
            beyond += list(C[at] / law.C)
    z, beyond = np.array(z), np.array(beyond)
    for lo, hi in ((1, 3), (3, 10), (10, 30), (30, 110)):
        some = (lo < beyond) & (beyond <= hi)
        assert some.sum() > 60 and 0.9 <= (z[some] < extrapolate.Z95).mean() <= 1


@pytest.mark.parametrize("study, off, wide", [("far", 0.018, 0.125), ("far_shakespeare", 0.025, 0.068)])
def test_what_the_ladders_would_be_told_now(study, off, wide):
    """Models of 3 to 300 times the compute, forecast by the committed runs as they would be today."""
    law = extrapolate.fit(final_runs(read_table(RESULTS / study / "runs.csv")))
    made = read_table(RESULTS / study / "forecasts.csv")
    N, D = made["params"], made["tokens"]
    mean, sd = extrapolate.predict(law, N, D, 6 * N * D)
    error = abs(mean - np.log(made["measured"]))
    half = extrapolate.Z95 * sd
    assert error.max() < off and (error < half).all() and half.max() < wide
