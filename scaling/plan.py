"""From a budget to a run: size, tokens, shape, batch, learning rate, hours, and a config that train.py runs.

    python -m scaling.plan LAW --flops=1e21                       # or another goal; two of them fix N and D
    python -m scaling.plan LAW --gpu_hours=8 --tok_per_s=90000@124e6 --dataset=NAME --write=config/my_plan.py
    python -m scaling.plan LAW --flops=1e22 --unique_tokens=25e9  # data repeat (Muennighoff et al. 2023)
    python -m scaling.plan LAW --loss=2 --inference_tokens=1e13   # train and serve (Sardana et al. 2024)
    python -m scaling.plan out/STUDY/fit.json --flops=1e18 --next=1e15 --write=scaling/sweeps/my_next.py
    python -m scaling.plan --compare A/fit.json B/fit.json        # whose recipe needs less compute

LAW is a fit.json, or a published law: hoffmann, besiroglu, muennighoff or kaplan. With runs.csv beside
fit.json the study's own recipe, speed and forecast (scaling.forecast) are used. A law's C is 6 N D; a budget
buys exact FLOPs.
"""
import dataclasses
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from config import settings
from config.configurator import help_text, read_args, set_fields
from config.settings import Config
from runtime import basics
from runtime.basics import UserError, exit_cleanly, load_json, nearest, plain_name
from scaling import forecast
from scaling.laws import counts, design, forms, solver
from scaling.tables.csv import MALFORMED, cell, read_table
from scaling.tables.runs import final_runs

# What the laws were fitted on: Hoffmann et al. 2022, abstract and section 3.2; Kaplan et al. 2020, section 3.
HOFFMANN_RANGE = {"N": [7e7, 1.6e10], "D": [5e9, 5e11], "C": [6e18, 3e21]}
SURFACE = {"form": "surface", "params": "total", "boot": {}}
PUBLISHED = {
    # Before rounding (Besiroglu et al. 2024): the exponents as printed, .34 and .28, move N_opt by a sixth.
    "hoffmann": SURFACE | {"E": math.exp(0.5267228), "A": math.exp(6.0073404), "alpha": 0.33917084,
                           "B": math.exp(6.0179186), "beta": 0.2849083, "range": HOFFMANN_RANGE,
                           "source": "Hoffmann et al. 2022, approach 3, unrounded"},
    "besiroglu": SURFACE | {"E": 1.8172, "A": 482.01, "alpha": 0.3478, "B": 2085.43, "beta": 0.3658,
                            "range": HOFFMANN_RANGE, "source": "Besiroglu et al. 2024"},
    "muennighoff": SURFACE | forms.C4 | {"range": {"C": [4e15, 1e22]},
                                         "source": "Muennighoff et al. 2023, C4"},
    # N_opt = 1.3e9 C^.73 and L = (3.1e8/C)^.050, C in PF-days (Kaplan et al. 2020, figure 14 and eq. 1.3).
    "kaplan": {"form": "frontier", "log_k": math.log(1.3e9 / counts.PF_DAY ** 0.73), "a": 0.73, "L_inf": 0.0,
               "gamma": 0.050, "log_C_c": math.log(3.1e8 * counts.PF_DAY), "range": {"C": [1e11, 2e20]},
               "params": "non_embedding", "boot": {}, "source": "Kaplan et al. 2020, compute-efficient"},
}
UNIDENTIFIED = ("how much repeated tokens are worth is poorly known: R_D* = 15.4 was published, but on those "
                "182 runs R_D* = 95 fits slightly better, and the bootstrap's 95 % interval is 5 to 1e12")
LIMITS = {"flops": (1e6, 1e30, "FLOPs"), "tokens": (1e3, 1e16, "tokens"), "params": (100, 1e14, "parameters"),
          "loss": (1e-3, 20, "nats per token"), "gpu_hours": (1e-6, 1e11, "hours"),
          "deadline": (1e-6, 1e6, "hours"), "unique_tokens": (1e3, 1e16, "tokens"),
          "inference_tokens": (1, 1e20, "tokens"), "next": (1e6, 1e30, "FLOPs"), "gpus": (1, 1e7, "devices")}
