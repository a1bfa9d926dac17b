"""Which rows of a table of runs a fit may use, and why not the others."""
from collections.abc import Iterable

import numpy as np

from config.schema import RECIPE
from runtime.basics import UserError, nearest
from scaling.laws import counts
from scaling.laws.solver import clusters, seed_noise
from scaling.tables import columns, doubts
from scaling.tables.columns import HYPER, SEED, groups, is_name, is_text, plain, rows_text, some

# Rows of one N and D are one setting, and differ in the seed alone, where they are equal in every column but
# those that name a run or tell what came of it (scaling/tables/columns.py). Of our own columns these make
# settings: the shape, and the recipe. (What follows from the horizon is empty or equal where N and D are.) Of
# the settings that differ in what is tuned, as the learning rate is, a fit uses the best.
SETTINGS = ("n_layer", "n_head", "n_embd", "block_size", "batch_tokens", "schedule", "unique_tokens",
            *(name for name in RECIPE if name != "min_lr"))
ONE_OF = ("dataset", "tokenizer", "config")    # losses do not compare across these: a table holds one of each
MIXED = ("schedule", "parametrization", "arm")     # words that our own studies hold several of, knowingly
SAME_TOKENS = 0.01                             # D differs by no more where steps of a batch were rounded
MAX_ROWS = 5000                                # more rows than this would not sharpen a surface
AS_GIVEN = "as given"                          # the convention of a column `params` or `flops`
Array = np.ndarray


# ---- Dropping and telling are one call. ----

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


def nearly(N: Array, D: Array) -> Array:
    """The index (n,) of each row's N and D, where D may differ a little."""
    order = np.lexsort((D, N))
    apart = (np.diff(N[order]) > 0) | (np.diff(np.log(D[order])) > SAME_TOKENS)
    group = np.empty(len(N), int)
    group[order] = np.append(0, np.cumsum(apart))
    return group


def separate(table: dict, group: Array, used: Iterable[str]) -> list[str]:
    """The columns in which rows of one `group` (n,) differ and that make another setting.

    `used` are the columns that a fit takes for something else, as N.
    """
    found = []
    for name, values in table.items():
        word = plain(name)
        known = name in SETTINGS or HYPER.fullmatch(word)
        free = SEED.fullmatch(word) or columns.RESULT.fullmatch(word) or is_name(name, values)
        if name in used or free and not known:
            continue
        if groups([group, values]).max() > group.max():
            found.append(name)
    return found


def best_of(table: dict, experiment: Array, L: Array, tuned: list[str]) -> tuple[Array, Array]:
    """(a mask (n,) of the rows at the best setting of their experiment, on average, each row's setting).

    Settings of one `experiment` (n,) differ in the columns that are `tuned`. Raises UserError for one of
    these that is no number.
    """
    setting = groups([experiment, *(counts.column(table, name, "the fit") for name in tuned)])
    mean = (np.bincount(setting, L) / np.bincount(setting))[setting]
    order = np.lexsort((mean, experiment))             # stable: of equally good rates the first goes first
    first = order[np.unique(experiment[order], return_index=True)[1]]
    return setting == setting[first][experiment], setting


# ---- Runs of several rows. ----

def are_runs(names: Array, table: dict, N: Array, D: Array, L: Array, used: Iterable[str]) -> bool:
    """Whether the `names` (n,) are those of runs, and not of models or settings that several rows share.

    A run has one size and one seed, and was not trained in two ways at as many tokens; nor do two losses
    make a curve, if they were measured at the same tokens.
    """
    run, at, loss = groups([names]), groups([names, D]), groups([names, D, L])
    apart = [name for name in separate(table, at, used)
             if name in SETTINGS or HYPER.fullmatch(plain(name)) or is_text(table[name])]
    seeds = [name for name in table if SEED.fullmatch(plain(name))]
    several = groups([names, N, *(table[name] for name in apart + seeds)]).max() > run.max()
    return not several and (at.max() > run.max() or loss.max() == at.max())


