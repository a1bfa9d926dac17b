"""A run beside its forecast while it trains: `python -m scaling.forecast watch out/STUDY/RUN [--follow]`.

The run's log says where it stands, the study's finished runs how far such a run falls from there, its seal
where it was to end (scaling/laws/collapse.py). Where its train loss is too high for its size and length, by
the law of what the finished runs' losses were at the same fraction of theirs, the line says ALARM.

How often that is wrong: each of the 173 runs of five studies in scaling/results, beside those that share no
trunk with it, was looked at 24 times; two stood above ALARM from a tenth of the run on. How soon it is right:
a d 32 run at four times the rate, which ends 2 % too high, stands above it from 35 to 40 % of the run beside
isoflop's 70 runs, from 75 % beside the laptop's 27. Of all these looks 96 to 99 % lie in the 95 % band, by
study; of 75 at sealed runs 69, with 5 % to either side (median). The seal's own interval and what a gap may
drift made that 9 %, and held all. Five of the six are a tenth of the way along runs far beyond `far`.
"""
import math
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import schema, settings
from runtime.basics import UserError, load_json
from scaling import logs
from scaling.laws import collapse, counts, extrapolate
from scaling.laws.collapse import Guess
from scaling.tables.csv import read_table

WAIT = 10.0                                # seconds between two looks
EARLY = 0.1                                # of a run: before that its curve is mostly warmup
HALF = 0.5                                 # where curves are compared
PLACES = (0.1, 0.3, 0.5, 0.7, 0.9)         # where a curve is held against that of others, afterwards
ALARM = 3.0                                # standard deviations above the finished runs that raise it
STRAY = 0.05                               # chance that any run of a study strays so far
ALIKE = ("schedule", "cooldown_frac", "min_lr")    # settings that shape a curve


class Family(NamedTuple):
    """The finished runs of a study: name, N, D, log-loss, each (n,), and curves [(fractions, losses)]."""

    run: np.ndarray
    N: np.ndarray
    D: np.ndarray
    loss: np.ndarray
    curves: list

    def levels(self, x: float) -> np.ndarray:
        """The log train loss of each run at the fraction x, (n,); nan where its curve begins later."""
        return np.array([collapse.loss_at(x, *curve) for curve in self.curves])

    def gaps(self, x: float) -> np.ndarray:
        """How far each run fell from the fraction x on, (n,); nan where its curve begins later."""
        return self.levels(x) - self.loss

    def gap(self, x: float) -> collapse.Gap | None:
        """How far runs fall from the fraction x on."""
        return collapse.fit_gap(self.N, self.D, self.gaps(x))


def curve_of(curves: dict, run: str, tokens: float) -> tuple[np.ndarray, np.ndarray]:
    """(fractions done, train losses) of a run in curves.csv that has so many tokens in all."""
    own = (curves["run"] == run) & np.isfinite(curves["train_loss"])
    return curves["tokens"][own] / tokens, curves["train_loss"][own]


def family(table: dict, curves: dict, like: dict, without: str = "") -> Family:
    """The runs of a study's runs.csv and curves.csv, of the schedule of `like`, less the run `without`."""
    N = counts.params(table)
    same = np.array([all(str(table[key][i]) == str(like[key]) for key in ALIKE if key in table)
                     for i in range(len(N))])
    use = np.flatnonzero(same & (table["run"] != without) & np.isin(table["run"], curves["run"]))
    D = table["tokens"][use]
    lines = [curve_of(curves, run, d) for run, d in zip(table["run"][use], D)]
    return Family(table["run"][use], N[use], D, np.log(table["val_loss"][use]), lines)


def schedule_of(table: dict) -> dict | None:
    """The settings that shape the curves of a study; None for one of several schedules."""
    found = {key: table[key][-1] for key in ALIKE if key in table}
    if not found or any(len(set(table[key])) > 1 for key in found):
        return None
    return found


def collapsed(table: dict, curves: dict) -> dict:
    """How well a study's runs share one curve: {x, runs, sd, strays: [{run, off, p}]}; empty where too few.

    `off` is how far a run's loss at x lies from where the other runs have it that end as this one does.
    """
    like = schedule_of(table)
    if not like or not {"run", "val_loss", "tokens"} <= set(table) or "train_loss" not in curves:
        return {}
    known = family(table, curves, like)
    gaps = known.gaps(HALF)
    whole = collapse.fit_gap(known.N, known.D, gaps)
    if not whole:
        return {}
    found = collapse.strays(known.N, known.D, gaps)
    strays = [{"run": str(run), "off": off, "p": p} for run, (off, p) in zip(known.run, found) if p < STRAY]
    return {"x": HALF, "runs": int(np.isfinite(gaps).sum()), "sd": whole.sd, "strays": strays}


