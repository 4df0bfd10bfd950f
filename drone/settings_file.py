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
        # `!!map [1]` is none, which the parser's own check says.
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        names = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
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

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Constructs a value, and refuses one that is not of the type that it is taken for."""
        try:
            return super().construct_object(node, deep=deep)
        # From the constructors of PyYAML: !!bool maybe, !!int '', !!timestamp x, 2026-99-99.
        except (LookupError, AttributeError, TypeError, ValueError, ArithmeticError) as error:
            kind = node.tag.rpartition(":")[2]
            shown = f"{node.value[:80]!r}" if isinstance(node, yaml.ScalarNode) else "a value"
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line} has {shown}, which is not a valid {kind}") from error


def read_yaml(file: Path, kind: type = dict, entry: type = dict, what: str | None = None) -> Any:
    """Reads settings by name from a file, or a list of them if `kind` is list.

    Args:
        file: The file.
        kind: Type of its content.
        entry: Type that the entries of a list must have.
        what: What it should hold, for error messages.

    Raises:
        ConfigError: The file cannot be read or holds something else.
    """
    try:
        content = yaml.load(_read(file), _Loader)
    except RecursionError as error:
        raise ConfigError(f"Cannot read {file}: it is nested too deeply.") from error
    # ValueError: it is not UTF-8, or no file of settings.
    except (OSError, ValueError, yaml.YAMLError) as error:
        # Its reasons have several lines, with a drawing of the place.
        reason = " ".join(str(getattr(error, "strerror", None) or error).split())
        raise ConfigError(f"Cannot read {file}: {reason[:300]}.") from error
    _check_content(file, content, kind, entry, what)
    return content


def _check_content(file: Path, content: Any, kind: type, entry: type, what: str | None) -> None:
    what = what or ("a list of settings by name" if kind is list else "settings by name")
    if not isinstance(content, kind):
        reason = ": it is empty" if content is None else ""
        raise ConfigError(f"{file} does not hold {what}{reason}.")
    entries = content if isinstance(content, list) else []
    for number, item in enumerate(entries, start=1):
        if not isinstance(item, entry):
            raise ConfigError(f"{file} does not hold {what}: entry {number} is {item!r:.80}.")


def _read(file: Path) -> str:
    # A pipe or a device could block, or never end.
    if file.exists() and not file.is_file():
        raise ValueError("it is not a file")
    with file.open("rb") as stream:
        data = stream.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError("it has more than 1 MiB")
    return data.decode("utf-8-sig")
