"""Machines, stores and locks as others have them: edited sources, foreign cores, file systems without locks, other sweeps."""

import errno
import fcntl
import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import psutil
import pytest
import torch
from torch import nn

import capsbench
from capsbench import load, slopes
from capsbench.errors import CapsbenchError, StoreError
from capsbench.gate.compare import compare
from capsbench.gate.summarize import summarize
from capsbench.records import Plan
from capsbench.report import Report
from capsbench.sweep import local
from capsbench.sweep.asked import Sweep
from capsbench.sweep.local import alone_on
from capsbench.sweep.plan import expand
from capsbench.sweep.runner import remaining
from capsbench.sweep.session import begin, choose_report
from capsbench.words.labels import Names
from helpers.commands import wait_for
from helpers.fakes import fake_nvml
from helpers.made import make_configuration, make_record

# Edited sources.

NETWORK = """
from torch import nn
from {helper} import width

def make(in_shape, num_classes, blocks):
    body = [nn.Sequential(nn.Linear(width(), width()), nn.ReLU()) for _ in range(blocks)]
    return nn.Sequential(nn.AvgPool2d(7), nn.Flatten(), nn.Linear(16, width()), *body, nn.Linear(width(), num_classes))
"""
HELPER = "def width():\n    return {}\n"


@pytest.fixture
def network(tmp_path, own_model):
    """A network whose width is in a module next to it; its name, and a function that edits that module."""
    helper = f"own_helper_{tmp_path.name}".replace("-", "_")

    def edit(width):
        (tmp_path / f"{helper}.py").write_text(HELPER.format(width), encoding="utf-8")

    edit(8)
    return own_model(NETWORK.format(helper=helper)), edit


def cells_of(model, *depths, **fields):
    return expand(Sweep(models=(model,), depths=depths, device="cpu", batch_size=4, threads=1, **fields))


def keys(cells):
    return [cell.key() for cell in cells]


@pytest.mark.slow
def test_a_key_knows_the_modules_that_a_network_imports(network):
    name, edit = network
    before = keys(cells_of(name, 1, 2))
    assert keys(cells_of(name, 1, 2)) == before
    edit(16)
    after = keys(cells_of(name, 1, 2))
    assert not set(before) & set(after)
    edit(8)
    assert keys(cells_of(name, 1, 2)) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "first_lines",
    [
        "from parts import block",
        "import parts.block",
        "def late():\n    from parts.block import WIDTH",
        "import importlib\nfound = importlib.import_module('parts.' + 'block').Block",
        "import other",
    ],
    ids=["from a package", "a submodule", "inside a function", "by a name made at run time", "through another module"],
)
def test_modules_are_found_however_they_are_imported(tmp_path, own_model, first_lines, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "__init__.py").write_text("")
    (tmp_path / "other.py").write_text("from parts.block import WIDTH\n")
    block = tmp_path / "parts" / "block.py"
    block.write_text("WIDTH = 8\nclass Block: pass\n")
    name = own_model(f"{first_lines}\ndef make(in_shape, num_classes, blocks): pass\n")
    try:
        before = keys(cells_of(name, 1))
        block.write_text("WIDTH = 16\nclass Block: pass\n")
        assert keys(cells_of(name, 1)) != before
    finally:
        for module in [module for module in sys.modules if module.split(".")[0] in ("parts", "other")]:
            del sys.modules[module]


def test_a_relative_import_is_followed(tmp_path, monkeypatch):
    package = tmp_path / "relative_package"
    (package / "deep").mkdir(parents=True)
    for folder in (package, package / "deep"):
        (folder / "__init__.py").write_text("")
    (package / "sizes.py").write_text("WIDTH = 8\n")
    (package / "deep" / "net.py").write_text("from ..sizes import WIDTH\ndef make(in_shape, num_classes, blocks): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = keys(cells_of("relative_package.deep.net:make", 1))
    (package / "sizes.py").write_text("WIDTH = 16\n")
    assert keys(cells_of("relative_package.deep.net:make", 1)) != before


def test_modules_beside_a_network_that_it_does_not_import_change_nothing(tmp_path, network):
    name, _ = network
    before = keys(cells_of(name, 1))
    (tmp_path / "stranger.py").write_text("WIDTH = 1\n")
    assert keys(cells_of(name, 1)) == before


def test_the_package_s_own_modules_are_no_user_s_wherever_a_link_leads_to_them(tmp_path):
    (tmp_path / "link").symlink_to(Path(capsbench.__file__).parents[1])
    script = "from capsbench.cases.fingerprint import fingerprint\nprint(fingerprint('capsbench.system.locks'))"
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "link")}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True)
    assert done.stdout == "None\n"


def test_networks_of_the_package_have_the_keys_that_they_had():
    (cell,) = cells_of("rescapsnet", 1)
    assert cell.source is None
    assert "source" not in json.dumps(cell.model_dump(mode="json", exclude_none=True))