def family_of(run: Path) -> Family:
    """The finished runs beside `run`, a run directory, and like it.

    Raises UserError where they are too few, or have no curves.
    """
    folder = run.parent
    path = folder / "curves.csv"
    if not path.exists():
        raise UserError(f"there is no {path}, the curves of finished runs; run: python -m scaling.logs "
                        f"{folder} --out={folder}/runs.csv")
    like = load_json(run / "config.json")
    known = family(read_table(folder / "runs.csv"), read_table(path), like, run.name)
    if len(known.N) < collapse.FEWEST:
        raise UserError(f"{folder}: {len(known.N)} finished runs with curves have this schedule "
                        f"({like['schedule']}): too few to say how such runs end, it takes {collapse.FEWEST}")
    return known


def sealed_guess(sealed: dict) -> Guess:
    """What a seal, or a row of forecasts.csv, says of the final loss."""
    wide = math.log(sealed["hi95"] / sealed["lo95"]) / 2
    return Guess(math.log(sealed["predicted"]), wide / extrapolate.Z95)


def outlook(known: Family, curve: tuple, x: float, N: float, D: float) -> Guess | None:
    """Where a run of N and D that is at x will end, by its own curve; None where it is too early."""
    gap = known.gap(x)
    now = collapse.loss_at(x, *curve)
    if gap is None or math.isnan(now):
        return None
    return collapse.ending(now, N, D, gap)


def level(known: Family, x: float, N: float, D: float) -> Guess | None:
    """Where the train loss of a run of N and D is at x, by the law of the finished runs' losses there.

    None where it is too early, or too few of them are known.
    """
    log_loss = known.levels(x)
    seen = np.isfinite(log_loss) & (known.D >= min(extrapolate.FEW, D / N) * known.N)
    if seen.sum() < collapse.FEWEST:
        return None
    runs = {"N": known.N[seen], "D": known.D[seen], "L": np.exp(log_loss[seen])}
    law = extrapolate.fit(runs | {"C": 6 * runs["N"] * runs["D"]}, few=0)
    (mean,), (sd,) = extrapolate.predict(law, np.array([N]), np.array([D]), 6 * N * D)
    return Guess(float(mean), float(sd))


def height(known: Family, curve: tuple, x: float, N: float, D: float) -> float:
    """How many standard deviations the train loss of a run at x lies above its `level`; nan if unknown."""
    there = level(known, x, N, D)
    return (collapse.loss_at(x, *curve) - there.mean) / there.sd if there else math.nan


def progress(run: Path) -> tuple[int, int, np.ndarray, np.ndarray]:
    """(N, D, fractions done, train losses there) of a run directory, by its config and log."""
    c = schema.from_dict(load_json(run / "config.json"))
    tokens = c.max_iters * c.batch_size * c.block_size
    records = logs.thin(logs.read_log(run / "log.jsonl", lambda problem: None))
    done, loss = np.array([[r["tokens"] / tokens, r["train_loss"]] for r in records]).reshape(-1, 2).T
    return settings.default_N(settings.count_params(c)), tokens, done, loss


class Standing(NamedTuple):
    """A run beside its forecast: the fraction done, its `height` there, its own outlook, the seal's, the
    final loss or None."""

    run: str
    x: float
    height: float
    own: Guess | None
    sealed: Guess | None
    final: float | None


def stand(run: Path, known: Family, sealed: dict | None) -> Standing:
    """How `run`, a run directory, stands. Raises UserError."""
    N, D, done, loss = progress(run)
    x = float(done[-1]) if len(done) else 0.0
    now = known, (done, loss), x, N, D
    own = outlook(*now) if x >= EARLY else None
    above = height(*now) if x >= EARLY else math.nan
    result = run / "result.json"
    final = load_json(result)["val_loss"] if result.exists() else None
    return Standing(run.name, x, above, own, sealed_guess(sealed) if sealed else None, final)


def range_text(guess: Guess) -> str:
    low, high = guess.interval()
    return f"{low:.4g} to {high:.4g}"


