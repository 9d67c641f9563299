"""The pytest plugin in sessions of its own: forks, and one fresh process, as its users have it."""

import re

import pytest
import torch
from torch import Tensor, nn

import capsbench
from capsbench import Case, MoCapsNet
from capsbench.errors import ConfigurationError, StoreError
from capsbench.gate.baseline import read_baseline
from capsbench.gate.findings import Labels, missing_text
from capsbench.testing import grown_memory, memory_slope
from helpers import ROOT
from helpers.made import MIB

pytest_plugins = ["pytester"]

NET = """
import pytest
import torch
from torch import nn

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 16)
    def forward(self, x):
        return x + torch.sigmoid(self.inner(x))

def make(in_shape, num_classes, blocks):
    pixels = in_shape[0] * in_shape[1] * in_shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(pixels, 16), *(Residual() for _ in range(blocks)), nn.Linear(16, num_classes))
"""


@pytest.fixture
def session(pytester, monkeypatch):
    """Run tests in a session of this process."""
    # What this session's plugins need of one another is not there in theirs.
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def run(test: str):
        pytester.makepyfile(NET + test)
        return pytester.runpytest_inprocess("-p", "capsbench.pytest_plugin", "-p", "no:cacheprovider")

    return run


@pytest.fixture
def session_apart(pytester, session_in_fork):
    """Run tests in a session of a fork."""

    def run(test: str, *options: str):
        pytester.makepyfile(NET + test)
        return session_in_fork(pytester.path, *options)

    return run


def residual(in_shape, num_classes, blocks):
    namespace: dict[str, object] = {}
    exec(NET, namespace)
    return namespace["make"](in_shape, num_classes, blocks)


@pytest.mark.slow
def test_known_bytes_per_block():
    """A block keeps what its linear layer was given and what the sigmoid gave: 8 images × 16 values × 4 bytes, twice."""
    found = memory_slope(residual, (1, 2, 4), batch_size=8)
    assert found.retained_per_block == 2 * 8 * 16 * 4
    assert found.worst_step() == found.retained_per_block
    # Number 3 is the last layer of the shallowest network, and keeps as much there.
    assert {name: found.per_module[name] for name in ("3.inner", "4", "4.inner", "5", "5.inner")} == dict.fromkeys(
        ("3.inner", "4", "4.inner", "5", "5.inner"), 512
    )


@pytest.mark.slow
def test_a_reversible_network_costs_nothing():
    def make(in_shape, num_classes, blocks):
        return MoCapsNet(in_shape, num_classes, blocks, capsules=4, inverse="float", kernel="recompute")

    assert memory_slope(make, (1, 2, 3), batch_size=2).retained_per_block == 0


@pytest.mark.slow
def test_a_step_that_a_line_would_hide_counts():
    """64 blocks cost nothing but for one of them."""

    class Once(nn.Module):
        def __init__(self, blocks: int) -> None:
            super().__init__()
            self.first, self.last, self.blocks = nn.Linear(28 * 28, 256), nn.Linear(256, 10), blocks

        def forward(self, images: Tensor) -> Tensor:
            hidden = self.first(images.flatten(1))
            return self.last(hidden.exp().log() if self.blocks > 1 else hidden)

    found = memory_slope(lambda _shape, _classes, blocks: Once(blocks), (1, 2, 60))
    assert found.worst_step() > 20 * found.retained.slope
    with pytest.raises(ConfigurationError, match="do not lie on a line over blocks"):
        _ = found.retained_per_block


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.inner = nn.Linear(width, width)

    def forward(self, x):
        return (self.inner(x) @ x.transpose(1, 2)).softmax(-1) @ x


def attention(length=4, batch_size=2, width=8):
    return Case(Attention(width), torch.zeros(batch_size, length, width), loss=lambda out: out.sum())


