"""Sharded runs: the same losses as whole ones, and checkpoints in parts that any number of
processes can read, that are never half there, and that execute nothing."""

import json
import math
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from launcher import finish, launch_all

import checkpoint
from configurator import UserError
from parallel import convert, fsdp, sharded_checkpoint

slow = pytest.mark.slow
OPTIONS = {
    "n_layer": 2,
    "dropout": 0.1,
    "gradient_accumulation_steps": 4,
    "batch_size": 3,  # an epoch of 40 rows ends within a step
    "warmup_iters": 3,
    "lr_decay_iters": 50,
    "learning_rate": 0.01,
    "weight_decay": 0.1,
    "eval_interval": 5,
    "eval_iters": 3,  # an odd number: processes must still do equally many
    "threads": 1,
}


def told(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def losses(out: Path) -> dict[int, float]:
    got = [(x["step"], x["loss"]) for x in told(out) if "loss" in x]
    assert len(got) == len(dict(got)), "a step was logged twice"
    return dict(got)


def bounds(out: Path) -> list[tuple]:
    return [(x["step"], x["val_bound"], x["best"]) for x in told(out) if "val_bound" in x]


def close(a: Any, b: Any, exact: bool = False) -> bool:
    """Equal up to the rounding of a sum in another order, or to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) if exact else torch.allclose(a, b, rtol=1e-3, atol=2e-4)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k], exact) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(close(x, y, exact) for x, y in zip(a, b, strict=True))
    if isinstance(a, float):
        return a == b or (not exact and math.isclose(a, b, rel_tol=1e-3))
    return a == b


def apart(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Distance of all weights, as a share of their norm."""
    assert a.keys() == b.keys()
    a, b = (torch.cat([x[k].flatten().double() for k in a]) for x in (a, b))
    return float((a - b).norm() / a.norm())


@pytest.fixture(scope="module")
def state(trained: Any) -> dict[str, Any]:
    """A real checkpoint: do not change it."""
    return checkpoint.read(trained() / "ckpt.pt")


def same(a: Any, b: Any) -> bool:
    return close(a, b, exact=True)


# ---- two processes -----------------------------------------------------------------------------

VARIANTS = [
    pytest.param("masked", {"gradient_checkpointing": True}, id="masked-checkpointing"),
    pytest.param("sedd", {}, marks=slow, id="sedd"),
    pytest.param("ilm", {}, marks=slow, id="ilm"),
    pytest.param("masked", {"optimizer": "muon"}, marks=slow, id="masked-muon"),
    pytest.param("bd3", {"ema_decay": 0.0}, marks=slow, id="bd3-plain"),
    pytest.param("ar", {"positions": "learned", "grad_clip": 0.1}, marks=slow, id="ar"),
]


@pytest.mark.parametrize("objective, more", VARIANTS)
def test_parts_have_the_losses_of_a_whole_network(tmp_path: Path, flags: Any, objective, more):
    """Every training loss, gradient norm and bound of ten steps, to 1e-5."""
    options = {"objective": objective, "max_iters": 10, **OPTIONS, **more}
    got = {}
    for parallel in ("ddp", "fsdp"):
        out = tmp_path / parallel
        finish("train.py", *flags(out, parallel=parallel, **options), count=2)
        lines = told(out)
        got[parallel] = [x.get("loss", x.get("val_bound")) for x in lines]
        got[parallel] += [x["grad_norm"] for x in lines if "grad_norm" in x]
    assert len(got["ddp"]) == 22
    # Muon rounds to bfloat16 on its way
    most = 1e-5 if more.get("optimizer") != "muon" else 1e-4
    assert got["fsdp"] == pytest.approx(got["ddp"], rel=most)
    a = checkpoint.read(tmp_path / "ddp/ckpt.pt")
    b = checkpoint.read(tmp_path / "fsdp/ckpt")
    assert apart(a["model"], b["model"]) < 100 * most
    assert not options.get("ema_decay", 1) or apart(a["ema"], b["ema"]) < 100 * most


def test_bfloat16_parts_are_close_to_a_whole_network(tmp_path: Path, flags: Any):
    """The blocks are put together in bfloat16, what a process keeps is float32."""
    got = {}
    for parallel in ("ddp", "fsdp"):
        out = tmp_path / parallel
        values = {"parallel": parallel, "dtype": "bfloat16", "max_iters": 5, **OPTIONS}
        finish("train.py", *flags(out, **values), count=2)
        got[parallel] = losses(out)
    assert got["fsdp"] == pytest.approx(got["ddp"], rel=2e-3)
    assert got["fsdp"] != got["ddp"]
    saved = sharded_checkpoint.Saved(tmp_path / "fsdp/ckpt")
    kinds = {about["dtype"] for about in saved.tensors.values()}
    assert kinds == {"float32"}


def test_each_process_writes_its_half(tmp_path: Path, flags: Any):
    """Nothing but steps is written twice; every large tensor is in two files."""
    more = {"snapshot_interval": 1, "sample_interval": 1, "num_samples": 3}
    flags = flags(tmp_path, parallel="fsdp", max_iters=1, **OPTIONS, **more)
    finish("train.py", *flags, count=2)
    saved = sharded_checkpoint.Saved(tmp_path / "ckpt")
    sizes = [saved.layout["files"][f"__{i}_0.distcp"]["bytes"] for i in (0, 1)]
    assert sizes[1] > 0.85 * sizes[0], sizes
    for name, about in saved.tensors.items():
        files = {chunk[2] for chunk in about["chunks"]}
        assert len(files) == min(2, *about["shape"][:1], 2 if about["shape"] else 1), name
    assert not (tmp_path / "ckpt.pt").exists()
    last, snapshot = (checkpoint.read(tmp_path / name) for name in ("ckpt", "ckpt_000001"))
    assert all(same(last[key], snapshot[key]) for key in ("model", "ema", "optimizer", "step"))
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 3


RESUMES = [
    pytest.param("masked", {}, id="masked"),
    pytest.param("sedd", {"optimizer": "muon"}, id="sedd-muon"),
    pytest.param("ilm", {"ema_decay": 0.0}, id="ilm-plain"),
]


@slow
@pytest.mark.parametrize("objective, more", RESUMES)
def test_resuming_in_parts_is_exact(tmp_path: Path, flags: Any, objective: str, more: dict):
    """SIGKILL, resume, SIGTERM, resume: bit for bit the run that nothing has stopped."""
    options = {"objective": objective, "parallel": "fsdp", **OPTIONS, **more}
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    argv = ["train.py", *flags(parts, max_iters=100_000, **options)]
    job = launch_all(2, *argv, at=(7, signal.SIGKILL))
    assert job[0].wait() == -signal.SIGKILL, job[0].err
    job[1].wait()  # killed as well, or it has missed the other
    assert checkpoint.read(parts / "ckpt")["step"] == 5

    job = launch_all(2, *argv, "--init_from=auto", at=(7, signal.SIGTERM))
    assert [one.wait() for one in job] == [143, 143], job[0].err
    assert checkpoint.read(parts / "ckpt")["step"] == max(losses(parts)) == 8

    finish(*argv, "--max_iters=11", "--init_from=resume", count=2)
    finish("train.py", *flags(whole, max_iters=11, **options), count=2)
    a, b = checkpoint.read(whole / "ckpt"), checkpoint.read(parts / "ckpt")
    for key in ("model", "ema", "optimizer", "step", "best"):
        assert same(a[key], b[key]), key
    assert losses(whole) == losses(parts) and sorted(losses(parts)) == list(range(1, 12))
    assert bounds(whole) == bounds(parts)


@slow
@pytest.mark.parametrize("order", ["1-2-1", "2-1-2"])
def test_from_one_process_to_parts_and_back(tmp_path: Path, flags: Any, order: str):
    """One process, two with a part each, one: the run of one process, up to rounding."""
    options = {"objective": "masked", "parallel": "fsdp", **OPTIONS, "eval_interval": 4}
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    for i, count in enumerate(order.split("-")):
        steps, source = 4 * (i + 1), "resume" if i else "scratch"
        values = flags(parts, max_iters=steps, init_from=source, **options)
        finish("train.py", *values, count=int(count))
        got = fsdp.newest(parts)
        assert got == parts / ("ckpt.pt" if count == "1" else "ckpt")
        assert checkpoint.read(got)["step"] == steps
        assert not (parts / ("ckpt" if count == "1" else "ckpt.pt")).exists()  # it is ckpt_prev
    finish("train.py", *flags(whole, max_iters=12, **options))
    a, b = checkpoint.read(whole / "ckpt.pt"), checkpoint.read(fsdp.newest(parts))
    for key in ("model", "ema", "optimizer", "step", "best"):
        assert close(a[key], b[key]), key
    assert losses(parts) == pytest.approx(losses(whole), rel=1e-4)


@slow
def test_sampling_and_evaluating_a_folder(tmp_path: Path, flags: Any, run_cli: Any):
    """A sharded run is evaluated in its own job and afterwards, and sampled from."""
    values = {"parallel": "fsdp", "max_iters": 5, "objective": "masked", **OPTIONS}
    finish("train.py", *flags(tmp_path / "a", **values), count=2)
    bound = bounds(tmp_path / "a")[-1][1]
    again = flags(tmp_path / "a", eval_only=True, init_from="resume", **values)
    for count in (1, 2):
        assert f"val bound {bound:.4f}" in finish("train.py", *again, count=count)
    one = checkpoint.load(str(tmp_path / "a/ckpt"))
    assert one.step == 5 and not one.net.training
    result = run_cli("sample.py", f"--ckpt={tmp_path / 'a/ckpt'}", "--num_samples=2")
    assert result.returncode == 0, result.stderr


# ---- torchrun ----------------------------------------------------------------------------------


def torchrun(*argv: Any, env: Any, **more: Any) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, argv)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=env(**more), **pipes)


