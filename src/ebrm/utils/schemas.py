"""Schemas of the JSON files that ebrm writes and reads back, as pydantic models: one for each kind of file.

What decides numbers has its fields and types and no others; what only tells people something (`Told`) may say more.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, RootModel, model_validator


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Count = Annotated[int, Field(ge=0, le=2**53)]
Length = Annotated[int, Field(ge=1, le=2**31)]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Scalar = bool | int | float | str | None


class Stored(BaseModel):
    """A file, or an object in one, whose fields are all known."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


class Told(Stored):
    """An object that people read, or whose reader says itself which fields it lacks."""

    model_config = ConfigDict(extra="allow")


# -- in models and features ------------------------------------------------------------------------------------------


class Identity(Told):
    """Of a reward model (`BackboneIdentity`), which names what is missing where a model is to be loaded by it."""

    name: str | None = None
    revision: str | None = None
    weights_fingerprint: str | None = None
    architecture: str | None = None
    head_module: str | None = None
    dtype: str | None = None
    attention: str | None = None
    layers: list[Length] = []
    base: str | None = None
    config: dict[str, Any] = {}
    adapter: dict[str, Any] = {}
    tokenizer: dict[str, str] = {}
    template: str | None = None
    code: dict[str, str] = {}
    probe: list[float] = []


class TextRuleIdentity(Told):
    """Of a text rule (`TextRule`), which names what is missing where texts are to be written by it."""

    template: str | None = None
    template_kwargs: dict[str, Any] = {}
    template_sha256: str | None = None
    bos: str | None = None
    eos: str | None = None
    truncation: str | None = None
    max_length: Length | None = None
    date: str | None = None
    system: str | None = None
    rendered: str | None = None


# -- config.json of a model ------------------------------------------------------------------------------------------


class Counts(Told):
    """The conflict filter's report."""

    kept: Count
    dropped: Count
    tied: Count
    used: bool = False


class Empty(Stored):
    """An object without fields."""


class Pairs(Told):
    """Origin and counts of the pairs."""

    origin: str | None = None
    fingerprint: str | None = None
    pairs: Count = 0
    train: Count = 0
    validation: Count = 0
    test: Count = 0
    prompts_fitted_on: Count | str = "not known"
    sources: dict[str, Count] = {}


class Accuracy(Told):
    """A share of right pairs with its interval, which is none where all pairs share one prompt."""

    accuracy: Share
    low: float | None
    high: float | None


class Difference(Told):
    """A difference of two shares with its interval."""

    value: float
    low: float | None
    high: float | None


class Measured(Told):
    """Measured numbers; the three below are there where there were pairs to measure on."""

    pairs: Count = 0
    prompts: Count = 0
    base: Accuracy | None = None
    refined: Accuracy | None = None
    difference: Difference | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.pairs and None in (self.base, self.refined, self.difference):
            raise ValueError("base, refined and difference beside pairs")
        return self


class Calibration(Stored):
    """`PreferenceCalibration`."""

    temperature: Annotated[float, Field(gt=0)]
    label_noise: Annotated[float, Field(ge=0, lt=0.5)]
    pairs: Count
    evidence: float
    raw_log_loss: float
    log_loss: float


class Abstention(Stored):
    """`Abstention`."""

    kind: Literal["marginal", "selective"]
    risk: Share
    level: Share | None
    threshold: Share
    decided: Share
    decided_low: Share
    decided_high: Share
    wrong: float
    pairs: Count
    prompts: Count
    needed: Count


class Fusion(Stored):
    """`Fusion`: weights of the density and of the base reward."""

    power: float
    base_noise: float | None


class ResidualFusion(Stored):
    """The residual head's base weight, and whether it has a correction and anchors."""

    base_weight: float
    correction: bool
    anchors: bool


class Provenance(Told):
    """License and base models of the reward model."""

    base_model: list[str] = []
    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    files: Any = None


class Kind(Told):
    """Settings of a head; its config class says what else there is."""

    kind: str


class ModelConfig(Stored):
    """`config.json` of a saved model."""

    format: str
    ebrm_version: str
    weights_sha256: Sha256
    own_tokenizer: bool = False
    sha256: dict[str, Sha256] = {}
    architectures: list[str] = []
    model_type: str = ""
    problem_type: str = ""
    sentence_transformers: dict[str, str] = {}
    head: Kind
    fit: dict[str, Scalar]
    backbone: Identity
    text_rule: TextRuleIdentity | None
    data: Pairs
    filter: Counts | Empty
    history: list[dict[str, float | int | None]]
    best_epoch: Count
    metrics: Measured
    calibration: Calibration | None = None
    abstention: list[Abstention] = []
    provenance: Provenance = Provenance()
    fusion: Fusion | ResidualFusion | None = None


class Recommendation(Told):
    """What to do with the model."""

    sentence: str


