"""docs/API.md, made of the protos, their comments, and the examples of docs/api_examples.toml.

`python -m deploy.api_page` prints the page. A method without an example is an error, and so is an example of none.
"""

import json
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    MethodDescriptorProto,
)

from deploy.protos import ROOT, describe
from server.access.roles import ROLES_OF_METHOD

PAGE = ROOT / "docs" / "API.md"
EXAMPLES = ROOT / "docs" / "api_examples.toml"
PACKAGE = "segrec.v1"
ADDRESS, MODEL_ADDRESS = "127.0.0.1:50051", "127.0.0.1:50052"

Example = Mapping[str, Any]
Places = Mapping[tuple[int, ...], str]
"""Comments by the path of what they belong to, as google.protobuf.SourceCodeInfo numbers it."""

_SERVICES = ("SegrecService", "CatalogueService", "EventService", "ModelService")
_TYPES = {
    FieldDescriptorProto.TYPE_STRING: "string",
    FieldDescriptorProto.TYPE_INT32: "int32",
    FieldDescriptorProto.TYPE_INT64: "int64",
    FieldDescriptorProto.TYPE_BOOL: "bool",
    FieldDescriptorProto.TYPE_FLOAT: "float",
    FieldDescriptorProto.TYPE_DOUBLE: "double",
}
_INTRODUCTION = """# API

Made by `make reference` from `protos/segrec/v1/*.proto` and `docs/api_examples.toml`; a test runs the examples.
SegrecService, CatalogueService and EventService answer at one address (by default 127.0.0.1:50051), ModelService at
another (127.0.0.1:50052). Ids are UTF-8 texts, times are UTC. In JSON an `int64` is a string.

**Errors** are `google.rpc.Status` with `ErrorInfo` (a reason of [ErrorReason](#errorreason), domain `segrec.dev`, and
the request id), `BadRequest` (the path of the wrong field) and, where waiting helps, `RetryInfo`.

**Metadata**: `authorization: Bearer TOKEN` says who calls, at a server with an access file. `x-request-id` names the
call in errors and in the server's log; a call without one gets one, and every answer has it in its trailing metadata.

**Deadlines**: the Python client and `segrec` wait 5 s for a unary call and 90 s for a change of the traffic, retries
included. Other clients should set a deadline: without one, the server gives a call its own limits.

The examples go on from these lines. Python:

```python
from segrec import Event, ModelClient, SegrecClient, UserEvent, enum_name

client, models = SegrecClient("127.0.0.1:50051"), ModelClient("127.0.0.1:50052")
```

Node, with `npm install @grpc/grpc-js @grpc/proto-loader google-proto-files`, in a folder with `protos/`:

```js
const grpc = require("@grpc/grpc-js");
const files = { keepCase: true, includeDirs: ["protos", "node_modules/google-proto-files"] };
const names = ["segrec", "catalogue", "event", "model"].map((name) => `segrec/v1/${name}_service.proto`);
const { v1 } = grpc.loadPackageDefinition(require("@grpc/proto-loader").loadSync(names, files)).segrec;
const open = (name, address) => new v1[name](address, grpc.credentials.createInsecure());
const services = {
  SegrecService: open("SegrecService", "127.0.0.1:50051"),
  CatalogueService: open("CatalogueService", "127.0.0.1:50051"),
  EventService: open("EventService", "127.0.0.1:50051"),
  ModelService: open("ModelService", "127.0.0.1:50052"),
};
const show = (error, answer) => console.log(error ? error.message : answer);
```
"""


def main() -> int:
    """Prints the page."""
    sys.stdout.write(page(ROOT, read_examples()))
    return 0


def read_examples() -> dict[str, Example]:
    """The examples by method, such as `SegrecService.Segment`.

    `requests` are the messages as JSON; `python` is the code; `refused` is a part of the error, where one is expected.
    """
    tables: dict[str, dict[str, Example]] = tomllib.loads(EXAMPLES.read_text(encoding="utf-8"))
    return {f"{service}.{name}": example for service, methods in tables.items() for name, example in methods.items()}


