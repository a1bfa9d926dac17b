"""From a budget to a run: size, tokens, shape, batch, learning rate, hours, and a config that train.py runs.

    python -m scaling.plan LAW --flops=1e21                       # or another goal; two of them fix N and D
    python -m scaling.plan LAW --gpu_hours=8 --tok_per_s=90000@124e6 --dataset=NAME --write=config/my_plan.py
    python -m scaling.plan LAW --flops=1e22 --unique_tokens=25e9  # data repeat (Muennighoff et al. 2023)
    python -m scaling.plan LAW --loss=2 --inference_tokens=1e13   # train and serve (Sardana et al. 2024)
    python -m scaling.plan out/STUDY/fit.json --flops=1e18 --next=1e15 --write=scaling/sweeps/my_next.py
    python -m scaling.plan --compare A/fit.json B/fit.json        # whose recipe needs less compute

LAW is a fit.json, or a published law: hoffmann, besiroglu, muennighoff or kaplan. With runs.csv beside
fit.json the study's own recipe, speed and forecast (scaling.forecast) are used. A law's C is 6 N D; a budget
buys exact FLOPs. What a fit calls undetermined is shown with its warnings, and written with --anyway only.
"""
import dataclasses
import math
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from config import corpus, schema, settings
from config.configurator import help_text, read_args, set_fields
from config.settings import Config
from runtime import basics
from runtime.basics import UserError, counted, exit_cleanly, nearest, plain_name, whole_file
from scaling import forecast
from scaling.laws import arms, counts, design, forms, health, solver
from scaling.tables.csv import MALFORMED, cell, read_table
from scaling.tables.runs import final_runs

# What the laws were fitted on: Hoffmann et al. 2022, abstract and section 3.2; Kaplan et al. 2020, section 3.
HOFFMANN_RANGE = {"C": [6e18, 3e21]}
PRINTED = {"form": "surface", "params": "total", "boot": {}, "runs": {}}
PUBLISHED = {
    # Before rounding (Besiroglu et al. 2024): the exponents as printed, .34 and .28, move N_opt by a sixth.
    "hoffmann": PRINTED | {"E": math.exp(0.5267228), "A": math.exp(6.0073404), "alpha": 0.33917084,
                           "B": math.exp(6.0179186), "beta": 0.2849083, "range": HOFFMANN_RANGE,
                           "source": "Hoffmann et al. 2022, approach 3, unrounded"},
    "besiroglu": PRINTED | {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658,
                            "range": HOFFMANN_RANGE, "source": "Besiroglu et al. 2024"},
    "muennighoff": PRINTED | forms.C4 | {"range": {"C": [4e15, 1e22]},
                                         "source": "Muennighoff et al. 2023, C4"},
    # N_opt = 1.3e9 C^.73 and L = (3.1e8/C)^.050, C in PF-days (Kaplan et al. 2020, figure 14 and eq. 1.3).
    "kaplan": PRINTED | {"form": "frontier", "params": "non_embedding", "L_inf": 0.0, "gamma": 0.050,
                         "log_C_c": math.log(3.1e8 * counts.PF_DAY),
                         "log_k": math.log(1.3e9 / counts.PF_DAY ** 0.73), "a": 0.73,
                         "range": {"C": [1e11, 2e20]}, "source": "Kaplan et al. 2020, compute-efficient"},
}
UNIDENTIFIED = ("how much repeated tokens are worth is poorly known: R_D* = 15.4 was published, but on those "
                "182 runs R_D* = 95 fits slightly better, and the bootstrap's 95 % interval is 5 to 1e12")
MOST_PARAMS = 1e14
MOST_TOKENS = 1e16
# (options, the least, the most, of what): beyond these a number can only be a slip of a unit.
LIMITS = (
    ("flops next", 1e6, 1e30, "FLOPs"),
    ("tokens unique_tokens", 1e3, MOST_TOKENS, "tokens"),
    ("inference_tokens", 1, 1e20, "tokens"),
    ("params", 100, MOST_PARAMS, "parameters"),
    ("loss", 1e-3, 20, "nats per token"),
    ("gpu_hours", 1e-6, 1e11, "hours"),
    ("deadline", 1e-6, 1e6, "hours"),
    ("price", 1e-6, 1e6, "for an hour of one device"),
    ("gpus", 1, 1e7, "devices"),
    ("block_size head_size", 1, 1e6, "lengths and widths"),
)
WIDE = 1000                                # an interval whose ends differ by more determines nothing
# What a row of runs.csv says of how to train such a model. Shape and horizon are the plan's to say, and the
# vocabulary is the dataset's.
RECIPE = "dataset schedule block_size batch_size learning_rate eval_iters".split()
RECIPE += [name for name in schema.RECIPE if name not in ("vocab_size", "lr_decay_iters")]


