"""The scripts in `examples/` run, and say what their texts promise."""

import pytest

from helpers import ROOT

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
