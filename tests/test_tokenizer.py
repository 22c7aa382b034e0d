"""tokenizer.py: text to ids and back, the end of a text, and rebuilding from plain data."""

import base64
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configurator import UserError
from tokenizer import (
    GPT2,
    HF,
    Bytes,
    Symbols,
    Unencodable,
    encode_spans,
    tokenizer_from,
    with_bos_eos,
    without_long_words,
)

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parent / "golden"))


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


def test_gpt2_with_bos_eos(gpt2: GPT2):
    """Six ids after EOS, as ILM's code has them; a text is encoded as without them."""
    extended = with_bos_eos(gpt2)
    assert extended.vocab_size == 50263 and extended.specials["eos"] == 50256
    assert [extended.specials[k] for k in GPT2.row_specials] == [*range(50257, 50263)]
    text = "<|bos|> some text"
    assert extended.encode(text) == gpt2.encode(text)
    assert extended.decode([50258, *extended.encode(text), 50259, 50256, 5]) == text
    assert extended.spec() == {"kind": "gpt2", "framed": True}  # as in old meta.json
    again = tokenizer_from(extended.spec(), extended.files)
    assert again.specials == extended.specials and again.spec() == extended.spec() != gpt2.spec()
    assert (gpt2.vocab_size, gpt2.specials) == (50257, {"eos": 50256})


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


@pytest.fixture(scope="module")
def chatting() -> HF:
    pytest.importorskip("tokenizers")
    return HF.train(["the cat sat on the mat, and the dog sat on the cat"] * 3, 280)


