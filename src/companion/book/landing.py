"""The landing page: a map of the chapters that links to them, and sentences on what this run found.

Both are derived: the map from the table of contents and the notebooks, the sentences from verdicts.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nbformat

from companion.book import claims, contents, record
from companion.book.claims import Results, Verdict
from companion.book.contents import Chapter

MARK = "<!-- map of the chapters -->"  # where it goes in intro.md
PICTURE = "pages/images/scoreboard-picture.png"  # the figure of that name in a chapter, put there by build
ASIDE = re.compile(  # hints and solutions, displayed formulas, lines of fences
    r"^(`{3,})\{\w+\}[^\n]*\n:class: dropdown\n.*?^\1$|^\$\$.*?\$\$$|^(?:`{3,}|:{3,})[^\n]*$",
    re.MULTILINE | re.DOTALL,
)
WORDS_A_MINUTE = 100  # of prose with formulas, figures and code between it

# What a verdict on a claim says, for a reader who has not met the claim. *In part* is made of *holds*.
SAYINGS: Mapping[str, Mapping[Verdict, str]] = {
    "dpo": {
        Verdict.HOLDS: "**DPO lowers toxicity** by more than trainings on shuffled preferences do, "
        "which have nothing to teach.",
        Verdict.NOT: "**DPO hardly lowers toxicity** beyond what trainings on shuffled preferences do, "
        "which have nothing to teach.",
        Verdict.OPEN: "**Whether that is more** than trainings on shuffled preferences bring, which have "
        "nothing to teach, **cannot be told**.",
    },
    "not-enough": {
        Verdict.HOLDS: "**Switching toxic neurons off is not enough**: the DPO model is less toxic than the "
        "base model without its 200 most toxic neurons.",
        Verdict.NOT: "**Switching toxic neurons off does as much**: the DPO model is hardly less toxic than "
        "the base model without its 200 most toxic neurons.",
        Verdict.OPEN: "**Whether switching toxic neurons off is enough** to do what DPO does **cannot be "
        "told**.",
    },
    "share": {
        Verdict.HOLDS: "**Toxic neurons hold a larger share** of DPO's change than of the difference between "
        "two readings of one model.",
        Verdict.NOT: "**The share of toxic neurons tells little of DPO**: of the difference between two "
        "readings of one model, they hold nearly the same.",
        Verdict.OPEN: "**Whether toxic neurons hold a larger share** of DPO's change than of the difference "
        "between two readings of one model **cannot be told**.",
    },
    "marco": {
        Verdict.HOLDS: "**MaRCo's rewrites are less toxic** than the sentences that they replace.",
        Verdict.NOT: "**MaRCo's rewrites are hardly less toxic** than the sentences that they replace.",
        Verdict.OPEN: "**Whether MaRCo's rewrites are less toxic** than the sentences that they replace "
        "**cannot be told**.",
    },
    "marco-better": {
        Verdict.HOLDS: "In toxicity, meaning and fluency together they are better than deleting words.",
        Verdict.NOT: "In toxicity, meaning and fluency together they are hardly better than deleting words.",
        Verdict.OPEN: "Whether they are better than deleting words, in toxicity, meaning and fluency "
        "together, cannot be told.",
    },
}


def findings(results: Results, edition: Results) -> dict[str, str]:
    """A sentence on each claim of the landing page, by its id: what the verdict of these results says.

    Where they cannot tell, the edition of the same profile is asked, which rests on more.
    """
    here, there = (
        {ruling.claim.id: ruling.verdict for ruling in claims.rulings(found)} for found in (results, edition)
    )
    quotes = {claim.id: claim.quote for claim in claims.load()}
    said = {}
    for one in SAYINGS:
        more = here.get(one) is Verdict.OPEN and there.get(one, Verdict.OPEN) is not Verdict.OPEN
        sentence = _saying(one, (there if more else here).get(one), quotes[one])
        said[one] = f"{sentence} (So says the edition; this run is too small for it.)" if more else sentence
    return said


def _saying(claim: str, verdict: Verdict | None, quote: str) -> str:
    if verdict is None:
        return f"This run does not test whether {quote}."
    if verdict is Verdict.PART:
        return f"By one scorer of two, but not by the other: {SAYINGS[claim][Verdict.HOLDS]}"
    return SAYINGS[claim][verdict]


def chapter_map(seconds: Mapping[str, float]) -> str:
    """Raw HTML for MyST: a box per chapter, in floors; what builds on a chapter stands below it.

    ``seconds`` says how long chapters ran, by name.
    """
    parts = contents.parts()
    above = [part for part in parts.items() if not any(chapter.sums_up for chapter in part[1])]
    below = [part for part in parts.items() if part not in above]
    rows = [
        f'<div class="row">{"".join(_part(*part, seconds) for part in row)}</div>'
        for row in (above, below)
        if row
    ]
    drawn = f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n"
    drawn += f'<nav class="chapter-map" aria-label="Map of the chapters">\n{DOWN.join(rows)}\n</nav>'
    return f"```{{raw}} html\n{drawn}\n```"


DOWN = '<div class="down" aria-hidden="true">↓</div>'
STYLE = Path(__file__).with_suffix(".css")


def _part(caption: str, chapters: Sequence[Chapter], seconds: Mapping[str, float]) -> str:
    floors = [
        f'<div class="floor">{"".join(_box(chapter, seconds) for chapter in floor)}</div>'
        for floor in _floors(chapters)
    ]
    head = f'<section style="flex-grow: {len(chapters)}"><strong>{html.escape(caption)}</strong>'
    return f"{head}\n{DOWN.join(floors)}</section>\n"


def _floors(chapters: Sequence[Chapter]) -> Iterator[list[Chapter]]:
    """Chapters that build on none of the others, then those that build on these, and so on."""
    left = list(chapters)
    while left:
        names = {chapter.name for chapter in left}
        floor = [chapter for chapter in left if not names & set(chapter.after or ())] or left
        yield floor
        left = [chapter for chapter in left if chapter not in floor]


def _box(chapter: Chapter, seconds: Mapping[str, float]) -> str:
    name, _, question = chapter.title.partition(": ")
    time = f"{max(1, round(words(chapter) / WORDS_A_MINUTE))} min to read"
    if chapter.name in seconds:
        time += f", {max(1, round(seconds[chapter.name] / 60))} to run"
    return (
        f'<a href="chapters/{chapter.path.stem}.html"><b>{chapter.number} · {html.escape(name)}</b> '
        f"{html.escape(question)} <small>{time}</small></a>\n"
    )


def words(chapter: Chapter) -> int:
    """How many words of prose a chapter has, without formulas, fences and what is folded."""
    cells = nbformat.read(chapter.path, as_version=4).cells
    prose = [c.source for c in cells if c.cell_type == "markdown" or c.source.startswith(record.MAGIC)]
    return len(re.findall(r"\w[\w'’-]*", ASIDE.sub("", "\n\n".join(prose))))
