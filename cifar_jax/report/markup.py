"""Pieces of the page: text, tables, figures and sections as HTML, everything from outside escaped."""

import base64
import html
import pathlib
import string

from cifar_jax.errors import escape
from cifar_jax.report.figures import Picture

TEMPLATE = pathlib.Path(__file__).with_name("template.html")


def text(value) -> str:
    """A value as text of the page; what cannot be printed, such as half a character of a file's name, as an escape."""
    return html.escape(escape(str(value)))


def percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def table(caption: str, head: list[str], rows: list[list], numbers: set[int]) -> str:
    """A table that scrolls by itself where it is wider than the page; the first cell of a row heads it.

    numbers: the columns to be set flush right.
    """

    def cell(tag, column, value, scope=""):
        aligned = ' class="number"' if column in numbers else ""
        return f"<{tag}{scope}{aligned}>{text(value)}</{tag}>"

    heads = "".join(cell("th", i, name, ' scope="col"') for i, name in enumerate(head))
    lines = "".join(
        "<tr>" + "".join(cell("td", i, v) if i else cell("th", i, v, ' scope="row"') for i, v in enumerate(row)) + "</tr>\n"
        for row in rows
    )
    kind = "scroll many" if len(head) > 6 else "scroll"
    return (
        f'<div class="{kind}" role="region" tabindex="0" aria-label="{text(caption)}"><table><caption>{text(caption)}</caption>\n'
        f"<thead><tr>{heads}</tr></thead>\n<tbody>\n{lines}</tbody></table></div>"
    )


def definitions(pairs: dict) -> str:
    """Names and values as a list."""
    return "<dl>" + "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs.items()) + "</dl>"


def image(picture: Picture, alt: str) -> str:
    data = base64.b64encode(picture.png).decode()
    return f'<img width="{picture.width}" alt="{text(alt)}" src="data:image/png;base64,{data}">'


def figure(picture: Picture, alt: str, caption: str, *, wide: bool = False) -> str:
    """A picture with its caption; wide: it keeps its size and scrolls by itself."""
    shown = image(picture, alt)
    if wide:
        shown = f'<div class="scroll wide" role="region" tabindex="0" aria-label="{text(caption)}">{shown}</div>'
    return f"<figure>{shown}<figcaption>{text(caption)}</figcaption></figure>"


def gallery(items: list[tuple[Picture, str, list[str]]], kind: str = "") -> str:
    """Small pictures side by side: (picture, alt, lines of its caption)."""
    shown = (
        f'<li class="{kind}"><figure>{image(picture, alt)}<figcaption>{"<br>".join(map(text, lines))}</figcaption></figure></li>'
        for picture, alt, lines in items
    )
    return f'<ul class="gallery">{"".join(shown)}</ul>'


def side_by_side(shown: list[str]) -> str:
    """Pieces in columns where there is room for them."""
    return f'<div class="side-by-side">{"".join(shown)}</div>'


def paragraph(sentence: str) -> str:
    return f"<p>{text(sentence)}</p>"


def section(name: str, title: str, *parts: str) -> str:
    """A section that the contents at the top lead to."""
    content = "\n".join(part for part in parts if part)
    return (
        f'<section id="{name}" aria-labelledby="{name}-title">\n<h2 id="{name}-title">{text(title)}</h2>\n{content}\n</section>'
    )


def page(title: str, lead: str, sections: list[tuple[str, str, str]], footer: str) -> str:
    """The whole page. sections: (name, title, HTML); title, lead, footer: plain text."""
    contents = "".join(f'<li><a href="#{name}">{text(title)}</a></li>' for name, title, _ in sections)
    body = "\n".join(content for *_, content in sections)
    values = {"title": text(title), "lead": text(lead), "contents": contents, "sections": body, "footer": text(footer)}
    return string.Template(TEMPLATE.read_text(encoding="utf-8")).substitute(values)
