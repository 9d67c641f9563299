"""A user's functions and modules on a machine that has them, and on one that does not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from capsbench.cases.carried import FUNCTIONS_FOLDER, SEARCH_PATH
from capsbench.sweep.launchers.belongings import packed, unpacked

MODULE = "from helper_of_mine import width\n\ndef make(*_):\n    return width()\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder of a user with a module, a package in src that is on PYTHONPATH, and a module of another place."""
    folder, elsewhere = tmp_path / "project", tmp_path / "elsewhere"
    (folder / "src" / "pack").mkdir(parents=True)
    (elsewhere / "deep").mkdir(parents=True)
    files = {
        folder / "my_models.py": MODULE,
        folder / "src" / "pack" / "__init__.py": "",
        folder / "src" / "pack" / "inner.py": "VALUE = 3\n",
        elsewhere / "helper_of_mine.py": "def width():\n    return 7\n",
        elsewhere / "deep" / "also_of_mine.py": "VALUE = 4\n",
    }
    for path, text in files.items():
        path.write_text(text, encoding="utf-8")
    functions = tmp_path / "functions"
    functions.mkdir()
    (functions / "gpt2.pickle").write_bytes(b"\x00pickled")
    monkeypatch.chdir(folder)
    monkeypatch.setenv(FUNCTIONS_FOLDER, str(functions))
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'src'}{os.pathsep}{elsewhere}")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("LD_PRELOAD", "")
    monkeypatch.syspath_prepend(str(elsewhere))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return SimpleNamespace(folder=folder, elsewhere=elsewhere, files=[str(path) for path in files])


def moved(belongings, project):
    """The belongings as they look to a machine that lacks these folders."""
    for folder in (project.folder, project.elsewhere):
        folder.rename(folder.with_name(f"{folder.name}-gone"))
    return belongings


def imports(found, words):
    """The output of a process with these belongings."""
    command = [sys.executable, "-S", "-c", f"import sys; sys.path.insert(0, '.'); {words}"]
    return subprocess.run(command, cwd=found.folder, env=found.variables, capture_output=True, text=True, check=True).stdout


SEES = "import my_models, pack.inner, helper_of_mine; print(my_models.make(), pack.inner.VALUE)"


def test_a_machine_with_the_same_files_measures_in_the_driver_s_folder(project):
    found = unpacked(packed(project.files), {"PATH": os.environ["PATH"]})
    assert found.folder == project.folder.resolve()
    assert imports(found, SEES) == "7 3\n"


def test_folders_of_modules_are_searched_where_they_are_there(project, monkeypatch):
    monkeypatch.setenv(SEARCH_PATH, "/somewhere/else")
    belongings = packed(project.files)
    assert unpacked(belongings, {}).variables[SEARCH_PATH] == "/somewhere/else"
    assert SEARCH_PATH not in unpacked(moved(belongings, project), {}).variables


def test_a_machine_without_the_files_gets_them(project):
    belongings = moved(packed(project.files), project)
    found = unpacked(belongings, {"PATH": os.environ["PATH"]})
    assert found.folder != project.folder
    assert imports(found, SEES) == "7 3\n"
    assert imports(found, "import deep.also_of_mine as it; print(it.VALUE)") == "4\n"
    assert unpacked(belongings, {}).folder == found.folder  # laid out once


def test_another_file_under_the_same_path_is_not_taken_for_the_driver_s(project):
    belongings = packed(project.files)
    (project.folder / "my_models.py").write_text("def make(*_):\n    return 'another'\n", encoding="utf-8")
    assert imports(unpacked(belongings, {"PATH": os.environ["PATH"]}), SEES) == "7 3\n"


def test_functions_are_carried(project):
    found = unpacked(moved(packed([]), project), {})
    functions = Path(found.variables[FUNCTIONS_FOLDER])
    assert {path.name: path.read_bytes() for path in functions.iterdir()} == {"gpt2.pickle": b"\x00pickled"}


def test_settings_of_figures_are_the_driver_s_and_all_others_the_node_s(project):
    given = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "9",
        "HOME": "/node",
        "LD_PRELOAD": "/node/lib.so",
        "PYTHONPATH": "/node/path",
    }
    variables = unpacked(packed([]), given).variables
    assert variables["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in variables
    assert (variables["HOME"], variables["LD_PRELOAD"]) == ("/node", "/node/lib.so")
    assert variables["PYTHONPATH"].split(os.pathsep)[-1] == "/node/path"


def test_equal_belongings_are_equal_texts(project):
    assert packed(project.files) == packed(reversed(project.files))
    assert set(json.loads(packed([]))["files"]) == set()