class FitMetrics(Measured):
    """`metrics.json` of a fit, as far as it is read back."""

    recommendation: Recommendation | None = None
    fusion: Fusion | ResidualFusion


# -- features --------------------------------------------------------------------------------------------------------


class FileEntry(Stored):
    """Size and checksum of a file."""

    bytes: Count
    sha256: Sha256


class Rendered(Stored):
    """Texts that hold a template's tokens already."""

    prompts: Count
    replies: Count
    marker: str


class Origin(Told):
    """Fingerprint of the data."""

    fingerprint: str | None = None
    rm_training: str | None = None


class Manifest(Stored):
    """`manifest.json` of a features folder."""

    format: str
    format_version: int
    origin: str
    backbone: Identity | None
    text: TextRuleIdentity | None
    data: Origin | None
    embedding_size: Annotated[int, Field(ge=0, le=2**24)]
    embedding_dtype: Literal["float32", "float16", "bfloat16"]
    shard_rows: Length
    items: Annotated[int, Field(ge=0, le=2**40)]
    pairs: Count
    complete: bool
    tokens: Count | None
    truncated: Count
    dropped: Count
    dropped_texts: Count
    unrated: Count = 0
    content: str | None
    batch_drift: float | None
    files: dict[str, FileEntry]
    pairing: Any = None
    preferences: dict[str, Any] = {}
    ratings: list[str] | None = None
    refused: dict[str, str] = {}
    bad_rows: dict[str, Count] = {}
    not_finite: Count = 0
    same_sides: Count = 0
    repeated_prompts: Count = 0
    rendered: Rendered | None = None

    @model_validator(mode="after")
    def _listed(self) -> Self:
        shards = -(-self.items // self.shard_rows)
        if shards > 10**7:
            raise ValueError(f"no more than ten million shards, not {shards:,}")
        return self


# -- work that goes on -----------------------------------------------------------------------------------------------


class Results(Told):
    """`results.json` of several files, as far as it is read back: what wrote it, and the SHA-256 of files, if told."""

    format: str | None = None
    files: dict[str, str | None] = {}


def _inside(name: str) -> str:
    if name.startswith("/") or ".." in name.split("/"):
        raise ValueError("a name inside the folder")
    return name


class Moved(RootModel[list[Annotated[str, AfterValidator(_inside)]]]):
    """Files that are complete and wait to be moved."""

    model_config = ConfigDict(strict=True)


class FitJob(Told):
    """`job.json` of a fit: its settings by group."""

    source: dict[str, Any]


class ScoreJob(Stored):
    """`job.json` of scoring: what decides the output, and the same for people."""

    job: dict[str, Any]
    shown: dict[str, Any]


class Scored(Stored):
    """What is kept of a complete output."""

    job: dict[str, Any]
    finished: FileEntry
    summary: dict[str, Any]
    sha256: Sha256


class EpochRecord(Stored):
    """One epoch of a checkpoint's history; None for what was not measured."""

    epoch: Annotated[int, Field(ge=1, le=2**53)]
    loss: float
    validation_accuracy: float | None
    validation_nll: float | None
    validation_label_loss: float | None
    seconds: float


class History(RootModel[list[EpochRecord]]):
    """Epochs of a checkpoint."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class Settings(RootModel[dict[str, Any]]):
    """Names with values, to be compared."""

    model_config = ConfigDict(strict=True)


# -- the demonstration -----------------------------------------------------------------------------------------------


class LiveEntry(Stored):
    """A prompt with responses, the preferred one first."""

    prompt: str
    responses: Annotated[list[str], Field(min_length=2)]


class Live(RootModel[list[LiveEntry]]):
    """`live.json`."""

    model_config = ConfigDict(strict=True)


# -- what other libraries write --------------------------------------------------------------------------------------


class Checkpoint(Told):
    """`config.json` of a reward model, as far as it is read before transformers reads it."""

    model_type: str | None = None
    architectures: list[str] | None = None
    num_labels: Any = None
    quantization_config: dict[str, Any] | None = None
    transformers_weights: str | None = None


class Adapter(Told):
    """`adapter_config.json` of peft, as far as it is read before peft reads it."""

    base_model_name_or_path: str | None = None
    revision: str | None = None
    peft_type: str | None = None
    task_type: str | None = None


class WeightIndex(Told):
    """`model.safetensors.index.json`."""

    weight_map: dict[str, str]


class TensorEntry(Told):
    """One tensor in the header of a safetensors file."""

    dtype: str
    shape: list[Count]
    data_offsets: Annotated[tuple[Count, Count], BeforeValidator(_as_tuple)]


class ShardHeader(Stored):
    """Header of a shard of features."""

    embedding: TensorEntry
    reward: TensorEntry


class TensorHeader(RootModel[dict[str, TensorEntry]]):
    """Header of a safetensors file, its metadata taken out."""

    model_config = ConfigDict(strict=True)