# What a row of runs.csv says of how to train such a model. Shape and horizon are the plan's to say, and the
# vocabulary is the dataset's.
RECIPE = ["dataset", "schedule", "block_size", "batch_size", "learning_rate",
          *(name for name in settings.RECIPE if name not in ("vocab_size", "lr_decay_iters"))]


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
    tok_per_s: str = ""                    # measured on one, TOKENS@PARAMS: 90000@124e6; default: the study's
    unique_tokens: float = 0.0             # all the text there is; training on more repeats it
    inference_tokens: float = 0.0          # tokens to be served over the model's life
    # model and output
    dataset: str = ""                      # directory under data/; default: the study's, or none
    block_size: int = 0                    # tokens of context; default: the study's, else 1024
    head_size: int = 0                     # width of a head; default: the study's, else 64 (less if narrow)
    write: str = ""                        # config/NAME.py, or with --next scaling/sweeps/NAME.py
    figure: str = ""                       # NAME.png: the plan on the loss surface
    # other questions
    compare: bool = False                  # two fit.json: the compute multiplier between their recipes
    next: float = 0.0                      # FLOPs for more small runs: which pin N_opt(--flops) down best?


# ---- The law. ----

def load_law(name: str) -> tuple[dict, dict]:
    """(law, the table of its study's runs or {}) of a published name or of a fit.json. Raises UserError."""
    if name in PUBLISHED:
        return PUBLISHED[name], {}
    path = Path(name)
    runs = path.with_name("runs.csv")
    if path.suffix != ".json":
        raise UserError(f"unknown law {name!r}{nearest(name, PUBLISHED)}: give a fit.json or one of "
                        f"{', '.join(PUBLISHED)}")
    if not path.exists():
        fix = f"fit {runs} --json={name}" if runs.exists() else "sweep scaling/sweeps/STUDY.py"
        raise UserError(f"there is no {name} yet; run: python -m scaling.{fix}")
    fit = load_json(name)
    law = fit.get("surface") or fit.get("isoflop")
    if not law:
        raise UserError(f"{name} holds neither a surface nor an isoflop fit; fit again with more runs")
    form = "surface" if fit.get("surface") else "frontier"
    law |= dict(form=form, source=f"{name}, {law['n']} runs", params=fit["data"]["params"], fit=fit)
    return law, read_table(runs) if runs.exists() else {}


def loss_at(law: dict, N: float, D: float, unique: float = 0.0) -> float:
    """Loss of N parameters after D tokens, of which at most `unique` differ (0: all do). Raises UserError."""
    if law["form"] == "frontier":
        raise UserError("this law knows only the best run of each budget: give --flops, --params, --tokens "
                        "or --loss alone, or take a surface such as hoffmann or besiroglu")
    if unique:
        return forms.repeated_loss(forms.C4 | law, N, D, unique)   # its R_D and R_N
    return forms.surface_loss(law, N, D)


def best_size(law: dict, C: float, unique: float = 0.0) -> float:
    """N that minimises the loss for C = 6 N D."""
    of = forms.surface_optimum if law["form"] == "surface" else forms.power_optimum
    N = float(of(law, C)[0])
    if not unique or C / (6 * N) <= unique:
        return N
    loss_at(law, N, 1.0, unique)                       # refuses a law of the frontier
    return forms.repeated_optimum(forms.C4 | law, C, unique)[0]


def best_loss(law: dict, C: float, unique: float = 0.0) -> float:
    """Loss of the best run for C = 6 N D."""
    if law["form"] == "frontier":
        return float(forms.power_optimum(law, C)[2])
    N = best_size(law, C, unique)
    return float(loss_at(law, N, C / (6 * N), unique))


# ---- The goal: one of C, N, D and L, or two of them, fix N and D. ----

def solve(f, target: float, otherwise: str) -> float:
    """The x from 1 to 1e40 where the monotonic f is `target`. Raises UserError(`otherwise`) without one."""
    def gap(log_x):
        return math.log(f(math.exp(log_x)) / target)
    if gap(0.0) * gap(92.0) > 0:
        raise UserError(f"{otherwise}; without limit it would come to {f(math.exp(92.0)):.4g}")
    return math.exp(brentq(gap, 0.0, 92.0, xtol=1e-12))


def contradiction(C: float, N: float, D: float) -> str:
    """What is wrong with a budget, a size and a number of tokens for which 6 N D is not C, and what holds."""
    return (f"{N:.3g} parameters on {D:.3g} tokens take 6 N D = {6 * N * D:.2g} FLOPs, {6 * N * D / C:.2g} "
            f"times the {C:.2g} given: these buy {C / 6 / N:.3g} tokens for {N:.3g} parameters, or "
            f"{C / 6 / D:.3g} parameters for {D:.3g} tokens; N = D = sqrt(C/6) would be "
            f"{math.sqrt(C / 6):.3g} of each, one token per parameter; give two of the three")


