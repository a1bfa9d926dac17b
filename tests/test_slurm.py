"""The SLURM launcher: the array that a sweep file asks for, and studies on a real SLURM of one node.

.ci/run starts that node (tests/slurm_node.sh); without it those tests are skipped. They use no other.
"""
import csv
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import filelock
import pytest

from config import settings
from runtime import basics
from runtime.basics import UserError
from scaling import fit, plots, sweep
from scaling.launch import local, slurm
from scaling.launch.planned import Planned
from scaling.launch.study import make_plan

BASE = ("base = dict(dataset='tiny', n_layer=1, n_head=1, n_embd=8, block_size=32, batch_size=4, "
        "device='cpu', learning_rate=5e-3, eval_interval=0, log_interval=10)\n")
CODE = Path(__file__).parents[1]
with_submitit = pytest.mark.skipif(not importlib.util.find_spec("submitit"), reason="needs submitit")


@pytest.fixture
def study(lab, monkeypatch):
    """Write a sweep file of the lab and return its path; out/ is the lab's, and no law is fitted."""
    monkeypatch.setattr(basics, "ROOT", lab.root)
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.5)
    monkeypatch.setattr(fit, "fit_study", lambda folder: {})
    monkeypatch.setattr(plots, "draw_study", lambda folder: [])
    monkeypatch.setattr(sweep, "print_end", lambda *args: None)

    def write(text, name="tiny_study"):
        path = lab.root / f"{name}.py"
        path.write_text(BASE + text, encoding="utf-8")
        return str(path)
    return write


def plan(path: str) -> list[Planned]:
    study = sweep.read_sweep(path)
    return make_plan(study, study.runs)


def options(path: str) -> dict:
    return sweep.read_sweep(path).slurm


# ---------------------------------------------------------------- without SLURM


def tasks(*names: str) -> list[list[Planned]]:
    """For each word a task, for each letter of it a run."""
    def run(name):
        config = settings.Config(out_dir=f"out/{name}")
        return Planned(name, {}, settings.Resolved(config, {}, {}, {}, 1, 1, 1.0))
    return [[run(letter) for letter in word] for word in names]


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """sbatch and others that only note what they are given: sbatch its script, squeue answers from a file."""
    folder = tmp_path / "programs"
    folder.mkdir()
    (folder / "queue").write_text("")
    for name, line in dict(sbatch=f"cp $1 {folder}/script; echo Submitted batch job 7", srun="false",
                           squeue=f"cat {folder}/queue").items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder


RUNS = "runs = [dict(name='a', max_iters=3), dict(name='b', max_iters=9), dict(name='c', max_iters=5)]\n"


@with_submitit
def test_the_array_is_what_the_file_asks_for(study, lab, programs):
    path = study(RUNS + "slurm = dict(time=30, partition='gpu', array_parallelism=2, requeue=5, "
                 "cpus_per_task=4, gpus_per_node=1, mem='8GB')")
    name = slurm.submit(lab.root / "out" / "tiny_study", tasks("a", "b", "c"), options(path))
    script = (programs / "script").read_text()
    for flag in ("array=0-2%2", "time=30", "partition=gpu", "cpus-per-task=4", "gpus-per-node=1", "mem=8GB",
                 "requeue", f"job-name={name}", f"chdir={lab.root}", "signal=USR2@90"):
        assert f"#SBATCH --{flag}\n" in script, flag
    assert "srun" in script and "--cpus-per-task=4" in script.split("# command")[1]
    assert "no-requeue" not in script


@with_submitit
def test_no_requeue_and_no_cap(study, lab, programs):
    path = study(RUNS + "slurm = dict(time=30, requeue=0)")
    slurm.submit(lab.root / "out" / "tiny_study", tasks("a", "b", "c"), options(path))
    script = (programs / "script").read_text()
    assert "#SBATCH --no-requeue\n" in script and "array=0-2%3" in script


@with_submitit
def test_the_queue_says_which_run_is_where(study, lab, programs):
    """By job name and array index; a job of one task has no index; other jobs are not ours."""
    folder = lab.root / "out" / "tiny_study"
    assert slurm.queue(folder) == {}
    half_an_hour = slurm.check_options(dict(time=30), "")
    first = slurm.submit(folder, tasks("ab", "c"), half_an_hour)
    second = slurm.submit(folder, tasks("d"), half_an_hour)
    (programs / "queue").write_text(f"{first}|0|RUNNING\nother|1|RUNNING\n{second}|N/A|PENDING\n")
    assert slurm.queue(folder) == dict(a="RUNNING", b="RUNNING", d="PENDING")
    (folder / "slurm" / first / "tasks.json").write_text("[[")
    with pytest.raises(UserError, match=f"tasks.json is missing or damaged; scancel --name={first}"):
        slurm.queue(folder)
    (programs / "squeue").write_text("#!/bin/sh\necho no controller >&2; exit 1\n")
    with pytest.raises(UserError, match="squeue does not answer: no controller"):
        slurm.queue(folder)


