"""Hours of the week, as people write them in a rule."""

import re

WEEK = 7 * 24 * 60  # minutes
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_HOURS = re.compile(r"(?:([a-z,-]{3,40}) )?(\d{1,2})(?::(\d\d))?-(\d{1,2})(?::(\d\d))?")


def minutes_of(schedule: str) -> frozenset[int]:
    """Minutes of the week, from Monday 00:00 UTC, that a schedule names. Raises ValueError where it is none.

    It is a list, by ;, of hours with days or without: 02:00-04:00, Mon-Fri 22-6, Sat,Sun 00:00-24:00.
    """
    found: set[int] = set()
    for item in filter(None, (part.strip().lower() for part in schedule.split(";"))):
        parts = _HOURS.fullmatch(item)
        if parts is None:
            raise ValueError(item)
        begin, end = (int(parts[n]) * 60 + int(parts[n + 1] or 0) for n in (2, 4))
        if begin > 1440 or end > 1440 or max(int(parts[3] or 0), int(parts[5] or 0)) > 59 or begin == end:
            raise ValueError(item)
        length = (end - begin) % 1440 or 1440
        for day in _days(parts[1]):
            found |= {(day * 1440 + begin + minute) % WEEK for minute in range(length)}
    if not found:
        raise ValueError(schedule)
    return frozenset(found)


def _days(text: str | None) -> list[int]:
    if text is None:
        return list(range(7))
    found = []
    for item in text.split(","):
        ends = [_DAYS.index(name) for name in item.split("-")]  # ValueError where it is no day
        if len(ends) > 2:
            raise ValueError(item)
        found += [(ends[0] + step) % 7 for step in range((ends[-1] - ends[0]) % 7 + 1)]
    return found
