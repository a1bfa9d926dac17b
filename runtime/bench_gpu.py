"""Small GPTs on one GPU: where their time goes, and which loss, attention and step are fastest. 8 minutes.

    python -m runtime.bench_gpu --json=scaling/results/bench/gpu.json
    python -m runtime.bench_gpu --device=cpu --small     # the same code at tiny sizes: a test

Every candidate is compared with a reference of higher precision before it is timed. What fails to compile,
to run or to agree is listed under `skipped`, with the reason, and the rest goes on. The JSON is written after
every part. On a GPU candidates live in processes of their own: they compile side by side, and are timed one
at a time.
"""
import argparse
import contextlib
import functools
import importlib.util
import math
import os
import sys
import tempfile
import time
import traceback
from multiprocessing import get_context
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")              # before torch is imported
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "3")      # of each process: many compile at a time
import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import train
from model import GPT, GPTConfig
from runtime.basics import UserError, exit_cleanly
from scaling.bench import quartiles

FULL = dict(n_layer=12, n_head=8, vocab=50304, tokens=2 ** 22, copy_bytes=2 ** 31, gemm=8192,
            rounds=5, seconds=0.25,
            widths=(32, 64, 128, 256), loss_rows=32768, chunks=(256, 512, 1024, 4096),
            attention=(32, 8, 1024), d_heads=(4, 8, 16, 32), trainer=(32, 1024, 40),
            waves=((32, 1024, (256, 32)), (32, 1024, (128, 64)),         # rows, T, and widths that fit 80 GB
                   (8, 128, (64, 256)), (8, 128, (32, 128))), several=(64, 8, 128), counts=(1, 2, 4))
SMALL = dict(n_layer=1, n_head=8, vocab=500, tokens=2 ** 12, copy_bytes=2 ** 16, gemm=64,
             rounds=2, seconds=0.002,
             widths=(32, 256), loss_rows=96, chunks=(32,), attention=(1, 2, 16), d_heads=(4, 16),
             trainer=(2, 16, 15), waves=((2, 16, (256, 32)),), several=(32, 2, 16), counts=(1, 2))
TOTAL = 480                             # seconds for all parts; PARTS has the share of each
LIMITS = dict(loss=1e-3, dx=1e-2, dw=1e-2)      # |found - fp64| / |fp64|; bf16 operands give 2e-3 to 5e-3
AGREE_STEPS, AGREE = 6, 5e-3            # first losses, relative to float32: CPUs that emulate bf16 are off by 3.4e-3
RATE, WARMUP = 3e-3, 3                  # of the steps: large enough to show in their losses
STUDY = {32: 20_000, 48: 30_000, 64: 30_000, 96: 30_000, 112: 30_000, 128: 30_000, 160: 30_000, 192: 30_000,
         256: 40_000}                   # the published runs: steps of 32,768 tokens (sweeps/width_sweep.py)


class Failed(Exception):
    """Why something has no number."""


def why(e: Exception) -> str:
    return str(e) if isinstance(e, Failed) else f"{type(e).__name__}: {' '.join(str(e).split())[:300]}"


@contextlib.contextmanager
def recording(failed: dict[str, str], name: str):
    """What goes wrong in the block becomes failed[name]; compilers raise anything."""
    try:
        yield
    except Exception as e:
        failed[name] = why(e)


# ---------------------------------------------------------------- processes


def serve(pipe, make, args) -> None:
    """A worker's process: make(*args), then (result, why it failed) for each (method, arguments)."""
    made = None
    while True:
        answer, failed = None, {}
        with recording(failed, "it"):
            if made is None:
                made = make(*args)
            else:
                try:
                    method, arguments = pipe.recv()
                except EOFError:                       # the parent is done
                    return
                answer = getattr(made, method)(*arguments)
        pipe.send((answer, failed.get("it")))
        if made is None:
            return


class Worker:
    """make(*args) in a process of its own, or in this one; its first answer is None, once it is made."""

    def __init__(self, separate: bool, make, *args):
        self.process, self.answers = None, []
        if not separate:
            return self.work(lambda: setattr(self, "made", make(*args)))
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, make, args), daemon=True)
        self.process.start()
        theirs.close()

    def work(self, call) -> None:
        failed = {}
        with recording(failed, "it"):
            self.answers.append((call(), None))
        self.answers += [(None, reason) for reason in failed.values()]

    def send(self, method: str, *args) -> None:
        if self.process:
            self.pipe.send((method, args))
        else:
            self.work(lambda: getattr(self.made, method)(*args))

    def answer(self, deadline: float):
        """Waits until `deadline`, on time.perf_counter, at most. Raises Failed."""
        try:
            if self.process and not self.pipe.poll(max(0.0, deadline - time.perf_counter())):
                self.process.kill()
                raise Failed("its time was up")
            result, failed = self.pipe.recv() if self.process else self.answers.pop(0)
        except (EOFError, OSError):
            self.process.join()
            raise Failed(f"its process died (exit code {self.process.exitcode})") from None
        if failed:
            raise Failed(failed)
        return result

    def ask(self, deadline: float, method: str, *args):
        self.send(method, *args)
        return self.answer(deadline)

    def close(self) -> None:
        if self.process:
            self.process.kill()
            self.process.join()
            self.pipe.close()


