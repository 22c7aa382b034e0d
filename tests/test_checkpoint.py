"""checkpoint.py: whole or not at all, nothing executed, strict names, published weights."""

import errno
import json
import os
import pickle
import random
import resource
import subprocess
import sys
import types
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import checkpoint
import diffusion
from checkpoint import Model, build_network, build_objective, load, load_weights, read, save
from configurator import Config, UserError
from objective import Objective, SampleOptions
from pretrained import published
from pretrained.published import from_sedd, to_sedd
from sample import canvas, generate
from tokenizer import GPT2, Bytes

SMALL = Config(n_layer=2, n_head=2, n_embd=16, cond_dim=8, block_size=8)


def error_of(action: Any, *arguments: Any) -> str:
    """The line that refuses."""
    with pytest.raises(UserError) as caught:
        action(*arguments)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


def same(a: Any, b: Any) -> bool:
    """Equal to the last bit, and of the same types."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.fixture
def path(tmp_path: Path, trained: Any) -> Path:
    """A copy of the tiny checkpoint, alone in its folder."""
    copy = tmp_path / "ckpt.pt"
    copy.write_bytes((trained() / "ckpt.pt").read_bytes())
    return copy


@pytest.fixture
def state(trained: Any) -> dict[str, Any]:
    return read(trained() / "ckpt.pt")


def logits(model: Any, objective: Any, ids: Tensor) -> Tensor:
    sigma = torch.linspace(0.1, 2, len(ids)) if model.time is not None else None
    with torch.no_grad():
        return model.logits(model.eval().features(ids, objective.condition(model, sigma, "cpu")))


# ---- saving ------------------------------------------------------------------------------------


def test_round_trip(path: Path, state: dict):
    save(state, path)
    assert same(read(path), state)
    assert sorted(p.name for p in path.parent.iterdir()) == ["ckpt.pt", "ckpt_prev.pt"]


def test_the_one_before_stays(tmp_path: Path, state: dict):
    path = tmp_path / "ckpt.pt"
    for step in (1, 2, 3):
        save({**state, "step": step}, path)
    assert read(path)["step"] == 3 and read(tmp_path / "ckpt_prev.pt")["step"] == 2


KILLS = """
import os, random, signal, sys, time
sys.path.insert(0, sys.argv[2])
import torch
from pathlib import Path
from checkpoint import FIELDS, read, save
torch.set_num_threads(1)
path, rng, hit, step = Path(sys.argv[1]) / "ckpt.pt", random.Random(0), 0, 0
blank = {"format": 1, "config": {}, "corpus": {"meta": {}, "files": {}}}
blank |= {"ema": None, "optimizer": [], "best": 0.0}

def write(step):
    save({**blank, "model": {"w": torch.full((500_000,), float(step))}, "step": step}, path)

