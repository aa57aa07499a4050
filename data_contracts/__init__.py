"""What every table must be: ODCS contracts, compiled to schemas and row rules, and checked in bulk (`gate`).

The compiler is loaded when it is first asked for, since it brings Polars: a command that only prints its help needs
neither.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from data_contracts.compiler import Column, Contract, check_all, contract, names
    from data_contracts.rules import Rule

__all__ = ["Column", "Contract", "Rule", "check_all", "contract", "names"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(name)
    from data_contracts import compiler, rules

    return getattr(rules if name == "Rule" else compiler, name)
