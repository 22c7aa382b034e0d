"""bench/gpu.py runs on a CPU, and how many operators a compiled step starts: what can be held of a
GPU's speed without one."""

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch._inductor.config

import model
import train
from bench import gpu
from bench.gpu import SHAPES, GpuConfig, Rows, Shape, operators, training_state
from configurator import Config

ROOT = Path(__file__).resolve().parent.parent.parent
CPU = torch.device("cpu")


def test_the_command_prints_and_writes_its_table(tmp_path):
    out = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "bench.gpu", "--device=cpu", "--compile=False", "--steps=1"]
    rows = "--rows=losses,textbook,train,sample"
    done = subprocess.run([*command, rows, f"--json={out}"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    table, text = json.loads(out.read_text()), done.stdout.decode()
    for name, row in table.items():
        assert name == "machine" or name in text
        if name.startswith(("train", "textbook")):
            assert row["ms"] > 0 and row["tokens_per_s"] > 0 and row["operators"] > 20
    assert table["losses"]["equal"] and table["losses"]["ilm"] == 0
    assert sum(name.startswith("train") for name in table) == len(SHAPES) == 6
    assert sum(name.startswith("sample") for name in table) == 3


@pytest.mark.slow
def test_a_resumed_run_is_compared():
    assert Rows(GpuConfig(device="cpu"), CPU, False).resume() == {"equal": True, "difference": 0.0}


def test_rows_are_skipped_when_time_is_up(capsys):
    gpu.main(["--device=cpu", "--compile=False", "--steps=1", "--minutes=0.0001", "--rows=train"])
    assert capsys.readouterr().out.count("not begun after") >= len(SHAPES) - 1


# Operators of a step with one layer, compiled, with the losses of a GPU: measured with torch 2.13.
# docs/performance.md has them for twelve, and from before network and loss were one graph each
MOST = {"demo": 270, "stars": 155, "mdlm": 100}  # measured: 254, 144, 92


@pytest.mark.parametrize("name", ["demo", "mdlm", pytest.param("stars", marks=pytest.mark.slow)])
def test_operators_of_a_step(name, monkeypatch):
    """One layer, as wide as is quick: the number depends on neither width nor rows."""
    monkeypatch.setattr(model, "fuses_cross_entropy", lambda h: False)
    torch._dynamo.reset()
    small = {"n_layer": 1, "n_head": 2, "n_embd": 32, "batch_size": 8, "block_size": 36}
    options = SHAPES[name].options | small
    state = training_state(
        Config(**options, lr_schedule="constant"), Shape(104, 36, options), CPU, True
    )
    noisy = state.noisy(0)
    monkeypatch.setattr(state.prefetcher, "get", lambda *numbers: noisy)
    step = partial(train.train_step, state)
    with torch._inductor.config.patch("cpp.enable_kernel_profile", True):
        step()
        step()
        got = operators(step, CPU)
    assert 50 < got <= MOST[name], got