write(0)
for _ in range(10):
    child = os.fork()
    if child == 0:
        try:
            while True:
                step += 1
                write(step)
        finally:
            os._exit(1)
    time.sleep(rng.uniform(0.01, 0.08))
    os.kill(child, signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "saving failed before the kill"
    left = [p for p in path.parent.iterdir() if p.name.endswith(".tmp")]
    hit += any(p.name.startswith("ckpt.pt.") for p in left)
    found = read(path)  # raises if it is damaged
    assert found["step"] >= step, (found["step"], step)
    assert bool((found["model"]["w"] == found["step"]).all())
    step = found["step"]
    before = path.with_name("ckpt_prev.pt")
    assert not before.exists() or read(before)["step"] in (step - 1, step)
    for p in left:
        p.unlink()
print(hit)
"""


def test_kill_during_save(tmp_path: Path, helpers: Any):
    """Fault 1: SIGKILL ten times. Writing in place, or renaming before all is written, leaves a
    file that does not load; removing the old one first leaves none."""
    command = [sys.executable, "-c", KILLS, str(tmp_path), str(helpers.repo)]
    done = subprocess.run(command, capture_output=True, text=True, env=helpers.env(), timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1, "no kill came while a file was being written"


def test_saving_goes_on_after_a_kill_between_the_two_renames(path: Path, state: dict):
    """The file and the one before it are then two names of one file, and POSIX's rename of such a
    pair does nothing: a temporary name stays, and the next save but one stumbles over it."""
    os.link(path, path.with_name("ckpt_prev.pt"))
    for step in (1, 2, 3):
        save({**state, "step": step}, path)
        assert sorted(remains(path)) == ["ckpt.pt", "ckpt_prev.pt"]
    assert read(path)["step"] == 3 and read(path.with_name("ckpt_prev.pt"))["step"] == 2


def remains(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in path.parent.iterdir()}


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_disk_full(path: Path, state: dict, share: float):
    """Fault 2: no file may grow beyond a share of what is needed, as on a disk that fills up."""
    before, (soft, hard) = remains(path), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(path.stat().st_size * share), hard))
    try:
        message = error_of(save, state, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert str(path) in message and "intact" in message
    assert remains(path) == before  # neither a partial nor a temporary file


@pytest.mark.parametrize("call", ["fsync", "link"])
def test_disk_full_at_the_end(path: Path, state: dict, monkeypatch, call: str):
    """Some file systems tell of a full disk only when data is flushed or a name is made."""
    before = remains(path)

    def full(*_: Any):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    assert "No space left on device" in error_of(save, state, path)
    assert remains(path) == before


def test_everything_is_flushed_before_it_is_renamed(path: Path, state: dict, monkeypatch):
    """Otherwise a power cut leaves an empty file under the final name."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        log = lambda *a, name=name, real=real: (calls.append(name), real(*a))[1]  # noqa: E731
        monkeypatch.setattr(os, name, log)
    save(state, path)
    assert calls[0] == "fsync" and calls[-2:] == ["replace", "fsync"]  # file, name, folder


def test_save_into_a_missing_folder(tmp_path: Path, state: dict):
    assert "cannot write" in error_of(save, state, tmp_path / "no" / "ckpt.pt")


# ---- damaged files -----------------------------------------------------------------------------


def test_missing(tmp_path: Path):
    assert f"no checkpoint at {tmp_path / 'ckpt.pt'}" == error_of(read, tmp_path / "ckpt.pt")
    assert "no checkpoint at" in error_of(read, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_truncated(path: Path, share: float):
    """Fault 3: no bytes, half, all but the last; the message names the one before, if it exists."""
    data = path.read_bytes()
    path.write_bytes(data[: min(int(len(data) * share), len(data) - 1)])
    assert "corrupt or incomplete" in error_of(read, path) and "prev" not in error_of(read, path)
    path.with_name("ckpt_prev.pt").write_bytes(data)
    assert str(path.with_name("ckpt_prev.pt")) in error_of(read, path)


def test_bit_flips_in_tensors(path: Path, state: dict):
    """Fault 4: torch.load alone reads damaged numbers without a word."""
    data, rng = path.read_bytes(), random.Random(0)
    for tensor in [*state["model"].values(), *state["ema"].values()]:
        raw = tensor.numpy().tobytes()
        begin = data.find(raw)
        assert begin >= 0
        at = begin + rng.randrange(len(raw))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        assert "corrupt" in error_of(read, path)


@pytest.mark.parametrize("method", [8, 9, 12, 14, 93, 99])
def test_compression_that_is_not_there(path: Path, method: int):
    """Deflate, bzip2, LZMA and what Python has not, in the headers of a file without any."""
    data = bytearray(path.read_bytes())
    for sign, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = data.find(sign)
        data[at + place] = method
    path.write_bytes(data)
    assert "corrupt" in error_of(checkpoint.read, path)


def test_bit_flips_anywhere(path: Path, state: dict):
    """Refused, or of no consequence (padding, dates): never other values, never a traceback."""
    data, rng = path.read_bytes(), random.Random(1)
    for _ in range(60):
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :])
        try:
            got = read(path)
        except UserError:
            continue
        assert same(got, state)


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("kind", ["zip", "legacy", "pickle"])
def test_nothing_in_a_file_is_executed(path: Path, state: dict, kind: str):
    """Fault 5: refused, and no second attempt with weights_only=False."""
    marker = path.with_name("marker")
    content = {**state, "model": {"w": Evil(marker)}}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"model": Evil(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    for action in (read, load):
        assert str(path) in error_of(action, str(path))
        assert not marker.exists()
    assert str(path) in error_of(published.read, str(path.rename(path.with_suffix(".pth"))))
    assert not marker.exists()
    pickle.loads(pickle.dumps(Evil(marker)))
    assert marker.exists()  # the payload is real


@pytest.mark.parametrize("key", list(checkpoint.FIELDS))
def test_fields(path: Path, state: dict, key: str):
    torch.save({k: v for k, v in state.items() if k != key}, path)
    assert f"{key} is missing" in error_of(read, path)
    torch.save({**state, key: "text"}, path)
    assert f"{key} is a str" in error_of(read, path)


@pytest.mark.parametrize("content", [[1, 2], torch.zeros(3), {}, "text", None])
def test_not_a_checkpoint(path: Path, content: Any):
    torch.save(content, path)
    assert "not a checkpoint of this project" in error_of(read, path)


def test_other_formats(path: Path, state: dict):
    """Fault 16: both versions are named."""
    for version in (0, 2):
        torch.save({**state, "format": version}, path)
        assert f"format {version}" in error_of(read, path) and "format 1" in error_of(read, path)


def test_unknown_config_keys(path: Path, state: dict):
    """A checkpoint of a later version: no option that it was trained with is ignored."""
    torch.save({**state, "config": {**state["config"], "new_option": 1}}, path)
    message = error_of(load, str(path))
    assert str(path) in message and "new_option" in message


def test_saved_on_a_gpu(path: Path, state: dict, monkeypatch):
    """Fault 15: tensors whose home was cuda:0 load on a machine without one."""
    monkeypatch.setattr(torch.serialization, "location_tag", lambda _: "cuda:0")
    torch.save(state, path)
    monkeypatch.undo()
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError):
            torch.load(path, weights_only=True)  # the tag has an effect
    assert all(t.device.type == "cpu" for t in read(path)["model"].values())


