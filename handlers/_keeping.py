"""What was kept between attempts, made an output. The handlers of this folder share it."""

import os
import shutil
from pathlib import Path


def link_or_copy(source: Path, target: Path) -> None:
    """`target` has the content of `source`, which stays, and which nobody may change any more."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # some filesystems have no hard links
        shutil.copyfile(source, target)
