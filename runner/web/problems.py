"""Which error is which answer: `application/problem+json` (RFC 9457) with a stable `code` and the `request_id`.

An endpoint raises; the one table here says what status that is. Nothing in an answer comes from a traceback. Clients of
contract 001 find what they look for in `error` (the text) and `error_code` (its code).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from typing import Any, Final

from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from runner.errors import (
    ConfigError,
    DiskFull,
    Duplicate,
    Fenced,
    IllegalTransition,
    InvalidSubmission,
    KeyConflict,
    LimitReached,
    NotFound,
    Problem,
    Refused,
    RunnerError,
    TypeMismatch,
    Unavailable,
    VersionMismatch,
)
from runner.task import TERMINAL, Status

STATUS_OF: Final[Mapping[type[RunnerError], int]] = {
    RunnerError: 500,
    ConfigError: 500,
    Refused: 422,
    TypeMismatch: 415,
    LimitReached: 429,
    Duplicate: 409,
    NotFound: 404,
    IllegalTransition: 409,
    VersionMismatch: 412,
    Unavailable: 503,
    DiskFull: 507,
}
"""The status of each error class; a class that is not listed has the one of its nearest listed ancestor."""

_CONTRACT_CODES: Final = {
    "duplicate_key": "INVALID_REQUEST",
    "invalid_json": "INVALID_REQUEST",
    "unknown_field": "INVALID_REQUEST",
    "unknown_handler": "INVALID_TASK_TYPE",
}
_CONTRACT_FIELDS: Final = {
    "payload": "INVALID_PAYLOAD",
    "process_at": "INVALID_PROCESS_AT",
    "queue": "INVALID_QUEUE",
    "run_after": "INVALID_PROCESS_AT",
    "status": "INVALID_TASK_STATE",
    "timeout": "INVALID_TIMEOUT",
    "type": "INVALID_TASK_TYPE",
    "unique": "INVALID_UNIQUE",
}
"""Contract 001's codes for a fault, by the field that has it."""

MAX_DETAIL_CHARACTERS: Final = 2000
MAX_PROBLEMS: Final = 100
"""An answer repeats what was sent only so far: a megabyte of nonsense is not worth ten of complaints."""

_UNKNOWN: Final = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
"""What pydantic calls a key that a model does not have, and one that a dataclass does not have."""
_PHRASES: Final = {int(status): status.phrase for status in HTTPStatus}
_TERMINAL_NAMES: Final = frozenset(map(str, TERMINAL))
_log = logging.getLogger(__name__)


