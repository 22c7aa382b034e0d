"""train.py: exact resuming, one or two processes, refusals, divergence, logs."""

import json
import math
import os
import socket
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import checkpoint
import train
from configurator import ROOT, Config, UserError, load
from corpus import Batch, CorpusWriter
from diffusion import Absorbing, Geometric, LogLinear, ScoreEntropy, Uniform
from model import Transformer
from objective import Loss, SampleOptions, generator
from parallel import fsdp
from tokenizer import Symbols
from train import lr_multiple, make_optimizers, scale_gradients, update_ema

VOLATILE = {"tokens_per_s", "mfu"}  # of a line of the log: they depend on the clock


@pytest.fixture(autouse=True)
def no_benchmark(monkeypatch):
    """The measurement of the processor's speed takes longer than these runs."""
    monkeypatch.setattr(train, "gemm_peak", lambda *_: 1e12)


def error_of(*argv: Any) -> str:
    """The line that refuses a run."""
    with pytest.raises(UserError) as caught:
        train.main([str(a) for a in argv])
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def log(out: Path) -> list[dict]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(x).items() if k not in VOLATILE} for x in lines]


def losses(out: Path) -> dict[int, float]:
    got = [(x["step"], x["loss"]) for x in log(out) if "loss" in x]
    assert len(got) == len(dict(got)), "a step was logged twice"
    return dict(got)


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b or (a != a and b != b)


def everything(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in out.rglob("*") if p.is_file()}


# ---- resuming ----------------------------------------------------------------------------------

FULL = {"dropout": 0.1, "gradient_accumulation_steps": 2, "lr_decay_iters": 20, "warmup_iters": 3}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_resuming_is_exact(tmp_path: Path, flags: Any, optimizer: str):
    """Fault 6: 20 steps are 10 and 10 more, to the last bit, with dropout, accumulation and an
    evaluation in between. A stored generator too few, a batch twice or a lost moment would show."""
    values = {**FULL, "optimizer": optimizer, "eval_interval": 5}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train.main(flags(whole, max_iters=20, **values))
    train.main(flags(parts, max_iters=10, **values))
    half = checkpoint.read(parts / "ckpt.pt")
    torch.manual_seed(5)  # another process has another global state
    train.main(flags(parts, max_iters=20, init_from="resume", **values))
    a, b = (checkpoint.read(out / "ckpt.pt") for out in (whole, parts))
    for key in ("model", "ema", "optimizer", "step", "corpus"):
        assert same(a[key], b[key]), key
    assert not same(half["model"], b["model"]) and b["step"] == 20
    assert losses(whole) == losses(parts) and sorted(losses(parts)) == list(range(1, 21))
    assert len(a["optimizer"]) == (2 if optimizer == "muon" else 1)


def test_resuming_keeps_the_best_bound(tmp_path: Path, flags: Any, monkeypatch):
    """The checkpoint is written before its evaluation, so the `best` in it is older by one."""
    bounds = iter([1.0, 2.0, 3.0])
    monkeypatch.setattr(train, "evaluate", lambda _: next(bounds))
    train.main(flags(tmp_path, max_iters=2, eval_interval=2))
    train.main(flags(tmp_path, max_iters=4, eval_interval=2, init_from="resume"))
    assert [x["best"] for x in log(tmp_path) if "best" in x] == [1.0, 1.0]


def test_evaluation_does_not_change_training(tmp_path: Path, flags: Any):
    """Fault 7: a generator shared with evaluation, or averaged weights left behind, would."""
    values = {"max_iters": 6, "dropout": 0.1}
    train.main(flags(tmp_path / "often", eval_interval=1, **values))
    train.main(flags(tmp_path / "once", eval_interval=1000, eval_iters=5, **values))
    assert losses(tmp_path / "often") == losses(tmp_path / "once")
    a, b = (checkpoint.read(tmp_path / x / "ckpt.pt") for x in ("often", "once"))
    assert same(a["model"], b["model"]) and same(a["ema"], b["ema"])


def test_same_seed_same_run(tmp_path: Path, flags: Any):
    runs = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main(flags(tmp_path / name, max_iters=3, seed=seed))
        runs[name] = losses(tmp_path / name)
    assert runs["a"] == runs["b"] != runs["c"]


def test_a_resumed_log_has_no_duplicates(tmp_path: Path, flags: Any):
    """Steps that were logged after the last checkpoint are done, and told, again; a line that a
    crash cut short is dropped."""
    train.main(flags(tmp_path, max_iters=4, eval_interval=2, lr_decay_iters=9))
    first = losses(tmp_path)
    lines = (tmp_path / "log.jsonl").read_text()
    extra = '{"step": 5, "loss": 9.0}\n{"step": 6, "loss": 9.0}\n{"step": 7, "lo'
    (tmp_path / "log.jsonl").write_text(lines + extra)
    train.main(flags(tmp_path, max_iters=6, init_from="resume", lr_decay_iters=9))
    got = losses(tmp_path)
    assert sorted(got) == [1, 2, 3, 4, 5, 6] and 9.0 not in got.values()
    assert {k: got[k] for k in first} == first
    assert [x["step"] for x in log(tmp_path) if "val_bound" in x] == [2, 4, 6]


