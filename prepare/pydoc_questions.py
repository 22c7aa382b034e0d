"""Questions about the standard library of this Python, with their answers.

Signatures and docstrings of the modules written in Python are parsed, never imported. The built-in
types and a few compiled modules, such as `math`, are imported and inspected. Only public names with
a docstring of their own count, under the name that one would import. The same Python gives the same
pairs in the same order: the best known modules first.
"""

import ast
import gc
import importlib
import inspect
import re
import sys
import types
from collections import Counter
from typing import Any, Iterable, Iterator, NamedTuple

from tqdm import tqdm

from prepare.texts import library_files, parsed

KNOWN = "builtins math random json time re string os.path pathlib shutil copy textwrap statistics"
KNOWN = (KNOWN + " collections itertools functools datetime csv glob subprocess sys os").split()
# importing these does nothing else, and every Python has them
COMPILED = "builtins os sys math random re time datetime collections itertools functools cmath io"
COMPILED = (COMPILED + " struct operator decimal weakref gc array binascii unicodedata").split()
# programs, jokes, other systems
APART = {"lib2to3", "idlelib", "turtledemo", "ensurepip", "encodings", "pydoc_data", "distutils"}
APART |= {
    "this",
    "antigravity",
    "ntpath",
    "nturl2path",
    "msilib",
    "windows_events",
    "windows_utils",
}
ELSEWHERE = r"__main__|(platform|name) == '(win32|nt)'"  # conditions of what is not there
LONGEST = 140  # characters of an answer: about 40 tokens of a small vocabulary
SHARED = 2  # things with the same docstring; where more have it, it says little about any
# lines, or the start of one, that show a call: "D.get(k) -> value", "max(a, b, *args)"
SIGNATURES = r"^(?:[\w.]+\([^\n]*\)(?: *-+> *[^\n.]+)?(?:\.? +(?=[A-Z])|\.?\n+|$))+"
# what a sentence that can stand alone does not hold
UNFIT = r"XXX|TODO|FIXME|>>>|->|Internal|Deprecated|^See |^If |^Same as |\*\*\*|---|\\\\"
MODULE = "module"
CALLED = ("function", "method")
IMPORTED = ("function", "class")


class Thing(NamedTuple):
    """One public name with its signature and docstring."""

    kind: str  # module, class, function, method, property
    module: str
    name: str  # as one would write it: json.dumps, str.split
    doc: str
    args: list[str] | None = None  # of functions and methods, as written, without self
    defaults: dict[str, str] = {}  # noqa: RUF012, argument -> default; never changed
    bases: list[str] = []  # noqa: RUF012, of classes

    @property
    def short(self) -> str:
        return self.name.rpartition(".")[2]


def public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


# ---- modules written in Python, parsed -----------------------------------------------------------


def _modules() -> Iterator[tuple[str, bool, ast.Module]]:
    """(name, is it a package, syntax tree) of every module of the library."""
    root, files = library_files()
    for path in tqdm(files, "reading the standard library", disable=not sys.stdout.isatty()):
        parts = list(path.relative_to(root).with_suffix("").parts)
        package = parts[-1] == "__init__"
        parts = parts[:-1] if package else parts
        if all(p.isidentifier() for p in parts) and not APART.intersection(parts):
            yield ".".join(parts), package, parsed(path)


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body and of the `if` and `try` in it."""
    for node in body:
        yield node
        if isinstance(node, ast.Try) or (
            isinstance(node, ast.If) and not re.search(ELSEWHERE, ast.unparse(node.test))
        ):
            yield from _statements(node.body)
        if isinstance(node, (ast.If, ast.Try)):
            yield from _statements([*node.orelse, *getattr(node, "finalbody", [])])


def _listed(tree: ast.Module) -> set[str] | None:
    """`__all__`, or None where there is none or it is computed."""
    names: set[str] = set()
    for node in _statements(tree.body):
        targets = getattr(node, "targets", [getattr(node, "target", None)])
        if any(isinstance(t, ast.Name) and t.id == "__all__" for t in targets):
            try:
                names.update(ast.literal_eval(node.value))
            except ValueError:
                return None
    return names or None


def _exports(package: str, tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(submodule, name) for what a package imports from its own modules, `*` included."""
    for node in _statements(tree.body):
        if isinstance(node, ast.ImportFrom) and node.module:
            source = f"{package}.{node.module}" if node.level == 1 else node.module
            if source.startswith(package + "."):
                yield from ((source, alias.name) for alias in node.names)


