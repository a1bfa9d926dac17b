"""Batch and learning rate for a dataset, from two or more small sizes: a rule, and a config that follows it.

    python -m scaling.recipe.tune out/tune [--write=config/tuned.py]

The study (scaling/sweeps/tune.py) trains each width on tokens D in proportion to its parameters, at several
batches and rates. The best rate of a batch is the vertex of a parabola in log rate. A width's batch is the
largest within 1 % of the best loss at equal D, interpolated between those tried (Bi et al. 2024, section 3.1,
also take what is near the best). The batch is then a power law of D, as in StepLaw (Li et al. 2025); the rate
stays that of the widest, as it should under muP, and how far it moved is reported. Two widths leave no error
estimate; a third shows what the exponent is worth.
"""
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import numpy as np

from config import schema
from config.settings import Config
from runtime.basics import Parser, UserError, exit_cleanly
from scaling import ground
from scaling.laws import counts
from scaling.laws.forms import checked
from scaling.laws.profiles import parabola
from scaling.report import amount
from scaling.tables.csv import read_table

SLACK = 0.01                               # loss given up for fewer steps
COLUMNS = "n_embd batch_tokens learning_rate tokens val_loss".split()
SAME = "dataset tokenizer n_layer n_head block_size schedule".split()


def read_grid(path: Path) -> tuple[dict, dict]:
    """({width: {batch in tokens: {rate: [loss of each seed]}}}, {width: D}) of a runs.csv. UserError."""
    table = read_table(path)
    for name in SAME:
        if len(set(table.get(name, ()))) > 1:
            raise UserError(f"{path}: column {name!r} holds several values; keep the rows of one")
    values = np.column_stack(checked(**{name: counts.column(table, name, "tuning") for name in COLUMNS}))
    grid = {}
    for d, batch, rate, _, loss in sorted(values.tolist()):
        grid.setdefault(int(d), {}).setdefault(int(batch), {}).setdefault(rate, []).append(loss)
    tokens = {}
    for d in grid:
        D = values[values[:, 0] == d, COLUMNS.index("tokens")]
        if D.max() > 1.03 * D.min():                      # less is from rounding to whole steps
            raise UserError(f"{path}: width {d} has runs of {D.min():,.0f} to {D.max():,.0f} tokens; "
                            "keep those of one length")
        tokens[d] = float(D.mean())
    return grid, tokens


def best_rate(losses: dict[float, list[float]]) -> tuple[float, float]:
    """(rate, loss) at the vertex of a parabola in log rate through the best mean loss and its two neighbours.

    Farther off the loss is no parabola. UserError where the best has only one neighbour.
    """
    rates = sorted(losses)
    means = [np.mean(losses[rate]) for rate in rates]
    i = int(np.argmin(means))
    if i in (0, len(rates) - 1):
        raise UserError(f"the best rate, {rates[i]:.3g}, is the {'largest' if i else 'smallest'} tried")
    near = slice(i - 1, i + 2)
    _, log_rate, loss = parabola(np.log(rates[near]), np.array(means[near]))
    return float(np.exp(log_rate)), float(loss)


