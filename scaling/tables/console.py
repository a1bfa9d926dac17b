"""What programs print as they train: the lines of console logs as records of a step and its losses."""
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from scaling.tables.columns import OTHER_LOSSES, is_loss
from scaling.tables.csv import number, text_lines

NUMBER = r"(-?nan|-?inf|-?\d+(?:\.\d*)?(?:e[+-]?\d+)?)(?![\w.]|,\d)"
COUNTED = r"(\d{1,3}(?:,\d{3})+|\d{1,15}(?:(?:\.\d+)?[kM]\b)?)"     # 1200, 1,200 or 1.2k
STEP = re.compile(rf"""(?<![\w.])(?:(?:global_)?step|iter(?:ation)?|^s)\s*(?:[:=\#]\s*)?
                       {COUNTED}(?:/[ ]*{COUNTED})?              # 100, or 100/1000
                       (?![.,]?\d)""", re.IGNORECASE | re.VERBOSE)
LOSS = re.compile(r"""(?<![\w/.])                                 # not the end of another word
                      (?:(train|val|eval|test)(?:ing|id|idation)?[ _/.]|lm_)?
                      (loss|bpb|tel|trl)(?:\s*[:=]\s*|\s+)""" + NUMBER, re.IGNORECASE | re.VERBOSE)
SHORT = {"tel": "val_loss", "trl": "train_loss"}       # as llm.c writes them
REWRITTEN = (
    (re.compile(r"\x1b\[[\d;]*m|\x08"), ""),           # colours; build-nanogpt's log.txt; Megatron-LM
    (re.compile(r"^(\d{1,15}) (train|val) (\d+\.\d+)\s*$"), r"step \1: \2 loss \3"),
    (re.compile(r"^(step \d{1,15}: train) (\d+\.\d+), val (?=\d+\.\d+\s*$)"), r"\1 loss \2, val loss "),
    (re.compile(r"validation \w+ at iteration (\d{1,15})(?: on validation set)? \| lm[ _]loss value: "),
     r"step \1: val loss "),
    (re.compile(r"validation \w+ at iteration (\d{1,15}) on test set \| lm loss value: "),
     r"step \1: test loss "))
OF_LOSS = re.compile(r"\b(?:loss|bpb|tel|trl)\b", re.IGNORECASE)
EVALUATED = re.compile(r"\b(?:eval(?:uat\w+)?|val(?:id(?:at\w+)?)?|saving dict)\b(?![.=])", re.IGNORECASE)
ALONE = re.compile(r"val(?:idation)? loss:? \d+\.\d+\s*")          # as llm.c's console has it
COUNT = r"\D{0,3}([\d,]+(?:\.\d+)?) ?([KMBT]|million|billion|)(?!\w|\.\d)"
PARTS = ("lm_head", "transformer_matrices")            # what nanochat counts as its parameters
UNITS = {"": 1, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12, "MILLION": 1e6, "BILLION": 1e9}
FACTS = [(name, re.compile(pattern, re.IGNORECASE)) for name, pattern in (
    ("batch_tokens", r"(?:tokens per iteration will be|total (?:desired )?batch size)" + COUNT),
    ("batch_tokens", "^train_batch_tokens:" + COUNT),  # such logs begin with their own program
    ("horizon", r"\bmax_iters" + COUNT),
    ("params", "^model_params:" + COUNT),
    ("params", r"(?:number of|total|model) (?:trainable )?(?:parameters|params)" + COUNT),
    ("params", r"\bsize" + COUNT + " total parameters"),           # torchtitan
    ("params", r"num_parameters\s*\|\s*" + COUNT),
    *((name, rf"^{name}\s*:" + COUNT) for name in PARTS))]
