"""Tables as people have them (in ../shared/field, else skipped): what is right for each kind of fault."""
from pathlib import Path

import numpy as np
import pytest

from scaling import fit
from scaling.laws import forms
from scaling.tables.csv import read_table

FIELD = Path(__file__).parents[2] / "shared" / "field"
pytestmark = pytest.mark.skipif(not FIELD.is_dir(), reason="no tables in ../shared/field")


# ---- Laws: tokens are data, and what runs cannot tell. Unless a line says otherwise L = 1.7 + 300/N^.33 +
# 900/D^.31 with .2 % noise, so a = .4844. ----

@pytest.mark.parametrize("counted, a, b", [("total", 0.453, 0.485), ("matmul", 0.541, 0.490),
                                           ("transformer", 0.634, 0.478)])
def test_tokens_are_the_rows_own_however_n_is_counted(counted, a, b):
    t = read_table(FIELD / "nanochat_like.csv")
    table = {"params": t[f"params_{counted}"], "tokens": t["tokens_trained"], "loss": t["val_bpb"],
             "flops": t["flops_budget"], "run": t["run"]}
    result = fit.fit_all(table, bootstrap=0, at=[1e18, 1e19])
    lines = result["isoflop"]
    assert (lines["a"], lines["b"]) == pytest.approx((a, b), abs=1e-3)
    tokens = [p["D_opt"] for p in lines["points"]]
    assert 1.38e9 < tokens[0] < 1.435e9 and 4.38e9 < tokens[-1] < 4.42e9
    for row in result["verdict"]["approaches"].values():
        assert [best["loss"] for best in row["at"]] == pytest.approx([1.267, 1.061], abs=0.0025)
        assert [best["D_opt"] for best in row["at"]] == pytest.approx([1.45e9, 4.45e9], rel=0.03)


def test_forward_flops_are_another_count_of_compute():
    result = fit.fit_all(read_table(FIELD / "flops_forward.csv"), bootstrap=0, at=[1e21 / 3])
    assert "0.333 to 0.333 times 6 N D" in result["surface"]["note"]
    for row in result["verdict"]["approaches"].values():
        best = row["at"][0]
        assert (best["N_opt"], best["D_opt"]) == pytest.approx((1.24e9, 1.35e11), rel=0.01)
        assert best["loss"] == pytest.approx(2.316, abs=2e-3)


def test_twenty_tokens_per_parameter_leave_a_compute_law():
    result = fit.fit_all(read_table(FIELD / "twenty_tokens.csv"), bootstrap=100)
    said = result["surface"]["health"]["undetermined"][0]
    assert said.startswith("N_opt is not identified: D = 20 N") and result["verdict"]["agree"] is None
    law = result["loss_at_ratio"]
    assert law["ci"]["L_inf"][0] < 1.70 < law["ci"]["L_inf"][1]
    N = 3e9
    true = 1.7 + 300 / N ** 0.33 + 900 / (20 * N) ** 0.31
    assert forms.loss_of(law, {"C": 120 * N ** 2}) == pytest.approx(true, rel=0.004)


def test_three_sizes_a_budget_give_a_line_without_intervals():
    result = fit.fit_all(read_table(FIELD / "three_sizes.csv"), bootstrap=100)
    lines = result["isoflop"]
    assert lines["a"] == pytest.approx(0.4844, abs=1e-4) and lines["ci"] == {}
    assert [p["N_opt"] for p in lines["points"]] == pytest.approx(
        [4.36e7, 1.331e8, 4.062e8, 1.239e9], rel=2e-3)
    assert result["verdict"]["agree"] is None and "nan" not in fit.text(result)
    assert result["surface"]["health"]["lines"] == []


def test_a_sharp_break_is_within_the_bounds():
    law = fit.fit_all(read_table(FIELD / "sharp_break.csv"), bootstrap=50)["loss_vs_tokens"]["broken"]
    found = [law[k] for k in ("c1", "L_inf", "D_break", "f")]
    assert found == pytest.approx([5.0, 0.40, 1e9, 0.061], rel=0.01)
    assert law["objective"] == pytest.approx(2.17e-5, rel=2e-3) and law["health"]["lines"] == []
    assert np.isfinite(law["ci"]["c1"]).all()
