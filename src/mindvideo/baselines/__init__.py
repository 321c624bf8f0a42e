"""Rival methods on the same footing: the same prepared dataset, windows, scores and controls (docs/method.md, Rivals).

Nothing outside this package but the command line and the study imports it, and they only when asked for a rival.
"""
