"""Patches: git agrees, nothing is half applied, and no file is written that should not be."""

import difflib
import os
import random
import re
import stat
import subprocess
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patches.patch import (
    BadPatch,
    Refused,
    apply_patch,
    check_name,
    check_path,
    make_hunks,
    parse,
    read_file,
    renumber,
    window,
    write_file,
)

LINES = ["", " ", "a", "b", "\ta", "    a", "a\r", "@@ -1 +1 @@", "<NME> x", "<DFF> @@", "\\ No"]
LINES += ["-- a", "++ b", "+", "-", "\x0c", "\u2028", "é"]
SHORT = ["", "a", "a\n", "a\nb", "a\nb\n", "\n", "\n\n", "b", "a\r\n", "a\n\nb\n"]


def texts():
    lines = st.lists(st.sampled_from(LINES), max_size=12)
    return st.builds(lambda x, end: "\n".join(x) + end, lines, st.sampled_from(["", "\n"]))


def edited(rng, text, changes):
    """A text with some lines taken out, put in or replaced."""
    lines = text.split("\n")
    for _ in range(changes):
        at = rng.randrange(len(lines))
        lines[at : at + rng.randrange(3)] = [f"new {rng.random()}"] * rng.randrange(3)
    return "\n".join(lines)


@pytest.fixture(scope="module")
def pairs():
    """A real source, 200 lines of it, and edits of it that differ from it."""
    rng, lines = random.Random(1), Path(difflib.__file__).read_text().split("\n")
    got = []
    for _ in range(40):
        first = rng.randrange(len(lines) - 200)
        before = "\n".join(lines[first : first + 200]) + rng.choice(["\n", ""])
        got.append((before, edited(rng, before, rng.randrange(1, 5))))
    return [(a, b) for a, b in got if a != b]


# ---- round trips ---------------------------------------------------------------------------------


@given(texts(), texts(), st.integers(0, 4), st.booleans())
def test_our_hunks_give_the_file_after(before, after, context, lenient):
    patch = make_hunks(before, after, context)
    got = apply_patch(before, patch, lenient)
    if before == after:
        assert (patch, got.state) == ("", "bad_format")
    else:
        assert (got.state, got.text, got.why) == ("ok", after, "")
        assert patch.endswith("\n")


@pytest.mark.parametrize("before, after", [p for p in product(SHORT, SHORT) if p[0] != p[1]])
def test_ends_of_files(before, after):
    assert apply_patch(before, make_hunks(before, after)).text == after


@pytest.mark.parametrize("context", [0, 1, 3])
def test_git_agrees(pairs, tmp_path, context):
    """Git's hunks give the file after by our applier, and ours by git's."""
    rng = random.Random(context)
    short = [p for p in product(SHORT, SHORT) if p[0] != p[1] and p[0]]
    for before, after in [*pairs[:8], *rng.sample(short, 8)]:
        for name, text in (("a", before), ("b", after)):
            (tmp_path / name).write_bytes(text.encode())
        command = ["git", "-c", "core.autocrlf=false", "diff", "--no-index", f"-U{context}"]
        out = subprocess.run([*command, "a", "b"], cwd=tmp_path, capture_output=True).stdout
        hunks = out.decode()[out.decode().index("\n@@") + 1 :]
        assert apply_patch(before, hunks) == ("ok", after, "")
        ours = make_hunks(before, after, context)
        assert len(parse(ours)) <= len(parse(hunks)) + 1
        patch = f"--- a/a\n+++ b/a\n{ours}".encode()
        apply = ["git", "apply", "--unidiff-zero", "-"]
        subprocess.run(apply, cwd=tmp_path, input=patch, check=True)
        assert (tmp_path / "a").exists() == bool(after) or not after
        written = (tmp_path / "a").read_bytes() if (tmp_path / "a").exists() else b""
        assert written == after.encode()


