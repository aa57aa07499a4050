"""What gatehound raises on purpose.

GatehoundError
├── UsageError          the call is wrong                              exit code 2
├── RefusedError        evidence, reference data or a rule is refused   exit code 3
└── IntegrityError      something stored is not what it was             exit code 4
"""


class GatehoundError(Exception):
    """A fact, its place, and what to try next.

    Args:
        fact: what is the case, with path:place where there is one.
        hint: the next thing to try; shown after "Hint:".
    """

    exit_code = 1

    def __init__(self, fact: str, hint: str | None = None) -> None:
        super().__init__(fact if hint is None else f"{fact}\nHint: {hint}")
        self.fact = fact
        self.hint = hint


class UsageError(GatehoundError):
    """The call is wrong."""

    exit_code = 2


class RefusedError(GatehoundError):
    """Evidence, reference data or a rule is refused."""

    exit_code = 3


class IntegrityError(GatehoundError):
    """Something stored is not what it was."""

    exit_code = 4
