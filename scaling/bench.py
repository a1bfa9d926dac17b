"""Training speed on CPU against peers that do the same work: tokens/s, where time goes, what binds.

    python -m scaling.bench                                    # every shape, about 20 minutes on one core
    python -m scaling.bench --shape=laptop_d64 --peers=hf,plain --json=bench.json

Ours is train.py's own step, with its data, schedule, clipping and optimizer. The peers have the same weights,
batches and settings of AdamW: (hf) Hugging Face's GPT2LMHeadModel with its own loss, (hf_compiled) the same
under torch.compile, (plain) a GPT as a textbook writes it. Contestants that do not report the same losses for
the first steps have not done the same work, and nothing is timed. Each lives in a process of its own, as its
user would have it (heap, precision, compilation, peak memory), and only one works at a time, in turns; a
ratio is the median over the turns of ours over theirs. For the laptop study's shapes it then measures what a
sweep does: two processes of one thread, at once, against one process of two threads.
"""
import argparse
import contextlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # before torch is imported
import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F
from tqdm import tqdm

import train
from model import onednn_matmul, onednn_pays
from runtime.basics import UserError, exit_cleanly, nearest


def shape(n_layer: int, n_head: int, n_embd: int, batch_size: int, block_size: int, vocab_size: int) -> dict:
    return dict(n_layer=n_layer, n_head=n_head, n_embd=n_embd, batch_size=batch_size, block_size=block_size,
                vocab_size=vocab_size)


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
PEERS = ("hf", "hf_compiled", "plain")
AGREE_STEPS, AGREE = 5, 1e-4       # the first losses must agree to this relative difference
PHASES = ("data", "forward_backward", "loss", "optimizer")


# ---------------------------------------------------------------- contestants


class Ours:
    """train.py's Run, step by step."""

    def __init__(self, c: train.Config, meta: dict):
        self.run = train.Run(c, meta, 0, 1)
        self.model, self.last_norm = self.run.raw, self.run.raw.transformer.ln_f

    def step(self) -> torch.Tensor:
        self.run.train_step()
        return self.run.losses.pop()


class Peer:
    """A step as a user of `model` writes it: `loss(x, y)`, clip, torch.optim.AdamW; on the data of `Ours`."""

    def __init__(self, c: train.Config, meta: dict):
        torch.manual_seed(c.seed)
        weights = train.GPT(train.model_config(c)).state_dict()
        torch.set_float32_matmul_precision("highest")  # PyTorch's default
        self.model = self.build(c, weights)
        self.last_norm = self.model.transformer.ln_f
        self.c, self.i = c, 0
        self.data = train.Batches(train.ROOT / "data" / c.dataset / "train.bin", c.block_size, c.seed, "cpu")
        groups = [dict(params=[p for p in self.model.parameters() if (p.dim() >= 2) == decays],
                       weight_decay=c.weight_decay * decays) for decays in (True, False)]
        self.optimizer = torch.optim.AdamW(groups, lr=c.learning_rate, betas=(c.beta1, c.beta2))

    def step(self) -> torch.Tensor:
        x, y = self.data.get(self.data.row_ids(self.i * self.c.batch_size, self.c.batch_size))
        loss = self.loss(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), self.c.grad_clip)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.i += 1
        return loss.detach()


class HuggingFace(Peer):
    def build(self, c: train.Config, weights: dict) -> nn.Module:
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError:
            raise UserError("the peer hf needs transformers: pip install -r requirements-dev.txt, or leave "
                            "it out with --peers=plain") from None
        model = GPT2LMHeadModel(GPT2Config(
            n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.block_size,
            vocab_size=c.vocab_size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            bos_token_id=None, eos_token_id=None)).train()
        matrices = {name for name, p in weights.items() if p.dim() == 2 and ".h." in name}
        model.load_state_dict({name: p.T if name in matrices else p for name, p in weights.items()})
        return model

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=x, labels=y, shift_labels=y).loss


