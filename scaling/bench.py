"""Training speed on CPU against peers that do the same work: tokens/s, where time goes, what binds.

    python -m scaling.bench                                    # every shape, about 20 minutes on one core
    python -m scaling.bench --shape=laptop_d64 --peers=hf,plain --json=bench.json
    python -m scaling.bench --fits=FOLDER --shape= --json=fits.json    # fits instead: see `measure_fits`

Ours is train.py's own step, with its data, schedule, clipping and optimizer. The peers have the same weights,
batches and settings of AdamW: (hf) Hugging Face's GPT2LMHeadModel with its own loss, (hf_compiled) the same
under torch.compile, (plain) the textbook: model.py on PyTorch's kernels alone. Contestants that do not report
the same losses for the first steps have not done the same work, and nothing is timed. Each lives in a process
of its own, as its user would have it (heap, precision, compilation, peak memory), and works in turns with the
others; a ratio is the median over the turns of ours over theirs. For the laptop study's shapes it then
measures what a sweep does: two processes of one thread, at once, against one process of two threads.
"""
import argparse
import contextlib
import dataclasses
import json
import math
import os
import subprocess
import sys
import tempfile
import time
import timeit
import traceback
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # before torch is imported
import numpy as np
import torch
from torch import nn
from tqdm import tqdm

import train
from config import settings
from config.settings import Config
from model import GPT
from runtime import basics, cpu, gpu
from runtime.basics import Parser, UserError, exit_cleanly, nearest
from runtime.system import peak_memory_mb, processor
from scaling.fit import LAWS, fit_all
from scaling.report import amount
from scaling.tables.csv import read_table


def shape(*numbers: int) -> dict:
    names = ("n_layer", "n_head", "n_embd", "batch_size", "block_size", "vocab_size")
    return dict(zip(names, numbers))


SHAPES = {                         # batch_size rows of block_size tokens a step; biases, tied head, as GPT-2
    "tiny_d32": shape(2, 4, 32, 8, 128, 50257),
    "tiny_d64": shape(4, 4, 64, 8, 128, 50257),
    "tiny_d128": shape(6, 4, 128, 8, 128, 50257),
    "width_d64": shape(12, 8, 64, 2, 1024, 50257),
    "small_d16": shape(2, 2, 16, 4, 128, 96),
    "laptop_d12": shape(3, 2, 12, 16, 32, 84),         # the laptop study's narrowest, middle and widest
    "laptop_d32": shape(3, 2, 32, 16, 32, 84),
    "laptop_d64": shape(3, 2, 64, 16, 32, 84),
}
AGREE_STEPS, AGREE = 5, 1e-4       # the first losses must agree to this relative difference
PHASES = ("data", "forward_backward", "loss", "optimizer")
# Of every run that is timed: what HF's GPT-2 has, too.
COMMON = dict(dataset="bench", bias=True, schedule="constant", warmup_iters=0,
              learning_rate=1e-3, max_iters=10 ** 6, device="cpu", dtype="float32")


# ---- contestants ----


class Ours:
    """train.py's Run, step by step."""

    def __init__(self, c: Config, meta: dict):
        self.run = train.Run(c, meta, 0, 1)
        self.model = self.run.raw

    def step(self) -> torch.Tensor:
        self.run.train_step()
        return self.run.losses.pop()


class Ungraphed(Ours):
    """On a GPU: compiled blocks and the fused loss, without the CUDA graph."""

    def __init__(self, c: Config, meta: dict):
        super().__init__(c, meta)
        self.run.update = getattr(self.run.update, "function", self.run.update)


class Eager(Ours):
    """On a GPU: PyTorch's kernels one by one, and all logits in memory."""

    def __init__(self, c: Config, meta: dict):
        super().__init__(dataclasses.replace(c, compile=False), meta)

    def step(self) -> torch.Tensor:
        with patch.object(gpu, "loss_wins", lambda x: False):
            return super().step()