def record_of(cell, kib):
    """A record whose retained bytes are so many KiB per block."""
    it = cell.configuration
    record = make_record(it.model, it.blocks)
    memory = record.memory.model_copy(update={"retained_bytes": 1024 * kib * it.blocks})
    return record.model_copy(update={"cell": cell, "memory": memory})


@pytest.fixture
def edited(tmp_path, network):
    """A report that was begun with one source and gone on with after an edit: 4 KiB per block before it, 2 after it."""
    name, edit = network
    store = Report(tmp_path / "report")
    store.folder.mkdir()
    plan = begin(store, Plan(command="", cells=cells_of(name, 1, 2)), resume=False)
    for cell in plan.cells:
        store.append(record_of(cell, 4))
    edit(16)
    plan = begin(store, Plan(command="", cells=cells_of(name, 1, 2, 3)), resume=True)
    left = remaining(plan, store)
    for cell in left:
        store.append(record_of(cell, 2))
    return store, name, left


def test_an_edited_network_is_measured_again(edited):
    store, _, left = edited
    assert [cell.configuration.blocks for cell in left] == [1, 2, 3]
    assert len(Report(store.folder).records) == 5, "what was measured before stays"
    assert [cell.configuration.blocks for cell in Report(store.folder).plan.cells] == [1, 2, 3]


def test_no_line_mixes_two_sources(edited):
    store, _, _ = edited
    table = slopes(load(store.folder))
    found = table[table["metric"] == "retained"].sort_values("points")
    assert (found["slope"] / 1024).tolist() == pytest.approx([4, 2])
    assert found["points"].tolist() == [2, 3]
    lines = found.to_dict("records")
    names = Names(lines)
    assert len({names.of(line) for line in lines}) == 2


def test_a_gate_looks_at_the_latest_source_alone(edited):
    store, _, _ = edited
    summary, notes = summarize([Report(store.folder)])
    (line,) = summary.lines
    assert [cell.bytes["retained"] for cell in line.cells] == [2048, 4096, 6144]
    assert len(notes) == 1
    assert "2 records" in notes[0]
    # And a network that was edited is still held against what it was.
    before, _ = summarize([Report.of(Report(store.folder).records[:2], "a")])
    compared = compare(before, summary)
    slope = next(it for it in compared.comparisons if it.scope == "slope" and it.quantity == "retained")
    assert (slope.before, slope.after, slope.verdict) == (4096, 2048, "better")


def test_an_older_report_never_lends_cells_of_another_source(edited, tmp_path):
    store, _, _ = edited
    old = [record for record in Report(store.folder).records[:2] if record.cell.configuration.blocks == 1]
    new = [record for record in Report(store.folder).records[2:] if record.cell.configuration.blocks > 1]
    new = [record.model_copy(update={"started_at": "2031-01-01T00:00:00+00:00"}) for record in new]
    summary, notes = summarize([Report.of(old, "old"), Report.of(new, "new")])
    (line,) = summary.lines
    assert [cell.position for cell in line.cells] == [2, 3]
    assert any("report old" in note for note in notes)


