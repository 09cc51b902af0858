"""What a handler's function returned or raised, as the ending of its attempt."""

from __future__ import annotations

import traceback
from types import TracebackType
from typing import Any, Final

from pydantic_core import PydanticSerializationError, from_json, to_json

from runner.context import Cancelled, Context, Fail, Retry, Snooze
from runner.errors import InvalidSubmission
from runner.execute.assignment import Assignment, Ending, Stop
from runner.execute.prints import SPEAKER, end_line
from runner.task import Outcome, TaskError

MAX_RESULT_BYTES: Final = 4 * 1024**2
"""A result is kept in the task's JSON, in memory and in every list; what is bigger belongs into an output file."""

OUT_OF_MEMORY: Final = "out_of_memory"

_MAX_TRACEBACK: Final = 16_000
_MAX_MESSAGE: Final = 2_000
_MAX_WAIT_SECONDS: Final = 10 * 365 * 86_400.0

# A reader of JSON gives up at 200 levels, and a result is read inside its task, inside a list of tasks.
_LEVELS_ABOVE: Final = 10
_MAX_PLAIN: Final = 64
_SAFE_INTEGER: Final = 2**53

_STOPPED: Final = {
    Stop.CANCELLED: (Outcome.CANCELLED, "cancelled"),
    Stop.TIMED_OUT: (Outcome.TIMED_OUT, "took longer than its timeout"),
    Stop.DRAINED: (Outcome.INTERRUPTED, "the runner shut down before it was done"),
}


def perform(assignment: Assignment, context: Context) -> Ending:
    """Call the handler's function, here and now; how that ended. Raises nothing."""
    if context.stopped:
        return stopped(Stop(context.stopped))
    handler = assignment.handler
    try:
        arguments = handler.arguments(assignment.task.payload)
    except InvalidSubmission as error:
        return invalid_payload(error)
    speaker = SPEAKER.set(context)
    try:
        result = handler.function(context, **arguments)
    except BaseException as error:  # noqa: BLE001 - the function is the user's: sys.exit() must end its attempt, not us
        return explain(error, context.stopped)
    finally:
        SPEAKER.reset(speaker)
        end_line(context)
    return complete(result, has_outputs=context.has_outputs)


async def perform_async(assignment: Assignment, context: Context) -> Ending:
    """The same for a handler that has to be awaited. Raises nothing, CancelledError neither: it ends the attempt."""
    if context.stopped:
        return stopped(Stop(context.stopped))
    handler = assignment.handler
    try:
        arguments = handler.arguments(assignment.task.payload)
    except InvalidSubmission as error:
        return invalid_payload(error)
    SPEAKER.set(context)  # for good: whoever awaits this has a context of its own
    try:
        result = await handler.function(context, **arguments)
    except BaseException as error:  # noqa: BLE001 - as above; and whoever cancels the coroutine has set `stopped`
        return explain(error, context.stopped)
    finally:
        end_line(context)
    return complete(result, has_outputs=context.has_outputs)


def complete(result: Any, *, has_outputs: bool = True) -> Ending:
    """The ending of a function that returned `result`: COMPLETED if that is JSON, else FAILED."""
    if _is_plain(result):
        # A copy: the handler may keep its dict and change it, and this one is the task's until it is written.
        kept = result if result is None else dict(result)
        return Ending(Outcome.COMPLETED, kept, has_outputs=has_outputs)
    try:
        wrapped = result
        for _ in range(_LEVELS_ABOVE):
            wrapped = (wrapped,)
        encoded = to_json(wrapped, inf_nan_mode="constants")
        if len(encoded) > MAX_RESULT_BYTES:
            return _invalid(f"it is {len(encoded):,} bytes of JSON; write it to ctx.output(…) and return its name")
        # Read back, so that it is the same here as it will be in the file: tuples are lists, keys are strings.
        plain = from_json(encoded, allow_inf_nan=False)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        return _invalid(str(error))
    for _ in range(_LEVELS_ABOVE):
        (plain,) = plain
    return Ending(Outcome.COMPLETED, plain, has_outputs=has_outputs)