class Plain:
    """A step as a textbook has it: model.py without our kernels, clip_grad_norm_ and torch.optim.AdamW."""

    def __init__(self, c: Config, meta: dict):
        torch.set_float32_matmul_precision("highest")  # PyTorch's default
        torch.manual_seed(c.seed)
        self.c = c
        self.i = 0
        self.model = self.build(c).to(c.device)
        text = basics.ROOT / "data" / c.dataset / "train.bin"
        self.data = train.Batches(text, c.block_size, c.seed, c.device)
        self.autocast = torch.autocast(c.device, getattr(torch, c.dtype), enabled=c.dtype != "float32")
        matrices = [p for p in self.model.parameters() if p.dim() >= 2]
        vectors = [p for p in self.model.parameters() if p.dim() < 2]
        groups = [dict(params=matrices, weight_decay=c.weight_decay), dict(params=vectors, weight_decay=0.0)]
        self.optimizer = torch.optim.AdamW(groups, lr=c.learning_rate, betas=(c.beta1, c.beta2))

    def build(self, c: Config) -> nn.Module:
        return GPT(c)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with patch.object(cpu, "on_cpu", lambda x: False):     # what asks whether our kernels are for x
            return self.model(x, y)[1]

    def step(self) -> torch.Tensor:
        x, y = self.data.get(self.data.row_ids(self.i * self.c.batch_size, self.c.batch_size))
        with self.autocast:
            loss = self.loss(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.c.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.i += 1
        return loss.detach()


class HuggingFace(Plain):
    def build(self, c: Config) -> nn.Module:
        from transformers import GPT2Config, GPT2LMHeadModel
        weights = GPT(c).state_dict()
        for name, p in weights.items():
            if p.dim() == 2 and ".h." in name:         # GPT-2 stores these matrices transposed
                weights[name] = p.T
        model = GPT2LMHeadModel(GPT2Config(
            n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.block_size,
            vocab_size=c.vocab_size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            bos_token_id=None, eos_token_id=None)).train()
        model.load_state_dict(weights)
        return model

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=x, labels=y, shift_labels=y).loss


class NanoGPT(Plain):
    """karpathy/nanoGPT's own model and optimizer, of the clone that NANOGPT in the environment names."""

    def __init__(self, c: Config, meta: dict):
        super().__init__(c, meta)
        torch.set_float32_matmul_precision("high")     # as its train.py does
        betas = c.beta1, c.beta2
        kind = c.device.partition(":")[0]
        with contextlib.redirect_stdout(sys.stderr):   # it prints what it decays
            self.optimizer = self.model.configure_optimizers(c.weight_decay, c.learning_rate, betas, kind)

    def build(self, c: Config) -> nn.Module:
        path = Path(os.environ["NANOGPT"]) / "model.py"
        spec = spec_from_file_location("nanogpt_model", path)
        theirs = module_from_spec(spec)
        sys.modules["nanogpt_model"] = theirs          # dataclasses look there
        spec.loader.exec_module(theirs)
        weights = GPT(c).state_dict()
        with contextlib.redirect_stdout(sys.stderr):
            sizes = c.block_size, c.vocab_size, c.n_layer, c.n_head, c.n_embd
            model = theirs.GPT(theirs.GPTConfig(*sizes, 0.0, c.bias))
        model.load_state_dict(weights)
        return model

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.model(x, y)[1]


CONTESTANTS = dict(ours=Ours, hf=HuggingFace, hf_compiled=HuggingFace, plain=Plain, nanogpt=NanoGPT)
PEERS = list(CONTESTANTS)[1:-1]    # nanogpt where its clone is given


# ---- what a contestant does in its process ----


contestant = None                  # of this process: what `build` made


def build(name: str, run: settings.Resolved, root: Path, threads: int) -> None:
    """Make this process the home of the contestant `name`."""
    global contestant
    torch.set_num_threads(threads)
    basics.ROOT = root
    contestant = CONTESTANTS[name](run.config, run.meta)
    if name == "hf_compiled":
        contestant.model.compile(dynamic=False)        # in place: names and modules stay


def work(task: Callable, *args):
    return task(contestant, *args)


def losses(contestant: Ours | Plain, steps: int = AGREE_STEPS) -> list[float]:
    return [contestant.step().item() for _ in range(steps)]


def burst(contestant: Ours | Plain, seconds: float, clock: Callable[[], float]) -> float:
    """Steps a second of `clock`, over a burst of about `seconds` of wall time; a step at least."""
    steps = 0
    stop = time.perf_counter() + seconds
    start = clock()
    while not steps or time.perf_counter() < stop:
        contestant.step()
        steps += 1
    return steps / (clock() - start)


