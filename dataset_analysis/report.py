"""The report of stage 1: its figures, its plots, and the text that holds them together."""

from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np
import pandas as pd

from dataset_analysis import plots
from dataset_analysis.vote_statistics import Estimate, bootstrap, pooled, spearman, split_half
from router_data import INFERIOR, SUPERIOR, write_text_atomically

HALVES, STEPPED = "two random halves of each question's votes", "… stepped up to all votes"
HALVES_BY_JUDGE, STEPPED_BY_JUDGE = "two random halves of each question's judges", "… stepped up to all judges"
TEMPLATE = Path(__file__).with_name("report_template.md")
MEDIAN_REASON = (
    "It is the median of the questions: $even of them reach 0.5, where people like both tiers alike, so a fixed bound "
    "there would say little, while the median says whether a question is harder or easier for the inferior models than "
    "the typical one and keeps both labels equally frequent."
)


@dataclass(frozen=True)
class Analysis:
    """What stage 1 found, for the report and the files beside it."""

    source: str  # what was read
    human_votes: int  # all of them, inside the tiers too
    votes: pd.DataFrame  # people's between the tiers: `read_judgments.votes_between_tiers`
    gpt4_votes: pd.DataFrame | None  # GPT-4's, likewise; None where there are none
    questions: pd.DataFrame  # ranked and labelled, by question_id
    threshold: float  # inferior ratio; INFERIOR from here on
    threshold_is_median: bool  # or else the user's
    few_shot_ids: list[int]  # the questions shown in the labelling prompt
    questions_without_votes: int  # left out


def write_report(path: Path, analysis: Analysis) -> None:
    """Write the report to `path` and its plots into the folder of that name without suffix."""
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    fields = votes_fields(analysis) | ranking_fields(analysis) | threshold_fields(analysis)
    fields |= category_fields(analysis, pictures) | reliability_fields(analysis) | gpt4_fields(analysis, pictures)
    plots.ranked_questions(pictures / "ranked_questions.png", analysis.questions, analysis.threshold)
    judges = {f"people: {len(analysis.votes):,} votes": model_pairs(analysis.votes)}
    if analysis.gpt4_votes is not None:
        judges[f"GPT-4 judge: {len(analysis.gpt4_votes):,} votes"] = model_pairs(analysis.gpt4_votes)
    plots.preference_grid(pictures / "models.png", judges)
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        fields, examples_text=examples_text(analysis.questions, analysis.few_shot_ids)
    )
    write_text_atomically(path, text)


# --- what fills the template -----------------------------------------------------------------------------------------


def votes_fields(analysis: Analysis) -> dict[str, object]:
    """Which votes were counted."""
    votes, left_out = analysis.votes, analysis.questions_without_votes
    return {
        "source": analysis.source,
        "all_votes": f"{analysis.human_votes:,}",
        "votes": f"{len(votes):,}",
        "superior_models": ", ".join(sorted(set(votes["superior"]))),
        "inferior_models": ", ".join(sorted(set(votes["inferior"]))),
        "left_out": f" Questions without such a vote, left out: {left_out}." if left_out else "",
        "wins_share": percent(share_of_votes(votes, 1)),
        "ties_share": percent(share_of_votes(votes, 0.5)),
        "turn_finding": turn_finding(votes),
    }


def ranking_fields(analysis: Analysis) -> dict[str, object]:
    """The questions in their order."""
    ranked = analysis.questions.sort_values("difficulty_rank")
    most_tied = analysis.questions.sort_index().sort_values(["ties", "inferior_wins"]).iloc[-1]
    return {
        "questions": len(ranked),
        "mean_ratio": f"{bootstrap(np.mean, ranked['inferior_ratio'].sort_index().to_numpy()):.3f}",
        "hardest": _named(ranked.iloc[0]),
        "easiest": _named(ranked.iloc[-1]),
        "median_width": f"{(ranked['inferior_ratio_high'] - ranked['inferior_ratio_low']).median():.2f}",
        "tie_example": f"Question {most_tied.name}, for one, was a tie in {most_tied['ties']} of its "
        f"{most_tied['votes']} votes and has the ratio {most_tied['inferior_ratio']:.2f} with "
        f"{most_tied['inferior_wins']} outright wins.",
        "question_rows": "\n".join(question_row(question, analysis.few_shot_ids) for _, question in ranked.iterrows()),
    }


