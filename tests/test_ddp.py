"""torchrun with two or four processes (gloo, CPU) trains the same run as one process; and ranks that die."""
import json
import os
import signal
import sys
import time
import types
from pathlib import Path

import pytest
import torch
from conftest import write_dataset
from test_resume import wait_for_lines

from config.settings import Config
from runtime import watch

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
# What torchrun tells its ranks, but forked from a process that has imported torch for all of them: that costs
# each rank more than its training. Where ranks die or are signalled by their launcher, it is torchrun.
FORKED = """
import os, signal, socket, sys
import torch._dynamo, train
count, script, *rest = sys.argv[1:]
with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
ranks = []
for rank in range(int(count)):
    ranks.append(os.fork())
    if ranks[-1] == 0:
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=count, MASTER_ADDR="127.0.0.1",
                           MASTER_PORT=str(port))
        sys.argv = [script, *rest]
        exec(compile(open(script).read(), script, "exec"))
        sys.exit()
while ranks:
    ended, failed = os.wait()
    ranks.remove(ended)
    if failed:                                         # the others would wait for it
        for rank in ranks:
            os.kill(rank, signal.SIGKILL)
        sys.exit(1)
"""
RUN = dict(max_iters=25, log_interval=5, eval_interval=10, learning_rate=1e-2)
CASES = dict(plain={}, accumulated=dict(gradient_accumulation_steps=2),
             uneven=dict(batch_size=7, gradient_accumulation_steps=3),         # ranks of 2+1+1 and 1+1+1 rows
             one_row=dict(eval_iters=1), odd_rows=dict(eval_iters=5),
             switched=dict(optimizer="muon", position="rope", norm="rms", mlp="swiglu", qk_norm=True))

# One launch for all cases. The last two get a SIGTERM at one of their ranks in step 13; the first of them
# goes on here with two processes, the other in a test with one.
SCRIPT = """
import json, os, signal, sys
import torch.distributed as dist
import train

runs = [train.Config(**c) for c in json.load(open(sys.argv[1]))]
for c in runs[:-2]:
    train.train(c)
step = train.Run.train_step
def step_then_signal(run):
    step(run)
    if run.step == 13 and run.rank == 1:
        os.kill(os.getpid(), signal.SIGTERM)
for c in runs[-2:]:
    train.Run.train_step = step_then_signal
    try:
        train.train(c)
        raise SystemExit("not interrupted")
    except train.Interrupted as e:
        print(e, flush=True)
    train.Run.train_step = step
train.train(runs[-2])
dist.destroy_process_group()
"""


@pytest.fixture(scope="module")
def both(module_lab):
    """A lab with every case trained by one process (NAME) and by two (NAME2); moved2 stands at step 20."""
    names = [*CASES, "again", "moved"]
    for name, changes in CASES.items():
        module_lab.train(name, **RUN, **changes)
    script, cases = module_lab.root / "cases.py", module_lab.root / "cases.json"
    script.write_text(SCRIPT)
    cases.write_text(json.dumps([module_lab.settings(f"{n}2", **RUN | CASES.get(n, {})) for n in names]))
    process = module_lab.spawn("-c", FORKED, "2", str(script), str(cases))
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    stopped = [int(line.split("interrupted at step ")[1].split(";")[0])
               for line in out.splitlines() if "interrupted at step" in line]
    assert len(stopped) == 4 and all(13 <= step <= 20 for step in stopped)     # two ranks, two runs
    for name in ("again2", "moved2"):                          # the ranks of each stop together
        assert out.count(f"{name}: interrupted at step ") == 2
        assert len({line for line in out.splitlines() if f"{name}: interrupted" in line}) == 1
    return module_lab


def assert_close_runs(lab, a: str, b: str) -> None:
    """The same losses to 1e-5, relative; the same steps, rates and counts exactly."""
    for x, y in zip(lab.log(a), lab.log(b), strict=True):
        assert x.keys() ^ y.keys() <= {"noise_scale"}
        assert all(x[k] == y[k] for k in ("step", "tokens", "flops", "lr"))
        for key in x.keys() & {"train_loss", "val_loss"}:
            assert y[key] == pytest.approx(x[key], rel=1e-5), (key, x["step"])
        assert y["grad_norm"] == pytest.approx(x["grad_norm"], rel=1e-3)
    x, y = (json.loads((lab.out(name) / "result.json").read_text()) for name in (a, b))
    assert y["val_loss"] == pytest.approx(x["val_loss"], rel=1e-5)
    assert [v for v in x.values() if isinstance(v, int)] == [v for v in y.values() if isinstance(v, int)]


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_what_one_does(both, case):
    assert_close_runs(both, case, f"{case}2")
    assert json.loads((both.out(f"{case}2") / "config.json").read_text())["world_size"] == 2


