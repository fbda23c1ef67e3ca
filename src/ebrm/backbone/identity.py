"""Identity of a reward model: all that decides its rewards, and how it was run; what differs between two is named."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ebrm.errors import BackboneError
from ebrm.utils.files import sha256_file, sha256_json

#: The attention implementation of a reward model that was read from a server, which does not say what it uses.
SERVER = "server"

# Fields of config.json, at any depth, on which no reward depends: names, versions, labels, what is for generating or
# asked for at each call; and those that the identity has a field of its own for.
_NO_BEHAVIOR = frozenset({
    "_name_or_path", "name_or_path", "_commit_hash", "transformers_version", "use_cache", "return_dict",
    "output_hidden_states", "output_attentions", "torchscript", "id2label", "label2id", "finetuning_task",
    "problem_type", "architectures", "torch_dtype", "dtype", "attn_implementation", "_attn_implementation",
    "_attn_implementation_internal", "_attn_implementation_autoset",
})  # fmt: skip
# The same of adapter_config.json: the base model is compared by its own files, and dropout is for training.
_NO_ADAPTER_BEHAVIOR = frozenset({
    "base_model_name_or_path", "revision", "inference_mode", "task_type", "auto_mapping", "peft_version",
    "lora_dropout",
})  # fmt: skip
# Lists of adapter_config.json that are sets: peft writes them in any order.
_SETS = frozenset({"target_modules", "exclude_modules", "modules_to_save", "target_parameters"})
# The same of tokenizer_config.json; the chat template is compared as it was loaded, from whichever file.
_NO_TOKENIZER_BEHAVIOR = frozenset({
    "name_or_path", "_commit_hash", "tokenizer_file", "special_tokens_map_file", "transformers_version",
    "chat_template",
})  # fmt: skip
# Files that a tokenizer is made from.
_TOKENIZER_FILES = (
    "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "vocab.txt", "merges.txt",
    "dict.txt", "*.model", "*.tiktoken", "*.codes", "*.vocab",
)  # fmt: skip
_TOKENIZER_CONFIG = "tokenizer_config.json"

_ABSENT = "absent"
_SHOWN = 4


@dataclass(frozen=True)
class BackboneIdentity:
    """Identity of a reward model: all that decides its outputs for given token ids.

    Attributes:
        name: the Hub name or folder it was loaded by.
        revision: the Hub commit, None for a folder; not compared, what lies there is.
        weights_fingerprint: SHA-256 over its weight files.
        architecture: class of the model.
        head_module: name of the reward head, as in the checkpoint.
        dtype: precision it ran in ("bfloat16", …).
        attention: attention implementation ("sdpa", …); "server" where it ran in a vLLM or SGLang server.
        layers: the blocks, counted from 1, whose hidden states were averaged into the embedding; () for none.
        base: an adapter's base model, if it was named otherwise than the adapter does; not compared, but found by.
        config: `config.json` without fields that no reward depends on; of an adapter that of its base model.
        adapter: the same of `adapter_config.json`; {} for a whole model.
        tokenizer: SHA-256 of each of the tokenizer's files.
        template: SHA-256 of the chat template it brings, None without one.
        code: SHA-256 of each Python file that it brings; {} unless they may run.
        probe: rewards of fixed texts, (): not measured; compared by `ebrm.backbone.probe`, up to rounding.
    """

    name: str
    revision: str | None
    weights_fingerprint: str
    architecture: str
    head_module: str
    dtype: str
    attention: str
    layers: tuple[int, ...] = ()
    base: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict, hash=False)
    adapter: Mapping[str, Any] = field(default_factory=dict, hash=False)
    tokenizer: Mapping[str, str] = field(default_factory=dict, hash=False)
    template: str | None = None
    code: Mapping[str, str] = field(default_factory=dict, hash=False)
    probe: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The identity as JSON values; those of `_OPTIONAL` are left out where there are none."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values |= {"layers": list(self.layers), "probe": list(self.probe)}
        return {name: value for name, value in values.items() if name not in _OPTIONAL or value}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneIdentity:
        """The identity of a `to_dict()`; BackboneError where a field that is always there is missing."""
        values = {**_OPTIONAL, **values}
        missing = [f.name for f in fields(cls) if f.name not in values]
        if missing:
            raise BackboneError(
                f"The stored identity of the reward model lacks {', '.join(missing)} (it has "
                f"{', '.join(sorted(values))}). It was made by an earlier version or is damaged; make the features or "
                "the model again."
            )
        found = {f.name: values[f.name] for f in fields(cls)}
        return cls(**found | {"layers": tuple(found["layers"]), "probe": tuple(found["probe"])})

    def mismatch(
        self, other: BackboneIdentity, *, ours: str = "here", theirs: str = "there", exact: bool = False
    ) -> str | None:
        """How two reward models differ (names do not count), naming both sides; None when they are the same.

        `exact` also compares dtype and attention implementation, which move rewards by rounding only. The probe is
        compared by :func:`ebrm.backbone.probe.probe_mismatch`.
        """
        mine, others = self.to_dict(), other.to_dict()
        parts = differing_parts(mine, others, ours, theirs, ignore=() if exact else ("dtype", "attention"))
        if not parts:
            return None
        only_layers = all(getattr(self, f) == getattr(other, f) for f in _COMPARED if f != "layers")
        what = "the embedding" if only_layers and self.layers != other.layers else "the reward model"
        return f"{what} differs: {self._call()} {ours}, {other._call()} {theirs}; " + "; ".join(parts)

    def _call(self) -> str:
        return self.name + (f"@{self.revision[:12]}" if self.revision else "")


# Fields that are left out of JSON where they are empty.
_OPTIONAL: dict[str, Any] = {"layers": (), "base": None, "adapter": {}, "template": None, "code": {}, "probe": ()}
_COMPARED = (
    "weights_fingerprint", "head_module", "architecture", "layers", "config", "adapter", "tokenizer", "template",
    "code",
)  # fmt: skip
#: What the fields are called that hold several values.
_CALLED = {
    "config": "configuration",
    "adapter": "adapter's configuration",
    "tokenizer": "tokenizer",
    "code": "model's own code",
}


def differing_parts(
    mine: Mapping[str, Any], other: Mapping[str, Any], ours: str, theirs: str, ignore: Iterable[str] = ()
) -> list[str]:
    """Sentences on the parts in which two identities in JSON (`to_dict()`) differ; names and the probe do not count."""
    left, right = ({**_OPTIONAL, **side} for side in (mine, other))
    parts = []
    for name in (*_COMPARED, "dtype", "attention"):
        a, b = left.get(name), right.get(name)
        if name in ignore or a == b or (name == "layers" and list(a or ()) == list(b or ())):
            continue
        if name in ("tokenizer", "code"):
            files = [file for file in sorted({*(a or {}), *(b or {})}) if (a or {}).get(file) != (b or {}).get(file)]
            parts.append(f"the {_CALLED[name]} differs ({', '.join(files[:_SHOWN])})")
        elif name in _CALLED:
            parts.append(f"the {_CALLED[name]} differs ({_differing_values(a or {}, b or {}, ours, theirs)})")
        elif name == "template":
            parts.append(f"the chat template differs (SHA-256 {_short(a)} {ours} and {_short(b)} {theirs})")
        else:
            parts.append(f"{name} is {_short(a)} {ours} and {_short(b)} {theirs}")
    return parts


def _differing_values(mine: Mapping[str, Any], other: Mapping[str, Any], ours: str, theirs: str) -> str:
    left, right = _leaves(mine), _leaves(other)
    names = [name for name in sorted({*left, *right}) if left.get(name, _ABSENT) != right.get(name, _ABSENT)]
    said = [f"{n} is {left.get(n, _ABSENT)} {ours} and {right.get(n, _ABSENT)} {theirs}" for n in names[:_SHOWN]]
    more = len(names) - _SHOWN
    return "; ".join(said) + (f"; and {more} more" if more > 0 else "")


def _leaves(value: Any, prefix: str = "") -> dict[str, str]:
    """Dotted name → its value in JSON, shortened; what is null is not absent."""
    if isinstance(value, Mapping) and (value or not prefix):
        parts = (_leaves(entry, f"{prefix}.{key}" if prefix else str(key)) for key, entry in value.items())
        return {name: said for part in parts for name, said in part.items()}
    text = json.dumps(value, ensure_ascii=False)
    return {prefix: text if len(text) <= 80 else f"{text[:60]}… (SHA-256 {sha256_json(value)[:8]})"}


def fingerprint(files: Iterable[tuple[str, Path]]) -> str:
    """SHA-256 of the sorted list of (name, SHA-256) of weight files; an adapter's names begin with `adapter/`."""
    return sha256_json(sorted([name, sha256_file(path)] for name, path in files))