SEEN = re.compile(r"\b(?:consumed|total)[_ ]tokens\D{1,20}" + COUNT, re.IGNORECASE)     # so far
# OLMo and Composer name a step, and then each of its metrics on a line of its own.
BLOCK = re.compile(r"(?<!\w)\[(?:step|batch)=(\d{1,15})/(\d{1,15})[],]")
METRIC = re.compile(r"(?:\d+:)?\s+(?:Train |Eval )?([\w./-]+(?: loss)?)(?:=|: *)(nan|inf|[\d,.]+)")
# Keras: the last line of an epoch counts its batches; what it prints before is a mean over the epoch so far.
EPOCH = re.compile(r"Epoch (\d{1,9})/(\d{1,9})")
BATCHES = re.compile(r"\s*(\d{1,9})/\1\s.*\bval_loss: " + NUMBER)
# fairseq: | epoch 001 | valid on 'valid' subset | loss 7.3 | ppl 158 | num_updates 100, or the same in JSON.
UPDATES = re.compile(r'\b(?:([a-z]+\d*)_)?num_updates"?[ =:]+"?(\d{1,15})')
SUBSET = re.compile(r"valid on '(\w+)' subset")
INNER = re.compile(r'epoch \d+: +\d+ / \d+ |"update": ')          # other train losses are of a whole epoch
FAIRSEQ = re.compile(r'\b(?:\w+?_)?(?<!best_)(?<!nll_)(nll_loss|loss|ppl)"?[ =:]+"?(nan|inf|\d+\.?\d*)')
KINDS = ((r"^s:\d", "llm.c log"), (r"step:\d+/\d", "modded-nanogpt log"), (UPDATES, "fairseq log"),
         (r"Step \d+ \| Validation|step \d+/\d+ \(", "nanochat log"),
         (r"(?i)iter \d+: loss|step \d+: train loss", "nanoGPT console log"))


def fact_of(text: str, parts: dict) -> dict:
    """What a line says of the model or the steps that follow; the two `parts` of nanochat's models add up."""
    for name, pattern in FACTS:
        if match := pattern.search(text):
            value = number(match[1].replace(",", "")) * UNITS[match[2].upper()]
            if name in PARTS:
                parts[name] = value
                if len(parts) < len(PARTS):
                    return {}
                name, value = "params", sum(parts.values())
            if name != "params":
                return {name: value}
            counted = "as the log counts them"
            if match[2]:                               # as nanoGPT says it, or another
                counted = "rounded, " + ("all but the position embeddings" if "number" in text else counted)
            return {name: value, "counted": "transformer matrices and head" if parts else counted}
    return {}


def count(text: str) -> float:
    """1200 of '1200', '1,200' and '1.2k'."""
    return number(text.replace(",", ""))


def losses_of(text: str) -> dict:
    """{'val_loss': match} of the losses that a line holds; its group 3 is the number.

    The best so far and parts of a loss are none; the second of one name is of another text: 'val_loss_2'.
    """
    found = {}
    end = 0                                            # of the loss before
    for match in LOSS.finditer(text):
        before, since, end = text[:match.start()], text[end:match.start()], match.end()
        if re.search(r"(\w*)\W*$", before)[1].lower() in OTHER_LOSSES:
            continue
        text_of = match[1] or ("val" if is_of_evaluation(before) or is_of_evaluation(since) else "")
        name = f"{text_of}_{match[2]}".strip("_").lower()
        name = SHORT.get(name, name)
        again = sum(other.startswith(name) for other in found)
        found[f"{name}_{again + 1}" if again else name] = match
    return found


def is_of_evaluation(before: str) -> bool:
    """Whether the words `before` a loss say that it is of an evaluation, and not just that another is."""
    word = EVALUATED.search(before)
    after = before[word.end():] if word else ""
    return bool(word) and (STEP.search(after) is not None or not re.search(r"\d\.\d", after))


def is_torn(text: str, losses: dict, decimals: dict) -> bool:
    """Whether a line ends inside a number: with fewer `decimals` than that loss had; these are updated."""
    torn = False
    for name, match in losses.items():
        fraction = match[3].partition(".")[2]
        cut = len(fraction) < decimals.get(name, 0) and match.end() == len(text.rstrip())
        torn |= cut and match[3][-1] not in "nNfF" and not (fraction and text.endswith(("\n", "\r")))
        decimals[name] = max(decimals.get(name, 0), len(fraction))
    return torn