def test_memory_per_token_of_a_case():
    found = memory_slope(attention, vary={"length": (4, 8, 16, 32)}, batch_size=3, width=16)
    # Of each pair of tokens the softmax's result is kept: the inputs need no gradient.
    assert [nbytes - found.retained_bytes[0] for nbytes in found.retained_bytes] == [
        3 * 4 * (length**2 - 16) for length in (4, 8, 16, 32)
    ]
    assert (found.axis, found.positions) == ("length", (4, 8, 16, 32))
    assert found.worst_step() == 3 * 4 * (16 + 32)
    assert (found.shape, found.terms) == ("quadratic", {"per token": 0, "per pair of tokens": 12})
    with pytest.raises(ConfigurationError, match="no bytes per block"):
        _ = found.retained_per_block


def test_bytes_on_a_curve_have_no_one_slope():
    found = memory_slope(attention, vary={"length": (4, 8, 16, 32)}, batch_size=3)
    with pytest.raises(ConfigurationError, match="bytes per token are not constant") as error:
        _ = found.retained_per_unit
    assert "0 B per token and 12 B per pair of tokens" in error.value.what
    assert "terms" in error.value.hint
    first, second = str(found).splitlines()
    assert first == "a training step retains 0 B per token and 12 B per pair of tokens, by a fit over length 4, 8, 16, 32"
    assert second.startswith("more at the last: ")


def test_bytes_on_no_line_have_no_slope():
    found = memory_slope(attention, vary={"length": (16, 64, 128)})
    assert found.shape == "not a line"
    for read in (lambda: found.retained_per_unit, lambda: found.terms):
        with pytest.raises(
            ConfigurationError, match=r"do not lie on a line over length \(16: \d+, 64: \d+, 128: \d+ bytes\)"
        ) as error:
            read()
        assert "four positions" in error.value.hint
    assert found.worst_step() == 2 * 4 * 192
    assert " at length 16, 64, 128, which lie on no line\n" in str(found)


def test_a_declared_basis_needs_fewer_positions_and_must_fit():
    found = memory_slope(attention, vary={"length": (4, 8, 16)}, basis="1,n,n²", batch_size=3)
    assert found.terms == {"per token": 0, "per pair of tokens": 12}
    with pytest.raises(ConfigurationError, match=r"`basis` \{1, n\} is off by up to") as error:
        memory_slope(attention, vary={"length": (4, 8, 16, 32)}, basis="1,n")
    assert len(str(error.value).splitlines()) == 2
    with pytest.raises(ConfigurationError, match=r"\{1, n, n²\} needs more than 2 positions"):
        memory_slope(attention, vary={"length": (4, 8)}, basis="1,n,n²")
    with pytest.raises(ConfigurationError, match="is not one that costs can have"):
        memory_slope(attention, vary={"length": (4, 8)}, basis="n log n")


def test_memory_per_sample():
    assert memory_slope(attention, vary={"batch_size": (1, 2, 4)}).retained_per_unit == 4 * 4 * 4
    assert memory_slope(residual, vary={"batch_size": (1, 2, 4)}).axis == "batch_size"
    assert memory_slope(attention, vary={"batch_size": (2 * one for one in (1, 2))}).retained_per_unit == 4 * 4 * 4


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"vary": {"length": (4,)}}, "length (4,) make no slope"),
        ({"vary": {"length": (4, 8), "batch_size": (1, 2)}}, "names 2 axes"),
        ({"vary": {"depth": (4, 8)}}, "takes no depth"),
        ({"vary": {"length": (4, 8)}, "heads": 3}, "takes no heads"),
        ({"vary": "length=4-8"}, "`vary` is 'length=4-8'"),
        ({"vary": ["length"]}, "`vary` is ['length']"),
        ({"vary": {"length": ("short", "long")}}, "length ('short', 'long') are no positions"),
        ({"vary": {"length": 8}}, "length 8 are no positions"),
        ({"vary": {"length": "4-8"}}, "length '4-8' are no positions"),
    ],
)
def test_axes_that_make_no_slope_get_two_lines(given, words):
    with pytest.raises(ConfigurationError) as error:
        memory_slope(attention, **given)
    assert words in error.value.what
    assert error.value.hint


