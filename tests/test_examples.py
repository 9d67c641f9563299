"""The scripts in `examples/` run, and say what their texts promise."""

import pytest
import yaml

from helpers import ROOT
from helpers.reading import check, commands

SAID = {
    "draw_figure4": "figure4.png",
    "guard_memory": "0 of ",
    "make_a_network_reversible": "reversible: a block retains 0 bytes",
    "measure_two_networks": "rescapsnet: a block retains 24 KiB for backward\nmocapsnet: a block retains 0 KiB",
    "predict_a_sharded_step": "ddp on 64: holds 147.5 MiB",
    "predict_what_fits": "kernel published: does not fit",
    "train_on_the_sample": "9,272,336 parameters",
}
"""Words that each script prints."""


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_runs(path, tmp_path, server):
    before = {one.name for one in path.parent.iterdir()}
    done = server(tmp_path, path, tmp_path, program="python", drawn=True)
    assert done.status == 0, done.stderr
    assert SAID[path.stem] in done.stdout
    assert {one.name for one in path.parent.iterdir()} == before


def test_every_example_is_there():
    assert sorted(SAID) == sorted(path.stem for path in (ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_commands_of_a_description_for_a_cluster_are_there(path):
    text = "\n".join(str(value) for value in _values(list(yaml.safe_load_all(path.read_text(encoding="utf-8")))))
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip().startswith(("capsbench ", "pip "))]
    assert any(line.startswith("capsbench run ") for line in lines)
    for line in lines:
        for words in commands(line):
            check(words)


def _values(data):
    """All values of nested mappings and lists."""
    if isinstance(data, dict | list):
        for value in data.values() if isinstance(data, dict) else data:
            yield from _values(value)
    else:
        yield data
