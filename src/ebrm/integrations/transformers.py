"""An energy reward model as a transformers model: configuration, classifier, and the folders that they load from."""

from __future__ import annotations

import copy
import glob
import logging
import os
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.utils.generic import ModelOutput

from ebrm.backbone import (
    BackboneIdentity,
    Forward,
    ValueHeadModel,
    float32_head,
    inner_layers,
    model_limit,
    quiet,
    refuse_missing,
    require_linear,
    unreadable,
    vocabulary_size,
)
from ebrm.backbone.provenance import license_files, provenance
from ebrm.data import TextRule
from ebrm.errors import BackboneError, DataError, ModelError, TextTooLongError
from ebrm.hub import AS_IT_IS, write_card, write_energy, write_model
from ebrm.integrations.checksums import check_checksums, folder_checksums
from ebrm.integrations.tokenizer import first_difference, make_tokenizer
from ebrm.model import EnergyRewardModel, ModelRecord
from ebrm.utils.locks import lock_beside, locked
from ebrm.utils.outputs import place_of, refuse_unmovable, tidy

logger = logging.getLogger(__name__)

# Options of `from_pretrained` for the Hub, which transformers and ebrm have in common.
_HUB = ("revision", "cache_dir", "token", "local_files_only")
# Options that have no effect on a base RM that is referred to.
_IGNORED = ("low_cpu_mem_usage", "use_safetensors", "force_download", "num_labels", "adapter_kwargs", "_from_auto",
            "_commit_hash")  # fmt: skip
_EXPORT = "`ebrm export MODEL --out FOLDER --standalone`"
# Entries of a base RM's configuration that are not needed to build it.
_NOT_NEEDED = ("_name_or_path", "architectures", "auto_map", "transformers_version")


