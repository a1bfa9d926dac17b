"""Fixtures: `lab` is a copy of the training code with a small dataset, so no test touches data/ or out/."""
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")          # before torch: one thread is exact, and leaves room
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
import contextlib
import hashlib
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Published data: their names in scaling.published, and the tables of ../shared/oracles that are the same.
TABLES = dict(chinchilla="chinchilla_svg", gemstones="gemstones_hot", porian="porian_refinedweb",
              datablations="datablations_182", width_sweep="width_sweep_c4_curves")


def published_table(name: str) -> Path:
    """data/published/NAME.csv where it was fetched, else the same of ../shared; without both skips."""
    places = [ROOT / "data" / "published" / f"{name}.csv",
              ROOT.parent / "shared" / "oracles" / f"{TABLES[name]}.csv"]
    for path in places:
        if path.exists():
            return path
    pytest.skip(f"python -m scaling.published {name} was not run, and there is no {places[1]}")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n, a worker takes whole files: what a module has trained or fitted is made once, not by each."""
    if config.getvalue("dist") == "load":
        from xdist.scheduler import LoadFileScheduling

        config.option.loadscopereorder = False         # the long files come first as they are
        return LoadFileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def solved():
    """What the solver has found before, by all that it was asked: many tests fit the same few studies.

    It has no state, so the same question has the same answer. What is not asked of a law is not kept.
    """
    from scaling.laws import forms, solver

    descend, known = solver.descend, {}

    def ask(problem, theta, y, w, steps, tolerance):
        if problem.model not in {form.model for form in forms.FORMS.values()}:
            return descend(problem, theta, y, w, steps, tolerance)
        text = hashlib.sha1()
        for array in (problem.X, problem.lo, problem.hi, problem.frozen, theta, y, w):
            text.update(f"{array.shape}".encode())
            text.update(np.ascontiguousarray(array))
        key = problem.model, text.digest(), steps, tolerance
        if key not in known:
            known[key] = descend(problem, theta, y, w, steps, tolerance)
        return known[key]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver, "descend", ask)
        yield known


SMALL = dict(dataset="tiny", n_layer=1, n_head=2, n_embd=16, block_size=32, batch_size=8, max_iters=20,
             device="cpu")


def write_dataset(folder: Path, train_tokens: int = 40_000, val_tokens: int = 20_000) -> dict:
    """A char dataset as prepare.py writes it, of the help texts in Python's library. Returns its meta."""
    text = "\n\n".join(topics[k] for k in sorted(topics)).encode("ascii", "ignore").decode()
    text = text[:train_tokens + val_tokens]
    chars = "".join(sorted(set(text)))
    meta = dict(name=folder.name, tokenizer="char", vocab_size=len(chars), chars=chars)
    folder.mkdir(parents=True)
    for split, part in (("train", text[:train_tokens]), ("val", text[train_tokens:])):
        raw = b"".join(chars.index(ch).to_bytes(2, "little") for ch in part)
        (folder / f"{split}.bin").write_bytes(raw)
        meta |= {f"{split}_tokens": len(part), f"{split}_bytes": len(part),
                 f"{split}_sha256": hashlib.sha256(raw).hexdigest()}
    (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    return meta


def copy_code(root: Path, *more: str) -> None:
    """train.py and all that it imports, and the folders `more`, as a repository of their own under `root`."""
    for name in ("train.py", "model.py"):
        shutil.copy(ROOT / name, root)
    for name in ("config", "runtime", *more):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__", "results"))


class Lab:
    """The code of a run (`copy_code`) and data/tiny under `root`, which basics.ROOT must be (see `lab`)."""

    def __init__(self, root: Path):
        self.root = root
        self.data, self.processes = root / "data", []
        write_dataset(self.data / "tiny")
        copy_code(root)

    def out(self, name: str) -> Path:
        return self.root / "out" / name

    def settings(self, name: str = "run", **changes) -> dict:
        """SMALL with changes; a change to None takes the setting away. `name` is the run's directory."""
        wanted = SMALL | dict(out_dir=str(self.out(name))) | changes
        return {k: v for k, v in wanted.items() if v is not None}

    def config(self, name: str = "run", **changes):
        from config.settings import Config

        return Config(**self.settings(name, **changes))

    def derived(self, name: str = "run", **changes):
        """The configuration as a run would use it."""
        from config.settings import resolve
        from runtime.devices import on_machine

        return on_machine(resolve(self.config(name, **changes)).config, "cpu", 1)

    def train(self, name: str = "run", **changes) -> dict:
        import train
        return train.train(self.config(name, **changes))

    def arguments(self, name: str = "run", **changes) -> list[str]:
        return [f"--{k}={v}" for k, v in self.settings(name, **changes).items()]

    def command(self, name: str = "run", **changes) -> tuple[int, str, str]:
        """`python train.py ...` within this process, which saves the import: (exit code, stdout, stderr)."""
        return self.main(self.arguments(name, **changes))

    def main(self, arguments: list[str]) -> tuple[int, str, str]:
        import train
        out, err, before = io.StringIO(), io.StringIO(), sys.argv
        sys.argv = ["train.py", *arguments]
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                with pytest.raises(SystemExit) as end:
                    train.exit_cleanly(train.main)
        finally:
            sys.argv = before
        return end.value.code or 0, out.getvalue(), err.getvalue()

    def start(self, name: str = "run", launcher: tuple = (), **changes) -> subprocess.Popen:
        """The same in a process of its own."""
        return self.spawn(*launcher, str(self.root / "train.py"), *self.arguments(name, **changes))

    def spawn(self, *arguments: str) -> subprocess.Popen:
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        self.processes.append(subprocess.Popen([sys.executable, *arguments], cwd=self.root, **pipes))
        return self.processes[-1]

    def close(self) -> None:
        """End what a failed test left running. SIGTERM: torchrun then ends its workers, too."""
        for process in self.processes:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=60)

    def log(self, name: str = "run") -> list[dict]:
        text = (self.out(name) / "log.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def checkpoint(self, name: str = "run") -> dict:
        import torch
        return torch.load(self.out(name) / "ckpt.pt", weights_only=True)

    def files(self) -> dict[str, bytes]:
        """Every file under `root` but compiled code: what a refused command must leave as it was."""
        return {str(p.relative_to(self.root)): p.read_bytes() for p in sorted(self.root.rglob("*"))
                if p.is_file() and p.suffix != ".pyc"}


def in_this_process(patch: pytest.MonkeyPatch, root: Path) -> None:
    from runtime import basics

    patch.setattr(basics, "ROOT", root)                # a process of its own needs no help: it runs the copy
    patch.setattr(os, "fsync", lambda fd: None)        # no test cuts the power, and disks are slow


@pytest.fixture
def lab(tmp_path, monkeypatch) -> Lab:
    in_this_process(monkeypatch, tmp_path)
    with contextlib.closing(Lab(tmp_path)) as lab:
        yield lab


@pytest.fixture(scope="module")
def module_lab(tmp_path_factory) -> Lab:
    """One lab for all tests of a module; each writes run directories of its own."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("lab")
        in_this_process(patch, root)
        with contextlib.closing(Lab(root)) as lab:
            yield lab
