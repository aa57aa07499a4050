"""Postfix text for measuring: seeded, eight lines a message, as one host writes it in a day."""

import random
from datetime import UTC, datetime, timedelta
from pathlib import Path

_TARGETS = ("example.com", "example.net", "example.org", "mail.example")


def write(path: Path, size: int, seed: int = 1) -> int:
    """Writes at least `size` bytes of log; returns the number of lines. Messages of some minutes are drawn, then repeated
    with other queue ids, times and pids, so that writing is quick and values still differ."""
    rng = random.Random(seed)
    when = datetime(2021, 2, 1, tzinfo=UTC)
    lines = written = number = 0
    with path.open("w", encoding="utf-8", newline="\n", buffering=1 << 20) as out:
        while written < size:
            chunk = []
            for _ in range(2000):
                number += 1
                when += timedelta(milliseconds=rng.randrange(1, 80))
                chunk.append(_message(rng, when, number))
            text = "".join(chunk)
            written += len(text)
            lines += text.count("\n")
            out.write(text)
    return lines


def _message(rng: random.Random, when: datetime, number: int) -> str:
    stamp = when.strftime("%b %e %H:%M:%S")
    queue = f"{number * 2654435761 % (1 << 44):011X}"
    ip = f"198.51.{rng.randrange(100, 104)}.{rng.randrange(1, 255)}"
    name = f"host{rng.randrange(4000)}.example.net"
    sender = f"user{rng.randrange(5000)}@{rng.choice(_TARGETS)}"
    rcpt = f"box{rng.randrange(3000)}@tenant{rng.randrange(40)}.example"
    message = f"<{number:x}.{rng.randrange(1 << 32):x}@{name}>"
    size, delay = rng.randrange(900, 90000), rng.randrange(1, 900) / 100
    head = f"{stamp} mx1 postfix/"
    smtpd, other = rng.randrange(1000, 32000), rng.randrange(1000, 32000)
    login = (
        f", sasl_method=PLAIN, sasl_username=route{rng.randrange(40)}@tenant{rng.randrange(40)}.example"
        if number % 8 == 0
        else ""
    )
    how = (
        f"relay=mail.dovecot[private/dovecot-lmtp], delay={delay}, delays=0.1/0/0/{delay}, dsn=2.0.0, status=sent (250 2.0.0 <{rcpt}> {queue} Saved)"
        if number % 2
        else f"relay=in.example.net[203.0.113.{rng.randrange(1, 255)}]:25, delay={delay}, delays=0.05/0/0.4/{delay}, dsn=2.0.0, "
        f"status=sent (250 2.0.0 Ok: queued as {queue[::-1]})"
    )
    daemon = "lmtp" if number % 2 else "smtp"
    return (
        f"{head}smtpd[{smtpd}]: connect from {name}[{ip}]\n"
        f"{head}smtpd[{smtpd}]: {queue}: client={name}[{ip}]{login}\n"
        f"{head}cleanup[{other}]: {queue}: message-id={message}\n"
        f"{head}qmgr[977]: {queue}: from=<{sender}>, size={size}, nrcpt=1 (queue active)\n"
        f"{head}{daemon}[{other + 7}]: {queue}: to=<{rcpt}>, {how}\n"
        f"{head}qmgr[977]: {queue}: removed\n"
        f"{head}smtpd[{smtpd}]: Anonymous TLS connection established from {name}[{ip}]: TLSv1.3 with cipher TLS_AES_256_GCM_SHA384 (256/256 bits)\n"
        f"{head}smtpd[{smtpd}]: disconnect from {name}[{ip}] ehlo=2 starttls=1 mail=1 rcpt=1 data=1 quit=1 commands=7\n"
    )
