"""The options that every command has: which configuration, which data directory, and for whom to print."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from runner.config import Config


@dataclass(frozen=True)
class Options:
    """`--config`, `--data` and `--json`."""

    config_file: Path | None
    data_dir: Path | None
    as_json: bool

    def load_config(self, **overrides: Any) -> Config:
        """The configuration, with `overrides` (dots as double underscores: `http__port`) where they are not None.

        Raises ConfigError.
        """
        from runner.config import Config

        given = {name.replace("__", "."): value for name, value in overrides.items() if value is not None}
        if self.data_dir is not None:
            given["data_dir"] = str(self.data_dir.absolute())
        return Config.load(self.config_file, given)


def common_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options to a click command's function, which gets them as its first argument."""

    @click.option("--config", "config_file", type=click.Path(path_type=Path), help="Another file than ./config.yaml.")
    @click.option("--data", "data_dir", type=click.Path(path_type=Path), help="The data directory.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
    def with_options(config_file: Path | None, data_dir: Path | None, as_json: bool, **rest: Any) -> Any:
        return command(Options(config_file, data_dir, as_json), **rest)

    with_options.__doc__ = command.__doc__
    with_options.__name__ = command.__name__
    # Options of the command itself, put there by decorators below this one, come first in its help.
    own = getattr(command, "__click_params__", [])
    with_options.__click_params__ = with_options.__click_params__ + own  # type: ignore[attr-defined]
    return with_options
