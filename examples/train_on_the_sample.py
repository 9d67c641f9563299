"""Train a network on the packaged sample and classify a batch with it.

The sample has 1,024 images of Fashion-MNIST, of which this takes a part. The folder gets checkpoints, metrics and the result;
the same call with `resume=True` resumes a run that was cut off.

    python examples/train_on_the_sample.py [FOLDER]
"""

import sys
import tempfile

import capsbench
from capsbench.data.datasets import load_images
from capsbench.records import Configuration
from capsbench.training import TrainingSettings, train

folder = sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()
network = Configuration(model="mocapsnet", blocks=1, dataset="sample", batch_size=16, device="cpu")
result = train(TrainingSettings(network=network, epochs=1, scale=0.1), f"{folder}/run")
print(f"{result.train_images} images, {result.parameters:,} parameters, accuracy {result.test_accuracy:.2f}")

for found in capsbench.classify(f"{folder}/run", load_images("sample").images[:3]):
    print(f"{found.name}, by a capsule of length {found.length:.1e}")