def run_names(table: dict, N: Array, D: Array, L: Array, used: Iterable[str]) -> Array | None:
    """The name (n,) of each row's run, or None where a row is a run, as far as the table says.

    That is the column `run`, or a number where steps were logged and start anew. `used` are the columns that
    a fit takes, as N.
    """
    if "run" in table:
        names = table["run"].astype(str).astype(object)
        return names if are_runs(names, table, N, D, L, used) else None
    if "step" not in table or is_text(table["step"]):
        return None
    run = columns.runs_of(table["step"], N, 5)
    return None if run is None else run.astype(str).astype(object)


def with_runs(table: dict, N: Array, D: Array) -> tuple[dict, list[str]]:
    """(the table with a column `run`, where another tells curves apart; a note that says which)."""
    if "run" in table:
        return table, []
    for name, values in table.items():
        run = curve_names(plain(name), values, N, D)
        if run is not None:
            return table | {"run": run}, [f"run is the column {name!r}, which tells curves apart"]
    return table, []


def curve_names(word: str, values: Array, N: Array, D: Array) -> Array | None:
    """The name (n,) of each row's run by a column, whose plain name is `word`, if it names curves; else None.

    There are more curves than sizes; each has one size and five rows or more, at other tokens than most of
    the others: else they are a grid. How long runs were to be tells them apart at each size.
    """
    horizon = word.startswith(("tokens_per_param", "chinchilla")) or any(
        word in words.split() for words in columns.HORIZONS.values())
    if not (is_text(values) or horizon or columns.NAME.fullmatch(word) or SEED.fullmatch(word)):
        return None
    name = groups([values, N] if horizon else [values])
    n = name.max() + 1
    one_size = groups([name, N]).max() + 1 == n > groups([N]).max() + 1
    if not one_size or len(N) < 5 * n or groups([name, D]).max() + 1 < len(N) or is_grid(N, D):
        return None
    return (name if horizon else values).astype(str).astype(object)


def is_grid(N: Array, D: Array) -> bool:
    """Whether many rows have the size and the tokens of another."""
    return groups([N, D]).max() + 1 < 0.75 * len(N)


def last_rows(run: Array | None, D: Array) -> Array:
    """A mask (n,) of the rows with the most tokens of their run."""
    group = clusters(run, len(D))
    order = np.lexsort((D, group))
    last = np.zeros(len(D), bool)
    last[order[np.append(np.diff(group[order]) > 0, True)]] = True
    return last


def peak_rates(table: dict, run: Array) -> dict:
    """{column: the peak of its run (n,)} of the columns of learning rates."""
    group = groups([run])
    found = {}
    for name, rate in table.items():
        if columns.RATE.fullmatch(plain(name)) and not is_text(rate):
            peak = np.full(group.max() + 1, np.nan)
            np.fmax.at(peak, group, rate)
            found[name] = peak[group]
    return found


def drop_halfway(kept: Kept, table: dict, run: Array | None, D: Array) -> None:
    """Drop the rows halfway along runs whose learning rate was to fall until their end.

    Where neither a schedule nor a rate is told and all runs end at the same tokens, nothing but these rows
    tells of D: they stay, and `add_runs` says what that rests on.
    """
    rows = np.flatnonzero(kept.mask)
    if run is None:
        return
    halfway = np.zeros(len(D), bool)
    halfway[rows] = ~last_rows(run[rows], D[rows])
    ends = D[rows][~halfway[rows]]
    schedule = table.get("schedule", np.full(len(D), "", object)).astype(str)
    told = not set(schedule[rows]) <= {"", "nan"}
    for name, peak in peak_rates(table, run).items():
        told |= bool((table[name] < 0.9 * peak)[~halfway & kept.mask].any())
    if not told and ends.max() < ends.min() * (1 + SAME_TOKENS):
        return
    steady = np.array([bool(columns.ENDING.search(word)) for word in schedule])
    kept.drop(halfway & ~steady, "halfway along a run is no finished run, unless its schedule is constant or "
              "WSD, as a column 'schedule' would say; the last row of each run is used")


# ---- From the table to the arrays that fits use. ----

def choose_params(table: dict, convention: str | None) -> tuple[Array, str]:
    """(N, the name of its convention): what was asked, else the column `params`, else the default."""
    if convention in (None, AS_GIVEN):
        if "params" in table:
            return counts.column(table, "params", "the fit"), AS_GIVEN
        others = [name for name in table if name.startswith("params_")]
        if not others:
            raise columns.missing("'params'", "params", table)
        if "params_non_embedding" not in table:
            total = "pass --params=total, or " if "params_total" in table else ""
            raise UserError(f"which parameters are N? There are {', '.join(others)}: {total}call one of them "
                            "params")
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