def repeated_edit(rng):
    """Two texts of few different lines, with blocks that are repeated, put in or taken out."""
    kinds = rng.sample(["", "a", "b", "c", "}", "    x", "y\r", "-- a"], 4)
    lines = rng.choices(kinds, k=rng.randrange(1, 40))
    changed = list(lines)
    for _ in range(rng.randrange(1, 4)):
        at, size = rng.randrange(len(changed) + 1), rng.randrange(5)
        block = changed[at : at + size] * rng.randrange(3) + rng.choices(kinds, k=rng.randrange(3))
        changed[at : at + size] = block
    return tuple("\n".join(x) + rng.choice(["\n", "\n", ""]) for x in (lines, changed))


def tools_take(folder, before, after, context):
    """Do `git apply` and `patch` make the file after from our hunks?"""
    text = f"--- a/f\n+++ b/f\n{make_hunks(before, after, context)}".encode()
    unsafe = ["--unidiff-zero"] if context == 0 else []
    patch = ["patch", "--binary", "--silent", "--fuzz=0", "--no-backup-if-mismatch", "f"]
    for command in (["git", "apply", *unsafe, "-"], patch):
        (folder / "f").write_bytes(before.encode())
        done = subprocess.run(command, cwd=folder, input=text, capture_output=True)
        written = (folder / "f").read_bytes() if (folder / "f").exists() else b""
        assert done.returncode == 0 and written == after.encode(), (text, done.stderr, before)


def whole_context(before, after, context):
    """Has every hunk so many lines around its changes, where the file has them?"""
    count, stop = len(before.split("\n")) - before.endswith("\n"), 0
    for hunk in parse(make_hunks(before, after, context)):
        signs = "".join(sign for sign, _ in hunk.lines)
        first, last = (len(s) - len(s.lstrip(" ")) for s in (signs, signs[::-1]))
        start, stop = hunk.place(), hunk.place() + len(hunk.old())
        assert first == min(context, start + first)
        assert last == min(context, count - stop + last)


@pytest.mark.parametrize(
    "before, after",
    [
        ("x\n#\nA\nB\nC\nA\nB\nC\n1\n2\n3\n4\n", "x\nA\nB\nC\n1\n2\n3\n4\n"),
        ("a\nb\na\nb\nc\nd\ne\nf\n", "a\nb\na\nb\na\nb\nc\nd\ne\nf\n"),
        ("}\n}\n}\n}\n}\n}\n", "}\n}\n}\n}\n}\n}\n}\n"),
        ("1\n2\n3\n4\nA\nA\nq\nA\n", "1\n2\n3\n4\nA\n"),
    ],
)
def test_hunks_of_repeated_lines_have_context_on_both_sides(tmp_path, before, after):
    for context in (1, 2, 3, 10):
        whole_context(before, after, context)
        tools_take(tmp_path, before, after, context)


def test_context_is_whole_whatever_repeats():
    rng = random.Random(7)
    for number in range(600):
        before, after = repeated_edit(rng)
        if before.strip("\n") and before != after:
            whole_context(before, after, number % 11)
            assert apply_patch(before, make_hunks(before, after, number % 11)).text == after


@pytest.mark.slow
def test_git_and_patch_take_our_hunks(tmp_path):
    """1,000 edits among repeated lines, at context 0 to 10."""
    rng, done = random.Random(11), 0
    while done < 1000:
        before, after = repeated_edit(rng)
        if before and before != after:
            tools_take(tmp_path, before, after, done % 11)
            done += 1


@given(texts(), texts(), st.integers(0, 3), st.integers(0, 5))
def test_a_window_is_a_part_and_its_hunks_fit_the_whole(before, after, context, above):
    if before == after:
        return
    head = "".join(f"{i}\n" for i in range(above))
    small, smaller, top = window(head + before, head + after, context)
    assert small in head + before and smaller in head + after
    assert small.count("\n") <= before.count("\n") + context + 1
    hunks = make_hunks(small, smaller)
    assert apply_patch(small, hunks) == ("ok", smaller, "")
    assert apply_patch(head + before, renumber(hunks, top)) == ("ok", head + after, "")


