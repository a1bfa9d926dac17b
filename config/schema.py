"""Which settings tell two runs apart, and which columns of a table record a run and its result."""
import dataclasses

from config.settings import FREE, HORIZONS, Config


def differences(old: dict, new: dict) -> list[str]:
    """Settings with bearing on the result in which two runs' settings differ.

    A setting that was added after one of them was written has its default; "auto" differs from nothing.
    """
    found = []
    for f in dataclasses.fields(Config):
        values = old.get(f.name, f.default), new.get(f.name, f.default)
        if f.name not in FREE and "auto" not in values and values[0] != values[1]:
            found.append(f.name)
    return found


def from_dict(old: dict) -> Config:
    """The settings in a checkpoint or config.json: what is missing has its default, the rest is left out."""
    names = {f.name for f in dataclasses.fields(Config)}
    return Config(**{name: value for name, value in old.items() if name in names})


# Columns of our tables that hold words, or names that look like numbers: the commit 5e10843 is not infinity.
TEXT_COLUMNS = set("study run dataset tokenizer schedule device dtype commit sha256 val_sha256 "
                   "parametrization arm position norm mlp optimizer".split())
# What a run is and what came of it, under the names that published tables use.
_RESULT = (
    "study run seed dataset tokenizer n_layer n_head n_embd block_size batch_tokens learning_rate schedule "
    "params_total params_embedding params_non_embedding params_head tokens unique_tokens epochs flops_6nd "
    "flops_exact train_loss val_loss val_bits_per_byte val_tokens wall_s tok_per_s device dtype "
    "commit").split()
# Settings with bearing that those columns hold in another form.
_TOLD = {*HORIZONS, "batch_size", "eval_iters", "arm"}
# The recipe: every other setting with bearing, so that a table of runs tells how they were trained.
RECIPE = [f.name for f in dataclasses.fields(Config) if f.name not in {*FREE, *_RESULT, *_TOLD}]
RUN_COLUMNS = [*_RESULT, *RECIPE, "val_sha256"]


def recipe(asked: Config, c: Config) -> dict:
    """RECIPE's columns of the run that `asked` asked for and that was resolved to `c`.

    Empty (None) is what did not count, or followed from the horizon: of warmup_iters and warmup_frac one was
    asked for, and another run of this recipe should ask for the same one.
    """
    row = {name: getattr(c, name) for name in RECIPE}
    row = {name: int(value) if isinstance(value, bool) else value for name, value in row.items()}
    row["warmup_frac" if asked.warmup_iters != -1 else "warmup_iters"] = None
    if asked.lr_decay_iters == -1:
        row["lr_decay_iters"] = None
    return row
