"""Which rows of a table of runs a fit may use, and why not the others."""
from collections.abc import Iterable

import numpy as np

from config.settings import RECIPE
from runtime.basics import UserError, nearest
from scaling.laws import counts
from scaling.laws.solver import clusters, seed_noise

# Two rows are one experiment where N, D and these columns are equal: the shape, and the recipe but for
# min_lr. (A column that a table lacks separates nothing. What follows from the horizon, as warmup_iters does,
# is empty or equal where N and D are.) Rows of one experiment that are equal in RATE too are one setting:
# they differ in the seed alone. Of the settings of an experiment a fit uses the one with the best rates. Left
# out, since seeds may differ in them:
# - the ways to say a horizon (max_iters, target_tokens, target_flops, tokens_per_param, epochs): D says it;
# - what is evaluated and logged, and when (eval_iters, eval_interval, log_interval): training is the same.
SETTINGS = ("n_layer", "n_head", "n_embd", "block_size", "batch_tokens", "schedule", "unique_tokens",
            *(name for name in RECIPE if name != "min_lr"))
RATE = ("learning_rate", "min_lr")
ONE_OF = ("dataset", "tokenizer", "config")    # losses do not compare across these: a table holds one of each
MAX_ROWS = 5000                                # more rows than this would not sharpen a surface
AS_GIVEN = "as given"                          # the convention of a column `params` or `flops`
Array = np.ndarray


# ---- Dropping and telling are one call. ----

def rows_text(rows: Array) -> str:
    """'rows 3, 8, 12, 13, 14 and 5 more' for zero-based data rows."""
    text = ", ".join(str(r + 1) for r in rows[:5])
    if len(rows) > 5:
        text += f" and {len(rows) - 5} more"
    return f"row {text}" if len(rows) == 1 else f"rows {text}"


class Kept:
    """Which of n rows are still in use, as a mask; `notes` say how many went, why, and which."""

    def __init__(self, n: int, what: str = "rows"):
        self.mask = np.ones(n, bool)
        self.what = what
        self.notes = []

    def drop(self, bad: Array, why: str) -> None:
        """Drop the rows that the mask `bad` (n,) marks, and note it, unless they are gone already."""
        gone = np.flatnonzero(bad & self.mask)
        if len(gone):
            self.notes.append(f"dropped {len(gone)} of {len(bad)} {self.what}: {why} ({rows_text(gone)})")
            self.mask[gone] = False

    def keep(self, rows: Array, why: str) -> None:
        """Drop all but the rows with these numbers."""
        self.drop(~np.isin(np.arange(len(self.mask)), rows), why)


def groups(columns: Iterable[Array]) -> Array:
    """The index of each row's group (n,): rows of one group are equal in every column (n,), nan to nan."""
    group = 0
    for column in columns:
        if column.dtype == object:
            column = column.astype(str)
        code = np.unique(column, return_inverse=True)[1]
        group = np.unique(group * len(code) + code, return_inverse=True)[1]
    return group


def best_rates(table: dict, N: Array, D: Array, L: Array, rows: Array) -> tuple[Array, Array]:
    """(those of `rows` at the learning rate that was best for their experiment on average, their settings).

    A setting is a number: rows of one differ in nothing but the seed. Raises UserError for a learning rate
    that is no number.
    """
    used = {name: v[rows] for name, v in table.items()}
    experiment = groups([N[rows], D[rows], *(used[c] for c in SETTINGS if c in used)])
    setting = groups([experiment, *(used[c] for c in RATE if c in used)])
    if "learning_rate" not in used or "run" in used and len(set(used["run"])) < len(rows):
        return rows, setting                           # the row of a curve is no finished run
    counts.column(used, "learning_rate", "the fit")
    mean = (np.bincount(setting, L[rows]) / np.bincount(setting))[setting]
    order = np.lexsort((mean, experiment))             # stable: of equally good rates the first goes first
    first = order[np.unique(experiment[order], return_index=True)[1]]
    best = setting == setting[first][experiment]
    return rows[best], setting[best]


# ---- From the table to the arrays that fits use. ----

