"""preprocess_prefix.py: every token has the importance of its word, the text is exact, and shards
are complete or absent whatever happens to the processes that write them."""

import json
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
from conftest import REPO, clean_env
from file_forms import FORMS, write
from hypothesis import given
from hypothesis import strategies as st
from obedient import broken, hanging, obedient

import preprocess_prefix
from configurator import UserError
from prepare.documents import Document, Preprocessed, ShardFolder, read_documents
from prepare.importance import TextBlob, TfIdf, priorities, word_scores
from prepare.texts import detokenizer, find_texts, is_prose
from prepare.workers import Workers
from preprocess_prefix import PrefixConfig, Preprocessor, main, once, shard_range, word_of_tokens
from tokenizer import GPT2, HF, Bytes, Symbols, encode_spans

STORY = """The old ship reached Bergen in March.  Captain Ada Lund sold her cargo – 40 barrels
of herring – and bought coffee, sugar and “good” rope.

\tShe didn't sleep; the U.S. consul's dog barked all night. \n"""


def text_of(number):
    """A document that is like no other."""
    names = ["Bergen", "Lyon", "Oslo", "Madrid", "Turku"]
    return f"{names[number % 5]} sold {number} ships. " + STORY[number % 7 : 40 + number * 3 % 120]


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A folder with 40 documents in two files, as working directory."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name, numbers in (("a", range(25)), ("b", range(25, 40))):
        rows = [json.dumps({"text": text_of(n)}) for n in numbers]
        Path(f"in/{name}.jsonl").write_text("\n".join(rows))
    return tmp_path


BASE = ["--dataset_name=in", "--val_split_ratio=0.2", "--tokenizer=bytes", "--tagger=textblob"]
FEW = [*BASE, "--num_shards=3", "--dataset_mode=train"]