@dataclass
class Options:
    # goal: one of these; or two of flops, params, tokens and loss, which fix N and D
    flops: float = 0.0                     # training budget, FLOPs
    gpu_hours: float = 0.0                 # the same as hours of one device, summed over all
    deadline: float = 0.0                  # hours until it must be done: a budget, or a check of another goal
    loss: float = 0.0                      # nats per token to reach
    params: float = 0.0                    # size, in the law's own count
    tokens: float = 0.0                    # tokens to train on
    # circumstances
    gpus: int = 1                          # devices that share the work
    price: float = 0.0                     # of an hour of one device, in any currency
    tok_per_s: str = ""                    # measured on one, TOKENS@PARAMS: 90000@124e6; default: the study's
    unique_tokens: float = 0.0             # all the text there is; training on more repeats it
    inference_tokens: float = 0.0          # tokens to be served over the model's life
    # model and output
    dataset: str = ""                      # directory under data/; default: the study's, or none
    block_size: int = 0                    # tokens of context; default: the study's, else 1024
    head_size: int = 0                     # width of a head; default: the study's, else 64 (less if narrow)
    write: str = ""                        # config/NAME.py, or with --next scaling/sweeps/NAME.py
    figure: str = ""                       # NAME.png: the plan on the loss surface
    anyway: bool = False                   # write and draw what the fit calls undetermined, too
    # other questions
    compare: bool = False                  # two fit.json: the compute multiplier between their recipes
    next: float = 0.0                      # FLOPs for more small runs: which pin N_opt(--flops) down best?


# ---- The law. ----

def load_law(name: str) -> dict:
    """The law of a published name or of a fit.json, with the table of its `runs`, or {}. Raises UserError."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = Path(name)
    if path.suffix == ".csv" and path.exists():
        raise UserError(f"{path} is a table, and no law yet; run: python -m scaling.fit "
                        f"{shlex.quote(str(path))} --json={shlex.quote(str(path.with_name('fit.json')))}")
    if path.suffix != ".json":
        raise UserError(f"unknown law {name!r}{nearest(name, PUBLISHED)}: give a fit.json or one of "
                        f"{', '.join(PUBLISHED)}")
    fit = forecast.load_fit(path)
    runs = path.with_name("runs.csv")
    form = next((k for k in ("surface", "isoflop") if fit.get(k) and not health.of_flat(fit[k])), None)
    if not form:
        holds = "neither a surface nor an isoflop fit"
        if fit.get("surface"):
            holds = "a surface without a best size"
        raise UserError(f"{name} holds {holds}; fit again with more runs (its warnings say which)")
    return fit[form] | {
        "form": "surface" if form == "surface" else "frontier",
        "source": f"{name}, {fit[form]['n']} runs",
        "params": fit["data"]["params"],
        "fit": fit,
        "runs": read_table(runs) if runs.exists() else {}}


def require_determined(law: dict) -> None:
    """Raise UserError for a law that its own fit calls undetermined."""
    if found := forecast.left_open(law):
        raise UserError(f"{law['source']}: {found}; --anyway writes the plan all the same")


def warnings(law: dict, where: str = "") -> list[str]:
    """What the law's fit doubts in its table, and its health, as lines; nothing of a published law."""
    told = law.get("fit", {}).get("data", {}).get("warnings", [])
    return [f"warning: {where}{line}" for line in [*told, *law.get("health", {}).get("lines", [])]]


def loss_at(law: dict, N: float, D: float) -> float:
    """Loss of N parameters after D tokens, of which at most law["unique"], if given, differ. UserError."""
    if law["form"] == "frontier":
        raise UserError("this law knows only the best run of each budget: give --flops, --params, --tokens "
                        "or --loss alone, or take a surface such as hoffmann or besiroglu")
    if "unique" in law:
        return forms.repeated_loss(law, N, D, law["unique"])
    return forms.surface_loss(law, N, D)


def best(law: dict, C: float) -> tuple[float, float, float]:
    """(N, D, loss) of the least loss for C = 6 N D."""
    optimum = forms.power_optimum if law["form"] == "frontier" else forms.surface_optimum
    N, D, loss = optimum(law, C)
    if D > law.get("unique", math.inf):
        loss_at(law, N, D)                             # refuses a law of the frontier
        N, D, _, loss = forms.repeated_optimum(law, C, law["unique"])
    return float(N), float(D), float(loss)


# ---- The goal: one of C, N, D and L, or two of them, fix N and D. ----

def solve(f, target: float, goal: str) -> float:
    """The x from 1 to 1e40 where the monotonic f is `target`. Raises UserError without one."""
    def gap(log_x):
        return math.log(f(math.exp(log_x)) / target)
    if gap(0.0) * gap(92.0) > 0:
        raise UserError(f"{goal} cannot be reached like this; without limit it would come to "
                        f"{f(math.exp(92.0)):.4g}")
    return math.exp(brentq(gap, 0.0, 92.0, xtol=1e-12))


def params_for(law: dict, D: float, C: float) -> float:
    """The N whose training on D tokens takes C. Raises UserError."""
    return solve(lambda n: forms.flops_of(law, n, D), C, f"{D:.3g} tokens for {C:.3g} FLOPs")