def test_a_report_is_found_again_after_an_edit(tmp_path, network, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name, edit = network
    store = Report(Path("reports/one"))
    store.folder.mkdir(parents=True)
    begin(store, Plan(command="", cells=cells_of(name, 1)), resume=False)
    edit(16)
    found = choose_report(Plan(command="", cells=cells_of(name, 1)), None, resume=True, now=None)
    assert found.folder.resolve() == store.folder.resolve()


def test_records_of_a_user_s_network_without_a_source_are_read_and_not_taken(tmp_path, network):
    name, _ = network
    store = Report(tmp_path / "report")
    store.folder.mkdir()
    (cell,) = cells_of(name, 1)
    old = record_of(cell.model_copy(update={"source": None}), 4)
    data = json.loads(old.model_dump_json()) | {"schema_version": 3}
    del data["cell"]["source"]
    store.path.write_text(json.dumps(data) + "\n")
    assert len(Report(store.folder).records) == 1
    assert remaining(Plan(command="", cells=[cell]), store) == [cell]


@pytest.mark.slow
def test_an_edit_during_a_sweep_is_no_record_of_the_first_source(network, monkeypatch):
    name, edit = network
    (cell,) = cells_of(name, 1)
    launch = local.local_launcher(Plan(command="", cells=[cell]), "abcd")
    measured = []

    def measure(cell, plan, **options):
        measured.append(cell)
        edit(16)
        return record_of(cell, 4)

    monkeypatch.setattr(local, "measure_cell", measure)
    for _ in range(2):
        record = launch(cell)
        assert (record.status, record.memory) == ("error", None)
        assert "changed" in record.message
    assert len(measured) == 1


@pytest.mark.slow
def test_resuming_after_an_edit_from_the_command_line(capsbench, network):
    name, edit = network
    sweep = ["run", "--models", name, "--device", "cpu:predicted", "--batch-size", "4", "--out", "report"]
    assert capsbench(*sweep, "--depth", "1,2").status == 0
    edit(32)
    resumed = capsbench(*sweep, "--depth", "1,2,3", "--resume")
    assert resumed.status == 0
    assert "the source of" in resumed.stderr
    assert "3 cells to predict" in resumed.stderr
    table = slopes(load("report"))
    found = table[table["metric"] == "retained"].sort_values("points")
    # Each block of width 8, and then of 32, keeps what its ReLU gives for 4 images; what is no line would be a mixture.
    assert found["slope"].tolist() == [4 * 8 * 4, 4 * 32 * 4]
    assert found["r2"].tolist() == pytest.approx([1, 1])


# Locks: file systems that have none, holders that are dead, and who holds one.


@pytest.fixture
def without_flock(monkeypatch):
    """A file system whose locks fail as this error number says, and leases that are short."""

    def break_it(number):
        def flock(descriptor, operation):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(fcntl, "flock", flock)
        monkeypatch.setattr("capsbench.system.locks.LEASE_SECONDS", 1.0)

    return break_it


NO_LOCKS = sorted({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS})


@pytest.mark.slow
@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_folder_is_held_without_the_system_s_locks(tmp_path, without_flock, number):
    without_flock(number)
    refused = pytest.raises(StoreError, match=rf"in use.*pid {os.getpid()} on host")
    with Report(tmp_path).lock(), refused, Report(tmp_path).lock():
        pytest.fail("two hold one folder")
    with Report(tmp_path).lock():
        pass


@pytest.mark.slow
@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
@pytest.mark.parametrize(
    ("name", "holder"),
    [
        (".lock", "999999\nelsewhere\n"),
        (".lock.lease", "filelock/2\npid=999999\nhost=elsewhere\nmode=lease\ntoken=abc\nduration=1.0\n"),
    ],
    ids=["as earlier versions left it", "a lease"],
)
def test_a_holder_that_died_on_another_host_blocks_nobody_for_long(tmp_path, without_flock, number, name, holder):
    without_flock(number)
    (tmp_path / name).write_text(holder)
    began = time.monotonic()
    with Report(tmp_path).lock():
        pass
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.parametrize("number", NO_LOCKS, ids=errno.errorcode.get)
def test_a_device_is_held_without_the_system_s_locks(tmp_path, monkeypatch, without_flock, number):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    without_flock(number)
    told = []
    refused = pytest.raises(CapsbenchError, match=f"cpu is still in use.*pid {os.getpid()}")
    with alone_on("cpu", told.append), refused, alone_on("cpu", told.append, patience=0.1):
        pytest.fail("two hold one device")
    assert len(told) == 1
    assert f"pid {os.getpid()}" in told[0]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.EMFILE], ids=errno.errorcode.get)
