"""A plan, printed: one table on the terminal, and the table of the papers' models for the page."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from companion import profiles
from companion.plan import estimate
from companion.plan.estimate import GIB, Machine, Plan

PAPERS = ("paper-gpt2", "paper-gemma2", "paper-llama3", "paper-mistral")
MACHINES = tuple(Machine(cards, memory * GIB) for cards, memory in ((1, 24), (1, 80), (8, 80)))
CHAPTERS = ("setting", "probe", "dpo", "ablation", "patching", "decomposition", "controls", "editing")


def chapters(found: Plan) -> Table:
    """Chapters with memory, hours and whether they fit."""
    where = "GiB on the fullest card" if found.machine.cards else "GiB"
    table = Table("chapter", "fullest when", where, "hours", "fits", title=_title(found))
    for row in found.chapters:
        hours = "not measured" if row.hours is None else f"{row.hours:.1f}"
        fits = Text(found.says(row), "" if row.fits else "red")
        table.add_row(row.name, row.phase, f"{row.bytes / GIB:.1f}", hours, fits)
    return table


def _title(found: Plan) -> str:
    return (
        f"{found.shape.name}, {found.shape.parameters / 1e6:,.0f} M parameters, on {found.machine}: estimate"
    )


def besides(found: Plan) -> str:
    """Downloads, disk and the computer's memory; what hours rest on, and how to get at the weights."""
    lines = [
        f"download {found.download / 1e9:.0f} GB, disk {found.disk / 1e9:.0f} GB (of the chapters that fit), "
        f"the computer's memory {found.host / GIB:.0f} GiB while weights are read",
    ]
    if found.machine.cards:
        machine = estimate.RATES["card"]["machine"]
        said = f"hours: {found.hours:.0f} in all, at the rates of {machine}"
        lines.append(f"{said}; chapters 9 to 11 were not measured")
    return "\n".join([*lines, found.shape.access] if found.shape.access else lines)


def papers() -> str:
    """Markdown: the four models of the papers on three machines, chapters 1 to 8."""
    lines = [
        "| model | cards, GiB | do not fit | fullest, GiB | all fit on | hours, those that fit | disk, GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in PAPERS:
        profile = profiles.load(name)
        for machine in MACHINES:
            found = estimate.plan(profile, CHAPTERS, machine)
            worst = max(found.chapters, key=lambda row: row.bytes)
            number = {row.name: str(CHAPTERS.index(row.name) + 1) for row in found.chapters}
            out, near = (
                ", ".join(number[row.name] for row in found.chapters if found.says(row) == said)
                for said in ("no", "barely")
            )
            enough = estimate.smallest(found).removeprefix("all fit on ") if out else "these"
            cells = (
                profile.model.rpartition("/")[2],
                str(machine).removesuffix(" GiB"),
                (out or "none") + (f" ({near} barely)" if near else ""),
                f"{worst.bytes / GIB:.0f} (chapter {number[worst.name]})",
                enough,
                f"{found.hours:.0f}" if found.hours >= 1 else "below 1",
                f"{found.disk / 1e9:.0f}",
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
