"""Does muP do here what it promises? The coordinate check, and the table of learning-rate transfer.

    python -m scaling.recipe.transfer out/transfer

Coordinate check (Yang et al. 2022, appendix D.1): how far a few Adam steps move the activations of models of
several widths. Under muP by the same amount at every width; under gpt2 by more the wider the model is, which
is why its best learning rate falls. Transfer: losses of scaling/sweeps/transfer.py by width and rate.
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
from scaling.laws.frontiers import slope_of
from scaling.report import amount
from scaling.tables.csv import write_table

WIDTHS = (32, 64, 128, 256)
STEPS = 4
RATE = 0.008
VOCAB = 64
KINDS = ("mup", "gpt2")
COLUMNS = ("parametrization", "n_embd", "learning_rate", "seed", "val_loss")
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


def coordinate_check(kind: str, width: int, seed: int) -> Iterator[dict]:
    """Rows {parametrization, n_embd, seed, step, activation, moved}: rms of the change since step 0."""
    torch.manual_seed(seed)
    model = GPT(Config(n_layer=3, n_head=2, n_embd=width, block_size=32, vocab_size=VOCAB,
                       parametrization=kind, base_width=WIDTHS[0]))
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
            yield dict(parametrization=kind, n_embd=width, seed=seed, step=step, activation=name, moved=moved)


def growth(rows: list[dict], kind: str, activation: str) -> float:
    """Exponent of width in how far the last step has moved `activation`: 0 is flat, .5 and 1 grow."""
    points = [(r["n_embd"], r["moved"]) for r in rows
              if (r["parametrization"], r["activation"], r["step"]) == (kind, activation, STEPS)]
    return slope_of(*np.log(points).T)


def transfer_table(folder: Path) -> list[dict]:
    """Rows {parametrization, n_embd, learning_rate, seed, val_loss} of finished runs. Raises UserError."""
    rows, problems = logs.parse_study(folder)
    for problem in problems:
        print(problem)
    for row in rows:
        if row.get("parametrization") not in KINDS:
            raise UserError(f"{folder / row['run']}: its result.json does not tell its parametrization, as "
                            "those of older versions; train the study again")
    table = [{column: row[column] for column in COLUMNS} for row in rows]
    table.sort(key=lambda row: list(row.values()))
    return [row for kind in KINDS for row in table if row["parametrization"] == kind]


def best_rates(rows: list[dict], kind: str) -> dict[int, float]:
    """{width: the learning rate of the lowest loss}."""
    own = sorted((r for r in rows if r["parametrization"] == kind), key=lambda r: -r["val_loss"])
    return {r["n_embd"]: r["learning_rate"] for r in own}      # the lowest comes last


def table_text(rows: list[dict], kind: str) -> str:
    """Losses by width (rows) and learning rate (columns), the best of each width marked."""
    losses = {(r["n_embd"], r["learning_rate"]): r["val_loss"] for r in rows if r["parametrization"] == kind}
    best = best_rates(rows, kind)
    rates = sorted({rate for _, rate in losses})
    lines = [f"{kind:>8}" + "".join(f"{rate:>9g}" for rate in rates)]
    for width in sorted(best):
        line = f"d {width:>6}"
        for rate in rates:
            loss = losses.get((width, rate))
            text = f"{loss:.3f}" if loss else ""
            mark = "*" if rate == best[width] else ""
            line += f"{text + mark:>9}"
        lines.append(line)
    factor = max(best.values()) / min(best.values())
    lines.append(f"the best learning rate moves by a factor {factor:.3g} over widths {min(best)} to "
                 f"{max(best)}")
    tried = {width: [rate for d, rate in losses if d == width] for width in best}
    edges = [f"d {width}" for width in sorted(best) if best[width] in (min(tried[width]), max(tried[width]))]
    if edges:
        lines.append(f"  at {', '.join(edges)} the best is at an edge of what was tried: add rates beyond it")
    return "\n".join(lines)


def main(args: list[str] | None = None) -> int:
    parser = Parser("python -m scaling.recipe.transfer", __doc__)
    parser.add_argument("study", help="out/transfer, trained by scaling/sweeps/transfer.py")
    folder = Path(parser.parse_args(args).study)
    table = transfer_table(folder)
    if {row["parametrization"] for row in table} != set(KINDS):
        raise UserError(f"{folder} holds no finished runs of both {' and '.join(KINDS)}; run: "
                        "python -m scaling.sweep scaling/sweeps/transfer.py")
    widths = {row["n_embd"] for row in table}
    print(f"{folder}: {amount(len(table), 'run')} of {amount(len(widths), 'width')}", flush=True)
    rows = [row for kind in KINDS for width in WIDTHS for seed in range(3)
            for row in coordinate_check(kind, width, seed)]
    write_table(folder / "coordinates.csv", rows, list(rows[0]))
    write_table(folder / "transfer.csv", table, list(table[0]))
    for kind in KINDS:
        print(table_text(table, kind))
    for name in ACTIVATIONS:
        mup, gpt2 = (growth(rows, kind, name) for kind in KINDS)
        print(f"{name} moves as width^{mup:.2f} under mup, width^{gpt2:.2f} under gpt2")
    print(f"next: python -m scaling.plots {quote(str(folder))}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