def test_a_device_whose_lock_cannot_be_had_is_measured_all_the_same(tmp_path, monkeypatch, number):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    real = os.open

    def refuse(path, *arguments, **options):
        if str(path).endswith(".lock"):
            raise OSError(number, os.strerror(number), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    told = []
    with alone_on("cpu", told.append):
        pass
    assert len(told) == 1
    assert os.strerror(number) in told[0]


def test_a_device_s_lock_that_is_a_folder_is_no_traceback(tmp_path, monkeypatch):
    (tmp_path / f"capsbench-{os.getuid()}-cpu.lock").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    told = []
    with alone_on("cpu", told.append):
        pass
    assert len(told) == 1


HOLD = """
import sys, time
from pathlib import Path
from capsbench.report import Report
from capsbench.sweep.local import alone_on
folder = Path(sys.argv[1])
with Report(folder).lock(), alone_on("cpu", print, folder=folder):
    Path(sys.argv[2]).touch()
    time.sleep(600)
"""


@pytest.fixture
def stranger(server, tmp_path):
    """Start another sweep that holds a folder and the CPU, whose lock is in another folder: `with stranger(folder, scratch)`."""

    @contextmanager
    def start(folder, scratch):
        script = tmp_path / "hold.py"
        script.write_text(HOLD)
        holder = server.start(tmp_path, script, folder, tmp_path / "held", program="python", TMPDIR=str(scratch))
        try:
            wait_for(lambda: (tmp_path / "held").exists() or holder.poll())
            assert holder.poll() is None
            yield holder
        finally:
            holder.kill()

    return start


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    folder = tmp_path / "scratch"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


@pytest.mark.slow
def test_who_holds_a_folder_is_named(tmp_path, scratch, stranger):
    theirs = tmp_path / "theirs"
    with stranger(theirs, scratch) as holder, pytest.raises(StoreError) as raised, Report(theirs).lock():
        pytest.fail("two hold one folder")
    assert f"pid {holder.pid} on host {socket.gethostname()}" in raised.value.what


@pytest.mark.slow
def test_who_holds_a_device_is_named_and_waited_for_no_longer_than_is_allowed(tmp_path, scratch, stranger):
    with stranger(tmp_path / "theirs", scratch) as holder:
        told = []
        with pytest.raises(CapsbenchError) as raised, alone_on("cpu", told.append, patience=0.3):
            pytest.fail("two hold one device")
        for words in (*told, raised.value.what):
            assert f"pid {holder.pid} on host {socket.gethostname()}" in words
            assert str(tmp_path / "theirs") in words
        assert raised.value.exit_status == 1
        assert "`resume`" in raised.value.hint
        # A holder that is killed holds nothing.
        holder.kill()
        with alone_on("cpu", told.append, patience=60):
            pass


class Turns:
    """A source of turns that are given when `free` is set, with the times at which they were asked for."""

    def __init__(self):
        self.free = threading.Event()
        self.asked = threading.Event()
        self.held = False

    @contextmanager
    def __call__(self):
        self.asked.set()
        assert self.free.wait(60)
        self.held = True
        yield
        self.held = False


SLOW = """
from torch import nn

def make(in_shape, num_classes, blocks):
    open({built!r}, "w").close()
    return nn.Sequential(nn.Flatten(), nn.Linear(784, num_classes))
"""


@pytest.mark.slow
def test_a_workload_is_built_before_its_turn_and_waiting_is_no_work(tmp_path, own_model):
    from capsbench.measure.cell import measure_cell

    built = tmp_path / "built"
    (cell,) = cells_of(own_model(SLOW.format(built=str(built))), 1)
    turns = Turns()
    found = []
    plan = Plan(command="", cells=[cell], passes=["time"], budget_seconds=0)
    began = time.monotonic()
    thread = threading.Thread(target=lambda: found.append(measure_cell(cell, plan, environment="abcd", turn=turns)))
    thread.start()
    assert turns.asked.wait(60)
    assert built.exists(), "a turn was taken before the workload was built"
    waited_from = time.monotonic()
    time.sleep(0.5)
    assert not found
    waited = time.monotonic() - waited_from
    turns.free.set()
    thread.join()
    (record,) = found
    assert record.status == "ok"
    assert record.time is not None
    assert record.duration_seconds <= time.monotonic() - began - waited
    assert not turns.held


@pytest.mark.slow
def test_waiting_counts_towards_no_timeout(own_model):
    from capsbench.measure.cell import run_pass
    from capsbench.measure.messages import Request

    (cell,) = cells_of(own_model(SLOW.format(built=os.devnull)), 1)
    request = Request(configuration=cell.configuration, what="time", samples=5, budget_seconds=0)
    turns = Turns()
    found = []
    thread = threading.Thread(target=lambda: found.append(run_pass(request, 60, turns)))
    thread.start()
    assert turns.asked.wait(60)
    with pytest.MonkeyPatch.context() as patch:
        real = time.monotonic
        patch.setattr(time, "monotonic", lambda: real() + 3600)  # an hour later
        turns.free.set()
        thread.join()
    assert found[0].status == "ok"


@pytest.mark.slow
def test_bytes_on_a_cpu_take_no_turn(own_model):
    from capsbench.measure.cell import measure_cell

    def never():
        raise AssertionError("a turn was asked for")

    (cell,) = cells_of(own_model(SLOW.format(built=os.devnull)), 1)
    record = measure_cell(cell, Plan(command="", cells=[cell], passes=["memory"]), environment="abcd", turn=never)
    assert record.status == "ok"
    assert record.memory is not None


@pytest.mark.parametrize("what", ["time", "memory"])
def test_a_cuda_device_is_held_from_the_beginning(monkeypatch, what):
    from capsbench.measure import cell as module
    from capsbench.measure.messages import Request

    turns = Turns()
    turns.free.set()
    held = []
    monkeypatch.setattr(subprocess, "Popen", lambda *arguments, **options: held.append(turns.held) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        module.run_pass(Request(configuration=make_configuration(device="cuda:0"), what=what, samples=5), 10, turns)
    assert held == [True]


@pytest.mark.slow
def test_a_workload_that_fails_takes_no_turn(own_model):
    from capsbench.measure.cell import run_pass
    from capsbench.measure.messages import Request

    (cell,) = cells_of(own_model("def make(in_shape, num_classes, blocks): raise ValueError('never')"), 1)
    turns = Turns()
    reply = run_pass(Request(configuration=cell.configuration, what="time", samples=5), 300, turns)
    assert (reply.status, reply.waited_seconds) == ("error", 0)
    assert "never" in reply.message
    assert not turns.asked.is_set()


@pytest.mark.slow
def test_a_sweep_says_whom_it_waits_for_and_gives_up_when_it_is_told_to(capsbench, tmp_path, own_model, stranger):
    name = own_model(SLOW.format(built=os.devnull))
    (tmp_path / "scratch").mkdir()
    with stranger(tmp_path / "theirs", tmp_path / "scratch") as holder:
        found = capsbench(
            "run", "--models", name, "--depth", "1", "--batch-size", "4", "--device", "cpu", "--out", "mine", "--wait", "1"
        )
    assert found.status == 1
    assert "Traceback" not in found.stderr
    assert found.stderr.count(f"pid {holder.pid} on host") == 2
    assert "theirs since" in found.stderr


# Foreign cores.

CORES = 64


class CoresAccount:
    """Stands in for what the system says of each core of 64, in seconds; `allowed` are this process's."""

    def __init__(self, monkeypatch, allowed, *, quota=None, cores=CORES):
        from capsbench.system import cores as module

        self.now, self.own, self.container = 100.0, 50.0, 70.0
        self.cores = [dict.fromkeys(("user", "system", "idle", "iowait", "steal", "guest"), 10.0) for _ in range(cores)]
        monkeypatch.setattr("capsbench.measure.watch.time.monotonic", lambda: self.now)
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(allowed))
        monkeypatch.setattr(module, "_ONLINE", Path("/nowhere"))
        found = None if quota is None else SimpleNamespace(cores=quota, used_seconds=lambda: self.container)
        monkeypatch.setattr(module, "quota", lambda: found)
        monkeypatch.setattr(psutil, "cpu_times", self._times)
        monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(cpu_times=lambda: (self.own, 0.0, 0.0, 0.0, 9.0)))
        monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [])

    def _times(self, percpu):
        assert percpu
        return [SimpleNamespace(_asdict=partial(dict, core)) for core in self.cores]


