"""Where a run computes: which device, in which precision, as one process or as one of several ranks."""
import dataclasses
import math
import os

import torch
import torch.distributed as dist

from config.settings import Config, activation_bytes
from runtime import system
from runtime.basics import UserError


def find_device(device: str) -> str:
    """'auto' resolved: cuda, else mps, else cpu. Raises UserError for a device that is not here."""
    here = "cpu"
    if torch.cuda.is_available():
        here = "cuda"
    elif torch.backends.mps.is_available():
        here = "mps"
    known = {"auto", "cpu", here, *(f"cuda:{i}" for i in range(torch.cuda.device_count()))}
    if device not in known:
        raise UserError(f"device {device!r} is not available here ({', '.join(sorted(known))} are); leave it "
                        f"at auto (it finds {here!r})")
    return here if device == "auto" else device


def join_processes(device: str) -> tuple[int, int, str]:
    """(rank, world size, device) of this process. Under torchrun: nccl on GPUs, gloo elsewhere."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        if not os.environ.get(name, "0").isdecimal():
            raise UserError(f"{name} is {os.environ[name]!r}, which is no number; start ranks by torchrun or "
                            "unset it")
    rank = int(os.environ.get("RANK", 0))
    world = int(os.environ.get("WORLD_SIZE", 1))
    device = find_device(device)
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if world > 1 and missing:
        raise UserError(f"WORLD_SIZE is {world}, but not {' or '.join(missing)}: start ranks by "
                        "torchrun, or unset WORLD_SIZE")
    if world > 1 and device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    if device.startswith("cuda:"):                     # streams, graphs and kernels are of the current one
        torch.cuda.set_device(device)
    if world > 1:
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return rank, world, device


def on_machine(c: Config, device: str, world: int) -> Config:
    """`c` with what only the machine can say: device, dtype, and micro-batches that fit its memory.

    Raises UserError for what such a device cannot do.
    """
    c = dataclasses.replace(c, device=device)
    on_gpu = device.startswith("cuda")
    if c.dtype == "auto":
        c.dtype = "float32"
        if on_gpu:
            # Older GPUs emulate bfloat16, which is slower than float32.
            native = torch.cuda.is_bf16_supported(including_emulation=False)
            c.dtype = "bfloat16" if native else "float16"
    if c.optimizer == "muon" and c.dtype == "float16":
        raise UserError("optimizer=muon has no float16: the loss scaler would leave out the step of one "
                        "optimizer and not of the other; set --dtype=bfloat16 or float32")
    if c.gradient_accumulation_steps == -1:
        # Weights and optimizer are there already; activations and logits get 60 % of what is free.
        free = torch.cuda.mem_get_info()[0] if on_gpu else system.free_memory()
        needed = activation_bytes(c, 4 if c.dtype == "float32" else 2) * c.block_size * c.batch_size / world
        c.gradient_accumulation_steps = min(math.ceil(needed / (0.6 * free)), c.batch_size // world)
        if world > 1:                                  # ranks agree on signals between their micro-batches
            most = torch.tensor(c.gradient_accumulation_steps, device=device)
            dist.all_reduce(most, dist.ReduceOp.MAX)
            c.gradient_accumulation_steps = most.item()
    return c