class HuggingFaceCompiled(HuggingFace):
    def build(self, c: train.Config, weights: dict) -> nn.Module:
        model = super().build(c, weights)
        model.compile(dynamic=False)                   # in place: names and modules stay
        return model


class PlainBlock(nn.Module):
    def __init__(self, c: train.Config):
        super().__init__()
        self.n_head = c.n_head
        self.ln_1, self.ln_2 = nn.LayerNorm(c.n_embd), nn.LayerNorm(c.n_embd)
        self.attn = nn.ModuleDict(dict(c_attn=nn.Linear(c.n_embd, 3 * c.n_embd),
                                       c_proj=nn.Linear(c.n_embd, c.n_embd)))
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(c.n_embd, 4 * c.n_embd),
                                      c_proj=nn.Linear(4 * c.n_embd, c.n_embd)))

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.n_head, -1).transpose(1, 2)
                   for y in self.attn.c_attn(self.ln_1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.attn.c_proj(y.transpose(1, 2).reshape(B, T, D))
        return x + self.mlp.c_proj(F.gelu(self.mlp.c_fc(self.ln_2(x)), approximate="tanh"))


class PlainGPT(nn.Module):
    def __init__(self, c: train.Config):
        super().__init__()
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(c.vocab_size, c.n_embd), wpe=nn.Embedding(c.block_size, c.n_embd),
            h=nn.ModuleList([PlainBlock(c) for _ in range(c.n_layer)]), ln_f=nn.LayerNorm(c.n_embd)))
        self.lm_head = nn.Linear(c.n_embd, c.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight

    def forward(self, idx):
        x = self.transformer.wte(idx) + self.transformer.wpe(torch.arange(idx.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


class Plain(Peer):
    def build(self, c: train.Config, weights: dict) -> nn.Module:
        model = PlainGPT(c)
        model.load_state_dict(weights)
        return model

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.model(x).flatten(0, 1), y.flatten())


CONTESTANTS = dict(ours=Ours, hf=HuggingFace, hf_compiled=HuggingFaceCompiled, plain=Plain)


# ---------------------------------------------------------------- one contestant in a process of its own


def split(contestant: Ours | Peer, steps: int, clock: Callable[[], float]) -> dict[str, float]:
    """Median ms per step of each of PHASES; `loss` (head and cross-entropy, both ways) is within
    forward_backward.

    Hooks stamp the time where the model starts, where its last norm hands over to the head, where the
    gradient comes back there, and where the last parameter has its gradient. What follows is the optimizer's:
    clip, AdamW, bookkeeping.
    """
    at, rows, parameters = {}, [], contestant.model.parameters()

    def stamp(name: str) -> None:
        at[name] = clock()

    def watch(module, args, output) -> None:
        stamp("head")
        output.register_hook(lambda grad: stamp("hidden"))

    hooks = [contestant.model.register_forward_pre_hook(lambda *_: stamp("forward")),
             contestant.last_norm.register_forward_hook(watch),
             *(p.register_post_accumulate_grad_hook(lambda p: stamp("gradients")) for p in parameters)]
    for _ in range(steps):
        stamp("start")
        contestant.step()
        stamp("end")
        rows.append([at["forward"] - at["start"], at["gradients"] - at["forward"], at["hidden"] - at["head"],
                     at["end"] - at["gradients"]])
    for hook in hooks:
        hook.remove()
    return dict(zip(PHASES, (np.median(rows, axis=0) * 1e3).tolist()))


def burst(contestant: Ours | Peer, seconds: float, clock: Callable[[], float]) -> tuple[int, float]:
    """(steps, their seconds on `clock`) of a burst of about `seconds` of wall time; a step at least."""
    steps, stop, start = 0, time.perf_counter() + seconds, clock()
    while not steps or time.perf_counter() < stop:
        contestant.step()
        steps += 1
    return steps, clock() - start


def peak_memory_mb() -> float:
    import resource  # not on Windows
    unit = 2 ** 20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def work(pipe: Connection, name: str, c: train.Config, meta: dict, root: Path, threads: int,
         clock: str) -> None:
    """A contestant's process: builds it, then answers each (question, argument) with (answer, error)."""
    torch.set_num_threads(threads)
    train.ROOT, clock = root, getattr(time, clock)
    answers = dict(split=lambda steps: split(contestant, steps, clock),
                   burst=lambda seconds: burst(contestant, seconds, clock),
                   losses=lambda steps: [contestant.step().item() for _ in range(steps)],
                   peak_mb=lambda _: peak_memory_mb())
    try:
        contestant = CONTESTANTS[name](c, meta)
        pipe.send((None, None))
        while True:
            what, argument = pipe.recv()
            pipe.send((answers[what](argument), None))
    except EOFError:                                   # the parent is done
        pass
    except UserError as e:
        pipe.send((None, str(e)))


class Contestant:
    """The parent's end of a contestant's process."""

    def __init__(self, name: str, *args):
        self.name = name
        context = get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, name, *args), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self):
        try:
            answer, error = self.pipe.recv()
        except EOFError:
            raise UserError(f"the process of {self.name} died; its traceback is above; --peers leaves a peer "
                            "out") from None
        if error:
            raise UserError(error)
        return answer

    def ask(self, what: str, argument: float | None = None):
        self.pipe.send((what, argument))
        return self.answer()

    def close(self) -> None:
        self.pipe.close()
        self.process.join()