# ---- names -------------------------------------------------------------------------------------


@pytest.fixture
def small() -> Model:
    """A random network of two blocks on bytes."""
    return random_model(SMALL)


def random_model(cfg: Config) -> Model:
    meta = {"vocab_size": 259, "specials": Bytes.specials}
    objective = build_objective(cfg, meta)
    net = build_network(cfg, objective)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng) * 0.3)
    return Model(net.eval(), objective, Bytes(), cfg, meta, 0)


def test_names_and_shapes_are_strict(small: Model):
    """Fault 13: strict=False would train a network that is half random."""
    good = {k: v.clone() for k, v in small.net.state_dict().items()}
    less = {k: v for k, v in good.items() if k != "blocks.1.attn.qkv.weight"}
    assert "x.pt" in error_of(load_weights, small.net, less, "x.pt")
    assert "missing blocks.1.attn.qkv.weight" in error_of(load_weights, small.net, less, "x.pt")
    more = {**good, "module.head.bias": good["head.bias"]}
    assert "unexpected module.head.bias" in error_of(load_weights, small.net, more, "x.pt")
    other = {**good, "head.bias": torch.zeros(3)}
    assert "head.bias is (3,) instead of (260,)" in error_of(load_weights, small.net, other, "x.pt")
    message = error_of(load_weights, small.net, {}, "x.pt")
    assert "more" in message and len(message) < 400  # a list, but not a page
    assert all(torch.equal(v, good[k]) for k, v in small.net.state_dict().items())  # untouched


def test_compiling_changes_no_name(small: Model):
    """Fault 14: compiled in place, so no `_orig_mod.` appears in a checkpoint."""
    before = list(small.net.state_dict())
    for block in small.net.blocks:
        block.compile()
    assert list(small.net.state_dict()) == before


def test_a_noise_schedule_is_a_class_and_a_name(monkeypatch: pytest.MonkeyPatch):
    """The config takes what NOISES has; nothing else knows their names."""
    monkeypatch.setitem(diffusion.NOISES, "mine", lambda: diffusion.Power(3.0))
    meta = {"vocab_size": 5, "specials": {}}
    for name in ("masked", "sedd", "bd3", "mlm"):
        cfg = replace(SMALL, objective=name, noise="mine", time_input=name != "mlm")
        assert build_objective(cfg, meta).noise == diffusion.Power(3.0)
    cfg = replace(SMALL, objective="masked", noise="mine", importance=True)
    assert "noise" in error_of(build_objective, cfg, meta)  # it has no inverse
    assert "mine" in error_of(build_objective, replace(cfg, noise="pink"), meta)


def test_a_noise_level_needs_the_final_norm_that_it_shifts():
    meta = {"vocab_size": 5, "specials": {}}
    cfg = replace(SMALL, objective="masked", final_norm=False)
    assert "time_input=False" in error_of(build_network, cfg, build_objective(cfg, meta))
    cfg = replace(cfg, time_input=False)
    build_network(cfg, build_objective(cfg, meta))