def test_a_window_has_so_many_lines():
    lines = [f"{i}\n" for i in range(30)]
    before, after = "".join(lines), "".join([*lines[:10], "x\n", *lines[12:]])
    small, smaller, top = window(before, after, 2)
    assert (small, smaller, top) == ("8\n9\n10\n11\n12\n13\n", "8\n9\nx\n12\n13\n", 8)
    assert make_hunks(before, after, 1) == "@@ -10,4 +10,3 @@\n 9\n-10\n-11\n+x\n 12\n"


# ---- what models do to patches -------------------------------------------------------------------


def headers(patch, change):
    return re.sub(r"(?m)^@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@.*$", change, patch)


def kept(patch, change):
    """Change the lines that stay."""
    lines = patch.split("\n")
    return "\n".join(" " + change(x[1:]) if x.startswith(" ") else x for x in lines)


CORRUPTIONS = {  # and whether the strict applier stands them
    "none": (lambda p: p, True),
    "starts + 200": (lambda p: renumber(p, 200), True),
    "no numbers": (lambda p: headers(p, "@@ ... @@"), True),
    "heading": (lambda p: headers(p, lambda m: m[0] + " def f(x):"), True),
    "blank lines without a space": (lambda p: re.sub(r"(?m)^ $", "", p), True),
    "chatter": (lambda p: p + "\n\nThis mends the bug.\n", True),
    "chatter with a list": (lambda p: p + "\nIt mends:\n\n    * the bug\n", True),
    "end of a mail": (lambda p: p + "-- \n2.39.5\n\n", True),
    "chatter before": (lambda p: "Here you are:\n\n" + p, True),
    "fence": (lambda p: "```diff\n" + p + "```\n", True),
    "marker": (lambda p: "<DFF> " + p, True),
    "the next sample": (lambda p: p + "<NME> o.py\n<BEF> x\n<DFF> @@ -1 +1 @@\n-x\n@@ @@\n", True),
    "no newline at its end": (lambda p: p.rstrip("\n"), True),
    "tabs": (lambda p: kept(p, lambda x: x.replace("    ", "\t")), False),
    "space at line ends": (lambda p: kept(p, lambda x: x + "  "), False),
    "carriage returns": (lambda p: p.replace("\n", "\r\n"), False),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corrupted_patches_apply_rightly_or_not_at_all(pairs, name):
    corrupt, strict = CORRUPTIONS[name]
    missed = 0
    for before, after in pairs:
        patch = corrupt(make_hunks(before, after))
        states = [apply_patch(before, patch, lenient) for lenient in (False, True)]
        if states[1].state == "no_match":  # several places look alike
            missed += 1
            continue
        assert states[1].text == after and states[1].state in ("ok", "ok_fuzzy"), name
        assert states[0].text == (after if states[0].state == "ok" else before)
        if strict:
            assert states[0] == states[1] == ("ok", after, "")
    assert missed <= (0.1 * len(pairs) if name == "tabs" else 0)


def test_a_line_that_is_there_twice_is_taken_where_the_numbers_say():
    before = "x\ny\n" * 5
    assert apply_patch(before, "@@ -5 +5 @@\n-x\n+z\n").text == "x\ny\nx\ny\nz\ny\nx\ny\nx\ny\n"
    assert apply_patch(before, "@@ @@\n-x\n+z\n").text == "z\ny\n" + "x\ny\n" * 4
    late = "@@ -205 +205 @@\n-x\n+z\n@@ -210,2 +210,2 @@\n x\n-y\n+end\n"
    got = apply_patch("x\ny\n" * 5 + "x\nend\n", late)  # the second one stays possible
    assert got.state == "ok" and got.text.count("z") == got.text.count("end") - 1 == 1


def test_one_sure_hunk_tells_how_far_the_numbers_are_off():
    before = "a\na\na\na\nsure\n"
    patch = renumber("@@ -2 +2 @@\n-a\n+b\n@@ -5 +5 @@\n-sure\n+c\n", 300)
    assert apply_patch(before, patch).text == "a\nb\na\na\nc\n"


def test_fuzzy_places_must_be_single_and_keep_the_file():
    before = "if a:\n    f( 1,  2)\nelse:\n  g()\n"
    patch = "@@ -1,3 +1,3 @@\n if a:\n-\tf( 1, 2)\n+    h()\n else:\t\n"
    assert apply_patch(before, patch).state == "no_match"
    assert apply_patch(before, patch, True) == ("ok_fuzzy", "if a:\n    h()\nelse:\n  g()\n", "")
    twice = "  a\nb\n    a\n"
    assert apply_patch(twice, "@@ -1 +1 @@\n-\ta\n+c\n", True).state == "no_match"


def test_carriage_returns_of_the_file_win():
    before = "a\r\nb\r\n"
    assert apply_patch(before, "@@ -1,2 +1,2 @@\n a\n-b\n+c\n", True).text == "a\r\nc\r\n"
    assert apply_patch(before, "@@ -1,2 +1,2 @@\n a\n-b\n+c\n").state == "no_match"


@pytest.mark.parametrize(
    "before, patch",
    [
        ("xab\nc\n", "@@ -1 +1 @@\n-ab\n+d\n"),  # never from the middle of a line
        ("a\n", "@@ -900,0 +901 @@\n+new\n"),  # nor behind the end
        ("a\n", "@@ @@\n+new\n"),  # nor just anywhere
        ("a\nb\nc\n", "@@ -1 +1 @@\n-a\n+x\n@@ -9 +9 @@\n-nowhere\n+y\n"),  # nor a half of it
        ("a\nb\n", "@@ -2 +2 @@\n-b\n+y\n@@ -1 +1 @@\n-a\n+x\n"),  # nor upwards
        ("a\nb\n", "@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+x\n"),  # that is not the end
        ("", "@@ -1 +1 @@\n-a\n+x\n"),
    ],
)
def test_what_does_not_fit_is_no_match(before, patch):
    got = apply_patch(before, patch)
    assert (got.state, got.text) == ("no_match", before) and "hunk" in got.why


@pytest.mark.parametrize(
    "patch, word",
    [
        ("", "no hunk"),
        ("I cannot.", "no hunk"),
        ("-a\n+b\n", "no hunk"),
        ("@@ -1 +1 @@\n", "no lines"),
        ("@@ -1 +1 @@\n\n\n", "no lines"),
        ("@@ -1 +1 @@\n-a\n+b\n@@ -3 +3 @@", "hunk 2 has no lines"),
        ("@@ -1 +1 @@\n-a\n+b\nand then\n@@ -3 +3 @@\n-c\n+d\n", "text before hunk 2"),
        ("--- a/f\n+++ b/../../etc/passwd\n@@ -1 +1 @@\n-a\n+b\n", "names a file"),
        ("diff --git a/f b/g\n@@ -1 +1 @@\n-a\n+b\n", "names a file"),
        ("@@ -1 +1 @@\n-a\n+b\ndiff --git a/g b/g\n@@ -1 +1 @@\n-a\n+b\n", "names a file"),
        ("rename from a\nrename to b\n@@ -1 +1 @@\n-a\n+b\n", "names a file"),
        ("deleted file mode 100644\n@@ -1 +0,0 @@\n-a\n", "names a file"),
    ],
)
def test_bad_formats(patch, word):
    with pytest.raises(BadPatch, match=word):
        parse(patch)
    assert apply_patch("a\n", patch, True)[:2] == ("bad_format", "a\n")


def test_two_files_in_one_patch_change_nothing():
    patch = "@@ -1 +1 @@\n-a\n+b\n--- a/other\n+++ b/other\n@@ -2 +2 @@\n-c\n+d\n"
    assert apply_patch("a\nc\n", patch, True)[:2] == ("bad_format", "a\nc\n")


def signs(line):
    """A line as it may be after a web page or a mailer: without its sign, or with another one."""
    return [line[1:], "\u2212" + line[1:], "\u2013" + line[1:], "\xa0" + line[1:], "> " + line]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_a_part_of_a_hunk_is_never_applied(pairs, ends):
    """Every hunk with one line missing, cut short after each line, with one sign lost, or with
    other sizes: whole or refused, and never as another change."""
    rng = random.Random(5)
    for before, after in pairs[:12]:
        patch = make_hunks(before, after).replace("\n", ends)
        lines = patch.split("\n")[:-1]
        body = [i for i, line in enumerate(lines) if line[:1] in "-+ "]
        damaged = ["\n".join(lines[:i]) + "\n" for i in body]
        damaged += ["\n".join(lines[:i] + lines[i + 1 :]) + "\n" for i in body]
        damaged += [headers(patch, r"@@ -\1,77 +\3,99 @@"), headers(patch, r"@@ -\1 +\3,0 @@")]
        for i in rng.sample(body, 5):
            lost = [line for line in signs(lines[i]) if line[:1].strip(" +-\r\\@")]
            damaged += ["\n".join([*lines[:i], line, *lines[i + 1 :]]) for line in lost]
            damaged.append("\n".join([*lines[:i], "+more", *lines[i:]]))
        for bad, lenient in product(damaged, (False, True)):
            got = apply_patch(before, bad, lenient)
            assert (got.state, got.text) == ("bad_format", before), bad


@pytest.mark.parametrize(
    "patch, word",
    [
        ("@@ -1,3 +1,3 @@\n-a\n+A\nb\n-c\n+C\n", "hunk 1 has a line that begins with none"),
        ("@@ -1,3 +1,3 @@\n-a\n+A\n b\n\u2212c\n+C\n", "hunk 1 has a line that begins with"),
        ("@@ @@\n-a\n+A\nb\n-c\n+C\n", "hunk 1 has a line that begins with none"),
        ("@@ @@\n-a\n+A\n\nso that\n+C\n", "more lines"),
        ("@@ -1 +1 @@\n-a\n+A\n b\n", "more lines"),
        ("@@ -1 +1 @@\n-a\n+A\n\n-c\n+C\n", "more lines"),
        ("@@ -1 +1 @@\n-a\n+A\nand\n-c\n+C\n", "more lines"),
        ("@@ -1,2 +1,3 @@\n-a\n+A\n-b\n-c\n+C\n", "not those that its header counts"),
        ("@@ -1,3 +1,3 @@\n-a\n+A\n b\n@@ -9 +9 @@\n-c\n+C\n", "fewer lines"),
        ("@@ -1,3 +1,3 @@\n-a\n+A\n b\n<NME> c\n", "fewer lines"),
        ("@@@ -1,3 -1,3 +1,3 @@@\n- a\n++A\n  b\n", "merge"),
        ("@@@@ -1 -1 -1 +1 @@@@\n---a\n+++A\n", "merge"),
        ("@@ -1 +1 @@\n-a\n+A\n@@@ -3 -3 +3 @@@\n- c\n++C\n", "merge"),
        ("@@ -\u0661,3 +1,3 @@\n-a\n+A\nb\n", "hunk 1 has a line"),  # digits of other scripts
    ],
)
def test_whole_hunks_only(patch, word):
    for lenient in (False, True):
        got = apply_patch("a\nb\nc\n", patch, lenient)
        assert got[:2] == ("bad_format", "a\nb\nc\n") and word in got.why, got


def test_sizes_tell_lines_of_the_file_from_what_follows():
    before = "-- a\n++ b\n\n"
    patch = "@@ -1,3 +1,3 @@\n--- a\n++++ c\n ++ b\n\n"  # an empty line without its space
    assert apply_patch(before, patch) == ("ok", "+++ c\n++ b\n\n", "")
    patch = "@@ -1,2 +1,2 @@\r\n-a\r\n+b\r\n\r\n"
    assert apply_patch("a\r\n\r\n", patch) == ("ok", "b\r\n\r\n", "")
    assert apply_patch("a\n\n", patch, True) == ("ok_fuzzy", "b\n\n", "")
    assert apply_patch("a\n", "@@ -1 +1 @@\n-a\n+b\n\n\n").text == "b\n"


MARK = "\n\\ No newline at end of file\n"


@pytest.mark.parametrize(
    "before, patch",
    [
        ("a\nb\n", f"@@ -1,2 +1,2 @@\n a\n-b{MARK}+B{MARK}"),  # it has a newline
        ("a\nb\n", f"@@ -1,2 +1,2 @@\n-a\n+A\n b{MARK}"),
        ("a\nb", "@@ -1,2 +1,2 @@\n a\n-b\n+B\n"),  # it has none
        ("a\nb", "@@ -1,2 +1,2 @@\n-a\n+A\n b\n"),
        ("a\nb", f"@@ -1,2 +1,2 @@\n a\n-b\n+B{MARK}"),
    ],
)
def test_the_mark_of_the_end_counts(before, patch):
    """As for `git apply`; the lenient applier says that it differed."""
    assert apply_patch(before, patch)[:2] == ("no_match", before)
    got = apply_patch(before, patch, True)
    assert got.state == "ok_fuzzy" and got.text != before


def test_no_change_is_a_state():
    assert apply_patch("a\nb\n", "@@ -1,2 +1,2 @@\n a\n b\n").state == "no_change"
    assert apply_patch("a\n", "@@ -1 +1 @@\n-a\n+a\n").state == "no_change"


@given(st.text("@-+ \\<NME>DF,12\n\r0a", max_size=60), texts())
def test_no_text_is_too_odd(patch, before):
    got = apply_patch(before, patch, True)
    assert got.state in ("ok", "ok_fuzzy") or got.text == before
    assert bool(got.why) == (got.state not in ("ok", "ok_fuzzy"))


def test_numbers_that_no_computer_reads():
    got = apply_patch("a\n", f"@@ -{'9' * 5000} +1 @@\n-a\n+b\n")
    assert got == ("ok", "b\n", "")  # no number at all


# ---- names and files -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "/etc", "a\\b", "a\0", "a\nb", "a\x1b[2J", "C:x", "\udc80", "é" * 200],
)
def test_hostile_names(name):
    for check in (check_name, check_path) if "/" not in name or name[0] == "/" else (check_name,):
        with pytest.raises(Refused):
            check(name)


