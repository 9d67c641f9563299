"""Times on a CUDA device, as a fake would have it: what warms it up, what it alone takes, and how often the host waits for it."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from capsbench.frame import to_frame
from capsbench.measure import device_time, timing, turns, worker
from capsbench.measure.clock import CudaClock
from capsbench.measure.device_time import device_seconds
from capsbench.measure.noise import Machine, noise_of
from capsbench.measure.timing import LAUNCHES, WARMUP_SECONDS, Yardstick, measure_time, warm_up
from capsbench.phases import UNOBSERVED, Phases
from capsbench.records import Cell, Record, Round, Turn
from capsbench.stats.median import is_host_bound
from capsbench.stats.slopes import fitted_slopes
from capsbench.terminal.tables import cells_table, slopes_table
from capsbench.tf32 import allows_tf32, forbid_tf32, without_tf32
from capsbench.timed_rounds import times_of
from helpers.fakes import FakeCuda
from helpers.made import make_configuration, make_record

CUDA, CPU = torch.device("cuda"), torch.device("cpu")


class Steps:
    """A workload on a device that is not here, which logs its parts among the calls of the device."""

    device = CUDA

    def __init__(self, fake, wait_in=""):
        self._fake, self._wait_in = fake, wait_in

    def _run(self, part):
        self._fake.asked.append(part)
        if part == self._wait_in:
            torch.cuda.synchronize()

    def train_step(self, observer=UNOBSERVED):
        with Phases(observer) as phases:
            self._run("forward")
            phases.begin_backward([])
            self._run("backward")
            phases.begin_optimizer()
            self._run("optimize")

    def inference(self):
        self._run("inference")

    @contextmanager
    def evaluating(self):
        self._run("eval")
        yield
        self._run("train")


class Ticking:
    """A clock of the host, which moves on by so many seconds at each look."""

    def __init__(self, seconds):
        self.now, self._seconds = 0.0, seconds

    def monotonic(self):
        self.now += self._seconds
        return self.now

    perf_counter = monotonic


# Warming up.


def test_a_gpu_is_warmed_up_until_its_clock_has_risen(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(timing, "time", Ticking(0.1))
    count = warm_up(Steps(fake).train_step, CUDA)
    # Two steps, which may compile kernels for long while the GPU idles, and half a second of further ones.
    assert count == 2 + WARMUP_SECONDS / 0.1 - 1
    assert fake.asked.count("optimize") == count
    # Each is waited for: what is only enqueued warms nothing.
    assert fake.waits() == count


def test_a_cpu_is_warmed_up_by_two_steps(monkeypatch):
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: pytest.fail("there is no device"))
    steps = []
    assert warm_up(lambda: steps.append(1), CPU) == len(steps) == 2


def test_a_slow_step_is_not_repeated_for_the_clock_s_sake(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(timing, "time", Ticking(60.0))
    assert warm_up(Steps(fake).train_step, CUDA) == 2


# The device alone.


def test_the_device_alone_is_timed_behind_a_kernel_that_holds_it(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(device_time, "time", Ticking(0.01))
    held = []
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: held.append(cycles) or fake.asked.append("_sleep"))
    found = device_seconds(Steps(fake).train_step, CUDA)
    step = ["forward", "backward", "optimize"]
    # One step shows how long the host takes.
    assert fake.asked[:4] == ["synchronize", *step]
    assert fake.asked[4:] == ["synchronize", "_sleep", "record", *step, "record", "synchronize"] * 3
    # Events at 1 and 4, at 9 and 16, and at 25 and 36 ms.
    assert found == [0.003, 0.007, 0.011]
    # Held for twice the host's time at a clock of 3 GHz.
    assert held == [pytest.approx(0.02 * 3e9)] * 3


def test_a_device_that_was_not_held_for_long_enough_has_no_time_of_its_own(monkeypatch):
    """The step waits for the device, or has more launches than fit into its queue."""
    fake = FakeCuda(monkeypatch, held=False)
    assert device_seconds(Steps(fake).train_step, CUDA) == []
    assert fake.asked.count("_sleep") == 1


def test_a_device_is_never_held_for_long(monkeypatch):
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(device_time, "time", Ticking(5.0))
    assert device_seconds(Steps(fake).train_step, CUDA) == []
    assert "_sleep" not in fake.asked


def test_a_cpu_has_no_time_of_its_own():
    assert device_seconds(lambda: pytest.fail("no step is needed"), CPU) == []


@pytest.mark.parametrize(
    ("samples", "alone", "bound"),
    [
        ([1.0] * 9, [0.95] * 3, False),
        ([1.0] * 9, [0.85] * 3, True),
        ([1.0] * 9, [1.2] * 3, False),
        ([1.0] * 8 + [0.5], [0.95, 0.95, 0.1], False),
        ([1.0], [], False),
        ([], [0.1], False),
    ],
)
def test_a_step_is_host_bound_if_its_device_needs_a_tenth_less(samples, alone, bound):
    assert is_host_bound(samples, alone) == bound
    quiet = [1.0] * 9
    assert ("host-bound" in noise_of(samples or quiet, quiet, Machine(), of_device=(alone if samples else [], []))) == bound
    assert ("host-bound" in noise_of(quiet, samples or quiet, Machine(), of_device=([], alone if samples else []))) == bound


def round_of(**fields):
    turn = Turn(cell="a", train_step_seconds=1.0, forward_seconds=0.3, inference_seconds=0.2)
    return Round(number=0, process=0, clock="cuda events", warmup_steps=9, turns=[turn], **fields)


def test_rounds_hand_the_device_s_time_on():
    earlier = round_of(device_train_step_seconds={"a": [9.0]}, launch_yardstick_seconds=[1e-3])
    last = round_of(
        device_train_step_seconds={"a": [0.4, 0.5], "b": [7.0]}, device_inference_seconds={"a": [0.2]},
        launch_yardstick_seconds=[2e-3],
    )  # fmt: skip
    assert Round.model_validate_json(last.model_dump_json()) == last
    times = times_of([earlier, last], "a")
    # A process times the device once, and says so in every round.
    assert times.device_train_step_seconds == [0.4, 0.5]
    assert times.device_inference_seconds == [0.2]
    assert times.launch_yardstick_seconds == [1e-3, 2e-3]
    assert times.warmup_steps == 9


def test_a_record_without_a_device_is_as_before():
    times = times_of([round_of()], "a")
    assert (times.device_train_step_seconds, times.device_inference_seconds, times.launch_yardstick_seconds) == ([], [], [])
    (row,) = to_frame([("made", make_record())]).to_dict("records")
    for name in ("device_train_step_seconds", "device_inference_seconds", "launch_yardstick_seconds"):
        assert row[name] != row[name]


# The second yardstick.


def test_the_second_yardstick_is_a_hundred_launches(monkeypatch):
    fake = FakeCuda(monkeypatch)
    number = SimpleNamespace(add_=lambda _: fake.asked.append("launch"))
    monkeypatch.setattr(torch, "zeros", lambda *_, device: number)
    yardstick = Yardstick(CUDA, CudaClock(CUDA))
    monkeypatch.setattr(yardstick, "_product", lambda: [0.5])
    yardstick.measure()
    assert (yardstick.seconds, yardstick.launch_seconds) == ([0.5], [0.003])
    assert fake.asked == ["synchronize", "record", *["launch"] * LAUNCHES, "record", "synchronize"]
    monkeypatch.setattr(torch, "zeros", lambda *_, device: (_ for _ in ()).throw(torch.OutOfMemoryError("full")))
    yardstick.measure()
    assert yardstick.launch_seconds == [0.003], "no sample where there is no room"


# Waits of the host.


@pytest.fixture
def waits(monkeypatch):
    """The calls of each sample: the parts of the step with what the clock asks of the device between them."""

    def sampled(wait_in=""):
        fake = FakeCuda(monkeypatch)
        idle = SimpleNamespace(
            is_due=lambda: False, warm_up=lambda: None, seconds=[], launch_seconds=[], flops=1, measure=lambda: None
        )
        monkeypatch.setattr(timing, "Yardstick", lambda *_: idle)
        monkeypatch.setattr(timing, "Watch", lambda _: SimpleNamespace(seen=Machine))
        monkeypatch.setattr(timing, "device_seconds", lambda *_: [])
        monkeypatch.setattr(timing, "warm_up", lambda *_: 2)
        monkeypatch.setattr(timing, "is_settled", lambda _: True)
        measure_time(Steps(fake, wait_in), 5, 0.0)
        return fake

    return sampled


TRAINING = ["synchronize", "record", "forward", "record", "backward", "record", "optimize", "record", "synchronize"]
INFERENCE = ["eval", "synchronize", "record", "inference", "record", "train", "synchronize"]


def test_nothing_waits_inside_a_measured_step(waits):
    """A step that is measured is enqueued as a user's is: the clock waits before it and after it, and reads events between."""
    fake = waits()
    assert fake.asked[: fake.asked.index("train") + 1] == ["eval", "inference", "train"], "it warms up"
    assert fake.asked[3:-2] == [*TRAINING, *INFERENCE] * 5
    assert fake.asked[-2:] == ["eval", "train"], "the device alone is timed afterwards"
    assert fake.waits() == 4 * 5


