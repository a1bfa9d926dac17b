"""From a budget to a run: model size, tokens, shape, batch, learning rate, hours, and a config that train.py runs.

    python -m scaling.plan LAW --flops=1e21                          # or one of the other goals; two fix N and D
    python -m scaling.plan LAW --gpu_hours=8 --tok_per_s=90000@124e6 --dataset=shakespeare --write=config/NAME.py
    python -m scaling.plan LAW --flops=1e22 --unique_tokens=25e9     # when data repeat (Muennighoff et al. 2023)
    python -m scaling.plan LAW --flops=1e22 --inference_tokens=1e13  # training and serving (Sardana et al. 2024)
    python -m scaling.plan out/STUDY/fit.json --flops=1e18 --next=1e15 --write=scaling/sweeps/NAME.py
    python -m scaling.plan --compare A/fit.json B/fit.json           # whose recipe needs less compute

LAW is a fit.json, or a published law: hoffmann, besiroglu, muennighoff or kaplan. With runs.csv beside fit.json the
study's own recipe, speed and forecast (scaling.forecast) are used. A budget buys exact FLOPs; a law's C is 6 N D.
"""
import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.optimize import brentq, minimize_scalar

from configurator import UserError, exit_cleanly, help_text, read_args, set_fields
from scaling import counts, forecast, laws, logs
from scaling.logs import load_json

ROOT = Path(__file__).resolve().parents[1]
UNFITTED = {"boot": {}, "ci": {}, "noise": 0.0}
SEEN = {"N": [7e7, 1.6e10], "D": [5e9, 5e11], "C": [6e18, 3e21]}             # Hoffmann et al. 2022, abstract, section 3.2
PUBLISHED = {
    # Unrounded, from Hoffmann et al.'s TeX source (Besiroglu et al. 2024): the printed .34 and .28 move N_opt by a fifth.
    "hoffmann": UNFITTED | {"form": "surface", "E": math.exp(0.5267228), "A": math.exp(6.0073404), "params": "total",
                            "B": math.exp(6.0179186), "alpha": 0.33917084, "beta": 0.2849083, "range": SEEN,
                            "source": "Hoffmann et al. 2022, approach 3, unrounded"},
    "besiroglu": UNFITTED | {"form": "surface", "E": 1.8172, "A": 482.01, "B": 2085.43, "alpha": 0.3478, "beta": 0.3658,
                             "range": SEEN, "params": "total", "source": "Besiroglu et al. 2024, equation 5"},
    "muennighoff": UNFITTED | laws.C4 | {"form": "surface", "params": "total", "source": "Muennighoff et al. 2023, C4",
                                         "range": {"N": [7e6, 9e9], "D": [1e8, 9e11], "C": [4e15, 1e22]}},
    # Kaplan et al. 2020, table 6 and equation 1.3: a law of the frontier only, with compute in PF-days.
    "kaplan": UNFITTED | {"form": "frontier", "log_k": math.log(1.3e9 / counts.PF_DAY ** 0.73), "a": 0.73, "L_inf": 0.0,
                          "gamma": 0.050, "log_C_c": math.log(3.1e8 * counts.PF_DAY), "params": "non_embedding",
                          "source": "Kaplan et al. 2020, N_opt and L(C_min)",
                          "range": {"N": [768, 1.5e9], "D": [2.2e7, 2.3e10], "C": [1e11, 2e20]}},
}
DECAY = {k: laws.C4[k] for k in ("R_D", "R_N")}
UNIDENTIFIED = ("the value of repeated tokens is poorly known: R_D* = 15.4 was published, but on those authors' 182 runs "
                "R_D* = 95 fits slightly better, and the bootstrap's 95 % interval is 5 to 1e12")
SLIPS = {"flops": (1e6, 1e30, "FLOPs"), "tokens": (1e3, 1e16, "tokens"), "params": (100, 1e14, "parameters"),
         "loss": (1e-3, 20, "nats per token"), "gpu_hours": (1e-6, 1e11, "GPU hours"), "deadline": (1e-6, 1e6, "hours"),
         "unique_tokens": (1e3, 1e16, "tokens"), "inference_tokens": (1, 1e20, "tokens"), "next": (1e6, 1e30, "FLOPs")}


@dataclass
class Options:
    # goal: one of these; or two of flops, params, tokens and loss, which fix N and D
    flops: float = 0.0                     # training budget, FLOPs
    gpu_hours: float = 0.0                 # the same as time on one GPU (or CPU), summed over all
    deadline: float = 0.0                  # hours until it must be done: a budget, or a check beside another goal
    loss: float = 0.0                      # nats per token to reach
    params: float = 0.0                    # size, in the law's own count
    tokens: float = 0.0                    # tokens to train on
    # circumstances
    gpus: int = 1                          # how many share the work
    tok_per_s: str = ""                    # measured on one, TOKENS@PARAMS: 90000@124e6; default: the study's
    unique_tokens: float = 0.0             # all the text there is; more tokens repeat it
    inference_tokens: float = 0.0          # tokens to be served over the model's life
    # model and output
    dataset: str = ""                      # directory under data/; default: the study's, else GPT-2's 50257 tokens
    block_size: int = 0                    # tokens of context; default: the study's, else 1024
    head_size: int = 0                     # width of an attention head; default: 64, less for widths below 256
    write: str = ""                        # config/NAME.py, or with --next scaling/sweeps/NAME.py
    figure: str = ""                       # .png or .pdf: the plan on the loss surface
    # other questions
    compare: bool = False                  # two fit.json: the compute multiplier between their recipes
    next: float = 0.0                      # FLOPs for more small runs: those that pin N_opt(--flops) down best


