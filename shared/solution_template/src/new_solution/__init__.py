"""The task and the competition, in one line."""
