"""Requests whose strings are not UTF-8: found, and named, instead of failing as an unreadable message.

Protocol buffers refuse such a message whole. A twin of its type in which every string is bytes can still read it, so
that one bad id costs one row. A bad string is replaced by one that starts with `NOT_UTF8`, which validation refuses.
What is no message at all becomes `UNREADABLE`, since an error here would reach the caller as UNKNOWN.
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


def tolerant(parse: Callable[[bytes], Message], descriptor: Any) -> Callable[[bytes], object]:
    """A deserializer that reads what `parse` reads, and messages with strings that are not UTF-8.

    `descriptor` is the message's own, of whichever implementation of Protocol Buffers is in use.
    """

    def deserialize(data: bytes) -> object:
        try:
            return parse(data)
        except DecodeError:
            twin = _twin_of(descriptor)()
            try:
                twin.ParseFromString(data)
            except DecodeError:
                return UNREADABLE
            _mend(twin)
            return parse(twin.SerializeToString())

    return deserialize


@cache
def _twin_of(descriptor: Descriptor) -> type[Message]:
    pool = descriptor_pool.DescriptorPool()
    _add(pool, descriptor.file, set())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(descriptor.full_name))


def _add(pool: descriptor_pool.DescriptorPool, file: FileDescriptor, done: set[str]) -> None:
    if file.name in done:
        return
    done.add(file.name)
    for dependency in file.dependencies:
        _add(pool, dependency, done)
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    for message in proto.message_type:
        for field in message.field:
            if field.type == _STRING:
                field.type = _BYTES
    pool.Add(proto)


def _mend(message: Message) -> None:
    for field, value in message.ListFields():
        if field.type == FieldDescriptor.TYPE_BYTES:
            if field.is_repeated:
                value[:] = [_mended(item) for item in value]
            else:
                setattr(message, field.name, _mended(value))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            for child in value if field.is_repeated else [value]:
                _mend(child)


def _mended(value: bytes) -> bytes:
    try:
        value.decode()
    except UnicodeDecodeError:
        return (NOT_UTF8 + value.decode(errors="replace")).encode()
    return value
