"""The table of commands. The module of a command is imported when that command is called, and no other."""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException
from typer.main import get_command

from cepo.errors import CepoError, Unreachable, UserError


class Command(NamedTuple):
    """A row of the table: where the function is, and the help of the command."""

    module: str
    function: str
    help: str


COMMANDS = {
    "train": Command("cepo.cli.train", "train", "Train from a run file."),
    "resume": Command("cepo.cli.train", "resume", "Resume a run from its folder, with its own configuration."),
    "sweep": Command("cepo.cli.sweep", "sweep", "Train several run files and compare them."),
    "compare": Command("cepo.cli.compare.command", "compare", "Compare runs: settings, accuracy, credit, curves."),
    "check": Command("cepo.cli.check", "check", "Check model, data, prompts and machine before a run starts."),
    "plan": Command("cepo.cli.plan", "plan", "Show what a run takes of a GPU's memory, and what would fit."),
    "eval": Command("cepo.cli.evaluation.command", "evaluate", "Measure pass@k of the base or of a run's policies."),
    "credit": Command("cepo.cli.credit", "credit", "Print the credit of every token of given responses."),
    "verify": Command("cepo.cli.verify", "verify", "Grade responses against reference answers."),
    "export": Command("cepo.cli.export", "export", "Write the trained adapter, or a merged model."),
    "status": Command("cepo.cli.status", "status", "Print the trainer's current phase and step."),
    "dashboard": Command("cepo.cli.dashboard", "dashboard", "Serve a page with a run's curves, groups and failures."),
    "replay": Command("cepo.cli.replay", "replay", "Score the same held-out problems at several policy versions."),
    "up": Command("cepo.cli.services", "up", "Start rollout, teacher and verifier, and print their addresses."),
    "down": Command("cepo.cli.services", "down", "Stop the services that `cepo up` started here."),
    "serve": Command("cepo.cli.serve", "serve", "Run one service in a container; the trainer resumes its run."),
    "certs": Command("cepo.cli.certs", "certs", "Make certificates of the services, for development."),
}


def run(arguments: list[str] | None = None) -> int:
    """Runs the command that the arguments name and returns the exit status; `cepo.cli.main` lists the statuses."""
    app = typer.Typer(
        cls=Commands,
        help="Train language models with credit for every token (arXiv:2605.19436).",
        context_settings={"help_option_names": ["-h", "--help"]},
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback()(_options)
    try:
        return int(get_command(app).main(arguments, prog_name="cepo", standalone_mode=False))
    except TyperException as error:
        return _refuse(_usage(error, "cepo"), 2)


class Commands(TyperGroup):
    """The commands of the table, with their errors as one line and an exit status."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=entry.help) for name, entry in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Imports the command that the arguments name."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, name and _imported(name), rest

    def invoke(self, ctx: Any) -> int:
        """Calls the command and returns the exit status."""
        try:
            code = int(super().invoke(ctx) or 0)
            sys.stdout.flush()
            return code
        except TyperException as error:
            return _refuse(_usage(error, " ".join(filter(None, (ctx.info_name, ctx.invoked_subcommand)))), 2)
        except (UserError, Unreachable) as error:
            return _refuse(str(error), 2)
        except CepoError as error:
            return _refuse(str(error), 1)
        except BrokenPipeError:  # the reader of our output, such as `head`, has closed the pipe
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except OSError as error:
            if error.filename is None:
                raise
            return _refuse(f"{error.filename}: {error.strerror}; give another path, or make this one usable", 2)
        except KeyboardInterrupt:
            return _refuse("interrupted", 130)


def _imported(name: str) -> TyperCommand:
    entry = COMMANDS[name]
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name, help=entry.help)(getattr(import_module(entry.module), entry.function))
    command = get_command(app)
    assert isinstance(command, TyperCommand)
    return command


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"cepo {version('cepo')}")
        raise typer.Exit


def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of `cepo` itself."""


def _usage(error: TyperException, command: str) -> str:
    text = " ".join(error.format_message().replace("Value error, ", "").split())
    stop = "" if text.endswith((".", "?")) else "."
    return f"{text[:1].lower()}{text[1:]}{stop} Try '{command} --help'."


def _refuse(line: str, code: int) -> int:
    print(f"cepo: {line}", file=sys.stderr)
    return code