def threshold_fields(analysis: Analysis) -> dict[str, object]:
    """Where the labels part, and how certain they are."""
    questions, threshold = analysis.questions, analysis.threshold
    beyond = (questions["inferior_ratio_high"] < threshold) | (questions["inferior_ratio_low"] >= threshold)
    even = int((questions["inferior_ratio"] >= 0.5).sum())
    counts = questions["label"].value_counts()
    return {
        "superior_label": SUPERIOR,
        "inferior_label": INFERIOR,
        "threshold": f"{threshold:.3f}",
        "threshold_reason": Template(MEDIAN_REASON).substitute(even=even)
        if analysis.threshold_is_median
        else "It was given with `--threshold`.",
        "superior_count": counts[SUPERIOR],
        "inferior_count": counts[INFERIOR],
        "beyond": f"{beyond.sum()} of the {len(questions)}",
        "mean_confidence": f"{questions['label_confidence'].mean():.2f}",
    }


def category_fields(analysis: Analysis, pictures: Path) -> dict[str, object]:
    """The finding about the categories; draws their plot."""
    means = category_means(analysis.questions)
    plots.categories(pictures / "categories.png", analysis.questions.sort_index(), means)
    return {"category_finding": category_finding(means, analysis.questions)}


def reliability_fields(analysis: Analysis) -> dict[str, object]:
    """How stable the order of the questions is."""
    rows = ranking_reliability(analysis.votes, analysis.questions.sort_index())
    return {
        "halves": f"{rows[HALVES]:.2f}",
        "stepped": f"{rows[STEPPED]:.2f}",
        "ceiling": f"{rows[STEPPED_BY_JUDGE].value ** 0.5:.2f}",
        "reliability_rows": "\n".join(f"| {name} | {value:.2f} |" for name, value in rows.items()),
    }


def share_of_votes(votes: pd.DataFrame, score: float) -> Estimate:
    """How many of all votes have this score."""
    by_question = (votes["score"] == score).groupby(votes["question_id"]).agg(["sum", "size"])
    return bootstrap(pooled, by_question["sum"].to_numpy(), by_question["size"].to_numpy())


def category_means(questions: pd.DataFrame) -> pd.DataFrame:
    """The mean ratio of each category with its interval: columns value, low, high; the lowest first."""
    by_category = questions.groupby("category")["inferior_ratio"]
    means = {name: vars(bootstrap(np.mean, ratio.to_numpy())) for name, ratio in by_category}
    return pd.DataFrame.from_dict(means, orient="index").sort_values("value", kind="stable")


def category_finding(means: pd.DataFrame, questions: pd.DataFrame) -> str:
    """Where the inferior models hold up best and worst, and where people tied most."""
    if len(means) == 1:
        return f"All questions are of one category, {means.index[0]}."
    lowest, highest = (Estimate(**means.iloc[i]) for i in (0, -1))
    votes = questions.groupby("category")[["ties", "votes"]].sum()
    tied = votes["ties"] / votes["votes"]
    return (
        f"The inferior models hold up best in {means.index[-1]}, {highest:.2f}, and worst in {means.index[0]}, "
        f"{lowest:.2f}. Ties are most frequent in {tied.idxmax()}, {tied.max():.0%} of its votes: there the tiers are "
        "alike, which need not mean that both are good."
    )


