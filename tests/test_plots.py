"""The pictures: what they draw is what they were given, and their axes say what it is."""

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from matplotlib.colors import to_hex  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from guppylm import plots  # noqa: E402

HISTORY = [{"step": s, "train_loss": 9 / s, "eval_loss": 10 / s, "floor": 0.4} for s in (1, 2, 3)]
STEPS = [(" yes", 0.7, [(" yes", 0.7), (" no", 0.2)]), (".", 0.4, [("!", 0.6), (".", 0.4)]), ("?", 0.1, [("!", 0.6)])]

EVERY = {
    "curves": lambda: plots.curves({"a": ([1, 2], [3, 4])}, "Title", "x (m)", "y (s)"),
    "losses": lambda: plots.losses(HISTORY, 8.3),
    "bars": lambda: plots.bars({"a": 1, "b": 2.5}, "Title", "parameters", "part"),
    "histogram": lambda: plots.histogram([1, 2, 2], "Title", "length (tokens)", "rows", limit=4),
    "matrix": lambda: plots.matrix(np.eye(3), list("abc"), "Title", "key", "query", "weight"),
    "stages": lambda: plots.stages({"one": np.eye(2), "two": np.array([[0, -np.inf], [1, 2]])}, list("ab")),
    "head_scores": lambda: plots.head_scores(np.array([[0.1, 0.9], [0.2, 0.3]]), "Title", "share"),
    "batch": lambda: plots.batch(np.array([[1, 2, 0], [1, 1, 2]]), "Title"),
    "square_law": lambda: plots.square_law([128, 256], [0.001, 0.005], "Title"),
    "embeddings": lambda: plots.embeddings([[0, 1], [2, 3]], ["a", "b"], ["food", "body"], "Title"),
}
SHARED = {  # the figure itself carries the title and the axes' names
    "next_tokens": lambda: plots.next_tokens(STEPS, "Title"),
    "heads": lambda: plots.heads({f"head {h}": np.full((2, 2), 0.5) for h in range(4)}, ["a", "b"], "Title"),
}
TITLED = {"tokens": lambda: plots.tokens(["user", "\n", "hi"], [False, False, True], "Title")}


@pytest.mark.parametrize("draw", [*EVERY.values()], ids=[*EVERY])
def test_each_axis_is_named(draw):
    figure = draw()
    for ax in figure.axes:
        if ax.get_label() == "<colorbar>":
            assert ax.get_ylabel()
        else:
            assert ax.get_title(loc="left") and ax.get_xlabel() and (ax.get_ylabel() or draw is EVERY["bars"])


@pytest.mark.parametrize("draw", [*SHARED.values()], ids=[*SHARED])
def test_panels_share_the_names_of_their_axes(draw):
    figure = draw()
    assert figure.get_suptitle() and figure.get_supxlabel() and figure.get_supylabel()


@pytest.mark.parametrize("draw", [*(EVERY | SHARED | TITLED).values()], ids=[*(EVERY | SHARED | TITLED)])
def test_it_can_be_saved_and_its_paper_is_opaque_and_light(draw, tmp_path):
    figure = draw()
    assert isinstance(figure, Figure)
    assert to_hex(figure.get_facecolor()) == plots.PAPER and figure.get_facecolor()[3] == 1
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1_000


def test_every_picture_is_tested():
    own = {name for name, value in vars(plots).items() if callable(value) and value.__module__ == plots.__name__}
    pictures = {name for name in own if not name.startswith("_")} - {"visible"}
    assert pictures == set(EVERY | SHARED | TITLED)


def test_curves_draw_lines_levels_and_scales():
    figure = plots.curves({"a": ([1, 2], [3, 4]), "b": ([1, 2], [5, 6])}, "T", "x", "y", {"floor": 2.5}, log="xy")
    ax = figure.axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in ax.lines}
    assert drawn["a"] == [3, 4] and drawn["b"] == [5, 6] and drawn["floor 2.5"] == [2.5, 2.5]
    assert ax.lines[0].get_color() != ax.lines[1].get_color()
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()
    assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b", "floor 2.5"]


def test_losses_stand_between_guessing_and_the_floor():
    drawn = {line.get_label(): list(line.get_ydata()) for line in plots.losses(HISTORY, 8.3).axes[0].lines}
    assert drawn["training"] == [9, 4.5, 3] and drawn["evaluation"] == [10, 5, 10 / 3]
    assert [8.3, 8.3] in drawn.values() and [0.4, 0.4] in drawn.values()
    unknown = [{**row, "floor": None} for row in HISTORY]
    assert len(plots.losses(unknown, 8.3).axes[0].lines) == 3


