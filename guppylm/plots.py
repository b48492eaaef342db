"""Every picture of the notebooks: from plain data (lists, numpy arrays, dicts) to a matplotlib Figure.

The background is light and opaque, so that a picture reads the same on a light and on a dark page. The colours are
those of Okabe and Ito, which colour-blind readers can tell apart; where two lines cross, their dashes differ too.

Shapes: L layers, H heads, T tokens, B rows of a batch.
"""

from itertools import zip_longest

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
PALETTE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY)
DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
PAPER, INK, PALE = "#fbfaf6", "#222222", "#d9d9d4"


def _figure(rows: int = 1, columns: int = 1, size: tuple[float, float] = (7.0, 3.6)) -> tuple[Figure, np.ndarray]:
    """An empty figure on our paper, and its axes (rows, columns)."""
    figure = Figure(figsize=size, facecolor=PAPER, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat:
        ax.set_facecolor(PAPER)
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _name(ax: Axes, title: str, xlabel: str, ylabel: str) -> None:
    ax.set_title(title, color=INK, fontsize=11, loc="left")
    ax.set_xlabel(xlabel, color=INK)
    ax.set_ylabel(ylabel, color=INK)


def visible(token: str) -> str:
    """A token with its white space made visible. Dollar signs are escaped: matplotlib reads them as mathematics."""
    return token.replace(" ", "·").replace("\n", "⏎").replace("$", r"\$")


def curves(
    lines: dict[str, tuple[list, list]],
    title: str,
    xlabel: str,
    ylabel: str,
    levels: dict[str, float] | None = None,
    log: str = "",
) -> Figure:
    """Lines by name, each (xs, ys) of one length. levels: horizontal lines by name. log: "x", "y" or "xy"."""
    figure, axes = _figure()
    ax = axes[0, 0]
    for i, (name, (xs, ys)) in enumerate(lines.items()):
        marker = "o" if len(xs) < 16 else ""
        color, dash = PALETTE[i % len(PALETTE)], DASHES[i % len(DASHES)]
        ax.plot(xs, ys, label=name, color=color, linestyle=dash, marker=marker, markersize=4, linewidth=1.8)
    for i, (name, level) in enumerate((levels or {}).items()):
        ax.axhline(level, color=INK, linewidth=1, linestyle=(":", "-.")[i % 2], label=f"{name} {level:.3g}")
    if "x" in log:
        ax.set_xscale("log")
    elif all(float(x).is_integer() for xs, _ in lines.values() for x in xs):
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if "y" in log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter("{x:g}")
        ax.yaxis.set_minor_locator(NullLocator())
    _name(ax, title, xlabel, ylabel)
    if len(lines) + len(levels or {}) > 1:
        ax.legend(frameon=False, fontsize=9)
    ax.grid(color=PALE, linewidth=0.6)
    ax.set_axisbelow(True)
    return figure


def losses(history: list[dict], uniform: float, title: str = "The loss while training") -> Figure:
    """A run's history, one dict an evaluation, between what guessing costs (`uniform` = ln V) and the floor."""
    steps = [row["step"] for row in history]
    lines = {name: (steps, [row[key] for row in history])
             for name, key in (("training", "train_loss"), ("evaluation", "eval_loss"))}  # fmt: skip
    levels = {"guessing, ln V =": uniform}
    if history and history[-1]["floor"] is not None:
        levels["floor"] = history[-1]["floor"]
    return curves(lines, title, "optimizer steps", "loss (nats a reply token)", levels, log="y")


def bars(
    values: dict[str, float], title: str, xlabel: str, ylabel: str = "", log: bool = False, end: float | None = None
) -> Figure:
    """One horizontal bar per name, the first on top, each with its value. end: where the axis ends, such as 100%.

    On a logarithmic axis, which has no 0 to begin at, the length of a bar would mean nothing: there it is a dot.
    """
    figure, axes = _figure(size=(7.0, 1.2 + 0.28 * len(values)))
    ax = axes[0, 0]
    names = [visible(name) if name.startswith(" ") else name for name in values]
    if log:
        ax.set_xscale("log")
        ax.grid(axis="y", color=PALE)
        ax.plot(list(values.values()), range(len(values)), "o", color=BLUE, zorder=2)
    else:
        ax.barh(range(len(values)), list(values.values()), color=BLUE, height=0.7)
    for y, value in enumerate(values.values()):
        ax.annotate(_short(value), (value, y), xytext=(7, 0), textcoords="offset points", fontsize=9, va="center")
    ax.set_yticks(range(len(values)), names)
    ax.set_ylim(len(values) - 0.5, -0.5)
    ax.margins(x=0.14)
    if end or not any(values.values()):
        ax.set_xlim(0, 1.08 * (end or 1))
    if not log and max(values.values()) >= 1e4:
        ax.xaxis.set_major_formatter("{x:,.0f}")
        ax.xaxis.set_major_locator(MaxNLocator(5))
    _name(ax, title, xlabel, ylabel)
    return figure


def _short(value: float) -> str:
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}"
    return f"{value:,.0f}" if 999.5 <= abs(value) < 1e9 else f"{value:.3g}"


