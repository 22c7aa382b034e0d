"""What happens to a run: signals, processes that die or hang, full disks, closed pipes, numbers
that are not finite, two runs in one folder, bad options. The commands run as processes.

Faults are put into them by a config file, which is a program. What needs no process is tested
beside the code; docs/promises.md lists all of it.
"""

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator

import numpy as np
import pytest
from launcher import Launched, finish, launch_all

import checkpoint
from corpus import Corpus

slow = pytest.mark.slow


def losses(out: Path) -> dict[int, float]:
    lines = [json.loads(x) for x in (out / "log.jsonl").read_text().splitlines()]
    return {x["step"]: x["loss"] for x in lines if "loss" in x}


def step_of(out: Path) -> int:
    return checkpoint.read(out / "ckpt.pt")["step"]


def lines(text: str) -> list[str]:
    """Of stderr, without the notes of gloo."""
    return [x for x in text.splitlines() if x.strip() and not x.startswith("[")]


def refused(job: Launched, *words: Any) -> None:
    """Exit code 2 and one line that has all the words."""
    assert job.wait() == 2, (job.out, job.err)
    assert len(lines(job.err)) == 1 and "Traceback" not in job.err, job.err
    for word in words:
        assert str(word) in job.err


def files(out: Path) -> list[str]:
    return sorted(p.name for p in out.iterdir())


CALLS = """
import os, signal, time, pathlib
import checkpoint as _checkpoint
from diffusion import ScoreEntropy as _Loss
_mine, _here = os.environ.get("RANK", "0"), pathlib.Path(__file__).parent
_real, _calls = _Loss.loss, []
def _loss(self, *told):
    _calls.append(1)
    return _fault(_real(self, *told), len(_calls))
_Loss.loss = _loss
"""


@pytest.fixture
def fault(tmp_path: Path) -> Any:
    """fault(code) -> a config file that has `_fault(loss, call)` called for every micro-batch."""

    def make(code: str) -> Path:
        path = tmp_path / "fault.py"
        path.write_text(CALLS + code)
        return path

    return make


# saving takes a while; the file `saving` tells that it has begun for the second time
SLOW_SAVE = """
_fault, _save, _saves = (lambda loss, call: loss), _checkpoint.torch.save, []
def _slow(*told):
    _saves.append(1)
    if len(_saves) == 2:
        (_here / "saving").touch()
        time.sleep(SECONDS)
    _save(*told)
_checkpoint.torch.save = _slow
"""


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.005)


# ---- signals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number, code", [("SIGTERM", 143), ("SIGINT", 130), ("SIGUSR1", 138)])
def test_a_signal_saves_and_leaves(tmp_path: Path, flags: Any, number: str, code: int):
    """Faults 19 and 20: the step is finished and saved, though no save was due; the folder is as
    after any run, so that it can be resumed."""
    out, sent = tmp_path / "out", getattr(signal, number)
    job = Launched("train.py", *flags(out, max_iters=100_000), at=(4, sent))
    begin = time.monotonic()
    assert job.wait(30) == code and time.monotonic() - begin < 30
    [line] = lines(job.err)
    assert line.startswith(f"{number}: saved at step 5; go on with: python train.py ")
    assert step_of(out) == 5 and sorted(losses(out)) == [1, 2, 3, 4, 5]
    assert files(out) == ["ckpt.pt", "config.json", "log.jsonl"]
    finish("train.py", *flags(out, max_iters=7, init_from="resume"))


def test_a_signal_keeps_the_best_if_only_that_is_kept(tmp_path: Path, flags: Any):
    values = {"always_save_checkpoint": False, "eval_interval": 3, "max_iters": 100_000}
    job = Launched("train.py", *flags(tmp_path / "out", **values), at=(4, signal.SIGTERM))
    assert job.wait() == 143 and "the best is kept" in job.err
    assert step_of(tmp_path / "out") == 3


def test_the_second_interrupt_ends_at_once(tmp_path: Path, flags: Any, fault: Any):
    """Fault 20: even in the middle of a save, which then leaves the checkpoint before it alone."""
    out, code = tmp_path / "out", fault(SLOW_SAVE.replace("SECONDS", "1000"))
    argv = flags(out, max_iters=100_000, eval_interval=3)
    job = Launched("train.py", code, *argv, at=(4, signal.SIGINT))
    wait_for(tmp_path / "saving")
    job.send(signal.SIGINT)
    begin = time.monotonic()
    assert job.wait() == -signal.SIGINT and time.monotonic() - begin < 5
    assert step_of(out) == 3


