"""evaluation.json as a report for people: Markdown, and the few lines that are printed."""

from finetuning_model.evaluation.baselines import (
    ALWAYS_INFERIOR,
    ALWAYS_SUPERIOR,
    MAJORITY,
    ORACLE_BY_CATEGORY,
    PROMPT_LENGTH,
    RANDOM,
    ROUTER,
)
from finetuning_model.evaluation.markdown import cell, show, table
from finetuning_model.evaluation.model_card import frames_table

LESS_IS_BETTER = (
    "Brier score",
    "expected calibration error",
    "CPT(50)",
    "CPT(80)",
    "cost at CPT(50)",
    "cost at CPT(80)",
)
NOT_COMPARED = (ALWAYS_SUPERIOR, MAJORITY, RANDOM, ORACLE_BY_CATEGORY)  # one constant stands for chance

READING = f"""\
Every figure has its 95% bootstrap interval over prompts (1,000 draws) in brackets. A difference is this router minus
the baseline on the same draws: ▲ the router is better, ▼ it is worse, unmarked the interval holds 0 and nothing is
decided. Of {", ".join(LESS_IS_BETTER[:4])} and costs, less is better.
AUROC: how often a prompt that needs the superior model outscores one that does not. PGR: share recovered of the gap
between the inferior and the superior model's mean quality; APGR: its mean over all shares of superior calls (chance:
0.5); CPT(50): share of superior calls at which PGR reaches 50%. Baselines that learn were trained on the router's
training rows; those on embeddings use its encoder as it was before fine-tuning. "{ORACLE_BY_CATEGORY}" knows each
category's mean gain on the other half of the judged prompts, which no router can."""


