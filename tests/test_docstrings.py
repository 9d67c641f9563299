"""The lint environment's check of docstrings."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TOOL = Path(__file__).parent.parent / "tools" / "docstrings.py"


def run(*arguments):
    return subprocess.run([sys.executable, TOOL, *arguments], capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def refused():
    spec = importlib.util.spec_from_file_location("docstrings", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.refused


@pytest.mark.parametrize(
    "begun",
    [
        "Whether it is so.",
        "What a model needs.",
        "Of the epoch.",
        "The same of a text.",
        "Likewise.",
        "As it was typed.",
        "See above.",
        "Refuses it.",
        "",
    ],
)
@pytest.mark.parametrize(
    "source",
    [
        '"""{}"""',
        'class One:\n    """{}"""',
        'def one():\n    """{}"""',
        'async def one():\n    """{}"""',
        'class One:\n    field: int\n    """\n    {}\n    """',
        'VALUE = 1\n"""{}"""',
        'def one():\n    def two():\n        """{}"""',
    ],
)
def test_half_a_sentence_is_refused(refused, begun, source):
    lines = source.format(begun).splitlines()
    (line, text) = next(iter(refused("\n".join(lines))))
    assert '"""' in lines[line - 1]
    assert text == begun


@pytest.mark.parametrize(
    "begun",
    [
        "Indices of both ends.",
        "Return the twin of a network.",
        "`[N]`, bytes.",
        "Offsets.",
        "Thesaurus.",
        "The sameness.",
        "Item.",
    ],
)
def test_a_noun_or_an_imperative_is_not(refused, begun):
    assert list(refused(f'def one():\n    """{begun}"""\n    text = """What is no docstring."""\n')) == []


def test_the_command_names_each_place(tmp_path):
    (tmp_path / "bad.py").write_text('"""A module."""\n\n\ndef one():\n    """Where it is.\n\n    Text.\n    """\n')
    (tmp_path / "good.py").write_text('"""A module."""\n')
    found = run(tmp_path)
    assert found.returncode == 1
    assert found.stdout == f"{tmp_path / 'bad.py'}:5: Where it is.\n"
    assert len(found.stderr.splitlines()) == 2
    assert run(tmp_path / "good.py").returncode == 0