class EBRMConfig(PretrainedConfig):
    """`config.json` of an energy reward model: every field of :class:`ebrm.model.ModelRecord`, as plain JSON values.

    Attributes:
        base: how to build the base RM whose weights are in the same folder (:func:`describe_base`); None where the
            folder refers to the base RM by name, revision and fingerprint.
        own_tokenizer: the folder's tokenizer is to be used instead of that of the base RM it refers to.
        sha256: checksums of `base` and of the folder's weights and tokenizer; {} where they are not in the folder.
    """

    model_type = "ebrm"

    def __init__(
        self,
        base: dict[str, Any] | None = None,
        own_tokenizer: bool = False,
        sha256: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("id2label") is None:
            kwargs.setdefault("num_labels", 1)
        for name, value in AS_IT_IS.items():
            kwargs[name] = kwargs.get(name) or copy.deepcopy(value)
        super().__init__(**kwargs)
        self.base, self.own_tokenizer, self.sha256 = base, own_tokenizer, sha256 or {}

    def record(self) -> dict[str, Any]:
        """The fields of :class:`ebrm.model.ModelRecord` among the attributes, and `fusion`."""
        names = [*(f.name for f in fields(ModelRecord)), "fusion"]
        return {name: getattr(self, name) for name in names if hasattr(self, name)}


@dataclass
class EBRMOutput(ModelOutput):
    """Refined rewards of n texts, float32, in the base RM's units: `logits` [n, 1], and as in `RefinedReward`."""

    logits: Tensor | None = None  # the refined rewards
    base_reward: Tensor | None = None  # [n]
    std: Tensor | None = None  # [n], of the fitted density
    interval: Tensor | None = None  # [n, 2], central; 90% unless the model's inference says otherwise


class EBRMForSequenceClassification(PreTrainedModel):
    """Sequence classifier of transformers: a frozen reward model and the head that refines its rewards.

    Load one with `from_pretrained` (also through `AutoModelForSequenceClassification`, see :func:`ebrm.register`), or
    wrap a model in memory with :meth:`wrap`. It only scores: there are no gradients, and it stays in evaluation mode.

    `base` is the RM, in the precision and on the device that transformers is given; `energy` the fitted model, always
    float32, where `base` is, and None until loaded.
    """

    config_class = EBRMConfig
    main_input_name = "input_ids"
    base_model_prefix = "base"
    # Which implementations of attention there are is decided by the base RM.
    _supports_sdpa = _supports_flash_attn = _supports_flash_attn_2 = _supports_flex_attn = True
    _supports_attention_backend = True

    def __init__(self, config: EBRMConfig, base: nn.Module | None = None, head: str | None = None) -> None:
        wanted = config._attn_implementation  # the next line puts in a default
        super().__init__(config)
        description = config.base or {}
        if not description and (base is None or head is None):
            raise ModelError(
                "This configuration refers to a base RM by name and fingerprint, and holds no description to build it "
                "from. Load the model with EBRMForSequenceClassification.from_pretrained."
            )
        self.base = build_base(description, wanted) if base is None else base
        self._head_path: str = head if head is not None else description["head"]
        self.energy: EnergyRewardModel | None = None
        self._identity = BackboneIdentity.from_dict(config.backbone)
        self._rule = TextRule.from_identity(config.text_rule)
        self._layers = inner_layers(self._identity.name, self.base, (), self._identity.layers)
        self._limit = model_limit(self.base)
        self._checked = False
        self.post_init()
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> EBRMOutput | tuple[Tensor, ...]:
        """Refined rewards of texts.

        Args:
            input_ids: token ids [n, L] of whole texts, tokenized by the model's text rule.
            attention_mask: [n, L], 1 where there is text, on whichever side the padding is. Without it every token is
                taken for text; that is refused where several rows begin or end in `config.pad_token_id`.
            return_dict: False gives the output as a tuple.
            others: `token_type_ids` that are all 0, and switches that are off; nothing else.

        Raises:
            TextTooLongError: a text is longer than the text rule or the base RM allows; nothing is cut here.
            ModelError, BackboneError: another input or output, a row without or with unknown tokens, no energy loaded.
        """
        if self.energy is None:
            raise ModelError("This model was built from a configuration alone: load it with from_pretrained.")
        kinds = others.pop("token_type_ids", None)
        if kinds is not None and bool(kinds.any()):
            raise ModelError("token_type_ids are not all 0. An ebrm model reads one text a row, never two segments.")
        others.pop("use_cache", None)
        unknown = sorted(name for name, value in others.items() if value is not None and value is not False)
        if unknown:
            raise ModelError(
                f"EBRMForSequenceClassification takes input_ids and attention_mask; {', '.join(unknown)} cannot be "
                "used. It scores whole texts and is not trained: fit with `ebrm fit`."
            )
        rows = self._rows(input_ids, attention_mask)
        assert input_ids is not None
        device = self.base.get_input_embeddings().weight.device  # type: ignore[operator]
        with torch.autocast(device.type, enabled=False), torch.autocast("cpu", enabled=False):
            embedding = self._read(rows, device)
            head = self._head()
            if self.energy.head.device != device:
                with torch.inference_mode(False):
                    self.energy.to(device)
            refined = self.energy.refine(embedding, float32_head(head)(embedding))
        found = [refined.reward[:, None], refined.base_reward, refined.std, refined.interval]
        output = EBRMOutput(*(value.to(input_ids.device) for value in found))
        return output.to_tuple() if return_dict is False else output

    def _read(self, rows: list[list[int]], device: torch.device) -> Tensor:  # -> [n, d]
        name = self._identity.name
        forward = Forward(
            name=name, head_module=self._identity.head_module, model=self.base, head=self._head(), layers=self._layers,
            pad=self.config.pad_token_id or 0, device=device, limit=self._limit,
        )  # fmt: skip
        vocabulary = vocabulary_size(self.base)
        for row, ids in enumerate(rows):
            if (why := unreadable(name, ids, self._limit, vocabulary)) is not None:
                raise BackboneError(f"Row {row} {why}")
        if not rows:
            return torch.empty(0, self._head().in_features + self._layers.size)
        embedding = forward.embed(rows, check=not self._checked)
        finite = embedding.isfinite().all(dim=1)
        self._checked = self._checked or bool(finite.any())
        if not bool(finite.all()):
            row = int((~finite).nonzero()[0])
            advice = "Load it with dtype=torch.bfloat16 or float32." if self.dtype == torch.float16 else ""
            raise BackboneError(
                f"{name} gives {int((~finite).sum())} of {len(rows)} texts an embedding that is not a finite number, "
                f"first row {row} ({len(rows[row])} tokens, {self.dtype}). {advice}".rstrip()
            )
        return embedding

    def _rows(self, input_ids: Tensor | None, attention_mask: Tensor | None) -> list[list[int]]:
        if input_ids is None or input_ids.dim() != 2:
            seen = "nothing" if input_ids is None else f"a tensor of shape {list(input_ids.shape)}"
            raise ModelError(f"input_ids is {seen}; token ids [texts, tokens] were expected.")
        if attention_mask is None:
            pad, ends = self.config.pad_token_id, torch.cat([input_ids[:, :1], input_ids[:, -1:]])
            if pad is not None and len(input_ids) > 1 and bool((ends == pad).any()):
                raise ModelError(
                    f"Some of the {len(input_ids)} rows begin or end in the padding token {pad}, and there is no "
                    "attention_mask to tell padding from text. Pass the tokenizer's attention_mask."
                )
            rows = input_ids.tolist()
        elif attention_mask.shape != input_ids.shape:
            raise ModelError(
                f"attention_mask has the shape {list(attention_mask.shape)} and input_ids {list(input_ids.shape)}; a "
                "mask [texts, tokens] was expected."
            )
        else:
            pairs = zip(input_ids.tolist(), attention_mask.tolist(), strict=True)
            rows = [[token for token, text in zip(ids, mask, strict=True) if text] for ids, mask in pairs]
        longest = min(self._rule.max_length, self._limit or self._rule.max_length)
        long = [row for row, ids in enumerate(rows) if len(ids) > longest]
        if long:
            raise TextTooLongError(
                f"{len(long)} of {len(rows)} texts are too long, first row {long[0]}: it has {len(rows[long[0]])} "
                f"tokens, and the limit is {longest}. They are not cut here: shorten them (in TRL: shorter prompts or "
                "max_completion_length), or score texts, which can be cut by the text rule, with EnergyRewardModel."
            )
        return rows

    def _head(self) -> nn.Linear:
        return require_linear(self._identity.name, self._head_path, self.base.get_submodule(self._head_path))

    @property
    def score(self) -> Any:
        """Refuses: a refined reward belongs to a whole text. TRL's PPO looks here for a head over hidden states."""
        raise ModelError(
            "A refined reward belongs to a whole text, so EBRMForSequenceClassification has no head that hidden states "
            "could be given to: call the model itself and read .logits. Trainers that score hidden states token by "
            "token (TRL's PPO) cannot use it; GRPOTrainer and RLOOTrainer can."
        )

    @property
    def base_model(self) -> nn.Module:
        """This model itself."""
        return self

    def get_input_embeddings(self) -> nn.Module:
        """The base RM's table of token embeddings."""
        return self.base.get_input_embeddings()  # type: ignore[operator]

    def train(self, mode: bool = True) -> EBRMForSequenceClassification:
        """Stay in evaluation mode: the model is frozen."""
        return super().train(False)

    @classmethod
    def wrap(cls, model: EnergyRewardModel, config: EBRMConfig | None = None) -> EBRMForSequenceClassification:
        """An :class:`EnergyRewardModel` as a transformers model; its base RM, which must run here, is not copied."""
        backbone = model.backbone
        if not isinstance(getattr(backbone, "model", None), nn.Module):
            raise ModelError(
                f"{backbone.identity.name} runs in a server, so there is no model to wrap. Load it without a server."
            )
        if config is None:
            config = EBRMConfig(**model.written())
        head = next(path for path, part in backbone.model.named_modules() if part is backbone.forward.head)
        config.base = describe_base(backbone.model, head)
        if not config.own_tokenizer:
            config._name_or_path = backbone.identity.name
        config.dtype = next(backbone.model.parameters()).dtype
        config.pad_token_id = backbone.forward.pad
        wrapped = cls(config, backbone.model, head)
        wrapped.energy = model
        return wrapped

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, config: Any = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """Load a folder or Hub repository, standalone or one that refers to its base RM.

        Args:
            name: the folder or `owner/name`.
            args: as for every transformers model.
            config: an `EBRMConfig` to use instead of the folder's own.
            kwargs: as for every transformers model (`dtype`, `device_map`, `revision`, …). Where the base RM is
                referred to, `dtype` is that of the fit unless given, and `device_map` can name one device only.

        Raises:
            ModelError: files that are missing, damaged or do not belong together, or weights that the checkpoint
                lacks: nothing is ever left random.
        """
        hub = {key: kwargs[key] for key in _HUB if key in kwargs}
        if kwargs.get("subfolder"):
            raise ModelError("subfolder is not supported: give the folder or repository that holds config.json.")
        with_info = kwargs.pop("output_loading_info", False)
        energy = EnergyRewardModel.from_pretrained(name, **hub)
        if config is None:
            config = EBRMConfig.from_pretrained(name, **hub)
        if config.base is not None or config.own_tokenizer:
            check_checksums(str(name), config.sha256, config.base, hub)
        if config.base is None:
            model: Any = cls._refer(energy, name, config, kwargs)
            info: dict[str, Any] = {}
        else:
            kwargs["use_safetensors"] = True  # a pickle beside them was never exported
            loaded: Any = super().from_pretrained(name, *args, config=config, output_loading_info=True, **kwargs)
            model, info = loaded
            refuse_missing(str(name), [*info["missing_keys"], *(str(key) for key in info["mismatched_keys"])])
            model.requires_grad_(False)
            model.energy = energy
            model._head()  # refused where it is quantized
        return (model, info) if with_info else model

    @classmethod
    def _refer(
        cls, energy: EnergyRewardModel, name: Any, config: EBRMConfig, options: dict[str, Any]
    ) -> EBRMForSequenceClassification:
        options = {"attn_implementation": config._attn_implementation} | options  # an Auto class puts it there
        energy = energy.with_backbone(**backbone_changes(options))
        backbone = energy.backbone
        if not config.own_tokenizer:
            different = first_difference(backbone.text_rule, backbone.tokenizer, backbone.tokenizer)
            if different is not None:
                logger.warning(
                    "The tokenizer of %s does not by itself render texts as the model was fitted on (%s). Where a "
                    "library tokenizes by itself, as TRL does, give it a folder made by `ebrm export` instead "
                    "of %s.", backbone.identity.name, different, name,
                )  # fmt: skip
        else:
            config._name_or_path = str(name)
        return cls.wrap(energy, config)

    def save_pretrained(  # type: ignore[override]
        self, save_directory: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Write a standalone folder, but for the tokenizer (as `export` does).

        Raises:
            ModelError: a base RM that transformers cannot build from a configuration.
        """
        if self.energy is None or self.config.base is None:
            raise ModelError(
                f"{self._identity.name} ({self._identity.architecture}) cannot be written into a standalone folder: "
                "transformers cannot build such a model from a configuration. Save the EnergyRewardModel, which refers "
                "to it (`ebrm export MODEL --out FOLDER`)."
            )
        hub = {key: kwargs.pop(key) for key in ("repo_id", "commit_message", "private", "create_pr") if key in kwargs}
        folder = Path(save_directory)
        if kwargs.get("is_main_process", True):
            for key, value in write_energy(folder, self.energy.tensors()).items():
                setattr(self.config, key, value)
            record = self.config.record()
            for name, path in self._license_files().items():
                record["provenance"] = (record.get("provenance") or provenance(record["backbone"])) | {"files": True}
                shutil.copyfile(path, folder / name)
            write_card(folder, record, standalone=True)
        super().save_pretrained(save_directory, **kwargs)
        if kwargs.get("is_main_process", True):
            self.config.sha256 = folder_checksums(folder, self.config.base, tokenizer=False)
            self.config.save_pretrained(folder)
        if push_to_hub:
            self.push_to_hub(hub.pop("repo_id", folder.name), **hub)

    def _license_files(self) -> dict[str, Path]:
        """License files to go with the base RM's weights: those beside it, or in the folder this was loaded from."""
        found = license_files(self._identity.to_dict())
        return found or license_files({"name": str(self.config._name_or_path)})


# Importing this module is enough for the Auto classes; `ebrm.register` does it lazily.
AutoConfig.register(EBRMConfig.model_type, EBRMConfig, exist_ok=True)
AutoModelForSequenceClassification.register(EBRMConfig, EBRMForSequenceClassification, exist_ok=True)


def describe_base(model: nn.Module, head: str) -> dict[str, Any] | None:
    """How to build a base RM from nothing but its weights: JSON values, or None where transformers and ebrm cannot.

    `config` is transformers' configuration; `head` the place of the last linear map; `maps`, for a value head that
    transformers has no class for (:class:`ValueHeadModel`), the [inputs, outputs, has bias] of its linear maps; `bias`
    is there, and true, where the head has one that transformers' class does not.
    """
    config = getattr(model, "config", None)
    if config is None or not getattr(config, "model_type", ""):
        return None
    values = {name: value for name, value in config.to_dict().items() if name not in _NOT_NEEDED}
    maps = None
    if isinstance(model, ValueHeadModel):
        parts = [model.head] if isinstance(model.head, nn.Linear) else list(model.head)
        linears = [part for part in parts if isinstance(part, nn.Linear)]
        maps = [[part.in_features, part.out_features, part.bias is not None] for part in linears]
    description: dict[str, Any] = {"config": values, "head": head, "maps": maps}
    candidates = [description, description | {"bias": True}] if maps is None else [description]
    return next((candidate for candidate in candidates if _same(model, candidate)), None)


def build_base(description: dict[str, Any], attention: str | None = None) -> nn.Module:
    """Build a base RM from :func:`describe_base`'s values; its weights are still to be loaded."""
    values = dict(description["config"])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    config.dtype = torch.get_default_dtype()  # whoever loads the weights has set it
    more = {} if attention is None else {"attn_implementation": attention}
    if description["maps"] is None:
        built = AutoModelForSequenceClassification.from_config(config, **more)
        if description.get("bias"):
            linear = built.get_submodule(description["head"])
            linear.bias = nn.Parameter(linear.weight.new_zeros(linear.out_features))
        return built
    base = AutoModel.from_config(config, **more)
    parts: list[nn.Module] = []
    for inputs, outputs, bias in description["maps"]:
        parts += [nn.ReLU()] if parts else []
        parts.append(nn.Linear(inputs, outputs, bias=bias))
    return ValueHeadModel(base, nn.Sequential(*parts) if len(parts) > 1 else parts[0])  # type: ignore[arg-type]


def _same(model: nn.Module, description: dict[str, Any]) -> bool:
    """Whether the description builds the same class of model with tensors of the same names and shapes."""
    try:
        with torch.device("meta"):
            built = build_base(description)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError):
        return False
    inner = [part.base if isinstance(part, ValueHeadModel) else part for part in (model, built)]
    shapes = [{name: tensor.shape for name, tensor in part.state_dict().items()} for part in (model, built)]
    return type(inner[0]) is type(inner[1]) and shapes[0] == shapes[1]


def backbone_changes(options: dict[str, Any]) -> dict[str, Any]:
    """Fields of `BackboneConfig` from the options of a transformers `from_pretrained`; ModelError for any other."""
    known = (*_HUB, *_IGNORED)
    options = {key: value for key, value in options.items() if key not in known and value not in (None, {})}
    device = options.pop("device_map", "cpu")
    if isinstance(device, dict) and set(device) == {""}:
        device = device[""]
    if not isinstance(device, int | str | torch.device):
        raise ModelError(
            f"device_map is {device!r}, but a base RM that is referred to is loaded on one device. Name one, or export "
            f"the model first ({_EXPORT}) and load that."
        )
    changes: dict[str, Any] = {"device": f"cuda:{device}" if isinstance(device, int) else str(device)}
    dtype = options.pop("dtype", options.pop("torch_dtype", None))
    if dtype is not None:
        changes["dtype"] = str(dtype).removeprefix("torch.")
    if "attn_implementation" in options:
        changes["attention"] = options.pop("attn_implementation")
    changes["trust_remote_code"] = bool(options.pop("trust_remote_code", False))
    if options:
        raise ModelError(
            f"{', '.join(sorted(options))} cannot be used where the folder refers to its base RM. Export the model "
            f"first ({_EXPORT}) and load that."
        )
    return changes


def export(model: EnergyRewardModel, out: str | Path, standalone: bool = False) -> Path:
    """Write a folder that `AutoModelForSequenceClassification.from_pretrained` loads once ebrm is registered.

    It holds the head (`energy.safetensors`), the configuration, a model card, and a tokenizer whose chat template
    renders texts as `ebrm.data.tokenize` does, start and end tokens included.

    Args:
        model: a fitted model; its base RM is loaded.
        out: the folder, which must not exist yet or be empty. It appears complete or not at all.
        standalone: also write the base RM's weights, instead of its name, revision and fingerprint.

    Raises:
        DataError: something is at `out`, or another run writes it.
        ModelError: fitted on features made elsewhere; a tokenizer that cannot render such texts; for a standalone
            folder, a base RM that transformers cannot build from a configuration.
    """
    place = place_of(out)
    refuse_used(place)
    refuse_unmovable(place, out)
    with locked(lock_beside(place), str(out)):
        tidy(place.parent, glob.escape(place.name))
        refuse_used(place)
        _export(model, place, standalone)
    return Path(out)


def _export(model: EnergyRewardModel, out: Path, standalone: bool) -> None:
    backbone = model.backbone
    tokenizer = make_tokenizer(backbone.text_rule, backbone.tokenizer)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        if standalone:
            wrapped = EBRMForSequenceClassification.wrap(model)
            with quiet():
                wrapped.save_pretrained(partial)
                tokenizer.save_pretrained(partial)
            wrapped.config.sha256 = folder_checksums(partial, wrapped.config.base, tokenizer=True)
            wrapped.config.save_pretrained(partial)
        else:
            tokenizer.save_pretrained(partial)
            write_model(partial, model.written(), model.tensors(), folder_checksums(partial, None, tokenizer=True))
        for path in partial.iterdir():
            with open(path, "rb") as handle:
                os.fsync(handle.fileno())
        os.replace(partial, out)  # over an empty folder, or nothing
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def refuse_used(out: Path) -> None:
    """DataError where `out`, a folder to write, is a file or holds something already."""
    if out.is_dir() and any(out.iterdir()):
        raise DataError(f"{out} exists already and is not empty; it was left as it is. Choose another `out`.")
    if out.exists() and not out.is_dir():
        raise DataError(f"{out} is a file; it was left as it is. Choose an `out` that does not exist yet.")
