"""What changes from one release to another: figures, sentences and an HTML page.

May import what `training.reports` may, and cards and charts of `reports.segments`.
"""