# ---------------------------------------------------------------- clocks and comparisons


def clock(run, count: int, device: str) -> float:
    """Seconds a call of `run`, over `count` calls, on the device's clock."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(count):
            run()
        return (time.perf_counter() - start) / count
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3 / count


def rotated(names, i: int) -> list:
    """`names`, begun i later: who works first changes from round to round."""
    names = list(names)
    i %= max(1, len(names))
    return names[i:] + names[:i]


def sample(runs: dict, s: dict) -> dict[str, np.ndarray]:
    """{name: seconds a call, in each round} of `runs`, which are warm; in every round each works once."""
    device, found = s["device"], {name: [] for name in runs}
    counts = {name: int(0.2 * s["seconds"] / clock(run, 2, device)) for name, run in runs.items()}
    for i in range(s["rounds"]):
        for name in rotated(runs, i):
            found[name].append(clock(runs[name], min(max(1, counts[name]), 200), device))
    return {name: np.array(times) for name, times in found.items()}


def fastest_first(rows: dict[str, dict], runs: dict, s: dict) -> list[dict]:
    """`rows`, each with the ms of its run."""
    for name, times in sample(runs, s).items():
        rows[name]["ms"] = quartiles(1e3 * times)
    return sorted(rows.values(), key=lambda row: row["ms"]["median"])


def peak_mb(run, device: str) -> float | None:
    """Memory that `run` takes beyond what was in use; not known on CPU."""
    if device == "cpu":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def release(device: str) -> None:
    """Leave the memory to the other processes."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """|found - expected| / |expected|; nan where anything is."""
    return ((found.double() - expected).norm() / expected.norm()).item()


def compiled(function, s: dict, **options):
    """On CPU without Inductor: it gains nothing there (scaling/LOG.md) and takes a minute."""
    how = dict(backend="aot_eager") if s["device"] == "cpu" else dict(options=options) if options else {}
    return torch.compile(function, dynamic=False, fullgraph=True, **how)


# ---------------------------------------------------------------- a: what the machine can do


class Roofline:
    def __init__(self, s: dict):
        self.s = s

    def measure(self) -> tuple[list[dict], dict]:
        """Copy (bytes read and written) and square matrix products, on random data."""
        s, n = self.s, self.s["gemm"]
        a = torch.randn(s["copy_bytes"] // 4, device=s["device"])
        b = torch.empty_like(a)
        rates = 2 * s["copy_bytes"] / 1e9 / sample(dict(copy=lambda: b.copy_(a)), s)["copy"]
        rows = [dict(name="copy", gb_per_s=quartiles(rates))]
        for name, dtype, precision in (("bf16", torch.bfloat16, "high"), ("TF32", torch.float32, "high"),
                                       ("fp32", torch.float32, "highest")):
            torch.set_float32_matmul_precision(precision)
            a, b = (torch.randn(n, n, device=s["device"]).to(dtype) for _ in range(2))
            rates = 2 * n ** 3 / 1e12 / sample(dict(product=lambda: a @ b), s)["product"]
            rows.append(dict(name=f"product of {n} x {n}, {name}", tflops=quartiles(rates)))
        return rows, {}


# ---------------------------------------------------------------- b: the loss: x (N, D), w (V, D), y (N,)


def plain(x, w, y):
    """bf16 product, logits copied to fp32: nanoGPT's loss under autocast, and train.py's."""
    return F.cross_entropy((x.bfloat16() @ w.bfloat16().T).float(), y)


def half_logits(x, w, y):
    """bf16 logits, fp32 softmax."""
    return F.nll_loss(F.log_softmax(x.bfloat16() @ w.bfloat16().T, 1, dtype=torch.float32), y)


def softmax_gradient(logits, y, share):
    """share times (loss of each row, its gradient by the logits, rounded as they); where y is -1 it is 0."""
    z = logits.float()
    lse = z.logsumexp(1, keepdim=True)
    losses = (lse - z.gather(1, y.clamp(min=0)[:, None]))[:, 0] * share
    hit = torch.arange(z.shape[1], device=z.device) == y[:, None]
    return losses, (((z - lse).exp() - hit.float()) * share[:, None]).to(logits.dtype)


if importlib.util.find_spec("triton"):                 # comes with PyTorch for CUDA
    import triton
    import triton.language as tl

    @triton.jit
    def softmax_kernel(logits, y, share, losses, V, BLOCK: tl.constexpr):
        """softmax_gradient of one row, in place."""
        row = tl.program_id(0)
        logits += row.to(tl.int64) * V
        target, weight = tl.load(y + row), tl.load(share + row)
        wanted = tl.load(logits + tl.maximum(target, 0)).to(tl.float32)    # before tl.max, a barrier
        columns, top, total = tl.arange(0, BLOCK), -float("inf"), 0.0
        for i in range(0, V, BLOCK):
            z = tl.load(logits + i + columns, mask=i + columns < V, other=-float("inf")).to(tl.float32)
            new = tl.maximum(top, tl.max(z, 0))
            total = total * tl.exp(top - new) + tl.sum(tl.exp(z - new), 0)
            top = new
        lse = top + tl.log(total)
        tl.store(losses + row, (lse - wanted) * weight)
        for i in range(0, V, BLOCK):
            z = tl.load(logits + i + columns, mask=i + columns < V).to(tl.float32)
            g = (tl.exp(z - lse) - tl.where(i + columns == target, 1.0, 0.0)) * weight
            tl.store(logits + i + columns, g.to(logits.dtype.element_ty), mask=i + columns < V)

    def softmax_gradient_triton(logits, y, share):
        losses = torch.empty_like(share)
        softmax_kernel[(len(y),)](logits, y, share, losses, logits.shape[1], BLOCK=4096, num_warps=8)
        return losses, logits


def check_softmax(function, device: str, V: int = 5003) -> None:
    """Raise Failed unless `function` is softmax_gradient, exact to the rounding of bf16 against fp64."""
    logits = (4 * torch.randn(64, V, device=device)).bfloat16()
    y, share = torch.randint(V, (64,), device=device), torch.full((64,), 1 / 64, device=device)
    y[3], share[3], logits[5, y[5]], logits[7] = -1, 0.0, 60.0, -90.0      # ignored; p near 1; far from 0
    z = logits.double()
    exact = (z.softmax(1) - F.one_hot(y.clamp(min=0), V)) * share.double()[:, None]
    losses, gradient = function(logits, y, share)
    if not error(losses, F.cross_entropy(z, y, ignore_index=-1, reduction="none") * share) < 1e-5:
        raise Failed("its losses are not those of fp64, to 1e-5")
    if not ((gradient.double() - exact).abs() <= 2 ** -8 * exact.abs() + 1e-6 * share.max()).all():
        raise Failed(f"its gradient is off by {error(gradient, exact):.1e} from fp64: not just rounded")


@functools.cache
def adds_in_product(device: str) -> bool:
    """Whether this torch can add a bf16 product to an fp32 matrix within cuBLAS."""
    a, c = torch.ones(16, 16, device=device).bfloat16(), torch.ones(16, 16, device=device)
    try:
        return torch.ops.aten.addmm.dtype_out(c, a, a, torch.float32, out=c)[0, 0].item() == 17
    except (RuntimeError, NotImplementedError):
        return False


def add_product(c: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> None:
    """c += a b; a and b bf16, c fp32."""
    if c.is_cpu:
        c.addmm_(a.float(), b.float())
    elif adds_in_product(c.device.type):
        torch.ops.aten.addmm.dtype_out(c, a, b, torch.float32, out=c)
    else:
        c += torch.ops.aten.mm.dtype(a, b, torch.float32)


class ChunkedLoss(torch.autograd.Function):
    """Logits of `rows` rows at a time; the forward pass makes the gradients, as model.BlockedCrossEntropy."""

    @staticmethod
    def forward(ctx, x, w, y, rows, softmax):
        x_half, w_half, share = x.bfloat16(), w.bfloat16(), (y != -1).float()
        share /= share.sum()
        loss, dx, dw = share.new_zeros(()), torch.empty_like(x_half), torch.zeros_like(w)
        for x_c, y_c, share_c, dx_c in zip(*(t.split(rows) for t in (x_half, y, share, dx))):
            losses, gradient = softmax(x_c @ w_half.T, y_c, share_c)
            loss += losses.sum()
            torch.mm(gradient, w_half, out=dx_c)
            add_product(dw, gradient.T, x_c)
        ctx.save_for_backward(dx, dw)
        ctx.dtype = x.dtype
        return loss

    @staticmethod
    def backward(ctx, dloss):
        dx, dw = ctx.saved_tensors
        return dx.to(ctx.dtype) * dloss, dw * dloss, None, None, None


def chunked(how: str, rows: int, s: dict):
    if how == "triton":
        if s["device"] == "cpu" or "triton" not in globals():
            raise Failed("Triton needs a GPU, and PyTorch that comes with it")
        check_softmax(softmax_gradient_triton, s["device"])
    softmax = (softmax_gradient if how == "eager" else softmax_gradient_triton if how == "triton" else
               compiled(softmax_gradient, s))
    return lambda x, w, y: ChunkedLoss.apply(x, w, y, rows, softmax)


def auto_chunked(s: dict):
    import torch._inductor.config
    if s["device"] == "cpu" or not hasattr(torch._inductor.config, "auto_chunker"):
        raise Failed(f"torch {torch.__version__} on {s['device']} has no auto_chunker")
    return compiled(plain, s, **{"auto_chunker.enable": True})


def linear_cross_entropy(s: dict):
    if not hasattr(F, "linear_cross_entropy"):
        raise Failed(f"torch {torch.__version__} has no linear_cross_entropy")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda x, w, y: F.linear_cross_entropy(x.bfloat16(), w.bfloat16(), y, options=options)


def forms(s: dict) -> dict:
    """{name of a loss: its maker}; those that compile at their first call are called so."""
    return {"eager, fp32 logits": lambda s: plain, "eager, bf16 logits": lambda s: half_logits,
            "compiled, fp32 logits": functools.partial(compiled, plain),
            "compiled, bf16 logits": functools.partial(compiled, half_logits),
            "compiled, auto_chunker": auto_chunked, "F.linear_cross_entropy": linear_cross_entropy,
            **{f"{how}, chunks of {n}": functools.partial(chunked, how, n)
               for n in s["chunks"] for how in ("eager", "compiled", "triton")}}


def exact_loss(x, w, y, rows: int = 1024) -> tuple[torch.Tensor, ...]:
    """(loss, dx, dw) in fp64, of x and w rounded to bf16; `rows` rows at a time."""
    x, w = (t.detach().bfloat16().double().requires_grad_() for t in (x, w))
    total = 0.0
    for i in range(0, len(y), rows):
        loss = F.cross_entropy(x[i:i + rows] @ w.T, y[i:i + rows], reduction="sum") / len(y)
        loss.backward()
        total += loss.detach()
    return total, x.grad, w.grad


class Losses:
    """All forms of the loss at one width. Making it compiles those that compile."""

    def __init__(self, s: dict, d: int):
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("high")
        self.s, self.d, self.forms, self.failed = s, d, {}, {}
        self.x = torch.randn(s["loss_rows"], d, device=s["device"], requires_grad=True)
        self.w = torch.randn(s["vocab"], d, device=s["device"]).mul_(2 / math.sqrt(d)).requires_grad_()
        self.y = torch.randint(s["vocab"], (s["loss_rows"],), device=s["device"])     # the logits' std is 2
        for name, make in forms(s).items():
            with recording(self.failed, name):
                self.forms[name] = make(s)
                if name.startswith("compiled"):
                    self.run(name)
            release(s["device"])

    def run(self, name: str) -> tuple[torch.Tensor, ...]:
        loss = self.forms[name](self.x, self.w, self.y)
        return loss.detach(), *torch.autograd.grad(loss, (self.x, self.w))

    def measure(self) -> tuple[list[dict], dict[str, str]]:
        """(a row for each form that agrees with fp64, {name: why} of the others)"""
        exact, rows, runs, device = exact_loss(self.x, self.w, self.y), {}, {}, self.s["device"]
        for name in [name for name in self.forms if name not in self.failed]:
            with recording(self.failed, name):
                run = functools.partial(self.run, name)
                errors = {key: error(a, b) for key, a, b in zip(LIMITS, run(), exact)}
                if not all(errors[key] <= LIMITS[key] for key in LIMITS):
                    raise Failed(f"disagrees with fp64, by {text(errors)}")
                rows[name] = dict(name=name, d=self.d, error=errors, peak_mb=peak_mb(run, device))
                runs[name] = run
        return fastest_first(rows, runs, self.s), self.failed


# ---------------------------------------------------------------- c: attention


def attention(backend: str, q, k, v):
    """Causal; heads narrower than 8 are padded to it for backends that refuse them."""
    d = q.shape[-1]
    if d < 8 and backend in ("EFFICIENT_ATTENTION", "CUDNN_ATTENTION"):
        q, k, v = (F.pad(t, (0, 8 - d)) for t in (q, k, v))
    with sdpa_kernel([getattr(SDPBackend, backend)]):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / math.sqrt(d))[..., :d]


class Attention:
    """bf16 attention of all backends at one width of heads, forward and backward."""

    def __init__(self, s: dict, d: int):
        torch.manual_seed(0)
        self.s, self.d = s, d
        *self.qkv, self.dy = torch.randn(4, *s["attention"], d, device=s["device"], dtype=torch.bfloat16)

    def run(self, backend: str, rows: int | None = None, dtype=torch.bfloat16) -> tuple[torch.Tensor, ...]:
        """(y, dq, dk, dv) of the first `rows` sequences, or all."""
        qkv = [t[:rows].to(dtype).requires_grad_() for t in self.qkv]
        y = attention(backend, *qkv)
        return y.detach(), *torch.autograd.grad(y, qkv, self.dy[:rows].to(dtype))

    def measure(self) -> tuple[list[dict], dict[str, str]]:
        rows, runs, failed, exact = {}, {}, {}, self.run("MATH", 1, torch.float64)
        device = self.s["device"]
        for name in ("FLASH_ATTENTION", "EFFICIENT_ATTENTION", "CUDNN_ATTENTION", "MATH"):
            with recording(failed, name):
                run = functools.partial(self.run, name)
                worst = max(error(a[:1], b) for a, b in zip(run(), exact))
                if not worst <= 2e-2:
                    raise Failed(f"disagrees with fp64, by {worst:.1e}")
                rows[name] = dict(name=name, d_head=self.d, error=worst, peak_mb=peak_mb(run, device))
                runs[name] = run
        return fastest_first(rows, runs, self.s), failed


# ---------------------------------------------------------------- d: whole training steps


VARIANTS = ("float32", "eager", "plain compiled", "compiled", "graphed", "graphed blocks")
FAST = VARIANTS[3:]


def hidden_states(model: GPT, idx: torch.Tensor) -> torch.Tensor:
    """(B, T) -> (B T, D): the model up to its head."""
    x = model.transformer.wte(idx) + model.transformer.wpe(torch.arange(idx.shape[1], device=idx.device))
    for block in model.transformer.h:
        x = block(x)
    return model.transformer.ln_f(x).flatten(0, 1)


class Stepper:
    """A model and its training step on `rows` x T tokens: bf16 autocast, clipping, fused AdamW, warmup.

    float32 (the reference), eager, plain compiled: as nanoGPT: the host gathers batches and sets the rate.
    compiled, graphed, graphed blocks: tokens, counter and rate live on the device; the loss is `form`.
    Compiled is the model, or each block by itself; graphed: the whole step is one CUDA graph.
    """

    def __init__(self, s: dict, d: int, rows: int, T: int, variant: str, form: str):
        if variant.startswith("graphed") and s["device"] == "cpu":
            raise Failed("a CUDA graph needs a GPU")
        start, self.fast = time.perf_counter(), variant in FAST
        self.device, self.rows, self.T, self.done, self.graph = s["device"], rows, T, 0, None
        torch.manual_seed(0)
        torch.set_float32_matmul_precision("highest" if variant == "float32" else "high")
        self.load(s)
        c = GPTConfig(n_layer=s["n_layer"], n_head=s["n_head"], n_embd=d, block_size=T, vocab_size=s["vocab"])
        self.model = GPT(c).to(self.device)
        self.params, self.rate = list(self.model.parameters()), torch.zeros((), device=self.device)
        self.optimizer = torch.optim.AdamW(
            self.model.optimizer_groups(0.1), lr=self.rate if self.fast else RATE, betas=(0.9, 0.95),
            fused=True, capturable=self.fast and self.device != "cpu")
        self.autocast = torch.autocast(self.device, torch.bfloat16, enabled=variant != "float32")
        self.form = forms(s)[form](s) if self.fast else plain if variant != "float32" else (
            lambda x, w, y: F.cross_entropy(x @ w.T, y))
        self.hidden = compiled(hidden_states, s) if variant in ("compiled", "graphed") else hidden_states
        self.loss = compiled(self.whole, s) if variant == "plain compiled" else self.whole
        for block in self.model.transformer.h if variant == "graphed blocks" else ():
            block.compile(dynamic=False, fullgraph=True)
        if variant.startswith("graphed"):
            self.capture()
        elif "compiled" in variant:
            self.step()                                # compiles
        release(self.device)
        self.made_s = time.perf_counter() - start

    def load(self, s: dict) -> None:
        """Skewed random tokens, so that there is something to learn, in rows of random order."""
        g = torch.Generator().manual_seed(0)
        tokens = (torch.rand(s["tokens"], generator=g) ** 3 * s["vocab"]).to(torch.int32)
        order = torch.randperm((s["tokens"] - 1) // self.T, generator=g)
        self.tokens, self.order = (t.to(self.device) if self.fast else t.numpy() for t in (tokens, order))
        self.count = torch.zeros(1, dtype=torch.int64, device=self.device)         # steps done
        self.ring = torch.zeros(1024, device=self.device)                          # the last losses
        self.row, self.column = (torch.arange(n, device=self.device) for n in (self.rows, self.T + 1))

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs (rows, T) and targets (rows T,)."""
        if self.fast:
            ids = self.order[(self.count * self.rows + self.row) % len(self.order)]
            window = self.tokens[ids[:, None] * self.T + self.column].long()
        else:
            ids = self.order[(self.done * self.rows + np.arange(self.rows)) % len(self.order)]
            window = self.tokens[ids[:, None] * self.T + np.arange(self.T + 1)].astype(np.int64)
            window = torch.from_numpy(window)
            if self.device != "cpu":
                window = window.pin_memory().to(self.device, non_blocking=True)
        return window[:, :-1].contiguous(), window[:, 1:].flatten()

    def whole(self, x, y):
        return self.form(self.hidden(self.model, x), self.model.lm_head.weight, y)

    def body(self) -> None:
        """One step. If it is fast nothing in it waits for the device or depends on Python's numbers."""
        x, y = self.batch()
        if self.fast:
            self.rate.copy_(RATE * ((self.count[0] + 1) / WARMUP).clamp(max=1))
        for group in self.optimizer.param_groups if not self.fast else ():
            group["lr"] = RATE * min(1.0, (self.done + 1) / WARMUP)
        with self.autocast:
            loss = self.loss(x, y)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        self.optimizer.step()
        for p in self.params:
            p.grad = None
        self.ring.index_copy_(0, self.count % len(self.ring), loss.detach()[None].float())
        self.count += 1

    def capture(self) -> None:
        """Record the step, after three on the same side stream to warm up. Recording does not train."""
        side, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph, stream=side):
            self.body()
        self.graph = graph

    def step(self) -> None:
        self.graph.replay() if self.graph else self.body()
        self.done += 1

    def losses(self, count: int) -> tuple[list[float], float]:
        """(losses of the first `count` steps, trained now if they were not; seconds that making it took)"""
        while self.done < count:
            self.step()
        found = self.ring[:count].tolist()
        release(self.device)
        return found, self.made_s

    def burst(self, seconds: float) -> float:
        """Tokens a second over about `seconds`, warm."""
        steps = max(3, int(seconds / clock(self.step, 3, self.device)))
        spent = clock(self.step, steps, self.device)
        release(self.device)
        return self.rows * self.T / spent