def contents(folder):
    """Every file below a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(argv, match):
    with pytest.raises(UserError, match=match) as got:
        main(argv)
    assert "\n" not in str(got.value)


# ---- tokens and words ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bpe():
    return HF.train([STORY] * 3 + ["naïve Übung 東京 🚢"], 330)


def tokenizers(bpe):
    return [Bytes(), bpe, Symbols(sorted(set(STORY)))]


def check_spans(tokenizer, text):
    ids, spans = encode_spans(tokenizer, text)
    assert ids.tolist() == tokenizer.encode(text)
    assert len(ids) == len(spans)
    at = 0
    for start, end in spans.tolist():  # no character between two tokens; one may be of both
        assert start <= at <= end and start < end
        at = end
    assert at == len(text)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_spans_of_tokens_cover_the_text(bpe, text):
    check_spans(Bytes(), text)
    check_spans(bpe, text)


def test_spans_of_the_other_tokenizers():
    pytest.importorskip("tiktoken")
    import base64

    tokens = [bytes([i]) for i in range(256)] + [b"th", b"the", b" the", b"\xe2\x80"]
    tokens += [b"\xff" + str(i).encode() for i in range(50256 - len(tokens))]
    gpt2 = GPT2("\n".join(f"{base64.b64encode(t).decode()} {i}" for i, t in enumerate(tokens)))
    for text in (STORY, "the – the", "🚢", ""):
        check_spans(gpt2, text)
    check_spans(Symbols(sorted(set(STORY))), STORY)


def naive_words(text, spans, tokens):
    """Word of each token, character by character."""
    got = []
    for start, end in tokens:
        place = next((i for i in range(start, end) if not text[i].isspace()), start)
        word = next((k for k, (a, b) in enumerate(spans) if a <= place < b), -1)
        if word < 0 and text[place].isspace():
            word = next((k for k, (a, _) in enumerate(spans) if a == place + 1), -1)
        got.append(word)
    return got


def test_tokens_have_their_word(bpe):
    spans = TextBlob()(STORY).spans
    for tokenizer in tokenizers(bpe):
        _, tokens = encode_spans(tokenizer, STORY)
        ours = word_of_tokens(STORY, spans, tokens)
        assert ours.tolist() == naive_words(STORY, spans, tokens.tolist())
        assert set(ours) >= set(range(len(spans))) - {-1}


def test_one_white_space_goes_with_the_word_after_it():
    text = " a  b\n\nc \n"
    got = word_of_tokens(text, TextBlob()(text).spans, encode_spans(Bytes(), text)[1])
    assert got.tolist() == [0, 0, -1, 1, 1, -1, 2, 2, -1, -1]
    spaces = word_of_tokens(
        "a \n\n b", [(0, 1), (1, 5), (5, 6)], encode_spans(Bytes(), "a \n\n b")[1]
    )
    assert spaces.tolist() == [0, -1, -1, -1, 2, 2]  # a word of white space, as spaCy has, is none


def test_tokens_without_words():
    assert word_of_tokens("", [], np.empty((0, 2), np.int64)).tolist() == []
    assert word_of_tokens("  ", [], encode_spans(Bytes(), "  ")[1]).tolist() == [-1, -1]


# ---- documents -----------------------------------------------------------------------------------


def read(name, mode="constituency", root=None):
    return list(read_documents(Path(root or f"data/preprocessed/{mode}") / name))


def told_texts(share=0.2):
    """The documents of both splits, as the command divides them."""
    got = [find_texts("in", m, "", "", share, "") for m in ("train", "validation")]
    return [list(t.read(0, t.count)) for t in got]


def test_documents_hold_the_exact_text_and_the_labels_of_its_words(texts):
    main(BASE)
    train, val = told_texts()
    assert sorted(train + val) == sorted(map(text_of, range(40))) and 2 <= len(val) <= 16
    for name, expected in (("text_train", train), ("text_validation", val)):
        documents = read(name)
        assert len(documents) == len(expected)
        for document, text in zip(documents, expected, strict=True):
            assert bytes(document.ids.tolist()).decode() == text
            got = TextBlob()(text)
            spans = got.spans
            labels = [*priorities(got.tags, got.stops), 7]
            words = naive_words(text, spans, encode_spans(Bytes(), text)[1].tolist())
            assert document.word.tolist() == words
            assert document.label.tolist() == [labels[w] for w in words]
            assert document.score is None
            keys = [crc32(text[a:b].lower().encode()) for a, b in spans] + [0]
            assert document.key.tolist() == [keys[w] for w in words]


def test_scores_are_those_of_the_document_and_of_an_idf_of_the_training_split(texts):
    main([*BASE, "--mode=keybert_no_stopword", "--scorer=tfidf"])
    train, val = told_texts()
    scorer = TfIdf.fit(train)
    documents = read("text_validation", "keybert_no_stopword")
    for document, text in zip(documents, val, strict=True):
        got = TextBlob()(text)
        words = [text[a:b] for a, b in got.spans]
        scores = word_scores(words, got.points, scorer.table(words), demote=True)
        expected = np.array([*scores, -1.2], np.float32)[document.word]
        assert document.label is None and np.array_equal(document.score, expected)
    main([*BASE, "--mode=keybert", "--scorer=tfidf", "--dataset_mode=val", "--num_shards=1"])
    plain = read("text_validation", "keybert")
    pairs = list(zip(documents, plain, strict=True))
    assert all(np.array_equal(a.score > 1, b.score > 1) for a, b in pairs)  # full stops
    assert not any(((b.score >= -1.1) & (b.score <= -1.0)).any() for _, b in pairs)


@pytest.mark.slow
def test_a_trained_tokenizer_is_one_for_all_splits_and_shards(texts):
    options = [*BASE, "--tokenizer=train:300"]
    main([*options, "--num_shards=2", "--dataset_mode=val"])
    main([*options, "--num_shards=2", "--shard_idx=1"])
    main([*options, "--num_shards=2"])
    train = Preprocessed("data/preprocessed/constituency/text_train")
    val = Preprocessed("data/preprocessed/constituency/text_validation")
    assert train.tokenizer.files == val.tokenizer.files and train.tokenizer.vocab_size == 300
    expected, _ = told_texts()
    got = [train.tokenizer.decode(d.ids.tolist()) for d in train.documents()]
    assert got == expected


@pytest.mark.slow
def test_the_result_does_not_depend_on_processes_batches_and_commands(texts):
    main([*FEW, "--save_root=one"])
    main([*FEW, "--save_root=two", "--n_process=3", "--batch_size=2"])
    for number in (2, 0, 1):
        main([*FEW, "--save_root=three", f"--shard_idx={number}", "--batch_size=5"])
    first = contents(Path("one"))
    assert first == contents(Path("two")) == contents(Path("three"))
    assert sum("tokens.bin" in name for name in first) == 3


def test_documents_that_are_left_out_are_counted(texts):
    rows = [*(json.dumps({"text": t}) for t in ("", " \n", "One ship.", "Two ships.", "3")), ""]
    Path("in/a.jsonl").write_text("\n".join(rows))
    Path("in/b.jsonl").unlink()
    main([*BASE, "--dataset_mode=train", "--num_shards=1", "--val_split_ratio=0.0001", "--skip=3"])
    made = Preprocessed("data/preprocessed/constituency/text_train")
    assert [bytes(d.ids.tolist()) for d in made.documents()] == [b"One ship.", b"3"]
    counts = made.counts()
    assert counts["empty documents"] == 2 and counts["documents left out by --skip"] == 1
    assert counts["documents"] == 2 and counts["tokens"] == 10 and counts["words"] == 4


def test_more_shards_than_documents(texts):
    main([*BASE, "--dataset_mode=train", "--num_shards=41"])
    assert len(read("text_train")) == len(told_texts()[0]) < 41


def test_nothing_stands_in_for_what_is_not_there(texts, monkeypatch):
    """By default the original's tagger and scorer, or one line that names the others."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    spacy, encoder = "spacy is not installed.* or --tagger=textblob, which", "keybert is not"
    refused(["--dataset_name=in"], spacy)
    refused(["--dataset_name=in", "--mode=keybert"], spacy)
    words = [*FEW, "--mode=keybert"]
    refused(words, f"{encoder}.*pip install keybert.* --scorer=tfidf, which is another score")
    refused([*words, "--scorer=minilm"], encoder)
    assert not Path("data").exists()  # before any work
    main([*words, "--scorer=tfidf"])
    assert Preprocessed("data/preprocessed/keybert/text_train").meta["scorer"]["name"] == "tfidf"