def of_arms(table: dict, values: Array) -> bool:
    """Whether a column follows from the column `arm`, in which a study says that it compares recipes."""
    return "arm" in table and groups([table["arm"], values]).max() == groups([table["arm"]]).max()


def check_text(table: dict) -> None:
    """Raise UserError when losses are of several validation texts, by the column that our own runs have."""
    known = set(map(str, table.get("val_sha256", ()))) - {"", "nan", "None"}
    if len(known) > 1:
        raise UserError(f"column 'val_sha256' holds {len(known)} values ({', '.join(sorted(known))}): losses "
                        "on different validation texts do not compare; prepare the texts with --val_from")


def check_one(table: dict) -> None:
    """Raise UserError when the table mixes data sets, tokenizers, configurations, optimizers or families."""
    check_text(table)
    for name, values in table.items():
        kind = columns.KINDS.fullmatch(plain(name)) and is_text(values) and not of_arms(table, values)
        if (kind or name in ONE_OF) and len(set(map(str, values))) > 1:
            raise UserError(f"column {name!r} holds {some(values)}: their losses do not compare; keep one, "
                            f"with --where={name}={values[0]}")


def by_arm(table: dict, column: str) -> dict[str, dict]:
    """{arm: its rows of `table`}, in their order; `column` says which arm a row belongs to.

    Raises UserError where there is none such, or one arm only, and for arms on different data: their losses
    do not compare, unless the data are what the arms are.
    """
    if column not in table:
        raise UserError(f"no column {column!r}{nearest(column, table)}, which --arm names; there are "
                        f"{columns.listed(table)}")
    arm = table[column].astype(str)
    names = list(dict.fromkeys(arm.tolist()))
    if len(names) < 2:
        raise UserError(f"column {column!r} holds {', '.join(names) or 'nothing'}: name one with two arms or "
                        "more")
    for name in table:
        data = columns.DATA.fullmatch(plain(name))
        if name != column and data and len(set(map(str, table[name]))) > 1:
            raise UserError(f"the arms differ in {name!r}, which holds {some(table[name])}: their losses do "
                            f"not compare; keep one, with --where={name}={table[name][0]}")
    check_text(table)
    rest = {name: values for name, values in table.items() if name != column}
    return {name: {key: values[arm == name] for key, values in rest.items()} for name in names}


def check_words(table: dict, names: list[str]) -> None:
    """Raise UserError where one of the columns `names`, in which rows of one N and D differ, holds words."""
    for name in names:
        if is_text(table[name]) and name not in MIXED and not of_arms(table, table[name]):
            raise UserError(f"rows of the same size and tokens differ in {name!r}, which holds "
                            f"{some(table[name])}: no law goes through all; keep one, with "
                            f"--where={name}={table[name][0]}")


