"""The offline side: from a behaviour log to a published release, a package for each concept.

It may import `server.core` and nothing else of `server`. `cli` stands on top, `errors` and `metrics` at the bottom; a
package imports only what stands below it (pyproject.toml, `[tool.importlinter]`).
"""
