"""AntiBERTy, a masked language model of antibodies: BERT with heads of its own, in the package
antiberty."""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpoint
from objective import SampleOptions
from sample import canvas, generate

pytestmark = pytest.mark.models
transformers = pytest.importorskip("transformers", reason="needs transformers")
safetensors = pytest.importorskip("safetensors.torch", reason="needs safetensors")

HEAVY = (  # of trastuzumab
    "EVQLVESGGGLVQPGGSLRLSCAASGFNIKDTYIHWVRQAPGKGLEWVARIYPTNGYTRYADSVKGRFTISADTSKNTAYLQMNSLRAEDT"
    "AVYYCSRWGGDGFYAMDYWGQGTLVTVSS"
)
CDR3 = "SRWGGDGFYAMDY"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights and configuration with the vocabulary beside them, as docs/antibodies.md says."""
    spec = importlib.util.find_spec("antiberty")
    if spec is None:
        pytest.skip("needs AntiBERTy: pip install antiberty")
    source = Path(spec.origin).parent / "trained_models"
    if not (source / "AntiBERTy_md_smooth/pytorch_model.bin").is_file():
        pytest.skip("the installed antiberty comes without its weights")
    made = tmp_path_factory.mktemp("antiberty")
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(source / "AntiBERTy_md_smooth" / name, made)
    shutil.copy(source / "vocab.txt", made)
    return made


@pytest.fixture(scope="module")
def model(folder: Path) -> checkpoint.Model:
    return checkpoint.load(str(folder))


@pytest.fixture(scope="module")
def ids(model: checkpoint.Model) -> torch.Tensor:
    """The heavy chain between [CLS] and [SEP], whole and with every tenth place masked."""
    whole = torch.tensor([2, *model.tokenizer.encode(HEAVY), 3])
    masked = whole.clone()
    masked[5::10] = model.objective.mask_id
    return torch.stack([whole, masked])


def test_other_heads_are_told(folder: Path, capsys: Any):
    checkpoint.load(str(folder))
    told = capsys.readouterr().out
    assert told.startswith("not used, of other heads: ") and "bert.pooler.dense.weight" in told
    assert all(f"cls.{head}.weight" in told for head in ("species", "chain", "graft"))


@torch.no_grad()
def test_logits_are_those_of_transformers(model: checkpoint.Model, folder: Path, ids: torch.Tensor):
    theirs = transformers.BertForMaskedLM.from_pretrained(folder).eval()
    z = model.net.logits(model.net.features(ids))
    torch.testing.assert_close(z, theirs(ids).logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_logits_are_those_of_its_own_class(
    model: checkpoint.Model, folder: Path, ids: torch.Tensor, monkeypatch: Any
):
    """The one in the package. It is of an older transformers, whose way of initialising fails in
    today's, so it is filled by hand, every weight of it."""
    package = pytest.importorskip("antiberty", reason="needs AntiBERTy: pip install antiberty")
    monkeypatch.setattr(package.AntiBERTy, "init_weights", lambda self: None)
    theirs = package.AntiBERTy(transformers.BertConfig.from_pretrained(folder)).eval()
    weights = torch.load(folder / "pytorch_model.bin", map_location="cpu", weights_only=True)
    found = theirs.load_state_dict(weights, strict=False)
    assert not found.missing_keys
    assert set(found.unexpected_keys) <= {"bert.embeddings.position_ids"}
    z = model.net.logits(model.net.features(ids))
    torch.testing.assert_close(z, theirs(ids).prediction_logits, rtol=0, atol=1e-5)


def test_it_knows_antibodies(model: checkpoint.Model, ids: torch.Tensor):
    """Of the masked places outside CDR3, most are predicted; of a shuffled chain, few."""
    hidden = ids[1] == model.objective.mask_id
    mixed = ids.clone()
    order = torch.randperm(len(HEAVY), generator=torch.Generator().manual_seed(0)) + 1
    mixed[:, 1:-1] = ids[0, order]
    mixed[1, hidden] = model.objective.mask_id

    @torch.no_grad()
    def right(x: torch.Tensor) -> float:
        z = model.net.logits(model.net.features(x[1:]))[0, hidden]
        return float((z.argmax(-1) == x[0, hidden]).float().mean())

    assert right(ids) >= 0.7 and right(mixed) <= 0.4


def test_infilling_a_loop(model: checkpoint.Model):
    """A hole of 13 in the place of CDR3: residues alone, all around as it was, the same again."""
    before, after = HEAVY.split(CDR3)
    options = SampleOptions(sampler="confidence")
    start = [canvas(model, infill=f"{before}[{len(CDR3)}]{after}")] * 4
    texts = generate(model, start, options, seed=1).texts
    for text in texts:
        assert len(text) == len(HEAVY) and text.startswith(before) and text.endswith(after)
        assert set(text) <= set("ACDEFGHIKLMNPQRSTVWY")
    assert len(set(texts)) > 1
    assert generate(model, start, options, seed=1).texts == texts


def test_command(folder: Path, run_cli: Any):
    before, after = HEAVY.split(CDR3)
    flags = (f"--infill={before}[13]{after}", "--sampler=confidence", "--num_samples=2")
    done = run_cli("sample.py", f"--ckpt={folder}", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(before) == 2


@torch.no_grad()
def test_a_run_begins_with_it(folder: Path, model: checkpoint.Model, tmp_path: Path, run_cli: Any):
    """A corpus in its letters, and a step of masked diffusion from its weights."""
    (tmp_path / "chains.txt").write_text("".join(f"{HEAVY[i:]}\n" for i in range(100)))
    where = f"--data_dir={tmp_path / 'data'}"
    flags = (f"--source={tmp_path / 'chains.txt'}", f"--tokenizer={folder}", "--separator=\\n")
    flags += ("--test_split_pct=0.1",)
    done = run_cli("prepare_pretrain.py", *flags, "--packing=rows", "--dataset=chains", where)
    assert done.returncode == 0, done.stderr
    flags = (f"--init_from={folder}", "--dataset=chains", where, f"--out_dir={tmp_path / 'out'}")
    small = ("--max_iters=1", "--eval_iters=1", "--batch_size=1", "--block_size=130")
    done = run_cli("train.py", *flags, *small, "--objective=masked", "--eval_interval=1")
    assert done.returncode == 0, done.stderr
    assert "not used, of other heads" in done.stdout
