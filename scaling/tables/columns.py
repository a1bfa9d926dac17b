"""What the columns of anybody's table are: which is which, what tells runs apart, and in what units.

A column is held against what it can be computed from, and a number that cannot be what its name says is
refused in one line: a fit of wrong units looks as good as one of right units.
"""
import math
import re
from collections.abc import Iterable
from functools import lru_cache

import numpy as np

from runtime.basics import UserError, nearest
from scaling.laws.counts import PF_DAY, is_number

Array = np.ndarray

# What our columns are called, ours among them; of several that a table has, the first is taken.
ALIASES = {
    "params": "params n_params num_params nparams parameters n_parameters num_parameters "
              "total_params total_parameters param_count parameter_count model_size N n",
    "tokens": "total_tokens tokens_seen num_input_tokens_seen consumed_tokens tokens_trained train_tokens "
              "training_tokens n_tokens num_tokens ntokens tokens D d",
    "flops": "flops training_flops training_flop flops_budget train_flops total_flops total_training_flops "
             "compute training_compute C",
    "run": "run run_name run_id",
    "step": "step steps iter iteration global_step",
    "epochs": "epochs num_epochs n_epochs",
    "schedule": "schedule lr_schedule lr_scheduler lr_scheduler_type scheduler",
}
# How long a run was to be, told as its step or as its tokens are.
HORIZONS = {"step": "horizon max_steps num_iterations max_iters total_steps num_steps num_train_steps "
                    "train_steps planned_steps",
            "tokens": "target_tokens max_tokens token_budget budget_tokens planned_tokens"}
LOSSES = ("val_loss validation_loss valid_loss eval_loss test_loss loss final_val_loss final_loss L l "
          "val_bpb bpb bits_per_byte val_bits_per_byte").split()
LOSS_WORDS = {"loss", "bpb", "bpc", "nll", "ce", "xent"}
OTHER_LOSSES = set("aux z best min max std stderr scale weight coef kl moe router balance ema smooth "
                   "smoothed".split())
HELD_OUT = {"val", "valid", "validation", "eval", "test", "dev"}
SPLITS = "split phase mode stage type kind set subset partition event dataset".split()   # say "train", "val"
BITS = {"bpb": "bits per byte", "bits_per_byte": "bits per byte", "bpc": "bits per character",
        "bits_per_char": "bits per character", "bits": "bits"}
PERPLEXITY = re.compile(r".*(ppl|perplexity).*")


def any_of(words: str) -> str:
    """The pattern of any of these words, which are patterns, too."""
    return f"(?:{'|'.join(words.split())})"


# Rows may differ in these and be one setting: the seed, ...
SEEDS = any_of("seed trial replica replicate rep repeat repetition rerun attempt fold rng random_state")
SEED = re.compile(rf"(\w+_)?{SEEDS}(_\w+)?")
# ... a name or a number of the row, ...
NAME = re.compile(any_of(r"unnamed_\d+ index idx id \w+_id row name run study experiment "
                         r"(run|wandb|job|exp|experiment)_\w+") + "|")
# ... and what came of it, or where and when it ran. How long it was to be is what its tokens say.
BEGINS = any_of("eval val valid validation test log ckpt checkpoint params flops tokens target")
HOLDS = any_of("loss ppl perplexity bpb bpc bits_per accuracy hellaswag mmlu lambada piqa commit sha256 path "
               "file time date wall elapsed hours minutes seconds duration per_s throughput mfu memory gpu "
               "device host")
ENDS = any_of("s acc steps? iters? iterations? grad_norm flops? compute dtype status state user score notes? "
              "comments? tags? version created at final finished completed? done is_last")
WHOLE = any_of("(project|entity|sweep|branch|cluster|node|machine|author)s?(_name)? world_size cost horizon "
               "(max|total|num)_tokens")
