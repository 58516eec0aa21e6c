"""Prints what came of a rehearsal. It is no command: ``replay`` uses it."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from penstock.console import rehearsal
from penstock.console.amounts import dollars, whole
from penstock.console.screen import screen
from penstock.planning.rehearsing.comparing import (
    Account,
    Books,
    Difference,
    Produced,
    difference,
    difference_of_sums,
)
from penstock.planning.rehearsing.sending import Outcome
from penstock.quota.pricing import cost_nanos

FAILURES_SHOWN_MAX = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What all sides say of one rehearsal.

    Args:
        produced: Of each request, where the model server names requests; else None, and ``sums`` by model.
        tokenized: Prompt tokens (as charged, as the model's own tokenizer counts), where it can be asked.
    """

    outcomes: Sequence[Outcome]
    books: Books
    produced: Sequence[Produced] | None = None
    sums: dict[str, Produced] = field(default_factory=dict)
    tokenized: Sequence[tuple[int, int]] = ()


def report(evidence: Evidence) -> bool:
    """Print everything; True if ledger, models and clients agree and no request failed."""
    out = screen(sys.stdout)
    outcomes, books = evidence.outcomes, evidence.books
    out.print(rehearsal.shares_table("organisation", _shares(outcomes, books.organisations, _organisation)), "")
    out.print(rehearsal.shares_table("model", _shares(outcomes, books.models, _model)), "")
    refused = Counter(outcome.refused_by for outcome in outcomes if outcome.refused_by)
    if refused:
        out.print(rehearsal.refusals_table(list(refused.items())), "")
    out.print(rehearsal.sums_table(_sums(evidence)), "")
    found = (
        difference_of_sums(books, evidence.sums) if evidence.produced is None else difference(books, evidence.produced)
    )
    agree = [_print_difference(out, found, per_request=evidence.produced is not None), _clients(out, evidence)]
    if evidence.tokenized:
        agree.append(_tokenizer(out, evidence.tokenized))
    agree.append(not _print_failures(out, outcomes))
    return all(agree)


def _organisation(outcome: Outcome) -> str:
    return outcome.planned.organisation


def _model(outcome: Outcome) -> str:
    return outcome.planned.model


def _shares(
    outcomes: Sequence[Outcome], accounts: dict[str, Account], name_of: Callable[[Outcome], str]
) -> list[rehearsal.Share]:
    sent = Counter(map(name_of, outcomes))
    rows = []
    for name in [*sorted(sent, key=lambda name: (-sent[name], name)), ""]:
        mine = [outcome for outcome in outcomes if not name or name_of(outcome) == name]
        account = accounts.get(name, Account()) if name else _added(accounts)
        rows.append(
            rehearsal.Share(
                name=name or "together",
                sent=len(mine),
                admitted=sum(outcome.is_admitted for outcome in mine),
                refused=sum(bool(outcome.refused_by) for outcome in mine),
                failed=sum(bool(outcome.failure) for outcome in mine),
                prompt=account.prompt,
                completion=account.completion,
                held_per_used_milli=account.held_per_used_milli,
                cost_nanos=account.cost_nanos,
            )
        )
    return rows


def _added(accounts: dict[str, Account]) -> Account:
    total = Account()
    for account in accounts.values():
        total.merge(account)
    return total


def _sums(evidence: Evidence) -> list[rehearsal.Sum]:
    ledger = evidence.books.total
    told = [outcome for outcome in evidence.outcomes if outcome.is_admitted]
    return [
        rehearsal.Sum(
            name="ledger",
            requests=ledger.requests,
            prompt=ledger.prompt,
            cached=ledger.cached,
            completion=ledger.completion,
            cost_nanos=ledger.cost_nanos,
        ),
        _model_server(evidence),
        rehearsal.Sum(
            name="clients were told",
            requests=len(told),
            prompt=sum(outcome.prompt for outcome in told),
            cached=sum(outcome.cached for outcome in told),
            completion=sum(outcome.completion for outcome in told),
            cost_nanos=None,
        ),
    ]


def _model_server(evidence: Evidence) -> rehearsal.Sum:
    produced = evidence.produced
    made = list(evidence.sums.values()) if produced is None else [line for line in produced if line.prompt]
    return rehearsal.Sum(
        name="model server",
        requests=None if produced is None else len(made),
        prompt=sum(line.prompt for line in made),
        cached=sum(line.cached for line in made),
        completion=sum(line.completion for line in made),
        cost_nanos=None if produced is None else _priced(evidence.books, made),
    )


def _priced(books: Books, made: Sequence[Produced]) -> int:
    """What the server's own tokens cost, at the prices that the ledger's rows carry."""
    prices = {reservation: rows[0].price for reservation, rows in books.by_reservation.items()}
    known = (line for line in made if line.request_id in prices)
    return sum(cost_nanos(prices[line.request_id], line.prompt, line.cached, line.completion) for line in known)


def _print_difference(out: Console, found: Difference, *, per_request: bool) -> bool:
    how = "request by request" if per_request else "of the sums"
    money = f", {dollars(found.cost_nanos)}" if per_request else ""
    verdict = f"difference between ledger and model server, {how}: {whole(found.tokens)} tokens{money}"
    out.print(verdict, style="bold red" if found else "bold green", soft_wrap=True)
    for reservation in found.reservations:
        out.print(f"  differs: {reservation}", soft_wrap=True)
    return not found


def _clients(out: Console, evidence: Evidence) -> bool:
    told = sum(outcome.prompt + outcome.completion for outcome in evidence.outcomes)
    apart = abs(evidence.books.total.tokens - told)
    out.print(f"difference between ledger and what clients were told: {whole(apart)} tokens", soft_wrap=True)
    return apart == 0


def _tokenizer(out: Console, tokenized: Sequence[tuple[int, int]]) -> bool:
    differ = sum(charged != counted for charged, counted in tokenized)
    out.print(
        f"prompts that the model's own tokenizer counts differently: {differ} of {len(tokenized)}", soft_wrap=True
    )
    return differ == 0


def _print_failures(out: Console, outcomes: Sequence[Outcome]) -> int:
    failed = Counter(outcome.failure for outcome in outcomes if outcome.failure)
    for failure, count in failed.most_common(FAILURES_SHOWN_MAX):
        out.print(f"failed: {whole(count)} times: {failure}", style="red", soft_wrap=True)
    return failed.total()
