"""Chats: the template, what is given and what is written, and that no text becomes a token."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configurator import UserError
from tokenizer import HF, Bytes, chat_rows, decode_answer, encode_chat

TEXTS = ["What does the user do?", "The assistant answers the question.\nIn two lines.", "a b c"]
NAMES = ["<BOS>", "<EOS>", "<START_ID>", "<END_ID>", "<EOT_ID>", "[MASK]", "[CLS]", "[UNK]"]
SPECIAL = st.sampled_from([*NAMES, "<", "user", "\n", " ", "<<EOS>EOS>"])
INJECTED = st.lists(SPECIAL, min_size=1, max_size=8).map("".join)
PLAIN = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="<["), max_size=20)
TALK = [
    ("system", "Be brief."),
    ("user", "one?"),
    ("assistant", "1"),
    ("user", "two?"),
    ("assistant", "2"),
    ("user", "three?"),
]


@pytest.fixture(scope="module")
def tokenizer():
    return HF.train(TEXTS * 20, 290)


@pytest.fixture(scope="module")
def parser(tokenizer):
    """The library itself, reading special tokens in a rendered text."""
    codec = HF(tokenizer.files["tokenizer.json"]).codec
    codec.encode_special_tokens = False
    return lambda text: codec.encode(text, add_special_tokens=False).ids


def rendered(messages):
    """The template as its authors publish it, in one string."""
    text = "<BOS>"
    for role, content in messages:
        text += f"<START_ID>{role}<END_ID>\n{content}" + ("<EOT_ID>" if role == "user" else "<EOS>")
    return text


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant", "system"]), PLAIN), max_size=4))
def test_ids_are_those_of_the_rendered_text(tokenizer, parser, messages):
    assert encode_chat(tokenizer, messages) == parser(rendered(messages))
    header = "<START_ID>assistant<END_ID>"
    assert encode_chat(tokenizer, messages, reply=True) == parser(rendered(messages) + header)


@given(INJECTED, INJECTED)
def test_no_text_becomes_a_special_token(tokenizer, asked, message):
    """Neither in a message nor in a role; and what was said is read back, letter by letter."""
    [(ids, prompt)] = chat_rows(tokenizer, [("user", asked), ("assistant", message)])
    special = tokenizer.specials
    listed = {tokenizer.codec.token_to_id(name) for name in NAMES}
    frame = "bos start end eot start end eos".split()
    assert [i for i in ids if i in listed] == [special[name] for name in frame]
    assert decode_answer(tokenizer, ids[prompt:]) == message
    only_role = encode_chat(tokenizer, [(asked, "")])
    assert sum(i in listed for i in only_role) == 4  # bos, start, end, eos


def test_a_row_per_answer(tokenizer):
    rows = chat_rows(tokenizer, TALK)
    assert [decode_answer(tokenizer, ids[prompt:]) for ids, prompt in rows] == ["1", "2"]
    for (ids, prompt), n in zip(rows, (2, 4), strict=True):
        assert ids == encode_chat(tokenizer, TALK[: n + 1])
        assert ids[:prompt] == encode_chat(tokenizer, TALK[:n], reply=True)
        assert ids[prompt] == tokenizer.encode("\n")[0] and ids[-1] == tokenizer.specials["eos"]
    assert chat_rows(tokenizer, TALK, "last") == rows[1:]
    assert chat_rows(tokenizer, TALK[:2]) == chat_rows(tokenizer, TALK[:2], "last") == []


def test_an_answer_ends_at_the_first_eos(tokenizer):
    eos = tokenizer.specials["eos"]
    ids = tokenizer.encode("\n\n two\n")
    assert decode_answer(tokenizer, [*ids, eos, *ids, eos]) == "\n two\n"  # one newline goes
    assert decode_answer(tokenizer, tokenizer.encode("no newline")) == "no newline"
    assert decode_answer(tokenizer, [eos, *ids]) == decode_answer(tokenizer, []) == ""


def test_refusals(tokenizer):
    for call in (encode_chat, chat_rows):
        with pytest.raises(UserError, match=r"bytes tokenizer.*no start, end, eot.*--tokenizer="):
            call(Bytes(), TALK)
        with pytest.raises(UserError, match=r"UTF-8 lacks: '.ud800'"):
            call(tokenizer, [("user", "a\ud800b")])