def histogram(values: list[float], title: str, xlabel: str, ylabel: str, limit: float | None = None) -> Figure:
    """How often each whole number occurs in values. limit: drawn as a vertical line."""
    figure, axes = _figure(size=(7.0, 2.8))
    ax = axes[0, 0]
    numbers, counts = np.unique(np.asarray(values), return_counts=True)
    ax.bar(numbers, counts, width=1.0, color=BLUE)
    if limit is not None:
        ax.axvline(limit, color=VERMILION, linestyle="--", linewidth=1.5)
        ax.text(limit, ax.get_ylim()[1] * 0.95, f"limit {limit:g} ", ha="right", va="top", color=VERMILION)
    _name(ax, title, xlabel, ylabel)
    return figure


def tokens(texts: list[str], marked: list[bool], title: str, width: int = 98) -> Figure:
    """A text as coloured tokens, in lines of about `width` characters. Those that are marked are filled and bold."""
    lines: list[list[int]] = [[]]
    room = float(width)
    for i, text in enumerate(texts):
        if room < len(text) + 1.3 and lines[-1]:
            lines.append([])
            room = float(width)
        lines[-1].append(i)
        room -= len(text) + 1.3
        if text.endswith("\n"):
            lines.append([])
            room = float(width)
    lines = [line for line in lines if line]
    figure, axes = _figure(size=(8.4, 0.75 + 0.34 * len(lines)))
    ax = axes[0, 0]
    for y, line in enumerate(lines):
        x = 0.0
        for i in line:
            shown = visible(texts[i])
            face = SKY if marked[i] else ("#ece9df", "#dcd8ca")[i % 2]
            edge = INK if marked[i] else "none"
            box = {"facecolor": face, "edgecolor": edge, "boxstyle": "round,pad=0.22", "lw": 0.7}
            weight = "bold" if marked[i] else "normal"
            ax.text(x, -y, shown, family="monospace", fontsize=9, weight=weight, color=INK, bbox=box, va="center")
            x += len(shown) + 1.3
    ax.set_xlim(-1, width + 6)
    ax.set_ylim(-len(lines) + 0.4, 0.6)
    ax.set_axis_off()
    ax.set_title(title, color=INK, fontsize=11, loc="left")
    return figure


def _matrix(ax: Axes, values: np.ndarray, labels: list[str], vmax: float | None = None):
    """A matrix (rows, columns) with its columns named below and its rows at the side, if there are labels."""
    image = ax.imshow(values, cmap="cividis", vmin=0 if np.nanmin(values) >= 0 else None, vmax=vmax, aspect="equal")
    ax.spines[:].set_visible(False)
    shown = [visible(label) for label in labels]
    ax.set_xticks(range(len(shown)), shown, rotation=90, fontsize=8, family="monospace")
    ax.set_yticks(range(len(shown)), shown, fontsize=8, family="monospace")
    return image