class Streams:
    """`count` models in one process, a stream and a CUDA graph each."""

    def __init__(self, s: dict, count: int, *args):
        self.all = [(Stepper(s, *args), torch.cuda.Stream()) for _ in range(count)]

    def burst(self, seconds: float) -> float:
        """Tokens a second of all together, which are waited for at every 20th step."""
        steps, start = -20, time.perf_counter()        # the first 20 are warm-up
        while steps <= 0 or time.perf_counter() < start + seconds:
            for one, stream in 20 * self.all:
                with torch.cuda.stream(stream):
                    one.step()
            torch.cuda.synchronize()
            steps += 20
            start = time.perf_counter() if steps == 0 else start
        return steps * sum(one.rows * one.T for one, _ in self.all) / (time.perf_counter() - start)


# ---------------------------------------------------------------- e: the published study's way


class HuggingFace:
    """Trainer and GPT2LMHeadModel by default, bf16, SDPA; the tokens lie in memory, which is generous."""

    def __init__(self, s: dict, d: int):
        import transformers as hf
        (self.rows, self.T, steps), self.device, self.d, at = s["trainer"], s["device"], d, []
        model = hf.GPT2LMHeadModel(hf.GPT2Config(
            n_layer=s["n_layer"], n_head=s["n_head"], n_embd=d, n_positions=self.T, vocab_size=s["vocab"],
            bos_token_id=None, eos_token_id=None, use_cache=False, attn_implementation="sdpa"))

        class Stamp(hf.TrainerCallback):               # every fifth step, when the device has done it
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step % 5 == 0:
                    s["device"] == "cpu" or torch.cuda.synchronize()
                    at.append(time.perf_counter())

        settings = hf.TrainingArguments(
            output_dir=tempfile.mkdtemp(), max_steps=steps, per_device_train_batch_size=self.rows, bf16=True,
            learning_rate=1e-3, use_cpu=self.device == "cpu", report_to="none", save_strategy="no",
            disable_tqdm=True)
        rows = torch.randint(s["vocab"], (steps * self.rows, self.T))
        self.at, self.trainer = at, hf.Trainer(
            model, settings, data_collator=hf.default_data_collator, callbacks=[Stamp()],
            train_dataset=[dict(input_ids=row, labels=row) for row in rows])

    def measure(self) -> tuple[list[dict], dict[str, str]]:
        """Tokens/s of blocks of five steps, after five to warm up."""
        self.trainer.train()
        release(self.device)
        rates = 5 * self.rows * self.T / np.diff(self.at)
        return [dict(name="HF Trainer", d=self.d, rows=self.rows, T=self.T, tok_per_s=quartiles(rates))], {}


