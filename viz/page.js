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
  token.span.textContent = text.replaceAll("\n", "");
  token.breaks.textContent = "\n".repeat(text.split("\n").length - 1);
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
  const slides = stage.inserts && stage.drawn !== null && !still.matches;
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
  return number + "\u00a0%";
}

function told(token) {
  const [step, id, p] = token.entry;
  const quoted = "\u201c" + token.span.textContent + "\u201d";
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
      make("td", row, "", pointed.stage.texts[other].replaceAll("\n", "") || "\u2205");
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
