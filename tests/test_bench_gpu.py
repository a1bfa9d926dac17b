"""runtime/bench_gpu.py at tiny sizes on CPU: what is measured, refused, skipped and projected."""
import json
import math
import os
import time

import pytest
import torch
from torch.nn import functional as F

from runtime import bench_gpu
from runtime.basics import UserError
from runtime.bench_gpu import AGREE_STEPS, SMALL, Failed, Stepper, Worker

CPU = SMALL | dict(device="cpu", separate=False)
HOUR = 3600


def wrong(s):
    """A loss that forgets a hundredth of the weight."""
    return lambda x, w, y: bench_gpu.plain(x, 0.97 * w, y)


def broken(s):
    raise RuntimeError("no kernel\nfor this")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """The JSON of one run of the whole script, with a wrong loss and one that fails to compile."""
    path, forms = tmp_path_factory.mktemp("bench") / "results" / "gpu.json", bench_gpu.forms
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench_gpu, "forms", lambda s: {"wrong": wrong, "broken": broken} | forms(s))
        assert bench_gpu.main(["--device=cpu", "--small", f"--json={path}"]) == 0
    return json.loads(path.read_text(encoding="utf-8"))


def reasons(found: dict, part: str) -> dict[str, str]:
    return {skipped["name"]: skipped["why"] for skipped in found["skipped"] if skipped["part"] == part}


def test_the_report_says_where_and_how(found):
    assert found["device"] == "cpu" and found["torch"] == torch.__version__
    assert found["settings"]["vocab"] == SMALL["vocab"]
    assert list(found["seconds"]) == list(bench_gpu.PARTS)
    assert {"copy", "product of 64 x 64, bf16"} <= {row["name"] for row in found["roofline"]}
    assert not any("rest of it" in skipped["name"] for skipped in found["skipped"])    # a fault of its own


def test_every_loss_that_agrees_has_its_time(found):
    rows = {(row["name"], row["d"]): row for row in found["loss"]}
    for d in SMALL["widths"]:
        for name in ("eager, fp32 logits", "eager, bf16 logits", "eager, chunks of 32",
                     "compiled, fp32 logits", "compiled, bf16 logits", "compiled, chunks of 32"):
            row = rows[name, d]
            assert 0 < row["ms"]["q25"] <= row["ms"]["median"] <= row["ms"]["q75"]
            assert all(0 < row["error"][key] <= limit for key, limit in bench_gpu.LIMITS.items())


def test_what_is_wrong_or_fails_is_named_and_the_rest_goes_on(found):
    why = reasons(found, "loss")
    assert "disagrees with fp64, by loss 0.0" in why["(32, 'wrong')"]
    assert why["(256, 'broken')"] == "RuntimeError: no kernel for this"
    assert "Triton needs a GPU" in why["(32, 'triton, chunks of 32')"]
    assert not {"wrong", "broken"} & {row["name"] for row in found["loss"]}


def test_attention_by_backend(found):
    assert {(row["name"], row["d_head"]) for row in found["attention"]} >= {("MATH", 4), ("MATH", 16)}
    assert "RuntimeError" in reasons(found, "attention")["(4, 'CUDNN_ATTENTION')"]


def test_variants_of_the_step_do_the_same_work(found):
    rows = {(row["name"], row["d"]): row for row in found["steps"]}
    for d in SMALL["widths"]:
        assert {name for name, width in rows if width == d} == set(bench_gpu.VARIANTS[:4])
        losses = [rows[name, d]["losses"] for name in ("float32", "compiled")]
        assert losses[0] == pytest.approx(losses[1], rel=bench_gpu.AGREE) and len(losses[0]) == AGREE_STEPS
        assert losses[0][-1] < losses[0][0] and rows["compiled", d]["tok_per_s"]["median"] > 0
        assert rows["eager", d]["over eager"]["median"] == 1 and rows["compiled", d]["over plain compiled"]
    assert reasons(found, "steps")["(32, 2, 16, 'graphed')"] == "a CUDA graph needs a GPU"


def test_trainer_is_measured_or_its_lack_is_recorded(found):
    names = {row["d"] for row in found.get("trainer", ())} | set(reasons(found, "trainer"))
    assert len(names) == len(SMALL["widths"])


def test_several_processes_at_once(found):
    assert [row["at_once"] for row in found["several"]] == [1, 2]
    assert all(row["tok_per_s"]["median"] > 0 for row in found["several"])


def test_the_study_is_projected_for_each_variant(found):
    assert {row["name"] for row in found["projection"]} >= {"eager", "compiled"}
    eager = next(row for row in found["projection"] if row["name"] == "eager")
    rate = {row["d"]: row["tok_per_s"]["median"] for row in found["steps"] if row["name"] == "eager"}
    assert eager["runs"][0]["hours"] == pytest.approx(20_000 * 32768 / rate[32] / HOUR)


# ---------------------------------------------------------------- pieces


def test_projection_sums_the_nine_runs():
    study = bench_gpu.projection({32: 2e6, 256: 2e6})
    assert study["tokens"] == 270_000 * 32768 and len(study["runs"]) == 9
    assert study["hours"] == pytest.approx(270_000 * 32768 / 2e6 / HOUR)


