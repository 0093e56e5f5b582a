"""The account of a trial as plain text."""

import heapq
from collections.abc import Iterator

from search.analysis.columns import compact, replicate_text
from search.analysis.rung_statistics import RungVisit
from search.analysis.trial_account import TrialAccount
from search.policy.asha import is_exempt
from spaces.counted import counted

MOST_OTHERS = 12  # values of other trials on a line
MOST_PLACES = 5  # places of audit trials on a line


def account_text(of: TrialAccount, is_live: bool) -> str:
    """What became of a trial: two or three lines for each rung, and about five more.

    Args:
        of: the account.
        is_live: whether the search runs now.
    """
    trial, rungs = of.trial, of.space.rung_epochs
    lines = [f"trial {trial.number}{_state(of, is_live)}"]
    lines.append(compact({name: getattr(trial.config, name) for name in of.space.searched}))
    if trial.excluded:
        lines.append(
            "It lies outside the space as it was changed later: it no longer counts at rungs, nor in the ranking."
        )
    if trial.baseline:
        lines.append("No rung stops the baseline, because the winner is compared with it.")
    elif trial.audit:
        lines.append("No rung stops an audit trial: it shows how stopped trials would have continued.")
    lines += ["", *(line for visit in of.visits for line in _rung(of, visit))]
    if trial.last and trial.last.diverged:
        lines.append(f"It diverged in epoch {trial.last.epoch}, and counts as the worst at the next rung.")
    if len(rungs) == 1:
        lines.append("No trial is stopped: there is no rung before the end.")
    elif not of.visits:
        lines.append(f"It has no result at a rung; the first rung is epoch {rungs[0]}.")
    elif not any(of.audit_ranks.values()):
        lines.append("What these rungs lose is not known: no audit trial that they refused has completed.")
    return "\n".join([*lines, _replicates(of, is_live), _standing(of)])


def _state(of: TrialAccount, is_live: bool) -> str:
    """` (baseline): stopped, 3 of 9 epochs`, with the recorded reason where its last rung does not say the same."""
    trial = of.trial
    exempt = " (baseline)" if trial.baseline else " (audit)" if trial.audit else ""
    unfinished = "waiting to be promoted" if of.waits else "running" if is_live else "unfinished (no search runs now)"
    said = trial.end.reason if trial.end else ""
    reason = f": {said}" if said and said not in [visit.reason for visit in of.visits] else ""
    epochs = f"{trial.n_epochs} of {counted(of.space.training.max_epochs, 'epoch')}"
    return f"{exempt}: {trial.status if trial.end else unfinished}, {epochs}{reason}"


def _rung(of: TrialAccount, visit: RungVisit) -> Iterator[str]:
    others, metric, margin = visit.others, visit.metric, ""
    if visit.margin is not None:
        size = metric.size_text(abs(visit.margin))
        margin = f", {size} {metric.unit} {'short' if visit.reason else 'ahead'}"
    cutoff = "" if visit.cutoff is None else f"cutoff {metric.text(visit.cutoff)}, "
    place = f"place {1 + sum(value > visit.value for value in others.values())} of {len(others) + 1}"
    yield f"rung {visit.epoch}: {_verb(of, visit)}{margin}: {visit.reason or metric.text(visit.value)}; {cutoff}{place}"
    nearest = heapq.nsmallest(MOST_OTHERS, others, key=lambda number: abs(others[number] - (visit.cutoff or 0.0)))
    some = f", the {MOST_OTHERS} nearest to the cutoff" if len(others) > MOST_OTHERS else ""
    values = ", ".join(f"{number}: {metric.text(value)}" for number, value in others.items() if number in nearest)
    yield f"  known of other trials then{some}: {values}" if values else "  no other trial was known there then"
    if places := of.audit_ranks[visit.epoch]:
        shown = ", ".join(map(str, places[:MOST_PLACES])) + (", …" if len(places) > MOST_PLACES else "")
        yield (
            f"  of {counted(len(places), 'audit trial')} that it refused, {of.n_back(visit.epoch) or 'none'} came back "
            f"among the best {of.n_best} (places {shown} of {of.n_trials})"
        )


def _verb(of: TrialAccount, visit: RungVisit) -> str:
    """What happened at a rung, or would have happened to a trial that no rung stops."""
    promotes = of.space.search.asha == "promote"
    if is_exempt(of.trial):
        return f"would {'not ' if visit.reason else ''}have {'been promoted' if promotes else 'passed'}"
    if of.waits and visit.epoch == of.trial.n_epochs:
        return "waits"
    if promotes:
        return "promoted" if visit.epoch <= of.trial.promoted_at else "left behind"
    return "stopped" if visit.reason else "passed"


def _replicates(of: TrialAccount, is_live: bool) -> str:
    texts = []
    for run in of.replicates:
        state = run.end.status if run.end else "running" if is_live else "unfinished"
        score = run.last_score
        texts.append(run.metric.text(score) if state == "completed" and score is not None else state)
    summary = of.row.replicates
    mean = f" (mean {replicate_text(summary)})" if summary else " (the ranking does not use them yet)" if texts else ""
    return f"replicates: {', '.join(texts) or 'none'}{mean}"


def _standing(of: TrialAccount) -> str:
    row = of.row
    by = "replicates" if row.replicates else "result in the search"
    tied = ", not distinguishable from the first" if row.tied and row.rank > 1 else ""
    chance = ", at chance: no better than guessing" if row.at_chance else ""
    return f"leaderboard: place {row.rank} of {of.n_trials} by its {by}{tied}{chance}"
