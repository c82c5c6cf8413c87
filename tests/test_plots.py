"""What matplotlib is given, held against what is to be shown."""

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from cifar_flax import plots
from cifar_flax.data import CIFAR10
from cifar_flax.explaining import drawing

ROWS = [
    {
        "epoch": epoch,
        "learning_rate": 0.1 if epoch < 3 else 0.05,
        **{
            f"{split}_{name}": value / epoch + shift
            for split, shift in (("train", 0), ("val", 3), ("test", 5))
            for name, value in (("loss", 2), ("accuracy", 0.5))
        },
    }
    for epoch in (1, 2, 3)
]


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """A function that draws, and gives the figure that was saved."""
    saved, save = [], Figure.savefig

    def note(figure, *arguments, **options):
        saved.append(figure)
        return save(figure, *arguments, **options)

    def drawn(plot, *arguments):
        plot(*arguments[:-1], tmp_path / "a.png", arguments[-1])
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        return saved[-1]

    monkeypatch.setattr(Figure, "savefig", note)
    return drawn


def lines(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def test_curves_are_the_same_bytes_for_the_same_rows(tmp_path):
    for name in ("a.png", "b.png"):
        plots.plot_curves(ROWS, tmp_path / name, "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("number", [1, 3])
def test_curves_go_through_their_rows(figure, number):
    found = figure(plots.plot_curves, ROWS[:number], "title")
    for axes, (name, scale) in zip(found.axes, {"loss": 1, "accuracy": 100}.items(), strict=True):
        for split, label, colour in (
            ("train", "train (augmented)", "#0072B2"),
            ("val", "validation", "#009E73"),
            ("test", "test", "#D55E00"),
        ):
            line = lines(axes)[label]
            assert line.get_xdata().tolist() == [1, 2, 3][:number]
            assert line.get_ydata().tolist() == [scale * row[f"{split}_{name}"] for row in ROWS[:number]]
            assert to_hex(line.get_color()) == colour.lower()
            assert (line.get_marker() == "o") == (number == 1)  # a line of one point is not seen
        falls = [line.get_xdata()[0] for line in axes.lines if line.get_label().startswith("_")]
        assert falls == ([2.5] if number == 3 else [])  # before the epoch with the lower rate
        assert number == 3 or axes.get_xticks().tolist() == [1]
    assert [axes.get_ylabel() for axes in found.axes] == ["cross-entropy (nats)", "accuracy (%)"]


def test_curves_without_a_test_set_have_no_line_of_it(figure):
    rows = [{name: value for name, value in row.items() if not name.startswith("test")} for row in ROWS]
    assert set(lines(figure(plots.plot_curves, rows, "title").axes[0])) == {"train (augmented)", "validation"}


def test_a_taught_networks_training_loss_is_called_what_it_is(tmp_path):
    """It compares with a teacher too, and is no cross-entropy, nor comparable with the others."""
    loss, accuracy = plots.curves_figure(ROWS, taught=True).axes
    assert set(lines(loss)) == {"train: labels and teacher", "validation", "test"}
    assert loss.get_ylabel() == "loss (nats)" and "train (augmented)" in lines(accuracy)


def test_grid_shows_the_pixels_themselves(tmp_path):
    image = np.zeros((1, 1, 32, 32, 3))
    image[..., 0] = 1
    plots.plot_image_grid(image, tmp_path / "grid.png", ["red"])
    with Image.open(tmp_path / "grid.png") as picture:
        colors = picture.convert("RGB").getcolors(1 << 20)
    assert max(count for count, color in colors if color == (255, 0, 0)) > 5_000


def test_calibration_shows_accuracy_by_confidence_and_error_by_coverage(figure):
    found = {
        "reliability": {
            "confidence": [0.2, 0.5, 0.9],
            "accuracy": [0.1, 0.6, 0.8],
            "calibrated_low": [0.15, 0.4, 0.85],
            "calibrated_high": [0.3, 0.55, 0.95],
        },
        "risk": {"coverage": [0.5, 1.0], "error_rate": [0.05, 0.3]},
    }
    left, right = figure(drawing.plot_calibration, found, "title").axes
    line = lines(left)["this network"]
    assert line.get_xdata().tolist() == [0.2, 0.5, 0.9] and line.get_ydata().tolist() == [0.1, 0.6, 0.8]
    band = left.collections[0].get_paths()[0].vertices
    for confidence, low, high in ((0.2, 0.15, 0.3), (0.5, 0.4, 0.55), (0.9, 0.85, 0.95)):
        assert {low, high} <= set(band[band[:, 0] == confidence][:, 1].tolist())
    assert right.lines[0].get_xdata().tolist() == [0.5, 1.0] and right.lines[0].get_ydata().tolist() == [0.05, 0.3]
    assert (left.get_xlabel(), left.get_ylabel()) == ("confidence", "accuracy")
    assert right.get_ylabel().startswith("error rate") and right.get_xlabel().startswith("coverage")


def test_faithfulness_shows_each_figure_with_its_interval(figure):
    rows = {
        "map": {"wrong": {"srg": 0.3, "interval": [0.1, 0.35]}, "right": {"srg": 0.2, "interval": [0.15, 0.3]}},
        "chance": {"wrong": {"srg": 0.0, "interval": [-0.1, 0.05]}},  # of right ones none was scored
    }
    fills = {"images": {}, "mean": rows, "road": {"map": rows["chance"], "chance": rows["map"]}}
    names = ("map", "chance")
    found = figure(drawing.plot_faithfulness, fills, ["chance"], "title")
    assert [axes.get_xlabel().split(";")[0] for axes in found.axes] == ["SRG, fill: mean", "SRG, fill: road"]
    assert [tick.get_text() for tick in found.axes[0].get_yticklabels()] == ["map", "(chance)"]
    for axes, fill in zip(found.axes, ("mean", "road"), strict=True):
        shown = {}
        for container in axes.containers:
            points, _, (bars,) = container.lines
            ends = [segment[:, 0].tolist() for segment in bars.get_segments()]
            for x, y, interval in zip(points.get_xdata(), points.get_ydata(), ends, strict=True):
                shown[round(y), container.get_label()] = (x, interval)
        expected = {(i, group): row for i, name in enumerate(names) for group, row in fills[fill][name].items()}
        assert shown.keys() == expected.keys()
        for key, (x, interval) in shown.items():
            np.testing.assert_allclose([x, *interval], [expected[key]["srg"], *expected[key]["interval"]])


def test_pairs_show_the_predicted_classs_map_above_the_true_ones(figure, rng):
    maps = rng.random((2, 2, 8, 8))
    found = figure(drawing.plot_pairs, maps, [(3, 5, 7), (0, 8, 4)], CIFAR10.class_names, "title")
    above, below = found.axes[:2], found.axes[2:]
    for i, (true, predicted, count) in enumerate([("cat", "dog", 7), ("airplane", "ship", 4)]):
        np.testing.assert_array_equal(above[i].images[0].get_array(), maps[i, 0])
        np.testing.assert_array_equal(below[i].images[0].get_array(), maps[i, 1])
        assert above[i].get_title() == f"{true} taken for\n{predicted} ({count})"
        assert below[i].get_title() == f"of {true}"
        assert above[i].images[0].get_clim() == (0, maps.max())
    assert (above[0].get_ylabel(), below[0].get_ylabel()) == ("map of the predicted class", "map of the true class")


def test_a_name_is_no_formula(figure):
    found = figure(plots.plot_curves, ROWS, r"training of $\frac$ and $x_1$")
    assert found.get_suptitle() == r"training of $\frac$ and $x_1$"


@pytest.mark.parametrize("suffix", [".jpg", ".txt", ""])
def test_a_picture_of_another_kind_is_refused(tmp_path, suffix):
    with pytest.raises(ValueError, match=r"expected a name that ends in \.png"):
        plots.plot_curves(ROWS, tmp_path / f"a{suffix}", "title")
    assert not list(tmp_path.iterdir())


def test_letters_that_the_font_lacks_are_named_once(tmp_path):
    figure = Figure()
    figure.suptitle("猫 taken for 犬\nβ, é: $5")
    with pytest.warns(UserWarning) as said:
        plots.save_figure(figure, tmp_path / "a.png")
    assert [str(x.message).split(":")[0] for x in said] == ["pictures show a box for 犬 猫"]
    plots.save_figure(figure, tmp_path / "b.png")
