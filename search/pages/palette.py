"""The report's colours for light and dark screens. A test checks their WCAG contrasts."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shade:
    """One role's colour on a light and on a dark page, as `#rrggbb`."""

    light: str
    dark: str


# Blue, orange and reddish purple are distinguishable with any kind of colour blindness (Wong, Nature Methods 8, 2011);
# groups also differ in lightness, dash or marker. All light shades are different, because pages look up the dark shade
# by the light one.
PAPER = Shade("#ffffff", "#14181d")
PANEL = Shade("#f4f6f8", "#1d232a")
TEXT = Shade("#1b2026", "#e7ebf0")
MUTED = Shade("#555f6a", "#a8b2bd")
LINE = Shade("#d3d9e0", "#39424d")
BLUE = Shade("#0b5cad", "#79b8f7")
ORANGE = Shade("#b04a00", "#f2a65a")
PURPLE = Shade("#8c2f78", "#e59ad3")
GREY = Shade("#858e98", "#77818c")
PALE_BLUE = Shade("#dbe8f6", "#22364c")

SHADES: dict[str, Shade] = {
    "paper": PAPER,
    "panel": PANEL,
    "text": TEXT,
    "muted": MUTED,
    "line": LINE,
    "blue": BLUE,
    "orange": ORANGE,
    "purple": PURPLE,
    "grey": GREY,
    "pale-blue": PALE_BLUE,
}


def css_variables(dark: bool) -> str:
    """`--text: #1b2026; …` for a rule of CSS."""
    return " ".join(f"--{name}: {shade.dark if dark else shade.light};" for name, shade in SHADES.items())


def dark_by_light() -> dict[str, str]:
    """Dark shades by light shades, for plots on dark pages."""
    return {shade.light: shade.dark for shade in SHADES.values()}