def test_a_new_run_begins_a_new_log(tmp_path: Path, flags: Any):
    train.main(flags(tmp_path, max_iters=3))
    train.main(flags(tmp_path, max_iters=2, overwrite=True))
    assert sorted(losses(tmp_path)) == [1, 2]


@pytest.fixture
def done(tmp_path: Path, trained: Any) -> Path:
    """A copy of a finished run of 4 steps."""
    for path in trained().iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


def test_a_finished_run_is_left_alone(done: Path, flags: Any, capsys):
    """Fault 12: returns normally, which is exit code 0."""
    before = everything(done)
    train.main(flags(done, max_iters=4, init_from="resume"))
    assert "step 4 of max_iters=4 is done" in capsys.readouterr().out
    after = everything(done)
    for name in ("ckpt.pt", "ckpt_prev.pt", "log.jsonl"):
        assert after[name] == before[name]


def test_resume_inherits_the_architecture(done: Path, flags: Any, capsys):
    """Fault 8: without flags, what the weights were made for holds, and is told."""
    drop = ("--n_layer", "--n_head", "--n_embd", "--cond_dim")
    argv = [f for f in flags(done, max_iters=5, init_from="resume") if not f.startswith(drop)]
    train.main(argv)
    assert "n_embd = 16, taken from" in capsys.readouterr().out
    state = checkpoint.read(done / "ckpt.pt")
    assert state["step"] == 5 and state["config"]["n_embd"] == 16
    assert json.loads((done / "config.json").read_text())["n_embd"] == 16


@pytest.mark.parametrize(
    "flag", ["n_layer=2", "n_embd=32", "normalize=True", "graph=uniform", "time_input=False"]
)
def test_resume_refuses_another_architecture(done: Path, flags: Any, flag: str):
    """Fault 8: also what has no shape, such as the graph. Nothing is changed, config.json least."""
    before, (key, value) = everything(done), flag.split("=")
    message = error_of(*flags(done, init_from="resume", **{key: value}))
    assert f"{key}=" in message and str(done / "ckpt.pt") in message and "command line" in message
    assert everything(done) == before


def test_resume_refuses_another_optimizer(done: Path, flags: Any):
    """Its state cannot be continued."""
    assert "optimizer" in error_of(*flags(done, init_from="resume", max_iters=6, optimizer="muon"))


def test_resume_refuses_another_corpus(done: Path, tmp_path: Path, flags: Any, helpers: Any):
    """Fault 10: the ids would mean other letters, even where their number agrees."""
    from tokenizer import Symbols

    texts = {"train": ["wxyz"], "val": ["zzzz"]}
    for name, letters in (("others", "wxyz"), ("more", "vwxyz")):
        folder = tmp_path / "data" / name
        helpers.write_corpus(folder, texts, Symbols(list(letters)))
        data = {"data_dir": tmp_path / "data", "dataset": name}
        message = error_of(*flags(done, init_from="resume", max_iters=6, **data))
        assert str(folder) in message and ("tokenizer" in message or "vocab_size" in message)
        assert "special ids included: 3 for pad, bos, eos; and 3 for pad, bos, eos" in message
        message = error_of(*flags(tmp_path / "new", init_from=done / "ckpt.pt", **data))
        assert str(folder) in message


def test_resume_without_a_checkpoint(tmp_path: Path, flags: Any):
    """Fault 11."""
    assert f"no checkpoint at {tmp_path / 'out/ckpt.pt'}" in error_of(
        *flags(tmp_path / "out", init_from="resume")
    )


def test_resume_of_a_damaged_checkpoint(done: Path, flags: Any):
    """Fault 3: points to the one before, and leaves both."""
    (done / "ckpt.pt").write_bytes((done / "ckpt.pt").read_bytes()[:1000])
    message = error_of(*flags(done, init_from="resume"))
    assert "corrupt or incomplete" in message and str(done / "ckpt_prev.pt") in message
    assert (done / "ckpt.pt").stat().st_size == 1000
    os.replace(done / "ckpt_prev.pt", done / "ckpt.pt")
    train.main(flags(done, init_from="resume", max_iters=3))
    assert checkpoint.read(done / "ckpt.pt")["step"] == 3


def test_auto(tmp_path: Path, flags: Any):
    """Starts when there is nothing, continues when there is something: for job queues."""
    for target in (2, 4):
        train.main(flags(tmp_path, max_iters=target, init_from="auto", lr_decay_iters=9))
        assert checkpoint.read(tmp_path / "ckpt.pt")["step"] == target
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]


def test_stale_temporary_files_are_removed(done: Path, flags: Any):
    """Fault 1: a half-written file of a killed run is never read."""
    (done / "ckpt.pt.123.tmp").write_bytes(b"half")
    train.main(flags(done, max_iters=5, init_from="resume"))
    assert sorted(everything(done)) == ["ckpt.pt", "ckpt_prev.pt", "config.json", "log.jsonl"]


# ---- starting from weights ---------------------------------------------------------------------


