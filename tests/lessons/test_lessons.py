"""The lessons run, from anywhere and in little time, and what they say is true."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

LESSONS = Path(__file__).resolve().parent.parent.parent / "lessons"
NAMES = sorted(path.stem for path in LESSONS.glob("*.py"))


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(LESSONS), *sys.path])


def test_each_is_short_and_teaches_before_it_computes():
    assert len(NAMES) == 4
    for name in NAMES:
        text = (LESSONS / f"{name}.py").read_text()
        assert len(text.splitlines()) <= 110, name
        assert text.startswith('"""Lesson ') and "What to expect" in text.split('"""')[1], name
        assert f"python lessons/{name}.py" in text.split('"""')[1], name


def run(name: str, capsys: Any, *argv: str) -> str:
    __import__(name).main(list(argv))
    return capsys.readouterr().out


def numbers(pattern: str, text: str) -> list[float]:
    got = re.search(pattern, text)
    assert got, (pattern, text)
    return [float(x) for x in got.groups()]


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
