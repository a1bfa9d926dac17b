"""Whatever goes wrong in a sweep, the same command run once more ends with the same runs.csv, but for times.

NANOSCALE_KILLS=100 python -m pytest tests/test_faults.py -k killed -s       # more kills, and the tally
"""
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import copy_code, write_dataset

from config import settings
from runtime import system, warm
from scaling.launch import local, planned

KILLS = int(os.environ.get("NANOSCALE_KILLS", 20))
TIMES = ("wall_s", "tok_per_s")
BASE = ("base = dict(dataset='tiny', n_layer=1, n_head=1, block_size=32, batch_size=4, device='cpu', "
        "learning_rate=5e-3, eval_iters=5, log_interval=5, eval_interval=10, ckpt_minutes=0.0)\n")
STUDY = BASE + """runs = [dict(name=f'd{d}', n_embd=d, schedule='wsd', warmup_iters=2, budgets=[2e7, 4e7])
        for d in (6, 9, 12)]
held_out = [dict(name='big', n_embd=16, schedule='wsd', warmup_iters=2, budget=5e7)]
"""

# Sweeps start from a process that has imported everything once: it forks a sweep for each line that it reads,
# and that forks its runs. All of a sweep is one process group. One law is fitted, and nothing is drawn.
ZYGOTE = '''
import functools, gc, json, os, signal, sys, time, traceback
from pathlib import Path
sys.path.insert(0, os.getcwd())
import numpy as np
import torch
import train
from config import settings
from runtime import basics, rundir
from scaling import fit, forecast, plots, sweep
from scaling.launch import local

def die():
    os.killpg(0, signal.SIGKILL)
    time.sleep(60)

def fault(where, count, name):
    """Kill the whole group at the `count`th passage of this process at `where`."""
    step, evaluate, log = train.Run.train_step, train.Run.evaluate, rundir.append_log
    save, replace, left = torch.save, os.replace, [count]
    def here(place):
        left[0] -= place == where
        return place == where and left[0] <= 0
    def half_a_line(out, record):
        if here("log"):
            with open(out / "log.jsonl", "a") as f:
                f.write(json.dumps(record)[:40])
            die()
        log(out, record)
    def half_a_checkpoint(state, f):
        if here("checkpoint"):
            f.write(b"half")
            f.flush()
            die()
        save(state, f)
    def moved(part, path):
        mine = Path(path).name == name
        mine and here("before") and die()
        replace(part, path)
        mine and here("after") and die()
    train.Run.train_step = lambda run: (step(run), here("step") and die())
    train.Run.evaluate = lambda run: here("evaluate") and die() or evaluate(run)
    rundir.append_log, torch.save, os.replace = half_a_line, half_a_checkpoint, moved

class Forked:
    def __init__(self, pid):
        self.pid, self.returncode = pid, None
    def poll(self, how=os.WNOHANG):
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode
    def wait(self):
        return self.poll(0)
    def terminate(self):
        os.kill(self.pid, signal.SIGTERM)

def fork(main, console, argv):
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        file = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1), os.dup2(file, 2)
        sys.argv = argv
        try:
            basics.exit_cleanly(main)
        except SystemExit as e:
            code = e.code or 0
        except KeyboardInterrupt:
            code = 3
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        os._exit(code)

def start(p):
    def main():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        return train.main()
    p.out.mkdir(parents=True, exist_ok=True)
    p.process = Forked(fork(main, p.out / "train.txt", p.command()[1:]))

def study(job):
    def main():
        os.setpgid(0, 0)
        sweep.Study.folder = property(lambda study: Path(job["out"]) / study.name)
        local.start, os.fsync = start, lambda fd: None
        if "where" in job:
            fault(job["where"], job["count"], job.get("name"))
        exec(job.get("code", ""), globals())
        return sweep.main([job["sweep"], f"--jobs={job.get('jobs', 2)}", "--anyway"])
    return main

def left_out(*args):
    raise fit.UserError("left out")

fit.fit_study = functools.partial(fit.fit_study, bootstrap=10)
fit.accounting = fit.comparison = left_out
fit.LAWS = {"surface": fit.LAWS["surface"]}
plots.draw_study = lambda folder: []
sweep.core_speed = lambda: 1e9
time.sleep, nap = lambda seconds: nap(seconds / 10), time.sleep
train.train(settings.Config(dataset="tiny", n_embd=8, block_size=32, batch_size=2, max_iters=2,
                            out_dir="warm"))
gc.freeze()
print("ready", flush=True)
for line in sys.stdin:
    job = json.loads(line)
    child = Forked(fork(study(job), job["console"], ["sweep"]))
    print(child.pid, flush=True)
    print(child.wait(), flush=True)
'''