# ---- The law. ----

def load_law(name: str) -> tuple[dict, Path | None]:
    """(law, study directory or None) of a published name or of a fit.json. Raises UserError."""
    if name in PUBLISHED:
        return PUBLISHED[name], None
    if not name.endswith(".json"):
        raise UserError(f"unknown law {name!r}: give a fit.json or one of {', '.join(PUBLISHED)}")
    fit = load_json(name)
    law = fit.get("surface") or fit.get("isoflop")
    if not law:
        raise UserError(f"{name} holds neither a surface nor an isoflop fit; fit again with more runs")
    folder = Path(name).parent if (Path(name).parent / "runs.csv").exists() else None
    return law | {"form": "surface" if "surface" in fit else "frontier", "params": fit["data"]["params"], "fit": fit,
                  "source": f"{name}, {law['n']} runs"}, folder


def loss_at(law: dict, N: float, D: float, unique: float = 0.0) -> float:
    """Loss of N parameters after D tokens, of which at most `unique` differ (0: all). Raises UserError."""
    if law["form"] == "frontier":
        raise UserError(f"this law ({law['source']}) knows the best run of each budget only: give --flops, --params, "
                        "--tokens or --loss alone, or take hoffmann or besiroglu")
    return laws.repeated_loss(DECAY | law, N, D, unique) if unique else laws.surface_loss(law, N, D)


def best_size(law: dict, C: float, unique: float = 0.0) -> float:
    """N that minimises the loss for C = 6 N D."""
    of = laws.surface_optimum if law["form"] == "surface" else laws.power_optimum
    N = float(of(law, C)[0])
    if not unique or C / (6 * N) <= unique:
        return N
    loss_at(law, N, 1.0, unique)                       # a law of the frontier says so here
    found = minimize_scalar(lambda x: loss_at(law, math.exp(x), C / (6 * math.exp(x)), unique),
                            bounds=(math.log(N) - 7, math.log(N) + 7), method="bounded", options={"xatol": 1e-10})
    return float(math.exp(found.x))


def best_loss(law: dict, C: float, unique: float = 0.0) -> float:
    """Loss of the best run for C = 6 N D."""
    if law["form"] == "frontier":
        return float(laws.power_optimum(law, C)[2])
    N = best_size(law, C, unique)
    return float(loss_at(law, N, C / (6 * N), unique))


def solve(f, target: float, what: str) -> float:
    """x between 1 and 1e40 where the monotonic f(x) is `target`. Raises UserError, saying `what` cannot be had."""
    gap = lambda log_x: math.log(f(math.exp(log_x)) / target)
    if gap(0.0) * gap(92.0) > 0:
        raise UserError(f"{what}; the most that this law can do is {f(math.exp(92.0)):.4g}")
    return math.exp(brentq(gap, 0.0, 92.0, xtol=1e-12))


# ---- The goal: any one of C, N, D and L, or two of them, fix N and D. ----

def contradiction(C: float, N: float, D: float) -> str:
    """What is wrong with a budget, a size and a number of tokens that do not satisfy C = 6 N D, and what holds."""
    side = math.sqrt(C / 6)
    return (f"{N:.3g} parameters on {D:.3g} tokens take 6 N D = {6 * N * D:.2g} FLOPs, {6 * N * D / C:.2g} times the "
            f"{C:.2g} given: with {N:.3g} parameters it buys {C / 6 / N:.3g} tokens, with {D:.3g} tokens "
            f"{C / 6 / D:.3g} parameters; N = D = sqrt(C/6) is {side:.3g} of each, one token per parameter; give two")


def solve_goal(law: dict, C: float, N: float, D: float, L: float, unique: float = 0.0) -> tuple[float, float]:
    """(N, D) from those of C (FLOPs, 6 N D), N, D and L (loss) that are not 0. Raises UserError."""
    given = {k for k, v in dict(C=C, N=N, D=D, L=L).items() if v}
    if given >= {"C", "N", "D"} and abs(math.log(6 * N * D / C)) > 0.01:
        raise UserError(contradiction(C, N, D))
    if len(given) > 2 and given != {"C", "N", "D"} or given == {"C", "L"}:
        raise UserError("a budget decides the loss, and two of flops, params and tokens the rest: give fewer goals")
    unreachable = f"a loss of {L:.4g} cannot be reached this way, with any amount of it"
    if given == {"N", "L"}:
        return N, solve(lambda d: loss_at(law, N, d, unique), L, unreachable)
    if given == {"D", "L"}:
        return solve(lambda n: loss_at(law, n, D, unique), L, unreachable), D
    if given == {"L"}:
        C = solve(lambda c: best_loss(law, c, unique), L, unreachable)
    elif given == {"N"}:
        C = solve(lambda c: best_size(law, c, unique), N, f"no budget has {N:.3g} parameters as its best size")
    elif given == {"D"}:
        C = solve(lambda c: c / (6 * best_size(law, c, unique)), D, f"no budget has {D:.3g} tokens as its best")
    N = N or (C / (6 * D) if D else best_size(law, C, unique))
    return N, D or C / (6 * N)