@contextlib.contextmanager
def contestants(names: list[str], *args):
    """A Contestant for each of `names`, all built; their processes end with the block."""
    built = []
    try:
        for name in names:
            built.append(Contestant(name, *args))
            built[-1].answer()
        yield built
    finally:
        for one in built:
            one.close()


# ---------------------------------------------------------------- measurements


def write_data(root: Path, vocab_size: int, tokens: int = 2 ** 19) -> dict:
    """Random tokens in root/data/bench, as train.py wants them: speed does not depend on the text. -> meta"""
    folder = root / "data" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        random = np.random.default_rng(0).integers(vocab_size, size=tokens, dtype=np.uint16)
        random.tofile(folder / f"{name}.bin")
    return dict(tokenizer="none", vocab_size=vocab_size, train_tokens=tokens, val_tokens=tokens,
                val_bytes=tokens, train_sha256="none")


def config(name: str, meta: dict, root: Path) -> train.Config:
    """The run that is timed: every setting that HF's GPT-2 has, too, and a constant learning rate."""
    c = train.Config(**SHAPES[name], dataset="bench", out_dir=str(root / "out"), bias=True, tie_weights=True,
                     schedule="constant", warmup_iters=0, learning_rate=1e-3, max_iters=10 ** 6, device="cpu")
    return train.derive(c, meta, "cpu", 1)


@contextlib.contextmanager
def workplace(name: str):
    """(config, meta, root) of the shape `name`, in a directory that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        meta = write_data(Path(folder), SHAPES[name]["vocab_size"])
        yield config(name, meta, Path(folder)), meta, Path(folder)


def require_same_work(losses: dict[str, list[float]]) -> None:
    """Raise UserError unless every contestant's first losses are those of `ours`, to AGREE."""
    for name, theirs in losses.items():
        worst = np.max(np.abs(np.divide(losses["ours"], theirs) - 1))    # nan if any is; max() would miss it
        if not worst <= AGREE:
            raise UserError(f"ours and {name} do not do the same work: over {len(theirs)} steps their losses "
                            f"differ by up to {100 * worst:.3g} % ({losses['ours'][-1]:.6f} and "
                            f"{theirs[-1]:.6f} at the last); nothing was timed")


