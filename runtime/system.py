"""What differs between operating systems: locks, memory, cores and GPUs, processes in sessions of their own.

Written for Linux and macOS; where a system lacks a call there is a plainer answer, so that nothing fails.
"""
import ctypes
import os
import platform
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

from runtime.basics import UserError

ASSUMED_MEMORY = 4 * 2 ** 30           # bytes, where a system does not tell what is free


@contextmanager
def lock(path: Path, what: str):
    """Hold the lock file `path` during the block; a process that dies lets go. UserError: `what` has it.

    A file system without locks (some clusters have one) gives none, and the block goes on without.
    """
    import filelock  # here, because fits and plans run without it

    held = filelock.FileLock(path)
    try:
        held.acquire(timeout=0)
    except filelock.Timeout:
        raise UserError(f"{what} works in {path.parent}; wait for it, or stop it") from None
    except (OSError, NotImplementedError):
        pass
    try:
        yield
    finally:
        held.release()


def locked(path: Path) -> bool:
    """Whether a living process holds the lock file `path`."""
    if not path.exists():
        return False
    try:
        with lock(path, ""):
            return False
    except UserError:
        return True


def start(command: list[str], path: Path, env: dict) -> subprocess.Popen:
    """Start `command`, its output added to the file `path`. A Ctrl-C at the terminal does not reach it."""
    with open(path, "ab") as console:
        return subprocess.Popen(command, env=env, stdout=console, stderr=subprocess.STDOUT,
                                start_new_session=True)


def cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU by name, family and model: a cloud may name many alike. Elsewhere what Python knows."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").split("\n\n")[0].splitlines() if path.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    if "model name" not in found:
        return platform.processor() or platform.machine()
    return "{model name}, family {cpu family}, model {model}".format(**found)


def gpus() -> int:
    """NVIDIA GPUs of this machine, asked of the driver: importing torch would take seconds."""
    if not shutil.which("nvidia-smi"):
        return 0
    answer = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return answer.stdout.count("GPU ")


def free_memory() -> int:
    """Bytes of main memory that are free (macOS: that there are)."""
    names = getattr(os, "sysconf_names", {})
    for pages in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES"):
        if pages in names:
            return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    return ASSUMED_MEMORY


def peak_memory_mb() -> float:
    """The most main memory that this process has held, in MiB; nan where the system does not tell."""
    try:
        import resource
    except ImportError:
        return float("nan")
    unit = 2 ** 20 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def keep_heap() -> None:
    """Have glibc keep freed memory: else each step faults it in anew (up to a fifth of its time on CPU)."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):       # absent in musl and elsewhere
        libc.mallopt(-4, 0)            # M_MMAP_MAX: large blocks come from the heap, too
        libc.mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD: and the heap never shrinks