def test_which_encoder_is_meant():
    def encoder(**options):
        return PrefixConfig(**{"mode": "keybert", **options}).encoder()

    assert encoder() == encoder(scorer="minilm") == "all-MiniLM-L6-v2"
    assert encoder(scorer="minilm", kw_model="own") == encoder(scorer="own") == "own"
    assert encoder(scorer="tfidf") == encoder(mode="constituency", scorer="own") == ""


def test_meta_tells_how_it_was_made(texts):
    main([*FEW, "--mode=keybert", "--scorer=tfidf"])
    meta = Preprocessed("data/preprocessed/keybert/text_train").meta
    assert meta["tagger"] == {"name": "textblob"}  # its tags are not asked for
    main([*FEW, "--dataset_mode=train"])
    meta = Preprocessed("data/preprocessed/constituency/text_train").meta
    assert meta["tagger"] == {"name": "textblob", "textblob": version("textblob")}
    meta = Preprocessed("data/preprocessed/keybert/text_train").meta
    assert meta["scorer"]["name"] == "tfidf" and meta["scorer"]["idf"] > 0
    assert meta["files"]["scores.bin"]["crc32"] and meta["mode"] == "keybert"


# ---- KeyBERT through a worker --------------------------------------------------------------------


@pytest.mark.slow
def test_minilm_in_a_worker_on_a_local_encoder(texts):
    """The real KeyBERT and sentence-transformers, on an encoder with random weights."""
    pytest.importorskip("keybert")
    transformers = pytest.importorskip("transformers")
    sentences = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    Path("bert").mkdir()
    letters = [chr(97 + i) for i in range(26)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters)]
    Path("bert/vocab.txt").write_text("\n".join(tokens))
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(vocab_size=len(tokens), **sizes, intermediate_size=16)
    transformers.BertModel(config).save_pretrained("bert")
    transformers.BertTokenizer("bert/vocab.txt").save_pretrained("bert")
    parts = [modules.Transformer("bert"), modules.Pooling(16)]
    sentences.SentenceTransformer(modules=parts).save("encoder")
    for root, options in (("new", ["--scorer=encoder"]), ("old", ["--kw_model=encoder"])):
        main([*FEW, "--mode=keybert", f"--save_root={root}", *options])
    new, old = ([d.score for d in read("text_train", root=root)] for root in ("new", "old"))
    scores = np.concatenate(new)
    assert len(np.unique(scores)) > 50 and scores.max() == np.float32(1.1)
    assert np.array_equal(scores, np.concatenate(old))
    assert Preprocessed("new/text_train").meta["scorer"]["model"] == "encoder"


