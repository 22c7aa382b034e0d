"""The net: what every objective computed before its code was moved, to be compared after.

    python tests/net.py record FILE.pt [folder]      # all numbers, of the checkout in the folder
    python tests/net.py compare OLD.pt NEW.pt        # what differs, and by how much
    python tests/net.py summary FILE.pt net.json     # the few numbers of each case that are kept

For every objective and each of its options: the loss and its gradients, the metrics, the bound,
what every sampler writes, and the weights after 10 training steps; tiny sizes, float32, one thread.
It asks the code for `build_objective`, `build_network`, `loss`, `bound`, `sample` and `train.main`
only, so that it works on both sides of a change.
"""

import contextlib
import inspect
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Iterator
from unittest.mock import patch

import torch

if __name__ == "__main__":
    sys.path.insert(0, sys.argv[3] if sys.argv[1:2] == ["record"] and len(sys.argv) > 3 else "")
    if sys.path[0] == "":
        sys.path[0] = str(Path(__file__).resolve().parent.parent)

VOCAB, ROWS, WIDTH = 9, 4, 12
SPECIALS = {"pad": 5, "bos": 6, "eos": 7, "mask": 8}
SIZE = {"block_size": WIDTH, "n_layer": 2, "n_head": 2, "n_embd": 16, "cond_dim": 8}
NOISES = (
    *("loglinear", "affine", "clamped", "linear", "cosine", "cosine_squared", "geometric"),
    *("exponential", "square", "square_root", "log"),
)
SIGMA = {"sigma_min": 0.001, "sigma_max": 10.0}

# objective -> the options that it is tried with, beside its defaults
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "sedd": [
        {},
        {"scale_by_sigma": False},
        {"normalize": True, "time_input": False},
        {"graph": "uniform", "noise": "geometric", **SIGMA},
        {"graph": "uniform"},
        {"noise": "geometric", **SIGMA},
        {"noise": "cosine"},
        {"positions": "learned", "n_inner": 24, "activation": "relu", "norm_bias": True},
    ],
    "masked": [
        {},
        *({"noise": noise, **SIGMA} for noise in NOISES[1:]),
        {"loss_per": "answer"},
        {"loss_per": "sequence"},
        {"padding": "crop"},
        {"padding": "ignore"},
        {"random_length": 1.0},
        {"importance": True},
        {"zero_time": True},
        {"time_input": False, "final_norm": False},
        {"time_input": False, "positions": "both", "rotary_dims": 4},
        {"dropout": 0.2},
    ],
    "mlm": [{}, {"padding": "crop"}, {"padding": "ignore"}, {"noise": "cosine"}],
    "bd3": [
        {},
        {"block_length": 4},
        {"block_length": 4, "t_low": 0.3, "t_high": 0.8},
        {"block_length": 1},
        {"block_length": 3, "time_input": False, "padding": "crop"},
        {"block_length": 4, "noise": "cosine", "zero_time": True},
    ],
    "ar": [{}],
    "xlnet": [{}],
    "ilm": [
        {},
        {"stop": "length"},
        {"stop_class_weight": 0.3, "stop_weight": 0.5},
        {"close_prompt": True},
    ],
    "idlm": [
        {"noise": "linear"},
        {"noise": "geometric", **SIGMA},
        {"noise": "exponential", **SIGMA},
        {"noise": "linear", "length_loss": "cross_entropy"},
        {"noise": "linear", "use_diffusion_weight_for_ce": False},
        {"noise": "linear", "use_diffusion_weight_for_length_loss": False},
        {"noise": "linear", "use_n_drops_for_ce": False},
        {"noise": "linear", "use_incomplete_gamma_factor": False},
        {"noise": "linear", "send_t_to_model": False},
        {"noise": "linear", "ce_weight": 0.5, "length_loss_weight": 2.0, "close_prompt": True},
        {"noise": "exponential", **SIGMA, "upstream_rules": True},
    ],
    "it": [{}, {"eos_weight": 0.5}, {"close_prompt": True}],
    "flex": [{}, {"gap_loss": "distribution"}],
}

