"""Words by which people name people: never masked, so that no one disappears from a sentence.

``data/adapters/people.toml`` has them: plain words, no insults. What is said of people may be rewritten.
"""

from __future__ import annotations

import re
import tomllib
from functools import cache

from companion import paths
from companion.toxicity import groups

LIST = paths.DATA / "adapters" / "people.toml"


@cache
def _pattern() -> re.Pattern[str]:
    lists = tomllib.loads(LIST.read_text(encoding="utf-8"))
    words = {word for kind in lists.values() for word in kind["words"]}
    names = "|".join(map(re.escape, sorted(words, key=len, reverse=True)))
    return re.compile(rf"(?<!\w)(?:{names})(?!\w)", re.IGNORECASE)


def spans(text: str) -> list[tuple[int, int]]:
    """Where people are named in a text: first character, and the one behind the last.

    By this list or by that of :mod:`companion.toxicity.groups`.
    """
    return sorted({*groups.spans(text), *(found.span() for found in _pattern().finditer(text))})
