"""What is deleted from runs: erased users, events older than the retention, and runs that nothing needs.

May import `evaluation` and the layers below; not `publish`, `reports` or `derive`, its siblings.
"""
