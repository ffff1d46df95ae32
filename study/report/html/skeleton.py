"""Skeleton, stylesheet and script of the page, as Python strings, so that a code snapshot for a cluster has them."""

from __future__ import annotations

import base64
import hashlib
from string import Template

STYLE = """
:root {
  color-scheme: light dark;
  --paper: #ffffff; --raised: #f5f6f7; --ink: #1a1a1a; --quiet: #565b61; --line: #d9dce0; --link: #0b5cad;
  --good: #146c38; --bad: #a8231d; --open: #7a5200;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #15181b; --raised: #1f2327; --ink: #e6e8ea; --quiet: #a3a9b0; --line: #363c42; --link: #7db8f5;
    --good: #63c98a; --bad: #f08a80; --open: #e0b050;
  }
  .card { filter: brightness(.9); }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 1rem; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 1.25rem clamp(.75rem, 3vw, 2.5rem) 4rem; max-width: 90rem;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "DejaVu Sans", sans-serif;
  background: var(--paper); color: var(--ink);
}
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.75rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
p, ul { max-width: 50rem; margin: .4rem 0; }
ul { padding-left: 1.2rem; }
a { color: var(--link); }
code { font-size: .92em; overflow-wrap: anywhere; }
.quiet { color: var(--quiet); }
.small { font-size: .85rem; }
.skip { position: absolute; left: -100vw; }
.skip:focus { left: 1rem; top: .5rem; padding: .4rem .8rem; background: var(--paper); z-index: 9; }
:focus-visible { outline: 3px solid var(--link); outline-offset: 1px; }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.1rem; list-style: none; padding: 0; margin: .8rem 0 0; }

figure { margin: 1rem 0 0; }
figcaption { color: var(--quiet); font-size: .85rem; max-width: 50rem; margin-top: .3rem; }
.card { background: #fff; border: 1px solid var(--line); border-radius: 6px; padding: .5rem; width: fit-content; }
.card img { display: block; max-width: 100%; height: auto; max-height: 85vh; width: auto; }
#headline .card { max-width: 54rem; }
.scroll + .scroll { margin-top: 1.5rem; }
.figures { columns: 34rem 2; column-gap: 1.5rem; }
.figures figure { break-inside: avoid; margin: 0; padding-top: 1rem; }
.figures .card { width: auto; }
.figures .card img { margin: 0 auto; }

.scroll { overflow: auto; max-height: 75vh; border: 1px solid var(--line); border-radius: 6px; max-width: 100%; }
.fits { width: fit-content; }
table { border-collapse: separate; border-spacing: 0; font-size: .84rem; }
caption { text-align: left; font-weight: 600; padding: .5rem .6rem; }
th, td { padding: .28rem .6rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
thead th { background: var(--raised); vertical-align: bottom; line-height: 1.25; }
.scroll thead { position: sticky; top: 0; z-index: 2; }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.group { border-left: 1px solid var(--line); }
thead .group[colspan] { text-align: left; }
.runs tbody th { position: sticky; left: 0; background: var(--paper); z-index: 1; font-weight: 400; min-width: 11rem; }
.runs tbody th.whole { white-space: nowrap; }
.runs thead th.corner { position: sticky; left: 0; }
.runs thead .n { max-width: 6.9rem; white-space: normal; }
tbody tr:hover > * { background: var(--raised); }
td p { margin: 0 0 .3rem; }
.values { overflow-wrap: anywhere; }
thead button {
  font: inherit; color: inherit; background: none; border: 0; padding: 0; text-align: inherit; cursor: pointer;
}
.js thead button { text-decoration: underline dotted 1px; text-underline-offset: 3px; }
.js thead button:hover, .js th[aria-sort] button { text-decoration: underline solid 1px; }
th[aria-sort="ascending"] button::after { content: " \\25B2"; }
th[aria-sort="descending"] button::after { content: " \\25BC"; }
html:not(.js) thead button { pointer-events: none; }
html:not(.js) .controls { display: none; }
.controls { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: end; margin: .8rem 0; }
.controls label { display: grid; font-size: .82rem; color: var(--quiet); }
.controls label.box { display: flex; gap: .4rem; align-items: center; padding-bottom: .3rem; }
.controls input, .controls select, .controls button {
  font: inherit; font-size: .9rem; color: var(--ink); background: var(--paper);
  border: 1px solid var(--quiet); border-radius: 4px; padding: .25rem .45rem; max-width: 100%;
}
.controls input[type="search"] { width: 16rem; }
.verdict { font-weight: 600; white-space: nowrap; }
.holds { color: var(--good); } .fails { color: var(--bad); } .undecided { color: var(--open); }
.claims td:last-child { white-space: nowrap; }
.claims .text { min-width: 15rem; } .claims .numbers { min-width: 20rem; }

.runs-of-samples { display: grid; gap: 1.25rem 2rem; }
.runs-of-samples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 24rem), 1fr)); }
.samples { margin: 0; break-inside: avoid; }
.samples figcaption { color: var(--ink); font-weight: 600; margin: 0 0 .25rem; overflow-wrap: anywhere; }
.strip { display: grid; grid-template-columns: 3.2rem minmax(0, 16rem) 7rem; gap: .5rem; }
.strip { align-items: center; font-size: .8rem; }
.strip + .strip { margin-top: 2px; }
.strip img { width: 100%; height: auto; image-rendering: pixelated; display: block; }
.strip .mark { text-align: right; }
.strip span { font-variant-numeric: tabular-nums; }

@media (max-width: 40rem) {
  .strip { grid-template-columns: 2.8rem minmax(0, 1fr) 5.8rem; }
  .runs tbody th, .runs thead th.corner { position: static; }
  .runs tbody th, .runs tbody th.whole { min-width: 9rem; white-space: normal; }
  .card { overflow-x: auto; }
  .card img { max-width: none; width: 38rem; max-height: none; }
  .claims table, .claims tbody, .claims tr, .claims td { display: block; min-width: 0; }
  .claims thead { display: none; }
  .claims td { border: 0; padding-block: .1rem; }
  .claims tr { border-bottom: 1px solid var(--line); padding-block: .4rem; }
  .claims .text, .claims .numbers { min-width: 0; }
}

@page { size: A4 landscape; margin: 11mm; }
@media print {
  :root {
    color-scheme: light;
    --paper: #fff; --raised: #f2f2f2; --ink: #000; --quiet: #444; --line: #bbb; --link: #000;
    --good: #0d5229; --bad: #8f1d18; --open: #664400;
  }
  html { font-size: 9pt; }
  body { font-size: 1rem; padding: 0; max-width: none; }
  h2 { margin-top: 1.2rem; }
  .controls, .skip, nav { display: none; }
  .scroll { overflow: visible; max-height: none; border: 0; }
  .scroll thead, .runs tbody th, .runs thead th.corner { position: static; }
  table { font-size: 7pt; }
  .runs table { font-size: 6.5pt; width: 100%; }
  th, td { padding: .6mm 1mm; }
  .runs tbody th, .claims .text, .claims .numbers { min-width: 0; }
  .n { white-space: normal; }
  thead button { display: contents; }  /* or Chromium leaves it out where a head is repeated */
  tr, figure, .strip, p { break-inside: avoid; }
  h2, h3, caption { break-after: avoid; }
  .card { border: 0; padding: 0; }
  .card { filter: none; }
  .card img { max-height: 150mm; }
  #headline img { max-height: 135mm; }
  .figures { columns: auto; }
  .runs-of-samples { grid-template-columns: repeat(3, 1fr); gap: 4mm; }
  .strip { grid-template-columns: 9mm minmax(0, 1fr) 17mm; gap: 1mm; font-size: 6.5pt; }
  a { text-decoration: none; }
}
"""