RESULT = re.compile(rf"{BEGINS}(_\w+)?|.*{HOLDS}.*|(\w+_)?{ENDS}|{WHOLE}")
WHEN = re.compile(r"(\w+_)?" + any_of("at date time timestamp host hostname commit path file source")
                  + "|" + any_of("created updated started ended") + r"\w*")
# What is tuned at each size: the best of it counts.
RATE = re.compile(r"(\w+_)?(lr|learning_rate|eta)(_(max|peak|base|scale|mult\w*))?")
TUNED = any_of(r"g?bsz? mbsz? batch batch_size batch_tokens wd weight_decay betas?_?[12]? momentum clip "
               r"clip_norm max_grad_norm dropout eps epsilon init_std init_scale weight coef "
               r"(warmup|cooldown|decay_frac)(_\w+)?")
HYPER = re.compile(rf"(?!(eval|val|test)_)({RATE.pattern}|(\w+_)?{TUNED})")
TRIED = re.compile(f"(?:{HYPER.pattern})|{SEED.pattern}")
ENDING = re.compile("constant|wsd|stable|trapez", re.I)      # halfway along these schedules is a shorter run
# Losses do not make one law across the words in these, nor across these numbers.
DATA = re.compile(any_of("dataset data_set corpus tokenizer (train|eval|val|valid|test)_(data|dataset|set)")
                  + "(_name)?")
KINDS = re.compile(rf"{DATA.pattern}|model_type|"
                   + any_of("optimi[sz]er opt arch architecture (model_)?family") + "(_name)?")
NUMBERS = re.compile(r"(\w+_)?" + any_of("experts? top_?k sparsity precision bits n_ctx context seq sequence")
                     + r"(_\w+)?")
VOCABULARY = re.compile(r"(\w+_)?vocab(ulary)?(_size)?")
FEWEST = 100                               # parameters or tokens: fewer are a count in millions or billions
LN_VOCABULARY = 12.5                       # nats: what a guess costs in the largest vocabularies in use
UNITS = {1: "", 1 / PF_DAY: "in PF-days", 1e-9: "in GFLOPs", 1e-12: "in TFLOPs", 1e-15: "in PFLOPs",
         1e-18: "in EFLOPs", 1e-21: "in ZFLOPs", 1e3: "of params or tokens in thousands",
         1e6: "of params or tokens in millions", 1e9: "of params or tokens in billions",
         1e12: "of params and tokens in millions", 1e15: "of params in millions and tokens in billions",
         1e18: "of params and tokens in billions"}
PARTS = {1: "", 1 / 3: "the forward pass alone, 2 N D", 2 / 3: "the backward pass alone, 4 N D",
         1 / 2: "a multiply-add counted once, 3 N D",
         4 / 3: "activations computed twice, 8 N D", 1 / 6: "N D without the 6"}


@lru_cache(maxsize=10_000)
def plain(name: str) -> str:
    """A column's name in small letters, unless it is one, with _ for all that is no letter or digit."""
    name = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")
    return name if len(name) == 1 else name.lower()


# ---- Which column is which. ----

def renamed(table: dict) -> tuple[dict, list[str]]:
    """(the table under our names, a note for each column that had another one)."""
    names = {plain(name): name for name in reversed(table)}
    ours = {}
    for name, others in ALIASES.items():
        found = [names[other] for other in others.split() if other in names]
        if name not in table and found:
            ours[found[0]] = name
    if any(name.startswith("params_") for name in table):      # then counts.params knows how to count N
        ours = {theirs: name for theirs, name in ours.items() if name != "params"}
    notes = [f"{name} is the column {theirs!r}" for theirs, name in ours.items()]
    for name, what in (("params", "parameters are N"), ("tokens", "tokens are D")):
        chosen = next((theirs for theirs in ours if ours[theirs] == name), name)
        notes += notes_on_rivals(table, chosen, name, what)
    return {ours.get(name, name): values for name, values in table.items()}, notes