# ---------------------------------------------------------------- the report


def text(value) -> str:
    if isinstance(value, dict):
        return (f"{value['median']:,.4g} ({value['q25']:,.4g}-{value['q75']:,.4g})" if "median" in value else
                " ".join(f"{k} {text(v)}" for k, v in value.items()))
    return f"{value:,.4g}" if isinstance(value, float) else str(value)


class Report:
    """What was measured so far: on the console and, part by part, in a file."""

    def __init__(self, path: str | None, s: dict):
        self.path, self.s = path, s
        self.found = dict(device="cpu" if s["device"] == "cpu" else torch.cuda.get_device_name(),
                          torch=torch.__version__, cuda=torch.version.cuda, python=sys.version.split()[0],
                          commit=train.git_commit(), settings=s, seconds={}, skipped=[])

    def add(self, part: str, *rows: dict) -> None:
        self.found.setdefault(part, []).extend(rows)
        for row in rows:
            shown = {k: v for k, v in row.items() if not isinstance(v, list) and k != "name"}
            print(f"  {row['name']}: " + ", ".join(f"{k} {text(v)}" for k, v in shown.items()), flush=True)

    def skip(self, part: str, name, reason: str) -> None:
        self.found["skipped"].append(dict(part=part, name=str(name), why=reason))
        print(f"  skipped {name}: {reason}", flush=True)

    @contextlib.contextmanager
    def attempt(self, part: str, name):
        """What raises Failed in the block is skipped, with the reason."""
        try:
            yield
        except Failed as e:
            self.skip(part, name, str(e))

    def write(self) -> None:
        if self.path:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            train.write_json(Path(self.path), self.found)

    def best_form(self, d: int) -> str:
        """The fastest loss measured at width `d`."""
        rows = [row for row in self.found.get("loss", ()) if row["d"] == d]
        return min(rows, key=lambda row: row["ms"]["median"])["name"] if rows else "compiled, fp32 logits"