@pytest.mark.parametrize("given", [nn.Linear(2, 2), attention(), "networks:attention"], ids=lambda given: type(given).__name__)
def test_a_network_in_memory_is_no_function(given):
    with pytest.raises(ConfigurationError) as error:
        memory_slope(given, vary={"length": (4, 8)})
    assert error.value.what == f"`model_factory` is {type(given).__name__}, not a function that makes a network"
    assert "memory_baseline" in error.value.hint


def test_a_classifier_has_no_length():
    with pytest.raises(ConfigurationError, match="takes no length"):
        memory_slope(residual, vary={"length": (4, 8)})


@pytest.mark.slow
def test_the_marker_names_the_unit_of_the_axis(session_apart):
    result = session_apart(
        """
@pytest.mark.memory_slope(max_bytes_per_sample=1)
def test_grown(memory_slope):
    memory_slope(make, vary={"batch_size": (1, 2)})

@pytest.mark.memory_slope(max_bytes_per_block=10**9)
def test_wrong_unit(memory_slope):
    memory_slope(make, vary={"batch_size": (1, 2)})

@pytest.mark.memory_slope(max_bytes_per_sample=10**9)
def test_right(memory_slope):
    memory_slope(make, vary={"batch_size": (1, 2)})
"""
    )
    result.assert_outcomes(passed=1, failed=2)
    result.stdout.fnmatch_lines(["*a sample retains * bytes, and may 1 (bytes at each batch size: 1: *"])
    result.stdout.fnmatch_lines(
        ["*sets no limit per sample, but batch size was varied*", "*mark the test with max_bytes_per_sample=*"]
    )


ATTENTION = """
from capsbench import Case

class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(8, 8)
    def forward(self, x):
        return (self.inner(x) @ x.transpose(1, 2)).softmax(-1) @ x

def attention(length=4):
    return Case(Attention(), torch.zeros(3, length, 8), loss=lambda out: out.sum())

LENGTHS = {"length": (4, 8, 16, 32)}
"""


@pytest.mark.slow
def test_the_marker_limits_each_term_of_a_curve(session_apart):
    result = session_apart(
        ATTENTION
        + """
@pytest.mark.memory_slope(max_bytes_per_token=0, max_bytes_per_pair_of_tokens=12)
def test_right(memory_slope):
    memory_slope(attention, vary=LENGTHS)

@pytest.mark.memory_slope(max_bytes_per_token=0, max_bytes_per_pair_of_tokens=11)
def test_grown(memory_slope):
    memory_slope(attention, vary=LENGTHS)

@pytest.mark.memory_slope(max_bytes_per_token=10**9)
def test_no_one_slope(memory_slope):
    memory_slope(attention, vary=LENGTHS)

@pytest.mark.memory_slope(max_bytes_per_sample=1, max_bytes_per_pair_of_samples=0)
def test_a_line_may_have_a_limit_for_pairs(memory_slope):
    memory_slope(make, vary={"batch_size": (1, 2)}).retained_per_unit
"""
    )
    result.assert_outcomes(passed=1, failed=3)
    result.stdout.fnmatch_lines(["*a pair of tokens retains 12 bytes, and may 11 (bytes at each length: 4: *"])
    result.stdout.fnmatch_lines(
        [
            "*memory_slope(max_bytes_per_token=…) does not limit all of what is retained: "
            "0 B per token and 12 B per pair of tokens*",
            "*mark the test with max_bytes_per_token= and max_bytes_per_pair_of_tokens=*",
        ]
    )
    result.stdout.fnmatch_lines(["*a sample retains * bytes, and may 1 *"])


