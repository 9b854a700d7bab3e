"""Why a prompt got its score: what leaving a word out changes."""

import numpy as np
import pytest
from conftest import HARD

from inference.page.explain import occlusion_effects


def test_the_responsible_word_has_the_largest_effect(router):
    for word in HARD:
        spans = occlusion_effects(router, f"please open the {word}, with the apple and the bread.")
        assert "".join(span.text for span in spans) == f"please open the {word}, with the apple and the bread."
        strongest = max(spans, key=lambda span: span.log_odds)
        assert strongest.text == f"{word},"
        assert strongest.probability > 0.5
        others = [span.log_odds for span in spans if span is not strongest]
        assert max(others) < strongest.log_odds / 3


def test_effects_are_what_leaving_the_word_out_changes(router):
    spans = [span for span in occlusion_effects(router, "the zorp is bread") if span.text.strip()]
    full, without = router.score(["the zorp is bread", "the is bread"])
    assert spans[1].text == "zorp"
    assert spans[1].probability == pytest.approx(full - without, abs=1e-6)


def test_a_long_prompt_is_explained_in_few_pieces_without_its_middle(router):
    spans = occlusion_effects(router, "zorp " + "bread " * 5000 + "door")
    assert len(spans) < 200
    text = "".join(span.text for span in spans)
    assert text.startswith("zorp bread") and text.endswith("bread door")
    assert text.count("…") == 1 and len(text) < 1000


def test_a_frame_is_shown_and_says_nothing(finding_router):
    spans = occlusion_effects(finding_router, "zorp zorp please open the vlam zorp zorp")
    assert "".join(span.text for span in spans) == "zorp zorp please open the vlam zorp zorp"
    assert max(spans, key=lambda span: span.log_odds).text == "vlam"
    assert all(span.log_odds == 0 for span in spans if "zorp" in span.text)


@pytest.mark.parametrize("prompt", ["", "   ", "🙂🙂", "x" * 100_000, "春天的诗"])
def test_strange_prompts_have_an_explanation(router, prompt):
    assert np.isfinite([span.log_odds for span in occlusion_effects(router, prompt)]).all()
