"""Files that people write, as plain values: YAML with the meanings that people expect."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from taskloom.tasks import OptionError


class _Loader(yaml.SafeLoader):
    """YAML 1.2's reading of plain words: `no` is a word and no truth value, `1e-6` a number, 2020-01-01 a text."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 - the base class's own form

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """A mapping in which no key comes twice."""
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if not isinstance(key, Hashable):
                mark = node.value[number][0].start_mark
                raise ConstructorError(None, None, "a key must be a word or a number", mark)
            if key in keys[:number]:
                mark = node.value[number][0].start_mark
                raise ConstructorError(None, None, f"the key {key!r} comes twice", mark)
        return super().construct_mapping(node, deep)


_WORDS = (
    ("null", r"~|null|Null|NULL|", "~nN"),
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
)
for _kind, _pattern, _first in _WORDS:
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), [*_first] + [""] * (_kind == "null")
    )


def read_yaml(path: Path) -> dict[Any, Any]:
    """The mapping that a YAML file holds.

    Plain words are read as YAML 1.2 has them, and not as in 1.1, where `no` is false, `1e-6` a text and 1:30 the number 90.

    Args:
        path: of the file.

    Raises:
        OptionError: there is no such file, it is no YAML, a key comes twice, or it is no mapping.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = (Path(folder) / "job.yml").write_text("{site: no, tol: 1e-6}")
        ...     read_yaml(Path(folder) / "job.yml")
        {'site': 'no', 'tol': 1e-06}
    """
    if not path.is_file():
        raise OptionError(f"'{path}': {'a folder, not a file' if path.is_dir() else 'no such file'}; give a YAML file")
    try:
        value = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" line {error.problem_mark.line + 1}:"
        raise OptionError(f"'{path}':{line} {error.problem or 'no YAML'}; correct it") from error
    except (OSError, yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        # Beside what is no UTF-8: a tag such as `!!float` on what is none.
        raise OptionError(f"'{path}': cannot be read as YAML in UTF-8 ({error}); correct it") from error
    if not isinstance(value, dict):
        raise OptionError(f"'{path}' holds {type(value).__name__}; need keys and values, such as `loss: squared`")
    return value
