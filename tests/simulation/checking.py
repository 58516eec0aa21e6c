"""What must be true of all that is left of a schedule, and what a loss of the quota store excuses.

Each sentence is a function that raises ``AssertionError``; the general ones are those of ``tests.quota.invariants``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from penstock.lanes.counting import estimate_prompt
from penstock.quota import Event, EventKind, Inspected, Kind, Metric, State, limit_id, parse_limit_id
from penstock.quota.events import ENDING
from tests.lanes.stage import request
from tests.quota import invariants
from tests.simulation.model_server import Work
from tests.simulation.realtime import Asked
from tests.simulation.scheduling import T0_MS, Life
from tests.simulation.store import Loss
from tests.simulation.streams import Cluster

SHORT_MS = 30_000  # the one window that ends while a schedule runs
PROMPT_ESTIMATE = estimate_prompt(request().body, 4.0)


def wrong_sentences(
    cluster: Cluster, work: Work, standing: object, accepted: set[str], cancelled: set[str]
) -> list[str]:
    """Which sentences are not true, and why."""
    if not isinstance(standing, Inspected) or standing.epoch == 0:
        return [f"admissions do not begin again: {standing}"]
    rows = list(cluster.database.ledger.values())
    ahead = _ahead(cluster)
    sentences: tuple[Callable[[], None], ...] = (
        partial(invariants.all_has_come_to_rest, standing, [each.event for each in cluster.quota.outbox]),
        partial(invariants.held_is_the_sum_of_open_reservations, standing),
        partial(no_more_is_admitted_than_was_lost, cluster, rows),
        partial(invariants.buckets_stay_within_their_caps, standing),
        partial(used_is_what_the_ledger_says, cluster, standing, rows, ahead),
        partial(invariants.every_id_leaves_open_once, [row for row in rows if row not in _lost_voids(cluster)]),
        partial(nothing_accepted_is_lost, cluster, accepted, cancelled),
        partial(what_is_billed_is_what_was_stored, cluster, accepted, cancelled),
        partial(what_is_billed_is_what_clients_were_told, cluster),
        partial(nobody_pays_for_more_than_was_produced, cluster, work),
    )
    wrong = []
    for sentence in sentences:
        try:
            sentence()
        except AssertionError as error:
            name = getattr(sentence, "func", sentence).__name__
            wrong.append(f"{name}: {str(error).partition(chr(10))[0]}")
    return wrong


def no_more_is_admitted_than_was_lost(cluster: Cluster, rows: list[Event]) -> None:
    """Above a cap is at most, for each loss, min(cap, tokens admitted in what is gone); and what came late."""
    sums = invariants.window_sums(rows)
    late = invariants.window_sums(row for row in rows if row.kind is EventKind.LATE)
    for limit in cluster.definitions.limits:
        if limit.kind is Kind.WINDOW and limit.metric is Metric.TOKENS:
            name = limit_id(limit)
            allowed = sum(min(limit.cap, loss.tokens) for loss in cluster.quota.losses)
            for (each, window), used in sums.items():
                if each == name:
                    most = limit.cap + allowed + late.get((each, window), 0)
                    assert used <= most, f"{name}: {used} used, at most {most} can be"


def used_is_what_the_ledger_says(cluster: Cluster, standing: Inspected, rows: list[Event], ahead: set[str]) -> None:
    """As the invariant, but for reservations of which the ledger had more than the store.

    Those are charged when they expire, in a window that may be another: longer ones agree. Not so what the ledger has
    as voided, which the store charges its lower bound, or as late: the store may have kept that it expired. Nor that of
    which the store lost the hold as well: nothing is left that expires.
    """
    sums = invariants.window_sums(rows)
    differ = {row.reservation for row in rows if row.kind in (EventKind.VOIDED, EventKind.LATE)} & ahead
    differ |= ahead - cluster.quota.organisation.reservations.keys()
    for each in standing.limits:
        if each.kind == "window":
            excused = ahead if parse_limit_id(each.limit).period_ms == SHORT_MS else differ
            without = invariants.window_sums(row for row in rows if row.reservation not in excused)
            theirs = [amount for row in rows if row.reservation in excused for amount in row.amounts]
            place = (each.limit, each.window)
            most = sum(amount.amount for amount in theirs if amount.limit == each.limit)
            assert without.get(place, 0) <= each.used <= sums.get(place, 0) + most, each


def nothing_accepted_is_lost(cluster: Cluster, accepted: set[str], cancelled: set[str]) -> None:
    """Of every job whose client was told 202 there is a result."""
    lost = accepted - cancelled - cluster.database.results.keys()
    assert not lost, f"accepted, and without a result: {sorted(lost)}"


def what_is_billed_is_what_was_stored(cluster: Cluster, accepted: set[str], cancelled: set[str]) -> None:
    """A job is charged what its result says, and nothing without a result."""
    database = cluster.database
    for job, row in database.results.items():
        assert row.is_settled, f"{job} is stored, and never settled"
        kinds = _kinds(cluster, job)
        charged = sum(event.charge.tokens for event in kinds.values())
        usage = row.usage
        told = 0 if usage is None else usage.prompt + usage.completion
        is_given_up = job in cancelled or job not in accepted
        if _is_cut_off(cluster, job) and not kinds.keys() & set(ENDING):
            continue  # all that was ever known of it: nothing is left that expires
        elif is_given_up and (EventKind.VOIDED in kinds or _is_voided_unseen(cluster, job, accepted)):
            allowed = {0, told} if kinds.get(EventKind.VOIDED) in _lost_voids(cluster) else {0}
            assert charged in allowed, f"{job} was voided, and {charged} tokens were charged"
        elif EventKind.EXPIRED not in kinds:
            assert charged == told, f"{job}: {told} tokens in its result, {charged} in the ledger"
        else:  # at the least that it can have used, and its late settle adds the rest
            assert charged >= told, f"{job}: {told} tokens in its result, {charged} in the ledger"
    for (job, kind), event in database.ledger.items():
        billed = event.lane == "queue" and kind in (EventKind.POSTED, EventKind.LATE) and event.charge.tokens
        assert not billed or job in database.results, f"{job} is billed, and has no result"


def what_is_billed_is_what_clients_were_told(cluster: Cluster) -> None:
    """Whoever got a whole answer pays what that says, to the token, however often what was killed meanwhile."""
    for asked in cluster.door.asked:
        if asked.tokens is None:
            continue
        name = asked.record.reservation
        charged = sum(event.charge.tokens for event in _kinds(cluster, name).values())
        assert charged == asked.tokens or (charged < asked.tokens and _is_excused(cluster, asked)), (
            f"{name}: its client was told {asked.tokens} tokens, {charged} are in the ledger"
        )


def _is_excused(cluster: Cluster, asked: Asked) -> bool:
    """Redis lost what nobody was left to tell it again."""
    for loss in cluster.quota.losses:
        if asked.record.reservation in loss.gone:
            # lost again within one rebuild, and put back between two answers: the epoch is 0 before and after
            is_unnoticed = loss.kind == "flushed" and loss.of_a_rebuild and asked.life not in loss.learned_by
            if is_unnoticed or _ended_untold(cluster, asked.life, loss):
                return True
    return False


def _ended_untold(cluster: Cluster, life: Life, loss: Loss) -> bool:
    """A process ended before it had told all: after a cut before any answer, after a flush before admissions began."""
    if loss.kind == "cut":
        return life.is_over and life not in loss.answered
    lost_at_s = (loss.at_ms - T0_MS) / 1000
    return life.ended_at_s <= min((at_s for at_s in cluster.quota.begun_at_s if at_s > lost_at_s), default=float("inf"))


def nobody_pays_for_more_than_was_produced(cluster: Cluster, work: Work) -> None:
    """Whoever left, or whose answer broke off, pays for what the model server did, or less."""
    for asked in cluster.door.asked:
        name = asked.record.reservation
        charged = sum(event.charge.tokens for event in _kinds(cluster, name).values())
        produced = work.produced.get(name)
        most = PROMPT_ESTIMATE
        if produced is not None:
            most = max(most, produced.prompt) + len(produced.tokens_at_s)
        assert charged <= most, f"{name}: {most} tokens were produced, {charged} are in the ledger"


def _ahead(cluster: Cluster) -> set[str]:
    """Reservations whose end was drained to the ledger out of the part of the log that was then lost."""
    cuts = [loss for loss in cluster.quota.losses if loss.kind == "cut"]
    return {
        row.reservation
        for loss in cuts
        for row in cluster.database.ledger.values()
        if row.reservation in loss.gone and loss.since_ms <= row.occurred_at_ms <= loss.at_ms
    }


def _lost_voids(cluster: Cluster) -> list[Event]:
    """Voids of jobs that the store lost after the ledger had them: who gets such a job runs it, and it is paid."""
    voids = (row for row in cluster.database.ledger.values() if row.kind is EventKind.VOIDED and row.lane == "queue")
    return [row for row in voids if row.reservation in _ahead(cluster)]


def _is_cut_off(cluster: Cluster, job: str) -> bool:
    """Something of it was in the end of a log that was lost: the streams of a queue do not tell that again."""
    return any(job in loss.gone for loss in cluster.quota.losses if loss.kind == "cut")


def _is_voided_unseen(cluster: Cluster, job: str, accepted: set[str]) -> bool:
    """Its client was told no 202, and the void of it found a store that had lost it: that leaves no row."""
    found = cluster.quota.organisation.reservations.get(job)
    return job not in accepted and found is not None and found.state is State.VOIDED


def _kinds(cluster: Cluster, reservation: str) -> dict[EventKind, Event]:
    return {kind: event for (name, kind), event in cluster.database.ledger.items() if name == reservation}
