"""The job files: what they run exists and is understood, and a job that Slurm ends saves, is queued
again, and goes on. torchrun, python and scontrol are replaced by scripts that take notes."""

import importlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import checkpoint
from configurator import ROOT, Config, load
from prepare_bytes import PrepareConfig
from preprocess_prefix import PrefixConfig
from sample import SampleConfig

JOBS = sorted(p.name for p in (ROOT / "slurm").glob("*.slurm"))
CLASSES = {
    "train.py": Config,
    "sample.py": SampleConfig,
    "prepare_bytes.py": PrepareConfig,
    "preprocess_prefix.py": PrefixConfig,
}
NOTES = """#!{python}
import json, os, pathlib, signal, sys, time
name, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
with open("calls", "a") as file:
    file.write(json.dumps([name, *argv]) + "\\n")
for out in [a.partition("=")[2] for a in argv if a.startswith("--out_dir=")]:
    os.makedirs(out, exist_ok=True)
    pathlib.Path(out, "ckpt.pt").touch()
if name != "scontrol" and os.environ.get("WAIT"):
    signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path("saved").touch(), sys.exit(1)))
    pathlib.Path("begun").touch()
    time.sleep(60)
"""
REAL = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done  # of the launcher: one process is enough here
exec {python} "$@"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the project by links, with the commands that take notes in bin/."""
    for path in [
        *ROOT.glob("*.py"),
        *(p.parent for p in ROOT.glob("*/__init__.py")),
        ROOT / "config",
        ROOT / "slurm",
    ]:
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "bin").mkdir()
    for name in ("torchrun", "python", "scontrol"):
        tool(tmp_path, name, NOTES)
    return tmp_path


def tool(place: Path, name: str, text: str) -> None:
    (place / "bin" / name).write_text(text.format(python=sys.executable))
    (place / "bin" / name).chmod(0o755)


def start(place: Path, job: str, *argv: str, **env: Any) -> subprocess.Popen:
    path = f"{place / 'bin'}:{os.environ['PATH']}"
    fixed = {"PATH": path, "SLURM_SUBMIT_DIR": place, "SLURM_JOB_ID": 77, "SLURM_ARRAY_TASK_ID": 0}
    env = {**os.environ, **{k: str(v) for k, v in (fixed | env).items()}}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(["bash", f"slurm/{job}", *argv], cwd=place, env=env, **pipes)


def calls(place: Path) -> list[list[str]]:
    path = place / "calls"
    return [json.loads(x) for x in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("job", JOBS)
def test_commands_exist_and_are_understood(place: Path, job: str, monkeypatch):
    """Dry run: every command of a job, with the arguments that it would get."""
    run = start(place, job)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0, out
    got = calls(place)
    assert len(got) >= 1
    for name, *argv in got:
        while name == "torchrun" and argv[0].startswith("--"):
            assert argv[0] == "--standalone" or argv[0].startswith("--nproc_per_node="), argv
            argv = argv[1:]
        script, *argv = argv
        monkeypatch.chdir(place)
        load(CLASSES[script], argv)  # raises where a file, key or value is wrong
        assert callable(importlib.import_module(script[:-3]).main)


def test_stages_of_palindromes_follow_one_another(place: Path):
    run = start(place, "palindrome.slurm")
    assert run.wait(60) == 0
    values = [" ".join(call) for call in calls(place)]
    assert ["prepare_bytes" in x for x in values] == [True, True, False, False]
    assert "--source=wikipedia" in values[0] and "--dataset=wikipedia" in values[2]
    assert "--init_from=auto" in values[2]
    assert "--init_from=auto:out/palindrome_pretrain/ckpt.pt" in values[3]


def test_the_newest_snapshot_begins_the_fine_tuning(place: Path):
    """Not the one before it that a save leaves, and of another text only by name."""
    out = place / "out/palindrome_pretrain"
    out.mkdir(parents=True)
    for age, name in enumerate(("ckpt_020000.pt", "ckpt.pt", "ckpt_prev.pt", "ckpt_015000.pt")):
        (out / name).touch()
        os.utime(out / name, (1e9 - age, 1e9 - age))
    tool(place, "torchrun", NOTES.replace("pathlib.Path(out, ", "pathlib.Path(out, 'x' + "))
    run = start(place, "palindrome.slurm", SOURCE="pydoc")
    text, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and "pretraining on bytes of pydoc" in text
    values = [" ".join(call) for call in calls(place)]
    assert "--source=pydoc" in values[0] and "--dataset=pydoc" in values[2]
    assert "--init_from=auto:out/palindrome_pretrain/ckpt_020000.pt" in values[3]


# ---- any config --------------------------------------------------------------------------------


def test_a_job_submits_itself(place: Path):
    """Outside of a job; options before the first argument are sbatch's."""
    tool(place, "sbatch", NOTES)
    options = ["--nodes=2", "--constraint=a100", "--time=1:00:00"]
    rest = ["config/star_easy.py", "--seed=2", "--demo=a b"]
    assert start(place, "train.slurm", *options, *rest, SLURM_JOB_ID="").wait(60) == 0
    assert calls(place) == [["sbatch", *options, "slurm/train.slurm", *rest]]


