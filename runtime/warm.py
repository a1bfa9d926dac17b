"""Runs that start at once: a process imports what train.py takes, and forks itself for each run.

To import torch, and what the first optimizer asks for, takes five seconds of CPU, as long as a small run.
A forked run is a process of its own, in a session of its own, as if `python train.py` had been called: what
becomes of it touches no other. The process that forks uses no thread and no GPU, so that it may.
"""
import gc
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

from runtime import basics

SERVERS = {}                               # by what the environment must be before torch is imported


class Server:
    """The process that forks runs, and what it has told of them."""

    def __init__(self, root: Path, env: dict):
        self.connection, theirs = Pipe()
        code = f"import sys; sys.path[0] = {str(root)!r}; from runtime import warm; warm.serve()"
        self.process = subprocess.Popen([sys.executable, "-c", code, str(theirs.fileno())], env=env,
                                        pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                                        start_new_session=True)
        theirs.close()
        self.codes = {}                    # {process id: exit code} of the runs that have ended

    def fork(self, *request) -> int:
        """Start a run, see `become`. Returns its process id; raises EOFError where the server has died."""
        self.connection.send(request)
        while isinstance(told := self.connection.recv(), tuple):
            self.codes[told[0]] = told[1]
        return told

    def listen(self) -> None:
        """Take what it has to tell. Raises EOFError where it has died."""
        while self.connection.poll():
            pid, code = self.connection.recv()
            self.codes[pid] = code


class Forked:
    """A run that a server has forked, with what is used of subprocess.Popen."""

    def __init__(self, server: Server, pid: int):
        self.server = server
        self.pid = pid
        self.returncode = None

    def poll(self) -> int | None:
        """Its exit code; None while it runs. Of one whose server has died: -SIGKILL, whatever it does."""
        if self.returncode is None:
            try:
                self.server.listen()
                self.returncode = self.server.codes.get(self.pid)
            except (EOFError, OSError):
                self.returncode = self.server.codes.get(self.pid, -signal.SIGKILL)
        return self.returncode

    def wait(self) -> int:
        while self.poll() is None:
            time.sleep(0.02)
        return self.returncode

    def terminate(self) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


def start(argv: list[str], console: Path, env: dict) -> Forked:
    """Run train.py as `argv` says, its output added to the file `console`."""
    root = Path(argv[0]).parent
    key = root, env.get("OMP_NUM_THREADS")
    for _ in range(2):                     # should it have been killed, another takes its place
        server = SERVERS.get(key) or SERVERS.setdefault(key, Server(root, env))
        try:
            return Forked(server, server.fork(argv, str(console), env, os.getcwd()))
        except (EOFError, OSError):
            del SERVERS[key]
    raise basics.UserError(f"{sys.executable} cannot import {root / 'train.py'}: see the lines above")


# ---- the process that forks ----


def serve() -> None:
    """Import what a run takes, then fork one whenever one is asked for, until nobody asks any more."""
    import torch._dynamo  # noqa: F401  the first optimizer imports it

    import train  # noqa: F401
    gc.freeze()                            # else the collector of each run touches, and so copies, all of it
    if asked := fork_runs(Connection(int(sys.argv[1]))):
        become(*asked)


def fork_runs(connection: Connection) -> tuple | None:
    """Fork runs as they are asked for, and tell how they end. Returns in each run, with what was asked.

    In the first process it returns None, when the sweep has ended or was killed: its runs go on.
    """
    running = 0
    with suppress(EOFError, OSError):
        while True:
            if connection.poll(0.05):
                asked = connection.recv()
                pid = os.fork()
                if pid == 0:
                    connection.close()
                    return asked
                running += 1
                connection.send(pid)
            pid, status = os.waitpid(-1, os.WNOHANG) if running else (0, 0)
            if pid:
                running -= 1
                connection.send((pid, os.waitstatus_to_exitcode(status)))
    return None


def become(argv: list[str], console: str, env: dict, folder: str) -> None:
    """Be the process that runs train.py as `argv` says, from `folder`, with its output in `console`."""
    import train
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    file = os.open(console, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.argv = argv
    basics.exit_cleanly(train.main)
