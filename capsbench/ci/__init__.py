"""Workflows that run the check on a build server; `capsbench init-ci` writes them."""

import re
from importlib import resources
from pathlib import Path

from capsbench.errors import ConfigurationError

GITHUB_PATH = Path(".github/workflows/capsbench.yml")
"""Where GitHub looks."""

_PLAIN = re.compile(r"[A-Za-z0-9_./:,\-]+")


def github_workflow(models: str, depth: str, baseline: str) -> str:
    """A workflow of GitHub Actions.

    Args:
        models: as `capsbench run --models` takes them.
        depth: as `capsbench run --depth` takes it.
        baseline: path of the baseline in the repository.

    Raises:
        ConfigurationError: one of them is not what the commands in it take.
    """
    return _filled("github.yml", models, depth, baseline)


def gitlab_pipeline(models: str, depth: str, baseline: str) -> str:
    """The same for GitLab.

    Raises:
        ConfigurationError: as `github_workflow`.
    """
    return _filled("gitlab.yml", models, depth, baseline)


def _filled(template: str, models: str, depth: str, baseline: str) -> str:
    from capsbench.sweep.plan import parse_depths

    for option, value in (("--models", models), ("--baseline", baseline)):
        # It ends up in YAML and in a shell.
        if not _PLAIN.fullmatch(value) or value.startswith("-"):
            raise ConfigurationError(f"{option} '{value}' cannot stand in a workflow", "use letters, digits and _ . / : , -")
    if len(set(parse_depths(depth))) < 2:
        raise ConfigurationError(f"--depth '{depth}' is one depth", "a slope needs two: 1-3, or 1,4")
    text = resources.files("capsbench.ci").joinpath(template).read_text(encoding="utf-8")
    depths = re.sub(r"\s", "", depth)
    return text.replace("@MODELS@", models).replace("@DEPTH@", depths).replace("@BASELINE@", baseline)
