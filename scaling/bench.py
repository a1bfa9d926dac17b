"""Training speed on CPU against peers that do the same work, in one run: tokens/s, where the time goes, what bounds it.

    python -m scaling.bench                                    # every shape, about 10 minutes on one core
    python -m scaling.bench --shape=laptop_d64 --peers=hf,plain --json=bench.json

Ours is train.py's own step, with its data, schedule, clipping and optimizer. The peers have the same weights, batches and
settings of AdamW: (hf) Hugging Face's GPT2LMHeadModel with its own loss, (hf_compiled) the same under torch.compile,
(plain) a GPT as a textbook writes it. Contestants that do not report the same losses for the first steps have not done the
same work, and nothing is timed. Each lives in a process of its own, as its user would have it (heap, precision, compilation,
peak memory), and only one works at a time, in turns; a ratio is the median over the turns of ours over theirs.
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
from configurator import UserError, exit_cleanly, nearest
from model import onednn_matmul, onednn_pays

SHAPES = {                         # batch_size rows of block_size tokens a step; biases and a tied head, as GPT-2 has
    "tiny_d32": dict(n_layer=2, n_head=4, n_embd=32, block_size=128, batch_size=8, vocab_size=50257),
    "tiny_d64": dict(n_layer=4, n_head=4, n_embd=64, block_size=128, batch_size=8, vocab_size=50257),
    "tiny_d128": dict(n_layer=6, n_head=4, n_embd=128, block_size=128, batch_size=8, vocab_size=50257),
    "width_d64": dict(n_layer=12, n_head=8, n_embd=64, block_size=1024, batch_size=2, vocab_size=50257),
    "laptop_d12": dict(n_layer=3, n_head=2, n_embd=12, block_size=32, batch_size=16, vocab_size=84),
    "laptop_d32": dict(n_layer=3, n_head=2, n_embd=32, block_size=32, batch_size=16, vocab_size=84),
    "laptop_d64": dict(n_layer=3, n_head=2, n_embd=64, block_size=32, batch_size=16, vocab_size=84),
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
    """A step as a user of `model` writes it: `loss(x, y)`, clip, torch.optim.AdamW. The data are those of `Ours`."""

    def __init__(self, c: train.Config, meta: dict):
        torch.manual_seed(c.seed)
        weights = train.GPT(train.model_config(c)).state_dict()
        torch.set_float32_matmul_precision("highest")  # PyTorch's default
        self.model = self.build(c, weights)
        self.last_norm = self.model.transformer.ln_f
        self.c, self.i = c, 0
        self.data = train.Batches(train.ROOT / "data" / c.dataset / "train.bin", c.block_size, c.seed, "cpu")
        matrices, vectors = ([p for p in self.model.parameters() if (p.dim() >= 2) == m] for m in (True, False))
        self.optimizer = torch.optim.AdamW([dict(params=matrices, weight_decay=c.weight_decay),
                                            dict(params=vectors, weight_decay=0.0)], lr=c.learning_rate,
                                           betas=(c.beta1, c.beta2))

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
            raise UserError("the peer hf needs transformers: pip install -r requirements-dev.txt, or leave it out with "
                            "--peers=plain") from None
        model = GPT2LMHeadModel(GPT2Config(n_layer=c.n_layer, n_head=c.n_head, n_embd=c.n_embd, n_positions=c.block_size,
                                           vocab_size=c.vocab_size, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                                           use_cache=False, bos_token_id=None, eos_token_id=None)).train()
        matrix = {name for name, p in weights.items() if p.dim() == 2 and ".h." in name}    # theirs are transposed
        model.load_state_dict({name: p.T if name in matrix else p for name, p in weights.items()})
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
        self.attn = nn.ModuleDict(dict(c_attn=nn.Linear(c.n_embd, 3 * c.n_embd), c_proj=nn.Linear(c.n_embd, c.n_embd)))
        self.mlp = nn.ModuleDict(dict(c_fc=nn.Linear(c.n_embd, 4 * c.n_embd), c_proj=nn.Linear(4 * c.n_embd, c.n_embd)))

    def forward(self, x):
        B, T, D = x.shape
        q, k, v = (y.view(B, T, self.n_head, -1).transpose(1, 2) for y in self.attn.c_attn(self.ln_1(x)).chunk(3, -1))
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


def split(contestant: Ours | Peer, steps: int) -> dict[str, float]:
    """Median ms per step of each of PHASES; `loss` (head and cross-entropy, both ways) is part of forward_backward.

    Hooks stamp the time where the model starts, where its last norm hands over to the head, where the gradient comes back
    there, and where the last parameter has its gradient. Optimizer is what follows: clip, AdamW, bookkeeping.
    """
    at, rows = {}, []

    def stamp(name: str) -> None:
        at[name] = time.perf_counter()

    def watch(module, args, output) -> None:
        stamp("head")
        output.register_hook(lambda grad: stamp("hidden"))

    hooks = [contestant.model.register_forward_pre_hook(lambda *_: stamp("forward")),
             contestant.model.register_forward_hook(lambda *_: stamp("backward")),
             contestant.last_norm.register_forward_hook(watch),
             *(p.register_post_accumulate_grad_hook(lambda p: stamp("gradients")) for p in contestant.model.parameters())]
    for _ in range(steps):
        stamp("start")
        contestant.step()
        stamp("end")
        rows.append([at["forward"] - at["start"], at["gradients"] - at["forward"], at["hidden"] - at["head"],
                     at["end"] - at["gradients"]])
    for hook in hooks:
        hook.remove()
    return dict(zip(PHASES, np.median(rows, axis=0) * 1e3))


def burst(contestant: Ours | Peer, seconds: float, clock: Callable[[], float]) -> tuple[int, float]:
    """(steps, their seconds on `clock`) of a burst that takes about `seconds` of wall time, three steps at least."""
    steps, stop, start = 0, time.perf_counter() + seconds, clock()
    while steps < 3 or time.perf_counter() < stop:
        contestant.step()
        steps += 1
    return steps, clock() - start


def peak_memory_mb() -> float:
    import resource                                    # not on Windows
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2 ** 20 if sys.platform == "darwin" else 1024)


def work(pipe: Connection, name: str, c: train.Config, meta: dict, root: Path, threads: int, clock: str) -> None:
    """A contestant's process: builds it, then answers each (function, arguments) that comes with (result, error)."""
    torch.set_num_threads(threads)
    train.ROOT = root
    contestant, answer = None, None
    while True:
        try:
            if contestant is None:
                contestant = CONTESTANTS[name](c, meta)
                before = peak_memory_mb()
            else:
                what, argument = pipe.recv()
                answer = (split(contestant, argument) if what == "split" else
                          burst(contestant, argument, getattr(time, clock)) if what == "burst" else
                          [contestant.step().item() for _ in range(argument)] if what == "losses" else
                          dict(peak_mb=peak_memory_mb(), start_mb=before))
            pipe.send((answer, None))
        except EOFError:                               # the parent is done
            return
        except UserError as e:
            pipe.send((None, str(e)))
            return


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
            raise UserError(f"the process of {self.name} died (exit code {self.process.exitcode}); its traceback is above; "
                            f"--peers leaves a peer out") from None
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
    """Contestant for each of `names`, all built; their processes end with the block."""
    all_ = []
    try:
        for name in names:
            all_.append(Contestant(name, *args))
            all_[-1].answer()
        yield all_
    finally:
        for one in all_:
            one.close()