def workers_of(pid: int) -> dict[int, int]:
    """Rank -> process id of the workers that a torchrun has now."""
    got = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        try:
            around = Path(f"/proc/{child}/environ").read_bytes().decode().split("\0")
        except OSError:  # it has just ended
            continue
        ranks = [x[5:] for x in around if x.startswith("RANK=")]
        if ranks:
            got[int(ranks[0])] = int(child)
    return got


@slow
@pytest.mark.parametrize("parallel, rank", [("fsdp", 1), ("ddp", 0)])
def test_a_killed_worker_is_started_again(tmp_path: Path, flags, helpers, parallel, rank):
    """torchrun --max-restarts with --init_from=auto: SIGKILL of one process costs the steps since
    the last save, which are done again; the result is that of a run that nothing has stopped."""
    options = {**OPTIONS, "objective": "masked", "parallel": parallel, "eval_interval": 10}
    out, whole, script = tmp_path / "out", tmp_path / "whole", helpers.repo / "train.py"
    values = flags(out, max_iters=150, init_from="auto", patience=60, **options)
    how = ["--standalone", "--nproc_per_node=2", "--max-restarts=5", "--monitor-interval=0.1"]
    job = torchrun(*how, script, *values, env=helpers.env)
    try:
        end, before = time.monotonic() + 120, {}
        while not (out / "log.jsonl").exists() or max(losses(out), default=0) < 15:
            assert job.poll() is None and time.monotonic() < end, job.communicate()[0]
            before = workers_of(job.pid)
            time.sleep(0.05)
        os.kill(before[rank], signal.SIGKILL)
        out_text = job.communicate(timeout=180)[0]
    finally:
        job.kill()
    assert job.returncode == 0, out_text
    assert "exitcode: -9" in out_text, out_text
    finish("train.py", *flags(whole, max_iters=150, **options), count=2)
    a, b = checkpoint.read(fsdp.newest(whole)), checkpoint.read(fsdp.newest(out))
    for key in ("model", "ema", "optimizer", "step"):
        assert same(a[key], b[key]), key
    assert losses(out) == losses(whole) and len(losses(out)) == 150


