"""A stand-in for an accelerator: tensors that are elsewhere and meet CPU tensors only as scalars, as on CUDA."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

#: No kernel computes there, so nothing can be there unless this module put it.
DEVICE = torch.device("meta")


class There(Tensor):
    """A tensor on DEVICE; its numbers are in `here`, on the CPU."""

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        self = Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=DEVICE, requires_grad=here.requires_grad,
        )  # fmt: skip
        self.here = here
        return self

    def tolist(self):
        return self.here.tolist()

    def __repr__(self):
        return f"There({self.here})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return _run(func, args, kwargs or {})


class _Function(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        # These make nothing on `meta`, and so would not come by the dispatcher.
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = kwargs.pop("device")
            return func(*args, **kwargs).to(device)
        return func(*args, **kwargs)


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    there = any(isinstance(tensor, There) for tensor in tensors)
    name = func.overloadpacket.__name__
    if there and name != "copy_" and any(not isinstance(t, There) and t.dim() for t in tensors):
        raise RuntimeError(f"{name}: tensors of two devices")
    device = kwargs.get("device")
    inner, options = tree_map(lambda leaf: leaf.here if isinstance(leaf, There) else leaf, (args, kwargs))
    result = func(*inner, **({**options, "device": "cpu"} if device is not None else options))
    if name.endswith("_") and args and isinstance(args[0], Tensor):
        return args[0]
    if there if device is None else device == DEVICE:
        return tree_map(lambda leaf: There(leaf) if isinstance(leaf, Tensor) else leaf, result)
    return result


@contextlib.contextmanager
def other_device() -> Iterator[torch.device]:
    """Within, `tensor.to(device)` and `device=` put tensors elsewhere, and mixing devices fails."""
    with _Dispatch(), _Function():
        yield DEVICE
