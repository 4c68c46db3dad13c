"""The figures of reports."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from peft_bidora.report.svg import COLOURS, INK, PAPER, drawn
from peft_bidora.study.decomposition import Change

LABEL = 24  # characters of a name on an axis
MOST_CLASSES = 25  # of a confusion matrix with numbers
BINS = 10


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Markup | None:
    """Return the losses of both levels and of the selection rows over the steps of both phases; None without any."""
    ends = {
        phase: max((e["step"] for e in history if e["phase"] == phase), default=0) for phase in ("search", "retrain")
    }
    curves: dict[str, list[tuple[float, float]]] = {"lower": [], "upper": [], "selection": []}
    for entry in history:
        at = entry["step"] + (ends["search"] if entry["phase"] == "retrain" else 0)
        for name, key in (("lower", "loss"), ("upper", "upper_loss"), ("selection", "eval_loss")):
            if isinstance(entry.get(key), int | float):
                curves[name].append((at, entry[key]))

    def draw(axes: Any) -> None:
        for name, points in curves.items():
            if points:
                steps, losses = zip(*points, strict=True)
                # The two phases are two trainings: no line joins them.
                breaks = np.searchsorted(steps, ends["search"], side="right") if ends["search"] else 0
                colour = COLOURS[list(curves).index(name)]
                style = {"color": colour, "marker": "o", "markersize": 3, "linewidth": 1.4}
                axes.plot(steps[breaks:], losses[breaks:], label=f"{name} rows", **style)
                axes.plot(steps[:breaks], losses[:breaks], **style)
        if ends["search"] and ends["retrain"]:
            axes.axvline(ends["search"], color=INK, linewidth=0.8, linestyle=":")
            for name, side, offset in (("search", "right", -6), ("retrain", "left", 6)):
                axes.annotate(
                    *(name, (ends["search"], 1.0)),
                    xycoords=axes.get_xaxis_transform(),
                    textcoords="offset points",
                    xytext=(offset, 2),
                    ha=side,
                    fontsize=9,
                )
        axes.set(xlabel="step", ylabel="loss, nats")
        axes.legend()

    return drawn("curves", "Loss of each split over the steps", draw) if any(curves.values()) else None


def magnitudes(changes: Mapping[str, np.ndarray]) -> Markup:
    """Return how far the magnitudes of each layer went from the pretrained row norms.

    Args:
        changes: by layer, (out_features,), m / ‖W0‖ − 1.
    """
    names = list(changes)

    def draw(axes: Any) -> None:
        parts = [np.quantile(changes[name], [0.05, 0.25, 0.5, 0.75, 0.95]) for name in names]
        for place, (low, first, middle, third, high) in enumerate(parts):
            axes.plot([100 * low, 100 * high], [place, place], color=COLOURS[0], linewidth=1)
            axes.plot([100 * first, 100 * third], [place, place], color=COLOURS[0], linewidth=5, solid_capstyle="butt")
            axes.plot([100 * middle], [place], color=INK, marker="|", markersize=9, linestyle="none")
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(
            range(len(names)), [_short(name) for name in _distinct(names)], fontsize=8 if len(names) < 20 else 6
        )
        axes.invert_yaxis()
        axes.set(xlabel="change of a row's magnitude against ‖W0‖, %")

    return drawn("magnitudes", "Change of the magnitudes by layer", draw, (5.2, max(3.3, 0.16 * len(names) + 1)))


def decomposition(changes: Sequence[Change]) -> Markup:
    """Return ΔM against ΔD, a point a layer."""

    def draw(axes: Any) -> None:
        axes.plot([c.direction for c in changes], [c.magnitude for c in changes], "o", color=COLOURS[0], markersize=5)
        axes.set(
            xlabel="ΔD: mean of 1 − cosine of a row with the pretrained one", ylabel="ΔM: mean change of a row's length"
        )

    return drawn("decomposition", "Change of length against change of direction by layer", draw)


def confusion(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Return a confusion matrix: a row a class, coloured by the share of its rows."""
    counts = np.asarray(matrix, float)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)

    def draw(axes: Any) -> None:
        from matplotlib.colors import to_rgba

        image = np.empty((*shares.shape, 4))
        image[...] = to_rgba(COLOURS[0])
        image[..., 3] = 0.06 + 0.94 * shares
        axes.pcolormesh(
            np.arange(len(names) + 1),
            np.arange(len(names) + 1),
            image,
            edgecolors=PAPER,
            linewidth=1,
            rasterized=len(names) > MOST_CLASSES,
        )
        axes.invert_yaxis()
        places = np.arange(len(names)) + 0.5
        small = 8 if len(names) <= 12 else 6
        axes.set_xticks(places, [_short(name, 12) for name in names], rotation=40, ha="right", fontsize=small)
        axes.set_yticks(places, [_short(name, 16) for name in names], fontsize=small)
        axes.tick_params(length=0)
        if len(names) <= MOST_CLASSES:
            for row, column in np.ndindex(*counts.shape):
                if counts[row, column]:
                    axes.text(
                        column + 0.5, row + 0.5, f"{counts[row, column]:.0f}", ha="center", va="center", fontsize=small
                    )
        axes.set(xlabel="predicted", ylabel="label")

    side = min(9.0, max(3.6, 0.34 * len(names) + 1.6))
    return drawn("confusion", "Confusion matrix of the test rows", draw, (max(5.2, side), side))