# ---------------------------------------------------------------- the parts that fill it


@contextlib.contextmanager
def workers(report: Report, part: str, wanted: dict, deadline: float, separate: bool):
    """{key: worker} of those of `wanted` {key: (make, *args)} that can be made, side by side."""
    all_, ready = {key: Worker(separate, *args) for key, args in wanted.items()}, {}
    try:
        for key, worker in all_.items():
            with report.attempt(part, key):
                worker.answer(deadline)
                ready[key] = worker
        yield ready
    finally:
        for worker in all_.values():
            worker.close()


def measure_each(part: str, make, values, s: dict, report: Report, deadline: float) -> None:
    """The rows of make(s, value).measure() for each value, one at a time."""
    wanted = {value: (make, s, *value) for value in values}
    with workers(report, part, wanted, deadline, s["separate"]) as ready:
        for value, worker in ready.items():
            with report.attempt(part, value):
                rows, failed = worker.ask(deadline, "measure")
                report.add(part, *rows)
                for name, reason in failed.items():
                    report.skip(part, (*value, name), reason)


def measure_roofline(s: dict, report: Report, deadline: float) -> None:
    measure_each("roofline", Roofline, [()], s, report, deadline)


def measure_loss(s: dict, report: Report, deadline: float) -> None:
    measure_each("loss", Losses, [(d,) for d in s["widths"]], s, report, deadline)


