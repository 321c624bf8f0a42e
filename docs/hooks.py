"""What the site takes from the program itself: every command, every setting, and the changelog."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined
from typer.main import get_command

from mindvideo.cli import app
from mindvideo.config import Recipe
from mindvideo.config.recipe import inner_section
from mindvideo.config.settings import Section

ROOT = Path(__file__).parent.parent


def _cell(text: object) -> str:
    return re.sub(r"\s+", " ", str(text)).replace("|", "\\|")


def _row(parameter: Any) -> tuple[str, str, str]:
    is_option = parameter.param_type_name == "option"
    name = (
        ", ".join((*parameter.opts, *parameter.secondary_opts))
        if is_option
        else parameter.metavar or parameter.name.upper()
    )
    default = parameter.default
    known = not (parameter.required or default is None or default == () or callable(default))
    return name, f"`{default}`" if known else "", getattr(parameter, "help", None) or ""


def commands(command: Any = None, name: str = "mindvideo") -> Iterator[str]:
    """A heading, the help and the options of each command."""
    command = command or get_command(app)
    below = command.list_commands(None) if hasattr(command, "list_commands") else []
    rows = [_row(parameter) for parameter in command.params if parameter.name != "help"]
    yield f"## {name}\n\n{command.help or ''}\n"
    if rows:
        yield "| argument or option | default | |\n|---|---|---|"
        yield from (f"| `{_cell(option)}` | {_cell(default)} | {_cell(words)} |" for option, default, words in rows)
    yield ""
    for each in below:
        yield from commands(command.get_command(None, each), f"{name} {each}")


def settings(section: type[Section] = Recipe, name: str = "") -> Iterator[str]:
    """A heading and a table for each section of a recipe."""
    plain = {key: field for key, field in section.model_fields.items() if inner_section(section, key) is None}
    yield f"## {name or 'of the whole recipe'}\n\n{(section.__doc__ or '').strip()}\n\n| setting | default | |\n|---|---|---|"
    for key, field in plain.items():
        default = field.get_default(call_default_factory=True, validated_data={})
        shown = "" if default is PydanticUndefined or default is None or default == () else f"`{_cell(default)}`"
        yield f"| `{f'{name}.{key}'.lstrip('.')}` | {shown} | {_cell(field.description or '')} |"
    yield ""
    for key in section.model_fields:
        if (inner := inner_section(section, key)) is not None:
            yield from settings(inner, f"{name}.{key}".lstrip("."))


def changelog() -> Iterator[str]:
    """The changelog below its title, with links that lead from ``docs/project``."""
    yield (ROOT / "CHANGELOG.md").read_text().partition("\n")[2].replace("](docs/project/", "](")


MADE = {"commands": commands, "settings": settings, "changelog": changelog}


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put what the program says of itself in the place of ``<!-- made: NAME -->``."""
    return re.sub(r"<!-- made: (\w+) -->", lambda found: "\n".join(MADE[found[1]]()), markdown)