def others_of(account, *, taken, own, seconds=10.0, container=0.0):
    """The share of others after so many seconds; `taken` are seconds by core, this process's among them."""
    from capsbench.measure.watch import Watch

    watch = Watch(torch.device("cpu"))
    account.now += seconds
    account.own += own
    account.container += container
    for index, busy in taken.items():
        account.cores[index]["user"] += busy
        account.cores[index]["idle"] += seconds - busy
    return watch.seen().others


@pytest.mark.parametrize(
    ("allowed", "taken", "own", "others"),
    [
        ({5}, {5: 10.0}, 5.0, 0.5),
        ({5}, {5: 10.0, 6: 10.0, 7: 10.0}, 10.0, 0.0),
        ({5, 6}, {5: 10.0, 6: 5.0, 40: 10.0}, 10.0, 0.25),
        (set(range(CORES)), {5: 10.0, 6: 10.0}, 10.0, 1 / CORES),
    ],
    ids=["an intruder on the only core", "busy neighbours", "half a core of two", "all cores"],
)
def test_only_the_cores_that_a_process_may_use_count(monkeypatch, allowed, taken, own, others):
    account = CoresAccount(monkeypatch, allowed)
    assert others_of(account, taken=taken, own=own) == pytest.approx(others)


@pytest.mark.parametrize(
    ("busy", "own", "container", "others"),
    [(32, 20.0, 20.0, 0.0), (32, 10.0, 20.0, 0.5), (64, 20.0, 20.0, 0.0), (64, 10.0, 10.0, 0.5)],
    ids=["half the host is busy", "another process in the container", "all that is left is its own", "the host is full"],
)
def test_under_a_quota_others_count_where_they_take_of_it(monkeypatch, busy, own, container, others):
    account = CoresAccount(monkeypatch, set(range(CORES)), quota=2.0)
    taken = dict.fromkeys(range(busy), 10.0)
    assert others_of(account, taken=taken, own=own, container=container) == pytest.approx(others)


def test_cores_that_are_numbered_anew_in_a_container_all_count(monkeypatch):
    account = CoresAccount(monkeypatch, {40, 41}, cores=2)
    assert others_of(account, taken={0: 10.0, 1: 5.0}, own=10.0) == pytest.approx(0.25)


def test_numbers_of_cores_are_looked_up_where_some_are_off_line(monkeypatch, tmp_path):
    from capsbench.system import cores as module

    account = CoresAccount(monkeypatch, {9}, cores=4)
    (tmp_path / "online").write_text("0-1,8-9\n")
    monkeypatch.setattr(module, "_ONLINE", tmp_path / "online")
    assert others_of(account, taken={0: 10.0, 1: 10.0, 2: 10.0, 3: 5.0}, own=5.0) == pytest.approx(0)