def solve_goal(law: dict, C: float, N: float, D: float, L: float) -> tuple[float, float]:
    """(N, D) from those of C (FLOPs, 6 N D), N, D and L (loss) that are not 0. Raises UserError."""
    if not (C or N or D or L):
        raise UserError("nothing to plan for: give --flops, --gpu_hours, --loss, --params or --tokens")
    cost = float(forms.flops_of(law, N, D)) if C and N and D else C
    if C and abs(math.log(cost / C)) > 0.01:
        count = "" if law.get("cost") else "6 N D = "
        raise UserError(
            f"{N:.3g} parameters on {D:.3g} tokens take {count}{cost:.2g} FLOPs, {cost / C:.2g} "
            f"times the {C:.2g} given: these buy {forms.tokens_of(law, N, C):.3g} tokens for {N:.3g} "
            f"parameters, or {params_for(law, D, C):.3g} parameters for {D:.3g} tokens; N = D = sqrt(C/6) "
            f"would be {math.sqrt(C / 6):.3g} of each, one token per parameter; give two of the three")
    if L and (C or (N and D)):
        raise UserError("these goals say the same twice: N and D follow from two of flops, params and "
                        "tokens, and the loss from N and D; give fewer")
    goal = f"a loss of {L:.4g}"
    if L and N:
        D = solve(lambda d: loss_at(law, N, d), L, goal)
    elif L and D:
        N = solve(lambda n: loss_at(law, n, D), L, goal)
    elif L:
        C = solve(lambda c: best(law, c)[2], L, goal)
    elif N and not (C or D):
        C = solve(lambda c: best(law, c)[0], N, f"a budget whose best run has {N:.3g} parameters")
    elif D and not (C or N):
        C = solve(lambda c: best(law, c)[1], D, f"a budget whose best run takes {D:.3g} tokens")
    if D and not N:
        N = params_for(law, D, C)
    if not N:
        N = best(law, C)[0]
    return N, D or forms.tokens_of(law, N, C)


def lifelong(law: dict, N: float, D: float, served: float) -> float:
    """FLOPs of training and of `served` tokens, each a third of one in training: 6 N D + 2 N served."""
    return float(forms.flops_of(law, N, D)) * (1 + served / (3 * D))


def serving_optimum(law: dict, loss: float, served: float) -> tuple[float, float]:
    """(N, D) of the fewest FLOPs to reach `loss` and serve `served` tokens (Sardana et al. 2024)."""
    alpha = law["alpha"]
    beta = law["beta"]
    excess = loss - law["E"]

    def at(share):                                     # of the excess that is A/N^alpha; B/D^beta is the rest
        N = (law["A"] / (share * excess)) ** (1 / alpha)
        return N, (law["B"] / ((1 - share) * excess)) ** (1 / beta)

    def log_cost(share):
        N, D = at(share)
        return math.log(lifelong(law, N, D, served))
    least = 0.5 * beta / (alpha + beta)                # half of the compute-optimal model's, for C = 6 N D
    found = minimize_scalar(log_cost, bounds=(least, 1), method="bounded", options={"xatol": 1e-8})
    return at(found.x)


# ---- The study: its recipe, its speed and its text. ----

class Study(NamedTuple):
    """What a study's runs say about how such a model is trained."""
    settings: dict                         # for train.py, of the run nearest to the plan
    vocab: int
    n_layer: int                           # the trend of its depths and heads, at the size of the plan
    n_head: int


NO_STUDY = Study({"dataset": "", "block_size": 1024}, vocab=50257, n_layer=0, n_head=0)    # GPT-2's words


def study_of(table: dict, N: float, D: float) -> Study:
    """What the runs of `table` say for N parameters and D tokens; NO_STUDY if they are not this project's."""
    if not set("run dataset n_layer n_head batch_tokens block_size learning_rate".split()) <= set(table):
        return NO_STUDY
    runs = final_runs(table)
    rows = [table["run"].tolist().index(run) for run in runs["run"]]
    far = np.log(runs["N"] / N) ** 2 + np.log(runs["D"] / D) ** 2
    told = table.get("parametrization", np.full(len(table["run"]), ""))
    untold = [not cell(told[row]) for row in rows]
    near = rows[np.lexsort((far, untold))[0]]          # first of those that say how they were trained
    row = {name: values[near] for name, values in table.items()}
    row["batch_size"] = row["batch_tokens"] / row["block_size"]
    x = np.log(runs["N"])
    slope = int(np.ptp(x) > 0.1)                       # runs of one size have no trend

    def trend(name):
        line = np.polyfit(x, np.log(table[name][rows]), slope)
        return max(1, round(math.exp(np.polyval(line, math.log(N)))))
    vocab = int(row["params_head"] / row["n_embd"])
    return Study(recipe(row, RECIPE), vocab, trend("n_layer"), trend("n_head"))


def recipe(row: dict, names: list[str]) -> dict:
    """Those of the settings `names` that a row of runs.csv records; where a cell is empty it says nothing."""
    if cell(row.get("val_tokens")):                    # losses compare on the same part of val.bin only
        row = row | {"eval_iters": row["val_tokens"] / row["block_size"]}
    return {name: type(getattr(Config, name))(row[name]) for name in names if cell(row.get(name))}


