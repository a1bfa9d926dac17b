"""Logs of other projects as points (run, params, tokens, loss) that a fit can use."""
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from runtime.basics import UserError, counted, nearest
from scaling.tables.columns import RATE, TRIED, by_text, held_out, is_loss, listed, perplexities, rivals, unit
from scaling.tables.csv import MALFORMED, number
from scaling.tables.readers import FORMATS, NAMES, named, reader_of, skipping, tail

POINT_COLUMNS = "run params tokens loss step flops budget unique_tokens".split()
BOOKKEEPING = set("index id name run_name created runtime user notes tags sweep hostname".split())   # of W&B


@dataclass
class Asked:
    """What the command line says of a log; it wins over the log."""
    params: float | None = None
    batch_tokens: float | None = None                  # tokens of a step
    names: dict = field(default_factory=dict)          # {our column: theirs}


@dataclass
class Run:
    """A run of a log by step, or by place where there are no steps; what was logged last of a step counts."""
    name: str
    named: bool                                        # by the log, not after the file
    facts: dict                                        # what the log told before it
    rows: dict = field(default_factory=dict)           # {step: {column: value as it stands}}
    last: dict = field(default_factory=dict)           # {loss: the last step that had it}
    twice: set = field(default_factory=set)            # each (loss, step) that had several values in a row


# ---- Records become runs. ----

def number_or_nan(value) -> float:
    """As `number`, but nan for what is no number."""
    try:
        return number(value)
    except MALFORMED:
        return math.nan


def filled(record: dict, names: dict) -> dict:
    """The cells of a record that are not empty; losses and those in `names` are floats. Raises ValueError.

    Beside a loss that is finite a nan is an empty cell: so a table has it whose rows log one loss each.
    """
    numbers = {theirs for ours, theirs in names.items() if ours in ("loss", *NAMES) and ours != "run"}
    cells = {name: value for name, value in record.items()
             if value is not None and (not isinstance(value, str) or value.strip())}
    cells = {name: number(value) if name in numbers or is_loss(name) else value
             for name, value in cells.items()}
    if any(is_loss(name) and math.isfinite(value) for name, value in cells.items()):
        return {name: value for name, value in cells.items() if value == value}
    return cells


def begins(run: Run, step: int, cells: dict, told: dict, table: bool) -> bool:
    """Whether a record is of a run that begins: the model is another one, or the counter starts over.

    One that resumes goes back, but not to the start, and says the same of its model. In a table of runs,
    those of one name have a row each, at the same step; and as they need not log the same steps, one that
    goes back to less than half begins.
    """
    if any(told[key] != run.facts.get(key, told[key]) for key in ("params", "batch_tokens") if key in told):
        return True
    first = next(iter(run.rows))
    again = [name for name in cells if name in run.last]
    if table and run.named and step == first and len(run.rows) == 1:
        return bool(again)
    start = step <= 1 or step == first
    return any(start and step < run.last[name] or table and 2 * step < run.last[name] for name in again)