def calibration(confidence: Sequence[float], right: Sequence[bool]) -> Markup:
    """Return how often predictions of a confidence are right.

    Args:
        confidence: (rows,), the probability of the predicted class.
        right: (rows,).
    """
    values, hits = np.asarray(confidence, float), np.asarray(right, float)
    bins = np.clip((values * BINS).astype(int), 0, BINS - 1)

    def draw(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=INK, linewidth=0.8, linestyle=":")
        for number in range(BINS):
            own = bins == number
            if own.any():
                share, error = hits[own].mean(), 1.96 * np.sqrt(max(hits[own].var(), 1e-12) / own.sum())
                axes.errorbar(values[own].mean(), share, yerr=error, color=COLOURS[0], linewidth=1)
                axes.plot(values[own].mean(), share, "o", color=COLOURS[0], markersize=3 + 9 * np.sqrt(own.mean()))
        axes.set(xlabel="confidence", ylabel="share that is right", xlim=(0, 1.02), ylim=(-0.02, 1.02))

    return drawn("calibration", "Share of right predictions by their confidence", draw)


def residuals(labels: Sequence[float], predicted: Sequence[float]) -> Markup:
    """Return predicted against true numbers."""

    def draw(axes: Any) -> None:
        ends = [min(*labels, *predicted), max(*labels, *predicted)]
        axes.plot(ends, ends, color=INK, linewidth=0.8, linestyle=":")
        axes.plot(labels, predicted, "o", color=COLOURS[0], markersize=3, alpha=0.6, rasterized=len(labels) > 5000)
        axes.set(xlabel="label", ylabel="predicted")

    return drawn("residuals", "Predicted against true numbers", draw)