@slow
def test_two_nodes_are_one_job(tmp_path: Path, flags: Any, helpers: Any):
    """Two torchrun that meet at a rendezvous, with a process each: the losses of one with two."""
    import socket

    options = {**OPTIONS, "objective": "masked", "parallel": "fsdp", "max_iters": 10}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = ["--nnodes=2", "--nproc_per_node=1", "--rdzv_backend=c10d", "--rdzv_id=test"]
    how += [f"--rdzv_endpoint=localhost:{port}", "--local-addr=localhost"]
    values = flags(tmp_path / "two", **options)
    nodes = [torchrun(*how, helpers.repo / "train.py", *values, env=helpers.env) for _ in "ab"]
    try:
        texts = [node.communicate(timeout=120)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], texts
    finish("train.py", *flags(tmp_path / "one", **options), count=2)
    assert losses(tmp_path / "two") == losses(tmp_path / "one")
    assert bounds(tmp_path / "two") == bounds(tmp_path / "one")


# ---- the folder --------------------------------------------------------------------------------


def test_both_ways_loses_no_bit(tmp_path: Path, trained: Any, run_cli: Any, state: dict):
    """ckpt.pt -> folder -> ckpt.pt by the command; neither overwrites anything."""
    convert.main([f"--source={trained() / 'ckpt.pt'}", f"--out={tmp_path / 'ckpt'}"])
    convert.main([f"--source={tmp_path / 'ckpt'}", f"--out={tmp_path / 'ckpt.pt'}"])
    back = checkpoint.read(tmp_path / "ckpt.pt")
    assert back.keys() == state.keys()
    for key in state:
        assert same(state[key], back[key]), key
    with pytest.raises(UserError, match="exists already"):
        convert.main([f"--source={trained() / 'ckpt.pt'}", f"--out={tmp_path / 'ckpt'}"])