@pytest.mark.slow
def test_the_plugin_passes_and_fails(pytester, monkeypatch):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    pytester.makepyfile(
        NET
        + """
@pytest.mark.memory_slope(max_bytes_per_block=1024)
def test_right(memory_slope):
    assert memory_slope(make, depths=(1, 2)).retained_per_block == 1024

@pytest.mark.memory_slope(max_bytes_per_block=1023)
def test_wrong(memory_slope):
    memory_slope(make, depths=(1, 2))

def test_no_limit(memory_slope):
    memory_slope(make, depths=(1, 2))
"""
    )
    result = pytester.runpytest_subprocess("-p", "capsbench.pytest_plugin", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*a block retains 1024 bytes, and may 1023*", "*3.inner +512 B*"])


@pytest.mark.parametrize(
    "marker", ["", "5", "max_bytes_per_block=-1", "max_bytes_per_block='much'", "max=3", "max_bytes_per_block=True"]
)
def test_a_marker_that_says_nothing_fails(session, marker):
    result = session(f"""
@pytest.mark.memory_slope({marker})
def test_marked(memory_slope):
    memory_slope(make)
""")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*does not say how much a block may retain*", "*max_bytes_per_block=, a number of bytes*"])


@pytest.mark.parametrize(
    ("test", "said"),
    [("def test_marked(): pass", "*does not take the fixture*"), ("def test_marked(memory_slope): pass", "*measured nothing*")],
    ids=["no fixture", "no call"],
)
def test_a_marker_that_guards_nothing_fails(session, test, said):
    result = session(f"""
@pytest.mark.memory_slope(max_bytes_per_block=0)
{test}
""")
    assert result.ret != 0
    result.stdout.fnmatch_lines([said])


def leaving(*_):
    raise SystemExit(3)


class Endless(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(784, 10)

    def forward(self, images: Tensor) -> Tensor:
        scores = self.last(images.flatten(1))
        while scores.norm().item() < 1e3:
            scores = scores * 2
        return scores


def failing(*_):
    raise OSError("no such weights")


_COUNT = iter(range(1000))


def another_each_time(in_shape, num_classes, blocks):
    width = 8 + next(_COUNT)
    return nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.Sigmoid(), nn.Linear(width, num_classes))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factory", "depths", "said"),
    [
        (residual, (1,), "make no slope"),
        (residual, (-1, 2), "make no slope"),
        (failing, (1, 2), "no such weights"),
        (leaving, (1, 2), "SystemExit: 3"),
        (lambda *_: Endless(), (1, 2), "may never end"),
        (lambda *_: "net", (1, 2), "returned str"),
        (lambda *_: nn.Linear(28, 3), (1, 2), "returned shape"),
        (another_each_time, (1, 2), "when they were made again"),
    ],
    ids=["one depth", "negative", "raises", "leaves", "endless", "no module", "wrong scores", "another each time"],
)
def test_what_cannot_be_guarded_is_two_lines(factory, depths, said):
    with pytest.raises(ConfigurationError, match=said) as caught:
        memory_slope(factory, depths)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.slow
def test_a_constructor_that_needs_values_is_traced_all_the_same():
    torch.manual_seed(0)

    def make(in_shape, num_classes, blocks):
        width = int(torch.ones(3).sum().numpy()) * 4
        layers = [nn.Sequential(nn.Linear(width, width), nn.Sigmoid()) for _ in range(blocks)]
        return nn.Sequential(nn.Flatten(), nn.Linear(784, width), *layers, nn.Linear(width, num_classes))

    assert memory_slope(make, (1, 2), batch_size=4).retained_per_block == 4 * 12 * 4


@pytest.mark.slow
def test_big_networks_take_no_memory():
    def make(in_shape, num_classes, blocks):
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 400_000), *[nn.Sigmoid()] * blocks, nn.Linear(400_000, num_classes))

    assert memory_slope(make, (1, 2), batch_size=1000).retained_bytes[0] > 1000 * MIB


@pytest.mark.slow
def test_the_example_of_the_documents(pytester, monkeypatch):
    text = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "mark.memory_slope" in block]
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    for limit, outcome in ((512, {"passed": 1}), (511, {"failed": 1})):
        pytester.makepyfile(example.replace("max_bytes_per_block=512", f"max_bytes_per_block={limit}"))
        pytester.runpytest_inprocess("-p", "capsbench.pytest_plugin", "-p", "no:cacheprovider").assert_outcomes(**outcome)