class Gathered:
    """The runs of a log, its columns and what it is, from its records one by one."""

    def __init__(self, names: dict):
        self.names = names
        self.kind = ""
        self.runs = []
        self.columns = {}
        self.counter = None                            # the column of steps; "" where there is none
        self.latest = {}                               # the run that goes on, by name and size
        self.sizes = {}                                # the last size, by name
        self.told = {}                                 # of the runs that follow
        self.used = False

    def tell(self, facts: dict) -> None:
        """Keep what is true of the runs that follow: all that is told before the next row."""
        self.kind = facts.get("kind", self.kind)
        self.told = facts if self.used else self.told | facts
        self.used = False

    def add(self, place: str, record: dict) -> None:
        """Put a record where it belongs. Raises one of MALFORMED."""
        if self.names.get("loss") not in record:
            record = by_text(record)
        self.columns |= dict.fromkeys(record)
        cells = filled(record, self.names)
        loss = any(is_loss(name) or name == self.names.get("loss") for name in record)
        if self.counter is None and loss:              # what the first loss is counted by counts for all
            self.counter = self.names.get("step") or named(tuple(record), "step") or ""
        if not cells or self.counter is None or self.counter not in record and not loss:
            return                                     # a line of commas, or a record of other things
        if self.counter:
            self.add_step(int(number(record[self.counter])), cells)
        else:                                          # each row is a run, or a point of one
            self.add_row(("", None), place, cells, False)

    def add_step(self, step: int, cells: dict) -> None:
        """Put the cells of a step into the run that goes on, or into one that begins."""
        if not 0 <= step < 10**15:
            raise ValueError(f"step {step}")
        name = str(cells.get(self.names.get("run") or named(tuple(cells), "run"), ""))
        size = self.names.get("params") or named(tuple(cells), "params")
        self.sizes[name] = cells.get(size, self.sizes.get(name))
        which = name, self.sizes[name]                 # rows of several sizes may stand in any order
        run = self.latest.get(which)
        cells.pop(self.counter, None)
        told = {} if self.used else self.told
        table = self.kind in ("table", "JSON")
        new = run and (begins(run, step, cells, told, table) or table and tuned_apart(run, step, cells))
        if run and not new:                            # some logs tell the size after the first step
            run.facts = told | run.facts
        self.add_row(which, step, cells, new)

    def add_row(self, which: tuple, key: int | str, cells: dict, new: bool) -> None:
        """Put cells into the run of a name and size, at a step or a place."""
        if new or which not in self.latest:
            self.latest[which] = Run(which[0], bool(which[0]), self.told)
            self.runs.append(self.latest[which])
        self.used = True
        run = self.latest[which]
        row = run.rows.setdefault(key, {})
        losses = {name: value for name, value in cells.items() if is_loss(name)}
        if key == next(reversed(run.rows)):
            run.twice |= {(name, key) for name, value in losses.items() if name in row and row[name] != value}
        row.update(cells)
        run.last |= dict.fromkeys(losses, key)


def tuned_apart(run: Run, step: int, cells: dict) -> bool:
    """Whether a row has the loss of its step at another rate or seed: finished runs may have no names."""
    same = run.rows.get(step, {})
    tuned = [name for name in cells if TRIED.fullmatch(tail(name))]
    again = any(is_loss(name) and name in same for name in cells)
    return again and any(same.get(name, cells[name]) != cells[name] for name in tuned)


def gather(path: Path, records: Iterable, names: dict, report: Callable) -> Gathered:
    """What a reader yields, put together; what is malformed is reported."""
    found = Gathered(names)
    for place, record in records:
        if place is None:
            found.tell(record)
        else:
            with skipping(f"{path}:{place}", report):
                found.add(place, record)
    return found


# ---- Which loss. ----

def choose_loss(path: Path, runs: list[Run], columns: list[str], asked: str | None) -> str:
    """The column of the loss: what was asked for, else the only one on held-out text, else of the training.

    Of the same text in nats and in bits, that in nats. Raises UserError where there is none, or a choice.
    """
    count = Counter(name for run in runs for row in run.rows.values() for name in row)
    losses = {name: n for name, n in count.items() if is_loss(name)}
    if asked and asked not in count:
        raise UserError(f"{path}: no loss {asked!r}{nearest(asked, losses)}; it has {listed(losses)}")
    perplexity = perplexities([asked] if asked else [] if losses else columns)
    if perplexity:
        raise UserError(f"{path}: {perplexity}")
    if not asked and not losses:
        raise UserError(f"{path}: no loss recognised in it; accepted: {FORMATS}")
    held = [name for name in losses if held_out(name)]
    held = [name for name in held if not unit(name)] or held
    if not asked and len(held) > 1:
        raise UserError(f"{path}: it has {len(held)} validation losses; choose with --loss= one of "
                        f"{', '.join(sorted(held))}")
    return asked or (held[0] if held else max(losses, key=losses.get))


# ---- Runs become points. ----

def has_steps(run: Run) -> bool:
    return isinstance(next(iter(run.rows)), int)


def diverged_at(run: Run, loss: str) -> int | None:
    """The step from which on no loss of a run is finite, or None."""
    bad = None
    for step in sorted(run.rows):
        losses = [value for name, value in run.rows[step].items() if is_loss(name) or name == loss]
        if any(value and math.isfinite(value) for value in losses):        # 0 is what fp16 makes of a nan
            bad = None
        elif losses and bad is None:
            bad = step
    return bad