# ---- shards --------------------------------------------------------------------------------------


def test_a_missing_shard_is_refused_by_name(texts):
    folder = Path("data/preprocessed/constituency/text_train")
    with pytest.raises(UserError, match=r"no preprocessed text at .*text_train"):
        Preprocessed(folder)
    main(FEW)
    whole = contents(folder)
    shutil.rmtree(folder / "shard_1")
    with pytest.raises(UserError, match=r"shard_1 is missing, one of 3: --shard_idx=1"):
        read_documents(folder)
    before = {n: (folder / n).stat().st_mtime_ns for n in contents(folder)}
    main(FEW)  # makes only what is missing
    assert contents(folder) == whole
    assert all((folder / n).stat().st_mtime_ns == t for n, t in before.items())
    shutil.rmtree(folder / "shard_2")
    with pytest.raises(UserError, match="shard_2 is missing"):
        read_documents(folder)


def test_a_damaged_file_is_refused_by_name(texts):
    main([*FEW, "--num_shards=1"])
    folder = Path("data/preprocessed/constituency/text_train")
    for name in ("tokens", "labels", "words", "keys", "offsets"):
        path = folder / f"shard_0/{name}.bin"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(UserError, match=rf"{name}\.bin is damaged"):
            read_documents(folder)
        path.unlink()
        with pytest.raises(UserError, match=rf"{name}\.bin is missing"):
            read_documents(folder)
        path.write_bytes(whole)
    read_documents(folder)


def test_shards_of_other_options_are_refused(texts):
    main([*FEW, "--shard_idx=0"])
    refused([*FEW, "--tokenizer=train:300"], "shard_0 was made with tokenizer_name='bytes'")
    refused([*FEW, "--num_shards=4"], "num_shards=3")
    Path("in/a.jsonl").write_text(json.dumps({"text": "another text"}))
    refused(FEW, "shard_0 was made with identity=")
    folder = Path("data/preprocessed/constituency/text_train")
    for number in (1, 2):
        shutil.copytree(folder / "shard_0", folder / f"shard_{number}")
    meta = json.loads((folder / "shard_2/meta.json").read_text())
    meta["tagger"]["textblob"] = "0"
    (folder / "shard_2/meta.json").write_text(json.dumps(meta))
    with pytest.raises(UserError, match="shard_2 has tagger="):
        read_documents(folder)


def test_what_was_learnt_from_another_text_is_not_used(texts):
    main([*FEW, "--mode=keybert", "--scorer=tfidf", "--shard_idx=0"])
    with open("in/a.jsonl", "a") as file:
        file.write("\n" + json.dumps({"text": "more"}))
    refused([*FEW, "--mode=keybert", "--scorer=tfidf"], "idf was learnt from another text")


def test_one_writer_at_a_time(tmp_path):
    info = {"mode": "constituency"}
    with ShardFolder(tmp_path / "shard_0", Bytes(), info) as out:
        with pytest.raises(UserError, match="another process is writing"):
            ShardFolder(tmp_path / "shard_0", Bytes(), info).__enter__()
        n = np.arange(3)
        out.add(Document(n, n + 1, None, n, n))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shard_0"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(UserError), ShardFolder(tmp_path / "s", Bytes(), {"mode": "keybert"}) as out:
        n = np.array([300])
        out.add(Document(n, None, n, n, n))
    assert list(tmp_path.iterdir()) == []


