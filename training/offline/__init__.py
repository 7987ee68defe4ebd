"""Answers of a run without a server: vectors and recommendations of users, by the code that a server ranks with."""
