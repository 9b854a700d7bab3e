"""The pictures: they are drawn for odd input, stay readable, and use the two tiers' colours."""

import numpy as np
import pytest
from PIL import Image

from finetuning_model.evaluation import plots
from router_data import INFERIOR, SUPERIOR, TIER_COLORS, Prices


def colours(path) -> set[tuple[int, int, int]]:
    with Image.open(path) as file:
        image = file.convert("RGB")
    return {colour for _, colour in image.getcolors(image.width * image.height)}


def rgb(colour: str) -> tuple[int, int, int]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_plots_stand_odd_input(tmp_path):
    one_group = {"only": np.ones(3, dtype=bool), "none": np.zeros(3, dtype=bool)}
    plots.score_histogram(tmp_path / "a.png", np.array([0.0, 0.5, 1.0]), one_group, 0.5)
    plots.reliability(tmp_path / "b.png", np.array([0.0, 1.0]), np.array([0.0, 1.0]), np.array([0.5, 0.5]))
    plots.training_curve(tmp_path / "c.png", [1.0], [0.5])
    plots.accuracy_by_category(tmp_path / "d.png", ["$x$", "b"], np.array([True, False]), np.array([1.0, 0.0]))
    assert all((tmp_path / f"{name}.png").stat().st_size > 5000 for name in "abcd")


@pytest.mark.slow
def test_any_number_of_categories_fits_one_picture(tmp_path):
    names = [f"category {i}" for i in range(100) for _ in range(1 + i % 30)]
    correct = np.arange(len(names)) % 3 > 0
    plots.accuracy_by_category(tmp_path / "many.png", names, correct, (np.arange(len(names)) % 2).astype(float))
    with Image.open(tmp_path / "many.png") as image:
        width, height = image.size
    assert height < 1.1 * width


def test_the_two_tiers_have_the_pages_colours(tmp_path):
    scores = np.linspace(0, 1, 50)
    groups = {INFERIOR: scores < 0.6, SUPERIOR: scores >= 0.4}
    plots.score_histogram(tmp_path / "a.png", scores, groups, 0.5)
    assert {rgb(TIER_COLORS[INFERIOR]), rgb(TIER_COLORS[SUPERIOR])} <= colours(tmp_path / "a.png")


def test_the_training_curve_has_its_line(tmp_path):
    plots.training_curve(tmp_path / "with.png", [1.0, 1.5], [0.6, 0.55], [0.2, 0.6, 1.0, 1.4], [0.9, 0.7, 0.65, 0.6])
    plots.training_curve(tmp_path / "without.png", [1.0, 1.5], [0.6, 0.55])
    assert rgb(plots.MUTED) in colours(tmp_path / "with.png") - colours(tmp_path / "without.png")


def test_the_cost_quality_curve_has_an_axis_in_money(tmp_path):
    draw = np.random.default_rng(0)
    gain, router = draw.choice([0.0, 1.0], 60), draw.random(60)
    for name, prices in (("with", Prices(0.6, 10, 800)), ("without", None)):
        plots.cost_quality(tmp_path / f"{name}.png", router, {"random": draw.random(60)}, gain, prices, "mine")
    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()
