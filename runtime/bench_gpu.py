"""Small GPTs on one GPU: what it can do, which loss and which step are fastest, what a study would take.

    python -m runtime.bench_gpu --nanogpt=../nanoGPT --json=scaling/results/bench/gpu.json   # 5 minutes
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
import tempfile
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # before torch is imported
import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from config.settings import Config
from runtime import basics, gpu
from runtime.basics import Parser, UserError, exit_cleanly
from scaling import bench
from scaling.bench import Eager, NanoGPT, Ours, Plain, Ungraphed, losses, names, quartiles, workplace


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
    chunk: int = 1024                                  # rows of logits at a time, of the reference
    product: int = 8192                                # rows and columns of the matrices
    numbers: int = 2 ** 29                             # that are copied
    together: tuple = (1, 6)                           # runs at once
    rounds: int = 5
    seconds: float = 0.25                              # of a candidate's turn


SMALL = Sizes(backend="aot_eager", n_layer=1, n_head=2, vocab_size=500, widths=(32, 256), shapes=((2, 16),),
              chunk=8, product=64, numbers=2 ** 19, together=(2,), rounds=2, seconds=0.002)
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
    """Loss of x (N, D), w (V, D), y (N,) as nanoGPT has it: bf16 logits, copied to float32."""
    return F.cross_entropy((x @ w.T).float(), y)


def plain_loss(x, w, y):
    return F.cross_entropy(x @ w.T, y)


def fused(x, w, y):
    """The same with runtime/gpu.py's kernels, which keep no logits."""
    with torch.autocast("cuda", torch.bfloat16):
        return gpu.FusedCrossEntropy.apply(x, w, y)


def gradients(form: Callable, x, w, y) -> tuple:
    """(loss, dx, dw)"""
    loss = form(x, w, y)
    return loss.detach(), *torch.autograd.grad(loss, (x, w))


@torch.no_grad()
def exact_gradients(x, w, y, rows: int) -> tuple:
    """(loss, dx, dw) in float64, of `rows` rows at a time: all logits would be 13 GB."""
    x, w = x.double(), w.double()
    slopes = torch.func.grad_and_value(plain_loss, argnums=(0, 1))
    loss, dx, dw = 0.0, [], torch.zeros_like(w)
    for x_part, y_part in zip(x.split(rows), y.split(rows)):
        (dx_part, dw_part), mean = slopes(x_part, w, y_part)
        share = len(y_part) / len(y)
        dx.append(dx_part * share)
        dw += dw_part * share
        loss += mean * share
    return loss, torch.cat(dx), dw


def measure_loss(s: Sizes, report: Report) -> None:
    """Forward and backward of every form that agrees with fp64, at every width.

    Also raced, and slower on an H100: logits that stay in bf16 (as compiled), chunks of 1,024 rows.
    """
    compiled = torch.compile(fp32_logits, dynamic=False, backend=s.backend)
    forms = {name: functools.partial(gradients, form)
             for name, form in dict(eager=fp32_logits, compiled=compiled, fused=fused).items()}
    for d in s.widths:
        race_losses(d, forms, s, report)


def race_losses(d: int, forms: dict, s: Sizes, report: Report) -> None:
    torch.manual_seed(0)
    rows = math.prod(s.shapes[0])
    x = torch.randn(rows, d, device=s.device).bfloat16().requires_grad_()
    w = (torch.randn(s.vocab_size, d, device=s.device) * 2 / math.sqrt(d)).bfloat16().requires_grad_()
    y = torch.randint(s.vocab_size, (rows,), device=s.device)      # the logits' std is 2
    exact = exact_gradients(x.detach(), w.detach(), y, s.chunk)

    def check(form):
        if s.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        found = form(x, w, y)
        peak_mb = torch.cuda.max_memory_allocated() / 2 ** 20      # with what all forms need; 0 on a CPU
        errors = {key: error(key, a, b) for key, a, b in zip(("loss", "dx", "dw"), found, exact)}
        return functools.partial(form, x, w, y), dict(d=d, errors=errors, peak_mb=peak_mb)
    report.contest("loss", f"d {d}", forms, check, "ms", lambda t: 1e3 * t)