def markdown(evaluation: dict) -> str:
    """The whole report."""
    parts = [
        f"# Evaluation of {evaluation['model_save_dir'].rstrip('/').rsplit('/', 1)[-1]}",
        "## Does routing pay?",
        " ".join(evaluation["verdict"]["sentences"]),
        _facts(evaluation),
        "## Does it beat simple baselines?",
        _comparison(evaluation),
        READING,
        _kinds(evaluation["kinds"]),
        _frames(evaluation["frames"]),
        *[_set(report, evaluation) for report in _all_sets(evaluation)],
        _probes(evaluation["probes"]),
        _robustness(evaluation["robustness"]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def summary(evaluation: dict) -> str:
    """All warnings, a line for each set, one for the frames, and the verdict."""
    lines = [f"warning: {remark}" for remark in evaluation["remarks"]]
    for report in _all_sets(evaluation):
        if report.get("near_duplicates"):
            lines.append(f"warning: {_near_duplicates(report)}")
        metric, router, best, judgement = _headline(report)
        beside = f", best baseline {best[0]} {show(best[1]['figure'])}" if best else ""
        lines.append(f"{report['name']} ({report['rows']:,} prompts): {metric} {show(router)}{beside}: {judgement}")
    if kinds := evaluation["kinds"]:
        mean, worst = kinds["mean"][ROUTER], kinds["worst"][ROUTER]
        lines.append(f"mean over {len(kinds['sets'])} kinds: APGR {show(mean['figure'])}")
        lines.append(f"worst kind, {worst['kind']}: APGR {show(worst['figure'])}")
    frames = evaluation["frames"]
    lines.append(
        f"in {frames['frames']} frames: {show(frames['kept'], percent=True)} of the decisions are those on the bare "
        f"request (worst frame {frames['worst']['kept']['value']:.1%})"
    )
    return "\n".join([*lines, "", *evaluation["verdict"]["sentences"]])


def _all_sets(evaluation: dict) -> list[dict]:
    return [*([evaluation["pooled"]] if evaluation["pooled"] else []), *evaluation["sets"]]


def _facts(evaluation: dict) -> str:
    files = ", ".join(f"`{path}`" for path in evaluation["train_files"]) or "files unknown"
    facts = [
        f"Base model {evaluation['base_model'] or 'unknown'}, scored by {evaluation['backend']}; temperature "
        f"{evaluation['temperature']:.3f}, threshold {evaluation['threshold']:g}.",
        f"{evaluation['train_rows']:,} training rows ({files}).",
        f"Seed {evaluation['seed']}, {evaluation['evaluated_at']}.",
    ]
    if evaluation["limit"]:
        facts.append(f"A rehearsal: at most {evaluation['limit']} prompts of each file.")
    if prices := evaluation["prices"]:
        facts.append(
            f"Prices: ${prices['superior']:g} and ${prices['inferior']:g} per million tokens of the superior and the "
            f"inferior model, {prices['tokens_per_prompt']:g} tokens a prompt with its answer."
        )
    facts += [f"**Note:** {remark}." for remark in evaluation["remarks"]]
    return "\n".join(f"- {fact}" for fact in facts)


def _headline(report: dict) -> tuple[str, dict, tuple[str, dict] | None, str]:
    """The metric, the router's figure, the best baseline, and what the paired differences say."""
    metric, scorers = report["headline"]["metric"], report["headline"]["scorers"]
    router = scorers[ROUTER]["figure"]
    decided = [
        ("chance" if name == ALWAYS_INFERIOR else name, entry)
        for name, entry in scorers.items()
        if name not in (ROUTER, *NOT_COMPARED) and entry["difference"]["value"] is not None
    ]
    if not decided:
        return metric, router, None, "it can't be told on these prompts"
    best = max(decided, key=lambda item: item[1]["figure"]["value"])
    worse = [name for name, entry in decided if entry["difference"]["high"] < 0]
    undecided = [name for name, entry in decided if entry["difference"]["low"] <= 0 <= entry["difference"]["high"]]
    judgement = [f"worse than {', '.join(worse)}"] if worse else []
    judgement += [f"not shown to be better than {', '.join(undecided)}"] if undecided else []
    return metric, router, best, "; ".join(judgement) or "better than every baseline"


def _comparison(evaluation: dict) -> str:
    rows = []
    for report in _all_sets(evaluation):
        metric, router, best, judgement = _headline(report)
        name, entry = best or ("–", {"figure": None, "difference": None})
        cells = [f"{report['rows']:,}", metric, f"**{show(router)}**", name, show(entry["figure"])]
        rows.append([report["name"], *cells, show(entry["difference"], signed=True), judgement])
    header = ["set", "prompts", "metric", "this router", "best baseline", "its figure", "difference", "judgement"]
    return table(header, rows)


def _kinds(kinds: dict | None) -> str:
    """Several kinds together, every scorer: pooled, mean over kinds, worst kind; and the router's lead in each."""
    if not kinds:
        return ""
    columns = {f"pooled: {metric}": scorers for metric, scorers in kinds["pooled"].items()}
    columns |= {"mean over kinds: APGR": kinds["mean"], "worst kind: APGR": kinds["worst"]}
    worst = {name: entry["kind"] for name, entry in kinds["worst"].items()}
    return (
        f"## {len(kinds['sets'])} kinds together\n\n"
        f"{', '.join(kinds['sets'])}. Pooled: at most the same number of prompts of each, {kinds['rows']:,} in all, as "
        "one stream of traffic. The worst kind is each scorer's own, the one with its lowest figure.\n\n"
        + _compared(columns, {"worst kind": worst})
    )


def _frames(frames: dict) -> str:
    return (
        "## In frames: does the decision hold when an application wraps the request?\n\n"
        f"{frames['requests']} requests, each in {frames['frames']} frames ({frames['file']}); intervals are over "
        f"requests. {frames['remark']}\n\n" + frames_table(frames, frames["frames"])
    )


def _near_duplicates(report: dict) -> str:
    found, rows = report["near_duplicates"], report["rows"]
    text = f"{found:,} of the {rows:,} prompts of {report['name']} are near duplicates of training rows"
    apart = report.get("without_near_duplicates")
    metric = report["headline"]["metric"]
    return f"{text}; without them {metric} is {show(apart[metric])} on {apart['rows']:,} prompts" if apart else text


def _set(report: dict, evaluation: dict) -> str:
    parts = [f"## {report['name']}", f"{report['rows']:,} prompts, {report['kind']}."]
    if report.get("near_duplicates"):
        parts.append(f"**Warning:** {_near_duplicates(report)}.")
    elif report.get("near_duplicates") == 0:
        parts.append("No prompt is a near duplicate of a training row.")
    if "at_threshold" in report:
        parts += ["### Cost and quality, measured on outcomes", _at_threshold(report["at_threshold"], evaluation)]
    if "curve" in report:
        parts.append(_compared(report["curve"]))
    for label in report["labels"]:
        parts.append(f"### Label: {label['says']}")
        parts.append(f"True of {label['superior_share']:.1%} of the prompts.")
        parts += [_compared(label["metrics"]), _confusion(label["confusion"], evaluation["threshold"])]
    if "human_preference" in report:
        parts += ["### Rank correlation with the human votes", _compared(report["human_preference"])]
    parts += [f"![{plot}]({plot})" for plot in report["plots"]]
    parts.append(f"### Right decisions, by bucket (label: {report['labels'][0]['says']})")
    parts += [_buckets(name, found) for name, found in report["by"].items()]
    parts += [f"### The {len(report['misses'])} worst misses", _misses(report["misses"])] if report["misses"] else []
    return "\n\n".join(parts)


def _at_threshold(found: dict, evaluation: dict) -> str:
    """What routing at the threshold brings, beside the simple ways to spend as much."""
    text = (
        f"At the threshold {evaluation['threshold']:g} the superior model gets "
        f"{show(found['superior_share'], percent=True)} of the prompts."
    )
    if "cost" in found:
        cost, superior = found["cost"], found["cost_of_superior"]
        text += f" 1,000 prompts cost ${cost:.4g} instead of ${superior:.4g}: {1 - cost / superior:.0%} less."
    names = {RANDOM: "as many prompts, drawn at random", PROMPT_LENGTH: "as many prompts, the longest ones"}
    rows = [[f"**{ROUTER}**", f"**{show(found['quality'], percent=True)}**", ""]]
    rows += [
        [names.get(name, name), show(figure, percent=True), _lead("", found["lead_over"][name], percent=True)]
        for name, figure in found["quality_of"].items()
    ]
    return f"{text}\n\n" + table(["sent to the superior model", "quality of its answers kept", "router minus it"], rows)


def _compared(metrics: dict, notes: dict[str, dict[str, str]] | None = None) -> str:
    """Figures of every scorer, and below them the router's lead over each baseline.

    Args:
        metrics: metric -> scorer -> figure and difference.
        notes: more columns of the first table, name -> scorer -> text.
    """
    scorers = list(dict.fromkeys(name for entries in metrics.values() for name in entries))
    notes = notes or {}
    figures, leads = [], []
    for name in scorers:
        entries = {metric: metrics[metric].get(name) for metric in metrics}
        shown = [show(entry["figure"]) if entry else "–" for entry in entries.values()]
        shown += [column.get(name, "–") for column in notes.values()]
        if name == ROUTER:
            figures.append([f"**{name}**", *[f"**{text}**" if text != "–" else text for text in shown]])
        else:
            figures.append([name, *shown])
            leads.append([name, *[_lead(metric, (entry or {}).get("difference")) for metric, entry in entries.items()]])
    header = list(metrics)
    return table(["", *header, *notes], figures) + "\n\n" + table([f"{ROUTER} minus", *header], leads)


def _lead(metric: str, difference: dict | None, percent: bool = False) -> str:
    if difference is None or difference["value"] is None:
        return "–"
    low, high = difference["low"], difference["high"]
    if metric in LESS_IS_BETTER:
        low, high = -high, -low
    return show(difference, percent, signed=True) + (" ▲" if low > 0 else " ▼" if high < 0 else "")


def _confusion(confusion: dict, threshold: float) -> str:
    rows = [[f"needs {label}", *[f"{count:,}" for count in routes.values()]] for label, routes in confusion.items()]
    return table([f"at {threshold:g}", *[f"sent: {label}" for label in confusion]], rows)


def _buckets(name: str, found: list[dict]) -> str:
    rows = [
        [
            cell(bucket["name"]),
            f"{bucket['rows']:,}",
            f"{bucket['superior_share']:.1%}",
            f"{bucket['mean_score']:.2f}",
            show(bucket["accuracy"], percent=True),
            f"{bucket['constant_accuracy']:.1%}",
        ]
        for bucket in found
    ]
    return table([name, "prompts", "label true", "mean score", "right", "right by one answer for all"], rows)


def _misses(misses: list[dict]) -> str:
    has_outcomes = "weak_score" in misses[0]
    rows = []
    for miss in misses:
        scores = [f"{miss['weak_score']:g} / {miss['strong_score']:g}"] if has_outcomes else []
        label = [f"{miss['router_score']:.2f}", f"`{miss['label']}`", *scores]
        rows.append([cell(miss["prompt"]), *label, cell(miss["category"])])
    scores = ["scores, inferior / superior"] if has_outcomes else []
    return table(["prompt", "router score", "label", *scores, "category"], rows)


def _probes(probes: dict) -> str:
    """Ordered pairs and ladders."""
    titles = {
        "ordered_pairs": "pairs of prompts: in order where the harder one has the higher score",
        "ladders": "ladders of prompts, each harder than the one before: steps up that have the higher score",
    }
    parts = ["## Probes: does the score follow the difficulty?"]
    parts.append("Prompts of our own in `finetuning_model/probes/`, written to differ in difficulty and little else.")
    if probes.get("near_duplicates"):
        parts.append(f"**Warning:** {probes['near_duplicates']} of these prompts are near duplicates of training rows.")
    for name, title in titles.items():
        if name in probes:
            report = probes[name]
            keys = ("in_order", "easiest_below_half", "hardest_above_half")
            rows = [
                [kind, str(found["rows"]), *[show(found[key], percent=True) for key in keys]]
                for kind, found in report["by_kind"].items()
            ]
            parts.append(f"### {report['rows']} {title}")
            parts.append(table(["kind", "rows", "in order", "easiest below 0.5", "hardest at least 0.5"], rows))
            parts.append(_compared({"in order": report["in_order"]}))
    return "\n\n".join(parts) if len(parts) > 2 else ""


def _robustness(found: dict) -> str:
    header = ["", "decisions flipped", "to superior", "to inferior", "mean \\|Δp\\|", "mean Δp"]
    keys = ("flips", "flips_to_superior", "flips_to_inferior")

    def row(name: str, moved: dict) -> list[str]:
        changes = [show(moved["mean_absolute_change"]), show(moved["mean_change"], signed=True)]
        return [name, *[show(moved[key], percent=True) for key in keys], *changes]

    parts = ["## Robustness: does the decision hold when only the wording changes?"]
    parts.append(f"{found['prompts']} prompts drawn from the sets above, before and after each change.")
    parts.append(table(header, [row(name, moved) for name, moved in found["perturbations"].items()]))
    if found["translations"]:
        easy_hard = f"{found['translated_prompts']} prompts of our own, half easy and half hard, in each language."
        parts.append(f"### Translations\n\n{easy_hard}")
        rows = [
            [
                language,
                show(moved["accuracy"], percent=True),
                f"{moved['mean_easy']:.2f}",
                f"{moved['mean_hard']:.2f}",
                show(moved.get("flips"), percent=True),
                show(moved.get("mean_absolute_change")),
            ]
            for language, moved in found["translations"].items()
        ]
        columns = ["right", "mean score of easy", "mean score of hard", "flipped against English", "mean \\|Δp\\|"]
        parts.append(table(["language", *columns], rows))
    return "\n\n".join(parts)