def speed(tok_per_s: str, table: dict) -> float:
    """FLOPs per second of one device: as --tok_per_s says, else of the largest model; nan if unknown."""
    if tok_per_s:
        try:
            tokens, params = map(float, tok_per_s.split("@"))
        except ValueError:
            tokens = params = math.nan
        if not (tokens > 0 and 0 < tokens * params < math.inf):
            raise UserError(f"--tok_per_s={tok_per_s}: give tokens per second and the size of the model that "
                            "was timed, as in 90000@124e6")
        return 6 * tokens * params
    if not {"flops_exact", "wall_s", "params_total"} <= set(table):
        return math.nan
    largest = np.argmax(table["params_total"])
    return float(table["flops_exact"][largest] / table["wall_s"][largest])


def text_of(dataset: str) -> float:
    """How many tokens data/DATASET has to train on; inf when it is not there. Raises UserError."""
    absent = plain_name(dataset) and not (basics.ROOT / "data" / dataset / "meta.json").exists()
    return math.inf if absent or not dataset else corpus.load_meta(dataset)["train_tokens"]


# ---- The shape of the model. ----

def size(c: Config, convention: str) -> float:
    """Parameters of a model as the law counts them: scaling.laws.counts has the names and what they mean."""
    groups = settings.count_params(c)
    return float(groups.get(convention, settings.default_N(groups)))


def head_width(width: int, head_size: int, heads: int) -> int:
    """How wide a head is: as asked, as so many heads make it, or what is common at this width."""
    if head_size:
        return head_size
    if heads:
        return width // heads
    if width >= 256:
        return 64
    return 32 if width >= 128 else 16


