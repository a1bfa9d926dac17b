"""From a budget to a run: model size, tokens, shape, batch, learning rate, hours, and a config that train.py
runs.

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
import math
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from config.configurator import help_text, read_args, set_fields
from runtime.basics import UserError, exit_cleanly, load_json, plain_name
from scaling import forecast
from scaling.laws import counts
from scaling.laws import forms as laws
from scaling.tables.csv import MALFORMED, read_table

ROOT = Path(__file__).resolve().parents[1]
# What the laws were fitted on: Hoffmann et al. 2022, abstract and section 3.2; Kaplan et al. 2020, section 3.
HOFFMANN_RANGE = {"N": [7e7, 1.6e10], "D": [5e9, 5e11], "C": [6e18, 3e21]}
PUBLISHED = {
    # Before rounding (Besiroglu et al. 2024): the exponents as printed, .34 and .28, move N_opt by a sixth.
    "hoffmann": {"form": "surface", "E": math.exp(0.5267228), "A": math.exp(6.0073404),
                 "B": math.exp(6.0179186), "alpha": 0.33917084, "beta": 0.2849083, "range": HOFFMANN_RANGE,
                 "params": "total", "boot": {}, "source": "Hoffmann et al. 2022, approach 3, unrounded"},
    "besiroglu": {"form": "surface", "E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658,
                  "range": HOFFMANN_RANGE, "params": "total", "boot": {}, "source": "Besiroglu et al. 2024"},
    "muennighoff": laws.C4 | {"form": "surface", "range": {"C": [4e15, 1e22]}, "params": "total", "boot": {},
                              "source": "Muennighoff et al. 2023, C4"},
    # N_opt = 1.3e9 C^.73 and L = (3.1e8/C)^.050, C in PF-days (Kaplan et al. 2020, figure 14 and eq. 1.3).
    "kaplan": {"form": "frontier", "log_k": math.log(1.3e9 / counts.PF_DAY ** 0.73), "a": 0.73, "L_inf": 0.0,
               "gamma": 0.050, "log_C_c": math.log(3.1e8 * counts.PF_DAY), "range": {"C": [1e11, 2e20]},
               "params": "non_embedding", "boot": {}, "source": "Kaplan et al. 2020, compute-efficient"},
}
DECAY = {k: laws.C4[k] for k in ("R_D", "R_N")}
UNIDENTIFIED = ("how much repeated tokens are worth is poorly known: R_D* = 15.4 was published, but on those "
                "182 runs R_D* = 95 fits slightly better, and the bootstrap's 95 % interval is 5 to 1e12")
LIMITS = {"flops": (1e6, 1e30, "FLOPs"), "tokens": (1e3, 1e16, "tokens"), "params": (100, 1e14, "parameters"),
          "loss": (1e-3, 20, "nats per token"), "gpu_hours": (1e-6, 1e11, "hours"),
          "deadline": (1e-6, 1e6, "hours"), "unique_tokens": (1e3, 1e16, "tokens"),
          "inference_tokens": (1, 1e20, "tokens"), "next": (1e6, 1e30, "FLOPs"), "gpus": (1, 1e7, "devices")}


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

def load_law(name: str) -> tuple[dict, Path | None]:
    """(law, its study's directory or None) of a published name or of a fit.json. Raises UserError."""
    if name in PUBLISHED:
        return PUBLISHED[name], None
    if not name.endswith(".json"):
        raise UserError(f"unknown law {name!r}: give a fit.json or one of {', '.join(PUBLISHED)}")
    fit, folder = load_json(name), Path(name).parent
    law = fit.get("surface") or fit.get("isoflop")
    if not law:
        raise UserError(f"{name} holds neither a surface nor an isoflop fit; fit again with more runs")
    law |= {"form": "surface" if fit.get("surface") else "frontier", "source": f"{name}, {law['n']} runs"}
    law |= {"params": fit["data"]["params"], "fit": fit}
    return law, folder if (folder / "runs.csv").exists() else None


def loss_at(law: dict, N: float, D: float, unique: float = 0.0) -> float:
    """Loss of N parameters after D tokens, of which at most `unique` differ (0: all do). Raises UserError."""
    if law["form"] == "frontier":
        raise UserError("this law knows only the best run of each budget: give --flops, --params, --tokens "
                        "or --loss alone, or take a surface such as hoffmann or besiroglu")
    return laws.repeated_loss(DECAY | law, N, D, unique) if unique else laws.surface_loss(law, N, D)


def best_size(law: dict, C: float, unique: float = 0.0) -> float:
    """N that minimises the loss for C = 6 N D."""
    of = laws.surface_optimum if law["form"] == "surface" else laws.power_optimum
    N = float(of(law, C)[0])
    if not unique or C / (6 * N) <= unique:
        return N
    loss_at(law, N, 1.0, unique)                       # refuses a law of the frontier
    return laws.repeated_optimum(DECAY | law, C, unique)[0]


def best_loss(law: dict, C: float, unique: float = 0.0) -> float:
    """Loss of the best run for C = 6 N D."""
    if law["form"] == "frontier":
        return float(laws.power_optimum(law, C)[2])
    N = best_size(law, C, unique)
    return float(loss_at(law, N, C / (6 * N), unique))


def solve(f, target: float, otherwise: str) -> float:
    """The x from 1 to 1e40 where the monotonic f is `target`. Raises UserError(`otherwise`) without one."""
    def gap(log_x):
        return math.log(f(math.exp(log_x)) / target)
    if gap(0.0) * gap(92.0) > 0:
        raise UserError(f"{otherwise}; without limit it would come to {f(math.exp(92.0)):.4g}")
    return math.exp(brentq(gap, 0.0, 92.0, xtol=1e-12))


# ---- The goal: one of C, N, D and L, or two of them, fix N and D. ----

def contradiction(C: float, N: float, D: float) -> str:
    """What is wrong with a budget, a size and a number of tokens for which 6 N D is not C, and what holds."""
    return (f"{N:.3g} parameters on {D:.3g} tokens take 6 N D = {6 * N * D:.2g} FLOPs, {6 * N * D / C:.2g} "
            f"times the {C:.2g} given: these buy {C / 6 / N:.3g} tokens for {N:.3g} parameters, or "
            f"{C / 6 / D:.3g} parameters for {D:.3g} tokens; N = D = sqrt(C/6) would be "
            f"{math.sqrt(C / 6):.3g} of each, one token per parameter; give two of the three")


def solve_goal(law: dict, C: float, N: float, D: float, L: float, unique: float = 0.0) -> tuple[float, float]:
    """(N, D) from those of C (FLOPs, 6 N D), N, D and L (loss) that are not 0. Raises UserError."""
    given = "".join(k for k, v in zip("CNDL", (C, N, D, L)) if v)
    if given.startswith("CND") and abs(math.log(6 * N * D / C)) > 0.01:
        raise UserError(contradiction(C, N, D))
    if given in ("CL", "CNL", "CDL", "NDL", "CNDL"):
        raise UserError("these goals say the same twice: N and D follow from two of flops, params and "
                        "tokens, and the loss from N and D; give fewer")
    never = f"a loss of {L:.4g} cannot be reached like this"
    if given == "NL":
        D = solve(lambda d: loss_at(law, N, d, unique), L, never)
    elif given == "DL":
        N = solve(lambda n: loss_at(law, n, D, unique), L, never)
    elif given == "L":
        C = solve(lambda c: best_loss(law, c, unique), L, never)
    elif given == "N":
        C = solve(lambda c: best_size(law, c, unique), N, f"no budget's best is {N:.3g} parameters")
    elif given == "D":
        C = solve(lambda c: c / (6 * best_size(law, c, unique)), D, f"no budget's best is {D:.3g} tokens")
    N = N or (C / (6 * D) if D else best_size(law, C, unique))
    return N, D or C / (6 * N)


def serving_optimum(law: dict, loss: float, served: float) -> tuple[float, float]:
    """(N, D) of least 6 N D + 2 N `served` FLOPs to reach `loss` (Sardana et al. 2024). Raises UserError."""
    never = f"a loss of {loss:.4g} cannot be reached like this"
    largest = best_size(law, solve(lambda c: best_loss(law, c), loss, never))
    smallest = solve(lambda n: loss_at(law, n, 1e40), loss, never)

    def tokens(N):
        return solve(lambda d: loss_at(law, N, d), loss, never)
    bounds = (math.log(smallest * 1.0001), math.log(largest * 1.01))
    found = minimize_scalar(lambda x: x + math.log(6 * tokens(math.exp(x)) + 2 * served), bounds=bounds,
                            method="bounded", options={"xatol": 1e-8})
    return math.exp(found.x), tokens(math.exp(found.x))


# ---- The shape of the model. ----

def body(n_layer: int, n_embd: int) -> int:
    """Parameters of model.GPT's blocks and last norm, without biases."""
    return n_layer * (12 * n_embd ** 2 + 2 * n_embd) + n_embd


def size(n_layer: int, n_embd: int, vocab: int, block: int, convention: str) -> float:
    """Parameters of a shape as the law counts them (scaling.counts)."""
    row = {"params_non_embedding": body(n_layer, n_embd), "params_head": vocab * n_embd,
           "params_total": body(n_layer, n_embd) + (vocab + block) * n_embd}
    convention = counts.DEFAULT_PARAMS if convention == "as given" else convention
    return float(counts.params({k: np.array([float(v)]) for k, v in row.items()}, convention)[0])


def flops_per_token(n_layer: int, n_embd: int, vocab: int, block: int) -> float:
    """Exact FLOPs per trained token, as model.GPT counts them (scaling.counts)."""
    row = dict(tokens=1, n_layer=n_layer, n_embd=n_embd, block_size=block, params_head=vocab * n_embd)
    return float(counts.flops({k: np.array([float(v)]) for k, v in row.items()}, "exact")[0])


def shape(N: float, vocab: int, block: int, convention: str, head_size: int = 0, family: dict | None = None):
    """{n_layer, n_head, n_embd} of the GPT nearest to N parameters. Raises UserError.

    `family` {n_layer, n_head} is what a study would take at N; without it the width is 64 times the depth,
    and a head 64, 32 or 16 wide. Depth against width hardly bears on the loss (Kaplan et al. 2020, figure 5),
    so a miss in N weighs more.
    """
    if head_size < 0:
        raise UserError(f"--head_size={head_size}: a head must have a positive width, such as 64")
    heads = family["n_head"] if family and not head_size else 0
    unit, best = head_size or math.lcm(8, heads or 16), math.inf
    for d in range(unit, max(32768, 2 * unit), unit):
        head = head_size or (d // heads if heads else 64 if d >= 256 else 32 if d >= 128 else 16)
        if d % head:
            continue
        deep = (N - size(0, d, vocab, block, convention)) / (12 * d * d + 2 * d)
        for depth in {max(1, math.floor(deep)), max(1, math.ceil(deep))}:
            miss = math.log(size(depth, d, vocab, block, convention) / N)
            odd, weight = (depth / family["n_layer"], 0.5) if family else (d / depth / 64, 0.001)
            cost = miss ** 2 + weight * math.log(odd) ** 2
            if cost < best:
                best, missed, found = cost, miss, dict(n_layer=depth, n_head=d // head, n_embd=d)
    if abs(missed) > 0.35:
        smallest = size(1, unit, vocab, block, convention)
        raise UserError(f"no GPT has {N:.3g} parameters ({convention}): with a vocabulary of {vocab} and "
                        f"widths from {unit} the smallest has {smallest:,.0f}; change goal or --head_size")
    return found


# ---- What the study did: its recipe and its speed. ----

def recipe(folder: Path | None, N: float, D: float) -> tuple[dict, dict]:
    """(settings of the study's run nearest to N and D, facts {vocab, family, partial}); both {} without a
    study.

    `family` is the study's depth and heads, extrapolated to N; `partial` says that the run's config.json is
    gone, so that only what runs.csv records is known.
    """
    table = read_table(folder / "runs.csv") if folder else {}
    if not {"dataset", "n_layer", "n_head", "batch_tokens", "block_size", "learning_rate"} <= set(table):
        return {}, {}
    runs = forecast.final_runs(table)
    rows = [int(np.flatnonzero(table["run"] == run)[0]) for run in runs["run"]]
    i = rows[np.argmin(np.log(runs["N"] / N) ** 2 + np.log(runs["D"] / D) ** 2)]
    x, block = np.log(runs["N"]), int(table["block_size"][i])
    trend = {k: np.polyfit(x, np.log(table[k][rows]), int(np.ptp(x) > 0.1)) for k in ("n_layer", "n_head")}
    settings = {"dataset": table["dataset"][i], "schedule": table["schedule"][i], "block_size": block,
                "batch_size": int(table["batch_tokens"][i] / block),
                "learning_rate": float(table["learning_rate"][i])}
    facts = {"vocab": int(table["params_head"][i] / table["n_embd"][i]),
             "family": {k: max(1, round(math.exp(np.polyval(v, math.log(N))))) for k, v in trend.items()}}
    path = folder / str(table["run"][i]) / "config.json"
    if not path.exists():
        return settings, facts | {"partial": True}
    config = load_json(path)
    derived = config["warmup_iters"] == round(config["warmup_frac"] * config["max_iters"])
    keys = ["parametrization", "base_width", "beta1", "beta2", "weight_decay", "cooldown_frac", "min_lr",
            "grad_clip", "tie_weights", "dropout", "bias", "warmup_frac" if derived else "warmup_iters"]
    return settings | {k: config[k] for k in keys}, facts


def speed(options: Options, folder: Path | None) -> float:
    """FLOPs per second of one device: --tok_per_s, else that of the study's largest model; nan if unknown."""
    if options.tok_per_s:
        try:
            tokens, params = map(float, options.tok_per_s.split("@"))
        except ValueError:
            tokens = params = 0.0
        if not (0 < tokens < math.inf and 0 < params < math.inf):
            raise UserError(f"--tok_per_s={options.tok_per_s}: give tokens per second and the size of the "
                            "model that was timed, as in 90000@124e6")
        return 6 * tokens * params
    table = read_table(folder / "runs.csv") if folder else {}
    if not {"flops_exact", "wall_s", "params_total"} <= set(table):
        return math.nan
    i = int(np.argmax(table["params_total"]))
    return float(table["flops_exact"][i] / table["wall_s"][i])


def text_of(dataset: str) -> dict:
    """meta.json of data/DATASET; {} when it is not there."""
    if dataset and not plain_name(dataset):
        raise UserError(f"dataset {dataset!r} must be the name of a directory under data/")
    path = ROOT / "data" / dataset / "meta.json"
    meta = load_json(path) if dataset and path.exists() else {}
    for key in ("vocab_size", "train_tokens") if meta else ():
        if type(meta.get(key)) is not int or meta[key] < 1:
            raise UserError(f"{path} lacks a valid {key}; prepare the dataset again")
    return meta


def vocabulary(dataset: str) -> int:
    """The vocabulary of data/DATASET, or GPT-2's without one. Raises UserError."""
    if dataset and not text_of(dataset):
        raise UserError(f"dataset {dataset!r} is not prepared; run: "
                        f"python data/{dataset.partition('_')[0]}/prepare.py")
    return int(text_of(dataset).get("vocab_size", 50257))


# ---- The plan. ----

def check_limits(o: Options) -> None:
    """Raise UserError for numbers that can only be slips of a unit."""
    for key, (low, high, unit) in LIMITS.items():
        value = getattr(o, key)
        if value and not low <= value <= high:
            slip = f"; did you mean --flops={value:g}?" if key in ("tokens", "params") else ""
            raise UserError(f"--{key}={value:g} cannot be meant: {unit} go from {low:g} to {high:g}{slip}")


def goal(law: dict, o: Options, rate: float) -> tuple[float, float, bool]:
    """(N, D, is it a budget in FLOPs?) that the options ask for. Raises UserError."""
    C, other = o.flops, o.flops or o.params or o.tokens or o.loss
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


def make_plan(law: dict, o: Options, folder: Path | None = None) -> dict:
    """What the table shows and the config needs. Raises UserError.

    N and D are what the law asks for. The nearest shape has `params` parameters and trains `tokens`: as many
    as the budget buys in exact FLOPs, or D where the goal is no budget.
    """
    check_limits(o)
    rate = speed(o, folder)
    N, D, budgeted = goal(law, o, rate)
    C = 6 * N * D
    plan = {"serving": (N, D) if o.inference_tokens else None}
    if o.inference_tokens:
        if o.unique_tokens:
            raise UserError("--inference_tokens and --unique_tokens cannot be combined; plan for one of them")
        N, D = serving_optimum(law, loss_at(law, N, D), o.inference_tokens)
        C, budgeted = 6 * N * D, False
    settings, facts = recipe(folder, N, D)
    dataset = o.dataset or settings.get("dataset", "")
    block = o.block_size or settings.get("block_size", 1024)
    vocab = vocabulary(o.dataset) if o.dataset or not facts else facts["vocab"]
    counted = (vocab, block)
    built = shape(N, *counted, law["params"], o.head_size, facts.get("family"))
    depth, width = built["n_layer"], built["n_embd"]
    cost = flops_per_token(depth, width, *counted)
    tokens, params = C / cost if budgeted else D, size(depth, width, *counted, law["params"])
    config = settings | dict(dataset=dataset, block_size=block) | built | batch(tokens, C, block, settings)
    best = not o.unique_tokens and abs(math.log(N / best_size(law, C))) < 1e-6
    # float32 weights, gradients and AdamW's two moments; activations of one sequence as in train.accumulation
    states = 16 * (body(depth, width) + sum(counted) * width)
    sequence = block * (34 * depth * width + 12 * vocab)
    return plan | {
        "N": N, "D": D, "C": C, "params": params, "tokens": tokens, "flops": tokens * cost, "config": config,
        "budgeted": budgeted, "ci": laws.optimum(law, C)["ci"] if best else {}, "vocab": vocab,
        "steps": max(1, round(tokens / (config["batch_size"] * block))), "bytes": (states, sequence),
        "hours": tokens * cost / rate / 3600 / o.gpus, "notes": notes(law, o, C, tokens, facts, settings),
        "loss": predict(law, folder, params, tokens, o.unique_tokens)}


def batch(tokens: float, C: float, block: int, settings: dict) -> dict:
    """{batch_size, learning_rate}: the study's; else 0.292 C^0.3271 tokens and 0.3118 C^-0.125 (Bi et al.
    2024, eq. 1).

    At most a hundredth of the run, so that the schedule has steps to act on.
    """
    rows = settings.get("batch_size") or 2 ** round(math.log2(max(1, 0.292 * C ** 0.3271 / block)))
    rate = settings.get("learning_rate") or float(f"{0.3118 * C ** -0.125:.2g}")
    return {"batch_size": max(1, min(rows, int(tokens / block / 100))), "learning_rate": rate}


def predict(law: dict, folder: Path | None, N: float, D: float, unique: float) -> dict:
    """{predicted, by} and, where known, {lo95, hi95}: the study's forecast, else the law's own."""
    if law["form"] == "frontier":
        return {"predicted": best_loss(law, 6 * N * D), "by": "the frontier, were this its best run"}
    if folder and not unique:
        found = forecast.predict(folder, law["fit"], N, D)
        return {k: found[k] for k in ("predicted", "lo95", "hi95")} | {"by": "scaling.forecast, two forms"}
    found = {"predicted": float(loss_at(law, N, D, unique)), "by": "the law; it has no interval"}
    if law["boot"]:
        draws = loss_at(laws.draws_of(law) | {"form": "surface"}, N, np.array([D]), unique)
        lo, hi = laws.interval(laws.with_noise(draws, law["noise"])[:, 0])
        found |= {"lo95": lo, "hi95": hi, "by": "the law and its residuals; other forms would differ"}
    return found


def notes(law: dict, o: Options, C: float, tokens: float, facts: dict, settings: dict) -> list[str]:
    """What a careful planner would add."""
    out = [f"C is {x:.3g} times outside what the law was fitted on: an extrapolation"
           for x in laws.outside(law, C=C).values()]
    if 0 < o.unique_tokens < tokens:
        out.append(UNIDENTIFIED)
    if o.dataset and o.dataset != settings.get("dataset", o.dataset):
        out.append(f"the law was fitted on {settings['dataset']}: on {o.dataset} another one holds")
    text = text_of(o.dataset or settings.get("dataset", "")).get("train_tokens", math.inf)
    if tokens > text and not o.unique_tokens:
        out.append(f"there are {amount(text)} tokens of this text: it is read {tokens / text:.3g} times, "
                   f"which the law ignores; add --unique_tokens={text}")
    if facts.get("partial"):
        out.append("the study's run directories are not here, so settings that runs.csv does not record "
                   "(parametrization, betas, weight decay, warmup) are train.py's defaults")
    return out


# ---- What is shown. ----

def amount(x: float) -> str:
    """1.23B, 45.6M, 789."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= 0.9995 * unit:
            return f"{x / unit:.3g}{name}" if x < 1000 * unit else f"{x:.3g}"
    return f"{x:.3g}"


def duration(hours: float) -> str:
    if math.isnan(hours):
        return "unknown (add --tok_per_s=TOKENS@PARAMS)"
    if hours < 2:
        return f"{hours * 60:.3g} minutes"
    return f"{hours:.3g} hours" if hours < 72 else f"{hours / 24:.3g} days"


def law_text(law: dict) -> str:
    p = {k: f"{law[k]:.4g}" for k in ("E", "A", "B", "alpha", "beta", "a") if k in law}
    formula = "L = {E} + {A}/N^{alpha} + {B}/D^{beta}" if law["form"] == "surface" else "N_opt ~ C^{a}"
    return f"{formula.format(**p)} ({law['source']}; N is {law['params']})"


def plan_text(law: dict, plan: dict, o: Options) -> str:
    """The plan as a table for people, what its neighbours cost, and the notes."""
    c, ci, loss, (states, sequence) = plan["config"], plan["ci"], plan["loss"], plan["bytes"]

    def span(key):
        return f" ({amount(ci[key][0])} to {amount(ci[key][1])})" if key in ci else ""
    band = f" ({loss['lo95']:.4f} to {loss['hi95']:.4f})" if "lo95" in loss else ""
    out = [f"law       {law_text(law)}; brackets hold 95 % intervals",
           f"target    N {amount(plan['N'])}{span('N_opt')}, D {amount(plan['D'])}{span('D_opt')}, "
           f"{plan['D'] / plan['N']:.3g} tokens per parameter",
           f"compute   C = 6 N D = {plan['C']:.3g} FLOPs = {plan['C'] / counts.PF_DAY:.3g} PF-days",
           f"model     {c['n_layer']} layers x {c['n_embd']}, {c['n_head']} heads of "
           f"{c['n_embd'] // c['n_head']}, vocabulary {plan['vocab']}, context {c['block_size']}: "
           f"{amount(plan['params'])} parameters",
           f"training  {amount(plan['tokens'])} tokens, {plan['flops']:.3g} exact FLOPs",
           f"batch     {plan['steps']:,} steps of {c['batch_size']} sequences or "
           f"{amount(c['batch_size'] * c['block_size'])} tokens; learning rate {c['learning_rate']:g}",
           f"loss      {loss['predicted']:.4f}{band} (by {loss['by']})",
           f"time      {duration(plan['hours'])}" + f" on {o.gpus} devices" * (o.gpus > 1),
           f"memory    {states / 1e9:.3g} GB of weights, gradients, AdamW; {sequence / 1e9:.3g} GB a row"]
    if o.unique_tokens:
        epochs = plan["tokens"] / o.unique_tokens
        out.append(f"data      {epochs:.4g} epochs of {amount(o.unique_tokens)} tokens")
    if plan["serving"]:
        out.append(serving_text(plan, o.inference_tokens))
    out += neighbours(law, plan, o.unique_tokens) if law["form"] == "surface" else []
    extra = list(plan["notes"])
    if o.deadline and plan["hours"] > 1.001 * o.deadline:
        needed = math.ceil(plan["hours"] * o.gpus / o.deadline)
        extra.append(f"this misses the deadline of {o.deadline:g} hours; {needed} such devices would not")
    if abs(math.log(plan["params"] / plan["N"])) > 0.1:
        extra.append(f"the nearest shape has {plan['params'] / plan['N']:.2f} times the parameters asked for")
    return "\n".join(out + [f"note: {line}" for line in extra])


def serving_text(plan: dict, served: float) -> str:
    """What the smaller, longer-trained model saves over its life."""
    (N, D), cost = plan["serving"], lambda N, D: 6 * N * D + 2 * N * served
    own, other = cost(plan["N"], plan["D"]), cost(N, D)
    return (f"serving   {own:.3g} FLOPs with {amount(served)} tokens served; {amount(N)} parameters after "
            f"{amount(D)} tokens, of the same loss, would take {other:.3g}: {1 - own / other:.1%} saved")


def neighbours(law: dict, plan: dict, unique: float) -> list[str]:
    """Loss against size, that is against tokens per parameter, for the plan's C = 6 N D."""
    out = [f"{'N':>10}{'D':>10}{'D/N':>10}{'loss':>10}{'change':>10}  serving (all with C = {plan['C']:.3g})"]
    here = loss_at(law, plan["N"], plan["D"], unique)
    for m in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4):
        N, D = plan["N"] * m, plan["D"] / m
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


def write_config(path: str, law: dict, plan: dict) -> str:
    """Write the plan as a config for train.py, once train.py itself has accepted it. Raises UserError."""
    import train  # torch: only writing needs it
    if not plan["config"]["dataset"]:
        raise UserError("a config needs data: add --dataset=NAME, a directory under data/")
    horizon = {"target_flops": plan["flops"]} if plan["budgeted"] else {"target_tokens": plan["tokens"]}
    settings = {"out_dir": f"out/{Path(path).stem}"} | plan["config"] | horizon
    c = set_fields(train.Config(), {k: (v, path) for k, v in settings.items()})
    meta = train.load_meta(c.dataset)
    train.check(c, meta, 1)
    c = train.derive(c, meta, "cpu", 1)
    exact = c.max_iters * c.batch_size * c.block_size * train.shape_counts(c)[1]["total"]
    if abs(exact / plan["flops"] - 1) > 0.02:
        raise UserError(f"{c.max_iters} steps of {c.batch_size} x {c.block_size} tokens make {exact:.3g} "
                        f"FLOPs, not the {plan['flops']:.3g} planned; take a smaller --block_size")
    head = (f"# python train.py {path}\n# Planned with {law['source']}: {exact:.3g} FLOPs, expected loss "
            f"{plan['loss']['predicted']:.4f}, time {duration(plan['hours'])}.\n")
    write_new(path, head + "".join(f"{k} = {v!r}\n" for k, v in settings.items()), "config")
    return f"wrote {path}: {c.max_iters:,} steps, {exact:.4g} exact FLOPs; run: python train.py {path}"


# ---- Two recipes. ----

def multiplier(first: dict, second: dict, C: float, level: float = laws.LEVEL) -> dict:
    """{C, factor, lo, hi}: how many times C `first` needs for the loss that `second` reaches with C.

    Both at their optimum, where L = E + K C^-g (Hoffmann et al. 2022, equation 4); inf where `first` never
    gets there. The interval pairs bootstrap draws of the two at random.
    """
    def factor(p, q):
        target = laws.surface_optimum(q, C)[2] - p["E"]
        left = laws.surface_optimum(p, C)[2] - p["E"]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (left / target) ** ((p["alpha"] + p["beta"]) / (p["alpha"] * p["beta"]))
        return np.where(target > 0, ratio, np.inf)
    p, q = laws.draws_of(first), laws.draws_of(second)
    n = min(len(p["E"]), len(q["E"]))
    order = np.random.default_rng(0).permutation(n)
    draws = factor({k: v[:n, 0] for k, v in p.items()}, {k: v[order, 0] for k, v in q.items()})
    lo, hi = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], method="closest_observation")
    return {"C": C, "factor": float(factor(first, second)), "lo": float(lo), "hi": float(hi)}