def best_batch(batches: np.ndarray, rates: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """(batch, rate): the largest batch within SLACK of the best loss, and its rate, both log-interpolated.

    UserError where no larger batch was tried, or the loss still falls towards smaller ones.
    """
    excess = losses / losses.min() - 1
    if excess[-1] <= SLACK:
        raise UserError(f"the largest batch, {batches[-1]:.0f} tokens, is within {SLACK:.0%} of the best")
    i = int(np.flatnonzero(excess <= SLACK)[-1])
    if i == 0:
        raise UserError(f"no batch but the smallest, {batches[0]:.0f} tokens, is within "
                        f"{SLACK:.0%} of the best")
    x = np.interp(SLACK, excess[i:i + 2], np.log(batches[i:i + 2]))
    return float(np.exp(x)), float(np.exp(np.interp(x, np.log(batches), np.log(rates))))


def tune(grid: dict, tokens: dict) -> tuple[list[dict], list[dict]]:
    """(rows {width, D, batch, rate, loss} as measured, {width, D, batch, rate} chosen for each width).

    UserError names every width and batch whose best lies at an edge of the grid.
    """
    rows = []
    chosen = []
    edges = []
    for d, batches in grid.items():
        found = []
        for B, losses in batches.items():
            try:
                found.append((B, *best_rate(losses)))
            except UserError as e:
                edges.append(f"width {d}, {B} tokens a step: {e}")
        rows += [dict(width=d, D=tokens[d], batch=B, rate=rate, loss=loss) for B, rate, loss in found]
        if len(found) < len(batches):
            continue
        try:
            batch, rate = best_batch(*np.array(found).T)
            chosen.append(dict(width=d, D=tokens[d], batch=batch, rate=rate))
        except UserError as e:
            edges.append(f"width {d}: {e}")
    if edges:
        raise UserError("; ".join(edges) + ": extend the grid there in the sweep file, and run it again")
    return rows, chosen


class Rule(NamedTuple):
    """batch (tokens/D)^p tokens a step; the rate of the widest, which is `moved` times the narrowest's."""
    D: float                                   # the most tokens tried
    batch: float
    p: float
    rate: float
    moved: float


def fit_rule(chosen: list[dict]) -> Rule:
    """The batch as a power law of D through what was chosen for each width. Raises UserError."""
    D = np.array([c["D"] for c in chosen])
    if len(D) < 2 or D.max() < 1.5 * D.min():
        raise UserError("a rule needs two widths, one with 1.5 times the tokens or more; add it to the sweep")
    p, log_batch = np.polyfit(np.log(D / D.max()), np.log([c["batch"] for c in chosen]), 1)
    rate = chosen[-1]["rate"]
    return Rule(D.max(), np.exp(log_batch), p, rate, rate / chosen[0]["rate"])


def report(rows: list[dict], chosen: list[dict], rule: Rule) -> str:
    lines = [f"{'width':>6}{'D':>12}{'batch':>8}{'rate':>9}{'loss':>9}   (tokens; best rate of each batch)"]
    for row in rows + chosen:
        end = f"{row['loss']:>9.4f}" if "loss" in row else f"   <- the largest batch within {SLACK:.0%}"
        lines.append("{width:>6}{D:>12,.0f}{batch:>8.0f}{rate:>9.4f}".format(**row) + end)
    lines.append(f"batch = {rule.batch:.3g} (D / {rule.D:.3g})^{rule.p:.2f} tokens; rate = {rule.rate:.3g}")
    lines.append(f"from width {chosen[0]['width']} to {chosen[-1]['width']}, with D and batch, the best "
                 f"rate moves by a factor {rule.moved:.2f} (muP: 1 where width alone grows)")
    return "\n".join(lines)


def recipe(path: Path) -> dict:
    """The settings of the widest run of a runs.csv that are not train.py's defaults. Raises UserError."""
    table = read_table(path)
    if "parametrization" not in table:
        raise UserError(f"{path} lacks the recipe of its runs, as those of older versions; train the study "
                        "again")
    widest = np.argmax(table["n_embd"])
    row = {name: values[widest] for name, values in table.items()}
    names = [*SAME[2:], "n_embd", "eval_iters", *schema.RECIPE]
    names.remove("vocab_size")                          # the dataset's
    told = ground.recipe(row, names)
    found = {name: value for name, value in told.items() if value != getattr(Config, name)}
    return {"dataset": row["dataset"]} | found


def config_text(path: str, folder: Path, rule: Rule) -> str:
    """A config for train.py: the recipe of the study's widest run, with batch and rate by the rule."""
    own = recipe(folder / "runs.csv")
    block_size = own.get("block_size", Config.block_size)
    command = f"python -m scaling.recipe.tune {folder}"
    lines = [f"# python train.py {path}",
             f"# Batch and rate as `{command}` found them at up to {rule.D:.4g} tokens.",
             "# Change n_embd and target_tokens here: the batch follows, extrapolated beyond those tokens.",
             *(f"{name} = {value!r}" for name, value in own.items()),
             f"target_tokens = {rule.D:.4g}",
             f"batch_size = max(1, round({rule.batch:.4g} * (target_tokens / {rule.D:.4g}) ** {rule.p:.4g}"
             f" / {block_size}))",
             f"learning_rate = {rule.rate:.4g}",
             f"out_dir = 'out/{Path(path).stem}'"]
    return "\n".join(lines) + "\n"


def main(args: list[str] | None = None) -> int:
    parser = Parser("python -m scaling.recipe.tune", __doc__)
    parser.add_argument("study", help="out/tune, trained by scaling/sweeps/tune.py")
    parser.add_argument("--write", help="the config file to write, e.g. config/tuned.py")
    a = parser.parse_args(args)
    folder = Path(a.study)
    if not (folder / "runs.csv").exists():
        raise UserError(f"{folder} has no runs.csv; run: python -m scaling.sweep scaling/sweeps/tune.py")
    grid, tokens = read_grid(folder / "runs.csv")
    print(f"{folder}: {amount(len(grid), 'width')}, {sum(map(len, grid.values()))} batches, "
          f"{sum(len(rates) for batches in grid.values() for rates in batches.values())} rates", flush=True)
    rows, chosen = tune(grid, tokens)
    rule = fit_rule(chosen)
    print(report(rows, chosen, rule))
    if not a.write:
        print(f"next: python -m scaling.recipe.tune {quote(str(folder))} --write=config/tuned.py")
        return 0
    ground.write_new(a.write, config_text(a.write, folder, rule), "config")
    print(f"wrote {a.write}\nnext: python train.py {quote(a.write)}")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
