"""The report of one run as an HTML page: its content, sentences, charts and template.

May import the same packages as `training.reports`.
"""
