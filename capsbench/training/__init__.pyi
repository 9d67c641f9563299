from .checkpoint import load_checkpoint as load_checkpoint
from .checkpoint import load_network as load_network
from .checkpoint import save_checkpoint as save_checkpoint
from .result import EpochFigures as EpochFigures
from .result import Result as Result
from .settings import TrainingSettings as TrainingSettings
from .trainer import train as train
