"""Small GPTs on one GPU: what it can do, which loss and which step are fastest, what a study would take.

    python -m runtime.bench_gpu --json=scaling/results/bench/gpu.json      # about 8 minutes
    python -m runtime.bench_gpu --device=cpu --small                       # the same at tiny sizes: a test

Every candidate is compared with a reference of higher precision before it is timed. What fails to compile,
to run or to agree is listed under `skipped`, with the reason, and the rest goes on. Candidates take turns.
"""
import contextlib
import dataclasses
import functools
import gc
import math
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # before torch is imported
import numpy as np
import torch
from torch.nn import functional as F

from config.settings import Config
from runtime import basics
from runtime.basics import Parser, UserError, exit_cleanly
from scaling.bench import HuggingFace, Ours, Plain, losses, quartiles, workplace


@dataclasses.dataclass
class Sizes:
    """What is measured; the defaults are for a GPU of 80 GB."""
    device: str = "cuda"
    backend: str = "inductor"                          # of torch.compile; on CPU it takes minutes
    n_layer: int = 12
    n_head: int = 8
    vocab_size: int = 50304
    widths: tuple = (32, 256, 64, 128)                 # the ends of STUDY first: they suffice to project it
    shapes: tuple = ((32, 1024), (8, 128))             # (sequences, tokens of each) of a step; first STUDY's
    chunk: int = 1024                                  # rows of logits at a time; divides those of a step
    product: int = 8192                                # rows and columns of the matrices
    numbers: int = 2 ** 29                             # that are copied
    rounds: int = 5
    seconds: float = 0.25                              # of a candidate's turn


SMALL = Sizes(backend="aot_eager", n_layer=1, n_head=2, vocab_size=500, widths=(32, 256), shapes=((2, 16),),
              chunk=8, product=64, numbers=2 ** 19, rounds=2, seconds=0.002)
# {width: steps} of the published runs, of 32,768 tokens each (scaling/sweeps/width_sweep.py).
STUDY = {32: 20_000, 48: 30_000, 64: 30_000, 96: 30_000, 112: 30_000, 128: 30_000, 160: 30_000, 192: 30_000,
         256: 40_000}
LIMITS = dict(loss=1e-3, dx=1e-2, dw=1e-2, product=1e-2)     # bf16 operands give 2e-3 to 5e-3
AGREE = 5e-3                       # of the first losses: CPUs that emulate bf16 are off by 3.4e-3


def seconds_a_call(run: Callable, count: int, device: str) -> float:
    start = time.perf_counter()
    for _ in range(count):
        run()
    if device != "cpu":
        torch.cuda.synchronize()                       # the GPU works behind the host's back
    return (time.perf_counter() - start) / count


def error(quantity: str, found: torch.Tensor, exact: torch.Tensor) -> float:
    """|found - exact| / |exact|. Raises ValueError where that is above its limit, or nan."""
    off = ((found.double() - exact).norm() / exact.norm()).item()
    if not off <= LIMITS[quantity]:
        raise ValueError(f"disagrees with fp64: {quantity} by {off:.2g}, more than {LIMITS[quantity]:g}")
    return off


class Report:
    """What was measured so far: on the console and, part by part, in a file."""

    def __init__(self, path: str | None, s: Sizes, limit: float):
        self.path = path
        self.sizes = s
        self.deadline = time.perf_counter() + limit
        device = "cpu" if s.device == "cpu" else torch.cuda.get_device_name()
        self.found = dict(device=device, torch=torch.__version__, cuda=torch.version.cuda, skipped=[],
                          commit=basics.git_commit(), settings=dataclasses.asdict(s))

    def contest(self, part: str, label: str, forms: dict, check: Callable, unit: str, rate: Callable) -> None:
        """Time those of `forms` {name: form} that pass, in turns, and add a row for each to `part`.

        check(form) gives (what to call, what else to record), or raises; rate(seconds a call) is in `unit`.
        """
        torch.compiler.reset()                         # forget what the last one compiled and held
        gc.collect()
        torch.cuda.empty_cache()                       # on a CPU it does nothing
        runs = {}
        s = self.sizes
        for name, form in forms.items():
            with self.attempt(part, f"{label}, {name}"):
                if time.perf_counter() > self.deadline:
                    raise TimeoutError("its time was up")
                run, note = check(form)
                seconds_a_call(run, 2, s.device)       # to warm up
                count = int(np.clip(s.seconds / seconds_a_call(run, 2, s.device), 1, 500))
                runs[name] = run, count, note, []
        order = list(runs.values())                    # each works once a round; the next starts one later
        for _ in range(s.rounds):
            for run, count, _, times in order:
                times.append(seconds_a_call(run, count, s.device))
            order = order[1:] + order[:1]
        for name, (_, _, note, times) in runs.items():
            row = quartiles(rate(np.array(times)))
            self.found.setdefault(part, []).append({"name": name, unit: row, **note})
            print(f"  {label}, {name}: {row['median']:,.4g} {unit}", flush=True)
        self.write()

    @contextlib.contextmanager
    def attempt(self, part: str, name: str):
        """What goes wrong in the block is skipped, with the reason: compilers raise anything."""
        try:
            yield
        except Exception as e:
            why = " ".join(f"{type(e).__name__}: {e}".split())[:300]
            self.found["skipped"].append(dict(part=part, name=name, why=why))
            print(f"  skipped {name}: {why}", flush=True)

    def write(self) -> None:
        if self.path:
            basics.write_json(self.path, self.found)