def solve_goal(law: dict, C: float, N: float, D: float, L: float, unique: float = 0.0) -> tuple[float, float]:
    """(N, D) from those of C (FLOPs, 6 N D), N, D and L (loss) that are not 0. Raises UserError."""
    if C and N and D and abs(math.log(6 * N * D / C)) > 0.01:
        raise UserError(contradiction(C, N, D))
    if L and (C or (N and D)):
        raise UserError("these goals say the same twice: N and D follow from two of flops, params and "
                        "tokens, and the loss from N and D; give fewer")
    never = f"a loss of {L:.4g} cannot be reached like this"
    if L and N:
        D = solve(lambda d: loss_at(law, N, d, unique), L, never)
    elif L and D:
        N = solve(lambda n: loss_at(law, n, D, unique), L, never)
    elif L:
        C = solve(lambda c: best_loss(law, c, unique), L, never)
    elif N and not (C or D):
        C = solve(lambda c: best_size(law, c, unique), N, f"no budget's best is {N:.3g} parameters")
    elif D and not (C or N):
        C = solve(lambda c: c / (6 * best_size(law, c, unique)), D, f"no budget's best is {D:.3g} tokens")
    if not N:
        N = C / (6 * D) if D else best_size(law, C, unique)
    return N, D or C / (6 * N)


def serving_optimum(law: dict, loss: float, served: float) -> tuple[float, float]:
    """(N, D) of least 6 N D + 2 N `served` FLOPs to reach `loss` (Sardana et al. 2024). Raises UserError."""
    never = f"a loss of {loss:.4g} cannot be reached like this"
    largest = best_size(law, solve(lambda c: best_loss(law, c), loss, never))
    smallest = solve(lambda n: loss_at(law, n, 1e40), loss, never)

    def tokens(N):
        return solve(lambda d: loss_at(law, N, d), loss, never)

    def log_cost(x):
        return x + math.log(6 * tokens(math.exp(x)) + 2 * served)
    bounds = (math.log(smallest * 1.0001), math.log(largest * 1.01))
    found = minimize_scalar(log_cost, bounds=bounds, method="bounded", options={"xatol": 1e-8})
    return math.exp(found.x), tokens(math.exp(found.x))


# ---- The study: its recipe, its speed and its text. ----

class Study(NamedTuple):
    """What a study's runs say about how such a model is trained."""
    settings: dict                         # for train.py, of the run nearest to the plan
    vocab: int
    n_layer: int                           # the trend of its depths and heads, at the size of the plan
    n_head: int


def study_of(table: dict, N: float, D: float) -> Study | None:
    """What the runs of `table` say for N parameters and D tokens; None where they are not this project's."""
    if not {"run", "dataset", "n_layer", "n_head", "batch_tokens", "block_size", "learning_rate"} <= {*table}:
        return None
    runs = final_runs(table)
    rows = [table["run"].tolist().index(run) for run in runs["run"]]
    near = rows[np.argmin(np.log(runs["N"] / N) ** 2 + np.log(runs["D"] / D) ** 2)]
    row = {name: values[near] for name, values in table.items()}
    row["batch_size"] = row["batch_tokens"] / row["block_size"]
    x = np.log(runs["N"])
    slope = int(np.ptp(x) > 0.1)                       # runs of one size have no trend

    def trend(name):
        line = np.polyfit(x, np.log(table[name][rows]), slope)
        return max(1, round(math.exp(np.polyval(line, math.log(N)))))
    return Study(recipe(row), int(row["params_head"] / row["n_embd"]), trend("n_layer"), trend("n_head"))


def recipe(row: dict) -> dict:
    """The settings for train.py that a row of runs.csv records; where a cell is empty it says nothing."""
    filled = {name: row[name] for name in RECIPE if cell(row.get(name))}
    return {name: type(getattr(Config, name))(value) for name, value in filled.items()}


def speed(tok_per_s: str, table: dict) -> float:
    """FLOPs per second of one device: as --tok_per_s says, else of the largest model; nan if unknown."""
    if tok_per_s:
        try:
            tokens, params = map(float, tok_per_s.split("@"))
        except ValueError:
            tokens = params = 0.0
        if not (0 < tokens < math.inf and 0 < params < math.inf):
            raise UserError(f"--tok_per_s={tok_per_s}: give tokens per second and the size of the model that "
                            "was timed, as in 90000@124e6")
        return 6 * tokens * params
    if not {"flops_exact", "wall_s", "params_total"} <= set(table):
        return math.nan
    largest = np.argmax(table["params_total"])
    return float(table["flops_exact"][largest] / table["wall_s"][largest])


def text_of(dataset: str) -> dict:
    """meta.json of data/DATASET; {} when it is not there. Raises UserError."""
    absent = plain_name(dataset) and not (basics.ROOT / "data" / dataset / "meta.json").exists()
    return {} if absent or not dataset else settings.load_meta(dataset)