def test_a_signal_waits_for_the_save(tmp_path: Path, flags: Any, fault: Any):
    """Fault 23."""
    out, code = tmp_path / "out", fault(SLOW_SAVE.replace("SECONDS", "0.5"))
    job = Launched("train.py", code, *flags(out, max_iters=100_000, eval_interval=3))
    wait_for(tmp_path / "saving")
    job.send(signal.SIGTERM)
    assert job.wait() == 143
    assert step_of(out) >= 6 and not list(out.glob("*.tmp"))
    assert checkpoint.read(out / "ckpt_prev.pt")["step"] >= 3


# ---- several processes -------------------------------------------------------------------------


@pytest.mark.parametrize("only", [None, 0, 1])
def test_all_processes_stop_at_one_step(tmp_path: Path, flags: Any, only: int | None):
    """Fault 21: also if one of them alone hears the signal. Otherwise one would wait for a sum
    that the other never makes. One of them writes."""
    out = tmp_path / "out"
    argv = flags(out, max_iters=100_000, gradient_accumulation_steps=2, threads=1)
    job = launch_all(2, "train.py", *argv, at=(4, signal.SIGTERM), only=only)
    assert [one.wait(30) for one in job] == [143, 143], (job[0].err, job[1].err)
    assert step_of(out) == 5 and sorted(losses(out)) == [1, 2, 3, 4, 5]
    assert "saved at step 5" in job[0].err and not lines(job[1].err)
    assert "iter" not in job[1].out


RAISES = """
def _fault(loss, call):
    if _mine == "1" and call == 8:
        raise RuntimeError("the fault")
    return loss
"""
HANGS = RAISES.replace('raise RuntimeError("the fault")', "os.kill(os.getpid(), signal.SIGSTOP)")


@pytest.mark.parametrize("code", [RAISES, HANGS], ids=["raises", "hangs"])
def test_a_process_that_is_lost_ends_the_job(tmp_path: Path, flags: Any, fault: Any, code: str):
    """Fault 22: the other one notices, or has no more patience; the last checkpoint is intact."""
    out = tmp_path / "out"
    argv = flags(out, max_iters=100_000, eval_interval=3, gradient_accumulation_steps=2)
    job = launch_all(2, "train.py", fault(code), *argv, "--threads=1", "--patience=4")
    assert job[0].wait(60) not in (0, None)
    job[1].process.kill()
    job[1].process.join()
    assert step_of(out) == 6
    finish("train.py", *argv, "--init_from=resume", "--max_iters=8")


def torchrun(tmp_path: Path, helpers: Any, *argv: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(helpers.repo / "train.py"), *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=helpers.env(), cwd=tmp_path, **pipes)


@slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_torchrun_stops(tmp_path: Path, flags: Any, helpers: Any, number: int):
    """Faults 20 and 21 with the real launcher: it passes the signal on, and waits for the save."""
    out = tmp_path / "out"
    argv = flags(out, max_iters=1_000_000, gradient_accumulation_steps=2, threads=1)
    job = torchrun(tmp_path, helpers, *argv)
    wait_for(out / "log.jsonl")
    time.sleep(1)
    job.send_signal(number)
    begin = time.monotonic()
    _, err = job.communicate(timeout=60)
    assert job.returncode != 0 and time.monotonic() - begin < 30
    steps = sorted(losses(out))
    assert step_of(out) == steps[-1] and steps == list(range(1, len(steps) + 1))
    assert err.count("saved at step") == 1 and files(out)[0] == "ckpt.pt"
    assert not list(out.glob("*.tmp")) and not (out / "lock").exists()


@slow
def test_torchrun_ends_when_a_process_raises(tmp_path: Path, flags: Any, helpers: Any, fault: Any):
    """Fault 22 with the real launcher."""
    out = tmp_path / "out"
    argv = flags(out, max_iters=1_000_000, eval_interval=3, gradient_accumulation_steps=2)
    job = torchrun(tmp_path, helpers, fault(RAISES), *argv, "--threads=1")
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0 and "the fault" in err
    assert step_of(out) == 6
    log = (out / "log.jsonl").stat().st_mtime
    assert time.time() - log < 60


