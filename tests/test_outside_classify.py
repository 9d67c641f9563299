"""A trained network's answer for an image depends on that image alone."""

import json

import pytest
import torch

from capsbench.data.images import to_picture
from capsbench.inference import Classifier, classify
from capsbench.routing import algorithm_of, algorithms, kernels, route
from helpers.trained import sample, save_lively, trained

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    '''Its scores are moved by the mean of the batch.'''

    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(784, classes)

    def forward(self, x):
        scores = self.linear(x.flatten(1))
        return scores - scores.mean(0)

def make(in_shape, num_classes, blocks):
    return Net(num_classes)
"""


def of_routing(path, routing, seed=0):
    settings = trained("mocapsnet")
    network = settings.network.model_copy(update={"routing": routing})
    save_lively(path, settings.model_copy(update={"network": network}), seed)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("routing", ["sda", "sda-published", "rba", "em"])
def test_an_image_is_classified_alike_in_any_company(tmp_path, routing):
    path = of_routing(tmp_path / "net.pt", routing)
    together = classify(path, sample(5))
    for place in range(5):
        (alone,) = classify(path, sample()[place])
        assert alone.label == together[place].label
        # To the last bit where the batch would have a say.
        tolerance = 0 if routing.startswith("sda") else 1e-5
        assert torch.allclose(torch.tensor(alone.lengths), torch.tensor(together[place].lengths), rtol=tolerance, atol=tolerance)
        assert torch.allclose(alone.reconstruction, together[place].reconstruction, rtol=tolerance, atol=tolerance)


@pytest.mark.slow
def test_in_an_ensemble_too(tmp_path):
    paths = [of_routing(tmp_path / "rba.pt", "rba"), of_routing(tmp_path / "sda.pt", "sda", 1)]
    together = classify(paths, sample(3))
    assert [classify(paths, sample()[place])[0].lengths for place in range(3)] == [one.lengths for one in together]


def test_networks_without_such_routing_are_still_classified_in_batches(tmp_path):
    classifier = Classifier(of_routing(tmp_path / "net.pt", "rba"))
    sizes = []
    classifier.network.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    classifier(sample(6))
    assert sizes == [6]


def test_by_command(command, tmp_path):
    path = of_routing(tmp_path / "net.pt", "sda")
    for place, image in enumerate(sample(3)):
        to_picture(image.float() / 255).save(tmp_path / f"image{place}.png")
    names = [f"image{place}.png" for place in range(3)]
    together = json.loads(command("classify", path, *names, "--json").stdout)
    assert [one["image"] for one in together] == names
    for name, one in zip(names, together, strict=True):
        (alone,) = json.loads(command("classify", path, name, "--json").stdout)
        assert alone == one


def test_a_network_of_one_s_own_that_mixes_its_batch(own_model, tmp_path):
    from capsbench.training import TrainingSettings, save_checkpoint
    from capsbench.training.checkpoint import build_network

    settings = trained("rescapsnet")
    network = settings.network.model_copy(
        update={"model": own_model(OWN), **dict.fromkeys(("kernel", "routing", "iterations", "capsules", "front", "memory"))}
    )
    settings = TrainingSettings(network=network)
    save_checkpoint(tmp_path / "own.pt", settings, build_network(settings).state_dict())
    together = classify(tmp_path / "own.pt", sample(3))
    assert [classify(tmp_path / "own.pt", sample()[place])[0].lengths for place in range(3)] == [one.lengths for one in together]


@pytest.mark.parametrize("name", algorithms())
def test_an_algorithm_says_whether_it_mixes_its_batch(name):
    torch.manual_seed(0)
    inputs, weight = torch.randn(3, 5, 4), torch.randn(5, 4, 6, 8)
    extras = {"bias": torch.full((6, 8), 0.1), "beta_u": torch.zeros(6), "beta_a": torch.zeros(6)}
    extras = {key: extras[key] for key in algorithm_of(name).extras}
    assert "reference" in kernels(name)
    together = route(inputs, weight, **extras, algorithm=name, kernel="reference")
    alone = torch.cat([route(one.unsqueeze(0), weight, **extras, algorithm=name, kernel="reference") for one in inputs])
    assert (not torch.allclose(together, alone, rtol=1e-4, atol=1e-6)) is algorithm_of(name).mixes_batch