def notes_on_rivals(table: dict, chosen: str, ours: str, what: str) -> list[str]:
    """A note where `chosen` is one of several counts, and by our own name; by another, a UserError."""
    others = rivals(table, chosen, ours) if chosen in table else []
    if others and chosen != ours:
        raise UserError(f"which {what}? There are {', '.join([chosen, *others])}: call one of them {ours}")
    return [f"{ours} is the column of that name, and not {' or '.join(map(repr, others))}"] if others else []


def rivals(table: dict, chosen: str, ours: str) -> list[str]:
    """The columns that count `ours`, params or tokens, otherwise than `chosen`, and not just in millions.

    Of tokens only those whose names might be taken are meant: a batch, say, has tokens, too.
    """
    found = []
    for name in table:
        words = words_of(name)
        known = plain(name) in ALIASES[ours].split() and len(plain(name)) > 1
        counted = ours == "params" and words & {"params", "parameters"} and not words & {"per", "norm"}
        if name == chosen or not (known or counted):
            continue
        if not is_text(table[name]) and not is_text(table[chosen]):
            with np.errstate(all="ignore"):            # of zeros and gaps nothing is known
                power = np.log10(table[name] / table[chosen])
            power = power[np.isfinite(power)]
            if len(power) and np.abs(power - np.round(np.median(power))).max() > 0.001:
                found.append(name)
    return found


def words_of(column: str) -> set[str]:
    """{'val', 'loss'} of 'val/loss', 'val_loss' and 'valLoss'."""
    return {word.lower() for word in re.findall("[A-Z]+(?![a-z])|[A-Z]?[a-z]+", column)}


@lru_cache(maxsize=10_000)
def is_loss(column: str) -> bool:
    """Whether a column holds the loss of a model: not a part of it, nor the best so far."""
    words = words_of(column)
    known = words & LOSS_WORDS or {"bits", "per"} <= words or {"cross", "entropy"} <= words or column == "L"
    return bool(known) and not words & OTHER_LOSSES


def by_text(record: dict) -> dict:
    """A record with its 'loss' as 'eval_loss' where another cell says 'eval': rows of two texts alternate."""
    texts = HELD_OUT | {"train", "training"}
    said = (value.strip().lower() for name, value in record.items()
            if plain(name) in SPLITS and isinstance(value, str))
    text = next((word for word in said if word in texts), "")
    if not text:
        return record
    return {f"{text}_{name}" if is_loss(name) and not words_of(name) & texts else name: value
            for name, value in record.items()}


@lru_cache(maxsize=10_000)
def held_out(column: str) -> bool:
    """Whether a loss was measured on other text than that trained on."""
    return bool(words_of(column) & HELD_OUT)


def unit(loss: str) -> str:
    """'bits per byte', or nothing of a loss in nats per token."""
    return next((text for word, text in BITS.items() if word in plain(loss)), "")


