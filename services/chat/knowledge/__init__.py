"""The bank's knowledge: documents in versions, and the passages that answer a question.

Import from its modules: the command line finds this package by its name, and must not load what searches.
"""
