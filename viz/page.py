"""Traces of samples as one self-contained HTML page: no network, no library.

    page.write("sample.html", [trace], "Samples of out/chat/ckpt.pt", {"steps": 64})

Traces are embedded as JSON (see story.Trace.data) in a form that no HTML parser
takes for markup; page.js draws them with text nodes only, never with markup. page.html has the
policy that forbids the page to fetch anything.
"""

import html
import json
import os
from pathlib import Path
from string import Template
from typing import Any

from viz.story import Trace

TEMPLATE, STYLE, SCRIPT = (
    Path(__file__).with_name(name).read_text(encoding="utf-8")
    for name in ("page.html", "page.css", "page.js")
)


def embedded(data: Any) -> str:
    """JSON that is ASCII and in which no HTML parser finds markup, the end of a script or a
    comment, whatever the strings hold; JSON.parse gives the same data back."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":  # they can only stand in strings
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def render(traces: list[Trace], title: str, facts: dict[str, Any] | None = None) -> str:
    """The page. facts: names and values shown below the samples."""
    assert traces and all(trace.steps for trace in traces), [s.steps for s in traces]
    data = embedded({"stages": [trace.data() for trace in traces]})
    name = html.escape(title)
    items = "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>\n"
        for key, value in (facts or {}).items()
    )
    return Template(TEMPLATE).substitute(
        title=name, style=STYLE, script=SCRIPT, facts=items, data=data
    )


def write(
    path: str | Path, traces: list[Trace], title: str, facts: dict[str, Any] | None = None
) -> None:
    """Write the page to a file, whole or not at all. Raises OSError."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    text = render(traces, title, facts).encode("ascii", "xmlcharrefreplace")
    try:
        partial.write_bytes(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