def test_averaged_weights_are_loaded_unless_refused(path: Path, state: dict):
    for use, key in ((True, "ema"), (False, "model")):
        got = load(str(path), use_ema=use).net.state_dict()
        assert all(torch.equal(got[k], v) for k, v in state[key].items())
    assert not same(state["ema"], state["model"])
    torch.save({**state, "ema": None}, path)
    got = load(str(path)).net.state_dict()
    assert all(torch.equal(got[k], v) for k, v in state["model"].items())


def test_loaded_model_is_complete(path: Path):
    """The checkpoint alone is enough: the corpus is not looked at."""
    model = load(str(path))
    assert model.tokenizer.encode("dab") == [3, 0, 1] and model.step == 4
    assert not model.net.training and model.meta["task"] == "palindrome"


# ---- published weights -------------------------------------------------------------------------

# names and shapes of louaaron/sedd-small, for one block; C width, D conditioning, V states
PUBLISHED = """
vocab_embed.embedding V,C | sigma_map.mlp.0.weight D,256 | sigma_map.mlp.0.bias D
sigma_map.mlp.2.weight D,D | sigma_map.mlp.2.bias D
blocks.0.norm1.weight C | blocks.0.attn_qkv.weight 3C,C | blocks.0.attn_out.weight C,C
blocks.0.norm2.weight C | blocks.0.mlp.0.weight 4C,C | blocks.0.mlp.0.bias 4C
blocks.0.mlp.2.weight C,4C | blocks.0.mlp.2.bias C
blocks.0.adaLN_modulation.weight 6C,D | blocks.0.adaLN_modulation.bias 6C
output_layer.norm_final.weight C | output_layer.linear.weight V,C | output_layer.linear.bias V
output_layer.adaLN_modulation.weight 2C,D | output_layer.adaLN_modulation.bias 2C
"""


def test_published_names_and_shapes():
    """Written down from the published file: `to_sedd` alone could be wrong in both directions."""
    model = random_model(replace(SMALL, n_layer=1))
    size = {"C": 16, "D": 8, "V": 260}
    expected = {}
    for entry in PUBLISHED.strip().replace("\n", " | ").split(" | "):
        name, shape = entry.split()
        dims = (d.lstrip("0123456789") for d in shape.split(","))
        counts = (d.rstrip("CDV") for d in shape.split(","))
        pairs = zip(dims, counts, strict=True)
        expected[name] = tuple(int(c or 1) * size.get(d, 1) for d, c in pairs)
    got = to_sedd(model.net.state_dict(), 1)
    assert {k: tuple(v.shape) for k, v in got.items()} == expected


def test_modulations_keep_their_places(small: Model):
    """Six vectors per block in order, then two of the output: any permutation has right shapes."""
    ours = small.net.state_dict()["modulation.weight"]
    theirs = to_sedd(small.net.state_dict(), 2)
    assert torch.equal(theirs["blocks.1.adaLN_modulation.weight"], ours[96:192])
    assert torch.equal(theirs["output_layer.adaLN_modulation.weight"], ours[192:])


def sedd_folder(folder: Path, model: Model, **noise: Any) -> Path:
    """config.json and model.safetensors as on the hub, with the buffer that we recompute."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    cfg = model.config
    options = {
        "ngpus": 1,
        "tokens": 259,
        "graph": {"type": cfg.graph, "file": "data", "report_all": False},
        "noise": {"type": cfg.noise, "sigma_min": cfg.sigma_min, "sigma_max": cfg.sigma_max},
        "model": {
            "name": "tiny",
            "type": "ddit",
            "hidden_size": cfg.n_embd,
            "cond_dim": cfg.cond_dim,
            "length": cfg.block_size,
            "n_blocks": cfg.n_layer,
            "n_heads": cfg.n_head,
            "scale_by_sigma": cfg.scale_by_sigma,
            "dropout": 0.1,
        },
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(options))
    weights = to_sedd(model.net.state_dict(), cfg.n_layer)
    save_file(weights | {"rotary_emb.inv_freq": torch.ones(4)}, folder / "model.safetensors")
    return folder


VARIANTS = {
    "absorb": SMALL,
    "uniform": replace(SMALL, graph="uniform", scale_by_sigma=False),
    "geometric": replace(SMALL, noise="geometric", sigma_min=1e-3, sigma_max=9.0),
    "unscaled": replace(SMALL, scale_by_sigma=False),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_published_folder(tmp_path: Path, name: str):
    """Same logits under SEDD's names, and the graph and noise that its config.json tells."""
    model = random_model(VARIANTS[name])
    got = load(str(sedd_folder(tmp_path / "sedd", model)))
    keys = "graph noise scale_by_sigma n_layer n_head n_embd cond_dim block_size".split()
    for key in keys:
        assert getattr(got.config, key) == getattr(model.config, key)
    assert got.objective.noise == model.objective.noise
    ids = torch.randint(0, 259, (3, 8), generator=torch.Generator().manual_seed(2))
    a, b = (logits(m.net, m.objective, ids) for m in (model, got))
    assert torch.equal(a, b) and a.std() > 0.1
    assert isinstance(got.tokenizer, Bytes)


