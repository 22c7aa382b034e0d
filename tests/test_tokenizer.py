"""tokenizer.py: text to ids and back, the end of a text, and rebuilding from plain data."""

import base64
import json
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configurator import UserError
from tokenizer import GPT2, HF, Bytes, Symbols, tokenizer_from


def rebuilt(tok: Any) -> Any:
    """The tokenizer after a trip through JSON, as a corpus and a checkpoint carry it."""
    return tokenizer_from(json.loads(json.dumps(tok.spec())), json.loads(json.dumps(tok.files)))


def check_rebuilt(tok: Any, texts: list[str]) -> None:
    other = rebuilt(tok)
    assert type(other) is type(tok) and other.spec() == tok.spec() and other.files == tok.files
    assert (other.vocab_size, other.specials) == (tok.vocab_size, tok.specials)
    for text in texts:
        ids = tok.encode(text)
        assert other.encode(text) == ids and other.decode(ids) == tok.decode(ids)


# ---- bytes -------------------------------------------------------------------------------------


@given(st.text())
def test_bytes_round_trip(text: str):
    tok = Bytes()
    ids = tok.encode(text)
    assert ids == list(text.encode()) and tok.decode(ids) == text


@given(st.binary())
def test_bytes_of_any_file_survive_encoding(data: bytes):
    """Text read with surrogateescape keeps every byte, valid UTF-8 or not."""
    assert bytes(Bytes().encode(data.decode("utf-8", "surrogateescape"))) == data


@given(st.lists(st.integers(0, 300)))
def test_bytes_decode_anything(ids: list[int]):
    """A random network writes broken UTF-8; decoding leaves that out and never raises."""
    text = Bytes().decode(ids)
    kept = ids[: ids.index(258)] if 258 in ids else ids
    assert text == bytes(i for i in kept if i < 256).decode("utf-8", "ignore")


def test_bytes_specials():
    tok = Bytes()
    assert tok.vocab_size == 259 and tok.specials == {"pad": 256, "bos": 257, "eos": 258}
    assert tok.decode([257, 97, 256, 98, 258, 99, 258]) == "ab"  # up to the first EOS
    check_rebuilt(tok, ["a", "", "é"])


# ---- symbols -----------------------------------------------------------------------------------


def test_symbols_characters():
    tok = Symbols(list("abcd"))
    assert tok.encode("dab") == [3, 0, 1] and tok.encode("") == []
    assert tok.vocab_size == 7 and tok.specials == {"pad": 4, "bos": 5, "eos": 6}
    assert tok.decode([5, 3, 0, 4, 1, 6, 2]) == "dab"
    check_rebuilt(tok, ["abcd", "", "aa"])


def test_symbols_words():
    tok = Symbols(["12", "3", "|"], sep=" ")
    assert tok.encode(" 12 |  3 ") == [0, 2, 1] and tok.decode([0, 2, 1]) == "12 | 3"
    check_rebuilt(tok, ["3 | 12"])


@pytest.mark.parametrize("text, sep, name", [("abé", "", "'é'"), ("a b zz", " ", "'zz'")])
def test_unknown_symbol_is_named(text: str, sep: str, name: str):
    """nanoGPT: KeyError 'é'."""
    with pytest.raises(UserError, match=f"^{name} is not in the vocabulary"):
        Symbols(["a", "b"], sep).encode(text)


@pytest.mark.parametrize("symbols", [[], ["a", "b", "a"]])
def test_symbols_must_be_distinct(symbols: list[str]):
    with pytest.raises(UserError, match="at least one symbol and none twice"):
        Symbols(symbols)


# ---- gpt2 --------------------------------------------------------------------------------------


def some_merges() -> str:
    """A rank table of GPT-2's size: 256 bytes, then pairs and triples of letters."""
    letters = [bytes([b]) for b in b"abcdefghijklmnopqrstuvwxyz ABCDEFGHIJKLM"]
    tokens = [bytes([b]) for b in range(256)]
    pairs = [a + b for a in letters for b in letters]
    tokens += pairs + [p + c for p in pairs for c in letters]
    assert len(set(tokens)) == len(tokens) > 50256
    lines = (f"{base64.b64encode(t).decode()} {i}" for i, t in enumerate(tokens[:50256]))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def gpt2() -> GPT2:
    pytest.importorskip("tiktoken")
    return GPT2(some_merges())


def test_gpt2_round_trip(gpt2: GPT2):
    @settings(deadline=None, max_examples=50)
    @given(st.text())
    def check(text: str):
        ids = gpt2.encode(text)
        assert gpt2.decode(ids) == text and all(0 <= i < 50256 for i in ids)

    check()
    assert gpt2.vocab_size == 50257 and gpt2.specials == {"eos": 50256}
    assert len(gpt2.encode("abc def")) == 3  # abc, " d"+"ef": merged, and split into words first


