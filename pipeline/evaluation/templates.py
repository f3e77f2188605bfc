"""The HTML pages' templates: those of this folder by name, the study's as study/<name>."""

from functools import cache
from pathlib import Path

import jinja2


def page_template(name: str) -> jinja2.Template:
    """Return a page's template; it escapes whatever is put into it, captions above all."""
    return _environment().get_template(name)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
