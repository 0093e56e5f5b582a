"""Self-contained HTML pages: they fetch nothing, and run two scripts of their own only. And their colours."""

import base64
import gzip
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import plotly.graph_objects as go
from jinja2 import Environment, PackageLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from spaces.printable import printable


class Shade(NamedTuple):
    """One role's colour on a light and on a dark page, as `#rrggbb`, and its name in the style sheet."""

    name: str
    light: str
    dark: str


# Blue, orange and reddish purple are distinguishable with any kind of colour blindness (Wong, Nature Methods 8, 2011);
# groups also differ in lightness, dash or marker. All light shades are different, because pages look up the dark shade
# by the light one.
PAPER = Shade("paper", "#ffffff", "#14181d")
PANEL = Shade("panel", "#f4f6f8", "#1d232a")
TEXT = Shade("text", "#1b2026", "#e7ebf0")
MUTED = Shade("muted", "#555f6a", "#a8b2bd")
LINE = Shade("line", "#d3d9e0", "#39424d")
BLUE = Shade("blue", "#0b5cad", "#79b8f7")
ORANGE = Shade("orange", "#b04a00", "#f2a65a")
PURPLE = Shade("purple", "#8c2f78", "#e59ad3")
GREY = Shade("grey", "#858e98", "#77818c")
PALE_BLUE = Shade("pale-blue", "#dbe8f6", "#22364c")

SHADES = (PAPER, PANEL, TEXT, MUTED, LINE, BLUE, ORANGE, PURPLE, GREY, PALE_BLUE)


def render(title: str, figures: Mapping[str, go.Figure], **content: Any) -> str:
    """A page as one HTML text.

    Args:
        figures: figures by the names that the template uses.
        content: variables of `assets/report.html`. Texts are escaped, and control characters are made visible.
    """
    environment = Environment(
        loader=PackageLoader("search.pages", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
    )

    def asset(name: str) -> str:
        assert environment.loader is not None
        return environment.loader.get_source(environment, name)[0]

    script, plotly = asset("report.js"), get_plotlyjs()
    return environment.get_template("report.html").render(
        title=title,
        figures={name: htmlsafe_json_dumps(figure, dumps=go.Figure.to_json) for name, figure in figures.items()},
        security_policy=_security_policy(script, plotly),
        light_colours=Markup(_css_variables(dark=False)),
        dark_colours=Markup(_css_variables(dark=True)),
        dark_by_light=htmlsafe_json_dumps(dark_by_light()),
        css=Markup(asset("report.css")),
        plotly=Markup(base64.b64encode(gzip.compress(plotly.encode(), mtime=0)).decode()),
        script=Markup(script),
        **content,
    )


def data_uri(png: bytes) -> str:
    """The `data:` URI of a PNG."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def dark_by_light() -> dict[str, str]:
    """Dark shades by light shades, for plots on dark pages."""
    return {shade.light: shade.dark for shade in SHADES}


def _css_variables(dark: bool) -> str:
    return " ".join(f"--{shade.name}: {shade.dark if dark else shade.light};" for shade in SHADES)


def _security_policy(*scripts: str) -> str:
    """A policy that loads nothing and runs only `scripts`. Plotly needs inline style sheets."""
    digests = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
        "form-action 'none'"
    )


def _shown(value: Any) -> Any:
    """Printable text; `Markup` is ours and is not changed."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value
