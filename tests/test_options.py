"""The table of options, and the examples of CONTRIBUTING: their rows alone are found wherever options are."""

import json
import re
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path
from textwrap import indent

import pytest

from capsbench.catalog import MODELS
from capsbench.errors import ConfigurationError
from capsbench.models import CapsNet, MoCapsNet
from capsbench.options import NETWORK_OPTIONS, OPTIONS, SWEPT_OPTIONS, Configuration, noun_of, type_of, value_in_words
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from helpers.made import make_configuration
from helpers.reading import ROOT, blocks

LOOKED_AT = """
import json
from pathlib import Path

from click.testing import CliRunner

from capsbench.axes import per_unit
from capsbench.cli.group import cli
from capsbench.cli.list import offers
from capsbench.frame import to_frame
from capsbench.page.cells import options_data
from capsbench.page.commands import series_command, timeline_command
from capsbench.records import Plan, Record
from capsbench.report import Report
from capsbench.stats.slopes import series_of
from capsbench.sweep.asked import Sweep
from capsbench.sweep.plan import expand
from capsbench.sweep.runner import run_sweep
from capsbench.words.labels import Names
from capsbench.cases.factories import build_model

cells = expand(Sweep(("rescapsnet",), (1,), "cpu", threads=1, class_dim=(8, 16)))
frame = to_frame(("made", Record(cell=cell, status="ok")) for cell in cells)
known = [series for series, _ in series_of(frame)]
along = expand(Sweep(("rescapsnet",), (1,), "cpu", threads=1, depths_chosen=False, vary={"class-dim": "8,16"}))
refusals = []
given = [(("builtins:max",), {"class_dim": 8}), (("rescapsnet",), {"class_dim": 0})]
given += [(("rescapsnet",), {"learning_rate": value}) for value in (0, 1.5)]
for models, options in given:
    try:
        expand(Sweep(models, (1,), "cpu", **options))
    except Exception as error:
        refusals.append(str(error))
typed = [CliRunner().invoke(cli, ["run", "--learning-rate", value]).exception for value in ("0", "1.5", "fast", "nan")]
full = Report(Path("full"))
full.folder.mkdir()
run_sweep(Plan(command="", cells=along, axes=("class_dim",)), full, lambda cell: Record(cell=cell, status="oom"))
print(json.dumps({
    "help": {name: CliRunner().invoke(cli, [name, "--help"]).stdout for name in ("run", "predict", "timeline", "train")},
    "values": [cell.configuration.class_dim for cell in cells],
    "keys": [cell.key() for cell in cells],
    "positions": [cell.configuration.position("class_dim") for cell in along],
    "series": len({cell.configuration.series("class_dim") for cell in along}),
    "refusals": refusals,
    "typed": list(map(str, typed)),
    "rates": [cell.configuration.learning_rate for cell in expand(Sweep(("capsnet",), (1,), "cpu", learning_rate=(0.001, 0.1)))],
    "along_rates": [
        cell.configuration.position("learning_rate")
        for cell in expand(Sweep(("capsnet",), (1,), "cpu", depths_chosen=False, vary={"learning_rate": (0.001, 0.1)}))
    ],
    "units": [per_unit("class_dim"), per_unit("learning_rate")],
    "statuses": [record.status for record in full.records],
    "arguments": [build_model(cell.configuration).classes.weight.shape[-1] for cell in cells],
    "labels": [Names(known).of(line) for line in known],
    "filters": options_data(),
    "commands": [series_command(known[0], None), timeline_command(known[0])],
    "list": offers()["options"],
}))
"""


