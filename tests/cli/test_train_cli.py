"""`capsbench train` as a user meets it: killed, interrupted, out of disk, in two processes, and asked for nonsense."""

import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch
from rich.console import Console

from capsbench.cases.factories import BUILT_IN
from capsbench.catalog import MODELS, SPECS
from capsbench.cli.training import TrainingProgress, print_result
from capsbench.models import FRONTS, RULES
from capsbench.options import OPTIONS
from capsbench.reversible import INVERSES, STRATEGIES
from capsbench.routing import algorithms, kernels
from capsbench.training import TrainingSettings, load_checkpoint, load_network
from capsbench.training.checkpoint import save_checkpoint
from capsbench.training.log import TrainingStep, read_metrics
from capsbench.training.result import EpochFigures, Result
from capsbench.training.settings import Preprocessing, TrainingOptimizer
from capsbench.workload import PRECISIONS
from helpers import TESTS
from helpers.commands import assert_refused, process_environment, subcommands, together, wait_for
from helpers.comparing import assert_all_close, assert_close
from helpers.made import make_configuration

TINY = [
    "train", "--model", "helpers.tiny:make", "--batch-size", "64", "--learning-rate", "0.01", "--epochs", "3", "--device", "cpu",
]  # fmt: skip

KILLER = """
# The command's process kills itself when it asks for the fsync of this number: on the way to a checkpoint.
import os, signal
def fsync(descriptor, count=[{}]):
    count[0] -= 1
    if count[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
os.fsync = fsync
"""


def curve(folder):
    """Losses and more of every step, to the last bit."""
    return [{**line, "kind": None} for line in read_metrics(folder) if line["kind"] == "step"]


def weights(folder, name="best.pt"):
    return list(load_checkpoint(folder / name).weights.values())


@pytest.fixture(scope="module")
def uncut(tmp_path_factory, server):
    """A run that nothing disturbed, what it printed, and what it says of itself."""
    folder = tmp_path_factory.mktemp("uncut")
    ended = server(folder, *TINY, "--out", "run", "--json")
    return folder / "run", (ended.status, ended.stdout, ended.stderr)


# What a run says


def test_what_is_offered_is_what_there_is():
    choices = {name: tuple(option.choices) for name, option in OPTIONS.items()}
    assert list(MODELS) == list(BUILT_IN)
    assert set(choices["routing"]) == set(algorithms())
    assert set(choices["kernel"]) == {"auto", *(name for one in algorithms() for name in kernels(one))}
    assert choices["front"] == FRONTS
    assert set(choices["memory"]) == set(STRATEGIES)
    assert choices["inverse"] == INVERSES
    assert choices["rule"] == RULES
    assert tuple(PRECISIONS) == choices["precision"]
    offered = {one.name: getattr(one.type, "choices", None) for one in subcommands()["train"].params}
    assert tuple(offered["optimizer"]) == get_args(TrainingOptimizer)
    assert tuple(offered["preprocess"]) == get_args(Preprocessing)
    assert tuple(offered["dataset"]) == tuple(SPECS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("accuracies", "why"),
    [((0.5, 0.25), "the best of 2 on 7 held-out images (50.00%)"), ((0.0, 0.0), "(0.00%)"), ((None, None), "epoch 2, the last,")],
)
def test_why_these_weights(uncut, capsys, accuracies, why):
    result = Result.model_validate_json(uncut[1][1])
    epochs = [
        one.model_copy(update={"epoch": place, "validation_accuracy": accuracy})
        for place, (one, accuracy) in enumerate(zip(result.epochs, accuracies, strict=False), start=1)
    ]
    best = 2 if accuracies[0] is None else 1
    print_result(
        result.model_copy(update={"epochs": epochs, "best_epoch": best, "validation_images": 7}), Path("run"), as_json=False
    )
    assert why in capsys.readouterr().out


def test_json_is_the_result(uncut):
    folder, (status, stdout, stderr) = uncut
    assert status == 0, stderr
    result = Result.model_validate_json(stdout)
    assert result == Result.model_validate_json((folder / "result.json").read_bytes())
    assert 0.3 < result.test_accuracy <= 1
    assert [line for line in stderr.splitlines() if re.match(r"epoch \d/3: loss .* accuracy .* images/s.* left", line)]
    assert result.command.startswith("capsbench train --model helpers.tiny:make")


