"""Stored files made wrong, as disks, editors, other programs and enemies make them."""

from __future__ import annotations

import json
from random import Random
from typing import Any

import torch

#: JSON that is put in place of a value, as text: Python's writer has no way to say some of it.
FRAGMENTS = (
    "null", "true", "0", "-1", "1.5", "1e308", "1e999", "NaN", "-Infinity", "1" + 30 * "0", "-1" + 30 * "0", '""',
    '"x"', '"\\u001b[2J=HYPERLINK(1)"', '"\\ud800"', "[]", "{}", "[1, 2]", '{"a": 1}', '[["x"]]', "9" * 5000,
    "[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000, "[" * 70 + "]" * 70, "[" + "0," * 50_000 + "0]",
)  # fmt: skip
_HERE = "@here@"


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values in a value of JSON, its own first."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


def mutated(data: bytes, draw: Random) -> bytes:
    """A JSON file's bytes with one fault."""
    how = draw.choice(("value", "value", "value", "value", "without", "with", "twice", "bytes"))
    if how == "bytes":
        return broken(data, draw)
    value = json.loads(data)
    path = draw.choice(places(value)[how != "value" :])
    fragment = draw.choice(FRAGMENTS)
    if not path:
        return fragment.encode()
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    again = holder[path[-1]]
    if how == "value":
        holder[path[-1]] = _HERE
    elif how == "without":
        del holder[path[-1]]
    elif isinstance(holder, dict):
        holder |= {"zq": _HERE} if how == "with" else {_HERE: again}
    text = json.dumps(value, ensure_ascii=False)
    return text.replace(json.dumps(_HERE), json.dumps(path[-1]) if how == "twice" else fragment).encode()


def broken(data: bytes, draw: Random) -> bytes:
    """A file's bytes cut, with one flipped, empty, with a byte order mark, or in another encoding."""
    at = draw.randrange(len(data))
    return draw.choice((
        data[:at], data[:at] + bytes([data[at] ^ draw.randrange(1, 256)]) + data[at + 1 :], b"",
        b"\xef\xbb\xbf" + data, b"\xff\xfe" + data, bytes(len(data)),
    ))  # fmt: skip


_NUMBERS = (float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e30)


def wrong_tensors(tensors: dict[str, torch.Tensor], draw: Random) -> tuple[str, str, dict[str, torch.Tensor]]:
    """(tensor's name, what was done to it, the tensors): another number, type, shape or order; none, or one more."""
    made = {name: tensor.clone() for name, tensor in tensors.items()}
    name = draw.choice(sorted(made))
    how = draw.choice(("number", "number", "type", "shape", "reversed", "missing", "surplus"))
    one = made[name]
    if how == "number":
        value = draw.choice(_NUMBERS if one.is_floating_point() else (0, -1, 2**30))
        flat = one.flatten()
        flat[draw.randrange(len(flat))] = value if one.dtype != torch.uint8 else 0
        made[name], how = flat.view(one.shape), f"{how} {value}"
    elif how == "type":
        made[name] = one.to(torch.float16 if one.dtype != torch.float16 else torch.float32)
    elif how == "shape":
        made[name] = draw.choice((one[None], one.flatten()[:0], torch.cat([one.flatten(), one.flatten()])))
    elif how == "reversed":
        made[name] = one.flip(0) if one.dim() else -one
    elif how == "missing":
        del made[name]
    else:
        made["zq"] = one.clone()
    return name, how, {key: tensor.contiguous() for key, tensor in made.items()}