def test_once_keeps_what_another_process_made_first(tmp_path):
    def make(path):
        (path / "x").write_text("ours")
        (tmp_path / "f").mkdir()  # meanwhile
        (tmp_path / "f/x").write_text("theirs")
        (tmp_path / "f/meta.json").write_text('{"a": 1}')

    assert (once(tmp_path / "f", {"a": 1}, make) / "x").read_text() == "theirs"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
    with pytest.raises(UserError, match="learnt from another text"):
        once(tmp_path / "f", {"a": 2}, make)


@given(count=st.integers(0, 200), parts=st.integers(1, 40))
def test_shards_divide_the_documents(count, parts):
    ranges = [shard_range(count, parts, k) for k in range(parts)]
    assert [i for a, b in ranges for i in range(a, b)] == list(range(count))
    sizes = [b - a for a, b in ranges]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] - sizes[-1] <= 1


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not (got := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return got


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow
def test_a_killed_run_is_continued_to_the_identical_corpus(texts):
    """kill -9 in the middle of the second shard, as seen by the size of its unfinished file."""
    rows = [json.dumps({"text": text_of(n) + STORY * 5}) for n in range(600)]
    Path("in/a.jsonl").write_text("\n".join(rows))
    command = [sys.executable, str(REPO / "preprocess_prefix.py"), *FEW, "--batch_size=8"]
    subprocess.run([*command, "--save_root=whole"], check=True, env=clean_env(), timeout=120)
    process = subprocess.Popen([*command, "--save_root=killed"], env=clean_env())
    partial = Path("killed/text_train/.shard_1.unfinished/tokens.bin")
    wait_for(lambda: partial.exists() and partial.stat().st_size > 20_000)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert partial.exists() and not Path("killed/text_train/shard_1").exists()
    assert children
    wait_for(lambda: not any(map(is_running, children)))  # no orphans
    with pytest.raises(UserError, match="shard_1 is missing"):
        read_documents("killed/text_train")
    subprocess.run([*command, "--save_root=killed"], check=True, env=clean_env(), timeout=120)
    assert contents(Path("killed")) == contents(Path("whole"))


# ---- workers -------------------------------------------------------------------------------------


def batches(count, size, special=None):
    """Numbered texts; `special` maps a number to what happens there."""
    texts = [(n, (special or {}).get(n, f"t{n}")) for n in range(count)]
    return [texts[a : a + size] for a in range(0, count, size)]


def test_workers_keep_the_order():
    with Workers(3, 60, obedient) as workers:
        got = [x for batch in workers.map(batches(100, 3)) for x in batch]
        assert got == [f"T{n}" for n in range(100)]
        assert list(workers.map([])) == []
        assert list(workers.map(batches(2, 1))) == [["T0"], ["T1"]]


@pytest.mark.parametrize(
    "word, message",
    [
        ("die", r"killed by signal 9\) at document 7, 'die'; --skip=7"),
        ("leave", r"exit code 3\) at document 7, 'leave'"),
        ("hang", r"not come back in time \(1\.5 s\) at document 7, 'hang'; --skip=7 .*--timeout"),
        ("fail", "at document 7: ValueError: no good"),
        ("user", "document 7: a told mistake"),
    ],
)
def test_what_happens_to_a_worker_is_told_with_its_document(word, message):
    with pytest.raises(UserError, match=message), Workers(2, 1.5, obedient) as workers:
        list(workers.map(batches(20, 4, {7: word})))
    assert not any(w.process.is_alive() for w in workers.all)


def test_a_worker_that_cannot_begin_is_told_as_it_is():
    with pytest.raises(UserError, match=r"^not installed$"), Workers(1, 60, broken) as workers:
        list(workers.map(batches(3, 1)))


def test_a_hung_worker_leaves_no_shard(texts, monkeypatch):
    monkeypatch.setattr(preprocess_prefix, "Preprocessor", lambda parts: None)
    monkeypatch.setattr(preprocess_prefix, "Workers", lambda *a: Workers(1, 1.5, hanging))
    refused(FEW, r"at document \d+, .*--skip=")
    folder = Path("data/preprocessed/constituency/text_train")
    assert not list(folder.glob("*")) and not list(folder.glob(".*"))


# ---- texts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row, kept",
    [
        (" = Robert Boulter = \n", False),
        ("= Robert =\n", False),
        (" = = Career = = \n", False),
        ("= a\n", True),
        (" \n", False),
        ("", False),
        ("  a = b \n", True),
        ("x = = \n", True),
    ],
)
def test_headings_of_wikitext(row, kept):
    assert is_prose(row) is kept


