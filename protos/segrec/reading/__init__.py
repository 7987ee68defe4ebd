"""One set of rules for reading people's files: words for nothing, ids, times, values, columns. Standard library only.

The client, the server and the training read by these rules, so that an event has the same ids and the same time
wherever its file is read.
"""