def shape(N: float, base: Config, convention: str, head_size: int = 0, study: Study = NO_STUDY) -> Config:
    """`base` with the n_layer, n_head and n_embd that come nearest to N parameters. Raises UserError.

    With a study, depth and heads are near what it would take; without, the width is 64 times the depth, and a
    head 64, 32 or 16 wide. Depth against width hardly bears on the loss (Kaplan et al. 2020, figure 5), so a
    miss in N weighs more.
    """
    heads = 0 if head_size else study.n_head
    unit = head_size or math.lcm(8, heads or 16)
    tried = []                                         # (cost, miss in log N, n_layer, n_embd)
    smallest = math.inf
    for width in range(unit, max(32768, 2 * unit), unit):
        if width % head_width(width, head_size, heads):
            continue
        none, one = (size(dataclasses.replace(base, n_layer=k, n_embd=width), convention) for k in (0, 1))
        smallest = min(smallest, one)
        depth = (N - none) / (one - none)
        shallow = max(1, math.floor(depth))
        for n_layer in (shallow, shallow + 1):
            miss = math.log((none + n_layer * (one - none)) / N)
            odd = 0.001 * math.log(width / n_layer / 64) ** 2
            if study.n_layer:
                odd = 0.5 * math.log(n_layer / study.n_layer) ** 2
            tried.append((miss ** 2 + odd, miss, n_layer, width))
        if one > 4 * N:
            break                                      # wider ones are larger still
    near = [row for row in tried if abs(row[1]) <= 0.35]
    if not near:
        raise UserError(f"no GPT has {N:.3g} parameters ({convention}): with a vocabulary of "
                        f"{base.vocab_size} and widths from {unit} the smallest has {smallest:,.0f}; change "
                        "goal or --head_size")
    _, _, n_layer, width = min(near)
    head = head_width(width, head_size, heads)
    return dataclasses.replace(base, n_layer=n_layer, n_head=width // head, n_embd=width)


def shape_of(c: Config) -> dict:
    return {name: getattr(c, name) for name in ("n_layer", "n_head", "n_embd")}


def vocabulary(dataset: str) -> int:
    """The vocabulary of data/DATASET. Raises UserError."""
    return corpus.load_meta(dataset)["vocab_size"]


# ---- The plan. ----

class Plan(NamedTuple):
    """What the table shows and the config needs."""
    asked: Options
    law: dict
    study: Study
    N: float                               # what the law asks for
    D: float
    C: float                               # 6 N D
    serving: tuple | None                  # the N and D that serving nobody would take
    ci: dict                               # 95 % intervals of N and D, where they are the law's optimum
    model: Config                          # of the nearest shape
    params: float                          # its size as the law counts
    tokens: float                          # as many as the budget buys in exact FLOPs, or D
    flops: float                           # exact
    config: dict                           # settings for train.py, all but out_dir
    loss: dict                             # {predicted, by} and, where known, {lo95, hi95}
    hours: float                           # nan without a speed


def check_limits(o: Options) -> None:
    """Raise UserError for a number outside LIMITS."""
    for names, low, high, unit in LIMITS:
        for name in names.split():
            value = getattr(o, name)
            if value != getattr(Options, name) and not low <= value <= high:
                slip = f"; did you mean --flops={value:g}?" if name in ("tokens", "params") else ""
                raise UserError(f"--{name}={value:g} cannot be meant: {unit} go from {low:g} to {high:g}"
                                + slip)


def budget(o: Options, rate: float) -> float:
    """The FLOPs that may be spent, on devices of `rate` FLOPs per second; 0 for another goal. UserError."""
    hours = o.gpu_hours
    if not (hours or o.flops or o.params or o.tokens or o.loss):
        hours = o.deadline * o.gpus
    if not hours:
        return o.flops
    if o.flops:
        raise UserError("--flops and --gpu_hours are both budgets; give one")
    if math.isnan(rate):
        raise UserError("hours need a speed: give --tok_per_s=TOKENS@PARAMS, or runs.csv beside fit.json")
    return hours * 3600 * rate


def make_plan(law: dict, o: Options) -> Plan:
    """The plan for these options. Raises UserError."""
    rate = speed(o.tok_per_s, law["runs"])
    if o.unique_tokens:
        law = forms.C4 | law | {"unique": o.unique_tokens}             # a fit has no R_D and R_N of its own
    spend = budget(o, rate)
    N, D = solve_goal(law, spend, o.params, o.tokens, o.loss)
    serving = None
    if o.inference_tokens:
        if o.unique_tokens:
            raise UserError("--inference_tokens and --unique_tokens cannot be combined; plan for one of them")
        serving = (N, D)
        N, D = serving_optimum(law, loss_at(law, N, D), o.inference_tokens)
    if not (1 <= N <= MOST_PARAMS and 1 <= D <= MOST_TOKENS):
        raise UserError(f"{law['source']}: this law asks for {N:.3g} parameters on {D:.3g} tokens, which "
                        "cannot be meant; give another goal")
    C = float(forms.flops_of(law, N, D))
    optimal = abs(math.log(N / best(law, C)[0])) < 1e-6
    if law["form"] == "frontier" and not optimal:
        loss_at(law, N, D)                             # which such a law cannot say
    study = study_of(law["runs"], N, D)
    given = {"dataset": o.dataset, "block_size": o.block_size}
    config = study.settings | {name: value for name, value in given.items() if value}
    vocab = vocabulary(o.dataset) if o.dataset else study.vocab
    model = shape(N, Config(**config, vocab_size=vocab), law["params"], o.head_size, study)
    params = size(model, law["params"])
    cost = settings.count_flops(model)["total"]
    tokens = D
    horizon = {"target_tokens": float(f"{D:.10g}")}    # as people write it: 2e12, not 1999999999999.9998
    if spend and not (o.tokens or serving):            # a budget is of exact FLOPs
        tokens = C / cost
        horizon = {"target_flops": float(f"{C:.10g}")}
    return Plan(
        o, law, study, N, D, C, serving,
        ci=forms.optimum(law, C)["ci"] if optimal and not o.unique_tokens else {},
        model=model, params=params, tokens=tokens, flops=tokens * cost,
        config=config | shape_of(model) | batch(tokens, C, config) | horizon,
        loss=predict(law, params, tokens),
        hours=tokens * cost / rate / 3600 / o.gpus)


def batch(tokens: float, C: float, config: dict) -> dict:
    """{batch_size, learning_rate}: the study's, or by the rule of C (config.settings).

    The batch is at most a hundredth of the run, so that the schedule has steps to act on.
    """
    block = config["block_size"]
    rows = config.get("batch_size") or settings.batch_rows(C, tokens, block)
    return {"batch_size": min(rows, max(1, int(tokens / block / 100))),
            "learning_rate": config.get("learning_rate") or settings.rate_by_rule(C)}


def predict(law: dict, N: float, D: float) -> dict:
    """{predicted, by} and, where known, {lo95, hi95}: the study's forecast, else the law's own."""
    if law["form"] == "frontier":
        predicted = best(law, forms.flops_of(law, N, D))[2]
        return {"predicted": predicted, "by": "the frontier, were this its best run"}
    if law["runs"] and "unique" not in law:
        return forecast.predict(law["runs"], law["fit"], N, D) | {"by": "scaling.forecast"}
    found = {"predicted": float(loss_at(law, N, D)), "by": "the law; it has no interval"}
    if forms.has_draws(law):
        draws = loss_at(law | forms.draws_of(law), N, np.array([D]))
        found["lo95"], found["hi95"] = solver.interval(forms.with_noise(draws, law["noise"])[:, 0])
        found["by"] = "the law and its residuals; other forms would differ"
    return found


def notes(plan: Plan) -> list[str]:
    """What a careful planner would add, and where the plan falls short of what was asked."""
    o = plan.asked
    tokens = plan.tokens
    lent = plan.study.settings
    out = [f"C is {x:.3g} times outside what the law was fitted on: an extrapolation"
           for x in forms.outside(plan.law, C=plan.C).values()]
    if 0 < o.unique_tokens < tokens:
        out.append(UNIDENTIFIED)
        if plan.law.get("cost"):
            out.append("where data repeat the best size is sought for C = 6 N D, not as the table counts it")
    if lent["dataset"] not in ("", plan.config["dataset"]):
        out.append(f"the law was fitted on {lent['dataset']}: on {o.dataset} another one holds")
    text = text_of(plan.config["dataset"])
    if tokens > text and not o.unique_tokens:
        out.append(f"there are {amount(text)} tokens of this text: it is read {tokens / text:.3g} times, "
                   f"which the law ignores; add --unique_tokens={text}")
    if plan.law["params"] == "as given":
        out.append(f"N is as the law's table gave it; the model's is its {counts.DEFAULT_PARAMS}")
    if lent["dataset"] and "parametrization" not in lent:
        out.append("settings that runs.csv does not record (parametrization, betas, weight decay, warmup) "
                   "are train.py's defaults")
    if o.deadline and plan.hours > 1.001 * o.deadline:
        needed = math.ceil(plan.hours * o.gpus / o.deadline)
        out.append(f"this misses the deadline of {o.deadline:g} hours; {needed} such devices would not")
    if abs(math.log(plan.params / plan.N)) > 0.1:
        out.append(f"the nearest shape has {plan.params / plan.N:.2f} times the parameters asked for")
    return out


# ---- What is shown. ----

def amount(x: float) -> str:
    """1.23B, 45.6M, 789."""
    digits = f"{x:.3g}"
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if unit <= float(digits) < 1000 * unit:
            return f"{float(digits) / unit:.3g}{name}"
    return digits


def cost_text(money: float) -> str:
    """What a plan costs at --price, behind its time; nothing without a price or a speed."""
    return f", costs {money:,.2f}" if money > 0 else ""


def duration(hours: float) -> str:
    if math.isnan(hours):
        return "unknown (add --tok_per_s=TOKENS@PARAMS)"
    if hours < 1 / 60:
        return counted(hours * 3600, "second", ".3g")
    if hours < 2:
        return counted(hours * 60, "minute", ".3g")
    return f"{hours:.3g} hours" if hours < 72 else f"{hours / 24:.3g} days"


def says_something(low: float, high: float) -> bool:
    return high < WIDE * low                           # not so of nan


def span(low: float, high: float, text=amount, level: str = "") -> str:
    """' (LOW to HIGH)' of an interval, as `text` writes its ends, if it says anything."""
    if not says_something(low, high):
        return " (not determined)"
    return f" ({level}{text(low)} to {text(high)})"


def law_text(law: dict) -> str:
    """The law's formula, its source, and what its N counts."""
    formula = "N_opt ~ C^{a:.4g}"
    if law["form"] == "surface":
        formula = "L = {E:.4g} + {A:.4g}/N^{alpha:.4g} + {B:.4g}/D^{beta:.4g}"
    return f"{formula.format(**law)} ({law['source']}; N is {law['params']})"


def plan_text(plan: Plan) -> str:
    """The plan as a table for people, what its neighbours cost, and the notes."""
    o = plan.asked
    c = plan.model
    rows = plan.config["batch_size"]
    loss = plan.loss
    count = "6 N D"
    if abs(math.log(6 * plan.N * plan.D / plan.C)) > 0.01:
        count = "as the law's table counts it"
    steps = max(1, round(plan.tokens / (rows * c.block_size)))
    of_N, of_D = (span(*plan.ci[key]) if key in plan.ci else "" for key in ("N_opt", "D_opt"))
    band = span(loss["lo95"], loss["hi95"], "{:.4f}".format) if "lo95" in loss else ""
    if forecast.left_open(plan.law):
        band = " (not determined)"
    brackets = "; brackets hold 95 % intervals" if of_N or band else ""
    devices = f" on {o.gpus} devices" if o.gpus > 1 else ""
    states = 16 * settings.count_params(c)["total"]    # float32: weights, gradients, AdamW's two moments
    row = c.block_size * settings.activation_bytes(c, 2)
    out = [f"law       {law_text(plan.law)}{brackets}",
           f"target    N {amount(plan.N)}{of_N}, D {amount(plan.D)}{of_D}, "
           f"{plan.D / plan.N:.3g} tokens per parameter",
           f"compute   C = {count} = {plan.C:.3g} FLOPs = {plan.C / counts.PF_DAY:.3g} PF-days",
           f"model     {counted(c.n_layer, 'layer')} x {c.n_embd}, "
           f"{counted(c.n_head, 'head')} of {c.n_embd // c.n_head}, "
           f"vocabulary {c.vocab_size}, context {c.block_size}: {amount(plan.params)} parameters",
           f"training  {amount(plan.tokens)} tokens, {plan.flops:.3g} exact FLOPs",
           f"batch     {counted(steps, 'step', ',')} of {counted(rows, 'sequence', ',')} or "
           f"{amount(rows * c.block_size)} tokens; learning rate {plan.config['learning_rate']:g}",
           f"loss      {loss['predicted']:.4f}{band} (by {loss['by']})",
           f"time      {duration(plan.hours)}{devices}{cost_text(plan.hours * o.gpus * o.price)}",
           f"memory    {states / 1e9:.3g} GB of weights, gradients, AdamW; {row / 1e9:.3g} GB a row"]
    text = o.unique_tokens or text_of(plan.config["dataset"])
    if text < math.inf:
        out.append(f"data      {counted(plan.tokens / text, 'epoch', '.4g')} of {amount(text)} tokens")
    if plan.serving:
        out.append(serving_text(plan))
    if plan.law["form"] == "surface" and not forecast.left_open(plan.law):
        out += neighbours(plan)
    return "\n".join(out + warnings(plan.law) + [f"note: {line}" for line in notes(plan)])


def serving_text(plan: Plan) -> str:
    """What the smaller, longer-trained model saves over its life."""
    N, D = plan.serving
    served = plan.asked.inference_tokens
    own = lifelong(plan.law, plan.N, plan.D, served)
    other = lifelong(plan.law, N, D, served)
    return (f"serving   {own:.3g} FLOPs with {amount(served)} tokens served; {amount(N)} parameters after "
            f"{amount(D)} tokens, of the same loss, would take {other:.3g}: {1 - own / other:.1%} saved")


def neighbours(plan: Plan) -> list[str]:
    """Loss against size, that is against tokens per parameter, for the plan's C = 6 N D."""
    out = [f"{'N':>10} {'D':>9} {'D/N':>9} {'loss':>9} {'change':>9}  serving (all with C = {plan.C:.3g})"]
    here = loss_at(plan.law, plan.N, plan.D)
    for m in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4):
        N = plan.N * m
        D = forms.tokens_of(plan.law, N, plan.C)
        loss = loss_at(plan.law, N, D)
        out.append(f"{amount(N):>10} {amount(D):>9} {D / N:>9.3g} {loss:>9.4f} {loss / here - 1:>+9.2%}"
                   f"  {m:.3g}x")
    return out