SCRIPT = """
"use strict";
document.documentElement.classList.add("js");

const order = new Intl.Collator("en", { numeric: true });
const value = (row, column) => {
  const cell = row.cells[column];
  return cell.dataset.v === undefined ? cell.textContent.trim() : Number(cell.dataset.v);
};
const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : order.compare(a, b));

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const planned = [...body.rows];
  for (const button of table.querySelectorAll("thead button")) {
    button.addEventListener("click", () => {
      const head = button.closest("th");
      const before = head.getAttribute("aria-sort");
      const next = { null: "ascending", ascending: "descending", descending: null }[before];
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      if (next === null) return body.append(...planned);
      head.setAttribute("aria-sort", next);
      const column = Number(button.dataset.column);
      const sign = next === "ascending" ? 1 : -1;
      const keyed = planned.map((row) => [value(row, column), row]);
      // a missing number stays at the end, whichever way
      keyed.sort(([a], [b]) => (a === "") - (b === "") || sign * compare(a, b));
      body.append(...keyed.map(([, row]) => row));
    });
  }
}

const form = document.getElementById("filter");
if (form) {
  const rows = [...document.querySelectorAll("table.filtered tbody tr")];
  const texts = new Map(rows.map((row) => [row, row.textContent.toLowerCase()]));
  const filter = () => {
    const words = form.elements.words.value.toLowerCase().split(/\\s+/).filter(Boolean);
    const chosen = [...form.querySelectorAll("select")].filter((select) => select.value !== "");
    let shown = 0;
    for (const row of rows) {
      const fits = (select) => {
        const mine = row.dataset[select.name];
        return mine === undefined || ` ${mine} `.includes(` ${select.value} `);  // of several ablations, any
      };
      row.hidden =
        !words.every((word) => texts.get(row).includes(word)) ||
        !chosen.every(fits) ||
        (form.elements.last?.checked && row.dataset.last === undefined);
      shown += !row.hidden;
    }
    document.getElementById("shown").textContent = `${shown} of ${rows.length} rows`;
  };
  form.addEventListener("input", filter);
  form.addEventListener("reset", () => setTimeout(filter));
  form.addEventListener("submit", (event) => event.preventDefault());
  filter();
}
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# With this policy the browser blocks every request and every script except ours, whatever text a label holds.
POLICY = f"default-src 'none'; img-src data:; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; base-uri 'none'"

SKELETON = Template(f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>$title</title>
<style>{STYLE.replace("$", "$$")}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the results</a>
<header>
<h1>$title</h1>
$head
<nav aria-label="Parts of this page"><ul>
$links
</ul></nav>
</header>
<main id="main" tabindex="-1">
$body
</main>
<script>{SCRIPT.replace("$", "$$")}</script>
</body>
</html>
""")
