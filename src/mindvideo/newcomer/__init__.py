"""A new person from minutes of scanner time (docs/people.md)."""

from mindvideo.newcomer.curve import LeftOut, run_curve

__all__ = ["LeftOut", "run_curve"]
