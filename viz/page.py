"""Stories of samples as one HTML page that needs nothing else: no network, no library.

    page.write("sample.html", [story], "Samples of out/chat/ckpt.pt", {"steps": 64})

The stories are embedded as JSON (story.Story.data says what is in it) in a form that no HTML parser
takes for markup; the script below draws them with text nodes only, never with markup. The page's
own policy forbids it to fetch anything.
"""

import html
import json
import os
from pathlib import Path
from typing import Any

from viz.story import Story

POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --ink: #1b1f24; --faint: #59626d; --line: #c9d0d8; --focus: #0a58ca;
  --early: oklch(0.94 0.11 100); --late: oklch(0.80 0.10 255);
  --unsure: oklch(0.80 0.14 50); --certain: oklch(0.96 0.02 240);
  --given: #0a58ca; --blank: #e3e7ec; --fresh: #1b1f24;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #14171b; --ink: #eceff3; --faint: #a3adb8; --line: #3b434c; --focus: #8ab8ff;
    --early: oklch(0.43 0.09 100); --late: oklch(0.40 0.13 265);
    --unsure: oklch(0.46 0.13 45); --certain: oklch(0.27 0.03 240);
    --given: #8ab8ff; --blank: #2a3038; --fresh: #eceff3;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 0 1rem 4rem; max-width: 100rem;
  background: var(--paper); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif;
  overflow-wrap: anywhere;
}
h1 { font-size: 1.25rem; }
h2 { font-size: 1.1rem; margin: 1.5rem 0 0.5rem; }
h3 { font-size: 0.85rem; margin: 0 0 0.25rem; color: var(--faint); font-weight: 600; }
p, dl, figcaption { color: var(--faint); }
dt { font-weight: 600; } dd { margin: 0 0 0.3rem 1rem; }
:focus-visible { outline: 2px solid var(--focus); outline-offset: 2px; }

/* the controls stay in sight while a long page scrolls */
#controls { position: sticky; top: 0; z-index: 1; padding: 0.5rem 0; background: var(--paper); }
form { display: flex; flex-wrap: wrap; gap: 0.4rem 0.8rem; align-items: center; }
button, select { font: inherit; color: inherit; background: var(--blank);
  border: 1px solid var(--line); border-radius: 0.4rem; padding: 0.25rem 0.6rem; min-height: 2rem; }
#play { min-width: 4.5rem; }
#step { flex: 1 1 12rem; min-width: 8rem; height: 2rem; }
#where { min-width: 8.5rem; font-variant-numeric: tabular-nums; }
fieldset { border: 0; margin: 0; padding: 0; display: flex; flex-wrap: wrap; gap: 0 0.8rem; }
legend { float: left; padding: 0; margin-right: 0.8rem; }

.key { display: flex; flex-wrap: wrap; gap: 0.3rem 1.2rem; margin: 0.6rem 0; font-size: 0.85rem; }
.ramp { display: inline-block; width: 6rem; height: 0.8em; margin: 0 0.4em;
  border-radius: 0.2em; background: linear-gradient(to right in oklch, var(--early), var(--late)); }
[data-by="confidence"] .ramp {
  background: linear-gradient(to right in oklab, var(--unsure), var(--certain)); }