class Sweeps:
    """Sweeps of a copy of the repository's code, each into an out/ of its own."""

    def __init__(self, root: Path):
        self.root, self.zygote = root, None
        write_dataset(root / "data" / "tiny")
        copy_code(root, "scaling")
        (root / "zygote.py").write_text(ZYGOTE)
        self.write(STUDY)

    def write(self, text: str, name: str = "study") -> Path:
        path = self.root / f"{name}.py"
        path.write_text(text)
        return path

    def begin(self, case: str, study: str = "study", **job) -> int:
        """Start a sweep into out/CASE; returns its process group. One at a time: `end` waits for it."""
        if not self.zygote:
            self.zygote = subprocess.Popen([sys.executable, "zygote.py"], cwd=self.root, text=True,
                                           stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            while self.zygote.stdout.readline() != "ready\n":
                assert self.zygote.poll() is None
        self.folder = self.root / case / study
        job = dict(out=str(self.root / case), console=str(self.root / f"{case}.txt"),
                   sweep=str(self.root / f"{study}.py")) | job
        self.zygote.stdin.write(json.dumps(job) + "\n")
        self.zygote.stdin.flush()
        return int(self.zygote.stdout.readline())

    def end(self) -> int:
        """The exit code of the sweep, below 0 for the signal that killed it, once its runs are gone too."""
        code = int(self.zygote.stdout.readline())
        wait_for(self.unlocked)                        # of a killed group some die a moment later
        return code

    def unlocked(self) -> bool:
        return not any(system.locked(lock) for lock in self.folder.glob("**/lock"))

    def sweep(self, case: str, study: str = "study", **job) -> int:
        self.begin(case, study, **job)
        return self.end()

    def console(self, case: str) -> str:
        return (self.root / f"{case}.txt").read_text()

    def close(self) -> None:
        if self.zygote:
            self.zygote.stdin.close()
            self.zygote.wait(timeout=120)


def rows(folder: Path) -> str:
    """runs.csv without its times."""
    with open(folder / "runs.csv", encoding="utf-8", newline="") as f:
        table = list(csv.reader(f))
    keep = [i for i, name in enumerate(table[0]) if name not in TIMES]
    return "\n".join(",".join(row[i] for i in keep) for row in table)


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory):
    sweeps = Sweeps(tmp_path_factory.mktemp("sweeps"))
    yield sweeps
    sweeps.close()


@pytest.fixture(scope="module")
def whole(sweeps):
    """(runs.csv of the undisturbed study, the seconds that it took)."""
    start = time.monotonic()
    assert sweeps.sweep("whole") == 0, sweeps.console("whole")
    assert rows(sweeps.folder).count("\n") == 6 and (sweeps.folder / "forecasts.csv").exists()
    return rows(sweeps.folder), time.monotonic() - start


def recovers(sweeps, case: str, whole: str) -> None:
    """One restart ends with what the undisturbed study has, and leaves nothing half done."""
    assert sweeps.sweep(case) == 0, sweeps.console(case)
    assert rows(sweeps.folder) == whole
    with open(sweeps.folder / "forecasts.csv", encoding="utf-8", newline="") as f:
        forecast, = csv.DictReader(f)
    measured = json.loads((sweeps.folder / "big" / "result.json").read_text())["val_loss"]
    assert float(forecast["measured"]) == measured
    left = [p for p in sweeps.folder.rglob("*") if p.suffix in (".part", ".tmp") or p.name == "ckpt_prev.pt"]
    assert left == []
    shutil.rmtree(sweeps.folder.parent)


# ---------------------------------------------------------------- SIGKILL of everything


# Passages that a sweep has many of, and files of which each process writes one.
PLACES = [("step", 25), ("evaluate", 3), ("log", 5), ("checkpoint", 25)]
FILES = [("after", "ckpt_prev.pt"), ("before", "ckpt.pt"), ("before", "config.json"),
         ("before", "result.json"), ("after", "result.json"), ("before", "runs.csv"), ("after", "curves.csv"),
         ("before", "fit.json"),
         ("before", "big.json"), ("after", "big.json"), ("before", "forecasts.csv")]


