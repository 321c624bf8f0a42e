"""``python -m mindvideo.cli``."""

from mindvideo.cli import main

main()