# ---- The shape of the model. ----

def size(c: Config, convention: str) -> float:
    """Parameters of a model as the law counts them (scaling.laws.counts)."""
    groups = settings.count_params(c)
    table = {f"params_{name}": np.array([count]) for name, count in groups.items()}
    return float(counts.params(table, counts.DEFAULT_PARAMS if convention == "as given" else convention)[0])


def head_width(width: int, head_size: int, heads: int) -> int:
    """How wide a head is: as asked, as so many heads make it, or what is common at this width."""
    if head_size:
        return head_size
    if heads:
        return width // heads
    if width >= 256:
        return 64
    return 32 if width >= 128 else 16


def shape(N: float, base: Config, convention: str, head_size: int = 0, study: Study | None = None) -> Config:
    """`base` with the n_layer, n_head and n_embd that come nearest to N parameters. Raises UserError.

    With a study, depth and heads are near what it would take; without, the width is 64 times the depth, and a
    head 64, 32 or 16 wide. Depth against width hardly bears on the loss (Kaplan et al. 2020, figure 5), so a
    miss in N weighs more.
    """
    if head_size < 0:
        raise UserError(f"--head_size={head_size}: a head must have a positive width, such as 64")
    heads = study.n_head if study and not head_size else 0
    unit = head_size or math.lcm(8, heads or 16)
    tried = []                                         # (cost, miss in log N, n_layer, n_embd)
    smallest = math.inf
    for width in range(unit, max(32768, 2 * unit), unit):
        if width % head_width(width, head_size, heads):
            continue
        none, one = (size(dataclasses.replace(base, n_layer=k, n_embd=width), convention) for k in (0, 1))
        smallest = min(smallest, one)
        depth = (N - none) / (one - none)
        for n_layer in {max(1, math.floor(depth)), max(1, math.ceil(depth))}:
            miss = math.log((none + n_layer * (one - none)) / N)
            odd = 0.001 * math.log(width / n_layer / 64) ** 2
            if study:
                odd = 0.5 * math.log(n_layer / study.n_layer) ** 2
            tried.append((miss ** 2 + odd, miss, n_layer, width))
        if one > 4 * N:
            break                                      # wider ones are larger still
    _, miss, n_layer, width = min(tried)
    if abs(miss) > 0.35:
        raise UserError(f"no GPT has {N:.3g} parameters ({convention}): with a vocabulary of "
                        f"{base.vocab_size} and widths from {unit} the smallest has {smallest:,.0f}; change "
                        "goal or --head_size")
    head = head_width(width, head_size, heads)
    return dataclasses.replace(base, n_layer=n_layer, n_head=width // head, n_embd=width)


def shape_of(c: Config) -> dict:
    return {name: getattr(c, name) for name in ("n_layer", "n_head", "n_embd")}


def vocabulary(dataset: str) -> int:
    """The vocabulary of data/DATASET, or GPT-2's without one. Raises UserError."""
    return settings.load_meta(dataset)["vocab_size"] if dataset else 50257


# ---- The plan. ----

class Plan(NamedTuple):
    """What the table shows and the config needs."""
    N: float                               # what the law asks for
    D: float
    serving: tuple | None                  # the N and D that serving nobody would take
    ci: dict                               # 95 % intervals of N and D, where they are the law's optimum
    model: Config                          # of the nearest shape
    params: float                          # its size as the law counts
    tokens: float                          # as many as the budget buys in exact FLOPs, or D
    flops: float                           # exact
    config: dict                           # settings for train.py, all but out_dir
    loss: dict                             # {predicted, by} and, where known, {lo95, hi95}
    hours: float                           # nan without a speed
    notes: list[str]

    @property
    def C(self) -> float:
        return 6 * self.N * self.D

    @property
    def steps(self) -> int:
        return max(1, round(self.tokens / (self.config["batch_size"] * self.config["block_size"])))


def check_limits(o: Options) -> None:
    """Raise UserError for numbers that can only be slips of a unit."""
    for key, (low, high, unit) in LIMITS.items():
        value = getattr(o, key)
        if value and not low <= value <= high:
            slip = f"; did you mean --flops={value:g}?" if key in ("tokens", "params") else ""
            raise UserError(f"--{key}={value:g} cannot be meant: {unit} go from {low:g} to {high:g}{slip}")


def goal(law: dict, o: Options, rate: float) -> tuple[float, float, bool]:
    """(N, D, is it a budget in FLOPs?) that the options ask for. Raises UserError."""
    C = o.flops
    other = o.flops or o.params or o.tokens or o.loss
    if o.gpu_hours or (o.deadline and not other):
        if o.flops:
            raise UserError("--flops and --gpu_hours are both budgets; give one")
        if math.isnan(rate):
            raise UserError("hours need a speed: give --tok_per_s=TOKENS@PARAMS, or runs.csv beside fit.json")
        C = (o.gpu_hours or o.deadline * o.gpus) * 3600 * rate
    if not C and not other:
        raise UserError("nothing to plan for: give --flops, --gpu_hours, --loss, --params or --tokens")
    N, D = solve_goal(law, C, o.params, o.tokens, o.loss, o.unique_tokens)
    if law["form"] == "frontier" and abs(math.log(N / best_size(law, 6 * N * D))) > 1e-6:
        loss_at(law, N, D)                             # which such a law cannot say
    return N, D, bool(C) and not o.tokens


def make_plan(law: dict, o: Options, table: dict | None = None) -> Plan:
    """The plan for these options, with the `table` of the runs behind the law, if any. Raises UserError."""
    check_limits(o)
    table = table or {}
    rate = speed(o.tok_per_s, table)
    N, D, budgeted = goal(law, o, rate)
    serving = None
    if o.inference_tokens:
        if o.unique_tokens:
            raise UserError("--inference_tokens and --unique_tokens cannot be combined; plan for one of them")
        serving = (N, D)
        N, D = serving_optimum(law, loss_at(law, N, D), o.inference_tokens)
        budgeted = False
    C = 6 * N * D
    study = study_of(table, N, D)
    config = dict(study.settings) if study else {}
    config["dataset"] = o.dataset or config.get("dataset", "")
    config["block_size"] = o.block_size or config.get("block_size", 1024)
    vocab = study.vocab if study and not o.dataset else vocabulary(o.dataset)
    model = shape(N, Config(**config, vocab_size=vocab), law["params"], o.head_size, study)
    cost = settings.count_flops(model)["total"]
    tokens = C / cost if budgeted else D
    params = size(model, law["params"])
    config |= shape_of(model) | batch(tokens, C, config)
    horizon, wanted = ("target_flops", tokens * cost) if budgeted else ("target_tokens", tokens)
    config[horizon] = float(f"{wanted:.10g}")          # as people write it: 2e12, not 1999999999999.9998
    best = not o.unique_tokens and abs(math.log(N / best_size(law, C))) < 1e-6
    return Plan(
        N=N, D=D, serving=serving,
        ci=forms.optimum(law, C)["ci"] if best else {},
        model=model, params=params, tokens=tokens, flops=tokens * cost, config=config,
        loss=predict(law, table, params, tokens, o.unique_tokens),
        hours=tokens * cost / rate / 3600 / o.gpus,
        notes=notes(law, o, C, tokens, study))


def batch(tokens: float, C: float, config: dict) -> dict:
    """{batch_size, learning_rate}: the study's, or by the rule of C (config.settings).

    The batch is at most a hundredth of the run, so that the schedule has steps to act on.
    """
    block = config["block_size"]
    rows = settings.batch_rows(C, tokens, block)
    if "batch_size" in config:
        rows = max(1, min(config["batch_size"], int(tokens / block / 100)))
    return {"batch_size": rows, "learning_rate": config.get("learning_rate") or settings.rate(C)}


def predict(law: dict, table: dict, N: float, D: float, unique: float) -> dict:
    """{predicted, by} and, where known, {lo95, hi95}: the study's forecast, else the law's own."""
    if law["form"] == "frontier":
        return {"predicted": best_loss(law, 6 * N * D), "by": "the frontier, were this its best run"}
    if table and not unique:
        return forecast.predict(table, law["fit"], N, D) | {"by": "scaling.forecast, two forms"}
    found = {"predicted": float(loss_at(law, N, D, unique)), "by": "the law; it has no interval"}
    if law["boot"]:
        draws = loss_at(forms.draws_of(law) | {"form": "surface"}, N, np.array([D]), unique)
        found["lo95"], found["hi95"] = solver.interval(forms.with_noise(draws, law["noise"])[:, 0])
        found["by"] = "the law and its residuals; other forms would differ"
    return found


def notes(law: dict, o: Options, C: float, tokens: float, study: Study | None) -> list[str]:
    """What a careful planner would add."""
    out = [f"C is {x:.3g} times outside what the law was fitted on: an extrapolation"
           for x in forms.outside(law, C=C).values()]
    if 0 < o.unique_tokens < tokens:
        out.append(UNIDENTIFIED)
    fitted_on = study.settings["dataset"] if study else ""
    if o.dataset and fitted_on not in ("", o.dataset):
        out.append(f"the law was fitted on {fitted_on}: on {o.dataset} another one holds")
    text = text_of(o.dataset or fitted_on).get("train_tokens", math.inf)
    if tokens > text and not o.unique_tokens:
        out.append(f"there are {amount(text)} tokens of this text: it is read {tokens / text:.3g} times, "
                   f"which the law ignores; add --unique_tokens={text}")
    if study and "parametrization" not in study.settings:
        out.append("settings that runs.csv does not record (parametrization, betas, weight decay, warmup) "
                   "are train.py's defaults")
    return out


# ---- What is shown. ----

def amount(x: float) -> str:
    """1.23B, 45.6M, 789."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= 1000 * unit:
            return f"{x:.3g}"
        if x >= 0.9995 * unit:
            return f"{x / unit:.3g}{name}"
    return f"{x:.3g}"


def duration(hours: float) -> str:
    if math.isnan(hours):
        return "unknown (add --tok_per_s=TOKENS@PARAMS)"
    if hours < 2:
        return f"{hours * 60:.3g} minutes"
    return f"{hours:.3g} hours" if hours < 72 else f"{hours / 24:.3g} days"


def law_text(law: dict) -> str:
    """The law's formula, its source, and what its N counts."""
    p = {k: f"{law[k]:.4g}" for k in ("E", "A", "B", "alpha", "beta", "a") if k in law}
    formula = "L = {E} + {A}/N^{alpha} + {B}/D^{beta}" if law["form"] == "surface" else "N_opt ~ C^{a}"
    return f"{formula.format(**p)} ({law['source']}; N is {law['params']})"


def plan_text(law: dict, plan: Plan, o: Options) -> str:
    """The plan as a table for people, what its neighbours cost, and the notes."""
    c = plan.model
    rows = plan.config["batch_size"]
    loss = plan.loss

    def span(key):
        return f" ({' to '.join(map(amount, plan.ci[key]))})" if key in plan.ci else ""
    band = f" ({loss['lo95']:.4f} to {loss['hi95']:.4f})" if "lo95" in loss else ""
    devices = f" on {o.gpus} devices" if o.gpus > 1 else ""
    states = 16 * settings.count_params(c)["total"]    # float32: weights, gradients, AdamW's two moments
    row = c.block_size * settings.activation_bytes(c, 2)
    out = [f"law       {law_text(law)}; brackets hold 95 % intervals",
           f"target    N {amount(plan.N)}{span('N_opt')}, D {amount(plan.D)}{span('D_opt')}, "
           f"{plan.D / plan.N:.3g} tokens per parameter",
           f"compute   C = 6 N D = {plan.C:.3g} FLOPs = {plan.C / counts.PF_DAY:.3g} PF-days",
           f"model     {c.n_layer} layers x {c.n_embd}, {c.n_head} heads of {c.n_embd // c.n_head}, "
           f"vocabulary {c.vocab_size}, context {c.block_size}: {amount(plan.params)} parameters",
           f"training  {amount(plan.tokens)} tokens, {plan.flops:.3g} exact FLOPs",
           f"batch     {plan.steps:,} steps of {rows} sequences or {amount(rows * c.block_size)} tokens; "
           f"learning rate {plan.config['learning_rate']:g}",
           f"loss      {loss['predicted']:.4f}{band} (by {loss['by']})",
           f"time      {duration(plan.hours)}{devices}",
           f"memory    {states / 1e9:.3g} GB of weights, gradients, AdamW; {row / 1e9:.3g} GB a row"]
    if o.unique_tokens:
        epochs = plan.tokens / o.unique_tokens
        out.append(f"data      {epochs:.4g} epochs of {amount(o.unique_tokens)} tokens")
    if plan.serving:
        out.append(serving_text(plan, o.inference_tokens))
    if law["form"] == "surface":
        out += neighbours(law, plan, o.unique_tokens)
    return "\n".join(out + [f"note: {line}" for line in plan.notes + misses(plan, o)])


def misses(plan: Plan, o: Options) -> list[str]:
    """Where the plan falls short of what was asked."""
    out = []
    if o.deadline and plan.hours > 1.001 * o.deadline:
        needed = math.ceil(plan.hours * o.gpus / o.deadline)
        out.append(f"this misses the deadline of {o.deadline:g} hours; {needed} such devices would not")
    if abs(math.log(plan.params / plan.N)) > 0.1:
        out.append(f"the nearest shape has {plan.params / plan.N:.2f} times the parameters asked for")
    return out


def serving_text(plan: Plan, served: float) -> str:
    """What the smaller, longer-trained model saves over its life."""
    N, D = plan.serving
    own = plan.C + 2 * plan.N * served
    other = 6 * N * D + 2 * N * served
    return (f"serving   {own:.3g} FLOPs with {amount(served)} tokens served; {amount(N)} parameters after "
            f"{amount(D)} tokens, of the same loss, would take {other:.3g}: {1 - own / other:.1%} saved")


def neighbours(law: dict, plan: Plan, unique: float) -> list[str]:
    """Loss against size, that is against tokens per parameter, for the plan's C = 6 N D."""
    out = [f"{'N':>10}{'D':>10}{'D/N':>10}{'loss':>10}{'change':>10}  serving (all with C = {plan.C:.3g})"]
    here = loss_at(law, plan.N, plan.D, unique)
    for m in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4):
        N = plan.N * m
        D = plan.D / m
        loss = loss_at(law, N, D, unique)
        out.append(f"{amount(N):>10}{amount(D):>10}{D / N:>10.3g}{loss:>10.4f}{loss / here - 1:>+10.2%}"
                   f"  {m:.3g}x")
    return out


