"""Do several processes train as one does? `train.py CONFIG --debug=multinode` asks before a cluster
is paid for: the first steps of the config in one process, and again in two that meet at a
rendezvous as two nodes do, over gloo, on this machine's CPU."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from configurator import ROOT, Config, UserError, respelled

STEPS, TOLERANCE = 3, 1e-4  # sums in another order differ in the last digits
SECONDS = 1200  # that a process may take


class Disagree(UserError):
    """The processes do not train as one: not an error of the command line, so exit code 1."""

    code = 1


def compare(cfg: Config, argv: list[str]) -> None:
    """Train STEPS steps in both ways and print their losses. argv: the arguments of train.py, of
    which cfg is read. Raises Disagree if losses differ, UserError if a run fails."""
    parts = cfg.gradient_accumulation_steps
    changes = {
        "debug": None,
        "device": "cpu",
        "max_iters": str(STEPS),
        "log_interval": "1",
        "eval_iters": "2",
        "threads": "1",
        "demo": "",
        "overwrite": "true",
        "gradient_accumulation_steps": str(parts + parts % 2),  # of the whole job
    }
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: Path(folder) / name for name in ("one", "two")}
        both = [respelled(Config, argv, **changes, out_dir=str(out)) for out in runs.values()]
        _finish([[sys.executable, str(ROOT / "train.py"), *both[0]]])
        node = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1"]
        node += ["--rdzv_backend=c10d", f"--rdzv_endpoint=localhost:{_free_port()}"]
        node += ["--rdzv_id=agree", "--local-addr=localhost"]
        _finish([[*node, str(ROOT / "train.py"), *both[1]]] * 2)
        one, two = (_losses(out) for out in runs.values())
    for step, (a, b) in enumerate(zip(one, two, strict=True), 1):
        print(f"step {step}: loss {a:.6f} in one process, {b:.6f} in two nodes of one each")
        if not abs(a - b) <= TOLERANCE * abs(a):
            raise Disagree(f"debug=multinode: the losses of step {step} differ: {a} and {b}")
    print("they agree")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def _finish(commands: list[list[str]]) -> None:
    """Run commands side by side. Raises UserError with the last line of one that fails."""
    alone = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    jobs = [subprocess.Popen(command, env=alone, **pipes) for command in commands]
    try:
        errors = [job.communicate(timeout=SECONDS)[1].strip() for job in jobs]
    except subprocess.TimeoutExpired:
        raise UserError(f"debug=multinode: a process was not done after {SECONDS} s") from None
    finally:
        for job in jobs:
            job.kill()
    for job, error in zip(jobs, errors, strict=True):
        if job.returncode:
            lines = [x for x in error.splitlines() if not x.startswith("warning")]
            why = lines[0] if lines else f"exit code {job.returncode}"
            raise UserError(f"debug=multinode: a process failed: {why}")


def _losses(out: Path) -> list[float]:
    lines = map(json.loads, (out / "log.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]
