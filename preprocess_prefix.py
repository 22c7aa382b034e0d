"""Texts for cascades: how important every token is, in three ways.

    python preprocess_prefix.py --dataset_name=pydoc --tagger=textblob            # offline
    python preprocess_prefix.py --mode=keybert_no_stopword --dataset_name='essays,notes/*.jsonl'
    python preprocess_prefix.py --mode=constituency --dataset_name=openwebtext --shard_idx=3

--mode=constituency labels every word by its tag, 1 to 7: names, nouns, verbs, adjectives, adverbs,
the rest. keybert_no_stopword scores it by its closeness to the document, stop words last; keybert
lets stop words compete (the original names this mode but never published it: it is our reading).
A token has the label or the score of its word; the text is never changed.

--tagger=spacy takes any English pipeline of spaCy that tags, --spacy_model; textblob is
TextBlob's (rules is an older name of it; where there are only scores, words need no tags, and it
needs nothing). --scorer=minilm is KeyBERT with the encoder all-MiniLM-L6-v2, which the first run
fetches; a folder or hub id is KeyBERT with that one. tfidf needs nothing, and is another score:
a third to a half of a text's 16 best words are others. Nothing stands in for what is absent.

--dataset_name is pydoc, openwebtext, wikitext103, wikitext2, ptb, lambada, lm1b, an id of the hub,
or files, folders and patterns with commas between them (.txt, .jsonl, .json, .parquet). --tokenizer
is gpt2, bytes, train:N (learnt from the training split), a folder or a hub id.

The result is save_root/NAME_MODE/shard_K, shards that are independent of each other, complete or
absent: run again, the command makes those that are missing. Without --shard_idx it makes all.
"""

import json
import os
import shutil
import sys
import time
import zlib
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from configurator import UserError, describe, load, optional, require, run, save_json
from corpus import fingerprint
from prepare.documents import WORST_LABEL, WORST_SCORE, Document, ShardFolder, read_meta, shard_path
from prepare.importance import (
    MINILM,
    PACKAGE,
    KeyBert,
    Scorer,
    Spacy,
    Tagger,
    TextBlob,
    TfIdf,
    encoder_folder,
    pipeline_about,
    priorities,
    word_scores,
)
from prepare.texts import NAMED, SEEN, Texts, find_texts, is_local
from prepare.workers import Batch, Workers
from tokenizer import Tokenizer, create, encode_spans, tokenizer_from


@dataclass(frozen=True)
class PrefixConfig:
    """The options of `preprocess_prefix.py`."""

    mode: Literal["constituency", "keybert", "keybert_no_stopword"] = "constituency"  # see above
    # the text
    dataset_name: str = "openwebtext"  # a name, or files, folders and patterns: see above
    dataset_mode: str = ""  # train, validation ...; empty: train, and validation if we divide
    path: str = ""  # a local copy of one of the named texts
    separator: str = ""  # a line between the documents of a text file; empty: a file is one
    val_split_ratio: float = 0.05  # of pydoc and files, which have no splits of their own
    skip: str = ""  # numbers of documents to leave out, with commas between them
    # the ids
    tokenizer: str = ""  # see above; empty: gpt2, for pydoc bytes
    bpe_dir: str = ""  # gpt2: folder with vocab.bpe and encoder.json, instead of a download
    # the importance
    tagger: Literal["spacy", "textblob", "rules"] = "spacy"  # what finds words and tags
    spacy_model: str = PACKAGE  # spacy: a pipeline, by package or folder
    scorer: str = "minilm"  # keybert modes: minilm, tfidf, or folder or hub id of an encoder
    kw_model: str = ""  # an older way to name an encoder: --scorer=minilm --kw_model=FOLDER
    # the result
    save_root: str = ""  # empty: data/preprocessed/MODE
    num_shards: int = 32  # parts of a text, each written by one command
    shard_idx: int | None = None  # the part to write; None: all that are missing
    # the work
    n_process: int = 1  # processes; the result does not depend on it
    batch_size: int = 128  # documents that a process takes at a time, fewer if they are long
    timeout: float = 600.0  # seconds for one document, before its process counts as hung
    huggingface_cache_dir: str = ""  # where downloads go; empty: the library's own place

    def __post_init__(self):
        for key in ("num_shards", "n_process", "batch_size"):
            require(self, key, getattr(self, key) >= 1, "at least 1")
        require(self, "timeout", self.timeout > 0, "above 0")
        within = self.shard_idx is None or 0 <= self.shard_idx < self.num_shards
        require(self, "shard_idx", within, f"from 0 to num_shards - 1 = {self.num_shards - 1}")
        require(self, "val_split_ratio", 0 < self.val_split_ratio < 1, "above 0 and below 1")
        require(self, "dataset_name", bool(self.dataset_name), "given")
        kinds = "minilm, tfidf, or the folder or hub id of a sentence encoder"
        require(self, "scorer", self.scorer not in ("", "auto"), kinds)
        alone = self.scorer == "minilm" or not self.kw_model
        require(self, "kw_model", alone, "for scorer=minilm; or name the encoder as the scorer")
        named = self.dataset_name in NAMED
        require(self, "path", named or not self.path, f"for {', '.join(NAMED)} only")
        numbers = all(n.strip().isdigit() for n in self.skip.split(",") if n)
        require(self, "skip", numbers, "numbers with commas between them")

    def name(self) -> str:
        """Name of the text in folders."""
        if self.dataset_name in (*NAMED, "pydoc"):
            return self.dataset_name
        return "text" if is_local(self.dataset_name) else self.dataset_name.split("/")[-1]

    def root(self) -> Path:
        return Path(self.save_root or f"data/preprocessed/{self.mode}")

    def modes(self) -> list[str]:
        """The splits to make."""
        if self.dataset_mode:
            return ["validation" if self.dataset_mode == "val" else self.dataset_mode]
        divided = self.dataset_name == "pydoc" or is_local(self.dataset_name)
        return ["train", "validation"] if divided else ["train"]

    def encoder(self) -> str:
        """The name of the sentence encoder; empty for labels and for TF-IDF."""
        if self.mode == "constituency" or self.scorer == "tfidf":
            return ""
        return (self.kw_model or MINILM) if self.scorer == "minilm" else self.scorer

    def tokens(self) -> str:
        """The name of the tokenizer."""
        return self.tokenizer or ("bytes" if self.dataset_name == "pydoc" else "gpt2")