def page(root: Path, examples: Mapping[str, Example]) -> str:
    """The page. Raises ValueError unless the examples are of the methods."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "protos.binpb")
        describe(root, path)
        described = FileDescriptorSet.FromString(path.read_bytes())
    files = {file.name: file for file in described.file}
    services = {service.name: file for file in files.values() for service in file.service}
    methods = {f"{name}.{method.name}" for name, file in services.items() for method in file.service[0].method}
    if methods != set(examples):
        odd = ", ".join(sorted(methods ^ set(examples)))
        raise ValueError(f"{EXAMPLES.name} needs one example of each method and no other; look at {odd}")
    lines = [_INTRODUCTION]
    for name in sorted(services, key=_SERVICES.index):
        lines += _service_lines(services[name], examples)
    ordered = [services[name] for name in _SERVICES] + [file for file in files.values() if not file.service]
    for file in ordered:
        lines += _file_lines(file)
    return "\n".join(lines)


def _service_lines(file: FileDescriptorProto, examples: Mapping[str, Example]) -> Iterator[str]:
    places, service = _comments(file), file.service[0]
    yield f"## {service.name}\n\n{places[6, 0]}\n"
    for index, method in enumerate(service.method):
        role = " or ".join(ROLES_OF_METHOD[f"{PACKAGE}.{service.name}/{method.name}"])
        yield f"### {service.name}.{method.name}\n\n{places[6, 0, 2, index]}\n"
        yield f"`{_signature(method)}`: {_link(method.input_type)} → {_link(method.output_type)}. Role: `{role}`.\n"
        yield from _example_lines(service.name, method, examples[f"{service.name}.{method.name}"])


def _signature(method: MethodDescriptorProto) -> str:
    kinds = ["stream " * is_stream for is_stream in (method.client_streaming, method.server_streaming)]
    return f"{method.name}({kinds[0]}{_name(method.input_type)}) returns ({kinds[1]}{_name(method.output_type)})"


def _example_lines(service: str, method: MethodDescriptorProto, example: Example) -> Iterator[str]:
    if "refused" in example:
        yield f"Here it answers with an error: “{example['refused']}”.\n"
    yield f"```python\n{example['python'].strip()}\n```\n"
    yield f"```js\n{node_code(service, method.name, example, is_stream=method.client_streaming)}\n```\n"
    yield f"```sh\n{' '.join(_quoted(word) for word in grpcurl_words(service, method.name, example))}\n```\n"


def grpcurl_words(service: str, method: str, example: Example) -> list[str]:
    """The command of an example."""
    address = MODEL_ADDRESS if service == "ModelService" else ADDRESS
    return ["grpcurl", "-plaintext", "-d", " ".join(_requests(example)), address, f"{PACKAGE}.{service}/{method}"]


def node_code(service: str, method: str, example: Example, *, is_stream: bool) -> str:
    """The code of an example, which goes on from the lines of the introduction."""
    call = f"services.{service}.{method}"
    if not is_stream:
        return f"{call}({_requests(example)[0]}, show);"
    stream = f"{method[0].lower()}{method[1:]}"
    lines = [f"const {stream} = {call}();", f'{stream}.on("data", console.log).on("error", console.log);']
    return "\n".join([*lines, *(f"{stream}.write({request});" for request in _requests(example)), f"{stream}.end();"])


def _requests(example: Example) -> list[str]:
    """The messages of an example, each as JSON on one line."""
    return [json.dumps(json.loads(request), ensure_ascii=False) for request in example["requests"]]


def _quoted(word: str) -> str:
    return f"'{word}'" if word.startswith("{") else word


def _file_lines(file: FileDescriptorProto) -> Iterator[str]:
    places = _comments(file)
    title = file.name.rpartition("/")[2]
    yield f"## Messages of {title}\n"
    for index, message in enumerate(file.message_type):
        yield from _message_lines(message, places, index)
    for index, enum in enumerate(file.enum_type):
        yield from _enum_lines(enum, places, index)


def _message_lines(message: DescriptorProto, places: Places, index: int) -> Iterator[str]:
    yield f"### {message.name}\n\n{places[4, index]}\n"
    if not message.field:
        return
    rows = []
    for number, field in enumerate(message.field):
        rows.append((f"`{field.name}`", _kind(message, field), _cell(places[4, index, 2, number])))
    yield _table(("field", "type", "meaning"), rows)


def _enum_lines(enum: EnumDescriptorProto, places: Places, index: int) -> Iterator[str]:
    yield f"### {enum.name}\n\n{places[5, index]}\n"
    rows = [
        (f"`{value.name}`", str(value.number), _cell(places[5, index, 2, number]))
        for number, value in enumerate(enum.value)
    ]
    yield _table(("value", "number", "meaning"), rows)


def _kind(message: DescriptorProto, field: FieldDescriptorProto) -> str:
    """The type of a field, with `repeated`, `optional` or the oneof it is one of."""
    name = _TYPES[field.type] if field.type in _TYPES else _link(field.type_name)
    if field.label == FieldDescriptorProto.LABEL_REPEATED:
        entry = next((nested for nested in message.nested_type if field.type_name.endswith(f".{nested.name}")), None)
        if entry is None:
            return f"repeated {name}"
        return f"map of {_kind(entry, entry.field[0])} to {_kind(entry, entry.field[1])}"
    if field.proto3_optional:
        return f"optional {name}"
    return f"{name}, one of `{message.oneof_decl[field.oneof_index].name}`" if field.HasField("oneof_index") else name


def _name(type_name: str) -> str:
    return type_name.removeprefix(f".{PACKAGE}.").removeprefix(".")


def _link(type_name: str) -> str:
    name = _name(type_name)
    return f"`{name}`" if "." in name else f"[{name}](#{name.lower()})"


def _comments(file: FileDescriptorProto) -> Places:
    places = file.source_code_info.location
    return {
        tuple(place.path): "\n".join(line.strip() for line in place.leading_comments.strip().splitlines())
        for place in places
    }


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