def test_published_folder_with_other_names(tmp_path: Path, small: Model):
    """A name too many or too few is told, and so is each missing file."""
    save_file = pytest.importorskip("safetensors.torch").save_file
    folder = sedd_folder(tmp_path / "sedd", small)
    file, weights = folder / "model.safetensors", to_sedd(small.net.state_dict(), 2)
    save_file({**weights, "extra.weight": torch.zeros(2)}, file)
    assert "unexpected extra.weight" in error_of(load, str(folder))
    missing = "blocks.1.mlp.2.bias"
    save_file({k: v for k, v in weights.items() if k != missing}, file)
    assert missing in error_of(load, str(folder))
    for name in ("model.safetensors", "config.json"):
        (folder / name).write_bytes(b"{")
        assert name in error_of(load, str(folder))
        (folder / name).unlink()
        assert f"{name} is missing" in error_of(load, str(folder))
        sedd_folder(tmp_path / f"again-{name}", small)
        (folder / name).write_bytes((tmp_path / f"again-{name}" / name).read_bytes())


@pytest.mark.parametrize("text", ["{}", "[]", '{"model": {}}', '{"model": 3, "graph": 3}'])
def test_published_folder_with_another_config(tmp_path: Path, small: Model, text: str):
    folder = sedd_folder(tmp_path / "sedd", small)
    (folder / "config.json").write_text(text)
    assert str(folder) in error_of(load, str(folder))


@pytest.mark.parametrize("averaged", [True, False])
def test_training_checkpoint_of_sedd(tmp_path: Path, small: Model, averaged: bool):
    """A .pth: the averaged weights are a list in the order of the parameters."""
    other = random_model(SMALL).net
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5)
    raw = to_sedd(other.state_dict(), 2) | {"rotary_emb.inv_freq": torch.ones(4)}
    shadow = list(to_sedd(small.net.state_dict(), 2).values())
    content = {"model": raw, "step": 7}
    if averaged:
        content["ema"] = {"decay": 0.999, "num_updates": 7, "shadow_params": shadow}
    torch.save(content, tmp_path / "checkpoint.pth")
    got = published.read(str(tmp_path / "checkpoint.pth"))
    assert got.config == {"n_embd": 16, "cond_dim": 8, "n_head": 2, "n_layer": 2}
    net = build_network(SMALL, small.objective)
    load_weights(net, got.weights, "x.pth")
    ids = torch.randint(0, 259, (2, 8), generator=torch.Generator().manual_seed(3))
    wanted = small.net if averaged else other
    assert torch.equal(logits(net, small.objective, ids), logits(wanted, small.objective, ids))


def test_training_checkpoint_with_a_short_average(tmp_path: Path, small: Model):
    raw = to_sedd(small.net.state_dict(), 2) | {"rotary_emb.inv_freq": torch.ones(4)}
    shadow = list(raw.values())[:-2]
    path = tmp_path / "checkpoint.pth"
    torch.save({"model": raw, "ema": {"shadow_params": shadow}}, path)
    assert "the EMA has" in error_of(published.read, str(path))
    del raw["rotary_emb.inv_freq"], raw["sigma_map.mlp.0.weight"]
    torch.save({"model": raw}, path)
    assert "sigma_map.mlp.0.weight is missing" in error_of(published.read, str(path))
    torch.save({"weights": raw}, path)
    assert "no entry model" in error_of(published.read, str(path))
    assert str(path) in error_of(load, str(path))  # it has no tokenizer: only for --init_from


def test_round_trip_of_names(small: Model):
    state = small.net.state_dict()
    back = from_sedd(to_sedd(state, 2))
    assert set(back) == set(state) and all(torch.equal(back[k], state[k]) for k in state)


@pytest.mark.parametrize(
    "layers, heads, width, count", [(12, 12, 768, 169_627_218), (24, 16, 1024, 424_477_010)]
)
def test_published_sizes(layers: int, heads: int, width: int, count: int):
    """Parameters of louaaron/sedd-small and sedd-medium, without allocating any."""
    cfg = Config(n_layer=layers, n_head=heads, n_embd=width, cond_dim=128, block_size=1024)
    with torch.device("meta"):
        meta = {"vocab_size": GPT2.vocab_size, "specials": GPT2.specials}
        net = build_network(cfg, build_objective(cfg, meta))
    assert sum(p.numel() for p in net.parameters()) == count