def test_fine_tuning_takes_the_weights_and_nothing_else(done: Path, flags: Any):
    """From the averaged weights, at step 0, with a new optimiser and a new average."""
    source, out = done / "ckpt.pt", done / "tuned"
    state = checkpoint.read(source)
    argv = flags(out, init_from=source)
    job = train.start(*load(Config, argv), train.World(0, 1, torch.device("cpu")))
    assert job.step == 0 and job.best == math.inf and not job.optimizers[0].state
    assert same(dict(job.net.state_dict()), state["ema"]) and same(job.ema, state["ema"])
    assert not same(state["ema"], state["model"])
    for name, p in job.net.named_parameters():
        assert job.ema[name].data_ptr() != p.data_ptr()  # an average of its own
    train.main([*argv, "--max_iters=2"])
    assert sorted(losses(out)) == [1, 2]


def test_fine_tuning_needs_the_same_architecture(done: Path, flags: Any):
    message = error_of(*flags(done / "tuned", init_from=done / "ckpt.pt", n_embd=32))
    assert "n_embd=16" in message and "32" in message


def test_starting_from_an_export(done: Path, flags: Any, capsys):
    pytest.importorskip("safetensors")
    checkpoint.export(checkpoint.load(str(done / "ckpt.pt")), done / "export")
    argv = [f for f in flags(done / "t", init_from=done / "export") if "n_embd" not in f]
    job = train.start(*load(Config, argv), train.World(0, 1, torch.device("cpu")))
    assert same(dict(job.net.state_dict()), checkpoint.read(done / "ckpt.pt")["ema"])
    assert "n_embd = 16, taken from" in capsys.readouterr().out


def test_starting_from_nothing(tmp_path: Path, flags: Any):
    for source in (tmp_path / "no.pt", tmp_path / "no/folder", "bogus"):
        assert str(source) in error_of(*flags(tmp_path / "out", init_from=source))


# ---- refusals before the first step ------------------------------------------------------------


def test_missing_corpus_names_the_command(tmp_path: Path, flags: Any):
    """Fault 35; and no folder is left behind by a run that never began."""
    out = tmp_path / "out"
    message = error_of(*flags(out, dataset="absent"))
    assert "absent" in message and "prepare_" in message
    assert not out.exists()


def test_missing_corpus_is_made_by_the_command_of_the_config(tmp_path: Path, flags, monkeypatch):
    """With its folder and name; if the command makes nothing, the exact command is told."""
    ran = []
    monkeypatch.setattr(train, "run_command", ran.append)
    where = {"dataset": "absent", "data_dir": tmp_path}
    message = error_of(*flags(tmp_path / "out", prepare="prepare_x.py --source=y", **where))
    assert ran == [f"prepare_x.py --source=y --data_dir={tmp_path} --dataset=absent"]
    assert "python prepare_x.py --source=y" in message


def test_a_failing_command_is_told(tmp_path: Path, monkeypatch):
    code = tmp_path / "fails.py"
    code.write_text("import os, sys; sys.exit('RANK' in os.environ and 5 or 3)")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(UserError, match=r"this command failed: python .*fails\.py --x=1"):
        train.run_command(f"{code} --x=1")


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_out_dir_that_cannot_be_written(tmp_path: Path, flags: Any, below: str):
    """Fault 17: below a file, which no user may write, root included."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "file" / below if below else tmp_path / "file"
    assert f"out_dir={out} cannot be written" in error_of(*flags(out))


def test_parents_of_out_dir_are_made(tmp_path: Path, flags: Any):
    train.main(flags(tmp_path / "a/b/c", max_iters=1))
    assert (tmp_path / "a/b/c/ckpt.pt").exists()


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps", "gpu", "cpu:0", ""])
def test_device_that_is_not_there(tmp_path: Path, flags: Any, monkeypatch, device: str):
    """Fault 49: never a silent fallback."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    message = error_of(*flags(tmp_path / "out", device=device))
    assert repr(device) in message and "cpu" in message
    assert not (tmp_path / "out").exists()


def test_block_size_must_fit_the_corpus(tmp_path: Path, flags: Any):
    message = error_of(*flags(tmp_path / "out", block_size=7))
    assert "8 tokens" in message and "block_size=7" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "values, words",
    [
        ({"objective": "seed"}, ["objective", "sedd", "'seed'"]),
        ({"graph": "uniform", "normalize": True}, ["normalize=True", "graph=absorb"]),
        ({"graph": "uniform", "time_input": False}, ["time_input=True"]),
        ({"time_input": False, "scale_by_sigma": False}, ["time_input=False"]),
    ],
)
def test_options_that_exclude_each_other(tmp_path: Path, flags: Any, values: dict, words: list):
    message = error_of(*flags(tmp_path / "out", **values))
    for word in words:
        assert word in message


def test_accumulation_is_divided_over_processes(tmp_path, flags, run_cli, assert_refused):
    """Fault 43, before any process waits for another."""
    argv = flags(tmp_path / "out", gradient_accumulation_steps=3)
    result = run_cli("train.py", *argv, env={"WORLD_SIZE": 2, "RANK": 0, "LOCAL_RANK": 0})
    assert_refused(result, "gradient_accumulation_steps=3", "2")
    assert not (tmp_path / "out").exists()