def test_ranks_measure_the_noise_scale_that_micro_batches_do(both):
    """The same parts of the same batches; a batch in one part has none."""
    one, two, parts = (both.log(name)[-1].get("noise_scale") for name in ("plain", "plain2", "accumulated"))
    assert one is None and two == pytest.approx(parts, rel=0.01)


FOUR_SCRIPT = """
import json, sys
import torch.distributed as dist
import train

for c in json.load(open(sys.argv[1])):
    train.train(train.Config(**c))
dist.destroy_process_group()
"""


def test_four_processes_train_what_one_does(module_lab):
    """Two rows of 8 each; 2 + 2 + 2 + 1 of 7; one sequence to evaluate, for the first rank alone."""
    cases = dict(even={}, odd=dict(batch_size=7), dropped=dict(eval_iters=1))
    for name, changes in cases.items():
        module_lab.train(name, **RUN, **changes)
    script, settings = module_lab.root / "four.py", module_lab.root / "four.json"
    script.write_text(FOUR_SCRIPT)
    settings.write_text(json.dumps([module_lab.settings(f"{n}4", **RUN | c) for n, c in cases.items()]))
    process = module_lab.spawn("-c", FORKED, "4", str(script), str(settings))
    assert process.wait(timeout=240) == 0, process.communicate()[1]
    for name in cases:
        assert_close_runs(module_lab, name, f"{name}4")


# ---------------------------------------------------------------- ranks that die


def rank_of(pid: int, rank: int) -> bool:
    """Whether process `pid` is rank `rank` of a job."""
    try:
        return f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")
    except OSError:
        return False


def kill_rank(process, rank: int) -> None:
    """SIGKILL to a rank of the torchrun that is `process`, whose environment has no RANK."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    pid, = [int(pid) for pid in children if rank_of(int(pid), rank)]
    os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="ranks are found in Linux's /proc")
@pytest.mark.parametrize("restarts, rank", [(0, 1), (3, 0)])
def test_a_rank_that_dies(lab, monkeypatch, restarts, rank):
    """The job ends within a minute and says why; with --max-restarts it goes on from the last checkpoint."""
    monkeypatch.setenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", "1")      # README says why
    settings = dict(max_iters=150, log_interval=10, eval_interval=50, ckpt_minutes=0, learning_rate=1e-3)
    process = lab.start(launcher=(*LAUNCHER, f"--max-restarts={restarts}"), **settings)
    wait_for_lines(lab.out("run") / "log.jsonl", 4, process)
    kill_rank(process, rank)
    killed = time.monotonic()
    out, err = process.communicate(timeout=240)
    if not restarts:
        assert process.returncode != 0 and time.monotonic() - killed < 60
        assert "lost another rank" in err and "SIGKILL" in err
        assert not (lab.out("run") / "result.json").exists() and lab.checkpoint()["step"] >= 30
        lab.train(**settings)                          # one process can go on, too
    else:
        assert process.returncode == 0, err
        assert "goes on from step" in out and "lost another rank" in err
    lab.train("straight", **settings)
    assert_close_runs(lab, "straight", "run")


def test_ranks_at_different_checkpoints_are_refused(lab, monkeypatch):
    """As of two nodes that do not share out_dir: one would begin anew, the other go on."""
    import train
    from config.corpus import load_meta
    from runtime import rundir
    from runtime.basics import UserError

    run = train.Run(lab.derived(), load_meta("tiny"), 0, 1)
    run.world, run.step = 2, 10
    monkeypatch.setattr(run, "sum_over_ranks", lambda x: x)            # the other rank adds 0
    with pytest.raises(UserError, match="goes on from step 10, others do not; put out_dir on a file system"):
        rundir.require_same_step(run)


def test_two_processes_go_on_as_two(both):
    assert_close_runs(both, "plain", "again2")
    one, other = both.checkpoint("plain2"), both.checkpoint("again2")          # here even bit for bit
    assert all(torch.equal(one["model"][k], other["model"][k]) for k in one["model"])


def test_one_process_goes_on_where_two_stopped(both):
    assert 13 <= both.checkpoint("moved2")["step"] <= 20
    both.train("moved2", **RUN)
    assert_close_runs(both, "plain", "moved2")


def test_sigterm_to_torchrun_leaves_a_checkpoint(lab):
    settings = RUN | dict(max_iters=4000)
    process = lab.start(launcher=LAUNCHER, **settings)
    wait_for_lines(lab.out("run") / "log.jsonl", 3, process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=180)
    assert process.returncode != 0 and not (lab.out("run") / "result.json").exists()
    step = lab.checkpoint()["step"]
    assert step >= 15 and f"interrupted at step {step}" in out


# The first run has steps of 1.5 s and a signal in its second. The next has steps of 3 s in four micro-batches
# (what the rank with the least memory needs), is signalled in the second micro-batch of its second step, and
# goes on at speed. The last is signalled amid the evaluation of its step 10, which takes each rank several
# rounds, and goes on. The signals reach one rank only.
STOPS = """
import json, os, signal, sys, time
import torch.distributed as dist
import train
from runtime import system

