"""The doors that files and times come in by: admission, the inbox, the outbox, schedules."""
