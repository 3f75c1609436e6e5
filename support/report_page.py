"""The page that report.py writes: tables that can be copied, embedded pictures, sections and style. Nothing of any run."""

if __name__ == "__main__":
    raise SystemExit("support/report_page.py is a module, not a script: report.py uses it")

import base64
import csv
import html
import io
import re
from string import Template
from typing import NamedTuple

from support.figure_labels import cut

PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>$title</title>
<link rel="icon" href="data:,">
<style>
$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$lead
</header>
<nav aria-label="Contents"><ul>
$contents</ul></nav>
<main>
$main</main>
<footer>
$foot
</footer>
</body>
</html>
""")

STYLE = """\
:root {
  color-scheme: light dark;
  --ink: #1b1e24; --muted: #5b6270; --paper: #ffffff; --soft: #f4f6f8; --line: #d9dee5;
  --right: #0072b2; --wrong: #b34700; --heat: #2171b5; --on-heat: #ffffff;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --ink: #e4e7ec; --muted: #9aa3b2; --paper: #14171c; --soft: #1d2127; --line: #343a44;
    --right: #6cb8ec; --wrong: #f0935a; --heat: #3f8fd0; --on-heat: #ffffff;
  }
  img { filter: invert(1) hue-rotate(180deg); }
  figure img { mix-blend-mode: screen; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; text-size-adjust: 100%; -webkit-text-size-adjust: 100%; }
