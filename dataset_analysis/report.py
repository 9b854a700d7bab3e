"""The report of stage 1: its figures, its plots, and the text that holds them together."""

from pathlib import Path
from string import Template

import numpy as np
import pandas as pd

from dataset_analysis import plots
from dataset_analysis.vote_statistics import Estimate, bootstrap, mean, pooled, spearman, split_half
from router_data import INFERIOR, SUPERIOR

HALVES, STEPPED = "two random halves of each question's votes", "… stepped up to all votes"
HALVES_BY_JUDGE, STEPPED_BY_JUDGE = "two random halves of each question's judges", "… stepped up to all judges"
TEMPLATE = Path(__file__).with_name("report_template.md")
MEDIAN_REASON = (
    "It is the median of the questions: $even of them reach 0.5, where people like both tiers alike, so a fixed bound "
    "there would say little, while the median says whether a question is harder or easier for the inferior models than "
    "the typical one and keeps both labels equally frequent."
)


def write_report(
    path: Path,
    source: str,
    all_votes: int,
    votes: pd.DataFrame,
    gpt4_votes: pd.DataFrame | None,
    questions: pd.DataFrame,
    threshold: float,
    given_threshold: bool,
    shown: list[int],
    left_out: int,
) -> None:
    """Write the report to `path` and its plots into the folder of that name without suffix.

    Args:
        source: what was read.
        all_votes: number of human votes, inside the tiers too.
        votes, gpt4_votes: `read_judgments.votes_between_tiers` of either split.
        questions: ranked and labelled.
        given_threshold: whether the user chose it.
        shown: the questions in the labelling prompt.
        left_out: number of questions without a vote between the tiers.
    """
    pictures = path.with_suffix("")
    pictures.mkdir(parents=True, exist_ok=True)
    questions = questions.sort_index()
    ratio = questions["inferior_ratio"].to_numpy()
    means = category_means(questions)
    judges = {f"people: {len(votes):,} votes": model_pairs(votes)}
    if gpt4_votes is not None:
        judges[f"GPT-4 judge: {len(gpt4_votes):,} votes"] = model_pairs(gpt4_votes)
    stability_rows = stability(votes, questions)
    plots.ranked_questions(pictures / "ranked_questions.png", questions, threshold)
    plots.categories(pictures / "categories.png", questions, means)
    plots.models(pictures / "models.png", judges)
    gpt4_finding, gpt4_text = gpt4_section(pictures, votes, gpt4_votes, questions)

    low, high = questions["inferior_ratio_low"], questions["inferior_ratio_high"]
    ranked = questions.sort_values("difficulty_rank")
    beyond = int(((high < threshold) | (low >= threshold)).sum())
    most_tied = questions.sort_values(["ties", "inferior_wins"]).iloc[-1]
    counts = questions["label"].value_counts()
    text = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        source=source,
        all_votes=f"{all_votes:,}",
        votes=f"{len(votes):,}",
        superior_models=", ".join(sorted(set(votes["superior"]))),
        inferior_models=", ".join(sorted(set(votes["inferior"]))),
        left_out=f" Questions without such a vote, left out: {left_out}." if left_out else "",
        wins_share=percent(share_of_votes(votes, 1)),
        ties_share=percent(share_of_votes(votes, 0.5)),
        questions=len(questions),
        mean_ratio=f"{bootstrap(mean, ratio):.3f}",
        hardest=_named(ranked.iloc[0]),
        easiest=_named(ranked.iloc[-1]),
        category_finding=category_finding(means, questions),
        halves=f"{stability_rows[HALVES]:.2f}",
        stepped=f"{stability_rows[STEPPED]:.2f}",
        ceiling=f"{stability_rows[STEPPED_BY_JUDGE].value ** 0.5:.2f}",
        median_width=f"{(high - low).median():.2f}",
        turn_finding=turn_finding(votes),
        gpt4_finding=gpt4_finding,
        gpt4_section=gpt4_text,
        superior_label=SUPERIOR,
        inferior_label=INFERIOR,
        threshold=f"{threshold:.3f}",
        threshold_reason="It was given with `--threshold`."
        if given_threshold
        else Template(MEDIAN_REASON).substitute(even=(ratio >= 0.5).sum()),
        superior_count=counts[SUPERIOR],
        inferior_count=counts[INFERIOR],
        beyond=f"{beyond} of the {len(questions)}",
        mean_sure=f"{questions['sure'].mean():.2f}",
        stability_rows="\n".join(f"| {name} | {value:.2f} |" for name, value in stability_rows.items()),
        examples_text=examples_text(questions, shown),
        tie_example=f"Question {most_tied.name}, for one, was a tie in {most_tied['ties']} of its {most_tied['votes']} "
        f"votes and has the ratio {most_tied['inferior_ratio']:.2f} with {most_tied['inferior_wins']} outright wins.",
        question_rows="\n".join(question_row(question, shown) for _, question in ranked.iterrows()),
    )
    path.write_text(text, encoding="utf-8")