# ---- A config that runs. ----

def write_new(path: str, text: str, folder: str) -> None:
    """Write a .py file that does not exist yet. Raises UserError."""
    if Path(path).suffix != ".py" or not Path(path).stem.isidentifier():
        raise UserError(f"--write={path}: give a new Python file, such as {folder}/my_plan.py")
    try:
        with open(path, "x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists; choose another name or delete it") from None
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from None


def write_config(path: str, law: dict, plan: Plan) -> str:
    """Write the plan as a config for train.py, which would accept it. Raises UserError."""
    if not plan.config["dataset"]:
        raise UserError("a config needs data: add --dataset=NAME, a directory under data/")
    values = {"out_dir": f"out/{Path(path).stem}"} | plan.config
    run = settings.resolve(set_fields(Config(), {k: (v, path) for k, v in values.items()}))
    c = run.config
    if abs(run.C / plan.flops - 1) > 0.02:
        raise UserError(f"{c.max_iters} steps of {c.batch_size} x {c.block_size} tokens make {run.C:.3g} "
                        f"FLOPs, not the {plan.flops:.3g} planned; take a smaller --block_size")
    head = (f"# python train.py {path}\n# Planned with {law['source']}: {run.C:.3g} FLOPs, expected loss "
            f"{plan.loss['predicted']:.4f}, time {duration(plan.hours)}.\n")
    write_new(path, head + "".join(f"{k} = {v!r}\n" for k, v in values.items()), "config")
    return f"wrote {path}: {c.max_iters:,} steps, {run.C:.4g} exact FLOPs; run: python train.py {path}"


