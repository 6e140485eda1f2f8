"""`cepo ...`: one module per command. A user's mistake is one line and exit 2."""

from __future__ import annotations

import argparse
import os
import sys

from cepo.errors import CepoError, Unreachable, UserError


def main(arguments: list[str] | None = None) -> int:
    """Runs a command; 0 on success, 1 on a fault of ours, 2 on bad input, 130 on Ctrl-C."""
    # not above: each grader that a command starts imports the script that calls this, and has no use for them
    from cepo.cli import certs, check, credit, dashboard, export, serve, services, status, sweep, train, verify
    from cepo.cli.evaluation import command as evaluate

    parser = argparse.ArgumentParser(prog="cepo", description="Train with token credit (arXiv:2605.19436).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (train, sweep, check, evaluate, credit, verify, export, status, dashboard, services, serve, certs):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    try:
        code = int(options.run(options))
        sys.stdout.flush()
        return code
    except (UserError, Unreachable) as error:
        return _refuse(str(error), 2)
    except CepoError as error:
        return _refuse(str(error), 1)
    except BrokenPipeError:  # whoever read our output, such as `head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.filename is None:
            raise
        return _refuse(f"{error.filename}: {error.strerror}; give another path, or make this one usable", 2)
    except KeyboardInterrupt:
        return _refuse("interrupted", 130)


def _refuse(line: str, code: int) -> int:
    print(f"cepo: {line}", file=sys.stderr)
    return code