def matrix(values: np.ndarray, labels: list[str], title: str, xlabel: str, ylabel: str, unit: str) -> Figure:
    """A square matrix (T, T) of one number per cell: rows are queries, columns keys, both named by `labels`."""
    values = np.asarray(values, dtype=float)
    side = max(3.6, 1.6 + 0.19 * len(values))
    figure, axes = _figure(size=(side + 1.2, side))
    image = _matrix(axes[0, 0], values, labels)
    _name(axes[0, 0], title, xlabel, ylabel)
    figure.colorbar(image, ax=axes[0, 0], label=unit, shrink=0.8)
    return figure


def stages(matrices: dict[str, np.ndarray], labels: list[str]) -> Figure:
    """The stages of one attention head, each a matrix (T, T) by name, left to right; its numbers are written in."""
    figure, axes = _figure(1, len(matrices), size=(3.1 * len(matrices), 3.3))
    for ax, (name, values) in zip(axes[0], matrices.items(), strict=True):
        values = np.asarray(values, dtype=float)
        finite = np.where(np.isfinite(values), values, np.nan)
        ax.set_facecolor(PALE)
        _matrix(ax, finite, labels)
        middle = (np.nanmin(finite) + np.nanmax(finite)) / 2
        for (i, j), value in np.ndenumerate(values):
            text = f"{value:.2f}" if np.isfinite(value) else "-∞"
            color = INK if not np.isfinite(value) or value > middle else "white"
            ax.text(j, i, text, ha="center", va="center", fontsize=8, color=color)
        _name(ax, name, "key", "query")
    return figure


