"""Elements that work in the built page without a server: a template with its data, and a shared style."""

from __future__ import annotations

import hashlib
import json
import re
from html import escape
from pathlib import Path

from IPython.display import HTML

STYLE = Path(__file__).with_name("element.css")
START = Path(__file__).with_name("element.js")  # of each script: what it works on


def html(template: Path, name: str, data: object, *, title: str, note: str, **markup: str) -> HTML:
    """Fill ``@title@``, ``@note@``, ``@data@``, ``@id@``, ``@start@`` and further ``markup`` of a template.

    Title and note are escaped and data become JSON; ``markup`` goes in as it is. The same input gives
    the same text, whose id begins with ``name``; it may stand on a page twice.
    """
    parts = {"title": escape(title), "note": escape(note), "data": _for_script(data), **markup}
    parts["id"] = f"{name}-" + hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    parts["start"] = START.read_text(encoding="utf-8").replace("@id@", parts["id"])
    # In one pass: a token may read @id@.
    filled = re.sub(r"@([a-z]+)@", lambda match: parts[match[1]], template.read_text(encoding="utf-8"))
    return HTML(f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n{filled}")


def _for_script(value: object) -> str:
    """JSON for a script element, in which no ``<`` of a token closes it (``</script>``) or hides its end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", r"\u003c")
