"""Networks that nobody here wrote, as cases: as their users would bring them, with few and narrow layers."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from capsbench import Case

NETWORKS = (
    "resnet", "vit", "swin", "convnext", "detector", "timm_vit", "gpt2", "gpt2_checkpointed", "llama", "bert", "t5",
    "transformer", "lstm", "graph", "unet", "lora", "frozen", "dropout", "bf16", "scripted", "lazy",
)  # fmt: skip
"""Every case here but the compiled one, whose prediction is a guess."""

PACKAGES = {
    "timm_vit": "timm", "gpt2": "transformers", "gpt2_checkpointed": "transformers", "llama": "transformers",
    "bert": "transformers", "t5": "transformers", "detector": "torchvision", "resnet": "torchvision", "vit": "torchvision",
    "swin": "torchvision", "convnext": "torchvision",
}  # fmt: skip
"""The package of each network that comes from one other than torch."""


def images_and_labels(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Images, and labels of seven classes."""
    return torch.rand(count, 3, size, size), torch.randint(7, (count,))


# torchvision and timm


def resnet(batch_size=2, size=32):
    from torchvision.models.resnet import BasicBlock, ResNet

    images, labels = images_and_labels(batch_size, size)
    return Case(ResNet(BasicBlock, [1, 1, 1, 1], num_classes=7), images, loss=lambda out: F.cross_entropy(out, labels))


def vit(blocks=2, batch_size=2, size=32):
    from torchvision.models import VisionTransformer

    images, labels = images_and_labels(batch_size, size)
    return Case(
        VisionTransformer(size, 8, blocks, 4, 64, 128, 0.1, num_classes=7), (images,), loss=F.cross_entropy, targets=labels
    )


def swin(blocks=2, batch_size=2, size=32):
    from torchvision.models import SwinTransformer

    images, labels = images_and_labels(batch_size, size)
    module = SwinTransformer([4, 4], 16, [blocks], [2], [4, 4], num_classes=7)
    return Case(module, images, loss=F.cross_entropy, targets=labels)


def convnext(batch_size=2, size=32):
    from torchvision.models.convnext import CNBlockConfig, ConvNeXt

    images, labels = images_and_labels(batch_size, size)
    module = ConvNeXt([CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)], num_classes=7)
    return Case(module, images, loss=F.cross_entropy, targets=labels)


def detector(images=2, size=64):
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    backbone = nn.Sequential(nn.Conv2d(3, 16, 3, 4, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 4, 1))
    backbone.out_channels = 32
    anchors = AnchorGenerator(((16, 32),), ((0.5, 1.0),))
    module = RetinaNet(backbone, 3, min_size=size, max_size=size, anchor_generator=anchors)
    given = [torch.rand(3, size, size) for _ in range(images)]
    targets = [{"boxes": torch.tensor([[5.0, 5.0, 40.0, 40.0]]), "labels": torch.tensor([1])} for _ in range(images)]
    return Case(module, (given, targets), loss=lambda losses: sum(losses.values()), inference=(given,))


def timm_vit(blocks=2, batch_size=2):
    import timm

    module = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=False,
        num_classes=7,
        img_size=32,
        patch_size=8,
        embed_dim=48,
        depth=blocks,
        num_heads=3,
    )
    images, labels = images_and_labels(batch_size, 32)
    return Case(module, images, loss=F.cross_entropy, targets=labels)


# transformers


def gpt2(blocks=2, length=32, batch_size=2, width=32):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=128, n_embd=width, n_layer=blocks, n_head=4, bos_token_id=0, eos_token_id=0)
    ids = torch.randint(128, (batch_size, length))
    return Case(GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids})


def gpt2_generating(blocks=2, length=32, batch_size=2, width=32):
    """A language model that in inference returns the scores of the next token, and all keys and values."""
    case = gpt2(blocks, length, batch_size, width)
    given = {"input_ids": case.inputs["input_ids"], "use_cache": True, "logits_to_keep": 1}
    return replace(case, inference=given)


def gpt2_checkpointed(blocks=2, length=32, batch_size=2):
    case = gpt2(blocks, length, batch_size)
    case.module.config.use_cache = False
    case.module.gradient_checkpointing_enable()
    return case


SMALL = {"vocab_size": 128, "hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}


def llama(blocks=2, length=32, batch_size=2):
    from transformers import LlamaConfig, LlamaForCausalLM

    ids, mask = torch.randint(128, (batch_size, length)), torch.ones(batch_size, length, dtype=torch.long)
    mask[0, -5:] = 0
    module = LlamaForCausalLM(LlamaConfig(num_hidden_layers=blocks, **SMALL))
    return Case(module, {"input_ids": ids, "labels": ids, "attention_mask": mask}, loss=lambda out: out.loss)


def bert(blocks=2, length=32, batch_size=2):
    from transformers import BatchEncoding, BertConfig, BertForMaskedLM

    ids = torch.randint(128, (batch_size, length))
    encoded = BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids})
    return Case(BertForMaskedLM(BertConfig(num_hidden_layers=blocks, **SMALL)), encoded)


