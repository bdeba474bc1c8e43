"""The study in Markdown: accepted drafts per cycle by rule, and how far from the paper's rule that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from acceptance_study.observations import Observation, Study
from acceptance_study.rules import ORACLE, PAPER
from acceptance_study.statistics import (
    Estimate,
    Measure,
    by_rule,
    corrected_confidence,
    estimate_difference,
    estimate_mean,
    in_same_cells,
    mean_accepted,
    rule_label,
)
from sparsespec.builder.errors import InputError

_MISSING = "-"
_CONFIDENCE = 0.95
_OVERVIEW_NOTE = (
    f"Accepted drafts per cycle [{_CONFIDENCE:.0%} interval]; vs {PAPER}: difference over the same positions, bold "
    "where the interval leaves out zero (each interval by itself; not corrected for their number)."
)

_EQUAL_NOTE = "Answers equal to plain: greedy ones with the same tokens as plain decoding, from first to last."


@dataclass(frozen=True)
class Table:
    """A titled table of text."""

    title: str
    note: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """As GitHub reads it; the first column is words, the others are numbers."""
        lines = [self.header, ("---", *["---:"] * (len(self.header) - 1)), *self.rows]
        return "\n".join([f"### {self.title}", "", self.note, "", *(f"| {' | '.join(line)} |" for line in lines)])


@dataclass(frozen=True)
class _Comparison:
    rule: str
    baseline: str
    measure: Measure
    pair: tuple[list[Observation], list[Observation]]


def study_tables(
    observations: Sequence[Observation], candidates: Sequence[str], baselines: Sequence[str]
) -> list[Table]:
    """All tables; the confirmation where there are candidates. Raises InputError for a rule that was not measured."""
    tables = [table for ratio in ratios(observations, "branches") for table in _branch_tables(observations, ratio)]
    tables += [table for ratio in ratios(observations, "loops") for table in _loop_tables(observations, ratio)]
    chosen = _labels_of(candidates, observations)
    tables += [_source_table(observations, ratio, chosen) for ratio in ratios(observations, "branches")]
    if chosen:
        tables.append(_confirmation_table(observations, chosen, _labels_of(baselines, observations)))
    return tables


def ratios(observations: Sequence[Observation], study: Study) -> list[float]:
    """The budgets of a study, ascending."""
    return sorted({seen.cell.ratio: None for seen in observations if seen.cell.study == study})


def measures(observations: Sequence[Observation], study: Study, ratio: float, fresh: bool = False) -> list[Measure]:
    """One for each temperature of the study."""
    found = sorted({seen.cell.temperature: None for seen in observations if seen.cell.study == study})
    return [Measure(study, ratio, temperature, fresh) for temperature in found]


def contexts(observations: Sequence[Observation]) -> list[int]:
    """Their contexts, each once, ascending."""
    return sorted({seen.cell.context: None for seen in observations})


def context_name(context: int) -> str:
    """As in 4k."""
    return f"{context // 1024}k" if context % 1024 == 0 else str(context)


def difference_to(
    baseline: str, rule: str, rules: dict[str, list[Observation]], measure: Measure, confidence: float = _CONFIDENCE
) -> Estimate | None:
    """How far `rule` is from `baseline`, where both were measured."""
    if rule == baseline or rule not in rules or baseline not in rules:
        return None
    seen = rules[rule]
    return estimate_difference(seen, in_same_cells(rules[baseline], seen), confidence, measure.fresh)


def best_rule(observations: Sequence[Observation], ratio: float) -> str | None:
    """The rule furthest above the paper's in the branches, over all temperatures; the oracle cannot be had."""
    totals: dict[str, float] = {}
    for measure in measures(observations, "branches", ratio):
        rules = by_rule(observations, measure)
        for rule in (one for one in rules if not one.startswith(ORACLE)):
            difference = difference_to(PAPER, rule, rules, measure)
            totals[rule] = totals.get(rule, 0.0) + (difference.value if difference else 0.0)
    return max(totals, key=lambda rule: totals[rule], default=None)


