"""Text from a trained run.

    python sample.py                       # names the runs under out/ that there are
    python sample.py --out_dir=out/RUN
    python sample.py --out_dir=out/RUN --start="ROMEO:" --num_samples=5 --temperature=0.7 --top_p=0.95

Prints the prompt with each continuation. While both fit in block_size, keys and values are cached.
Beyond, each token is drawn from the last block_size tokens, computed afresh: what they hold was computed with
tokens that have left the window, and learned positions change.
"""
import os

import runtime  # noqa: F401    first: it says what is missing here

os.environ.setdefault("OMP_WAIT_POLICY", "passive")    # spinning threads starve others; set before torch
import json
import math
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from config.configurator import configure
from config.corpus import load_meta
from config.schema import from_dict
from data.common import Tokenizer, as_path, get_tokenizer
from model import GPT
from runtime import basics
from runtime.basics import UserError, exit_cleanly, from_here
from runtime.devices import find_device
from runtime.rundir import require_ours

# Parameters below which one thread samples faster than two (by 1.1 to 1.4 on two shared cores).
FEW_PARAMS = 10e6


@dataclass
class Config:
    out_dir: str = ""           # run directory that train.py wrote; to be given
    start: str = ""             # prompt, or FILE:PATH to read it from; empty: the beginning of a document
    num_samples: int = 3        # continuations of the prompt
    max_new_tokens: int = 500   # length of each
    temperature: float = 0.8    # 0: always the likeliest token; 1: as trained; higher: more random
    top_k: int = 200            # draw from the k likeliest tokens; 0: from all
    top_p: float = 1.0          # of those, from the fewest that hold this probability; 1: from all
    seed: int = 1337            # the same seed gives the same text (same settings, same kind of device)
    device: str = "auto"        # auto: cuda, else mps, else cpu


def check(c: Config) -> None:
    """Raise UserError for a setting outside its range."""
    for key, good, range_ in (("num_samples", c.num_samples > 0, "positive"),
                              ("max_new_tokens", c.max_new_tokens > 0, "positive"),
                              ("temperature", 0 <= c.temperature < math.inf, "positive, or 0 for greedy"),
                              ("top_k", c.top_k >= 0, "positive, or 0 for off"),
                              ("top_p", 0 < c.top_p <= 1, "above 0 and at most 1")):
        if not good:
            raise UserError(f"{key} must be {range_}, not {getattr(c, key)}")


def known_runs(out_dir: str) -> str:
    """The end of a message: the newest runs under out/, here and in the repository; or how to train one."""
    found = {path for root in (Path.cwd(), basics.ROOT) for path in (root / "out").rglob("ckpt.pt")}
    found = sorted(found, key=os.path.getmtime, reverse=True)
    if found:
        return f"there are: {', '.join(from_here(path.parent) for path in found[:5])}"
    script, config = basics.ROOT / "train.py", basics.ROOT / "config" / "train_shakespeare_cpu.py"
    option = f" --out_dir={shlex.quote(out_dir)}" if out_dir else ""
    return f"train first: python {from_here(script)} {from_here(config)}{option}"


def load_run(out: Path) -> tuple[GPT, Tokenizer]:
    """The model of the run directory `out`, on the CPU in eval mode, and the tokenizer of its training."""
    again = "choose another run, or train it again, with its own command and --resume=never"
    if not (out / "ckpt.pt").exists():
        raise UserError(f"{out / 'ckpt.pt'} is missing; {known_runs(str(out))}")
    require_ours(out / "ckpt.pt", "sampled from; choose another run")
    try:
        state = torch.load(out / "ckpt.pt", map_location="cpu", weights_only=True)
        data = state["data_sha256"]
        c = from_dict(state["config"])
        model = GPT(c)
        model.load_state_dict(state["model"])
        tokenizer = json.loads((out / "config.json").read_text(encoding="utf-8"))["tokenizer"]
    except FileNotFoundError as e:
        raise UserError(f"{e.filename} is missing; {again}") from None
    except Exception as e:                             # unpickling garbage can raise almost anything
        raise UserError(f"{out}: ckpt.pt or config.json is corrupt ({type(e).__name__}); {again}") from None
    meta = load_meta(c.dataset)
    # Vocabularies of char and bpe are their text's, so it must be the same; byte and gpt2 are one for all.
    own = tokenizer in ("char", "bpe")
    other = "other text, " if own and meta["train_sha256"] != data else ""
    if other or meta["tokenizer"] != tokenizer or meta["vocab_size"] > c.vocab_size:
        raise UserError(f"{out} does not match data/{c.dataset}: trained with tokenizer {tokenizer} and "
                        f"{c.vocab_size} ids, and that now holds {other}tokenizer {meta['tokenizer']} and "
                        f"{meta['vocab_size']} ids; prepare it as it was")
    return model.eval(), get_tokenizer(tokenizer, meta.get("chars") or meta.get("bpe", ""))


