"""Questions and answers: formats, reasons, splits, and answers about Python that are true."""

import importlib
import json
from collections import Counter

import numpy as np
import pytest
from file_forms import FORMS, write
from hypothesis import given
from hypothesis import strategies as st

import prepare_sft
from configurator import UserError, load
from corpus import Corpus
from prepare import pydoc_questions
from prepare_sft import SftConfig, conversation, conversations, divided, join, question
from tokenizer import HF, Bytes, chat_rows

ROWS = [{"instruction": f"Question {i}?", "output": f"Answer {i}, with words."} for i in range(40)]
SPOKEN = [("user", "Name a colour."), ("assistant", "Red.")]
MESSAGES = [{"role": "user", "content": SPOKEN[0][1]}, {"role": "assistant", "content": "Red."}]
FORMATS = [
    {"instruction": SPOKEN[0][1], "input": "", "output": "Red."},
    {"instruction": SPOKEN[0][1], "input": None, "output": "Red.", "id": 7},
    {"prompt": SPOKEN[0][1], "response": "Red."},
    {"question": SPOKEN[0][1], "answer": "Red."},
    {"messages": MESSAGES},
    {"messages": [{"role": "system", "content": " "}, *MESSAGES]},
    {"conversations": [{"from": "human", "value": SPOKEN[0][1]}, {"from": "gpt", "value": "Red."}]},
    {"instruction": SPOKEN[0][1], "instances": [{"input": "", "output": "Red."}]},
]
UNUSABLE = [
    ("a field is missing", {"instruction": "a"}),
    ("a field is missing", {"text": "a"}),
    ("a field is missing", {"messages": [{"role": "user"}]}),
    ("a field is no text", {"instruction": "a", "output": 5}),
    ("a field is no text", {"instruction": "a", "input": ["b"], "output": "c"}),
    ("a field is no text", {"messages": "a"}),
    ("a field is no text", {"messages": [{"role": "user", "content": [{"text": "a"}]}]}),
    ("an empty question", {"instruction": " ", "input": "b", "output": "c"}),
    ("an empty answer", {"instruction": "a", "output": "\n"}),
    ("an empty answer", {"messages": [*MESSAGES, {"role": "assistant", "content": ""}]}),
    ("no answer", {"messages": MESSAGES[:1]}),
    ("no answer", {"messages": []}),
    ("no question before the answer", {"messages": MESSAGES[::-1]}),
    ("a character that UTF-8 lacks", {"instruction": "a\ud800", "output": "b"}),
]


def config(**more):
    return load(SftConfig, [f"--{k}={v}" for k, v in more.items()])[0]


