"""The bench compares like with like, or refuses to. No test here looks at a time: those are the machine's."""
import contextlib
import itertools
import json
import os
import sys
import time
from functools import partial
from multiprocessing import get_context
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from runtime.basics import UserError
from scaling import bench

SMALL = dict(n_layer=2, n_head=2, n_embd=16, batch_size=2, block_size=16, vocab_size=1100)
GENTLE = ["--shape=laptop_small", "--peers=plain", "--rounds=3", "--seconds=0.01"]


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(bench, "SHAPES", {"laptop_small": SMALL, "wide_small": SMALL})


def preloaded(how: str):
    """For bench.get_context: processes forked from one that has imported all, which else takes each 4 s."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["scaling.bench", "torch._dynamo"])
    return context


def losses(name: str, steps: int = bench.AGREE_STEPS, spoil=None) -> list[float]:
    """The first losses of a contestant, built in this process; `spoil(contestant)` comes before them."""
    with bench.workplace(**SMALL) as run:
        contestant = bench.CONTESTANTS[name](run.config, run.meta)
        if spoil:
            spoil(contestant)
        return bench.losses(contestant, steps)


# ---------------------------------------------------------------- the same work


def test_contestants_agree():
    pytest.importorskip("transformers")
    found = {name: losses(name) for name in ("ours", "hf", "plain")}
    bench.require_same_work(found)
    assert len({round(x, 3) for x in found["ours"]}) == bench.AGREE_STEPS      # each step is of another batch


def test_the_plain_peer_uses_none_of_our_kernels(monkeypatch):
    monkeypatch.setattr(bench.cpu, "BlockedCrossEntropy", None)
    losses("plain")
    with pytest.raises(AttributeError):
        losses("ours")


def test_peers_end_with_the_weights_of_ours():
    """Losses of a few steps say little of decay, clipping and betas; weights after them say more."""
    models = []
    for name in ("ours", "plain"):
        losses(name, 12, spoil=lambda contestant: models.append(contestant.model))
    ours, plain = (model.state_dict() for model in models)
    torch.testing.assert_close(ours, plain, atol=2e-5, rtol=0)         # names the weights that differ


def halve_rate(contestant) -> None:
    for group in contestant.optimizer.param_groups:
        group["lr"] /= 2


def other_weights(contestant) -> None:
    torch.nn.init.normal_(contestant.model.transformer.h[0].mlp.c_fc.weight, std=0.1)


def other_data(contestant) -> None:
    contestant.i = 5


def half_the_batch(contestant) -> None:
    get = contestant.data.get
    contestant.data.get = lambda ids: get(ids[:1])


@pytest.mark.parametrize("spoil", [halve_rate, other_weights, other_data, half_the_batch])
def test_a_contestant_that_does_other_work_is_refused(spoil):
    with pytest.raises(UserError, match="ours and plain do not do the same work.*nothing was timed"):
        bench.require_same_work(dict(ours=losses("ours"), plain=losses("plain", spoil=spoil)))


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 3.001])
def test_a_loss_that_is_off_or_no_number_is_refused(loss):
    with pytest.raises(UserError, match="hf"):
        bench.require_same_work(dict(ours=[3.0, 3.0], hf=[3.0, loss]))
    bench.require_same_work(dict(ours=[3.0, 3.0], hf=[3.0, 3.0001]))


def test_nothing_is_timed_after_a_refusal(monkeypatch, capsys):
    def ask(name, processes, task, *args):
        asked.append(task)
        return [[3.0 + (name == "plain")] * 5]

    asked = []
    monkeypatch.setattr(bench, "ask", ask)
    with pytest.raises(UserError, match="do not do the same work"):
        bench.main(GENTLE)
    assert asked == [bench.losses] * 2 and "tokens/s" not in capsys.readouterr().out


# ---------------------------------------------------------------- numbers


def test_a_ratio_is_the_median_over_turns_and_not_of_medians():
    ours, theirs = [10.0, 2.0, 30.0], [5.0, 2.0, 5.0]        # pairs: 2, 1, 6; medians: 10 / 5 by accident
    assert bench.ratio(ours, theirs) == dict(q25=1.5, median=2.0, q75=4.0)
    assert bench.ratio([1.0, 4.0, 9.0], [1.0, 1.0, 9.0])["median"] == 1.0      # medians: 4 / 1
    with pytest.raises(ValueError):
        bench.ratio([1.0], [1.0, 2.0])


def test_turns_alternate_and_each_round_starts_with_another(monkeypatch):
    """And the speeds of a group of processes add up."""
    def ask(name, processes, task, seconds, clock):
        assert task is bench.burst and clock is time.process_time
        order.append(name)
        return [seconds * len(order)] * len(processes)

    order = []
    monkeypatch.setattr(bench, "ask", ask)
    found = bench.in_turns(dict(a=[1], b=[1], c=[1, 1]), 3, 0.5, time.process_time)
    assert "".join(order) == "abcbcacab"
    assert found == dict(a=[0.5, 3.0, 4.0], b=[1.0, 2.0, 4.5], c=[3.0, 5.0, 7.0])


def test_a_burst_is_a_step_at_least_on_its_own_clock():
    ticks = iter([10.0, 14.0])
    assert bench.burst(SimpleNamespace(step=lambda: None), 0.0, lambda: next(ticks)) == 0.25


def test_the_split_covers_the_step():
    """A clock that counts its readings: phases follow each other, and the loss lies within one of them."""
    with bench.workplace(**SMALL) as run:
        for name in ("ours", "plain"):
            contestant = bench.CONTESTANTS[name](run.config, run.meta)
            parts = bench.split(contestant, 3, itertools.count(0.0).__next__)
            # start, forward, head, hidden, a gradient for each parameter, end: one tick apart
            n = len(list(contestant.model.parameters()))
            assert parts == dict(data=1e3, forward_backward=(n + 2) * 1e3, loss=parts["loss"], optimizer=1e3)
            assert 1e3 <= parts["loss"] < parts["forward_backward"], name
            assert not contestant.model.transformer.ln_f._forward_hooks and contestant.step().isfinite()


def test_the_roofline_is_positive_and_leaves_precision_alone():
    before = torch.get_float32_matmul_precision()
    assert bench.gemm_roofline(1, time.process_time, size=64) > 0
    assert torch.get_float32_matmul_precision() == before


# ---------------------------------------------------------------- the command


def test_json_and_table(tmp_path, capsys, monkeypatch):
    """Through processes of their own, as the command runs them."""
    path = tmp_path / "bench.json"
    assert bench.main([*GENTLE, "--processes=0", f"--json={path}"]) == 0
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found.keys() == {"torch", "processor", "cpu", "cores", "onednn", "threads", "clock", "rounds",
                            "seconds", "commit", "shapes", "processes"}
    shape, = found["shapes"]
    assert shape.keys() == {"shape", "settings", "tokens_per_step", "flops_per_token", "gemm_roofline_gflops",
                            "kernels", "load", "contestants"}
    assert shape["shape"] == "laptop_small" and shape["settings"] == SMALL and shape["tokens_per_step"] == 32
    assert set(shape["contestants"]) == {"ours", "plain"}
    for row in shape["contestants"].values():
        assert row.keys() == {"tok_per_s", "ms", "gflops", "roofline_share", "ratio", "loss", "split_ms",
                              "peak_mb"}
        assert row["split_ms"].keys() == set(bench.PHASES)
        assert row["ms"] == pytest.approx(32e3 / row["tok_per_s"]["median"])
        assert row["gflops"] == pytest.approx(row["tok_per_s"]["median"] * shape["flops_per_token"] / 1e9)
        assert row["roofline_share"] == pytest.approx(row["gflops"] / shape["gemm_roofline_gflops"])
        assert row["peak_mb"] > 50
    assert shape["contestants"]["ours"]["ratio"]["median"] == 1
    assert found["processes"] == []
    out = capsys.readouterr().out
    assert "laptop_small: 2 layers, 2 heads, d 16, 2 x 16 tokens, V 1,100" in out and " plain " in out
    assert out.splitlines()[1].startswith("one shape: ours against plain, ")
    assert out.endswith(f"\nwrote {path}\n")


LONG = dict(n_layer=1, n_head=2, n_embd=96, batch_size=1, block_size=300, vocab_size=96)


@pytest.mark.parametrize("shape, pays, on", [
    (SMALL, False, ["BlockedCrossEntropy"]), (LONG, False, ["Gelu"]),
    (LONG, True, ["BlockedAttention", "Gelu", "LinearFunction"])])
def test_kernels_are_those_that_are_on(shape, pays, on, monkeypatch):
    monkeypatch.setattr(bench.cpu, "onednn_pays", lambda: pays)
    assert bench.kernels(bench.Config(**shape)) == on


# What bench.PACKAGE asks of the package, and a law that fits nothing.
CHINCHILLA = """
class Chinchilla:
    E, A, B, alpha, beta = 1.0, 2.0, 3.0, 0.5, 0.5

    def __init__(self, folder, param_grid, loss_fn, log_level):
        assert open(folder + "/df.csv").readline() == "C,N,D,loss\\n" and len(param_grid) == 5

    def fit(self):
        pass
