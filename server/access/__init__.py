"""Who may do what: roles of methods, callers and their credentials, quotas.

May import `server.core` and `server.watched_files`; knows gRPC's contexts, and no service.
"""
