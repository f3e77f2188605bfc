"""The report's charts as inline SVG: the same numbers give the same bytes, and the page's CSS gives the colours."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Drawn in these colours, which nothing else has, and then replaced by the page's own, so that dark mode works.
PAGE_COLOURS = {
    "#010101": "var(--ink)",
    "#020202": "var(--muted)",
    "#030303": "var(--line)",
    "#040404": "var(--series-1)",
    "#050505": "var(--series-2)",
    "#060606": "var(--series-3)",
    "#070707": "var(--series-4)",
    "#080808": "var(--series-5)",
}
INK, MUTED, LINE, *SERIES = PAGE_COLOURS
MAX_POINTS = 300  # of a curve; longer ones are averaged over stretches

# Figures are as wide as a phone's page, so their text is legible there; a wider page enlarges them.
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.color": LINE,
    "ytick.labelcolor": MUTED,
    "grid.color": LINE,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "path.simplify": False,
}


def loss_chart(columns: Mapping[str, Sequence[float]], label: str) -> str:
    """Draw the curves of a training, those of one scale in one panel.

    Args:
        columns: the numeric columns of its CSV by name; x is `epoch` if it is there, else `step`.
        label: for those who hear the page.
    """
    x_name = "epoch" if "epoch" in columns else "step"
    names = [name for name in columns if name not in ("step", "epoch", "learning_rate", "images_per_sec")]
    probabilities = [name for name in names if name.endswith("_probability")]
    losses = [name for name in names if name not in (*probabilities, "kl")]
    panels = {
        "losses": losses,
        "probability that D gives to a pair": probabilities,
        "KL divergence of the conditioning": ["kl"],
    }
    shown = {title: [name for name in panel if name in names] for title, panel in panels.items()}
    shown = {title: panel for title, panel in shown.items() if panel}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(4.4, 0.5 + 1.35 * len(shown)), layout="constrained")
        all_axes = figure.subplots(len(shown), sharex=True, squeeze=False)[:, 0]
        colours = iter(SERIES * len(names))
        for axes, (title, panel) in zip(all_axes, shown.items(), strict=True):
            for name in panel:
                x, y = _thinned(columns[x_name], columns[name])
                axes.plot(x, y, color=next(colours), label=name.removesuffix("_probability"), linewidth=1.3)
            axes.set_title(title)
            axes.grid(axis="y")
            if len(panel) > 1:
                _legend(axes, "lower right")
        all_axes[-1].set_xlabel(x_name)
        all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure, label)


def area_chart(before: Sequence[int], after: Sequence[int], edges: Sequence[float], least: float, label: str) -> str:
    """Draw histograms of the share of the picture that the object fills, before and after the crop.

    Args:
        before: counts of the bins, as `after`.
        after: counts of the bins.
        edges: one more than the bins, in [0, 1].
        least: share that the crop rule promises, drawn as a line.
        label: for those who hear the page.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        figure = Figure(figsize=(4.4, 2.6), layout="constrained")
        axes = figure.subplots()
        for counts, colour, name in ((before, SERIES[2], "before the crop"), (after, SERIES[0], "after it")):
            axes.stairs(counts, edges, fill=True, color=colour, alpha=0.75, label=name)
        axes.axvline(least, color=INK, linewidth=0.9, linestyle=(0, (4, 3)))
        ticks = sorted({0, 0.25, 0.5, least, 1})
        axes.set_xticks(ticks, [f"{tick:.0%}" for tick in ticks])
        axes.set_xlim(0, 1)
        axes.grid(axis="y")
        axes.set_xlabel("share of the area in the object's box (object_area_ratio)")
        axes.set_ylabel("pictures")
        _legend(axes, "lower left")
        return _svg(figure, label)


def rank_chart(questions: Mapping[str, Mapping[str, Any]], label: str) -> str:
    """Draw mean ranks with their intervals, a panel a question.

    Args:
        questions: as in reports/evaluate_human_rank.json.
        label: for those who hear the page.
    """
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        return _svg(_rank_figure(questions), label)


def rank_chart_png(questions: Mapping[str, Mapping[str, Any]], title: str) -> bytes:
    """Draw the same as a PNG, with a title; without questions the title alone."""
    with matplotlib.rc_context(STYLE):
        figure = _rank_figure(questions) if questions else Figure(figsize=(4.4, 0.8))
        figure.suptitle(title, fontsize=9)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=200, metadata={"Software": None})
        return buffer.getvalue()


def _rank_figure(questions: Mapping[str, Mapping[str, Any]]) -> Figure:
    methods = list(next(iter(questions.values()))["methods"])
    figure = Figure(figsize=(4.4, 0.6 + len(questions) * (0.35 + 0.3 * len(methods))), layout="constrained")
    all_axes = figure.subplots(len(questions), sharex=True, squeeze=False)[:, 0]
    for axes, (question, result) in zip(all_axes, questions.items(), strict=True):
        for place, method in enumerate(methods):
            of_method = result["methods"][method]
            if of_method["low"] is not None:
                axes.plot([of_method["low"], of_method["high"]], [place, place], color=SERIES[place % 5], linewidth=2)
            if of_method["mean_rank"] is not None:
                axes.plot(of_method["mean_rank"], place, "o", color=SERIES[place % 5], markersize=5)
        axes.set_yticks(range(len(methods)), methods)
        axes.set_ylim(len(methods) - 0.4, -0.6)
        axes.set_title(question)
        axes.grid(axis="x")
    all_axes[-1].set_xlim(0.9, len(methods) + 0.1)
    all_axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    all_axes[-1].set_xlabel("mean rank (1 is best)")
    return figure


def _legend(axes: Axes, location: Literal["lower left", "lower right"]) -> None:
    """Put the legend above the axes, where it hides no data."""
    x = 1 if location == "lower right" else 0
    axes.legend(ncols=3, loc=location, bbox_to_anchor=(x, 0.97), borderaxespad=0.1, handlelength=1.2, columnspacing=1)


def _thinned(x: Sequence[float], y: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average a curve over at most MAX_POINTS stretches, so that 80,000 steps do not make a page of megabytes."""
    stretches = np.array_split(np.array([x, y], float), min(len(x), MAX_POINTS), axis=1)
    return [float(part[0].mean()) for part in stretches], [float(part[1].mean()) for part in stretches]


def _svg(figure: Figure, label: str) -> str:
    """Return an <svg> that the page sizes and colours, without date, release or ids that nothing refers to."""
    buffer = io.StringIO()
    no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    for drawn, of_page in PAGE_COLOURS.items():
        text = text.replace(drawn, of_page)
    text = re.sub(r"<style.*?</style>", "", text, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r"font-family: [^;\"]*", "font-family: inherit", text)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', rf'\1role="img" aria-label="{label}"', text, count=1)
    referred = set(re.findall(r"#([\w-]+)", text))
    return re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in referred else "", text)