WATCH = """
import os, time, torch
from capsbench.measure.watch import Watch
os.sched_setaffinity(0, {{{core}}})
watch = Watch(torch.device("cpu"))
end = time.monotonic() + 1.5
while time.monotonic() < end: pass
print(watch.seen().others)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_spinning_process_on_one_s_own_core_is_load_whatever_else_is_idle():
    first = min(os.sched_getaffinity(0))
    spinner = subprocess.Popen([sys.executable, "-c", f"import os; os.sched_setaffinity(0, {{{first}}})\nwhile True: pass"])
    try:
        done = subprocess.run(
            [sys.executable, "-c", WATCH.format(core=first)], capture_output=True, text=True, check=True, timeout=100
        )
    finally:
        spinner.kill()
        spinner.wait()
    assert float(done.stdout) > 0.2


def test_odd_clocks_end_no_measurement(monkeypatch):
    from capsbench.measure.watch import Watch

    def refuse(percpu):
        raise FileNotFoundError("/sys/devices/system/cpu")

    def refuse_all(*arguments, **options):
        raise RuntimeError("an odd machine")

    watch = Watch(torch.device("cpu"))
    monkeypatch.setattr(psutil, "cpu_freq", refuse)
    watch.look()
    assert list(watch.seen().clocks) == []
    monkeypatch.setattr(psutil, "cpu_times", refuse_all)
    for one in (watch, Watch(torch.device("cpu"))):
        one.look()
        assert (list(one.seen().clocks), one.seen().others) == ([], None)


def groups_of(tmp_path, own, files):
    (tmp_path / "own").write_text(own)
    for name, text in files.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / "groups", tmp_path / "own"


@pytest.mark.parametrize(
    ("own", "files", "cores", "used"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n", "cpu.stat": "usage_usec 2500000\nuser_usec 1\n"}, 1.5, 2.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None, None),
        ("0::/\n", {}, None, None),
        ("0::/a/b\n", {"a/cpu.max": "200000 100000", "a/b/cpu.max": "max 100000", "a/cpu.stat": "usage_usec 7"}, 2.0, 7e-6),
        (
            "4:cpu,cpuacct:/docker/1\n0::/\n",
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"}
            | {"cpu,cpuacct/cpuacct.usage": "3000000000\n"},
            0.5,
            3.0,
        ),
        (
            "3:cpu:/x\n2:cpuset:/x\n",
            {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000", "cpuset/x/cpu.max": "1 1"},
            None,
            None,
        ),
        ("nonsense\n", {"cpu.max": "0 0"}, None, None),
    ],
    ids=["version 2", "no limit", "nothing", "the group outside", "version 1 in a container", "version 1 without", "nonsense"],
)
def test_a_container_s_quota_is_known(tmp_path, own, files, cores, used):
    from capsbench.system.cores import quota

    found = quota(*groups_of(tmp_path, own, files))
    assert (found.cores if found else None) == cores
    assert (found.used_seconds() if found else None) == pytest.approx(used)


# What else figures depend on.

SETTINGS = {
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "PYTORCH_ALLOC_CONF": "backend:cudaMallocAsync",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
    "OMP_NUM_THREADS": "3",
    "MKL_NUM_THREADS": "3",
    "MKL_DYNAMIC": "FALSE",
    "OMP_WAIT_POLICY": "passive",
    "KMP_BLOCKTIME": "0",
    "GOMP_CPU_AFFINITY": "0-3",
    "NVIDIA_TF32_OVERRIDE": "0",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1",
    "TORCH_BLAS_PREFER_CUBLASLT": "1",
    "TORCH_CUDNN_V8_API_DISABLED": "1",
    "TORCHINDUCTOR_MAX_AUTOTUNE": "1",
    "CUDA_LAUNCH_BLOCKING": "1",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MALLOC_ARENA_MAX": "1",
    "LD_PRELOAD": "/home/somebody/lib/libjemalloc.so.2",
}


@pytest.fixture
def described(monkeypatch):
    """The description of this machine with these variables set, and none of the others."""
    from capsbench.measure.environment import describe

    def describe_with(**variables):
        for name in SETTINGS:
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        return describe()

    return describe_with


def difference(before, after, **fields):
    """The reason that peaks of two runs on these machines cannot be compared; empty if they can."""
    records = [make_record(blocks=blocks, **fields) for blocks in (1, 2, 3)]
    sides = [summarize([Report.of(records, "made", environments={"abcd": machine})])[0] for machine in (before, after)]
    found = [it for it in compare(*sides).comparisons if it.quantity == "peak" and it.verdict == "not comparable"]
    return found[0].why if found else ""


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_figures_depend_on_is_a_difference_of_machines(described, name):
    from capsbench.measure.environment import key_of

    plain, other = described(), described(**{name: SETTINGS[name]})
    assert key_of(plain) != key_of(other)
    assert "somebody" not in json.dumps(other)
    value = SETTINGS[name].rpartition("/")[2]
    assert difference(plain, other, device="cuda:0") == f"{name} {value}, not set before"
    assert difference(other, plain, device="cuda:0") == f"{name} not set, {value} before"
    assert difference(other, other, device="cuda:0") == ""


def test_variables_that_figures_do_not_depend_on_are_none_of_the_machine(described, tmp_path, monkeypatch):
    from capsbench.measure.environment import key_of

    plain = described()
    inductor = ("TORCHINDUCTOR_CACHE_DIR", "TORCHINDUCTOR_COMPILE_THREADS")
    for name in (*inductor, "TORCH_HOME", "TORCH_LOGS", "TORCH_EXTENSIONS_DIR", "HOME", "CAPSBENCH_DATA"):
        monkeypatch.setenv(name, str(tmp_path))
    assert key_of(described()) == key_of(plain)
    assert key_of(described(OMP_NUM_THREADS="")) == key_of(plain)


def test_a_container_s_quota_is_a_difference_of_machines(described, monkeypatch):
    plain = described()
    monkeypatch.setattr("capsbench.measure.environment.quota", lambda: SimpleNamespace(cores=1.5))
    limited = described()
    assert limited["cpu"]["quota_cores"] == 1.5
    assert difference(plain, limited) == "CPU quota 1.5, not set before"


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity here")
def test_an_affinity_is_a_difference_of_machines(described, monkeypatch):
    plain = described()
    plain["cpu"]["allowed_cores"] = plain["cpu"]["logical_cores"]
    limited = {**plain, "cpu": {**plain["cpu"], "allowed_cores": 1}}
    assert difference(plain, limited) == "allowed cores 1, not set before"


def test_environments_of_earlier_versions_are_compared_as_before(described):
    plain = described()
    plain["cpu"]["allowed_cores"] = plain["cpu"]["logical_cores"]
    older = {name: value for name, value in plain.items() if name not in ("settings", "source")}
    older["cpu"] = {name: value for name, value in plain["cpu"].items() if name not in ("allowed_cores", "quota_cores")}
    assert difference(older, plain) == ""
    assert difference(plain, older) == ""


def test_an_edit_of_the_package_is_another_environment(described, monkeypatch):
    from capsbench.measure.environment import key_of

    plain = described()
    monkeypatch.setattr("capsbench.measure.environment.package_digest", lambda: "0" * 12)
    edited = described()
    assert key_of(plain) != key_of(edited)
    assert difference(plain, edited) == ""


# Who else is on a CUDA device.


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"init_fails": True}, "NVML does not answer"),
        ({"asking_fails": True}, "NVML does not answer"),
        ({"processes": []}, "not even this one"),
    ],
    ids=["no driver", "not permitted", "it sees nobody"],
)
@pytest.mark.parametrize("strict", [False, True], ids=["", "strict"])
def test_where_the_driver_does_not_answer_it_is_said_that_others_cannot_be_known(monkeypatch, options, why, strict):
    from capsbench.measure import worker
    from capsbench.measure.messages import Reply, Request

    module, state = fake_nvml(**options)
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(worker, "prepare_process", lambda configuration: None)
    monkeypatch.setattr(worker, "memory_pass", lambda *_, **__: Reply(status="ok"))
    request = Request(configuration=make_configuration(device="cuda:0", threads=None), what="memory", samples=5, strict=strict)
    reply = worker.run_request(request)
    (note,) = reply.notes
    assert "cannot be known" in note
    assert why in note
    assert reply.status == ("error" if strict else "ok")
    if strict:
        assert "cannot be known" in reply.message
        assert "without `strict`" in reply.message
    assert state.open == 0


def test_a_slice_of_a_gpu_is_asked_for_by_its_own_name(monkeypatch):
    from capsbench.measure.processes import other_processes

    module, _ = fake_nvml()
    asked = []

    def handle(uuid):
        asked.append(uuid)
        if not uuid.startswith("MIG-"):
            raise module.NVMLError
        return "slice"

    module.nvmlDeviceGetHandleByUUID = handle
    module.nvmlDeviceGetComputeRunningProcesses = lambda handle: [
        SimpleNamespace(pid=pid, usedGpuMemory=2**20) for pid in (7, os.getpid())
    ]
    monkeypatch.setitem(sys.modules, "pynvml", module)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    assert other_processes(torch.device("cuda:0")) == ["1 other process computes on cuda:0: pid 7 (1 MiB)"]
    assert asked == ["GPU-1234", "MIG-1234"]


# What offload moves.


class Moved(torch.autograd.graph.saved_tensors_hooks):
    """Stands in for `save_on_cpu`: what is packed leaves for another memory."""

    storages: ClassVar[list[int]] = []

    def __init__(self, pin_memory=False, device_type="cuda"):
        super().__init__(self._away, lambda packed: packed[0].clone())

    def _away(self, tensor):
        Moved.storages.append(tensor.untyped_storage().data_ptr())
        return (tensor.detach().clone(),)


@pytest.fixture
def moved(monkeypatch):
    monkeypatch.setattr(Moved, "storages", [])
    monkeypatch.setattr(torch.autograd.graph, "save_on_cpu", Moved)
    return Moved.storages


class Everything(nn.Module):
    """Saves its weight, views of it, a buffer and a part of it, and activations."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))
        self.frozen = nn.Parameter(torch.randn(8, 8), requires_grad=False)
        self.register_buffer("scales", torch.randn(2, 8))

    def forward(self, x):
        y = torch.sin(x @ self.weight.t() @ self.weight[:, :8] @ self.frozen.mT)
        return y * self.scales[1] + nn.functional.linear(y, self.weight.view(8, 8))


