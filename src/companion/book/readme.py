"""What maintainers remake: shipped pairs, baselines, and the README's figure and table."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib.pyplot as plt
import yaml

from companion import paths
from companion.book import checks, plots
from companion.errors import CompanionError
from companion.metrics.estimates import Estimate

# Rows of the README's table: result, what it is, how it is printed, and the published value beside it.
README_ROWS = (
    ("setting_toxicity", "mean toxicity of the base model", ".3f", ".453 (GPT-2 medium, Perspective)"),
    ("setting_floor", "the same for human prose (control)", ".3f", ""),
    ("probe_accuracy", "accuracy of the linear probe", ".1%", "94 %"),
    ("probe_accuracy_shuffled", "the same with shuffled labels (control)", ".1%", ""),
    ("dpo_toxicity_dpo", "mean toxicity after DPO", ".3f", ".208"),
    ("dpo_relative_drop", "relative drop by DPO, paired", ".1%", "54 %"),
    ("dpo_relative_drop_control", "relative drop by noise of the same size (control)", ".1%", ""),
    ("dpo_relative_drop_lexical", "relative drop as the lexical scorer sees it", ".1%", ""),
    ("dpo_perplexity_rise", "rise in perplexity", ".1%", "7.6 %"),
    ("dpo_f1_change", "change in F1 of continuations", "+.3f", "+.002"),
    ("ablation_drop_200", "relative drop by ablating the 200 most toxic value vectors", ".0%", "11 %"),
    ("ablation_drop_random_200", "the same for random neurons of the same norms (control)", ".0%", ""),
    ("patching_drop_dampened", "relative drop by patching dampened toxic neurons", ".0%", "26 %"),
    ("patching_drop_all", "relative drop by patching all neurons", ".0%", ""),
    (
        "patching_drop_clamp_all",
        "relative drop by holding all neurons at the base model's own means (control)",
        ".0%",
        "",
    ),
    ("decomposition_tp_minus_gross", "dampened toxic neurons' share of the gross reduction", ".1%", "31.8 %"),
    (
        "decomposition_tp_minus_net",
        "the same neurons' share of the net reduction",
        ".0%",
        "209 % (stored notebooks)",
    ),
    (
        "controls_net_text_share",
        "part of the net that the base model shows when it reads DPO's text (control)",
        ".0%",
        "",
    ),
    ("controls_net_text_share_early", "the same over the layers before the probe (control)", ".0%", ""),
    ("controls_drop_shuffled", "relative drop by DPO on shuffled preferences (control)", ".0%", ""),
    ("editing_drop_published", "relative drop by tuning-free editing, cosines with the probe", ".0%", ""),
    (
        "editing_drop_embedding",
        "the same, cosines with the embedding of swear words (the text breaks down in both)",
        ".0%",
        "",
    ),
    ("editing_drop_random", "the same on random neurons (control; the text breaks down)", ".0%", ""),
    ("evaluation_drop_marco", "relative drop by MaRCo, over all its sentences", ".0%", "49 % to 51 %"),
    (
        "evaluation_similarity_marco",
        "similarity of the rewrites to the originals",
        ".2f",
        ".94 to .96 (BERTScore)",
    ),
    (
        "evaluation_perplexity_ratio_marco",
        "perplexity of the rewrites, relative to the originals",
        ".2f",
        ".54 to .94",
    ),
    ("evaluation_joint_marco", "joint score of MaRCo", ".2f", ""),
    ("evaluation_joint_original", "the same for leaving the text alone (control)", ".2f", ""),
    ("evaluation_joint_minus_delete", "joint score, MaRCo minus deleting toxic words, paired", "+.3f", ""),
    ("evaluation_joint_minus_random", "joint score, MaRCo minus as many random masks, paired", "+.3f", ""),
    ("evaluation_harmless_unchanged", "harmless comments that come back unchanged", ".0%", ""),
)

# Files that name the repository's address; _config.yml is where it is looked up.
ADDRESSED = ("_config.yml", "CITATION.cff", "pyproject.toml", "README.md", "pages/*.md", "chapters/*.ipynb")


def address() -> str:
    """The repository's address, as in ``_config.yml``."""
    return yaml.safe_load((paths.project() / "_config.yml").read_text(encoding="utf-8"))["repository"]["url"]