# ---------------------------------------------------------------- measurements


def write_data(root: Path, vocab_size: int, tokens: int = 2 ** 19) -> dict:
    """Random tokens in root/data/bench, as train.py wants them. Returns their meta. Speed does not depend on the text."""
    folder = root / "data" / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("train", "val"):
        np.random.default_rng(0).integers(vocab_size, size=tokens, dtype=np.uint16).tofile(folder / f"{name}.bin")
    return dict(tokenizer="none", vocab_size=vocab_size, train_tokens=tokens, val_tokens=tokens, val_bytes=tokens,
                train_sha256="none")


def config(shape: dict, meta: dict, root: Path) -> train.Config:
    """The run that is timed: every setting that HF's GPT-2 has, too, and a constant learning rate."""
    c = train.Config(**shape, dataset="bench", out_dir=str(root / "out"), bias=True, tie_weights=True, schedule="constant",
                     warmup_iters=0, learning_rate=1e-3, max_iters=10 ** 6, device="cpu")
    return train.derive(c, meta, "cpu", 1)


def require_same_work(losses: dict[str, list[float]]) -> None:
    """Raise UserError unless every contestant's first losses are those of `ours`, to AGREE."""
    for name, theirs in losses.items():
        worst = max(abs(a / b - 1) for a, b in zip(losses["ours"], theirs, strict=True))
        if not worst <= AGREE:
            raise UserError(f"ours and {name} do not do the same work: over {AGREE_STEPS} steps their losses differ by up to "
                            f"{100 * worst:.3g} % ({losses['ours'][-1]:.6f} and {theirs[-1]:.6f} at the last); "
                            "nothing was timed")