def test_a_save_is_complete_or_never_happened(tmp_path: Path, state: dict):
    """Whatever is missing layout.json is not seen, and is cleared by the next save; two stay."""
    folder = tmp_path / "ckpt"
    for step in (1, 2, 3):
        sharded_checkpoint.save({**state, "step": step}, folder)
    assert [p.name for p in fsdp.saves(folder)] == ["000002", "000003"]
    assert sorted(p.name for p in folder.iterdir()) == ["000002", "000003"]
    shutil.copytree(folder / "000003", folder / "000004")
    (folder / "000004/layout.json").rename(folder / "000004/layout.json.tmp")
    assert sharded_checkpoint.read(folder)["step"] == 3
    sharded_checkpoint.save({**state, "step": 4}, folder)
    assert sharded_checkpoint.read(folder)["step"] == 4
    assert sorted(p.name for p in folder.iterdir()) == ["000003", "000004"]
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize("broken", ["write_data", "finish"])
def test_a_failing_save_leaves_the_one_before(tmp_path: Path, state: dict, monkeypatch, broken):
    folder = tmp_path / "ckpt"
    sharded_checkpoint.save({**state, "step": 1}, folder)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sharded_checkpoint.Writer, broken, full)
    with pytest.raises(UserError, match=r"No space left.*the checkpoint before it is intact"):
        sharded_checkpoint.save({**state, "step": 2}, folder)
    assert [p.name for p in folder.iterdir()] == ["000001"]
    assert sharded_checkpoint.read(folder)["step"] == 1


