"""Enum values and warnings, as people read them."""

from google.protobuf.message import Message

from segrec.v1.common_pb2 import (
    Warning,  # noqa: A004 - the name is that of the API
    WarningReason,
)


def enum_name(message: Message, field: str) -> str:
    """The name of an enum field's value without the name of the enum, such as `personal` for an item's `reason`.

    A value that this client does not know, from a newer server, is returned as its number.
    """
    enum = message.DESCRIPTOR.fields_by_name[field].enum_type
    if enum is None:
        raise ValueError(f"{field} is no enum")
    number = getattr(message, field)
    value = enum.values_by_number.get(number)
    return str(number) if value is None else value.name.removeprefix(_prefix(enum.name)).lower()


def _prefix(enum: str) -> str:
    """`ITEM_REASON_` for `ItemReason`."""
    return "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in enum).removeprefix("_") + "_"


_UNKNOWN = {
    WarningReason.WARNING_REASON_UNKNOWN_ITEM: ("item", "items"),
    WarningReason.WARNING_REASON_UNKNOWN_ACTION: ("action", "actions"),
    WarningReason.WARNING_REASON_UNKNOWN_CATEGORY: ("category", "categories"),
}


def warning_sentence(warning: Warning) -> str:
    """What a warning of an answer says, in one sentence."""
    if warning.reason == WarningReason.WARNING_REASON_HISTORY_NOT_ALLOWED:
        return "only callers with the role erase are told which items of a user's stored history count"
    noun, command = _UNKNOWN.get(warning.reason, ("value", "items"))
    place = f" in {warning.field}" if warning.field else ""
    return f"the release does not know the {noun} {warning.value!r}{place}: see `segrec {command}`"