def saved(path, rows):
    lines = path.suffix == ".jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) if lines else json.dumps(rows, indent=1))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return HF.train([text for row in ROWS for text in row.values()] * 3, 270)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """prepared(rows, key=value, ...) -> the corpus of these rows."""
    root = tmp_path_factory.mktemp("sft")

    def make(rows, **more):
        name = f"c{len(list(root.iterdir()))}"
        file = saved(root / f"{name}.json", rows)
        options = {"tokenizer": "train:270", "path_to_data_store": root / name, **more}
        prepare_sft.prepare(config(source=file, **options))
        return Corpus(root / name)

    return make


def texts(corpus, split):
    return [text.replace("\n", "|") for text in corpus.texts(split)]


# ---- records -------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", FORMATS)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_every_format_is_the_same_conversation(record, name, tmp_path):
    path, dropped = saved(tmp_path / name, [record, *ROWS[:1]]), Counter()
    got = conversations(config(source=path), dropped)
    assert got == [SPOKEN, [("user", "Question 0?"), ("assistant", ROWS[0]["output"])]]
    assert not dropped


@pytest.mark.parametrize("form", FORMS)
def test_a_file_in_every_form_is_the_same_conversations(form, tmp_path):
    rows = [{"prompt": f"é {i}", "response": "b"} for i in range(4)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    want = [[("user", f"é {i}"), ("assistant", "b")] for i in range(4)]
    texts = ["\n".join(lines), f"\n [{','.join(lines)}]", json.dumps(rows, indent=2)]
    for name, text in zip(["a, b.JSONL", "c.ndjson", "d.JSON"], texts, strict=True):
        path = write(form, tmp_path / name[0], name, text)
        for source in (path, path.parent, f"{path.parent}/*"):
            assert conversations(config(source=source), Counter()) == want
    path = write(form, tmp_path, "questions.v2.jsonl", texts[0])
    assert config(source=path).folder().name == "questions.v2_sft"


def test_rows_of_parquet(tmp_path):
    pytest.importorskip("datasets")
    parquet, table = (
        pytest.importorskip("pyarrow.parquet"),
        importlib.import_module("pyarrow").table,
    )
    rows = {"messages": [MESSAGES] * 3, "id": [1, 2, 3]}
    parquet.write_table(table(rows), tmp_path / "a.PARQUET")
    assert conversations(config(source=tmp_path / "a.PARQUET"), Counter()) == [SPOKEN] * 3


def test_a_file_of_another_kind_is_refused_with_the_reason(tmp_path):
    (tmp_path / "a.csv").write_text("instruction,output\na,b\n")
    with pytest.raises(UserError, match=r"a\.csv is of none of the kinds \.json, \.jsonl"):
        conversations(config(source=tmp_path / "a.csv"), Counter())


PARTS = [{"type": "text", "text": "Name a "}, {"type": "text", "text": "colour."}]
MEANT = [  # a record, its conversation, and what of it is not used
    ({"prompt": [MESSAGES[0]], "completion": "A"}, "u:Name a colour. a:A", []),
    ({"prompt": "Q", "completion": [MESSAGES[1]]}, "u:Q a:Red.", []),
    (
        {"instruction": "Q.", "context": "C", "response": "A", "category": "x"},
        "u:Q: C a:A",
        ["field 'category'"],
    ),
    ({"question": "Q?", "context": "C", "answer": "A"}, "u:Q?: C a:A", []),
    (
        {"question": "Q?", "context": "C", "answers": {"text": ["A", "B"], "answer_start": [0, 1]}},
        "u:Q?: C a:A",
        ["answer after the first of a question"],
    ),
    ({"instruction": "Q.", "input": "I.", "context": "C", "output": "A"}, "u:Q: I: C a:A", []),
    ({"input": "Q", "output": "A"}, "u:Q a:A", []),
    ({"query": "Q", "response": "A", "type": "x"}, "u:Q a:A", ["field 'type'"]),
    (
        {"instruction": "Q", "input": "", "output": "A", "system": "S", "history": [["q", "a"]]},
        "s:S u:q a:a u:Q a:A",
        [],
    ),
    ({"system_prompt": "S", "question": "Q", "response": "A"}, "s:S u:Q a:A", []),
    ({"system": "", "prompt": "Q", "completion": "A", "history": None, "id": None}, "u:Q a:A", []),
    (
        {"prompt": "Q", "question": "q", "response": "A", "output": "a"},
        "u:Q a:a",
        ["field 'question'", "field 'response'"],
    ),
    (
        {
            "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
            "system": "S",
            "tools": "[]",
        },
        "s:S u:Q a:A",
        ["field 'tools'"],
    ),
    (
        {
            "conversations": [
                {"role": "User", "content": "Q"},
                {"role": "Assistant", "content": "A"},
            ]
        },
        "u:Q a:A",
        [],
    ),
    (
        {
            "messages": [
                {"role": "user", "content": PARTS, "name": "Ann"},
                {"role": "assistant", "content": "A", "weight": 1},
            ],
            "prompt": "Q",
        },
        "u:Name a colour. a:A",
        ["field 'prompt'", "field of a message 'name'"],
    ),
    *(
        (
            {
                "messages": [
                    {"role": "user", "content": "Q"},
                    {"role": "assistant", "content": "B", key: off},
                    {"role": "user", "content": "no"},
                    {"role": "assistant", "content": "A"},
                ]
            },
            "u:Q g:B u:no a:A",
            [],
        )
        for key, off in (("weight", 0), ("weight", 0.0), ("train", False), ("train_on_turn", False))
    ),
    (
        {
            "messages": [
                {"role": "user", "content": "Q", "weight": 1},
                {"role": "assistant", "content": "A"},
                {"role": "user", "content": "thanks"},
            ]
        },
        "u:Q a:A u:thanks",
        ["message after the last answer", "weight of a message that is no answer"],
    ),
    (
        {
            "prompt": [
                {"role": "user", "content": "Q"},
                {"role": "assistant", "content": "B"},
                {"role": "user", "content": "no"},
            ],
            "completion": [{"role": "assistant", "content": "A"}],
        },
        "u:Q g:B u:no a:A",
        [],
    ),
    (
        {
            "messages": [
                {"role": "developer", "content": "S"},
                {"role": "user", "content": "Q"},
                {"role": "tool", "content": "4", "tool_call_id": "x"},
                {"role": "assistant", "content": "A"},
            ]
        },
        "d:S u:Q t:4 a:A",
        ["field of a message 'tool_call_id'"],
    ),
]
NOT_MEANT = [
    (
        "a choice between answers instead of an answer",
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
    ),
    ("no answer of a weight above 0", {"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0}]}),
    (
        "a weight that is neither 0 nor 1",
        {"messages": [MESSAGES[0], {**MESSAGES[1], "weight": 0.5}]},
    ),
    (
        "a call of a tool instead of a text",
        {
            "messages": [
                *MESSAGES,
                {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
            ]
        },
    ),
    (
        "a part of a message is no text",
        {"messages": [{"role": "user", "content": [*PARTS, {"type": "image_url"}]}, MESSAGES[1]]},
    ),
    ("a field is no text", {"prompt": "Q", "response": "A", "history": [["q", 5]]}),
    ("a field is no text", {"prompt": "Q", "response": "A", "context": {"title": "x"}}),
    ("a field is no text", {"prompt": "Q", "response": "A", "system": 7}),
]


@pytest.mark.parametrize("record, said, left", MEANT)
def test_fields_are_used_as_their_formats_mean_or_named(record, said, left):
    unused = Counter()
    got = conversation(record, "final", unused)
    letters = {prepare_sft.GIVEN: "g"}
    assert " ".join(f"{letters.get(role, role[0])}:{text}" for role, text in got) == said
    assert sorted(unused) == left and set(unused.values()) <= {1}


@pytest.mark.parametrize("reason, record", NOT_MEANT)
def test_what_cannot_be_meant_is_left_out_with_the_reason(reason, record, tmp_path):
    dropped, unused = Counter(), Counter()
    path = saved(tmp_path / "a.jsonl", [record, *ROWS[:2]])
    assert len(conversations(config(source=path), dropped, unused)) == 2
    assert dropped == {reason: 1} and not unused


def test_an_answer_of_weight_0_is_given_and_never_written(prepared, capsys):
    bad = {"role": "assistant", "content": "Bad guess.", "weight": 0}
    talks = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, bad, *MESSAGES], "id": i}
        for i in range(8)
    ]
    for turns in ("each", "last"):
        corpus = prepared(talks, turns=turns)
        assert corpus.rows("train") + corpus.rows("val") == 8
        batch = corpus.batch("train", np.arange(corpus.rows("train")), 120)
        for ids, prompt, length in zip(*batch, strict=True):
            ids = ids[:length].tolist()
            assert "Bad guess." in corpus.tokenizer.decode(ids[: prompt.sum()])
            assert corpus.tokenizer.decode(ids[prompt.sum() :]) == "\nRed."
        header = chat_rows(corpus.tokenizer, [*SPOKEN, *SPOKEN])[1][0]
        given_ = chat_rows(corpus.tokenizer, [SPOKEN[0], (prepare_sft.GIVEN, "Red."), *SPOKEN])
        assert [ids for ids, _ in given_] == [header]  # written like any other answer
    assert "not used: field 'id': 8\n" in capsys.readouterr().out
    assert corpus.meta["unused"] == {"field 'id'": 8}


def test_several_instances_are_several_questions(tmp_path):
    task = {"instruction": "Add.", "instances": [{"input": f"{i}+1", "output": i} for i in "12"]}
    got = conversations(config(source=saved(tmp_path / "a.json", [task])), Counter())
    assert [m[0][1] for m in got] == ["Add: 1+1", "Add: 2+1"]


def test_what_is_left_out_is_counted_by_reason(tmp_path):
    path, dropped = saved(tmp_path / "a.jsonl", [*(r for _, r in UNUSABLE), *ROWS]), Counter()
    assert len(conversations(config(source=path), dropped)) == len(ROWS)
    assert dropped == Counter(reason for reason, _ in UNUSABLE)
    with pytest.raises(UserError, match=r"no usable row \(no answer: 2\)"):
        rows = [r for reason, r in UNUSABLE if reason == "no answer"]
        conversations(config(source=saved(tmp_path / "b.json", rows)), Counter())


@pytest.mark.parametrize(
    "instruction, final, original",
    [
        ("Add e.g. 2.5. Be brief.", "Add e.g. 2.5. Be brief: x", "Add eg 25 Be brief: x"),
        ("Translate this:", "Translate this: x", "Translate this:: x"),
        ("Go on... ", "Go on...: x", "Go on : x"),
        ("Why?", "Why?: x", "Why?: x"),
    ],
)
def test_join(instruction, final, original):
    assert join(instruction, "x", "final") == final
    assert join(instruction, "x", "original") == original
    for how in ("final", "original"):
        assert join(instruction, " ", how) == instruction  # nothing to join: nothing is taken away
        record = {"instruction": instruction, "input": "x", "output": "y"}
        assert conversation(record, how)[0] == ("user", {"final": final, "original": original}[how])


BROKEN = [
    ("a.json", b'[\n{"instruction": "a",\n"output": }]', "line 3"),
    ("a.json", b'{"instruction": "a", "output": "b"}', "must hold a list"),
    ("a.json", b'{"a": 1}\n{"a": 2}', "line 2: Extra data; one object per line is a .jsonl file"),
    ("a.json", b'[{"instruction": "a", "output": "b"}, 7]', "row 2"),
    ("a.json", b"[" * 100_000, "line 1"),
    ("a.jsonl", b'{"prompt": "a", "response": "b"}\n\n{"prompt": "a"\n', "line 3"),
    ("a.jsonl", b'{"prompt": "a", "response": "b"}\n[1]\n', "line 2: an object is needed"),
    ("a.jsonl", b'{"prompt": "a", "response": "b"}\n{"prompt": "\xff"}', "line 2: no UTF-8"),
    ("a.jsonl", b"", "it is empty"),
    ("a.json", None, "cannot read"),
]


@pytest.mark.parametrize("name, content, message", BROKEN)
def test_a_broken_file_is_one_line(name, content, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        conversations(config(source=tmp_path / name), Counter())
    assert message in str(error.value)


# ---- splits --------------------------------------------------------------------------------------


@given(
    st.lists(st.sampled_from(["a", "A ", "b", "c\nc", "C  c", "d", "e"]), min_size=2),
    st.sampled_from([0.01, 0.3, 0.99]),
    st.integers(0, 5),
)
def test_no_question_is_in_both_splits(asked, share, seed):
    got = [[("user", q), ("assistant", str(i))] for i, q in enumerate(asked)]
    distinct = len({question(m) for m in got})
    if distinct < 2:
        with pytest.raises(UserError, match="two different questions"):
            divided(got, share, seed)
        return
    splits = divided(got, share, seed)
    sides = {s: {question(m) for m, x in zip(got, splits, strict=True) if x == s} for s in splits}
    assert not sides["val"] & sides.get("train", set())
    assert len(sides["val"]) == max(1, round(distinct * share))
    assert splits == divided(got, share, seed)


def test_rows_of_a_corpus(prepared, tokenizer):
    """The whole path: rows, prompts, the share of validation, duplicates, what is too long."""
    talk = {"messages": [*MESSAGES, {"role": "user", "content": "More"}, {**MESSAGES[1]}]}
    extra = [{"prompt": "Long?", "response": "long " * 99}, ROWS[3], talk]
    corpus = prepared([*ROWS, *extra], test_split_pct=0.25, context_length=70)
    dropped = corpus.meta["dropped"]
    assert dropped == {"longer than context_length=70": 1, "same as an earlier row": 1}
    assert corpus.meta["task"] == "chat" and corpus.tokenizer.spec() == tokenizer.spec()
    assert corpus.rows("train") + corpus.rows("val") == len(ROWS) + 2  # two answers of the talk
    assert corpus.rows("val") in (10, 11, 12)  # 42 questions, of which the talk counts as one
    assert not set(texts(corpus, "train")) & set(texts(corpus, "val"))
    want = {}
    for row in [*ROWS, talk]:
        for ids, prompt in chat_rows(corpus.tokenizer, conversation(row, "final")):
            want[tuple(ids)] = prompt
    for split in ("train", "val"):
        batch = corpus.batch(split, np.arange(corpus.rows(split)), 70)
        for ids, given_, length in zip(*batch, strict=True):
            assert want.pop(tuple(ids[:length].tolist())) == given_.sum()
            assert given_[: given_.sum()].all()
            assert (ids[length:] == corpus.tokenizer.specials["eos"]).all()
    assert not want


def test_the_longest_row_that_fits(prepared):
    first = prepared(ROWS)
    longest = max(first.meta["splits"][s]["longest"] for s in ("train", "val"))
    assert not prepared(ROWS, context_length=longest).meta["dropped"]
    values = f"longer than context_length={longest - 1}"
    shorter = prepared(ROWS, context_length=longest - 1, test_split_pct=0.5).meta["dropped"]
    assert 1 <= shorter[values] < len(ROWS)
    with pytest.raises(UserError, match=r"one of the two splits \(longer than .*=8: 40\)"):
        prepared(ROWS, context_length=8)


def test_rows_that_the_tokenizer_has_no_token_for_are_counted(prepared, tmp_path):
    """With the reason that is true; the others are rows."""
    parts = pytest.importorskip("tokenizers")
    known = {c: i for i, c in enumerate(sorted({*"userassistant\n?.,", *"".join(str(ROWS))}))}
    codec = parts.Tokenizer(parts.models.BPE(known, []))
    (tmp_path / "tokenizer.json").write_text(codec.to_str())
    extra = [{"prompt": f"Käse {i}?", "response": "Yes."} for i in range(3)]
    extra += [{"prompt": "Which?", "response": "東京"}]
    corpus = prepared([*ROWS, *extra], tokenizer=tmp_path, test_split_pct=0.25)
    assert corpus.meta["dropped"] == {"a text with what the tokenizer has no token for": 4}
    assert corpus.rows("train") + corpus.rows("val") == len(ROWS)


def test_options(prepared):
    talks = [
        {"messages": [{**m, "content": f"{m['content']} {i}"} for m in MESSAGES * 2]}
        for i in range(9)
    ]
    each, last = prepared(talks), prepared(talks, turns="last")
    assert [c.rows("train") + c.rows("val") for c in (each, last)] == [18, 9]
    few = prepared(ROWS, max_rows=5)
    assert few.rows("train") + few.rows("val") == 5
    one, two, other = (
        prepared(ROWS),
        prepared(ROWS, num_workers=2),
        prepared(ROWS, test_split_pct=0.5),
    )
    assert one.meta["files"] == two.meta["files"] != other.meta["files"]
    seeds = {tuple(texts(prepared(ROWS, dataset_split_seed=s), "val")) for s in range(4)}
    assert len(seeds) > 1


def test_the_tokenizer_of_another_corpus(prepared, tmp_path, helpers):
    """Fine-tuning keeps the vocabulary of the pretrained network, and refuses one without chat."""
    first = prepared(ROWS)
    second = prepared([*ROWS, *FORMATS[:3]], tokenizer=first.folder)
    second.require_like(first.meta)
    (tmp_path / "tok").mkdir()
    (tmp_path / "tok" / "tokenizer.json").write_text(first.files["tokenizer.json"])
    prepared(ROWS, tokenizer=tmp_path / "tok").require_like(first.meta)
    plain = helpers.write_corpus(tmp_path / "plain", {"train": ["a"], "val": ["b"]}, Bytes())
    with pytest.raises(UserError, match="bytes tokenizer cannot write a chat"):
        prepared(ROWS, tokenizer=plain, path_to_data_store=tmp_path / "never")
    for name in ("bytes", "gpt2", "chars", "train:many"):
        with pytest.raises(UserError, match=f"tokenizer={name} has no tokens for a chat"):
            prepared(ROWS, tokenizer=name, path_to_data_store=tmp_path / "never")
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (["--source=pydocs"], "FILE.jsonl"),
        (["--test_split_pct=1"], "test_split_pct must be above 0 and below 1"),
        (["--tokenizer=data/a", "--hf_model_name=b/c"], "--tokenizer"),
        (["--path_to_data_store=a", "--dataset=b"], "left out with --dataset"),
        (["--max_rows=-1"], "at least 0"),
    ],
)
def test_bad_options(words, message):
    with pytest.raises(UserError, match=message):
        load(SftConfig, words)


def test_the_command_refuses_in_one_line(run_cli, assert_refused, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "response": "b"}\n{"prompt"\n')
    flags = ["prepare_sft.py", f"--data_dir={tmp_path}"]
    assert_refused(run_cli(*flags, f"--source={tmp_path / 'bad.jsonl'}"), "bad.jsonl, line 2")
    assert [p.name for p in tmp_path.iterdir()] == ["bad.jsonl"]


@pytest.mark.slow  # importing `datasets` takes seconds
def test_without_the_hub(run_cli, assert_refused, tmp_path):
    refused = run_cli("prepare_sft.py", f"--data_dir={tmp_path}", "--source=alpaca")
    assert_refused(refused, "tatsu-lab/alpaca", "--source=pydoc")
    assert not list(tmp_path.iterdir())


# ---- the standard library ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs():
    return dict(pydoc_questions.python_pairs())


def test_pairs_are_many_short_and_public(pairs):
    kinds = Counter(" ".join(q.split()[:3]) for q in pairs)
    assert len(pairs) > 5000
    assert min(kinds[k] for k in ("What are the", "Which module has", "What is the")) > 500
    for asked, answer in pairs.items():
        assert asked.endswith("?") and 0 < len(answer) <= 140 and "\n" not in asked + answer
        assert not any(part.startswith("_") for part in asked.replace(".", " ").split())
        assert answer.strip() == answer and (">>>" not in answer)
    for asked in ("What does len do?", "What does os.path.join do?", "What does str.split do?"):
        assert len(pairs[asked].split()) > 4
    assert next(iter(pairs)).endswith("abs do?")  # the best known first


def test_answers_are_true(pairs):
    """Against the living modules, which the parsed ones must agree with."""
    import inspect

    for module in "json shutil textwrap statistics asyncio os math collections glob".split():
        loaded, names = importlib.import_module(module), 0
        for asked, answer in pairs.items():
            words = asked.rstrip("?").split()
            if asked.startswith("Which module") and answer == module:
                assert hasattr(loaded, words[-1]), asked
                names += 1
            owner, _, name = words[-1].rpartition(".")
            if owner != module or not asked.startswith("What are the arguments"):
                continue
            real = inspect.signature(getattr(loaded, name)).parameters.values()
            given_ = answer.replace("*", "").split(", ") if answer != "It takes none." else []
            if not inspect.isclass(getattr(loaded, name)):
                assert given_ == [p.name for p in real if p.name[0] != "_"], asked
        assert names, module
    assert "Which module has the function dumps?" not in pairs  # json, pickle, plistlib ...
    assert pairs["What is the default of sep in print?"] == repr(" ")
    assert pairs["What does KeyError inherit from?"] == "LookupError"


@pytest.mark.parametrize(
    "doc, sentence",
    [
        ("Do a thing well.  And another.\n\nMore.", "Do a thing well."),
        ("Do a thing\nwell, e.g. now\n\nMore.", "Do a thing well, e.g. now."),
        ("f(a) -> b\n\nDo a thing well.", "Do a thing well."),
        ("f(a)\nf(a, b)\n\nDo :func:`a` thing ``well``.", "Do a thing well."),
        ("f(a) -> b, and more", ""),
        ("Do it.", ""),
        ("Return one of the following:\n\n- a", ""),
        ("do a thing well.", ""),
        ("Do " + "very " * 40 + "much.", ""),
        ("XXX Do a thing well.", ""),
    ],
)
def test_first_sentence(doc, sentence):
    assert pydoc_questions.first_sentence(doc) == sentence


def test_another_process_makes_the_same_pairs(pairs, run_cli, tmp_path):
    flags = ["--max_rows=300", "--tokenizer=train:400", f"--data_dir={tmp_path}"]
    run = run_cli("prepare_sft.py", *flags, env={"PYTHONHASHSEED": 1})
    assert run.returncode == 0, run.stderr
    corpus = Corpus(tmp_path / "pydoc_sft")
    want = {
        tuple(chat_rows(corpus.tokenizer, [("user", q), ("assistant", a)])[0][0])
        for q, a in list(pairs.items())[:300]
    }
    have = set()
    for split in ("train", "val"):
        batch = corpus.batch(split, np.arange(corpus.rows(split)), 200)
        have |= {tuple(i[:n].tolist()) for i, n in zip(batch.ids, batch.length, strict=True)}
    assert have == want


# ---- the original's command --------------------------------------------------------------------

DATASETS = """import json, os
class exceptions:
    class DatasetsError(Exception): pass