LIVE = """
import torch
from torch import nn

def network(width):
    return nn.Sequential(nn.Linear(64, width), nn.Sigmoid(), nn.Linear(width, 64))

def test_a_step(memory_baseline):
    found = memory_baseline(network(WIDTH), torch.rand(32, 64), loss=torch.Tensor.sum)
    assert found.retained_bytes > 0

def test_another_file(memory_baseline):
    memory_baseline(network(8), torch.rand(32, 64), loss=torch.Tensor.sum, file="mine.json", name="eight", device="cpu")
"""


@pytest.mark.slow
def test_a_live_network_is_guarded_by_a_baseline(session_apart, pytester):
    update = "--update-memory-baselines"

    def outcomes(width: int, *options: str):
        return session_apart(LIVE.replace("WIDTH", str(width)), *options)

    result = outcomes(256)
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*memory_baseline.json does not exist", "write it with pytest --update-memory-baselines*"])
    result.stdout.no_fnmatch_line("*During handling of the above exception*")
    outcomes(256, update).assert_outcomes(passed=2)
    assert (pytester.path / "mine.json").exists()
    before = (pytester.path / "memory_baseline.json").read_text()
    outcomes(256).assert_outcomes(passed=2)
    outcomes(128).assert_outcomes(passed=2)
    result = outcomes(512)
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["*test_a_step*retained*32.00 KiB*64.00 KiB*+32.00 KiB*", "*a new baseline with pytest --update-memory-baselines*"]
    )
    assert (pytester.path / "memory_baseline.json").read_text() == before


@pytest.mark.slow
def test_wrong_use_of_the_baseline_is_two_lines(session_apart):
    result = session_apart(
        """
def test_inputs(memory_baseline):
    memory_baseline(nn.Linear(2, 2), torch.rand(2, 3), torch.Tensor.sum)

def test_line(memory_baseline):
    memory_baseline(nn.Linear(2, 2), torch.rand(2, 2), torch.Tensor.sum, file=FILE, name="another")
""".replace("FILE", repr(str(ROOT / "baselines" / "predicted.json")))
    )
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(["*model 'Linear'*", "*has no line 'another'*"])


def test_a_baseline_that_cannot_be_used_is_two_lines_with_the_way_to_write_it(tmp_path):
    found = capsbench.estimate(nn.Linear(64, 8), torch.rand(8, 64), Tensor.sum)
    path = tmp_path / "baseline.json"
    for content, what in ((None, "does not exist"), ("[]", "is not a baseline"), ("{", "is not JSON")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(StoreError, match=what) as refused:
            grown_memory(found, path, name="one")
        assert "pytest --update-memory-baselines" in refused.value.hint
        assert "capsbench check" not in refused.value.hint


def test_memory_of_a_network_without_blocks_names_none(tmp_path):
    def found(width: int):
        return capsbench.estimate(nn.Sequential(nn.Linear(64, width), nn.Sigmoid()), torch.rand(8, 64), Tensor.sum)

    path = tmp_path / "baseline.json"
    grown_memory(found(64), path, name="one", update=True)
    grown = grown_memory(found(4096), path, name="one")
    assert any(text.startswith("one (predicted): retained 2.00 KiB → 128.00 KiB, ") for text in grown), grown
    assert not any("blocks" in text or "cells" in text for text in grown)
    # The same in words on cells that are missing.
    (line,) = read_baseline(path).lines
    assert missing_text(line, Labels([line.options()])) == "one (predicted): not measured"


def test_a_baseline_keeps_other_lines(tmp_path):
    def found(width: int):
        return capsbench.estimate(nn.Linear(64, width), torch.rand(8, 64), Tensor.sum)

    path = tmp_path / "baseline.json"
    for name, width in (("one", 256), ("two", 512), ("one", 64)):
        assert grown_memory(found(width), path, name=name, update=True) == []
    assert [line.configuration.model for line in read_baseline(path).lines] == ["one", "two"]
    assert grown_memory(found(512), path, name="two") == []
    (*_, state, gradients, optimizer) = grown_memory(found(512), path, name="one")
    assert all("one" in text for text in (state, gradients, optimizer))