def read_prompt(start: str) -> str:
    """`start`, or the text of the file that FILE:PATH names."""
    try:
        if start.startswith("FILE:"):
            return as_path(start.removeprefix("FILE:")).read_text(encoding="utf-8-sig")
        start.encode()                                 # Python takes bytes that are not UTF-8 for surrogates
        return start
    except (OSError, UnicodeError) as e:
        raise UserError(f"--start={start}: {getattr(e, 'strerror', None) or 'not UTF-8 text'}") from None


def encode_prompt(tok: Tokenizer, text: str, trained: np.ndarray) -> tuple[list[int], bool]:
    """Ids of the prompt, and whether they are text to print; `trained` holds the ids of the training text.

    For the empty prompt they are what stands between documents or, where there is one document only, the
    first token of the training text: of an id that never came, nothing was learnt.
    """
    if text:
        return tok.encode(text).tolist(), True
    ids = tok.separator.tolist()
    if ids and ids[0] in trained[:2 ** 24]:            # if at all, it comes soon
        return ids, False
    ids = trained[:1].tolist()
    print(f"the text of this run is one document: as it does, this begins with {tok.decode(ids)!r}",
          file=sys.stderr)
    return ids, True


def pick(logits: torch.Tensor, c: Config, rng: torch.Generator) -> torch.Tensor:
    """Logits (B, V) -> one id each (B, 1). top_p (Holtzman et al. 2020, section 3.1) cuts what top_k left."""
    logits, ids = logits.float().sort(descending=True, stable=True)
    if c.temperature == 0:
        return ids[:, :1]
    if c.top_k:
        logits = logits[:, :c.top_k]
    probs = torch.softmax((logits - logits[:, :1]) / c.temperature, dim=1)
    if c.top_p < 1:
        probs[probs.cumsum(dim=1) - probs >= c.top_p] = 0        # likelier tokens alone hold top_p
    return ids.gather(1, torch.multinomial(probs, 1, generator=rng))


@torch.no_grad()
def generate(model: GPT, idx: torch.Tensor, c: Config, rng: torch.Generator, vocab_size: int) -> torch.Tensor:
    """Continue idx (B, T) int64 -> (B, max_new_tokens), every id below `vocab_size`."""
    prompt = idx.shape[1]
    window = model.config.block_size
    new = idx                                                    # what the cache does not hold yet
    cache = [[] for _ in model.transformer.h]
    for _ in tqdm(range(c.max_new_tokens), desc="sampling", unit="token", leave=False, disable=None):
        if idx.shape[1] > window:                                # the window moves: nothing cached holds
            new = idx[:, -window:]
            cache = None
        logits = model(new, cache=cache)[0][:, -1, :vocab_size]  # ids that pad the vocabulary mean nothing
        new = pick(logits, c, rng)
        idx = torch.cat([idx, new], dim=1)
    return idx[:, prompt:]


def main() -> int:
    c = configure(Config, sys.argv[1:])
    check(c)
    device = find_device(c.device)
    if not c.out_dir:
        raise UserError(f"give the run, --out_dir=RUN; {known_runs('')}")
    model, tok = load_run(Path(c.out_dir))
    model.to(device)
    if device == "cpu" and sum(p.numel() for p in model.parameters()) < FEW_PARAMS:
        torch.set_num_threads(1)
    train_bin = basics.ROOT / "data" / model.config.dataset / "train.bin"
    prompt, is_text = encode_prompt(tok, read_prompt(c.start), np.memmap(train_bin, "<u2", mode="r"))
    idx = torch.tensor([prompt], device=device).expand(c.num_samples, -1)
    rng = torch.Generator(device).manual_seed(c.seed)
    at_once = max(1, 2 ** 27 // (model.config.block_size * model.config.vocab_size))    # .5 GB of logits
    for batch in idx.split(at_once):
        for ids in generate(model, batch, c, rng, tok.vocab_size).tolist():
            print(f"{tok.decode(prompt + ids if is_text else ids)}\n---------------")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
