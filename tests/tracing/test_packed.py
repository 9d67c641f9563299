"""Packed sequences: a recurrent network that is given them has the predicted bytes, to the byte."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pack_sequence, pad_packed_sequence

import capsbench
from capsbench import Case
from capsbench.errors import ConfigurationError
from capsbench.measure.step_memory import memory_figures, probed_step
from capsbench.prediction.predict import predict_memory, trace_for
from capsbench.tracing.packed import UNKNOWN_LENGTHS
from helpers.measured import configured, measured

LENGTHS = [9, 7, 7, 2]


class Packs(nn.Module):
    """Packs sequences in forward, and pads what a recurrent layer makes of them."""

    def __init__(self, layer: nn.RNNBase, sorted_: bool = True, total: int | None = None) -> None:
        super().__init__()
        self.layer, self.sorted, self.total = layer, sorted_, total

    def forward(self, x: Tensor, lengths: Any) -> Tensor:
        first = self.layer.batch_first
        packed = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=self.sorted)
        out, _ = self.layer(packed)
        padded, found = pad_packed_sequence(out, batch_first=first, total_length=self.total)
        mask = torch.arange(padded.shape[1 if first else 0])[:, None] < found
        return padded[mask.T if first else mask]


def case_of(kind: str, lengths: Any, sorted_: bool = True, total: int | None = None, **options: Any) -> Case:
    layer = getattr(nn, kind)(5, 6, **options)
    x = torch.rand(len(LENGTHS), max(LENGTHS), 5, requires_grad=True)
    x = x if layer.batch_first else x.detach().transpose(0, 1).contiguous()
    return Case(Packs(layer, sorted_, total), (x, lengths), loss=lambda out: out.square().mean())


def gru():
    return case_of("GRU", LENGTHS, num_layers=2, batch_first=True)


def lstm():
    return case_of("LSTM", torch.tensor(LENGTHS), num_layers=2, dropout=0.5, bidirectional=True)


def unsorted():
    return case_of("LSTM", torch.tensor([2, 9, 7, 7]), False, 11, bidirectional=True, batch_first=True, proj_size=3)


def plain():
    return case_of("RNN", [9] * 4, False, nonlinearity="relu", bias=False)


def given_packed():
    """A network whose only argument is a packed sequence that the case was made with."""
    sequences = [torch.rand(length, 5) for length in (3, 8, 5)]
    return Case(nn.GRU(5, 6), pack_sequence(sequences, enforce_sorted=False), loss=lambda out: out[0].data.sum())


class Tagger(nn.Module):
    """Embeds packed words, and scores each of them."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer, self.scores = nn.Embedding(20, 5), nn.LSTM(5, 6), nn.Linear(6, 4)

    def forward(self, words: PackedSequence) -> Tensor:
        given = PackedSequence(self.words(words.data), words.batch_sizes, words.sorted_indices, words.unsorted_indices)
        return self.scores(self.layer(given)[0].data)


def tagger():
    """Packed words, and packed labels as the targets of the loss."""
    words, labels = (pack_sequence([torch.randint(4, (length,)) for length in LENGTHS]) for _ in range(2))
    return Case(Tagger(), {"words": words}, loss=lambda out, given: nn.functional.cross_entropy(out, given.data), targets=labels)


CASES = (gru, lstm, unsorted, plain, given_packed, tagger)


def name_of(make: Any) -> str:
    return f"{__name__}:{make.__name__}"


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_predicted_bytes_are_those_that_were_measured(make):
    found = measured(configured(name_of(make)))
    assert found.differing() == {}
    assert found.measured.retained_bytes > 0
    assert sum(found.traced.retained_by_module.values()) == found.measured.retained_bytes
    assert (found.traced.notes, found.traced.unsure) == ((), ())
    assert found.predicted.certainty["retained_bytes"] == "exact"


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_inference_keeps_what_was_measured(make):
    configuration = configured(name_of(make))
    expected = memory_figures(probed_step(configuration))
    predicted = predict_memory(configuration, trace_for(configuration, inference=True)).memory
    assert predicted.inference_kept_bytes == expected.inference_kept_bytes > 0


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_live_network_is_estimated_to_the_byte(make):
    expected = memory_figures(probed_step(configured(name_of(make))))
    found = capsbench.estimate(make(), device="cpu")
    assert (found.retained_bytes, found.peak_bytes) == (expected.retained_bytes, expected.peak_allocated_bytes)
    assert found.notes == ()


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_a_gpu_keeps_the_sizes_of_batches_in_the_memory_of_the_host(make):
    case = make()
    moved = case.to(torch.device("meta"))
    assert {tensor.device.type for tensor in moved.tensors()} == {"meta"}
    assert {sizes.device.type for sizes in moved.batch_sizes()} <= {"cpu"}
    assert capsbench.estimate(make(), device="cuda").retained_bytes > 0


def test_a_packed_sequence_is_one_argument():
    case = given_packed()
    assert isinstance(case.inputs, PackedSequence)
    assert case.output(training=True)[0].data.shape == (16, 6)
    doubled = case.map_tensors(lambda tensor: tensor + tensor)
    assert torch.equal(doubled.inputs.data, 2 * case.inputs.data)
    assert doubled.inputs.batch_sizes is case.inputs.batch_sizes


def drawn_lengths():
    """Lengths that a network draws."""
    case = gru()
    case.module.register_forward_pre_hook(lambda _, given: (given[0], torch.randint(1, 10, (4,)).sort(descending=True)[0]))
    return case


def test_lengths_that_nobody_knows_are_those_of_whole_sequences():
    traced = trace_for(configured(name_of(drawn_lengths)))
    assert UNKNOWN_LENGTHS in traced.notes
    assert traced.retained_bytes > trace_for(configured(name_of(gru))).retained_bytes


def wrong_lengths():
    return case_of("GRU", [1, 9, 9, 9])


def test_lengths_that_torch_refuses_are_refused_in_a_prediction():
    with pytest.raises(ConfigurationError, match="must be sorted in decreasing order") as error:
        trace_for(configured(name_of(wrong_lengths)))
    assert len(str(error.value).splitlines()) == 2


def test_the_largest_batch_of_packed_sequences_is_not_known():
    found = capsbench.estimate(given_packed())
    with pytest.raises(ConfigurationError, match="packed sequences"):
        found.largest("batch_size")