# ---- a document ----------------------------------------------------------------------------------


def word_of_tokens(text: str, spans: list[tuple[int, int]], tokens: np.ndarray) -> np.ndarray:
    """Spans of W words and of n tokens (n, 2) in a text -> the word of each token (n,) int32, -1
    for none. A token belongs to the word of its first character that is not white space. A single
    white space before a word belongs to it; other white space to no word."""
    owner = np.full(len(text) + 1, -1, np.int32)  # one more, for empty tokens at the end
    for number, (start, end) in enumerate(spans):
        if not text[start:end].isspace():  # spaCy's words may be
            owner[start:end] = number
            if start and owner[start - 1] < 0 and text[start - 1].isspace():
                owner[start - 1] = number
    blank = np.array([c.isspace() for c in text] + [False])
    # of every place, the first one from there on that is no white space
    solid = np.where(blank, len(text), np.arange(len(text) + 1))
    solid = np.minimum.accumulate(solid[::-1])[::-1]
    first = solid[tokens[:, 0]]
    return owner[np.where(first < tokens[:, 1], first, tokens[:, 0])]


def keys_of(words: Iterable[str]) -> np.ndarray:
    """Words -> uint32, equal for words that are equal in lower case."""
    return np.array([zlib.crc32(w.lower().encode("utf-8", "replace")) for w in words], np.uint32)


class Parts(NamedTuple):
    """What a worker is built from; plain data, so that it can be sent to another process."""

    mode: str
    spacy_model: str  # empty: TextBlob
    encoder: Path | None  # of KeyBERT
    idf: Path | None  # of the scorer tfidf
    tokenizer: tuple[dict[str, Any], dict[str, str]]  # its spec and files


class Preprocessor:
    """Text -> Document; the function of a worker."""

    def __init__(self, parts: Parts):
        self.tokenizer = tokenizer_from(*parts.tokenizer)
        tags, pipeline = parts.mode == "constituency", parts.spacy_model
        self.tagger: Tagger = Spacy(pipeline) if pipeline else TextBlob(tags)
        self.scorer: Scorer | None = None
        self.demote = parts.mode == "keybert_no_stopword"
        if parts.encoder:
            optional("torch").set_num_threads(1)
            self.scorer = KeyBert(parts.encoder)
        elif parts.idf:
            self.scorer = TfIdf.read(parts.idf)

    def __call__(self, text: str) -> Document:
        tagged = self.tagger(text)
        words = [text[a:b] for a, b in tagged.spans]
        ids, spans = encode_spans(self.tokenizer, text)
        word = word_of_tokens(text, tagged.spans, spans)
        # the last of each is for what is in no word, which has number -1
        key = np.append(keys_of(words), np.uint32(0))[word]
        if not self.scorer:
            labels = np.array([*priorities(tagged.tags, tagged.stops), WORST_LABEL], np.int8)
            return Document(ids, labels[word], None, word, key)
        scores = word_scores(words, tagged.points, self.scorer.table(words), self.demote)
        return Document(ids, None, np.array([*scores, WORST_SCORE], np.float32)[word], word, key)


