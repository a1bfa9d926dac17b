"""Which rows of a table of runs a fit may use, and why not the others."""
import numpy as np

from runtime.basics import UserError, nearest
from scaling.laws import counts
from scaling.laws.solver import clusters, seed_noise

# What makes two runs the same experiment, apart from their size, data, learning rate and seed.
SETTINGS = ("n_layer", "n_head", "n_embd", "block_size", "batch_tokens", "schedule", "unique_tokens")
ONE_OF = ("dataset", "tokenizer", "config")    # losses do not compare across these: a table holds one of each
MAX_ROWS = 5000                                # more rows than this would not sharpen a surface


def rows_text(rows: np.ndarray) -> str:
    """'rows 3, 8, 12 and 5 more' for zero-based data rows."""
    shown = ", ".join(str(r + 1) for r in rows[:5])
    return f"row{'s' * (len(rows) > 1)} {shown}" + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


def choose_params(table: dict, convention: str | None) -> tuple[np.ndarray, str]:
    """(N, the name of its convention): what was asked, else the column `params` as it is, else the
    default."""
    if convention is None and "params" in table:
        return counts.column(table, "params", "the fit"), "as given"
    counts.check_name(convention or counts.DEFAULT_PARAMS, counts.PARAMS, "parameter")
    if convention is None and "params_head" not in table and "params_non_embedding" in table:
        raise UserError("no column 'params_head', so the default N (non_embedding_plus_head) cannot be "
                        "counted; pass --params=non_embedding to leave the head out")
    if not any(c.startswith("params_") for c in table):
        raise UserError(f"no column params_total or the like, as --params={convention} needs"
                        if convention else f"no column 'params'{nearest('params', table)}; the fit needs "
                        "params,tokens,loss")
    convention = convention or counts.DEFAULT_PARAMS
    return counts.params(table, convention), convention


def choose_flops(table: dict, N: np.ndarray, D: np.ndarray, convention: str | None,
                 params: str) -> tuple[np.ndarray, str]:
    """(C, the name of its convention): what was asked, else the column `flops` as it is, else 6 N D."""
    if convention is None and "flops" in table:
        return counts.column(table, "flops", "the fit"), "as given"
    if convention in (None, "6nd"):
        return 6 * N * D, "6nd"
    params = counts.DEFAULT_PARAMS if params == "as given" else params
    return counts.flops(table, convention, params), convention


def select(table: dict, params: str | None = None, flops: str | None = None) -> dict:
    """The arrays that the fits use: N, D, C, L, run, budget, U, `rows` of the table, and `notes`.

    Rows without a loss (or with an infinite one: diverged), at zero tokens, or twice in the table are
    dropped, and so are all but the best learning rate of a setting: each is noted. Negative numbers and mixed
    data sets raise UserError.
    """
    check_one(table)
    name = "loss" if "loss" in table else "val_loss"
    if name not in table:
        raise UserError(f"no column 'loss' or 'val_loss'{nearest('loss', table)}; the fit needs "
                        "params,tokens,loss")
    L, D = counts.column(table, name, "the fit"), counts.column(table, "tokens", "the fit")
    if not len(L):
        raise UserError("the table has no rows; run the sweep first")
    N, params = choose_params(table, params)
    C, flops = choose_flops(table, N, D, flops, params)
    keep, notes = np.ones(len(L), bool), []

    def drop(bad, why):
        if (bad & keep).any():
            notes.append(f"dropped {(bad & keep).sum()} of {len(L)} rows: {why} "
                         f"({rows_text(np.flatnonzero(bad & keep))})")
            keep[bad] = False
    for label, v in ((name, L), ("params", N), ("tokens", D), ("flops", C)):
        if (v < 0).any():
            raise UserError(f"{label} is negative in {rows_text(np.flatnonzero(v < 0))}; mend or remove it")
        drop(np.isnan(v), f"{label} is missing")
        drop(np.isinf(v), f"{label} is infinite (diverged)")
        drop(v == 0, f"{label} is zero")
        drop((v > 1e40) | (v < 1e-6), f"{label} is outside 1e-6 to 1e40, where no law can be computed")
    drop(repeats(table), "the same row stands earlier in the table")
    drop(worse_rates(table, N, D, L, keep), "another learning rate was better at the same size and tokens")
    if not keep.any():
        raise UserError("no usable row is left: " + "; ".join(notes))
    data = {"N": N[keep], "D": D[keep], "C": C[keep], "L": L[keep], "rows": np.flatnonzero(keep),
            "loss_column": name, "params": params, "flops": flops, "notes": notes,
            "run": np.array([str(r) for r in table["run"]], object)[keep] if "run" in table else None}
    for key, column in (("budget", "budget"), ("U", "unique_tokens")):
        data[key] = counts.column(table, column, "the fit")[keep] if column in table else None
    return add_runs(data, table)


