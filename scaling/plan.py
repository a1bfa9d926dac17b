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
import math
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from config import corpus, settings
from config.configurator import help_text, read_args, set_fields
from config.settings import Config
from runtime.basics import UserError, counted, exit_cleanly
from scaling import forecast, ground, more
from scaling.ground import amount, span, text_of
from scaling.laws import counts, forms, goals, solver
from scaling.laws.goals import PUBLISHED
from scaling.tables.csv import MALFORMED

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


# ---- The plan. ----

class Plan(NamedTuple):
    """What the table shows and the config needs."""
    asked: Options
    law: dict
    N: float                               # what the law asks for
    D: float
    C: float                               # FLOPs as the law counts them
    serving: tuple | None                  # the N and D that serving nobody would take
    ci: dict                               # 95 % intervals of N and D, where they are the law's optimum
    lent: dict                             # the study's settings
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
    N, D = goals.solve_goal(law, spend, o.params, o.tokens, o.loss)
    serving = None
    if o.inference_tokens:
        if o.unique_tokens:
            raise UserError("--inference_tokens and --unique_tokens cannot be combined; plan for one of them")
        serving = (N, D)
        N, D = goals.serving_optimum(law, goals.loss_at(law, N, D), o.inference_tokens)
    if not (1 <= N <= MOST_PARAMS and 1 <= D <= MOST_TOKENS):
        raise UserError(f"{law['source']}: this law asks for {N:.3g} parameters on {D:.3g} tokens, which "
                        "cannot be meant; give another goal")
    C = float(forms.flops_of(law, N, D))
    optimal = abs(math.log(N / goals.best(law, C)[0])) < 1e-6
    if not optimal:
        goals.require_surface(law)
    study = ground.study_of(law["runs"], N, D)
    config = dict(study.settings)
    vocab = study.vocab
    if o.block_size:
        config["block_size"] = o.block_size
    if o.dataset:
        config["dataset"] = o.dataset
        vocab = corpus.load_meta(o.dataset)["vocab_size"]
    model = ground.shape(N, Config(**config, vocab_size=vocab), law["params"], o.head_size, study)
    params = ground.size(model, law["params"])
    cost = settings.count_flops(model)["total"]
    tokens = D
    horizon = {"target_tokens": float(f"{D:.10g}")}    # as people write it: 2e12, not 1999999999999.9998
    if spend and not (o.tokens or serving):            # a budget is of exact FLOPs
        tokens = C / cost
        horizon = {"target_flops": float(f"{C:.10g}")}
    return Plan(
        o, law, N, D, C, serving,
        ci=forms.optimum(law, C)["ci"] if optimal and not o.unique_tokens else {},
        lent=study.settings, model=model, params=params, tokens=tokens, flops=tokens * cost,
        config=config | ground.shape_of(model) | batch(tokens, C, config) | horizon,
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
        predicted = goals.best(law, forms.flops_of(law, N, D))[2]
        return {"predicted": predicted, "by": "the frontier, were this its best run"}
    if law["runs"] and "unique" not in law:
        return forecast.predict(law["runs"], law["fit"], N, D) | {"by": "scaling.forecast"}
    found = {"predicted": float(goals.loss_at(law, N, D)), "by": "the law; it has no interval"}
    if forms.has_draws(law):
        draws = goals.loss_at(law | forms.draws_of(law), N, np.array([D]))
        found["lo95"], found["hi95"] = solver.interval(forms.with_noise(draws, law["noise"])[:, 0])
        found["by"] = "the law and its residuals; other forms would differ"
    return found


def notes(plan: Plan) -> list[str]:
    """What a careful planner would add, and where the plan falls short of what was asked."""
    o = plan.asked
    tokens = plan.tokens
    out = [f"C is {x:.3g} times outside what the law was fitted on: an extrapolation"
           for x in forms.outside(plan.law, C=plan.C).values()]
    if 0 < o.unique_tokens < tokens:
        out.append(UNIDENTIFIED)
        if plan.law.get("cost"):
            out.append("where data repeat the best size is sought for C = 6 N D, not as the table counts it")
    if plan.lent["dataset"] not in ("", plan.config["dataset"]):
        out.append(f"the law was fitted on {plan.lent['dataset']}: on {o.dataset} another one holds")
    text = text_of(plan.config["dataset"])
    if tokens > text and not o.unique_tokens:
        out.append(f"there are {amount(text)} tokens of this text: it is read {tokens / text:.3g} times, "
                   f"which the law ignores; add --unique_tokens={text}")
    if plan.law["params"] == "as given":
        out.append(f"N is as the law's table gave it; the model's is its {counts.DEFAULT_PARAMS}")
    if plan.lent["dataset"] and "parametrization" not in plan.lent:
        out.append("settings that runs.csv does not record (parametrization, betas, weight decay, warmup) "
                   "are train.py's defaults")
    if o.deadline and plan.hours > 1.001 * o.deadline:
        needed = math.ceil(plan.hours * o.gpus / o.deadline)
        out.append(f"this misses the deadline of {o.deadline:g} hours; {needed} such devices would not")
    if abs(math.log(plan.params / plan.N)) > 0.1:
        out.append(f"the nearest shape has {plan.params / plan.N:.2f} times the parameters asked for")
    return out


# ---- What is shown. ----

def duration(hours: float) -> str:
    if math.isnan(hours):
        return "unknown (add --tok_per_s=TOKENS@PARAMS)"
    if hours < 1 / 60:
        return counted(hours * 3600, "second", ".3g")
    if hours < 2:
        return counted(hours * 60, "minute", ".3g")
    return f"{hours:.3g} hours" if hours < 72 else f"{hours / 24:.3g} days"


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
    loss = plan.loss
    undetermined = forecast.left_open(plan.law)
    of_N = of_D = band = brackets = price = ""
    if plan.ci:
        of_N = span(*plan.ci["N_opt"])
        of_D = span(*plan.ci["D_opt"])
    if "lo95" in loss:
        band = span(loss["lo95"], loss["hi95"], "{:.4f}".format)
    if undetermined:
        band = " (not determined)"
    if of_N or band:
        brackets = "; brackets hold 95 % intervals"
    count = "6 N D"
    if abs(math.log(6 * plan.N * plan.D / plan.C)) > 0.01:
        count = "as the law's table counts it"
    rows = plan.config["batch_size"]
    steps = max(1, round(plan.tokens / (rows * c.block_size)))
    devices = f" on {o.gpus} devices" if o.gpus > 1 else ""
    money = plan.hours * o.gpus * o.price
    if money > 0:                                      # there is a price, and a speed
        price = f", costs {money:,.2f}"
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
           f"time      {duration(plan.hours)}{devices}{price}",
           f"memory    {states / 1e9:.3g} GB of weights, gradients, AdamW; {row / 1e9:.3g} GB a row"]
    text = o.unique_tokens or text_of(plan.config["dataset"])
    if text < math.inf:
        out.append(f"data      {counted(plan.tokens / text, 'epoch', '.4g')} of {amount(text)} tokens")
    if plan.serving:
        out.append(serving_text(plan))
    if plan.law["form"] == "surface" and not undetermined:
        out += neighbours(plan)
    return "\n".join(out + ground.warnings(plan.law) + [f"note: {line}" for line in notes(plan)])