def _signature(node: ast.FunctionDef | ast.AsyncFunctionDef, bound: bool) -> tuple[list, dict]:
    """Arguments as written, * and ** included, and their defaults."""
    a = node.args
    plain = [x.arg for x in a.posonlyargs + a.args]
    values = plain[len(plain) - len(a.defaults) :]
    pairs = [*zip(values, a.defaults, strict=True)]
    pairs += [(x.arg, d) for x, d in zip(a.kwonlyargs, a.kw_defaults, strict=True) if d]
    names = plain[1:] if bound else plain
    names += [f"*{a.vararg.arg}"] if a.vararg else []
    names += [x.arg for x in a.kwonlyargs]
    names += [f"**{a.kwarg.arg}"] if a.kwarg else []
    return names, {name: ast.unparse(value) for name, value in pairs}


def _callable(kind: str, module: str, owner: str, node: Any) -> Thing | None:
    marks = [ast.unparse(d) for d in node.decorator_list]
    if any(m.endswith(("overload", ".setter", ".deleter")) for m in marks):
        return None
    name, doc = f"{owner}.{node.name}", ast.get_docstring(node) or ""
    if any(m.endswith("property") or m.startswith("_") for m in marks):  # not for calling
        return Thing("property", module, name, doc)
    args, defaults = _signature(node, kind == "method" and "staticmethod" not in marks)
    return Thing(kind, module, name, doc, args, defaults)