def split(contestant: Ours | Plain, steps: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median ms per step of each of PHASES; `loss`, head and cross-entropy both ways, is in forward_backward.

    Hooks stamp the time where the model starts, where its last norm hands over to the head, where the
    gradient comes back there, and where the last parameter has its gradient. What follows is the optimizer's:
    clip, AdamW, bookkeeping.
    """
    at = {}
    rows = []

    def stamp(name: str, *_) -> None:
        at[name] = clock()

    def hand_over(module, args, output) -> None:
        stamp("head")
        output.register_hook(partial(stamp, "hidden"))

    model = contestant.model
    hooks = [model.register_forward_pre_hook(partial(stamp, "forward")),
             model.transformer.ln_f.register_forward_hook(hand_over)]
    for p in model.parameters():
        hooks.append(p.register_post_accumulate_grad_hook(partial(stamp, "gradients")))
    for _ in range(steps):
        stamp("start")
        contestant.step()
        stamp("end")
        rows.append([at["forward"] - at["start"], at["gradients"] - at["forward"], at["hidden"] - at["head"],
                     at["end"] - at["gradients"]])
    for hook in hooks:
        hook.remove()
    return dict(zip(PHASES, (np.median(rows, axis=0) * 1e3).tolist()))


def peak_mb(contestant: Ours | Plain) -> float:
    return peak_memory_mb()


# ---- and how it is asked ----


Process = ProcessPoolExecutor      # of one process, in which a contestant lives


def process(stack: contextlib.ExitStack, name: str, run: settings.Resolved, threads: int) -> Process:
    """A process for the contestant `name` until `stack` closes. It is built when it is first asked."""
    made = ProcessPoolExecutor(1, get_context("spawn"), build, (name, run, basics.ROOT, threads))
    return stack.enter_context(made)


def ask(name: str, processes: list[Process], task: Callable, *args) -> list:
    """What the task returns in each of the processes, which work at the same time.

    Raises UserError, with `name`, when one of them fails.
    """
    futures = [one.submit(work, task, *args) for one in processes]
    try:
        return [future.result() for future in futures]
    except Exception as e:                             # of its model, its compiler, or its process
        traceback.print_exception(e)
        raise UserError(f"the process of {name} died; its traceback is above; --peers leaves a peer "
                        "out") from None


def in_turns(groups: dict[str, list[Process]], rounds: int, seconds: float, clock: Callable) -> dict:
    """{name: steps a second in each round}: of its processes together, while those of the others wait.

    Each group works once a round, and the next round starts one later.
    """
    found = {name: [] for name in groups}
    order = list(groups)
    for _ in tqdm(range(rounds), "rounds", leave=False):
        for name in order:
            found[name].append(sum(ask(name, groups[name], burst, seconds, clock)))
        order = order[1:] + order[:1]
    return found


# ---- measurements ----


@contextlib.contextmanager
def workplace(**changes):
    """A resolved run, in a directory that goes away; till then it is basics.ROOT.

    Its tokens are random, since speed does not depend on the text, but skewed, so that they can be learned.
    """
    vocab_size = changes["vocab_size"]
    tokens = np.random.default_rng(0).random(2 ** 19) ** 3 * vocab_size
    before = basics.ROOT
    with tempfile.TemporaryDirectory() as folder:
        basics.ROOT = Path(folder)
        data = basics.ROOT / "data" / "bench"
        data.mkdir(parents=True)
        for split in ("train", "val"):
            tokens.astype("<u2").tofile(data / f"{split}.bin")
        basics.write_json(data / "meta.json", dict(
            tokenizer="none", vocab_size=vocab_size, train_tokens=len(tokens), val_tokens=len(tokens),
            val_bytes=len(tokens), train_sha256="none"))
        try:
            yield settings.resolve(Config(**COMMON | changes, out_dir=f"{folder}/out"))
        finally:
            basics.ROOT = before


def require_same_work(losses: dict[str, list[float]]) -> None:
    """Raise UserError unless every contestant's first losses are those of `ours`, to AGREE."""
    for name, theirs in losses.items():
        worst = np.max(np.abs(np.divide(losses["ours"], theirs) - 1))    # nan if any is; max() would miss it
        if not worst <= AGREE:
            raise UserError(f"ours and {name} do not do the same work: over {len(theirs)} steps their losses "
                            f"differ by up to {100 * worst:.3g} % ({losses['ours'][-1]:.6f} and "
                            f"{theirs[-1]:.6f} at the last); nothing was timed")


def gemm_roofline(threads: int, clock: Callable[[], float], size: int = 1024) -> float:
    """The best GF/s of a square float32 matmul here, through MKL and through oneDNN where that is float32."""
    torch.set_num_threads(threads)
    a = torch.ones(size, size)
    times = []
    for matmul in (torch.mm, cpu.onednn_matmul(torch.mm)):
        times += timeit.repeat(partial(matmul, a, a), timer=clock, number=1, repeat=20)
    return 2 * size ** 3 / min(times) / 1e9


def quartiles(x: list[float]) -> dict[str, float]:
    return dict(zip(("q25", "median", "q75"), np.quantile(x, (0.25, 0.5, 0.75)).tolist()))


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Quartiles of ours / theirs, turn by turn: what slowed the machine during a turn slowed both."""
    return quartiles([a / b for a, b in zip(ours, theirs, strict=True)])


def load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else math.nan


def kernels(c: Config) -> list[str]:
    """The kernels of cpu.py that our step goes through: their backward passes lie in autograd's graph."""
    ids = torch.zeros(c.batch_size, c.block_size, dtype=torch.int64)
    found = set()
    left = [GPT(c)(ids, ids)[1].grad_fn]
    while left:
        if (node := left.pop()) not in found and node is not None:
            found.add(node)
            left += [before for before, _ in node.next_functions]
    names = {node.name().removesuffix("Backward") for node in found}
    return sorted(name for name in names if hasattr(cpu, name))


def measure(name: str, a: argparse.Namespace) -> dict:
    """One shape: the agreement of losses first, then bursts in turns, then the split."""
    rows = {}
    with workplace(**SHAPES[name]) as run, contextlib.ExitStack() as stack:
        built = {one: [process(stack, one, run, a.threads)] for one in ("ours", *a.peers)}
        first = {one: ask(one, built[one], losses)[0] for one in built}
        require_same_work(first)
        roofline = gemm_roofline(a.threads, a.clock)
        steps = in_turns(built, a.rounds, a.seconds, a.clock)
        flops = run.flops["total"]
        tokens = run.config.batch_size * run.config.block_size
        for one in built:
            speed = quartiles([tokens * x for x in steps[one]])
            gflops = speed["median"] * flops / 1e9
            split_ms = None
            if one != "hf_compiled":                   # hooks would break its graph
                split_ms, = ask(one, built[one], split, 10, a.clock)
            rows[one] = dict(
                tok_per_s=speed, ms=tokens / speed["median"] * 1e3, gflops=gflops,
                roofline_share=gflops / roofline, ratio=ratio(steps["ours"], steps[one]),
                loss=first[one][-1], split_ms=split_ms, peak_mb=ask(one, built[one], peak_mb)[0])
    return dict(shape=name, settings=SHAPES[name], tokens_per_step=tokens, flops_per_token=flops,
                gemm_roofline_gflops=roofline, kernels=kernels(run.config), load=load(), contestants=rows)


def two_processes(name: str, rounds: int, seconds: float) -> dict:
    """Our tokens/s as two processes of one thread, at once, against one process of two threads; wall time."""
    with workplace(**SHAPES[name]) as run, contextlib.ExitStack() as stack:
        groups = dict(two_of_one_thread=[process(stack, "ours", run, 1), process(stack, "ours", run, 1)],
                      one_of_two_threads=[process(stack, "ours", run, 2)])
        for group in groups:
            ask("ours", groups[group], losses)         # so that all are built before any is timed
        steps = in_turns(groups, rounds, seconds, time.perf_counter)
    tokens = run.config.batch_size * run.config.block_size
    speeds = {group: quartiles([tokens * x for x in steps[group]]) for group in groups}
    return dict(shape=name, load=load(), ratio=ratio(*steps.values())) | speeds


# The grid of starts is that of the package's README, the objective that of Hoffmann et al. 2022, section D.2.
PACKAGE = """
import json, sys
import numpy as np
from chinchilla import Chinchilla
from chinchilla._metrics import log_huber

def loss(y, predicted):
    return log_huber(y, predicted, 1e-3)

wide, narrow, scale = np.linspace(1, 10, 5), np.linspace(.1, .7, 5), np.linspace(1, 2, 5)
grid = dict(E=scale, a=wide, b=wide, alpha=narrow, beta=narrow)
law = Chinchilla(sys.argv[1], param_grid=grid, loss_fn=loss, log_level=40)
law.fit()
print(json.dumps([float(x) for x in (law.E, law.A, law.B, law.alpha, law.beta)]))
"""


def measure_fits(folder: str) -> dict:
    """Hoffmann's 245 points, fitted by us and by the PyPI package `chinchilla` 0.2.0 in `folder`.

    Seconds of wall and of processor, theirs with its imports, and the objective of L(N, D). Ours fits all
    forms that the points support, with 1,000 resamples, on one core; theirs one form, on all cores.
    `pip install --target=FOLDER chinchilla==0.2.0`; the points: `python -m scaling.published chinchilla`.
    """
    table = read_table(basics.ROOT / "data" / "published" / "chinchilla.csv")
    N, D, L = (table[name] for name in ("params", "tokens", "loss"))
    found = {}
    start, before = time.perf_counter(), time.process_time()
    ours = fit_all(table)
    found["ours"] = dict(seconds=time.perf_counter() - start, cpu_seconds=time.process_time() - before,
                         objective=ours["surface"]["objective"], forms=len(LAWS.keys() & ours.keys()))
    with tempfile.TemporaryDirectory() as home:
        rows = np.column_stack([6 * N * D, N, D, L])
        np.savetxt(f"{home}/df.csv", rows, delimiter=",", header="C,N,D,loss", comments="")
        start, before = time.perf_counter(), sum(os.times()[2:4])
        out = subprocess.run([sys.executable, "-c", PACKAGE, home], capture_output=True, text=True,
                             env=os.environ | {"PYTHONPATH": folder})
        if out.returncode:
            raise UserError(f"--fits={folder}: {out.stderr.strip().splitlines()[-1]}")
        E, A, B, alpha, beta = json.loads(out.stdout.splitlines()[-1])
        errors = torch.tensor(np.log(E + A / N ** alpha + B / D ** beta))
        objective = nn.functional.huber_loss(errors, torch.tensor(np.log(L)), reduction="sum", delta=1e-3)
        found["chinchilla"] = dict(seconds=time.perf_counter() - start, objective=objective.item(),
                                   cpu_seconds=sum(os.times()[2:4]) - before, forms=1)
    return found | dict(load=load())


# ---- report ----


def print_shape(m: dict) -> None:
    s = m["settings"]
    print(f"\n{m['shape']}: {s['n_layer']} layers, {s['n_head']} heads, d {s['n_embd']}, {s['batch_size']} x "
          f"{s['block_size']} tokens, V {s['vocab_size']:,}; GEMM {m['gemm_roofline_gflops']:.0f} GF/s, load "
          f"{m['load']}\n  {'':<12}{'tokens/s':>10}{'quartiles':>18}{'ms':>9}{'data':>6}{'fwd+bwd':>9}"
          f"{'its loss':>9}{'optim':>7}{'GF/s':>7}{'roof':>6}{'MB':>7}   ours is faster by")
    for name, r in m["contestants"].items():
        t = r["tok_per_s"]
        ms = " " * 31
        if r["split_ms"]:
            ms = "{data:>6.1f}{forward_backward:>9.1f}{loss:>9.1f}{optimizer:>7.1f}".format(**r["split_ms"])
        by = ""
        if name != "ours":
            by = "   {median:.2f} ({q25:.2f}-{q75:.2f})".format(**r["ratio"])
        print(f"  {name:<12}{t['median']:>10,.0f}{t['q25']:>9,.0f}-{t['q75']:<8,.0f}{r['ms']:>9.1f}{ms}"
              f"{r['gflops']:>7.1f}{r['roofline_share']:>6.0%}{r['peak_mb']:>7,.0f}{by}", flush=True)


def print_processes(m: dict) -> None:
    by = m["ratio"]
    print(f"{m['shape']}: two processes of one thread {m['two_of_one_thread']['median']:,.0f} tokens/s "
          f"together, one of two threads {m['one_of_two_threads']['median']:,.0f}: {by['median']:.2f} times "
          f"({by['q25']:.2f}-{by['q75']:.2f}), load {m['load']}", flush=True)


def print_fits(m: dict) -> None:
    for name in ("ours", "chinchilla"):
        print("{0:<12}{seconds:>8.1f} s, {cpu_seconds:.1f} of processor time, objective {objective:.6f}, "
              "{forms} of the forms".format(name, **m[name]), flush=True)


def names(text: str, known, option: str) -> list[str]:
    """The words of a comma-separated list. Raises UserError for one that is not `known`."""
    found = [x for x in text.split(",") if x]
    for x in found:
        if x not in known:
            raise UserError(f"--{option}={text}: unknown {x!r}{nearest(x, known)}; there are "
                            f"{', '.join(known)}")
    return found


def require_nanogpt(folder: str) -> None:
    """Have NanoGPT, in whatever process, find the clone in `folder`. Raises UserError."""
    if not (Path(folder) / "model.py").is_file():
        raise UserError(f"--nanogpt={folder}: there is no model.py; git clone "
                        "https://github.com/karpathy/nanoGPT, and give that folder")
    os.environ["NANOGPT"] = str(Path(folder).absolute())


def parse_args(args: list[str] | None) -> argparse.Namespace:
    parser = Parser("python -m scaling.bench", __doc__)
    for key, known in dict(shape=SHAPES, peers=PEERS).items():
        parser.add_argument(f"--{key}", default=",".join(known),
                            help=f"some, with commas, of {', '.join(known)}; default: all")
    parser.add_argument("--nanogpt", help="a clone of karpathy/nanoGPT: one more peer")
    parser.add_argument("--fits", help="a folder with the package chinchilla: its fit against ours, too")
    parser.add_argument("--threads", type=int, default=1, help="threads of each contestant; default 1")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant; default 15")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn (a step at least); default .5")
    parser.add_argument("--clock", default="perf_counter", choices=("perf_counter", "process_time"),
                        help="process_time on a machine that others use: processor time, not wall time")
    parser.add_argument("--processes", type=int, default=1, help="0: leave out two processes against one")
    parser.add_argument("--json", help="write the measurements to this file; -: to stdout, tables to stderr")
    a = parser.parse_args(args)
    a.shape = names(a.shape, SHAPES, "shape")
    a.peers = names(a.peers, PEERS, "peers")
    if a.nanogpt:
        require_nanogpt(a.nanogpt)
        a.peers.append("nanogpt")
    for key in ("threads", "rounds", "seconds"):
        if not 0 < getattr(a, key) < math.inf:
            raise UserError(f"--{key} must be positive, not {getattr(a, key)}")
    if a.json not in (None, "-") and not Path(a.json).absolute().parent.is_dir():
        raise UserError(f"--json={a.json}: there is no {Path(a.json).parent}; make it first")
    if {"hf", "hf_compiled"} & set(a.peers) and not find_spec("transformers"):
        raise UserError("the peer hf needs transformers: pip install -r requirements-dev.txt, or leave it "
                        "out with --peers=plain")
    a.clock = getattr(time, a.clock)
    return a