# options of samplers, by what kind of objective understands them; 3 to 6 steps are a real walk here
DRAWS: list[dict[str, Any]] = [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 3}]
MASKED = [
    *DRAWS,
    {"top_p": 0.8},
    {"unmask_schedule": "linear"},
    {"unmask_schedule": "cosine"},
    {"unmask_schedule": "threshold", "threshold": 0.3},
    {"unmask_schedule": "factor", "factor": 1.5},
    {"block_length": 4},
    {"block_length": 4, "unmask_schedule": "threshold", "threshold": 0.4},
    {"cfg": 1.5, "temperature": 0.0},
    *({"remask": rule, "temperature": 0.5} for rule in ("cap", "rescale", "conf", "loop")),
    {"remask": "cap", "eta": 0.5, "block_length": 4},
    {"cache": "prefix", "block_length": 4},
    {"cache": "dual", "block_length": 4},
    {"banned": (0, 1)},
    {"delay": (7, 5)},
    {"stop": 7},
    {"mirror": True},
    {"length": True},
]
SAMPLING: dict[str, list[dict[str, Any]]] = {
    "sedd": [*MASKED, {"steps": 1}],
    "masked": MASKED,
    "mlm": [{}, {"temperature": 0.0}, {"block_length": 4}],
    "bd3": [
        *DRAWS,
        {"unmask_schedule": "threshold", "threshold": 0.3},
        {"remask": "conf"},
        {"stop": 7},
    ],
    "ar": [*DRAWS, {"top_p": 0.8}, {"stop": 7}, {"banned": (0, 1)}],
    "xlnet": [*DRAWS, {"stop": 7}],
    "ilm": [
        *DRAWS,
        {"top_p": 0.7, "strict_p": True},
        {"gap": {"temperature": 0.0}},
        {"gap": {"top_k": 2}, "top_p": 0.9},
        {"capacity": 5},
        {"exact": True},
        {"stop_threshold": 0.3, "stop_temperature": 0.5},
        {"banned": (0, 1)},
    ],
    "idlm": [
        *DRAWS,
        {"capacity": 5},
        {"length_temperature": 0.0, "gap": {"temperature": 0.0}},
        {"first_step_factor": False},
        {"exact": True},
    ],
    "it": [*DRAWS, {"capacity": 5}, {"exact": True}, {"stop_threshold": 0.3}],
    "flex": [*DRAWS, {"capacity": 5}, {"exact": True}],
}

# training runs of 10 steps, by the command's own main
RUNS: dict[str, dict[str, Any]] = {
    "sedd": {},
    "sedd uniform": {"objective": "sedd", "graph": "uniform", "noise": "geometric", **SIGMA},
    "masked": {},
    "masked muon": {"objective": "masked", "optimizer": "muon", "warmup_iters": 3},
    "masked accumulated": {"objective": "masked", "gradient_accumulation_steps": 2, "dropout": 0.1},
    "mlm": {"time_input": False},
    "bd3": {"block_length": 4},
    "ar": {},
    "xlnet": {},
    "ilm": {},
    "ilm prefix": {"objective": "ilm", "prefix_shuffle": True, "prefix_noise": 0.5},
    "idlm": {"noise": "linear"},
    "it": {},
    "flex": {},
}


def label(options: dict[str, Any]) -> str:
    return ", ".join(f"{k}={v}" for k, v in options.items())


# ---- what the code under test is asked for -----------------------------------------------------


def builders() -> tuple[Any, Any]:
    try:
        from checkpoint import build_network, build_objective
    except ImportError:  # 3985a0c
        from build import build_network, build_objective
    return build_objective, build_network


def batch() -> Any:
    """BOS, tokens, EOS, PAD; prompts of 1 to 4 tokens, lengths of 6 to 12."""
    from corpus import Batch

    rng = torch.Generator().manual_seed(5)
    ids = torch.randint(0, 5, (ROWS, WIDTH), generator=rng)
    length, prompt = torch.tensor([12, 9, 6, 11]), torch.tensor([1, 3, 2, 4])
    place = torch.arange(WIDTH)
    ids[:, 0] = SPECIALS["bos"]
    ids[place == length[:, None] - 1] = SPECIALS["eos"]
    ids[place >= length[:, None]] = SPECIALS["pad"]
    return Batch(ids, place < prompt[:, None], length)


def network(cfg: Any, objective: Any) -> Any:
    """Weights from one generator: nothing here may hang on the order of initialisation."""
    net = builders()[1](cfg, objective)
    rng = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for _, p in sorted(net.named_parameters()):
            p.copy_(0.3 * torch.randn(p.shape, generator=rng))
    return net