def test_a_wait_inside_a_step_is_seen(waits):
    assert waits("backward").waits() == 5 * 5


def test_nothing_waits_inside_a_turn(monkeypatch):
    """Cells that take turns are measured in the same way."""
    fake = FakeCuda(monkeypatch)
    monkeypatch.setattr(turns, "check_threads", lambda _: None)
    taking = turns.Turns.__new__(turns.Turns)
    steps = Steps(fake)
    steps.configuration = make_configuration()
    taking._participants, taking._clock = {"a": turns.Participant(steps)}, CudaClock(CUDA)
    taking._turn("a")
    assert fake.asked == [*TRAINING, *INFERENCE[:-2], "synchronize", "train"]


def test_a_process_of_turns_times_the_device_before_its_rounds(monkeypatch):
    fake = FakeCuda(monkeypatch)
    taking = turns.Turns.__new__(turns.Turns)
    one = turns.Participant(Steps(fake))
    taking._device, taking._participants = CUDA, {"a": one}
    monkeypatch.setattr(turns, "device_seconds", lambda step, _: step() or [0.5])
    taking._time_device("a")
    assert (one.device_train_seconds, one.device_inference_seconds) == ([0.5], [0.5])
    assert fake.asked == ["forward", "backward", "optimize", "eval", "inference", "train"]
    monkeypatch.setattr(turns, "device_seconds", lambda *_: [])
    taking._time_device("a")
    assert one.device_train_seconds == [], "what is not known is left out"


