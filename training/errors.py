"""All errors that training raises on purpose; a command line prints `str(error)` and exits non-zero.

TrainingError
├── ConfigError   the TOML file, or a setting in it, is wrong; names file, key and the nearest known key
├── LogError      the behaviour log, or an item or user table, cannot be read; names file, column and first bad rows
├── ContractError a log is beyond a limit of its contract; names each broken line and the figure seen
├── RunError      a run directory lacks the output of an earlier stage; names the command to run first
└── PublishError  a release cannot be put into the model repository; names the obstacle
"""


class TrainingError(Exception):
    """Base of the tree. `str(error)` is a sentence for people: what is wrong, where, and how to mend it."""


class ConfigError(TrainingError):
    """A configuration file or a setting is wrong."""


class LogError(TrainingError):
    """A log or a table cannot be read or has nothing in it to learn from."""


class ContractError(TrainingError):
    """A log is readable and breaks its contract."""


class RunError(TrainingError):
    """A run directory is not in the state that a stage needs."""


class PublishError(TrainingError):
    """A release cannot be put into the model repository."""
