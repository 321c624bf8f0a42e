"""One way from a template to a page."""

from __future__ import annotations

from typing import Any

import jinja2


def render(template: str, content: dict[str, Any]) -> str:
    """A page as HTML; a name that ``content`` lacks is an error."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mindvideo.report", "templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template).render(content)