@slow
def test_torchrun_tells_a_mistake_once(tmp_path: Path, flags: Any, helpers: Any):
    out = tmp_path / "out"
    job = torchrun(tmp_path, helpers, *flags(out, block_size=3, gradient_accumulation_steps=2))
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0 and err.count("block_size=3 is too small") == 1
    assert not out.exists()


def test_a_mistake_of_one_process_alone_is_told(tmp_path: Path, flags: Any):
    """On the second machine the corpus is missing; the first one has nothing to tell."""
    argv = ["train.py", *flags(tmp_path / "out", max_iters=3, gradient_accumulation_steps=2)]
    other = [f"--data_dir={tmp_path}" if a.startswith("--data_dir") else a for a in argv]
    job = Launched(*other, RANK=1)
    assert job.wait() == 2 and job.err.startswith("process 1: no corpus at")


# ---- disks, folders, pipes ---------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """A file system of so many bytes, for whom may make one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no right to mount a file system")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("how", ["stop", "warn"])
def test_a_disk_that_is_full(tmp_path: Path, flags: Any, trained: Any, how: str):
    """Fault 2 on a real file system with room for two checkpoints and a half: the third save fails.
    The run ends, or goes on and fails at its end; what was saved stays."""
    size, disk = (trained() / "ckpt.pt").stat().st_size, tmp_path / "disk"
    with small_disk(disk, int(2.5 * size)):
        argv = flags(disk / "out", max_iters=20, eval_interval=5, save_errors=how)
        job = Launched("train.py", *argv)
        assert job.wait() == 2 and "Traceback" not in job.err
        err = lines(job.err)
        assert all("ckpt.pt" in x and "intact" in x for x in err)
        warned = [x.startswith("warning: ") for x in err]
        assert warned == ([False] if how == "stop" else [True, False])
        assert max(losses(disk / "out")) == {"stop": 15, "warn": 20}[how]
        assert step_of(disk / "out") == 10
        assert checkpoint.read(disk / "out/ckpt_prev.pt")["step"] == 5
        assert not list((disk / "out").glob("*.tmp"))


def test_a_log_that_cannot_grow(tmp_path: Path, flags: Any):
    """Fault 2 for the log: one line, and the checkpoint stays."""
    out = tmp_path / "out"
    job = Launched("train.py", *flags(out, max_iters=100_000, eval_interval=5))
    job.until("iter 20:")
    size = (out / "log.jsonl").stat().st_size
    resource.prlimit(job.pid, resource.RLIMIT_FSIZE, (size, size))
    assert job.wait() == 2 and "Traceback" not in job.err
    assert f"cannot write {out}" in lines(job.err)[-1]
    assert step_of(out) >= 15


def test_two_runs_in_one_folder(tmp_path: Path, flags: Any):
    """Fault 18: the second one refuses, and touches nothing; a killed one leaves a lock that the
    next one takes over, even if its process id belongs to another process by now."""
    out = tmp_path / "out"
    first = Launched("train.py", *flags(out, max_iters=100_000, eval_interval=1000))
    first.until("iter 3:")
    (out / "ckpt.pt.1.tmp").write_text("half of a save of the first one")
    assert (out / "lock").read_text() == f"{first.pid}\n"
    for more in ({}, {"init_from": "auto"}):
        refused(Launched("train.py", *flags(out, **more)), f"process {first.pid} is writing {out}")
    assert (out / "ckpt.pt.1.tmp").exists() and first.process.is_alive()
    finish("train.py", *flags(tmp_path / "other", max_iters=1))  # another folder is free
    first.send(signal.SIGKILL)
    first.wait()
    (out / "lock").write_text(f"{os.getpid()}\n")  # ours, and we live
    finish("train.py", *flags(out, max_iters=2))
    assert step_of(out) == 2 and not (out / "lock").exists()


@pytest.mark.parametrize("out", ["/proc/anyorder", "/proc/self/fdinfo", "/proc/version"])
def test_folders_that_cannot_be_written(flags: Any, out: str):
    """Fault 17: nothing can be made in /proc, whoever asks."""
    job = Launched("train.py", *flags(Path(out), max_iters=2))
    refused(job, f"out_dir={out} cannot be written")


