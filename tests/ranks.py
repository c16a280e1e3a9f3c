"""Runs on several processes, and what they leave to compare: shared by the tests of many ranks.

As a script it is one of the processes: `torchrun tests/ranks.py WORK FOLDER …`.
"""