def measure_roofline(s: Sizes, report: Report) -> None:
    """Square matrix products, and a copy (bytes read and written), on random data."""
    n = s.product
    a, b = torch.randn(2, n, n, device=s.device)
    exact = a[:8].double() @ b.double()

    def check(form):
        dtype, precision = form
        x, y = a.to(dtype), b.to(dtype)

        def multiply():
            torch.set_float32_matmul_precision(precision)
            return x @ y
        return multiply, dict(error=error("product", multiply()[:8], exact))
    forms = dict(bf16=(torch.bfloat16, "high"), TF32=(torch.float32, "high"), fp32=(torch.float32, "highest"))
    report.contest("roofline", f"product of {n} x {n}", forms, check, "tflops", lambda t: 2e-12 * n ** 3 / t)
    copy = torch.randn(s.numbers, device=s.device).clone
    report.contest("roofline", "", {"copy": copy}, lambda x: (x, {}), "gb_s", lambda t: 8e-9 * s.numbers / t)


def fp32_logits(x, w, y):
    """Loss of x (N, D), w (V, D), y (N,) as nanoGPT and train.py have it: bf16 logits, copied to float32."""
    return F.cross_entropy((x @ w.T).float(), y)


def bf16_logits(x, w, y):
    """The same with logits that stay in bf16; the softmax is float32."""
    return F.nll_loss(F.log_softmax(x @ w.T, 1, dtype=torch.float32), y)


def gradients(form: Callable, x, w, y) -> tuple:
    """(loss, dx, dw)"""
    loss = form(x, w, y)
    return loss.detach(), *torch.autograd.grad(loss, (x, w))


def chunk_gradients(x, w, y):
    """((dx, dw), loss) of a chunk of rows."""
    return torch.func.grad_and_value(fp32_logits, argnums=(0, 1))(x, w, y)


@torch.no_grad()
def chunked(chunk: Callable, rows: int, x, w, y) -> tuple:
    """(loss, dx, dw) of fp32_logits by chunks of `rows`, so that few logits exist at a time."""
    loss = torch.zeros((), device=x.device)
    dx = torch.empty_like(x)
    dw = torch.zeros_like(w, dtype=torch.float32)      # bf16 would lose what later chunks add
    for i in range(0, len(y), rows):
        (dx[i:i + rows], part), mean = chunk(x[i:i + rows], w, y[i:i + rows])
        dw += part
        loss += mean
    share = rows / len(y)
    return loss * share, dx * share, dw * share


def measure_loss(s: Sizes, report: Report) -> None:
    """Forward and backward of every form that agrees with fp64, at every width."""
    compiled = functools.partial(torch.compile, dynamic=False, backend=s.backend)
    forms = {"eager, fp32 logits": functools.partial(gradients, fp32_logits),
             "eager, bf16 logits": functools.partial(gradients, bf16_logits),
             "eager, chunks": functools.partial(chunked, chunk_gradients, s.chunk),
             "compiled, fp32 logits": functools.partial(gradients, compiled(fp32_logits)),
             "compiled, bf16 logits": functools.partial(gradients, compiled(bf16_logits)),
             "compiled, chunks": functools.partial(chunked, compiled(chunk_gradients), s.chunk)}
    for d in s.widths:
        race_losses(d, forms, s, report)


def race_losses(d: int, forms: dict, s: Sizes, report: Report) -> None:
    torch.manual_seed(0)
    rows = math.prod(s.shapes[0])
    x = torch.randn(rows, d, device=s.device).bfloat16().requires_grad_()
    w = (torch.randn(s.vocab_size, d, device=s.device) * 2 / math.sqrt(d)).bfloat16().requires_grad_()
    y = torch.randint(s.vocab_size, (rows,), device=s.device)      # the logits' std is 2
    x64, w64 = (t.detach().double().requires_grad_() for t in (x, w))
    exact = gradients(lambda x, w, y: F.cross_entropy(x @ w.T, y), x64, w64, y)

    def check(form):
        if s.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        found = form(x, w, y)
        peak_mb = torch.cuda.max_memory_allocated() / 2 ** 20      # with what all forms need; 0 on a CPU
        errors = {key: error(key, a, b) for key, a, b in zip(("loss", "dx", "dw"), found, exact)}
        return functools.partial(form, x, w, y), dict(d=d, errors=errors, peak_mb=peak_mb)
    report.contest("loss", f"d {d}", forms, check, "ms", lambda t: 1e3 * t)