def compare_text(paths: list[str], C: float) -> str:
    """The compute multiplier of two fits, at C or at the largest that both have seen. Raises UserError."""
    if len(paths) != 2:
        raise UserError(f"--compare takes two fits, not {len(paths)}: --compare A/fit.json B/fit.json")
    first, second = (load_law(path)[0] for path in paths)
    if any(law["form"] != "surface" or not law["boot"] for law in (first, second)):
        raise UserError("--compare needs fit.json with a surface and its bootstrap; published laws have none")
    m = multiplier(first, second, C or min(first["range"]["C"][1], second["range"]["C"][1]))
    verdict = "less" if m["hi"] < 1 else "more" if m["lo"] > 1 else "not clearly more or less"
    return (f"for the loss that {paths[1]} reaches with {m['C']:.3g} FLOPs, {paths[0]} needs "
            f"{m['factor']:.3g} times that (95 % {m['lo']:.3g} to {m['hi']:.3g}): {verdict} compute\n"
            "note: both must come from the same text and tokenizer, and count N alike")


# ---- Which runs next? ----

def log_n_opt(theta: np.ndarray, center: np.ndarray, C: float) -> float:
    """log N_opt at C for theta of laws.additive, whose inputs are centred on `center` (log N, log D)."""
    _, a, alpha, b, beta = theta
    balance = np.log(alpha / beta) + a + alpha * center[0] - b - beta * center[1]
    return (balance + beta * np.log(C / 6)) / (alpha + beta)


