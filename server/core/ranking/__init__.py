"""Which items a user gets, in which order, and why."""
