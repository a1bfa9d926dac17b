"""Train one GPT. In this order: the data, a run (model, step, evaluation), the loop, and what joins them.

    python train.py config/scale_d64.py --seed=2
    torchrun --nproc_per_node=4 train.py config/scale_d64.py

config/settings.py says what a run is, model.py holds the model, and runtime/rundir.py the files of a run,
from the checkpoint to go on from to the final result.
Exit codes: 0 done, 2 something to mend, 3 interrupted (the same command goes on).
"""
import os

import runtime  # noqa: F401    first: it says what is missing here

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # spinning threads starve others; set before torch
import contextlib
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist

from config import settings
from config.settings import Config, configure_run, count_flops, learning_rate, resolve
from model import GPT
from runtime import basics, console, cpu, gpu, rundir, system, text, tracker
from runtime.basics import caught_signals, exit_cleanly
from runtime.devices import join_processes, on_machine
from runtime.noise import NoiseScale, average_gradients
from runtime.rundir import explained, require_finite
from runtime.watch import Watch

# ---- data ----


class Batches:
    """Rows of block_size tokens of a .bin file. Row r is tokens [rT, rT + T), its targets one further on."""

    def __init__(self, path: Path, block_size: int, seed: int, device: str):
        self.tokens = np.asarray(np.memmap(path, dtype=np.uint16, mode="r"))    # a plain view indexes faster
        self.T = block_size
        self.seed = seed
        self.device = device
        self.rows = (len(self.tokens) - 1) // block_size
        self.resident = gpu.resident(self.tokens, device)      # the same on the GPU, where it fits
        self.epoch = -1
        self.order = None

    def row_ids(self, start: int, count: int) -> np.ndarray:
        """Rows `start` to `start + count` of the endless sequence of epochs.

        The order of an epoch depends on (seed, epoch) alone. So batch i is the same whatever the number of
        devices, of resumes or of micro-batches, and no token is seen twice before all are seen once.
        """
        parts = []
        while count:                                   # an epoch may end inside the batch: go on in the next
            epoch, at = divmod(start, self.rows)
            if epoch != self.epoch:
                self.epoch = epoch
                self.order = np.random.default_rng((self.seed, epoch)).permutation(self.rows)
            parts.append(self.order[at:at + count])
            start += len(parts[-1])
            count -= len(parts[-1])
        return np.concatenate(parts)

    def get(self, ids: np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(inputs, targets), each (len(ids), T) int64 on the device."""
        # One token more than T, so that the last input has its target; the same window, shifted by one.
        if self.resident is not None:
            window = gpu.gather(self.resident, gpu.upload(ids, self.device), self.T)
        else:
            window = self.tokens[ids[:, None] * self.T + np.arange(self.T + 1)]
            window = torch.from_numpy(window.astype(np.int64)).to(self.device)
        return window[:, :-1].contiguous(), window[:, 1:].contiguous()


# ---- one run ----


class Run:
    """A run in progress: model, optimizer, data, and where it stands. `c` is resolved, for this machine."""

    def __init__(self, c: Config, meta: dict, rank: int, world: int):
        self.c = c
        self.meta = meta
        self.rank = rank
        self.world = world
        self.out = Path(c.out_dir)
        self.step = 0                                  # steps done
        self.started = time.perf_counter()
        self.elapsed = 0.0                             # seconds spent in earlier sessions
        # Losses since the last log line, and the last norm, stay tensors: to read one is to wait for the GPU.
        self.losses = []
        self.grad_norm = None
        self.record = None                             # the last log line
        self.tracker = None                            # wandb or trackio, where it is asked for
        self.watch = Watch(self)
        self.noise = NoiseScale(c.batch_size, world)
        system.keep_heap()
        # Every rank draws the same weights; dropout is seeded anew in each step.
        torch.manual_seed(c.seed)
        torch.set_float32_matmul_precision("high")     # TF32 on GPUs that have it; no effect on CPU
        # The model itself; `model` is the same, compiled or wrapped for several ranks, with other names.
        self.raw = GPT(c).to(c.device)
        self.weights = list(self.raw.parameters())     # once: the walk costs as much as the clipping
        self.params = self.raw.count_params()
        self.flops = count_flops(c)
        self.build_optimizers()
        folder = basics.ROOT / "data" / c.dataset
        self.data = Batches(folder / "train.bin", c.block_size, c.seed, c.device)
        self.val = Batches(folder / "val.bin", c.block_size, c.seed, c.device)
        self.model = self.build_model()

    def build_optimizers(self) -> None:
        c = self.c
        kind = c.device.partition(":")[0]
        groups = self.raw.optimizer_groups(c.weight_decay)
        AdamW = cpu.FusedAdamW if kind == "cpu" else torch.optim.AdamW
        blocks = [groups.pop(0)] if c.optimizer == "muon" else []
        self.optimizers = [AdamW(groups, lr=c.learning_rate, betas=(c.beta1, c.beta2), fused=kind != "mps")]
        if blocks:
            self.optimizers.append(cpu.Muon(blocks, lr=c.learning_rate))
        # Gradients of float16 underflow, so the loss is scaled up; where that overflows the step is left out.
        self.scaler = torch.amp.GradScaler(kind, enabled=c.dtype == "float16")
        self.autocast = torch.autocast(kind, dtype=getattr(torch, c.dtype), enabled=c.dtype != "float32")

    def build_model(self):
        model = self.raw
        # On CPU compiling takes a minute and gains nothing at these sizes (scaling/LOG.md).
        if self.c.compile and self.c.device.startswith("cuda"):
            for block in model.transformer.h:          # alike, so that one is compiled for all
                block.compile(dynamic=False)
            gpu.prefer_cudnn(self.c)
            model.logits_loss = torch.compile(model.logits_loss, dynamic=False)
            if gpu.graph_fits(self):
                self.update = gpu.StepGraph(self.update, self.optimizers, self.c.device)
        if self.world > 1:
            model = torch.nn.parallel.DistributedDataParallel(model)
            model.register_comm_hook(self.noise, average_gradients)
        return model

    def sum_over_ranks(self, x: torch.Tensor) -> torch.Tensor:
        if self.world > 1:
            dist.all_reduce(x)
        return x

    # ---- a step ----

    def train_step(self) -> None:
        """One optimizer step on batch number `step`, shared by ranks and micro-batches."""
        c = self.c
        if c.dropout:
            # Masks depend on seed, step and rank, and not on what came before: a resumed run draws the same.
            state = np.random.SeedSequence((c.seed, self.step, self.rank)).generate_state(1, np.uint64)
            torch.manual_seed(int(state[0]))
        # muP gives each group its own multiple of the scheduled rate (GPT.optimizer_groups).
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                gpu.set_rate(group, learning_rate(self.step, c) * group["lr_scale"])
        # All ranks agree on the batch and each takes its part.
        rows = self.data.row_ids(self.step * c.batch_size, c.batch_size)
        rows = np.array_split(rows, self.world)[self.rank]
        self.losses.append(self.update(rows))
        self.step += 1

    def update(self, rows: np.ndarray | torch.Tensor) -> torch.Tensor:
        """One update of the weights by the loss of `rows`. Returns this rank's share of that loss."""
        loss = self.backward(rows)
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        # The norm of the whole gradient is logged, and clipped where that is on.
        self.grad_norm = cpu.clip(self.weights, self.c.grad_clip or math.inf)
        self.noise.step(self.grad_norm, self.step)
        for optimizer in self.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        for p in self.weights:                         # optimizer.zero_grad() does more than this
            p.grad = None
        return loss

    def backward(self, rows: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Gradients of the batch's mean loss. Returns this rank's share of it, that of `rows`."""
        c = self.c
        # Parts may be uneven, so losses are weighted by their rows, and the sum over parts is the mean over
        # the batch, whatever their number.
        parts = c.gradient_accumulation_steps
        micro_batches = np.array_split(rows, parts) if parts > 1 else [rows]
        measured = c.dtype != "float16"                # in float16 gradients are scaled by then
        loss_sum = 0.0
        for i, ids in enumerate(micro_batches):
            if self.watch.amid_step(i):                # the step is given up, and done anew later
                if self.step:
                    rundir.save(self)
                raise Interrupted(self)
            last = i == len(micro_batches) - 1
            together = self.world == 1 or last         # ranks exchange gradients once a step
            with contextlib.nullcontext() if together else self.model.no_sync():
                with self.autocast:
                    loss = self.model(*self.data.get(ids))[1] * (len(ids) / c.batch_size)
                # DDP averages over ranks, and we want the sum.
                self.scaler.scale(loss * self.world).backward()
            loss_sum = loss_sum + loss.detach()
            if measured and len(micro_batches) > 1 and self.world == 1:
                self.noise.micro_batch(self.weights, len(ids))
        if self.world > 1:
            self.noise.rank(len(rows), measured)
        return loss_sum

    # ---- what is measured ----

    @torch.no_grad()
    def evaluate(self) -> float | None:
        """Mean loss in nats of eval_iters rows of val.bin, the first ones; None where a signal came."""
        c = self.c
        rows = np.arange(c.eval_iters)[self.rank::self.world]
        # Without gradients larger batches fit, and the mean does not depend on their size.
        if c.device.startswith("cuda"):                # there a micro-batch fills the device
            per_batch = math.ceil(c.batch_size / self.world / c.gradient_accumulation_steps)
        else:
            per_batch = max(1, min(16384, 2 ** 27 // c.vocab_size) // c.block_size)    # .5 GB of logits
        total = 0.0
        self.raw.eval()
        # The first rank has the most rows. All go as many rounds, so as to look for a signal together.
        for i in range(0, math.ceil(c.eval_iters / self.world), per_batch):
            if self.watch.stop():
                return None
            if i < len(rows):
                x, y = self.val.get(rows[i:i + per_batch])
                with self.autocast, torch.compiler.set_stance("force_eager"):     # it pays in training only
                    total += self.raw(x, y)[1].item() * len(x)
        self.raw.train()
        # float64, because the sum of many float32 losses would lose its last digits; mps has none.
        kind = torch.float32 if c.device == "mps" else torch.float64
        total = torch.tensor(total, dtype=kind, device=c.device)
        loss = self.sum_over_ranks(total).item() / c.eval_iters
        require_finite(c, [loss], self.step, "validation loss")
        return loss

    def mean_loss(self) -> float:
        """Mean training loss since the last log line, over micro-batches and ranks. Waits for the device."""
        # One micro-batch alone would be noisier than what the fits resolve.
        values = self.sum_over_ranks(torch.stack(self.losses)).tolist()
        require_finite(self.c, values, self.step - len(values) + 1, "training loss")
        return sum(values) / len(values)

    def tokens(self) -> int:
        return self.step * self.c.batch_size * self.c.block_size

    def seconds(self) -> float:
        return self.elapsed + time.perf_counter() - self.started

    def awaits_evaluation(self) -> bool:
        """Whether `record` still lacks its validation loss."""
        return self.record is not None and self.record.get("val_loss", 0) is None

    def measure(self, evaluating: bool, since: tuple[int, float]) -> None:
        """Make `record`, a line of log.jsonl, and forget the losses since the one before, at (step, time).

        A validation loss is still to come: it may take long, and a checkpoint may lie between.
        """
        record = dict(step=self.step, tokens=self.tokens(), flops=self.tokens() * self.flops["total"],
                      train_loss=self.mean_loss())
        tokens = self.tokens() * (1 - since[0] / self.step)
        tok_per_s = tokens / (time.perf_counter() - since[1])      # mean_loss has waited for the device
        if evaluating:
            record["val_loss"] = None
        record |= dict(lr=learning_rate(self.step - 1, self.c), grad_norm=self.grad_norm.item(),
                       tok_per_s=round(tok_per_s, 1), elapsed_s=round(self.seconds(), 3))
        if self.c.dtype != "float16":                  # in float16 the scaler leaves such a step out
            require_finite(self.c, [record["grad_norm"]], self.step, "gradient norm")
        self.record = record | self.noise.log_entry(self.sum_over_ranks, self.c.block_size)
        self.losses = []


# ---- the loop ----


class Interrupted(Exception):
    """A signal came; the checkpoint is written and the process exits with code 3."""

    def __init__(self, run: Run):
        how = "the same command less --resume=never" if run.c.resume == "never" else "the same command"
        super().__init__(f"{run.out}: interrupted at step {run.step}; {how} goes on from there")


def loop(run: Run, caught: list) -> dict:
    """Train `run` to its end. Returns the last log record; raises Interrupted after a signal."""
    c = run.c
    keep = settings.kept_steps(c)
    run.watch = Watch(run, caught)
    if run.step in keep and not run.awaits_evaluation():       # it was not asked for when this step was done
        rundir.save(run, f"ckpt_{run.step}.pt")
    # Tokens per second are of the steps since the last log line: evaluation does not count as training.
    logged = run.step, time.perf_counter()
    while run.step < c.max_iters or run.awaits_evaluation():
        if not run.awaits_evaluation():                # else the session before was cut off in it: it is next
            run.train_step()
            last = run.step == c.max_iters
            evaluating = last or (c.eval_interval and run.step % c.eval_interval == 0)
            if evaluating or run.step % c.log_interval == 0:
                run.measure(evaluating, logged)
            if last:                                   # should the last evaluation fail, nothing is lost
                rundir.save(run)
        if run.record and run.record["step"] == run.step:
            write_line(run)
            logged = run.step, time.perf_counter()
        if run.step in keep:
            rundir.save(run, f"ckpt_{run.step}.pt")
        stop, due = run.watch.after_step()
        if run.step < c.max_iters and (stop or due):
            rundir.save(run)
            run.watch.saved_at = time.perf_counter()
            if stop:
                raise Interrupted(run)
    return run.record


def write_line(run: Run) -> None:
    """Add this step's record to the log, evaluated if it is to be. Raises Interrupted after a signal."""
    if run.awaits_evaluation():
        loss = run.evaluate()
        if loss is None:
            if run.step < run.c.max_iters:             # of the last step there is a checkpoint
                rundir.save(run)
            raise Interrupted(run)
        run.record |= dict(val_loss=loss, elapsed_s=round(run.seconds(), 3))
    if run.rank == 0:
        rundir.append_log(run.out, run.record)
        console.say_progress(run.record, run.c)
        tracker.log(run)


# ---- from a configuration to a result ----


def train(asked: Config) -> dict:
    """Train the run that `asked` describes, from its checkpoint if there is one -> what result.json holds.

    Raises UserError (settings, data, space, a loss that is not finite) or Interrupted (by a signal).
    """
    with explained(asked):
        rank, world, device = join_processes(asked.device)
    resolved = resolve(asked, world)
    c = on_machine(resolved.config, device, world)
    out = Path(c.out_dir)
    with rundir.named_errors(out, "choose another out_dir"):
        out.mkdir(parents=True, exist_ok=True)
    # A run that is done is not trained again; one of other settings in its place is refused.
    if c.resume == "auto" and (done := rundir.finished(c, resolved.meta)):
        return done
    # Two processes in one directory would mix their logs and overwrite each other's checkpoints.
    alone = system.lock(out / "lock", "another process") if rank == 0 else contextlib.nullcontext()
    with alone, caught_signals() as caught, explained(c):
        run = Run(c, resolved.meta, rank, world)
        resumed = rundir.resume(run) if c.resume == "auto" else None
        if c.branch and not resumed:
            rundir.load(run, Path(c.branch))
        rundir.require_same_step(run)
        text.require_known_ids(c, run.meta)
        if rank == 0:
            rundir.start_files(run, resumed)
            console.say_start(run)
            tracker.start(run)
        last = loop(run, caught)
        result = rundir.result_row(asked, run, last)
        if rank == 0:
            rundir.finish(out, result)
    return result


def main() -> int:
    c = configure_run(sys.argv[1:])
    try:
        result = train(c)
    except Interrupted as e:
        console.say(str(e))
        return 3
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    if int(os.environ.get("RANK", 0)) == 0:
        console.say_end(c.out_dir, result)
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