# ---- the hub -----------------------------------------------------------------------------------


def test_hub_unreachable(monkeypatch):
    """One line that says what to do instead, whatever the library raises."""

    def offline(*_: Any, **__: Any):
        raise ConnectionError("first line\nsecond line")

    fake = types.SimpleNamespace(snapshot_download=offline)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    message = error_of(load, "louaaron/sedd-small")
    assert "louaaron/sedd-small" in message and "config.json and model.safetensors" in message


def test_hub_library_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install huggingface_hub" in error_of(load, "louaaron/sedd-small")


def test_the_folder_of_a_run_is_its_checkpoint(trained: Any, tmp_path: Path, monkeypatch: Any):
    run, cases = trained(), {}
    cases[str(run)] = str(run / "ckpt.pt")
    cases[str(run / "ckpt.pt")] = str(run / "ckpt.pt")
    sharded = tmp_path / "sharded"
    (sharded / "ckpt" / "000003").mkdir(parents=True)
    (sharded / "ckpt" / "000003" / "layout.json").touch()
    cases |= {str(path): str(sharded / "ckpt") for path in (sharded, sharded / "ckpt")}
    (tmp_path / "exported").mkdir()
    (tmp_path / "exported" / "config.json").touch()
    cases |= {name: name for name in (str(tmp_path / "exported"), "louaaron/sedd-small")}
    assert {name: checkpoint.find(name) for name in cases} == cases
    assert load(str(run)).step == load(str(run / "ckpt.pt")).step