def check_one(table: dict) -> None:
    """Raise UserError when the table mixes data sets, tokenizers or configurations."""
    for name in ONE_OF:
        found = sorted(set(map(str, table.get(name, ()))))
        if len(found) > 1:
            raise UserError(f"column {name!r} holds {len(found)} values ({', '.join(found[:3])}"
                            f"{', ...' * (len(found) > 3)}): their losses do not compare; keep one")


def repeats(table: dict) -> np.ndarray:
    """True for each row that equals an earlier one in every column."""
    seen, again = set(), []
    for row in zip(*(v.tolist() for v in table.values())):
        key = tuple("nan" if v != v else v for v in row)
        again.append(key in seen)
        seen.add(key)
    return np.array(again, bool)


def worse_rates(table: dict, N: np.ndarray, D: np.ndarray, L: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """True for finished runs whose setting (N, D, shape, batch) did better, on average, at another rate."""
    worse, losses = np.zeros(len(L), bool), {}
    if "learning_rate" not in table or ("run" in table and len(set(table["run"])) < len(L)):
        return worse
    rate = counts.column(table, "learning_rate", "the fit")
    keys = list(zip(N, D, *(table[c].tolist() for c in SETTINGS if c in table)))
    keys = [tuple("nan" if v != v else v for v in key) for key in keys]
    for i in np.flatnonzero(keep):
        losses.setdefault(keys[i], {}).setdefault(rate[i], []).append(L[i])
    for i in np.flatnonzero(keep):
        mine = losses[keys[i]]
        worse[i] = rate[i] != min(mine, key=lambda r: np.mean(mine[r]))
    return worse


def add_runs(data: dict, table: dict) -> dict:
    """Add `last`, the row with the most tokens of each run; `curves`, do runs have several rows; the noise of
    seeds; and `some`, the rows for a surface."""
    n = len(data["L"])
    group = clusters(data["run"], n)
    order = np.lexsort((data["D"], group))
    data["last"] = last = np.sort(order[np.append(np.diff(group[order]) > 0, True)])
    data["curves"] = len(last) < n
    if data["curves"]:
        data["notes"].append(f"{n} rows of {len(last)} runs: intermediate checkpoints are used, which is "
                             "sound only where the schedule does not depend on the horizon (constant or WSD)")
    settings = [table[c][data["rows"]][last] for c in (*SETTINGS, "learning_rate") if c in table]
    key = np.array([[str(v) for v in row] for row in zip(data["N"][last], data["D"][last], *settings)])
    data["setting"] = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)     # equal but for the seed
    data["seed_noise"], data["seed_df"] = seed_noise(key, np.log(data["L"][last]))
    data["some"] = np.arange(n) if n <= MAX_ROWS else thin(group, order, data["curves"])
    if n > MAX_ROWS:
        data["notes"].append(f"the surface is fitted to {len(data['some'])} of {n} rows, evenly spread")
    return data


def thin(group: np.ndarray, order: np.ndarray, curves: bool) -> np.ndarray:
    """About MAX_ROWS of the rows: of each curve evenly over log D, of single runs evenly over D."""
    if not curves:
        return np.sort(order[np.linspace(0, len(order) - 1, MAX_ROWS).astype(int)])
    parts = np.split(order, np.flatnonzero(np.diff(group[order])) + 1)
    each = max(MAX_ROWS // len(parts), 5)
    spread = [p[np.unique(np.geomspace(1, len(p), each).astype(int)) - 1] for p in parts]
    return np.sort(np.concatenate(spread))


def along(data: dict, schedule: np.ndarray | None, curves: dict) -> dict:
    """N, C, L, run (n,) of the validation losses along the runs, before the last; {} where there are none.

    A loss halfway is that of a shorter run only where the schedule has not begun to end: of WSD runs only the
    rows at the peak rate are used. What a branch repeats of its trunk is used once.
    """
    if "run" not in curves:
        raise UserError(f"no column 'run'{nearest('run', curves)}, which the curves need")
    run, (tokens, L) = curves["run"], (counts.column(curves, k, "the curves") for k in ("tokens", "val_loss"))
    final = {data["run"][i]: i for i in data["last"]} if data["run"] is not None else {}
    known = np.isin(run.astype(str), list(final)) & np.isfinite(L)
    run, tokens, L = run[known], tokens[known], L[known]
    at = np.array([final[str(r)] for r in run], int)
    keep = (tokens > 0) & (tokens < data["D"][at])
    if schedule is not None and "lr" in curves:
        peak = {r: np.nanmax(curves["lr"][curves["run"] == r]) for r in np.unique(run)}
        hot = curves["lr"][known] >= 0.999 * np.array([peak[r] for r in run])
        keep &= hot | (schedule[data["rows"][at]] != "wsd")
    N, C = data["N"][at], data["C"][at] * tokens / data["D"][at]
    order = np.argsort(-data["D"][at], kind="stable")           # a trunk before its branches
    order = order[keep[order]]
    rows = order[np.unique(np.stack([N, C, L])[:, order], axis=1, return_index=True)[1]]
    return {"N": N[rows], "C": C[rows], "L": L[rows], "run": run[rows].astype(str)} if len(rows) else {}