@pytest.mark.parametrize(
    "path",
    [
        "../a",
        "a/../b",
        "a//b",
        "a/",
        ".git/config",
        "x/.GIT/hooks/a",
        "./../a",
        "a/.",
        "./",
        "./.git/a",
    ],
)
def test_hostile_paths(path):
    with pytest.raises(Refused):
        check_path(path)


@pytest.mark.parametrize(
    "name", ["a\u202egpj.py", "a\u2066b", "a\x85b", "a\u2028b", "a\u2029", "\x7f"]
)
def test_names_that_deceive(name):
    with pytest.raises(Refused):
        check_name(name)


def test_names_of_all_scripts(tmp_path):
    names = [
        "全角\u3000空白.txt",
        "می\u200cشود.txt",
        "👩\u200d💻.md",
        "no\xa0break",
        "Shot\u202fPM.png",
    ]
    names += ["שם\u200f.txt", "soft\xadhyphen", "a,b.py", "e\u0301té", "\ue000", "\U0001fae9.md"]
    for name in names:
        assert check_name(name) == check_path(f"x\u3000y/{name}") == name
        (tmp_path / name).write_text("a\n")
        write_file(tmp_path / name, "b\n", read_file(tmp_path / name))


def test_good_names():
    assert check_name("a b.py") == "a b.py"
    assert check_path("src/été/.gitignore") == ".gitignore"
    for path in ("./f.py", "./src/f.py", "src/./f.py", "././a/././f.py"):
        assert check_path(path) == "f.py"