# ---- Which runs next? ----

def next_text(law: dict, table: dict, folder: Path, o: Options) -> str:
    """The runs to add next and, with --write, the sweep file that makes them. Raises UserError."""
    if not o.flops:
        raise UserError("--next needs the budget whose optimum is in question: add --flops=TARGET")
    if not table or law["form"] != "surface":
        raise UserError("--next needs a fit.json with a surface, and its runs.csv beside it")
    runs = final_runs(table, law["params"])
    N = runs["N"]
    study = study_of(table, N.max(), runs["D"].max())
    if not study:
        raise UserError(f"{folder / 'runs.csv'} lacks columns of a study of this project, which --next needs")
    base = Config(**study.settings, vocab_size=study.vocab)
    wanted = np.geomspace(N.min(), 4 * N.max(), 40)
    models = [shape(n, base, law["params"], o.head_size, study) for n in wanted]
    by_size = {size(c, law["params"]): c for c in models}
    cost = np.array([settings.count_flops(c)["total"] for c in by_size.values()])
    most = o.unique_tokens or text_of(base.dataset).get("train_tokens", math.inf)
    found = design.next_runs(law, N, runs["D"], o.flops, o.next, np.array(list(by_size)), cost, most)
    out = [f"N_opt at {o.flops:.3g} FLOPs is known to a factor {math.exp(found.before):.3g} (95 %); after "
           f"these {len(found.N)} runs, {o.next:.3g} FLOPs in all: {math.exp(found.after):.3g}"]
    stem = Path(o.write).stem or "next"
    listed = ""
    for i, (n, D) in enumerate(zip(found.N.tolist(), found.D.tolist()), 1):
        c = by_size[n]
        out.append(f"  {amount(n):>7} parameters ({c.n_layer} layers x {c.n_embd}) on {amount(D)} tokens")
        run = dict(name=f"{stem}_{i}", **shape_of(c), target_tokens=round(D), seed=i)
        listed += f"    {run!r},\n"
    if o.write:
        head = (f"# python -m scaling.sweep {o.write}\n"
                f"# Chosen by scaling.plan to pin down N_opt at {o.flops:.3g} FLOPs.\n")
        write_new(o.write, f"{head}base = {study.settings!r}\nruns = [\n{listed}]\n", "scaling/sweeps")
        out.append(f"wrote {o.write}; run it, then join both: "
                   f"python -m scaling.logs {folder} out/{stem} --out=runs.csv")
    return "\n".join(out)


