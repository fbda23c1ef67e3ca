"""The energy network f(e, r), evaluated without ever expanding the embedding over rewards.

f is the *negative* energy: higher means more compatible, p(r | e) ∝ exp f(e, r).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ebrm.heads.config import NetworkConfig


def skip_init(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer without numbers yet, on PyTorch's default device, also where that is "meta"."""
    layer: nn.Linear = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=torch.empty(0).device)
    return layer


def _linear(inputs: int, outputs: int, generator: torch.Generator | None) -> nn.Linear:
    """A linear layer with PyTorch's default initial distribution, drawn from `generator` and from nothing global."""
    layer = skip_init(inputs, outputs)
    bound = 1.0 / math.sqrt(inputs)
    with torch.no_grad():
        layer.weight.uniform_(-bound, bound, generator=generator)
        layer.bias.uniform_(-bound, bound, generator=generator)
    return layer


class _Tanh(torch.autograd.Function):
    """tanh x = 2 σ(2x) - 1: PyTorch's σ is six times as fast as its tanh on CPUs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = (2 * x).sigmoid_().mul_(2).sub_(1)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return torch.addcmul(grad, grad * y, y, value=-1)


def tanh(x: Tensor) -> Tensor:
    """Tanh, to float accuracy of 1 (not of x near 0, where it is x)."""
    return _Tanh.apply(x) if x.device.type == "cpu" else torch.tanh(x)


class EnergyNetwork(nn.Module):
    """f(e, r): a tanh branch over the scalar reward, joined with the embedding, then tanh layers (arXiv 2504.13134).

    The first joint layer is kept as two maps: W_e e + b once a row, W_r g(r) once a reward. Dropout (training only) has
    one mask a row and joint layer, shared by all rewards of that row; the reward branch has none (the paper's has).
    """

    def __init__(self, embedding_size: int, config: NetworkConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        reward_widths, joint_widths = config.widths
        self.dropout = config.dropout
        sizes = (1, *reward_widths)
        self.reward_layers = nn.ModuleList(_linear(a, b, generator) for a, b in zip(sizes[:-1], sizes[1:], strict=True))
        joined = embedding_size + reward_widths[-1]
        first = _linear(joined, joint_widths[0], generator)
        self.from_embedding = skip_init(embedding_size, joint_widths[0])
        self.from_reward = skip_init(reward_widths[-1], joint_widths[0], bias=False)
        with torch.no_grad():
            self.from_embedding.weight.copy_(first.weight[:, :embedding_size])
            self.from_embedding.bias.copy_(first.bias)
            self.from_reward.weight.copy_(first.weight[:, embedding_size:])
        self.joint_layers = nn.ModuleList(
            _linear(a, b, generator) for a, b in zip(joint_widths[:-1], joint_widths[1:], strict=True)
        )
        self.output = _linear(joint_widths[-1], 1, generator)

    @property
    def width(self) -> int:
        """Widest joint layer: what one (row, reward) pair costs in memory, in floats."""
        return max(layer.out_features for layer in (self.from_embedding, *self.joint_layers))

    def embed(self, embedding: Tensor) -> Tensor:  # [n, d] -> [n, w]
        """The embedding's part of the first joint layer, W_e e + b: once a row."""
        return self.from_embedding(embedding)

    def reward_part(self, reward: Tensor) -> Tensor:  # [...] -> [..., w]
        """The reward's part of the first joint layer, W_r g(r): once a reward."""
        x = reward.unsqueeze(-1)
        for layer in self.reward_layers:
            x = tanh(layer(x))
        return self.from_reward(x)

    def join(self, embedded: Tensor, rewarded: Tensor, masks: Sequence[Tensor] = ()) -> Tensor:
        """Join both parts into f: [n, 1, w] + ([n, m, w] or [1, m, w]) → [n, m]; `masks` are dropout's."""
        x = tanh(embedded + rewarded)
        for i, layer in enumerate(self.joint_layers):
            x = tanh(layer(x * masks[i] if masks else x))
        return self.output(x * masks[-1] if masks else x).squeeze(-1)

    def dropout_masks(self, rows: int, generator: torch.Generator) -> list[Tensor]:
        """Dropout masks [rows, 1, width], scaled by 1 / (1 - p), one a joint layer; empty without dropout."""
        if self.dropout == 0.0:
            return []
        keep = 1.0 - self.dropout
        device = self.output.weight.device
        masks = []
        for layer in (self.from_embedding, *self.joint_layers):
            # Drawn where the generator lives, so that a CPU seed gives the same masks on every device.
            mask = torch.rand(rows, 1, layer.out_features, generator=generator, device=generator.device) < keep
            masks.append(mask.to(device).float() / keep)
        return masks

    def forward(self, embedding: Tensor, reward: Tensor) -> Tensor:
        """f(e, r) for `embedding` [n, d] and `reward` [n] or [n, m], in internal units → the shape of `reward`."""
        rewards = reward if reward.dim() == 2 else reward.unsqueeze(1)
        values = self.join(self.embed(embedding).unsqueeze(1), self.reward_part(rewards))
        return values if reward.dim() == 2 else values.squeeze(1)

    def hidden_on_nodes(self, embedded: Tensor, nodes: Tensor) -> Tensor:  # [n, w], [g] -> [n, g, w']
        """Inputs of the second joint layer's tanh, on nodes shared by all rows; there must be a second one."""
        return self.joint_layers[0](tanh(embedded.unsqueeze(1) + self.reward_part(nodes)))

    def from_hidden(self, hidden: Tensor) -> Tensor:  # [n, g, w'] -> [n, g]
        """The energy f from :meth:`hidden_on_nodes`."""
        x = tanh(hidden)
        for layer in self.joint_layers[1:]:
            x = tanh(layer(x))
        return self.output(x).squeeze(-1)

    def on_nodes(self, embedded: Tensor, nodes: Tensor) -> Tensor:  # [n, w], [g] -> [n, g]
        """Evaluate f on nodes shared by all rows: the reward branch runs once a node, not once a row and node."""
        return self.join(embedded.unsqueeze(1), self.reward_part(nodes).unsqueeze(0))
