"""The checkpoints to choose from, and what each says about itself."""

import html
import shutil

import pytest

from inference.page.answers import Page
from inference.page.checkpoints import MAX_LOADED, Checkpoints, about, card_text, plots
from router_model import Router


@pytest.fixture
def models(checkpoint, tmp_path):
    for day in (1, 2, 3, 4):
        shutil.copytree(checkpoint, tmp_path / f"tiny-router-finetuning-2026020{day}T000000-save")
    rehearsal = tmp_path / "tiny-router-finetuning-20260209T000000-save"
    shutil.copytree(checkpoint, rehearsal)
    (rehearsal / "run.json").write_text('{"rehearsal": true}')
    return tmp_path


def test_neighbouring_checkpoints_are_offered_and_loaded_when_chosen(models):
    newest = models / "tiny-router-finetuning-20260204T000000-save"
    offered = Checkpoints(Page(Router.load(newest), 0.3))
    assert [name[-20:-5] for name in offered.names] == [f"2026020{day}T000000" for day in (4, 3, 2, 1)]
    assert offered.get(None).threshold == 0.3 and offered.get("../../etc").name == newest.name
    other = offered.get(offered.names[2])
    assert other.name == offered.names[2] and other.threshold == 0.5 and offered.get(other.name) is other
    for name in offered.names:
        offered.get(name)
    assert offered.get(newest.name) is offered.first and len(offered._loaded) <= MAX_LOADED  # noqa: SLF001


def test_a_checkpoint_says_what_it_is_and_where_it_is_weak(page):
    shown = html.unescape(about(page))
    for part in (
        "tiny",
        "rows.jsonl",
        "320 for training",
        "2026-01-02",
        "0.900 (0.800 to 0.950)",
        "On 40 test prompts",
        "in 12 frames 10% of the decisions changed, in the worst 40%",
    ):
        assert part in shown
    assert "Where it is weak" in shown and "follow-up" in shown


def test_a_bare_or_broken_checkpoint_says_what_it_can(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    (folder / "run.json").write_text("[1")
    (folder / "metrics.json").write_text('{"test": 5}')
    (folder / "README.md").unlink()
    page = Page(Router.load(folder))
    assert "not recorded" in about(page) and card_text(page) == "This checkpoint has no model card."


def test_the_card_asks_nothing_of_other_hosts(page):
    assert card_text(page).startswith("# A card\n") and "evil.example" not in card_text(page)


@pytest.mark.parametrize(
    "picture",
    [
        r"![a\]b](http://evil.example/x.png)",
        "![[a]](http://evil.example/x.png)",
        "!![a](http://evil.example/x.png)",
        "![a][ref]\n\n[ref]: http://evil.example/x.png",
        "<div \n<img src=http://evil.example/x.png \n\nmore",
    ],
)
def test_no_form_of_a_picture_is_left_in_the_card(checkpoint, tmp_path, picture):
    folder = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    (folder / "README.md").write_text(f"# A card\n\n{picture}\n")
    shown = card_text(Page(Router.load(folder)))
    assert "![" not in shown and "<" not in shown


def test_plots_come_from_the_folder_only(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / checkpoint.name)
    (folder / "test_scores.png").write_bytes(b"own")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    shown = plots(Page(Router.load(folder)))
    assert shown.count("<img") == 1 and "<figcaption>test scores" in shown and "base64,b3du" in shown
