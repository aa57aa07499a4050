"""What every table must be: ODCS contracts, compiled to schemas and row rules (`compiler`) and checked in bulk (`gate`)."""

from data_contracts.compiler import Column, Contract, check_all, contract, names
from data_contracts.rules import Rule

__all__ = ["Column", "Contract", "Rule", "check_all", "contract", "names"]