def set_address(new: str) -> list[Path]:
    """Put another address of the repository wherever it stands: set-up cells, buttons, citation. Returns the files changed.

    Raises
    ------
    CompanionError
        If it is not the address of a page.
    """
    if not re.fullmatch(r"https://[\w.-]+(?:/[\w.~-]+)+", new) or new.endswith(".git"):
        raise CompanionError(
            f"'{new}' is no address of a repository: write for example https://github.com/NAME/companion."
        )
    old, changed = address(), []
    for path in sorted(path for pattern in ADDRESSED for path in paths.project().glob(pattern)):
        text = path.read_text(encoding="utf-8")
        if old in text:
            path.write_text(text.replace(old, new), encoding="utf-8", newline="\n")
            changed.append(path)
    return changed


def update_readme(embedded: Path, public: Path) -> None:
    """Write ``pages/images/results.png``, the README's table and ``pages/public_results.md`` from a run of either profile."""
    runs = [checks.load_results(folder) for folder in (embedded, public)]
    found = [run["results"] for run in runs]
    _figure(found[0], paths.project() / "pages" / "images" / "results.png")

    page = paths.project() / "pages" / "public_results.md"
    before = _cells(page)

    def cells(name: str, spec: str, row: str, first: int) -> str:
        """One cell per run. What a run does not have stands as it stood: chapters may be run one at a time."""
        return " | ".join(
            f"{r[name]['value']:{spec}} [{r[name]['low']:{spec}}, {r[name]['high']:{spec}}], {r[name]['n']:,}"
            if name in r
            else before.get((row, first + i), "not run yet")
            for i, r in enumerate(found)
        )

    lines = [
        "| result | embedded: value [95 % interval], n | public data: value [95 % interval], n | published |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {what} | {cells(name, spec, what, 0)} | {published} |"
        for name, what, spec, published in README_ROWS
    ]
    versions = ", ".join(f"{k} {runs[0]['versions'][k]}" for k in ("python", "torch", "transformers"))
    lines.append(
        f"\nFrom `results.json` of runs of the profiles `embedded` and `public` on {runs[0]['machine']['cores']} cores ({versions})."
    )
    _replace(paths.project() / "README.md", "\n".join(lines))
    lines += [
        "",
        "## Every intervention",
        "",
        "Relative drop of toxicity, and perplexity where the intervention acts. *keys n*: the DPO model with 7 toxic keys scaled by n, relative to itself; *reverse*: the DPO model with base means; "
        "*down*: the neurons with a positive Δp; *clamp*: the base model's own means; *strong*: α = 1, β = .02.",
        "",
    ]
    lines += [
        "| chapter and intervention | drop, embedded | drop, public | perplexity, embedded | perplexity, public |",
        "|---|---|---|---|---|",
    ]
    for name in found[0]:
        chapter, _, what = name.partition("_drop_")
        if what and chapter in ("ablation", "patching", "editing"):
            perplexity, row = f"{chapter}_perplexity_{what}", f"{chapter}: {what.replace('_', ' ')}"
            lines.append(
                f"| {row} | {cells(name, '.0%', row, 0)} | {cells(perplexity, ',.1f', row, 2) if perplexity in found[0] else ' | '} |"
            )
    _replace(page, "\n".join(lines))


def _cells(page: Path) -> dict[tuple[str, int], str]:
    """What the tables of a page say, by row and column (0: the first after the row's name)."""
    rows = (
        line.strip("|").split(" | ")
        for line in page.read_text(encoding="utf-8").splitlines()
        if line.startswith("| ")
    )
    return {(name.strip(), i): cell.strip() for name, *cells in rows for i, cell in enumerate(cells)}


def _replace(path: Path, block: str) -> None:
    """Put a block between a page's markers."""
    path.write_text(
        re.sub(
            r"(<!-- results -->\n).*?(<!-- /results -->)",
            lambda m: m[1] + block + "\n" + m[2],
            path.read_text(encoding="utf-8"),
            flags=re.S,
        ),
        encoding="utf-8",
    )


def _figure(found: dict, path: Path) -> None:
    plots.style()
    names = ["human prose", "base model", "noise of the same size", "DPO"]
    keys = ["setting_floor", "dpo_toxicity_base", "dpo_toxicity_control", "dpo_toxicity_dpo"]
    estimates = [Estimate(found[k]["value"], found[k]["low"], found[k]["high"], found[k]["n"]) for k in keys]
    ax = plots.bars(names, estimates, title="DPO lowers toxicity; noise of the same size does not", unit="mean probability of toxicity, 95 % interval",
                    colours=[plots.CONTROL, plots.BASE, plots.CONTROL, plots.DPO])  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    ax.figure.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(ax.figure)