def rates(built: list[Contestant], rounds: int, seconds: float, tokens: int, bar: tqdm) -> dict[str, list]:
    """{name: tokens/s of each round}; each works once a round, and the next round starts one later."""
    found = {one.name: [] for one in built}
    for i in range(rounds):
        for one in built[i % len(built):] + built[:i % len(built)]:
            steps, spent = one.ask("burst", seconds)
            found[one.name].append(steps * tokens / spent)
            bar.update()
    return found


def gemm_roofline(threads: int, clock: str, size: int = 1024) -> float:
    """The best GF/s of a square float32 matmul here, through MKL and through oneDNN where that is float32."""
    torch.set_num_threads(threads)
    a, best, now = torch.ones(size, size), math.inf, getattr(time, clock)
    for matmul in (torch.mm, onednn_matmul(torch.mm)) if onednn_pays() else (torch.mm,):
        for _ in range(20):
            start = now()
            matmul(a, a)
            best = min(best, now() - start)
    return 2 * size ** 3 / best / 1e9


def quartiles(x: list[float]) -> dict[str, float]:
    return dict(zip(("q25", "median", "q75"), np.quantile(x, (0.25, 0.5, 0.75)).tolist()))


def ratio(ours: list[float], theirs: list[float]) -> dict[str, float]:
    """Quartiles of ours / theirs, turn by turn: what slowed the machine during a turn slowed both."""
    return quartiles([a / b for a, b in zip(ours, theirs, strict=True)])