def next_runs(law: dict, runs: dict, C: float, budget: float, sizes: np.ndarray, cost: np.ndarray,
              most: float = math.inf) -> dict:
    """{N, D: (k,) runs to add for `budget` FLOPs that best pin N_opt(C) down; before, after: its half-width}.

    `sizes` are the N to choose from and `cost` their FLOPs per token; half-widths are 95 % and of log N_opt.
    Its variance is g' M^-1 g, where M sums the outer products of the surface's Jacobian over the runs and g
    is the gradient of log N_opt. The budget is cut into 1, 2, 4, 8 or 16 equal runs, each of the size that
    lowers the variance most, given those before it (a greedy c-optimal design); the best cut wins. Such
    designs run to extremes, where the form is least certain, so no size is taken twice, tokens per parameter
    stay within twice the study's, and no run takes more than `most` tokens (all the text there is).
    """
    N, D = runs["N"], runs["D"]
    center, seen = np.log([N, D]).mean(1), D / N
    theta = np.array([np.log(law["E"]), np.log(law["A"]) - law["alpha"] * center[0], law["alpha"],
                      np.log(law["B"]) - law["beta"] * center[1], law["beta"]])
    g = np.array([(log_n_opt(theta + s, center, C) - log_n_opt(theta - s, center, C)) / 2e-6
                  for s in 1e-6 * np.eye(5)])

    def jacobian(N, D):
        return laws.additive(theta[None], np.log([N, D]) - center[:, None])[1][0]

    def width(M):
        return float(1.96 * law["noise"] * np.sqrt(g @ np.linalg.solve(M, g)))
    start = jacobian(N, D) @ jacobian(N, D).T
    best = {"before": width(start), "after": math.inf}
    for k in (1, 2, 4, 8, 16):
        tokens = budget / k / cost
        usable = (tokens / sizes > seen.min() / 2) & (tokens / sizes < 2 * seen.max()) & (tokens <= most)
        J, M, left = jacobian(sizes, tokens), start.copy(), np.flatnonzero(usable).tolist()
        chosen = []
        for _ in range(k if len(left) >= k else 0):
            x = np.linalg.solve(M, J[:, left])
            gain = (g @ x) ** 2 / (1 + (J[:, left] * x).sum(0))              # Sherman & Morrison 1950
            chosen.append(left.pop(int(gain.argmax())))
            M += np.outer(J[:, chosen[-1]], J[:, chosen[-1]])
        if chosen and width(M) < best["after"]:
            best |= {"N": sizes[chosen], "D": tokens[chosen], "after": width(M), "chosen": chosen}
    if "N" not in best:
        raise UserError(f"--next={budget:g}: no size of this study suits that budget; its runs took "
                        f"{(6 * N * D).min():.2g} to {(6 * N * D).max():.2g} FLOPs each")
    return best


