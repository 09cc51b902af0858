"""One change to many tasks: each on its own, told one by one, durable in as few syncs as the store makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import islice
from typing import Final

from runner import task as moves
from runner.dispatch.delays import Clock
from runner.errors import IllegalTransition, NotFound, RunnerError
from runner.store import Change, Remove, Store, TaskQuery, Update
from runner.store.committer import Ticket
from runner.task import DRAFT, LIVE, TERMINAL, Status, Task

AT_ONCE: Final = 1000


class Verb(StrEnum):
    """What is done to each task."""

    CANCEL = "cancel"
    RETRY = "retry"
    DELETE = "delete"


SUITED: Final[Mapping[Verb, frozenset[Status]]] = {
    Verb.CANCEL: LIVE,
    Verb.RETRY: frozenset({Status.FAILED, Status.CANCELLED}),
    Verb.DELETE: TERMINAL | DRAFT,
}
"""The statuses from which a verb leads anywhere; those that are meant where none is named."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A task that stayed as it was, and why."""

    id: str
    code: str
    message: str


@dataclass(slots=True)
class BulkReport:
    """How many tasks were chosen and changed, which were not, and whether there are `more` than were asked for."""

    matched: int = 0
    changed: int = 0
    failed: list[Failure] = field(default_factory=list)
    more: bool = False


class Bulk:
    """Does one thing to many tasks. From any thread; blocks until all of it is durable."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def run(self, verb: Verb, query: TaskQuery, limit: int) -> BulkReport:
        """To the newest `limit` tasks that match. One that has left the status that it was chosen by stays as it is."""
        wanted = frozenset(query.status or SUITED[verb])
        query = query.model_copy(
            update={"status": tuple(sorted(wanted)), "size": AT_ONCE, "page": None, "cursor": None}
        )
        # All ids first: what is changed leaves the list that is being read.
        ids = [task.id for task in islice(self._store.all(query), limit + 1)]
        report = self._change(verb, ids[:limit], wanted)
        report.more = len(ids) > limit
        return report

    def run_on(self, verb: Verb, task_ids: Iterable[str], user_id: str | None) -> BulkReport:
        """To these tasks, as far as the user may see them."""
        report = BulkReport()
        known = []
        for task_id in dict.fromkeys(task_ids):
            task = self._store.find(task_id)
            if task is None or user_id not in (None, task.user_id):
                report.failed.append(_failure(task_id, NotFound("task", task_id)))
            else:
                known.append(task_id)
        changed = self._change(verb, known, frozenset(Status))
        return BulkReport(len(known), changed.changed, report.failed + changed.failed)

    def _change(self, verb: Verb, ids: Sequence[str], wanted: frozenset[Status]) -> BulkReport:
        report = BulkReport(matched=len(ids))
        for start in range(0, len(ids), AT_ONCE):
            tickets = [(task_id, self._submit(verb, task_id, wanted)) for task_id in ids[start : start + AT_ONCE]]
            for task_id, ticket in tickets:
                try:
                    ticket.wait()
                    report.changed += 1
                except RunnerError as error:
                    report.failed.append(_failure(task_id, error))
        return report

    def _submit(self, verb: Verb, task_id: str, wanted: frozenset[Status]) -> Ticket:
        ticket = Ticket()
        self._store.submit(self._changes(verb, task_id, wanted), ticket)
        return ticket

    def _changes(self, verb: Verb, task_id: str, wanted: frozenset[Status]) -> tuple[Change, ...]:
        def check(task: Task) -> Task:
            if task.status not in wanted:
                raise IllegalTransition(task.id, task.status, f"be taken for {' or '.join(sorted(wanted))}")
            return task

        return Update(task_id, check), self._change_of(verb, task_id)

    def _change_of(self, verb: Verb, task_id: str) -> Change:
        if verb is Verb.DELETE:
            return Remove(task_id)
        now = self._clock()
        move: Callable[[Task], Task] = {
            Verb.CANCEL: lambda task: moves.cancel(task, now),
            Verb.RETRY: lambda task: moves.retry(task, now),
        }[verb]
        return Update(task_id, move)


def _failure(task_id: str, error: RunnerError) -> Failure:
    return Failure(task_id, error.code, str(error))
