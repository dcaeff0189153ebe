"""Pang et al. 2020: finite-difference score matching beside what it approximates.

An experiment is a file in ``experiments`` that runs it and one in ``sections`` that shows it.
"""
