"""Reads logs and tables from files, table formats and databases: every row, or an error that names it."""