def measure_steps(s: Sizes, report: Report) -> None:
    """Steps in bf16 of every form whose first losses are those of a plain float32 GPT, by shape and width."""
    for rows, T in s.shapes:
        for d in s.widths:
            with report.attempt("steps", f"d {d}, {rows} x {T}"), workplace(
                    device=s.device, dtype="bfloat16", compile=False, n_layer=s.n_layer, n_embd=d,
                    n_head=s.n_head, vocab_size=s.vocab_size, batch_size=rows, block_size=T,
                    learning_rate=3e-3) as run:        # large enough to show in the first losses
                race_steps(run.config, run.meta, s, report)


def race_steps(c: Config, meta: dict, s: Sizes, report: Report) -> None:
    exact = losses(Plain(dataclasses.replace(c, dtype="float32"), meta))

    def check(form):
        kind, options = form
        made = kind(c, meta)
        if options:
            made.model.compile(dynamic=False, **options)       # in place
        torch.set_float32_matmul_precision("high")     # the peer's is another: all would be compiled anew
        first = losses(made)
        off = np.abs(np.divide(first, exact) - 1).max()
        if not off <= AGREE:                           # nor is nan
            raise ValueError(f"its first losses are not those of float32: off by {off:.2g}")
        return made.step, dict(d=c.n_embd, rows=c.batch_size, T=c.block_size, losses=first)
    forms = dict(eager=(Ours, {}), compiled=(Ours, dict(backend=s.backend)), hf=(HuggingFace, {}))
    if s.device != "cpu":                              # compiled, and replayed as CUDA graphs
        forms["reduce-overhead"] = Ours, dict(mode="reduce-overhead")
    report.contest("steps", f"d {c.n_embd}, {c.batch_size} x {c.block_size}", forms, check, "tok_per_s",
                   lambda t: c.batch_size * c.block_size / t)


def projection(rates: dict[int, float]) -> dict:
    """GPU-hours of STUDY from {width: tokens/s}, log-log between the measured widths. Raises ValueError."""
    known = sorted(rates)
    if not {min(STUDY), max(STUDY)} <= set(known):
        raise ValueError(f"needs tokens/s at d {min(STUDY)} and {max(STUDY)} at least, and has d {known}")
    runs = []
    log_rates = np.log([rates[d] for d in known])
    for d, steps in STUDY.items():
        rate = math.exp(np.interp(math.log(d), np.log(known), log_rates))
        runs.append(dict(d=d, tok_per_s=rate, measured=d in rates, hours=steps * 32_768 / rate / 3600))
    return dict(hours=sum(run["hours"] for run in runs), runs=runs)


def measure_projection(s: Sizes, report: Report) -> None:
    """The nine-run study at the speed of every form of the step that was measured at both its ends."""
    rates = {}
    for row in report.found.get("steps", []):
        if (row["rows"], row["T"]) == s.shapes[0]:
            rates.setdefault(row["name"], {})[row["d"]] = row["tok_per_s"]["median"]
    report.found["projection"] = {}
    for name, by_width in rates.items():
        with report.attempt("projection", name):
            report.found["projection"][name] = projection(by_width)
            print(f"  {name}: {report.found['projection'][name]['hours']:.3g} GPU-hours", flush=True)


PARTS = dict(roofline=measure_roofline, loss=measure_loss, steps=measure_steps, projection=measure_projection)


def main(args: list[str] | None = None) -> int:
    parser = Parser("python -m runtime.bench_gpu", __doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                        help="cpu: only with --small")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test the script")
    parser.add_argument("--limit", type=float, default=480,
                        help="seconds, after which nothing new begins; default 480")
    parser.add_argument("--json", help="write the measurements to this file")
    a = parser.parse_args(args)
    if a.device == "cpu" and not a.small:
        raise UserError("on a CPU this only tests the script: add --small")
    if a.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --device=cpu --small tests the script without one")
    s = dataclasses.replace(SMALL if a.small else Sizes(), device=a.device)
    report = Report(a.json, s, a.limit)
    report.write()                                     # a path that cannot be written should fail now
    for part, measure in PARTS.items():
        print(part, flush=True)
        with report.attempt(part, "the rest of it"):   # a fault of this script must not cost the other parts
            measure(s, report)
        report.write()
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
