"""Reads YAML safely and records the line of each key."""

import re
from dataclasses import dataclass
from typing import Any

import yaml

from spaces.errors import InputError
from spaces.printable import shortened

# Limits against malicious files; real spaces are far smaller.
MAX_BYTES = 64 * 1024
MAX_DEPTH = 8
# Most characters of PyYAML's messages, which can include parts of the file.
MOST_SHOWN = 200

Path = tuple[str | int, ...]


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but `1e-3` is a number as in YAML 1.2, not text."""


class _Dumper(yaml.SafeDumper):
    """Quotes texts that `_Loader` would read as numbers."""


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"),
        list("-+.0123456789"),
    )


@dataclass(frozen=True)
class Document:
    """A YAML mapping with line numbers.

    Attributes:
        content: plain dicts, lists and scalars.
        lines: line of each key or list item by its path, counted from 1.
    """

    content: dict[str, Any]
    lines: dict[Path, int]

    def line_of(self, path: Path) -> int:
        """Line of `path`, or of its nearest enclosing part in the file."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)


def dumped(content: Any) -> str:
    """`content` as YAML, in its own order, which `parse` reads again."""
    return str(yaml.dump(content, Dumper=_Dumper, sort_keys=False, allow_unicode=True))


def parse(text: str, source: str) -> Document:
    """Read one YAML mapping; aliases, tags, repeated keys and deep nesting are refused.

    Args:
        text: content of the file.
        source: name of the file, for messages.

    Raises:
        InputError: one line per problem.
    """
    # A command line can include undecodable bytes; YAML refuses them below.
    if len(text.encode(errors="surrogatepass")) > MAX_BYTES:
        raise InputError(f"{source}: is over {MAX_BYTES // 1024} KiB, but a space file must be smaller.")
    try:
        _refuse_hostile(text, source)
        loader = _Loader(text)
        try:
            return _document(loader, loader.get_single_node(), source)
        finally:
            loader.dispose()
    except InputError:
        raise
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{source}:{mark.line + 1}" if mark else source
        reason = getattr(error, "problem", None) or " ".join(str(error).split())
        raise InputError(f"{where}: is not valid YAML: {shortened(reason, MOST_SHOWN)}.") from None


def _refuse_hostile(text: str, source: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, yaml.AliasEvent):
            raise InputError(f"{source}:{line}: uses an alias (*{shortened(event.anchor)}), but must spell values out.")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise InputError(f"{source}:{line}: uses a tag ({shortened(tag)}), but must have plain values only.")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise InputError(f"{source}:{line}: is nested over {MAX_DEPTH} deep; no space file needs that.")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _document(loader: yaml.SafeLoader, root: yaml.Node | None, source: str) -> Document:
    if not isinstance(root, yaml.MappingNode):
        raise InputError(f"{source}: must hold sections (dataset:, training:, search:, space:), but holds none.")
    lines: dict[Path, int] = {}
    problems: list[str] = []

    def build(node: yaml.Node, path: Path) -> Any:
        lines.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.SequenceNode):
            return [build(item, (*path, i)) for i, item in enumerate(node.value)]
        if not isinstance(node, yaml.MappingNode):
            return loader.construct_object(node)
        content: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else None
            if key is None:
                problems.append(f"{source}:{line}: has a list or mapping as a key, but keys must be words.")
                continue
            if key in content:
                problems.append(f"{source}:{line}: repeats `{shortened(key)}`, first on line {lines[(*path, key)]}.")
                continue
            lines[(*path, key)] = line
            content[key] = build(value_node, (*path, key))
        return content

    content = build(root, ())
    if problems:
        raise InputError(problems)
    return Document(content, lines)