def test_words_are_the_result(command, monkeypatch, tmp_path):
    result = command(*TINY, "--epochs", 1)
    assert result.status == 0, result.stderr
    assert re.match(r"test accuracy \d+\.\d\d% of 256 images", result.stdout)
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.startswith("make-1-sample-")
    assert f"wrote runs/{folder.name}/result.json" in result.stdout


@pytest.mark.slow
def test_a_fresh_machine_without_network(tmp_path, server):
    """One epoch of the paper's network on the packaged sample."""
    ended = server(tmp_path, "train", "--model", "mocapsnet", "--epochs", 1, "--out", "run")
    assert ended.status == 0, ended.stderr
    assert "test accuracy" in ended.stdout
    network, settings = load_network(tmp_path / "run" / "best.pt")
    assert settings.network.model == "mocapsnet"
    assert sum(one.numel() for one in network.parameters()) == 9_272_336


@pytest.mark.parametrize("terminal", [True, False])
def test_progress(terminal):
    """A terminal shows the present step too; elsewhere there is a line per epoch."""
    text = io.StringIO()
    settings = TrainingSettings(network=make_configuration("helpers.tiny:make"), epochs=2)
    epoch = EpochFigures(
        epoch=1, train_loss=0.5, train_accuracy=0.25, validation_loss=0.5, validation_accuracy=0.375, learning_rate=1e-3,
        seconds=65, images_per_second=120, memory_bytes=3 * 2**20,
    )  # fmt: skip
    with TrainingProgress(Console(file=text, force_terminal=terminal, width=120), settings) as progress:
        for step in (1, 2):
            progress.stepped(TrainingStep(2, step, 10, 64, 0.125, 0.5, 1.0, 1e-3, 2**20))
        progress.finished(epoch)
        progress.notify("[bold]something")
    shown = text.getvalue()
    assert "epoch 1/2: loss 0.5, accuracy 25.00%, held-out 37.50%, 120 images/s, 3.00 MiB, 1 min 05 s" in shown
    assert "[bold]something" in shown
    assert ("about 1 min 05 s left" in shown) is not terminal
    assert bool(re.search(r"epoch 2/2, step 2/10, loss 0.125, accuracy 50.0%, \d+ images/s, 1.00 MiB, about", shown)) is terminal


# Nothing is lost


@pytest.mark.parametrize("at", [4, pytest.param(7, marks=pytest.mark.slow)])
def test_kill_9_again_and_again(at, uncut, tmp_path, server):
    """Each process dies at one of its writes; the last one finds everything done."""
    more, deaths = [], 0
    while True:
        arguments = [*TINY, "--out", "run", "--checkpoint-minutes", "1e-9" if at > 5 else "10", *more]
        ended = server(tmp_path, *arguments, setup=KILLER.format(at))
        if ended.status != -signal.SIGKILL:
            break
        assert not (tmp_path / "run" / "result.json").exists()
        deaths, at, more = deaths + 1, at + 12 * deaths, ["--resume"]
    assert ended.status == 0, ended.stderr
    assert deaths > 1
    assert curve(tmp_path / "run") == curve(uncut[0])
    assert_all_close(weights(tmp_path / "run"), weights(uncut[0]), relative=0)
    assert not list((tmp_path / "run").glob("*.new"))


def test_ctrl_c_says_how_to_go_on(uncut, tmp_path, server):
    process = server.start(tmp_path, *TINY, "--epochs", 2000, "--out", "run")
    try:
        wait_for(lambda: len(curve(tmp_path / "run")) > 40 or process.poll())
        process.send_signal(signal.SIGINT)
        wait_for(process.poll, 100)
    finally:
        ended = process.kill()
    stderr = ended.stderr
    assert (ended.status, ended.stdout) == (130, ""), stderr
    assert "Traceback" not in stderr
    (again,) = re.findall(r"resume with: (.*)$", stderr, re.MULTILINE)
    assert shlex.split(again) == ["capsbench", *map(str, [*TINY, "--epochs", 2000, "--out", "run", "--resume"])]
    # In an epoch, or while it was judged.
    (found,) = re.findall(r"interrupted (?:in epoch (\d+) after step (\d+)|after epoch (\d+));", stderr)
    last = curve(tmp_path / "run")[-1]
    assert [str(last["epoch"]), str(last["step"])] == (list(found[:2]) if found[0] else [found[2], "11"])
    assert curve(tmp_path / "run")[:33] == curve(uncut[0])


