"""Conversations as token ids.

    <BOS><START_ID>user<END_ID>
    {question}<EOT_ID><START_ID>assistant<END_ID>
    {answer}<EOS>

BOS stands before the first message only. A user's message ends in EOT, any other in EOS, that of a
`system` role too. A prompt ends in the header of the assistant, without the newline: the newline is
the first token of the answer. Every text is encoded by itself and the special tokens are put around
it as ids, so that nothing a user writes can become one. (Template: the ModernBERT diffusion model,
whose ids these are, number by number.)
"""

from typing import Iterable, Literal

from configurator import UserError
from tokenizer import Tokenizer

Message = tuple[str, str]  # (role, text)
Turns = Literal["each", "last"]  # which answers of a conversation are rows
USER, ASSISTANT = "user", "assistant"
NEEDED = ("bos", "eos", "start", "end", "eot")


def require_chat(tokenizer: Tokenizer) -> None:
    """Refuse a tokenizer without the special tokens of a conversation, in one line."""
    missing = [name for name in NEEDED if name not in tokenizer.specials]
    if missing:
        raise UserError(
            f"the {tokenizer.kind} tokenizer cannot write a chat: it has no {', '.join(missing)}; "
            "prepare the corpus with --tokenizer=train:4096 or a tokenizer of the hub"
        )


def _text(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of a text; the tokenizer refuses to read a special token in it."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:  # half of a surrogate pair, which JSON can spell
        bad = e.object[e.start]
        raise UserError(f"the text holds a character that UTF-8 lacks: {bad!r}") from e
    return tokenizer.encode(text)


def _header(tokenizer: Tokenizer, role: str) -> list[int]:
    special = tokenizer.specials
    return [special["start"], *_text(tokenizer, role), special["end"]]


def _body(tokenizer: Tokenizer, role: str, text: str) -> list[int]:
    end = tokenizer.specials["eot" if role == USER else "eos"]
    return [*_text(tokenizer, "\n" + text), end]  # one piece: its pairs of bytes may merge


def encode_chat(
    tokenizer: Tokenizer, messages: Iterable[Message], reply: bool = False
) -> list[int]:
    """Messages -> ids; with `reply`, the header that asks the assistant for the next one follows.

    Raises UserError for a tokenizer without chat tokens and for a text that is no UTF-8.
    """
    require_chat(tokenizer)
    ids = [tokenizer.specials["bos"]]
    for role, text in messages:
        ids += _header(tokenizer, role) + _body(tokenizer, role, text)
    return ids + _header(tokenizer, ASSISTANT) if reply else ids


def chat_rows(
    tokenizer: Tokenizer, messages: list[Message], turns: Turns = "each"
) -> list[tuple[list[int], int]]:
    """A conversation -> rows (ids, prompt): one per answer, with all before it given; with
    turns="last" only the row of the last answer. What follows the last answer is left out."""
    require_chat(tokenizer)
    ids, rows = [tokenizer.specials["bos"]], []
    for role, text in messages:
        ids += _header(tokenizer, role)
        prompt = len(ids)
        ids += _body(tokenizer, role, text)
        if role == ASSISTANT:
            rows.append((ids.copy(), prompt))
    return rows[-1:] if turns == "last" else rows


def decode_answer(tokenizer: Tokenizer, ids: Iterable[int]) -> str:
    """Ids that follow a prompt -> the text of the answer: up to the first EOS, without the newline
    that the template begins it with."""
    return tokenizer.decode(ids).removeprefix("\n")