def measure_attention(s: Sizes, report: Report) -> None:
    """Causal attention of a step's tokens, forward and backward, by width of heads and PyTorch's backends."""
    kinds = dict(flash=SDPBackend.FLASH_ATTENTION, cudnn=SDPBackend.CUDNN_ATTENTION,
                 efficient=SDPBackend.EFFICIENT_ATTENTION, math=SDPBackend.MATH)
    for d in sorted(s.widths):
        race_attention(d // s.n_head, kinds, s, report)


def race_attention(d_head: int, kinds: dict, s: Sizes, report: Report) -> None:
    rows, T = s.shapes[0]
    qkv = torch.randn(3, rows, s.n_head, T, d_head, device=s.device).bfloat16().requires_grad_()

    def check(kind):
        def both_ways():
            with sdpa_kernel([kind]):
                y = F.scaled_dot_product_attention(*qkv, is_causal=True)
            return torch.autograd.grad(y, qkv, y)
        both_ways()
        return both_ways, dict(d_head=d_head)
    report.contest("attention", f"d_head {d_head}", kinds, check, "ms", lambda t: 1e3 * t)


def measure_steps(s: Sizes, report: Report) -> None:
    """Steps in bf16 of every form whose first losses are those of a plain float32 GPT, by shape and width."""
    for i, (rows, T) in enumerate(s.shapes):
        for d in s.widths[:2] if i else s.widths:
            with report.attempt("steps", f"d {d}, {rows} x {T}"), workplace(
                    device=s.device, dtype="bfloat16", n_layer=s.n_layer, n_embd=d, n_head=s.n_head,
                    vocab_size=s.vocab_size, batch_size=rows, block_size=T,
                    learning_rate=3e-3) as run:        # large enough to show in the first losses
                race_steps(run.config, run.meta, s, report)


def race_steps(c: Config, meta: dict, s: Sizes, report: Report) -> None:
    exact = losses(Plain(dataclasses.replace(c, dtype="float32"), meta))

    def check(kind):
        made = kind(c, meta)
        if kind is NanoGPT:
            made.model.compile(backend=s.backend)      # in place
        torch.set_float32_matmul_precision("high")     # the peer's is another: all would be compiled anew
        start = time.perf_counter()
        first = losses(made)
        off = np.abs(np.divide(first, exact) - 1).max()
        if not off <= AGREE:                           # nor is nan
            raise ValueError(f"its first losses are not those of float32: off by {off:.2g}")
        return made.step, dict(d=c.n_embd, rows=c.batch_size, T=c.block_size, losses=first,
                               first_steps_s=time.perf_counter() - start)
    forms = dict(ours=Ours, ungraphed=Ungraphed, eager=Eager)
    if "NANOGPT" in os.environ and c.block_size == s.shapes[0][1]:     # it compiles for long
        forms["nanogpt"] = NanoGPT
    report.contest("steps", f"d {c.n_embd}, {c.batch_size} x {c.block_size}", forms, check, "tok_per_s",
                   lambda t: c.batch_size * c.block_size / t)


def measure_together(s: Sizes, report: Report) -> None:
    """Several runs of the smallest step at once, each in a process of its own."""
    rows, T = s.shapes[-1]
    with workplace(device=s.device, dtype="bfloat16", n_layer=s.n_layer, n_embd=min(s.widths),
                   n_head=s.n_head, vocab_size=s.vocab_size, batch_size=rows, block_size=T) as run:
        for k in s.together:
            with report.attempt("together", f"{k} processes"):
                rate = rows * T * in_processes(k, run, s)
                report.found.setdefault("together", []).append(dict(processes=k, tok_per_s=rate))
                print(f"  {k} processes: {rate:,.4g} tok_per_s", flush=True)


def steps_a_second(contestant: Ours, seconds: float, device: str) -> float:
    count = int(np.clip(seconds / seconds_a_call(contestant.step, 5, device), 1, 10_000))
    return 1 / seconds_a_call(contestant.step, count, device)


def in_processes(k: int, run, s: Sizes) -> float:
    """Steps a second of `k` runs together, each in a process of its own."""
    with contextlib.ExitStack() as stack:
        made = [bench.process(stack, "ours", run, 1) for _ in range(k)]
        bench.ask("ours", made, losses)                      # build, compile, capture
        return sum(bench.ask("ours", made, steps_a_second, 8 * s.seconds, s.device))


def measure_trainer(s: Sizes, report: Report) -> None:
    """Hugging Face's Trainer as the published study ran it, with its text tokenised before."""
    rows, T = s.shapes[0]
    for d in s.widths:
        with report.attempt("trainer", f"d {d}"):
            rate = quartiles(rows * T / np.array(trainer_seconds(s, d)))
            report.found.setdefault("trainer", []).append(dict(name="hf trainer", d=d, tok_per_s=rate))
            print(f"  d {d}, hf trainer: {rate['median']:,.4g} tok_per_s", flush=True)
        report.write()


def trainer_seconds(s: Sizes, d: int, steps: int = 30) -> list[float]:
    """Seconds a step of the last two thirds of `steps`, in groups of five."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **others):
            if state.global_step % 5 == 0:
                if s.device != "cpu":
                    torch.cuda.synchronize()
                times.append(time.perf_counter())

    rows, T = s.shapes[0]
    times = []
    model = GPT2LMHeadModel(GPT2Config(n_layer=s.n_layer, n_head=s.n_head, n_embd=d, n_positions=T,
                                       vocab_size=s.vocab_size, bos_token_id=None, eos_token_id=None))
    tokens = torch.randint(s.vocab_size, (steps * rows, T))
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(folder, per_device_train_batch_size=rows, max_steps=steps, bf16=True,
                                    learning_rate=1e-3, report_to=[], save_strategy="no", disable_tqdm=True,
                                    logging_strategy="no", use_cpu=s.device == "cpu")
        text = [dict(input_ids=row, labels=row) for row in tokens]
        Trainer(model, options, train_dataset=text, callbacks=[Clock()]).train()
    return (np.diff(times[len(times) // 3:]) / 5).tolist()


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


PARTS = dict(roofline=measure_roofline, loss=measure_loss, attention=measure_attention, steps=measure_steps,
             together=measure_together, trainer=measure_trainer, projection=measure_projection)


def main(args: list[str] | None = None) -> int:
    parser = Parser("python -m runtime.bench_gpu", __doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda",
                        help="cpu: only with --small")
    parser.add_argument("--small", action="store_true", help="tiny sizes, to test the script")
    parser.add_argument("--limit", type=float, default=480,
                        help="seconds, after which nothing new begins; default 480")
    parser.add_argument("--parts", help="some, with commas, of " + ", ".join(PARTS) + "; default: all")
    parser.add_argument("--widths", help="d, with commas; default: 32,256,64,128")
    parser.add_argument("--nanogpt", help="a clone of karpathy/nanoGPT, to race")
    parser.add_argument("--json", help="write the measurements to this file")
    a = parser.parse_args(args)
    if a.device == "cpu" and not a.small:
        raise UserError("on a CPU this only tests the script: add --small")
    if a.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no GPU here; --device=cpu --small tests the script without one")
    s = dataclasses.replace(SMALL if a.small else Sizes(), device=a.device)
    if a.widths:
        s.widths = tuple(map(int, a.widths.split(",")))
    if a.nanogpt:
        bench.require_nanogpt(a.nanogpt)
    parts = names(a.parts or ",".join(PARTS), PARTS, "parts")
    report = Report(a.json, s, a.limit)
    report.write()                                     # a path that cannot be written should fail now
    for part in parts:
        print(part, flush=True)
        with report.attempt(part, "the rest of it"):   # a fault of this script must not cost the other parts
            PARTS[part](s, report)
        report.write()
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