def heads(weights: dict[str, np.ndarray], labels: list[str], title: str) -> Figure:
    """Attention weights by the name of a head, each (T, T), as maps side by side, three in a row."""
    columns = min(3, len(weights))
    rows = -(-len(weights) // columns)
    figure, axes = _figure(rows, columns, size=(4.6 * columns, 4.6 * rows))
    for i, (ax, name) in enumerate(zip_longest(axes.flat, weights)):
        if name is None:
            ax.set_axis_off()
            continue
        image = _matrix(ax, weights[name], labels, vmax=1.0)
        ax.set_title(name, fontsize=11, color=INK, loc="left")
        ax.tick_params(labelsize=7, labelleft=i % columns == 0, labelbottom=i // columns == rows - 1)
    figure.suptitle(title, color=INK, fontsize=12)
    figure.supxlabel("token that is looked at (key)", fontsize=11)
    figure.supylabel("token that looks (query)", fontsize=11)
    figure.colorbar(image, ax=axes, label="attention weight", shrink=0.6)
    return figure


def head_scores(scores: np.ndarray, title: str, unit: str) -> Figure:
    """One score per head: (L, H), layers from top to bottom, each number written in; the best one framed."""
    figure, axes = _figure(size=(5.6, 3.6))
    ax, scores = axes[0, 0], np.asarray(scores, dtype=float)
    image = ax.imshow(scores, cmap="cividis", vmin=0, aspect="auto")
    for (layer, head), value in np.ndenumerate(scores):
        color = INK if value > scores.max() / 2 else "white"
        ax.text(head, layer, f"{value:.2f}", ha="center", va="center", fontsize=9, color=color)
    layer, head = np.unravel_index(scores.argmax(), scores.shape)
    ax.plot(np.array([-0.5, 0.5, 0.5, -0.5, -0.5]) + head, np.array([-0.5, -0.5, 0.5, 0.5, -0.5]) + layer,
            color=VERMILION, linewidth=3, clip_on=False)  # fmt: skip
    ax.set_xticks(range(scores.shape[1]))
    ax.set_yticks(range(scores.shape[0]))
    ax.spines[:].set_visible(False)
    _name(ax, title, "head", "layer")
    figure.colorbar(image, ax=ax, label=unit)
    return figure


def batch(kinds: np.ndarray, title: str) -> Figure:
    """A batch (B, T) of whole numbers: 0 padding, 1 only read, 2 bears loss."""
    figure, axes = _figure(size=(7.4, 3.4))
    ax, kinds = axes[0, 0], np.asarray(kinds)
    colors = (PALE, ORANGE, BLUE)
    ax.imshow(kinds, cmap=ListedColormap(colors), vmin=0, vmax=2, aspect="auto", interpolation="nearest")
    for color, name in zip(colors, ("padding", "only read", "bears loss"), strict=True):
        ax.scatter([], [], marker="s", color=color, label=name)
    ax.legend(loc="upper left", bbox_to_anchor=(0, -0.18), ncol=3, frameon=False, fontsize=9)
    _name(ax, title, "position (tokens)", "row of the batch")
    return figure


def next_tokens(steps: list[tuple[str, float, list[tuple[str, float]]]], title: str, columns: int = 4) -> Figure:
    """One panel per generated token: (token, its probability, [(likely token, probability), best first]).

    The token's bar stands out; where it is not among the likely ones, it stands below them.
    """
    rows = -(-len(steps) // columns)
    figure, axes = _figure(rows, columns, size=(2.4 * columns, 1.35 * rows + 0.8))
    for i, ax in enumerate(axes.flat):
        if i >= len(steps):
            ax.set_axis_off()
            continue
        chosen, probability, choices = steps[i]
        if chosen not in (name for name, _ in choices):
            choices = [*choices, (chosen, probability)]
        names = [name for name, _ in choices]
        colors = [VERMILION if name == chosen else SKY for name in names]
        ax.barh(range(len(names)), [p for _, p in choices], color=colors)
        ax.set_yticks(range(len(names)), [visible(name) for name in names], fontsize=7, family="monospace")
        ax.set_ylim(5.5, -0.5)
        ax.set_xlim(0, 1)
        ax.set_xticks([0, 0.5, 1], ["0", "0.5", "1"], fontsize=7)
        ax.set_title(f"{i + 1}. {visible(chosen)}", fontsize=9, loc="left", color=INK)
    figure.suptitle(title, color=INK, fontsize=11)
    figure.supxlabel("probability (share of 1)", fontsize=9)
    figure.supylabel("next token", fontsize=9)
    return figure


def square_law(lengths: list[int], seconds: list[float], title: str) -> Figure:
    """Measured seconds by length in tokens, with the square of the length through the last point; log axes."""
    square = [seconds[-1] * (length / lengths[-1]) ** 2 for length in lengths]
    milli = ([1000 * s for s in seconds], [1000 * s for s in square])
    lines = {"measured": (lengths, milli[0]), "the square of the length": (lengths, milli[1])}
    figure = curves(lines, title, "length (tokens)", "time of one layer (milliseconds)", log="xy")
    figure.axes[0].set_xticks(lengths, [f"{length:,}" for length in lengths])
    figure.axes[0].minorticks_off()
    return figure


def embeddings(points: np.ndarray, labels: list[str], groups: list[str], title: str) -> Figure:
    """Tokens as points (n, 2) with their names; groups (n) gives colour and marker."""
    figure, axes = _figure(size=(7.4, 5.2))
    ax = axes[0, 0]
    points, groups = np.asarray(points), np.asarray(groups)
    for i, group in enumerate(dict.fromkeys(groups.tolist())):
        xs, ys = points[groups == group].T
        ax.scatter(xs, ys, color=PALETTE[i % len(PALETTE)], marker="os^Dv*"[i % 6], s=28, label=group)
    ax.legend(frameon=False, fontsize=9)
    _name(ax, title, "first principal component", "second principal component")
    ax.margins(0.1)
    figure.draw_without_rendering()  # so that it is known where the points lie
    taken = []
    for point, label in zip(points, labels, strict=True):
        text = ax.annotate(visible(label), point, textcoords="offset points", xytext=(0, 0), fontsize=8, color=INK)
        for x, y in ((4, 3), (4, -9), (-4, 3), (-4, -9), (4, 12), (4, -18)):  # the first place that is free
            text.set(position=(x, y), ha="left" if x > 0 else "right")
            box = text.get_window_extent()
            if not any(box.overlaps(other) for other in taken):
                break
        taken.append(box)
    return figure
