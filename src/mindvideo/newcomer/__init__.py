"""A new person from minutes of scanner time: a model of other people, and maps of the new one's own (docs/people.md)."""

from mindvideo.newcomer.curve import LeftOut, run_curve

__all__ = ["LeftOut", "run_curve"]
