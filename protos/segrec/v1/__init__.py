"""Generated code of the API, version 1."""
