"""The lessons run, from anywhere and in little time, and what they say is true."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from corpus import Batch
from diffusion import LogLinear, Masked, Noisy
from objective import generator

LESSONS = Path(__file__).resolve().parent.parent.parent / "lessons"
NAMES = sorted(path.stem for path in LESSONS.glob("*.py"))


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(LESSONS), *sys.path])


def test_each_is_short_and_teaches_before_it_computes():
    assert len(NAMES) == 5
    for name in NAMES:
        text = (LESSONS / f"{name}.py").read_text()
        assert len(text.splitlines()) <= (150 if name == "whole_idea" else 110), name
        assert text.startswith('"""Lesson ') and "What to expect" in text.split('"""')[1], name
        assert f"python lessons/{name}.py" in text.split('"""')[1], name


def run(name: str, capsys: Any, *argv: str) -> str:
    __import__(name).main(list(argv))
    return capsys.readouterr().out


def numbers(pattern: str, text: str) -> list[float]:
    got = re.search(pattern, text)
    assert got, (pattern, text)
    return [float(x) for x in got.groups()]


# ---- the whole idea ----------------------------------------------------------------------------


class Adapted:
    """The network of the lesson, as our objectives call one."""

    time = None

    def __init__(self, net: Any):
        self.net, self.head = net, net.head

    def features(self, ids: torch.Tensor, time: Any = None) -> torch.Tensor:
        return self.net.features(ids)


def whole_idea() -> tuple[Any, Any, torch.Tensor, Masked]:
    lesson = __import__("whole_idea")
    torch.manual_seed(1)
    net, x0 = lesson.Network(), torch.stack([lesson.encode(text) for text in lesson.TEXTS])
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return lesson, net, x0, Masked(lesson.V - 1, None, LogLinear())