class HttpProblem(HTTPException):
    """A fault in the request itself, before the runner was asked anything."""

    def __init__(self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.code = code


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a request is refused, before it is put into anybody's words. `code` is ours, `error_code` that of contract
    001; `more` are further facts, such as the `problems` of an invalid submission."""

    status: int
    code: str
    detail: str
    headers: Mapping[str, str] | None
    error_code: str
    more: Mapping[str, Any]


Envelope = Callable[[Request, Fault], Response]
"""How a fault is told. Where a scope has one as its `envelope`, every answer but h11's own is told by that one."""


def invalid(pointer: str, message: str) -> InvalidSubmission:
    """One field is wrong."""
    return InvalidSubmission((Problem(pointer, message),))


@contextmanager
def pointing_below(pointer: str) -> Iterator[None]:
    """Faults found inside are reported as faults of a part of the document, the one at `pointer`."""
    try:
        yield
    except ValidationError as error:
        problems = problems_in(error)
        raise InvalidSubmission(tuple(Problem(pointer + at.pointer, at.message) for at in problems)) from error
    except InvalidSubmission as error:
        raise InvalidSubmission(tuple(Problem(pointer + at.pointer, at.message) for at in error.problems)) from error


def problems_in(error: ValidationError) -> tuple[Problem, ...]:
    """What pydantic found, as JSON pointers with a reason."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return tuple(Problem(pointer_to(fault["loc"]), fault["msg"].removeprefix("Value error, ")) for fault in faults)


def answer(
    request: Request, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None, **more: Any
) -> Response:
    """The answer to a fault, in the words of whoever is asked. `more` are further facts."""
    if len(detail) > MAX_DETAIL_CHARACTERS:
        detail = f"{detail[:MAX_DETAIL_CHARACTERS]}…"
    error_code = more.pop("error_code", None) or _contract_code(code, more)
    envelope: Envelope = request.scope.get("envelope", problem_document)
    return envelope(request, Fault(status, code, detail, headers, error_code, more))


def problem_document(request: Request, fault: Fault) -> Response:
    """A fault in our own words: the problem document."""
    document = {
        "error": fault.detail,
        "error_code": fault.error_code,
        "type": "about:blank",
        "title": _PHRASES.get(fault.status, "Refused"),
        "status": fault.status,
        "detail": fault.detail,
        "code": fault.code,
        "request_id": request.scope.get("request_id", ""),
        **fault.more,
    }
    return Response(to_json(document), fault.status, fault.headers, "application/problem+json")


async def answer_runner_error(request: Request, error: Exception) -> Response:
    """The answer to anything in the tree of `runner.errors`."""
    assert isinstance(error, RunnerError)
    status = next(STATUS_OF[cls] for cls in type(error).__mro__ if cls in STATUS_OF)
    if status == 500:
        return await answer_defect(request, error)
    if isinstance(error, NotFound) and error.kind == "task" and _is_new(request):
        # They have nothing, so it can only be somebody else's: the same answer as to what nobody has.
        return answer(request, 401, "auth_required", "send the cookie or token of the task's user")
    more: dict[str, Any] = {}
    if isinstance(error, InvalidSubmission):
        more["problems"] = _listed(error.problems)
    if isinstance(error, NotFound):
        more["error_code"] = f"{error.kind.upper().replace(' ', '_')}_NOT_FOUND"
    if isinstance(error, Duplicate | KeyConflict):
        more["task_id"] = error.task_id
    return answer(request, status, _code(error), str(error), _retry_after(error), **more)


async def answer_validation_error(request: Request, error: Exception) -> Response:
    """The answer to a body or query that is not of its model: a JSON pointer for each fault."""
    assert isinstance(error, ValidationError)
    problems = problems_in(error)
    unknown = any(fault["type"] in _UNKNOWN for fault in error.errors(include_url=False))
    code = "unknown_field" if unknown else "validation_error"
    return answer(request, 422, code, "; ".join(map(str, problems)), problems=_listed(problems))


async def answer_http_exception(request: Request, error: Exception) -> Response:
    """The answer to what the router and the door refuse."""
    assert isinstance(error, HTTPException)
    code = error.code if isinstance(error, HttpProblem) else HTTPStatus(error.status_code).name.lower()
    detail = f"there is nothing at {request.url.path}" if error.detail == HTTPStatus.NOT_FOUND.phrase else error.detail
    return answer(request, error.status_code, code, detail, error.headers)


async def answer_disconnect(_request: Request, _error: Exception) -> Response:
    """Nobody reads it: the client went away in the middle of its request."""
    _log.info("the client went away before its request was complete")
    return Response(status_code=400)


async def answer_defect(request: Request, error: Exception) -> Response:
    """The answer to a defect: nothing but where to look. The server logs the traceback, the next thing it does."""
    request_id = request.scope.get("request_id", "")
    _log.error("request %s failed: %s %s: %r", request_id, request.method, request.url.path, error)
    detail = f"something went wrong; look for {request_id} in the runner's log"
    # The server closes the connection after a defect; a client that is not told sends its next request into the void.
    return answer(request, 500, "internal_error", detail, {"Connection": "close"})


ANSWERS: Final[Mapping[type[Exception], Callable[[Request, Exception], Awaitable[Response]]]] = {
    RunnerError: answer_runner_error,
    ValidationError: answer_validation_error,
    HTTPException: answer_http_exception,
    ClientDisconnect: answer_disconnect,
}
"""What is answered to what an endpoint may raise."""
EXPECTED: Final = tuple(ANSWERS)
"""Anything else is a defect."""


async def answer_to(request: Request, error: Exception) -> Response:
    """The answer to anything that an endpoint raises."""
    cls = next((cls for cls in type(error).__mro__ if cls in ANSWERS), None)
    return await (answer_defect if cls is None else ANSWERS[cls])(request, error)


def pointer_to(location: tuple[int | str, ...]) -> str:
    """The JSON pointer (RFC 6901) to a place that pydantic names."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def _contract_code(code: str, more: Mapping[str, Any]) -> str:
    """What contract 001 calls it; where it has no name for it, ours in its style."""
    if code == "validation_error":
        fields = (problem["pointer"].removeprefix("/").partition("/")[0] for problem in more.get("problems", ()))
        return next((_CONTRACT_FIELDS[name] for name in fields if name in _CONTRACT_FIELDS), "INVALID_REQUEST")
    return _CONTRACT_CODES.get(code, code.upper())


def _listed(problems: Iterable[Problem]) -> list[dict[str, str]]:
    return [{"pointer": problem.pointer, "message": problem.message} for problem in islice(problems, MAX_PROBLEMS)]


def _code(error: RunnerError) -> str:
    if not isinstance(error, IllegalTransition) or isinstance(error, Fenced):
        return error.code
    if error.status == Status.PROCESSING:
        return "task_running"
    return "already_finished" if error.status in _TERMINAL_NAMES else error.code


def _is_new(request: Request) -> bool:
    caller = request.scope.get("caller")
    return caller is not None and caller.is_new


def _retry_after(error: RunnerError) -> dict[str, str] | None:
    if isinstance(error, LimitReached | Unavailable):
        return {"Retry-After": str(max(1, math.ceil(error.retry_after_seconds)))}
    return None
