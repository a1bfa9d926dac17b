"""Tables as people really have them, and what is right for them (in ../shared/field, else skipped)."""
from pathlib import Path

import numpy as np
import pytest

from runtime.basics import UserError
from scaling import fit
from scaling.laws import forms
from scaling.tables.csv import read_table
from scaling.tables.runs import select

FIELD = Path(__file__).parents[2] / "shared" / "field"
pytestmark = pytest.mark.skipif(not FIELD.is_dir(), reason="no tables in ../shared/field")


# ---- Which rows a fit may use, and in what units. ----

def chosen(name, **asked):
    return select(read_table(FIELD / name), **asked)


def surface(data):
    return forms.fit_surface(*fit.rows(data))


def test_flops_of_the_forward_pass():
    told, = chosen("flops_forward.csv")["warnings"]
    assert told.startswith("flops are 0.333 times 6 N D in every row (the forward pass alone, 2 N D): ")
    data = chosen("flops_forward.csv", flops="6nd")
    for found in (surface(data), fit.isoflop(data, 100)):
        best = forms.optimum(found, 1e21)
        assert (best["N_opt"], best["D_opt"]) == pytest.approx((1.24e9, 1.35e11), rel=0.01)
        assert best["loss"] == pytest.approx(2.316, abs=0.001)


def test_shares_of_the_data_are_no_seeds():
    data = chosen("data_pct.csv")
    assert data["seed_df"] == 0 and data["separate"] == ["data_pct"] and len(set(data["N"])) == 4
    assert "--where=data_pct=100 keeps one" in data["warnings"][0]
    for part in (data, chosen("data_pct.csv", where=["data_pct=100"])):
        law = fit.power("N", part, 0)
        assert (law["n"], law["L_inf"]) == (4, pytest.approx(1.2, abs=2e-3))
        assert law["N_c"] ** law["alpha"] == pytest.approx(3.4, abs=0.01)
        assert law["alpha"] == pytest.approx(0.14, abs=1e-3)


def test_a_grid_of_hyper_parameters_gives_its_best():
    data = chosen("hp_grid.csv")
    assert data["seed_df"] == 0 and data["separate"] == ["lr", "bs"] and len(data["L"]) == 20
    best = forms.optimum(surface(data), 1e20)
    assert best["loss"] == pytest.approx(2.602, abs=1e-3)
    assert best["ci"]["loss"] == pytest.approx([2.589, 2.614], abs=2e-3)


def test_an_index_tells_no_rows_apart():
    data = chosen("dup_index.csv")
    assert len(data["L"]) == 20 and data["seed_df"] == 0
    law = surface(data)
    assert law["a"] == pytest.approx(0.4837, abs=1e-4)
    assert law["ci"]["a"] == pytest.approx([0.4757, 0.4906], abs=1e-3)


def test_perplexities_are_no_nats():
    with pytest.raises(UserError, match=r"loss is 10\.13 to 42\.52, .* take their logarithm"):
        chosen("loss_ppl.csv")


def test_a_family_with_one_rate_for_all_sizes():
    data = chosen("family_untuned.csv")
    assert data["warnings"] == ["loss rises with N at equal D in rows 4 (large), 5 (xl): larger models are "
                                "untuned, diverged or overfitted"]
    law = fit.power("N", data, 0)
    assert law["n"] == 3
    assert law["note"].endswith("2 of 5 values of N are left out, as less N did better: 3.5e+07, 9e+07")


@pytest.mark.parametrize("named", [True, False])
def test_rows_halfway_along_a_cosine_are_no_runs(named):
    sizes = {"s": 5e7, "m": 1e8, "l": 2e8, "x": 4e8}
    parts = []
    for path in sorted((FIELD / "curves").glob("*.csv")):
        t = read_table(path)
        parts.append({"run": np.full(len(t["_step"]), path.stem, object), "step": t["_step"],
                      "params": np.full(len(t["_step"]), sizes[path.stem[0]]),
                      "tokens": t["throughput/total_tokens"], "loss": t["eval/loss"]})
    table = {key: np.concatenate([part[key] for part in parts]) for key in parts[0] if named or key != "run"}
    data = select(table)
    assert len(data["L"]) == len(data["last"]) == 12 and data["seed_df"] == 0 and not data["curves"]
    assert "dropped 288 of 300 rows: halfway along a run is no finished run" in data["notes"][0]
    law = surface(data)
    assert (law["beta"], law["a"]) == pytest.approx((0.357, 0.517), abs=1e-3)
    assert law["ci"]["beta"] == pytest.approx([0.315, 0.401], abs=0.01)
    assert law["ci"]["a"] == pytest.approx([0.390, 0.723], abs=0.02)
    assert forms.loss_of(law, {"N": 3.2e9, "D": 6.4e11}) == pytest.approx(2.141, abs=1e-3)