def rise(run: Run, loss: str) -> tuple[str, bool]:
    """(how the last loss lies above the lowest of the run, or ''; whether so far that it is no result).

    That is by half a nat and a quarter at least; less is told of held-out text, where it is no noise.
    """
    losses = {step: row[loss] for step, row in run.rows.items() if math.isfinite(row.get(loss, math.nan))}
    if not losses:
        return "", False
    best = min(losses, key=losses.get)
    end = losses[max(losses)]
    how = f"ends at a loss of {end:.4g} after {losses[best]:.4g} at step {best}: diverged, or overfitted"
    if end - losses[best] >= max(0.5, 0.25 * losses[best]):
        return how, True
    return how if held_out(loss) and end > 1.03 * losses[best] else "", False


def drop_carried(run: Run, loss: str) -> int:
    """Drop the losses that are the last one again, where most are, and count them.

    Some logs print the latest evaluation at each step. Losses of two digits may be equal by chance.
    """
    steps = sorted(step for step in run.rows if loss in run.rows[step])
    again = [b for a, b in zip(steps, steps[1:]) if run.rows[a][loss] == run.rows[b][loss]]
    again = [step for step in again if round(run.rows[step][loss], 2) != run.rows[step][loss]]
    if not again or 2 * len(again) < len(steps):
        return 0
    for step in again:
        del run.rows[step][loss]
    run.last[loss] = max(set(steps) - set(again))
    return len(again)


def name_runs(path: Path, runs: list[Run]) -> None:
    """Give each run a name of its own: the log's, or the file's; the second of a name gets ':2'."""
    seen = Counter()
    for run in runs:
        name = run.name or path.with_suffix("").as_posix()
        seen[name] += 1
        run.name = name if seen[name] == 1 else f"{name}:{seen[name]}"


def is_result(path: Path, run: Run, loss: str, horizon: str | None, report: Callable) -> bool:
    """Whether a run has the loss and did not diverge. If not, or if it ended early, that is reported."""
    if not has_steps(run):
        return True
    who = f"{path}: run {run.name}"
    bad = diverged_at(run, loss)
    end = max(run.rows)
    said = [run.facts.get("horizon"), *(row.get(horizon) for row in run.rows.values())]
    wanted = np.fmax.reduce([number_or_nan(value) for value in said])
    twice = sorted(step for name, step in run.twice if name == loss)
    if len(twice) > 2 or 2 * len(twice) > sum(loss in row for row in run.rows.values()):     # no mere resume
        report(f"{who} has several values of {loss} at {counted(len(twice), 'step')}, the first at step "
               f"{twice[0]}; the last of each counts: of several texts keep the lines of one")
    if carried := drop_carried(run, loss):
        report(f"{who} has the {loss} of the step before at {carried} steps, as where the latest is logged "
               "again; the first of each counts")
    how, spoilt = rise(run, loss)
    if bad is not None:
        report(f"{who} diverged at step {bad}: what came before is no result; skipped")
    elif not any(loss in row for row in run.rows.values()):
        report(f"{who} has no {loss}; skipped")
        return False
    elif spoilt:
        report(f"{who} {how}; skipped")
    elif end < wanted - 1:                             # some logs count the last step, some do not
        report(f"{who} ended at step {end} of {wanted:.0f}, before its horizon")
    elif run.last.get(loss, end) < 0.98 * end:
        report(f"{who} went on to step {end} after its last {loss}, at step {run.last[loss]}: is it in "
               "progress, or did it diverge?")
    elif how:
        report(f"{who} {how}; the last counts")
    return bad is None and not spoilt


def tokens_of(run: Run, column: str | None, asked: Asked) -> dict:
    """{step: tokens seen}: by the batch, as logged, or in line between two logged steps; else nan."""
    known = {step: number_or_nan(row[column]) for step, row in run.rows.items() if column in row}
    if not has_steps(run):
        return known
    batch = asked.batch_tokens or run.facts.get("batch_tokens", math.nan)
    found = {step: step * batch for step in run.rows}
    known = {step: tokens for step, tokens in sorted(known.items()) if tokens > 0 or step == 0}
    if known and not asked.batch_tokens:
        steps = np.array(list(run.rows), float)
        between = np.interp(steps, list(known), list(known.values()), math.nan, math.nan)
        found |= {step: t for step, t in zip(run.rows, between.tolist()) if not math.isnan(t)}
    return found


