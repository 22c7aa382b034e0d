"""What large runs need: the table against the network itself, and reading a corpus of any size."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from checkpoint import build_network, build_objective
from configurator import Config
from corpus import fingerprint
from parallel import scale
from tokenizer import Bytes

CHECKPOINTED = {"time_input": False, "gradient_checkpointing": True}
VARIANTS = [{}, {"time_input": False}, {"time_input": False, "positions": "learned"}]


@pytest.mark.parametrize("more", [*VARIANTS, CHECKPOINTED])
def test_bytes_kept_for_the_backward_pass(more: dict):
    """All that autograd holds on to, per layer and token, in float32: the rule to 2 %, which is
    for normalisers and modulations."""
    shape = {"n_head": 4, "n_embd": 128, "block_size": 64, "cond_dim": 8}
    kept = []
    for layers in (1, 3):
        cfg = Config(objective="sedd", n_layer=layers, **shape, **more)
        net = build_network(cfg, build_objective(cfg, {"vocab_size": 100, "specials": {}}))
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}
        seen: dict[int, Any] = {}

        def keep(x: torch.Tensor, own=own, seen=seen) -> torch.Tensor:
            if (at := x.untyped_storage().data_ptr()) not in own:
                seen[at] = x  # alive, so that no other gets its address
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            time = torch.ones(4) if cfg.time_input else None
            net.train().features(torch.zeros(4, 64, dtype=torch.long), time)
        kept.append(sum(x.untyped_storage().nbytes() for x in seen.values()))
    each = (kept[1] - kept[0]) / 2 / (4 * 64)
    rule = 4 * 128 if cfg.gradient_checkpointing else scale.block_bytes(cfg, low=4)
    # time: besides, 6 vectors of modulation for each row of 64 tokens
    assert each == pytest.approx(rule, rel=0.02)


def test_sizes_are_those_of_the_network():
    """By hand: 12 C^2 + biases in a block, embeddings and head outside; the usual 6 N of FLOPs."""
    layers, heads, C = scale.SHAPES["7B"]
    cfg = Config(objective="masked", time_input=False, n_layer=layers, n_head=heads, n_embd=C)
    n, V = scale.sizes(cfg), scale.VOCABULARY["vocab_size"] + 1
    assert n.block == 12 * C**2 + 5 * C + 2 * C
    assert n.root == 2 * V * C + V + C and n.head == V * C
    assert n.all == layers * n.block + n.root and 6.8e9 < n.all < 6.9e9
    assert n.flops == pytest.approx(
        6 * (n.all - V * C) + 12 * layers * C * cfg.block_size, rel=1e-3
    )


def test_the_table(helpers: Any):
    """The page says what the command prints; a line of it by hand."""
    values = scale.table(scale.ScaleConfig())
    page = (helpers.repo / "docs/scale.md").read_text()
    assert values in page
    cells = next(line for line in values.splitlines() if line.startswith("| 7B | 64 |")).split(
        " | "
    )
    P = 32 * (12 * 4096**2 + 7 * 4096) + 2 * 50258 * 4096 + 50258 + 4096
    assert cells[3] == f"{20 * P / 64 / 1e9:.1f}" and cells[10].strip(" |") == f"{16 * P / 1e9:.1f}"
    flops = 6 * (32 * 12 * 4096**2 + 50258 * 4096) + 12 * 32 * 4096 * 1024
    assert cells[8] == f"{64 * 0.4 * 989e12 / flops:,.0f}"
    assert cells[9] == f"{1e12 / (64 * 0.4 * 989e12 / flops) / 86400:,.0f}"


# ---- a corpus of 10^11 tokens ------------------------------------------------------------------

READ = """
import sys
from pathlib import Path
import numpy as np
import torch  # not counted
from corpus import Corpus, shuffled

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(x for x in lines if x.startswith("VmHWM")).split()[1]) // 1024

before = peak()
corpus = Corpus(sys.argv[1])
corpus.require_block(1024)
opened = peak()
size = corpus.windows("train", 1024)
rows = np.concatenate([shuffled(np.arange(k, k + 1), size, 1) for k in range(300)])
for k in range(300):
    batch = corpus.batch("train", rows[k : k + 1], 1024)
assert batch.ids.shape == (1, 1024)
print(size, len(set(rows.tolist())), rows.max(), opened - before, peak() - before)
"""


@pytest.fixture
def vast(tmp_path: Path) -> Path:
    """A corpus with 200 GB of train.bin, none of which is on the disk."""
    size = 200_000_000_000
    for split, bytes_ in (("train", size), ("val", 1_000_000)):
        with open(tmp_path / f"{split}.bin", "wb") as file:
            try:
                os.truncate(file.fileno(), bytes_)
            except OSError as e:
                pytest.skip(f"no file of 200 GB here: {e}")
    if (tmp_path / "train.bin").stat().st_blocks > 1000:
        pytest.skip("this file system has no sparse files")
    tokenizer = Bytes()
    meta = {
        "format": 1,
        "dtype": "uint16",
        "vocab_size": tokenizer.vocab_size,
        "specials": tokenizer.specials,
        "tokenizer": tokenizer.spec(),
        "splits": {"train": {"tokens": size // 2}, "val": {"tokens": 500_000}},
        "files": {
            "train.bin": {"bytes": size, "crc32": 0},
            "val.bin": fingerprint(tmp_path / "val.bin"),
        },
    }
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    return tmp_path


def test_a_vast_corpus_takes_no_memory(vast: Path, helpers: Any):
    """Opening it, the order of its 10^11 windows, and 300 batches from all over it."""
    command = [sys.executable, "-c", READ, str(vast)]
    done = subprocess.run(
        command, cwd=helpers.repo, env=helpers.env(), capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    windows, different, last, opened, read = map(int, done.stdout.split())
    assert windows == 100_000_000_000 - 1023
    assert different == 300 and last > 0.95 * windows
    assert opened < 100 and read < 150, f"{opened} MB to open, {read} MB after 300 batches"
