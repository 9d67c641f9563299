"""The workflow that `init-ci` writes installs what a build server can have, or says that it does not know how."""

import json
import os
import re
import shlex
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
import yaml

from capsbench.errors import ConfigurationError
from capsbench.gate.workflows import CPU_INDEX, UNKNOWN, github_workflow, gitlab_pipeline, requirement_of, where_from
from helpers import ROOT

PATH = ".github/workflows/capsbench.yml"
URL = "git+https://git.example.org/tools/capsbench.git@v1"


def install_of(text):
    """The script of the step that installs capsbench."""
    found = yaml.safe_load(text)
    if "capsbench" in found:
        (script,) = [it for it in found["capsbench"]["script"] if "pip install" in it and CPU_INDEX not in it]
        return script
    (step,) = [it for it in found["jobs"]["check"]["steps"] if it.get("id") == "install"]
    return step["run"]


class Installed:
    """A distribution that was installed in some way."""

    version = "1.2.3"

    def __init__(self, origin):
        self.origin = origin

    def read_text(self, name):
        assert name == "direct_url.json"
        return None if self.origin is None else json.dumps(self.origin)


@pytest.mark.parametrize(
    ("origin", "install"),
    [
        (None, "capsbench==1.2.3"),
        (
            {"url": "https://git.example.org/capsbench.git", "vcs_info": {"vcs": "git", "commit_id": "a65a61a"}},
            "git+https://git.example.org/capsbench.git@a65a61a",
        ),
        ({"url": "https://example.org/capsbench-1.2.3-py3-none-any.whl", "archive_info": {}}, None),
        ({"url": "file:///home/me/capsbench", "vcs_info": {"vcs": "git", "commit_id": "a65a61a"}}, None),
        ({"url": "file:///home/me/capsbench", "dir_info": {"editable": True}}, None),
        ({"url": "file:///home/me/capsbench-1.2.3-py3-none-any.whl", "archive_info": {}}, None),
    ],
)  # fmt: skip
def test_what_this_capsbench_was_installed_from(monkeypatch, tmp_path, origin, install):
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed(origin))
    if origin and origin["url"].startswith("https://example"):
        install = origin["url"]
    assert where_from(tmp_path) == install


def test_in_capsbench_s_own_repository_it_is_that(tmp_path):
    assert where_from(ROOT) == "."
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'capsbench'\n")
    assert where_from(tmp_path) == "."
    for other in ("[project]\nname = 'mine'\n", "project = 3\n", "no toml"):
        (tmp_path / "pyproject.toml").write_text(other)
        assert where_from(tmp_path) != "."