# ---- Two recipes. ----

def multiplier(first: dict, second: dict, C: float) -> dict:
    """{C, factor, lo, hi}: how many times C `first` needs for the loss that `second` reaches with C.

    Both at their optimum, where L = E + K C^-g (Hoffmann et al. 2022, equation 4); inf where `first` never
    gets there. The interval pairs bootstrap draws of the two at random.
    """
    def factor(p, q):
        target = forms.surface_optimum(q, C)[2] - p["E"]
        left = forms.surface_optimum(p, C)[2] - p["E"]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (left / target) ** ((p["alpha"] + p["beta"]) / (p["alpha"] * p["beta"]))
        return np.where(target > 0, ratio, np.inf)
    p = forms.draws_of(first)
    q = forms.draws_of(second)
    n = min(len(p["E"]), len(q["E"]))
    order = np.random.default_rng(0).permutation(n)
    draws = factor({k: v[:n, 0] for k, v in p.items()}, {k: v[order, 0] for k, v in q.items()})
    lo, hi = np.percentile(draws, [2.5, 97.5], method="closest_observation")    # some may be infinite
    return {"C": C, "factor": float(factor(first, second)), "lo": float(lo), "hi": float(hi)}


def compare_text(paths: list[str], C: float) -> str:
    """The compute multiplier of two fits, at C or at the largest that both have seen. Raises UserError."""
    if len(paths) != 2:
        raise UserError(f"--compare takes two fits, not {len(paths)}: --compare A/fit.json B/fit.json")
    first, second = (load_law(path)[0] for path in paths)
    if any(law["form"] != "surface" or not law["boot"] for law in (first, second)):
        raise UserError("--compare needs fit.json with a surface and its bootstrap; published laws have none")
    m = multiplier(first, second, C or min(first["range"]["C"][1], second["range"]["C"][1]))
    verdict = "not clearly more or less"
    if m["hi"] < 1:
        verdict = "less"
    elif m["lo"] > 1:
        verdict = "more"
    return (f"for the loss that {paths[1]} reaches with {m['C']:.3g} FLOPs, {paths[0]} needs "
            f"{m['factor']:.3g} times that (95 % {m['lo']:.3g} to {m['hi']:.3g}): {verdict} compute\n"
            "note: both must come from the same text and tokenizer, and count N alike")


