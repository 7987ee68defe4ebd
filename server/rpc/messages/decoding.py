"""Reads requests with strings that are not UTF-8, so that one bad id costs one row and not the whole request.

Protocol Buffers refuse the whole message. A second message type, in which every string field is bytes, can read the
message. Each bad string is then replaced by a string that starts with `NOT_UTF8`, which validation refuses. Data that
is not a message becomes `UNREADABLE`, because an error in a deserializer reaches the caller as UNKNOWN.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.message import DecodeError, Message

NOT_UTF8 = "\0not UTF-8\0"
UNREADABLE = object()
_STRING = descriptor_pb2.FieldDescriptorProto.TYPE_STRING
_BYTES = descriptor_pb2.FieldDescriptorProto.TYPE_BYTES


def tolerant_deserializer(parse: Callable[[bytes], Message], descriptor: Any) -> Callable[[bytes], object]:
    """A deserializer like `parse` that also reads messages with strings that are not UTF-8.

    `descriptor` is the descriptor of the message type; its class depends on the installed protobuf implementation.
    """

    def deserialize(data: bytes) -> object:
        try:
            return parse(data)
        except DecodeError:
            raw = _bytes_type(descriptor)()
            try:
                raw.ParseFromString(data)
            except DecodeError:
                return UNREADABLE
            _replace_bad_strings(raw)
            return parse(raw.SerializeToString())

    return deserialize


@cache
def _bytes_type(descriptor: Descriptor) -> type[Message]:
    """The same message type with a bytes field in place of every string field."""
    pool = descriptor_pool.DescriptorPool()
    _add_file(pool, descriptor.file, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _add_file(pool: descriptor_pool.DescriptorPool, file: FileDescriptor, added: set[str]) -> None:
    if file.name in added:
        return
    added.add(file.name)
    for dependency in file.dependencies:
        _add_file(pool, dependency, added)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for message in proto.message_type:
        for field in message.field:
            if field.type == _STRING:
                field.type = _BYTES
    pool.Add(proto)


def _replace_bad_strings(message: Message) -> None:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_BYTES:
            if field.is_repeated:
                value[:] = [_marked(item) for item in value]
            else:
                setattr(message, field.name, _marked(value))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if field.is_repeated else [value]:
                _replace_bad_strings(child)


def _marked(value: bytes) -> bytes:
    """The value itself, or with the mark `NOT_UTF8` in front when the value is not UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return (NOT_UTF8 + value.decode(errors="replace")).encode()
    return value
