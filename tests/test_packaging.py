"""The package as it is published: its metadata, what is in it, and how it is cited."""

import email
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
import yaml

from helpers import ROOT

ARXIV, REVIEWS = "2201.11091", "https://openreview.net/forum?id=Su290sknyQ"
LISTED = ("git", "ls-files", "--cached", "--others", "--exclude-standard")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RELEASE = yaml.safe_load((ROOT / ".github" / "workflows" / "release.yml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The wheel and the source archive, built."""
    pytest.importorskip("hatchling", reason="the build backend is not installed (it is an extra of the tests)")
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-d", str(folder)], cwd=ROOT, check=True, capture_output=True)
    (wheel,), (archive,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, archive


@pytest.mark.slow
def test_the_metadata_of_the_wheel_are_those_of_the_project(built):
    wheel, _ = built
    with zipfile.ZipFile(wheel) as file:
        (name,) = [it for it in file.namelist() if it.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(file.read(name))
        tags = email.message_from_bytes(file.read(name.replace("METADATA", "WHEEL")))["Tag"]
    assert (metadata["Name"], metadata["License-Expression"], metadata["Requires-Python"]) == ("capsbench", "MIT", ">=3.11")
    assert metadata["Summary"] == PROJECT["description"]
    assert metadata.get_all("Project-URL") == [f"{name}, {url}" for name, url in PROJECT["urls"].items()]
    assert set(metadata.get_all("Classifier")) == set(PROJECT["classifiers"])
    assert "text/markdown" in metadata["Description-Content-Type"]
    assert metadata.get_payload(decode=True).decode() == (ROOT / "README.md").read_text(encoding="utf-8")
    # One wheel serves every machine, since C and C++ are compiled on first use.
    assert tags == "py3-none-any"


@pytest.mark.slow
def test_the_wheel_has_all_that_the_package_reads_and_nothing_else(built):
    wheel, archive = built
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
    listed = subprocess.run([*LISTED, "capsbench"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert {name for name in names if name.startswith("capsbench/")} == set(listed.splitlines())
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"capsbench"}
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    with tarfile.open(archive) as file:
        inside = {name.partition("/")[2] for name in file.getnames()}
    assert {"CITATION.cff", "pyproject.toml", "tests/test_packaging.py", ".github/workflows/release.yml"} <= inside


def test_a_release_is_built_checked_and_then_published_without_a_password():
    jobs = RELEASE["jobs"]
    assert [jobs[name].get("needs") for name in ("build", "check", "publish")] == [None, "build", "check"]
    assert RELEASE["permissions"] == {"contents": "read"}
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert all("id-token" not in job.get("permissions", {}) for name, job in jobs.items() if name != "publish")
    assert jobs["publish"]["if"] == "github.event_name == 'push'"
    assert RELEASE.get("on", RELEASE.get(True))["push"] == {"tags": ["v*"]}
    assert "secrets." not in str(RELEASE)
    (checkout,) = [step for step in jobs["build"]["steps"] if "checkout" in step.get("uses", "")]
    assert checkout["with"]["fetch-depth"] == 0


# How it is cited.


def test_the_citation_is_complete():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert (cited["license"], cited["type"]) == (PROJECT["license"], "software")
    (paper,) = cited["references"]
    assert paper["url"] == REVIEWS
    assert paper["identifiers"][0]["value"] == f"arXiv:{ARXIV}"
    assert [author["family-names"] for author in paper["authors"]] == ["Gugglberger", "Peer", "Rodríguez-Sánchez"]


def test_everything_names_the_same_paper():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for text in (readme, *PROJECT["urls"].values()):
        assert set(re.findall(r"arxiv\.org/abs/(2201\.\d+)", text)) <= {ARXIV}
        assert set(re.findall(r"https://openreview\.net/\S+?(?=[)\"\s}]|$)", text)) <= {REVIEWS}
    assert f"arxiv.org/abs/{ARXIV}" in readme
    assert REVIEWS in readme
    entries = re.findall(r"@(\w+)\{(\w+),", readme)
    assert entries == [("software", "capsbench"), ("article", "gugglberger2022momentum")]


def test_the_patterns_of_contributing_give_every_path_of_the_readme_an_address():
    """An index has no other file of the repository."""
    release = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("## A release")[2].partition("\n## ")[0]
    pictures, others = re.findall(r"`(\([^`]*\(\?!https\?:[^`]*)`", release)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(pictures, r"\1https://raw.example.org/", text)
    text = re.sub(others, r"\1https://example.org/", text, flags=re.MULTILINE)
    targets = re.findall(r"\]\(([^)]*)\)|^\[[\w-]+\]: (.*)$", text, re.MULTILINE)
    found = [inline or reference for inline, reference in targets]
    assert len(found) > 20
    assert all(re.match("https://|#", target) for target in found)
    assert [target for target in found if "raw.example.org" in target] == [
        "https://raw.example.org/docs/images/cost-of-depth.png"
    ]
