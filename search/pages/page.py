"""Self-contained HTML pages: they fetch nothing, and run two scripts of their own only."""

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from search.pages.palette import css_variables, dark_by_light
from spaces.printable import printable


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table whose headings sort it.

    Attributes:
        name: heading.
        number: whether cells are aligned as numbers.
        first: order after the first press: `ascending`, or `descending` where more is better.
        help: meaning of the column.
    """

    name: str
    number: bool = True
    first: str = "ascending"
    help: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """Text and sort key of a cell; None is sorted last."""

    text: str
    key: float | str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A row; `kind` is its class in the style sheet."""

    cells: list[Cell]
    kind: str


@dataclass(frozen=True, slots=True)
class _Page:
    """Parts of every page. They are ours, and need no escaping in the template."""

    security_policy: str
    light_colours: Markup
    dark_colours: Markup
    css: Markup
    dark_by_light: Markup
    plotly: Markup
    script: Markup


def render(template: str, title: str, figures: Mapping[str, go.Figure], **content: Any) -> str:
    """A page as one HTML text.

    Args:
        template: name of a file in `assets/`.
        title: title of the page.
        figures: figures by the names that the template uses.
        content: variables of the template. Their texts are escaped, and control characters are made visible.
    """
    environment = Environment(
        loader=PackageLoader("search.pages", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
    )
    safe_figures = {name: Markup(figure_json(figure)) for name, figure in figures.items()}
    return environment.get_template(template).render(
        title=title, figures=safe_figures, page=_page(environment), **content
    )


def figure_json(figure: go.Figure) -> str:
    """JSON that is safe in a `<script>` element: it contains no end of the element and no start of a comment."""
    text: str = figure.to_json()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def data_uri(png: bytes) -> str:
    """The `data:` URI of a PNG."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _page(environment: Environment) -> _Page:
    def asset(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    script, plotly = asset("report.js"), get_plotlyjs()
    return _Page(
        security_policy=_security_policy(script, plotly),
        light_colours=Markup(css_variables(dark=False)),
        dark_colours=Markup(css_variables(dark=True)),
        css=Markup(asset("report.css")),
        dark_by_light=Markup(json.dumps(dark_by_light())),
        plotly=Markup(plotly),
        script=Markup(script),
    )


def _security_policy(*scripts: str) -> str:
    """A policy that loads nothing and runs only `scripts`. Plotly needs inline style sheets."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src {hashes}",
            "style-src 'unsafe-inline'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _shown(value: Any) -> Any:
    """Printable text; `Markup` is ours and is not changed."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