def test_nobody_reads_any_more(tmp_path: Path, flags: Any, helpers: Any):
    """Fault 24: `| head -2` ends the run without a word; what is saved is whole."""
    argv = " ".join(flags(tmp_path / "out", max_iters=100_000, eval_interval=2))
    command = f"{sys.executable} {helpers.repo / 'train.py'} {argv} | head -n 60 | wc -l"
    command += "; exit ${PIPESTATUS[0]}"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, env=helpers.env()
    )
    assert done.returncode == 0 and lines(done.stderr) == [], done.stderr
    assert done.stdout.strip() == "60"
    assert step_of(tmp_path / "out") % 2 == 0
    assert not list((tmp_path / "out").glob("*.tmp")) and not (tmp_path / "out/lock").exists()


@slow
def test_no_output_at_all(tmp_path: Path, flags: Any, helpers: Any):
    """Fault 24: standard output closed from the beginning, as a job queue may do it."""
    argv = " ".join(flags(tmp_path / "out", max_iters=3))
    command = f"{sys.executable} {helpers.repo / 'train.py'} {argv} >&-"
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, timeout=120, env=helpers.env()
    )
    assert done.returncode == 0 and lines(done.stderr) == [], done.stderr
    assert step_of(tmp_path / "out") == 3 and len(losses(tmp_path / "out")) == 3


@pytest.mark.parametrize("garbage", [b"\0" * 100 + b'{"step": 9}\n', b"\xff\n", b"[1]\n", b"{}\n"])
def test_a_spoilt_log_stops_nobody(tmp_path: Path, flags: Any, garbage: bytes):
    """A power cut leaves zeros in a file that was growing."""
    finish("train.py", *flags(tmp_path, max_iters=3))
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(garbage)
    finish("train.py", *flags(tmp_path, max_iters=5, init_from="resume"))
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4, 5]


# ---- numbers that are not finite ---------------------------------------------------------------

NAN = """
def _fault(loss, call):
    return loss._replace(sum=loss.sum * float("nan")) if call in STEPS else loss
"""


def test_a_loss_that_is_not_finite(tmp_path: Path, flags: Any, fault: Any):
    """Fault 25: step, loss before it, rate and place in the data are told; nothing is changed."""
    out, code = tmp_path / "out", fault(NAN.replace("STEPS", "(8,)"))
    values = {"eval_interval": 3, "lr_schedule": "constant", "learning_rate": 0.002}
    job = Launched("train.py", code, *flags(out, max_iters=20, **values))
    assert job.wait() == 1
    (line,) = lines(job.err)
    assert line.startswith("step 8: loss nan") and "learning rate 0.002" in line
    assert f"last good step {losses(out)[7]:.4g}" in line and "micro-batches 7 to 7" in line
    assert step_of(out) == 6 and max(losses(out)) == 7


@pytest.mark.parametrize("allowed, code, last", [(2, 1, 8), (3, 0, 12)])
def test_skipping(tmp_path: Path, flags: Any, fault: Any, allowed: int, code: int, last: int):
    """Fault 27: so many steps are left out, each with a warning, then the run ends."""
    bad = fault(NAN.replace("STEPS", "(3, 5, 9)"))
    argv = flags(tmp_path / "out", max_iters=12, skip_nonfinite=allowed, eval_interval=4)
    job = Launched("train.py", bad, *argv)
    assert job.wait() == code, job.err
    err = [x.startswith("warning: step") for x in lines(job.err)]
    assert err == [True, True, False] if code else [True] * 3
    assert sorted(losses(tmp_path / "out")) == [i for i in range(1, last + 1) if i not in (3, 5, 9)]
    state = checkpoint.read(tmp_path / "out/ckpt.pt")
    assert state["step"] == last and state["skipped"] == min(allowed, 3)
    assert all(v.isfinite().all() for k in ("model", "ema") for v in state[k].values())


def test_skipped_steps_are_counted_over_a_resume(tmp_path: Path, flags: Any, fault: Any):
    argv = flags(tmp_path / "out", skip_nonfinite=2, eval_interval=4)
    bad = fault(NAN.replace("STEPS", "(2, 3)"))
    finish("train.py", bad, *argv, "--max_iters=4")
    job = Launched("train.py", bad, *argv, "--max_iters=8", "--init_from=resume")
    assert job.wait() == 1 and "step 6:" in job.err


def test_there_is_no_half_precision(tmp_path: Path, flags: Any):
    """Fault 31: float16 needs a scaler with a state of its own; bfloat16 does not, and is what
    there is."""
    job = Launched("train.py", *flags(tmp_path / "out", dtype="float16"))
    refused(job, "dtype must be one of auto, float32, bfloat16", "'float16'")


