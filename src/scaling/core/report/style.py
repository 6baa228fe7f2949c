"""How a page looks: in light and dark, on paper, and 420 pixels wide."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --page: #fcfcfb; --ink: #1a1c1e; --soft: #5c6166; --line: #d9dbde; --box: #f1f2f4; --bad: #b3261e; --good: #1e6b3a;
  --c0: #1f5fbf; --c1: #c2500f; --c2: #1b7f5c; --c3: #8a3fa8; --c4: #8c6d00; --c5: #b0305c; --c6: #0f7c91; --c7: #5b5f66;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #16181b; --ink: #e6e7e9; --soft: #a3a8ae; --line: #3a3e44; --box: #212429; --bad: #ff8a80; --good: #7fd6a0;
    --c0: #7fb0ff; --c1: #ff9d5c; --c2: #5fd3a8; --c3: #d39bf0; --c4: #e0c04a; --c5: #ff8fb3; --c6: #5fd0e6; --c7: #b4b8be;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.5rem 1.25rem 4rem; max-width: 76rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; padding-bottom: .25rem; border-bottom: 1px solid var(--line); }
h3 { font-size: .95rem; margin: 0; font-weight: 600; overflow-wrap: anywhere; }
section > h3 { margin: 1.25rem 0 .5rem; }
h3 small, .note { color: var(--soft); font-weight: normal; font-size: .82rem; }
.note { margin: .25rem 0; overflow-wrap: anywhere; }
a { color: var(--c0); }
nav a { margin-right: 1rem; white-space: nowrap; }
.wide { overflow-x: auto; margin: .5rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; } tbody th { font-weight: normal; color: var(--soft); }
td { overflow-wrap: anywhere; min-width: 4rem; } .settings td, .settings th, pre { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .82rem; }
.settings th { overflow-wrap: anywhere; }
pre { background: var(--box); padding: .75rem; overflow-x: auto; margin: .5rem 0; max-height: 30rem; }
.state { font-weight: 600; } .failed, .reason { color: var(--bad); } .finished { color: var(--good); }
.reason { font-weight: 600; overflow-wrap: anywhere; white-space: pre-wrap; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 30rem), 1fr)); gap: 1.5rem 2rem; }
.charts > :first-child { grid-column: 1 / -1; }
.charts > :first-child .plot { height: 18rem; }
.further { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); margin-top: 1rem; }
.further > :first-child { grid-column: auto; }
.further .plot, .further > :first-child .plot { height: 8rem; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; margin-bottom: .4rem; }
.value { font-size: .82rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.plot { position: relative; height: 13rem; margin: .25rem .5rem 1.5rem 3.4rem; touch-action: pan-y; }
.clip, .plot svg { width: 100%; height: 100%; display: block; }
.clip { overflow: hidden; border-bottom: 1px solid var(--soft); position: relative; }
.plot svg { overflow: hidden; }
.plot span { position: absolute; font-size: .75rem; color: var(--soft); line-height: 1; white-space: nowrap; }
.plot span.y { right: calc(100% + .4rem); transform: translateY(-50%); }
.plot span.x { top: calc(100% + .4rem); transform: translateX(-50%); }
.cursor { position: absolute; top: 0; bottom: 0; width: 1px; background: var(--soft); pointer-events: none; }
.zone { position: absolute; top: 0; bottom: 0; background: var(--soft); opacity: .2; pointer-events: none; }
path { fill: none; stroke: var(--c); vector-effect: non-scaling-stroke; stroke-linejoin: round; stroke-linecap: round; }
.line { stroke-width: 1.75; } .raw { stroke-width: 1; opacity: .3; } .between { stroke-width: 1; opacity: .6; }
.points { stroke-width: 7; } .again { stroke-width: 1.25; stroke-dasharray: 4 3; opacity: .75; }
.restart { stroke-width: 1; stroke-dasharray: 2 3; } .rule { stroke: var(--line); stroke-width: 1; }
.bad { stroke: var(--bad); stroke-width: 8; }
.c0 { --c: var(--c0); } .c1 { --c: var(--c1); } .c2 { --c: var(--c2); } .c3 { --c: var(--c3); }
.c4 { --c: var(--c4); } .c5 { --c: var(--c5); } .c6 { --c: var(--c6); } .c7 { --c: var(--c7); }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; align-items: center; margin: .75rem 0; padding: 0; }
.legend label, .kind { display: inline-flex; gap: .4rem; align-items: center; overflow-wrap: anywhere; }
.legend i { width: 1.1rem; height: .35rem; background: var(--c); border-radius: 2px; flex: none; } .kind i { height: .8rem; }
.controls { display: flex; flex-wrap: wrap; gap: .25rem 1rem; border: 0; padding: 0; margin: .5rem 0; }
.controls[hidden], .legend input[hidden] { display: none; }
fieldset label { display: inline-flex; gap: .3rem; align-items: center; }
.timeline { margin: .5rem 0 2rem; }
.row { display: grid; grid-template-columns: 5.5rem 1fr; align-items: center; margin-bottom: 3px; }
.row span { font-size: .78rem; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; padding-right: .5rem; }
.row svg { width: 100%; height: 1.4rem; background: var(--box); display: block; }
.times { position: relative; margin: .3rem 0 0 5.5rem; height: 1rem; }
.times span { position: absolute; font-size: .75rem; color: var(--soft); white-space: nowrap; }
.k-forward { fill: var(--c0); --c: var(--c0); } .k-backward { fill: var(--c2); --c: var(--c2); }
.k-optimizer { fill: var(--c3); --c: var(--c3); } .k-communication { fill: var(--c1); --c: var(--c1); }
.k-data { fill: var(--c4); --c: var(--c4); } .k-other { fill: var(--c7); --c: var(--c7); }
.picture { overflow-x: auto; } .picture > svg { max-width: 100%; height: auto; }
summary { cursor: pointer; padding: .35rem 0; }
:focus-visible { outline: 2px solid var(--c0); outline-offset: 2px; }
@media (max-width: 36rem) { body { padding: 1rem .75rem 3rem; } .plot { margin-left: 3rem; } .plot span.x:nth-of-type(even) { display: none; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } .controls, nav { display: none; } pre { max-height: none; white-space: pre-wrap; } h2 { break-after: avoid; } }
"""
"""In one piece, for it is part of the page."""
