"""Our commands as processes of their own that start at once: forked from a server that has torch
and our modules imported, they run the file of the command as `python FILE` would."""

import ctypes
import functools
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # which optimisers import, and takes longer than most of these runs

import train
from configurator import run

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60  # seconds until a test that waits for a process gives up
torch.set_num_threads(1)


@functools.cache
def server() -> Any:
    """What processes are forked from; the server looks for what it imports in PYTHONPATH alone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["launcher"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), before or ""])
    forkserver.ensure_running()
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before
    return context


def signal_at(step: int, number: int) -> None:
    """Send this process a signal when it tells of a step: a real one, at a known moment."""
    tell = train.Log.write

    def write(self: train.Log, line: str, **values: Any) -> None:
        tell(self, line, **values)
        if values["step"] == step and "loss" in values:
            os.kill(os.getpid(), number)

    train.Log.write = write


def _body(argv: list[str], env: dict[str, str], out: str, at: tuple[int, int] | None) -> None:
    """What the process does."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: outlives no test
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{out}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    os.environ.update(env)
    train.gemm_peak = lambda *_: 1e12  # a benchmark, which takes longer than these runs
    if at:
        signal_at(*at)
    sys.argv = argv
    if argv[0] == "train.py":  # that of the server, so that what was changed above is used
        run(train.main)
    runpy.run_path(str(ROOT / argv[0]), run_name="__main__")


class Launched:
    """A command that runs; `pid` is its own."""

    def __init__(self, *argv: Any, at: tuple[int, int] | None = None, **env: Any):
        """at: (step, number of a signal), which the process sends itself."""
        self.folder = tempfile.TemporaryDirectory()
        self.base = f"{self.folder.name}/std"
        env = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **env}
        values = [str(a) for a in argv], {k: str(v) for k, v in env.items()}, self.base, at
        self.process = server().Process(target=_body, args=values, daemon=True)
        self.process.start()
        self.pid = self.process.pid

    def text(self, name: str) -> str:
        path = Path(f"{self.base}.{name}")
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def out(self) -> str:
        return self.text("out")

    @property
    def err(self) -> str:
        return self.text("err")

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    def until(self, line: str) -> None:
        """Wait until the process has printed this."""
        end = time.monotonic() + PATIENCE
        while line not in self.out:
            assert self.process.is_alive(), (self.process.exitcode, self.err)
            assert time.monotonic() < end, (line, self.out, self.err)
            time.sleep(0.005)

    def wait(self, seconds: float = PATIENCE) -> int:
        """The exit code; negative if a signal has ended it."""
        self.process.join(seconds)
        if self.process.is_alive():
            self.send(signal.SIGKILL)
            raise AssertionError(f"still running after {seconds} s: {self.out} {self.err}")
        return self.process.exitcode


def launch_all(
    count: int, *argv: Any, at: tuple[int, int] | None = None, only: int | None = None
) -> list[Launched]:
    """The same command as `count` processes of one job, as torchrun starts them. `at` is for all
    of them, or for one `only`."""
    if count == 1:
        return [Launched(*argv, at=at)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    ats = [at if only in (None, i) else None for i in range(count)]
    return [Launched(*argv, at=ats[i], RANK=i, LOCAL_RANK=i, **job) for i in range(count)]


def finish(*argv: Any, count: int = 1, seconds: float = PATIENCE) -> str:
    """Run to the end, without an error; what the first process has printed."""
    job = launch_all(count, *argv)
    for one in job:
        assert one.wait(seconds) == 0, one.err
    return job[0].out