def run_git(folder, *args):
    names = {
        f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
    }
    env = {**os.environ, **names, "GIT_CONFIG_GLOBAL": os.devnull}
    subprocess.run(["git", *args], cwd=folder, env=env, check=True, capture_output=True)


@pytest.fixture
def repo(tmp_path):
    """A repository with one committed file."""
    run_git(tmp_path, "init", "-q")
    (tmp_path / "f.py").write_bytes(b"a\r\n")
    (tmp_path / ".gitignore").write_text("ignored\n")
    run_git(tmp_path, "add", ".")
    run_git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_file_is_written_whole_with_its_mode(repo):
    path = repo / "f.py"
    run_git(repo, "config", "core.fileMode", "false")
    path.chmod(0o754)
    seen = read_file(path)
    assert seen.text == "a\r\n"
    write_file(path, "é\r\n", seen)
    assert path.read_bytes() == "é\r\n".encode()
    assert stat.S_IMODE(path.stat().st_mode) == 0o754
    assert sorted(p.name for p in repo.iterdir()) == [".git", ".gitignore", "f.py"]


def test_a_new_file_and_one_outside_of_git(tmp_path):
    path = tmp_path / "new"
    seen = read_file(path)
    assert seen.text is None
    write_file(path, "a\n", seen)
    assert path.read_text() == "a\n"
    with pytest.raises(Refused, match="changed"):
        write_file(path, "b\n", seen)
    write_file(path, "b\n", read_file(path))
    assert path.read_text() == "b\n"


