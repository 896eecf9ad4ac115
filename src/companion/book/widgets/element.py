"""Elements that work in the built page without a server: a template with its data, and the style that all share."""

from __future__ import annotations

import hashlib
import json
import re
from html import escape
from pathlib import Path

from IPython.display import HTML

STYLE = Path(__file__).with_name("element.css")


def html(template: Path, name: str, data: object, *, title: str, note: str, **markup: str) -> HTML:
    """Fill the ``@title@``, ``@note@``, ``@data@``, ``@id@`` and further ``markup`` of a template.

    Title and note are escaped and data become JSON; ``markup`` goes in as it is. The same input gives
    the same text, whose id begins with ``name``; it may stand on a page twice.
    """
    parts = {"title": escape(title), "note": escape(note), "data": _for_script(data), **markup}
    parts["id"] = f"{name}-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    filled = re.sub(
        r"@([a-z]+)@", lambda found: parts[found[1]], template.read_text(encoding="utf-8")
    )  # in one pass: a token may read @id@
    return HTML(f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n{filled}")


def _for_script(value: object) -> str:
    """JSON for a script element. Escaping every ``<`` keeps tokens from closing it (``</script>``) or its comments from hiding the end (``<!--``)."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
