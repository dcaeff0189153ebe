"""From a cell's settings to its numbers: data, training, sampling, measuring, and their jobs.

A cell is one row of a table on one data set with one seed; every stage of it is a digest of
settings, so that cells share what they have in common.
"""
