"""Handlers: the user's functions, found in a folder, described by their signatures, reloaded when their files change.

`declaration` has `@handler`, the only thing that a handler's file needs; `options` what can be said with it; `schema`
makes a function's parameters the contract of its payload; `media` tells what a file is; `loading` turns one file into
one module object; `catalog` keeps the folder: last good versions, errors, watching; `template` writes a first handler.
"""

from runner.handlers.catalog import Handlers
from runner.handlers.declaration import handler
from runner.handlers.loading import Handler, LoadFailure
from runner.handlers.options import Backoff, Delivery, HandlerOptions, Isolation

__all__ = ["Backoff", "Delivery", "Handler", "HandlerOptions", "Handlers", "Isolation", "LoadFailure", "handler"]
