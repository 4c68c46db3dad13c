"""Draw a figure as SVG that stands in a page: its text is text, its lines take the page's colour, light or dark."""

import io
import re
import warnings
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from cycler import cycler
from markupsafe import Markup
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, PAPER = "#010203", "#fdfefc"  # stand for the page's colours of text and of background
COLOURS = ("#3b82c4", "#d9772b", "#3f9b61", "#b0539c", "#c9a227", "#7a6fd0", "#c2504d", "#5aa5a5")
STYLE = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.parse_math": False,  # a class may be called $x$
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.prop_cycle": cycler(color=list(COLOURS)),
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "none",
}


def drawn(name: str, told: str, draw: Callable[[Any], None], size: tuple[float, float] = (5.2, 3.3)) -> Markup:
    """Return a figure as an `<svg>` element.

    Args:
        name: makes the identifiers in it different from those of other figures of the page.
        told: what a reader who sees no figures is told.
        draw: draws on matplotlib axes.
        size: width and height in inches, at most.
    """
    with mpl.rc_context({**STYLE, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw the text
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        written = io.StringIO()
        FigureCanvasSVG(figure).print_svg(written, metadata={"Date": None, "Creator": None})
    text = written.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor").replace(PAPER, "var(--paper)")
    # Two figures of a page may not share an identifier, and a metadata block says nothing to a reader.
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", text)
    opened = re.match(r'<svg [^>]*?viewBox="([^"]*)"[^>]*>', text)
    assert opened is not None
    # Safe: matplotlib escapes what it is given as text, and the name is ours.
    head = f'<svg viewBox="{opened.group(1)}" role="img" aria-label="{Markup.escape(told)}">'
    return Markup(head + text[opened.end() :])