.samples { display: grid; gap: 1rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.sample { border: 1px solid var(--line); border-radius: 0.5rem; padding: 0.6rem; min-width: 0; }
.text { font: 0.95rem/1.9 ui-monospace, monospace; min-height: 1.9em; }
.waiting { opacity: 0.5; }

/* a token is a block of its own, so that it can slide; its spaces and line breaks stay */
.token {
  display: inline-block; max-width: 100%; min-width: 0.6ch; padding: 0 1px; margin: 0 1px 0 0;
  white-space: pre-wrap; border-radius: 0.2em; line-height: 1.45;
  background: color-mix(in oklch, var(--late) calc(var(--when) * 100%), var(--early));
}
.break { white-space: pre; }
[data-by="confidence"] .token {
  background: color-mix(in oklab, var(--certain) calc(var(--sure) * 100%), var(--unsure)); }
[data-by="confidence"] .token.undrawn { background: none; }
.token.given { background: none !important; border-bottom: 3px solid var(--given); }
.token.mask { background: var(--blank) !important; color: var(--faint); }
.token.new { box-shadow: 0 0 0 2px var(--fresh); }
.token[hidden] { display: none; }

#tip {
  position: fixed; z-index: 2; width: max-content; max-width: min(20rem, calc(100vw - 1rem));
  padding: 0.5rem 0.7rem; font-size: 0.85rem; pointer-events: none;
  background: var(--paper); border: 1px solid var(--line); border-radius: 0.5rem;
  box-shadow: 0 4px 16px #0006;
}
#tip p { margin: 0 0 0.3rem; } #tip[hidden] { display: none; }
#tip table { border-collapse: collapse; width: 100%; }
#tip td { padding: 0 0.5em 0 0; white-space: pre-wrap; }
#tip td.share { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
#tip tr.chosen { font-weight: 700; }
#tip .bar { height: 0.6em; background: var(--focus); border-radius: 0.2em; min-width: 1px; }
"""

CONTROLS = """
<form id="controls" aria-label="Playback">
<button type="button" id="play">Play</button>
<button type="button" id="back" aria-label="One step back">&#9664;</button>
<button type="button" id="on" aria-label="One step on">&#9654;</button>
<input type="range" id="step" min="0" value="0" step="1" aria-label="Step">
<output id="where" for="step"></output>
</form>
<form id="looks" aria-label="Looks">
<label>Speed <select id="speed"><option value="2">2 a second</option>
<option value="5">5 a second</option><option value="12" selected>12 a second</option>
<option value="30">30 a second</option></select></label>
<fieldset><legend>Colour</legend>
<label><input type="radio" name="by" value="step" checked> step</label>
<label><input type="radio" name="by" value="confidence"> confidence</label></fieldset>
</form>
<div class="key">
<span><span id="low"></span><span class="ramp"></span><span id="high"></span></span>
<span><span class="token given">given</span></span>
<span><span class="token mask">&#9617;</span> to be written</span>
<span><span class="token mask new">new</span> in this step</span>
</div>
<noscript><p>This page draws its samples with JavaScript, which is off.</p></noscript>
"""

KEYS = """
<p>Keys: space plays and pauses; left and right go one step; Home and End go to the start and the
end; down and up, in a text, go from token to token; Escape hides the box. The box of a token shows
what it was drawn from: the sampler's probabilities before temperature, top_k and top_p.</p>
"""

SCRIPT = """
"use strict";
const stages = JSON.parse(document.getElementById("data").textContent).stages;
const $ = (id) => document.getElementById(id);
const still = matchMedia("(prefers-reduced-motion: reduce)");
const GONE = -1;  // id of a token that is not in the text

// the slider runs over the frames of all stages, one stage after another
let total = 0;
for (const stage of stages) {
  stage.first = total;
  total += stage.frames;
}
let now = total - 1;  // the frame on show: at first the finished texts
let timer = null;     // runs while playing

function make(tag, parent, className = "", text = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.textContent = text;
  parent.append(element);
  return element;
}

// ---- building: every token gets its element once, in its final order ----

function build() {
  for (const stage of stages) {
    stage.section = make("section", $("stages"), "stage");
    stage.drawn = null;
    if (stage.name) make("h2", stage.section, "", stage.name);
    const drawn = stage.samples.some((s) => s.some((t) => t.history.some((h) => h[2] !== null)));
    if (!drawn) make("p", stage.section, "note", "This sampler told of no probabilities.");
    if (stage.note) make("p", stage.section, "note", stage.note);
    const grid = make("div", stage.section, "samples");
    stage.samples.forEach((tokens, k) => buildSample(stage, tokens, k, grid));
  }
}

function buildSample(stage, tokens, k, grid) {
  const box = make("article", grid, "sample");
  make("h3", box, "", "sample " + (k + 1));
  const text = make("div", box, "text");
  text.tabIndex = 0;
  text.setAttribute("role", "group");
  text.setAttribute("aria-label", "sample " + (k + 1) + ", down and up go through its tokens");
  tokens.forEach((token, n) => {
    token.stage = stage;
    token.span = make("span", text, "token");
    token.span.tabIndex = -1;
    token.span.dataset.token = n;
    token.span.token = token;
    token.breaks = make("span", text, "break");
    token.entry = undefined;  // the one on show
  });
}

// ---- drawing ----

// what a token is at a frame: the last entry of its history that is not later, or null
function entryAt(token, frame) {
  let found = null;
  for (const entry of token.history) {
    if (entry[0] > frame) break;
    found = entry;
  }
  return found;
}

