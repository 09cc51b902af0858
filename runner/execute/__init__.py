"""Running one attempt of a task: on the loop, in a thread, or in a process of its own.

`assignment` is the seam: what goes in, what comes out, and who is told. `attempt` turns what a function does into an
ending. `thread`, `loop` and `process` are where it runs; `zygote` is the process that processes are forked from,
`child` what runs in them, `ward` one of them as its owner sees it, `wire` what is said between them. `prints` and
`transcript` make lines of the log of what handlers print. `once` runs one handler without a server.
"""

from runner.execute.assignment import Assignment, Ending, Executor, Haste, Monitor, Stop
from runner.execute.executors import Executors

__all__ = ["Assignment", "Ending", "Executor", "Executors", "Haste", "Monitor", "Stop"]
