"""EnergyRewardModel: a frozen reward model with a head fitted on its embeddings; scores, ranks, saves and loads."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import ModelHubMixin
from numpy.typing import NDArray
from torch import Tensor

from ebrm.backbone import Backbone, OnError, Reading, as_list, is_prompt
from ebrm.calibration import Abstention, PreferenceCalibration
from ebrm.data import Prompt, Reply
from ebrm.errors import BackboneError, ConfigError, ModelError, TextError
from ebrm.fitted_prompts import FittedPrompts, id_kind
from ebrm.heads import (
    EmbeddingSource,
    EstimateConfig,
    FiniteRows,
    FitConfig,
    HeadConfig,
    InferenceConfig,
    Posterior,
    ResidualConfig,
    RewardHead,
    head_config,
    load_head,
    refuse_not_finite,
)
from ebrm.hub import download_model, read_model, write_model
from ebrm.utils.files import sha256_json

_NUMBERS = ("reward", "base_reward", "std", "interval", "log_density", "delta")
_NOT_READ = "The embedding or the base reward is not a finite number."
_NOT_REFINED = "The refined reward is not a finite number."


@dataclass(frozen=True)
class RefinedReward:
    """Refined rewards of n responses: float32 CPU tensors in the base RM's units.

    Attributes:
        reward: the refined reward [n].
        base_reward: the frozen RM's reward [n].
        std: standard deviation of r given the response, under the fitted density [n]: its spread, not what is known. It
            hardly tells which rewards are wrong; the confidence of a comparison does (`EnergyRewardModel.prefer`).
        interval: central interval [n, 2] (90% unless the inference config has another `coverage`).
        log_density: log p(reward | e) [n], per base unit.
        delta: reward - base_reward [n].
        errors: why a row could not be scored, None where it was [n]; rows with an error are NaN.
    """

    reward: Tensor
    base_reward: Tensor
    std: Tensor
    interval: Tensor
    log_density: Tensor
    delta: Tensor
    errors: tuple[str | None, ...] = ()

    def __post_init__(self) -> None:
        if not self.errors:
            object.__setattr__(self, "errors", (None,) * len(self.reward))

    def __len__(self) -> int:
        return len(self.reward)

    @classmethod
    def cat(cls, parts: Sequence[RefinedReward]) -> RefinedReward:
        """The rows of several, one after another; at least one is given."""
        columns = {name: torch.cat([getattr(part, name) for part in parts]) for name in _NUMBERS}
        return cls(**columns, errors=tuple(error for part in parts for error in part.errors))

    def _scattered(self, rows: Tensor, n: int) -> RefinedReward:
        """These m rewards at the rows given [m] of n, NaN with a reason elsewhere and where one is not finite."""
        columns: dict[str, Tensor] = {}
        good = torch.zeros(n, dtype=torch.bool)
        good[rows] = True
        for name in _NUMBERS:
            values = getattr(self, name)
            columns[name] = torch.full((n, *values.shape[1:]), torch.nan)
            columns[name][rows] = values
            finite = columns[name].isfinite()
            good &= finite if finite.dim() == 1 else finite.all(dim=1)
        for values in columns.values():
            values[~good] = torch.nan
        read = set(rows.tolist())
        errors = [
            None if fine else _NOT_REFINED if row in read else _NOT_READ for row, fine in enumerate(good.tolist())
        ]
        return RefinedReward(**columns, errors=tuple(errors))

    def to_rows(self) -> list[dict[str, float]]:
        """One plain dictionary a response, as `ebrm score` writes it."""
        columns = {
            "reward": self.reward, "base_reward": self.base_reward, "std": self.std,
            "interval_low": self.interval[:, 0], "interval_high": self.interval[:, 1],
            "log_density": self.log_density, "delta": self.delta,
        }  # fmt: skip
        rows = zip(*(column.tolist() for column in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]


@dataclass(frozen=True)
class Ranked:
    """One response in a ranking.

    Attributes:
        index: its place in the list that was given.
        response: its text, or the message that was given.
        reward, base_reward, std: as in :class:`RefinedReward`, base units.
        p_best: P(it is the best of the list), as `EnergyRewardModel.p_best`.
    """

    index: int
    response: Reply
    reward: float
    base_reward: float
    std: float
    p_best: float


@dataclass(frozen=True)
class ModelRecord:
    """A model without its weights: everything that `config.json` holds.

    Attributes:
        head: the head's config.
        fit: how pairs were divided, filtered and weighted.
        backbone: identity of the frozen RM, as in the features' manifest.
        text_rule: identity of the text rule; None for features made elsewhere.
        data: origin, fingerprint and counts of the pairs.
        filter: the conflict filter's report.
        history: one entry an epoch; `best_epoch` is the one kept.
        metrics: measured numbers, empty until an evaluation is recorded.
        calibration: of P(a > b), fitted on held-out pairs; None: probabilities are as the head has them.
        abstention: which comparisons are sure enough for the risks asked for, in terms of calibrated P.
        provenance: license and base models of the RM (:func:`ebrm.backbone.provenance.provenance`), as found when it
            was fitted on.
    """

    head: HeadConfig = ResidualConfig()
    fit: FitConfig = FitConfig()
    backbone: dict[str, Any] = field(default_factory=dict)
    text_rule: dict[str, Any] | None = None
    data: dict[str, Any] = field(default_factory=dict)
    filter: dict[str, Any] = field(default_factory=dict)
    history: tuple[dict[str, Any], ...] = ()
    best_epoch: int = 0
    metrics: dict[str, Any] = field(default_factory=dict)
    calibration: PreferenceCalibration | None = None
    abstention: tuple[Abstention, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        values |= {"head": self.head.to_dict(), "fit": self.fit.to_dict()}
        values["calibration"] = None if self.calibration is None else self.calibration.to_dict()
        values["abstention"] = [rule.to_dict() for rule in self.abstention]
        return copy.deepcopy(values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelRecord:
        """Build the record back from :meth:`to_dict`'s values after JSON."""
        built = dict(values)
        built["head"], built["fit"] = head_config(values["head"]), FitConfig.from_dict(values["fit"])
        built["history"] = tuple(built.get("history", ()))
        if built.get("calibration") is not None:
            built["calibration"] = PreferenceCalibration.from_dict(built["calibration"])
        built["abstention"] = tuple(Abstention.from_dict(rule) for rule in built.get("abstention", ()))
        return cls(**built)