def test_print_submits_nothing(place: Path):
    tool(place, "sbatch", NOTES)
    argv = ["--nodes=2", "--print", "config/star_easy.py"]
    out, _ = start(place, "train.slurm", *argv, SLURM_JOB_ID="").communicate(timeout=60)
    assert not calls(place)
    command, script = out.split("\n", 1)
    assert shlex.split(command) == [
        "sbatch",
        "--nodes=2",
        "slurm/train.slurm",
        "config/star_easy.py",
    ]
    assert script == (place / "slurm/train.slurm").read_text()


@pytest.mark.parametrize("nodes", [1, 2, 4, 8])
def test_one_node_or_several(place: Path, nodes: int):
    """torchrun on every node meets on the first one, at a port of the job."""
    tool(place, "scontrol", "#!/bin/sh\nprintf 'n3\\nn4\\nn7\\n'\n")
    tool(place, "srun", NOTES)
    env = {"SLURM_JOB_NUM_NODES": nodes, "SLURM_JOB_NODELIST": "n[3-4,7]"}
    env["SLURM_GPUS_ON_NODE"] = 3
    assert start(place, "train.slurm", "config/star_easy.py", "--seed=2", **env).wait(60) == 0
    [call] = calls(place)
    where = call.index("train.py")
    assert call[where:] == [
        *("train.py", "config/star_easy.py", "--seed=2", "--init_from=auto", "--demo=")
    ]
    if nodes == 1:
        assert call[:where] == ["torchrun", "--standalone", "--nproc_per_node=3"]
    else:
        assert call[:2] == ["srun", "torchrun"]
        options = {f"--nnodes={nodes}", "--rdzv_backend=c10d", "--rdzv_endpoint=n3:20077"}
        assert set(call[2:where]) == options | {"--rdzv_id=77", "--nproc_per_node=3"}


def test_weights_begin_a_run_and_only_that(place: Path):
    start(place, "train.slurm", "config/a2d.py", "--init_from=folder").wait(60)
    assert calls(place)[0][-2:] == ["--init_from=auto:folder", "--demo="]


def test_the_environment_of_a_job(place: Path):
    """A virtual environment or one of conda, behind the lines of the site."""
    (place / "slurm").unlink()
    shutil.copytree(ROOT / "slurm", place / "slurm")
    (place / "slurm/site.sh").write_text("echo site $PWD\n")
    (place / "venv/bin").mkdir(parents=True)
    (place / "venv/bin/activate").write_text("echo entered $UNSET\n")
    tool(place, "conda", "#!/bin/sh\necho 'conda() {{ echo conda $1 $2; }}'\n")
    for env, word in (({"VENV": "venv"}, "entered"), ({"CONDA_ENV": "e"}, "conda activate e")):
        for job in JOBS:
            out, _ = start(place, job, **env).communicate(timeout=60)
            assert out.startswith(f"site {place}\n{word}\n"), (job, out)