def t5(blocks=2, length=16, batch_size=2):
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(vocab_size=128, d_model=32, d_kv=8, d_ff=64, num_layers=blocks, num_heads=4, decoder_start_token_id=0)
    ids = torch.randint(128, (batch_size, length))
    return Case(T5ForConditionalGeneration(config), {"input_ids": ids, "labels": ids})


# torch alone


def transformer(blocks=2, length=16, batch_size=2):
    source, target = torch.rand(2, batch_size, length, 32).unbind()
    module = nn.Transformer(32, 4, blocks, blocks, 64, batch_first=True)
    return Case(module, (source.clone(), target.clone()), loss=lambda out: out.square().mean())


def lstm(blocks=2, length=16, batch_size=2):
    module = nn.LSTM(16, 32, blocks, batch_first=True)
    return Case(module, torch.rand(batch_size, length, 16), loss=lambda out: out[0].square().mean())


class Messages(nn.Module):
    """A graph network on a dictionary of features and edges."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(blocks))

    def forward(self, graph: dict[str, Tensor]) -> dict[str, Tensor]:
        x, (source, target) = graph["x"], graph["edges"]
        for layer in self.layers:
            x = torch.relu(x + torch.zeros_like(x).index_add_(0, target, layer(x)[source]))
        return {"loss": x.square().mean(), "x": x}


def graph(blocks=2, nodes=50):
    return Case(Messages(blocks), ({"x": torch.rand(nodes, 16), "edges": torch.randint(nodes, (2, 3 * nodes))},))


class UNet(nn.Module):
    """A network that predicts the noise in images at a time."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, width, 3, padding=1), nn.Conv2d(width, 2 * width, 3, 2, 1)
        self.time, self.up = nn.Linear(16, 2 * width), nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.last = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angles = t[:, None] * torch.arange(8, device=t.device)
        wide = F.silu(self.first(x))
        deep = F.silu(self.down(wide) + self.time(torch.cat([angles.sin(), angles.cos()], 1))[:, :, None, None])
        return self.last(torch.cat([wide, self.up(deep)], 1))


def unet(width=8, batch_size=2, size=16):
    x = torch.rand(batch_size, 3, size, size)
    return Case(UNet(width), {"x": x, "t": torch.rand(batch_size)}, loss=F.mse_loss, targets=torch.randn_like(x))


class LowRank(nn.Module):
    """A frozen layer and a product of two thin ones that is trained in its place (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.down, self.up = nn.Linear(base.in_features, rank, bias=False), nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


def lora(blocks=2, rank=4, batch_size=8):
    layers = [layer for _ in range(blocks) for layer in (LowRank(nn.Linear(64, 64), rank), nn.GELU())]
    return Case(nn.Sequential(*layers), torch.rand(batch_size, 64), loss=lambda out: out.mean())


def linear_layers(blocks: int, *others: type[nn.Module], make=lambda: nn.Linear(64, 64)) -> nn.Sequential:
    """Linear layers, each with other layers after it."""
    return nn.Sequential(*(layer for _ in range(blocks) for layer in (make(), *(other() for other in others))))


def frozen(blocks=2, batch_size=8):
    """Gradients of the last layer alone, and no optimizer."""
    module = nn.Sequential(linear_layers(blocks).requires_grad_(False), nn.Linear(64, 1))
    return Case(module, torch.rand(batch_size, 64), loss=lambda out: out.sum(), optimizer=None)


def dropout(blocks=2, batch_size=8):
    return Case(linear_layers(blocks, nn.ReLU, nn.Dropout), torch.rand(batch_size, 64), loss=Tensor.mean)


def bf16(blocks=2, batch_size=8):
    def sgd(parameters):
        return torch.optim.SGD(parameters, 0.1, momentum=0.9)

    module = linear_layers(blocks, lambda: nn.LayerNorm(64), nn.ReLU).bfloat16()
    given = torch.rand(batch_size, 64, dtype=torch.bfloat16)
    return Case(module, given, loss=lambda out: out.float().square().mean(), optimizer=sgd)


def compiled(blocks=2, batch_size=8):
    return Case(torch.compile(linear_layers(blocks, nn.ReLU)), torch.rand(batch_size, 64), loss=Tensor.sum)


def scripted(blocks=2, batch_size=8):
    return Case(
        torch.jit.script(linear_layers(blocks, nn.ReLU)), torch.rand(batch_size, 64), loss=lambda out: out.square().mean()
    )


def lazy(blocks=2, batch_size=8):
    return Case(linear_layers(blocks, make=lambda: nn.LazyLinear(64)), torch.rand(batch_size, 16), loss=Tensor.sum)