# ---- A config that runs. ----

def write_new(path: str, text: str, folder: str) -> None:
    """Write a .py file that does not exist yet. Raises UserError."""
    if Path(path).suffix != ".py" or not Path(path).stem.isidentifier():
        raise UserError(f"--write={path}: give a new Python file, such as {folder}/my_plan.py")
    if Path(path).exists():
        raise UserError(f"{path} exists; choose another name or delete it")
    with whole_file(path) as f:
        f.write(text)


def write_config(path: str, plan: Plan) -> str:
    """Write the plan as a config for train.py, which would accept it. Raises UserError."""
    if not plan.config["dataset"]:
        raise UserError("a config needs data: add --dataset=NAME, a directory under data/")
    values = {"out_dir": f"out/{Path(path).stem}"} | plan.config
    run = settings.resolve(set_fields(Config(), {k: (v, path) for k, v in values.items()}))
    c = run.config
    if abs(run.C / plan.flops - 1) > 0.02:
        raise UserError(f"{c.max_iters} steps of {c.batch_size} x {c.block_size} tokens make {run.C:.3g} "
                        f"FLOPs, not the {plan.flops:.3g} planned; take a smaller --block_size")
    command = f"python train.py {shlex.quote(path)}"
    head = (f"# {command}\n# Planned with {plan.law['source']}: {run.C:.3g} FLOPs, "
            f"expected loss {plan.loss['predicted']:.4f}, time {duration(plan.hours)}.\n")
    write_new(path, head + "".join(f"{k} = {v!r}\n" for k, v in values.items()), "config")
    return f"wrote {path}: {counted(c.max_iters, 'step', ',')}, {run.C:.4g} exact FLOPs; run: {command}"