@pytest.mark.parametrize("name", ["__0_0.distcp", "head.pt", "layout.json"])
def test_damage_is_refused(tmp_path: Path, state: dict, name: str):
    """A flipped bit anywhere, or bytes that are missing: one line that names the file, and the
    save before it."""
    folder = tmp_path / "ckpt"
    for step in (1, 2):
        sharded_checkpoint.save({**state, "step": step}, folder)
    path = folder / "000002" / name
    good = path.read_bytes()
    for k in range(0, len(good), max(1, len(good) // 40)):
        path.write_bytes(good[:k] + bytes([good[k] ^ 64]) + good[k + 1 :])
        try:
            sharded_checkpoint.read(folder)
        except UserError as e:
            assert str(path.parent) in str(e) and "\n" not in str(e)
            assert name == "layout.json" or f"the one before it is {folder / '000001'}" in str(e)
        else:
            raise AssertionError(f"byte {k} of {name} is another, and nobody minds")
    for short in (b"", good[: len(good) // 2], good[:-2]):
        path.write_bytes(short)
        with pytest.raises(UserError, match="corrupt"):
            sharded_checkpoint.read(folder)
    path.unlink()
    if name == "layout.json":
        assert sharded_checkpoint.read(folder)["step"] == 1
    else:
        with pytest.raises(UserError, match="corrupt"):
            sharded_checkpoint.read(folder)


def write_layout(path: Path, layout: dict[str, Any]) -> None:
    """With the right checksum."""
    layout.pop("crc32", None)
    path.write_text(json.dumps({**layout, "crc32": sharded_checkpoint.crc_of(layout)}))


class Payload:
    """What a pickle may do."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("name", ["__0_0.distcp", "head.pt", ".metadata"])
def test_nothing_in_it_is_executed(tmp_path: Path, state: dict, name: str):
    """A pickle in any place, with the right checksum; DCP's own .metadata is not looked at."""
    folder, marker = tmp_path / "ckpt", tmp_path / "executed"
    sharded_checkpoint.save(state, folder)
    save = folder / "000001"
    layout = json.loads((save / "layout.json").read_text())
    if name == ".metadata":
        (save / name).write_bytes(pickle.dumps(Payload(marker)))
        assert sharded_checkpoint.read(folder)["step"] == state["step"]
    else:
        torch.save(Payload(marker), save / name)
        about = sharded_checkpoint.fingerprint(save / name)
        layout["files"][name] = about
        if name != "head.pt":
            size = about["bytes"]
            for tensor in layout["tensors"].values():
                for chunk in tensor["chunks"]:
                    chunk[3:] = [0, size]
        write_layout(save / "layout.json", layout)
        with pytest.raises(UserError):
            sharded_checkpoint.read(folder)
    assert not marker.exists()


def test_a_layout_stays_in_its_folder(tmp_path: Path, state: dict):
    """Names with a path, parts that overlap an edge, dtypes that are none: refused."""
    folder = tmp_path / "ckpt"
    sharded_checkpoint.save(state, folder)
    path = folder / "000001/layout.json"
    good = path.read_text()
    first = next(n for n in json.loads(good)["tensors"] if n.startswith("model/"))

    def spoil(change: Any) -> None:
        layout = json.loads(good)
        change(layout, layout["tensors"][first])
        write_layout(path, layout)
        with pytest.raises(UserError, match=r"layout\.json"):
            sharded_checkpoint.read(folder)

    spoil(lambda x, t: x["files"].update({"../../x": x["files"]["head.pt"]}))
    spoil(lambda x, t: t["chunks"][0].__setitem__(2, "../../x"))
    spoil(lambda x, t: t["chunks"][0].__setitem__(3, 10**9))
    spoil(lambda x, t: t["chunks"].clear())
    spoil(lambda x, t: t["shape"].__setitem__(0, 10**9))
    spoil(lambda x, t: t.update(dtype="load"))
    spoil(lambda x, t: x.update(format=99))
    spoil(lambda x, t: x.pop("files"))


def test_which_checkpoint_is_the_newest(tmp_path: Path, state: dict):
    assert fsdp.newest(tmp_path) is None
    checkpoint.save(state, tmp_path / "ckpt.pt")
    assert fsdp.newest(tmp_path) == tmp_path / "ckpt.pt"
    time.sleep(0.02)
    sharded_checkpoint.save(state, tmp_path / "ckpt")  # killed before what follows
    assert fsdp.newest(tmp_path) == tmp_path / "ckpt"
    fsdp.retire_other(tmp_path / "ckpt")
    assert fsdp.newest(tmp_path) == tmp_path / "ckpt"
    assert (tmp_path / "ckpt_prev.pt").exists() and not (tmp_path / "ckpt.pt").exists()
    checkpoint.save(state, tmp_path / "ckpt.pt")
    fsdp.retire_other(tmp_path / "ckpt.pt")
    assert fsdp.newest(tmp_path) == tmp_path / "ckpt.pt" and fsdp.saves(tmp_path / "ckpt_prev")
