"""HTML that is safe by construction: text is escaped wherever it is not marked as HTML.

Imports the standard library only.
"""

from __future__ import annotations

import base64
import hashlib
import html
from dataclasses import dataclass

_VOID = {"img", "meta", "br"}


@dataclass(frozen=True)
class Html:
    """A piece of HTML that may go into a page as it is."""

    source: str


def element(name: str, *children: Html | str, **attributes: object) -> Html:
    """An element; children and attribute values that are no `Html` are escaped.

    Args:
        name: of the element.
        children: what it holds, in order.
        attributes: a trailing underscore is dropped (``class_``), others become dashes; True gives
            an attribute without a value, None and False none at all.
    """
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{html.escape(str(value))}"')
    start = f"<{name}{''.join(written)}>"
    return Html(start if name in _VOID else f"{start}{join(*children).source}</{name}>")


def join(*children: Html | str) -> Html:
    """Pieces one after the other; strings are escaped."""
    return Html(
        "".join(each.source if isinstance(each, Html) else html.escape(each) for each in children)
    )


def page(title: str, *children: Html, style: str, script: str) -> str:
    """A document that loads nothing: its policy lets in its own style, script and images alone.

    Args:
        title: of the document.
        children: its body.
        style: CSS, ours.
        script: JavaScript, ours.
    """
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_digest(style)}'; "
        f"script-src '{_digest(script)}'; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name_="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        Html(f"<style>{style}</style>"),
    )
    body = element("body", *children, Html(f"<script>{script}</script>"))
    return f"<!doctype html>\n{element('html', head, body, lang='en').source}\n"


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
