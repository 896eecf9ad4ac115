"""The installation: install.py, the lock, what needs which package, the repository's address. No network."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from companion import paths
from companion.book import contents, readme
from companion.errors import CompanionError

PROJECT = paths.project()
PYPROJECT = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
PLATFORMS = {
    "Linux": {
        "sys_platform": "linux",
        "platform_system": "Linux",
        "os_name": "posix",
        "platform_machine": "x86_64",
    },
    "macOS": {
        "sys_platform": "darwin",
        "platform_system": "Darwin",
        "os_name": "posix",
        "platform_machine": "arm64",
    },
    "Windows": {
        "sys_platform": "win32",
        "platform_system": "Windows",
        "os_name": "nt",
        "platform_machine": "AMD64",
    },
}


@pytest.fixture
def installer(tmp_path, monkeypatch):
    """install.py as a module, in an empty folder."""
    spec = importlib.util.spec_from_file_location("install", PROJECT / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    return module


def locked(installer, name: str = "requirements.lock") -> list[Requirement]:
    entries = installer.entries((PROJECT / name).read_text(encoding="utf-8"))
    return [Requirement(entry.split(" \\")[0]) for entry in entries]


def installed_on(requirements: list[Requirement], platform: str, python: str) -> dict[str, str]:
    """Version by package, of the entries whose marker holds."""
    where = {
        **default_environment(),
        **PLATFORMS[platform],
        "python_version": python,
        "python_full_version": f"{python}.9",
    }
    chosen = [r for r in requirements if r.marker is None or r.marker.evaluate(where)]
    versions = {canonicalize_name(r.name): str(r.specifier).removeprefix("==") for r in chosen}
    assert len(versions) == len(chosen), "a package has two versions"
    return versions


# --- the lock ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["requirements.lock", "torch-cpu.lock"])
def test_every_entry_is_pinned_and_hashed(installer, name):
    entries = installer.entries((PROJECT / name).read_text(encoding="utf-8"))
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9.-]+==\S+", entry) and "--hash=sha256:" in entry, entry[:80]
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    assert "index-url" not in text and "://" not in text  # no host of an index


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13", "3.14"])
def test_the_lock_holds_what_is_asked_for(installer, platform, python):
    locked_versions = installed_on(locked(installer), platform, python)
    project, groups = PYPROJECT["project"], PYPROJECT["dependency-groups"]
    asked = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    for requirement in map(Requirement, [*asked, *groups["weights"], *groups["build"]]):
        assert requirement.specifier.contains(locked_versions[canonicalize_name(requirement.name)]), (
            requirement
        )
    assert ("appnope" in locked_versions) == (platform == "macOS")  # B21: ipykernel imports it there
    assert ("pywinpty" in locked_versions) == (platform == "Windows")
    cuda = [name for name in locked_versions if installer.GPU_ONLY.match(f"{name}==") and name != "torch"]
    assert bool(cuda) == (platform == "Linux")  # B1: torch's build for Linux with what it needs


def test_both_builds_of_torch_have_one_version(installer):
    [cpu] = locked(installer, "torch-cpu.lock")
    assert str(cpu.specifier) == f"=={installed_on(locked(installer), 'Linux', '3.11')['torch']}+cpu"


def test_what_the_cpu_build_leaves_out_is_torch_and_cuda(installer):
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    left_out = {entry.split("==")[0] for entry in installer.entries(text) if installer.GPU_ONLY.match(entry)}
    assert {"torch", "triton", "nvidia-cudnn-cu13"} <= left_out
    assert not {"torch-lens", "transformers", "transformer-lens", "numpy"} & left_out


# --- install.py ----------------------------------------------------------------------------------


def venv(folder: Path, *options: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", *options, str(folder)], check=True)


def test_half_an_environment_is_made_anew(installer, capsys):
    """B23: a stopped `python -m venv` leaves a folder without pip."""
    venv(installer.VENV, "--without-pip")
    assert not installer.usable(installer.VENV)
    python = installer.environment()
    assert installer.usable(installer.VENV) and python.exists() and "anew" in capsys.readouterr().out
    stamp = installer.VENV / "kept"
    stamp.touch()
    assert installer.environment() == python and stamp.exists()  # a whole one stays


def test_an_environment_of_an_old_python_is_made_anew(installer, monkeypatch):
    venv(installer.VENV)
    monkeypatch.setattr(installer, "OLDEST", (4, 0))
    assert not installer.usable(installer.VENV)


@pytest.mark.parametrize("content", ["a file", "a folder of something else"])
def test_a_folder_of_that_name_that_is_something_else_is_not_deleted(installer, content, capsys):
    installer.VENV.mkdir()
    (installer.VENV / "thesis.txt").touch()
    with pytest.raises(SystemExit) as caught:
        installer.environment()
    assert caught.value.code == 2 and "no virtual environment" in capsys.readouterr().err
    assert (installer.VENV / "thesis.txt").exists()


def test_without_pythons_venv_there_is_a_sentence(installer, monkeypatch, capsys):
    monkeypatch.setattr(installer.sys, "executable", "/bin/false")
    with pytest.raises(SystemExit) as caught:
        installer.environment()
    assert (
        caught.value.code == 2 and "python3-venv" in capsys.readouterr().err and not installer.VENV.exists()
    )


def test_settings_of_pip_that_mislead_do_not_reach_it(installer, monkeypatch):
    """B22: PIP_NO_DEPS reached the isolated build; where packages come from stays the user's choice."""
    seen = {}
    monkeypatch.setattr(
        installer.subprocess,
        "run",
        lambda command, env, **_: seen.update(env) or subprocess.CompletedProcess(command, 0),
    )
    for name in ("PIP_NO_DEPS", "PIP_TARGET", "PIP_USER", "PIP_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "1")
    assert installer.pip(Path("python"), "install", "x") == 0
    assert {"PIP_INDEX_URL", "PIP_FIND_LINKS", "PATH"} <= set(seen) and not {
        "PIP_NO_DEPS",
        "PIP_TARGET",
        "PIP_USER",
    } & set(seen)


@pytest.mark.parametrize(
    ("card", "to_be_had", "cuda"), [(False, True, False), (False, False, True), (True, True, True)]
)
def test_which_build_of_torch_is_taken(installer, monkeypatch, card, to_be_had, cuda):
    """Without a card the CPU build if it can be had, and PyPI's if not; with a card PyPI's."""
    calls = []

    def pip(python, *arguments, quiet=False):
        listed = Path(arguments[arguments.index("-r") + 1]) if "-r" in arguments else None
        calls.append(listed.read_text(encoding="utf-8") if listed else "the checkout")
        return 1 if quiet and not to_be_had else 0

    monkeypatch.setattr(installer, "pip", pip)
    monkeypatch.setattr(installer, "cpu_suffices", lambda: not card)
    installer.install(Path("python"))
    main, checkout = calls[-2:]
    assert checkout == "the checkout" and "transformers==" in main and "--hash" in main
    assert ("nvidia-cudnn" in main) is cuda and ("\ntorch==" in main) is cuda
    assert any("+cpu" in call for call in calls) is not card


def test_the_link_to_the_checkout_can_be_read_in_any_locale(installer, tmp_path, monkeypatch):
    """A folder with an ö in its path, under LC_ALL=C: before Python 3.13 the link is read in ASCII then."""
    root = tmp_path / "my böök (copy)"
    monkeypatch.setattr(installer, "ROOT", root)
    monkeypatch.setattr(installer, "VENV", root / ".venv")
    (root / "src").mkdir(parents=True)
    (root / "src" / "marked.py").write_text("print('found')", encoding="utf-8")
    venv(root / ".venv", "--without-pip")
    [packages] = (root / ".venv").glob("**/site-packages")
    (packages / "_editable_impl_companion.pth").write_text(f"{root}/src\n", encoding="utf-8")
    installer.relative_link()
    assert (packages / "_editable_impl_companion.pth").read_text(encoding="utf-8").isascii()
    done = subprocess.run(
        [installer.in_venv(root / ".venv"), "-c", "import marked"],
        env={"LC_ALL": "C"},
        capture_output=True,
        check=False,
    )
    assert done.stdout.strip() == b"found", done.stderr


# --- what needs which package --------------------------------------------------------------------


def chapter_imports() -> str:
    """The import statements of all chapters' cells."""
    statements = set()
    for chapter in contents.chapters():
        for cell in json.loads(chapter.path.read_text(encoding="utf-8"))["cells"][2:]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "code" and not text.startswith("%%") and "%pip" not in text:
                statements |= {
                    ast.unparse(node)
                    for node in ast.walk(ast.parse(text))
                    if isinstance(node, ast.Import | ast.ImportFrom)
                }
    return "\n".join(sorted(statements))


def test_chapters_and_the_rewriter_need_no_tool_of_the_books_makers():
    """B2: in Colab there is no jupyter-book, and nothing that replaces what is there."""
    extras = [
        Requirement(r).name for extra in PYPROJECT["project"]["optional-dependencies"].values() for r in extra
    ]
    absent = [name.replace("-", "_") for name in extras if name not in ("ipykernel", "pyyaml")]
    absent += ["nbclient", "jupyter_client"]
    modules = "import companion.cli, companion.marco.command"
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\n{modules}\n"
    code += f"{chapter_imports()}\nprint('fine')"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert done.stdout.strip().endswith("fine"), done.stderr[-2000:]
    assert "companion.book.record" in modules + chapter_imports() or "record" in chapter_imports()


def test_every_import_of_the_package_is_declared():
    """Third-party modules that src/ imports belong to a requirement; nothing is there by luck."""
    names = {
        "alt-profanity-check": "profanity_check",
        "scikit-learn": "sklearn",
        "pyyaml": "yaml",
        "transformer-lens": "transformer_lens",
    }
    project = PYPROJECT["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["book"], "alt-profanity-check"]
    declared = {names.get(Requirement(r).name, Requirement(r).name.replace("-", "_").lower()) for r in asked}
    for path in paths.PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            roots = (
                [a.name for a in node.names]
                if isinstance(node, ast.Import)
                else [node.module]
                if isinstance(node, ast.ImportFrom)
                else []
            )
            for root in {name.split(".")[0] for name in roots} - sys.stdlib_module_names - {"companion"}:
                assert root.lower() in declared or root in {
                    "nbclient",
                    "jupyter_client",
                    "traitlets",
                    "tokenizers",
                    "requests",
                }, f"{path.name}: {root}"


# --- the address ---------------------------------------------------------------------------------


def addressed() -> list[Path]:
    return sorted(path for pattern in readme.ADDRESSED for path in PROJECT.glob(pattern))


def test_the_address_stands_everywhere_as_in_the_config():
    address = readme.address()
    for path in addressed():
        text = path.read_text(encoding="utf-8")
        assert path.name == "README.md" or path.parent.name == "pages" or address in text, path.name
        others = set(re.findall(r"https://(?:github|gitlab)\.com/[\w.-]+/companion\b", text)) - {address}
        assert not others, path.name
    assert PYPROJECT["project"]["urls"]["Repository"] == address
    assert (
        yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))["repository-code"] == address
    )


def test_one_command_changes_the_address(tmp_path, monkeypatch):
    before = {path: path.read_text(encoding="utf-8") for path in addressed()}
    for path, text in before.items():
        (tmp_path / path.relative_to(PROJECT)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path.relative_to(PROJECT)).write_text(text, encoding="utf-8")
    monkeypatch.setattr(paths, "project", lambda: tmp_path)
    old, new = readme.address(), "https://codeberg.org/someone/that-book"
    changed = readme.set_address(new)
    assert readme.address() == new and len(changed) > len(list((PROJECT / "chapters").glob("*.ipynb")))
    for path, text in before.items():
        assert (tmp_path / path.relative_to(PROJECT)).read_text(encoding="utf-8") == text.replace(old, new)
    for nonsense in (
        "",
        "companion",
        "http://x",
        "https://github.com",
        "git@github.com:a/b",
        "https://github.com/a/b.git",
        "https://a.b/c d",
    ):
        with pytest.raises(CompanionError, match="no address of a repository"):
            readme.set_address(nonsense)
    assert readme.address() == new
