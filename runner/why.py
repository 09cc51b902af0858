"""Why a task does not run, or how it ended: the answer for a person."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

from runner.dispatch.dispatcher import Standing
from runner.dispatch.limits import Limit, Scope
from runner.intake.explanation import Explanation
from runner.intake.forecast import Forecast
from runner.task import DRAFT, Status, Task
from runner.units import format_duration

NOBODY_RUNS: Final = "no runner is running: it goes on when one is started (`runner serve`)"


def explain_task(
    task: Task, standing: Standing, blocked: str | None, now: datetime, forecast: Forecast | None = None
) -> Explanation:
    """What is the matter with a task. `blocked`: why nothing at all is started, if that is so; `forecast`: what is
    known of tasks of its type."""
    facts: dict[str, object] = {"task_id": task.id, "status": task.status.value}
    if task.status in DRAFT:
        return Explanation("draft", "it is a draft: it waits for its files, and to be started", facts)
    if task.status is Status.PROCESSING:
        return _explain_running(task, facts, now)
    if task.is_terminal:
        return _explain_ended(task, facts)
    if blocked is not None:
        return Explanation("blocked", f"nothing is started now: {blocked}", facts)
    return _explain_waiting(task, standing, facts, now, forecast)


def explain_unserved(task: Task) -> Explanation:
    """What is the matter with a task that is to run, where nobody runs any."""
    facts: dict[str, object] = {"task_id": task.id, "status": task.status.value}
    if task.status is Status.PROCESSING:
        text = f"attempt {task.attempt} was interrupted, and {NOBODY_RUNS}"
        return Explanation("interrupted", text, {**facts, "attempt": task.attempt})
    return Explanation("unserved", f"it waits, and {NOBODY_RUNS}", facts)


def _explain_running(task: Task, facts: Mapping[str, object], now: datetime) -> Explanation:
    seconds = (now - task.attempts[-1].started_at).total_seconds()
    text = f"attempt {task.attempt} has been running for {format_duration(round(seconds))}"
    if task.progress is not None:
        text += f", {task.progress.percentage:.0f} % done"
    return Explanation("running", text, {**facts, "attempt": task.attempt, "running_seconds": round(seconds, 1)})


def _explain_ended(task: Task, facts: Mapping[str, object]) -> Explanation:
    if task.status is Status.COMPLETED:
        return Explanation("completed", f"it completed at {task.completed_at:%Y-%m-%d %H:%M:%S} UTC", facts)
    error = task.error
    reason = error.message if error is not None else "no reason is known"
    hint = "runner retry gives it another attempt" if task.status is Status.FAILED else "runner retry revives it"
    return Explanation(
        task.status.value, f"it {_past(task.status)}: {reason}; {hint}", {**facts, "code": error and error.code}
    )


def _past(status: Status) -> str:
    return "failed" if status is Status.FAILED else "was cancelled"


def _explain_waiting(
    task: Task, standing: Standing, facts: Mapping[str, object], now: datetime, forecast: Forecast | None
) -> Explanation:
    if standing.is_held:
        return Explanation("taking", "its file is being taken", facts)
    if standing.follows_attempt:
        return Explanation(
            "follows_attempt",
            "its last attempt does not end although it was told to; the next one waits for that",
            facts,
        )
    if standing.is_delayed and task.run_after is not None:
        wait = max(0.0, (task.run_after - now).total_seconds())
        why = f" after: {task.error.message}" if task.error is not None else ""
        text = f"it waits for {format_duration(round(wait))}, until {task.run_after:%Y-%m-%d %H:%M:%S} UTC{why}"
        return Explanation("delayed", text, {**facts, "run_after": task.run_after.isoformat()})
    return _explain_turn(task, standing, facts, forecast)


def _explain_turn(
    task: Task, standing: Standing, facts: Mapping[str, object], forecast: Forecast | None
) -> Explanation:
    place = standing.place or 0
    facts = {**facts, "place": place, "queue": task.queue, **(forecast.facts(place) if forecast else {})}
    text = f"{place} tasks go before it in queue {task.queue}{forecast.words(place) if forecast else ''}"
    if standing.blocker is not None:
        return Explanation(
            "limit", f"{_limit_text(standing.blocker)}; {text}", {**facts, "limit": str(standing.blocker)}
        )
    return Explanation("next", text, facts)


def _limit_text(limit: Limit) -> str:
    return {
        Scope.GLOBAL: "as many tasks run as `limits.global` allows",
        Scope.QUEUE: f"as many tasks of queue {limit.name} run as it allows",
        Scope.TYPE: f"as many {limit.name} tasks run as allowed",
        Scope.USER: f"user {limit.name} has as many tasks running as `limits.per_user` allows",
        Scope.TYPE_AND_USER: f"as many tasks of {limit.name} (type/user) run as the handler's `per_user` allows",
    }[limit.scope]
