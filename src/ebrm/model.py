"""EnergyRewardModel: a frozen reward model, the density fitted on its features, and the verbs people use."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import ModelHubMixin
from torch import Tensor

from ebrm.backbone import BackboneConfig, BackboneIdentity
from ebrm.data import Message, TextConfig, TextRule
from ebrm.errors import ModelError, TextError
from ebrm.heads import (
    EmbeddingSource,
    FiniteRows,
    FitConfig,
    HeadConfig,
    InferenceConfig,
    NetworkConfig,
    RewardPosterior,
    load_posterior,
    refuse_not_finite,
)
from ebrm.hub import download_model, read_model, write_model
from ebrm.utils.files import sha256_json

if TYPE_CHECKING:
    from ebrm.backbone import Backbone

logger = logging.getLogger(__name__)

Prompt = str | Sequence[Message]


@dataclass(frozen=True)
class RefinedReward:
    """Refined rewards of n responses: float32 CPU tensors in the base RM's units.

    Attributes:
        reward: the refined reward [n].
        base_reward: what the frozen RM says [n].
        std: standard deviation of r given the response, under the fitted density [n].
        interval: central interval [n, 2] (90% unless the inference settings say otherwise).
        log_density: log p(reward | e) [n], per base unit.
        delta: reward - base_reward [n].
    """

    reward: Tensor
    base_reward: Tensor
    std: Tensor
    interval: Tensor
    log_density: Tensor
    delta: Tensor

    def __len__(self) -> int:
        return len(self.reward)

    def to_rows(self) -> list[dict[str, float]]:
        """One plain dictionary a response, as `ebrm score` writes it."""
        columns = {
            "reward": self.reward,
            "base_reward": self.base_reward,
            "std": self.std,
            "interval_low": self.interval[:, 0],
            "interval_high": self.interval[:, 1],
            "log_density": self.log_density,
            "delta": self.delta,
        }
        values = {name: column.tolist() for name, column in columns.items()}
        return [{name: values[name][i] for name in columns} for i in range(len(self))]


@dataclass(frozen=True)
class Ranked:
    """One response in a ranking.

    Attributes:
        index: its place in the list that was given.
        response: its text.
        reward, base_reward, std: as in :class:`RefinedReward`, base units.
        p_best: P(its reward is the largest of the list's) under the fitted densities, taken as independent.
    """

    index: int
    response: str
    reward: float
    base_reward: float
    std: float
    p_best: float


@dataclass(frozen=True)
class ModelRecord:
    """What a model is made of, beside its weights: everything that `config.json` holds.

    Attributes:
        backbone: identity of the frozen RM (name, revision, weights fingerprint, …), as in the features' manifest.
        text_rule: identity of the text rule; None for features made elsewhere, which know no texts.
        network, training, inference: settings of the energy, and of how rewards are read off it.
        head: settings of the head that stands in the energy's place, see :mod:`ebrm.energy.heads`; None for the energy.
        data: origin, fingerprint and counts of the pairs.
        filter: the conflict filter's report.
        history: one entry an epoch; `best_epoch` is the one kept.
        metrics: measured numbers, empty until an evaluation is recorded.
    """

    network: NetworkConfig = NetworkConfig()
    training: FitConfig = FitConfig()
    inference: InferenceConfig = InferenceConfig()
    head: HeadConfig | None = None
    backbone: dict[str, Any] = field(default_factory=dict)
    text_rule: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    filter: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    best_epoch: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values: `head` where there is one, else `network` and `training`."""
        without = {"head"} if self.head is None else {"network", "training"}
        return {name: value for name, value in asdict(self).items() if name not in without}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelRecord:
        """Build the record back from :meth:`to_dict`'s values after JSON.

        Raises:
            TypeError, KeyError: a field that is missing or unknown.
        """
        built = dict(values)
        energy: dict[str, Any] = {"network": NetworkConfig, "training": FitConfig}
        kinds: dict[str, Any] = {"head": HeadConfig} if built.get("head") else energy
        for name, kind in (kinds | {"inference": InferenceConfig}).items():
            # JSON has lists where the settings have tuples.
            entries = {k: tuple(v) if isinstance(v, list) else v for k, v in built[name].items()}
            built[name] = kind(**entries)
        built["history"] = tuple(built.get("history", ()))
        return cls(**built)


class EnergyRewardModel(
    ModelHubMixin, library_name="ebrm", tags=["reward-model", "energy-based-model", "ebrm"], license="apache-2.0"
):
    """A frozen scalar reward model and the density p(r | e) that refines its rewards (EBRM, arXiv 2504.13134).

    In the density's place another head over the same embeddings can stand (`record.head`, :mod:`ebrm.energy.heads`).

    Make one with :func:`ebrm.fitting.fit` (also :meth:`fit`), load one with :meth:`from_pretrained`. The backbone is
    referred to by name, revision and fingerprint, and is loaded when a text is first scored; `refine` needs only
    features.
    """

    def __init__(
        self,
        density: RewardPosterior,
        record: ModelRecord,
        backbone: Backbone | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
    ) -> None:
        self.density_model: RewardPosterior = density.eval()
        self.record = record
        self._backbone = backbone
        self._device, self._trust_remote_code = device, trust_remote_code

    @classmethod
    def fit(cls, *args: Any, **kwargs: Any) -> EnergyRewardModel:
        """Fit a model: the same as :func:`ebrm.fitting.fit`, whose model is returned without the fit's details."""
        from ebrm.fitting import fit

        return fit(*args, **kwargs).model

    # -- scoring ---------------------------------------------------------------------------------------------------

    @property
    def inference(self) -> InferenceConfig:
        """How rewards are read off the density."""
        return self.record.inference

    def fingerprint(self) -> str:
        """SHA-256 of all that decides refined rewards: weights, network or head, inference, text rule, reward model."""
        weights = hashlib.sha256()
        for name, tensor in sorted(self.density_model.state_dict().items()):
            weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        stored = self.record.to_dict()
        names = ("network" if self.record.head is None else "head", "inference", "text_rule", "backbone")
        parts = [stored[name] for name in names]
        return sha256_json([weights.hexdigest(), *parts])

    def with_inference(self, **changes: Any) -> EnergyRewardModel:
        """The same model with other inference settings, e.g. `with_inference(estimate="mean")`."""
        record = replace(self.record, inference=replace(self.record.inference, **changes))
        return EnergyRewardModel(self.density_model, record, self._backbone, self._device, self._trust_remote_code)

    @property
    def backbone(self) -> Backbone:
        """The frozen RM, loaded when first asked for and checked against the fingerprint of the one fitted on.

        Raises:
            ModelError: the model was fitted on imported features, or the RM found is another one.
        """
        if self._backbone is None:
            if self.record.text_rule is None:
                raise ModelError(
                    "This model was fitted on features made elsewhere, so it knows no reward model to read texts with. "
                    "Score features instead (refine, or `ebrm score MODEL FEATURES`)."
                )
            self._backbone = self._load_backbone({})
        return self._backbone

    def with_backbone(self, **changes: Any) -> EnergyRewardModel:
        """The same model with its frozen RM loaded by other settings, e.g. `with_backbone(device="cuda:1")`.

        Args:
            changes: fields of :class:`BackboneConfig`; what is left out is as it was when the model was fitted.

        Raises:
            ModelError, BackboneError: as `backbone`.
        """
        backbone = self._load_backbone(changes)
        return EnergyRewardModel(self.density_model, self.record, backbone, self._device, self._trust_remote_code)

    def _load_backbone(self, changes: dict[str, Any]) -> Backbone:
        """Load the RM this model was fitted on, checked; the text rule is the one stored."""
        # Not before: this imports transformers, which takes as long as torch, and features need neither.
        from ebrm.backbone import load_backbone

        assert self.record.text_rule is not None
        rule = TextRule.from_identity(self.record.text_rule)
        text = TextConfig(**{f.name: getattr(rule, f.name) for f in fields(TextConfig)})
        identity = BackboneIdentity.from_dict(self.record.backbone)
        saved: dict[str, Any] = {"backbone": identity.name, "revision": identity.revision, "dtype": identity.dtype}
        saved |= {"device": self._device, "trust_remote_code": self._trust_remote_code}
        blocks = None if "layers" in changes else identity.layers
        backbone = load_backbone(BackboneConfig(**saved | changes), text, blocks=blocks)
        self._check_backbone(backbone)
        return backbone

    def _check_backbone(self, backbone: Backbone) -> None:
        """Raise ModelError unless `backbone` is the reward model, read the way, this model was fitted on."""
        fitted_on = BackboneIdentity.from_dict(self.record.backbone)
        difference = fitted_on.mismatch(backbone.identity, ours="in the fitted model", theirs="now")
        if difference is not None:
            raise ModelError(
                f"This is not the reward model that the energy was fitted on: {difference}. Name no other reward model "
                "and no layers: the energy model then reads its own."
            )
        if self.record.text_rule is not None:
            fitted = TextRule.from_identity(self.record.text_rule)
            difference = fitted.mismatch(backbone.text_rule, ours="in the fitted model", theirs="now")
            if difference is not None:
                raise ModelError(f"Scores would not be comparable with those the model was fitted on: {difference}.")

    def refine(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, generator: torch.Generator | None = None
    ) -> RefinedReward:
        """Refine rewards from features: `embedding` [n, d] and `base_reward` [n]; no text, no backbone.

        Args:
            embedding: as the frozen RM was read for the fit (`Backbone.read`), float of any precision, in memory or
                on disk (`Features.embeddings`, of which a part is in memory at a time); n = 0 is allowed.
            base_reward: what the RM says, in its own units.
            generator: draws of random starts; by default the inference settings' seed.

        Raises:
            ModelError: shapes that do not fit the model, or a value that is not finite (its row is named).
        """
        size = self.density_model.standardizer.embedding_center.shape[0]
        shape = tuple(embedding.shape)
        if len(shape) != 2 or shape[1] != size or base_reward.shape != shape[:1]:
            raise ModelError(
                f"This model refines embeddings [n, {size}] with rewards [n]; it was given "
                f"{list(shape)} and {list(base_reward.shape)}. Are these another reward model's features?"
            )
        base = base_reward.detach().float().cpu()
        refuse_not_finite("base reward", torch.isfinite(base))
        refined = self.density_model.refine(FiniteRows(embedding), base, self.inference, generator)
        return RefinedReward(
            reward=refined.reward,
            base_reward=base,
            std=refined.std,
            interval=refined.interval,
            log_density=refined.log_density,
            delta=refined.reward - base,
        )

    def density(self, embedding: Tensor, base_reward: Tensor, nodes: int = 257) -> tuple[Tensor, Tensor]:
        """p(r | e, r0) for plotting: rewards [g] in base units, densities [n, g] per base unit."""
        return self.density_model.density(embedding, base_reward, nodes)

    def read(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> tuple[Tensor, Tensor]:
        """(embedding [n, d], base reward [n]) of texts, by the frozen RM.

        Raises:
            TextError: texts of different number, or one that the text rule cannot take (its index is named).
        """
        if len(prompts) != len(responses):
            raise TextError(f"There are {len(prompts)} prompts but {len(responses)} responses; give one each.")
        ids = []
        for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
            tokens = self.backbone.tokenize(prompt, response, f"text {i}")
            if tokens is None:
                raise TextError(
                    f"Text {i} is longer than the {self.backbone.text_rule.max_length} tokens that the reward model "
                    "reads, and the text rule says to drop such texts. Leave it out, or load with prompt_left."
                )
            ids.append(tokens.ids)
        reading = self.backbone.read(ids)
        return reading.embedding, reading.reward

    def score(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> RefinedReward:
        """Refined rewards of responses, one prompt each.

        Args:
            prompts: a string (one user turn) or a list of {"role", "content"} messages ending in a user turn, each.
            responses: the assistant's answers.

        Raises:
            TextError: a text the RM cannot take. ModelError: no backbone, or another one than fitted on.
        """
        return self.refine(*self.read(prompts, responses))

    def rank(self, prompt: Prompt, responses: Sequence[str]) -> list[Ranked]:
        """The responses to one prompt, best refined reward first (ties in the order given)."""
        embedding, base_reward = self.read([prompt] * len(responses), responses)
        scored = self.refine(embedding, base_reward)
        p_best = self.density_model.p_best(embedding, base_reward, self.inference.nodes)
        columns = [column.tolist() for column in (scored.reward, scored.base_reward, scored.std, p_best)]
        rows = [Ranked(i, responses[i], *numbers) for i, numbers in enumerate(zip(*columns, strict=True))]
        return sorted(rows, key=lambda row: -row.reward)

    def prefer(self, prompt: Prompt, a: str, b: str) -> float:
        """P(reward of a > reward of b) under the two fitted densities, taken as independent."""
        embedding, reward = self.read([prompt, prompt], [a, b])
        return float(
            self.density_model.prefer((embedding[:1], embedding[1:]), (reward[:1], reward[1:]), self.inference.nodes)
        )

    def to(self, device: torch.device | str) -> EnergyRewardModel:
        """Move the density (not the backbone) to a device; returns this model."""
        self.density_model.to(device)
        return self

    # -- on disk and on the Hub ------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write `energy.safetensors`, `config.json` and a model card `README.md` into a folder.

        The backbone is referred to, not copied. Every file is written under a temporary name and renamed; the config,
        which holds the weights' checksum, comes last.
        """
        written = self.record.to_dict() | {"trust": self.density_model.trust.to_dict()}
        write_model(Path(save_directory), written, self.density_model.state_dict())
        if kwargs.get("push_to_hub"):
            hub = {k: v for k, v in kwargs.items() if k not in ("push_to_hub", "repo_id", "config")}
            return str(self.push_to_hub(kwargs.get("repo_id") or Path(save_directory).name, **hub))
        return None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        backbone: Backbone | None = None,
        device: str = "auto",
        trust_remote_code: bool = False,
    ) -> EnergyRewardModel:
        """Load a model from a folder or the Hub; the backbone itself is loaded when a text is first scored.

        Args:
            pretrained_model_name_or_path: a folder written by :meth:`save_pretrained`, or `owner/name` on the Hub.
            revision, cache_dir, token, local_files_only: for the Hub.
            backbone: an RM already in memory, used instead of loading one; it must be the one fitted on.
            device: where the backbone runs: "auto" (a GPU if there is one), "cpu", "cuda:1", …
            trust_remote_code: run code that comes with the backbone when it is loaded.

        Raises:
            ModelError: no such model, a missing or damaged file, or a backbone that is another one.
        """
        folder = download_model(pretrained_model_name_or_path, revision, cache_dir, token, local_files_only)
        config, tensors = read_model(folder)
        try:
            record = ModelRecord.from_dict(config)
            density = load_posterior(record.head or record.network, tensors)
        except (TypeError, KeyError, RuntimeError) as error:
            raise ModelError(
                f"The model in {folder} cannot be put together: {error}. Its config.json and energy.safetensors do not "
                "belong together, or were written by another version; save the model again."
            ) from error
        model = cls(density, record, backbone, device, trust_remote_code)
        if backbone is not None:
            model._check_backbone(backbone)
        return model