def test_a_disk_that_fills_during_a_checkpoint(uncut, tmp_path, command, server):
    one_thread = [*TINY, "--threads", "1"]
    assert command(*one_thread, "--epochs", 1, "--out", "run").status == 0
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    room = len(before) // 2
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))"
    ended = server(tmp_path, *one_thread, "--out", "run", "--resume", setup=limit)
    stderr = ended.stderr
    assert ended.status == 1, stderr
    assert "Traceback" not in stderr
    assert re.search(r"error: checkpoint run/checkpoint.pt cannot be written: .*; the one before it is kept\nmake room", stderr)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert command(*one_thread, "--out", "run", "--resume").status == 0
    assert curve(tmp_path / "run") == curve(uncut[0])


def test_a_run_without_a_name_is_found_again(command, tmp_path):
    assert_refused(command(*TINY, "--resume"), "--resume: no run below runs/", "--out")
    assert command(*TINY, "--epochs", 1).status == 0
    assert_refused(command(*TINY, "--epochs", 1, "--resume"), "unfinished")
    (folder,) = (tmp_path / "runs").iterdir()
    (folder / "result.json").unlink()
    assert_refused(command(*TINY, "--epochs", 1, "--seed", 1, "--resume"), "unfinished")
    assert command(*TINY, "--epochs", 1, "--resume").status == 0
    assert (folder / "result.json").exists()


@pytest.mark.slow
def test_two_runs_in_one_folder(tmp_path, command, server):
    process = server.start(tmp_path, *TINY, "--epochs", 2000, "--out", "run")
    try:
        wait_for(lambda: (tmp_path / "run" / "checkpoint.pt").exists() or process.poll())
        assert_refused(command(*TINY, "--epochs", 2000, "--out", "run", "--resume"), "--out run is in use")
    finally:
        process.kill()


# In two processes


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def torchrun(folder, words, arguments):
    """A process of torchrun, which starts those that train."""
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *words, "-m", "capsbench.cli", *map(str, arguments)],
        cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**process_environment(folder), "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def ended(processes):
    """The largest status of some processes, and their output."""
    outputs = [one.communicate(timeout=300) for one in processes]
    return max(abs(one.returncode) for one in processes), *map("".join, zip(*outputs, strict=True))


def under_torchrun(folder, arguments, server):
    """Status and output of two processes that one torchrun starts."""
    return ended([torchrun(folder, ["--nproc-per-node", "2", "--master-port", str(free_port())], arguments)])


def on_two_nodes(folder, arguments, server):
    """Status and output of two processes, each on a node of its own, whose torchruns meet by themselves."""
    words = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}"]
    return ended([torchrun(folder, [*words, "--rdzv-id", "training"], arguments) for _ in range(2)])


