"""Text and numbers as HTML. What is not marked as HTML is escaped."""

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence

import numpy as np

from purejaxppo.statistics import Estimate


class Markup(str):
    """HTML. Whatever is only `str` came from a file, and is escaped."""

    __slots__ = ()


def listed(names: Iterable[str]) -> str:
    """ "a, b and c"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def fixed(value: float | np.ndarray, digits: int) -> str:
    """A number with a real minus sign; "–" for NaN."""
    return "–" if math.isnan(value) else f"{value:,.{digits}f}".replace("-", "−")


def interval(value: Estimate, digits: int) -> str:
    """ "[low, high]"; "–" where there is none."""
    return "–" if np.isnan(value.low) else f"[{fixed(value.low, digits)}, {fixed(value.high, digits)}]"


def escape(text: str) -> Markup:
    """Text as HTML; what is HTML already stays."""
    return text if isinstance(text, Markup) else Markup(html.escape(text))


def breakable(name: str) -> Markup:
    """A name as HTML, of settings, say, that a narrow screen may break after its underscores, dots and signs."""
    return Markup(re.sub(r"([_/=]|\.(?=[^\W\d]))", r"\1<wbr>", escape(name)))


def paragraph(text: str, kind: str = "") -> str:
    """A paragraph, or nothing."""
    return f'<p class="{kind}">{escape(text)}</p>' if text else ""


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str, caption: str = "") -> str:
    """A table that scrolls in its own box where it is too wide. Each row's first cell names it."""
    name = escape(caption)
    title = f"<caption>{name}</caption>" if name else ""
    top = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="wide" role="region" aria-label="{name or "Table"}" tabindex="0"><table class="{kind}">{title}'
        f"<thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>"
    )


def figure(image: bytes, alt: str, caption: Markup) -> str:
    """An SVG as an image, which keeps its ids to itself and scales with the page."""
    source = base64.b64encode(image).decode()
    return (
        f'<figure><img alt="{escape(alt)}" src="data:image/svg+xml;base64,{source}">'
        f"<figcaption>{caption}</figcaption></figure>\n"
    )
