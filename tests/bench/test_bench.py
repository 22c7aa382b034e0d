"""bench/speed.py: its textbook is the same maths as ours, its rows tell so when it is not, and the
properties behind our speed that no clock is needed for."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import insertion
import model
from bench import speed
from bench.speed import BenchConfig, Ours, Rows, Shape
from bench.textbook import InsertionTextbook, Textbook, textbook, textbook_weights
from checkpoint import OBJECTIVES, build_network, build_objective
from configurator import Config, UserError, build, load
from corpus import Batch
from insertion import drop_tokens
from objective import SampleOptions, generator, pad_to_multiple
from train import make_optimizers, scale_gradients, update_ema

ROOT = Path(__file__).resolve().parent.parent.parent
QUICK = BenchConfig(quick=True, shapes="tiny", budget=0.0, rounds=2, device="cpu")
WIDE = Shape(20000, 16, 16, 1, 2, 64)  # B L V is 4 chunks of 256 rows and 64 times the embedding


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- the command -------------------------------------------------------------------------------


def bench_command(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "bench", "--device=cpu", "--threads=1", *args]
    env = os.environ | {"RANK": "0"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


def test_command_prints_a_table_and_writes_rows(tmp_path):
    out = tmp_path / "rows.jsonl"
    trace = tmp_path / "trace.json"
    rows = "--rows=equality,train"
    done = bench_command("--quick", rows, f"--json={out}", f"--profile={trace}")
    assert done.returncode == 0, done.stderr
    assert "traceEvents" in json.loads(trace.read_text())
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert list(dict.fromkeys(row["kind"] for row in rows)) == ["machine", "equality", "train"]
    by_name = {" ".join((row["kind"], row["shape"], row["variant"])): row for row in rows}
    equal = [row for row in rows if row["kind"] == "equality"]
    assert len(equal) == 5 and all(row["equal"] for row in equal)
    train = by_name["train tiny sedd float32"]
    assert "train tiny ilm float32" in by_name
    for key in "ratio ratio_min ratio_cpu ours_s ours_min_s ours_first_s textbook_s mfu".split():
        assert train[key] > 0, key
    assert train["rounds"] >= 2 and isinstance(train["noisy"], bool)
    assert by_name["machine  float32"]["flops"] > 1e8
    for row in rows:
        assert f"{row['kind']:<9}{row['shape']:<14}{row['variant']}" in done.stdout


def test_bad_options_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="rows must be a comma-separated choice"):
        speed.main(["--rows=speed", f"--json={tmp_path / 'rows.jsonl'}"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="shapes must be"):
        build(BenchConfig, {"shapes": "huge"})


@pytest.mark.parametrize("kind", ["sample", "micro", "loss"])
def test_quick_rows(kind):
    for planned, name, variant in speed.plan(QUICK):
        if planned == kind and "bfloat16" not in variant:
            got = getattr(Rows(QUICK), kind)(name, *variant.split())
            assert got["ratio"] > 0 and got["rounds"] == 2
            if kind == "sample":
                assert got["logit_rows"] <= got["textbook_logit_rows"]


def test_memory_of_one_side():
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read in /proc")
    for form in ("sedd", "ilm"):
        assert Rows(QUICK).needed("tiny", form, "ours") >= 0


@pytest.mark.slow
@pytest.mark.parametrize("what", ["torch", "help", "step"])
def test_start_is_timed(what):
    got = Rows(QUICK).start("", what)
    assert 0 < got["cpu_s"] and 0 < got["seconds"]


def test_plan_holds_the_rows_of_the_targets():
    shapes = dict.fromkeys(name.split()[1] for name in speed.TARGETS)
    cfg, _ = load(BenchConfig, ["--shapes=" + ",".join(shapes)])
    planned = {(f"{kind} {name}", variant) for kind, name, variant in speed.plan(cfg)}
    wanted = {(name, v) for name, variants in speed.TARGETS.items() for v in variants}
    assert wanted <= planned
    kinds = [kind for kind, _, _ in speed.plan(cfg)]
    last = max(i for i, kind in enumerate(kinds) if kind == "equality")
    assert {"machine", "equality"} == set(kinds[: last + 1])  # equality before any speed
    equal = [(name, variant) for kind, name, variant in speed.plan(cfg) if kind == "equality"]
    for kind, name, variant in speed.plan(cfg):
        if kind in ("loss", "train"):  # nothing is timed that was not compared
            assert (name, variant.split()[0]) in equal


def run_main(monkeypatch, rows: dict, *args: str) -> None:
    """main with made-up results: kind -> what every row of it tells."""
    for kind in ("machine", *speed.KINDS):
        monkeypatch.setattr(Rows, kind, lambda *a, kind=kind: rows.get(kind, {"ratio": 0.01}))
    monkeypatch.setattr(speed, "plan", lambda cfg: [("equality", "tiny", "sedd"), TARGETED])
    speed.main(["--device=cpu", *args])


TARGETED = ("micro", "gpt2", "ema")  # has a target, far above 0.01


def test_speed_decides_the_exit_code_only_with_gate(monkeypatch):
    run_main(monkeypatch, {"equality": {"equal": True}})
    with pytest.raises(SystemExit, match=r"too slow: micro gpt2 ema$"):
        run_main(monkeypatch, {"equality": {"equal": True}}, "--gate")
    with pytest.raises(SystemExit, match=r"differs, or is too slow: equality tiny sedd$"):
        run_main(monkeypatch, {"equality": {"equal": False}})


# ---- equality ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["sedd", "mdlm", "ilm"])
@pytest.mark.parametrize("shape", [Shape(260, 32, 64, 2, 4, 8, False, "learned"), WIDE])
def test_textbook_is_our_loss(form, shape, monkeypatch):
    monkeypatch.setitem(speed.SHAPES, "tiny", shape)
    got = Rows(QUICK).equality("tiny", form)
    assert got["equal"] and got["gradient"] <= 1e-5


def test_a_broken_loss_fails(monkeypatch):
    whole = Textbook.score_entropy
    monkeypatch.setattr(Textbook, "score_entropy", lambda *a: 1.0001 * whole(*a))
    assert not Rows(QUICK).equality("tiny", "sedd")["equal"]
    assert Rows(QUICK).equality("tiny", "mdlm")["equal"]


def test_a_broken_target_of_insertion_fails(monkeypatch):
    """One missing token stands in the gap before its own."""
    whole = InsertionTextbook.counts

    def counts(self, rows, width):
        target = whole(self, rows, width)
        b, gap, token = target.nonzero()[-1].tolist()
        target[b, gap, token] -= 1
        target[b, gap - 1, token] += 1
        return target

    monkeypatch.setattr(InsertionTextbook, "counts", counts)
    assert not Rows(QUICK).equality("tiny", "ilm")["equal"]


def test_the_dense_target_counts_what_is_missing():
    """[7, 5, 5, 6] and BOS, with both fives and the six dropped: two fives in one gap."""
    ours = Ours(QUICK, speed.SHAPES["tiny"], "ilm")
    ids = torch.tensor([[40, 39, 7, 5, 5, 6]])
    drop = torch.tensor([[False, False, False, True, True, True]])
    rows = drop_tokens(ids, torch.arange(6)[None] > 1, torch.tensor([6]), drop, 0)
    counts = textbook(ours).counts(rows, 6)
    assert counts.shape == (1, 6, 41) and counts.sum() == 3
    assert counts[0, 2, 5] == 2 and counts[0, 2, 6] == 1


def test_a_broken_gradient_fails(monkeypatch):
    """The same value, but a gradient that is too large in one place."""

    def linear(self, name, x):
        y = whole(self, name, x)
        return y + 0.001 * (y - y.detach()) if "attn.proj" in name else y

    whole = Textbook.linear
    monkeypatch.setattr(Textbook, "linear", linear)
    got = Rows(QUICK).equality("tiny", "sedd")
    assert not got["equal"] and got["loss"] <= 1e-5


@pytest.mark.parametrize("sampler", ["analytic", "ancestral"])
def test_a_broken_sampler_fails(sampler, monkeypatch):
    """One token is a quarter more probable than it should be."""

    def draw(self, weights, rng):
        return whole(self, weights * torch.tensor([1.25, 1, 1, 1, 1, 1])[: weights.shape[-1]], rng)

    whole = Textbook.draw
    monkeypatch.setattr(Textbook, "draw", draw)
    got = Rows(QUICK).equality("tiny", sampler)
    assert not got["equal"] and got["chi2"] > got["limit"]


def test_an_update_and_the_average_are_equal():
    ours = Ours(QUICK, speed.SHAPES["tiny"], "sedd")
    book, params = Textbook(ours), dict(ours.net.named_parameters())
    [adamw] = make_optimizers(ours.config, ours.net, ours.device)
    ema = {k: p.detach().clone() for k, p in params.items()}
    for update in range(1, 4):
        for i, p in enumerate(params.values()):
            p.grad = torch.randn(p.shape, generator=generator(update, i))
        for k, grad in textbook_weights({k: p.grad for k, p in params.items()}).items():
            book.w[k].grad = grad
        scale_gradients(params.values(), torch.ones(()), ours.config.grad_clip)
        torch.nn.utils.clip_grad_norm_(book.params, ours.config.grad_clip)
        adamw.step()
        book.adamw.step()
        update_ema(list(ema.values()), list(params.values()), update, ours.config)
        book.average()
    for mine, other in ((params, book.params), (ema, book.ema)):
        mine = textbook_weights(mine)
        for k, p in zip(book.w, other, strict=True):
            torch.testing.assert_close(mine[k], p.detach(), rtol=0, atol=3e-8)  # of 3 x 3e-4


# ---- properties that need no clock -------------------------------------------------------------


class Largest(TorchDispatchMode):
    """Records the elements of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, tuple | list) else [out]:
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