# ---- Command line. ----

def answer(name: str, o: Options) -> None:
    """Print what to train, or with --next which runs to add, by the law `name`. Raises UserError."""
    law, table = load_law(name)
    if o.next:
        print(next_text(law, table, Path(name).parent, o))
        return
    plan = make_plan(law, o, table)
    print(plan_text(law, plan, o))
    if o.write:
        print(write_config(o.write, law, plan))
    if o.figure:
        if Path(o.figure).suffix != ".png":
            raise UserError(f"--figure={o.figure}: the name must end in .png")
        loss_at(law, plan.N, plan.D)                   # refuses a law of the frontier
        from scaling import plots  # here, because a plan without a figure runs without matplotlib
        plots.save(plots.plan_figure(law, plan.N, plan.D, plan.ci.get("N_opt")), Path(o.figure))
        print(f"wrote {o.figure}")


def main(args: list[str] | None = None) -> None:
    given, names = read_args(sys.argv[1:] if args is None else args)
    if {"help", "h"} & set(given) or not (given or names):
        print(__doc__ + help_text(Options))
        return
    o = set_fields(Options(), given)
    check_limits(o)
    if o.compare:
        print(compare_text(names, o.flops))
        return
    if len(names) != 1:
        raise UserError(f"give one law, not {len(names)}: a fit.json or one of {', '.join(PUBLISHED)}")
    try:
        answer(names[0], o)
    except (*MALFORMED, IndexError, ZeroDivisionError) as e:
        if names[0] in PUBLISHED:
            raise
        raise UserError(f"{names[0]} is not as scaling.fit writes it ({type(e).__name__}: {e}); fit "
                        "again") from None


if __name__ == "__main__":
    exit_cleanly(main)