def gradients_of(memory, functions, x):
    from capsbench.reversible import MomentumStack

    stack = MomentumStack(functions, memory=memory)
    stack.zero_grad()
    stack(x).square().sum().backward()
    return [parameter.grad.clone() for parameter in stack.parameters() if parameter.requires_grad]


def test_parameters_and_buffers_stay_where_they_are(moved):
    functions, x = [Everything() for _ in range(3)], torch.randn(4, 8, requires_grad=True)
    alive = {tensor.data_ptr() for function in functions for tensor in (*function.parameters(), *function.buffers())}
    wanted = gradients_of("stored", functions, x)
    found = gradients_of("offload", functions, x)
    assert moved, "activations are moved"
    assert not alive & set(moved)
    assert all(torch.equal(*pair) for pair in zip(wanted, found, strict=True))


@pytest.mark.parametrize("routing", ["rba", "em"])
def test_a_network_s_weights_stay_where_they_are(moved, routing):
    from capsbench import CapsuleLoss, ResCapsNet

    net = ResCapsNet((1, 28, 28), 10, 2, memory="offload", channels=8, capsules=4, routing=routing)
    images, labels = torch.rand(2, 1, 28, 28), torch.tensor([1, 2])
    CapsuleLoss()(net(images, labels), labels, images).backward()
    assert moved
    assert not {parameter.data_ptr() for parameter in net.parameters()} & set(moved)


