"""Losses in chunks against dense formulas under autograd; draws against their laws."""

import pytest
import torch

import model
from model import chunked_cross_entropy, chunked_loss, project
from objective import (
    SampleOptions,
    categorical,
    generator,
    gumbel_argmax,
    low_discrepancy_uniform,
    process_logits,
    sample_categorical,
    seed_of,
)

R, C, V = 700, 8, 11


@pytest.fixture(params=[1, 256, 1000], ids="{}-rows".format)
def head_and_rows(request, monkeypatch):
    """A head and rows that take 700 chunks, three of which the last is short, or one."""
    monkeypatch.setattr(model, "chunk_rows", lambda *_: request.param)
    torch.manual_seed(0)
    head = torch.nn.Linear(C, V)
    h = torch.randn(R, C, requires_grad=True)
    return head, h, torch.randint(V - 1, (R,)), torch.rand(R) + 0.1


def compare(head, h, loss, dense):
    """Loss and all three gradients of `loss()` are those of `dense`, a function of all logits."""
    scale = 1.7  # so that the factor of the backward pass counts
    total, each = loss()
    (total * scale).backward()
    ours = [h.grad, head.weight.grad, head.bias.grad]
    for p in (h, head.weight, head.bias):
        p.grad = None
    want = dense(head(h))
    (want.sum() * scale).backward()
    torch.testing.assert_close(each, want.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(total.detach(), want.sum().detach(), rtol=1e-5, atol=1e-3)
    for a, b in zip(ours, [h.grad, head.weight.grad, head.bias.grad], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("banned", [None, V - 1, 4, slice(8, None)])
@pytest.mark.parametrize("fused", [True, False])
def test_cross_entropy(head_and_rows, banned, fused, monkeypatch):
    head, h, target, weight = head_and_rows
    keep = torch.ones(V, dtype=torch.bool)
    if banned is not None:
        keep[banned] = False
        target = torch.where(keep[target], target, 0)
    if not fused:  # the plain code, which GPUs run
        monkeypatch.setattr(model, "_CrossEntropyOnCPU", None)
        monkeypatch.setattr(model, "fuses_cross_entropy", lambda h: False)

    def dense(z):
        z = z.masked_fill(~keep, -1e30)
        return weight * torch.nn.functional.cross_entropy(z, target, reduction="none")

    compare(head, h, lambda: chunked_cross_entropy(head, h, target, weight, banned), dense)


def test_any_loss_and_the_rows_that_it_is_told(head_and_rows):
    """A loss that uses which rows it got, overwrites the logits, and has more than one term."""
    head, h, target, weight = head_and_rows

    def loss_fn(logits, part):
        picked = logits[torch.arange(len(logits)), target[part]]
        logits[:, 3] = -torch.inf
        return weight[part] * (logits.exp().sum(1) - picked.sin())

    def dense(z):
        picked = z.gather(1, target[:, None])[:, 0]
        return weight * (z.exp().sum(1) - z[:, 3].exp() - picked.sin())

    compare(head, h, lambda: chunked_loss(head, h, loss_fn), dense)


def test_nothing_scored_is_zero_with_zero_gradients():
    head = torch.nn.Linear(C, V)
    h = torch.zeros(0, C, requires_grad=True)
    none = torch.zeros(0, dtype=torch.int64)
    both = chunked_cross_entropy(head, h, none, none.float()), chunked_loss(head, h, None)
    for total, each in both:
        head.zero_grad()
        total.backward()
        assert float(total.detach()) == 0 and len(each) == 0
        assert head.weight.grad.abs().max() == 0 and head.bias.grad.abs().max() == 0


def test_nothing_is_kept_where_nothing_is_learnt(head_and_rows):
    head, h, target, weight = head_and_rows
    with torch.no_grad():
        total, each = chunked_cross_entropy(head, h, target, weight)
    again, _ = chunked_cross_entropy(head, h, target, weight)
    assert not total.requires_grad and again.requires_grad
    torch.testing.assert_close(total, again.detach())
    torch.testing.assert_close(total, each.sum())


def test_bfloat16_loss_is_close_and_its_gradients_are_float32():
    torch.manual_seed(0)
    head, h = torch.nn.Linear(C, V), torch.randn(300, C, requires_grad=True)
    target, weight = torch.randint(V, (300,)), torch.ones(300)

    def plain(logits, part):
        return torch.nn.functional.cross_entropy(logits, target[part], reduction="none")

    for loss in (
        lambda: chunked_cross_entropy(head, h, target, weight),
        lambda: chunked_loss(head, h, plain),
    ):
        full, _ = loss()
        with torch.autocast("cpu", torch.bfloat16):
            half, _ = loss()
        half.backward()
        assert float(half.detach()) == pytest.approx(float(full.detach()), rel=1e-2)
        assert head.weight.grad.dtype == h.grad.dtype == torch.float32


# ---- draws ---------------------------------------------------------------------------------------


def test_categorical_is_the_inverse_of_the_cumulative_sum():
    weights = torch.tensor([0.0, 1.0, 0.0, 3.0, -5.0, 0.0])
    u = torch.tensor([0.0, 0.2499, 0.2501, 1 - 2**-53], dtype=torch.float64)
    assert categorical(weights.expand(4, 6), u).tolist() == [1, 1, 3, 3]


def test_categorical_reaches_the_tail():
    """An outcome of weight 1e-9 is drawn by the u that belongs to it; float32 sums lose it."""
    weights = torch.ones(50_000)
    weights[-1] = 1e-4
    u = torch.tensor(1 - 1e-10, dtype=torch.float64)
    assert int(categorical(weights, u)) == 49_999


@pytest.mark.parametrize("V", [3, 256, 257, 50_258])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_categorical_by_blocks_is_the_running_sum(V, dtype):
    weights = torch.rand(300, V, generator=generator(V), dtype=dtype) ** 8
    weights[:, ::7] = 0
    u = torch.rand(300, generator=generator(1), dtype=torch.float64)
    sums = weights.double().cumsum(-1)
    got = categorical(weights, u)
    level = u * sums[:, -1]
    after, width = (x.gather(1, got[:, None])[:, 0] for x in (sums, weights.double()))
    slack = 1e-6 * sums[:, -1] if dtype == torch.float32 else 1e-12
    assert (width > 0).all() and (level < after + slack).all()
    assert (level >= after - width - slack).all()


@pytest.mark.parametrize("draw", ["categorical", "race"])
def test_frequencies(draw):
    p = torch.tensor([0.5, 0.3, 0.15, 0.05, 0.0], dtype=torch.float64)
    N, rng = 100_000, generator(3)
    if draw == "race":
        got = gumbel_argmax(p.expand(N, 5), torch.rand(N, 5, generator=rng, dtype=torch.float64))
    else:
        got = categorical(p.expand(N, 5), torch.rand(N, generator=rng, dtype=torch.float64))
    share = torch.bincount(got, minlength=5) / N
    assert (share - p).abs().max() < 0.008 and share[4] == 0


def test_temperature_top_k_and_top_p():
    z = torch.tensor([[0.0, 1.0, 2.0, 3.0]])
    p = z.softmax(-1)[0].double()

    def law(**options):
        return process_logits(z, SampleOptions(**options)).softmax(-1)[0]

    torch.testing.assert_close(law().float(), p.float())
    torch.testing.assert_close(law(temperature=0.5), (2 * z).double().softmax(-1)[0])
    assert law(temperature=0).tolist() == law(temperature=1e-8).tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(law(temperature=1e9), torch.full((4,), 0.25).double())
    assert law(top_k=1).tolist() == law(top_p=0.0).tolist() == [0, 0, 0, 1]
    torch.testing.assert_close(law(top_k=99), law())
    assert (law(top_k=2) > 0).tolist() == [False, False, True, True]
    # 0.644 alone is short of 0.7, so the token that crosses it stays
    assert (law(top_p=0.7) > 0).tolist() == [False, False, True, True]
    assert (law(top_p=0.64) > 0).tolist() == [False, False, False, True]


def test_sample_categorical_never_draws_what_is_banned():
    z = torch.zeros(2000, 6)
    z[:, [0, 5]] = -torch.inf
    assert set(sample_categorical(z, SampleOptions(), generator(0)).tolist()) == {1, 2, 3, 4}


def test_seeds_differ_in_every_place():
    seeds = {seed_of(a, b, c) for a in range(20) for b in range(20) for c in range(20)}
    assert len(seeds) == 8000 and max(seeds) < 2**63
    assert seed_of(1, 2) != seed_of(2, 1) and seed_of(0) != seed_of(0, 0)


def test_stratified_has_one_draw_per_stratum():
    t = low_discrepancy_uniform(100, generator(0))
    assert torch.equal((t * 100).long(), torch.arange(100))


class AsOnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, and notes the shapes of matrix products."""

    is_cuda = True
    products: list = []  # noqa: RUF012

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = function(*args, **(kwargs or {}))
        if function is torch.nn.functional.linear:
            cls.products.append(tuple(out.shape))
        return out


@pytest.mark.parametrize("V", [259, 320, 50257])
def test_the_projection_of_a_gpu_has_a_multiple_of_64_columns(V):
    """No tensor core is used otherwise; logits and gradients are those of V columns."""
    rng = generator(0)
    h, weight = torch.randn(6, 8, generator=rng), torch.randn(V, 8, generator=rng)
    bias, AsOnGpu.products = torch.randn(V, generator=rng), []
    grads = []
    for one in (h, h.as_subclass(AsOnGpu)):
        w = weight.clone().requires_grad_()
        z = project(one, w, bias, banned=3)
        z.as_subclass(torch.Tensor)[:, 4:].square().sum().backward()
        grads.append((z.as_subclass(torch.Tensor).detach(), w.grad))
    assert AsOnGpu.products == [(6, -(-V // 64) * 64)]
    torch.testing.assert_close(grads[0], grads[1])
    assert grads[1][0].shape == (6, V) and grads[1][1].shape == (V, 8)
