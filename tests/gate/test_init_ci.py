"""The workflows that `init-ci` writes: what a build server would read in them, and whether the command line takes it."""

import re
import shlex

import pytest
import yaml

from capsbench.gate.workflows import github_workflow, gitlab_pipeline
from helpers.commands import subcommands
from helpers.seeded import seeded_run, write_report

PATH = ".github/workflows/capsbench.yml"


def commands_of(script, variables):
    """Every command of capsbench in a script, as arguments, its variables filled in."""
    joined = script.replace("\\\n", " ")
    for line in joined.splitlines():
        text = re.sub(r"\$\{?(\w+)\}?", lambda found: variables[found[1]], line)
        words = shlex.split(text.removesuffix("|| true"), comments=True)
        if words[:1] == ["capsbench"]:
            yield words[1:]


def github():
    workflow = yaml.safe_load(github_workflow("rescapsnet,mocapsnet", "1,2,4", "baselines/ci.json"))
    job = workflow["jobs"]["check"]
    variables = job["env"] | {"GITHUB_STEP_SUMMARY": "summary"}
    return workflow, job, [found for step in job["steps"] for found in commands_of(step.get("run", ""), variables)]


def gitlab():
    pipeline = yaml.safe_load(gitlab_pipeline("rescapsnet,mocapsnet", "1,2,4", "baselines/ci.json"))
    job = pipeline["capsbench"]
    return job, [found for line in job["script"] for found in commands_of(line, job["variables"])]


@pytest.mark.parametrize("commands", [github()[-1], gitlab()[-1]], ids=["github", "gitlab"])
def test_the_command_line_takes_every_command(commands):
    assert [it[0] for it in commands] == ["run", "run", "check"]
    parsed = [subcommands()[name].make_context(name, list(rest)).params for name, *rest in commands]
    measured, predicted, check = parsed
    assert measured["models"] == predicted["models"] == ("rescapsnet", "mocapsnet")
    assert measured["depth"] == predicted["depth"] == "1,2,4"
    assert (measured["device"], measured["batch_size"], predicted["device"]) == ("cpu", 8, "cuda:predicted")
    # What is measured is what is checked.
    assert {it["out"].parent for it in (measured, predicted)} == {check["reports"]}
    assert str(check["baseline"]) == "baselines/ci.json"
    assert check["junit"] is not None
    assert not check["update"]


@pytest.mark.parametrize("text", [github_workflow("all", "1-3", "b.json"), gitlab_pipeline("all", "1-3", "b.json")])
def test_the_command_that_makes_the_baseline_is_taken_too(text):
    comments = re.findall(r"^# +(capsbench .*)$", text, re.MULTILINE)
    (arguments,) = commands_of("\n".join(comments), {})
    assert subcommands()[arguments[0]].make_context(arguments[0], arguments[1:]).params["update"]
    assert "@" not in re.sub(r"uses: \S+@v\d+", "", text)


def test_github_s_workflow_is_safe_for_forks_and_keeps_what_it_found():
    workflow, job, _ = github()
    # YAML 1.1 reads "on" as true.
    triggers = workflow.get("on", workflow.get(True))
    assert "pull_request" in triggers
    assert "pull_request_target" not in triggers
    assert workflow["permissions"] == {"contents": "read"}
    assert job["permissions"] == {"contents": "read", "pull-requests": "write"}
    assert "secrets." not in str(workflow)
    steps = {step.get("uses", "").partition("@")[0] or step["name"]: step for step in job["steps"]}
    assert steps["actions/checkout"]["with"] == {"persist-credentials": False}
    assert steps["actions/setup-python"]["with"]["cache"] == "pip"
    assert steps["actions/setup-python"]["with"]["cache-dependency-path"] == PATH
    comment = steps["actions/github-script"]
    assert "head.repo.full_name == github.repository" in comment["if"]
    assert comment["continue-on-error"] is True
    # Nothing that a pull request may choose is pasted into a script.
    assert "${{" not in comment["with"]["script"]
    assert not any("${{" in step.get("run", "") for step in job["steps"])
    # A check that failed still leaves its report, its artifact and its comment.
    for name in ("Check", "actions/upload-artifact", "actions/github-script"):
        assert "!cancelled()" in steps[name]["if"]
    assert steps["actions/upload-artifact"]["with"]["path"] == "reports/ci"


def test_gitlab_s_pipeline_shows_the_check_in_the_merge_request():
    job, commands = gitlab()
    junit = commands[-1][commands[-1].index("--junit") + 1]
    assert job["artifacts"]["reports"]["junit"] == junit
    assert job["artifacts"]["when"] == "always"
    assert job["cache"]["paths"]


def test_the_commands_turn_the_check_red(command, tmp_path):
    # The last command of the workflow, on reports where its first two would have left them.
    folder = tmp_path / "reports/ci"
    write_report(folder / "cpu", seeded_run())
    (check,) = [it for it in github()[-1] if it[0] == "check"]
    assert command("check", "reports/ci", "--baseline", "baselines/ci.json", "--update").status == 0
    assert command(*check).status == 0
    assert (tmp_path / "summary").read_text() == (folder / "summary.md").read_text()
    write_report(folder / "cpu", seeded_run(modules={"blocks.{block}.0": 2**20}))
    assert command(*check).status == 1


def test_init_ci_writes_once(command, tmp_path):
    result = command("init-ci", "--models", "my_package.models:make_net", "--depth", "1,3")
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout.startswith(f"wrote {PATH}")
    first = (tmp_path / PATH).read_text()
    assert yaml.safe_load(first)["jobs"]["check"]["env"] == {
        "MODELS": "my_package.models:make_net",
        "DEPTH": "1,3",
        "BASELINE": "baselines/ci.json",
    }
    refused = command("init-ci")
    assert (refused.status, refused.stdout) == (2, "")
    assert PATH in refused.stderr
    assert "--force" in refused.stderr
    assert (tmp_path / PATH).read_text() == first
    assert command("init-ci", "--force").status == 0
    assert "my_package" not in (tmp_path / PATH).read_text()


def test_gitlab_s_pipeline_is_printed_and_nothing_written(command, tmp_path):
    result = command("init-ci", "--gitlab", "--models", "rescapsnet")
    assert yaml.safe_load(result.stdout)["capsbench"]["variables"]["MODELS"] == "rescapsnet"
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--models", 'all"; rm -r .'], ["--models", "cannot stand in a workflow"]),
        (["--models", "-x"], ["--models '-x'"]),
        (["--baseline", "$HOME/b.json"], ["--baseline '$HOME/b.json'"]),
        (["--models", "nope"], ["--models: model 'nope' is not known", "mocapsnet"]),
        (["--depth", "3"], ["--depth '3' is one depth", "1-3"]),
        (["--depth", "deep"], ["--depth", "deep"]),
    ],
)
def test_init_ci_refuses_nonsense_in_two_lines(command, tmp_path, arguments, named):
    for more in ([], ["--gitlab"]):
        result = command("init-ci", *arguments, *more)
        assert (result.status, result.stdout, len(result.stderr.splitlines())) == (2, "", 2)
        for words in named:
            assert words in result.stderr
    assert not any(tmp_path.iterdir())
