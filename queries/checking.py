"""Checks of the SQL that a detection's file holds, when it is loaded."""

from typing import TYPE_CHECKING

from data_contracts.errors import RefusedError

if TYPE_CHECKING:
    from queries.catalogue import Detection

WINDOW = ("window_from", "window_to")  # parameters that are always given


def check_sql(detection: "Detection", sql: str) -> None:
    """Refuses SQL that is not exactly one SELECT, or whose parameters are not exactly the declared ones."""
    import duckdb

    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise RefusedError(f"{detection.path}:sql: {str(error).splitlines()[0]}") from error
    if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
        raise RefusedError(f"{detection.path}:sql: must be exactly one SELECT")
    used = set(statements[0].named_parameters)
    declared = {parameter.name for parameter in detection.parameters}
    problems = [
        f"{detection.path}:parameters: {name} is used but not declared"
        for name in sorted(used - declared - set(WINDOW))
    ]
    problems += [f"{detection.path}:parameters: {name} is declared but not used" for name in sorted(declared - used)]
    problems += [f"{detection.path}:parameters: {name} is always given" for name in sorted(declared & set(WINDOW))]
    if problems:
        raise RefusedError("\n".join(problems))


def check_questions(detection: "Detection") -> None:
    """Refuses questions to the archive that are not one SELECT each, or use a parameter that is not declared."""
    import duckdb

    asked = [("requires", item.sql) for item in detection.requires]
    asked += [("subjects", detection.ctes + item.sql) for item in detection.subjects]
    known = {*WINDOW, *(parameter.name for parameter in detection.parameters)}
    parts, problems = {branch.name for branch in detection.branches}, []
    for place, sql in asked:
        try:
            statements = duckdb.extract_statements(sql)
        except duckdb.Error as error:
            problems.append(f"{detection.path}:{place}: {str(error).splitlines()[0]}")
            continue
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            problems.append(f"{detection.path}:{place}: must be exactly one SELECT")
        elif set(statements[0].named_parameters) - known:
            problems.append(f"{detection.path}:{place}: uses a parameter that is not declared")
    if parts:
        odd = sorted({item.part for item in detection.subjects if item.part is not None} - parts)
        problems += [f"{detection.path}:subjects: there is no branch {name}" for name in odd]
    if problems:
        raise RefusedError("\n".join(problems))
