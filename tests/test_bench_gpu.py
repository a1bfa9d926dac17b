"""runtime/bench_gpu.py at tiny sizes on CPU: what is measured, refused, skipped and projected."""
import dataclasses
import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from test_bench import preloaded
from torch.nn import functional as F

from runtime import bench_gpu
from runtime.basics import UserError
from runtime.bench_gpu import SMALL

CPU = dataclasses.replace(SMALL, device="cpu")


def reasons(found: dict) -> dict[str, str]:
    return {skipped["name"]: skipped["why"] for skipped in found["skipped"]}


def no_kernel(x, w, y):
    raise RuntimeError("no kernel\nfor this")


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict:
    """The JSON of one run of the whole script; at width 256 losses are wrong or fail, and a rate is wrong."""
    path = tmp_path_factory.mktemp("bench") / "gpu.json"

    def wrong(x, w, y):
        share = 0.97 if x.shape[1] == 256 else 1.0
        return F.cross_entropy((x @ (share * w).T).float(), y)

    class Slower(bench_gpu.Eager):
        def __init__(self, c, meta):
            super().__init__(dataclasses.replace(c, learning_rate=3e-5 if c.n_embd == 256 else 3e-3), meta)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_gpu, "fp32_logits", wrong)
        patch.setattr(bench_gpu, "fused", no_kernel)
        patch.setattr(bench_gpu, "Eager", Slower)
        patch.setattr(bench_gpu.bench, "get_context", preloaded)
        assert bench_gpu.main(["--device=cpu", "--small", f"--json={path}"]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_report_says_where_and_how(found):
    assert found["device"] == "cpu" and found["torch"] == torch.__version__
    assert found["settings"]["vocab_size"] == SMALL.vocab_size
    assert [row["name"] for row in found["roofline"]] == ["bf16", "TF32", "fp32", "copy"]
    assert all(row["error"] < 1e-2 for row in found["roofline"][:3])
    assert not any("rest of it" in name for name in reasons(found))    # a fault of the script's own


def test_what_is_wrong_or_fails_is_named_and_the_rest_goes_on(found):
    why = reasons(found)
    assert "disagrees with fp64: loss by 0.0" in why["d 256, eager"]
    assert why["d 256, fused"] == "RuntimeError: no kernel for this"
    assert set(found["projection"]) == {"ours", "ungraphed"}


def test_every_loss_that_agrees_has_its_time(found):
    assert [(row["d"], row["name"]) for row in found["loss"]] == [(32, "eager"), (32, "compiled")]
    for row in found["loss"]:
        assert 0 < row["ms"]["q25"] <= row["ms"]["median"] <= row["ms"]["q75"]
        assert all(0 < off <= bench_gpu.LIMITS[quantity] for quantity, off in row["errors"].items())


def test_the_reference_in_parts_is_that_of_the_whole():
    x, w, y = torch.randn(25, 8), torch.randn(30, 8), torch.randint(30, (25,))
    found = bench_gpu.exact_gradients(x, w, y, 8)
    exact = bench_gpu.gradients(bench_gpu.fp32_logits, x.requires_grad_(), w.requires_grad_(), y)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.float(), b)


def test_steps_do_the_same_work(found):
    rows = {(row["d"], row["name"]): row for row in found["steps"]}
    assert set(rows) - {(32, "eager")} == {(d, name) for d in SMALL.widths for name in ("ours", "ungraphed")}
    for row in rows.values():
        assert row["losses"] == pytest.approx(rows[row["d"], "ours"]["losses"], rel=2 * bench_gpu.AGREE)
        assert row["losses"][-1] < row["losses"][0] and row["tok_per_s"]["median"] > 0


def test_a_step_that_does_other_work_is_skipped(found):
    assert (32, "eager") in {(row["d"], row["name"]) for row in found["steps"]}
    assert "its first losses are not those of float32" in reasons(found)["d 256, 2 x 16, eager"]


def test_runs_at_once_and_the_trainer_are_timed(found):
    assert [row["processes"] for row in found["together"]] == list(SMALL.together)
    assert found["together"][0]["tok_per_s"] > 0
    if find_spec("accelerate"):
        assert [row["d"] for row in found["trainer"]] == list(SMALL.widths)
    else:
        assert "accelerate" in reasons(found)["d 32"]


def test_nothing_begins_after_the_limit():
    report = bench_gpu.Report(None, CPU, 0)
    bench_gpu.measure_roofline(CPU, report)
    assert "roofline" not in report.found
    assert set(reasons(report.found).values()) == {"TimeoutError: its time was up"}


def test_turns_rotate_and_every_number_has_its_quartiles(monkeypatch):
    order = []
    report = bench_gpu.Report(None, dataclasses.replace(CPU, rounds=3), 600)
    monkeypatch.setattr(bench_gpu, "seconds_a_call", lambda run, count, device: order.append(run) or 1.0)
    report.contest("part", "", dict(a="a", b="b"), lambda form: (form, dict(of=form)), "per_s", np.negative)
    assert "".join(order) == "aabb" + "abbaab"
    assert report.found["part"][1] == dict(name="b", of="b", per_s=dict(q25=-1.0, median=-1.0, q75=-1.0))


def test_the_study_is_projected_log_log_between_measured_widths():
    study = bench_gpu.projection({32: 4e6, 256: 5e5, 128: 1e6})
    runs = {run["d"]: run for run in study["runs"]}
    assert runs[64]["tok_per_s"] == pytest.approx(2e6) and not runs[64]["measured"]
    assert runs[192]["tok_per_s"] == pytest.approx(1e6 * 128 / 192)
    assert runs[128]["tok_per_s"] == pytest.approx(1e6) and runs[128]["measured"]
    assert runs[32]["hours"] == pytest.approx(20_000 * 32_768 / 4e6 / 3600)
    assert study["hours"] == pytest.approx(math.fsum(run["hours"] for run in runs.values()))
    for rates in ({}, {32: 1e6}, {64: 1e6, 256: 1e6}):
        with pytest.raises(ValueError, match="d 32 and 256"):
            bench_gpu.projection(rates)


def test_sizes_for_a_gpu_are_not_run_on_a_cpu():
    with pytest.raises(UserError, match="--small"):
        bench_gpu.main(["--device=cpu"])