def test_projection_is_log_log_between_measured_widths():
    runs = {run["d"]: run for run in bench_gpu.projection({32: 4e6, 256: 5e5, 128: 1e6})["runs"]}
    assert runs[64]["tok_per_s"] == pytest.approx(2e6) and not runs[64]["measured"]
    assert runs[192]["tok_per_s"] == pytest.approx(1e6 * 128 / 192)
    assert runs[128]["tok_per_s"] == pytest.approx(1e6) and runs[128]["measured"]


@pytest.mark.parametrize("rates", [{}, {32: 1e6}, {64: 1e6, 256: 1e6}])
def test_projection_does_not_extrapolate(rates):
    with pytest.raises(Failed, match="d 32 and 256"):
        bench_gpu.projection(rates)


def test_disagreement_is_found():
    losses = dict(float32=[6.0, 5.0], same=[6.003, 5.003], off=[6.0, 5.05], nan=[6.0, math.nan])
    assert set(bench_gpu.disagreements(losses)) == {"off", "nan"}
    assert "float32" in bench_gpu.disagreements(losses)["off"] and bench_gpu.disagreements({}) == {}


def test_a_stepper_with_other_batches_is_refused():
    steppers = {name: Stepper(CPU, 32, 2, 16, name, "") for name in ("float32", "eager")}
    steppers["other"] = Stepper(CPU, 32, 2, 16, "eager", "")
    steppers["other"].order = steppers["other"].order[::-1]
    losses = {name: stepper.losses(AGREE_STEPS)[0] for name, stepper in steppers.items()}
    assert set(bench_gpu.disagreements(losses)) == {"other"}


def test_the_device_gathers_the_host_s_batches():
    host, device = (Stepper(CPU, 32, 2, 16, name, "eager, fp32 logits") for name in ("eager", "compiled"))
    host.done = 1                                      # making the other trained it for a step
    for ours, theirs in zip(device.batch(), host.batch(), strict=True):
        assert torch.equal(ours, theirs)


def test_softmax_gradient_is_exact():
    torch.manual_seed(0)
    bench_gpu.check_softmax(bench_gpu.softmax_gradient, "cpu")


@pytest.mark.parametrize("fault", ["no share", "no target", "bf16 math", "nan"])
def test_check_softmax_finds(fault):
    def faulty(logits, y, share):
        share = torch.ones_like(share) if fault == "no share" else share
        y = y.roll(1) if fault == "no target" else y
        losses, gradient = bench_gpu.softmax_gradient(logits, y, share)
        if fault == "bf16 math":
            p = (logits - logits.logsumexp(1, keepdim=True)).exp() * share.bfloat16()[:, None]
            gradient = torch.where(gradient > 0, p, gradient)
        return losses, gradient * (math.nan if fault == "nan" else 1)
    with pytest.raises(Failed, match="fp64"):
        bench_gpu.check_softmax(faulty, "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_triton_kernel_is_exact():
    for V in (5003, 4096, 50304):
        bench_gpu.check_softmax(bench_gpu.softmax_gradient_triton, "cuda", V)


def test_chunked_loss_skips_ignored_targets_and_scales():
    torch.manual_seed(0)
    x, w = torch.randn(50, 8, requires_grad=True), torch.randn(300, 8, requires_grad=True)
    y = torch.randint(300, (50,))
    y[::7] = -1
    loss = bench_gpu.ChunkedLoss.apply(x, w, y, 16, bench_gpu.softmax_gradient)      # chunks of 16, 16, 16, 2
    found = loss, *torch.autograd.grad(3 * loss, (x, w))
    exact = [t.detach().bfloat16().double().requires_grad_() for t in (x, w)]
    loss = F.cross_entropy(exact[0] @ exact[1].T, y, ignore_index=-1)
    for a, b in zip(found, (loss, *torch.autograd.grad(3 * loss, exact)), strict=True):
        assert bench_gpu.error(a, b) < 1e-2


def test_exact_loss_is_cross_entropy_whatever_its_chunks():
    x, w, y = torch.randn(10, 4), torch.randn(30, 4), torch.randint(30, (10,))
    exact = F.cross_entropy(x.bfloat16().double() @ w.bfloat16().double().T, y)
    for rows in (3, 100):
        assert bench_gpu.exact_loss(x, w, y, rows)[0].item() == pytest.approx(exact.item(), rel=1e-12)


class Fragile:
    def die(self):
        os._exit(7)

    def dream(self):
        time.sleep(60)


def test_a_process_that_dies_or_is_late_says_so():
    workers = [Worker(True, Fragile) for _ in range(2)]
    for worker, method, reason in zip(workers, ("die", "dream"), ("exit code 7", "its time was up")):
        worker.answer(time.perf_counter() + 60)
        with pytest.raises(Failed, match=reason):
            worker.ask(time.perf_counter() + (5 if method == "die" else 0.1), method)
        worker.close()


def test_the_fastest_form_is_used(capsys):
    report = bench_gpu.Report(None, CPU)
    assert report.best_form(32) == "compiled, fp32 logits"                     # where nothing was measured
    report.add("loss", *(dict(name=name, d=d, ms=dict(median=ms, q25=ms, q75=ms))
                         for name, d, ms in (("slow", 32, 2.0), ("fast", 32, 1.0), ("other", 64, 0.5))))
    assert report.best_form(32) == "fast" and "fast: d 32, ms 1 (1-1)" in capsys.readouterr().out


def test_sizes_for_a_gpu_are_not_run_on_a_cpu():
    with pytest.raises(UserError, match="--small"):
        bench_gpu.main(["--device=cpu"])