def moments(count: int) -> list[dict]:
    """`count` moments to be killed at: each place once, then any time or place, by chance (seeded)."""
    rng = random.Random(0)
    found = [dict(where=place, count=rng.randint(1, most)) for place, most in PLACES]
    found += [dict(where=place, count=rng.randint(1, 20) if name.startswith("ckpt") else 1, name=name)
              for place, name in FILES]
    while len(found) < count:
        place, most = rng.choice(PLACES)
        found.append(rng.choice([dict(share=rng.random()), dict(where=place, count=rng.randint(1, most))]))
    return found[:count]


tally = dict(tried=0, hit=0, survived=0)


@pytest.mark.parametrize("number", range(KILLS))
def test_killed_at_any_moment(sweeps, whole, number):
    moment, case = moments(KILLS)[number], f"killed{number}"
    tally["tried"] += 1
    group = sweeps.begin(case, **{k: v for k, v in moment.items() if k != "share"})
    if "share" in moment:
        time.sleep(moment["share"] * whole[1])
        try:
            os.killpg(group, signal.SIGKILL)
        except ProcessLookupError:                     # it was faster than the undisturbed one
            pass
    code = sweeps.end()
    tally["hit"] += code == -signal.SIGKILL
    assert code == -signal.SIGKILL or "share" in moment, (moment, sweeps.console(case))
    recovers(sweeps, case, whole[0])
    tally["survived"] += 1
    if number == KILLS - 1:
        print(f"\nkills: {tally}, lost {tally['tried'] - tally['survived']}")


# ---------------------------------------------------------------- the same, by the commands as they are


def descendants(pid: int) -> list[int]:
    """`pid` and the processes below it."""
    table = subprocess.run(["ps", "-e", "-o", "pid=,ppid="], capture_output=True, text=True).stdout
    parents, found = [tuple(map(int, line.split())) for line in table.splitlines()], [pid]
    for parent in found:
        found += [child for child, above in parents if above == parent]
    return found


def wait_for(condition, process=None) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert (process is None or process.poll() is None) and time.monotonic() < deadline
        time.sleep(0.01)


def command(sweeps, study: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "scaling.sweep", f"{study}.py", "--jobs=1"], text=True,
                            cwd=sweeps.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def end(pids) -> None:
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


def test_sweeps_exclude_each_other_and_wait_for_the_runs_of_a_dead_one(sweeps):
    """The second says who holds the study. Killed alone, the first leaves a run: the next sweep starts no
    other, and neither ends it when it is interrupted; once it is stopped, the sweep goes on with it."""
    sweeps.write(BASE + "runs = [dict(name='long', n_embd=16, max_iters=100_000)]", "lonely")
    log = sweeps.root / "out" / "lonely" / "long" / "log.jsonl"
    first = command(sweeps, "lonely")
    wait_for(lambda: log.exists() and log.stat().st_size, first)
    run = descendants(first.pid)[-1]                   # above it is the process that forked it
    begun = [first]

    def waiting():
        begun.append(command(sweeps, "lonely"))
        lines = iter(begun[-1].stdout.readline, "")
        assert any(line == "waits for what a sweep that was killed left at work: long\n" for line in lines)
        return begun[-1]
    try:
        out = (second := command(sweeps, "lonely")).communicate(timeout=120)[0]
        assert second.returncode == 2 and "another sweep works in " in out.splitlines()[-1]
        first.kill()
        first.communicate()
        second = waiting()
        assert descendants(second.pid) == [second.pid]
        second.send_signal(signal.SIGINT)
        out = second.communicate(timeout=120)[0]
        assert second.returncode == 3 and "Traceback" not in out
        assert "still at work, for they are not this sweep's: long\n" in out
        os.kill(run, 0)                                # it lives
        third = waiting()
        os.kill(run, signal.SIGTERM)
        wait_for(lambda: descendants(third.pid) != [third.pid], third)
    finally:
        end([run, *(pid for process in begun for pid in descendants(process.pid)[::-1])])
        for process in begun:
            process.wait()
            process.stdout.close()


# ---------------------------------------------------------------- disks


def small_disk(path: Path, size: str) -> str | None:
    """Mount a tmpfs at `path`; why not, where that is not allowed."""
    path.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)],
                          capture_output=True, text=True)
    return done.stderr.strip() or "mount failed" if done.returncode else None


@pytest.fixture
def disk(sweeps, request):
    """A function (case, size): out/CASE becomes a disk of its own."""
    mounted = []

    def mount(case, size):
        why = small_disk(sweeps.root / case, size) if shutil.which("mount") else "no mount command"
        if why:
            pytest.skip(f"no tmpfs can be mounted here: {why}")
        mounted.append(sweeps.root / case)
        return mounted[-1]
    yield mount
    for path in mounted:
        subprocess.run(["umount", "-l", str(path)], check=True)
        path.rmdir()