def serving_optimum(law: dict, loss: float, served: float) -> tuple[float, float]:
    """(N, D) of least 6 N D + 2 N served FLOPs that reach `loss` (Sardana et al. 2024, equation 3). Raises UserError."""
    N0 = best_size(law, solve(lambda c: best_loss(law, c), loss, f"a loss of {loss:.4g} cannot be reached"))
    smallest = solve(lambda n: loss_at(law, n, 1e40), loss, f"a loss of {loss:.4g} cannot be reached")
    tokens = lambda n: solve(lambda d: loss_at(law, n, d), loss, f"{n:.3g} parameters cannot reach {loss:.4g}")
    cost = lambda x: math.log(math.exp(x) * (6 * tokens(math.exp(x)) + 2 * served))
    found = minimize_scalar(cost, bounds=(math.log(smallest * 1.0001), math.log(N0 * 1.01)), method="bounded",
                            options={"xatol": 1e-8})
    return math.exp(found.x), tokens(math.exp(found.x))


# ---- The shape, and what the study did before. ----

def body(n_layer: int, n_embd: int) -> int:
    """Parameters of the blocks and norms of model.GPT without biases: 12 d^2 + 2 d a block, and the last norm."""
    return n_layer * (12 * n_embd ** 2 + 2 * n_embd) + n_embd


def size(n_layer: int, n_embd: int, vocab: int, block: int, convention: str) -> float:
    """Parameters of that shape as the law counts them (scaling.counts)."""
    if convention == "as given":
        convention = counts.DEFAULT_PARAMS
    total = body(n_layer, n_embd) + (vocab + block) * n_embd
    columns = {"params_non_embedding": body(n_layer, n_embd), "params_head": vocab * n_embd, "params_total": total}
    return float(counts.params({k: np.array([float(v)]) for k, v in columns.items()}, convention)[0])


def flops_per_token(n_layer: int, n_embd: int, vocab: int, block: int) -> float:
    """Exact FLOPs per trained token, as model.GPT counts them (scaling.counts)."""
    table = {"tokens": 1, "n_layer": n_layer, "n_embd": n_embd, "block_size": block, "params_head": vocab * n_embd}
    return float(counts.flops({k: np.array([float(v)]) for k, v in table.items()}, "exact")[0])


