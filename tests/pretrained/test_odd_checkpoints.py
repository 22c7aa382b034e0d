"""Checkpoints of transformers that differ from what its newest release saves: an encoder under
another prefix, heads of other tasks, other numbers, output layers that are tied or not."""

import json
from pathlib import Path
from typing import Any, Callable

import pytest
import torch
from test_causal_models import theirs as causal
from test_masked_models import FAMILIES, V, error_of, publish, tokens

import checkpoint
from pretrained import published
from tokenizer import HF

transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]


def rewritten(folder: Path, change: Change, **config: Any) -> Path:
    """The folder with other weights, and other entries of its config.json."""
    state = safetensors.load_file(folder / "model.safetensors")
    state = {k: v.clone().contiguous() for k, v in change(state).items()}
    safetensors.save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    return folder


def logits(folder: Path) -> torch.Tensor:
    """Of our network, on `tokens()`."""
    got = published.read(str(folder))
    rows = json.loads(got.config["backbone"])["vocab_size"]
    kind = json.loads(got.config["backbone"])["model_type"]
    objective = "ar" if kind in published.CAUSAL else "masked"
    cfg = checkpoint.Config(
        objective=objective, time_input=False, backbone=got.config["backbone"], block_size=32
    )
    meta = {"vocab_size": rows, "specials": {"mask": 4, "eos": 0, "pad": 0}}
    net = checkpoint.build_network(cfg, checkpoint.build_objective(cfg, meta)).eval()
    checkpoint.load_weights(net, got.weights, str(folder))
    with torch.no_grad():
        return net.logits(net.features(tokens()))


def require_equal(folder: Path, want: Any) -> None:
    with torch.no_grad():
        torch.testing.assert_close(logits(folder), want(tokens()).logits, rtol=0, atol=1e-5)


# ---- prefixes ----------------------------------------------------------------------------------

PREFIX = {"bert": "bert.", "roberta": "roberta.", "distilbert": "distilbert."}
PREFIX |= {"modernbert": "model."}


@pytest.mark.parametrize("name", PREFIX)
@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder.", "antiberty."])
def test_encoder_under_another_prefix(tmp_path: Path, capsys: Any, name: str, prefix: str):
    """The encoder alone is renamed; it is told in one line, and the network is the same."""
    own, model = PREFIX[name], publish(tmp_path, name)

    def change(state: dict) -> dict:
        return {
            prefix + k.removeprefix(own) if k.startswith(own) else k: v for k, v in state.items()
        }

    require_equal(rewritten(tmp_path, change), model)
    [line] = capsys.readouterr().out.splitlines()
    assert f"read as {own!r}" in line and (repr(prefix) in line if prefix else "no prefix" in line)


@pytest.mark.parametrize("name", PREFIX)
@pytest.mark.parametrize("prefix", ["antiberty.", "lm.net."])
def test_whole_model_inside_another(tmp_path: Path, capsys: Any, name: str, prefix: str):
    """Encoder and head under the prefix, with what belongs to nobody beside them."""
    model = publish(tmp_path, name)
    require_equal(rewritten(tmp_path, lambda s: {prefix + k: v for k, v in s.items()}), model)
    own = PREFIX[name]
    assert f"{prefix + own!r}, read as {own!r}" in capsys.readouterr().out
    folder = rewritten(tmp_path, lambda s: s | {"more.weight": torch.ones(2)})
    assert "unexpected network.more.weight" in error_of(logits, folder)


def test_own_names_are_not_told(tmp_path: Path, capsys: Any):
    require_equal(tmp_path, publish(tmp_path, "bert"))
    assert capsys.readouterr().out == ""


def test_layer_that_is_missing_under_another_prefix(tmp_path: Path):
    """Listed under the name that it should have, alone."""
    publish(tmp_path, "bert")
    lost = "encoder.layer.1.output.dense.bias"

    def change(state: dict) -> dict:
        bare = {k.removeprefix("bert."): v for k, v in state.items()}
        return {k: v for k, v in bare.items() if k != lost}

    message = error_of(logits, rewritten(tmp_path, change))
    assert message.endswith(f"weights do not fit: missing network.bert.{lost}")