def load_dataset(name, **more):
    with open(os.environ["ASKED"], "a") as log:
        log.write(json.dumps([name, more]) + chr(10))
    return [
        {"instruction": f"Add {i}. Say it.", "input": "1" * (i % 3), "output": str(i + 1)}
        for i in range(60)
    ]
"""


def test_every_option_of_the_original(tmp_path, run_cli, tokenizer):
    """Alpaca with the tokenizer of a model: its cache, its split, its longest row."""
    site, log, folder = (tmp_path / name for name in ("site", "asked", "base"))
    site.mkdir()
    (site / "datasets.py").write_text(DATASETS)
    folder.mkdir()
    (folder / "tokenizer.json").write_text(tokenizer.files["tokenizer.json"])
    options = {"source": "alpaca", "test_split_pct": 0.25, "context_length": 60}
    options |= {"huggingface_cache_dir": tmp_path / "hf", "num_workers": 2, "hf_model_name": folder}

    def made(name, **more):
        given = options | {"path_to_data_store": tmp_path / name} | more
        argv = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        done = run_cli("prepare_sft.py", *argv, env={"PYTHONPATH": site, "ASKED": log})
        assert done.returncode == 0, done.stderr
        return Corpus(tmp_path / name)

    one, two, other = made("one"), made("two", num_workers=1), made("seed", dataset_split_seed=3)
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    where = {"split": "train", "cache_dir": str(tmp_path / "hf")}
    assert asked == [["tatsu-lab/alpaca", where]] * 3
    assert one.meta["files"] == two.meta["files"]
    assert texts(one, "val") != texts(other, "val")
    assert [one.rows(split) for split in ("train", "val")] == [45, 15]
    assert one.tokenizer.files == tokenizer.files
    longest = max(one.meta["splits"][s]["longest"] for s in ("train", "val"))
    short = made("short", context_length=longest - 1)
    assert max(short.meta["splits"][s]["longest"] for s in ("train", "val")) < longest
    assert short.meta["dropped"][f"longer than context_length={longest - 1}"] > 0