def serving_text(plan: Plan) -> str:
    """What the smaller, longer-trained model saves over its life."""
    N, D = plan.serving
    served = plan.asked.inference_tokens
    own = goals.lifelong(plan.law, plan.N, plan.D, served)
    other = goals.lifelong(plan.law, N, D, served)
    return (f"serving   {own:.3g} FLOPs with {amount(served)} tokens served; {amount(N)} parameters after "
            f"{amount(D)} tokens, of the same loss, would take {other:.3g}: {1 - own / other:.1%} saved")


def neighbours(plan: Plan) -> list[str]:
    """Loss against size, that is against tokens per parameter, for the plan's C."""
    out = [f"{'N':>10} {'D':>9} {'D/N':>9} {'loss':>9} {'change':>9}  serving (all with C = {plan.C:.3g})"]
    here = goals.loss_at(plan.law, plan.N, plan.D)
    for m in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2, 4):
        N = plan.N * m
        D = forms.tokens_of(plan.law, N, plan.C)
        loss = goals.loss_at(plan.law, N, D)
        out.append(f"{amount(N):>10} {amount(D):>9} {D / N:>9.3g} {loss:>9.4f} {loss / here - 1:>+9.2%}"
                   f"  {m:.3g}x")
    return out


# ---- Command line. ----

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
    ground.write_new(path, head + "".join(f"{k} = {v!r}\n" for k, v in values.items()), "config")
    return f"wrote {path}: {counted(c.max_iters, 'step', ',')}, {run.C:.4g} exact FLOPs; run: {command}"


def require_figure(law: dict, path: str) -> None:
    """Raise UserError where a figure of a plan by `law` cannot be drawn into `path`; no folder is made."""
    goals.require_surface(law)
    if Path(path).suffix != ".png":
        raise UserError(f"--figure={path}: the name must end in .png")
    if not os.access(Path(path).parent, os.W_OK):
        raise UserError(f"--figure={path}: there is no such folder, or it cannot be written to; name another")


def draw(plan: Plan) -> None:
    """The figure of the plan on the law's surface."""
    from scaling import plots  # here, because a plan without a figure runs without matplotlib
    ci = plan.ci.get("N_opt")
    if ci and not ground.says_something(*ci):
        ci = None
    plots.save(plots.plan_figure(plan.law, plan.N, plan.D, ci), Path(plan.asked.figure))
    print(f"wrote {plan.asked.figure}")


def answer(name: str, o: Options, command: str) -> None:
    """Print what to train, or with --next which runs to add, by the law `name`; `command` asked for it.

    Raises UserError.
    """
    law = ground.load_law(name)
    undetermined = forecast.left_open(law)
    if undetermined and (o.write or o.figure) and not o.anyway:
        raise UserError(f"{law['source']}: {undetermined}; --anyway writes the plan all the same")
    if o.figure:
        require_figure(law, o.figure)
    if o.next:
        print(more.next_text(law, Path(name).parent, o))
        folder = "scaling/sweeps"
    else:
        plan = make_plan(law, o)
        print(plan_text(plan))
        folder = "config"
        if o.figure:
            draw(plan)
        if o.write:
            print(write_config(o.write, plan))
        if not plan.config["dataset"]:
            command += " --dataset=DATASET"
    if not o.write:
        anyway = " --anyway" if undetermined and not o.anyway else ""
        print(f"next: {command} --write={folder}/NAME.py{anyway}")


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
                print(more.compare_text(names, o.flops))
            else:
                answer(names[0], o, shlex.join(["python", "-m", "scaling.plan", *args]))
    except (*MALFORMED, IndexError, ZeroDivisionError) as e:
        if names[0] in PUBLISHED:
            raise
        raise UserError(f"{' or '.join(names)} is not as scaling.fit writes it ({type(e).__name__}: {e}); "
                        "fit again") from None


if __name__ == "__main__":
    exit_cleanly(main)