def measure_attention(s: dict, report: Report, deadline: float) -> None:
    measure_each("attention", Attention, [(d,) for d in s["d_heads"]], s, report, deadline)


def measure_trainer(s: dict, report: Report, deadline: float) -> None:
    measure_each("trainer", HuggingFace, [(d,) for d in s["widths"]], s, report, deadline)


def measure_steps(s: dict, report: Report, deadline: float) -> None:
    for rows, T, widths in s["waves"]:
        wanted = {(d, rows, T, variant): (Stepper, s, d, rows, T, variant, report.best_form(d))
                  for d in widths for variant in VARIANTS}
        with workers(report, "steps", wanted, deadline, s["separate"]) as ready:
            for d in widths:
                race(report, {key: worker for key, worker in ready.items() if key[0] == d}, deadline)
                report.write()


def disagreements(losses: dict) -> dict:
    """{key: why} of those of `losses` {key: list} that are not the first one's, to AGREE."""
    found = {}
    for key, ours in losses.items():
        first = next(iter(losses))
        relative = [abs(a / b - 1) for a, b in zip(ours, losses[first], strict=True)]
        if not all(x <= AGREE for x in relative):      # nor is nan
            found[key] = f"its first losses are not those of {first}, off by {text(max(relative))}"
    return found


def race(report: Report, steppers: dict, deadline: float) -> None:
    """Tokens/s of the variants of one shape: the same losses first, then bursts in turns."""
    losses, made_s, rates = {}, {}, {}
    for key, worker in steppers.items():
        with report.attempt("steps", key):
            losses[key], made_s[key] = worker.ask(deadline, "losses", AGREE_STEPS)
    for key, reason in disagreements(losses).items():
        report.skip("steps", key, reason)
        del losses[key]
    for i in range(report.s["rounds"]):
        for key in rotated(losses, i):
            with report.attempt("steps", key):
                rates.setdefault(key, []).append(steppers[key].ask(deadline, "burst", report.s["seconds"]))
    rates = {key: np.array(found) for key, found in rates.items() if len(found) == report.s["rounds"]}
    for (*shape, variant), found in rates.items():
        row = dict(zip(("name", "d", "rows", "T"), (variant, *shape)), tok_per_s=quartiles(found))
        for peer in ("eager", "plain compiled"):       # how many times as fast, in the same round
            if (*shape, peer) in rates:
                row[f"over {peer}"] = quartiles(found / rates[(*shape, peer)])
        row["form"] = report.best_form(shape[0]) if variant in FAST else "plain"
        report.add("steps", row | dict(made_s=made_s[(*shape, variant)], losses=losses[(*shape, variant)]))


