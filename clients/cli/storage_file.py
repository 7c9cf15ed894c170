"""A storage described by a file: a CreateStorageRequest as YAML or JSON, for `bmctl storage add --file`.

    text ─► begins with `{`, and is not named .yaml: JSON ─────────────────────┐
         └► else YAML ─► no key twice ─► plain values, no tags ─► JSON ─► the request's fields, by their names and types

Both end in one reader, so both are refused for the same things: a field that there is not, a value of another type (`no` and
`0123` are a yes-or-no and a number in YAML, and no secret). Nothing of what stands in the file is quoted: it may be one.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from clients.cli import ask
from clients.cli.failures import Usage

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clients.gen.backupmanager.v1.storage_service_pb2 import CreateStorageRequest

BYTES_MAX = 1 << 20
_FIELD = re.compile(r"Failed to parse (\w+) field: ")
_UNKNOWN = re.compile(r'has no field named "([^"]{1,64})" at "([\w.]+)"')
_LINE = re.compile(r"line (\d+) column (\d+) \(char \d+\)")
DEPTH_MAX = 20  # of a request's messages in each other; deeper ones are an attack on readers


def fill(file: str, request: CreateStorageRequest) -> None:
    """Fill a request from a file, `-` for stdin. Raises Usage, which names a field or a line and never quotes a value."""
    from google.protobuf import json_format

    text = ask.read_file(file, option="--file", bytes_max=BYTES_MAX)
    is_json = text.lstrip().startswith("{") and not file.lower().endswith((".yaml", ".yml"))
    try:
        json_format.Parse(text if is_json else _as_json(text, file), request)
    except json_format.ParseError as error:
        raise _wrong(file, _misfit(str(error))) from None
    except RecursionError:
        raise _wrong(file, "goes too deep") from None


def _misfit(said: str) -> str:
    """Return what is wrong with a document from what protobuf's reader said: places and names of fields alone."""
    fields = []
    while found := _FIELD.match(said):
        fields.append(found[1])
        said = said[found.end() :]
    if found := _UNKNOWN.search(said):
        folder = found[2].partition(".")[2]
        name = "of that name" if folder == "secrets" else f"`{found[1]}`"
        return f"does not fit: there is no field {name} in {folder or 'a storage'}"
    if "multiple" in said and "oneof" in said:
        return "does not fit: it names two types of storage"
    if fields:
        return f"does not fit: {'.'.join(fields)} takes another kind of value"
    found = _LINE.search(said)
    return f"is not JSON: line {found[1]}, column {found[2]}" if found else "is not JSON, or has a field twice"


def _as_json(text: str, file: str) -> str:
    """Return a YAML document's values as JSON. Raises Usage where it is none, or holds what JSON cannot say."""
    import yaml

    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if not isinstance(node, yaml.MappingNode):
                raise _wrong(file, "has to be fields with their values, such as `name: offsite`")
            for line in _repeated(node, set(), 1):
                raise _wrong(file, f"has a field twice: line {line}")
            return json.dumps(loader.construct_document(node), allow_nan=False)
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f": line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise _wrong(file, f"is not YAML{where}; put what is no plain word into quotes") from None
    except (yaml.YAMLError, RecursionError):
        raise _wrong(file, "is not YAML that can be read") from None
    except (TypeError, ValueError):
        raise _wrong(file, "holds a date or another value that no field has; put it into quotes") from None


def _repeated(node: Any, seen: set[int], depth: int) -> Iterator[int]:
    """Yield the lines, from 1, of keys that stand twice in one mapping: readers of YAML would take the last, in silence."""
    import yaml

    if depth > DEPTH_MAX:
        raise RecursionError
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    if not isinstance(node, yaml.MappingNode):
        for one in node.value:
            yield from _repeated(one, seen, depth + 1)
        return
    keys = set()
    for key, value in node.value:
        if isinstance(key, yaml.ScalarNode):
            if key.value in keys:
                yield key.start_mark.line + 1
            keys.add(key.value)
        yield from _repeated(value, seen, depth + 1)


def _wrong(file: str, problem: str) -> Usage:
    return Usage(field="--file", problem=f"{file} {problem}")