@with_submitit
def test_a_refused_array_is_one_line(study, lab, programs, capsys):
    (programs / "sbatch").write_text("#!/bin/sh\necho sbatch: error: invalid partition: x >&2; exit 1\n")
    with pytest.raises(UserError, match="sbatch took no job: sbatch: error: invalid partition") as error:
        slurm.submit(lab.root / "out" / "s", tasks("a"), slurm.check_options(dict(time=30), ""))
    assert "\n" not in str(error.value)


def test_what_a_local_sweep_left_at_work_is_waited_for_and_not_submitted(study, lab, monkeypatch, capsys):
    """Its branches are submitted after it. Interrupted, the sweep says what still runs."""
    trunk, branch = plan(study("runs = [dict(name='t', schedule='wsd', warmup_iters=2, budgets=[2e8, 4e8])]"))
    looks, submitted = [True, True, False], []
    monkeypatch.setattr(slurm, "QUEUE_SECONDS", 0.01)
    monkeypatch.setattr(Planned, "at_work", lambda p: p is trunk and looks.pop(0))
    monkeypatch.setattr(Planned, "done", lambda p: p is trunk and not looks)
    monkeypatch.setattr(slurm, "submit", lambda folder, tasks, options: submitted.append(tasks) or "job")
    monkeypatch.setattr(slurm, "watch", lambda plan, folder: None)
    folder = lab.root / "out" / "tiny_study"
    slurm.run([trunk, branch], {}, folder)
    assert submitted == [[[branch]]]
    assert "killed left at work: t_4e08\n" in capsys.readouterr().out

    def interrupted(seconds):
        raise KeyboardInterrupt
    looks[:] = [True] * 4
    monkeypatch.setattr(time, "sleep", interrupted)
    with pytest.raises(KeyboardInterrupt):
        slurm.run([trunk, branch], {}, folder)
    assert "still at work, for they are not this sweep's: t_4e08\n" in capsys.readouterr().out


def test_a_branch_follows_its_trunk_in_one_task(study, monkeypatch):
    """Where the trunk has left its checkpoint already, the branch is a task of its own."""
    runs = plan(study("runs = [dict(name='a', max_iters=9), dict(name='t', schedule='wsd', warmup_iters=2, "
                      "budgets=[2e8, 4e8])]"))
    sweep.estimate(runs)

    def names():
        return [[p.name for p in task] for task in slurm.chains(runs)]
    assert names() == [["t_4e08", "t_2e08"], ["a"]]              # the longest first
    branch = Path(runs[2].config.branch)
    branch.parent.mkdir(parents=True)
    branch.touch()
    assert names() == [["t_4e08"], ["t_2e08"], ["a"]]
    monkeypatch.setattr(slurm, "MAX_TASKS", 2)                   # more runs than an array may have tasks
    assert names() == [["t_4e08", "a"], ["t_2e08"]]


@pytest.mark.parametrize("text, words", [
    ("slurm = 3", "`slurm` must be a dict"),
    ("slurm = dict(partitoin='gpu')", "unknown key 'partitoin' (did you mean 'partition'?)"),
    ("slurm = dict(time='1:00')", "slurm: time must be int"),
    ("slurm = dict(time=0)", "time must be 1 or more"),
    ("slrum = dict(time=1)", "did you mean 'slurm'"),
])
def test_bad_options_are_one_line_with_any_launcher(study, text, words):
    with pytest.raises(UserError) as error:
        sweep.read_sweep(study(RUNS + text))
    assert words in str(error.value) and "\n" not in str(error.value)


def test_what_is_missing_is_named(study, monkeypatch, tmp_path):
    with pytest.raises(UserError, match=r"needs slurm = dict\(time="):
        slurm.require_usable({}, study(RUNS))
    monkeypatch.setitem(sys.modules, "submitit", None)         # not to be found
    with pytest.raises(UserError, match="pip install submitit"):
        slurm.require_usable(dict(time=1), "s.py")
    monkeypatch.setitem(sys.modules, "submitit", sys)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch here"):
        slurm.require_usable(dict(time=1), "s.py")


# ---------------------------------------------------------------- with SLURM