def test_nothing_is_known_of_a_copy_that_was_never_installed(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    assert where_from(tmp_path) is None


@pytest.mark.parametrize("write", [github_workflow, gitlab_pipeline])
def test_a_workflow_that_knows_nothing_fails_and_says_what_is_missing(write, tmp_path):
    script = install_of(write("all", "1-3", "b.json", None))
    assert script.strip() == UNKNOWN
    done = subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "say here how pip installs capsbench" in done.stdout


@pytest.mark.parametrize("write", [github_workflow, gitlab_pipeline])
def test_a_workflow_installs_the_small_build_of_torch_first(write):
    lines = [line.strip(" -") for line in write("all", "1-3", "b.json", URL).splitlines() if "pip install" in line]
    torch, own = (line.removeprefix("run: ") for line in lines if not line.startswith("#"))
    assert shlex.split(torch) == ["pip", "install", "torch", "torchvision", "--index-url", CPU_INDEX]
    assert shlex.split(own) == ["pip", "install", URL]


@pytest.mark.parametrize(
    ("source", "install"),
    [
        ("pypi", "capsbench"),
        (URL, URL),
        (URL.removeprefix("git+"), URL),
        ("https://git.example.org/c.git", "git+https://git.example.org/c.git"),
        ("ssh://git@git.example.org/c.git", "git+ssh://git@git.example.org/c.git"),
        ("https://example.org/capsbench-1.2.3-py3-none-any.whl", "https://example.org/capsbench-1.2.3-py3-none-any.whl"),
        ("https://example.org/capsbench.whl#sha256=ab", "https://example.org/capsbench.whl#sha256=ab"),
        ("https://github.com/me/capsbench/archive/v1.tar.gz", "https://github.com/me/capsbench/archive/v1.tar.gz"),
        ("https://github.com/me/capsbench", "git+https://github.com/me/capsbench"),
        ("https://github.com/me/capsbench/", "git+https://github.com/me/capsbench"),
        ("https://github.com/me/capsbench@v1", "git+https://github.com/me/capsbench@v1"),
        ("git+https://github.com/me/capsbench", "git+https://github.com/me/capsbench"),
        ("ssh://git@github.com/me/capsbench", "git+ssh://git@github.com/me/capsbench"),
        ("git@github.com:me/x.git", "git+ssh://git@github.com/me/x.git"),
        ("git@github.com:me/x@v1", "git+ssh://git@github.com/me/x@v1"),
        ("git@git.example.org:/srv/x.git", "git+ssh://git@git.example.org/srv/x.git"),
        ("capsbench @ https://example.org/c.whl", "capsbench @ https://example.org/c.whl"),
        ("capsbench[train] @ https://github.com/me/x", "capsbench[train] @ git+https://github.com/me/x"),
        (".", "."),
        ("./", "."),
        ("tools/..", "."),
        (".[train]", ".[train]"),
        (".hidden", "./.hidden"),
        ("tools/capsbench", "./tools/capsbench"),
        ("./tools/capsbench", "./tools/capsbench"),
        ("./tools/../tools/capsbench[train]", "./tools/capsbench[train]"),
        ("capsbench==1.2", "capsbench==1.2"),
        ("capsbench[train] >= 1", "capsbench[train] >= 1"),
    ],
)
def test_a_source_is_what_pip_installs(tmp_path, source, install):
    (tmp_path / "tools" / "capsbench").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    assert requirement_of(source, tmp_path) == install


def test_a_path_that_leads_out_of_the_repository_is_refused(tmp_path):
    repository, beside = tmp_path / "repository", tmp_path / "capsbench"
    for folder in (repository, beside):
        folder.mkdir()
    (repository / "link").symlink_to(beside)
    for source in ("..", "../capsbench", "../repository/../capsbench", "link", str(beside)):
        with pytest.raises(ConfigurationError, match="nor a path in the repository that exists"):
            requirement_of(source, repository)


@pytest.mark.parametrize("write", [github_workflow, gitlab_pipeline])
def test_a_workflow_installs_from_a_given_source(write, tmp_path):
    # A wheel with a version of its own stands for what a build server would fetch.
    wheel = tmp_path / "capsbench-9.9-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as file:
        file.writestr("capsbench_stand_in.py", "")
        file.writestr("capsbench-9.9.dist-info/METADATA", "Metadata-Version: 2.1\nName: capsbench\nVersion: 9.9\n")
        file.writestr(
            "capsbench-9.9.dist-info/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        file.writestr("capsbench-9.9.dist-info/RECORD", "")
    script = re.sub(
        r"^pip ", f"{shlex.quote(sys.executable)} -m pip ", install_of(write("all", "1-3", "b.json", f"./{wheel.name}"))
    )
    variables = {
        **os.environ,
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_TARGET": str(tmp_path / "there"),
        "PIP_NO_INPUT": "1",
    }
    done = subprocess.run(["sh", "-e", "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done
    assert (tmp_path / "there" / "capsbench_stand_in.py").exists()


@pytest.mark.parametrize("install", [URL, ".", "capsbench @ https://example.org/c.whl#sha256=ab", "capsbench[train]>=1,<2"])
def test_what_is_installed_is_one_word_of_the_shell(install):
    for write in (github_workflow, gitlab_pipeline):
        assert shlex.split(install_of(write("all", "1-3", "b.json", install))) == ["pip", "install", install]


def test_init_ci_says_what_is_installed(command, tmp_path):
    result = command("init-ci", "--from", URL)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.splitlines()[1] == f"a build server installs capsbench with: pip install {URL}"
    text = (tmp_path / PATH).read_text()
    assert install_of(text).strip() == f"pip install {URL}"
    assert not re.search(r"pip install '?capsbench'?\s*$", text, re.MULTILINE)


def test_init_ci_says_that_it_does_not_know(command, tmp_path, monkeypatch):
    monkeypatch.setattr(metadata, "distribution", lambda name: Installed({"url": "file:///here", "dir_info": {}}))
    result = command("init-ci")
    assert result.status == 0
    assert "--from" in result.stdout.splitlines()[1]
    assert install_of((tmp_path / PATH).read_text()).strip() == UNKNOWN
    assert install_of(command("init-ci", "--gitlab").stdout).strip() == UNKNOWN


@pytest.mark.parametrize(
    "source",
    [
        "x; rm -r .",
        "$(id)",
        "`id`",
        "-r evil.txt",
        "a\nb",
        "${{ secrets.X }}",
        "it's",
        "pipy",
        "no/such/folder",
        "/",
        "",
        "..",
        "../capsbench",
        ".nothing",
        "./not-there",
        "~/capsbench",
        "C:/capsbench",
        "file:///home/me/capsbench",
        "file:capsbench",
        "git+file:///home/me/capsbench",
        "capsbench @ file:///home/me/capsbench",
        "capsbench@file:///home/me/capsbench",
        "capsbench @ ../capsbench",
        "capsbench @",
        "capsbench@v1",
        "http://example.org/c.whl",
        "https://",
        "https://github.com",
        "https://example.org/a b.git",
    ],
)
def test_init_ci_refuses_what_is_no_source(command, tmp_path, source):
    result = command("init-ci", "--from", source)
    assert (result.status, result.stdout) == (2, "")
    assert result.stderr.startswith("error: --from ")
    assert not any(tmp_path.iterdir())