@pytest.mark.parametrize("elsewhere", [True, False], ids=["a device", "a CPU"])
def test_a_weight_that_is_changed_before_backward_is_an_error_as_without_offload(request, elsewhere):
    from capsbench.reversible import MomentumStack

    if elsewhere:
        request.getfixturevalue("moved")
    stack = MomentumStack([Everything() for _ in range(2)], memory="offload")
    loss = stack(torch.randn(4, 8)).sum()
    with torch.no_grad():
        stack.functions[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace"):
        loss.backward()


def test_an_activation_that_is_changed_on_a_cpu_is_an_error_as_without_offload():
    from capsbench.reversible import run_steps

    kept = []

    def step(x):
        y = x.exp()
        kept.append(y)
        return (y * y,)

    (y,) = run_steps([step], (torch.randn(4, requires_grad=True),), "offload")
    kept[0].detach().mul_(2)
    with pytest.raises(RuntimeError, match=r"changed in place|modified by an inplace"):
        y.sum().backward()


@pytest.mark.parametrize("device", ["cpu", "cpu:predicted", "cuda:predicted"])
def test_where_offload_has_no_effect_is_said_once(command, device):
    sweep = ["run", "--models", "rescapsnet,mocapsnet", "--memory", "stored,offload", "--depth", "1", "--batch-size", "2"]
    found = command(*sweep, "--device", device, "--dry-run")
    assert found.status == 0
    assert found.stderr.count("'offload' has no effect on a CPU") == (device != "cuda:predicted")


@pytest.mark.slow
def test_a_predicted_record_says_where_offload_has_no_effect():
    from capsbench.prediction.predict import predict_cell

    cells = expand(Sweep(models=("rescapsnet",), depths=(1,), device="cpu:predicted", batch_size=2, memory=("stored", "offload")))
    stored, offload = (predict_cell(cell) for cell in cells)
    assert stored.notes == []
    assert "no effect on a CPU" in offload.notes[0]
    assert offload.memory == stored.memory


def test_a_measured_record_says_where_offload_has_no_effect():
    from capsbench.measure import worker
    from capsbench.measure.messages import Reply, Request

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "prepare_process", lambda configuration: None)
        patch.setattr(worker, "memory_pass", lambda *_, **__: Reply(status="ok"))
        notes = {
            memory: worker.run_request(
                Request(configuration=make_configuration(memory=memory, threads=None), what="memory", samples=5)
            ).notes
            for memory in ("stored", "offload")
        }
    assert notes["stored"] == []
    assert len(notes["offload"]) == 1


@pytest.mark.slow
def test_a_prediction_for_cuda_moves_no_weights():
    """The bytes of a block's weights would otherwise come back once more in backward."""
    from capsbench.prediction.predict import predict_cell

    def peak(memory):
        (cell,) = expand(
            Sweep(models=("rescapsnet",), depths=(2,), device="cuda:predicted", gpu="a100", batch_size=2, memory=(memory,))
        )
        return predict_cell(cell).memory

    stored, offloaded = peak("stored"), peak("offload")
    assert offloaded.retained_bytes < stored.retained_bytes
    assert offloaded.peak_allocated_bytes <= stored.peak_allocated_bytes