# ---- what is learnt from the text once -----------------------------------------------------------


def training_texts(cfg: PrefixConfig) -> Iterator[str]:
    """The first SEEN bytes of the training split."""
    texts, size = texts_of(cfg, "train"), 0
    for text in texts.read(0, texts.count):
        yield text
        size += len(text)
        if size >= SEEN:
            return


def texts_of(cfg: PrefixConfig, mode: str) -> Texts:
    return find_texts(
        cfg.dataset_name,
        mode,
        cfg.path,
        cfg.separator,
        cfg.val_split_ratio,
        cfg.huggingface_cache_dir,
    )


def once(folder: Path, identity: dict[str, Any], make: Callable[[Path], None]) -> Path:
    """`folder`, made by `make(folder)` if it does not exist; complete or not at all. If several
    processes make it at once, one wins and all use its folder."""
    if not folder.exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        try:
            partial.mkdir(parents=True)
            make(partial)
            save_json(identity, partial / "meta.json")
            with suppress(OSError):  # another process was faster
                os.rename(partial, folder)
        except OSError as e:
            raise UserError(f"cannot write {folder}: {e.strerror}") from e
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    if json.loads((folder / "meta.json").read_text(encoding="utf-8")) != as_json(identity):
        raise UserError(f"{folder} was learnt from another text; remove it, or --save_root=ANOTHER")
    return folder


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def make_tokenizer(cfg: PrefixConfig, folder: Path, identity: dict[str, Any]) -> Tokenizer:
    """The tokenizer of the config; train:N is learnt once and kept in `folder`."""
    name = cfg.tokens()

    def texts() -> Iterator[str]:
        return training_texts(cfg)

    if not name.startswith("train:"):
        return create(name, texts, cfg.bpe_dir, cfg.huggingface_cache_dir)

    def make(path: Path) -> None:
        for file, text in create(name, texts).files.items():
            (path / file).write_text(text, encoding="utf-8")

    kept = once(folder / name.replace(":", "_"), identity, make)
    return create(str(kept.resolve()), texts)


def make_parts(cfg: PrefixConfig, encoder: Path | None, identity: dict[str, Any]) -> Parts:
    """Everything that workers need, including what is learnt from the training split."""
    folder = cfg.root() / f"{cfg.name()}_fitted"
    tokenizer, idf = make_tokenizer(cfg, folder, identity), None
    if cfg.mode != "constituency" and cfg.scorer == "tfidf":

        def make(path: Path) -> None:
            TfIdf.fit(training_texts(cfg)).save(path / "idf.json")

        idf = once(folder / "idf", identity, make) / "idf.json"
    spec = (tokenizer.spec(), tokenizer.files)
    pipeline = cfg.spacy_model if cfg.tagger == "spacy" else ""
    return Parts(cfg.mode, pipeline, encoder, idf, spec)


# ---- the command ---------------------------------------------------------------------------------


def find_models(cfg: PrefixConfig) -> Path | None:
    """The folder of the sentence encoder, None if none is needed. Raises UserError, before any
    work, if it or the tagger is not there."""
    if cfg.tagger == "spacy":
        pipeline_about(cfg.spacy_model)
    elif cfg.mode == "constituency":
        optional("textblob")
    return encoder_folder(cfg.encoder(), cfg.huggingface_cache_dir) if cfg.encoder() else None


def abouts(cfg: PrefixConfig, idf: Path | None) -> dict[str, Any]:
    """The tagger and the scorer with their versions, for meta.json."""
    tagger = {"name": "spacy" if cfg.tagger == "spacy" else "textblob"}
    if cfg.tagger == "spacy":
        tagger |= pipeline_about(cfg.spacy_model)
    elif cfg.mode == "constituency":  # else its tags are not asked for
        tagger["textblob"] = version("textblob")
    scorer = {"name": "" if cfg.mode == "constituency" else cfg.scorer}
    if cfg.encoder():
        packages = ("keybert", "sentence-transformers")
        scorer |= {"model": cfg.encoder(), **{p: version(p) for p in packages}}
    if idf:
        scorer["idf"] = fingerprint(idf)["crc32"]
    return {"tagger": tagger, "scorer": scorer}