"""


def test_fits_against_the_package(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench.basics, "ROOT", tmp_path)
    monkeypatch.setattr(bench, "fit_all", partial(bench.fit_all, bootstrap=0))
    with pytest.raises(UserError, match="chinchilla.csv"):
        bench.measure_fits(str(tmp_path))
    (tmp_path / "data" / "published").mkdir(parents=True)
    N, D = np.geomspace(1e6, 1e9, 8), np.geomspace(1e9, 1e10, 8)[::-1]
    table = np.column_stack([N, D, 2 / N ** 0.5 + 3 / D ** 0.5 + np.exp(1)])
    np.savetxt(tmp_path / "data" / "published" / "chinchilla.csv", table, delimiter=",",
               header="params,tokens,loss", comments="")
    with pytest.raises(UserError, match="--fits=nowhere: ModuleNotFoundError"):
        bench.measure_fits("nowhere")
    (tmp_path / "chinchilla").mkdir()
    (tmp_path / "chinchilla" / "__init__.py").write_text(CHINCHILLA, encoding="utf-8")
    (tmp_path / "chinchilla" / "_metrics.py").write_text("def log_huber(*args): pass", encoding="utf-8")
    assert bench.main(["--shape=", "--peers=", f"--fits={tmp_path}", f"--json={tmp_path}/fits.json"]) == 0
    found = json.loads((tmp_path / "fits.json").read_text(encoding="utf-8"))["fits"]
    # Losses near e, and a law that has E = 1: 8 errors of almost 1 each, far beyond delta.
    assert found["chinchilla"]["objective"] == pytest.approx(8 * 1e-3, rel=1e-2)
    assert found["ours"]["objective"] < 1e-6 and found["ours"]["forms"] >= 2
    assert "of processor time, objective" in capsys.readouterr().out


def test_a_place_for_json_that_is_not_there_is_found_before_the_work(tmp_path):
    with pytest.raises(UserError, match="nope/x.json: there is no .*nope; make it first"):
        bench.main([*GENTLE, f"--json={tmp_path}/nope/x.json"])


def test_processes_work_at_once():
    """All have the task before one is waited for."""
    class Fake:
        def submit(self, *task):
            order.append("start")
            return SimpleNamespace(result=lambda: order.append("answer") or task)

    order = []
    assert bench.ask("two", [Fake(), Fake()], bench.losses, 3) == [(bench.work, bench.losses, 3)] * 2
    assert order == ["start", "start", "answer", "answer"]


def test_two_processes_and_one(monkeypatch, capsys):
    """Fakes that do 100 steps a second with one thread and 160 with two, on the wall's clock."""
    def ask(name, processes, task, *args):
        assert task is bench.losses or args[1:] == (time.perf_counter,)
        return [{1: 100.0, 2: 160.0}[threads] for threads in processes]

    monkeypatch.setattr(bench, "process", lambda stack, name, run, threads: threads)
    monkeypatch.setattr(bench, "ask", ask)
    found = bench.two_processes("laptop_small", 3, 0.1)
    assert found["two_of_one_thread"]["median"] == 200 * 32 and found["ratio"]["median"] == 1.25
    assert found["one_of_two_threads"]["median"] == 160 * 32
    bench.print_processes(found)
    assert "1.25 times" in capsys.readouterr().out