def test_the_whole_idea_has_the_loss_of_masked_diffusion():
    """Same draws, same loss and gradients."""
    lesson, net, x0, objective = whole_idea()
    t = lesson.times(len(x0))
    assert sorted((t * len(x0)).ceil().long().tolist()) == [*range(1, len(x0) + 1)]
    xt = lesson.corrupt(x0, t, torch.rand(x0.shape))
    ours = lesson.loss(net, x0, xt, t).sum()
    noisy = Noisy(x0, xt, xt == lesson.MASK, objective.noise.total(t), objective.noise.weight(t))
    theirs = objective.loss(Adapted(net), noisy).sum
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    for a, b in zip(
        *(torch.autograd.grad(x, [*net.parameters()]) for x in (ours, theirs)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_the_whole_idea_has_the_bound_of_masked_diffusion():
    lesson, net, x0, objective = whole_idea()
    mean, error = lesson.bound(net, x0, 400)
    batch = Batch(x0, torch.zeros_like(x0, dtype=torch.bool), torch.full((len(x0),), lesson.T))
    bits = objective.bound(Adapted(net), batch, generator(0), 100) / math.log(2)
    assert abs(mean - float(bits.mean())) < 4 * error + 0.01 * mean / 4
    assert error < mean / 100


def test_the_whole_idea_keeps_what_is_given():
    lesson, net, x0, _ = whole_idea()
    xt = lesson.corrupt(x0, torch.full((len(x0),), 0.5), torch.rand(x0.shape))
    written = lesson.sample(net, xt)
    assert not (written == lesson.MASK).any()
    assert torch.equal(written[xt != lesson.MASK], x0[xt != lesson.MASK])


@pytest.mark.slow
def test_the_whole_idea_learns():
    """In 90 seconds on one thread it knows most sums, and the bound is above the entropy."""
    command, one = [sys.executable, str(LESSONS / "whole_idea.py")], {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=os.environ | one, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert numbers(r"trained in (\d+) s", result.stdout)[0] < 80
    [entropy] = numbers(r"entropy (\S+) bits", result.stdout)
    bound, error = numbers(r"step 5000: bound (\S+) \+- (\S+) bits", result.stdout)
    assert entropy - 3 * error < bound < entropy + 1
    assert numbers(r"(\S+)% of 1000 samples are true", result.stdout)[0] > 60


# ---- three tokens ------------------------------------------------------------------------------


def test_three_tokens_from_anywhere(run_cli, tmp_path):
    """Exact ways are at the distance that chance explains, others are not, and all places in one
    call are the product of the marginals."""
    result = run_cli("lessons/three_tokens.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    [noise] = numbers(r"(\d\.\d+) of it by chance", result.stdout)
    rows = dict(re.findall(r"^  (\S.*?)  +(\d\.\d{4})$", result.stdout, re.M))
    far = {name: float(x) for name, x in rows.items()}
    assert far["one place at a time, random order"] < 1.6 * noise
    assert far["one at a time, surest place first"] < 1.6 * noise
    product = far["product of the marginals, computed"]
    assert far["all places in one call"] == pytest.approx(product, abs=noise)
    assert 5 * noise < far["two calls, random order"] < product
    assert far["one at a time, temperature 0.5"] > 5 * noise
    entropy, bound = numbers(r"texts\s+(\S+) nats\nmean bound\s+(\S+) nats", result.stdout)
    assert bound == pytest.approx(entropy, abs=0.02)


def test_plot_and_bad_flags(run_cli, assert_refused, tmp_path, capsys, monkeypatch):
    import three_tokens

    monkeypatch.setattr(three_tokens, "SAMPLES", 50)
    assert_refused(run_cli("lessons/three_tokens.py", "--plott=a.png"), "did you mean plot?")
    pytest.importorskip("matplotlib").use("agg")
    run("three_tokens", capsys, f"--plot={tmp_path / 'three.png'}")
    assert (tmp_path / "three.png").read_bytes().startswith(b"\x89PNG")


# ---- float32 -----------------------------------------------------------------------------------


def test_law_of_the_race_by_drawing():
    """On a coarse grid: rare outcomes win as often as the geometric series says, and not as often
    as their weights."""
    import float32_noise

    bits, draws = 8, 2_000_000
    rare = torch.tensor([0.0005, 0.002, 0.01, 0.03], dtype=torch.float64)
    weights = torch.cat([1 - rare.sum(0, keepdim=True), rare])
    rng = torch.Generator().manual_seed(0)
    # 0, which nobody wins with, is too frequent on so coarse a grid to be left in
    u = torch.randint(1, 2**bits, (draws, 5), generator=rng).float() / 2**bits
    got = torch.bincount((weights.float().log() - (-u.log()).log()).argmax(1), minlength=5)
    want = float32_noise.wins(rare, 2.0**-bits)
    error = (want / draws).sqrt()
    assert ((got[1:] / draws - want).abs() < 5 * error + 0.05 * want).all(), (got, want)
    assert want[0] < 0.2 * rare[0] and want[3] > 0.9 * rare[3]


def test_law_is_the_weight_on_a_fine_grid():
    import float32_noise

    some = float32_noise.ZIPF[:100]
    assert torch.allclose(float32_noise.wins(some, 1e-14), some, rtol=1e-6)


def test_float32_noise(monkeypatch, capsys):
    import float32_noise

    monkeypatch.setattr(float32_noise, "STEPS", (1, 8, 16))
    monkeypatch.setattr(float32_noise, "DRAWS", 400)
    monkeypatch.setattr(float32_noise, "MEASURED", 4)
    text = run("float32_noise", capsys)
    got = [float(x) for x in re.findall(r"steps: entropy (\d\.\d+)", text)]
    [true] = numbers(r"Zipf's law: entropy (\S+) nats", text)
    assert true > got[0] > got[1] > got[2] > 7
    mean, error = numbers(r"float64, drawn: (\S+) \+- (\S+) nats", text)
    assert abs(mean - true) < 4 * error


# ---- those that train --------------------------------------------------------------------------


def test_five_samplers(monkeypatch, capsys):
    import five_samplers

    monkeypatch.setattr(five_samplers, "SAMPLES", 3)
    text = run("five_samplers", capsys, "--steps=3")
    assert "3 texts by each sampler, after 3 steps" in text
    rows = re.findall(r"(\d+\.\d)  +\d+\.\d%  +-?\d\.\d\d nats", text)
    assert len(rows) == 5 and rows[0] == rows[1] == "4.0" and rows[3] == "9.0"


def test_five_samplers_wants_a_masked_model(trained, run_cli, assert_refused):
    ckpt = trained(objective="ilm", time_input=False) / "ckpt.pt"
    result = run_cli("lessons/five_samplers.py", f"--ckpt={ckpt}")
    assert_refused(result, "is no masked model")


def test_orders(monkeypatch, capsys):
    import orders

    from tasks import stars

    monkeypatch.setitem(stars.OURS, "tiny", (200, 20))
    text = run("orders", capsys, "--steps=2", "--samples=4")
    for name in orders.ORDERS:
        assert f"{name}, 2 steps; one answer as it is written:" in text
    assert text.count("of 4 answers") == 3 and text.count("network calls per answer") == 3
    edges, wanted = re.findall(r"(?:goal|wanted): +([\d ]+)", text)
    start, goal = edges.split()[-2:]
    assert wanted.split()[0] == start and wanted.split()[-1] == goal


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_as_a_user_runs_it(name, run_cli, tmp_path):
    result = run_cli(f"lessons/{name}.py", cwd=tmp_path, timeout=300)
    assert result.returncode == 0 and result.stdout.count("\n") > 5, result.stderr
    assert not list(tmp_path.iterdir())