def methods(result: Mapping[str, Any]) -> Markup:
    """Return the test metric of each method of a comparison: a point a run, the mean with its standard deviation."""
    found = result["methods"]

    def draw(axes: Any) -> None:
        for place, method in enumerate(found):
            colour = COLOURS[place % len(COLOURS)]
            spread = np.linspace(-0.16, 0.16, len(method["values"])) if len(method["values"]) > 1 else [0.0]
            axes.plot(method["values"], place + np.asarray(spread), "o", color=colour, markersize=4, alpha=0.55)
            axes.errorbar(
                method["mean"], place, xerr=method["standard_deviation"], color=INK, marker="D", markersize=5, capsize=4
            )
        axes.set_yticks(range(len(found)), [_short(method["label"]) for method in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set(xlabel=f"{result['metric']} on test rows")

    return drawn("methods", f"{result['metric']} of each method", draw, (5.2, 1.2 + 0.55 * len(found)))


def differences(result: Mapping[str, Any]) -> Markup | None:
    """Return the paired differences to the reference with their intervals; None where there is one method."""
    found = [method for method in result["methods"] if "against_reference" in method]
    places = [method["label"] for method in result["methods"]]

    def draw(axes: Any) -> None:
        for place, method in enumerate(found):
            pair, colour = method["against_reference"], COLOURS[places.index(method["label"]) % len(COLOURS)]
            axes.plot([pair["low"], pair["high"]], [place, place], color=colour, linewidth=2)
            axes.plot(pair["difference"], place, "D", color=colour, markersize=6)
        axes.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axes.set_yticks(range(len(found)), [_short(method["label"]) for method in found])
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set(xlabel=f"difference to {_short(result['reference'])}, 95 % interval")

    told = f"Difference of each method to {result['reference']}"
    return drawn("differences", told, draw, (5.2, 1.2 + 0.55 * len(found))) if found else None


def rates(result: Mapping[str, Any]) -> Markup | None:
    """Return the selection metric of each method by the factor on its learning rates; None for one factor."""

    def draw(axes: Any) -> None:
        for place, method in enumerate(result["methods"]):
            known = [(float(rate), value) for rate, value in method["selection_by_rate"].items() if value is not None]
            factors, values = zip(*sorted(known), strict=True)
            colour = COLOURS[place % len(COLOURS)]
            axes.plot(factors, values, "o-", color=colour, markersize=4, label=_short(method["label"]))
            chosen = factors.index(method["rate"])
            axes.plot(factors[chosen], values[chosen], "o", color=colour, markersize=9, fillstyle="none")
        axes.set_xscale("log")
        axes.set_xticks(result["rates"], [f"× {rate:g}" for rate in result["rates"]], minor=False)
        axes.set_xticks([], minor=True)
        axes.set(
            xlabel="learning rates; a ring is the one that was chosen", ylabel=f"{result['metric']} on selection rows"
        )
        axes.legend()

    return drawn("rates", "Selection metric by learning rate", draw) if len(result["rates"]) > 1 else None


def mean_curves(curves: Mapping[str, Sequence[tuple[float, float, float]]], ylabel: str) -> Markup | None:
    """Return what each method's runs had on average at each step of their last phase, with the standard deviation.

    Args:
        curves: by label, (step, mean, standard deviation).
        ylabel: what it is.
    """

    def draw(axes: Any) -> None:
        for place, (label, points) in enumerate(curves.items()):
            if points:
                steps, means, deviations = (np.asarray(column) for column in zip(*points, strict=True))
                colour = COLOURS[place % len(COLOURS)]
                axes.plot(steps, means, "o-", color=colour, markersize=4, label=_short(label))
                axes.fill_between(steps, means - deviations, means + deviations, color=colour, alpha=0.15, linewidth=0)
        axes.set(xlabel="step of the last phase", ylabel=ylabel)
        axes.legend()

    return drawn("mean-curves", f"{ylabel} over the steps", draw) if any(curves.values()) else None


def _short(name: str, most: int = LABEL) -> str:
    """Return a name without its middle where it is long: labels of one method differ at their ends."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[most // 2 + 1 - most :]}"


def _distinct(names: Sequence[str]) -> list[str]:
    """Return the names of layers without what they all begin and end with."""
    split = [name.split(".") for name in names]
    while len(split) > 1 and all(len(parts) > 1 for parts in split) and len({parts[0] for parts in split}) == 1:
        split = [parts[1:] for parts in split]
    return [".".join(part for part in parts if part not in ("attention", "self", "layer")) for parts in split]
