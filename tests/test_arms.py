"""What a change is worth: against simulated truth and published pairs, and on the command line."""
import json

import numpy as np
import pytest

from runtime.basics import UserError
from scaling import fit, plan
from scaling.laws import arms
from scaling.tables.csv import read_table, write_table

LAW = dict(E=1.48, A=48.0, B=458.0, alpha=0.52, beta=0.54)       # the laptop study's


def loss(N, D, r=1.0, s=1.0, grow=0.0):
    """LAW with N and D worth r and s as much, and exponents that are larger by the share `grow`."""
    n, d = np.exp(np.log(N).mean()), np.exp(np.log(D).mean())
    falls_N = LAW["A"] * (r * n) ** -LAW["alpha"] * (N / n) ** (-LAW["alpha"] * (1 + grow))
    falls_D = LAW["B"] * (s * d) ** -LAW["beta"] * (D / d) ** (-LAW["beta"] * (1 + grow))
    return LAW["E"] + falls_N + falls_D


def grid():
    """N and D of 25 runs: five budgets of five sizes."""
    C = np.repeat(np.geomspace(5e10, 8e11, 5), 5)
    N = np.sqrt(C / 6 / 60) * np.tile(np.geomspace(0.4, 2.5, 5), 5)
    return N, C / 6 / N


def study(seed: int, noise=0.004, **arms_) -> dict:
    """{arm: runs} on `grid`, each with what `loss` takes; a reference "base" before them."""
    rng = np.random.default_rng(seed)
    N, D = grid()
    return {name: {"N": N, "D": D, "C": 6 * N * D,
                   "L": loss(N, D, **changes) * np.exp(noise * rng.standard_normal(len(N)))}
            for name, changes in {"base": {}, **arms_}.items()}


def table_of(parts: dict) -> dict:
    """The runs of all arms as the columns of one table."""
    names = np.repeat(list(parts), [len(part["N"]) for part in parts.values()]).astype(object)
    columns = {column: np.concatenate([part[key] for part in parts.values()])
               for column, key in (("params", "N"), ("tokens", "D"), ("loss", "L"))}
    return {"arm": names} | columns


def test_without_noise_the_truth_comes_back():
    found = arms.fit_arms(study(0, 0.0, better=dict(r=1.2, s=1.25), worse=dict(s=0.8)), "base")
    assert len(found["budgets"]) == 5                            # those that the runs share
    for name, r, s in (("better", 1.2, 1.25), ("worse", 1.0, 0.8)):
        row = found["arms"][name]
        assert (row["r"], row["s"]) == pytest.approx((r, s), rel=2e-3)
        assert [m["factor"] for m in row["multiplier"]] == pytest.approx([r * s] * 5, rel=2e-3)
        assert row["trend"]["per_tenfold_C"] == pytest.approx(1, abs=0.01)
    assert {k: found["shared"][k] for k in LAW} == pytest.approx(LAW, rel=0.02)
    # Equal N: more data alone has to make up for both, so it takes more than r s of it; and the reverse.
    better, worse = (found["arms"][name]["at_equal_params"][0]["factor"] for name in ("better", "worse"))
    assert better > 1.5 and worse == pytest.approx(0.8, rel=2e-3)


def test_intervals_hold_the_truth_and_equal_exponents_are_not_rejected():
    """20 draws here; 400 by hand: 96 % inside, half-width 3.7 %, 5.8 % rejected (scaling/LOG.md)."""
    inside, widths, rejected = 0, [], 0
    for seed in range(20):
        found = arms.fit_arms(study(seed, new=dict(r=1.3 ** 0.5, s=1.3 ** 0.5)), "base", [2e11])
        row, = found["arms"]["new"]["multiplier"]
        low, high = row["ci"]
        inside += low <= 1.3 <= high
        widths.append((high - low) / 2 / row["factor"])
        rejected += found["equal_exponents"]["p"] < 0.05
    assert inside >= 16 and np.median(widths) < 0.04 and rejected <= 4


def test_other_exponents_are_found_and_then_each_arm_has_its_own():
    found = arms.fit_arms(study(1, new=dict(r=1.1, s=1.1, grow=0.1)), "base")
    assert found["equal_exponents"]["p"] < 0.01 and "the exponents are not one" in found["health"]["lines"][0]
    row = found["arms"]["new"]
    factors = [m["factor"] for m in row["multiplier"]]
    assert factors == sorted(factors) and factors[-1] > 1.2 * factors[0]       # it pays more at scale
    low, high = row["trend"]["ci"]
    assert 1 < low < row["trend"]["per_tenfold_C"] < high


