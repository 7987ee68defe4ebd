"""The reference of a class of settings: every key with type, range, default, meaning, and when to change the default.

It is made of the fields themselves: `description` says what a key means, `json_schema_extra["touch"]` when to change
the default, `examples` gives a value where the default is to leave the key out. `json_schema_extra["range"]` stands
for a range that a validator checks.
"""

import json
import re
import textwrap
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from inspect import cleandoc
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator
from pydantic.fields import FieldInfo

LEFT_OUT, REQUIRED = "left out", "required"

_KINDS = {bool: "true or false", int: "whole number", float: "number", str: "text", Path: "path", datetime: "time"}
_BOUNDS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_LINE = 118


@dataclass(frozen=True, slots=True)
class Setting:
    """One key. `default` and `example` are TOML; `default` may also be LEFT_OUT or REQUIRED."""

    key: str
    kind: str
    range: str
    default: str
    example: str
    meaning: str
    touch: str


@dataclass(frozen=True, slots=True)
class Section:
    """The keys of one table of a TOML file. `name` is empty for the top of the file."""

    name: str
    meaning: str
    settings: tuple[Setting, ...]

    @property
    def is_pattern(self) -> bool:
        """Whether the name has a placeholder in capitals, such as `actions.NAME`."""
        return self.name.rpartition(".")[2].isupper()


def sections_of(model: type[BaseModel], name: str = "") -> list[Section]:
    """The section of this class, and those of all classes in its fields, in the order of the fields."""
    leaves = tuple(_setting(key, field) for key, field in model.model_fields.items() if not _is_section(field))
    own = [Section(name, " ".join(cleandoc(model.__doc__ or "").split()), leaves)] if leaves else []
    return own + [section for inner, place in _inner(model, name) for section in sections_of(inner, place)]


def markdown(sections: Sequence[Section], first_column: str = "key", names: str = "`{key}`") -> str:
    """The sections as tables of Markdown. `names` gives the first cell of a row from the key."""
    return "\n".join(_table(section, first_column, names) for section in sections)


def commented_toml(sections: Sequence[Section]) -> str:
    """A TOML file in which every key stands as a comment: with its default, or an example of a key left out."""
    return "\n".join(_toml(section) for section in sections if not section.is_pattern)


def _table(section: Section, first_column: str, names: str) -> str:
    title = [f"### `[{section.name}]`", ""] if section.name else []
    has_advice = any(it.touch for it in section.settings)
    columns = [first_column, "type", "range", "default", "meaning", *(["change it"] if has_advice else [])]
    rows = [
        _row(
            [names.format(key=it.key, flag=it.key.replace("_", "-"), variable=it.key.upper()), *_cells(it)][
                : len(columns)
            ]
        )
        for it in section.settings
    ]
    return "\n".join([*title, section.meaning, "", _row(columns), "|" + "---|" * len(columns), *rows, ""])


def _cells(setting: Setting) -> list[str]:
    default = setting.default if setting.default in (LEFT_OUT, REQUIRED) else f"`{setting.default}`"
    return [setting.kind, setting.range, default, setting.meaning, setting.touch]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') or '–' for cell in cells)} |"


def _toml(section: Section) -> str:
    lines = [f"[{section.name}]"] if section.name else []
    for it in section.settings:
        limits = f" ({it.range})" if it.range else ""
        example = " Left out by default; an example:" if it.default == LEFT_OUT else ""
        comment = it.meaning.rstrip(".") + limits + "." + example
        lines += [
            *textwrap.wrap(comment, _LINE, initial_indent="# ", subsequent_indent="# "),
            f"# {it.key} = {it.example}",
        ]
    return "\n".join([*lines, ""])


def _inner(model: type[BaseModel], name: str) -> Iterator[tuple[type[BaseModel], str]]:
    """The classes in the fields of a class with their sections; a class of several short forms comes once."""
    seen: set[type[BaseModel]] = set()
    for key, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is None or inner in seen:
            continue
        several = sum(_model_in(other.annotation) is inner for other in model.model_fields.values()) > 1
        last = "KEY" if several else key
        place = ".".join(filter(None, (name, last, "NAME" if get_origin(field.annotation) is dict else "")))
        seen.add(inner)
        yield inner, place


def _is_section(field: FieldInfo) -> bool:
    """Whether a field is a table and nothing else: no short form stands for it, and it is no dict of tables."""
    is_short = any(isinstance(part, BeforeValidator) for part in field.metadata)
    return _model_in(field.annotation) is field.annotation and not is_short


def _setting(key: str, field: FieldInfo) -> Setting:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    shown = REQUIRED if field.is_required() else LEFT_OUT if default is None else toml_value(default)
    example = toml_value(field.examples[0]) if field.examples else shown
    return Setting(
        key=key,
        kind=str(extra.get("kind") or _kind(field.annotation)),
        range=str(extra.get("range") or _range(field)),
        default=shown,
        example=example,
        meaning=field.description or "",
        touch=str(extra.get("touch") or ""),
    )


def _kind(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys(_kind(part) for part in parts if part is not type(None)))
    if origin is Literal:
        return ", ".join(f"`{toml_value(part)}`" for part in parts)
    if origin is tuple:
        return f"list of {_kind(parts[0])}"
    if hasattr(annotation, "__metadata__"):
        return _kind(parts[0])
    if _model_in(annotation) is not None:
        return "table"
    return _KINDS[annotation]


def _range(field: FieldInfo) -> str:
    bounds = {name: getattr(part, name) for part in field.metadata for name in _BOUNDS if hasattr(part, name)}
    if bounds.keys() == {"ge", "le"}:
        return f"{_number(bounds['ge'])} to {_number(bounds['le'])}"
    return ", ".join(words.format(_number(bounds[name])) for name, words in _BOUNDS.items() if name in bounds)


def _number(bound: float) -> str:
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def toml_value(value: object) -> str:
    """A value in TOML; a model with a short form is its method."""
    if isinstance(value, BaseModel):
        return toml_value(next(iter(value.model_dump().values())))
    if isinstance(value, tuple | list):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, dict):
        return (
            f"{{ {', '.join(f'{_key(key)} = {toml_value(part)}' for key, part in value.items())} }}" if value else "{}"
        )
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Path):
        return json.dumps(str(value))
    return json.dumps(value, ensure_ascii=False)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    """The class of settings in an annotation, such as the values of a dict; None if there is none."""
    if isinstance(annotation, type) and not get_args(annotation):
        return annotation if issubclass(annotation, BaseModel) else None
    return next((model for part in get_args(annotation) if (model := _model_in(part))), None)


def settings_toml(settings: BaseModel) -> str:
    """The settings that differ from their defaults, as a TOML file."""
    return _tables(settings.model_dump(exclude_defaults=True, exclude_none=True), "")


def _tables(values: Mapping[str, Any], name: str) -> str:
    """The plain keys of a table, then the tables in it."""
    tables = {key: part for key, part in values.items() if isinstance(part, dict)}
    plain = "".join(f"{_key(key)} = {toml_value(part)}\n" for key, part in values.items() if key not in tables)
    head = f"\n[{name}]\n" if name and plain else ""
    return (
        head + plain + "".join(_tables(part, ".".join(filter(None, (name, _key(key))))) for key, part in tables.items())
    )


def _key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)