def next_text(law: dict, folder: Path | None, o: Options) -> str:
    """The runs to add next and, with --write, the sweep file that makes them. Raises UserError."""
    if not o.flops:
        raise UserError("--next needs the budget whose optimum is in question: add --flops=TARGET")
    if folder is None or law["form"] != "surface":
        raise UserError("--next needs a fit.json with a surface, and its runs.csv beside it")
    runs = forecast.final_runs(read_table(folder / "runs.csv"), law["params"])
    settings, facts = recipe(folder, runs["N"].max(), runs["D"].max())
    if not settings:
        raise UserError(f"{folder / 'runs.csv'} lacks columns of a study of this project, which --next needs")
    counted, shapes = (facts["vocab"], settings["block_size"]), {}
    for N in np.geomspace(runs["N"].min(), 4 * runs["N"].max(), 40):
        built = shape(N, *counted, law["params"], o.head_size, facts["family"])
        shapes[size(built["n_layer"], built["n_embd"], *counted, law["params"])] = built
    cost = np.array([flops_per_token(b["n_layer"], b["n_embd"], *counted) for b in shapes.values()])
    most = o.unique_tokens or text_of(settings["dataset"]).get("train_tokens", math.inf)
    found = next_runs(law, runs, o.flops, o.next, np.array(list(shapes)), cost, most)
    stem = Path(o.write).stem or "next"
    listed = [dict(name=f"{stem}_{i}", **shapes[N], target_tokens=round(D), seed=i)
              for i, (N, D) in enumerate(zip(found["N"].tolist(), found["D"].tolist()), 1)]
    out = [f"N_opt at {o.flops:.3g} FLOPs is known to a factor {math.exp(found['before']):.3g} (95 %); after "
           f"these {len(listed)} runs, {o.next:.3g} FLOPs in all: {math.exp(found['after']):.3g}"]
    out += [f"  {amount(N):>7} parameters ({r['n_layer']} layers x {r['n_embd']}) on {amount(D)} tokens"
            for r, N, D in zip(listed, found["N"], found["D"])]
    if o.write:
        lines = "".join(f"    {run!r},\n" for run in listed)
        write_new(o.write, f"# python -m scaling.sweep {o.write}\n# Chosen by scaling.plan to pin down N_opt "
                  f"at {o.flops:.3g} FLOPs.\nbase = {settings!r}\nruns = [\n{lines}]\n", "scaling/sweeps")
        out.append(f"wrote {o.write}; run it, then join both: "
                   f"python -m scaling.logs {folder} out/{stem} --out=runs.csv")
    return "\n".join(out)


@contextmanager
def reading(name: str):
    """What goes wrong with a law that does not hold what scaling.fit writes, as a UserError."""
    try:
        yield
    except (*MALFORMED, IndexError, ZeroDivisionError) as e:
        if name in PUBLISHED:
            raise
        raise UserError(f"{name} is not as scaling.fit writes it ({type(e).__name__}: {e}); fit "
                        "again") from None


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
    with reading(names[0]):
        law, folder = load_law(names[0])
        plan = {} if o.next else make_plan(law, o, folder)
        print(next_text(law, folder, o) if o.next else plan_text(law, plan, o))
    if o.next:
        return
    if o.write:
        print(write_config(o.write, law, plan))
    if o.figure:
        if Path(o.figure).suffix != ".png":
            raise UserError(f"--figure={o.figure}: the name must end in .png")
        loss_at(law, plan["N"], plan["D"])             # refuses a law of the frontier
        from scaling import plots
        plots.save(plots.plan_figure(law, plan["N"], plan["D"], plan["ci"].get("N_opt")), Path(o.figure))
        print(f"wrote {o.figure}")


if __name__ == "__main__":
    exit_cleanly(main)
