"""gdtuo.lab.figures: axes say plain numbers, galleries show the images that they were given."""

import numpy as np
import torch

from gdtuo.lab import figures


def test_plain_log_labels_are_numbers():
    figure, axes = figures.pyplot().subplots()
    axes.plot([1, 2], [0.02, 30])
    figures.plain_log(axes)
    figure.canvas.draw()
    low, high = axes.get_ylim()
    shown = [label.get_text() for label, at in zip(axes.get_yticklabels(), axes.get_yticks(), strict=True) if low < at < high]
    assert shown == ["0.02", "0.05", "0.1", "0.2", "0.5", "1", "2", "5", "10", "20"]
    figures.pyplot().close(figure)


def test_gallery_shows_each_image_once():
    images = torch.randn(10, 9, generator=torch.Generator().manual_seed(0))
    figure = figures.pyplot().figure(layout="constrained")
    figures.gallery(figure.subfigures(1, 1), images, "Title", "what colours mean", vmin=-2, vmax=2)
    *panels, bar = figure.get_axes()
    assert [panel.get_title("left") for panel in panels] == [f"class {k}" for k in range(10)]
    for panel, image in zip(panels, images, strict=True):
        assert np.array_equal(panel.images[0].get_array(), image.reshape(3, 3))
        assert panel.images[0].get_clim() == (-2, 2)
    assert bar.get_xlabel() == "what colours mean"
    figures.pyplot().close(figure)


def test_save_writes_a_headline_into_a_new_folder(tmp_path):
    figure, _ = figures.pyplot().subplots()
    figures.save(figure, tmp_path / "new" / "a.png", "Headline")
    assert figure.get_suptitle() == "Headline"
    assert (tmp_path / "new" / "a.png").read_bytes().startswith(b"\x89PNG")
