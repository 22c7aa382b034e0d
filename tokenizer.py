"""Tokenizers: text to ids and back. Four kinds: bytes, symbols, GPT-2's, any tokenizer.json.

A tokenizer has `vocab_size`, `specials` (name -> id), `encode(text) -> ids`, `decode(ids) -> text`
(which stops at the first EOS), and can be rebuilt from `spec()`, plain data for JSON, and `files`,
name -> text. Corpora and checkpoints carry both, so each is enough by itself.
"""

import base64
import json
import re
from itertools import chain
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Literal

import numpy as np

from configurator import UserError, optional
from pretrained import gguf


class Unencodable(UserError):
    """A text that a tokenizer cannot encode. `reason` is one for all such texts, for counts."""

    def __init__(self, message: str, reason: str = ""):
        super().__init__(message)
        self.reason = reason


def require_utf8(text: str, errors: str = "strict") -> None:
    """Raise Unencodable for half of a surrogate pair, which JSON can spell."""
    try:
        text.encode("utf-8", errors)
    except UnicodeEncodeError as e:
        bad = e.object[e.start]
        why = f"the text holds a character that UTF-8 lacks: {bad!r}"
        raise Unencodable(why, "a character that UTF-8 lacks") from None


class Bytes:
    """One id per byte of UTF-8: 0-255, then PAD 256, BOS 257, EOS 258."""

    kind = "bytes"
    vocab_size = 259
    specials = {"pad": 256, "bos": 257, "eos": 258}  # noqa: RUF012, a constant
    files: dict[str, str] = {}  # noqa: RUF012

    def encode(self, text: str) -> list[int]:
        require_utf8(text, "surrogateescape")
        return list(text.encode("utf-8", "surrogateescape"))

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS, without ids that are not bytes and broken UTF-8."""
        kept = bytes(i for i in _until(ids, 258) if i < 256)
        return kept.decode("utf-8", "ignore")

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind}


class Symbols:
    """A closed list of symbols, single characters (sep="") or words (sep=" "), then PAD BOS EOS."""

    kind = "symbols"
    files: dict[str, str] = {}  # noqa: RUF012

    def __init__(self, symbols: list[str], sep: str = ""):
        n = len(symbols)
        if not all(isinstance(text, str) for text in (sep, *symbols)):
            raise UserError("a symbol vocabulary is made of texts")
        if n == 0 or len(set(symbols)) != n:
            raise UserError("a symbol vocabulary needs at least one symbol and none twice")
        self.symbols, self.sep, self.vocab_size = list(symbols), sep, n + 3
        self.specials = {"pad": n, "bos": n + 1, "eos": n + 2}
        self.ids = {s: i for i, s in enumerate(symbols)}

    def encode(self, text: str) -> list[int]:
        """Raises UserError naming the first symbol that the vocabulary lacks."""
        parts = text.split() if self.sep else list(text)
        try:
            return [self.ids[p] for p in parts]
        except KeyError as e:
            why = f"{e.args[0]!r} is not in the vocabulary of this corpus"
            raise Unencodable(why, "a text with what the tokenizer has no token for") from None

    def decode(self, ids: Iterable[int]) -> str:
        kept = _until(ids, self.specials["eos"])
        return self.sep.join(self.symbols[i] for i in kept if i < len(self.symbols))

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "symbols": self.symbols, "sep": self.sep}


class GPT2:
    """OpenAI's byte pair encoding through tiktoken: 50257 ids, <|endoftext|> = 50256 as EOS.

    The merges travel with the corpus and the checkpoint, so neither needs the network again.
    """

    kind = "gpt2"
    vocab_size = 50257
    specials = {"eos": 50256}  # noqa: RUF012
    # splits text into words before merging (GPT-2's published rule)
    words = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"
    row_specials = ("cls", "bos", "pad", "unk", "mask", "sep")  # ids after EOS (ILM)

    def __init__(self, merges: str, has_bos_eos: bool = False):
        tiktoken = optional("tiktoken")
        pairs = (line.split() for line in merges.splitlines())
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
        if len(ranks) != 50256:
            raise UserError(f"gpt2 merges: expected 50256 tokens, found {len(ranks)}")
        special = {"<|endoftext|>": 50256}
        self.codec = tiktoken.Encoding(
            "gpt2", pat_str=self.words, mergeable_ranks=ranks, special_tokens=special
        )
        self.files, self.has_bos_eos = {"gpt2.tiktoken": merges}, has_bos_eos
        if has_bos_eos:
            extra = {name: 50257 + i for i, name in enumerate(self.row_specials)}
            self.specials = {"eos": 50256, **extra}
            self.vocab_size = 50257 + len(extra)

    @classmethod
    def create(cls, bpe_dir: str = "") -> "GPT2":
        """From a folder with vocab.bpe and encoder.json, or else tiktoken's cache or download."""
        if bpe_dir:
            load = optional("tiktoken.load", "tiktoken").data_gym_to_mergeable_bpe_ranks
            names = [str(Path(bpe_dir) / n) for n in ("vocab.bpe", "encoder.json")]
            for name in names:
                if not Path(name).is_file():
                    raise UserError(f"bpe_dir: no such file: {name}")
            ranks = load(*names)
        else:
            try:
                ranks = optional("tiktoken").get_encoding("gpt2")._mergeable_ranks
            except OSError as e:
                raise UserError(
                    "the gpt2 merges are neither cached nor reachable; "
                    "pass --bpe_dir=FOLDER with vocab.bpe and encoder.json"
                ) from e
        ordered = sorted(ranks.items(), key=lambda pair: pair[1])
        return cls("\n".join(f"{base64.b64encode(t).decode()} {r}" for t, r in ordered))

    def encode(self, text: str) -> list[int]:
        require_utf8(text)  # tiktoken would replace it and say nothing
        return self.codec.encode_ordinary(text)

    def decode(self, ids: Iterable[int]) -> str:
        return self.codec.decode([i for i in _until(ids, 50256) if i < 50256])

    def spec(self) -> dict[str, Any]:
        # "framed" is the key in the meta.json of corpora and checkpoints, whose specs must be equal
        return {"kind": self.kind, "framed": True} if self.has_bos_eos else {"kind": self.kind}