def as_forks(folder, arguments, server, count=2):
    """Status and output of forks with the variables that torchrun sets."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = map(str, range(count))
    ended = together([server.start(folder, *arguments, **shared, RANK=rank, LOCAL_RANK=rank) for rank in ranks])
    return max(abs(one.status) for one in ended), *("".join(getattr(one, name) for one in ended) for name in ("stdout", "stderr"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "more", "start"),
    [
        ("helpers.tiny:make_plain", (), under_torchrun),
        ("helpers.tiny:make_plain", (), on_two_nodes),
        ("helpers.tiny:make_plain", ("--accumulate", "3"), as_forks),
        ("helpers.tiny:make_capsules", (), as_forks),
        ("helpers.tiny:make_plain", ("--accumulate", "3", "--parallel", "fsdp"), as_forks),
        ("helpers.tiny:make_capsules", ("--parallel", "fsdp"), as_forks),
    ],
    ids=["whole", "two nodes", "in parts", "a reversible capsule network", "in parts, sharded", "a reversible one, sharded"],
)
def test_two_processes_train_as_one(model, more, start, tmp_path, command, server):
    """The last batch of an epoch has one image: one process has none."""
    arguments = ["train", "--model", model, "--batch-size", "46", "--learning-rate", "0.01", "--epochs", "3"]
    arguments += ["--device", "cpu", *more]
    alone = [word for word in arguments if word not in ("--parallel", "fsdp")]
    assert command(*alone, "--out", "one").status == 0
    status, stdout, stderr = start(tmp_path, [*arguments, "--out", "two"], server)
    assert status == 0, stderr
    assert stdout.count("test accuracy") == 1
    assert len(curve(tmp_path / "one")) == 3 * 16
    assert curve(tmp_path / "one")[15]["images"] == 1
    assert_same_run(tmp_path / "two", tmp_path / "one")
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two")]
    assert [one["processes"] for one in results] == [1, 2]
    assert results[0]["test_accuracy"] == results[1]["test_accuracy"]


def assert_same_run(folder, other):
    """Check that two runs have taken the same steps, up to the order of their sums."""
    curves = curve(folder), curve(other)
    assert [line["images"] for line in curves[0]] == [line["images"] for line in curves[1]]
    for name in ("loss", "gradient_norm"):
        assert_close(*(torch.tensor([line[name] for line in lines]) for lines in curves), relative=1e-4)
    assert_all_close(weights(folder), weights(other), relative=1e-4)


@pytest.mark.slow
def test_other_numbers_of_processes_resume_a_run(tmp_path, command, server):
    """One process begins, three shards go on, two copies go on, and one process ends it: as one process from the beginning."""
    arguments = [
        "train",
        "--model",
        "helpers.tiny:make_capsules",
        "--batch-size",
        "92",
        "--learning-rate",
        "0.01",
        "--device",
        "cpu",
    ]
    assert command(*arguments, "--epochs", 4, "--out", "one").status == 0
    assert command(*arguments, "--epochs", 1, "--out", "many").status == 0
    for epochs, count, parallel in ((2, 3, "fsdp"), (3, 2, "ddp")):
        more = ["--epochs", epochs, "--parallel", parallel, "--out", "many", "--resume"]
        status, _, stderr = as_forks(tmp_path, [*arguments, *more], server, count)
        assert status == 0, stderr
    assert command(*arguments, "--epochs", 4, "--out", "many", "--resume").status == 0
    assert_same_run(tmp_path / "many", tmp_path / "one")


def test_runs_that_are_no_longer_the_same_are_found(tmp_path):
    """`assert_same_run` refuses other losses, and other weights."""
    settings = TrainingSettings(network=make_configuration("mocapsnet", 1))
    for name, loss, weight in (("one", 1.0, 1.0), ("two", 1.001, 1.0), ("three", 1.0, 1.001)):
        (tmp_path / name).mkdir()
        line = {"kind": "step", "epoch": 1, "step": 1, "images": 4, "loss": loss, "gradient_norm": 1.0}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        save_checkpoint(tmp_path / name / "best.pt", settings, {"weight": torch.full((3,), weight)})
    assert_same_run(tmp_path / "one", tmp_path / "one")
    for other in ("two", "three"):
        with pytest.raises(AssertionError):
            assert_same_run(tmp_path / "one", tmp_path / other)


@pytest.mark.parametrize("network", ["make_explosive", "make_plain"])
def test_shards_say_where_a_loss_became_infinite(network, tmp_path, server):
    """Every process reports the layer, and none waits for another for ever."""
    rate = () if network == "make_explosive" else ("--learning-rate", "1e30")
    arguments = ["train", "--model", f"helpers.tiny:{network}", "--batch-size", "64", "--epochs", "1", "--device", "cpu", *rate]
    status, _, stderr = as_forks(tmp_path, [*arguments, "--parallel", "fsdp", "--out", "run"], server)
    assert status == 1
    assert "is not finite" in stderr
    assert "Traceback" not in stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((), "--parallel fsdp divides a network over several processes"),
        (("--diagnostics",), "--diagnostics is not possible with --parallel fsdp"),
        (("--precision", "fp16"), "--precision fp16 is not possible with --parallel fsdp"),
    ],
)
def test_shards_that_cannot_be(arguments, named, tmp_path, server):
    """One process that torchrun has started is a group, and one that nobody has started is none."""
    alone = {} if not arguments else {
        "WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    process = server.start(tmp_path, "train", "--parallel", "fsdp", "--device", "cpu", *arguments, **alone)
    assert_refused(*together([process]), named, "leave")


# Bad input


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--learning-rate", "0"], ["--learning-rate '0'", "above 0"]),
        (["--learning-rate", "nan"], ["--learning-rate 'nan'", "above 0"]),
        (["--learning-rate", "inf"], ["--learning-rate 'inf'"]),
        (["--learning-rate", "fast"], ["--learning-rate 'fast'"]),
        (["--decay", "1.1"], ["--decay '1.1'", "up to 1"]),
        (["--validation", "-1"], ["--validation '-1'"]),
        (["--validation", "5000"], ["--validation 5000"]),
        (["--scale", "0"], ["--scale '0'"]),
        (["--epochs", "0"], ["--epochs 0"]),
        (["--accumulate", "0"], ["--accumulate 0"]),
        (["--batch-size", "1000"], ["--batch-size 1000", "691"]),
        (["--seed", "-1"], ["--seed -1"]),
        (["--seed", "9999999999"], ["--seed 9999999999"]),
        (["--checkpoint-minutes", "0"], ["--checkpoint-minutes '0'", "minutes"]),
        (["--gamma", "high"], ["--gamma 'high'"]),
        (["--gamma", "2"], ["--gamma 2"]),
        (["--gamma", "nan"], ["--gamma nan"]),
        (["--gamma", "0.9,0.8,0.7", "--depth", "2"], ["--gamma 0.9,0.8,0.7", "2 blocks"]),
        (["--model", "resnet"], ["--model", "'resnet'", "mocapsnet"]),
        (["--model", "nowhere:make"], ["nowhere:make"]),
        (["--dataset", "imagenet"], ["--dataset", "imagenet", "sample", "cifar100"]),
        (["--kernel", "fast"], ["--kernel", "fast"]),
        (["--device", "cuda:99"], ["cuda:99"]),
        (["--device", "cpu:predicted"], ["cpu:predicted"]),
        (["--depth", "0"], ["--depth 0"]),
        (["--resume", "--out", "absent"], ["--resume", "absent"]),
        (["--memory", "reversible", "--model", "rescapsnet"], ["--memory reversible", "rescapsnet"]),
        (["--dataset", "cifar10", "--data-dir", "absent"], ["cifar10", "absent", "data_batch_1", "--download"]),
        (["--learn-gamma", "--model", "rescapsnet"], ["--learn-gamma", "rescapsnet"]),
        (["--gamma", "0.9", "--model", "capsnet"], ["--gamma", "capsnet", "momentum"]),
        (["--rule", "published", "--model", "capsnet"], ["--rule published", "MoCapsNet"]),
        (["--gamma", "0.9", "--model", "capsnet-2conv"], ["--gamma", "capsnet-2conv", "momentum"]),
        (["--depth", "1", "--model", "capsnet-2conv"], ["--depth", "capsnet-2conv", "no blocks"]),
        (["--decay", "0.9", "--optimizer", "ranger21"], ["--decay", "ranger21"]),
        (["--accumulate", "9", "--batch-size", "8"], ["--accumulate 9", "--batch-size 8"]),
        (["--inverse", "exact", "--memory", "stored"], ["--inverse exact", "nothing here is reversible"]),
        (["--kernel", "triton"], ["--kernel triton", "--device"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_what_makes_no_sense_is_refused(arguments, named, command, tmp_path):
    assert_refused(command("train", "--epochs", 1, "--device", "cpu", *arguments), *named)
    assert not (tmp_path / "runs").exists()


def test_a_loss_that_is_not_finite_ends_in_two_lines(command):
    result = command(*TINY, "--model", "helpers.tiny:make_explosive", "--out", "run")
    assert_refused(result, "epoch 1, step 1", "layer '2'", "--learning-rate", status=1)


def test_a_folder_that_cannot_be_written(command, tmp_path):
    (tmp_path / "file").touch()
    assert_refused(command(*TINY, "--out", "file/run"), "file/run", "cannot be written")
