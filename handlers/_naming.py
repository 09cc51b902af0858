"""Names of outputs. The handlers of this folder share it: a file that begins with an underscore holds no handlers."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from runner import Context

MAX_BYTES = 255
REFUSED = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")


def name_of(ctx: Context) -> str:
    """What the person who handed it in calls the first input."""
    return ctx.task.original_filename or ctx.inputs[0].name


def derive_name(stem: str, ending: str) -> str:
    """A name for an output that `Context.output` takes: `stem`, shortened if need be, and `ending`."""
    plain = REFUSED.sub("_", stem).lstrip(".") or "output"
    room = MAX_BYTES - len(ending.encode())
    # A name that is not UTF-8 gets longer when its odd bytes are replaced.
    whole = plain.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return whole.encode()[:room].decode("utf-8", "ignore") + ending


def require_plain(name: str) -> str:
    """The name, if it can be that of an output; raises ValueError."""
    if derive_name(name, "") != name:
        raise ValueError("must be a file name: no folder, no leading dot, no control characters")
    return name


PlainName = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(require_plain)]