@pytest.mark.parametrize("size", ["40k", "150k", "300k"])
def test_full_disk(sweeps, whole, disk, size):
    case = f"full{size}"
    path = disk(case, size)
    assert sweeps.sweep(case) in (1, 2)
    text = sweeps.console(case)
    assert "No space left" in text and "Traceback" not in text
    subprocess.run(["mount", "-o", "remount,size=100m", str(path)], check=True)
    assert sweeps.sweep(case) == 0 and rows(sweeps.folder) == whole[0], sweeps.console(case)


def test_read_only_disk(sweeps, whole, disk):
    path = disk("readonly", "100m")
    subprocess.run(["mount", "-o", "remount,ro", str(path)], check=True)
    assert sweeps.sweep("readonly") == 2
    text = sweeps.console("readonly")
    assert "Read-only file system" in text.splitlines()[-1] and "Traceback" not in text
    subprocess.run(["mount", "-o", "remount,rw", str(path)], check=True)
    assert sweeps.sweep("readonly") == 0 and rows(sweeps.folder) == whole[0]


@pytest.mark.parametrize("limit", [300, 3000, 20_000])
def test_files_that_may_not_grow(sweeps, whole, limit):
    """RLIMIT_FSIZE, which needs no rights: the system refuses amid a write, of whatever file."""
    case = f"limit{limit}"
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))"
    assert sweeps.sweep(case, code=code) in (1, 2)
    recovers(sweeps, case, whole[0])


# ---------------------------------------------------------------- what happens to files


def test_a_run_directory_deleted_in_mid_sweep(sweeps, whole):
    """Its runs fail, by name, or are trained again; the others are not touched."""
    sweeps.begin("deleted")
    wait_for(lambda: (sweeps.folder / "d9_4e07" / "ckpt.pt").exists())
    shutil.rmtree(sweeps.folder / "d9_4e07", ignore_errors=True)
    assert sweeps.end() in (0, 1), sweeps.console("deleted")
    assert "Traceback" not in sweeps.console("deleted")
    recovers(sweeps, "deleted", whole[0])


