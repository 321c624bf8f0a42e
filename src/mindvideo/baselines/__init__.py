"""Rival methods on the same store, windows, scores and controls (docs/method.md, Rivals).

Only the command line and the study import this package, and only when asked for a rival.
"""