def test_two_encoders_are_refused(tmp_path: Path):
    publish(tmp_path, "bert")
    two = rewritten(tmp_path, lambda s: {f"{a}.{k}": v for a in "qd" for k, v in s.items()})
    assert "two models, under the prefixes 'd.bert.' and 'q.bert.'" in error_of(logits, two)


def test_the_same_tensor_twice_is_refused(tmp_path: Path):
    """The head with and without the prefix of the whole: which one is meant?"""
    publish(tmp_path, "bert")

    def change(state: dict) -> dict:
        return {f"a.{k}": v for k, v in state.items()} | {
            "cls.predictions.bias": torch.ones(V),
        }

    assert "two tensors are the same" in error_of(logits, rewritten(tmp_path, change))


# ---- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PREFIX)
def test_encoder_without_a_head_is_refused(tmp_path: Path, name: str):
    """Saved by its own class, as sentence encoders are: no random head is made for it."""
    model = publish(tmp_path / "whole", name)
    model.base_model.save_pretrained(tmp_path / "bare")
    message = error_of(logits, tmp_path / "bare")
    assert f"without the layers of {type(model).__name__} that predict tokens" in message
    assert message == error_of(lambda: checkpoint.load(str(tmp_path / "bare")))


def test_part_of_a_head_is_missing(tmp_path: Path):
    publish(tmp_path, "bert")
    folder = rewritten(tmp_path, lambda s: {k: v for k, v in s.items() if "transform" not in k})
    assert "missing network.cls.predictions.transform.dense.weight" in error_of(logits, folder)


def with_more_heads(folder: Path, saved_by: list[str]) -> Path:
    more = {"cls.species.weight": torch.ones(6, 24), "cls.species.bias": torch.ones(6)}
    return rewritten(folder, lambda s: s | more, architectures=saved_by)


def test_heads_of_another_class_are_told(tmp_path: Path, capsys: Any):
    """A class of one's own, with a masked language model among its heads."""
    model = publish(tmp_path, "bert")
    require_equal(with_more_heads(tmp_path, ["AntiBERTy"]), model)
    assert capsys.readouterr().out.strip() == (
        "not used, of other heads: cls.species.bias, cls.species.weight"
    )


@pytest.mark.parametrize("saved_by", [["BertForMaskedLM"], []])
def test_what_the_own_class_does_not_have_is_refused(tmp_path: Path, saved_by: list[str]):
    publish(tmp_path, "bert")
    message = error_of(logits, with_more_heads(tmp_path, saved_by))
    assert "unexpected network.cls.species" in message


def test_another_class_has_no_more_layers(tmp_path: Path):
    """Of other heads, not of another encoder: a third layer is no head."""
    publish(tmp_path, "bert")
    name = "bert.encoder.layer.2.output.dense.bias"
    folder = rewritten(tmp_path, lambda s: s | {name: torch.ones(24)}, architectures=["Mine"])
    assert f"unexpected network.{name}" in error_of(logits, folder)


# ---- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", PREFIX)
def test_half_precision(tmp_path: Path, name: str, dtype: torch.dtype):
    """As transformers computes with them in float32."""
    publish(tmp_path, name)
    folder = rewritten(tmp_path, lambda s: {k: v.to(dtype) for k, v in s.items()})
    factory = transformers.AutoModelForMaskedLM
    require_equal(folder, factory.from_pretrained(folder, dtype=torch.float32).eval())


# ---- output layers that are tied, or not -------------------------------------------------------

DECODER = {"bert": "cls.predictions.decoder", "roberta": "lm_head.decoder"}
DECODER |= {"distilbert": "vocab_projector", "modernbert": "decoder"}
BIAS = {"bert": "cls.predictions.bias", "roberta": "lm_head.bias"}


def without(*names: str) -> Change:
    return lambda state: {k: v for k, v in state.items() if k not in names}


def tied_and_there(model: Any, name: str) -> Change:
    whole = {k: v.detach() for k, v in model.state_dict().items()}
    return lambda state: state | {k: v for k, v in whole.items() if DECODER[name] in k}