def numbered(
    cfg: PrefixConfig, texts: Texts, start: int, stop: int, out: ShardFolder
) -> Iterator[Batch]:
    """Documents [start, stop) in batches, without empty ones and those to skip."""
    skip = {int(n) for n in cfg.skip.split(",") if n}
    batch: Batch = []
    size = 0  # characters
    for number, text in enumerate(texts.read(start, stop), start):
        if number in skip:
            out.count("documents left out by --skip", 1)
        elif not text.strip():
            out.count("empty documents", 1)
        else:
            batch.append((number, text))
            size += len(text)
        if len(batch) == cfg.batch_size or size >= 1 << 20:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def shard_range(count: int, parts: int, number: int) -> tuple[int, int]:
    """Start and end of shard `number` of `parts` among `count` documents, as `datasets` divides
    them."""
    each, more = divmod(count, parts)
    start = number * each + min(number, more)
    return start, start + each + (number < more)


def missing(cfg: PrefixConfig, folder: Path, info: dict[str, Any]) -> list[int]:
    """The shards that do not exist. Raises UserError if an existing one has other options."""
    wanted = range(cfg.num_shards) if cfg.shard_idx is None else [cfg.shard_idx]
    for number in wanted:
        path = shard_path(folder, number)
        if path.exists():
            kept = read_meta(path)
            for key, value in as_json(info).items():
                if kept.get(key) != value:
                    raise UserError(
                        f"{path} was made with {key}={kept.get(key)!r}, not {value!r}; remove "
                        f"{folder}, or give another --save_root"
                    )
    return [k for k in wanted if not shard_path(folder, k).exists()]


def splits(cfg: PrefixConfig) -> dict[str, Texts]:
    """The texts of every split to make, and of training. Raises UserError, before anything is
    written, for one without documents."""
    texts = {mode: texts_of(cfg, mode) for mode in dict.fromkeys([*cfg.modes(), "train"])}
    for mode in cfg.modes():
        if not texts[mode].count:
            others = ", ".join(f"{t.count:,} in {m}" for m, t in texts.items() if m != mode)
            why = f"; is separator={cfg.separator!r} a line of it?" if cfg.separator else ""
            raise UserError(f"{cfg.dataset_name}: no document in {mode}, {others}{why}")
    return texts


def write_mode(cfg: PrefixConfig, mode: str, both: dict[str, Texts], encoder: Path | None) -> None:
    """Write all missing shards of one split."""
    folder = cfg.root() / f"{cfg.name()}_{mode}"
    texts, training = both[mode], both["train"]
    source = {"dataset_name": cfg.dataset_name, "path": cfg.path}
    parts = make_parts(cfg, encoder, {**source, **training.identity})
    info = {"mode": cfg.mode, **source, "dataset_mode": mode, "num_shards": cfg.num_shards}
    info |= {"tokenizer_name": cfg.tokens(), **abouts(cfg, parts.idf)}
    info |= {"identity": texts.identity}
    todo = missing(cfg, folder, info)
    tokenizer = tokenizer_from(*parts.tokenizer)
    if not todo:
        print(f"{folder}: complete already")
        return
    clock, counts = time.perf_counter(), Counter()
    with Workers(cfg.n_process, cfg.timeout, Preprocessor, parts) as workers:
        for number in tqdm(todo, f"{cfg.name()} {mode}", disable=not sys.stdout.isatty()):
            start, stop = shard_range(texts.count, cfg.num_shards, number)
            with ShardFolder(shard_path(folder, number), tokenizer, info) as out:
                out.info["shard"] = {"number": number, "documents": [start, stop]}
                for result in workers.map(numbered(cfg, texts, start, stop, out)):
                    for document in result:
                        out.add(document)
            counts += Counter(out.counts)
    seconds = time.perf_counter() - clock
    text = ", ".join(f"{number:,} {what}" for what, number in counts.items())
    rate = f"{seconds:.1f} s, {counts['words'] / seconds:,.0f} words/s"
    print(f"wrote {len(todo)} of {cfg.num_shards} shards of {folder}: {text}; {rate}")


def main(argv: list[str]) -> None:
    cfg, origins = load(PrefixConfig, argv)
    if origins:
        print(describe(cfg, origins))
    encoder, texts = find_models(cfg), splits(cfg)
    for mode in cfg.modes():
        write_mode(cfg, mode, texts, encoder)


if __name__ == "__main__":
    run(main)