def line(s: Standing) -> str:
    """How a run stands, in a line for people."""
    if s.final is not None:
        said = f"; {math.exp(s.sealed.mean):.4g} was sealed ({range_text(s.sealed)})" if s.sealed else ""
        return f"{s.run}: done, loss {s.final:.4f}{said}"
    start = f"{s.run}: {s.x:.0%} done"
    if s.own is None:
        return f"{start}, too early to say where it will end"
    if s.height > ALARM:
        said = f"; {math.exp(s.sealed.mean):.4g} ({range_text(s.sealed)}) was sealed" if s.sealed else ""
        return (f"{start}, ALARM: as it stands it ends at {math.exp(s.own.mean):.4g} "
                f"({range_text(s.own)}){said}. It is {s.height:.1f} standard deviations above where the "
                "finished runs have such a run: is its rate too high?")
    if s.sealed is None:
        return f"{start}: {math.exp(s.own.mean):.4g} expected, {range_text(s.own)}; no forecast was sealed"
    both = collapse.joined(s.own, s.sealed)
    return f"{start}, on track: {math.exp(both.mean):.4g} expected, {range_text(both)}"


def follow(run: Path, known: Family, sealed: dict | None, more: bool) -> None:
    """Print how `run` stands and, if `more` is asked for, again whenever that changes, until it is done."""
    said = ""
    while True:
        s = stand(run, known, sealed)
        if (words := line(s)) != said:
            print(words, flush=True)
            said = words
        if not more or s.final is not None:
            return
        time.sleep(WAIT)


def picture(run: Path, known: Family, sealed: dict):
    """The log of a run in the band in which the finished runs have it, and where it was sealed to end, as a
    matplotlib figure. Raises UserError where too few runs are known."""
    from scaling import plots  # to watch and to forecast takes no matplotlib
    N, D, done, loss = progress(run)
    x = np.linspace(EARLY, 1, 30)
    there = [(at, guess.interval()) for at in x if (guess := level(known, at, N, D))]
    if not there:
        raise UserError(f"{run.parent}: fewer than {collapse.FEWEST} finished runs have a curve and "
                        f"{extrapolate.FEW:g} tokens a parameter: no band can be drawn; train such runs")
    x, low, high = np.array([(at, *ends) for at, ends in there]).T
    ax = plots.axes("share x of the run", f"train loss from {collapse.WINDOW:g} x to x", run.name)
    ax.fill_between(x, low, high, color=plots.SKY, alpha=0.3, linewidth=0, label="of such a run, 95 %")
    means = [collapse.loss_at(at, done, loss) for at in done]
    ax.plot(done, np.exp(means), color=plots.BLACK, label="so far")
    ends = sealed_guess(sealed).interval()
    ax.plot([1, 1], ends, color=plots.BLACK, linewidth=4, label="sealed loss, 95 %")
    ax.set(xlim=(0, 1.02), ylim=(min(*low, *ends) * 0.98, high.max() * 1.02))
    ax.legend()
    return ax.figure


class Afterwards(NamedTuple):
    """A measured forecast: made again half way, and the places where its curve was in the band of others."""

    error: float
    inside: bool
    kept: int
    places: int


def afterwards(folder: Path, rows: list[dict]) -> list[Afterwards]:
    """How the measured forecasts of a study would have fared along their runs.

    Empty for a study of several schedules, for then that of a forecast run is not known.
    """
    table, curves = read_table(folder / "runs.csv"), read_table(folder / "curves.csv")
    like = schedule_of(table)
    if not like:
        return []
    found = []
    for row in rows:
        known = family(table, curves, like, row["run"])
        curve = curve_of(curves, row["run"], row["tokens"])
        own = outlook(known, curve, HALF, row["params"], row["tokens"])
        if own and math.isfinite(row["measured"]):
            both = collapse.joined(own, sealed_guess(row))
            low, high = both.interval()
            kept = in_band(known, curve, row)
            found.append(Afterwards(math.exp(both.mean) / row["measured"] - 1,
                                    low <= row["measured"] <= high, sum(kept), len(kept)))
    return found


def in_band(known: Family, curve: tuple, row: dict) -> list[bool]:
    """Whether the curve lay where the finished runs have it, at each of PLACES where both are known."""
    heights = np.array([height(known, curve, x, row["params"], row["tokens"]) for x in PLACES])
    return list(abs(heights[np.isfinite(heights)]) <= extrapolate.Z95)