def main(args: list[str] | None = None) -> int:
    a = parse_args(args)
    with contextlib.redirect_stdout(sys.stderr) if a.json == "-" else contextlib.nullcontext():
        result = dict(torch=torch.__version__, processor=processor(),
                      cpu=torch.backends.cpu.get_cpu_capability(), cores=os.cpu_count(),
                      onednn=cpu.onednn_pays(), threads=a.threads, clock=a.clock.__name__, rounds=a.rounds,
                      seconds=a.seconds, commit=basics.git_commit(), shapes=[], processes=[])
        print(f"{result['processor']}, {result['cpu']}")
        print(f"{amount(len(a.shape), 'shape')}: ours against {', '.join(a.peers) or 'nobody'}, "
              f"{amount(a.rounds, 'turn')} of {a.seconds:g} s each", flush=True)
        for name in a.shape:
            result["shapes"].append(measure(name, a))
            print_shape(result["shapes"][-1])
            if name.startswith("laptop") and a.processes:
                result["processes"].append(two_processes(name, a.rounds, a.seconds))
                print_processes(result["processes"][-1])
            if a.json not in (None, "-"):
                basics.write_json(a.json, result)      # as it grows: a stopped bench keeps its shapes
        if a.fits:
            result["fits"] = measure_fits(a.fits)
            print_fits(result["fits"])
    if a.json == "-":
        print(json.dumps(result, indent=1))
    elif a.json:
        basics.write_json(a.json, result)
        print(f"wrote {a.json}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
