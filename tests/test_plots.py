import numpy as np
from PIL import Image

from cifar_flax import plots

ROWS = [
    {
        "epoch": epoch,
        "learning_rate": 0.1 if epoch < 3 else 0.05,
        **{
            f"{split}_{name}": value / epoch
            for split in ("train", "val", "test")
            for name, value in (("loss", 2), ("acc", 50))
        },
    }
    for epoch in (1, 2, 3)
]


def test_curves_are_the_same_bytes_for_the_same_rows(tmp_path):
    for name in ("a.png", "b.png"):
        plots.plot_curves(ROWS, tmp_path / name, "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png"]


def test_curves_can_be_drawn_of_one_epoch(tmp_path):
    plots.plot_curves(ROWS[:1], tmp_path / "a.png", "title")
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (1500, 600)


def test_grid_shows_the_pixels_themselves(tmp_path):
    image = np.zeros((1, 1, 32, 32, 3))
    image[..., 0] = 1
    plots.plot_image_grid(image, tmp_path / "grid.png", ["red"])
    with Image.open(tmp_path / "grid.png") as picture:
        colors = picture.convert("RGB").getcolors(1 << 20)
    assert max(count for count, color in colors if color == (255, 0, 0)) > 5_000