def params_of(run: Run, asked: Asked, tokens: dict) -> float:
    """The size of a run's model, from the command line or as the log told it; nan where it did not."""
    if asked.params:
        return asked.params
    if "total_flos" in run.facts:
        return number_or_nan(run.facts["total_flos"]) / (6 * tokens.get(max(tokens), math.nan))
    return run.facts.get("params", math.nan)


def settings(runs: list[Run], columns: list[str], used: Iterable[str]) -> list[str]:
    """The other columns that hold one value in each run: by them a fit tells what is no seed.

    The learning rate and the horizon are among them, too: by these a fit tells which runs are not finished.
    """
    rest = [name for name in columns if name not in {*used, *POINT_COLUMNS} and not is_loss(name)
            and not name.startswith("_") and tail(name) not in BOOKKEEPING]
    if not has_steps(runs[0]):
        return rest
    known = {name for run in runs for row in run.rows.values() for name in row}
    told = [name for name in rest if name in known
            and (RATE.fullmatch(tail(name)) or name == named(tuple(columns), "horizon"))]
    if not runs[0].named:
        return told                                    # what else a log says at each step is no setting
    held = [{name: {str(row.get(name)) for row in run.rows.values()} for name in rest} for run in runs]
    return [name for name in rest if name in told
            or all(len(one[name]) == 1 and "None" not in one[name] for one in held)]


LACKS = {"params": ("how many parameters the model has", "give --params=N or FILE=N"),
         "step": ("at which step a row stands", "leave --batch_tokens out"),
         "tokens": ("how many tokens a step takes", "give --batch_tokens=N")}


def check_params(path: Path, runs: list[Run], chosen: str) -> None:
    """Raise UserError where the column `chosen` for params is one of several that count differently."""
    rows = [row for run in runs for row in run.rows.values()]
    counts = dict.fromkeys(name for row in rows for name in row if name == chosen or "param" in name.lower())
    others = rivals({name: np.array([number_or_nan(row.get(name)) for row in rows]) for name in counts},
                    chosen, "params")
    if others and tail(chosen) != "params":
        raise UserError(f"{path}: which parameters are N? Choose with --map params= one of "
                        f"{', '.join([chosen, *others])}")


def columns_of(path: Path, runs: list[Run], columns: list[str], asked: Asked) -> dict:
    """{our column: theirs}. Raises UserError for one that is not there, and for what nothing tells."""
    found = {ours: named(tuple(columns), ours) for ours in NAMES if ours not in ("run", "step", "horizon")}
    found = {ours: theirs for ours, theirs in found.items() if theirs} | asked.names
    for ours, theirs in asked.names.items():
        if theirs not in columns:
            raise UserError(f"{path}: no column {theirs!r}{nearest(theirs, columns)} for {ours}; its columns "
                            f"are {listed(columns)}")
    if not asked.params and "params" not in asked.names and "params" in found:
        check_params(path, runs, found["params"])
    told = {key for run in runs for key in run.facts}
    known = {"params": asked.params or told & {"params", "total_flos"},
             "step": has_steps(runs[0]) or not asked.batch_tokens or "tokens" in found,
             "tokens": has_steps(runs[0]) and (asked.batch_tokens or "batch_tokens" in told)}
    for ours, (what, fix) in LACKS.items():
        if not known[ours] and ours not in found:
            raise UserError(f"{path}: it does not say {what}; {fix}, or --map {ours}=COLUMN with one of "
                            f"{listed(columns)}")
    return found


def names_of(run: Run, columns: list[str], asked: Asked) -> dict:
    """{step: the name of its run}; without steps each row has the name that it gives, or its place."""
    column = asked.names.get("run") or named(tuple(columns), "run")
    if has_steps(run):
        return dict.fromkeys(run.rows, run.name)
    given = {place: str(row[column]) for place, row in run.rows.items() if column in row}
    if tail(column or "") == "name" and len(set(given.values())) < len(given):
        given = {}                                     # of a model, since runs share it
    return {place: given.get(place, f"{run.name}:{place}") for place in run.rows}


