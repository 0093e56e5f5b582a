"""Self-contained HTML pages: one look, nothing fetched, and no script run but their own two."""

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
        name: its heading.
        number: whether it is aligned as numbers are.
        first: the order that the first press gives: `ascending`, or `descending` where more is better.
        help: what it means.
    """

    name: str
    number: bool = True
    first: str = "ascending"
    help: str = ""


@dataclass(frozen=True, slots=True)
class Cell:
    """What a cell shows, and what it is sorted by; None sorts last."""

    text: str
    key: float | str | None


@dataclass(frozen=True, slots=True)
class Row:
    """A row; `kind` is its class in the style sheet."""

    cells: list[Cell]
    kind: str


@dataclass(frozen=True, slots=True)
class _Page:
    """What every page holds; all of it is ours, and safe where the template puts it."""

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
        template: of `assets/`.
        title: of the page.
        figures: by the names that the template uses, which are ours.
        content: what the template shows; every text in it is escaped, and shows what it cannot print.
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
    """JSON that may stand inside a `<script>` element: nothing in it ends the element or begins a comment."""
    text: str = figure.to_json()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def data_uri(png: bytes) -> str:
    """A PNG inside a page."""
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
    """Nothing is loaded from anywhere, and no script runs but these; plotly writes style sheets as it draws."""
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
    """Text as it prints; what is marked as safe is ours, and stays."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
