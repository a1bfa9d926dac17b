"""What runs elsewhere: without torch, without fcntl, and from any folder in the environment of make."""
import json
import os
import shutil
import subprocess
import sys
import sysconfig

import pytest
from conftest import ROOT, copy_code, write_dataset

# Fitting, planning and forecasting need numpy, scipy, matplotlib and tqdm; these are the other packages.
TORCHLESS = """
import sys
for name in ("torch", "tiktoken", "datasets", "filelock"):
    sys.modules[name] = None
from pathlib import Path
from scaling import fit, forecast, logs, plan, plots, sweep
study = Path(sys.argv[1])
curves = f"--curves={study / 'curves.csv'}"
fit.main([str(study / "runs.csv"), curves, "--bootstrap=20", f"--json={sys.argv[2]}/fit.json"])
plan.main([str(study / "fit.json"), "--flops=2e12"])
forecast.main(["board", str(study)])
forecast.main(["rollout", str(study / "runs.csv")])
plots.main([str(study), f"--out={sys.argv[2]}"])
assert sweep.main(["scaling/sweeps/laptop.py", "--dry_run"]) == 0
"""


def test_fits_plans_forecasts_and_figures_need_no_torch(tmp_path):
    study = ROOT / "scaling" / "results" / "laptop"
    done = subprocess.run([sys.executable, "-c", TORCHLESS, str(study), str(tmp_path)], cwd=ROOT, text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "fit.json").read_text(encoding="utf-8"))["surface"]["n"] == 27
    assert (tmp_path / "laptop_frontier.png").exists() and "d52_2.5e12" in done.stdout


STUDY = """
base = dict(dataset="tiny", n_layer=1, n_head=1, block_size=16, batch_size=4, eval_iters=8, max_iters=5,
            device="cpu")
runs = [dict(name=f"d{d}", n_embd=d) for d in (8, 16)]
"""


@pytest.fixture
def copy(tmp_path):
    copy_code(tmp_path, "scaling")
    write_dataset(tmp_path / "data" / "tiny")
    (tmp_path / "study.py").write_text(STUDY, encoding="utf-8")
    return tmp_path


def test_a_sweep_without_fcntl(copy):
    """The sweep and its two runs, each in a process without fcntl; then the study is found done."""
    (copy / "sitecustomize.py").write_text("import sys\nsys.modules['fcntl'] = None\n", encoding="utf-8")
    env = os.environ | {"PYTHONPATH": str(copy)}
    missing = subprocess.run([sys.executable, "-c", "import fcntl"], env=env, capture_output=True, text=True)
    assert "ModuleNotFoundError" in missing.stderr
    for _ in range(2):
        done = subprocess.run([sys.executable, "-m", "scaling.sweep", "study.py"], cwd=copy, text=True,
                              capture_output=True, env=env)
        assert done.returncode == 0, done.stdout + done.stderr
    rows = (copy / "out" / "study" / "runs.csv").read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3


OLD_PYTHON = """#!/bin/sh
exec %s -c "import sys; sys.version_info = (3, 9, 1); exec(sys.argv[1])" "$2"
"""


@pytest.mark.skipif(not shutil.which("make"), reason="make is not installed")
def test_commands_run_from_any_folder_in_the_environment_that_make_builds(tmp_path):
    """Built with nothing installed: PYTHONPATH lends it this environment's packages."""
    root = tmp_path / "a folder"
    root.mkdir()
    copy_code(root, "scaling")
    shutil.copy(ROOT / "Makefile", root)
    (root / "requirements.txt").touch()
    (root / "old").write_text(OLD_PYTHON % sys.executable)
    (root / "old").chmod(0o755)
    old = subprocess.run(["make", ".venv/runtime", "PYTHON=./old"], cwd=root, capture_output=True, text=True)
    assert old.returncode and old.stderr.startswith("./old is older than Python 3.10; name another: ")
    subprocess.run(["make", ".venv/runtime", f"PYTHON={sys.executable}"], cwd=root, check=True)
    env = os.environ | {"PYTHONPATH": sysconfig.get_path("purelib")}
    runs = str(ROOT / "scaling" / "results" / "laptop" / "runs.csv")
    for command in (["-m", "scaling.fit"], [str(root / "scaling" / "fit.py")]):
        done = subprocess.run([root / ".venv" / "bin" / "python", *command, runs, "--bootstrap=0"], env=env,
                              cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0 and "from 27 runs" in done.stdout, done.stderr