function drawToken(stage, token, frame) {
  const entry = entryAt(token, frame);
  const fresh = entry !== null && entry[0] === frame && frame > 0;
  if (entry === token.entry && fresh === token.fresh) return;
  token.entry = entry;
  token.fresh = fresh;
  const [step, id, p] = entry || [0, GONE, null];
  const text = id === GONE ? "" : stage.texts[id];
  const mask = id === stage.mask;
  token.span.hidden = text === "";
  token.span.textContent = text.replaceAll("\\n", "");
  token.breaks.textContent = "\\n".repeat(text.split("\\n").length - 1);
  token.span.classList.toggle("mask", mask);
  token.span.classList.toggle("given", token.given && !mask);
  token.span.classList.toggle("new", fresh && !mask);
  token.span.classList.toggle("undrawn", p === null);
  token.span.style.setProperty("--when", step / Math.max(1, stage.frames - 1));
  token.span.style.setProperty("--sure", p === null ? 1 : p);
}

// frame -1: not begun; one more than there are: over, and nothing in it is new
function drawStage(stage, frame) {
  if (frame === stage.drawn) return;
  const slides = stage.grows && stage.drawn !== null && !still.matches;
  const tokens = stage.samples.flat();
  const before = slides ? places(tokens) : null;
  for (const token of tokens) drawToken(stage, token, frame);
  stage.section.classList.toggle("waiting", frame < 0);
  stage.drawn = frame;
  if (slides) slide(tokens, before);
}

// where tokens are on the screen, half-way through a slide too
function places(tokens) {
  const seen = tokens.filter((token) => !token.span.hidden);
  return new Map(seen.map((token) => [token, token.span.getBoundingClientRect()]));
}

// every token moves from where it was to where it is now; those that are inserted grow
function slide(tokens, before) {
  for (const token of tokens) token.span.getAnimations().forEach((a) => a.cancel());
  const timing = { duration: timer ? Math.min(250, pause()) : 250, easing: "ease-out" };
  for (const [token, to] of places(tokens)) {
    const from = before.get(token);
    const x = from && from.left - to.left, y = from && from.top - to.top;
    if (!from) {
      token.span.animate([{ opacity: 0, transform: "scale(0.2)" }, {}], timing);
    } else if (x || y) {
      token.span.animate([{ transform: `translate(${x}px, ${y}px)` }, {}], timing);
    }
  }
}

function show(frame) {
  now = Math.max(0, Math.min(total - 1, frame));
  let words = "";
  stages.forEach((stage, k) => {
    drawStage(stage, Math.max(-1, Math.min(now - stage.first, stage.frames)));
    if (now < stage.first) return;
    const step = Math.min(now - stage.first, stage.frames - 1);
    words = (stages.length > 1 ? `stage ${k + 1}, ` : "") + `step ${step} of ${stage.frames - 1}`;
  });
  $("step").value = now;
  $("step").setAttribute("aria-valuetext", words);
  $("where").textContent = words;
  updateTip();
}

// ---- playing ----

const pause = () => 1000 / Number($("speed").value);

function play(on) {
  clearTimeout(timer);
  timer = null;
  if (on && now === total - 1) show(0);
  if (on && total > 1) timer = setTimeout(tick, pause());
  $("play").textContent = timer ? "Pause" : "Play";
}

function tick() {
  show(now + 1);
  if (now === total - 1) play(false);
  else timer = setTimeout(tick, pause());
}

function go(frame) {  // by hand: playing stops
  play(false);
  show(frame);
}

// ---- the box with the alternatives of a token ----

let pointed = null;  // the token it is about

function aim(token) {
  if (pointed) pointed.span.removeAttribute("aria-describedby");
  pointed = token;
  updateTip();
}

function percent(p) {
  const number = p >= 0.0995 ? (100 * p).toFixed(0) : Number((100 * p).toPrecision(2));
  return number + "\\u00a0%";
}

function told(token) {
  const [step, id, p] = token.entry;
  const quoted = "\\u201c" + token.span.textContent + "\\u201d";
  if (id === token.stage.mask) return "To be written";
  if (token.given) return quoted + " was given";
  if (p === null) return quoted + `, step ${step}: not drawn, or no probability is known`;
  return quoted + `, written in step ${step} with probability ${percent(p)}`;
}

