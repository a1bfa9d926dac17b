"""runtime/gpu.py: its loss against float64, and steps as a CUDA graph.

Without a GPU the graph is played, and the loss needs `pip install triton` and TRITON_INTERPRET=1.
"""
import contextlib
import copy
import os

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import train
from runtime import gpu

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
needs_gpu = pytest.mark.skipif(not CUDA, reason="needs a GPU")
needs_triton = pytest.mark.skipif(gpu.triton is None or not CUDA and "TRITON_INTERPRET" not in os.environ,
                                  reason="needs a GPU, or Triton and TRITON_INTERPRET=1")


@pytest.fixture
def half():
    """float16: the interpreter has no bfloat16."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.float16)
    yield torch.float16
    torch.set_autocast_dtype("cuda", before)


@needs_triton
@pytest.mark.parametrize("N, V, D", [(70, 300, 12), (128, 256, 32), (200, 515, 48), (130, 130, 128)])
def test_fused_loss_and_gradients_are_those_of_float64(half, N, V, D):
    torch.manual_seed(N)
    x = torch.randn(N, D, device=DEVICE).to(half).float().requires_grad_()
    w = (torch.randn(V, D, device=DEVICE) * 2 / D ** 0.5).to(half).float().requires_grad_()
    targets = torch.randint(V, (N,), device=DEVICE)
    targets[[3, N - 1]] = -1
    loss = 2 * gpu.FusedCrossEntropy.apply(x, w, targets)
    exact = 2 * F.cross_entropy(x.double() @ w.double().T, targets, ignore_index=-1)
    assert loss.item() == pytest.approx(exact.item(), rel=1e-5)
    found = torch.autograd.grad(loss, (x, w))
    for a, b in zip(found, torch.autograd.grad(exact, (x, w)), strict=True):
        assert a.dtype == b.dtype and (a - b).norm() / b.norm() < 1e-3
    assert not found[0][3].any()                       # its target does not count
    alone = gpu.FusedCrossEntropy.apply(x, w, targets, False)
    assert alone.item() == pytest.approx(loss.item() / 2, rel=1e-6)


def test_rows_are_gathered_as_the_text_has_them():
    tokens = np.array([0, 1, 40000, 65535, 7, 8, 9, 10, 11], dtype=np.uint16)     # int16 has no 40000
    on_device = torch.from_numpy(tokens.view(np.int16))
    rows = gpu.gather(on_device, torch.tensor([1, 0]), 4)
    assert rows.tolist() == [[7, 8, 9, 10, 11], [0, 1, 40000, 65535, 7]]
    assert gpu.resident(tokens, "cpu") is None


def test_a_rate_stays_what_the_optimizer_reads():
    group = dict(lr=torch.tensor(1.0))
    kept = group["lr"]
    gpu.set_rate(group, 0.5)
    assert group["lr"] is kept and kept == 0.5
    gpu.set_rate(plain := dict(lr=1.0), 0.25)
    assert plain["lr"] == 0.25


class Recorded:
    """Stands for torch.cuda.CUDAGraph: a replay calls the function anew, on the tensors of the capture."""

    def __init__(self):
        self.step = None

    def replay(self):
        self.step.result.copy_(self.step.function(self.step.rows))


def test_a_graph_takes_new_rows_and_rates(module_lab, monkeypatch):
    """The loop around a graph; the graph itself is played by `Recorded`, for want of a GPU."""
    module_lab.train("ungraphed", max_iters=8, log_interval=1)
    monkeypatch.setattr(gpu, "upload", lambda rows, device: torch.as_tensor(rows))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
    monkeypatch.setattr(gpu.StepGraph, "aside", lambda self, rows: self.function(rows))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Recorded)
    captured = []

    class Capture(contextlib.nullcontext):
        def __init__(self, graph, stream):
            super().__init__()
            captured.append(graph)
    monkeypatch.setattr(torch.cuda, "graph", Capture)
    start = train.Run.build_model

    def graphed(run):
        model = start(run)
        run.update = gpu.StepGraph(run.update, run.optimizers, "cpu")
        undone = run.update.capture

        def capture(rows):
            before = copy.deepcopy([run.raw.state_dict(), run.optimizers[0].state_dict()])
            undone(rows)                               # a real capture runs nothing
            run.raw.load_state_dict(before[0])
            run.optimizers[0].load_state_dict(before[1])
            captured[-1].step = run.update
        run.update.capture = capture
        return model
    monkeypatch.setattr(train.Run, "build_model", graphed)
    module_lab.train("graphed", max_iters=8, log_interval=1)
    assert len(captured) == 1
    one, other = ([row["train_loss"] for row in module_lab.log(run)] for run in ("ungraphed", "graphed"))
    assert other == pytest.approx(one, rel=1e-5)


GRAPHED = dict(device="cuda", dtype="bfloat16", n_embd=32, max_iters=12, log_interval=1, eval_interval=6,
               learning_rate=1e-2)


@needs_gpu
@pytest.mark.parametrize("changes", [{}, dict(dropout=0.2), dict(optimizer="muon", position="rope"),
                                     dict(n_embd=272, n_head=2)])
def test_a_graphed_run_equals_one_without_graphs(module_lab, changes, monkeypatch):
    name = "_".join(["graph", *map(str, changes)])
    module_lab.train(name, **GRAPHED | changes)
    monkeypatch.setattr(gpu, "graph_fits", lambda run: False)
    module_lab.train(name + "_not", **GRAPHED | changes)
    one, other = ([(row["train_loss"], row.get("val_loss")) for row in module_lab.log(run)]
                  for run in (name, name + "_not"))
    assert one == other


@needs_gpu
def test_a_graphed_run_learns_what_a_plain_one_does(module_lab):
    settings = GRAPHED | dict(max_iters=60, vocab_size=1024)
    compiled = module_lab.train("compiled", **settings)["val_loss"]
    plain = module_lab.train("plain", **settings | dict(compile=False, dtype="float32"))["val_loss"]
    assert compiled == pytest.approx(plain, rel=5e-3)


@needs_gpu
def test_a_graphed_run_goes_on_where_it_stopped(module_lab):
    module_lab.train("whole", schedule="constant", **GRAPHED)
    module_lab.train("half", schedule="constant", **GRAPHED | dict(max_iters=6))
    module_lab.train("half", schedule="constant", **GRAPHED)
    assert [row["train_loss"] for row in module_lab.log("half")][-6:] == \
        [row["train_loss"] for row in module_lab.log("whole")][-6:]