def listed(names: Iterable[str]) -> str:
    """'a, b, c', or the first twenty of more."""
    names = list(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def missing(name: str, near: str, table: dict) -> UserError:
    """That a fit lacks the column `name`, what there is, and how to say which it is."""
    made = "; or a column flops; tokens are steps x batch x context, params x tokens per parameter"
    return UserError(f"no column {name}{nearest(near, table)}; the fit needs params,tokens,loss; there are "
                     f"{listed(table)}: rename them, or python -m scaling.logs FILE.csv --out=RUNS.csv "
                     f"--map params=COLUMN tokens=COLUMN loss=COLUMN{made if near == 'tokens' else ''}")


def perplexities(names: Iterable[str]) -> str:
    """That a column holds no loss, and how it becomes one; of the first that does, or ''."""
    name = next((name for name in names if PERPLEXITY.fullmatch(plain(name))), "")
    return name and (f"column {name!r} holds perplexities: take its logarithm, which is the loss in nats, as "
                     "a column 'loss'")


def choose_loss(table: dict, asked: str | None) -> tuple[str, str, list[str]]:
    """(the column of losses, its unit, notes): the one `asked` for, or a validation loss before others.

    Raises UserError where there is none, and for perplexities.
    """
    losses = [name for name in table if plain(name) not in ("L", "l") or not is_whole(table[name])]
    found = [name for known in LOSSES for name in losses if plain(name) == known]
    others = [name for name in losses if is_loss(name) and name not in found]
    held = [name for name in others if held_out(name)]
    if not asked and found and held and not held_out(found[0]):
        if len(held) > 1:
            raise UserError(f"which loss? Pass --loss=COLUMN, one of {', '.join([*held, found[0]])}")
        found.insert(0, held[0])
    if not (found or others):
        found = [name for name in table if PERPLEXITY.fullmatch(plain(name))]
    if not (asked or found) and others:
        raise UserError(f"no column 'loss' or 'val_loss'; pass --loss=COLUMN, one of {', '.join(others)}")
    if not (asked or found):
        raise missing("'loss' or 'val_loss'", "loss", table)
    name = asked or found[0]
    if told := perplexities([name]):
        raise UserError(told)
    notes = []
    if not asked and len(found) > 1 and not unit(found[1]):
        notes.append(f"loss is the column {name!r}; --loss={found[1]} takes the other")
    others = [other for other in table if PERPLEXITY.fullmatch(plain(other)) and held_out(other)]
    if others and not held_out(name):
        notes.append(f"loss is the column {name!r}; the logarithm of {others[0]!r} is that of held-out text")
    of = unit(name) or "nats per token"
    if "loss_unit" in table:                           # as scaling.logs writes it
        of = next((word for word in table["loss_unit"] if word == word and word), of)
    if of != "nats per token":
        notes.append(f"{name} is in {of}: so are the floor of a law and losses at a budget")
    return name, of, notes


def only(table: dict, where: list[str]) -> Array:
    """A mask (n,) of the rows that meet every COLUMN=VALUE of `where`. Raises UserError if none does."""
    mask = np.ones(len(next(iter(table.values()))), bool)
    for pair in where:
        name, sign, value = pair.partition("=")
        if name not in table or not sign:
            raise UserError(f"--where={pair}: COLUMN=VALUE is needed, with a COLUMN of the table"
                            f"{nearest(name, table)}")
        equal = table[name] == value
        if not is_text(table[name]) and value and is_number(value):
            equal = table[name] == float(value)
        if not np.any(equal):
            raise UserError(f"--where={pair}: no row has that; {name} holds {some(table[name])}")
        mask &= equal
    if not mask.any():
        raise UserError(f"--where={' --where='.join(where)}: no row has all of these; leave one of them out")
    return mask


def some(values: Array) -> str:
    """'3 values (a, b, c)', with the first three of more."""
    found = sorted(set(map(str, values) if is_text(values) else values))
    shown = ", ".join(value if is_text(values) else f"{value:g}" for value in found[:3])
    if len(found) > 3:
        shown += ", ..."
    return f"{len(found)} values ({shown})"


def rows_text(rows: Array) -> str:
    """'rows 3, 8, 12, 13, 14 and 5 more' for zero-based data rows."""
    text = ", ".join(str(r + 1) for r in rows[:5])
    if len(rows) > 5:
        text += f" and {len(rows) - 5} more"
    return f"row {text}" if len(rows) == 1 else f"rows {text}"


# ---- What tells runs apart. ----

def groups(columns: Iterable[Array]) -> Array:
    """The index of each row's group (n,): rows of one group are equal in every column (n,), nan to nan."""
    group = 0
    for column in columns:
        if column.dtype == object:
            column = column.astype(str)
        code = np.unique(column, return_inverse=True)[1]
        group = np.unique(group * len(code) + code, return_inverse=True)[1]
    return group


def is_text(values: Array) -> bool:
    """Whether a column holds words."""
    return values.dtype.kind in "OU"


def is_whole(values: Array) -> bool:
    """Whether a column holds whole numbers only, as one of layers."""
    return not is_text(values) and bool((values == np.round(values)).all())


def runs_of(counter: Array, size: Array, least: int, evenly: bool = True) -> Array | None:
    """The number (n,) of each row's run: a new one where the `counter` starts anew or the `size` changes.

    None unless the counter rises `evenly` and runs have `least` rows or more: else rows are finished runs,
    and the counter says how long each was. Rows of one size need not stand together.
    """
    order = np.argsort(size, kind="stable")
    gain = np.diff(counter[order])
    new = np.append(True, (gain <= 0) | (np.diff(size[order]) != 0))
    run = np.empty(len(size), int)
    run[order] = np.cumsum(new) - 1
    even = np.isclose(gain[1:], gain[:-1], 0.01, 1.5) | new[2:] | new[1:-1]
    if len(run) < least * (run.max() + 1) or evenly and not even.all():
        return None
    return run


def is_name(name: str, values: Array) -> bool:
    """Whether a column only names or counts the rows."""
    n = len(values)
    if NAME.fullmatch(plain(name)) or plain(name) == "":
        return True
    if is_text(values):
        return len(set(values)) == n > 2
    return n > 2 and np.array_equal(values - values[0], np.arange(n))


def mixed(table: dict, N: Array, D: Array, own: tuple[str, ...]) -> list[str]:
    """The columns of words, but for our `own`, that neither name the runs nor follow from their N and D.

    And numbers that are no more than words, as of experts; and vocabularies, where a loss is another one.
    """
    sizes = [np.round(np.log(v), 2) for v in (N, D, D / N, N * D)]
    found = []
    for name, values in table.items():
        word = plain(name)
        if VOCABULARY.fullmatch(word) and not is_text(values) and values.max() > 1.02 * values.min():
            found.append(name)                         # less is padding
        if name in own or not (is_text(values) or NUMBERS.fullmatch(word)) or is_name(name, values):
            continue
        if SEED.fullmatch(word) or RESULT.fullmatch(word):
            continue
        code = np.unique(values.astype(str), return_inverse=True)[1]
        changes = [np.count_nonzero(np.diff(code[np.lexsort((code, v))])) for v in sizes]
        if min(changes) > code.max():                  # small, medium, large would change twice along N
            found.append(name)
    return found


# ---- Units. ----

def check_counts(name: str, counts: Array, others: Array) -> None:
    """Raise UserError where the `counts` of params or tokens are plainly in thousands, millions or billions.

    `others` are the tokens to params, and the params to tokens: nobody trains ten million tokens a parameter,
    nor a thousand parameters a token.
    """
    ratio = np.median(others / counts)
    if counts.min() >= FEWEST and counts.max() >= 3000 and ratio < (1e7 if name == "params" else 1e3):
        return
    raise UserError(f"{name} is {counts.min():.6g} to {counts.max():.6g}: no study has so few; if these are "
                    "thousands, millions, billions or logarithms write them out, as 124e6")


def tokens_by(C: Array, N: Array) -> Array:
    """C/(6 N). Raises UserError where these are too few tokens: then C is no count of FLOPs."""
    D = C / (6 * N)
    if np.nanmedian(D) < FEWEST:
        raise UserError(f"flops are {np.nanmin(C):.4g} to {np.nanmax(C):.4g}, which makes C/(6 N), "
                        f"{np.nanmedian(D):.3g}, no tokens: write them out (a PF-day is {PF_DAY:.3g})")
    return D


def check_loss(name: str, N: Array, D: Array, L: Array, vocabulary: float,
               rows: Array) -> tuple[Array, list[str]]:
    """(a mask (n,) of the rows that diverged, warnings), by what a guess costs: ln of the `vocabulary`.

    `vocabulary` is nan where it is not known, `rows` are the numbers of the rows. A row that is worse than a
    guess has diverged where others did well with no more parameters and tokens, or far better with about as
    much compute. Raises UserError where too many are not of that kind: these are no nats.
    """
    most = LN_VOCABULARY
    if vocabulary > 1:
        most = 1.1 * math.log(vocabulary)
    bad = most < L
    lost = bad.copy()
    for i in np.flatnonzero(bad):
        no_more = (N <= N[i]) & (D <= D[i])
        far_better = (N * D < 4 * N[i] * D[i]) & (1.5 * L < L[i])
        lost[i] = ((no_more | far_better) & ~bad).any()
    odd = bad & ~lost
    text = f"{name} is {L.min():.4g} to {L.max():.4g}, and a guess among all tokens costs {most:.3g} nats"
    if odd.sum() >= len(L) / 3:
        raise UserError(f"{text}: if these are perplexities take their logarithm, if sums divide them by "
                        "their tokens, else take out the rows that diverged")
    return lost, [f"{text}; worse are {rows_text(rows[odd])}"] if odd.any() else []


def cause(factor: float) -> str:
    """': it counts ...' where a constant `factor` between flops and 6 N D is a known one."""
    for unit, what in UNITS.items():
        for part, which in PARTS.items():
            if abs(factor / (unit * part) - 1) < 0.02:
                return f" ({', '.join(words for words in (which, what) if words)})"
    return ""


def uneven(N: Array, ratio: Array) -> list[int]:
    """The indices, five at most, where `ratio` is off by a factor of two from that of the next sizes."""
    order = np.argsort(N, kind="stable")
    r = np.log(ratio[order])
    near = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(r, 2, "edge"), 5), axis=1)
    return sorted(order[np.abs(r - near) > math.log(2)].tolist())[:5]