def damage(path: Path, how: str) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes({"flipped": raw, "cut": raw[:len(raw) // 3], "empty": b"", "noise": bytes(5000)}[how])


@pytest.mark.parametrize("how", ["flipped", "cut", "empty", "noise", "missing"])
def test_a_corrupt_checkpoint_falls_back_to_the_one_before(sweeps, whole, how):
    case = f"ckpt-{how}"
    assert sweeps.sweep(case, where="step", count=12) == -signal.SIGKILL
    broken = [p for p in sweeps.folder.glob("*/ckpt_prev.pt") if p.with_name("ckpt.pt").exists()]
    for path in broken:
        path = path.with_name("ckpt.pt")
        path.unlink() if how == "missing" else damage(path, how)
    run = broken[0].parent
    before = torch.load(broken[0], weights_only=True)["step"]
    assert sweeps.sweep(case) == 0, sweeps.console(case)
    text = (run / "train.txt").read_text()
    assert f"goes on from step {before}" in text
    line = [line for line in text.splitlines() if "is corrupt" in line]
    assert how == "missing" or len(line) == 1 and "goes on from ckpt_prev.pt" in line[0]
    recovers(sweeps, case, whole[0])


def test_both_checkpoints_corrupt_is_one_line_that_says_what_to_do(sweeps, whole):
    assert sweeps.sweep("both", where="step", count=12) == -signal.SIGKILL
    broken = [p.parent for p in sweeps.folder.glob("*/ckpt_prev.pt")]
    for folder in broken:
        (folder / "ckpt.pt").write_bytes(b"no checkpoint")
        damage(folder / "ckpt_prev.pt", "flipped")
    assert sweeps.sweep("both") == 1
    start = f"failed: {broken[0].name}: exit"
    line, = {line for line in sweeps.console("both").splitlines() if line.startswith(start)}
    assert "is corrupt" in line and "delete it" in line
    for folder in broken:
        shutil.rmtree(folder)
    recovers(sweeps, "both", whole[0])


# ---------------------------------------------------------------- clocks


CLOCK = """
import random
wall, rng = time.time, random.Random(0)
time.time = lambda: wall() + rng.choice([-1e9, -3600, 0, 3600, 1e8])
gmtime = time.gmtime
time.gmtime = lambda *args: gmtime(*(args or [time.time()]))
"""


def test_clocks_that_jump(sweeps, whole):
    """Neither results nor their times nor the order of forecast and run hang on the wall clock."""
    assert sweeps.sweep("clock", code=CLOCK, where="step", count=9) == -signal.SIGKILL
    assert sweeps.sweep("clock", code=CLOCK) == 0, sweeps.console("clock")
    assert rows(sweeps.folder) == whole[0]
    with open(sweeps.folder / "runs.csv", encoding="utf-8", newline="") as f:
        assert all(0 < float(row["wall_s"]) < 600 for row in csv.DictReader(f))
    config = json.loads((sweeps.folder / "big" / "config.json").read_text())
    sealed = json.loads((sweeps.folder / "forecasts" / "big.json").read_text())
    assert config["forecast"] == sealed["sha256"]


# ---------------------------------------------------------------- runs that cannot go on


FAILING = BASE + """runs = [dict(name='good', n_embd=8, max_iters=30), dict(name='bad', n_embd=12, {})]"""


def failing(sweeps, case: str, settings: str, **job) -> str:
    """The line that a sweep of a good and a bad run says of the bad one; the good one must be in runs.csv."""
    sweeps.write(FAILING.format(settings), case)
    assert sweeps.sweep(case, study=case, **job) in (1, 2)
    text = sweeps.console(case)
    assert "Traceback" not in text
    assert "good" in rows(sweeps.folder) and "\nbad" not in rows(sweeps.folder)
    return next(line for line in text.splitlines() if line.startswith("failed: bad: "))


def test_a_run_that_diverges_is_reported_and_the_sweep_goes_on(sweeps):
    line = failing(sweeps, "diverges", "max_iters=60, grad_clip=0.0, learning_rate=1e30")
    assert "nan" in line or "inf" in line
    assert "lower learning_rate" in line


MEMORY = """
import resource
run_loop = train.loop
def loop(run, caught):
    if run.out.name == 'bad':
        used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2 ** 28, used + 2 ** 28))
    return run_loop(run, caught)
train.loop = loop
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS binds on Linux only")
def test_a_run_out_of_memory_names_what_to_change(sweeps):
    settings = "batch_size=4096, block_size=128, gradient_accumulation_steps={}, max_iters=2, eval_interval=0"
    line = failing(sweeps, "memory", settings.format(1), code=MEMORY)
    assert "out of memory" in line and "gradient_accumulation_steps (now 1" in line
    assert "batch_size (now 4096)" in line
    sweeps.write(FAILING.format(settings.format(64)), "memory")        # what it says helps
    sweeps.sweep("memory", study="memory", code=MEMORY)
    assert "\nmemory,bad" in rows(sweeps.folder), sweeps.console("memory")


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp] . DefaultCPUAllocator: can't allocate memory: you ...")])
def test_every_kind_of_out_of_memory(lab, monkeypatch, error):
    import train

    def fail(*args, **options):
        raise error
    lab.train("run", ckpt_minutes=0)
    (lab.out("run") / "result.json").unlink()
    files = lab.files()
    for place in ((torch, "load"), (train.Run, "train_step")):         # and no checkpoint is corrupt by it
        with monkeypatch.context() as patch:
            patch.setattr(*place, fail)
            code, _, err = lab.command(resume="auto" if place[0] is torch else "never")
        assert code == 2 and err.count("\n") == 1 and "gradient_accumulation_steps" in err
        assert place[0] is not torch or lab.files() == files


# ---------------------------------------------------------------- order of the runs


def test_any_number_of_jobs_gives_the_same_table(sweeps, whole):
    assert sweeps.sweep("jobs1", jobs=1) == 0 and rows(sweeps.folder) == whole[0]
    assert sweeps.sweep("jobs4", jobs=4) == 0 and rows(sweeps.folder) == whole[0]


def test_runs_of_a_sweep_have_one_thread_for_any_number_of_jobs(tmp_path, monkeypatch):
    """Sums over threads depend on how many there are. Who sets OMP_NUM_THREADS, decides."""
    seen = []
    monkeypatch.setattr(warm, "start", lambda argv, path, env: seen.append(env["OMP_NUM_THREADS"]))
    monkeypatch.setattr(system, "start", warm.start)           # where there is a GPU
    monkeypatch.delenv("OMP_NUM_THREADS")
    c = settings.Config(out_dir=str(tmp_path / "a"))
    run = planned.Planned("a", {}, settings.Resolved(c, {}, {}, {}, 1, 1, 1.0))
    local.start(run)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    local.start(run)
    assert seen == ["1", "3"]