@pytest.mark.parametrize("loss_before, loss_after, factor", [(3.8104, 3.7542, 1.315), (3.4339, 3.3988, 1.228),
                                                             (3.1605, 3.1357, 1.186)])
def test_published_pairs_of_losses(loss_before, loss_after, factor):
    """L = 1.6 + k C^-.0941: published as 1.31, 1.23 and 1.19."""
    assert arms.multiplier_of_losses(loss_after, loss_before, 1.6, 0.0941) == pytest.approx(factor, abs=1e-3)


@pytest.mark.parametrize("fixed, name", [("D", "r"), ("N", "s")])
def test_of_one_length_or_size_only_r_or_s_is_told(fixed, name):
    N, D = np.geomspace(1e4, 1e6, 8), np.full(8, 1e7)
    if fixed == "N":
        N, D = np.full(8, 1e5), np.geomspace(1e6, 1e8, 8)
    parts = {arm: {"N": N, "D": D, "C": 6 * N * D, "L": loss(N, D, **{name: k})}
             for arm, k in (("base", 1.0), ("new", 1.3))}
    found = arms.fit_arms(parts, "base")
    row = found["arms"]["new"]
    assert row[name] == pytest.approx(1.3, rel=0.02) and {"r", "s"} & set(row) == {name}
    assert [m["factor"] for m in row["multiplier"]] == pytest.approx([1.3] * len(row["multiplier"]), rel=0.02)


def test_where_data_follow_size_the_multiplier_is_of_compute():
    N = np.geomspace(1e4, 1e7, 8)
    C = 6 * N * 20 * N
    parts = {arm: {"N": N, "D": 20 * N, "C": C, "L": 1.5 + 900 * (m * C) ** -0.25}
             for arm, m in (("base", 1.0), ("new", 0.7))}
    row = arms.fit_arms(parts, "base", [1e12])["arms"]["new"]
    assert row["m"] == pytest.approx(0.7, rel=0.01)
    assert row["multiplier"][0]["factor"] == pytest.approx(row["m"])


def test_what_a_step_costs_more_counts_and_so_does_its_time():
    parts = study(0, 0.0, new=dict(r=1.2, s=1.25))
    parts["new"]["C"] = 1.1 * parts["new"]["C"]
    for name, speed in (("base", 1000.0), ("new", 800.0)):
        parts[name]["tok_per_s"] = np.full(25, speed)
    row = arms.fit_arms(parts, "base", [2e11])["arms"]["new"]
    assert row["multiplier"][0]["factor"] == pytest.approx(1.5 / 1.1, rel=2e-3)
    assert row["per_hour"][0]["factor"] == pytest.approx(1.5 / 1.1 * 0.8, rel=2e-3)
    expected = [0.8 * end for end in row["multiplier"][0]["ci"]]
    assert row["per_hour"][0]["ci"] == pytest.approx(expected, rel=1e-3)


def test_the_interval_per_hour_holds_the_error_of_the_speeds():
    rng = np.random.default_rng(0)
    N = np.repeat(np.geomspace(1e4, 1e5, 5), 3)                  # five sizes of three runs
    inside, alone = 0, {"C": 1e11, "factor": 1.2, "ci": [1.2 / 1.01, 1.2 * 1.01]}
    for _ in range(400):
        runs = {arm: {"N": N, "tok_per_s": speed * np.exp(0.1 * rng.standard_normal(15))}
                for arm, speed in (("base", 1000), ("new", 800))}
        low, high = arms.per_hour(alone, *arms.slowness(runs, "new", "base"))["ci"]
        inside += low < 1.2 * 0.8 < high
    assert 0.92 < inside / 400 < 0.98                            # 2.3 standard deviations of a draw of 400


def test_an_arm_of_one_length_ties_r_to_s_and_says_so():
    parts = study(0, 0.0, new=dict(r=1.2, s=1.2))
    N, D = grid()
    parts["new"] = {"N": N[:5], "D": np.full(5, D[12]), "C": 6 * N[:5] * D[12],
                    "L": 1.48 + 48 * (1.2 * N[:5]) ** -0.52 + 458 * (1.2 * D[12]) ** -0.54}
    found = arms.fit_arms(parts, "base", [2e11])
    assert found["arms"]["new"]["multiplier"][0]["factor"] == pytest.approx(1.44, rel=0.01)
    assert any("cannot tell what N is worth from what D is" in line for line in found["health"]["lines"])


def test_an_arm_of_too_few_runs_is_left_out_and_named():
    parts = study(0, new={}, short={})
    parts["short"] = {key: v[:2] for key, v in parts["short"].items()}
    found = arms.fit_arms(parts, "base")
    assert list(found["arms"]) == ["new"] and "too few" in found["left_out"]["short"]
    assert found["health"]["lines"][0].startswith("short is left out: 2 settings of N and D are too few")
    with pytest.raises(UserError, match="the reference arm 'short': 2 settings"):
        arms.fit_arms(parts, "short")