system.free_memory = lambda: 2 ** 40 if os.environ["RANK"] == "0" else 1
slow, long, straight, slower, equal = [train.Config(**c) for c in json.load(open(sys.argv[1]))]
step, get = train.Run.train_step, train.Batches.get
def tell():
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGTERM)
def slow_step(run):
    step(run)
    time.sleep(1.5)
    if run.step == 2:
        tell()
def counted_step(run):
    step(run)
    global rounds
    rounds = 0 if run.step == 10 else -99
def counted_get(data, ids):
    global rounds
    rounds += 1
    if rounds == 3:
        tell()
    return get(data, ids)
def slow_get(data, ids):
    time.sleep(0.75)
    global rounds
    rounds += 1
    if rounds == 6:
        tell()
    return get(data, ids)
def stopped(c):
    try:
        train.train(c)
    except train.Interrupted as e:
        print(e, flush=True)
train.Run.train_step = slow_step
stopped(slow)
train.Run.train_step, train.Batches.get = step, slow_get
rounds = 0
stopped(slower)
print("micro-batches", rounds, flush=True)
train.Run.train_step, train.Batches.get = counted_step, counted_get
rounds = -99
stopped(long)
train.Run.train_step, train.Batches.get = step, get
if dist.get_rank() == 0:
    print("logged", [json.loads(line)["step"] for line in open(long.out_dir + "/log.jsonl")], flush=True)
train.train(long)
for c in (straight, slower, equal):
    train.train(c)
dist.destroy_process_group()
"""


def test_two_ranks_stop_within_a_slow_step_and_within_an_evaluation(module_lab):
    lab = module_lab
    write_dataset(lab.data / "long", 40_000, 200_000)
    settings = RUN | dict(dataset="long")
    script, cases = lab.root / "stops.py", lab.root / "stops.json"
    script.write_text(STOPS)
    cases.write_text(json.dumps([lab.settings("slow2", **RUN), lab.settings("long2", **settings),
                                 lab.settings("straight2", **settings),
                                 *[lab.settings(name, gradient_accumulation_steps=-1, **RUN)
                                   for name in ("slower2", "equal2")]]))
    process = lab.spawn("-c", FORKED, "2", str(script), str(cases))
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert out.count("slow2: interrupted at step 2;") == out.count("long2: interrupted at step 10;") == 2
    assert lab.checkpoint("slow2")["step"] == 2 and "logged [5]" in out
    assert out.count("slower2: interrupted at step 1;") == out.count("micro-batches 6\n") == 2
    told = ("step", "train_loss", "val_loss", "lr", "grad_norm")           # bit for bit
    for pair in (("long2", "straight2"), ("slower2", "equal2")):
        one, other = ([[r.get(k) for k in told] for r in lab.log(name)] for name in pair)
        assert one == other and [r[0] for r in one] == [5, 10, 15, 20, 25]


def test_ranks_agree_by_the_pace_of_their_steps(monkeypatch):
    """Each tenth step while they are fast, each step once they are not, and alike on all ranks."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    run = types.SimpleNamespace(world=2, c=Config(device="cpu"), sum_over_ranks=lambda x: 2 * x)
    asked = []
    watched = watch.Watch(run)
    monkeypatch.setattr(watched, "sums", lambda *w: (asked.append(clock[0]), [2.0 * x for x in w])[1])
    for seconds, steps, times in ((0.001, 101, 11), (0.1, 100, 50), (3.0, 5, 4)):
        asked.clear()
        for _ in range(steps):
            clock[0] += seconds
            assert watched.after_step() == (False, False)
        assert abs(len(asked) - times) <= 5, (seconds, len(asked))
    for _ in range(3):                                 # and now each slow step
        clock[0] += 3.0
        watched.after_step()
        assert asked[-1] == clock[0]
    watched.caught = [signal.SIGTERM]
    assert watched.after_step() == (True, False) and watched.stop()


def test_more_processes_than_rows_is_one_line(lab, monkeypatch):
    from config.settings import resolve
    from runtime.basics import UserError

    with pytest.raises(UserError, match="batch_size 8 is smaller than 9 processes"):
        resolve(lab.config(), 9)
