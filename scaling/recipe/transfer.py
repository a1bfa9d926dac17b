"""Does muP do here what it promises? The coordinate check, and the table of learning-rate transfer.

    python -m scaling.recipe.transfer out/transfer

Coordinate check (Yang et al. 2022, appendix D.1): how far a few Adam steps move the activations of models of
several widths. Under muP by the same amount at every width; under gpt2 by more the wider the model is, which
is why its best learning rate falls. Transfer: losses of scaling/sweeps/transfer.py by width and rate.
Writes coordinates.csv and transfer.csv into the study.
"""
import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from model import GPT, GPTConfig
from runtime.basics import UserError, exit_cleanly, load_json
from scaling import logs
from scaling.tables.csv import write_table

WIDTHS, STEPS, VOCAB = (32, 64, 128, 256), 4, 64
KINDS = ("mup", "gpt2")


def activations(model: GPT, x: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the last block's attention and MLP add, the residual stream after it, and the logits."""
    found, last = {}, model.transformer.h[-1]
    named = {"attention": last.attn, "mlp": last.mlp, "residual stream": last}
    hooks = [m.register_forward_hook(lambda m, x, out, name=name: found.update({name: out}))
             for name, m in named.items()]
    found["logits"] = model(x)[0]
    for hook in hooks:
        hook.remove()
    return {name: out.detach() for name, out in found.items()}


def coordinate_check(kind: str, width: int, learning_rate: float, seed: int) -> Iterator[dict]:
    """Rows {parametrization, n_embd, seed, step, activation, moved}: rms of the change since step 0."""
    torch.manual_seed(seed)
    model = GPT(GPTConfig(n_layer=3, n_head=2, n_embd=width, block_size=32, vocab_size=VOCAB,
                          parametrization=kind, base_width=WIDTHS[0]))
    x = torch.randint(VOCAB, (8, 33), generator=torch.Generator().manual_seed(seed))
    groups = [g | {"lr": learning_rate * g["lr_scale"]} for g in model.optimizer_groups(0.0)]
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
    wanted = (kind, activation, STEPS)
    rows = [r for r in rows if (r["parametrization"], r["activation"], r["step"]) == wanted]
    return float(np.polyfit(np.log([r["n_embd"] for r in rows]), np.log([r["moved"] for r in rows]), 1)[0])


def transfer_table(folder: Path) -> list[dict]:
    """Rows {parametrization, n_embd, learning_rate, seed, val_loss} of finished runs. Raises UserError."""
    rows, problems = logs.parse_study(folder)
    for problem in problems:
        print(problem)
    kind = {r["run"]: load_json(folder / r["run"] / "config.json")["parametrization"] for r in rows}
    keys = ("n_embd", "learning_rate", "seed", "val_loss")
    return sorted(({"parametrization": kind[r["run"]]} | {k: r[k] for k in keys} for r in rows),
                  key=lambda r: (KINDS.index(r["parametrization"]), *(r[k] for k in keys)))


def best_rates(rows: list[dict], kind: str) -> dict[int, float]:
    """{width: the learning rate of the lowest loss}."""
    own = sorted((r for r in rows if r["parametrization"] == kind), key=lambda r: -r["val_loss"])
    return {r["n_embd"]: r["learning_rate"] for r in own}      # the lowest comes last


def table_text(rows: list[dict], kind: str) -> str:
    """Losses by width (rows) and learning rate (columns), the best of each width marked."""
    own = {(r["n_embd"], r["learning_rate"]): r["val_loss"] for r in rows if r["parametrization"] == kind}
    rates, best = sorted({rate for _, rate in own}), best_rates(rows, kind)
    lines = [f"{kind:>8}" + "".join(f"{rate:>9g}" for rate in rates)]
    for width in sorted(best):
        cells = [f"{own[width, rate]:.3f}" + "*" * (rate == best[width]) if (width, rate) in own else ""
                 for rate in rates]
        lines.append(f"d {width:>6}" + "".join(f"{cell:>9}" for cell in cells))
    moves = np.ptp(np.log2(list(best.values())))
    lines.append(f"the best learning rate moves by a factor {2 ** moves:.3g} over widths {min(best)} to "
                 f"{max(best)}")
    return "\n".join(lines)


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scaling.recipe.transfer", description=__doc__.splitlines()[0])
    parser.add_argument("study", help="out/transfer, trained by scaling/sweeps/transfer.py")
    folder = Path(parser.parse_args(args).study)
    table = transfer_table(folder)
    if not table:
        raise UserError(f"{folder} holds no finished run; train scaling/sweeps/transfer.py first")
    rows = [row for kind in KINDS for width in WIDTHS for seed in range(3)
            for row in coordinate_check(kind, width, 0.008, seed)]
    write_table(folder / "coordinates.csv", rows, list(rows[0]))
    write_table(folder / "transfer.csv", table, list(table[0]))
    for kind in KINDS:
        print(table_text(table, kind))
    for name in ("attention", "mlp", "residual stream", "logits"):
        exponents = (f"width^{growth(rows, kind, name):.2f} under {kind}" for kind in KINDS)
        print(f"{name} moves as " + ", ".join(exponents))
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
