"""What else `python -m scaling.plan` answers: which runs next, and of two studies, whose recipe is better?"""
import math
import shlex
from pathlib import Path

import numpy as np

from config import settings
from config.settings import Config
from runtime.basics import UserError, counted
from scaling import forecast, ground
from scaling.ground import amount
from scaling.laws import arms, design
from scaling.tables.runs import final_runs


def known(half_width: float) -> str:
    """How well N_opt is known, from the half-width of its logarithm's interval."""
    if 2 * half_width < math.log(ground.WIDE):
        return f"known to a factor {math.exp(half_width):.3g} (95 %)"
    return "not determined"


def next_text(law: dict, folder: Path, o) -> str:
    """The runs to add next to the study in `folder` and, with --write, the sweep file that makes them.

    `o` are the plan's options. Raises UserError.
    """
    if not o.flops:
        raise UserError("--next needs the budget whose optimum is in question: add --flops=TARGET")
    if not law["runs"] or law["form"] != "surface":
        raise UserError("--next needs a fit.json with a surface, and its runs.csv beside it")
    runs = final_runs(law["runs"], law["params"])
    N = runs["N"]
    study = ground.study_of(law["runs"], N.max(), runs["D"].max())
    if study is ground.NO_STUDY:
        raise UserError(f"{folder / 'runs.csv'} lacks columns of a study of this project, which --next needs")
    base = Config(**study.settings, vocab_size=study.vocab)
    wanted = np.geomspace(N.min(), 4 * N.max(), 40)
    models = [ground.shape(n, base, law["params"], o.head_size, study) for n in wanted]
    by_size = {ground.size(c, law["params"]): c for c in models}
    cost = np.array([settings.count_flops(c)["total"] for c in by_size.values()])
    most = o.unique_tokens or ground.text_of(base.dataset)
    found = design.next_runs(law, N, runs["D"], o.flops, o.next, np.array(list(by_size)), cost, most)
    more = "this run" if len(found.N) == 1 else f"these {len(found.N)} runs"
    out = ground.warnings(law)
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
        listed += f"    {dict(name=f'{stem}_{i}', **ground.shape_of(c), target_tokens=round(D), seed=i)!r},\n"
    if o.write:
        path = shlex.quote(o.write)
        head = (f"# python -m scaling.sweep {path}\n"
                f"# Chosen by scaling.plan to pin down N_opt at {o.flops:.3g} FLOPs.\n")
        ground.write_new(o.write, f"{head}base = {study.settings!r}\nruns = [\n{listed}]\n", "scaling/sweeps")
        out.append(f"wrote {o.write}; it makes them, and then both tables are joined\n"
                   f"next: python -m scaling.sweep {path} && python -m scaling.logs "
                   f"{shlex.quote(str(folder))} out/{stem} --out=runs.csv")
    return "\n".join(out)


def compare_text(paths: list[str], C: float) -> str:
    """The compute multiplier of two studies, at C or at the largest budget of both. Raises UserError."""
    if len(paths) != 2:
        raise UserError(f"--compare takes two fits, not {len(paths)}: --compare A/fit.json B/fit.json")
    laws = [ground.load_law(path) for path in paths]
    for path, law in zip(paths, laws):
        if not law["runs"]:
            raise UserError(f"--compare needs fit.json with its runs.csv beside it, and {path} has none")
    first, second = paths
    arm = second
    if first == second:                                # an arm's name is its own
        arm += " "
    runs = [final_runs(law["runs"], law["params"]) for law in laws]
    C = C or min(part["C"].max() for part in runs)
    found = arms.fit_arms({first: runs[0], arm: runs[1]}, first, [C])
    if arm in found["left_out"]:
        raise UserError(f"{arm}: {found['left_out'][arm]}")
    row, = found["arms"][arm]["multiplier"]
    low, high = row["ci"]
    verdict = "not clearly more or less"
    if high < 1:
        verdict = "less"
    elif low > 1:
        verdict = "more"
    better = second if row["factor"] > 1 else first
    out = [f"for the loss that {second} reaches with {C:.3g} FLOPs, {first} needs {row['factor']:.3g} times "
           f"that{ground.span(low, high, '{:.3g}'.format, '95 % ')}: {verdict} compute"]
    out += [f"warning: {line}" for line in found["health"]["lines"]]
    for path, law in zip(paths, laws):
        out += ground.warnings(law, f"{path}: ")
    return "\n".join(out + ["note: both must come from the same text and tokenizer, and count N alike",
                            f"next: python -m scaling.plan {shlex.quote(better)} --flops={C:.3g}"])