def choose_params(table: dict, convention: str | None) -> tuple[Array, str]:
    """(N, the name of its convention): what was asked, else the column `params`, else the default."""
    if convention in (None, AS_GIVEN):
        if "params" in table:
            return counts.column(table, "params", "the fit"), AS_GIVEN
        if not any(name.startswith("params_") for name in table):
            raise UserError(f"no column 'params'{nearest('params', table)}; the fit needs params,tokens,loss")
        if "params_head" not in table and "params_non_embedding" in table:
            raise UserError("no column 'params_head', so the default N (non_embedding_plus_head) cannot be "
                            "counted; pass --params=non_embedding to leave the head out")
        convention = counts.DEFAULT_PARAMS
    return counts.params(table, convention), convention


def choose_flops(table: dict, N: Array, D: Array, convention: str | None, params: str) -> tuple[Array, str]:
    """(C, the name of its convention): what was asked, else the column `flops` as it is, else 6 N D."""
    if convention in (None, AS_GIVEN) and "flops" in table:
        return counts.column(table, "flops", "the fit"), AS_GIVEN
    if convention in (None, AS_GIVEN, "6nd"):
        return 6 * N * D, "6nd"
    if params == AS_GIVEN:
        params = counts.DEFAULT_PARAMS
    return counts.flops(table, convention, params), convention


def check_one(table: dict) -> None:
    """Raise UserError when the table mixes data sets, tokenizers or configurations."""
    for name in ONE_OF:
        found = sorted(set(map(str, table.get(name, ()))))
        if len(found) > 1:
            shown = ", ".join(found[:3])
            if len(found) > 3:
                shown += ", ..."
            raise UserError(f"column {name!r} holds {len(found)} values ({shown}): their losses do not "
                            "compare; keep one")


def select(table: dict, params: str | None = None, flops: str | None = None) -> dict:
    """The arrays that the fits use: N, D, C, L, run, budget, U (unique tokens), epochs; None where absent.

    Rows without a loss (or with an infinite one: diverged), at zero tokens, or twice in the table are
    dropped, and so are all but the best learning rate of an experiment: `notes` say how many of `rows_read`
    went, `rows` are the numbers of the others, and `table` holds these. Negative numbers and mixed data sets
    raise UserError. `add_runs` names the other keys.
    """
    check_one(table)
    name = "loss" if "loss" in table else "val_loss"
    if name not in table:
        raise UserError(f"no column 'loss' or 'val_loss'{nearest('loss', table)}; the fit needs "
                        "params,tokens,loss")
    L = counts.column(table, name, "the fit")
    if not len(L):
        raise UserError("the table has no rows; run the sweep first")
    N, params = choose_params(table, params)
    said = []
    if "tokens" not in table and "flops" in table:
        said = ["no column 'tokens': D is taken to be C/(6 N)"]
        table = table | {"tokens": counts.column(table, "flops", "the fit") / (6 * N)}
    D = counts.column(table, "tokens", "the fit")
    C, flops = choose_flops(table, N, D, flops, params)
    kept = Kept(len(L))
    kept.notes += said
    for label, v in ((name, L), ("params", N), ("tokens", D), ("flops", C)):
        if (v < 0).any():
            fix = ", or fit losses of any sign with --residuals=linear" if label == name else ""
            where = rows_text(np.flatnonzero(v < 0))
            raise UserError(f"{label} is negative in {where}; mend or remove it{fix}")
        kept.drop(np.isnan(v), f"{label} is missing")
        kept.drop(np.isinf(v), f"{label} is infinite (diverged)")
        kept.drop(v == 0, f"{label} is zero")
        kept.drop((v > 1e40) | (v < 1e-6), f"{label} is outside 1e-6 to 1e40, where no law can be computed")
    first = np.unique(groups(table.values()), return_index=True)[1]
    kept.keep(first, "the same row stands earlier in the table")
    if not kept.mask.any():
        raise UserError("no usable row is left: " + "; ".join(kept.notes))
    rows, setting = best_rates(table, N, D, L, np.flatnonzero(kept.mask))
    kept.keep(rows, "another learning rate was better at the same size and tokens")
    data = {"N": N[rows], "D": D[rows], "C": C[rows], "L": L[rows], "setting": setting, "rows": rows,
            "loss_column": name, "params": params, "flops": flops, "rows_read": len(L), "notes": kept.notes,
            "curve_notes": [], "along": {}, "table": {name: v[rows] for name, v in table.items()}}
    for key, column in (("budget", "budget"), ("U", "unique_tokens"), ("epochs", "epochs")):
        data[key] = counts.column(table, column, "the fit")[rows] if column in table else None
    add_runs(data)
    return data