@pytest.fixture
def chunks_of_256(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of logits, whatever memory this machine has."""
    for module in (model, insertion):
        monkeypatch.setattr(module, "chunk_rows", lambda *_: 256)


def test_chunks_follow_from_the_memory_that_there_is():
    cpu = torch.device("cpu")
    rows, memory = model.chunk_rows(50257, cpu), model.memory_of(cpu)
    assert memory > 1 << 30
    assert rows == 128 or memory / 600 < rows * 50257 * 4 <= memory / 512
    assert model.chunk_rows(1 << 40, cpu) == 128


@pytest.mark.parametrize("form", ["sedd", "mdlm", "ilm"])
def test_a_training_step_never_makes_all_logits(form, chunks_of_256):
    everything = WIDE.batch_size * WIDE.block_size * WIDE.vocab
    ours = Ours(QUICK, WIDE, form)
    book, step = textbook(ours), ours.training()
    with Largest() as spy:
        step()  # forward, backward, clipping, AdamW, average
    assert spy.numel <= everything / 4, "a chunk of 256 rows is the most"
    with Largest() as spy:
        book.step()
    assert spy.numel >= everything, "the spy sees the textbook's logits"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_no_objective_ever_makes_all_logits(name, chunks_of_256):
    """Loss, gradients and bound of everything in the registry: a chunk of 256 rows is the most,
    even where every place is scored. Insertion takes whole rows: up to a row more."""
    if name == "xlnet":
        pytest.importorskip("transformers")
    B, T, V = WIDE.batch_size, WIDE.block_size, WIDE.vocab
    options = {k: v for k, v in WIDE._asdict().items() if k != "vocab"}
    noise = "geometric" if name == "idlm" else "loglinear"
    cfg = Config(objective=name, noise=noise, block_length=4, **options)
    specials = {"bos": V - 4, "eos": V - 3, "pad": V - 2, "mask": V - 1}
    objective = build_objective(cfg, {"vocab_size": V, "specials": specials})
    net = build_network(cfg, objective)
    ids = torch.randint(V - 4, (B, T), generator=generator(0))
    given = torch.arange(T).expand(B, T) < 1
    batch = Batch(ids.masked_fill(given, V - 4), given, torch.full((B,), T))
    with Largest() as spy:
        loss = objective.loss(net, objective.corrupt(batch, generator(1)))
        loss.sum.backward()
    assert net.head.weight.numel() <= spy.numel <= (256 + T + 2) * (V + 1)
    assert net.head.weight.grad.abs().max() > 0 and (256 + T + 2) * (V + 1) < B * T * V / 3
    if objective.bounded:
        with Largest() as spy:
            objective.bound(net, batch, generator(1))
        assert spy.numel <= (256 + T + 2) * (V + 1)


@pytest.mark.parametrize("name", ["ilm", "flex"])
def test_widths_of_a_batch_are_few(name):
    """Rows are padded to a multiple of 16 or more: every shape costs bfloat16 on a CPU memory for
    good, and a compiled network a compilation."""
    assert [pad_to_multiple(700, most) for most in (1024, 704, 701)] == [704, 704, 701]
    assert len({pad_to_multiple(w, 4096) for w in range(1, 4097)}) == 16
    shape = Shape(41, 70, 16, 1, 2, 2, name != "ilm")
    options = {k: v for k, v in shape._asdict().items() if k != "vocab"}
    cfg = Config(objective=name, **options)
    specials = {"bos": 37, "eos": 38, "pad": 39, "mask": 40}
    objective = build_objective(cfg, {"vocab_size": 41, "specials": specials})
    net, seen = build_network(cfg, objective), []
    net.embed.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    ids, given = torch.full((2, 70), 7), torch.arange(70).expand(2, 70) < 1
    for seed in range(30):
        objective.loss(
            net, objective.corrupt(Batch(ids, given, torch.full((2,), 70)), generator(seed))
        )
    assert set(seen) <= {16, 32, 48, 64, 71} and len(set(seen)) > 1


@pytest.mark.parametrize("sampler", ["ancestral", "first_hitting"])
def test_a_sampler_projects_only_what_it_writes(sampler):
    rows, L, steps = 256, 16, 8
    ours = Ours(QUICK, Shape(41, L, 16, 1, 2, 1), "mdlm")
    got = ours.counted(lambda: ours.sampling(sampler, steps, rows, generator(0)))
    assert got["logit_rows"] == rows * L
    if sampler == "ancestral":
        most = steps * (1 - (1 - 1 / steps) ** L)  # distinct steps among L draws: 7.06
        assert 0.9 * most <= got["canvases"] / rows <= 1.1 * most
        assert got["nfe"] <= steps + 1
    else:
        assert got["canvases"] == rows * L and got["nfe"] == L


def test_hop_is_called_for_few_of_many_steps():
    """A thousand steps cost no more calls than there are places."""
    rows, L, steps = 64, 8, 1024
    ours = Ours(QUICK, Shape(41, L, 16, 1, 2, 1), "mdlm")
    got = ours.counted(lambda: ours.sampling("ancestral", steps, rows, generator(0)))
    assert got["canvases"] / rows <= min(L, 1.1 * steps * (1 - (1 - 1 / steps) ** L))


@pytest.mark.parametrize("sampler", ["analytic", "euler"])
def test_a_step_projects_only_masked_places(sampler):
    ours = Ours(QUICK, Shape(41, 16, 16, 1, 2, 1), "sedd")
    ids = torch.randint(40, (32, 16), generator=generator(1))
    given = torch.rand(32, 16, generator=generator(2)) < 0.5
    masked, alive = [], []

    def walk() -> None:
        options = SampleOptions(steps=6, sampler=sampler)
        for frame in ours.objective.sample(ours.net, ids, given, generator(3), options):
            hidden = frame.ids == ours.objective.mask_id
            masked.append(int(hidden.sum()))
            alive.append(int(hidden.any(1).sum()))
            assert torch.equal(frame.ids[given], ids[given])

    got = ours.counted(walk)
    assert masked[0] == int((~given).sum()) and masked[-1] == 0
    assert got["logit_rows"] == sum(masked)  # every one at the start of every step, no other
    assert got["canvases"] == sum(alive)  # finished canvases cost nothing
