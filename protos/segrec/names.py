"""Names of enum values, as people read them."""

from google.protobuf.message import Message


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
