"""What to doubt in rows that a fit can use: untuned or diverged sizes, rates at an edge, unfinished runs."""
import numpy as np

from scaling.laws.solver import seed_noise
from scaling.tables.columns import HORIZONS, RATE, SEED, groups, is_text, plain, rows_text, runs_of, some

Array = np.ndarray
WORSE = 0.01                               # of the loss: a larger model that is so much worse is no noise
FAR_WORSE = 0.1                            # so much worse than a smaller model on fewer tokens no law is
NOISE = 0.015                              # of the loss, between seeds: more is another setting
SAME = 1e-4                                # so little is no noise between seeds, but one run that was rounded
STATES = "state status finished completed done final is_final is_last".split()
FINISHED = "finished complete completed done success succeeded ok true yes 1 1.0".split()


def doubts(data: dict) -> list[str]:
    """A sentence, naming the rows, for each thing to doubt in the last rows of `select`'s runs."""
    last = {name: values[data["last"]] for name, values in data["table"].items()}
    larger, longer = worse(data, "N", "D"), worse(data, "D", "N")
    lost = overtaken(data) & ~larger & ~longer
    out = []
    for bad, what in ((larger, "loss rises with N at equal D in {}: larger models are untuned, diverged or "
                               "overfitted"),
                      (longer, "loss rises with D at equal N in {}: longer runs are untuned, diverged or "
                               "overfitted"),
                      (lost, "loss is far above that of a run with no more parameters and tokens in {}: "
                             "diverged, untuned or overfitted")):
        if bad.any():
            out.append(what.format(named(data, bad)))
    return [*out, *too_noisy(data, last), *unfinished(last, data["rows"][data["last"]]), *unlogged(data),
            *unlike_steps(last), *repeats(data), *halfway(data)]


def named(data: dict, last: Array) -> str:
    """'rows 4 (large), 5 (xl)' for those of the last rows that the mask `last` marks."""
    at = data["last"][last]
    for key in ("run", "name", "model"):
        names = data["table"].get(key)
        if names is not None and is_text(names) and len(at) <= 5:
            return "rows " + ", ".join(f"{data['rows'][i] + 1} ({names[i]})" for i in at)
    return rows_text(data["rows"][at])


def worse(data: dict, more: str, equal: str) -> Array:
    """A mask of the last rows where loss rises with the column `more` ("N") though `equal` ("D") is the same.

    Rises from some size on and for good, that is: sizes differ in shape too, and one of them may do a little
    worse. Of the settings of one size and tokens the best counts; what repeats its data is left out.
    """
    x, same, D, L = (data[name][data["last"]] for name in (more, equal, "D", "L"))
    seeds = np.bincount(data["setting"])
    mean = (np.bincount(data["setting"], np.log(L)) / np.maximum(seeds, 1))[data["setting"]]
    margin = max(np.log1p(WORSE), 3 * np.nan_to_num(data["seed_noise"]))
    fresh = is_fresh(data)
    bad = np.zeros(len(L), bool)
    for level in np.unique(same):
        rows = np.flatnonzero((same == level) & fresh)
        sizes = np.unique(x[rows])
        lowest = np.array([mean[rows[x[rows] == size]].min() for size in sizes])
        above = lowest - np.minimum.accumulate(lowest)
        for_good = np.minimum.accumulate(above[::-1])[::-1] > 0
        bad[rows] = np.isin(x[rows], sizes[(above > margin) & for_good | (above > 10 * margin)])
    return bad


def is_fresh(data: dict) -> Array:
    """A mask of the last rows that do not repeat their data, as far as the table tells."""
    if data["U"] is None:
        return np.ones(len(data["last"]), bool)
    return ~(data["D"] > 1.5 * data["U"])[data["last"]]


def overtaken(data: dict) -> Array:
    """A mask of the last rows that did far worse than another of their settings and of no larger N and D."""
    N, D, L = (data[name][data["last"]] for name in "NDL")
    kind = groups([N < 0, *(data["table"][name][data["last"]] for name in data["separate"])])
    bad = np.zeros(len(L), bool)
    for i in np.flatnonzero(is_fresh(data)):
        alike = (kind == kind[i]) & (N <= N[i]) & (D <= D[i])
        bad[i] = L[i] > (1 + FAR_WORSE) * L[alike].min()
    return bad


def too_noisy(data: dict, last: dict) -> list[str]:
    """Where rows that are equal in all that the table tells, the seed too, differ by more than noise does."""
    seeds = [values for name, values in last.items() if SEED.fullmatch(plain(name))]
    noise, n = seed_noise(groups([data["setting"], *seeds]), np.log(data["L"][data["last"]]))
    if n > 0 and noise < SAME:
        return [f"rows that are equal in all that the table tells differ by {noise:.2g} of the loss: if they "
                "are the same runs twice, keep one of each"]
    if n == 0 or noise < NOISE:
        return []
    return [f"rows that are equal in all that the table tells differ by {noise:.1%} (standard deviation): "
            "more than seeds do; is a column missing, as a rate, a schedule or the data?"]


