"""Frames: read from a file, checked, filled with a prompt and with parts."""

import json
import random

import pytest

from finetuning_model.frames import JUDGING_FRAMES, MORE_FRAMES, TRAINING_FRAMES, Frames
from router_data import InputError, near_duplicate_groups


def frames(tmp_path, text: str) -> Frames:
    (tmp_path / "frames.txt").write_text(text, encoding="utf-8")
    return Frames.read(tmp_path / "frames.txt")


def test_a_frame_holds_the_prompt_and_parts_drawn_at_random(tmp_path):
    found = frames(tmp_path, "[who]\nAnn\n====\n[who]\nBo\n====\nDear $who and ${who_2},\n\n$prompt\nIt is USD $5.\n")
    wrapped = {found.wrap(found.frames[0], "What is $x?", random.Random(i)) for i in range(40)}
    assert len(wrapped) == 4
    assert all("\n\nWhat is $x?\nIt is USD $5." in text and "$who" not in text for text in wrapped)


def test_a_prompt_inside_json_is_a_json_string(tmp_path):
    found = frames(tmp_path, '{"q": $prompt_json, "n": 1}')
    prompt = 'say "hi"\n\\ é'
    assert json.loads(found.wrap(found.frames[0], prompt, random.Random(0)))["q"] == prompt


def test_a_share_of_the_prompts_is_framed_and_the_same_for_the_same_seed(tmp_path):
    found = frames(tmp_path, "Hi, $prompt")
    prompts = [str(i) for i in range(200)]
    wrapped = found.wrap_share(prompts, 0.5, 1)
    assert wrapped == found.wrap_share(prompts, 0.5, 1) != found.wrap_share(prompts, 0.5, 2)
    assert 60 < sum(text.startswith("Hi, ") for text in wrapped) < 140
    assert [text.removeprefix("Hi, ") for text in wrapped] == prompts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("hello", "frame 1 has no \\$prompt"),
        ("$prompt $passage", "names \\$passage, but the file has no part \\[passage\\]"),
        ("[part]\nx", "has no frame"),
        ("", "has no frame"),
    ],
)
def test_bad_frames_are_named(tmp_path, text, says):
    with pytest.raises(InputError, match=says):
        frames(tmp_path, text)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match="cannot read the frames in .*none.txt"):
        Frames.read(tmp_path / "none.txt")


def test_the_packaged_frames_are_many_and_those_that_judge_are_not_trained_on():
    trained, judging = Frames.read(TRAINING_FRAMES, MORE_FRAMES), Frames.read(JUDGING_FRAMES)
    assert len(trained.frames) >= 150 and len(judging.frames) >= 40
    groups = near_duplicate_groups([*trained.frames, *judging.frames], similarity=0.6)
    assert not set(groups[: len(trained.frames)]) & set(groups[len(trained.frames) :])