def add_runs(data: dict) -> None:
    """Add to `select`'s data what is known of its runs.

    `run` has their names (or is None), `last` holds the row with the most tokens of each run, `curves` says
    whether runs have several rows, `setting` numbers what the last rows tried (equal but for the seed),
    `seed_noise` is the standard deviation of log-loss within a setting with `seed_df` degrees of freedom, and
    `some` are the rows that a surface is fitted to.
    """
    n = len(data["L"])
    data["run"] = None
    if "run" in data["table"]:
        data["run"] = data["table"]["run"].astype(str).astype(object)
    group = clusters(data["run"], n)
    order = np.lexsort((data["D"], group))
    ends = np.append(np.diff(group[order]) > 0, True)
    data["last"] = last = np.sort(order[ends])
    data["curves"] = len(last) < n
    if data["curves"]:
        data["notes"].append(f"{n} rows of {len(last)} runs: intermediate checkpoints are used, which is "
                             "sound only where the schedule does not depend on the horizon (constant or WSD)")
    data["setting"] = data["setting"][last]
    data["seed_noise"], data["seed_df"] = seed_noise(data["setting"], np.log(data["L"][last]))
    data["some"] = np.arange(n)
    if n > MAX_ROWS:
        data["some"] = thin(group, order, data["curves"])
        data["notes"].append(f"the surface is fitted to {len(data['some'])} of {n} rows, evenly spread")


def thin(group: Array, order: Array, curves: bool) -> Array:
    """About MAX_ROWS of the rows: of each curve evenly over log D, of single runs every so many."""
    if not curves:
        return np.sort(order[np.linspace(0, len(order) - 1, MAX_ROWS).astype(int)])
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    each = max(MAX_ROWS // len(parts), 5)
    spread = [part[np.unique(np.geomspace(1, len(part), each).astype(int)) - 1] for part in parts]
    return np.sort(np.concatenate(spread))


def final_runs(table: dict, params: str | None = None) -> dict:
    """N, D, C, L (n,) and names `run` (or None) of the finished runs that a fit uses. Raises UserError."""
    data = select(table, params)
    found = {key: data[key][data["last"]] for key in "NDCL"}
    found["run"] = None if data["run"] is None else data["run"][data["last"]]
    return found


# ---- Learning curves beside the table. ----

def along(data: dict, schedule: Array | None, curves: dict) -> dict:
    """N, D, C, L, run (n,) of the validation losses along the runs, before the last; {} where there are none.

    A loss halfway is that of a shorter run only where the schedule has not begun to end: of WSD runs only the
    rows at the peak rate are used. What a branch repeats of its trunk is used once. What is left out is noted
    in data["curve_notes"].
    """
    if "run" not in curves:
        raise UserError(f"no column 'run'{nearest('run', curves)}, which the curves need")
    tokens = counts.column(curves, "tokens", "the curves")
    L = counts.column(curves, "val_loss", "the curves")
    run = curves["run"].astype(str)
    final = {} if data["run"] is None else {data["run"][i]: i for i in data["last"]}
    at = np.array([final.get(name, -1) for name in run], int)              # the row of each one's run
    D = data["D"][at]
    kept = Kept(len(L), "rows of the curves")
    kept.drop(at < 0, "their runs are not fitted")
    kept.drop(~np.isfinite(L), "there is no validation loss")
    kept.drop(~((0 < tokens) & (tokens < D)), "they are not halfway along their runs")
    if schedule is not None and "lr" in curves:
        rate = counts.column(curves, "lr", "the curves")
        peak = np.full(len(data["D"]) + 1, np.nan)     # the last one is of runs that are not fitted
        np.fmax.at(peak, at, rate)                     # by run, over the rows that have a rate
        cooling = ~(rate >= 0.999 * peak[at])
        kept.drop(cooling & (schedule[data["rows"][at]] == "wsd"), "the rate is below its peak")
    part = {"N": data["N"][at], "D": tokens, "C": data["C"][at] * tokens / D, "L": L, "run": run}
    order = np.argsort(-D, kind="stable")              # a trunk before its branches
    order = order[kept.mask[order]]
    same = groups([part["N"], part["C"], L])
    first = order[np.unique(same[order], return_index=True)[1]]
    kept.keep(first, "a run that shares its trunk has them too")
    data["curve_notes"] = kept.notes
    return {name: v[first] for name, v in part.items()} if len(first) else {}