def test_json_to_standard_output_is_all_there_is(monkeypatch, capsys):
    monkeypatch.setattr(bench, "measure", lambda name, a: dict(shape=name))
    monkeypatch.setattr(bench, "print_shape", lambda m: print("a table"))
    assert bench.main(["--shape=wide_small", "--peers=plain", "--json=-"]) == 0
    out, err = capsys.readouterr()
    assert [m["shape"] for m in json.loads(out)["shapes"]] == ["wide_small"]
    assert "a table" in err


def test_only_the_laptops_shapes_are_measured_as_two_processes(monkeypatch):
    seen = []
    monkeypatch.setattr(bench, "measure", lambda name, a: dict(shape=name))
    monkeypatch.setattr(bench, "print_shape", lambda m: None)
    monkeypatch.setattr(bench, "print_processes", lambda m: None)
    monkeypatch.setattr(bench, "two_processes", lambda name, *_: seen.append(name) or {})
    bench.main(["--peers=plain"])
    bench.main(["--peers=plain", "--processes=0"])
    assert seen == ["laptop_small"]


@pytest.mark.parametrize("argument, says", [
    ("--shape=laptop_smal", "unknown 'laptop_smal' (did you mean 'laptop_small'?); there are laptop_small,"),
    ("--peers=hugging", "there are hf, hf_compiled, plain"), ("--rounds=0", "--rounds must be positive"),
    ("--seconds=nan", "--seconds must be positive, not nan"), ("--threads=-2", "--threads must be positive")])
