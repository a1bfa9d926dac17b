"""The ensemble of forms: who weighs what, and whether a 95 % interval is right 95 % of the time."""
from pathlib import Path

import numpy as np
import pytest

from scaling import forecast
from scaling.laws import ensemble, forms
from scaling.tables.csv import read_table

ORACLES = Path(__file__).parents[2] / "shared" / "oracles"
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


# ---- Rollout and weights. ----

def runs_of(N, D, L):
    return {"N": N, "D": D, "C": 6 * N * D, "L": L}


def test_rollout_never_sees_the_budget_that_it_predicts():
    N, D, L = grid()
    rows = ensemble.rollout(runs_of(N, D, L))
    assert [r["fitted_runs"] for r in rows] == [12, 18]
    assert [round(r["beyond"], 3) for r in rows] == [4, 4] and rows[-1]["rms_error"] < 0.02
    spoilt = np.where(6 * N * D > 3e14, 1.5 * L, L)
    again = ensemble.rollout(runs_of(N, D, spoilt))
    assert again[0] == rows[0]
    assert again[1]["mean_error"] == pytest.approx(rows[1]["mean_error"] - np.log(1.5), abs=1e-9)


def test_rollout_works_without_common_budgets_and_says_when_it_cannot():
    rng = np.random.default_rng(1)
    N, D = 1e5 * 100 ** rng.uniform(size=30), 1e7 * 100 ** rng.uniform(size=30)
    rows = ensemble.rollout(runs_of(N, D, hoffmann(N, D)))
    assert len(rows) == 3 and all(r["beyond"] > 1 and r["rms_hoffmann"] < 1e-3 for r in rows)
    few = [v[:11] for v in grid(budgets=(1e13, 4e13))]
    assert ensemble.rollout(runs_of(*few)) == [] and "not possible" in forecast.rollout_text([])


def test_weights_are_inverse_to_the_last_mean_square_error():
    assert ensemble.weigh([]).tolist() == [0.5, 0.5]
    rows = [{"rms_hoffmann": 9.0, "rms_kaplan": 1.0}, {"rms_hoffmann": 0.01, "rms_kaplan": 0.02}]
    assert ensemble.weigh(rows) == pytest.approx([0.8, 0.2])


def test_forms_that_disagree_widen_the_interval():
    N, D, L = grid()
    fits, at = ensemble.fit_forms(N, D, L), (np.array([4e6]), np.array([8e7]))
    mean, sd, each, own = ensemble.combine(fits, np.array([0.5, 0.5]), *at)
    assert mean == pytest.approx(each.mean(0))
    assert sd ** 2 == pytest.approx((own ** 2).mean(0) + (each[0] - each[1]) ** 2 / 4)


# ---- Is a 95 % interval right 95 % of the time? ----

def outcome(train, target, truth):
    """(z of the combined forecast, z of Hoffmann's form alone) for one study and one later measurement."""
    fits = ensemble.fit_forms(*train)
    weights = ensemble.weigh(ensemble.rollout(runs_of(*train)))
    mean, sd, each, own = ensemble.combine(fits, weights, *(np.array([v]) for v in target))
    return float((mean - np.log(truth))[0] / sd[0]), float((each - np.log(truth))[0, 0] / own[0, 0])


@pytest.mark.parametrize("truth", [hoffmann, kaplan, lambda N, D: np.sqrt(hoffmann(N, D) * kaplan(N, D))],
                         ids=["hoffmann", "kaplan", "between"])
def test_coverage_in_simulated_studies(truth):
    """Whatever form generates the runs, the loss at three times their compute lies inside, seeds included."""
    target, inside = (4e6, 8e7), []
    for seed in range(12):
        measured = truth(*target) * np.exp(0.003 * np.random.default_rng(1000 + seed).standard_normal())
        inside.append(abs(outcome(grid(truth, seed=seed), target, measured)[0]) < ensemble.Z95)
    assert sum(inside) >= 10                           # 12 at 95 %: 9 or fewer happen twice in a thousand


def test_coverage_on_real_runs():
    """Porian et al.'s IsoFLOP runs: 24 below predict the best run at 4 to 8 times their compute."""
    if not ORACLES.exists():
        pytest.skip("../shared/oracles is absent")
    table = read_table(ORACLES / "porian_refinedweb.csv")
    z = []
    for config in ("rw/tuned/short/const/standard/val", "rw/base/short/kaplan/standard/val"):
        N, D, L, C = (table[k][table["config"] == config] for k in ("params", "tokens", "loss", "flops"))
        level = np.round(np.log2(C / C.min())).astype(int)
        for first, step, ahead in ((0, 1, 2), (4, 1, 3), (0, 2, 3), (2, 2, 2)):
            train = []
            for k in range(first, first + 4 * step, step):
                rows = np.flatnonzero(level == k)
                best = rows[L[rows].argmin()]
                train += rows[np.argsort(abs(np.log(N[rows] / N[best])))[:6]].tolist()
            rows = np.flatnonzero(level == first + 3 * step + ahead)
            best = rows[L[rows].argmin()]
            z.append(outcome((N[train], D[train], L[train]), (N[best], D[best]), L[best]))
    combined, alone = abs(np.array(z)).T
    assert (combined < ensemble.Z95).sum() >= 7 and (alone < ensemble.Z95).sum() <= 5      # of 8
