"""The command line: `gatehound VERB`. Each verb imports what it needs when it runs."""

import os
import sys

import typer

from flows.commands import analyse, collect, findings, formats, rules

app = typer.Typer(
    name="gatehound",
    help="Forensics for e-mail gateways: who used a credential, from where, against whom; what was read, what left.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
collect.register(app)
analyse.register(app)
rules.register(app)
findings.register(app)
formats.register(app)


def run() -> None:
    """Entry point: runs a verb and turns what goes wrong into a message and an exit code."""
    from data_contracts.errors import GatehoundError

    try:
        app()
    except GatehoundError as error:
        _complain(str(error))
        raise SystemExit(error.exit_code) from None
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(0) from None
    except KeyboardInterrupt:
        sys.stderr.write("\nInterrupted; what was committed stays, the rest can be ingested again.\n")
        raise SystemExit(130) from None
    except OSError as error:
        if error.filename is None:
            raise
        _complain(f"{error.filename}: {error.strerror or 'cannot be used'}")
        raise SystemExit(2) from None


def _complain(text: str) -> None:
    """A message on stderr; a name or a value in it can't act on the terminal."""
    from reports.escape import code

    sys.stderr.write(f"Error: {code(text)}\n")


if __name__ == "__main__":
    run()