class HF:
    """Any tokenizer.json of the `tokenizers` library. Special tokens are those of `names`, such as
    {"pad": "[PAD]", ...}, or by default those of the usual names. Text is never encoded as a
    special token: "<EOS>" in a text is five letters."""

    kind = "hf"
    usual = {  # noqa: RUF012
        "pad": ("[PAD]", "<pad>", "<|endoftext|>"),
        "bos": ("<BOS>", "<s>", "[CLS]"),
        "eos": ("<EOS>", "</s>", "[SEP]", "<|endoftext|>"),
        "mask": ("[MASK]", "<mask>"),
        "start": ("<START_ID>",),
        "end": ("<END_ID>",),
        "eot": ("<EOT_ID>",),
    }
    chat = ("<BOS>", "<EOS>", "<START_ID>", "<END_ID>", "<EOT_ID>")  # in the order of their ids
    first = ("[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]")  # ids 0-4 in `train`

    def __init__(self, text: str, names: dict[str, str] | None = None):
        self.codec = optional("tokenizers").Tokenizer.from_str(text)
        self.codec.encode_special_tokens = True
        self.codec.no_truncation()  # published files may carry a model's longest input
        self.codec.no_padding()
        self.files = {"tokenizer.json": text}
        vocabulary = self.codec.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1  # ids may have gaps
        if names is None:
            matches = {k: [n for n in v if n in vocabulary] for k, v in self.usual.items()}
            names = {k: n[0] for k, n in matches.items() if n}
        absent = [n for n in names.values() if n not in vocabulary]
        if absent:
            raise UserError(f"tokenizer.json has no token {absent[0]!r}")
        self.names, self.specials = names, {k: vocabulary[n] for k, n in names.items()}
        self.reserved = set(self.specials.values())
        self.tokens = self.codec.get_vocab(with_added_tokens=False)  # those of the model itself
        self.drops = self._drops()

    @classmethod
    def with_chat(cls, text: str) -> "HF":
        """tokenizer.json plus the five tokens of a chat, the missing ones as new ids at the end.
        Texts are between BOS and EOS, and EOS pads, as in the ModernBERT diffusion model."""
        codec = optional("tokenizers").Tokenizer.from_str(text)
        codec.add_special_tokens(list(cls.chat))
        vocabulary = refuse_gaps(codec)
        frame = [(token, vocabulary[token]) for token in ("<BOS>", "<EOS>")]
        codec.post_processor = optional("tokenizers.processors", "tokenizers").TemplateProcessing(
            single="<BOS> $A <EOS>", special_tokens=frame
        )
        names = {**cls(codec.to_str()).names, "pad": "<EOS>"}
        return cls(codec.to_str(), names)

    def with_bos_eos(self) -> "HF":
        """The same with three different BOS, EOS and PAD; missing ones are added at the end as
        [BOS], [EOS], [PAD]. BERT's [CLS] and [SEP] do not count as BOS and EOS."""
        usual = {
            "bos": ("<BOS>", "<s>", "[BOS]"),
            "eos": ("<EOS>", "</s>", "[EOS]"),
            "pad": ("[PAD]", "<pad>"),
        }
        vocab = self.codec.get_vocab(with_added_tokens=True)
        names = {k: next((n for n in v if n in vocab), f"[{k.upper()}]") for k, v in usual.items()}
        codec = optional("tokenizers").Tokenizer.from_str(self.files["tokenizer.json"])
        codec.add_special_tokens([n for n in names.values() if n not in vocab])
        refuse_gaps(codec)
        cls = {"cls": "[CLS]"} if "[CLS]" in vocab else {}
        return HF(codec.to_str(), {**self.names, **names, **cls})

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> "HF":
        """Byte-level BPE of `size` ids: [UNK] [CLS] [SEP] [PAD] [MASK], the 256 bytes, the most
        frequent merges of `texts`, the five tokens of a chat. Raises UserError if there are too few
        ids for the bytes or too few pairs for the ids."""
        smallest = len(cls.first) + 256 + len(cls.chat)
        if size < smallest:
            raise UserError(f"tokenizer=train:{size} must be at least train:{smallest}")
        parts = optional("tokenizers")
        codec = parts.Tokenizer(parts.models.BPE(unk_token="[UNK]"))
        codec.pre_tokenizer = parts.pre_tokenizers.ByteLevel(add_prefix_space=False)
        codec.decoder = parts.decoders.ByteLevel()
        trainer = parts.trainers.BpeTrainer(
            vocab_size=size - len(cls.chat),
            special_tokens=list(cls.first),
            initial_alphabet=parts.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        codec.train_from_iterator(chain.from_iterable(map(without_long_words, texts)), trainer)
        trained = cls.with_chat(codec.to_str())
        if (largest := trained.vocab_size) < size:
            raise UserError(
                f"the text has pairs for {largest} ids only: --tokenizer=train:{largest}"
            )
        return trained

    @classmethod
    def create(cls, source: str, cache_dir: str = "", chat: bool = True) -> "HF":
        """From a folder with what `tokenizer_json` reads, a GGUF file or a hub id; with `chat`, the
        tokens of a chat are added."""
        path, name = Path(source), "tokenizer.json"
        if not path.is_dir() and path.suffix != gguf.SUFFIX:
            if source.startswith((".", "/", "~")) or source.count("/") > 1:
                raise UserError(f"tokenizer={source}: no such folder")
            hub = optional("huggingface_hub")
            try:
                path = Path(hub.hf_hub_download(source, name, cache_dir=cache_dir or None)).parent
            except Exception as e:  # the hub raises many types
                raise UserError(
                    f"tokenizer={source} could not be fetched ({type(e).__name__}); without the "
                    f"hub: --tokenizer=FOLDER with {name}, --tokenizer=train:4096, or bytes"
                ) from e
        try:
            text = tokenizer_json(path)
            if text is None:
                raise UserError(f"tokenizer={source}: the folder has no {name}")
            return cls.with_chat(text) if chat else cls(text)
        except UserError:
            raise
        except Exception as e:  # the `tokenizers` library raises bare ones
            raise UserError(f"{path / name} is not readable: {e}") from e

    def encode(self, text: str) -> list[int]:
        """Raises Unencodable as `encoding` does."""
        return self.encoding(text).ids

    def encoding(self, text: str, offsets: bool = False) -> Any:
        """The library's encoding of a text, with the places of its tokens if `offsets`. Raises
        Unencodable if the model has no token for a part of it, not even one for what is unknown, or
        encodes a word as a special token."""
        require_utf8(text)
        try:
            if offsets:
                found = self.codec.encode(text, add_special_tokens=False)
            else:
                found = self.codec.encode_batch_fast([text], add_special_tokens=False)[0]
        except Exception as e:  # the `tokenizers` library raises bare ones
            raise self._lacks(self._unknown(text) or str(e)) from e
        if self.drops and (part := self._unknown(text)):
            raise self._lacks(part)
        if not self.reserved.isdisjoint(found.ids):
            name = next(n for n, i in self.specials.items() if i in found.ids)
            raise Unencodable(
                f"the tokenizer reads {self.names[name]!r} in a text as its special token {name}; "
                "take another tokenizer",
                "a text that becomes a special token",
            )
        return found

    @property
    def unknown(self) -> int | None:
        """The id of the token for what is unknown, if the model has one."""
        model = json.loads(self.files["tokenizer.json"])["model"]
        return self.tokens.get(model.get("unk_token"), model.get("unk_id"))

    def _lacks(self, part: str) -> Unencodable:
        return Unencodable(
            f"the tokenizer has no token for {part[:40]!r}, and none for what is unknown; change "
            "the text, or take another tokenizer",
            "a text with what the tokenizer has no token for",
        )

    def _drops(self) -> bool:
        """Does the model leave out characters that it does not know? Of all models, BPE does, if it
        has no token for what is unknown and not one for each byte."""
        model = self.codec.model
        if type(model).__name__ != "BPE" or model.unk_token:
            return False
        if model.byte_fallback and all(f"<0x{byte:02X}>" in self.tokens for byte in range(256)):
            return False
        parts = json.loads(self.files["tokenizer.json"])
        by_bytes = '"ByteLevel"' in json.dumps([parts["normalizer"], parts["pre_tokenizer"]])
        letters = optional("tokenizers.pre_tokenizers", "tokenizers").ByteLevel.alphabet()
        return not (by_bytes and self.tokens.keys() >= set(letters))

    def _unknown(self, text: str) -> str:
        """The first character that the model has no token for, or the first such word, if its
        tokens are words or its letters stand for bytes; '' if there is none."""
        added = self.codec.get_added_tokens_decoder().values()
        names = [re.escape(one.content) for one in added if not one.special]
        normal, words = self.codec.normalizer, self.codec.pre_tokenizer
        for part in re.split("|".join(names), text) if names else [text]:
            part = normal.normalize_str(part) if normal else part
            split = words.pre_tokenize_str(part) if words else [(part, (0, len(part)))]
            for word, (start, end) in split:
                if lost := self._lost(word):
                    return lost if lost in part[start:end] else part[start:end] or lost
        return ""

    def _lost(self, word: str) -> str:
        """What the model has no token for in a word."""
        model, vocabulary = self.codec.model, self.tokens
        if type(model).__name__ == "BPE":  # it begins with characters, each of which needs a token
            if model.ignore_merges and word in vocabulary:
                return ""
            before, after = model.continuing_subword_prefix or "", model.end_of_word_suffix or ""
            forms = [before + c for c in word]
            forms = [word[0], *forms[1:]]
            forms[-1] += after
            return next((c for c, f in zip(word, forms, strict=True) if f not in vocabulary), "")
        try:
            model.tokenize(word)
        except Exception:  # the `tokenizers` library raises bare ones
            letters = type(model).__name__ == "Unigram"
            return next((c for c in word if c not in vocabulary), word) if letters else word
        return ""

    def decode(self, ids: Iterable[int]) -> str:
        kept = _until(ids, self.specials.get("eos", -1))
        return self.codec.decode([i for i in kept if i not in self.reserved])

    def spec(self) -> dict[str, Any]:
        return {"kind": self.kind, "names": self.names}


def tokenizer_json(path: Path) -> str | None:
    """The text of a tokenizer.json: of the one in a folder, else of its vocab.txt if the tokens
    there are letters, or of a GGUF file. None for a folder without."""
    if path.suffix == gguf.SUFFIX:
        return gguf.tokenizer_json(path)
    if (path / "tokenizer.json").is_file():
        return (path / "tokenizer.json").read_text(encoding="utf-8")
    names = path / "vocab.txt"
    return _json_of_letters(names.read_text(encoding="utf-8")) if names.is_file() else None


def _json_of_letters(vocabulary: str) -> str | None:
    """A vocab.txt of BERT, one token a line, whose tokens but [UNK] and the like are letters, as
    those of proteins -> tokenizer.json that makes every letter of a text a token. None for one of
    words, which does not say how a text is split."""
    names = vocabulary.split()
    special = [n for n in names if re.fullmatch(r"\[[A-Z]+\]", n)]
    if "[UNK]" not in special or any(len(n) > 1 for n in names if n not in special):
        return None
    parts = optional("tokenizers")
    ids = {name: i for i, name in enumerate(names)}
    codec = parts.Tokenizer(parts.models.WordLevel(ids, unk_token="[UNK]"))
    codec.pre_tokenizer = parts.pre_tokenizers.Split("", "isolated")
    codec.decoder = parts.decoders.Fuse()
    codec.add_special_tokens(special)
    return codec.to_str()


LONG = 1000  # characters of a word, above which the time to learn from it grows with its square
RUN = re.compile(rf"\S{{{LONG},}}|\s{{{LONG},}}")


def without_long_words(text: str) -> Iterator[str]:
    """A text in parts, so that no word of it is longer than LONG."""
    start = 0
    for run in RUN.finditer(text):
        for end in range(run.start(), run.end(), LONG):
            yield text[start:end]
            start = end
    yield text[start:]


Tokenizer = Bytes | Symbols | GPT2 | HF


def create(
    name: str,
    texts: Callable[[], Iterable[str]],
    bpe_dir: str = "",
    cache_dir: str = "",
    chat: bool = True,
) -> Tokenizer:
    """The tokenizer of a --tokenizer option: bytes, gpt2 (with its merges in `bpe_dir`), train:N
    (trained on `texts()`), or a folder with tokenizer.json, a GGUF file or a hub id; with `chat`,
    the tokens of a chat are added to the latter three."""
    kind, _, size = name.partition(":")
    if name == "bytes":
        return Bytes()
    if name == "gpt2":
        return GPT2.create(bpe_dir)
    if kind == "train":
        if not size.isdigit():
            raise UserError(f"tokenizer={name}: write train:N, for example train:4096")
        return HF.train(texts(), int(size))
    return HF.create(name, cache_dir, chat)


def with_bos_eos(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with three different BOS, EOS and PAD, for rows of one text each."""
    if isinstance(tokenizer, GPT2):
        return GPT2(tokenizer.files["gpt2.tiktoken"], has_bos_eos=True)
    return tokenizer.with_bos_eos() if isinstance(tokenizer, HF) else tokenizer


def vocabulary(tokenizer: Tokenizer) -> dict[str, int]:
    """Token -> id in the spelling of tokenizer.json; {} for bytes and symbols. GPT-2's spelling has
    a letter for each byte: visible characters of Latin-1 stand for themselves, the other bytes for
    characters from U+0100 on."""
    if isinstance(tokenizer, HF):
        return tokenizer.codec.get_vocab(with_added_tokens=True)
    if not isinstance(tokenizer, GPT2):
        return {}
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [b for b in range(256) if b not in visible]
    letter = {b: chr(b) for b in visible} | {b: chr(256 + k) for k, b in enumerate(others)}
    pairs = (line.split() for line in tokenizer.files["gpt2.tiktoken"].splitlines())
    ids = {"".join(letter[b] for b in base64.b64decode(t)): int(i) for t, i in pairs}
    return {**ids, "<|endoftext|>": 50256}


def refuse_gaps(codec: Any) -> dict[str, int]:
    """The vocabulary of a tokenizer after tokens were added. Raises UserError if an id is used
    twice: the library numbers new tokens by counting, which fails where ids have gaps."""
    vocabulary = codec.get_vocab(with_added_tokens=True)
    if len(set(vocabulary.values())) < len(vocabulary):
        raise UserError("tokenizer.json has gaps in its ids, so that none can be added")
    return vocabulary


def encode_spans(tokenizer: Tokenizer, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Text of n tokens -> ids (n,) uint32, and the characters [start, end) of each (n, 2). A token
    that is a part of a character has the span of that character."""
    if isinstance(tokenizer, HF):
        encoding = tokenizer.encoding(text, offsets=True)
        ids = np.array(encoding.ids, np.uint32)
        return ids, np.array(encoding.offsets, np.int64).reshape(-1, 2)
    ids = np.array(tokenizer.encode(text), np.uint32)
    if isinstance(tokenizer, Symbols):
        assert not tokenizer.sep, "symbols of one character only"
        places = np.arange(len(ids))
        return ids, np.stack([places, places + 1], 1)
    code = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    width = 1 + (code > 0x7F) + (code > 0x7FF) + (code > 0xFFFF)  # bytes of each character
    owner = np.repeat(np.arange(len(text)), width)  # index of the character of each byte
    sizes = np.ones(len(ids), np.int64)  # bytes of every token
    if isinstance(tokenizer, GPT2):
        sizes = np.array([*map(len, tokenizer.codec.decode_tokens_bytes(ids.tolist()))], np.int64)
    ends = np.cumsum(sizes)
    assert len(ids) == 0 or ends[-1] == len(owner), (ends[-1], len(owner))
    return ids, np.stack([owner[ends - sizes], owner[ends - 1] + 1], 1)  # (n, 2)


def _until(ids: Iterable[int], end: int) -> list[int]:
    ids = [int(i) for i in ids]
    return ids[: ids.index(end)] if end in ids else ids


def tokenizer_from(spec: dict[str, Any], files: dict[str, str]) -> Tokenizer:
    """Inverse of `spec()` and `files`. Raises UserError if they do not describe a tokenizer."""
    try:
        return _tokenizer_from(spec, files)
    except UserError:
        raise
    except Exception as e:  # the `tokenizers` library raises bare ones
        raise UserError(f"unreadable tokenizer {str(spec)[:60]}: {e}") from e


def _tokenizer_from(spec: dict[str, Any], files: dict[str, str]) -> Tokenizer:
    kind = spec.get("kind")
    if kind == "bytes":
        return Bytes()
    if kind == "symbols":
        return Symbols(spec.get("symbols", []), spec.get("sep", ""))
    if kind not in ("gpt2", "hf"):
        raise UserError(f"unknown tokenizer kind {kind!r}; known: bytes, symbols, gpt2, hf")
    name = "gpt2.tiktoken" if kind == "gpt2" else "tokenizer.json"
    if name not in files:
        raise UserError(f"the {kind} tokenizer needs {name}, which is missing")
    if kind == "gpt2":
        return GPT2(files[name], spec.get("framed", False))
    return HF(files[name], spec.get("names"))


# ==================================================================================================
# Conversations as token ids
#
#     <BOS><START_ID>user<END_ID>
#     {question}<EOT_ID><START_ID>assistant<END_ID>
#     {answer}<EOS>
#
# BOS stands before the first message only. A user's message ends in EOT, any other in EOS, that of
# a `system` role too. A prompt ends in the header of the assistant, without the newline: the
# newline is the first token of the answer. Every text is encoded by itself and the special tokens
# are added as ids, so that text of a user cannot become a special token. (Template and ids: the
# ModernBERT diffusion model.)
# ==================================================================================================


Message = tuple[str, str]  # (role, text)
Turns = Literal["each", "last"]  # which answers of a conversation are rows
USER, ASSISTANT = "user", "assistant"
GIVEN = "given assistant"  # an answer that is a part of the prompt and never written
NEEDED = ("bos", "eos", "start", "end", "eot")


def require_chat(tokenizer: Tokenizer) -> None:
    """Raise UserError for a tokenizer without the special tokens of a conversation."""
    missing = [name for name in NEEDED if name not in tokenizer.specials]
    if missing:
        raise UserError(
            f"the {tokenizer.kind} tokenizer cannot write a chat: it has no {', '.join(missing)}; "
            "prepare the corpus with --tokenizer=train:4096 or a tokenizer of the hub"
        )


def _header(tokenizer: Tokenizer, role: str) -> list[int]:
    special, role = tokenizer.specials, ASSISTANT if role == GIVEN else role
    return [special["start"], *tokenizer.encode(role), special["end"]]


def _body(tokenizer: Tokenizer, role: str, text: str) -> list[int]:
    end = tokenizer.specials["eot" if role == USER else "eos"]
    return [*tokenizer.encode("\n" + text), end]  # encoded together: the newline may merge


def encode_chat(
    tokenizer: Tokenizer, messages: Iterable[Message], reply: bool = False
) -> list[int]:
    """Messages -> ids; with `reply`, the header of the assistant's next message follows.

    Raises UserError for a tokenizer without chat tokens and for text that is not UTF-8.
    """
    require_chat(tokenizer)
    ids = [tokenizer.specials["bos"]]
    for role, text in messages:
        ids += _header(tokenizer, role) + _body(tokenizer, role, text)
    return ids + _header(tokenizer, ASSISTANT) if reply else ids


def chat_rows(
    tokenizer: Tokenizer, messages: list[Message], turns: Turns = "each"
) -> list[tuple[list[int], int]]:
    """A conversation -> rows (ids, number of prompt ids), one per answer (none for one of the role
    GIVEN), with everything before the answer as prompt; with turns="last" only the last row.
    Messages after the last answer are in no row."""
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
    """Ids after a prompt -> the text of the answer, up to the first EOS, without the newline of the
    template."""
    return tokenizer.decode(ids).removeprefix("\n")