# TF32.


@pytest.fixture
def settings():
    """The process's settings, which are restored after the test."""

    def read():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.conv.fp32_precision

    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    yield read
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
def test_products_are_in_float32_inside_and_as_before_afterwards(settings, matmul, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = True
    before = settings()
    assert allows_tf32()
    with without_tf32():
        assert not allows_tf32()
        # Both forms of the settings can be read, by torch's compiler too.
        assert settings() == ("highest", False, "ieee")
        assert torch.backends.cuda.matmul.allow_tf32 is False
    assert settings() == before
    assert allows_tf32()
    with pytest.raises(ZeroDivisionError), without_tf32():
        raise ZeroDivisionError
    assert settings() == before
    # Of contexts that overlap, as those of several threads do, the last one to be left restores the settings.
    first, second = without_tf32(), without_tf32()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not allows_tf32()
    second.__exit__(None, None, None)
    assert settings() == before


def test_a_machine_without_a_gpu_keeps_its_settings(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    before = settings()
    with without_tf32():
        assert settings() == before


def test_settings_of_the_new_form_alone_stay_what_they_were(settings, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    with pytest.raises(RuntimeError):
        settings()  # whoever sets one form alone makes the other unreadable
    assert allows_tf32(), "recurrent layers still may"
    with without_tf32():
        assert not allows_tf32()
    assert torch.backends.cudnn.conv.fp32_precision == "ieee"
    assert torch.backends.cudnn.rnn.fp32_precision == "tf32"
    forbid_tf32()
    assert settings() == ("highest", False, "ieee")


def test_the_driver_s_own_switch_counts(settings, monkeypatch):
    torch.backends.cudnn.allow_tf32 = True
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    assert not allows_tf32()


def test_a_record_says_whether_tf32_was_allowed():
    record = make_record()
    assert record.tf32 is None, "a CPU has none"
    allowed = Record(cell=Cell(configuration=make_configuration(device="cuda:0")), status="ok", tf32=True)
    assert Record.model_validate_json(allowed.model_dump_json()).tf32 is True


def test_tables_and_slopes_say_host_bound_in_words():
    records = [make_record(blocks=blocks, device="cuda:0") for blocks in (1, 2, 3)]
    bound = [one.model_copy(update={"time": one.time.model_copy(update={"noise": ["host-bound"]})}) for one in records]
    frame = to_frame(("made", one) for one in bound)
    assert "disturbed by a GPU that waited for the host" in cells_table(frame).caption
    assert "disturbed by a GPU that waited for the host" in slopes_table(fitted_slopes(frame)).caption
    assert cells_table(to_frame(("made", one) for one in records)).caption is None


@pytest.mark.parametrize("tunes", [True, False])
def test_a_network_that_lets_cudnn_tune_itself_has_a_note(monkeypatch, tunes):
    monkeypatch.setattr(worker, "prepare_process", lambda _: None)
    for name in ("other_processes", "unknown_others"):
        monkeypatch.setattr(worker, name, lambda _: [])

    def passed(*_, **__):
        torch.backends.cudnn.benchmark = tunes
        return worker.Reply(status="ok")

    monkeypatch.setattr(worker, "memory_pass", passed)
    monkeypatch.setattr(worker, "check_threads", lambda _: None)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    asked = make_configuration(device="cuda:0", threads=None)
    reply = worker.run_request(worker.Request(configuration=asked, what="memory", samples=5))
    assert any("torch.backends.cudnn.benchmark" in note for note in reply.notes) == tunes