def points_of(run: Run, source: dict, extra: list[str], columns: list[str], asked: Asked) -> Iterator:
    """Yield (where, point) of each loss of a run, by step; without steps, of each row."""
    tokens = tokens_of(run, source.get("tokens"), asked)
    params = params_of(run, asked, tokens)
    names = names_of(run, columns, asked)
    bits = {"loss_unit": unit(source["loss"])} if unit(source["loss"]) else {}
    steps = run.rows
    if has_steps(run):                                 # step 0 is no training
        steps = sorted(step for step, row in run.rows.items() if step and source["loss"] in row)
    for step in steps:
        row = run.rows[step]
        point = {name: row.get(name) for name in extra}
        for ours, theirs in source.items():
            point[ours] = number_or_nan(row.get(theirs)) if ours in POINT_COLUMNS else row.get(theirs)
        point |= {"run": names[step], "tokens": tokens.get(step, math.nan), **bits}
        if asked.params or "params" not in source:
            point["params"] = params
        if has_steps(run):
            point["step"] = step
        yield f"{'step' if has_steps(run) else 'line'} {step}", point


def read_points(path: Path, asked: Asked, report: Callable) -> tuple[list[dict], str]:
    """(the points of a log that a fit can use, what the log is). Raises UserError with the cause."""
    found = gather(path, reader_of(path)(path, report), asked.names, report)
    runs, columns = found.runs, list(found.columns)
    if not runs and any(map(is_loss, columns)):
        raise UserError(f"{path}: not one of its rows can be read; mend what is named above")
    loss = choose_loss(path, runs, columns, asked.names.get("loss"))
    asked = replace(asked, names=asked.names | {"loss": loss})
    source = columns_of(path, runs, columns, asked)
    extra = settings(runs, columns, {*source.values(), named(tuple(columns), "run")})
    name_runs(path, runs)
    horizon = named(tuple(columns), "horizon")
    kept = [run for run in runs if is_result(path, run, loss, horizon, report)]
    tell_params(path, kept, source, asked, report)
    if not held_out(loss) and (has_steps(runs[0]) or "train" in tail(loss)):
        report(f"{path}: no validation loss in it, so loss is the train loss")
    points = [point for run in kept for point in points_of(run, source, extra, columns, asked)]
    if kept and not points:
        raise UserError(f"{path}: no {loss} after step 0; a log of a run that has trained is needed")
    size = counted(len(runs), "run") if has_steps(runs[0]) else counted(len(points), "row")
    what = f"{found.kind}, {size}; loss is {loss}"
    if unit(loss):
        what += f", in {unit(loss)}, not nats"
    return usable(path, points, report), what


def tell_params(path: Path, runs: list[Run], source: dict, asked: Asked, report: Callable) -> None:
    """Report the sizes that the log told, and how it counts."""
    found = {params_of(run, asked, tokens_of(run, source.get("tokens"), asked)): run for run in runs
             if not asked.params}
    if asked.params and len(runs) > 1 and runs[0].named:
        report(f"{path}: params is {asked.params:.6g} in all {len(runs)} runs, as given")
    sizes = [f"{size:.6g}" for size in found if not math.isnan(size)]
    if sizes:
        how = next(iter(found.values())).facts.get("counted")
        report(f"{path}: params is {' and '.join(sizes)} ({how}); --params= or FILE=N overrides it")


def usable(path: Path, points: Iterable[tuple[str, dict]], report: Callable) -> list[dict]:
    """The points that a fit can use; how many lack params, tokens or a loss is reported, with the first."""
    lowest = {"loss": -math.inf, "tokens": 0, "params": 0}
    kept = []
    lacking = {}
    for where, point in points:
        bad = [key for key, low in lowest.items() if not low < point[key] < math.inf]
        if bad:
            lacking.setdefault(bad[0], []).append(where)
        else:
            kept.append(point)
    for key, places in lacking.items():
        report(f"{path}: {counted(len(places), 'point')} without {key}, the first at {places[0]}; skipped")
    return kept
