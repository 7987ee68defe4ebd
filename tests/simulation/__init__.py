"""A simulation of several servers on one repository, on a clock of its own; see `tests.simulation.world`."""