def _is_plain(result: Any) -> bool:
    """Whether a result is of the kind that most are, and certainly the same in JSON: nothing, or a few short values
    by name. Ten times as fast as to write and read it."""
    if result is None:
        return True
    if type(result) is not dict or len(result) > _MAX_PLAIN:
        return False
    for name, value in result.items():
        if type(name) is not str or not _is_short(name):
            return False
        if not (_is_short(value) if type(value) is str else _is_plain_value(value)):
            return False
    return True


def _is_short(text: str) -> bool:
    return len(text) <= _MAX_PLAIN and text.isascii()


def _is_plain_value(value: Any) -> bool:
    return value is None or type(value) is bool or (type(value) is int and -_SAFE_INTEGER < value < _SAFE_INTEGER)


def explain(error: BaseException, reason: str) -> Ending:
    """The ending of a function that raised `error`; `reason` is the Stop that it was told, or empty."""
    if reason:
        return stopped(Stop(reason))
    if isinstance(error, Retry | Snooze | Fail | Cancelled):
        return _grant(error)
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)  # what filled the memory hangs on them
        return _failed(OUT_OF_MEMORY, _describe(error), error=error)
    return _failed("handler_error", _describe(error), error=error)


def _grant(wish: Retry | Snooze | Fail | Cancelled) -> Ending:
    """The ending that a handler asked for."""
    match wish:
        case Snooze():
            return Ending(Outcome.SNOOZED, after_seconds=min(wish.seconds, _MAX_WAIT_SECONDS))
        case Retry():
            after = None if wish.after is None else min(wish.after, _MAX_WAIT_SECONDS)
            return _failed(str(wish.code), _text(wish), after_seconds=after)
        case Fail():
            return _failed(str(wish.code), _text(wish), retryable=False)
        case Cancelled():
            return _failed("cancelled", _text(wish) or "the handler cancelled itself", retryable=False)


def stopped(reason: Stop) -> Ending:
    """The ending of an attempt that was told to stop, whatever it raised then."""
    outcome, message = _STOPPED[reason]
    return Ending(outcome, error=TaskError(code=outcome, message=message, retryable=reason is not Stop.CANCELLED))


def crashed(message: str) -> Ending:
    """The ending of an attempt whose process died."""
    return _failed("crashed", message)


def not_started(error: OSError) -> Ending:
    """The ending of an attempt for which there was no process, no descriptor or no memory."""
    return _failed("cannot_start", f"no process could be started: {error}")


def exhausted(memory_mb: int) -> Ending:
    """The ending of an attempt that wanted more memory than its handler may have."""
    return _failed(OUT_OF_MEMORY, f"needs more memory than the handler's memory_mb: {memory_mb}")


def broken(reason: str) -> Ending:
    """The ending of an attempt whose handler could be loaded by the owner, and not where it was to run."""
    return _failed("broken_handler", reason)


def invalid_payload(error: InvalidSubmission) -> Ending:
    """The ending of a task whose payload no longer fits: the handler changed after it was submitted."""
    return _failed("invalid_payload", f"the handler does not take this payload any more: {error}", retryable=False)


def _invalid(reason: str) -> Ending:
    return _failed("invalid_result", f"the result cannot be kept as JSON: {reason}"[:_MAX_MESSAGE], retryable=False)


def _failed(
    code: str,
    message: str,
    *,
    retryable: bool = True,
    after_seconds: float | None = None,
    error: BaseException | None = None,
) -> Ending:
    return Ending(
        Outcome.FAILED,
        error=TaskError(code=code, message=_printable(message[:_MAX_MESSAGE]), retryable=retryable),
        after_seconds=after_seconds,
        traceback=_format(error) if error else "",
    )


def _describe(error: BaseException) -> str:
    text = _text(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - the user's __str__ may raise anything
        return "its text cannot be shown"


def _format(error: BaseException) -> str:
    """The traceback from the user's function on; of a long one the end, which says what happened."""
    lines = traceback.format_exception(type(error), error, _below(error.__traceback__))
    return _printable("".join(lines)[-_MAX_TRACEBACK:])


def _below(trace: TracebackType | None) -> TracebackType | None:
    return trace.tb_next if trace and trace.tb_next else trace


def _printable(text: str) -> str:
    """The text as it can be written to a file: a lone surrogate, from a file's name, is replaced."""
    return text.encode("utf-8", "replace").decode()
