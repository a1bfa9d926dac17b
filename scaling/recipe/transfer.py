"""Do muP and CompleteP do here what they promise? The coordinate check, and the table of rate transfer.

    python -m scaling.recipe.transfer out/transfer        in width: scaling/sweeps/transfer.py
    python -m scaling.recipe.transfer out/depth           in depth: scaling/sweeps/depth.py

Coordinate check (Yang et al. 2022, appendix D.1): how far a few Adam steps move the activations of models of
several sizes. Where the learning rate transfers by the same amount at every size; under gpt2 by more the
wider the model is, which is why its best learning rate falls. Transfer: the study's losses by size and rate.
Writes coordinates.csv and transfer.csv into the study.
"""
from collections.abc import Iterator
from pathlib import Path
from shlex import quote

import numpy as np
import torch

from config.settings import Config
from model import GPT
from runtime.basics import Parser, UserError, exit_cleanly
from scaling import logs
from scaling.laws.hull import slope_of
from scaling.report import amount
from scaling.tables.csv import write_table

# What grows in a study: its values in the coordinate check, and what tables call it.
SIZES = {"n_embd": (32, 64, 128, 256), "n_layer": (2, 4, 8, 16)}
WORDS = {"n_embd": ("width", "d"), "n_layer": ("depth", "layers")}
STEPS = 4
RATE = 0.008
VOCAB = 64
KINDS = ("mup", "gpt2", "completep")
ACTIVATIONS = ("attention", "mlp", "residual stream", "logits")


def activations(model: GPT, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the last block's attention and MLP add, the residual stream after it, and the logits."""
    found = []

    def keep(module, args, output) -> None:
        found.append(output.detach())

    last = model.transformer.h[-1]
    hooks = [module.register_forward_hook(keep) for module in (last.attn, last.mlp, last)]
    logits, _ = model(x)
    for hook in hooks:
        hook.remove()
    return dict(zip(ACTIVATIONS, [*found, logits.detach()]))       # a block calls its parts in this order


def coordinate_check(kind: str, axis: str, size: int, seed: int) -> Iterator[dict]:
    """Rows {parametrization, n_embd or n_layer, seed, step, activation, moved}: rms change since step 0."""
    torch.manual_seed(seed)
    shape = dict(n_layer=3, n_embd=32) | {axis: size}
    model = GPT(Config(n_head=2, block_size=32, vocab_size=VOCAB, parametrization=kind,
                       base_width=SIZES["n_embd"][0], base_depth=SIZES["n_layer"][0], **shape))
    x = torch.randint(VOCAB, (8, 33), generator=torch.Generator().manual_seed(seed))
    groups = [g | {"lr": RATE * g["lr_scale"]} for g in model.optimizer_groups(0.0)]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    first = activations(model, x[:, :-1])
    for step in range(1, STEPS + 1):
        model(x[:, :-1], x[:, 1:])[1].backward()
        optimizer.step()
        optimizer.zero_grad()
        for name, now in activations(model, x[:, :-1]).items():
            moved = (now - first[name]).square().mean().sqrt().item()
            yield {"parametrization": kind, axis: size, "seed": seed, "step": step, "activation": name,
                   "moved": moved}


def growth(rows: list[dict], axis: str, kind: str, activation: str) -> float:
    """Exponent of the size in how far the last step has moved `activation`: 0 is flat, .5 and 1 grow."""
    points = [(r[axis], r["moved"]) for r in rows
              if (r["parametrization"], r["activation"], r["step"]) == (kind, activation, STEPS)]
    return slope_of(*np.log(points).T)


def transfer_table(folder: Path) -> tuple[str, list[dict]]:
    """(n_embd or n_layer, which the study varies; rows {parametrization, it, learning_rate, seed, val_loss}).

    Raises UserError.
    """
    rows, problems = logs.parse_study(folder)
    for problem in problems:
        print(problem)
    for row in rows:
        if row.get("parametrization") not in KINDS:
            raise UserError(f"{folder / row['run']}: its result.json does not tell its parametrization, as "
                            "those of older versions; train the study again")
    axis = "n_layer" if len({row["n_layer"] for row in rows}) > 1 else "n_embd"
    columns = ("parametrization", axis, "learning_rate", "seed", "val_loss")
    table = [{column: row[column] for column in columns} for row in rows]
    table.sort(key=lambda row: list(row.values()))
    return axis, [row for kind in KINDS for row in table if row["parametrization"] == kind]


def best_rates(rows: list[dict], axis: str, kind: str) -> dict[int, float]:
    """{size: the learning rate of the lowest loss}."""
    own = sorted((r for r in rows if r["parametrization"] == kind), key=lambda r: -r["val_loss"])
    return {r[axis]: r["learning_rate"] for r in own}          # the lowest comes last


def table_text(rows: list[dict], axis: str, kind: str) -> str:
    """Losses by size (rows) and learning rate (columns), the best of each size marked."""
    losses = {(r[axis], r["learning_rate"]): r["val_loss"] for r in rows if r["parametrization"] == kind}
    best = best_rates(rows, axis, kind)
    rates = sorted({rate for _, rate in losses})
    word, short = WORDS[axis]
    lines = [f"{kind:>9}" + "".join(f"{rate:>9g}" for rate in rates)]
    for size in sorted(best):
        line = f"{short} {size:>{8 - len(short)}}"
        for rate in rates:
            loss = losses.get((size, rate))
            text = f"{loss:.3f}" if loss else ""
            mark = "*" if rate == best[size] else ""
            line += f"{text + mark:>9}"
        lines.append(line)
    factor = max(best.values()) / min(best.values())
    lines.append(f"the best learning rate moves by a factor {factor:.3g} over {word}s {min(best)} to "
                 f"{max(best)}")
    tried = {size: [rate for d, rate in losses if d == size] for size in best}
    edges = [f"{short} {size}" for size in sorted(best) if best[size] in (min(tried[size]), max(tried[size]))]
    if edges:
        lines.append(f"  at {', '.join(edges)} the best is at an edge of what was tried: add rates beyond it")
    return "\n".join(lines)


def main(args: list[str] | None = None) -> int:
    parser = Parser("python -m scaling.recipe.transfer", __doc__)
    parser.add_argument("study", help="out/transfer, trained by scaling/sweeps/transfer.py")
    folder = Path(parser.parse_args(args).study)
    axis, table = transfer_table(folder)
    word, _ = WORDS[axis]
    kinds = [kind for kind in KINDS if kind in {row["parametrization"] for row in table}]
    if len(kinds) < 2:
        raise UserError(f"{folder} holds no finished runs of two parametrizations; run: "
                        "python -m scaling.sweep scaling/sweeps/transfer.py")
    sizes = {row[axis] for row in table}
    print(f"{folder}: {amount(len(table), 'run')} of {amount(len(sizes), word)}", flush=True)
    rows = [row for kind in kinds for size in SIZES[axis] for seed in range(3)
            for row in coordinate_check(kind, axis, size, seed)]
    write_table(folder / "coordinates.csv", rows, list(rows[0]))
    write_table(folder / "transfer.csv", table, list(table[0]))
    for kind in kinds:
        print(table_text(table, axis, kind))
    for name in ACTIVATIONS:
        grows = [f"{word}^{growth(rows, axis, kind, name):.2f} under {kind}" for kind in kinds]
        print(f"{name} moves as {', '.join(grows)}")
    print(f"next: python -m scaling.plots {quote(str(folder))}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