# ---- Which runs next? ----

def known(half_width: float) -> str:
    """How well N_opt is known, from the half-width of its logarithm's interval."""
    if 2 * half_width < math.log(WIDE):
        return f"known to a factor {math.exp(half_width):.3g} (95 %)"
    return "not determined"


def next_text(law: dict, folder: Path, o: Options) -> str:
    """The runs to add next and, with --write, the sweep file that makes them. Raises UserError."""
    if not o.flops:
        raise UserError("--next needs the budget whose optimum is in question: add --flops=TARGET")
    table = law["runs"]
    if not table or law["form"] != "surface":
        raise UserError("--next needs a fit.json with a surface, and its runs.csv beside it")
    runs = final_runs(table, law["params"])
    N = runs["N"]
    study = study_of(table, N.max(), runs["D"].max())
    if study is NO_STUDY:
        raise UserError(f"{folder / 'runs.csv'} lacks columns of a study of this project, which --next needs")
    base = Config(**study.settings, vocab_size=study.vocab)
    wanted = np.geomspace(N.min(), 4 * N.max(), 40)
    models = [shape(n, base, law["params"], o.head_size, study) for n in wanted]
    by_size = {size(c, law["params"]): c for c in models}
    cost = np.array([settings.count_flops(c)["total"] for c in by_size.values()])
    most = o.unique_tokens or text_of(base.dataset)
    found = design.next_runs(law, N, runs["D"], o.flops, o.next, np.array(list(by_size)), cost, most)
    more = "this run" if len(found.N) == 1 else f"these {len(found.N)} runs"
    out = warnings(law)
    out.append(f"N_opt at {o.flops:.3g} FLOPs is {known(found.before)}; after {more}, {o.next:.3g} FLOPs in "
               f"all: {known(found.after)}")
    if forecast.left_open(law):
        out.append("note: both hold as far as the law does, which its runs leave open")
    stem = Path(o.write).stem or "next"
    listed = ""
    for i, (n, D) in enumerate(zip(found.N.tolist(), found.D.tolist()), 1):
        c = by_size[n]
        out.append(f"  {amount(n):>7} parameters ({counted(c.n_layer, 'layer')} x {c.n_embd}) on "
                   f"{amount(D)} tokens")
        run = dict(name=f"{stem}_{i}", **shape_of(c), target_tokens=round(D), seed=i)
        listed += f"    {run!r},\n"
    if o.write:
        head = (f"# python -m scaling.sweep {shlex.quote(o.write)}\n"
                f"# Chosen by scaling.plan to pin down N_opt at {o.flops:.3g} FLOPs.\n")
        write_new(o.write, f"{head}base = {study.settings!r}\nruns = [\n{listed}]\n", "scaling/sweeps")
        out.append(f"wrote {o.write}; it makes them, and then both tables are joined\n"
                   f"next: python -m scaling.sweep {shlex.quote(o.write)} && python -m scaling.logs "
                   f"{shlex.quote(str(folder))} out/{stem} --out=runs.csv")
    return "\n".join(out)