def test_a_wrong_argument_is_one_line(argument, says, capsys, monkeypatch):
    with pytest.raises(SystemExit) as end:
        bench.exit_cleanly(lambda: bench.main([argument]))
    err = capsys.readouterr().err
    assert end.value.code == 2 and says in err and err.count("\n") == 1


def test_a_peer_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match="needs transformers: pip install .* leave it out with --peers=plain"):
        bench.main(["--peers=plain,hf_compiled"])


def end(contestant) -> None:
    os._exit(7)


def test_a_process_that_dies_is_one_line(capfd):
    """An unknown contestant, and then the end of its process: each a traceback, and then one line."""
    says = "the process of {} died; its traceback is above; --peers leaves a peer out"
    with bench.workplace(**SMALL) as run, contextlib.ExitStack() as stack:
        for name, task, reason in (("nobody", bench.peak_mb, "KeyError: 'nobody'"),
                                   ("plain", end, "BrokenProcessPool")):
            home = bench.process(stack, name, run, 1)
            with pytest.raises(UserError, match=says.format(name)):
                bench.ask(name, [home], task)
            assert reason in capfd.readouterr().err


def test_a_clone_of_nanogpt_is_a_peer(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NANOGPT", "")                  # what main sets is taken back
    with pytest.raises(UserError, match="no model.py; git clone"):
        bench.main([*GENTLE, f"--nanogpt={tmp_path}"])
    (tmp_path / "model.py").write_text(NANOGPT, encoding="utf-8")
    monkeypatch.setattr(bench, "get_context", preloaded)
    bench.main([*GENTLE, f"--nanogpt={tmp_path}", "--processes=0"])
    assert "nanogpt" in capsys.readouterr().out


# What bench.NanoGPT asks of a clone, by model.py.
NANOGPT = '''
from dataclasses import dataclass

import torch

import model
from config.settings import Config


@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool


class GPT(model.GPT):
    def __init__(self, c):
        super().__init__(Config(**vars(c)))

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        groups = [dict(params=[p for p in self.parameters() if p.dim() >= 2], weight_decay=weight_decay),
                  dict(params=[p for p in self.parameters() if p.dim() < 2], weight_decay=0.0)]
        return torch.optim.AdamW(groups, lr=learning_rate, betas=betas)
'''