def measure_several(s: dict, report: Report, deadline: float) -> None:
    """Small runs at once: tokens/s of all together, as processes and as streams of one process."""
    (d, rows, T), kinds = s["several"], ("eager",) if s["device"] == "cpu" else ("eager", "graphed")
    shape = {kind: (d, rows, T, kind, report.best_form(d)) for kind in kinds}
    wanted = {(kind, i): (Stepper, s, *shape[kind]) for kind in kinds for i in range(max(s["counts"]))}
    if "graphed" in kinds:
        wanted |= {("streams", count): (Streams, s, count, *shape["graphed"]) for count in s["counts"][1:]}
    with workers(report, "several", wanted, deadline, separate=True) as ready:
        for kind in kinds:
            group = [worker for key, worker in ready.items() if key[0] == kind]
            for count in [count for count in s["counts"] if count <= len(group)]:
                together(report, f"{kind}, processes", count, group[:count], deadline)
        for (kind, count), worker in ready.items():
            if kind == "streams":
                together(report, "graphed, streams", count, [worker], deadline)


def together(report: Report, name: str, count: int, group: list[Worker], deadline: float) -> None:
    with report.attempt("several", (name, count)):
        rates = []
        for _ in range(report.s["rounds"]):
            for worker in group:
                worker.send("burst", 2 * report.s["seconds"])
            rates.append(sum(worker.answer(deadline) for worker in group))
        report.add("several", dict(name=name, at_once=count, tok_per_s=quartiles(np.array(rates))))


