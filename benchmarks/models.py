"""The workloads: a table of models by name, each with random data of a fixed seed."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["MODELS", "available", "count", "load", "shapes"]

Batch = tuple[Tensor, Tensor]  # inputs, classes


# ---------------------------------------------------------------- networks


def mlp(*widths: int) -> nn.Module:
    """Linear layers with Tanh between them."""
    layers: list[nn.Module] = []
    for n_in, n_out in itertools.pairwise(widths):
        layers += [nn.Linear(n_in, n_out), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def convolution(n_in: int, n_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """A convolution that keeps the picture's size, up to its stride, and batch normalisation: three tensors."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, size, stride, size // 2, bias=False), nn.BatchNorm2d(n_out))


class Residual(nn.Module):
    """The basic block (He et al. 2016); a projection on the shortcut where the shape changes."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(n_in, n_out, 3, stride)
        self.second = convolution(n_out, n_out, 3)
        self.shortcut = convolution(n_in, n_out, 1, stride) if n_in != n_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """[batch, n_in, h, w] -> [batch, n_out, h / stride, w / stride]."""
        return F.relu(self.shortcut(x) + self.second(F.relu(self.first(x))))


def resnet(widths: Sequence[int], blocks: int) -> nn.Module:
    """The variant for 32 x 32 pictures: no stem, `blocks` basic blocks at each width, half the size from one to the next."""
    layers: list[nn.Module] = [convolution(3, widths[0], 3), nn.ReLU()]
    n_in = widths[0]
    for n_out in widths:
        for block in range(blocks):
            layers.append(Residual(n_in, n_out, stride=2 if block == 0 and n_in != n_out else 1))
            n_in = n_out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(n_in, 10))


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> [batch, time, width]."""
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1)).movedim(-3, 0).transpose(-3, -2)  # [3, batch, heads, time, …]
        mixed = F.scaled_dot_product_attention(split[0], split[1], split[2], is_causal=True)
        return self.out(mixed.transpose(-3, -2).flatten(-2))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(nn.LayerNorm(width), Attention(width, heads))
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """[batch, time, width] -> [batch, time, width]."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class GPT(nn.Module):
    """A decoder like GPT-2 (Radford et al. 2019); the table of tokens is also the output layer."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)), nn.LayerNorm(width))
        for table in (self.tokens, self.positions):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """[batch, time] -> logits [batch, time, vocabulary]."""
        x = self.tokens(tokens) + self.positions.weight[: tokens.shape[1]]
        return F.linear(self.blocks(x), self.tokens.weight)


# ---------------------------------------------------------------- data


def points(batch: int, *shape: int) -> Callable[[], Batch]:
    """Normal inputs of a shape, in ten classes."""
    return lambda: (torch.randn(batch, *shape), torch.randint(10, (batch,)))


def texts(batch: int, time: int, vocabulary: int) -> Callable[[], Batch]:
    """Random tokens; the class of each is the next one."""

    def make() -> Batch:
        text = torch.randint(vocabulary, (batch, time + 1))
        return text[:, :-1], text[:, 1:]

    return make


# ---------------------------------------------------------------- the table


@dataclasses.dataclass(frozen=True)
class Workload:
    """A model and its batch; `mixed`: for GPUs alone, channels last and in bfloat16 autocast."""

    model: Callable[[], nn.Module]
    batch: Callable[[], Batch]
    mixed: bool = False


MODELS = {
    "mlp-0.1M": Workload(lambda: mlp(784, 128, 10), points(256, 784)),
    "mlp-5M": Workload(lambda: mlp(784, 1900, 1850, 10), points(128, 784)),
    "mlp-27M": Workload(lambda: mlp(784, 4096, 4096, 1664, 10), points(64, 784)),
    "resnet20": Workload(lambda: resnet((16, 32, 64), 3), points(32, 3, 32, 32)),
    "transformer": Workload(lambda: GPT(2048, 64, width=224, layers=4, heads=4), texts(8, 64, 2048)),
    "resnet18": Workload(lambda: resnet((64, 128, 256, 512), 2), points(128, 3, 32, 32), mixed=True),
    "gpt-124M": Workload(lambda: GPT(50257, 1024, width=768, layers=12, heads=12), texts(8, 512, 50257), mixed=True),
}


def available(device: str) -> tuple[str, ...]:
    """The models that run there."""
    return tuple(name for name, workload in MODELS.items() if device == "cuda" or not workload.mixed)


def shapes(name: str) -> list[torch.Size]:
    """The shapes of a model's parameters, in their order, without their memory."""
    with torch.device("meta"):
        return [p.shape for p in MODELS[name].model().parameters()]


def count(name: str) -> int:
    """How many weights a model has."""
    return sum(shape.numel() for shape in shapes(name))


def load(name: str, device: str = "cpu", seed: int = 0) -> tuple[nn.Module, Callable[[], Tensor]]:
    """A model on a device, and its loss (cross-entropy) on one batch as a function of nothing: the same for each caller."""
    workload = MODELS[name]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model, (inputs, classes) = workload.model().to(device), workload.batch()
    inputs, classes = inputs.to(device), classes.to(device).flatten()
    if workload.mixed:
        # What has not four dimensions has no such format and stays as it is; torch's annotations do not know the keyword.
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last) if inputs.dim() == 4 else inputs

    def loss() -> Tensor:
        with torch.autocast(device, torch.bfloat16, enabled=workload.mixed):
            outputs = model(inputs)
        return F.cross_entropy(outputs.flatten(0, -2).float(), classes)

    return model, loss