@pytest.mark.parametrize(
    "name, before, after",
    [
        (
            "wikitext103",
            'the 1 @,@ 000 well @-@ known ( 2 @.@ 5 m ) said " yes " ; it \'s N \n',
            'the 1,000 well-known (2.5 m) said "yes"; it\'s N\n',
        ),
        (
            "ptb",
            "he does n't own N N of <unk> 's $ 1 and\\/or",
            "he doesn't own 1 1 of ?'s $1 and/or",
        ),
        (
            "lm1b",
            'He said , " no " ( twice ) : it \'s $ 5 at http : / / a.org / b .',
            'He said, "no" (twice): it\'s $5 at http://a.org/b.',
        ),
        ("lambada", " “It’s late” \n", '\n"It\'s late"'),
        ("openwebtext", " a , b ", " a , b "),
    ],
)
def test_detokenizers(name, before, after):
    assert detokenizer(name)(before) == after


def test_a_local_copy_of_a_named_text(texts):
    Path("wiki.raw").write_text(
        " \n = A = \n The ship , it 's old . \n = = B = = \n  No @-@ one . \n"
    )
    main(["--dataset_name=wikitext2", "--path=wiki.raw", *BASE[2:], "--num_shards=2"])
    documents = read("wikitext2_train")
    assert [bytes(d.ids.tolist()) for d in documents] == [
        b"The ship, it's old.\n",
        b"No-one.\n",
    ]


def test_a_split_without_documents_is_refused(texts):
    """A separator that is on no line makes one document of a file, and all of it training."""
    Path("one.txt").write_text("One ship.\nAnother one.\n")
    flags = ["--mode=constituency", "--tagger=textblob", "--tokenizer=bytes"]
    flags += ["--dataset_name=one.txt"]
    refused(
        [*flags, "--separator====="], "no document in validation, 1 in train; is separator='===="
    )
    assert not list(Path("data").rglob("*"))


@pytest.mark.parametrize("form", FORMS)
def test_files_in_every_form_are_the_same_documents(form, tmp_path):
    want = [f"text {i}, é\u2028." for i in range(12)]
    rows = [json.dumps({"text": t}, ensure_ascii=False) for t in want]
    write(form, tmp_path / "in", "a, b.JSONL", "\n".join(rows[:6]))
    write(form, tmp_path / "in", "c.json", f"\n [{','.join(rows[6:])}]")
    for name in (tmp_path / "in", f"{tmp_path}/in/*", f"{tmp_path}/in/a, *,{tmp_path}/in/c.*"):
        parts = [find_texts(str(name), m, "", "", 0.3, "") for m in ("train", "validation")]
        assert sorted(t for p in parts for t in p.read(0, p.count)) == sorted(want)
    path = write(form, tmp_path, "wiki.raw", "one\u2028more\nand\x0ctwo\n")
    got = find_texts("openwebtext", "train", str(path), "", 0.1, "")
    assert list(got.read(0, got.count)) == ["one\u2028more\n", "and\x0ctwo\n"]


def test_a_tokenizer_without_a_token_is_told_with_the_document(texts):
    parts = pytest.importorskip("tokenizers")
    Path("tok").mkdir()
    Path("tok/tokenizer.json").write_text(parts.Tokenizer(parts.models.BPE({"a": 0}, [])).to_str())
    refused([*FEW, "--tokenizer=tok"], r"document \d+: the tokenizer has no token for")
    assert not list(Path("data").rglob("shard_*"))