def rates(all_: list[Contestant], rounds: int, seconds: float, tokens: int, bar: tqdm) -> dict[str, np.ndarray]:
    """{name: tokens/s of each round}; in every round each contestant works once, and the next round starts one later."""
    found = {one.name: [] for one in all_}
    for i in range(rounds):
        for one in all_[i % len(all_):] + all_[:i % len(all_)]:
            steps, spent = one.ask("burst", seconds)
            found[one.name].append(steps * tokens / spent)
            bar.update()
    return {name: np.array(r) for name, r in found.items()}


def gemm_roofline(threads: int, size: int = 1024) -> float:
    """The best GF/s of a square float32 matmul here, through MKL and through oneDNN where that is still float32."""
    torch.set_num_threads(threads)
    a, best = torch.ones(size, size), math.inf
    for matmul in (torch.mm, onednn_matmul(torch.mm)) if onednn_pays() else (torch.mm,):
        for _ in range(20):
            start = time.perf_counter()
            matmul(a, a)
            best = min(best, time.perf_counter() - start)
    return 2 * size ** 3 / best / 1e9


def quartiles(x: np.ndarray) -> dict[str, float]:
    return dict(median=float(np.median(x)), q25=float(np.quantile(x, 0.25)), q75=float(np.quantile(x, 0.75)))


def measure(name: str, peers: list[str], threads: int, rounds: int, seconds: float, clock: str) -> dict:
    """One shape: the agreement of losses first, then alternating bursts, then the split."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        meta = write_data(root, SHAPES[name]["vocab_size"])
        c = config(SHAPES[name], meta, root)
        flops, tokens = train.shape_counts(c)[1]["total"], c.batch_size * c.block_size
        with contestants(["ours", *peers], c, meta, root, threads, clock) as all_:
            losses = {one.name: one.ask("losses", AGREE_STEPS) for one in all_}
            require_same_work(losses)
            with tqdm(total=rounds * len(all_), desc=name, leave=False) as bar:
                found = rates(all_, rounds, seconds, tokens, bar)
            rows = {}
            for one in all_:
                row = rows[one.name] = dict(tok_per_s=quartiles(found[one.name]), loss=losses[one.name][-1])
                row["ms"] = tokens / row["tok_per_s"]["median"] * 1e3
                row["gflops"] = row["tok_per_s"]["median"] * flops / 1e9
                row["ratio"] = quartiles(found["ours"] / found[one.name])      # ours is so many times faster
                row["split_ms"] = one.ask("split", 20) if one.name != "hf_compiled" else None
                row |= one.ask("memory")
    return dict(shape=name, settings=SHAPES[name], tokens_per_step=tokens, flops_per_token=flops, contestants=rows)


def two_processes(name: str, rounds: int, seconds: float) -> dict:
    """Our tokens/s as two processes of one thread, together, against one process of two threads; wall time."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        meta = write_data(root, SHAPES[name]["vocab_size"])
        c = config(SHAPES[name], meta, root)
        tokens, together, alone = c.batch_size * c.block_size, [], []
        with contestants(["ours", "ours"], c, meta, root, 1, "perf_counter") as pair, \
                contestants(["ours"], c, meta, root, 2, "perf_counter") as one:
            for _ in range(rounds):
                for worker in pair:
                    worker.pipe.send(("burst", seconds))
                together.append(sum(tokens * steps / spent for steps, spent in (worker.answer() for worker in pair)))
                steps, spent = one[0].ask("burst", seconds)
                alone.append(tokens * steps / spent)
    return dict(shape=name, two_of_one_thread=quartiles(np.array(together)), one_of_two_threads=quartiles(np.array(alone)),
                ratio=quartiles(np.array(together) / np.array(alone)))


# ---------------------------------------------------------------- report


