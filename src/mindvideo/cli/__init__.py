"""The command line, thin over `mindvideo.study`: one module for each kind of command."""

from __future__ import annotations

import io
import os
import sys
from importlib.metadata import version
from typing import Annotated

import typer

from mindvideo.cli import ablate, evidence, models, running
from mindvideo.cli.baselines import baseline_app
from mindvideo.cli.prepare import prepare_app
from mindvideo.cli.shared import app, terminal
from mindvideo.errors import MindVideoError
from mindvideo.files import FULL, REFUSED

app.add_typer(prepare_app, name="prepare")
app.add_typer(models.foundation_app, name="foundation")
app.add_typer(baseline_app, name="baseline")


def _say_version(asked: bool) -> None:
    if asked:
        print(f"mindvideo {version('mindvideo')}")
        raise typer.Exit


@app.callback()
def _main(
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="print results and errors only")] = False,
    show_version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="print the version and stop")
    ] = False,
) -> None:
    terminal["quiet"] = quiet


def _stop(message: str) -> None:
    if message:
        print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def main() -> None:
    """Entry point: a user's error becomes one sentence and exit code 1, never a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal may not know a letter, nor a file's name be text
    try:
        app()
    except SystemExit as stop:
        if stop.code == 130:  # what typer makes of Ctrl-C
            print("stopped; run the same command again to go on", file=sys.stderr)
        raise
    except MindVideoError as error:
        _stop(str(error) if os.environ.get("RANK", "0") == "0" else "")  # of several processes one speaks
    except OSError as error:
        if error.errno not in (*FULL, *REFUSED):
            raise
        way_out = "free space" if error.errno in FULL else "make it free to read and write"
        _stop(
            f"{error.strerror}: {error.filename2 or error.filename or 'a result'}; {way_out} or give another place, and run "
            "the same command again"
        )
    except RuntimeError as error:
        from mindvideo import distributed

        if not distributed.is_peer_lost(error):
            raise
        _stop(
            f"process {os.environ['RANK']} waited for another one, which has ended; see what that one said, and run the "
            "same command again: it goes on where it stopped"
        )