def _branch_tables(observations: Sequence[Observation], ratio: float) -> list[Table]:
    columns = measures(observations, "branches", ratio)
    title = f"Branches, {columns[0].budget}"
    return [_overview(title, observations, columns), *_by_context(title, observations, columns)]


def _loop_tables(observations: Sequence[Observation], ratio: float) -> list[Table]:
    whole, fresh = (measures(observations, "loops", ratio, fresh) for fresh in (False, True))
    title = f"Loops, {whole[0].budget}"
    overview = _overview(title, observations, [one for pair in zip(whole, fresh, strict=True) for one in pair])
    return [
        _with_equal_answers(overview, observations, whole),
        *_by_context(title, observations, whole),
        *_by_context(title, observations, fresh),
    ]


def _with_equal_answers(overview: Table, observations: Sequence[Observation], columns: Sequence[Measure]) -> Table:
    found = [by_rule(observations, measure) for measure in columns]
    rows = []
    for row in overview.rows:
        answers = [seen.equals_plain for rules in found for seen in rules.get(row[0], ())]
        compared = [equal for equal in answers if equal is not None]
        rows.append((*row, f"{sum(compared)} of {len(compared)}" if compared else _MISSING))
    header = (*overview.header, "answers equal to plain")
    return Table(overview.title, f"{overview.note} {_EQUAL_NOTE}", header, tuple(rows))


def _overview(title: str, observations: Sequence[Observation], columns: Sequence[Measure]) -> Table:
    found = [by_rule(observations, measure) for measure in columns]
    header = ["rule", "positions"]
    for measure in columns:
        header += [_column_name(measure), f"vs {PAPER}"]
    rows = []
    for rule in _ordered(found):
        row = [rule, str(max(len(rules.get(rule, ())) for rules in found))]
        for measure, rules in zip(columns, found, strict=True):
            row += [_mean(rules.get(rule, []), measure), _difference(difference_to(PAPER, rule, rules, measure))]
        rows.append(tuple(row))
    return Table(title, _OVERVIEW_NOTE, tuple(header), tuple(rows))


def _by_context(title: str, observations: Sequence[Observation], columns: Sequence[Measure]) -> list[Table]:
    """One table, or none where a single context was measured."""
    found = [by_rule(observations, measure) for measure in columns]
    lengths = contexts([one for rules in found for seen in rules.values() for one in seen])
    header = ["rule", *(f"{_column_name(measure)}, {context_name(at)}" for measure in columns for at in lengths)]
    rows = []
    for rule in _ordered(found):
        row = [rule]
        for measure, rules in zip(columns, found, strict=True):
            for at in lengths:
                mean = mean_accepted([seen for seen in rules.get(rule, ()) if seen.cell.context == at], measure.fresh)
                row.append(_MISSING if mean is None else f"{mean:.2f}")
        rows.append(tuple(row))
    where = ", outside repetitive stretches" if columns[0].fresh else ""
    table = Table(f"{title}{where}, by context", "Accepted drafts per cycle.", tuple(header), tuple(rows))
    return [table] if len(lengths) > 1 else []


def _source_table(observations: Sequence[Observation], ratio: float, chosen: Sequence[str]) -> Table:
    columns = measures(observations, "branches", ratio) + measures(observations, "loops", ratio, fresh=True)
    best = best_rule(observations, ratio)
    shown = dict.fromkeys([PAPER, *([best] if best else []), *chosen, ORACLE])
    sources = sorted({seen.source: None for seen in observations})
    rows = []
    for measure in columns:
        rules = by_rule(observations, measure)
        for rule in shown:
            genres = [[seen for seen in rules.get(rule, ()) if seen.source == source] for source in sources]
            if any(genres):
                name = f"{rule}: {measure.study}, {_column_name(measure)}"
                rows.append((name, *(_mean(genre, measure) for genre in genres)))
    title = f"Kinds of text, {columns[0].budget}"
    note = (
        f"Accepted drafts per cycle [{_CONFIDENCE:.0%} interval]: {PAPER}, the rule furthest above it in the branches, "
        f"any candidates, {ORACLE}."
    )
    return Table(title, note, ("rule", *sources), tuple(rows))