def projection(rates: dict[int, float]) -> dict:
    """GPU-hours of STUDY from {width: tokens/s}, log-log between the measured widths. Raises Failed."""
    if not rates or min(rates) > min(STUDY) or max(rates) < max(STUDY):
        raise Failed(f"needs tokens/s at d {min(STUDY)} and {max(STUDY)} at least, and has d {sorted(rates)}")
    known, runs = sorted(rates), []
    for d, steps in STUDY.items():
        rate = math.exp(np.interp(math.log(d), np.log(known), np.log([rates[k] for k in known])))
        runs.append(dict(d=d, steps=steps, tokens=steps * 32768, tok_per_s=rate, measured=d in rates,
                         hours=steps * 32768 / rate / 3600))
    return dict(tokens=sum(run["tokens"] for run in runs), hours=sum(run["hours"] for run in runs), runs=runs)


def measure_projection(s: dict, report: Report, deadline: float) -> None:
    """The nine-run study at the speed of every variant that was measured at both its ends."""
    contestants, shape = {}, s["waves"][0][:2]
    for row in report.found.get("steps", []) + report.found.get("trainer", []):
        if (row["rows"], row["T"]) == shape:
            contestants.setdefault(row["name"], {})[row["d"]] = row["tok_per_s"]["median"]
    for name, rates in contestants.items():
        with report.attempt("projection", name):
            report.add("projection", dict(name=name) | projection(rates))
    fastest = min(report.found.get("projection", ()), key=lambda study: study["hours"], default=dict(runs=()))
    for run in fastest["runs"]:
        source = "measured" if run["measured"] else "interpolated"
        print(f"  d {run['d']}: {run['steps']:,} steps x 32,768 = {run['tokens']:,} tokens, "
              f"at {run['tok_per_s']:,.0f}/s ({source}): {run['hours']:.4f} h")


PARTS = dict(roofline=(measure_roofline, 40), loss=(measure_loss, 150), attention=(measure_attention, 50),
             steps=(measure_steps, 270), trainer=(measure_trainer, 60), several=(measure_several, 60),
             projection=(measure_projection, 10))      # seconds at most; all together TOTAL


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runtime.bench_gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test the script")
    parser.add_argument("--json", help="write the measurements to this file")
    a = parser.parse_args(args)
    if a.device == "cpu" and not a.small:
        raise UserError("on a CPU this only tests the script: add --small")
    if a.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --device=cpu --small tests the script without one")
    s = (SMALL if a.small else FULL) | dict(device=a.device, separate=a.device == "cuda")
    report, start = Report(a.json, s), time.perf_counter()
    print(text({k: report.found[k] for k in ("device", "torch", "cuda", "python", "commit")}), flush=True)
    for part, (measure, seconds) in PARTS.items():
        began = time.perf_counter()
        print(f"[{began - start:.0f} s of {TOTAL}] {part}", flush=True)
        try:
            measure(s, report, min(began + seconds, start + TOTAL))
        except Exception as e:                         # a fault of this script must not cost the other parts
            traceback.print_exc()
            report.skip(part, "the rest of it", why(e))
        report.found["seconds"][part] = round(time.perf_counter() - began, 1)
        report.write()
    print(f"[{time.perf_counter() - start:.0f} s] done, {len(report.found['skipped'])} skipped", flush=True)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