def select(table: dict, params: str | None = None, flops: str | None = None, loss: str | None = None,
           where: Iterable[str] = (), tuned: Iterable[str] = ()) -> dict:
    """The arrays that the fits use: N, D, C, L, run, budget, U (unique tokens), epochs; None where absent.

    `loss` names the column of losses; of the rows those count that meet each COLUMN=VALUE of `where`; of what
    differs in the columns `tuned`, besides those that are known to be tuned, the best counts.

    Rows without a loss (or with an infinite one: diverged), at zero tokens, twice in the table, halfway along
    a run that is finished later, or with worse hyper-parameters than another of their size and tokens are
    dropped: `notes` say how many of `rows_read` went, `rows` are the numbers of the others, and `table` holds
    these. `warnings` doubt what is left. Negative numbers, wrong units and mixed data sets raise UserError.
    `add_runs` names the other keys.
    """
    given = table
    table, notes = columns.renamed(table)
    name, unit, more = columns.choose_loss(table, loss)
    L = counts.column(table, name, "the fit")
    if not len(L):
        raise UserError("the table has no rows; run the sweep first")
    N, params = choose_params(table, params)
    if "tokens" not in table:
        if "flops" not in table:
            raise columns.missing("'tokens'", "tokens", table)
        more = [*more, "no column 'tokens': D is taken to be C/(6 N)"]
        table = table | {"tokens": columns.tokens_by(counts.column(table, "flops", "the fit"), N)}
    D = counts.column(table, "tokens", "the fit")
    C, flops = choose_flops(table, N, D, flops, params)
    kept = Kept(len(L))
    kept.notes = notes + more
    if where:
        kept.drop(~columns.only(given | table, where), f"--where={' --where='.join(where)} keeps the others")
    check_one({key: v[kept.mask] for key, v in table.items()})
    for label, v in ((name, L), ("params", N), ("tokens", D), ("flops", C)):
        drop_unusable(kept, label, v)
    used = {"params", "tokens", "flops", "run", "step", name}
    table, more = with_runs(table, N, D)
    kept.notes += more
    run = run_names(table, N, D, L, used)
    drop_repeated(kept, table, curves=run is not None and len(set(run)) < len(run))
    if not kept.mask.any():
        raise UserError("no usable row is left: " + "; ".join(kept.notes))
    data = {"loss_column": name, "unit": unit, "params": params, "flops": flops, "rows_read": len(L),
            "notes": kept.notes, "curve_notes": [], "warnings": [], "along": {}}
    check_units(kept, data, table, N, D, C, L)
    drop_halfway(kept, table, run, D)
    if run is not None:
        table = table | peak_rates(table, run)         # a rate that falls was chosen by its peak
    setting = settle(kept, data, table, run, N, D, L, used, tuned)
    rows = np.flatnonzero(kept.mask)
    data |= {"N": N[rows], "D": D[rows], "C": C[rows], "L": L[rows], "setting": setting[rows], "rows": rows,
             "run": None if run is None else run[rows], "table": {key: v[rows] for key, v in table.items()}}
    for key, column in (("budget", "budget"), ("U", "unique_tokens"), ("epochs", "epochs")):
        data[key] = counts.column(table, column, "the fit")[rows] if column in table else None
    add_runs(data)
    data["warnings"] += doubts.doubts(data)
    return data


def drop_unusable(kept: Kept, label: str, v: Array) -> None:
    """Drop the rows whose `v` (n,) is no number that a law can have. Raises UserError for a negative one."""
    negative = np.flatnonzero(kept.mask & (v < 0))
    if len(negative):
        fix = "" if label in ("params", "tokens", "flops") else ", or fit it with --residuals=linear"
        if fix and (v[kept.mask] < 0).all():           # then less is worse
            fix = "; if these are log-likelihoods, change their sign"
        raise UserError(f"{label} is negative in {rows_text(negative)}; mend or remove it{fix}")
    kept.drop(np.isnan(v), f"{label} is missing")
    kept.drop(np.isinf(v), f"{label} is infinite (diverged)")
    kept.drop(v == 0, f"{label} is zero")
    kept.drop((v > 1e40) | (v < 1e-6), f"{label} is outside 1e-6 to 1e40, where no law can be computed")


def drop_repeated(kept: Kept, table: dict, curves: bool) -> None:
    """Drop the rows that equal an earlier one in all but their names, and when and where they ran.

    Of `curves` the runs are no mere names.
    """
    rows = np.flatnonzero(kept.mask)
    told = [v[rows] for key, v in table.items() if key == "run" and curves
            or not (is_name(key, v) or columns.WHEN.fullmatch(plain(key)))]
    first = np.unique(groups(told), return_index=True)[1]
    kept.keep(rows[first], "the same row stands earlier in the table")


def check_units(kept: Kept, data: dict, table: dict, N: Array, D: Array, C: Array, L: Array) -> None:
    """Refuse what is in wrong units, drop what is worse than a guess, and note how FLOPs were counted."""
    rows = np.flatnonzero(kept.mask)
    name = data["loss_column"]
    N, D, C, L = (v[rows] for v in (N, D, C, L))
    if not {"study", "run", "commit"} <= set(table):   # our own runs may be too few tokens to learn a thing
        columns.check_counts("params", N, D)
        columns.check_counts("tokens", D, N)
        words = table.get("vocab_size", np.full(len(kept.mask), np.nan))
        most = np.nan if is_text(words) else np.max(words[rows])
        lost, odd = columns.check_loss(name, N, D, L, most, rows)
        data["warnings"] += odd
        worse = np.zeros(len(kept.mask), bool)
        worse[rows] = lost
        kept.drop(worse, f"{name} is worse than a guess (diverged)")
    if data["flops"] == AS_GIVEN:
        notes, warnings = columns.check_flops(C, N, D, rows)
        kept.notes += notes
        data["warnings"] += warnings


