"""bmctl: the administrators' command line.

    bmctl <resource> <verb> …        one file per resource: hypervisors, servers, storages, backups, jobs, tokens
    bmctl events | login | logout | version | completion

Importing this and showing help costs no grpc and no rich: verbs import these themselves, since a completion or `--help`
has to feel immediate. An error of any kind ends here, as an exit code and a sentence (failures.py).
"""

import os
import signal
import sys
from itertools import pairwise
from typing import NoReturn

import typer

from clients.cli import completion, events, failures, login, overview, system
from clients.cli.lazy import lazy_group

RESOURCES = (
    ("hypervisor", "clients.cli.hypervisors", "The hosts of the servers."),
    ("server", "clients.cli.servers", "Which servers there are to back up."),
    ("package", "clients.cli.packages", "What servers are sold as."),
    ("storage", "clients.cli.storages", "Where backups go."),
    ("schedule", "clients.cli.schedules", "When servers are backed up."),
    ("batch", "clients.cli.batches", "What schedules did, and do."),
    ("preset", "clients.cli.presets", "Performance settings that go together."),
    ("backup", "clients.cli.backups", "Make, see, restore, check, delete backups."),
    ("ticket", "clients.cli.tickets", "Restore tickets that lie on hypervisors."),
    ("chain", "clients.cli.chains", "Delete whole chains of backups."),
    ("retention", "clients.cli.retention", "Why backups stay, and what goes when."),
    ("purge", "clients.cli.purges", "What is left of deleted servers."),
    ("job", "clients.cli.jobs", "See and end work."),
    ("webhook", "clients.cli.webhooks", "Having events sent by HTTP."),
    ("log", "clients.cli.system_log", "What the controller did and met of its own accord."),
    ("audit", "clients.cli.audit", "Who did what."),
    ("settings", "clients.cli.settings", "The settings of the whole installation."),
    ("token", "clients.cli.tokens", "Who may call the controller."),
)

app = typer.Typer(
    name="bmctl",
    help="Manage the backups of virtual servers: hypervisors, servers, storages, backups and jobs.",
    epilog=failures.EPILOG,
    rich_markup_mode=None,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(login.login)
app.command()(login.logout)
app.command()(system.version)
app.command()(system.recovery)
app.command()(overview.overview)
app.command()(overview.diagnose)
app.command()(events.events)
for name, module, help_text in RESOURCES:
    app.add_typer(lazy_group(module, help_text), name=name)
app.command()(completion.completion)

_PIPE_CLOSED = 141  # as a shell calls a program that SIGPIPE ended


def main() -> NoReturn:
    """Run bmctl with the arguments of this process and end the process."""
    # typer parses with pydantic, which otherwise reads every installed package's metadata: 28 of 140 ms, and it has no plugin here.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "true")
    completion.prepare()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        result = app(prog_name="bmctl", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has gone, as `head` does. Nothing more can be said, not even at the interpreter's end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(_PIPE_CLOSED)
    except BaseException as error:
        sys.exit(_failed(error))
    sys.exit(result if isinstance(result, int) else 0)


def _terminated(number: int, _frame: object) -> NoReturn:
    """End through every `finally`, so that a bar goes away and the cursor comes back."""
    raise SystemExit(128 + number)


def _failed(error: BaseException) -> int:
    """Say what went wrong and return the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else failures.Exit.INTERNAL
    if os.environ.get("BMCTL_DEBUG") and isinstance(error, Exception):
        import traceback

        traceback.print_exception(error)
    if isinstance(error, typer.Abort):
        # Ctrl-C; or the end of the input where a question waited for an answer.
        error = KeyboardInterrupt() if isinstance(error.__cause__, KeyboardInterrupt) else failures.Declined()
    show = getattr(error, "show", None)
    if show is not None and not _wants_json():  # the parser's own errors know the usage line and similar options
        show()
        return failures.Exit.USAGE
    if show is not None:
        error = failures.Usage(field="bmctl", problem=getattr(error, "message", "") or str(error))
    failures.report(error, as_json=_wants_json())
    return failures.exit_code(error)


def _wants_json() -> bool:
    """Tell whether errors are to be JSON; the arguments may be what is wrong, so they are looked at as they are."""
    arguments = sys.argv[1:]
    given = [value for name, value in pairwise(arguments) if name in {"--output", "-o"}]
    given += [name.partition("=")[2] for name in arguments if name.startswith("--output=")]
    given += [name[2:] for name in arguments if name.startswith("-o") and name != "-o"]
    return (given[-1] if given else os.environ.get("BMCTL_OUTPUT")) == "json"


if __name__ == "__main__":
    main()
