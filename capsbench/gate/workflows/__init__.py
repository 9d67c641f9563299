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
_ADDRESS = re.compile(r"(?:git\+)?(?:https|ssh)://[^\s/]+/\S+")
_SSH_SHORT = re.compile(r"([\w.-]+@[\w.-]+):/*([^\s:]+)")
_FILE = re.compile(r"[^?#]+\.(whl|zip|tgz|tar|tar\.(gz|bz2|xz))([?#]\S*)?")
_OF_CAPSBENCH = re.compile(r"capsbench\s*($|[\[@=<>!~])")
_AT_ADDRESS = re.compile(r"(capsbench\s*(?:\[[^\]]*\])?\s*@)\s*(.*)")
_PATH = re.compile(r"([^/\[\]][^\[\]]*)(\[[\w, -]+\])?")
_SOURCES = "give pypi, an address (https://HOST/PATH@v1 of a git repository, or of a wheel), or a path in this repository (.)"

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
        if url.startswith("file:"):
            return None
        return f"{vcs['vcs']}+{url}@{vcs['commit_id']}"
    return url if url.startswith("https://") else None


def requirement_of(source: str, folder: Path) -> str:
    """The requirement with which pip installs capsbench from a source.

    Args:
        source: `pypi`, the address of a git repository, a path in the repository that gets the workflow, the address of a wheel
            or an archive, or a requirement of pip's, such as `capsbench>=1.2`.
        folder: folder of that repository.

    Raises:
        ConfigurationError: it is none of these, or it is on this machine alone.
    """
    source = source.strip()
    if source == "pypi":
        return "capsbench"
    if named := _AT_ADDRESS.fullmatch(source):
        found = _address(named[2])
        found = found and f"{named[1]} {found}"
    elif _OF_CAPSBENCH.match(source):
        found = source
    else:
        found = _address(source) or _path_inside(source, folder)
    if found is None:
        raise ConfigurationError(
            f"`install` '{source}' is neither pypi, nor an address that a build server can reach, nor a path in the repository "
            "that exists",
            _SOURCES,
        )
    return found


def _address(text: str) -> str | None:
    """The address as pip takes it: that of a git repository begins with `git+`. None if the text is no address, or a file's."""
    if short := _SSH_SHORT.fullmatch(text):
        return f"git+ssh://{short[1]}/{short[2]}"
    text = text.rstrip("/")
    if not _ADDRESS.fullmatch(text):
        return None
    return text if text.startswith("git+") or (text.startswith("https:") and _FILE.fullmatch(text)) else f"git+{text}"


def _path_inside(text: str, folder: Path) -> str | None:
    """The path, with the extras behind it, from the folder; None if nothing exists there, or it lies outside the folder.

    A folder outside the repository is not on the build server, and pip reads a bare name as that of a package, which anybody may
    have published.
    """
    parts = _PATH.fullmatch(text)
    if parts is None:
        return None
    root = folder.resolve()
    place = (root / parts[1]).resolve()
    if not place.exists() or not place.is_relative_to(root):
        return None
    path = "." if place == root else f"./{place.relative_to(root).as_posix()}"
    return path + (parts[2] or "")


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
    from capsbench.axes import parse_depths

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
