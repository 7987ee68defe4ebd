"""Settings in a TOML file, and what is said of wrong ones."""

import difflib
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from server.core.frozen_model import FrozenModel
from training.errors import ConfigError

Settings = TypeVar("Settings", bound=FrozenModel)


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
    return checked_settings(raw, kind, str(path))


def checked_settings(raw: Mapping[str, Any], kind: type[Settings], where: str) -> Settings:
    """The settings in a table of keys. Raises ConfigError that names `where` they are, key and nearest known key."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = "; ".join(
            _problem_text(kind, problem["loc"], problem["type"], problem["msg"]) for problem in error.errors()
        )
        raise ConfigError(f"{where}: {problems}.") from error


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