@pytest.fixture(scope="module")
def example():
    """The rows that CONTRIBUTING adds, as they stand in the class."""
    written = [one.text for one in blocks((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")) if one.language == "python"]
    assert len(written) == 2
    return indent("\n".join(text[re.search(r"^\w+: Annotated", text, re.MULTILINE).start() :] for text in written), "    ")


@pytest.fixture(scope="module")
def widened(tmp_path_factory, example):
    """A copy of the package that has the rows, and the documentation of its records."""
    folder = tmp_path_factory.mktemp("widened")
    for name in ("capsbench", "tools", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    table = folder / "capsbench" / "options.py"
    before, method, after = table.read_text(encoding="utf-8").partition("    def is_predicted(")
    table.write_text(f"{before}{example}\n{method}{after}", encoding="utf-8")
    return folder


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def found(widened):
    """Everything in the program about options, in a process that has the copy."""
    (widened / "look.py").write_text(LOOKED_AT, encoding="utf-8")
    return json.loads(run(widened, "look.py").splitlines()[-1])


@pytest.mark.slow
def test_a_row_alone_is_a_flag_of_every_command_that_takes_networks(found):
    for text in found["help"].values():
        assert "--class-dim INTEGER" in text
        assert "Dimension of the class capsules." in text
    assert "--learning-rate NUMBER" in found["help"]["run"]


@pytest.mark.slow
def test_a_row_alone_is_swept_and_refused_where_it_has_no_effect(found):
    assert found["values"] == [8, None]
    own, small, *_ = found["refusals"]
    assert own.startswith("`class_dim` 8 has no effect on model 'builtins:max'")
    assert small == "`class_dim` 0 is too small\ngive 1 or more"


@pytest.mark.slow
def test_a_number_that_need_not_be_whole_has_the_bounds_of_its_row(found):
    hint = "give a number above 0 and up to 1"
    _, _, *refused = found["refusals"]
    assert refused == [f"`learning_rate` 0 is too small\n{hint}", f"`learning_rate` 1.5 is too large\n{hint}"]
    faults = ["0 is too small", "1.5 is too large", "'fast' is not a number", "nan is not a finite number"]
    assert found["typed"] == [f"--learning-rate {fault}\n{hint}" for fault in faults]
    assert found["rates"] == [None, 0.1]
    assert found["along_rates"] == [0.001, 0.1]


@pytest.mark.slow
def test_a_row_alone_is_an_axis(found):
    assert found["positions"] == [8, 16]
    assert found["series"] == 1
    assert found["units"] == ["per dimension", "per unit of learning rate"]
    # The second cell takes at least the memory of the first, which ran out of it.
    assert found["statuses"] == ["oom", "skipped"]


@pytest.mark.slow
def test_a_row_alone_leaves_the_keys_of_earlier_cells(found):
    (cell,) = expand(Sweep(("rescapsnet",), (1,), "cpu", threads=1))
    assert found["keys"][1] == cell.key() != found["keys"][0]


@pytest.mark.slow
def test_a_row_alone_reaches_the_constructor(found):
    assert found["arguments"] == [8, 16]


@pytest.mark.slow
def test_a_row_alone_is_told_in_labels(found):
    assert found["labels"] == ["ResCapsNet (class dim 8)", "ResCapsNet (class dim 16)"]


@pytest.mark.slow
def test_a_row_alone_is_on_the_page(found):
    assert {"name": "class_dim", "title": "Class dimension", "none": "16", "bytes": False} in found["filters"]["filters"]
    assert {"name": "class_dim", "noun": "class dim"} in found["filters"]["details"]
    assert "class_dim" in found["filters"]["columns"]
    assert all("--class-dim 8" in command for command in found["commands"])


@pytest.mark.slow
def test_a_row_alone_is_listed(found):
    assert found["list"]["--class-dim"] == "Dimension of the class capsules. [16]"


@pytest.mark.slow
def test_a_row_alone_is_documented(widened):
    run(widened, "tools/record_schema.py")
    written = (widened / "docs" / "record-schema.md").read_text(encoding="utf-8")
    lines = [
        "| `class_dim` | int or null | Dimension of the class capsules; None for 16. Flag `--class-dim`, by default `16`. |",
        "| `learning_rate` | float or null | Learning rate of the optimizer; None for 0.001. Flag `--learning-rate`, by default "
        "`0.001`. |",
    ]
    assert [one for one in written.splitlines() if one in lines] == lines
    # Nothing else changed.
    assert [one for one in written.splitlines() if one not in lines] == (
        ROOT / "docs" / "record-schema.md"
    ).read_text().splitlines()


# The table itself.


def test_flags_and_titles_are_there_once():
    assert len({option.flag for option in OPTIONS.values()}) == len(OPTIONS)
    assert len({option.title for option in OPTIONS.values()}) == len(OPTIONS)
    assert all(option.flag.startswith("--") and option.help.endswith(".") for option in OPTIONS.values())


def test_every_field_is_an_option():
    assert [*OPTIONS, "settings"] == list(Configuration.model_fields)
    assert set(NETWORK_OPTIONS) < set(SWEPT_OPTIONS) == set(OPTIONS) - {"model", "blocks"}


@pytest.mark.parametrize("name", SWEPT_OPTIONS)
def test_defaults_can_be_asked_for(name):
    option = OPTIONS[name]
    if option.choices and option.default is not None:
        assert option.default in option.choices
    if option.default is not None:
        assert isinstance(option.default, type_of(name))
    assert set(option.words) <= set(option.choices)
    if option.choices:
        assert {option.unwritten, option.before} <= {None, *option.choices}


def test_networks_that_have_an_option_take_it():
    every = {name for name in NETWORK_OPTIONS if OPTIONS[name].networks.have("capsnet")}
    momentum = {name for name in NETWORK_OPTIONS if OPTIONS[name].networks.have("mocapsnet")}
    assert momentum - every == set(signature(MoCapsNet).parameters) & {"inverse", "rule", "gamma"}
    assert every >= set(signature(CapsNet).parameters) & set(OPTIONS) - {"blocks"}
    has = {name for name, option in OPTIONS.items() if option.networks.have("my.models:make")}
    assert has == {*(set(OPTIONS) - set(NETWORK_OPTIONS)), "memory"}
    assert all(option.networks.names is None or option.networks.names <= set(MODELS) for option in OPTIONS.values())


def test_a_constructor_is_given_what_is_set():
    assert make_configuration("rescapsnet", kernel="recompute").arguments().keys() == {
        *("kernel", "routing", "iterations", "capsules", "front", "memory"),
    }
    assert make_configuration("own:make").arguments() == {}


def test_a_compiled_network_has_other_words_than_a_compiled_kernel():
    assert value_in_words("compile", "default") == "torch.compile"
    assert value_in_words("kernel", "compiled") == "compiled"


def test_nouns():
    assert [noun_of(name) for name in ("batch_size", "optimizer_step", "source")] == ["batch", "optimizer step", "source"]


# A sweep takes any of them.


def test_any_option_multiplies_a_sweep():
    cells = expand(
        Sweep(["mocapsnet"], [1], "cpu", batch_size=[2, 4], iterations=range(2, 4), gamma=(0.5, 0.9), kernel="recompute")
    )
    found = {(it.batch_size, it.iterations, it.gamma) for it in (cell.configuration for cell in cells)}
    assert len(found) == len(cells) == 8
    assert (4, 3, 0.5) in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": "auto"}, "a sweep takes no kernels\ndid you mean kernel? If not, choose among dataset, "),
        ({"kernel": 3}, "`kernel` '3' is not known\nchoose among auto, "),
        ({"capsules": 0}, "`capsules` 0 is too small\ngive 1 or more"),
        ({"capsules": 1.5}, "`capsules` 1.5 is not a whole number\n"),
        ({"batch_size": True}, "`batch_size` True is not a whole number\n"),
        ({"gamma": "0.9"}, "`gamma` '0.9' is not a number\n"),
    ],
)
def test_values_that_an_option_cannot_have(options, message):
    with pytest.raises(ConfigurationError) as refused:
        expand(Sweep(("mocapsnet",), (1,), "cpu", **options))
    assert str(refused.value).startswith(message)