def _confirmation_table(observations: Sequence[Observation], rules: Sequence[str], baselines: Sequence[str]) -> Table:
    confirming = [seen for seen in observations if seen.cell.half == "confirm"]
    comparisons = _comparisons(confirming, rules, baselines)
    if not comparisons:
        raise InputError(f"expected observations of half confirm for {', '.join(rules)}, found none")
    confidence = corrected_confidence(_CONFIDENCE, len(comparisons))
    rows = []
    for one in comparisons:
        difference = estimate_difference(*one.pair, confidence, one.measure.fresh)
        where = f"{one.measure.study}, {_column_name(one.measure)}, {one.measure.budget}"
        rows.append((f"{one.rule} vs {one.baseline}", where, str(len(one.pair[0])), _difference(difference)))
    note = (
        f"The half of the texts that no rule was chosen on. {len(comparisons)} comparisons: each interval is at "
        f"{confidence:.2%}, so that all of them hold together at {_CONFIDENCE:.0%}; bold where zero is left out."
    )
    return Table("Confirmation", note, ("rules", "measured in", "positions", "difference"), tuple(rows))


def _comparisons(
    observations: Sequence[Observation], candidates: Sequence[str], baselines: Sequence[str]
) -> list[_Comparison]:
    found = []
    for measure in _confirmed_measures(observations):
        rules = by_rule(observations, measure)
        for rule in (one for one in candidates if one in rules):
            for baseline in (one for one in baselines if one in rules and one != rule):
                pair = (rules[rule], in_same_cells(rules[baseline], rules[rule]))
                found.append(_Comparison(rule, baseline, measure, pair))
    return found


def _confirmed_measures(observations: Sequence[Observation]) -> list[Measure]:
    """Loops count outside repetitive stretches only: inside, every rule is right."""
    branches = [one for at in ratios(observations, "branches") for one in measures(observations, "branches", at)]
    loops = [one for at in ratios(observations, "loops") for one in measures(observations, "loops", at, fresh=True)]
    return branches + loops


def _labels_of(names: Sequence[str], observations: Sequence[Observation]) -> list[str]:
    """Labels as they are, or all labels of a rule."""
    rules = {rule_label(seen): seen.cell.rule for seen in observations}
    found = []
    for name in names:
        labels = [name] if name in rules else [label for label, rule in rules.items() if rule == name]
        if not labels:
            raise InputError(f"expected some of {', '.join(rules)}, found {name!r}")
        found += labels
    return list(dict.fromkeys(found))


def _ordered(found: Sequence[dict[str, list[Observation]]]) -> list[str]:
    """All rules, the paper's first."""
    rules = list(dict.fromkeys(rule for rules in found for rule in rules))
    return sorted(rules, key=lambda rule: rule != PAPER)


def _column_name(measure: Measure) -> str:
    if measure.study == "branches":
        return measure.decoding
    return f"{measure.decoding}, {'fresh' if measure.fresh else 'all'}"


def _mean(observations: Sequence[Observation], measure: Measure) -> str:
    mean = estimate_mean(observations, _CONFIDENCE, measure.fresh)
    return f"{mean.value:.2f} [{mean.low:.2f}, {mean.high:.2f}]" if mean else _MISSING


def _difference(difference: Estimate | None) -> str:
    if difference is None:
        return _MISSING
    value = f"{difference.value:+.2f}"
    return f"{f'**{value}**' if difference.excludes_zero else value} [{difference.low:+.2f}, {difference.high:+.2f}]"