@pytest.mark.parametrize("name", ["f.py", "untracked", "ignored"])
def test_what_git_could_not_bring_back_is_not_written(repo, name):
    (repo / name).write_text("mine\n")
    seen = read_file(repo / name)
    with pytest.raises(Refused, match="commit it"):
        write_file(repo / name, "x\n", seen)
    assert (repo / name).read_text() == "mine\n"
    if name == "f.py":  # nor what is only in the index
        run_git(repo, "add", ".")
        with pytest.raises(Refused, match="commit it"):
            write_file(repo / name, "x\n", seen)


NOT_LOOKED_AT = {  # what makes `git status` say that all is clean
    "assume-unchanged": [("update-index", "--assume-unchanged", "f.py")],
    "skip-worktree": [("update-index", "--skip-worktree", "f.py")],
    "ignored stat": [("config", "core.ignoreStat", "true"), ("update-index", "-q", "f.py")],
    "times": [("config", "core.checkStat", "minimal"), ("config", "core.trustctime", "false")],
    "sparse": [("sparse-checkout", "set", "--no-cone", "/.gitignore")],
    "line ends": [("config", "core.autocrlf", "true")],
}


@pytest.mark.parametrize("how", NOT_LOOKED_AT)
def test_what_git_is_told_not_to_look_at_is_not_written(repo, how):
    path = repo / "f.py"
    mine = {"line ends": b"a\r\nb\n"}.get(how, b"b\r\n")
    if how == "line ends":  # git would give one sort of line ends back
        path.write_bytes(b"a\nb\n")
        run_git(repo, "commit", "-qam", "unix")
    os.utime(path, (10**9, 10**9))
    run_git(repo, "status")
    for command in NOT_LOOKED_AT[how]:
        run_git(repo, *command)
    path.write_bytes(mine)
    os.utime(path, (10**9, 10**9))
    seen = read_file(path)
    with pytest.raises(Refused, match="commit it"):
        write_file(path, "x\n", seen)
    assert path.read_bytes() == mine


