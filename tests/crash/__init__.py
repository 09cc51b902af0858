"""What happens when the runner, or the power, goes away at the worst moment."""