def edges(table: dict, experiment: Array, best: Array, tuned: list[str], rows: Array) -> list[str]:
    """Where the `best` (n,) of three or more learning rates of an experiment is the last one tried."""
    out = []
    for name in tuned:
        if not RATE.fullmatch(plain(name)) or plain(name).startswith("min"):
            continue
        rate = np.asarray(table[name], float)
        pairs = np.unique(np.stack([experiment, rate], 1), axis=0)
        tried = np.bincount(pairs[:, 0].astype(int))[experiment]
        low, high = np.full((2, experiment.max() + 1), np.nan)
        np.fmin.at(low, experiment, rate)
        np.fmax.at(high, experiment, rate)
        last = best & (tried > 2) & ((rate == low[experiment]) | (rate == high[experiment]))
        if last.any():
            out.append(f"the best {name} is the lowest or highest tried in {rows_text(rows[last])}: a wider "
                       "grid may find a better one")
    return out


def unlike(table: dict, apart: list[str]) -> list[str]:
    """Which columns of numbers, of those that differ at equal size and tokens, may part rows into laws."""
    out = []
    for name in apart:
        fix = (f"a law through all is none of theirs; --where={name}={table[name].max():g} keeps one, "
               f"--best_of={name} the best; if it only numbers seeds, call it seed")
        if 2 * len(set(table[name])) > len(table[name]):
            fix = "if that is a result and no setting, take the column out"
        out.append(f"rows of the same size and tokens differ in {name!r}, which holds {some(table[name])}: "
                   f"{fix}")
    return out


def several(table: dict, names: list[str]) -> list[str]:
    """That the columns `names` may part the rows into several laws, and how to keep one."""
    first = {name: table[name][0] if is_text(table[name]) else f"{table[name][0]:g}" for name in names}
    return [f"{name!r} holds {some(table[name])} among these runs: if their losses make no one law, keep one "
            f"with --where={name}={value}" for name, value in first.items()]


def unfinished(table: dict, rows: Array) -> list[str]:
    """Where a run ended before the horizon that the table tells of, or did not end well."""
    out = []
    words = {plain(name): name for name in table}
    for done, horizons in HORIZONS.items():
        for name in [words[word] for word in horizons.split() if word in words]:
            if done in table and not is_text(table[done]) and not is_text(table[name]):
                short = table[done] < 0.98 * table[name]
                if short.any():
                    out.append(f"{done} is less than {name} in {rows_text(rows[short])}: they ended early")
    for name in STATES:
        if name in words:
            states = np.array([str(word).strip().lower() for word in table[words[name]]], object)
            bad = ~np.isin(states, FINISHED)
            if bad.any() and not bad.all():
                others = set(map(str, table[words[name]][~bad]))
                fix = f"; --where={words[name]}={others.pop()} leaves them out" if len(others) == 1 else ""
                out.append(f"{name} is {', '.join(sorted(set(states[bad])))} in {rows_text(rows[bad])}{fix}")
    return out


def unlogged(data: dict) -> list[str]:
    """Where the training loss is no number and that of other runs is: they may have diverged."""
    for name, values in data["table"].items():
        if plain(name) in ("train_loss", "training_loss") and not is_text(values):
            bad = ~np.isfinite(values[data["last"]])
            if bad.any() and not bad.all():
                return [f"{name} is no number in {named(data, bad)}: did these diverge?"]
    return []


def unlike_steps(table: dict) -> list[str]:
    """Where the tokens are not what the steps and the batch make of them."""
    steps, batch = (table.get(name) for name in ("step", "batch_tokens"))
    if steps is None or batch is None or is_text(steps) or is_text(batch):
        return []
    made = steps * batch
    ratio = table["tokens"][made > 0] / made[made > 0]
    if len(ratio) == 0 or (0.9 < ratio.min() and ratio.max() < 1.1):
        return []
    return [f"tokens are {ratio.min():.3g} to {ratio.max():.3g} times step x batch_tokens: one of these "
            "counts something else"]


def repeats(data: dict) -> list[str]:
    """Where runs went over their data several times, and no column tells how much there was of it."""
    epochs = data["epochs"]
    if epochs is None or data["U"] is not None or not epochs.max() > 1.5:
        return []
    return [f"epochs is {epochs.min():.3g} to {epochs.max():.3g}, and no column unique_tokens says what was "
            "repeated: tokens count all epochs, and unique_tokens one"]


def halfway(data: dict) -> list[str]:
    """Whether rows along runs may be used, or are though no schedule is told."""
    if not data["curves"] and like_curves(data["N"], data["D"]):
        return ["tokens rise at each size as along a run: if these rows are curves tell them apart in a "
                "column 'run'; of cosine or linear runs only the last rows count"]
    if data["curves"] and "schedule" not in data["table"]:
        return ["rows along the runs are used as if the rate never fell, which no column 'schedule' says: of "
                "cosine or linear runs keep the last rows"]
    return []


def like_curves(N: Array, D: Array) -> bool:
    """Whether tokens rise in even steps at each size, or several times, and not to the same numbers."""
    run = runs_of(D, N, 5, evenly=False)
    several = run is not None and run.max() > groups([N]).max() and groups([N, D]).max() > 0.75 * len(N)
    return several or runs_of(D, N, 10) is not None
