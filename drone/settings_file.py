"""Reads the YAML files that users write: settings, classes, search spaces, first trials."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from drone.errors import ConfigError

_MAX_BYTES = 2**20


class _Loader(yaml.SafeLoader):
    """YAML without what turns a small file into a large or an ambiguous one."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Composes a node, and refuses references to other nodes."""
        if self.check_event(yaml.AliasEvent):
            # Nine lines of them can stand for billions of values.
            raise yaml.YAMLError("references (*name) are not supported; write the value again")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Constructs a mapping, and refuses a name that is set twice."""
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"{', '.join(twice)} is set twice below line {line}")
        return super().construct_mapping(node, deep=deep)

    def construct_scalar(self, node: yaml.ScalarNode | yaml.MappingNode) -> Any:
        """Constructs a value, and refuses text that cannot be stored."""
        value = super().construct_scalar(node)
        if isinstance(value, str) and not value.isprintable():
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} has a control character in {value[:80]!r}")
        return value


def read_yaml(file: Path, kind: type = dict, entry: type | tuple[type, ...] = dict) -> Any:
    """Reads settings by name from a file, or a list of them if `kind` is list.

    Args:
        file: The file.
        kind: Type of its content.
        entry: Types that the entries of a list may have.

    Raises:
        ConfigError: The file cannot be read or holds something else.
    """
    try:
        content = yaml.load(_read(file), _Loader)
    except RecursionError as error:
        raise ConfigError(f"Cannot read {file}: it is nested too deeply.") from error
    # ValueError: it is not UTF-8, or holds no number or date where one begins.
    except (OSError, ValueError, yaml.YAMLError) as error:
        # Its reasons have several lines, with a drawing of the place.
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ConfigError(f"Cannot read {file}: {reason[:300]}.") from error
    entries = content if isinstance(content, list) else [content]
    if not isinstance(content, kind) or not all(isinstance(item, entry) for item in entries):
        raise ConfigError(
            f"{file} does not hold {'a list of ' if kind is list else ''}settings by name."
        )
    return content


def _read(file: Path) -> str:
    # A pipe or a device could block, or never end.
    if file.exists() and not file.is_file():
        raise ValueError("it is not a file")
    with file.open("rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("it has more than 1 MiB")
    return data.decode("utf-8-sig")
