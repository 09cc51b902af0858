"""Answers to "why is my file not running?"."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from runner.intake.folders import Folder, Folders, Place, Standing
from runner.intake.forecast import Forecast
from runner.intake.holds import Hold, Holds, Why
from runner.intake.lanes import Lane, Lanes
from runner.intake.names import REASON, shown, with_suffix
from runner.intake.rounds import Rounds
from runner.intake.taking import Taking
from runner.intake.watcher import Watcher
from runner.units import format_duration, format_size

MAX_REPORTED: Final = 1000
MAX_REASON_BYTES: Final = 8192


@dataclass(frozen=True, slots=True)
class Explanation:
    """`kind` is for machines, `text` for people, `facts` are the numbers and names behind it, as JSON."""

    kind: str
    text: str
    facts: Mapping[str, Any] = field(default_factory=dict)


class Knowledge(NamedTuple):
    """The parts of an inbox that know something. Read without locks: an answer may be a moment old."""

    folders: Folders
    lanes: Lanes
    holds: Holds
    rounds: Rounds
    taking: Taking
    watcher: Watcher | None
    claim_ahead: int
    ahead: int


Forecaster = Callable[[str, str], Forecast | None]
"""How long tasks of a type and a user take."""


def explain(path: str, known: Knowledge, now: float, forecast: Forecaster) -> Explanation:
    """What is the matter with the file at `path`, absolute. `now`: seconds of the monotonic clock."""
    place = known.folders.locate(path)
    if not os.path.lexists(path):
        return _explain_absent(place, path, known)
    if place.standing is Standing.OUTSIDE:
        return Explanation("outside", f"{shown(path)} is in no folder that is watched")
    if place.standing is Standing.IGNORED:
        return Explanation("ignored", f"names like this are never taken. {place.rule}", {"rule": place.rule})
    if place.standing is Standing.ERROR:
        return _explain_rejected(path)
    if os.path.isdir(path):
        return _explain_folder(place, path, known)
    return _explain_file(place, path, known, now, forecast)


def _explain_absent(place: Place, path: str, known: Knowledge) -> Explanation:
    if place.standing is Standing.OUTSIDE:
        return Explanation("absent", f"there is no {shown(path)}")
    task_id = known.taking.taken.get(path)
    if task_id is None:
        if place.folder is not None and place.standing is Standing.FILE:
            refused = f"{place.folder.error_path}/{place.name}"
            if os.path.lexists(refused):
                return _explain_rejected(refused)
        return Explanation("absent", f"there is no {shown(path)}, and no file was taken from there lately")
    return Explanation("taken", f"it was taken as task {task_id}", {"task_id": task_id})


def _explain_rejected(path: str) -> Explanation:
    directory, _, name = path.rpartition("/")
    try:
        with Path(f"{directory}/{with_suffix(name, REASON)}").open("rb") as file:
            reason = file.read(MAX_REASON_BYTES).decode("utf-8", "replace")
    except OSError:
        return Explanation("rejected", "it lies in an error folder; move it to the folder above to try it again")
    return Explanation("rejected", reason.strip(), {"reason": reason})


def _explain_folder(place: Place, path: str, known: Knowledge) -> Explanation:
    folder = place.folder
    if place.standing is Standing.STRAY:
        folder = known.folders.of_handler(place.name, folder.user_id) if folder else None
    if folder is None:
        return Explanation("folder", f"{shown(path)} is a folder")
    return Explanation("folder", f"{shown(path)} is a folder", _report_folder(folder, known))


def _explain_file(place: Place, path: str, known: Knowledge, now: float, forecast: Forecaster) -> Explanation:
    hold = known.holds.find(path)
    if hold is not None and hold.why is not Why.PARTNER:
        return _explain_hold(hold, now)
    if place.folder is not None and place.folder.is_kept and (kept := _explain_kept(place.folder, place.name, known)):
        return kept
    return _explain_waiting(place, hold, known, now, forecast)


def _explain_waiting(
    place: Place, hold: Hold | None, known: Knowledge, now: float, forecast: Forecaster
) -> Explanation:
    """A file that nothing of its own keeps from being taken, or the sidecar of one."""
    lane = known.lanes.find(place.folder) if place.folder else None
    if known.taking.pause is not None:
        pause = known.taking.pause
        return Explanation("paused", f"nothing is taken now: {pause.reason}", {"code": pause.code})
    if lane is not None and lane.code and (place.name in lane or hold is not None):
        facts = {"code": lane.code, "retry_in_seconds": round(max(lane.blocked_until - now, 0.0), 1)}
        return Explanation("no_handler" if lane.code == "unknown_handler" else lane.code, lane.reason, facts)
    if hold is not None:
        return _explain_hold(hold, now)
    if lane is not None and place.name in lane:
        return _explain_turn(place.name, lane, known, forecast(lane.folder.handler, lane.folder.user_id))
    seconds = max(known.rounds.next_due() - now, 0.0)
    return Explanation("unseen", f"it has not been noticed yet; the next scan is in {format_duration(seconds)}")


def _explain_kept(folder: Folder, name: str, known: Knowledge) -> Explanation | None:
    """Of a file that stays where it is: what became of it, unless it has changed since."""
    seen = known.taking.keeping.seen
    memory = seen.find(folder, name)
    if memory is None or not seen.is_unchanged(folder, name):
        return None
    if memory.task_id:
        text = f"it was taken as task {memory.task_id}, and stays here; it is taken again when it changes"
        return Explanation("taken", text, {"task_id": memory.task_id})
    return Explanation("rejected", f"it was not taken, and is tried again when it changes: {memory.reason}")


def _explain_hold(hold: Hold, now: float) -> Explanation:
    facts: dict[str, Any] = {"since": hold.since.isoformat(), "looks": hold.looks}
    text = hold.reason
    if hold.watched is not None and hold.why in (Why.WRITING, Why.SETTLING):
        rate = hold.watched.bytes_per_second(now)
        facts |= {"bytes": hold.watched.last.size, "bytes_per_second": round(rate)}
        quiet = now - hold.watched.unchanged_since
        facts["unchanged_seconds"] = round(quiet, 1)
        text += (
            f"; {format_size(hold.watched.last.size)} so far, {format_size(round(rate))}/s,"
            f" unchanged for {format_duration(round(quiet, 1))}"
        )
    return Explanation(hold.why.value, text, facts)


def _explain_turn(name: str, lane: Lane, known: Knowledge, forecast: Forecast | None) -> Explanation:
    ahead = _place_in_line(name, lane)
    facts: dict[str, Any] = {
        "place": ahead + 1, "waiting": len(lane), "claim_ahead": known.claim_ahead, "taken": known.ahead,
    }  # fmt: skip
    if known.ahead >= known.claim_ahead:
        text = (
            f"{known.ahead} dropped files wait as tasks, as many as `inbox.claim_ahead` allows; {ahead} come before it"
        )
        if forecast is not None:
            text += forecast.words(ahead + known.ahead)
            facts |= forecast.facts(ahead + known.ahead)
        return Explanation("claim_ahead", text, facts)
    return Explanation("next", f"it is about to be looked at; {ahead} files come before it", facts)


def _place_in_line(name: str, lane: Lane) -> int:
    line = [*lane.first, *lane.names]
    return line.index(name) if name in line else 0


def report(known: Knowledge, trouble: str) -> dict[str, Any]:
    """The whole inbox as JSON values."""
    pause, watcher = known.taking.pause, known.watcher
    holds = known.holds.all()
    return {
        "path": known.folders.root,
        "watching": watcher is not None and watcher.is_watching,
        "watcher_failures": watcher.failures if watcher else 0,
        "found_only_by_scan": known.rounds.found_unannounced,
        "paused": {"code": pause.code, "reason": pause.reason} if pause else None,
        "trouble": trouble or None,
        "claim_ahead": known.claim_ahead,
        "taken_and_waiting": known.ahead,
        "folders": [_report_folder(folder, known) for folder in _known_folders(known)],
        "held": [_report_hold(hold) for hold in holds[:MAX_REPORTED]],
        "held_count": len(holds),
    }


def _known_folders(known: Knowledge) -> list[Folder]:
    """Those of the last scan, and those that files came into since."""
    scanned = (known.folders.locate(path).folder for path in list(known.rounds.counts))
    folders = {folder.path: folder for folder in scanned if folder is not None}
    return list({**folders, **{lane.folder.path: lane.folder for lane in known.lanes.all()}}.values())


def _report_folder(folder: Folder, known: Knowledge) -> dict[str, Any]:
    lane, count = known.lanes.find(folder), known.rounds.counts.get(folder.path)
    return {
        "path": shown(folder.path),
        "handler": folder.handler or None,
        "user_id": folder.user_id,
        "after": folder.after.value,
        "waiting": len(lane) if lane else 0,
        "files": count.files if count else 0,
        "ignored": count.ignored if count else 0,
        "trouble": (count.trouble if count else "") or None,
        "polled": known.rounds.is_polled(folder),
        "blocked": {"code": lane.code, "reason": lane.reason} if lane and lane.code else None,
    }


def _report_hold(hold: Hold) -> dict[str, Any]:
    return {
        "path": shown(hold.path),
        "why": hold.why.value,
        "reason": hold.reason,
        "since": hold.since.isoformat(),
        "bytes": hold.watched.last.size if hold.watched else None,
    }