def test_logs_have_a_folder_in_a_fresh_clone():
    """Slurm makes none, and a job whose log cannot be opened is gone without a word."""
    for job in JOBS:
        [log] = re.findall(r"^#SBATCH --output=(.*)$", (ROOT / "slurm" / job).read_text(), re.M)
        tracked = ["git", "ls-files", str(Path(log).parent)]
        assert subprocess.run(tracked, cwd=ROOT, capture_output=True, check=True).stdout, log
        ignored = ["git", "check-ignore", "-q", log]
        assert subprocess.run(ignored, cwd=ROOT).returncode == 0, log


def test_stages_begin_with_weights_and_go_on(place: Path):
    """The name of the run says so, and only a run that begins needs them."""
    for init, out in (("louaaron/sedd-small", "out/stage1-finetuning"), ("scratch", "out/stage1")):
        assert start(place, "stages.slurm", INIT=init).wait(60) == 0
        assert calls(place)[-1][-2:] == [f"--out_dir={out}", f"--init_from=auto:{init}"]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_job_that_is_ended_saves(place: Path, job: str, number: int):
    """The command gets a SIGTERM and its time; before the time limit the job is then queued again,
    after scancel it is not. Nothing else is begun."""
    run = start(place, job, WAIT=1)
    end = time.monotonic() + 30
    while not (place / "begun").exists():
        assert time.monotonic() < end and run.poll() is None
        time.sleep(0.01)
    run.send_signal(number)
    out, _ = run.communicate(timeout=30)
    assert (place / "saved").exists() and len(calls(place)) == 1 + (number == signal.SIGUSR1), out
    assert run.returncode == (0 if number == signal.SIGUSR1 else 143)
    if number == signal.SIGUSR1:
        assert calls(place)[-1] == ["scontrol", "requeue", "77"]


@pytest.mark.parametrize("job", JOBS)
def test_jobs_ask_for_the_signal_and_for_another_turn(job: str):
    text = (ROOT / "slurm" / job).read_text()
    for line in ("--requeue", "--signal=B:USR1@300", "--open-mode=append"):
        assert f"\n#SBATCH {line}\n" in text


def test_a_command_that_fails_fails_the_job(place: Path):
    tool(place, "torchrun", "#!/bin/sh\nexit 3\n")
    run = start(place, "stages.slurm")
    assert run.wait(60) == 3 and not calls(place)


@pytest.mark.slow
def test_a_stage_goes_on_after_its_time_is_up(place: Path, data_dir: Path):
    """With the real train.py: ended, queued again, finished."""
    from conftest import TINY, as_flags

    tool(place, "torchrun", REAL)
    tiny = {**TINY, "data_dir": data_dir, "objective": "sedd", "backbone": "", "threads": 1}
    tiny |= {"optimizer": "adamw", "gradient_accumulation_steps": 1, "demo": ""}
    options = " ".join(as_flags(tiny))
    run = start(place, "stages.slurm", OVERRIDES=f"{options} --max_iters=1000000")
    end = time.monotonic() + 60
    while not (place / "out/stage1/log.jsonl").exists():
        assert time.monotonic() < end and run.poll() is None, run.communicate()
        time.sleep(0.05)
    time.sleep(1)
    run.send_signal(signal.SIGUSR1)
    out, _ = run.communicate(timeout=60)
    assert run.returncode == 0 and "saved at step" in out, out
    step = checkpoint.read(place / "out/stage1/ckpt.pt")["step"]
    again = start(place, "stages.slurm", OVERRIDES=f"{options} --max_iters={step + 3}")
    out, _ = again.communicate(timeout=60)
    assert again.returncode == 0, out
    assert checkpoint.read(place / "out/stage1/ckpt.pt")["step"] == step + 3