# ---- Two recipes. ----

def compare_text(paths: list[str], C: float) -> str:
    """The compute multiplier of two studies, at C or at the largest budget of both. Raises UserError."""
    if len(paths) != 2:
        raise UserError(f"--compare takes two fits, not {len(paths)}: --compare A/fit.json B/fit.json")
    laws = list(map(load_law, paths))
    for path, law in zip(paths, laws):
        if not law["runs"]:
            raise UserError(f"--compare needs fit.json with its runs.csv beside it, and {path} has none")
    first, second = paths[0], paths[1] + " " * (paths[0] == paths[1])      # an arm's name is its own
    runs = {path: final_runs(law["runs"], law["params"]) for path, law in zip((first, second), laws)}
    C = C or min(part["C"].max() for part in runs.values())
    found = arms.fit_arms(runs, first, [C])
    if second in found["left_out"]:
        raise UserError(f"{second}: {found['left_out'][second]}")
    row, = found["arms"][second]["multiplier"]
    factor, (lo, hi) = row["factor"], row["ci"]
    verdict = "not clearly more or less"
    better = paths[int(factor > 1)]
    if hi < 1:
        verdict = "less"
    elif lo > 1:
        verdict = "more"
    out = [f"for the loss that {second.strip()} reaches with {C:.3g} FLOPs, {first} needs {factor:.3g} times "
           f"that{span(lo, hi, '{:.3g}'.format, '95 % ')}: {verdict} compute",
           *(f"warning: {line}" for line in found["health"]["lines"])]
    for path, law in zip(paths, laws):
        out += warnings(law, f"{path}: ")
    return "\n".join(out + ["note: both must come from the same text and tokenizer, and count N alike",
                            f"next: python -m scaling.plan {shlex.quote(better)} --flops={C:.3g}"])


# ---- Command line. ----

def answer(name: str, o: Options, command: str) -> None:
    """Print what to train, or with --next which runs to add, by the law `name`; `command` asked for it.

    Raises UserError.
    """
    law = load_law(name)
    check_files(law, o)
    folder = "scaling/sweeps" if o.next else "config"
    if o.next:
        print(next_text(law, Path(name).parent, o))
    else:
        plan = make_plan(law, o)
        show(plan)
        command += "" if plan.config["dataset"] else " --dataset=DATASET"
    if not o.write:
        anyway = " --anyway" if forecast.left_open(law) and not o.anyway else ""
        print(f"next: {command} --write={folder}/NAME.py{anyway}")


def check_files(law: dict, o: Options) -> None:
    """Raise UserError where a law may not be written by, or a figure cannot be drawn: no folder is made."""
    if (o.write or o.figure) and not o.anyway:
        require_determined(law)
    if not o.figure:
        return
    loss_at(law, 1.0, 1.0)                             # refuses a law of the frontier
    if Path(o.figure).suffix != ".png":
        raise UserError(f"--figure={o.figure}: the name must end in .png")
    if not os.access(Path(o.figure).parent, os.W_OK):
        raise UserError(f"--figure={o.figure}: there is no such folder, or it cannot be written to; name "
                        "another")


def show(plan: Plan) -> None:
    """Print the plan; draw and write it, if that is asked. Raises UserError."""
    o = plan.asked
    print(plan_text(plan))
    if o.figure:
        from scaling import plots  # here, because a plan without a figure runs without matplotlib
        ci = plan.ci.get("N_opt")
        if ci and not says_something(*ci):
            ci = None
        plots.save(plots.plan_figure(plan.law, plan.N, plan.D, ci), Path(o.figure))
        print(f"wrote {o.figure}")
    if o.write:
        print(write_config(o.write, plan))


def main(args: list[str] | None = None) -> None:
    args = sys.argv[1:] if args is None else args
    given, names = read_args(args, Options)
    if {"help", "h"} & set(given) or not (given or names):
        print(__doc__ + help_text(Options))
        return
    names = [str(Path(name) / "fit.json") if Path(name).is_dir() else name for name in names]
    o = set_fields(Options(), given)
    check_limits(o)
    if not o.compare and len(names) != 1:
        raise UserError(f"give one law, not {len(names)}: a fit.json or one of {', '.join(PUBLISHED)}")
    try:
        with np.errstate(all="ignore"):                # what overflows says so in words
            if o.compare:
                print(compare_text(names, o.flops))
            else:
                answer(names[0], o, shlex.join(["python", "-m", "scaling.plan", *args]))
    except (*MALFORMED, IndexError, ZeroDivisionError) as e:
        if names[0] in PUBLISHED:
            raise
        raise UserError(f"{' or '.join(names)} is not as scaling.fit writes it ({type(e).__name__}: {e}); "
                        "fit again") from None


if __name__ == "__main__":
    exit_cleanly(main)