def test_on_the_command_line(tmp_path, capsys):
    path = tmp_path / "runs.csv"
    table = table_of(study(0, muon=dict(r=1.2, s=1.2), base2={}))
    table["optimizer"] = np.where(table["arm"] == "muon", "muon", "adamw").astype(object)
    write_table(path, [dict(zip(table, row)) for row in zip(*table.values())], list(table))
    fit.main([str(path), "--arm=arm", "--at=2e11", f"--json={tmp_path / 'fit.json'}", "--bootstrap=50"])
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "fit.json").read_text())
    assert found["arms"]["reference"] == "base" and "these laws are of the arm 'base'" in out
    assert found["data"]["runs"] == 25 and "surface" in found
    m, = found["arms"]["arms"]["muon"]["multiplier"]
    assert m["C"] == 2e11 and m["ci"][0] < 1.44 < m["ci"][1]
    assert "\n  muon: r " in out and "C 2e+11: reaches the loss of base with 0." in out
    assert ", no difference shown" in out                        # base2
    # The arms may be any column; of two optimizers nothing else would be fitted together.
    fit.main([str(path), "--arm=optimizer", "--reference=muon", "--bootstrap=0"])
    assert "adamw: r " in capsys.readouterr().out


def test_an_arm_whose_table_is_refused_is_left_out_and_named():
    table = table_of(study(0, new={}, broken={}))
    table["loss"] = np.where(table["arm"] == "broken", np.nan, table["loss"])
    found = fit.fit_all(table, bootstrap=0, arm="arm")["arms"]
    assert list(found["arms"]) == ["new"] and "no usable row is left" in found["left_out"]["broken"]
    assert any(line.startswith("broken is left out") for line in found["notes"])


@pytest.mark.parametrize("options, says", [
    (["--arm=armm"], "no column 'armm' .did you mean 'arm'"),
    (["--arm=arm", "--reference=bsae"], "there is no arm 'bsae' to compare with; there are base, new"),
    (["--arm=dataset"], "column 'dataset' holds c4: name one with two arms or more"),
    (["--arm=arm", "--where=arm=new"], "column 'arm' holds new: name one with two arms or more"),
])
def test_bad_arms_are_one_line(tmp_path, options, says):
    path = tmp_path / "runs.csv"
    table = table_of(study(0, new={})) | {"dataset": np.full(50, "c4", object)}
    write_table(path, [dict(zip(table, row)) for row in zip(*table.values())], list(table))
    with pytest.raises(UserError, match=says):
        fit.main([str(path), *options])


def test_arms_on_other_data_are_refused_unless_the_data_are_the_arms():
    table = table_of(study(0, new=dict(s=1.2)))
    table["dataset"] = np.where(table["arm"] == "new", "edu", "web").astype(object)
    with pytest.raises(UserError, match="the arms differ in 'dataset', which holds"):
        fit.fit_all(table, bootstrap=0, arm="arm")
    del table["arm"]
    low, high = fit.fit_all(table, bootstrap=0, arm="dataset")["arms"]["arms"]["edu"]["ci"]["s"]
    assert low < 1.2 < high
    # Texts differ, and so they may; what their losses were measured on may not.
    table["val_sha256"] = np.where(table["dataset"] == "edu", "1a", "2b").astype(object)
    with pytest.raises(UserError, match="2 values .1a, 2b.: losses on different validation texts do not"):
        fit.fit_all(table, bootstrap=0, arm="dataset")
    table["val_sha256"] = np.where(table["dataset"] == "edu", "1a", "").astype(object)    # of old runs
    assert "edu" in fit.fit_all(table, bootstrap=0, arm="dataset")["arms"]["arms"]


def test_plan_compares_two_studies(tmp_path, capsys):
    parts = study(0, new=dict(r=1.2, s=1.2))
    for name, part in parts.items():
        (tmp_path / name).mkdir()
        table = table_of({name: part})
        del table["arm"]
        write_table(tmp_path / name / "runs.csv", [dict(zip(table, row)) for row in zip(*table.values())],
                    list(table))
        result = fit.fit_all(read_table(tmp_path / name / "runs.csv"), bootstrap=50)
        (tmp_path / name / "fit.json").write_text(json.dumps(result))
    plan.main(["--compare", *(str(tmp_path / name / "fit.json") for name in parts)])
    assert "fit.json needs 1.4" in capsys.readouterr().out