def check_flops(C: Array, N: Array, D: Array, rows: Array) -> tuple[list[str], list[str]]:
    """(notes, warnings) on how given FLOPs compare with 6 N D. Raises UserError for no training FLOPs.

    That they are more or less than 6 N D by a factor that changes with N has good reasons: the head,
    attention, embeddings that N counts. One that is the same for all sizes is another unit or another count.
    `rows` are the numbers of the rows.
    """
    wide = np.ptp(np.log(N)) > math.log(2)
    fix = "; pass --flops=6nd, and budgets in FLOPs"
    for base, word in ((10, "log10"), (math.e, "ln")):
        if (np.abs(C * math.log(base) - np.log(6 * N * D)) < math.log(10)).all():
            raise UserError(f"flops holds {word} of the FLOPs, not FLOPs{fix}")
    ratio = C / (6 * N * D)
    low, high = ratio.min(), ratio.max()
    middle = float(np.median(ratio))
    text = f"flops are {low:.3g} to {high:.3g} times 6 N D"
    if wide and high / low < 1.04:
        text = f"flops are {middle:.3g} times 6 N D in every row{cause(middle)}"
    once = ratio * D
    if wide and np.ptp(np.log(D)) > math.log(2) and once.max() / once.min() < 1.5:
        raise UserError(f"flops are those of one token, {6 * np.median(once):.3g} N{fix}")
    if low < 0.01 or high > 100:
        raise UserError(f"{text}: they are no training FLOPs{fix}")
    if low > 0.97 and high < 1.03:
        return [], []
    if wide and high / low < 1.04:
        return [], [f"{text}: they, or params, count something else, and budgets with them; --flops=6nd "
                    "counts 6 N D"]
    if odd := uneven(N, ratio):
        return [], [f"flops are {', '.join(f'{ratio[i]:.3g}' for i in odd)} times 6 N D in "
                    f"{rows_text(rows[odd])}, unlike those of their size"]
    # Embeddings that N counts weigh less in large models, the head and attention too.
    if wide and ratio[N.argmax()] < min(0.9, ratio[N.argmin()]):
        return [], [f"{text}, and least for the largest: is the backward pass in them?{fix}"]
    return [text], []