def test_tokens_for_what_is_unknown_are_counted(texts, capsys):
    parts = pytest.importorskip("tokenizers")
    codec = parts.Tokenizer(parts.models.WordLevel({"?": 0, "ships": 1}, unk_token="?"))
    codec.pre_tokenizer = parts.pre_tokenizers.Whitespace()
    Path("tok").mkdir()
    Path("tok/tokenizer.json").write_text(codec.to_str())
    main([*FEW, "--tokenizer=tok"])
    ids = [i for d in read("text_train") for i in d.ids.tolist()]
    lost = ids.count(0)
    assert f"{lost:,} tokens that stand for what is unknown" in capsys.readouterr().out and lost


def test_a_saved_data_set(texts):
    datasets = pytest.importorskip("datasets")
    rows = {"sentence": ["he does n't", "N ships", None]}
    datasets.Dataset.from_dict(rows).save_to_disk("saved")
    main(["--dataset_name=ptb", "--path=saved", *BASE[2:], "--num_shards=1"])
    assert [bytes(d.ids.tolist()) for d in read("ptb_train")] == [b"he doesn't", b"N ships"]


def test_the_end_of_one_long_text_is_held_out(texts):
    text = " ".join(text_of(n) for n in range(60))
    Path("long.txt").write_text(text)
    main(["--dataset_name=long.txt", "--num_shards=2", *BASE[2:], "--val_split_ratio=0.25"])
    train, val = (
        [bytes(d.ids.tolist()) for d in read(f"text_{m}")] for m in ("train", "validation")
    )
    assert b"".join(train + val).decode() == text
    assert 0.2 < len(b"".join(val)) / len(text) < 0.3


def test_pydoc_needs_one_command(texts, monkeypatch):
    from prepare import texts as module

    monkeypatch.setattr(module, "python_prose", lambda: [text_of(n) for n in range(30)])
    module.prose.cache_clear()
    main(["--mode=constituency", "--dataset_name=pydoc", "--tagger=textblob"])
    module.prose.cache_clear()
    counts = [
        Preprocessed(f"data/preprocessed/constituency/pydoc_{m}").counts()
        for m in ("train", "validation")
    ]
    assert sum(c["documents"] for c in counts) == 30


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--shard_idx=3"], "shard_idx must be from 0 to num_shards - 1 = 2"),
        (["--num_shards=0"], "num_shards must be at least 1"),
        (["--skip=x"], "skip must be numbers"),
        (["--timeout=0"], "timeout must be above 0"),
        (["--path=in"], "path must be for openwebtext"),
        (["--mode=pos"], "mode must be one of constituency, keybert, keybert_no_stopword"),
        (["--dataset_name=nowhere"], "neither one of .*pydoc.* nor a file, folder or hub id"),
        (["--dataset_mode=test"], "has train and validation only"),
        (["--tokenizer=train:x"], "write train:N"),
        (["--scorer=auto"], "scorer must be minilm, tfidf, or the folder or hub id"),
        (["--tagger=auto"], "tagger must be one of spacy, textblob, rules"),
        (["--scorer=tfidf", "--kw_model=x"], "kw_model must be for scorer=minilm"),
        (["--mode=keybert", "--scorer=./x"], r"no folder \./x; .*--scorer=tfidf, which is another"),
        (["--mode=keybert", "--scorer=in"], "in is no sentence encoder.*modules.json"),
        (["--tagger=spacy", "--spacy_model=in"], "in: no pipeline.*config.cfg"),
        (["--tagger=spacy", "--spacy_model=./x"], "neither an installed package nor a folder"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(texts, argv, message):
    refused([*FEW, *argv], message)
    assert not list(Path("data").rglob("shard_*")) if Path("data").exists() else True


def test_help_is_quick_and_complete():
    clock = time.monotonic()
    heavy = {"torch", "spacy", "keybert", "datasets", "transformers"}
    code = f"import sys, preprocess_prefix; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done
    assert time.monotonic() - clock < 20


def test_preprocessor_alone():
    parts = SimpleNamespace(
        mode="constituency",
        spacy_model="",
        encoder=None,
        idf=None,
        tokenizer=(Bytes().spec(), {}),
    )
    got = Preprocessor(parts)("The ship.")
    assert got.label.tolist() == [7] * 3 + [3] * 5 + [7]
