"""Hidden states inside a reward model: which blocks are read, and their mean over each text, from the same forward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ebrm.errors import BackboneError

_WAY_OUT = "Read the pooled position only, as the paper does: layers=(), on the command line --layers none."


@dataclass(frozen=True, eq=False)
class InnerLayers:
    """Blocks of a model whose hidden states are averaged over the tokens of each text.

    Attributes:
        name: the model, for messages.
        indices: which blocks, counted from 1, ascending: the hidden states after that many blocks; () for none.
        blocks: the modules, in that order.
        width: h, the length of one hidden state.
    """

    name: str = ""
    indices: tuple[int, ...] = ()
    blocks: tuple[nn.Module, ...] = ()
    width: int = 0

    @property
    def size(self) -> int:
        """How many numbers the means have together: h for each block."""
        return self.width * len(self.indices)

    @contextmanager
    def averaging(self, attention_mask: Tensor) -> Iterator[list[Tensor]]:  # [n, L]
        """Average while the model runs inside this block; the list then holds one mean [n, h], float32, a block.

        The mean is over the tokens that the mask marks as text, wherever the padding is, and is taken as soon as a
        block has run: no hidden states are kept.

        Raises:
            BackboneError: a block did not run exactly once, or gave something else than hidden states [n, L, h].
        """
        found: list[list[Tensor]] = [[] for _ in self.indices]
        means: list[Tensor] = []
        with ExitStack() as hooks:
            for block, index, own in zip(self.blocks, self.indices, found, strict=True):
                handle = block.register_forward_hook(partial(self._average, attention_mask, index, own))
                hooks.callback(handle.remove)
            yield means
        for index, own in zip(self.indices, found, strict=True):
            if len(own) != 1:
                raise BackboneError(
                    f"{self.name} ran its block {index} {len(own)} times in one forward, and once was expected, so "
                    f"there is no one mean of its hidden states. {_WAY_OUT}"
                )
            means += own

    def _average(
        self, mask: Tensor, index: int, found: list[Tensor], _module: nn.Module, _inputs: Any, output: Any
    ) -> None:
        hidden = output[0] if isinstance(output, tuple | list) and output else output
        if not isinstance(hidden, Tensor) or hidden.shape != (*mask.shape, self.width):
            seen = f"a tensor of shape {list(hidden.shape)}" if isinstance(hidden, Tensor) else type(hidden).__name__
            raise BackboneError(
                f"Block {index} of {self.name} gives {seen} for {mask.shape[0]} texts of {mask.shape[1]} tokens; "
                f"hidden states {[*mask.shape, self.width]} were expected. {_WAY_OUT}"
            )
        mask = mask.to(hidden.device)  # of a model that is spread over devices
        # Padding is put to zero, not multiplied by it: whatever a model computes there may be NaN.
        text = hidden.masked_fill(mask.unsqueeze(-1) == 0, 0.0)
        found.append(text.sum(dim=1, dtype=torch.float32) / mask.sum(dim=1, keepdim=True))


def inner_layers(
    name: str, model: nn.Module, depths: Sequence[float], indices: Sequence[int] | None = None
) -> InnerLayers:
    """Find the blocks to read in a model of L blocks.

    Args:
        name: the model, for messages.
        model: any model that has a transformers configuration, itself or inside.
        depths: each in (0, 1], as a share of L: block round(depth · L) (halves to even), at least 1. Those that come to
            the same block read it once.
        indices: the blocks themselves, counted from 1, instead of `depths`: what a `BackboneIdentity` states.

    Raises:
        BackboneError: the blocks cannot be told from the model's other parts, or it has fewer.
    """
    if not (depths if indices is None else indices):
        return InnerLayers(name)
    blocks, width = find_blocks(name, model)
    count = len(blocks)
    wanted = [max(1, round(depth * count)) for depth in depths] if indices is None else list(indices)
    chosen = tuple(sorted(set(wanted)))
    if chosen[0] < 1 or chosen[-1] > count:
        raise BackboneError(
            f"{name} has {count} blocks, and hidden states after block {chosen[-1] if chosen[0] >= 1 else chosen[0]} "
            "are asked for. It is another model than the one this was made with; give that one."
        )
    return InnerLayers(name, chosen, tuple(blocks[index - 1] for index in chosen), width)


def find_blocks(name: str, model: nn.Module) -> tuple[nn.ModuleList, int]:
    """The blocks of a model in order, and h: the outermost list of as many modules as its configuration has layers.

    Of a model with encoder and decoder, the encoder's blocks: they run on the text's own tokens.

    Raises:
        BackboneError: no such list, several, or a configuration that states no number of layers or no hidden size.
    """
    config = _stack_config(model)
    count, width = getattr(config, "num_hidden_layers", None), getattr(config, "hidden_size", None)
    if not isinstance(count, int) or not isinstance(width, int):
        raise BackboneError(
            f"The blocks of {name} cannot be found: its configuration does not say how many there are and how long a "
            f"hidden state is (num_hidden_layers, hidden_size). {_WAY_OUT}"
        )
    lists = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    }
    outermost = [path for path in lists if not any(path.startswith(other + ".") for other in lists)]
    if len(outermost) > 1 and getattr(config, "is_encoder_decoder", False):
        outermost = [path for path in outermost if "encoder" in path.split(".")]
    if len(outermost) != 1:
        what = f"several lists of that many modules ({', '.join(outermost)})" if outermost else "no list of that many"
        raise BackboneError(
            f"The blocks of {name} cannot be found: its configuration says {count}, and the model has {what}. "
            f"{_WAY_OUT}"
        )
    return lists[outermost[0]], width


def _stack_config(model: nn.Module) -> Any:
    """The configuration of the outermost part that says how many layers it has; a family of one's own may have none."""
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        config = config.get_text_config() if hasattr(config, "get_text_config") else config
        if isinstance(getattr(config, "num_hidden_layers", None), int):
            return config
    return None
