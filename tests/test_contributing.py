"""The hooks before a commit are the tools of the tests, in the same versions."""

from __future__ import annotations

import re

import yaml

from companion import paths


def test_hooks_have_the_versions_of_the_lock():
    hooks = yaml.safe_load((paths.project() / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    asked = {
        need for repo in hooks["repos"] for hook in repo["hooks"] for need in hook["additional_dependencies"]
    }
    lock = (paths.project() / "requirements.lock").read_text(encoding="utf-8")
    locked = dict(re.findall(r"^([\w.-]+)==([^ ;\\]+)", lock, re.MULTILINE))
    pins = dict(need.split("==") for need in asked)
    assert {name: version for name, version in pins.items() if name in locked} == {"ruff": locked["ruff"]}


def test_workflows_run_what_a_user_runs():
    text = (paths.project() / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    assert "run: .ci/run" in text and "run: python install.py" in text
    run = (paths.project() / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^make \w+", run, re.MULTILINE) == ["make test", "make book"]