class _LazyBackbone:
    """The frozen RM of a model and of its copies: loaded once, when a thread first asks for it."""

    def __init__(self, load: Callable[[], Backbone], loaded: Backbone | None = None) -> None:
        self._load, self._loaded = load, loaded
        self._lock = threading.Lock()

    def get(self) -> Backbone:
        with self._lock:
            if self._loaded is None:
                self._loaded = self._load()
            return self._loaded

    def __deepcopy__(self, _: Any) -> _LazyBackbone:
        return self  # a frozen RM is shared


class EnergyRewardModel(ModelHubMixin, library_name="ebrm", tags=["reward-model", "energy-based-model", "ebrm"]):
    """A frozen scalar reward model and a head p(r | e) that refines its rewards (EBRM, arXiv 2504.13134). Thread-safe.

    Made by :func:`ebrm.fit`, loaded by :meth:`from_pretrained`. The backbone is referred to by fingerprint and loaded
    when a text is first scored, once for all copies of a model; `refine` needs features only.

    Attributes:
        head: the density, or another head over the same embeddings (`record.head`).
        record: everything `config.json` holds.
        prompts: fingerprints of the prompts it was fitted on (see `fitted_on`); None where they are not known.
    """

    def __init__(
        self, head: RewardHead, record: ModelRecord, backbone: Backbone | None = None, device: str = "auto",
        trust_remote_code: bool = False, prompts: FittedPrompts | None = None,
    ) -> None:  # fmt: skip
        self.head: RewardHead = head.eval()
        self.record, self.prompts = record, prompts
        self._device, self._trust_remote_code = device, trust_remote_code
        self._lazy = _LazyBackbone(lambda: self._load_backbone({}), backbone)

    @property
    def inference(self) -> InferenceConfig | EstimateConfig:
        """Config of the estimate: how rewards are read off the head."""
        return self.head.config.inference

    def with_inference(self, **changes: Any) -> EnergyRewardModel:
        """The same model with other inference settings of its head (`estimate="mode"`), unknown ones a ConfigError."""
        head = self.head.with_inference(**changes)
        return self._copy(head, replace(self.record, head=head.config), self._lazy)

    def with_backbone(self, **changes: Any) -> EnergyRewardModel:
        """The same model with its RM loaded by other fields of :class:`BackboneConfig`, e.g. `device="cuda:1"`.

        `truncation` and `rendered` of :class:`TextConfig` may be changed, too: texts that they do not concern keep
        their rewards.

        Raises:
            ModelError, BackboneError: as `backbone`.
        """
        backbone = self._load_backbone(changes)
        return self._copy(self.head, self.record, _LazyBackbone(lambda: backbone, backbone))

    def with_calibration(
        self, calibration: PreferenceCalibration | None, abstention: Sequence[Abstention] = ()
    ) -> EnergyRewardModel:
        """The same model with this calibration (None: probabilities as the head has them) and these rules.

        :func:`ebrm.calibrate` finds the calibration; rewards stay as they are.
        """
        record = replace(self.record, calibration=calibration, abstention=tuple(abstention))
        return self._copy(self.head, record, self._lazy)

    def _copy(self, head: RewardHead, record: ModelRecord, lazy: _LazyBackbone) -> EnergyRewardModel:
        other = EnergyRewardModel(head, record, None, self._device, self._trust_remote_code, self.prompts)
        other._lazy = lazy
        return other

    @property
    def backbone(self) -> Backbone:
        """The frozen RM, loaded when first needed and checked against the fingerprint of the one fitted on.

        Raises:
            ModelError: the model was fitted on imported features, or the RM found is another one.
            BackboneError: it cannot be loaded.
        """
        return self._lazy.get()

    def _load_backbone(self, changes: dict[str, Any]) -> Backbone:
        # Not before: this imports transformers, which takes as long as torch, and features need neither.
        from ebrm.backbone import reload_backbone

        if self.record.text_rule is None:
            raise ModelError(
                "This model was fitted on features made elsewhere, so it knows no reward model to read texts with. "
                "Score features instead: `refine`, or a features folder."
            )
        here = {"device": self._device, "trust_remote_code": self._trust_remote_code}
        return reload_backbone(self.record.backbone, self.record.text_rule, here | changes)

    def fingerprint(self) -> str:
        """SHA-256 of all that decides rewards and probabilities: weights, head, calibration, text rule, RM."""
        weights = hashlib.sha256()
        for name, tensor in sorted(self.head.state_dict().items()):
            weights.update(name.encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
        stored = self.record.to_dict()
        parts = [stored[name] for name in ("head", "text_rule", "backbone")]
        if self.record.calibration is not None:
            parts.append(stored["calibration"])
        return sha256_json([weights.hexdigest(), *parts])

    def fitted_on(self, prompt_ids: Sequence[str] | NDArray[np.str_]) -> NDArray[np.bool_] | None:
        """Whether the model was fitted on each of these prompts [n]; what it does there says little about others.

        Fitted on are the prompts of training pairs and of those that choices were made by (validation), not those held
        out to measure on. Prompts are told apart by id, the text's hash (:func:`ebrm.data.prompt_id`): one changed
        letter makes another prompt. Ids that came with imported features are compared with such ids alone, and mean
        something where the same id is the same prompt in both.

        Args:
            prompt_ids: as `PreferencePairs.prompt_id` and :func:`ebrm.data.prompt_id` give them, all of one kind.

        Returns:
            None where it is not known: the model's prompts had no ids or counted ones (`pair-000001`, `17`), these have
            such, or one side's ids are hashes of texts and the other's are not.
        """
        if isinstance(prompt_ids, str):
            raise TypeError("prompt_ids: expected a list or array of ids, got one string")
        ids = [str(name) for name in prompt_ids]
        if self.prompts is None:
            return None
        return self.prompts.contains(ids, id_kind(ids) if ids else self.prompts.kind)

    def score(
        self, prompts: Prompt | Sequence[Prompt], responses: Reply | Sequence[Reply], *, on_error: OnError = "raise"
    ) -> RefinedReward:
        """Refined rewards of responses [n].

        Args:
            prompts: one prompt, or one for each response: a string (one user turn), messages that end in a user's or a
                tool's turn, or a mapping of `messages` and `tools`.
            responses: the assistant's answers, strings, or messages where they hold tool calls or reasoning; one alone
                is one row.
            on_error: of a row that is refused, too long or not finite: "raise", or "nan" with reasons in `errors`.

        Raises:
            TextError: lists that do not match; with "raise", a row that has no reward (its index is named).
            ModelError: no backbone, or another one than fitted on.
        """
        return self._refine_read(*self.backbone.read_texts(prompts, responses, on_error), on_error)

    def score_rendered(self, texts: str | Sequence[str], *, on_error: OnError = "raise") -> RefinedReward:
        """As `score`, of conversations that already went through the RM's chat template, one text each."""
        return self._refine_read(*self.backbone.read_rendered(texts, on_error), on_error)

    def score_ids(self, token_ids: Sequence[Sequence[int]]) -> RefinedReward:
        """Refined rewards of token ids [n], whole texts as the text rule writes them; BackboneError names a bad row."""
        rows = [row.tolist() if hasattr(row, "tolist") else row for row in token_ids]
        for place, row in enumerate(rows):
            if not isinstance(row, list | tuple) or not all(
                isinstance(token, Integral) and not isinstance(token, bool) for token in row
            ):
                raise BackboneError(f"Row {place} is {row!r:.60}; a list of token ids, whole numbers, was expected.")
        return self._refine_read(self.backbone.read(rows), (None,) * len(rows), "raise")

    def _refine_read(self, reading: Reading, errors: Sequence[str | None], on_error: OnError) -> RefinedReward:
        refined = self.refine(reading.embedding, reading.reward, on_error="nan")
        found = tuple(first or second for first, second in zip(errors, refined.errors, strict=True))
        for row, error in enumerate(found):
            if error is not None and on_error == "raise":
                raise TextError(f"Text {row}: {error}")
        return replace(refined, errors=found)

    def rank(self, prompt: Prompt, responses: Sequence[Reply]) -> list[Ranked]:
        """The responses to one prompt, best refined reward first (ties in the order given); TextError as of `score`."""
        given = as_list("responses", responses)
        embedding, base_reward = self._read_responses(prompt, given)
        scored = self.refine(embedding, base_reward)
        p_best = self.p_best(embedding, base_reward)
        columns = [column.tolist() for column in (scored.reward, scored.base_reward, scored.std, p_best)]
        rows = [Ranked(i, given[i], *numbers) for i, numbers in enumerate(zip(*columns, strict=True))]
        return sorted(rows, key=lambda row: -row.reward)

    def prefer(self, prompt: Prompt, a: Reply, b: Reply, *, calibrated: bool = True) -> float:
        """P(a is better than b), as :meth:`prefer_rows`; TextError as of `score`."""
        embedding, reward = self._read_responses(prompt, [a, b])
        sides = (embedding[:1], embedding[1:]), (reward[:1], reward[1:])
        return float(self.prefer_rows(*sides, calibrated=calibrated))

    def _read_responses(self, prompt: Prompt, responses: list[Reply]) -> tuple[Tensor, Tensor]:
        if not is_prompt(prompt):
            raise TextError(f"`prompt` is a {type(prompt).__name__}; one string or a list of messages was expected.")
        reading, _ = self.backbone.read_texts(prompt, responses)
        return reading.embedding, reading.reward

    @property
    def embedding_size(self) -> int:
        """d: numbers in an embedding."""
        return int(self.head.standardizer.embedding_center.shape[0])

    def refine(
        self, embedding: Tensor | EmbeddingSource, base_reward: Tensor, generator: torch.Generator | None = None, *,
        on_error: OnError = "raise",
    ) -> RefinedReward:  # fmt: skip
        """Refine rewards from features: `embedding` [n, d] and `base_reward` [n]; no text, no backbone.

        Args:
            embedding: as `Backbone.read` gives it, in memory or on disk (`Features.embeddings`); n = 0 is allowed.
            base_reward: the RM's reward, in its own units.
            generator: draws of random starts; by default the inference config's seed.
            on_error: rows that are not finite: "raise", or "nan" with the reason in `errors` (embeddings in memory).

        Raises:
            ModelError: shapes that do not fit the model, or a value that is not finite (its row is named).
        """
        self._check_shapes(embedding, base_reward)
        base, shape = base_reward.detach().float().cpu(), tuple(embedding.shape)
        if on_error == "nan" and isinstance(embedding, Tensor):
            good = torch.isfinite(base) & torch.isfinite(embedding).all(dim=1).cpu()
            rows = good.nonzero()[:, 0]
            found = self.refine(
                embedding if bool(good.all()) else embedding[rows.to(embedding.device)], base[rows], generator
            )
            return found._scattered(rows, shape[0])
        refuse_not_finite("base reward", torch.isfinite(base))
        refined = self.head.refine(FiniteRows(embedding), base, generator)
        delta = refined.reward - base
        return RefinedReward(refined.reward, base, refined.std, refined.interval, refined.log_density, delta)

    def _check_shapes(self, embedding: Tensor | EmbeddingSource, base_reward: Tensor) -> None:
        if isinstance(embedding, np.ndarray | list) or not isinstance(base_reward, Tensor):
            kinds = f"{type(embedding).__name__} and {type(base_reward).__name__}"
            raise ModelError(f"Embeddings and rewards are given as {kinds}; tensors were expected (torch.as_tensor).")
        shape = tuple(embedding.shape)
        if len(shape) != 2 or shape[1] != self.embedding_size or base_reward.shape != shape[:1]:
            raise ModelError(
                f"This model refines embeddings [n, {self.embedding_size}] with rewards [n]; it was given "
                f"{list(shape)} and {list(base_reward.shape)}. Are these another reward model's features?"
            )

    def _checked(self, embedding: Tensor, base_reward: Tensor) -> tuple[Tensor, Tensor]:
        """Features in memory, if their shapes fit the model and all are finite."""
        self._check_shapes(embedding, base_reward)
        refuse_not_finite("base reward", torch.isfinite(base_reward))
        refuse_not_finite("embedding", torch.isfinite(embedding).all(dim=1))
        return embedding, base_reward

    def density(self, embedding: Tensor, base_reward: Tensor, nodes: int = 257) -> tuple[Tensor, Tensor]:
        """p(r | e, r0) for plotting: rewards [g] in base units, densities [n, g] per base unit; g = `nodes`, 3 or more.

        Raises:
            ModelError: as `refine`, or too few nodes.
        """
        if nodes < 3:
            raise ModelError(f"`nodes` is {nodes}; it must be 3 or more.")
        return self.head.density(*self._checked(embedding, base_reward), nodes)

    def p_best(self, embedding: Tensor, base_reward: Tensor, *, calibrated: bool = True) -> Tensor:
        """P(each of n rows is the best) [n], from embeddings [n, d] and base rewards [n]; calibrated as `prefer_rows`.

        As the head has it: P(its reward is the largest), densities taken as independent. Of two, P(a > b) calibrated;
        of more, its power 1 / temperature (:meth:`ebrm.PreferenceCalibration.best`).
        """
        found = self.head.p_best(*self._checked(embedding, base_reward))
        known = self.record.calibration
        return known.best(found.clamp(0, 1)) if calibrated and known is not None else found

    def prefer_rows(
        self, embedding: tuple[Tensor, Tensor], base_reward: tuple[Tensor, Tensor], *, calibrated: bool = True
    ) -> Tensor:
        """P(a is better than b) [n] of rows (a, b): embeddings [n, d] and base rewards [n] of either side.

        Calibrated on held-out pairs where the model has a calibration (`record.calibration`; :func:`ebrm.calibrate`
        gives it one). With `calibrated=False`, and without one, as the head has it: P(r_a > r_b) under the fitted
        densities, taken as independent. The confidence of the comparison is max(P, 1 - P).
        """
        for one in zip(embedding, base_reward, strict=True):
            self._checked(*one)
        found = self.head.prefer(embedding, base_reward)
        known = self.record.calibration
        return known(found.clamp(0, 1)) if calibrated and known is not None else found

    def posterior(self, embedding: Tensor | EmbeddingSource, base_reward: Tensor) -> Posterior:
        """The densities on the head's nodes, in the standardizer's units."""
        return self.head.posterior(embedding, base_reward)

    def to_score(self, reward: Tensor) -> Tensor:
        """Rewards as numbers between 0 and 1 (`Standardizer.to_score`)."""
        return self.head.standardizer.to_score(reward)

    def to(self, device: torch.device | str) -> EnergyRewardModel:
        """Move the head (not the backbone) to a device; returns this model."""
        self.head.to(device)
        return self

    def written(self) -> dict[str, Any]:
        """The model's record as `config.json` holds it, apart from its format."""
        return self.record.to_dict() | {"fusion": self.head.goes_by()}

    def tensors(self) -> dict[str, Tensor]:
        """What `energy.safetensors` holds: the head's weights, and fingerprints of the prompts fitted on if known."""
        return self.head.state_dict() | ({} if self.prompts is None else self.prompts.tensors())

    def save_pretrained(self, save_directory: str | Path, **kwargs: Any) -> str | None:
        """Write `energy.safetensors`, a model card and, last, `config.json` (with their checksum) into a folder.

        The backbone is referred to, not copied.
        """
        write_model(Path(save_directory), self.written(), self.tensors())
        if kwargs.get("push_to_hub"):
            hub = {k: v for k, v in kwargs.items() if k not in ("push_to_hub", "repo_id", "config")}
            return str(self.push_to_hub(kwargs.get("repo_id") or Path(save_directory).name, **hub))
        return None

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *, revision: str | None = None,
        cache_dir: str | Path | None = None, token: str | bool | None = None, local_files_only: bool = False,
        backbone: Backbone | None = None, device: str = "auto", trust_remote_code: bool = False,
    ) -> EnergyRewardModel:  # fmt: skip
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
            prompts = FittedPrompts.taken_from(tensors)
            record = ModelRecord.from_dict(config)
            head = load_head(record.head, tensors)
        except (ModelError, ConfigError) as error:
            raise ModelError(
                f"The model in {folder} cannot be put together: {str(error).removesuffix('.')}. Its config.json and "
                "energy.safetensors are damaged, do not belong together, or were written by another version; copy or "
                "download the folder again, or fit the model again."
            ) from error
        model = cls(head, record, backbone, device, trust_remote_code, prompts)
        if backbone is not None:
            backbone.check(record.backbone, record.text_rule)
        return model