def test_bars_have_lengths_names_and_numbers():
    ax = plots.bars({"tokens": 1572864, "half": 0.5}, "T", "x").axes[0]
    assert [bar.get_width() for bar in ax.patches] == [1572864, 0.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["tokens", "half"]
    assert {text.get_text() for text in ax.texts} == {"1,572,864", "0.5"}
    written = {2264.3: "2,264", 999.6: "1,000", 999.4: "999", 0.12345: "0.123"}
    for value, text in written.items():
        assert plots.bars({"training": value}, "T", "x").axes[0].texts[0].get_text() == text
    assert plots.bars({"none": 0, "half": 50}, "T", "x", end=100).axes[0].get_xlim() == pytest.approx((0, 108))
    assert plots.bars({"none": 0}, "T", "x").axes[0].get_xlim() == pytest.approx((0, 1.08))


def test_on_a_logarithmic_axis_bars_are_dots():
    ax = plots.bars({"few": 10, "many": 1e6}, "T", "x", log=True).axes[0]
    assert ax.get_xscale() == "log" and not ax.patches
    assert list(ax.lines[0].get_xdata()) == [10, 1e6]
    assert [text.get_text() for text in ax.texts] == ["10", "1,000,000"]


def test_a_histogram_counts():
    ax = plots.histogram([3, 5, 5, 5], "T", "x", "y", limit=9).axes[0]
    assert {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in ax.patches} == {3: 1, 5: 3}
    assert list(ax.lines[0].get_xdata()) == [9, 9]


def test_tokens_are_all_there_and_the_marked_ones_differ():
    texts = ["user", "\n", "a", " b" * 40, " c"]
    ax = plots.tokens(texts, [False, False, False, True, True], "T").axes[0]
    assert [text.get_text() for text in ax.texts] == [plots.visible(text) for text in texts]
    faces = [to_hex(text.get_bbox_patch().get_facecolor()) for text in ax.texts]
    assert faces[3] == faces[4] and not set(faces[:3]) & set(faces[3:])
    assert ax.texts[2].get_position()[1] < ax.texts[1].get_position()[1]  # a new line after \n


def test_matrices_show_their_values():
    figure = plots.matrix(np.array([[1, 0], [0.25, 0.75]]), ["a", " b"], "T", "key", "query", "weight")
    assert figure.axes[0].images[0].get_array().tolist() == [[1, 0], [0.25, 0.75]]
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["a", "·b"]
    ax = plots.stages({"masked": np.array([[0.5, -np.inf], [1, 2]])}, ["a", "b"]).axes[0]
    assert [text.get_text() for text in ax.texts] == ["0.50", "-∞", "1.00", "2.00"]


def test_the_best_head_is_framed():
    ax = plots.head_scores(np.array([[0.1, 0.2, 0.3], [0.2, 0.3, 0.9]]), "T", "share").axes[0]
    frame = ax.lines[0]
    assert (min(frame.get_xdata()), max(frame.get_xdata())) == (1.5, 2.5)
    assert (min(frame.get_ydata()), max(frame.get_ydata())) == (0.5, 1.5)
    assert "0.90" in [text.get_text() for text in ax.texts]


def test_each_head_has_a_map():
    weights = np.arange(16).reshape(4, 2, 2) / 16
    figure = plots.heads(dict(zip("pqrs", weights, strict=True)), ["a", "b"], "T")
    maps = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.images and ax.get_title(loc="left")}
    assert list(maps) == list("pqrs")
    assert [ax.images[0].get_array().tolist() for ax in maps.values()] == weights.tolist()
    named = {name for name, ax in maps.items() if ax.yaxis.get_tick_params()["labelleft"]}
    assert named == {"p", "s"}  # the first of each row has the names of what looks


def test_a_batch_shows_three_kinds():
    ax = plots.batch(np.array([[1, 2, 0]]), "T").axes[0]
    assert ax.images[0].get_array().tolist() == [[1, 2, 0]]
    assert len(ax.get_legend().get_texts()) == len({to_hex(c) for c in ax.images[0].cmap.colors}) == 3


def test_the_chosen_token_stands_out():
    figure = plots.next_tokens(STEPS, "T")
    first, second, third = figure.axes[:3]
    assert [bar.get_width() for bar in first.patches] == [0.7, 0.2]
    assert [to_hex(bar.get_facecolor()).upper() for bar in second.patches] == [plots.SKY, plots.VERMILION]
    assert "yes" in first.get_title(loc="left")
    unlikely = [(bar.get_width(), to_hex(bar.get_facecolor()).upper()) for bar in third.patches]
    assert unlikely == [(0.6, plots.SKY), (0.1, plots.VERMILION)]  # a token that was not among the best stands below


def test_the_square_goes_through_the_last_point():
    measured, square = plots.square_law([128, 256, 512], [0.001, 0.003, 0.016], "T").axes[0].lines
    assert measured.get_ydata() == pytest.approx([1, 3, 16]) and square.get_ydata() == pytest.approx([1, 4, 16])


def test_embeddings_are_named_and_grouped():
    ax = plots.embeddings([[0, 1], [2, 3], [4, 5]], ["a", " b", "c"], ["food", "food", "body"], "T").axes[0]
    assert [text.get_text() for text in ax.texts] == ["a", "·b", "c"]
    assert [len(dots.get_offsets()) for dots in ax.collections] == [2, 1]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["food", "body"]


def test_names_of_embeddings_keep_apart():
    same = [[0, 0]] * 4 + [[1, 1]]
    texts = plots.embeddings(same, ["flakes", "pellets", "worms", "peas", "far"], ["food"] * 5, "T").axes[0].texts
    boxes = [text.get_window_extent() for text in texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_text_is_never_read_as_mathematics(tmp_path):
    plots.tokens(["$", "a_$\\frac", "$"], [True, False, True], "T").savefig(tmp_path / "dollar.png")
    assert plots.visible(" a\n$") == r"·a⏎\$"