def settings_apart(table: dict, run: Array | None, N: Array, D: Array, used: Iterable[str],
                   tuned: Iterable[str]) -> tuple[Array, list[str], list[str]]:
    """(the index (n,) of each row's size and tokens; what is tuned there, and what else makes settings).

    Along the curves of a `run` (n,), None where rows are runs, tokens are exact, and only what stays the same
    is a setting.
    """
    group = groups([N, D])
    near = nearly(N, D) if run is None else group
    known = {name for name in table if name in tuned or HYPER.fullmatch(plain(name))}
    best = [name for name in separate(table, near, used) if name in known]
    others = [name for name in separate(table, group, used) if name not in known]
    if run is not None:
        others = [name for name in others if groups([run, table[name]]).max() == groups([run]).max()]
    return near if best else group, best, others


def settle(kept: Kept, data: dict, table: dict, run: Array | None, N: Array, D: Array, L: Array,
           used: Iterable[str], tuned: Iterable[str]) -> Array:
    """Drop all but the best hyper-parameters of each size and tokens; the setting (n,) of each row.

    Rows of one setting differ in nothing but the seed. `data` gets `separate`, the columns that make settings
    where sizes and tokens are equal, and warnings of what they bring. Of curves all rows stay.
    """
    rows = np.flatnonzero(kept.mask)
    part = {key: v[rows] for key, v in table.items()}
    for name in tuned:
        counts.column(part, name, "--best_of")
    curves = run is not None and len(set(run[rows])) < len(rows)
    group, best, others = settings_apart(part, run[rows] if curves else None, N[rows], D[rows], used, tuned)
    check_words(part, others)
    unknown = [name for name in others if name not in SETTINGS and not is_text(part[name])]
    words = columns.mixed(part, N[rows], D[rows], (*SETTINGS, *MIXED, *others))
    experiment = groups([group, *(part[name] for name in others)])
    good, setting = best_of(part, experiment, L[rows], best)
    if not curves:                                     # the row of a curve is no finished run
        what = "learning rate"
        if not set(best) <= {"learning_rate", "min_lr"}:
            what = f"choice of {' and '.join(best)}"
        kept.keep(rows[good], f"another {what} was better at the same size and tokens")
        data["warnings"] += doubts.edges(part, experiment, good, best, rows)
    data["separate"] = best + others
    data["warnings"] += doubts.unlike(part, unknown) + doubts.several(part, words)
    of_all = np.zeros(len(N), int)
    of_all[rows] = setting
    return of_all


def add_runs(data: dict) -> None:
    """Add to `select`'s data what is known of its runs.

    `run` has their names (or is None), `last` holds the row with the most tokens of each run, `curves` says
    whether runs have several rows, `setting` numbers what the last rows tried (equal but for the seed),
    `seed_noise` is the standard deviation of log-loss within a setting with `seed_df` degrees of freedom, and
    `some` are the rows that a surface is fitted to.
    """
    n = len(data["L"])
    data["last"] = last = np.flatnonzero(last_rows(data["run"], data["D"]))
    data["curves"] = len(last) < n
    if data["curves"]:
        data["notes"].append(f"{n} rows of {len(last)} runs: intermediate checkpoints are used, which is "
                             "sound only where the schedule does not depend on the horizon (constant or WSD)")
    data["setting"] = data["setting"][last]
    data["seed_noise"], data["seed_df"] = seed_noise(data["setting"], np.log(data["L"][last]))
    data["some"] = np.arange(n)
    if n > MAX_ROWS:
        group = clusters(data["run"], n)
        data["some"] = thin(group, np.lexsort((data["D"], group)), data["curves"])
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
        raise UserError(f"no column 'run'{nearest('run', curves)}, which the curves need: add it")
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