def model_pairs(votes: pd.DataFrame) -> pd.DataFrame:
    """The inferior ratio of every pair of models, of each model against the other tier, and of tier against tier.

    Returns:
        Columns superior, inferior ("all" for a tier), votes, value, low, high; models of high ratio first.
    """
    numbers = sorted(set(votes["question_id"]))
    order = {tier: votes.groupby(tier)["score"].mean().sort_values().index for tier in ("superior", "inferior")}
    rows = []
    for superior in [*order["superior"][::-1], "all"]:
        for inferior in [*order["inferior"][::-1], "all"]:
            is_superior = votes["superior"].eq(superior) | (superior == "all")
            member = votes[is_superior & (votes["inferior"].eq(inferior) | (inferior == "all"))]
            by_question = member.groupby("question_id")["score"].agg(["sum", "size"]).reindex(numbers, fill_value=0)
            if member.empty:
                continue
            figure = bootstrap(pooled, by_question["sum"].to_numpy(float), by_question["size"].to_numpy())
            rows.append({"superior": superior, "inferior": inferior, "votes": len(member), **vars(figure)})
    return pd.DataFrame(rows)


def ranking_reliability(votes: pd.DataFrame, questions: pd.DataFrame) -> dict[str, Estimate]:
    """Spearman's correlation of two orders of the questions, by the name of what was compared."""
    question, score = votes["question_id"].to_numpy(), votes["score"].to_numpy()
    halves, stepped = split_half(question, np.arange(len(votes)), score)
    by_judge, stepped_by_judge = split_half(question, votes["judge"].to_numpy(dtype=str), score)
    rows = {HALVES: halves, STEPPED: stepped, HALVES_BY_JUDGE: by_judge, STEPPED_BY_JUDGE: stepped_by_judge}
    turns = by_turn(votes)
    if turns.shape[1] == 2 and len(turns):
        rows["votes on the first turn, votes on the second"] = bootstrap(spearman, *turns.to_numpy().T)
    expected = votes.groupby(["superior", "inferior"])["score"].transform("mean")
    adjusted = (votes["score"] - expected).groupby(votes["question_id"]).mean().reindex(questions.index).round(9)
    rows["ratio, ratio adjusted for which models met"] = bootstrap(
        spearman, questions["inferior_ratio"].to_numpy(), adjusted.to_numpy()
    )
    return rows


def by_turn(votes: pd.DataFrame) -> pd.DataFrame:
    """The inferior ratio of each turn (columns), for the questions with votes on all turns."""
    return votes.groupby(["question_id", "turn"])["score"].mean().unstack().dropna()


def turn_finding(votes: pd.DataFrame) -> str:
    """The mean ratio of the first turn beside that of the second."""
    turns = by_turn(votes)
    if turns.shape[1] != 2 or turns.empty:
        return "All votes are on the same turn."
    first, second = turns.to_numpy().T
    return (
        f"On the first turn, the one a router sees, the mean ratio is {bootstrap(np.mean, first):.3f}, on the second "
        f"{bootstrap(np.mean, second):.3f}; the difference is {bootstrap(np.mean, first - second):+.3f}."
    )


def gpt4_fields(analysis: Analysis, pictures: Path) -> dict[str, object]:
    """One sentence of summary and the section; draws the plot where there are votes of GPT-4."""
    if analysis.gpt4_votes is None:
        return {
            "gpt4_finding": "The source holds no votes of the GPT-4 judge.",
            "gpt4_section": "The source holds none of its votes on these tiers.",
        }
    by_gpt4 = analysis.gpt4_votes.groupby("question_id")["score"].mean().rename("gpt4")
    both = analysis.questions.sort_index().join(by_gpt4, how="inner")
    human, gpt4 = both["inferior_ratio"].to_numpy(), both["gpt4"].to_numpy()
    correlation = bootstrap(spearman, human, gpt4)
    plots.human_against_gpt4(pictures / "human_against_gpt4.png", both, both["gpt4"], correlation)
    finding = f"The GPT-4 judge's votes order the questions at {correlation:.2f} with people's (Spearman)."
    text = (
        "![Inferior ratio by people and by the GPT-4 judge](mt_bench_analysis/human_against_gpt4.png)\n\n"
        "*How to read it.* One mark per question: right is a high inferior ratio by people, up a high one by GPT-4. On "
        "the grey line both agree; the numbers name the questions on which they differ most.\n\n"
        f"GPT-4's mean ratio is {bootstrap(np.mean, gpt4):.3f}, people's on these questions "
        f"{bootstrap(np.mean, human):.3f} (difference {bootstrap(np.mean, gpt4 - human):+.3f}); the ranks correlate at "
        f"{correlation:.2f}. GPT-4's `tie (inconsistent)`, where its verdict turned with the order of the answers, "
        "counts as a tie."
    )
    return {"gpt4_finding": finding, "gpt4_section": text + agreement_with_gpt4(analysis.votes, analysis.gpt4_votes)}


