"""README, CONTRIBUTING and docs say what is: their code runs, their links lead somewhere, their tables are those of the program.

What is run and how long is said at the top of `reading`.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from capsbench.catalog import STACKED
from capsbench.measure.environment import describe
from capsbench.report import Report
from capsbench.words.slopes_in_words import row_ratio, row_slope
from helpers import reading
from helpers.reading import DOCUMENTS, ROOT, Reader, Wrong, blocks, check, check_inline, check_links, commands, shortened


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def check_line(line: str) -> None:
    for words in commands(line):
        check(words)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_a_reader_can_do_all_of_it(document, tmp_path, server):
    Reader(tmp_path, server, measures=document.name == "README.md").follow(text_of(document))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_commands_in_running_text_are_there(document):
    check_inline(text_of(document))


@pytest.mark.parametrize("document", [*DOCUMENTS, ROOT / "CHANGELOG.md"], ids=name_of)
def test_links_lead_somewhere(document):
    check_links(text_of(document), document.parent)


@pytest.mark.parametrize("document", [*DOCUMENTS, *sorted((ROOT / "reports").rglob("*.md"))], ids=name_of)
def test_a_line_of_a_table_fits_a_page(document):
    assert [line for line in text_of(document).splitlines() if line.startswith("|") and len(line) > 150] == []


def test_there_is_something_to_check():
    kinds = [block.language for document in DOCUMENTS for block in blocks(text_of(document))]
    assert kinds.count("python") >= 5
    assert sum(kind in ("bash", "console") for kind in kinds) >= 8
    assert len(DOCUMENTS) >= 7


def test_the_readme_begins_with_the_two_commands():
    first = blocks(text_of(ROOT / "README.md"))[0]
    typed = [words for line in reading.shell_lines(first) for words in commands(line)]
    assert typed == [
        ["python", "-m", "pip", "install", "."],
        ["capsbench", "run", "--models", "all", "--depth", "1-8"],
        ["python", "-m", "pip", "install", "tox"],
        ["tox"],
    ]


def test_examples_of_the_readme_are_short():
    assert max(len(block.text.splitlines()) for block in blocks(text_of(ROOT / "README.md"))) <= 10


def test_the_findings_are_those_of_the_reports():
    """Each figure of the README's findings is what the committed report says of that slope."""

    def cost(report, model, metric):
        table = slopes[report]
        (row,) = table[(table["model"] == model) & (table["metric"] == metric)].to_dict("records")
        return row_slope(row), row_ratio(row)

    slopes = {name: Report(ROOT / "reports" / name).slopes for name in ("example-cpu", "published-cpu")}
    rows = [line for line in text_of(ROOT / "README.md").splitlines() if re.search(r"\| \[\w+-cpu\] \|$", line)]
    retained, published, peak, times = rows
    assert {cost("example-cpu", model, "retained")[0] for model in ("capsnet", "rescapsnet")} == {"768.00 KiB"}
    assert "768.00 KiB in CapsNet and ResCapsNet" in retained
    assert f"{cost('example-cpu', 'mocapsnet', 'retained')[0]} in MoCapsNet" in retained
    assert f"{cost('published-cpu', 'rescapsnet', 'retained')[0]} in ResCapsNet" in published
    assert {cost("example-cpu", model, "peak")[0] for model in STACKED} == {"2.00 MiB"}
    assert "2.00 MiB in all three" in peak
    for model, title in (("rescapsnet", "ResCapsNet"), ("mocapsnet", "MoCapsNet")):
        assert f"{cost('example-cpu', model, 'train')[0]} in {title}" in times
    assert f"× {cost('example-cpu', 'mocapsnet', 'train')[1]}" in times


@pytest.mark.slow
def test_the_schema_s_tables_are_made():
    command = [sys.executable, "tools/record_schema.py", "--check"]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def test_the_schema_names_every_field_of_an_environment():
    def names(data):
        for name, value in data.items():
            yield name
            if isinstance(value, dict) and name not in ("packages", "settings"):
                yield from names(value)

    told = text_of(ROOT / "docs" / "record-schema.md")
    assert [name for name in names(describe()) if f"`{name}`" not in told] == []