def test_gpt2_end(gpt2: GPT2):
    """<|endoftext|> in a text is text, not the special id; decoding stops at the id."""
    assert 50256 not in gpt2.encode("<|endoftext|>")
    assert gpt2.decode([*gpt2.encode("one"), 50256, *gpt2.encode("two")]) == "one"
    assert gpt2.decode([*gpt2.encode("one"), 50257, 60000]) == "one"  # MASK and beyond


def test_gpt2_rebuilt(gpt2: GPT2):
    check_rebuilt(gpt2, ["abc def", "é\n\0", "I'll  go  ", ""])


def test_gpt2_refuses_another_table(gpt2: GPT2):
    with pytest.raises(UserError, match="expected 50256 tokens, found 256"):
        GPT2("\n".join(some_merges().splitlines()[:256]))


def test_gpt2_names_a_missing_file(tmp_path: Any):
    pytest.importorskip("tiktoken")
    with pytest.raises(UserError, match=r"bpe_dir: no such file: .*vocab\.bpe"):
        GPT2.create(str(tmp_path))


def test_gpt2_without_the_network(monkeypatch):
    """tiktoken's download fails: one line that says what to pass instead."""
    tiktoken = pytest.importorskip("tiktoken")

    def offline(name: str):
        raise ConnectionError("no route to host")  # an OSError, as those of requests are

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(UserError, match="--bpe_dir=FOLDER"):
        GPT2.create()


# ---- hf ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hf() -> HF:
    tokenizers = pytest.importorskip("tokenizers")
    codec = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token=None))
    codec.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    codec.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["[PAD]", "[CLS]", "[SEP]", "[MASK]", "<other>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    codec.train_from_iterator(["the cat sat on the mat, the cat sat"] * 5, trainer)
    frame = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    codec.post_processor = frame  # as most published ones have
    return HF(codec.to_str())


def test_hf_round_trip(hf: HF):
    for text in ("the cat sat", "", "never seen: é\n", "  spaces  "):
        assert hf.decode(hf.encode(text)) == text
    assert len(hf.encode("the cat")) < len("the cat")
    assert hf.specials == {"pad": 0, "bos": 1, "eos": 2, "mask": 3}  # by their usual names
    assert max(max(hf.encode(t), default=0) for t in ("the", "é")) < hf.vocab_size


def test_hf_end(hf: HF):
    one, two = hf.encode("the"), hf.encode("cat")
    assert hf.decode([1, *one, 2, *two]) == "the"  # BOS is not shown


def test_hf_adds_no_special_tokens(hf: HF):
    """Rows get their BOS and EOS from the corpus maker, not twice."""
    assert not set(hf.encode("the cat")) & set(hf.specials.values())


def test_hf_rebuilt(hf: HF):
    check_rebuilt(hf, ["the cat", "", "é"])


def test_hf_names(hf: HF):
    text = hf.files["tokenizer.json"]
    named = HF(text, {"pad": "<other>", "eos": "[SEP]"})
    assert named.specials == {"pad": 4, "eos": 2}
    assert rebuilt(named).specials == named.specials
    with pytest.raises(UserError, match="no token '<none>'"):
        HF(text, {"pad": "<none>"})


@pytest.mark.parametrize("name, make", [("tiktoken", GPT2), ("tokenizers", HF)])
def test_a_missing_library_is_told_in_one_line(monkeypatch, name: str, make: Any):
    """Fault 50: with the command that installs it. None in sys.modules fails every import."""
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"^{name} is not installed: pip install {name}$"):
        make("{}")


# ---- rebuilding --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spec, words",
    [
        ({"kind": "words"}, "unknown tokenizer kind 'words'"),
        ({}, "unknown tokenizer kind None"),
        ({"kind": ["bytes"]}, "unknown tokenizer kind"),
        ({"kind": "gpt2"}, r"gpt2\.tiktoken"),
        ({"kind": "hf"}, r"tokenizer\.json"),
        ({"kind": "symbols"}, "at least one symbol"),
        ({"kind": "symbols", "symbols": 5}, "symbol"),
    ],
)
def test_bad_specs(spec: dict, words: str):
    with pytest.raises(UserError, match=words):
        tokenizer_from(spec, {})


@pytest.mark.parametrize("kind, name", [("gpt2", "gpt2.tiktoken"), ("hf", "tokenizer.json")])
def test_broken_tokenizer_files(kind: str, name: str):
    """A file that is no table and no JSON is the user's to put right, so one line."""
    pytest.importorskip({"gpt2": "tiktoken", "hf": "tokenizers"}[kind])
    with pytest.raises(UserError):
        tokenizer_from({"kind": kind}, {name: "neither\n"})
