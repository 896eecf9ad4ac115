"""What maintainers remake loses nothing."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from companion import paths
from companion.book import claims, editions, readme


def results(folder, **values):
    """A run of the results with some values; each has an interval and n."""
    entries = {
        name: {
            "value": v,
            "low": v - 0.1,
            "high": v + 0.1,
            "n": 7,
            "seed": 0,
            "chapter": name.partition("_")[0],
        }
        for name, v in values.items()
    }
    folder.mkdir()
    versions = {"python": "3", "torch": "2", "transformers": "5"}
    (folder / "results.json").write_text(
        json.dumps({"results": entries, "versions": versions, "machine": {"cores": 2}}), encoding="utf-8"
    )
    return folder


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    (tmp_path / "pages").mkdir()
    for page in ("README.md", "pages/public_results.md"):
        blocks = "\n".join(
            f"<!-- {name} -->\n<!-- /{name} -->" for name in ("results", "claims", "interventions")
        )
        (tmp_path / page).write_text(f"before\n{blocks}\nafter\n", encoding="utf-8")
    yield tmp_path
    plt.close("all")


def test_chapters_that_a_run_lacks_keep_their_cells(project):
    figure = dict.fromkeys(
        ("setting_floor", "dpo_toxicity_base", "dpo_toxicity_control", "dpo_toxicity_dpo"), 0.5
    )
    embedded = results(
        project / "embedded", **figure, probe_accuracy=0.9, ablation_drop_7=0.3, ablation_perplexity_7=20.0
    )
    readme.update_readme(
        embedded,
        results(project / "public", probe_accuracy=0.8, ablation_drop_7=0.2, ablation_perplexity_7=30.0),
    )
    first = {
        page: (project / page).read_text(encoding="utf-8")
        for page in ("README.md", "pages/public_results.md")
    }
    assert (
        "| accuracy of the linear probe | 90.0% [80.0%, 100.0%], 7 | 80.0% [70.0%, 90.0%], 7 | 94 % |"
        in first["pages/public_results.md"]
    )
    assert (
        "| ablation: 7 | 30% [20%, 40%], 7 | 20% [10%, 30%], 7 "
        "| 20.0 [19.9, 20.1], 7 | 30.0 [29.9, 30.1], 7 |" in first["pages/public_results.md"]
    )
    assert all(text.startswith("before\n") and text.endswith("after\n") for text in first.values())
    assert "not run yet" in first["pages/public_results.md"]

    readme.update_readme(embedded, results(project / "other", setting_toxicity=0.4))  # one chapter alone
    second = {page: (project / page).read_text(encoding="utf-8") for page in first}
    changed = [
        line for page in first for line in second[page].splitlines() if line not in first[page].splitlines()
    ]
    assert changed == [
        "| mean toxicity of the base model | not run yet | 0.400 [0.300, 0.500], 7 "
        "| .453 (GPT-2 medium, Perspective) |"
    ]


def test_the_table_of_claims_is_written_by_whole_runs_only(project):
    figure = ("setting_floor", "dpo_toxicity_base", "dpo_toxicity_control", "dpo_toxicity_dpo")
    names = [*[claim.result for claim in claims.load()], *figure]
    page = project / "README.md"
    readme.update_readme(results(project / "part", **dict.fromkeys(names[1:], 0.5)), project / "none")
    assert claims.load()[0].quote not in page.read_text(encoding="utf-8")
    readme.update_readme(results(project / "all", **dict.fromkeys(names, 0.5)), project / "none")
    written = page.read_text(encoding="utf-8")
    assert all(f"| {claim.quote} | {claim.place} |" in written for claim in claims.load())


def test_the_committed_table_of_claims_is_the_editions(project):
    committed = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    page = project / "README.md"
    page.write_text(committed, encoding="utf-8")
    readme._update_claims(editions.load("embedded")["results"])
    assert page.read_text(encoding="utf-8") == committed