# What is wrong is found.


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("capsbench run --modles all", "modles"),
        ("capsbench runn --models all", "runn"),
        ("capsbench run --memory stored,chekpoint", "chekpoint"),
        ("capsbench run --repeats none", "--repeats"),
        ("capsbench reproduce figure5", "figure5"),
        ("capsbench reproduce", "names no command"),
        ("capsbench check reports/", "baseline"),
        ("capsbench train --routing sdaa", "sdaa"),
        ("capsbench slopes reports/ --jsn", "jsn"),
        ("capsbenhc run", "capsbenhc"),
        ("python -m pip install 'capsbench[trian]'", "trian"),
        ("python -m pip download tox", "download"),
        ("tox -e unit", "unit"),
        ("pre-commit instal", "instal"),
        ("npm --prefix javascript run fixx", "fixx"),
        ("python -m benchmarks.limit --write", "benchmarks.limit"),
        ("python -m benchmarks.limits --wriet", "--wriet"),
        ("torchrun --nproc-per-nod 2 -m capsbench.cli train", "nproc-per-nod"),
        ("torchrun --nproc-per-node 2 -m capsbench.cli train --modell x", "modell"),
        ("capsbench env | less", "|"),
        ("pytest --fast", "--fast"),
    ],
)
def test_a_wrong_line_is_found(line, named):
    with pytest.raises(Wrong, match=re.escape(named)):
        check_line(line)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("Type `capsbench reprot reports/`.", "reprot"),
        ("| you want | command |\n| --- | --- |\n| more | `capsbench run --repeat-s 3` |", "repeat-s"),
        ("It has `--metrics peak`.", "--metrics"),
        ('`eval "$(capsbench complete bash)"`', "complete"),
        ("`capsbench run --inverse exactly`", "exactly"),
    ],
)
def test_a_wrong_command_in_running_text_is_found(text, named):
    with pytest.raises(Wrong, match=named):
        check_inline(text)


@pytest.mark.parametrize(
    "text", ["`capsbench check`", "`capsbench COMMAND --help`", "`capsbench train … --diagnostics`", "`capsbench figure`"]
)
def test_running_text_may_leave_something_out(text):
    check_inline(text)


@pytest.mark.parametrize(
    "text", ["[there](docs/no-such.md)", "![there](reports/no.png)", "[there](#nowhere)", "[there](docs/methods.md#nowhere)"]
)
def test_a_link_that_leads_nowhere_is_found(text):
    with pytest.raises(Wrong, match="there is no"):
        check_links(text, ROOT)


def test_links_are_found():
    check_links("# A heading, with `code`\n\n[a](#a-heading-with-code) [b](docs/methods.md#bytes) [c](https://example.org)", ROOT)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("```python\nimport capsbench\ncapsbench.no_such_name\n```", "no_such_name"),
        ("```bash\ncapsbench slopes reports/nowhere\n```", "ended with 2"),
        ("    capsbench run --depth 8-1\n", "runs backwards"),
        ("```console\n$ capsbench run --kernel triton --device cpu\n```", "triton"),
        ("```\nno language\n```", "nothing that is checked"),
        ('```json\n{"cell": {}}\n```', "not of its schema"),
        ('```toml\n[project.entry-points."capsbench.model"]\nmine = "a:b"\n```', "capsbench.model"),
        ("```python\n# test_it.py\ndef test_it():\n    assert False\n```\n\n```bash\npytest test_it.py\n```", "ended with 1"),
    ],
)
def test_a_block_that_does_not_work_is_found(text, named, tmp_path, server):
    with pytest.raises(Wrong, match=named):
        Reader(tmp_path, server).follow(text)


def test_a_block_has_its_line(tmp_path, server):
    with pytest.raises(Wrong, match="line 3: "):
        Reader(tmp_path, server).follow("text\n\n```bash\ncapsbench no\n```\n")


def test_a_line_is_shortened_and_stays_what_it_is():
    words = ["run", "--models", "rescapsnet,mocapsnet", "--memory", "stored,checkpoint", "--depth", "1-8", "--out", "reports/x"]
    assert shortened(words, traced=False) == [
        *["run", "--models", "rescapsnet", "--memory", "stored", "--depth", "1", "--out", "reports/x"],
        *["--batch-size", "4", "--samples", "5", "--time-budget", "0.1"],
    ]
    assert shortened(words, traced=True)[-2:] == ["--device", "cpu:predicted"]
    assert "cpu:predicted" not in shortened([*words, "--device", "cuda:predicted"], traced=True)
    assert "--batch-size" not in shortened([*words[:-4], "--vary", "batch-size=1,2"], traced=True)
    assert shortened(["show", "reports/"], traced=True) == ["show", "reports/"]


def test_examples_of_files_are_held_to_the_schema():
    line = text_of(ROOT / "reports" / "example-cpu" / "records.jsonl").splitlines()[0]
    reading.check_json(line)
    with pytest.raises(Wrong):
        reading.check_json(json.dumps(json.loads(line) | {"no_such_field": 1}))
