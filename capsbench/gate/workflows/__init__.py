"""Workflows that run the check on a build server; `capsbench init-ci` writes them."""

import json
import re
import shlex
import tomllib
from contextlib import suppress
from importlib import metadata, resources
from pathlib import Path

from capsbench.errors import ConfigurationError

GITHUB_PATH = Path(".github/workflows/capsbench.yml")
"""Path at which GitHub looks for a workflow."""

_PLAIN = re.compile(r"[A-Za-z0-9_./:,\-]+")
_REQUIREMENT = re.compile(r"[A-Za-z0-9_./:,+@=<>!~\[\]#&%? -]+")
_GIT = re.compile(r"(https|ssh)://\S+\.git(@[\w./-]+)?$")
_OF_CAPSBENCH = re.compile(r"capsbench\s*($|[\[@=<>!~])")
_SOURCES = "give pypi, the address of a git repository (git+https://HOST/PATH.git@v1), or a path in this one (.)"

CPU_INDEX = "https://download.pytorch.org/whl/cpu"
"""PyTorch's index of builds for CPUs."""

UNKNOWN = "echo 'say here how pip installs capsbench, such as: pip install git+https://HOST/capsbench.git'; exit 1"
"""The step of a workflow whose source of capsbench is unknown: it must not seem to work."""


def where_from(folder: Path) -> str | None:
    """The requirement with which pip installs this capsbench on another machine; None if it is not known.

    Args:
        folder: folder of the repository that gets the workflow; for capsbench's own, the requirement is the repository itself.
    """
    with suppress(OSError, ValueError):
        project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8")).get("project", {})
        if isinstance(project, dict) and project.get("name") == "capsbench":
            return "."
    try:
        found = metadata.distribution("capsbench")
        origin = json.loads(found.read_text("direct_url.json") or "{}")
    except (metadata.PackageNotFoundError, ValueError):
        return None
    if not origin:
        return f"capsbench=={found.version}"  # pip found it in an index by its name
    url, vcs = str(origin.get("url", "")), origin.get("vcs_info")
    if vcs:
        return f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return url if url.startswith("https://") else None


def requirement_of(source: str, folder: Path) -> str:
    """The requirement with which pip installs capsbench from a source.

    Args:
        source: `pypi`, the address of a git repository, a path in the repository that gets the workflow, a wheel's address, or
            a requirement of pip's, such as `capsbench>=1.2`.
        folder: folder of that repository.

    Raises:
        ConfigurationError: it is none of these.
    """
    source = source.strip()
    if source == "pypi":
        return "capsbench"
    if _GIT.match(source):
        return f"git+{source}"
    if "://" in source or _OF_CAPSBENCH.match(source):
        return source
    # A folder outside the repository is not on the build server, and pip reads a bare name as that of a package, which anybody
    # may have published.
    if source.startswith("."):
        return source
    if source and not source.startswith("/") and (folder / source).exists():
        return f"./{source}"
    raise ConfigurationError(f"`install` '{source}' is neither pypi, nor an address, nor a path that is there", _SOURCES)


def github_workflow(models: str, depth: str, baseline: str, install: str | None = None) -> str:
    """A workflow of GitHub Actions.

    Args:
        models: models, as `capsbench run` takes them.
        depth: depth, as `capsbench run` takes it.
        baseline: path of the baseline in the repository.
        install: requirement with which pip installs capsbench, from `requirement_of` or `where_from`; None if it is not known,
            so that the workflow fails until it is filled in.

    Raises:
        ConfigurationError: a value is not one that the commands in it take.
    """
    return _filled("github.yml", models, depth, baseline, install)


def gitlab_pipeline(models: str, depth: str, baseline: str, install: str | None = None) -> str:
    """A pipeline of GitLab.

    Raises:
        ConfigurationError: a value is not one that the commands in it take.
    """
    return _filled("gitlab.yml", models, depth, baseline, install)


def _filled(template: str, models: str, depth: str, baseline: str, install: str | None) -> str:
    from capsbench.sweep.plan import parse_depths

    for field, value in (("models", models), ("baseline", baseline)):
        # The value ends up in YAML and in a shell.
        if not _PLAIN.fullmatch(value) or value.startswith("-"):
            raise ConfigurationError(f"`{field}` '{value}' cannot stand in a workflow", "use letters, digits and _ . / : , -")
    if install is not None and (not _REQUIREMENT.fullmatch(install) or install.startswith("-")):
        raise ConfigurationError(f"`install` '{install}' cannot stand in a workflow", _SOURCES)
    if len(set(parse_depths(depth))) < 2:
        raise ConfigurationError(f"`depth` '{depth}' is one depth", "a slope needs two: 1-3, or 1,4")
    text = resources.files("capsbench.gate.workflows").joinpath(template).read_text(encoding="utf-8")
    depths = re.sub(r"\s", "", depth)
    step = UNKNOWN if install is None else f"pip install {shlex.quote(install)}"
    values = {"INSTALL": step, "TORCH": CPU_INDEX, "MODELS": models, "DEPTH": depths, "BASELINE": baseline}
    return re.sub(r"@([A-Z]+)@", lambda found: values[found[1]], text)
