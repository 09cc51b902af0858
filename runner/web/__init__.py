"""The HTTP front door: one Starlette app, on the Unix socket and on TCP."""