@pytest.mark.parametrize("name", DECODER)
def test_tied_decoder(tmp_path: Path, name: str):
    """Absent, and there as well."""
    model = publish(tmp_path, name)
    for change in (without(f"{DECODER[name]}.weight"), tied_and_there(model, name)):
        require_equal(rewritten(tmp_path, change), model)


@pytest.mark.parametrize("name", BIAS)
@pytest.mark.parametrize("lost", ["head", "decoder", "both"])
def test_one_name_of_a_tied_bias(tmp_path: Path, name: str, lost: str):
    """decoder.bias is the head's bias: either name will do, as in transformers."""
    model, names = publish(tmp_path, name), [BIAS[name], f"{DECODER[name]}.bias"]
    folder = rewritten(tmp_path, tied_and_there(model, name))
    if lost == "both":
        message = error_of(logits, rewritten(folder, without(*names)))
        assert f"missing network.{names[0]}" in message
        return
    folder = rewritten(folder, without(names[lost == "decoder"]))
    require_equal(folder, model)
    require_equal(folder, transformers.AutoModelForMaskedLM.from_pretrained(folder).eval())


def test_one_name_of_a_tied_embedding(tmp_path: Path):
    """The decoder's, as some exports have it."""
    model = publish(tmp_path, "bert")
    folder = rewritten(tmp_path, tied_and_there(model, "bert"))
    folder = rewritten(folder, without("bert.embeddings.word_embeddings.weight"))
    require_equal(folder, model)


def test_tied_by_name_only_is_refused(tmp_path: Path):
    """The configuration ties what differs in the file."""
    publish(tmp_path, "bert")
    other = {"cls.predictions.decoder.weight": torch.ones(V, 24)}
    message = error_of(logits, rewritten(tmp_path, lambda s: s | other))
    assert "differs from" in message and "to which it is tied" in message


@pytest.mark.parametrize("name", FAMILIES)
def test_untied_decoder(tmp_path: Path, capsys: Any, name: str):
    """With both matrices: each is used where it belongs, and a second bias of the head, which has
    no effect, is told. Without its own matrix, the decoder is missed."""
    model = publish(tmp_path, name, tie_word_embeddings=False)
    weights = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert not torch.equal(*weights)
    require_equal(tmp_path, model)
    assert ("without effect" in capsys.readouterr().out) == (name in BIAS)
    folder = rewritten(tmp_path, without(f"{DECODER[name]}.weight"))
    assert f"missing network.{DECODER[name]}.weight" in error_of(logits, folder)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
def test_body_of_a_causal_model_alone(tmp_path: Path, capsys: Any, name: str, tied: bool):
    """Enough where the output layer is the embedding; else it is missing, and that is said."""
    model = causal(name, tie_word_embeddings=tied)
    model.base_model.save_pretrained(tmp_path)
    if tied:
        require_equal(tmp_path, model)
        assert "the weights have no prefix" in capsys.readouterr().out
    else:
        assert "that predict tokens (lm_head.weight" in error_of(logits, tmp_path)


# ---- letters -----------------------------------------------------------------------------------

LETTERS = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nA\nC\nD"


def test_vocabulary_of_letters(tmp_path: Path):
    """A vocab.txt without a tokenizer.json: every letter is a token, and text comes back."""
    publish(tmp_path, "bert", vocab_size=8)
    (tmp_path / "vocab.txt").write_text(LETTERS)
    got = checkpoint.load(str(tmp_path))
    assert got.tokenizer.encode("CADX[MASK]"[:4]) == [6, 5, 7, 1]
    assert got.tokenizer.decode([2, 6, 5, 7, 3]) == "CAD"
    assert got.objective.mask_id == 4 and got.tokenizer.vocab_size == 8
    assert HF.create(str(tmp_path), chat=False).spec() == got.tokenizer.spec()


def test_vocabulary_of_words_says_too_little(tmp_path: Path):
    """How words are split and written is in tokenizer.json alone."""
    publish(tmp_path, "bert", vocab_size=9)
    (tmp_path / "vocab.txt").write_text(LETTERS + "\n##ing")
    assert published.read(str(tmp_path)).tokenizer is None
    assert "has no tokenizer.json" in error_of(HF.create, str(tmp_path))