# ---- bad options and files ---------------------------------------------------------------------

MISTAKES = {
    "11 no checkpoint": (["--init_from=resume"], ["no checkpoint at", "ckpt.pt"]),
    "35 no corpus": (["--dataset=absent"], ["no corpus at", "absent", "prepare_"]),
    "38 too short": (["--block_size=7"], ["train.bin", "8 tokens", "block_size=7"]),
    "42 unknown key": (["--lerning_rate=1"], ["lerning_rate", "did you mean learning_rate?"]),
    "42 wrong type": (["--batch_size=1.5"], ["batch_size", "int", "'1.5'"]),
    "42 None": (["--grad_clip=None"], ["grad_clip", "float", "'None'"]),
    "43 heads": (["--n_embd=10", "--n_head=4"], ["n_embd", "n_head=4", "10"]),
    "44 batch": (["--batch_size=0"], ["batch_size", "at least 1", "0"]),
    "44 rate": (["--learning_rate=-1"], ["learning_rate", "at least 0"]),
    "44 dropout": (["--dropout=1"], ["dropout", "below 1"]),
    "44 decay": (["--warmup_iters=5", "--lr_decay_iters=5"], ["lr_decay_iters", "warmup_iters=5"]),
    "27 skip": (["--skip_nonfinite=-1"], ["skip_nonfinite", "at least 0"]),
    "49 cuda:7": (["--device=cuda:7"], ["'cuda:7' is not available", "cpu"]),
    "49 mps": (["--device=mps"], ["'mps' is not available", "cpu"]),
    "no such noise": (["--noise=pink"], ["noise must be one of", "loglinear", "'pink'"]),
    "no such objective": (["--objective=magic"], ["objective must be one of", "'magic'"]),
    "no such file": (["config/absent.py"], ["no such config file: config/absent.py"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(tmp_path: Path, flags: Any, name: str):
    """As a process: exit code 2, one line, and nothing written."""
    argv, words = MISTAKES[name]
    refused(Launched("train.py", *flags(tmp_path / "out"), *argv), *words)
    assert not (tmp_path / "out").exists()


DAMAGES = {
    "3 empty": (lambda data: b"", "corrupt or incomplete"),
    "3 half": (lambda data: data[: len(data) // 2], "corrupt or incomplete"),
    "3 last byte": (lambda data: data[:-1], "corrupt or incomplete"),
    "4 bit": (lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:], "corrupt"),
}


@pytest.mark.parametrize("command", ["train.py", "sample.py"])
@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_checkpoint_is_refused(
    tmp_path: Path, flags: Any, trained: Any, name: str, command: str
):
    """Faults 3 and 4 as processes: named, with the one before it, and left as it is."""
    damage, word = DAMAGES[name]
    for file in trained().iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    spoilt = damage((tmp_path / "ckpt.pt").read_bytes())
    (tmp_path / "ckpt.pt").write_bytes(spoilt)
    resume = flags(tmp_path, init_from="resume", max_iters=9)
    argv = resume if command == "train.py" else [f"--ckpt={tmp_path / 'ckpt.pt'}"]
    refused(Launched(command, *argv), word, tmp_path / "ckpt.pt", tmp_path / "ckpt_prev.pt")
    assert (tmp_path / "ckpt.pt").read_bytes() == spoilt


def test_what_changes_the_order_of_the_data_is_told(tmp_path: Path, flags: Any):
    """Fault 9: the step and the rates go on. Another number of processes changes no order here
    (test_resume.py); another batch does, and is told of."""
    finish("train.py", *flags(tmp_path, max_iters=3))
    job = Launched("train.py", *flags(tmp_path, max_iters=4, init_from="resume", batch_size=2))
    assert job.wait() == 0
    assert lines(job.err) == ["warning: batch_size was 4, is 2: the order of the data changes"]
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]


def test_other_rows_of_the_same_vocabulary_are_told(tmp_path: Path, flags: Any, helpers: Any):
    """Also where only their order differs; the same rows in another folder are the same."""
    argv = flags(tmp_path / "out", max_iters=2)
    finish("train.py", *argv)
    given = {a.partition("=")[0][2:]: a.partition("=")[2] for a in argv}
    first = Path(given["data_dir"], given["dataset"])
    corpus = Corpus(first)
    texts = {split: list(corpus.texts(split)) for split in ("train", "val")}
    helpers.write_corpus(tmp_path / "d" / "same", texts, corpus.tokenizer)
    others = {**texts, "train": texts["train"][::-1]}
    helpers.write_corpus(tmp_path / "d" / "other", others, corpus.tokenizer)
    for step, (name, told) in enumerate([("same", 0), ("other", 1), ("other", 0)], 3):
        more = {"max_iters": step, "init_from": "resume", "data_dir": tmp_path / "d"}
        job = Launched("train.py", *flags(tmp_path / "out", dataset=name, **more))
        assert job.wait() == 0
        assert [line[:33] for line in lines(job.err)] == [
            "warning: the dataset is another: "
        ] * told


def test_a_warm_up_that_never_ends_is_told(tmp_path: Path, flags: Any):
    """Fault 44."""
    job = Launched("train.py", *flags(tmp_path / "out", max_iters=2, warmup_iters=5))
    assert job.wait() == 0
    assert lines(job.err) == ["warning: warmup_iters=5 never ends"]


def test_an_evaluation_writes_nothing(tmp_path: Path, flags: Any):
    """Beside a run that is going on: neither its lock nor its half-written files are touched."""
    first = Launched("train.py", *flags(tmp_path, max_iters=100_000, eval_interval=2))
    first.until("iter 5:")
    (tmp_path / "other.tmp").touch()
    finish("train.py", *flags(tmp_path, init_from="resume", eval_only=True))
    assert (tmp_path / "other.tmp").exists()
    first.send(signal.SIGTERM)
    assert first.wait() == 143


def test_a_finished_run_ends_well(tmp_path: Path, flags: Any):
    """Fault 12: exit code 0, with a word, and the checkpoint as it was."""
    finish("train.py", *flags(tmp_path, max_iters=2))
    before = (tmp_path / "ckpt.pt").read_bytes()
    out = finish("train.py", *flags(tmp_path, max_iters=2, init_from="resume"))
    assert "nothing to do: step 2 of max_iters=2 is done" in out
    assert (tmp_path / "ckpt.pt").read_bytes() == before


@slow
def test_kills(helpers: Any):
    """Fault 1 in a run: the loop that docs/promises.md has the long result of, 8 kills of it."""
    command = [sys.executable, str(helpers.repo / "tests/kill_loop.py"), "--kills=8", "--seed=5"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=helpers.env())
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"8 kills, \d+ of them while", done.stdout)


def test_promises_name_tests_that_exist(helpers: Any):
    """docs/promises.md."""
    text = (helpers.repo / "docs/promises.md").read_text()
    named = set(re.findall(r"`(test_\w+)\.(test_\w+)`", text))
    for file, test in named:
        [path] = (helpers.repo / "tests").rglob(f"{file}.py")
        source = path.read_text()
        assert f"\ndef {test}(" in source, (file, test)
    cases = {int(n) for n in re.findall(r"^\| (\d+) \|", text, re.M)}
    assert cases == set(range(1, 51))
    for line in text.splitlines():  # every promise has one
        assert not re.match(r"\| \d+ \|", line) or re.search(r"`test_\w+\.test_\w+`", line), line


@slow
def test_a_line_of_100_megabytes(tmp_path: Path, helpers: Any):
    """Fault 45: one line, no line end; every byte comes back, in bounded memory."""
    text = b"".join(b"%d bytes of one line. " % n for n in range(60_000))
    data = (text * (100_000_000 // len(text) + 1))[:100_000_000]
    (tmp_path / "in.txt").write_bytes(data)
    code = "import resource, runpy, sys; sys.argv = sys.argv[1:]; "
    code += "sys.path.insert(0, sys.argv[0].rpartition('/')[0])\n"
    code += "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
    code += "finally: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)"
    argv = ["--source=text", "--path=in.txt", "--dataset=x", "--fold_whitespace=false"]
    done = subprocess.run(
        [sys.executable, "-c", code, str(helpers.repo / "prepare_bytes.py"), *argv],
        cwd=tmp_path,
        env=helpers.env(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ids = np.fromfile(tmp_path / "data/x/train.bin", np.uint16)
    ids = ids[ids < 256].astype(np.uint8).tobytes()
    assert data.startswith(ids) and len(ids) > 0.9 * len(data)
    assert int(done.stderr.split()[-1]) < 4_000_000  # KiB
