"""The compiled network, as a GPU has it by itself: the numbers of the uncompiled one, and a number
of graphs that does not grow with steps, layers or tokens. Most tests compile with `aot_eager`,
which traces and guards as the default does but builds no kernels, so that they take seconds."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

import model
import sample
import train
from checkpoint import OBJECTIVES, build_network, build_objective
from configurator import Config, UserError
from corpus import Batch
from model import bucket, compile_network
from objective import SampleOptions, generator

SPECIALS = {"bos": 7, "eos": 8, "pad": 9, "mask": 10}
B, T = 8, 40
needs_compiler = pytest.mark.skipif(
    not model.wants_compile("true", torch.device("cpu")), reason="no C++ compiler"
)


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch):
    """Nothing compiled before, and the plain losses, as on a GPU."""
    monkeypatch.setattr(model, "fuses_cross_entropy", lambda h: False)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def made(name: str, **options: Any) -> tuple[Any, Any]:
    """Objective and a network with random weights."""
    options |= {"noise": "geometric"} if name == "idlm" else {}
    options |= {"block_length": 4} if name == "bd3" else {}
    values = {"n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8, **options}
    cfg = Config(objective=name, block_size=T, **values)
    objective = build_objective(cfg, {"vocab_size": 11, "specials": SPECIALS})
    net = build_network(cfg, objective)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=generator(2, i)))
    return objective, net


def batch(seed: int) -> Batch:
    """Rows of 20 to 40 tokens."""
    rng = generator(3, seed)
    ids, length = (torch.randint(*ends, generator=rng) for ends in ((7, (B, T)), (20, T, (B,))))
    place = torch.arange(T)
    ids = ids.masked_fill(place == 0, 7).masked_fill(place >= length[:, None], 9)
    return Batch(ids, place.expand(B, T) < 2, length)


def gradients(objective: Any, net: Any, seed: int) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    loss = objective.loss(net, objective.corrupt(batch(seed), generator(4, seed)))
    loss.sum.backward()
    got = {k: p.grad for k, p in net.named_parameters() if p.grad is not None}
    return {"loss": loss.sum.detach(), **loss.metrics, **got}


def check(name: str, steps: int, **options: Any) -> None:
    """Compiled and not, the same losses, metrics and gradients. The network is one graph, and a
    second one from the step on in which rows have another width; the loss likewise, and a readout
    is a third."""
    objective, plain = made(name, **options)
    compiled = made(name, **options)[1]
    compile_network(compiled)
    assert list(compiled.state_dict()) == list(plain.state_dict())
    for seed in range(steps):
        ours, other = (gradients(objective, net, seed) for net in (plain, compiled))
        assert ours.keys() == other.keys()
        scale = max(float(x.abs().max()) for k, x in ours.items() if "." in k)
        for k, x in ours.items():
            torch.testing.assert_close(
                other[k], x, rtol=1e-4, atol=1e-5 * scale, msg=lambda m, k=k: f"{k}: {m}"
            )
    assert 2 <= graphs() <= 5


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "xlnet"])
def test_a_compiled_network_computes_the_same(name, fast):
    """Ten batches of which no two have equally many scored places."""
    check(name, 10)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "xlnet"])
def test_compiled_kernels_compute_the_same(name):
    check(name, 10)


def test_recomputed_blocks_compile(fast):
    objective, plain = made("masked")
    compiled = made("masked")[1]
    compiled.gradient_checkpointing = True
    compile_network(compiled)
    ours, other = (gradients(objective, net, 0) for net in (plain, compiled))
    torch.testing.assert_close(other, ours, rtol=1e-4, atol=1e-5)


def test_many_chunks_are_not_compiled(fast, monkeypatch):
    """Where one graph would need too much memory, chunks take turns as they do uncompiled."""
    monkeypatch.setattr(model, "chunk_rows", lambda *_: 16)
    for name in ("masked", "ilm"):
        objective, plain = made(name)
        compiled = made(name)[1]
        compile_network(compiled)
        ours, other = (gradients(objective, net, 0) for net in (plain, compiled))
        torch.testing.assert_close(other, ours, rtol=1e-4, atol=1e-4)


def test_buckets_are_few():
    """Above the number, a multiple of 64, and not far above it."""
    for rows in (1, 63, 64, 65, 1000, 5000, 16384, 100_001):
        assert rows < bucket(rows) <= rows + max(64, rows / 32) and bucket(rows) % 64 == 0
    assert len({bucket(rows) for rows in range(8192, 16384)}) <= 33


# ---- the command -------------------------------------------------------------------------------


@pytest.mark.slow
@needs_compiler
def test_a_compiled_run_is_the_uncompiled_one(tmp_path, flags, monkeypatch, capsys):
    """train.py --compile, with an evaluation, a checkpoint, and a second half that resumes it."""
    monkeypatch.setattr(train, "gemm_peak", lambda *_: 1e12)
    runs = {}
    for choice in ("False", "True"):
        for goes_on in ({"max_iters": 2}, {"max_iters": 4, "init_from": "resume"}):
            out = tmp_path / choice
            train.main(flags(out, objective="masked", compile=choice, demo="", **goes_on))
        runs[choice] = torch.load(out / "ckpt.pt", weights_only=True)["model"]
    for k, x in runs["False"].items():
        torch.testing.assert_close(runs["True"][k], x, rtol=1e-3, atol=1e-5)
    assert graphs() > 0


# ---- sampling ----------------------------------------------------------------------------------


@needs_compiler
def test_sample_compiles(trained, fast, capsys):
    """The same texts, by one graph for what is given and one for what is written."""
    ckpt = trained(objective="ar", time_input=False) / "ckpt.pt"
    command = [f"--ckpt={ckpt}", "--num_samples=3", "--device=cpu", "--prompt=ab"]
    sample.main(command)
    plain = capsys.readouterr().out.splitlines()[:3]
    sample.main([*command, "--compile=True"])
    assert capsys.readouterr().out.splitlines()[:3] == plain and graphs() == 2
    block = trained(objective="bd3", block_length=4) / "ckpt.pt"
    with pytest.raises(UserError, match="window moves"):
        sample.main([f"--ckpt={block}", "--device=cpu", "--compile=True"])


def written(net: Any, objective: Any, width: int, rows: int = 3, prompt: int = 4) -> Tensor:
    ids = torch.randint(7, (rows, width), generator=generator(5))
    given = torch.arange(width).expand(rows, width) < prompt
    rng = generator(6)
    *_, last = objective.sample(net.eval(), ids.masked_fill(~given, 0), given, rng, SampleOptions())
    return last.ids


def decoding_graphs(layers: int, tokens: int) -> int:
    objective, net = made("ar", n_layer=layers)
    ours = written(net, objective, tokens + 4)
    torch._dynamo.reset()
    counters.clear()
    compile_network(net)
    assert torch.equal(written(net, objective, tokens + 4), ours)
    return graphs()


def test_decoding_compiles_one_graph_whatever_the_layers_and_tokens(fast):
    """One for the prompt, one for all tokens behind it."""
    assert decoding_graphs(2, 32) == decoding_graphs(2, 64) == decoding_graphs(6, 64) == 2


def test_decoding_another_prompt_compiles_once_more(fast):
    """A prompt of another length makes the graph of prompts one for all lengths."""
    objective, net = made("ar")
    compile_network(net)
    for prompt in (4, 7, 9, 1, 12):
        written(net, objective, 20, prompt=prompt)
    assert graphs() == 3


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting", "confidence"])
def test_masked_samplers_compile(sampler, fast):
    objective, net = made("masked")
    ids = torch.zeros(4, T, dtype=torch.long)
    options, ours = SampleOptions(steps=8, sampler=sampler), []
    for _ in range(2):
        *_, last = objective.sample(net.eval(), ids, ids < 0, generator(6), options)
        ours.append(last.ids)
        compile_network(net)
    assert torch.equal(*ours) and 0 < graphs() <= 3