def sampled(objective: Any, net: Any, name: str, given: dict[str, Any]) -> torch.Tensor:
    """The last frame (ROWS, T + 1) of a sampler, lengths in front."""
    from objective import SampleOptions, generator

    values = {"steps": 6, **given}
    rows = batch()
    ids, given_places, run = rows.ids, rows[1], objective.sample
    if values.pop("mirror", None):  # what is given mirrors itself as well
        mirror = torch.arange(WIDTH - 1, -1, -1).expand(ROWS, -1).contiguous()
        given_places = given_places | given_places.flip(1)
        first = torch.minimum(mirror, mirror.flip(1))
        ids = ids.gather(1, first)
        try:
            from tasks.mirror import sample

            def run(net, ids, given, rng, options):
                return sample(objective, net, ids, given, mirror, rng, options)
        except ImportError:  # 3985a0c
            values["mirror"] = mirror
    if values.pop("length", None):
        values["length"] = rows.length
    if "gap" in values:
        values["gap"] = SampleOptions(**values["gap"])
    if "unmask_schedule" in values and not hasattr(SampleOptions, "unmask_schedule"):  # 3985a0c
        values["schedule"] = values.pop("unmask_schedule")
    options = SampleOptions(**values, sampler=name)
    *_, last = run(net, ids, given_places, generator(7), options)
    return torch.cat([last.length[:, None], last.ids], 1)


def refused(f: Any, *args: Any) -> Any:
    """What f returns, "refused", or "failed": some of what is tried here crashed at 3985a0c."""
    from configurator import UserError

    try:
        return f(*args)
    except UserError:
        return "refused"
    except Exception:
        return "failed"


# ---- recording ---------------------------------------------------------------------------------


def loss_of(objective: Any, net: Any, rng: torch.Generator) -> Any:
    """At 3985a0c one call, now two."""
    if len(inspect.signature(objective.loss).parameters) == 3:
        return objective.loss(net, batch(), rng)
    return objective.loss(net, objective.corrupt(batch(), rng))