def config_behavior(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `config.json` that may change the forward: all but an explicit few."""
    found: dict[str, Any] = _without(config, _NO_BEHAVIOR)
    return found


def adapter_behavior(config: Mapping[str, Any] | None) -> dict[str, Any]:
    """The fields of an `adapter_config.json` that may change the forward; {} for None."""
    kept = {name: value for name, value in (config or {}).items() if name not in _NO_ADAPTER_BEHAVIOR}
    sets = {
        name: sorted({str(entry) for entry in kept[name]})
        for name in _SETS & kept.keys()
        if isinstance(kept[name], list)
    }
    found: dict[str, Any] = _without(kept | sets, frozenset())
    return found


def tokenizer_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder that decides the token ids of a text."""
    names = {file.name for pattern in _TOKENIZER_FILES for file in folder.glob(pattern) if file.is_file()}
    found = {name: sha256_file(folder / name) for name in names}
    if (folder / _TOKENIZER_CONFIG).is_file():
        found[_TOKENIZER_CONFIG] = _config_digest(folder / _TOKENIZER_CONFIG)
    return dict(sorted(found.items()))


def code_files(folder: Path) -> dict[str, str]:
    """SHA-256 of each Python file of a folder."""
    return {file.name: sha256_file(file) for file in sorted(folder.glob("*.py")) if file.is_file()}


def _config_digest(path: Path) -> str:
    """Of a `tokenizer_config.json`, without fields that no token id depends on; of its bytes where it is no JSON."""
    try:
        values = json.loads(path.read_bytes())
        return sha256_json({k: v for k, v in values.items() if k not in _NO_TOKENIZER_BEHAVIOR})
    except (ValueError, AttributeError, RecursionError):
        return sha256_file(path)


def _without(value: Any, names: frozenset[str]) -> Any:
    """A JSON value without entries of these names, at any depth; numbers that are not finite as text."""
    if isinstance(value, Mapping):
        return {str(key): _without(entry, names) for key, entry in value.items() if key not in names}
    if isinstance(value, list):
        return [_without(entry, names) for entry in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _short(value: object) -> str:
    if isinstance(value, tuple | list):
        return ",".join(map(str, value)) or "none"
    text = str(value)
    return text[:12] if len(text) == 64 else text