def test_linked_folders_lead_to_the_repository(repo, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside")
    (repo / "src").mkdir()
    (repo / "src" / "g.py").write_text("a\n")
    run_git(repo, "add", ".")
    run_git(repo, "commit", "-qm", "second")
    (outside / "link").symlink_to(repo / "src")
    (outside / "twice").symlink_to(outside / "link")
    (outside / "git").symlink_to(repo / ".git")
    for path in (outside / "link" / "g.py", outside / "twice" / ".." / "f.py"):
        write_file(path, "mine\n", read_file(path))  # git has what was there
        with pytest.raises(Refused, match="commit it"):
            write_file(path, "x\n", read_file(path))
        assert path.read_text() == "mine\n"
    with pytest.raises(Refused, match="of git itself"):
        read_file(outside / "git" / "config")


def test_what_git_gives_back_with_other_line_ends_is_written(repo):
    (repo / "g.py").write_bytes(b"a\nb\n")
    run_git(repo, "add", ".")
    run_git(repo, "commit", "-qm", "unix")
    run_git(repo, "config", "core.autocrlf", "true")
    for text in (b"a\r\nb\r\n", b"a\nb\n"):
        (repo / "g.py").write_bytes(text)
        write_file(repo / "g.py", "x\n", read_file(repo / "g.py"))
        assert (repo / "g.py").read_bytes() == b"x\n"


def test_a_file_that_changed_meanwhile_is_not_written(repo):
    seen = read_file(repo / "f.py")
    (repo / "f.py").write_bytes(b"b\n")
    run_git(repo, "commit", "-qam", "second")
    with pytest.raises(Refused, match="changed since"):
        write_file(repo / "f.py", "x\n", seen)
    (repo / "f.py").unlink()
    with pytest.raises(Refused, match="changed since"):
        write_file(repo / "f.py", "x\n", seen)
    assert not (repo / "f.py").exists()


def test_what_is_no_text_file_is_not_read(repo):
    (repo / "link").symlink_to("f.py")
    (repo / "binary").write_bytes(b"a\0b")
    (repo / "latin").write_bytes(b"\xe9")
    for name in ("link", "binary", "latin", ".git/config", "."):
        with pytest.raises(Refused):
            read_file(repo / name)
    with pytest.raises(Refused, match="cannot write"):
        write_file(repo / "no" / "f", "x", read_file(repo / "no" / "f"))


def test_a_write_that_fails_leaves_no_trace(repo, monkeypatch):
    seen = read_file(repo / "f.py")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(Refused, match="No space"):
        write_file(repo / "f.py", "x\n", seen)
    assert (repo / "f.py").read_bytes() == b"a\r\n"
    assert sorted(p.name for p in repo.iterdir()) == [".git", ".gitignore", "f.py"]


def test_a_broken_repository_refuses(repo):
    (repo / ".git" / "HEAD").write_text("nonsense\n")
    with pytest.raises(Refused, match=r"commit it first .* not a git repository"):
        write_file(repo / "f.py", "x\n", read_file(repo / "f.py"))


def test_no_program_of_the_repository_is_run(repo):
    """Filters and the file monitor, which an ordinary `git status` runs."""
    ran = repo.parent / "ran"
    script = repo.parent / f"evil{os.getpid()}"
    script.write_text(f"#!/bin/sh\ntouch {ran}\ncat\n")
    script.chmod(0o755)
    run_git(repo, "config", "filter.evil.clean", str(script))
    run_git(repo, "config", "core.fsmonitor", str(script))
    (repo / ".git" / "info" / "attributes").write_text("* filter=evil\n")
    os.utime(repo / "f.py", (1, 1))  # git must look into it
    write_file(repo / "f.py", "x\n", read_file(repo / "f.py"))
    assert not ran.exists()
    os.utime(repo / "f.py", (2, 2))
    run_git(repo, "status")
    assert ran.exists()  # so the trap was one