def load() -> float:
    """Processes that wanted a core, on average over the last minute."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else math.nan


def measure(name: str, a: argparse.Namespace) -> dict:
    """One shape: the agreement of losses first, then bursts in turns, then the split."""
    with workplace(name) as (c, meta, root), \
            contestants(["ours", *a.peers], c, meta, root, a.threads, a.clock) as built:
        flops, tokens = train.shape_counts(c)[1]["total"], c.batch_size * c.block_size
        losses = {one.name: one.ask("losses", AGREE_STEPS) for one in built}
        require_same_work(losses)
        rows, roofline = {}, gemm_roofline(a.threads, a.clock)
        with tqdm(total=a.rounds * len(built), desc=name, leave=False, mininterval=2) as bar:
            found = rates(built, a.rounds, a.seconds, tokens, bar)
        for one in built:
            speed = quartiles(found[one.name])
            rows[one.name] = dict(
                tok_per_s=speed, ms=tokens / speed["median"] * 1e3, gflops=speed["median"] * flops / 1e9,
                roofline_share=speed["median"] * flops / 1e9 / roofline,
                ratio=ratio(found["ours"], found[one.name]), loss=losses[one.name][-1],
                split_ms=None if one.name == "hf_compiled" else    # hooks would break its graph
                one.ask("split", 20 if tokens * flops < 1e10 else 5), peak_mb=one.ask("peak_mb"))
    return dict(shape=name, settings=SHAPES[name], tokens_per_step=tokens, flops_per_token=flops,
                gemm_roofline_gflops=roofline, load=load(), contestants=rows)


def two_processes(name: str, rounds: int, seconds: float) -> dict:
    """Our tokens/s as two processes of one thread, at once, against one process of two threads; wall time."""
    together, alone = [], []
    with workplace(name) as (c, meta, root), \
            contestants(["ours", "ours"], c, meta, root, 1, "perf_counter") as pair, \
            contestants(["ours"], c, meta, root, 2, "perf_counter") as one:
        for _ in range(rounds):
            for worker in pair:
                worker.pipe.send(("burst", seconds))
            together.append(sum(steps / spent for steps, spent in [worker.answer() for worker in pair]))
            steps, spent = one[0].ask("burst", seconds)
            alone.append(steps / spent)
        tokens = c.batch_size * c.block_size
    return dict(shape=name, load=load(), ratio=ratio(together, alone),
                two_of_one_thread=quartiles([x * tokens for x in together]),
                one_of_two_threads=quartiles([x * tokens for x in alone]))


# ---------------------------------------------------------------- report


def print_shape(m: dict) -> None:
    s = m["settings"]
    print(f"\n{m['shape']}: {s['n_layer']} layers, {s['n_head']} heads, d {s['n_embd']}, {s['batch_size']} x "
          f"{s['block_size']} tokens, V {s['vocab_size']:,}; GEMM {m['gemm_roofline_gflops']:.0f} GF/s, load "
          f"{m['load']}\n  {'':<12}{'tokens/s':>10}{'quartiles':>18}{'ms':>9}{'data':>6}{'fwd+bwd':>9}"
          f"{'its loss':>9}{'optim':>7}{'GF/s':>7}{'roof':>6}{'MB':>7}   ours is faster by")
    for name, r in m["contestants"].items():
        t, by = r["tok_per_s"], r["ratio"]
        ms = "".join(f"{r['split_ms'][k]:>{w}.1f}" if r["split_ms"] else " " * w
                     for k, w in zip(PHASES, (6, 9, 9, 7)))
        print(f"  {name:<12}{t['median']:>10,.0f}{t['q25']:>9,.0f}-{t['q75']:<8,.0f}{r['ms']:>9.1f}{ms}"
              f"{r['gflops']:>7.1f}{r['roofline_share']:>6.0%}{r['peak_mb']:>7,.0f}", end="")
        print(f"   {by['median']:.2f} ({by['q25']:.2f}-{by['q75']:.2f})" if name != "ours" else "",
              flush=True)


def print_processes(m: dict) -> None:
    two, one, by = m["two_of_one_thread"], m["one_of_two_threads"], m["ratio"]
    print(f"{m['shape']}: two processes of one thread {two['median']:,.0f} tokens/s together, one of two "
          f"threads {one['median']:,.0f}: {by['median']:.2f} times ({by['q25']:.2f}-{by['q75']:.2f}), load "
          f"{m['load']}", flush=True)


def names(text: str, known: tuple[str, ...], option: str) -> list[str]:
    found = [x for x in text.split(",") if x]
    for x in found:
        if x not in known:
            raise UserError(f"--{option}={text}: unknown {x!r}{nearest(x, known)}; there are "
                            f"{', '.join(known)}")
    return found


def parse_args(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scaling.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; default: all")
    parser.add_argument("--threads", type=int, default=1, help="threads of each contestant; default 1")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant; default 15")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn (a step at least); default .5")
    parser.add_argument("--clock", default="perf_counter", choices=("perf_counter", "process_time"),
                        help="process_time on a machine that others use: processor time, not wall time")
    parser.add_argument("--processes", type=int, default=1, help="0: leave out two processes against one")
    parser.add_argument("--json", help="write the measurements to this file; -: to stdout, tables to stderr")
    a = parser.parse_args(args)
    a.shape, a.peers = names(a.shape, tuple(SHAPES), "shape"), names(a.peers, PEERS, "peers")
    for key in ("threads", "rounds", "seconds"):
        if not 0 < getattr(a, key) < math.inf:
            raise UserError(f"--{key} must be positive, not {getattr(a, key)}")
    return a


def main(args: list[str] | None = None) -> int:
    a = parse_args(args)
    with contextlib.redirect_stdout(sys.stderr) if a.json == "-" else contextlib.nullcontext():
        result = dict(torch=torch.__version__, cpu=torch.backends.cpu.get_cpu_capability(),
                      cores=os.cpu_count(), onednn=onednn_pays(), threads=a.threads, clock=a.clock,
                      rounds=a.rounds, seconds=a.seconds, commit=train.git_commit(), shapes=[], processes=[])
        for name in a.shape:
            result["shapes"].append(measure(name, a))
            print_shape(result["shapes"][-1])
            if name.startswith("laptop") and a.processes:
                result["processes"].append(two_processes(name, a.rounds, a.seconds))
                print_processes(result["processes"][-1])
            if a.json not in (None, "-"):
                train.write_json(Path(a.json), result)    # as it grows: a stopped bench keeps its shapes
    if a.json == "-":
        print(json.dumps(result, indent=1))
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