def print_shape(m: dict, roofline: float) -> None:
    s = m["settings"]
    print(f"\n{m['shape']}: {s['n_layer']} layers, {s['n_head']} heads, d {s['n_embd']}, {s['batch_size']} x "
          f"{s['block_size']} tokens, V {s['vocab_size']:,}")
    print(f"  {'':<12}{'tokens/s':>10}{'quartiles':>18}{'ms':>9}{'data':>7}{'fwd+bwd':>9}{'of it loss':>11}{'optim':>7}"
          f"{'GF/s':>7}{'roof':>6}{'MB':>7}   ours is faster by")
    for name, r in m["contestants"].items():
        t, ratio, parts = r["tok_per_s"], r["ratio"], r["split_ms"]
        ms = "".join(f"{parts[k]:>{w}.1f}" if parts else " " * w for k, w in zip(PHASES, (7, 9, 11, 7)))
        print(f"  {name:<12}{t['median']:>10,.0f}{t['q25']:>9,.0f}-{t['q75']:<8,.0f}{r['ms']:>9.1f}{ms}{r['gflops']:>7.1f}"
              f"{r['gflops'] / roofline:>6.0%}{r['peak_mb']:>7,.0f}" + ("" if name == "ours" else
              f"   {ratio['median']:.2f} ({ratio['q25']:.2f}-{ratio['q75']:.2f})"), flush=True)


def print_processes(m: dict) -> None:
    two, one, ratio = m["two_of_one_thread"], m["one_of_two_threads"], m["ratio"]
    print(f"{m['shape']}: two processes of one thread {two['median']:,.0f} tokens/s together, one of two threads "
          f"{one['median']:,.0f}: {ratio['median']:.2f} times ({ratio['q25']:.2f}-{ratio['q75']:.2f})", flush=True)


def names(text: str, known: tuple[str, ...], option: str) -> list[str]:
    found = [x for x in text.split(",") if x]
    for x in found:
        if x not in known:
            raise UserError(f"--{option}={text}: unknown {x!r}{nearest(x, known)}; there are {', '.join(known)}")
    return found


def parse_args(args: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m scaling.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default=",".join(SHAPES), help=f"of {', '.join(SHAPES)}; default: all")
    parser.add_argument("--peers", default=",".join(PEERS), help=f"of {', '.join(PEERS)}; default: all")
    parser.add_argument("--threads", type=int, default=1, help="threads of each contestant; default 1")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant; default 15")
    parser.add_argument("--seconds", type=float, default=0.5, help="of a turn (three steps at least); default .5")
    parser.add_argument("--clock", default="perf_counter", choices=("perf_counter", "process_time"),
                        help="process_time on a machine that others use: processor time, not wall time")
    parser.add_argument("--processes", type=int, default=1, help="0: leave out two processes against one")
    parser.add_argument("--json", help="write the measurements to this file; -: to standard output, the tables to stderr")
    a = parser.parse_args(args)
    a.shape, a.peers = names(a.shape, tuple(SHAPES), "shape"), names(a.peers, PEERS, "peers")
    for key in ("threads", "rounds", "seconds"):
        if not getattr(a, key) > 0:
            raise UserError(f"--{key} must be positive, not {getattr(a, key)}")
    return a


def main(args: list[str] | None = None) -> int:
    a = parse_args(args)
    with contextlib.redirect_stdout(sys.stderr) if a.json == "-" else contextlib.nullcontext():
        roofline = gemm_roofline(a.threads)
        result = dict(torch=torch.__version__, cpu=torch.backends.cpu.get_cpu_capability(), onednn=onednn_pays(),
                      threads=a.threads, clock=a.clock, rounds=a.rounds, gemm_roofline_gflops=roofline,
                      commit=train.git_commit(), shapes=[], processes=[])
        print(f"torch {torch.__version__}, {a.threads} thread(s), GEMM roofline {roofline:.0f} GF/s", flush=True)
        for name in a.shape:
            result["shapes"].append(measure(name, a.peers, a.threads, a.rounds, a.seconds, a.clock))
            print_shape(result["shapes"][-1], roofline)
        for name in a.shape if a.processes else ():
            if name.startswith("laptop"):
                result["processes"].append(two_processes(name, a.rounds, a.seconds))
                print_processes(result["processes"][-1])
    if a.json == "-":
        print(json.dumps(result, indent=1))
    elif a.json:
        train.write_json(Path(a.json), result)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
