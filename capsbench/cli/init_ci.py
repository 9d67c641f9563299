"""`capsbench init-ci`: a workflow that checks every pull request."""

import shlex
from pathlib import PurePath

import click

from capsbench.catalog import MODELS
from capsbench.cli.command import Command, echo
from capsbench.cli.output import write_text
from capsbench.cli.types import NameList
from capsbench.errors import ConfigurationError
from capsbench.gate.workflows import GITHUB_PATH, github_workflow, gitlab_pipeline, requirement_of, where_from
from capsbench.system.paths import anchored, start


@click.command("init-ci", cls=Command)
@click.option("--models", default="all", help="Models to guard, as 'capsbench run' takes them.")
@click.option("--depth", default="1,2,8", help="Depths to guard, as 'capsbench run' takes them.")
@click.option("--baseline", default="baselines/ci.json", help="Path of the baseline in the repository.")
@click.option(
    "--from",
    "install",
    help="Source of capsbench on the build server: pypi, the address of a git repository, or a path in this one; "
    "by default the source that this capsbench was installed from.",
)
@click.option("--gitlab", is_flag=True, help="Print a GitLab pipeline on standard output instead.")
@click.option("--force", is_flag=True, help="Overwrite an existing workflow.")
def command(models: str, depth: str, baseline: str, install: str | None, gitlab: bool, force: bool) -> None:
    """Write a workflow that checks every pull request.

    It goes into .github/workflows/capsbench.yml, and compares predicted memory and the exact memory of a CPU. The build
    server installs PyTorch's build for CPUs, and capsbench from the source that --from names.

    \b
    Examples:
      capsbench init-ci
      capsbench init-ci --models rescapsnet,my_package.models:make_net --depth 1,2,4
      capsbench init-ci --from pypi
      capsbench init-ci --from https://git.example.org/tools/capsbench.git@v1
      capsbench init-ci --gitlab
    """
    from capsbench.cases.factories import resolve_model
    from capsbench.sweep.asked import naming

    if not baseline.strip() or PurePath(baseline).is_absolute() or ".." in PurePath(baseline).parts:
        raise ConfigurationError(f"--baseline '{baseline}' is not a path within the repository", "write baselines/ci.json")
    install = requirement_of(install, start()) if install is not None else where_from(start())
    text = (gitlab_pipeline if gitlab else github_workflow)(models, depth, baseline, install)
    for model in NameList(tuple(MODELS), open_ended=True).parse("--models", models):
        # A user's own model need not be installed where the workflow is written.
        if model != "all" and ":" not in model:
            with naming("models"):
                resolve_model(model)
    if gitlab:
        echo(text, nl=False)
        return
    path = anchored(GITHUB_PATH)
    if path.exists() and not force:
        raise ConfigurationError(f"{GITHUB_PATH} already exists", "give --force to overwrite it")
    write_text(path, text, "the workflow")
    echo(f"wrote {GITHUB_PATH}; the comment at its top describes how to make {baseline}")
    if install is None:
        echo("it fails until its step 'Install' names a source of capsbench for pip: give that with --from (and --force)")
    else:
        echo(f"a build server installs capsbench with: pip install {shlex.quote(install)}")