body {
  margin: 0 auto; padding: 0 clamp(1rem, 4vw, 3rem) 3rem; max-width: 78rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif;
}
h1 { margin: 2.5rem 0 .5rem; font-size: clamp(1.6rem, 4vw, 2.3rem); line-height: 1.2; letter-spacing: -.02em; }
h2 { margin: 3rem 0 .75rem; padding-top: .75rem; border-top: 2px solid var(--ink); font-size: 1.35rem; }
h3 { margin: 1.25rem 0 .5rem; font-size: 1.02rem; }
p, .lead { max-width: 46rem; }
.lead { margin: .5rem 0; padding-left: 1.2rem; }
pre { font: .88em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace; }
nav { position: sticky; top: 0; z-index: 2; margin: 1rem 0; background: var(--paper); border-bottom: 1px solid var(--line); }
nav ul { display: flex; gap: 1.25rem; margin: 0; padding: .6rem 0; list-style: none; overflow-x: auto; white-space: nowrap; }
a { color: var(--right); text-underline-offset: .2em; }
nav a { text-decoration: none; }
nav a:hover, nav a:focus { text-decoration: underline; }
.side-by-side { display: grid; gap: 1.5rem 2.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.side-by-side.narrow { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.side-by-side > * { min-width: 0; container-type: inline-size; }
figure { margin: 0 0 1rem; }
figure img { display: block; width: 100%; max-width: 54rem; height: auto; }
figure.square img { max-width: 36rem; }
figcaption, caption, .note, summary { color: var(--muted); font-size: .88rem; }
.scroll { overflow-x: auto; container-type: inline-size; }
table { margin: .5rem 0; border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
caption { padding-bottom: .4rem; text-align: left; }
caption span { display: inline-block; position: sticky; left: 0; max-width: min(46rem, 100vw - 2rem, 100cqi); }
th, td { padding: .35rem .8rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th:first-child, td:first-child { padding-left: 0; }
thead th { border-bottom: 1.5px solid var(--ink); vertical-align: bottom; }
tbody th { font-weight: 500; }
tbody tr:hover > * { background: var(--soft); }
.sticky th:first-child { position: sticky; left: 0; background: var(--paper); }
.number { text-align: right; }
td.number { white-space: nowrap; }
tbody th { min-width: 6.5rem; }
.long { overflow-wrap: anywhere; }
.words { min-width: 8.5rem; }
details { margin: .25rem 0 1.5rem; }
summary { cursor: pointer; }
pre {
  margin: .25rem 0 .75rem; padding: .7rem .9rem; max-height: 16rem; overflow: auto; background: var(--soft);
  border: 1px solid var(--line); border-radius: .4rem; user-select: all; -webkit-user-select: all;
}
.heat { width: 100%; max-width: 38rem; table-layout: fixed; font-size: clamp(.56rem, 2.6cqi, .82rem); }
.heat th, .heat td { padding: .3rem .1rem; border: 1px solid var(--paper); text-align: center; vertical-align: middle; }
.heat thead th { vertical-align: bottom; border-bottom: 0; }
.heat thead span { writing-mode: vertical-rl; transform: rotate(180deg); white-space: nowrap; }
.heat thead td { width: 7.2em; }
.heat thead th:last-child { width: 3.3em; }
.heat th:first-child { text-align: right; padding-right: .5em; overflow-wrap: anywhere; }
.heat td { background: color-mix(in srgb, var(--heat) calc(var(--share) * 100%), var(--soft)); }
.heat .strong { color: var(--on-heat); }
.heat .zero { color: transparent; }
.heat td:last-child { background: none; font-weight: 600; }
.gallery { display: grid; gap: .9rem .6rem; grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr)); margin: 0;
  padding: 0; list-style: none; font-size: .78rem; line-height: 1.3; }
.gallery img { display: block; width: 4.4rem; height: 4.4rem; object-fit: contain; image-rendering: pixelated;
  border: 1px solid #d9dee5; border-radius: .25rem; background: #ffffff; }
.gallery span { display: block; overflow-wrap: anywhere; }
.gallery .note { font-size: inherit; }
.right { color: var(--right); } .wrong { color: var(--wrong); }
footer { margin-top: 2rem; padding-top: .75rem; border-top: 1px solid var(--line); color: var(--muted); font-size: .85rem; }
@media (max-width: 40rem) {
  h2 { margin-top: 2.2rem; }
  .wide-figure { overflow-x: auto; }
  .wide-figure img { width: 40rem; max-width: none; }
  th, td { padding: .3rem .5rem; }
  table { font-size: .86rem; }
}
@page { size: A4; margin: 16mm 15mm; }
@media print {
  :root { color-scheme: light; }
  body { padding: 0; max-width: none; font-size: 9.5pt; }
  nav, details { display: none; }
  h1 { margin-top: 0; }
  h2 { margin-top: 1.6rem; }
  h2, h3, caption { break-after: avoid; }
  figure, tr, .gallery li, .heat { break-inside: avoid; }
  thead { display: table-header-group; }
  .side-by-side, .side-by-side.narrow { gap: .75rem 1.5rem; grid-template-columns: 1fr 1fr; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; }
  .words { min-width: 0; }
  th, td { padding: .12rem .45rem; }
  .heat { font-size: 5.8pt; }
  .heat td, .gallery img { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  .gallery { grid-template-columns: repeat(5, 1fr); font-size: 6.5pt; }
  .gallery img { width: 13mm; height: 13mm; }
}
"""

LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$",
         "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''",
         **{mark: "\\" + mark for mark in "&%$#_{}"}}  # fmt: skip


class Table(NamedTuple):
    """A table of strings. The first cell of a row is its heading; columns of numbers are aligned at the right."""

    caption: str
    header: list
    rows: list

    @property
    def numeric(self):
        """For each column, whether all of its cells are numbers."""
        columns = zip(*self.rows, strict=True)
        return [all(re.match(r"[<>]? ?[-+]?(\d|$)", cell) and len(cell) < 24 for cell in column) for column in columns]

    def markdown(self):
        dashes = ["---:" if right else "---" for right in self.numeric]
        cells = [[re.sub(r"([\\|`*$]|<(?=[A-Za-z/!]))", r"\\\1", " ".join(cell.split())) for cell in row]
                 for row in (self.header, dashes, *self.rows)]  # fmt: skip
        return "".join(f"| {' | '.join(row)} |\n" for row in cells)

    def csv(self):
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()

    def latex(self):
        def line(row):
            return " & ".join("".join(LATEX.get(mark, mark) for mark in cell) for cell in row) + r" \\" + "\n"

        columns = "".join("lr"[right] for right in self.numeric)
        rows = "".join(map(line, self.rows))
        return f"\\begin{{tabular}}{{{columns}}}\n\\hline\n{line(self.header)}\\hline\n{rows}\\hline\n\\end{{tabular}}\n"

    def html(self):
        """The table, then the same as Markdown, CSV and LaTeX in a part that opens on a click."""
        styles = [' class="number"' if right else ' class="long"' if any(len(cell) > 40 for cell in column) else
                  ' class="words"' if any(len(cell) > 20 for cell in column) else ""
                  for right, column in zip(self.numeric, zip(*self.rows, strict=True), strict=True)]  # fmt: skip

        head = "".join(f'<th scope="col"{style}>{text(cell)}</th>' for cell, style in zip(self.header, styles, strict=True))
        body = "".join(f'<tr><th scope="row">{text(row[0])}</th>' + "".join(
            f"<td{style}>{text(cell)}</td>" for cell, style in zip(row[1:], styles[1:], strict=True)) + "</tr>\n"
            for row in self.rows)  # fmt: skip
        caption = text(self.caption)
        return (f'<div class="scroll" role="region" tabindex="0" aria-label="{caption}">\n<table class="sticky">\n'
                f"<caption><span>{caption}</span></caption>\n<thead><tr>{head}</tr></thead>\n"
                f"<tbody>\n{body}</tbody>\n</table>\n</div>\n{self.copies()}")  # fmt: skip

    def copies(self):
        """The three forms to copy; one click selects the whole text."""
        forms = (("Markdown", self.markdown()), ("CSV", self.csv()), ("LaTeX", self.latex()))
        blocks = "".join(f'<p class="note">{name}</p>\n<pre tabindex="0">{text(form)}</pre>\n' for name, form in forms)
        return f"<details>\n<summary>Copy this table as Markdown, CSV or LaTeX</summary>\n{blocks}</details>\n"


def text(value):
    """`value` as text in HTML, in an attribute as well."""
    return html.escape(str(value), quote=True)


def image(content, alt):
    """An <img> of the bytes of a PNG or SVG file, embedded."""
    kind = "png" if content.startswith(b"\x89PNG") else "svg+xml"
    return f'<img src="data:image/{kind};base64,{base64.b64encode(content).decode()}" alt="{text(alt)}">'


def figure(content, alt, caption, square=False):
    kind = "square" if square else "wide-figure"
    return f'<figure class="{kind}">\n{image(content, alt)}\n<figcaption>{text(caption)}</figcaption>\n</figure>\n'


def heat_table(counts, classes, caption):
    """A confusion matrix as a table colored by the share of its row, with each class's recall; and as a table to copy.

    counts: (classes, classes) integers, true classes down and predicted ones across.
    """
    rows, plain = "", []
    for name, line in zip(classes, counts.tolist(), strict=True):
        total, cells = max(sum(line), 1), ""
        for count in line:
            share = (count / total) ** 0.5  # the root shows the small errors, too
            kind = ' class="zero"' if not count else ' class="strong"' if share > 0.6 else ""
            cells += f'<td style="--share: {share:.2f}"{kind}>{count}</td>'
        recall = f"{100 * line[len(plain)] / total:.1f}"
        rows += f'<tr><th scope="row">{text(cut(name))}</th>{cells}<td>{recall}</td></tr>\n'
        plain.append([name, *map(str, line), recall])
    header = ["true class", *classes, "recall (%)"]
    heads = "".join(f'<th scope="col"><span>{text(cut(name))}</span></th>' for name in header[1:])
    width = f' style="min-width: {11 + 1.9 * len(classes):.0f}em"' if len(classes) > 15 else ""
    return (f'<div class="scroll">\n<table class="heat"{width}>\n<caption><span>{text(caption)}</span></caption>\n'
            f"<thead><tr><td></td>{heads}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
            f"{Table(caption, header, plain).copies()}")  # fmt: skip


def gallery(entries):
    """Small pictures in rows. entries: (bytes of a PNG file, label, predicted class, probability, alternative text)."""
    items = "".join(
        f'<li>{image(content, alt)}<span class="right">{text(label)}</span>'
        f'<span class="wrong">\N{BALLOT X} {text(predicted)}</span><span class="note">{text(probability)}</span></li>\n'
        for content, label, predicted, probability, alt in entries)  # fmt: skip
    return f'<ol class="gallery">\n{items}</ol>\n'


def side_by_side(blocks, narrow=False):
    """{heading: HTML} in columns where there is room for them, three of them where `narrow`."""
    return f'<div class="side-by-side{" narrow" * narrow}">\n' + "".join(
        f"<div>\n<h3>{text(heading)}</h3>\n{block}</div>\n" for heading, block in blocks.items()) + "</div>\n"  # fmt: skip


def page(title, lead, sections, foot):
    """The whole page. lead: sentences of the summary; sections: {heading: HTML}; foot: text."""
    contents, main = "", ""
    for heading, content in sections.items():
        name = re.sub(r"\W+", "-", heading.lower())
        contents += f'<li><a href="#{name}">{text(heading)}</a></li>\n'
        main += f'<section id="{name}" aria-labelledby="{name}-heading">\n'
        main += f'<h2 id="{name}-heading">{text(heading)}</h2>\n{content}</section>\n'
    lead = "".join(f"<li>{text(sentence)}</li>\n" for sentence in lead)
    return PAGE.substitute(title=text(title), style=STYLE, lead=f'<ul class="lead">\n{lead}</ul>', contents=contents,
                           main=main, foot=text(foot))  # fmt: skip