def ask(*command: str) -> str:
    """What a SLURM command prints; '' if there is no such command."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except OSError:
        return ""


@pytest.fixture
def node(lab):
    """The one-node SLURM of tests/slurm_node.sh, and no other: a test must not submit to a real cluster.

    Its tasks import their code from the lab.
    """
    if "nanoscale_test" not in ask("scontrol", "show", "config"):
        pytest.skip("no SLURM of tests/slurm_node.sh, which .ci/run starts (it needs root and Debian)")
    shutil.copytree(CODE / "scaling", lab.root / "scaling", ignore=shutil.ignore_patterns("results"))
    with filelock.FileLock(f"{os.environ['SLURM_CONF']}.lock"):        # one test at a time has the node
        yield
        ask("scancel", "--user=root")
        wait_for(lambda: not ask("squeue", "-h"))


SIX = """runs = [dict(name='long', max_iters=2000), dict(name='short', max_iters=300),
    dict(name='bad', max_iters=300, grad_clip=0.0, learning_rate=1e30),
    dict(name='w', schedule='wsd', warmup_iters=2, budgets=[1e9, 2e9]), dict(name='last', max_iters=200)]
slurm = dict(partition='low', time=30, array_parallelism=2, requeue=2)"""


def start_sweep(path: str, root: Path) -> subprocess.Popen:
    """The sweep on the lab's files in a process of its own."""
    code = (f"import sys; sys.path.insert(0, {str(CODE)!r})\n"
            f"from runtime import basics; basics.ROOT = basics.Path({str(root)!r})\n"
            "from scaling import sweep\n"
            f"sweep.main([{path!r}, '--launcher=slurm'])")
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(condition) -> None:
    end = time.monotonic() + 120                       # the machine may be busy with other tests
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def jobs(name: str) -> dict[str, str]:
    """{array index: state} of a job."""
    return dict(line.split() for line in ask("squeue", "-h", "-r", f"--name={name}", "-o%K %T").splitlines())


def rows(folder: Path) -> list[dict]:
    """runs.csv less its times and the study's name."""
    with open(folder / "runs.csv", encoding="utf-8") as f:
        return [{k: v for k, v in row.items() if k not in ("study", "wall_s", "tok_per_s")}
                for row in csv.DictReader(f)]


def start_here(lab):
    """local.start, but that runs train in this process: to import torch for each would take longer."""
    def start(p):
        code, _, _ = lab.main(p.command()[2:])
        p.process = SimpleNamespace(poll=lambda: code, returncode=code)
    return start


@with_submitit
def test_a_study_of_six_runs(study, lab, node, capfd, monkeypatch):
    """Two at a time; the sweep killed and called again, a task warned, one pre-empted, one failing: runs.csv
    is the local launcher's, and nothing was submitted twice."""
    path, folder = study(SIX), lab.root / "out" / "tiny_study"
    sweeping = start_sweep(path, lab.root)
    try:
        wait_for(lambda: all((folder / run / "log.jsonl").exists() for run in ("long", "w_2e09")))
    finally:
        sweeping.kill()
        print(sweeping.communicate(timeout=30)[0].decode())
    name, = (home.name for home in (folder / "slurm").iterdir())
    assert jobs(name) == {str(task): "RUNNING" if task < 2 else "PENDING" for task in range(5)}
    first = ask("squeue", "-h", "-r", "-tRUNNING", f"--name={name}", "-o%A").split()[0]
    with subprocess.Popen(["timeout", "3", "scancel", "--signal=USR1", first]):  # SLURM 22.05 would repeat it
        assert "Submitted" in ask("sbatch", "--partition=high", "--cpus-per-task=2", "--output=/dev/null",
                                  "--wrap=sleep 1")              # which SLURM makes room for
    assert sweep.main([path, "--launcher=slurm"]) == 1
    printed = capfd.readouterr().err
    assert "failed: bad: error: " in printed and "the training loss is nan" in printed, printed
    assert [home.name for home in (folder / "slurm").iterdir()] == [name]
    for run in ("long", "w_2e09"):
        assert "goes on from step" in (folder / run / "train.txt").read_text(), run
    monkeypatch.setattr(local, "start", start_here(lab))
    assert sweep.main([study(SIX, "local_study"), "--jobs=2"]) == 1
    assert len(rows(folder)) == 5 and rows(folder) == rows(lab.root / "out" / "local_study")


@with_submitit
def test_a_cancelled_task_checkpoints_and_stays_away(study, lab, node):
    """And a task alone, which is no array; the local launcher does not start what SLURM has."""
    path = study("runs = [dict(name='long', max_iters=100000)]\nslurm = dict(time=30, partition='low')")
    run, = plan(path)
    folder = lab.root / "out" / "tiny_study"
    name = slurm.submit(folder, [[run]], options(path))
    wait_for((run.out / "log.jsonl").exists)
    assert slurm.queue(folder) == {"long": "RUNNING"}
    with pytest.raises(UserError, match="SLURM has runs of it"):
        sweep.main([path])
    ask("scancel", f"--name={name}")
    wait_for(lambda: not jobs(name))
    assert (run.out / "ckpt.pt").exists() and "interrupted at step" in run.last_line()