def computed(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """Loss, gradients, bound and samples of an objective with these options."""
    from configurator import Config
    from objective import generator

    cfg = Config(objective=name, **SIZE, **options)
    objective = builders()[0](cfg, {"vocab_size": VOCAB, "specials": SPECIALS})
    net = network(cfg, objective)
    got: dict[str, Any] = {}
    for k in range(2):
        torch.manual_seed(k)  # dropout
        net.zero_grad()
        loss = loss_of(objective, net, generator(1, k))
        loss[0].backward()
        got[f"loss {k}"] = loss[0].detach()
        got[f"count {k}"] = torch.tensor(loss.count)
        for metric, value in loss.metrics.items():
            got[f"metric {metric} {k}"] = value
        for parameter, p in net.named_parameters():
            if p.grad is not None:
                got[f"grad {parameter} {k}"] = p.grad.clone()
    net.eval()
    if objective.bounded:
        with torch.no_grad():
            got["bound"] = objective.bound(net, batch(), generator(2), 3)
    tried = SAMPLING[name] if options == OPTIONS[name][0] else SAMPLING[name][:2]
    with torch.no_grad():
        for sampler in objective.samplers:
            for given in tried:
                key = f"sample {sampler} {label(given)}"
                got[key] = refused(sampled, objective, net, sampler, given)
    return got


def tiny_corpus(folder: Path) -> None:
    """Rows [BOS] text [EOS] of 4 to 10 letters, BOS and up to two letters given."""
    from corpus import CorpusWriter
    from tokenizer import Symbols

    tokenizer = Symbols(list("abcde"))
    bos, eos = tokenizer.specials["bos"], tokenizer.specials["eos"]
    rng = torch.Generator().manual_seed(11)
    with CorpusWriter(folder, tokenizer, source="tests") as out:
        for split, rows in {"train": 40, "val": 12}.items():
            for _ in range(rows):
                size, prompt = torch.randint(1, 4, (2,), generator=rng).tolist()
                text = torch.randint(0, 5, (3 * size + 1,), generator=rng).tolist()
                ids = tokenizer.encode("".join("abcde"[i] for i in text))
                out.row(split, [bos, *ids, eos], prompt=prompt)


def trained(folder: Path, name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The weights and their average after 10 steps of train.py."""
    import train

    tiny_corpus(folder / "tiny")
    values = {"objective": name, **SIZE, "n_layer": 1, **options}
    values |= {"dataset": "tiny", "data_dir": folder, "out_dir": folder / "out", "batch_size": 4}
    values |= {"max_iters": 10, "eval_interval": 1000, "eval_iters": 2, "log_interval": 5}
    values |= {"device": "cpu", "learning_rate": 0.01, "grad_clip": 0.5}
    unmeasured = patch.object(train, "gemm_peak", lambda *_: 1e12)  # a benchmark, not needed here
    # Muon orthogonalises in bfloat16, where the rounding of another machine grows to 1e-2 in ten
    # steps; in float32 the comparison is as sharp as for Adam
    exact = patch.object(torch.Tensor, "bfloat16", torch.Tensor.float)
    with unmeasured, exact, contextlib.redirect_stdout(io.StringIO()):
        train.main([f"--{k}={v}" for k, v in values.items()])
    state = torch.load(folder / "out" / "ckpt.pt", weights_only=True)
    return {f"{part} {k}": v for part in ("model", "ema") for k, v in state[part].items()}


def cases() -> Iterator[tuple[str, Any]]:
    """Names, and the functions that compute them."""
    for name, tried in OPTIONS.items():
        for options in tried:
            yield f"{name} {label(options)}".strip(), lambda n=name, o=options: computed(n, o)


def runs() -> Iterator[tuple[str, Any]]:
    for name, options in RUNS.items():
        values = {"objective": name, **options}

        def run(values: dict[str, Any] = values) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as folder:
                return trained(Path(folder), values["objective"], values)

        yield f"train {name}", run


def record() -> dict[str, dict[str, Any]]:
    torch.set_num_threads(1)
    return {name: f() for name, f in (*cases(), *runs())}


# ---- comparing ---------------------------------------------------------------------------------


def digits(rows: torch.Tensor) -> str:
    """Ids of samples as one digit each; all are below 16."""
    return " ".join("".join(f"{int(i):x}" for i in row) for row in rows)


def figures(case: dict[str, Any]) -> dict[str, Any]:
    """The few numbers of a case that the repository keeps: of many tensors the norm, and the
    product with fixed random weights, which a wrong sign or place changes."""
    kept: dict[str, Any] = {}
    sums: dict[str, list[float]] = {}
    for key in sorted(case):
        value, kind = case[key], key.split()[0]
        if isinstance(value, str):
            kept[key] = value
        elif kind == "sample":
            kept[key] = digits(value)
        elif kind in ("grad", "model", "ema"):
            rng = torch.Generator().manual_seed(len(key))
            x = value.double()
            norm, dot = sums.setdefault(kind + (key[-1] if kind == "grad" else ""), [0.0, 0.0])
            dot += float((x * torch.randn(x.shape, generator=rng)).sum())
            sums[kind + (key[-1] if kind == "grad" else "")] = [norm + float((x * x).sum()), dot]
        else:
            kept[key] = [float(f"{x:.9g}") for x in value.double().flatten().tolist()]
    for kind, (norm, dot) in sums.items():
        kept[kind] = [float(f"{norm**0.5:.9g}"), float(f"{dot:.9g}")]
    return kept


def compare(old: dict[str, Any], new: dict[str, Any]) -> tuple[int, int]:
    """Print what differs between two recordings; returns how many tensors do, and of how many."""
    worst: dict[str, tuple[float, str]] = {}
    differ = total = 0
    for name, case in old.items():
        if set(case) != set(new.get(name, {})):
            print(f"{name}: {sorted(set(case) ^ set(new.get(name, {})))[:6]} in one of them only")
            differ += 1
            continue
        largest = max((float(v.abs().max()) for k, v in case.items() if k[:4] == "grad"), default=1)
        for key, a in case.items():
            b, kind = new[name][key], key.split()[0]
            total += 1
            if isinstance(a, str) or isinstance(b, str):
                same = isinstance(a, str) and isinstance(b, str)
                gap = 0.0 if same else float("inf")
            elif a.shape != b.shape:
                same, gap = False, float("inf")
            else:
                same = torch.equal(a.nan_to_num(99), b.nan_to_num(99))
                size = largest if kind == "grad" else max(1e-30, float(a.double().abs().max()))
                gap = float((a.double() - b.double()).nan_to_num(9).abs().max()) / size
            differ += not same
            worst[kind] = max(worst.get(kind, (0.0, "")), (gap, f"{name}: {key}"))
            if kind == "sample" and not same:
                print(f"differs: {name}: {key}")
    for kind, (gap, where) in worst.items():
        print(f"{kind:8} largest difference {gap:.2e} of the largest number ({where})")
    print(f"{differ} of {total} differ in some bit")
    return differ, total


def main(command: str, *paths: str) -> None:
    if command == "record":
        torch.save(record(), paths[0])
    elif command == "compare":
        sys.exit(compare(*(torch.load(p, weights_only=True) for p in paths))[0] > 0)
    elif command == "summary":
        kept = {
            name: figures(case) for name, case in torch.load(paths[0], weights_only=True).items()
        }
        Path(paths[1]).write_text(json.dumps(kept, indent=0) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