def test_no_checkpoint_is_told_with_the_nearest(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    assert "no checkpoint at no/such.pt; train.py makes one" in error_of(load, "no/such.pt")
    for name in ("palindrome", "star_tiny"):
        Path("out", name).mkdir(parents=True)
        Path("out", name, "ckpt.pt").touch()
    Path("out/empty").mkdir()
    for typo in ("out/palindrom/ckpt.pt", "out/palindrom", "palindrom", "ut/palindrom/ckpt.pt"):
        message = error_of(load, typo)
        assert f"no checkpoint at {typo}; the nearest is out/palindrome" == message
    assert "no checkpoint in out/empty: neither ckpt.pt nor" in error_of(load, "out/empty")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    message = error_of(load, "someone/model")
    assert "someone/model is no file or folder here" in message
    assert "huggingface_hub is not installed: pip install huggingface_hub" in message


def test_hub_download(monkeypatch, tmp_path: Path, small: Model):
    """What is fetched is read like a folder, and nothing else is fetched."""
    asked = {}
    folder = sedd_folder(tmp_path / "sedd", small)

    def fetch(source: str, **how: Any):
        asked.update(how, source=source)
        return str(folder)

    fake = types.SimpleNamespace(snapshot_download=fetch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert load("someone/sedd").config.n_layer == 2
    assert asked["source"] == "someone/sedd"
    files = ["config.json", "model-*-of-*.safetensors", "model.safetensors"]
    files += ["model.safetensors.index.json", "tokenizer.json"]
    assert sorted(asked["allow_patterns"]) == files


def test_hub_download_of_older_files(monkeypatch, tmp_path: Path):
    """What was published before safetensors is asked for only where there are none."""
    asked = []

    def fetch(source: str, allow_patterns: list[str]):
        asked.append(allow_patterns)
        if "pytorch_model.bin" in allow_patterns:
            torch.save({"a": torch.ones(2)}, tmp_path / "pytorch_model.bin")
        (tmp_path / "config.json").write_text("{}")
        return str(tmp_path)

    fake = types.SimpleNamespace(snapshot_download=fetch)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert "so this is no such model" in error_of(load, "someone/model")
    assert len(asked) == 2 and "pytorch_model.bin" not in asked[0]


# ---- files of others ---------------------------------------------------------------------------


class Whole(torch.nn.Linear):
    """A module that is pickled with its code."""


def legacy(content: Any, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def script(path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(path))


NANO = {"model": {"w": torch.ones(2)}, "model_args": {}, "iter_num": 3}
OTHER_FILES: dict[str, tuple[Any, str]] = {
    "legacy": (lambda p: legacy({"w": torch.ones(2)}, p), "before 1.6"),
    "module": (lambda p: torch.save(Whole(2, 2), p), "weights_only=False"),
    "old module": (lambda p: legacy(Whole(2, 2), p), "before 1.6"),
    "pickle": (lambda p: p.write_bytes(pickle.dumps({"w": [1.0]})), "a pickle"),
    "script": (script, "torch.jit.save"),
    "pointer": (lambda p: p.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs"),
    "nanogpt": (lambda p: torch.save(NANO, p), "python -m pretrained.causal --nanogpt="),
    "lightning": (
        lambda p: torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 1}, p),
        "weights under state_dict, without a configuration",
    ),
    "trainer": (
        lambda p: torch.save({"model_state_dict": {"w": torch.ones(2)}, "loss": 1.0}, p),
        "weights under model_state_dict, without a configuration",
    ),
    "alone": (lambda p: torch.save({"w": torch.ones(2)}, p), "weights alone"),
    "list": (lambda p: torch.save([torch.ones(2)], p), "a list"),
    "other": (lambda p: torch.save({"epoch": 3}, p), "without weights by name, of ['epoch']"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("kind", OTHER_FILES)
def test_files_of_others_are_refused_with_the_way_on(tmp_path: Path, kind: str, suffix: str):
    """Not as damaged: what it is, and the command or step that makes it usable."""
    write, words = OTHER_FILES[kind]
    path = tmp_path / f"mine{suffix}"
    write(path)
    message = error_of(read, path) if suffix == ".pt" else error_of(published.read, str(path))
    if kind == "nanogpt" and suffix == ".pth":
        words = "vocab_embed.embedding is missing"  # SEDD's have a model, too
    assert str(path) in message and words in message and "corrupt" not in message


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", ["legacy", "module", "script"])
def test_the_command_that_is_told_works(tmp_path: Path, kind: str):
    path = tmp_path / "mine.pt"
    OTHER_FILES[kind][0](path)
    code = error_of(read, path).split('python -c "')[1].rstrip('"')
    exec(code.replace("NEW.pt", str(tmp_path / "new.pt")), {})
    assert "weights" in error_of(read, tmp_path / "new.pt")
    assert published.files.read_weights(tmp_path / "new.pt")


@pytest.mark.parametrize(
    "names, want",
    [
        (["_orig_mod.a.b", "_orig_mod.c"], ["a.b", "c"]),
        (["module.a", "module.b"], ["a", "b"]),
        (["module._orig_mod.a", "module._orig_mod.b"], ["a", "b"]),
        (["_forward_module.module.model.a"], ["a"]),
        (["model.model.layers.0.w", "model.lm_head.w"], ["model.layers.0.w", "lm_head.w"]),
        (["model.layers.0.w", "model.norm.w"], ["model.layers.0.w", "model.norm.w"]),
        (["model.bert.w", "model.cls.w"], ["bert.w", "cls.w"]),
        (["blocks.0._orig_mod.w", "head.w"], ["blocks.0.w", "head.w"]),
        (["a._checkpoint_wrapped_module.w", "_fsdp_wrapped_module.b.w"], ["a.w", "b.w"]),
        (["module.a", "b"], ["module.a", "b"]),
        (["model_orig_mod.a", "my_orig_mod.b"], ["model_orig_mod.a", "my_orig_mod.b"]),
        ([], []),
    ],
)
def test_bare_names(names: list[str], want: list[str]):
    """Wrappers are no part of a name anywhere, `module` and `model` only in front of all."""
    got = published.bare({name: torch.tensor(i) for i, name in enumerate(names)}, "x")
    assert list(got) == want and [int(v) for v in got.values()] == [*range(len(names))]


def test_one_name_twice_is_refused():
    both = {"_orig_mod.a": torch.ones(1), "a": torch.zeros(1), "b": torch.ones(1)}
    assert "_orig_mod.a stands there with and without" in error_of(published.bare, both, "x.bin")


def test_unexpected_names_are_shown_beside_missing_ones(small: Model):
    """So that one sees why nothing fits."""
    state = {f"encoder.{k}": v for k, v in small.net.state_dict().items()}
    message = error_of(load_weights, small.net, state, "x")
    assert "missing embed.weight" in message and "unexpected encoder.embed.weight" in message


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_forward_module.module."])
@pytest.mark.parametrize("kind", ["sedd", "pth", "ours"])
def test_wrapped_names_of_every_kind(tmp_path: Path, small: Model, kind: str, prefix: str):
    """A folder of SEDD, a file of its training, and what we export ourselves."""
    files = pytest.importorskip("safetensors.torch")
    folder = tmp_path / "it"
    if kind == "ours":
        checkpoint.export(small, folder)
    else:
        sedd_folder(folder, small)
    state = files.load_file(folder / "model.safetensors")
    wrapped = {prefix + k: v for k, v in state.items()}
    if kind == "pth":
        wrapped[f"{prefix}rotary_emb.inv_freq"] = torch.ones(4)
        torch.save({"model": wrapped}, tmp_path / "x.pth")
        got = published.read(str(tmp_path / "x.pth")).weights
    else:
        files.save_file(wrapped, folder / "model.safetensors")
        got = load(str(folder)).net.state_dict()
    assert all(torch.equal(got[k], v) for k, v in small.net.state_dict().items())


@pytest.mark.parametrize("source", ["nowhere", "./no/where", "/no/where", "a/b/c", "out/x/ckpt.pt"])
def test_what_is_no_hub_id(source: str):
    """A misspelt path is never looked up in the network."""
    assert source in error_of(load, source)


# ---- export ------------------------------------------------------------------------------------


@pytest.fixture
def exported(tmp_path: Path, path: Path) -> tuple[Model, Model]:
    """The tiny model, and what was exported from it."""
    pytest.importorskip("safetensors")
    model = load(str(path))
    checkpoint.export(model, tmp_path / "export")
    return model, load(str(tmp_path / "export"))


def test_export_round_trip(tmp_path: Path, exported: tuple[Model, Model]):
    """Identical logits; JSON and safetensors, no pickle."""
    model, other = exported
    files = sorted(p.name for p in (tmp_path / "export").iterdir())
    assert files == ["config.json", "model.safetensors"]
    json.loads((tmp_path / "export/config.json").read_text())
    ids = torch.randint(0, 7, (3, 8), generator=torch.Generator().manual_seed(2))
    assert torch.equal(*(logits(m.net, m.objective, ids) for m in exported))
    assert other.config == model.config and other.tokenizer.spec() == model.tokenizer.spec()
    assert not other.net.training


def test_exported_model_samples_the_same(exported: tuple[Model, Model]):
    """Rows framed by BOS and EOS stay framed: an export must know its corpus as a checkpoint does.
    Without that, it writes BOS and PAD into the text that a checkpoint never would."""
    texts = []
    for model in exported:
        begun = [canvas(model, "a")] * 4
        texts.append(generate(model, begun, SampleOptions(steps=8), seed=1).texts)
    assert texts[0] == texts[1]


def test_export_to_a_file_is_refused(path: Path):
    pytest.importorskip("safetensors")
    assert str(path) in error_of(checkpoint.export, load(str(path)), path)


@pytest.mark.parametrize("corpus", [{}, {"meta": None, "files": {}}, {"meta": {}, "files": 3}])
def test_a_checkpoint_without_its_corpus_is_refused(trained: Any, tmp_path: Path, corpus: dict):
    state = checkpoint.read(trained() / "ckpt.pt")
    torch.save({**state, "corpus": corpus}, tmp_path / "ckpt.pt")
    assert "corpus" in error_of(load, str(tmp_path / "ckpt.pt"))


def test_a_pth_is_no_model_to_sample_from(tmp_path: Path):
    (tmp_path / "x.pth").write_bytes(b"")
    assert "start a run" in error_of(load, str(tmp_path / "x.pth"))


def test_an_objective_is_a_class_and_a_line(monkeypatch: pytest.MonkeyPatch):
    """docs/recipes.md: `from_config` reads the options; by default, only the vocabulary counts."""

    class Mine(diffusion.Masked):
        @classmethod
        def from_config(cls, cfg: Config, vocab_size: int, specials: dict) -> Objective:
            return cls(vocab_size, specials.get("mask"), diffusion.noise_schedule(cfg))

    class Plain(Objective):
        def __init__(self, vocab_size: int, specials: dict[str, int]):
            self.sizes = vocab_size, specials

    for name, cls in (("mine", Mine), ("plain", Plain)):
        monkeypatch.setitem(checkpoint.OBJECTIVES, name, cls.from_config)
    meta = {"vocab_size": 5, "specials": {"mask": 4}}
    built = build_objective(replace(SMALL, objective="mine", noise="cosine"), meta)
    assert type(built) is Mine and built.mask_id == 4 and built.noise == diffusion.Cosine()
    assert build_objective(replace(SMALL, objective="plain"), meta).sizes == (5, {"mask": 4})