def test_hf_trained_layout(chatting: HF):
    """Five specials, the 256 bytes, merges, the five tokens of a chat; EOS pads."""
    vocabulary = chatting.codec.get_vocab()
    assert chatting.vocab_size == 280 == len(vocabulary)
    assert [vocabulary[t] for t in ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")] == [*range(5)]
    assert [vocabulary[t] for t in HF.chat] == [*range(275, 280)]
    assert chatting.specials == {
        "bos": 275, "eos": 276, "start": 277, "end": 278, "eot": 279, "mask": 4, "pad": 276
    }  # fmt: skip
    assert sum(len(t) == 1 for t in vocabulary) == 256
    check_rebuilt(chatting, ["the cat", "", "\0\n Ω"])


def test_hf_round_trip_of_any_text(chatting: HF):
    """No text becomes a special token, whatever it spells; and decoding gives it back."""
    spelt = st.sampled_from([*HF.chat, *HF.first, "the ", "\n", " "])

    @settings(deadline=None, max_examples=60)
    @given(st.lists(st.one_of(spelt, st.text(max_size=8))))
    def check(parts: list[str]):
        text = "".join(parts)
        ids = chatting.encode(text)
        assert all(5 <= i < 275 for i in ids) and chatting.decode(ids) == text

    check()


def test_hf_decode_shows_no_special_and_stops(chatting: HF):
    one, two, special = chatting.encode("the"), chatting.encode("dog"), chatting.specials
    hidden = [special[n] for n in ("bos", "start", "mask", "end", "eot")]
    assert chatting.decode([*hidden, *one, *hidden, *two, special["eos"], *one]) == "thedog"
    assert chatting.decode([*one, 280, 5000]) == "the"  # MASK beyond the vocabulary


def test_hf_with_chat_of_a_recorded_tokenizer():
    """The five tokens taken away and added again give the recorded file: ids, order and frame."""
    pytest.importorskip("tokenizers")
    name = f"masked_{os.environ.get('GOLDEN_SET', 'a')}.ldm.json"
    facts = json.loads((GOLDEN / name).read_text())
    recorded = facts["tokenizer_json"]
    bare = json.loads(json.dumps(recorded))
    bare["post_processor"] = None
    bare["added_tokens"] = [t for t in bare["added_tokens"] if t["content"] not in HF.chat]
    assert len(bare["added_tokens"]) == len(recorded["added_tokens"]) - 5
    for given_file in (bare, recorded):  # what is there already keeps its id
        tok = HF.with_chat(json.dumps(given_file))
        assert json.loads(tok.files["tokenizer.json"]) == recorded
        assert tok.vocab_size == facts["len_tokenizer"]
        ids = facts["special_ids"]
        assert {n: tok.specials[n] for n in ("bos", "eos", "start", "end", "eot")} == {
            n: ids[t] for n, t in zip(("bos", "eos", "start", "end", "eot"), HF.chat, strict=True)
        }
        assert tok.specials["pad"] == ids["<EOS>"] and tok.specials["mask"] == ids["[MASK]"]


def wordpiece(tmp_path: Any, gap: int = 0) -> Any:
    """A tokenizer.json as BERT's: lower case, a longest input, padding; `gap` unused ids."""
    tokenizers = pytest.importorskip("tokenizers")
    words = "[PAD] [UNK] [CLS] [SEP] [MASK] the cat ##s [ ] < > mask eos".split()
    vocabulary = {w: i for i, w in enumerate(words)} | {"dog": len(words) + gap}
    codec = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    codec.normalizer = tokenizers.normalizers.BertNormalizer()
    codec.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    codec.decoder = tokenizers.decoders.WordPiece()
    codec.add_special_tokens(words[:5])
    codec.enable_truncation(4)
    codec.enable_padding(length=6)
    (tmp_path / "tokenizer.json").write_text(codec.to_str())
    return tmp_path


def test_hf_create_from_a_folder(tmp_path: Any):
    tok = HF.create(str(wordpiece(tmp_path)))
    assert tok.specials["mask"] == 4 and tok.specials["bos"] == 15
    assert tok.vocab_size == 20
    text = "the cats the cats the cats"
    assert tok.decode(tok.encode(text)) == text  # neither cut at 4 ids nor padded to 6
    assert tok.encode("[MASK] <EOS>") == [8, 12, 9, 10, 13, 11]
    check_rebuilt(tok, ["the cats"])
    assert HF.create(str(wordpiece(tmp_path, gap=90))).vocab_size == 105  # new ids in the gap
    with pytest.raises(UserError, match="gaps in its ids"):
        HF.create(str(wordpiece(tmp_path, gap=3)))  # which is too small for them


def test_bert_with_a_frame():
    """[BOS] and [EOS] are new ids at the end; [CLS] and [SEP] are no frame of a text."""
    tokenizers = pytest.importorskip("tokenizers")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b"]
    model = tokenizers.models.WordPiece({n: i for i, n in enumerate(names)}, unk_token="[UNK]")
    codec = tokenizers.Tokenizer(model)
    codec.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    codec.add_special_tokens(names[:5])
    bert = with_bos_eos(HF(codec.to_str()))
    assert bert.vocab_size == 9
    wanted = {"pad": 0, "bos": 7, "eos": 8, "mask": 4, "cls": 2}
    assert {k: bert.specials[k] for k in wanted} == wanted
    assert bert.encode("a b a") == [5, 6, 5] and bert.decode([7, 5, 6, 8, 5]) == "a b"
    again = tokenizer_from(bert.spec(), bert.files)
    assert again.specials == bert.specials and with_bos_eos(again).vocab_size == 9
    assert with_bos_eos(Bytes()).vocab_size == 259


def test_hf_refuses_a_special_that_is_a_word():
    """A model that itself maps the text of a special token to its id has no other ids for it."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.models.WordLevel({"<EOS>": 0, "a": 1, "?": 2}, unk_token="?")
    codec = tokenizers.Tokenizer(model)
    codec.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tok = HF(codec.to_str())
    assert tok.encode("a a b") == [1, 1, 2]
    with pytest.raises(UserError, match="reads '<EOS>' in a text as its special token eos"):
        tok.encode("a <EOS>")


def test_hf_create_refuses(tmp_path: Any):
    with pytest.raises(UserError, match=r"the folder has no tokenizer\.json"):
        HF.create(str(tmp_path))
    for name in (str(tmp_path / "none"), "./none", "a/b/c"):
        with pytest.raises(UserError, match="no such folder"):
            HF.create(name)
    (tmp_path / "tokenizer.json").write_text("no")
    with pytest.raises(UserError, match=r"tokenizer\.json is not readable"):
        HF.create(str(tmp_path))


def test_hf_without_the_hub(monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def offline(*args: Any, **more: Any):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(hub, "hf_hub_download", offline)
    with pytest.raises(UserError, match=r"could not be fetched .* --tokenizer=FOLDER"):
        HF.create("answerdotai/ModernBERT-base")


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


# ---- what a tokenizer has no token for ---------------------------------------------------------


def words_only(kind: str, **more: Any) -> HF:
    """A small tokenizer without a token for what is unknown, or with one in `more`."""
    parts = pytest.importorskip("tokenizers")
    names = ["<s>", "</s>", "a", "b", "c", "ab", "abc", "▁"]
    ids = {n: i for i, n in enumerate(names)}
    merges = [("a", "b"), ("ab", "c")]
    model = {
        "BPE": lambda: parts.models.BPE(ids, merges, **more),
        "Unigram": lambda: parts.models.Unigram([(n, -float(i)) for n, i in ids.items()], **more),
        "WordLevel": lambda: parts.models.WordLevel(ids, unk_token="<unk>"),
        "WordPiece": lambda: parts.models.WordPiece(ids, unk_token="<unk>"),
    }[kind]()
    codec = parts.Tokenizer(model)
    codec.pre_tokenizer = parts.pre_tokenizers.WhitespaceSplit()
    codec.add_special_tokens(names[:2])
    codec.add_tokens(["Käse"])  # not special: found in texts
    return HF(codec.to_str())


KINDS = [("BPE", "ä"), ("Unigram", "ä"), ("WordLevel", "cä"), ("WordPiece", "cä")]


@pytest.mark.parametrize("kind, named", KINDS)
def test_what_no_token_stands_for_is_refused_by_name(kind: str, named: str):
    """BPE leaves such characters out and says nothing; the others raise bare exceptions."""
    tok = rebuilt(words_only(kind))
    assert tok.decode(tok.encode("abc Käse a")).replace(" ", "") == "abcKäsea"
    for encode in (tok.encode, lambda t: encode_spans(tok, t)):
        with pytest.raises(Unencodable, match=f"no token for '{named}'") as got:
            encode("abc cä a")
        assert "\n" not in str(got.value) and got.value.reason.endswith("no token for")


def test_a_token_for_what_is_unknown_is_taken():
    unknown = {"BPE": {"unk_token": "c"}, "Unigram": {"unk_id": 4}}
    for kind, more in unknown.items():
        assert words_only(kind, **more).encode("ä") == [4] == [words_only(kind, **more).unknown]
        assert words_only(kind).unknown is None


def test_letters_for_bytes_that_are_not_all_there():
    """A byte-level BPE without the whole alphabet leaves out bytes; a complete one has all."""
    parts = pytest.importorskip("tokenizers")
    for alphabet in ([], parts.pre_tokenizers.ByteLevel.alphabet()):
        codec = parts.Tokenizer(parts.models.BPE())
        codec.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
        codec.decoder = parts.decoders.ByteLevel()
        trainer = parts.trainers.BpeTrainer(
            vocab_size=300, initial_alphabet=alphabet, show_progress=False
        )
        codec.train_from_iterator(["the cat and the dog"], trainer)
        tok = HF(codec.to_str())
        assert tok.decode(tok.encode("the dog")) == "the dog"
        if alphabet:
            assert tok.decode(tok.encode("the Käse")) == "the Käse"
        else:
            with pytest.raises(Unencodable, match="no token for ' thä'"):
                tok.encode("the thä")


def test_bytes_for_what_is_unknown_must_all_be_there():
    parts = pytest.importorskip("tokenizers")
    for there in (256, 100):
        ids = {"a": 0} | {f"<0x{b:02X}>": b + 1 for b in range(there)}
        tok = HF(parts.Tokenizer(parts.models.BPE(ids, [], byte_fallback=True)).to_str())
        if there == 256:
            assert tok.encode("ä") == [0xC3 + 1, 0xA4 + 1]
        else:
            with pytest.raises(Unencodable, match="no token for 'ä'"):
                tok.encode("a ä"[2:])


def test_the_end_of_a_word_has_tokens_of_its_own():
    parts = pytest.importorskip("tokenizers")
    model = parts.models.BPE({"a": 0, "b</w>": 1, "##b": 2}, [], end_of_word_suffix="</w>")
    tok = HF(parts.Tokenizer(model).to_str())
    assert tok.encode("ab") == [0, 1]
    with pytest.raises(Unencodable, match="no token for 'b'"):
        tok.encode("bb")


def test_half_of_a_surrogate_pair_is_refused_by_every_kind(gpt2: GPT2):
    for tok in (Bytes(), gpt2, words_only("BPE"), words_only("Unigram")):
        with pytest.raises(Unencodable, match=r"UTF-8 lacks: '.ud83d'"):
            tok.encode("a\ud83d")


@pytest.mark.parametrize("run", [" ", "漢字仮名交文", "0123456789abcdef", "\n\t"])
def test_a_megabyte_without_a_gap_is_learnt_from_in_seconds(run: str):
    """The time of the library grows with the square of a word."""
    text = "the cat sat on a mat. " * 100 + run * (1_000_000 // len(run)) + " the end"
    assert "".join(without_long_words(text)) == text
    clock = time.monotonic()
    HF.train([text], 270)
    assert time.monotonic() - clock < 30