def agreement_with_gpt4(votes: pd.DataFrame, gpt4_votes: pd.DataFrame) -> str:
    """How often GPT-4 and a person choose the same side, beside what a constant answer would reach."""
    where = ["question_id", "turn", "superior", "inferior"]
    gpt4 = gpt4_votes.groupby(where)["score"].mean().rename("gpt4").reset_index()
    pairs = votes.merge(gpt4, on=where)
    pairs = pairs[(pairs["score"] != 0.5) & pairs["gpt4"].isin([0, 1])]
    if pairs.empty:
        return ""
    pairs = pairs.assign(same=pairs["score"] == pairs["gpt4"], constant=pairs["score"] == 0)
    sums = pairs.groupby("question_id")[["same", "constant"]].sum().assign(n=pairs.groupby("question_id").size())
    same, constant, n = sums[["same", "constant", "n"]].to_numpy(float).T
    return (
        f"\n\nWhere neither calls a tie ({len(pairs):,} human votes), GPT-4 chooses the person's side in "
        f"{percent(bootstrap(pooled, same, n))} of the cases; always choosing the superior model would do so in "
        f"{percent(bootstrap(pooled, constant, n))} (difference {percent(bootstrap(pooled, same - constant, n))}). "
        "That share is what the judge is to be compared with, not a half."
    )


def examples_text(questions: pd.DataFrame, few_shot_ids: list[int]) -> str:
    """Which questions the labelling prompt shows, and how they were chosen."""
    if not few_shot_ids:
        return "`labelling_prompt.txt` shows no examples: no category has a clear question of both labels."

    def ids_of(label: str) -> str:
        ids = [number for number in few_shot_ids if questions.loc[number, "label"] == label]
        return ", ".join(f"{number} ({questions.loc[number, 'category']})" for number in ids)

    return (
        f"`labelling_prompt.txt` shows {len(few_shot_ids)} questions, one of each label from each of "
        f"{len(few_shot_ids) // 2} categories, so that the subject does not give the label away: {SUPERIOR} "
        f"{ids_of(SUPERIOR)}; {INFERIOR} {ids_of(INFERIOR)}. They are the most certain of their kind: the label holds "
        f"with a probability of at least {questions.loc[few_shot_ids, 'label_confidence'].min():.2f}, the votes on the "
        f"first turn alone give the same label, and of a {INFERIOR} one at most half of the votes are ties. Since a "
        "labelling model has seen them, they are marked `in_labelling_prompt` and never test anything."
    )


def question_row(question: pd.Series, few_shot_ids: list[int]) -> str:
    """A question's row of the last table."""
    text = plots.clip(question["prompt"], 70).replace("|", r"\|").replace("<", "&lt;")
    ratio = Estimate(*(question[f"inferior_ratio{end}"] for end in ("", "_low", "_high")))
    fields = [question["difficulty_rank"], question.name, question["category"], text, question["votes"]]
    fields += [question["inferior_wins"], question["ties"], f"{ratio:.3f}", question["label"].removeprefix("ROUTE_TO_")]
    fields += [f"{question['label_confidence']:.2f}", "yes" if question.name in few_shot_ids else ""]
    return f"| {' | '.join(map(str, fields))} |"


def percent(share: Estimate) -> str:
    """A share with its interval in percent."""
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


def _named(question: pd.Series) -> str:
    return f"{question['inferior_ratio']:.3f} (question {question.name}, {question['category']})"
