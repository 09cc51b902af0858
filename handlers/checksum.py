"""The smallest useful handler: it reads a file, tells how far it is and writes one output."""

import hashlib
from pathlib import Path

from runner import Context, Fail, handler

from ._naming import derive_name, name_of

CHUNK_BYTES = 4 << 20


@handler(timeout="1h", retries=2)
def checksum(ctx: Context) -> dict[str, object]:
    """Compute the SHA-256 and the size of a file."""
    if len(ctx.inputs) != 1:
        raise Fail(f"checksum takes one file, not {len(ctx.inputs)}", code="wrong_inputs")
    path = ctx.inputs[0]
    name = name_of(ctx)
    digest, size = read_through(ctx, path)
    output = ctx.output(derive_name(name, ".sha256"))
    output.write_bytes(format_line(digest, name))
    return {"sha256": digest, "size_bytes": size, "output": output.name}


def read_through(ctx: Context, path: Path) -> tuple[str, int]:
    """The digest of a file and the number of bytes that went into it."""
    total = path.stat().st_size
    digest, done = hashlib.sha256(), 0
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            ctx.check()
            ctx.progress(100 * done / max(total, done), f"{done:,} of {total:,} bytes", stage="reading")
    return digest.hexdigest(), done


def format_line(digest: str, name: str) -> bytes:
    """One line that `sha256sum --check` reads: a name with a backslash or a line break is escaped as GNU does it."""
    escaped = name.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "\\" if escaped != name else ""
    return f"{mark}{digest}  {escaped}\n".encode(errors="surrogateescape")