def test_config_json_is_the_resolved_config(tmp_path: Path, flags: Any):
    train.main(flags(tmp_path, max_iters=1, learning_rate=1))
    data = json.loads((tmp_path / "config.json").read_text())
    state = checkpoint.read(tmp_path / "ckpt.pt")
    assert data == state["config"] and data["learning_rate"] == 1.0
    assert Config(**data) == load(Config, flags(tmp_path, max_iters=1, learning_rate=1))[0]


# ---- processes ---------------------------------------------------------------------------------


def test_two_processes_do_the_same_as_one(tmp_path: Path, flags: Any, helpers: Any):
    """Data, noise and dropout are numbered over the whole job; gradients are means over it."""
    values = {"max_iters": 4, "gradient_accumulation_steps": 4, "dropout": 0.1, "eval_iters": 3}
    values |= {"eval_interval": 2, "learning_rate": 0.01, "threads": 1}
    train.main(flags(tmp_path / "one", **values))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc_per_node=2", str(ROOT / "train.py"), *flags(tmp_path / "two", **values)]
    done = subprocess.run(
        command, env=helpers.env(), capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "2 process(es)" in done.stdout and done.stdout.count("iter 4:") == 1  # rank 0 alone
    a, b = (losses(tmp_path / x) for x in ("one", "two"))
    assert a.keys() == b.keys() and all(math.isclose(a[k], b[k], rel_tol=1e-5) for k in a)
    bounds = [[x["val_bound"] for x in log(tmp_path / y) if "best" in x] for y in ("one", "two")]
    assert np.allclose(*bounds, rtol=1e-5) and len(bounds[0]) == 2
    a, b = (checkpoint.read(tmp_path / x / "ckpt.pt") for x in ("one", "two"))
    assert list(a["model"]) == list(b["model"])  # fault 14: no `module.` in front
    for key in ("model", "ema"):
        assert all(torch.allclose(a[key][k], b[key][k], atol=1e-5) for k in a[key])
    train.main(
        flags(tmp_path / "two", **(values | {"max_iters": 5}), init_from="resume")
    )  # fault 9


# ---- divergence --------------------------------------------------------------------------------


def test_a_validation_bound_that_is_not_finite_ends_the_run(
    tmp_path: Path, flags: Any, monkeypatch
):
    """It would be logged as the criterion, and be compared with the best: False for ever. The
    checkpoint was written before."""
    train.main(flags(tmp_path, max_iters=2, eval_interval=2))
    real = ScoreEntropy.bound
    monkeypatch.setattr(ScoreEntropy, "bound", lambda *a: real(*a) * math.nan)
    with pytest.raises(train.Diverged, match="step 4: validation bound nan") as caught:
        train.main(flags(tmp_path, max_iters=9, init_from="resume", eval_interval=2))
    assert caught.value.code == 1 and "\n" not in str(caught.value)
    assert checkpoint.read(tmp_path / "ckpt.pt")["step"] == 4
    assert all(math.isfinite(x["val_bound"]) for x in log(tmp_path) if "best" in x)


def poison(monkeypatch: Any, step: int, how: str) -> None:
    """From update `step` on, one micro-batch has a loss or a gradient that is not finite."""
    real, calls = fsdp.LossModule.forward, [0]

    def forward(self: Any, noisy: Any) -> Loss:
        calls[0] += 1
        loss = real(self, noisy)
        if calls[0] < step:
            return loss
        if how == "nan loss":
            return loss._replace(sum=loss.sum * math.nan)
        if how == "inf loss":
            return loss._replace(sum=loss.sum + math.inf)
        head = self.net.head.bias.sum()  # zero with an infinite slope: finite loss, no gradient
        return loss._replace(sum=loss.sum + (head - head.detach()).clamp(min=0) ** 0.5)

    monkeypatch.setattr(fsdp.LossModule, "forward", forward)


@pytest.mark.parametrize("how", ["nan loss", "inf loss", "inf gradient"])
def test_divergence_stops_before_the_step(tmp_path: Path, flags: Any, monkeypatch, how: str):
    """Faults 25 and 26: the weights keep their last good values and the checkpoint is untouched.
    One infinite gradient would make all weights NaN through the clipped norm."""
    train.main(flags(tmp_path, max_iters=2, eval_interval=2))
    before = (tmp_path / "ckpt.pt").read_bytes()
    kept = []
    real = train.start
    monkeypatch.setattr(train, "start", lambda *a: kept.append(real(*a)) or kept[0])
    poison(monkeypatch, 3, how)
    with pytest.raises(train.Diverged) as caught:
        train.main(flags(tmp_path, max_iters=9, init_from="resume", eval_interval=3))
    assert caught.value.code == 1 and "step 5:" in str(caught.value)
    assert "\n" not in str(caught.value) and "learning rate" in str(caught.value)
    job = kept[0]
    assert job.step == 4 and all(p.isfinite().all() for p in job.net.parameters())
    assert all(p.isfinite().all() for p in job.ema.values())
    state = checkpoint.read(tmp_path / "ckpt.pt")
    assert state["step"] == 3 and all(p.isfinite().all() for p in state["model"].values())
    assert (tmp_path / "ckpt_prev.pt").read_bytes() == before
    assert sorted(losses(tmp_path)) == [1, 2, 3, 4]


def test_divergence_is_exit_code_1(tmp_path: Path, flags: Any, run_cli: Any):
    """Not 2: nothing that was typed is wrong. A real run whose learning rate is absurd."""
    argv = flags(tmp_path, max_iters=50, learning_rate=1e30, muon_lr=1e30, grad_clip=0)
    result = run_cli("train.py", *argv)
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "the step was not taken" in result.stderr


@pytest.mark.parametrize("normalize", [False, True])
def test_nothing_masked_is_no_loss(normalize: bool):
    """Fault 28: zero, with gradients of zero; a mean over no positions would be NaN."""
    net = Transformer(5, 1, 2, 16, cond_dim=8)
    objective = ScoreEntropy(Absorbing(4), LogLinear(), normalize=normalize)
    ids = torch.randint(0, 4, (3, 6))
    for given in (torch.ones(3, 6, dtype=torch.bool), torch.arange(6).expand(3, 6) < 5):
        batch = Batch(ids, given, torch.full((3,), 6))
        objective.noise = LogLinear(eps=1 - 1e-9)  # no noise at any time: nothing is masked
        loss = objective.loss(net, objective.corrupt(batch, generator(0)))
        loss.sum.backward()
        assert loss.sum == 0 and loss.count == int((~given).sum())
        assert all(v.isfinite().all() for v in loss.metrics.values())
        assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
        assert (objective.bound(net, batch, generator(0), 2).isfinite()).all()


def test_training_on_rows_that_are_mostly_given(tmp_path: Path, helpers: Any, flags: Any):
    """Fault 28 in the loop: one written place per row, so micro-batches without any MASK occur."""
    from corpus import CorpusWriter
    from tokenizer import Symbols

    with CorpusWriter(tmp_path / "data/given", Symbols(["a", "b"])) as out:
        for split in ("train", "val"):
            for _ in range(3):
                out.row(split, [0, 1, 0, 1, 0, 1, 0, 1], prompt=7)
    data = {"data_dir": tmp_path / "data", "dataset": "given", "batch_size": 1}
    train.main(flags(tmp_path / "out", max_iters=12, **data))
    got = losses(tmp_path / "out")
    assert 0.0 in got.values() and all(map(math.isfinite, got.values()))


SMALL_GRAPHS = {
    "absorb 1": lambda: Absorbing(1),
    "absorb 2": lambda: Absorbing(2),
    "uniform 1": lambda: Uniform(1),
    "uniform 2": lambda: Uniform(2),
}


@pytest.mark.parametrize("noise", [LogLinear(), Geometric()], ids=["loglinear", "geometric"])
@pytest.mark.parametrize("name", SMALL_GRAPHS)
@pytest.mark.parametrize("normalize", [False, True])
def test_tiny_vocabularies(name: str, noise: Any, normalize: bool):
    """Fault 30: one token or two, all alike: finite loss, gradients, bound and samples."""
    graph = SMALL_GRAPHS[name]()
    if normalize and not graph.absorbing:
        pytest.skip("only masked places have a softmax")
    torch.manual_seed(0)
    net = Transformer(graph.states, 1, 2, 16, cond_dim=8)
    objective = ScoreEntropy(graph, noise, normalize=normalize)
    batch = Batch(torch.zeros(4, 6).long(), torch.zeros(4, 6).bool(), torch.full((4,), 6))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    for step in range(5):
        loss = objective.loss(net, objective.corrupt(batch, generator(step)))
        loss.sum.backward()
        assert loss.sum.isfinite() and all(p.grad.isfinite().all() for p in net.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert objective.bound(net, batch, generator(9), 2).isfinite().all()
    *_, last = objective.sample(
        net, batch.ids, batch.prompt_mask, generator(9), SampleOptions(steps=4)
    )
    assert ((last.ids >= 0) & (last.ids < graph.n)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("graph", [Absorbing(4), Uniform(4)], ids=["absorb", "uniform"])
@pytest.mark.parametrize("noise", [LogLinear(), Geometric()], ids=["loglinear", "geometric"])
def test_both_ends_of_time(graph: Any, noise: Any, dtype: torch.dtype, monkeypatch):
    """Fault 29: at the smallest and largest t all weights are finite, in bfloat16 as well."""
    torch.manual_seed(0)
    net = Transformer(graph.states, 1, 2, 16, cond_dim=8)
    objective = ScoreEntropy(graph, noise)
    batch = Batch(torch.randint(0, 4, (4, 6)), torch.zeros(4, 6).bool(), torch.full((4,), 6))
    for t in (0.0, 1.0):
        monkeypatch.setattr(
            "diffusion.low_discrepancy_uniform", lambda B, rng, t=t: torch.full((B,), t)
        )
        with torch.autocast("cpu", dtype, enabled=dtype == torch.bfloat16):
            loss = objective.loss(net, objective.corrupt(batch, generator(0)))
        net.zero_grad()
        loss.sum.backward()
        assert loss.sum.isfinite()
        assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


# ---- optimisers and schedules ------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "flat_cosine"])
@pytest.mark.parametrize("warmup, end", [(0, None), (10, None), (10, 60), (99, None)])
def test_learning_rate_in_closed_form(schedule: str, warmup: int, end: int | None):
    cfg = Config(
        lr_schedule=schedule, warmup_iters=warmup, lr_decay_iters=end, max_iters=100, min_lr=0.2
    )
    last = end or 100
    begin = 0.8 * last if schedule == "flat_cosine" else warmup
    for step in range(1, 121):
        if step < warmup:
            wanted = step / warmup
        else:
            part = min(max((step - begin) / (last - begin), 0), 1)
            curve = {
                "constant": 1,
                "linear": 1 - 0.8 * part,
                "cosine": 0.2 + 0.8 * (1 + math.cos(math.pi * part)) / 2,
                "flat_cosine": 0.2 + 0.8 * (1 + math.cos(math.pi * part)) / 2,
            }
            wanted = curve[schedule]
        assert math.isclose(lr_multiple(step, cfg), wanted, rel_tol=1e-9), step


def test_warmup_longer_than_the_run():
    """Fault 44: no division by zero; the peak is never reached."""
    cfg = Config(warmup_iters=200, max_iters=100)
    assert [lr_multiple(s, cfg) for s in (1, 100)] == [1 / 200, 0.5]
    assert math.isfinite(lr_multiple(200, cfg)) and math.isfinite(lr_multiple(300, cfg))


def test_learning_rates_reach_the_optimizers(tmp_path: Path, flags: Any):
    """Each group has its own peak; what is logged is that of AdamW."""
    values = {"optimizer": "muon", "warmup_iters": 4, "learning_rate": 0.02, "muon_lr": 0.04}
    train.main(flags(tmp_path, max_iters=2, **values))
    adamw, muon = checkpoint.read(tmp_path / "ckpt.pt")["optimizer"]
    assert (adamw["param_groups"][0]["lr"], muon["param_groups"][0]["lr"]) == (0.01, 0.02)
    assert [x["lr"] for x in log(tmp_path) if "loss" in x] == [0.005, 0.01]


def test_no_compiler_is_one_warning(tmp_path: Path, flags: Any, monkeypatch, capsys):
    """Fault 49: --compile where there is no compiler runs all the same, and says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    train.main(flags(tmp_path / "out", max_iters=1, compile=True))
    assert capsys.readouterr().err.count("no compiler") == 1
    assert checkpoint.read(tmp_path / "out" / "ckpt.pt")["step"] == 1


@pytest.mark.parametrize("marks", [False, True])
def test_rows_with_nothing_to_write(tmp_path: Path, flags: Any, capsys: Any, marks: bool):
    """All given: the loss is 0, not 0/0, and the run goes on, with a warning."""
    with CorpusWriter(tmp_path / "given", Symbols(["a"])) as out:
        for split in ("train", "val"):
            mask = {"prompt_mask": np.ones(3, bool)} if marks else {"prompt": 3}
            out.row(split, [0, 0, 0], **mask)
    argv = flags(tmp_path / "out", max_iters=2, dataset="given", data_dir=tmp_path)
    train.main([*argv, "--block_size=3"])
    got = log(tmp_path / "out")
    assert [x["loss"] for x in got if "loss" in x] == [0.0, 0.0]
    assert [x["val_bound"] for x in got if "val_bound" in x] == [0.0]
    assert capsys.readouterr().err.count("is given as a whole, there is nothing to write") == 2


def test_a_resumed_run_takes_the_new_learning_rate(done: Path, flags: Any):
    """The flag of the command line, not the one in the checkpoint."""
    argv = flags(done, max_iters=5, init_from="resume", learning_rate=0.5, lr_schedule="constant")
    train.main([*argv, "--weight_decay=0.25"])
    (group,) = checkpoint.read(done / "ckpt.pt")["optimizer"][0]["param_groups"]
    assert group["lr"] == 0.5 and group["weight_decay"] == 0.25


def test_every_parameter_has_one_optimizer():
    net = Transformer(5, 2, 2, 16, cond_dim=8)
    for optimizer in ("adamw", "muon"):
        cfg = Config(optimizer=optimizer, n_embd=16, n_head=2)
        made = make_optimizers(cfg, net, torch.device("cpu"))
        ids = [id(p) for o in made for g in o.param_groups for p in g["params"]]
        assert sorted(ids) == sorted(id(p) for p in net.parameters())
    shapes = {tuple(p.shape) for p in made[1].param_groups[0]["params"]}
    assert shapes == {(48, 16), (16, 16), (64, 16), (16, 64)}  # matrices of blocks, nothing else


SHAPES = [(48, 16), (16, 16), (64, 16), (16, 64)]  # of the matrices of a block


def muon_runs(*classes: Any, steps: int = 6) -> list[list[torch.Tensor]]:
    """Matrices after some steps: a class per step, with the state of the one before."""
    params = [torch.nn.Parameter(torch.randn(s, generator=generator(0, *s))) for s in SHAPES * 2]
    saved = None
    for step in range(steps):
        optimizer = classes[step % len(classes)](params, lr=0.02, momentum=0.95, weight_decay=0.1)
        if saved is not None:
            optimizer.load_state_dict(saved)
        for i, p in enumerate(params):
            p.grad = torch.randn(p.shape, generator=generator(1, step, i))
        optimizer.step()
        saved = optimizer.state_dict()
    return [p.detach() for p in params]


def test_stacked_muon_is_torchs():
    """Up to the rounding of bfloat16 in products of a stack; either resumes the other."""
    want = muon_runs(torch.optim.Muon)
    for got in (muon_runs(train.StackedMuon), muon_runs(train.StackedMuon, torch.optim.Muon)):
        for p, other in zip(got, want, strict=True):
            torch.testing.assert_close(p, other, rtol=0, atol=6 * 0.02 * 2 * 2**-8)


@pytest.mark.parametrize("clip, factor", [(0.0, 1.0), (1.0, 0.2), (100.0, 1.0)])
def test_gradients_are_scaled_then_clipped(clip: float, factor: float):
    """Sums of norm 30, scale 1/6: means of norm 5, and that is what the clip is about."""
    params = [torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)]
    params[0].grad, params[1].grad = torch.tensor([10.0, 20.0]), torch.tensor([20.0])
    norm = scale_gradients(params, torch.tensor(1 / 6), clip)
    assert math.isclose(norm, 5, rel_tol=1e-5)
    assert torch.allclose(params[0].grad, torch.tensor([10.0, 20.0]) / 6 * factor, rtol=1e-4)
    assert torch.allclose(params[1].grad, torch.tensor([20.0]) / 6 * factor, rtol=1e-4)


def test_average_of_the_weights():
    """a <- d a + (1 - d) p, d = min(0.9, (1 + k) / (10 + k)) with warm-up."""
    for warm, decay in ((True, 3 / 12), (False, 0.9)):
        ema, param = [torch.tensor([1.0])], [torch.tensor([2.0])]
        update_ema(ema, param, 2, Config(ema_decay=0.9, ema_warmup=warm))
        assert math.isclose(ema[0], decay * 1 + (1 - decay) * 2, rel_tol=1e-6)
        assert param[0] == 2


def test_no_average(tmp_path: Path, flags: Any):
    train.main(flags(tmp_path, max_iters=2, ema_decay=0, eval_interval=1))
    assert checkpoint.read(tmp_path / "ckpt.pt")["ema"] is None


@pytest.mark.parametrize("objective", ["masked", "ilm", "ar"])
def test_accumulation_is_one_large_batch(tmp_path: Path, flags: Any, objective: str):
    """Two micro-batches of 4 rows are the same rows as one of 8, and no row comes again before the
    epoch ends: counting micro-batches within a step only would show the first ones for ever. The
    shorter rows come first if they are cut, unless the width of a batch is a part of the text."""
    seen, more = {}, {"objective": objective}
    more |= {"padding": "crop"} if objective == "masked" else {}
    for name, size, accumulate in (("two", 4, 2), ("one", 8, 1)):
        argv = flags(tmp_path, batch_size=size, gradient_accumulation_steps=accumulate, **more)
        job = train.start(*load(Config, argv), train.World(0, 1, torch.device("cpu")))
        rows = []
        real = job.corpus.batch
        job.corpus.batch = lambda split, r, block, rows=rows, real=real: (
            rows.extend(r.tolist()),
            real(split, r, block),
        )[1]
        for _ in range(3):
            train.train_step(job)
        seen[name] = np.array(rows[:24]).reshape(3, 8)  # what comes next may be read already
    assert len(np.unique(seen["one"])) == 24
    for one, two in zip(seen["one"], seen["two"], strict=True):
        if objective == "masked":
            assert list(one) == list(two)
            continue
        lengths = job.corpus.lengths("train", two)
        assert sorted(one) == sorted(two) and lengths[:4].max() <= lengths[4:].min()
        assert len(set(lengths)) > 1 and [r for r in one if r in two[:4]] == list(two[:4])


# ---- what is kept and told ---------------------------------------------------------------------


def test_only_the_best_is_kept_if_asked(tmp_path: Path, flags: Any, monkeypatch):
    """Also after a resume, which goes on from the best and compares with its bound."""
    bounds = iter([3.0, 1.0, 2.0, 1.5, 0.5])
    monkeypatch.setattr(train, "evaluate", lambda _: next(bounds))
    argv = flags(tmp_path, eval_interval=1, always_save_checkpoint=False)
    train.main([*argv, "--max_iters=3"])
    state = checkpoint.read(tmp_path / "ckpt.pt")
    assert (state["step"], state["best"]) == (2, 1.0)
    train.main([*argv, "--max_iters=4", "--init_from=resume"])
    state = checkpoint.read(tmp_path / "ckpt.pt")
    assert (state["step"], state["best"]) == (4, 0.5)
    assert checkpoint.read(tmp_path / "ckpt_prev.pt")["step"] == 2


def test_a_failing_evaluation_loses_nothing(tmp_path: Path, flags: Any, monkeypatch):
    """Saved first."""

    def fail(_: Any):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(train, "evaluate", fail)
    with pytest.raises(RuntimeError):
        train.main(flags(tmp_path, max_iters=3))
    assert checkpoint.read(tmp_path / "ckpt.pt")["step"] == 3


def test_evaluation_uses_the_average_and_puts_the_weights_back(done: Path, flags: Any):
    argv = flags(done, init_from="resume")
    job = train.start(*load(Config, argv), train.World(0, 1, torch.device("cpu")))
    before = {k: v.clone() for k, v in job.net.state_dict().items()}
    bound = train.evaluate(job)
    assert same(dict(job.net.state_dict()), before) and job.net.training
    assert bound == train.evaluate(job)  # fixed rows and noise
    job.net.load_state_dict(job.ema)
    assert train.evaluate(job) == bound
    job.net.load_state_dict(before)
    job.ema = {}
    assert train.evaluate(job) != bound


def test_eval_only(done: Path, flags: Any, capsys):
    before = everything(done)
    train.main(flags(done, init_from="resume", eval_only=True, max_iters=9))
    printed = capsys.readouterr().out
    values = [x["val_bound"] for x in log(done) if x["step"] == 4 and "best" in x]
    assert f"val bound {values[0]:.4f}" in printed
    for name in ("ckpt.pt", "log.jsonl"):
        assert everything(done)[name] == before[name]


def test_lines_for_people(tmp_path: Path, flags: Any, capsys):
    """nanoGPT's prefixes, so that scripts that read them still work."""
    train.main(flags(tmp_path, max_iters=4, log_interval=2, eval_interval=4))
    lines = capsys.readouterr().out.splitlines()
    assert [x[:6] for x in lines if x.startswith("iter ")] == ["iter 2", "iter 4"]
    assert len([x for x in lines if x.startswith("step 4: val bound ")]) == 1
    assert any("parameters on cpu, 1 process(es)" in x for x in lines)


def test_no_socket_is_opened(tmp_path: Path, flags: Any, monkeypatch):
    """Fault 50: nothing talks to anybody unless asked."""

    def refuse(*_: Any):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setitem(sys.modules, "wandb", None)
    train.main(flags(tmp_path, max_iters=2, wandb_log=False))


class Wandb:
    """Stands in for the library; fails where it is told to."""

    def __init__(self, fail: str = "", error: Exception | None = None):
        self.fail, self.error, self.logged, self.settings = fail, error, [], {}
        self.run = types.SimpleNamespace(log=self.log, finish=lambda: None)

    def init(self, **settings: Any) -> Any:
        self.settings = settings
        if self.fail == "init":
            raise self.error
        return self.run

    def log(self, values: dict, step: int) -> None:
        if self.fail == "log":
            raise self.error
        self.logged.append((step, values))


def test_wandb(tmp_path: Path, flags: Any, monkeypatch):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train.main(flags(tmp_path / "name", max_iters=2, wandb_log=True))
    assert fake.settings["project"] == "anyorder" and fake.settings["name"] == "name"
    assert fake.settings["config"]["max_iters"] == 2
    assert [step for step, values in fake.logged if "loss" in values] == [1, 2]
    more = {"max_iters": 1, "wandb_log": True, "wandb_run_name": "x-stage1"}
    more["finetune_suffix"] = "-finetuning"
    for folder, name in (("stage1", "x-stage1"), ("stage1-finetuning", "x-stage1-finetuning")):
        train.main(flags(tmp_path / folder, **more))
        assert fake.settings["name"] == name


@pytest.mark.parametrize(
    "fake",
    [
        None,
        Wandb("init", RuntimeError("no key\nsecond line")),
        Wandb("init", RuntimeError()),
        Wandb("log", ConnectionError("gone")),
    ],
    ids=["missing", "init fails", "init fails without a word", "log fails"],
)
def test_wandb_never_stops_a_run(tmp_path: Path, flags: Any, monkeypatch, capsys, fake: Any):
    """Fault 50: a warning, and the run goes on."""
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train.main(flags(tmp_path, max_iters=3, wandb_log=True))
    assert checkpoint.read(tmp_path / "ckpt.pt")["step"] == 3
    assert sorted(losses(tmp_path)) == [1, 2, 3]
    warned = [x for x in capsys.readouterr().err.splitlines() if "wandb" in x]
    assert len(warned) == 1  # once, not at every step


def test_demo_runs_on_the_finished_checkpoint(tmp_path: Path, flags: Any, monkeypatch):
    ran = []
    monkeypatch.setattr(train, "run_command", ran.append)
    train.main(flags(tmp_path, max_iters=1, demo="sample.py --steps=3"))
    assert ran == [f"sample.py --steps=3 --ckpt={tmp_path / 'ckpt.pt'}"]


def test_training_learns(tmp_path: Path, flags: Any):
    """The bound falls well below log 7 = 1.95, that of an untrained network."""
    values = {"optimizer": "muon", "learning_rate": 0.05, "muon_lr": 0.05, "batch_size": 16}
    values |= {"normalize": True, "time_input": False, "positions": "learned", "ema_decay": 0}
    train.main(flags(tmp_path, max_iters=150, eval_iters=6, log_interval=150, **values))
    (bound,) = [x["val_bound"] for x in log(tmp_path) if "best" in x]
    assert bound < 1.3