def _things(module: str, node: ast.stmt) -> Iterator[Thing | None]:
    """A function, or a class with its methods."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        yield _callable("function", module, module, node)
    elif isinstance(node, ast.ClassDef):
        name, bases = f"{module}.{node.name}", [ast.unparse(b) for b in node.bases]
        yield Thing("class", module, name, ast.get_docstring(node) or "", bases=bases)
        for inner in _statements(node.body):
            if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef)) and public(inner.name):
                yield _callable("method", module, name, inner)


def parsed_things() -> Iterator[Thing]:
    """Public things of the library, in the order of files and lines."""
    modules = list(_modules())
    packages = [(name, tree) for name, is_package, tree in modules if is_package]
    exported = {pair: name for name, tree in packages for pair in _exports(name, tree)}
    for name, _, tree in modules:
        shown = "os.path" if name in ("posixpath", "genericpath") else name
        if public(name):
            yield Thing(MODULE, shown, shown, ast.get_docstring(tree) or "")
        listed = _listed(tree)
        for node in _statements(tree.body):
            child = getattr(node, "name", "_")
            if not public(child) or (listed is not None and child not in listed):
                continue
            home = exported.get((name, child)) or exported.get((name, "*")) or shown
            if public(home):
                yield from filter(None, _things(home, node))


# ---- compiled modules, imported ------------------------------------------------------------------


def _asked(kind: str, module: str, name: str, thing: Any, bound: bool = False) -> Thing:
    doc = inspect.getdoc(thing) or ""
    try:
        parameters = list(inspect.signature(thing).parameters.values())[bound:]
    except (TypeError, ValueError):  # compiled code need not have a signature
        return Thing(kind, module, name, doc)
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    args = [stars.get(p.kind, "") + p.name for p in parameters]
    given = [p for p in parameters if p.default is not p.empty]
    return Thing(kind, module, name, doc, args, {p.name: repr(p.default) for p in given})


def _asked_class(module: str, name: str, cls: type) -> Iterator[Thing]:
    bases = [b.__qualname__ for b in cls.__bases__]
    yield Thing("class", module, name, inspect.getdoc(cls) or "", bases=bases)
    for key, member in vars(cls).items():
        if public(key) and inspect.isroutine(member):
            unbound = (staticmethod, classmethod, types.ClassMethodDescriptorType)
            bound = not isinstance(member, unbound)
            yield _asked("method", module, f"{name}.{key}", getattr(cls, key), bound)


def _names(loaded: Any) -> list[str]:
    """The public names of a module, small letters first: functions before exceptions."""
    return sorted(filter(public, getattr(loaded, "__all__", dir(loaded))), key=str.swapcase)


def asked_things() -> Iterator[Thing]:
    """Public things of the compiled modules."""
    for module in COMPILED:
        loaded = importlib.import_module(module)
        prefix = "" if module == "builtins" else module + "."
        for name in _names(loaded):
            value = getattr(loaded, name, None)
            if inspect.isbuiltin(value) or inspect.ismethod(value):  # random.choice is the latter
                yield _asked("function", module, prefix + name, value)
            elif isinstance(value, type) and value.__module__.removeprefix("_") == module:
                if value.__name__ == name:  # no second name, as IOError is of OSError
                    yield from _asked_class(module, prefix + name, value)


# ---- questions and answers -----------------------------------------------------------------------


def first_sentence(doc: str) -> str:
    """The first sentence of a docstring, without markup; empty if it is none that can stand alone:
    too short, too long, a bare signature, a list, a note among programmers."""
    doc = re.sub(SIGNATURES, "", doc)
    paragraph = " ".join(doc.split("\n\n")[0].split())
    text = re.split(r"(?<!e\.g)(?<!i\.e)(?<!etc)(?<!vs)\.(?= |$)", paragraph)[0]
    text = re.sub(r":\w+:`~?\.?([^`]*)`", r"\1", text).replace("``", "").replace("`", "'")
    text = re.sub(r"\*(\w+)\*", r"\1", text)
    good = LONGEST > len(text) > 12 and len(text.split()) > 2 and text.isascii()
    if not good or not re.match(r"[A-Z][\w-]* ", text) or not re.search(r"[\w)'\"]$", text):
        return ""
    return "" if re.search(UNFIT, text) else text + "."


def _told(thing: Thing) -> Iterator[tuple[str, str]]:
    """Question-answer pairs about one thing alone."""
    name, said = thing.name, first_sentence(thing.doc)
    noun = f"the module {name}" if thing.kind == MODULE else name
    yield f"What does {noun} do?" if thing.kind in CALLED else f"What is {noun}?", said
    if thing.args is not None:
        listed = ", ".join(a for a in thing.args if public(a.lstrip("*")))
        if len(listed) < LONGEST and (listed or not thing.args):
            yield f"What are the arguments of {name}?", listed or "It takes none."
        for arg, value in thing.defaults.items():
            if public(arg) and value != "None" and len(value) < 20 and "<" not in value:
                yield f"What is the default of {arg} in {name}?", value
    bases = [b for b in thing.bases if b != "object" and public(b)]
    if bases and bases == thing.bases:
        yield f"What does {name} inherit from?", ", ".join(bases)


def distinct(candidates: Iterable[Thing]) -> list[Thing]:
    """The first documented thing of every name, the best known modules first."""
    things: dict[str, Thing] = {}
    for thing in candidates:
        if thing.name not in things or not things[thing.name].doc:
            things[thing.name] = thing
    rank = {name: k for k, name in enumerate(KNOWN)}
    return sorted(things.values(), key=lambda t: (rank.get(t.module, len(KNOWN)), t.module))


def python_pairs() -> list[tuple[str, str]]:
    """(question, answer) about the standard library: what a thing is or does, its arguments, their
    defaults, what it inherits from, and for unique names in which module it is. Things whose
    docstring has no usable first sentence are left out."""
    collecting = gc.isenabled()
    gc.disable()  # as in sources.python_prose
    try:
        things = distinct([*parsed_things(), *asked_things()])
    finally:
        if collecting:
            gc.enable()
    homes = Counter(t.short for t in things if t.kind in IMPORTED)
    shared = Counter(first_sentence(t.doc) for t in things)
    shared[""] = SHARED + 1
    pairs: dict[str, str] = {}
    for thing in (t for t in things if shared[first_sentence(t.doc)] <= SHARED):
        for question, answer in _told(thing):
            pairs.setdefault(question, answer)
        imported = thing.kind in IMPORTED and thing.module != "builtins"
        if imported and homes[thing.short] == 1:
            pairs[f"Which module has the {thing.kind} {thing.short}?"] = thing.module
    return list(pairs.items())