def shape(N: float, vocab: int, block: int, convention: str, head_size: int = 0, family: dict = {}) -> dict:
    """{n_layer, n_embd, n_head} nearest to N parameters. Raises UserError.

    `family` {n_layer, n_head} is what the study would take at N; without it the width is 64 times the depth and a head
    64, 32 or 16 wide. Aspect ratio hardly bears on the loss (Kaplan et al. 2020, figure 5), so missing N costs more.
    """
    if head_size < 0:
        raise UserError(f"--head_size={head_size}: a head must have a positive width, such as 64")
    heads = 0 if head_size else family.get("n_head", 0)
    head = lambda d: head_size or (d // heads if heads else 64 if d >= 256 else 32 if d >= 128 else 16)
    unit = head_size or math.lcm(8, heads or 16)
    best, smallest = math.inf, size(1, unit, vocab, block, convention)
    for d in range(unit, max(32768, 2 * unit), unit):
        if d % head(d):
            continue
        deep = (N - size(0, d, vocab, block, convention)) / (12 * d * d + 2 * d)
        for depth in {max(1, math.floor(deep)), max(1, math.ceil(deep))}:
            miss = math.log(size(depth, d, vocab, block, convention) / N)
            odd = math.log(depth / family["n_layer"] if family else d / depth / 64)
            cost = miss ** 2 + (0.5 if family else 0.001) * odd ** 2
            if cost < best:
                best, missed, chosen = cost, miss, {"n_layer": depth, "n_embd": d, "n_head": d // head(d)}
    if abs(missed) > 0.35:
        raise UserError(f"no GPT has {N:.3g} parameters ({convention}): with a vocabulary of {vocab} and heads of "
                        f"{head(unit)} the smallest has {smallest:,.0f}; change the budget or --head_size, or take data "
                        "with another vocabulary")
    return chosen


def recipe(folder: Path | None, N: float, D: float) -> dict:
    """Settings of the study's run nearest to (N, D), for which the law holds, and its `family` of shapes at N.

    {} without a study. `partial` where the run's own config.json is gone, so that only runs.csv's settings are known.
    """
    table = logs.read_table(folder / "runs.csv") if folder else {}
    if not {"dataset", "n_layer", "n_head", "batch_tokens", "block_size", "learning_rate"} <= set(table):
        return {}
    runs = forecast.final_runs(table)
    near = np.argmin(np.log(runs["N"] / N) ** 2 + np.log(runs["D"] / D) ** 2)
    rows = [int(np.flatnonzero(table["run"] == run)[0]) for run in runs["run"]]
    i, block = rows[near], int(table["block_size"][rows[near]])
    spread = np.ptp(np.log(runs["N"])) > 0.1
    trend = {k: np.polyfit(np.log(runs["N"]), np.log(table[k][rows]), int(spread)) for k in ("n_layer", "n_head")}
    found = {"dataset": table["dataset"][i], "block_size": block, "schedule": table["schedule"][i],
             "batch_size": int(table["batch_tokens"][i] / block), "learning_rate": float(table["learning_rate"][i]),
             "family": {k: max(1, round(math.exp(np.polyval(v, math.log(N))))) for k, v in trend.items()}}
    path = folder / str(table["run"][i]) / "config.json"
    if not path.exists():
        return found | {"partial": True}
    config = load_json(path)
    kept = ["parametrization", "base_width", "beta1", "beta2", "weight_decay", "cooldown_frac", "min_lr", "grad_clip",
            "tie_weights", "dropout", "bias"]
    derived = config["warmup_iters"] == round(config["warmup_frac"] * config["max_iters"])
    return found | {k: config[k] for k in kept + ["warmup_frac" if derived else "warmup_iters"]}


def rate(options: Options, folder: Path | None) -> float:
    """FLOPs per second of one GPU: from --tok_per_s=TOKENS@PARAMS, else the study's largest run; nan when unknown."""
    if options.tok_per_s:
        try:
            tokens, params = map(float, options.tok_per_s.split("@"))
            if tokens > 0 < params:
                return 6 * tokens * params
        except ValueError:
            pass
        raise UserError(f"--tok_per_s={options.tok_per_s}: give tokens per second and the size that they were measured "
                        "at, as in 90000@124e6")
    if folder is None:
        return math.nan
    table = logs.read_table(folder / "runs.csv")
    if not {"flops_exact", "wall_s"} <= set(table):
        return math.nan
    i = int(np.nanargmax(table["flops_exact"]))
    return float(table["flops_exact"][i] / table["wall_s"][i])


def vocabulary(dataset: str) -> int:
    """The vocabulary of data/DATASET; GPT-2's 50257 without one. Raises UserError."""
    if not dataset:
        return 50257
    meta = ROOT / "data" / dataset / "meta.json"
    if not meta.exists():
        raise UserError(f"dataset {dataset!r} is not prepared; run: python data/{dataset.partition('_')[0]}/prepare.py")
    return int(load_json(meta)["vocab_size"])


# ---- The plan. ----

def make_plan(law: dict, options: Options, folder: Path | None = None) -> dict:
    """Everything that the table shows and the config needs. Raises UserError.

    N and D are the law's wish; `config` is the nearest shape, which trains `tokens` so that the budget in exact FLOPs
    is met (goals flops, gpu_hours, deadline), or the D that the goal asks for.
    """
    o, speed = options, rate(options, folder)
    check_units(o)
    C, budgeted = o.flops, bool(o.flops)
    goals = o.flops or o.params or o.tokens or o.loss
    if o.gpu_hours or (o.deadline and not goals):
        if o.flops:
            raise UserError("--flops and --gpu_hours are both budgets; give one")
        if math.isnan(speed):
            raise UserError("hours need a speed: --tok_per_s=TOKENS@PARAMS, or a fit.json with its runs.csv beside it")
        C, budgeted = (o.gpu_hours or o.deadline * o.gpus) * 3600 * speed, True
    if not (C or goals):
        raise UserError("nothing to plan for: give --flops, --gpu_hours, --loss, --params or --tokens")
    N, D = solve_goal(law, C, o.params, o.tokens, o.loss, o.unique_tokens)
    if o.inference_tokens:
        if o.unique_tokens:
            raise UserError("--inference_tokens with --unique_tokens is not supported; plan for one of them")
        train_N, train_D, budgeted = N, D, False
        N, D = serving_optimum(law, o.loss or loss_at(law, N, D), o.inference_tokens)
    used = recipe(folder, N, D)
    dataset, block = o.dataset or used.get("dataset", ""), o.block_size or used.get("block_size", 1024)
    vocab = vocabulary(dataset)
    built = shape(N, vocab, block, law["params"], o.head_size, used.pop("family", {}))
    per_token = flops_per_token(built["n_layer"], built["n_embd"], vocab, block)
    tokens = C / per_token if budgeted and not o.tokens else D
    N_built = size(built["n_layer"], built["n_embd"], vocab, block, law["params"])
    config = {k: v for k, v in used.items() if k != "partial"} | {"dataset": dataset, "block_size": block} | built | batch(tokens, 6 * N * D, block, used)
    steps = max(1, round(tokens / (config["batch_size"] * block)))
    plan = {"N": N, "D": D, "C": 6 * N * D, "params": N_built, "tokens": tokens, "flops": tokens * per_token,
            "budgeted": budgeted, "steps": steps, "config": config, "vocab": vocab, "unique": o.unique_tokens,
            "partial": used.get("partial", False),
            "hours": tokens * per_token / speed / 3600 / o.gpus, "memory": memory(built, vocab, block, config["batch_size"]),
            "loss": predict(law, folder, N_built, tokens, o.unique_tokens), "far": laws.outside(law, C=6 * N * D),
            "ci": laws.optimum(law, 6 * N * D)["ci"] if abs(math.log(N / best_size(law, 6 * N * D))) < 1e-6 else {}}
    if o.inference_tokens:
        plan["serving"] = {"N": train_N, "D": train_D, "tokens": o.inference_tokens}
    return plan


def check_units(o: Options) -> None:
    """Raise UserError for numbers that can only be slips of a unit."""
    for key, (low, high, unit) in SLIPS.items():
        value = getattr(o, key)
        if value and not low <= value <= high:
            meant = f"; did you mean --flops={value:g}?" if key in ("tokens", "params") and value > high else ""
            raise UserError(f"--{key}={value:g}: {'more' if value > high else 'fewer'} than any run's {unit} "
                            f"({low:g} to {high:g}){meant}")
    if o.gpus < 1:
        raise UserError(f"--gpus={o.gpus}: at least one is needed")


def batch(tokens: float, C: float, block: int, used: dict) -> dict:
    """{batch_size, learning_rate}: the study's own; else DeepSeek's laws (Bi et al. 2024, equation 1), in powers of two.

    Those give 0.292 C^0.3271 tokens and 0.3118 C^-0.125. At least 100 steps are left, so that a schedule makes sense.
    """
    most = max(1, int(tokens / block / 100))
    if "batch_size" in used:
        return {"batch_size": min(used["batch_size"], most), "learning_rate": used["learning_rate"]}
    rows = 2 ** round(math.log2(max(1, 0.292 * C ** 0.3271 / block)))
    return {"batch_size": min(rows, most), "learning_rate": float(f"{0.3118 * C ** -0.125:.2g}")}


def memory(built: dict, vocab: int, block: int, rows: int) -> dict:
    """Bytes: weights, gradients and AdamW in float32; and activations of one sequence in 16 bits (see train.accumulation)."""
    d, depth = built["n_embd"], built["n_layer"]
    return {"states": 16 * (body(depth, d) + (vocab + block) * d), "sequence": block * (depth * 34 * d + 12 * vocab),
            "rows": rows}


def predict(law: dict, folder: Path | None, N: float, D: float, unique: float) -> dict:
    """{predicted, lo95, hi95 (if known), by}: the study's forecast, else the law with its own interval, else bare."""
    if folder is not None and law["form"] == "surface" and not unique:
        found = forecast.predict(folder, law["fit"], N, D)
        return {k: found[k] for k in ("predicted", "lo95", "hi95")} | {"by": "scaling.forecast's two forms"}
    if law["form"] == "frontier":
        return {"predicted": best_loss(law, 6 * N * D), "by": "the frontier, as if this were its best run"}
    found = {"predicted": float(loss_at(law, N, D, unique)), "by": "the law, without an interval"}
    if law["boot"]:
        draws = np.ravel(loss_at(laws.draws_of(law), N, D)) if not unique else np.array(
            [loss_at({k: v[i] for k, v in law["boot"].items()}, N, D, unique) for i in range(len(law["boot"]["E"]))])
        lo, hi = laws.interval(laws.with_noise(draws[:, None], law["noise"])[:, 0])
        found |= {"lo95": lo, "hi95": hi, "by": "the law and its residuals; not what another form would say"}
    return found


# ---- What is shown. ----

def amount(x: float) -> str:
    """1.23B, 45.6M, 789: counts as people say them."""
    for unit, name in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if x >= 0.9995 * unit:
            return f"{x / unit:.3g}{name}" if x < 1000 * unit else f"{x:.3g}"
    return f"{x:.3g}"


def time_text(hours: float) -> str:
    if math.isnan(hours):
        return "unknown: give --tok_per_s=TOKENS@PARAMS"
    return f"{hours * 60:.3g} minutes" if hours < 2 else f"{hours:.3g} hours" if hours < 72 else f"{hours / 24:.3g} days"


def law_text(law: dict) -> str:
    if law["form"] == "surface":
        return (f"L = {law['E']:.4g} + {law['A']:.4g}/N^{law['alpha']:.3g} + {law['B']:.4g}/D^{law['beta']:.3g} "
                f"({law['source']}; N counts {law['params']})")
    return f"N_opt ~ C^{law['a']:.3g} ({law['source']}; N counts {law['params']})"


def plan_text(law: dict, plan: dict, options: Options) -> str:
    """The plan as a table for people, then what its neighbours cost, then the warnings."""
    c, o, ci = plan["config"], options, plan["ci"]
    span = lambda key: f" (95 % {amount(ci[key][0])} to {amount(ci[key][1])})" if key in ci else ""
    loss = plan["loss"]
    band = f", 95 % {loss['lo95']:.4f} to {loss['hi95']:.4f}" if "lo95" in loss else ""
    states, sequence = plan["memory"]["states"] / 1e9, plan["memory"]["sequence"] / 1e9
    out = [f"law       {law_text(law)}",
           f"target    N {amount(plan['N'])}{span('N_opt')}, D {amount(plan['D'])}{span('D_opt')}, "
           f"{plan['D'] / plan['N']:.3g} tokens per parameter, C = 6 N D = {plan['C']:.3g} = "
           f"{plan['C'] / counts.PF_DAY:.3g} PF-days",
           f"model     {c['n_layer']} layers, width {c['n_embd']}, {c['n_head']} heads of {c['n_embd'] // c['n_head']}: "
           f"{amount(plan['params'])} parameters, vocabulary {plan['vocab']}, context {c['block_size']}",
           f"training  {amount(plan['tokens'])} tokens = {plan['steps']:,} steps of {c['batch_size']} sequences "
           f"({amount(c['batch_size'] * c['block_size'])} tokens), learning rate {c['learning_rate']:g}, "
           f"{plan['flops']:.3g} exact FLOPs",
           f"loss      {loss['predicted']:.4f}{band} (by {loss['by']})",
           f"time      {time_text(plan['hours'])}" + f" on {o.gpus} devices" * (o.gpus > 1),
           f"memory    {states:.3g} GB of weights, gradients and AdamW states; {sequence:.3g} GB of activations a sequence"]
    if plan["unique"]:
        out.append(f"data      {plan['tokens'] / plan['unique']:.4g} epochs of {amount(plan['unique'])} unique tokens")
    if "serving" in plan:
        out += serving_text(law, plan)
    if law["form"] == "surface":
        out += neighbours(law, plan)
    return "\n".join(out + warnings(plan, o))


def neighbours(law: dict, plan: dict) -> list[str]:
    """Loss against size, that is against tokens per parameter, at the plan's budget C = 6 N D."""
    out = ["", f"the same {plan['C']:.3g} FLOPs on other sizes", f"{'N':>8}{'D':>9}{'D/N':>9}{'loss':>9}{'change':>9}  serving"]
    here = loss_at(law, plan["N"], plan["D"], plan["unique"])
    for m in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4):
        N, D = plan["N"] * m, plan["D"] / m
        loss = loss_at(law, N, D, plan["unique"])
        out.append(f"{amount(N):>8}{amount(D):>9}{D / N:>9.3g}{loss:>9.4f}{loss / here - 1:>+9.2%}  x{m:.3g}")
    return out


def serving_text(law: dict, plan: dict) -> list[str]:
    s = plan["serving"]
    cost = lambda N, D: 6 * N * D + 2 * N * s["tokens"]
    best, naive = cost(plan["N"], plan["D"]), cost(s["N"], s["D"])
    return [f"serving   {amount(s['tokens'])} tokens: {best:.3g} FLOPs in all, training included; with N {amount(s['N'])} and "
            f"D {amount(s['D'])} it would be {naive:.3g} ({1 - best / naive:.1%} saved at the same loss)"]


def warnings(plan: dict, o: Options) -> list[str]:
    """What a careful planner would say about this plan."""
    out, epochs = [], plan["tokens"] / plan["unique"] if plan["unique"] else 0
    if "C" in plan["far"]:
        out.append(f"C is {plan['far']['C']:.3g} times outside what the law was fitted on: an extrapolation")
    if epochs > 1:
        out.append(UNIDENTIFIED)
    if o.deadline and plan["hours"] > o.deadline * 1.001:
        out.append(f"it misses the deadline of {o.deadline:g} hours: {math.ceil(plan['hours'] * o.gpus / o.deadline)} devices "
                   "at the same efficiency would meet it")
    if plan["partial"]:
        out.append("the study's run directories are not here: settings that runs.csv does not record (parametrization, "
                   "AdamW's betas, weight decay, warmup) keep train.py's defaults")
    if abs(math.log(plan["params"] / plan["N"])) > 0.1:
        out.append(f"the nearest shape has {plan['params'] / plan['N']:.2f} times the parameters wished for")
    return [f"note: {line}" for line in out]


# ---- A config that runs. ----

def write_new(path: str, text: str, folder: str) -> None:
    """Write a .py file that does not exist yet. Raises UserError."""
    target = Path(path)
    if target.suffix != ".py" or not target.stem.isidentifier():
        raise UserError(f"--write={path}: give a new Python file, such as {folder}/my_plan.py")
    try:
        with open(target, "x", encoding="utf-8") as f:
            f.write(text)
    except FileExistsError:
        raise UserError(f"{path} exists; choose another name or delete it") from None
    except OSError as e:
        raise UserError(f"cannot write {path}: {e.strerror}") from None


def write_config(path: str, law: dict, plan: dict) -> str:
    """Write the plan as a config for train.py; it is resolved as train.py will, first. Raises UserError."""
    import train                                       # torch: only writing needs it
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
        raise UserError(f"{c.max_iters} steps of {c.batch_size} x {c.block_size} tokens make {exact:.3g} FLOPs, not "
                        f"{plan['flops']:.3g}: the budget is too small for this block_size; lower it")
    text = (f"# python train.py {path}\n# Planned by scaling.plan, {law['source']}: {exact:.3g} FLOPs, expected loss "
            f"{plan['loss']['predicted']:.4f}, {time_text(plan['hours'])}.\n")
    write_new(path, text + "".join(f"{k} = {v!r}\n" for k, v in settings.items()), "config")
    return f"wrote {path}: {c.max_iters:,} steps, {exact:.4g} exact FLOPs; run: python train.py {path}"


# ---- Two recipes. ----

def multiplier(first: dict, second: dict, C: float, level: float = laws.LEVEL) -> dict:
    """{C, factor, lo, hi}: the compute that `first` needs, over C, for the loss that `second` reaches with C.

    Both at their optimum, where L = E + K C^-g (Hoffmann et al. 2022, equation 4); inf where `first` never gets there.
    The interval pairs independent bootstrap draws.
    """
    def factor(p, q):
        target = laws.surface_optimum(q, C)[2]
        reducible = laws.surface_optimum(p, C)[2] - p["E"]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = (reducible / (target - p["E"])) ** ((p["alpha"] + p["beta"]) / (p["alpha"] * p["beta"]))
        return np.where(target > p["E"], ratio, np.inf)
    p, q = laws.draws_of(first), laws.draws_of(second)
    n = min(len(p["E"]), len(q["E"]))
    mixed = np.random.default_rng(0).permutation(n)
    draws = factor({k: v[:n, 0] for k, v in p.items()}, {k: v[mixed, 0] for k, v in q.items()})
    lo, hi = np.percentile(draws, [50 * (1 - level), 50 * (1 + level)], method="closest_observation")
    return {"C": C, "factor": float(factor(first, second)), "lo": float(lo), "hi": float(hi)}


def compare_text(paths: list[str], C: float) -> str:
    """The compute multiplier between two fits, at C or at the largest compute that both have seen. Raises UserError."""
    if len(paths) != 2:
        raise UserError(f"--compare takes two fits, not {len(paths)}: python -m scaling.plan --compare A.json B.json")
    first, second = (load_law(path)[0] for path in paths)
    if "fit" not in first or "fit" not in second or {first["form"], second["form"]} != {"surface"}:
        raise UserError("--compare needs two fit.json with a surface: a published law has no bootstrap to compare")
    m = multiplier(first, second, C or min(first["range"]["C"][1], second["range"]["C"][1]))
    verdict = ("less" if m["hi"] < 1 else "more" if m["lo"] > 1 else "neither clearly less nor clearly more")
    return (f"{paths[0]} needs {m['factor']:.3g} (95 % {m['lo']:.3g} to {m['hi']:.3g}) times the compute of {paths[1]} for "
            f"the loss that the latter reaches with {m['C']:.3g} FLOPs: {verdict} compute\n"
            "note: this compares losses, so both must come from the same text and tokenizer, and count N alike")


# ---- Which runs next? ----

def log_n_opt(theta: np.ndarray, center: np.ndarray, C: float) -> float:
    """log N_opt at C of laws.additive's theta over inputs centred on `center`."""
    _, a, alpha, b, beta = theta
    log_ratio = np.log(alpha / beta) + a + alpha * center[0] - b - beta * center[1]
    return (log_ratio + beta * np.log(C / 6)) / (alpha + beta)


def next_runs(law: dict, runs: dict, C: float, budget: float, sizes: np.ndarray) -> dict:
    """The runs {N, D: (k,)} to add for `budget` FLOPs that pin N_opt(C) down most; before, after: its half-width in logs.

    The variance of log N_opt is g' M^-1 g, where M sums the outer products of the surface's Jacobian over the runs and
    g is the gradient of log N_opt. The budget is cut into 1, 2, 4, 8 or 16 equal runs, each of the size that lowers the
    variance most, given those before it (a greedy c-optimal design); the best cut wins. Such designs run to extremes,
    where the form is least certain, so no size is taken twice, and tokens per parameter stay within twice the study's.
    """
    center = np.log([runs["N"], runs["D"]]).mean(1)
    theta = np.array([np.log(law["E"]), np.log(law["A"]) - law["alpha"] * center[0], law["alpha"],
                      np.log(law["B"]) - law["beta"] * center[1], law["beta"]])
    g = np.array([(log_n_opt(theta + s, center, C) - log_n_opt(theta - s, center, C)) / 2e-6 for s in 1e-6 * np.eye(5)])
    jacobian = lambda N, D: laws.additive(theta[None], np.log([N, D]) - center[:, None])[1][0]
    J, seen = jacobian(runs["N"], runs["D"]), runs["D"] / runs["N"]
    start, width = J @ J.T, lambda M: float(1.96 * law["noise"] * np.sqrt(g @ np.linalg.solve(M, g)))
    best = {"before": width(start), "after": math.inf}
    for k in (1, 2, 4, 8, 16):
        ratio = budget / k / (6 * sizes ** 2)
        N = sizes[(ratio > seen.min() / 2) & (ratio < 2 * seen.max())]
        if len(N) < k:
            continue
        J, M, left = jacobian(N, budget / k / (6 * N)), start.copy(), list(range(len(N)))
        for _ in range(k):
            x = np.linalg.solve(M, J[:, left])
            gain = (g @ x) ** 2 / (1 + np.einsum("pn,pn->n", J[:, left], x))         # Sherman & Morrison 1950
            j = J[:, left.pop(int(gain.argmax()))]
            M += np.outer(j, j)
        if width(M) < best["after"]:
            chosen = np.delete(N, left)
            best |= {"N": chosen, "D": budget / k / (6 * chosen), "after": width(M)}
    if "N" not in best:
        raise UserError(f"--next={budget:g}: no size of this study suits that budget; its runs took "
                        f"{(6 * runs['N'] * runs['D']).min():.2g} to {(6 * runs['N'] * runs['D']).max():.2g} FLOPs each")
    return best


def next_text(law: dict, folder: Path | None, options: Options) -> str:
    """The runs to add next, and with --write the sweep file that makes them. Raises UserError."""
    o = options
    if not o.flops:
        raise UserError("--next needs the budget whose optimum it should pin down: add --flops=TARGET")
    if folder is None or law["form"] != "surface":
        raise UserError("--next needs a fit.json with a surface and its runs.csv beside it")
    runs = forecast.final_runs(logs.read_table(folder / "runs.csv"))
    used = recipe(folder, runs["N"].max(), runs["D"].max())
    used.pop("partial", None)
    dataset, block = o.dataset or used.get("dataset", ""), o.block_size or used.get("block_size", 1024)
    vocab, grid = vocabulary(dataset), np.geomspace(runs["N"].min(), runs["N"].max() * 4, 40)
    shapes, family = {}, used.pop("family", {})
    for N in grid:
        built = shape(N, vocab, block, law["params"], o.head_size, family)
        shapes[size(built["n_layer"], built["n_embd"], vocab, block, law["params"])] = built
    found = next_runs(law, runs, o.flops, o.next, np.array(sorted(shapes)))
    listed = [{"name": f"{Path(o.write).stem or 'next'}_{i}", **shapes[N], "target_tokens": round(D), "seed": i}
              for i, (N, D) in enumerate(zip(found["N"].tolist(), found["D"].tolist()), 1)]
    out = [f"N_opt at {o.flops:.3g} FLOPs is known within a factor {math.exp(found['before']):.3g} (95 %); after "
           f"these {len(listed)} for {o.next:.3g} FLOPs it should be {math.exp(found['after']):.3g}"]
    out += [f"  {amount(N):>8} parameters ({r['n_layer']} x {r['n_embd']}) on {amount(D)} tokens"
            for r, N, D in zip(listed, found["N"], found["D"])]
    if o.write:
        if not dataset:
            raise UserError("a sweep needs data: add --dataset=NAME, a directory under data/")
        base = used | {"dataset": dataset, "block_size": block}
        lines = "".join(f"    {run!r},\n" for run in listed)
        write_new(o.write, f"# python -m scaling.sweep {o.write}\n# Chosen by scaling.plan to pin down N_opt at {o.flops:.3g} "
                  f"FLOPs.\nbase = {base!r}\nruns = [\n{lines}]\n", "scaling/sweeps")
        out.append(f"wrote {o.write}; run it, then fit both studies together: python -m scaling.logs {folder} "
                   f"out/{Path(o.write).stem} --out=runs.csv")
    return "\n".join(out)


def main(args: list[str] | None = None) -> None:
    given, names = read_args(sys.argv[1:] if args is None else args)
    if {"help", "h"} & set(given) or not (given or names):
        print(__doc__ + help_text(Options))
        return
    o = set_fields(Options(), given)
    check_units(o)
    if o.compare:
        print(compare_text(names, o.flops))
        return
    if len(names) != 1:
        raise UserError(f"give one law, not {len(names)}: a fit.json or one of {', '.join(PUBLISHED)}")
    law, folder = load_law(names[0])
    if o.next:
        print(next_text(law, folder, o))
        return
    plan = make_plan(law, o, folder)
    print(plan_text(law, plan, o))
    if o.write:
        print(write_config(o.write, law, plan))
    if o.figure:
        from scaling import plots
        plots.save(plots.plan_figure(law, plan["N"], plan["D"], plan["ci"].get("N_opt")), Path(o.figure))
        print(f"wrote {o.figure}")


if __name__ == "__main__":
    exit_cleanly(main)
