"""Other task queues with the same job, each in an environment of its own, so that there is something to compare with
that was measured in the same run."""