function updateTip() {
  const tip = $("tip");
  tip.hidden = !pointed || pointed.span.hidden;
  if (tip.hidden) return;
  tip.replaceChildren();
  make("p", tip, "", told(pointed));
  const [, id, p, best] = pointed.entry;
  if (best) {
    const rows = best.some((pair) => pair[0] === id) ? best : [...best, [id, p]];
    const table = make("table", tip);
    for (const [other, share] of rows) {
      const row = make("tr", table, other === id ? "chosen" : "");
      make("td", row, "", pointed.stage.texts[other].replaceAll("\\n", "") || "\\u2205");
      make("td", row, "share", percent(share));
      make("div", make("td", row), "bar").style.width = 5 * share + "rem";
    }
  }
  pointed.span.setAttribute("aria-describedby", "tip");
  const at = pointed.span.getBoundingClientRect();  // below the token, or above it
  const fits = at.bottom + tip.offsetHeight + 8 < innerHeight;
  const top = fits ? at.bottom + 6 : Math.max(4, at.top - tip.offsetHeight - 6);
  tip.style.top = top + "px";
  tip.style.left = Math.max(8, Math.min(at.left, innerWidth - tip.offsetWidth - 8)) + "px";
}

// ---- events ----

function neighbour(from, by) {  // the next token on show, or the first one of a text
  const text = from.closest(".text");
  const seen = [...text.querySelectorAll(".token")].filter((span) => !span.hidden);
  return seen[from === text ? 0 : seen.indexOf(from) + by];
}

document.addEventListener("keydown", (event) => {
  const at = event.target;
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  if (at.matches("select, input[type=radio], summary")) return;  // these have keys of their own
  const steps = { ArrowLeft: now - 1, ArrowRight: now + 1, Home: 0, End: total - 1 };
  const rows = { ArrowDown: 1, ArrowUp: -1 };
  if (event.key in steps) go(steps[event.key]);
  else if (event.key === " " && !at.matches("button")) play(timer === null);
  else if (event.key === "Escape") aim(null);
  else if (event.key in rows && at.closest(".text")) neighbour(at, rows[event.key])?.focus();
  else return;
  event.preventDefault();
});
for (const [on, off] of [["pointerover", "pointerout"], ["focusin", "focusout"]]) {
  $("stages").addEventListener(on, (event) => event.target.token && aim(event.target.token));
  $("stages").addEventListener(off, () => aim(document.activeElement.token || null));
}
$("play").addEventListener("click", () => play(timer === null));
$("back").addEventListener("click", () => go(now - 1));
$("on").addEventListener("click", () => go(now + 1));
$("step").addEventListener("input", () => go(Number($("step").value)));
$("looks").addEventListener("change", colour);
addEventListener("scroll", updateTip, { passive: true });
addEventListener("resize", updateTip);

function colour() {
  const by = document.querySelector("input[name=by]:checked").value;
  document.body.dataset.by = by;
  $("low").textContent = by === "step" ? "first step" : "unsure";
  $("high").textContent = by === "step" ? "last step" : "certain";
}

build();
colour();
$("step").max = total - 1;
show(now);
"""


def embedded(data: Any) -> str:
    """JSON that is ASCII and in which no HTML parser finds markup, the end of a script or a
    comment, whatever the strings hold; JSON.parse gives the same data back."""
    text = json.dumps(data, allow_nan=False, separators=(",", ":"))
    for sign in "<>&":  # they can only stand in strings
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def render(stories: list[Story], title: str, facts: dict[str, Any] | None = None) -> str:
    """The page. facts: what else is to be known of the samples, shown below them."""
    assert stories and all(story.steps for story in stories), [s.steps for s in stories]
    data = embedded({"stages": [story.data() for story in stories]})
    name = html.escape(title)
    items = "".join(
        f"<dt>{html.escape(str(key))}</dt><dd>{html.escape(str(value))}</dd>\n"
        for key, value in (facts or {}).items()
    )
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{name}</title>
<style>{STYLE}</style></head>
<body data-by="step"><h1>{name}</h1>
{CONTROLS}<main id="stages"></main>
<footer>{KEYS}<details><summary>How these samples were made</summary>
<dl>{items}</dl></details></footer>
<div id="tip" role="tooltip" hidden></div>
<script type="application/json" id="data">{data}</script>
<script>{SCRIPT}</script></body></html>
"""


def write(
    path: str | Path, stories: list[Story], title: str, facts: dict[str, Any] | None = None
) -> None:
    """Write the page to a file, whole or not at all. Raises OSError."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    text = render(stories, title, facts).encode("ascii", "xmlcharrefreplace")
    try:
        partial.write_bytes(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