def of_fairseq(text: str) -> dict:
    """The record of a line of fairseq, or {}: its losses are in bits, unless the perplexity says nats."""
    updates = UPDATES.search(text) if "num_updates" in text else None
    found = dict(FAIRSEQ.findall(text)) if updates else {}
    loss = found.get("nll_loss", found.get("loss"))    # without what label smoothing adds
    of = SUBSET.search(text) or updates
    if not loss or of[1] == "train" or not of[1] and not INNER.search(text):
        return {}
    name = of[1] or "train"
    if not name.startswith(("train", "valid", "test")):
        name = f"valid_{name}"
    ppl = number(found.get("ppl"))
    in_nats = ppl > 0 and abs(math.log(ppl) - number(loss)) < 0.01
    return {"step": int(updates[2]), f"{name}_loss" if in_nats else f"{name}_loss_bits": loss}


class Lines:
    """The lines of a log one by one, with what the earlier ones say of them."""

    def __init__(self):
        self.parts = {}                                # of the parameters of nanochat's models
        self.decimals = {}                             # that each loss had
        self.done = 0                                  # steps
        self.first = None                              # the first step of the log
        self.block = {}                                # the step whose metrics follow
        self.epoch = None                              # (its number, how many there are)
        self.counters = ""                             # where a line has two

    def of_block(self, text: str) -> dict:
        """The record of a line of OLMo, Composer or Keras, or {}."""
        if match := BLOCK.search(text):
            self.block = {"step": int(match[1]), "horizon": int(match[2])}
        elif match := EPOCH.fullmatch(text.strip()):
            self.epoch = int(match[1]), int(match[2])
        elif self.block and (match := METRIC.fullmatch(text.rstrip())):
            name = match[1].replace("time/token", "total_tokens")      # of Composer
            if name.endswith("total_tokens"):
                self.block["consumed_tokens"] = match[2].replace(",", "")
                return self.block
            if is_loss(name):
                return self.block | {name: match[2].replace(",", "")}
        elif self.epoch and (match := BATCHES.match(text)):
            done, horizon = (epoch * int(match[1]) for epoch in self.epoch)
            return {"step": done, "horizon": horizon, "val_loss": match[2]}
        return {}

    def of_line(self, text: str) -> dict:
        """The record of a line with a step and its losses, or {}. Raises ValueError for a torn one.

        A line 'val loss 3.1' without a step is of the steps that were done before it.
        """
        at, losses = STEP.search(text), losses_of(text)
        if not (at or ALONE.fullmatch(text)) or not (losses or OF_LOSS.search(text)):
            return {}
        others = [other[0] for other in STEP.finditer(text) if at and other[0][:4] != at[0][:4]
                  and count(other[1]) != count(at[1])]
        if others and not self.counters:
            self.counters = f"'{at[0]}' is also '{others[0]}': give --batch_tokens= of one {at[0][:4]}"
        if not losses or is_torn(text, losses, self.decimals):
            raise ValueError("no loss, or a part of it")
        step = int(count(at[1])) if at else self.done
        if at:
            self.first = step if self.first is None else self.first
            self.done = step + (self.first == 0)       # the steps of a log that begins with 0 count from 0
        record = {"step": step, "horizon": count(at[2]) if at and at[2] else None}
        if seen := SEEN.search(text):
            record["consumed_tokens"] = count(seen[1]) * UNITS[seen[2].upper()]
        return record | {name: match[3] for name, match in losses.items()}


def read_console(path: Path, report: Callable) -> Iterator:
    """What a program prints: a step and its losses on a line, with anything else around them."""
    lines = Lines()
    kind = lost = ""
    for line, text in enumerate(text_lines(path, "replace"), 1):
        for pattern, plain_text in REWRITTEN:
            text = pattern.sub(plain_text, text)
        try:
            record = of_fairseq(text) or lines.of_block(text) or lines.of_line(text)
        except ValueError:
            report(f"{path}:{line}: malformed: {text.strip()!r:.60}; skipped")
            continue
        if record:
            if not kind:
                kind = next((name for pattern, name in KINDS if re.search(pattern, text)), "console log")
                yield None, {"kind": kind}
            yield str(line), record
        elif not STEP.search(text) and (fact := fact_of(text, lines.parts)):
            yield None, fact
        elif not (kind or lost) and re.search(r"(?i)loss\W+\d+\.\d", text):
            lost = f"{path}:{line}: a loss and no step in {text.strip()!r:.60}"
    if lines.counters:
        report(f"{path}: {lines.counters}")
    if lost and not kind:
        report(f"{lost}; log the step of each, as CSV or JSON")