def share_of_votes(votes: pd.DataFrame, score: float) -> Estimate:
    """How many of all votes have this score."""
    by_question = (votes["score"] == score).groupby(votes["question_id"]).agg(["sum", "size"])
    return bootstrap(pooled, by_question["sum"].to_numpy(), by_question["size"].to_numpy())


def category_means(questions: pd.DataFrame) -> pd.DataFrame:
    """The mean ratio of each category with its interval: columns value, low, high; the lowest first."""
    by_category = questions.groupby("category")["inferior_ratio"]
    means = {name: vars(bootstrap(mean, ratio.to_numpy())) for name, ratio in by_category}
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


def stability(votes: pd.DataFrame, questions: pd.DataFrame) -> dict[str, Estimate]:
    """What was compared -> Spearman's correlation."""
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
    turns = by_turn(votes)
    if turns.shape[1] != 2 or turns.empty:
        return "All votes are on the same turn."
    first, second = turns.to_numpy().T
    return (
        f"On the first turn, the one a router sees, the mean ratio is {bootstrap(mean, first):.3f}, on the second "
        f"{bootstrap(mean, second):.3f}; the difference is {bootstrap(mean, first - second):+.3f}."
    )


def gpt4_section(
    pictures: Path, votes: pd.DataFrame, gpt4_votes: pd.DataFrame | None, questions: pd.DataFrame
) -> tuple[str, str]:
    """One sentence of summary and the section; draws the plot where there are votes of GPT-4."""
    if gpt4_votes is None:
        return "The source holds no votes of the GPT-4 judge.", "The source holds none of its votes on these tiers."
    both = questions.join(gpt4_votes.groupby("question_id")["score"].mean().rename("gpt4"), how="inner")
    human, gpt4 = both["inferior_ratio"].to_numpy(), both["gpt4"].to_numpy()
    correlation = bootstrap(spearman, human, gpt4)
    plots.human_against_gpt4(pictures / "human_against_gpt4.png", both, both["gpt4"], correlation)
    finding = f"The GPT-4 judge's votes order the questions at {correlation:.2f} with people's (Spearman)."
    text = (
        "![Inferior ratio by people and by the GPT-4 judge](mt_bench_analysis/human_against_gpt4.png)\n\n"
        "*How to read it.* One mark per question: right is a high inferior ratio by people, up a high one by GPT-4. On "
        "the grey line both agree; the numbers name the questions on which they differ most.\n\n"
        f"GPT-4's mean ratio is {bootstrap(mean, gpt4):.3f}, people's on these questions {bootstrap(mean, human):.3f} "
        f"(difference {bootstrap(mean, gpt4 - human):+.3f}); the ranks correlate at {correlation:.2f}. GPT-4's "
        "`tie (inconsistent)`, where its verdict turned with the order of the answers, counts as a tie."
    )
    return finding, text + agreement(votes, gpt4_votes)


def agreement(votes: pd.DataFrame, gpt4_votes: pd.DataFrame) -> str:
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


def examples_text(questions: pd.DataFrame, shown: list[int]) -> str:
    if not shown:
        return "`labelling_prompt.txt` shows no examples: no category has a clear question of both labels."
    numbers = {
        label: ", ".join(f"{n} ({questions.loc[n, 'category']})" for n in shown if questions.loc[n, "label"] == label)
        for label in (SUPERIOR, INFERIOR)
    }
    return (
        f"`labelling_prompt.txt` shows {len(shown)} questions, one of each label from each of {len(shown) // 2} "
        f"categories, so that the subject does not give the label away: {SUPERIOR} {numbers[SUPERIOR]}; {INFERIOR} "
        f"{numbers[INFERIOR]}. They are the surest of their kind: the label holds with a probability of at least "
        f"{questions.loc[shown, 'sure'].min():.2f}, the votes on the first turn alone give the same label, and of a "
        f"{INFERIOR} one at most half of the votes are ties. Since a labelling model has seen them, they are marked "
        "`in_labelling_prompt` and never test anything."
    )


def question_row(question: pd.Series, shown: list[int]) -> str:
    text = plots.clip(question["prompt"], 70).replace("|", r"\|").replace("<", "&lt;")
    ratio = Estimate(*(question[f"inferior_ratio{end}"] for end in ("", "_low", "_high")))
    fields = [question["difficulty_rank"], question.name, question["category"], text, question["votes"]]
    fields += [question["inferior_wins"], question["ties"], f"{ratio:.3f}", question["label"].removeprefix("ROUTE_TO_")]
    fields += [f"{question['sure']:.2f}", "yes" if question.name in shown else ""]
    return f"| {' | '.join(map(str, fields))} |"


def percent(share: Estimate) -> str:
    return f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]"


def _named(question: pd.Series) -> str:
    return f"{question['inferior_ratio']:.3f} (question {question.name}, {question['category']})"
