"""The report of one run as an HTML page: its content, sentences, charts and template.

May import what `training.reports` may.
"""
