"""Logs for measuring, one writer per format family: seeded, with values that differ as real ones do."""

import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

BEGIN = datetime(2021, 2, 1, tzinfo=UTC)
_TARGETS = ("example.com", "example.net", "example.org", "mail.example")
_EWS = "00000003-0000-0000-c000-000000000000"
_POP3 = "dateTime,sessionId,seqNumber,sIp,cIp,user,duration,rqsize,rpsize,command,parameters,context,puid"


def write(family: str, path: Path, size: int, seed: int = 1) -> int:
    """Writes at least `size` bytes of a family's log; returns the number of records."""
    draw, head = FAMILIES[family]
    rng = random.Random(seed)
    when = BEGIN
    records = written = number = 0
    with path.open("w", encoding="utf-8", newline="\n", buffering=1 << 20) as out:
        out.write(head)
        while written < size:
            chunk = []
            for _ in range(2000):
                number += 1
                when += timedelta(milliseconds=rng.randrange(1, 80))
                chunk.append(draw(rng, when, number))
            text = "".join(chunk)
            written += len(text)
            records += text.count("\n")
            out.write(text)
    return records


def _session(rng: random.Random, when: datetime, number: int) -> str:
    """A POP3 session of eight commands in Exchange's 13 columns."""
    user = f"journal{rng.randrange(60)}@tenant{rng.randrange(40)}.example"
    ends = f"192.0.2.10:995,198.51.{rng.randrange(100, 104)}.{rng.randrange(1, 255)}:{rng.randrange(1024, 65535)}"
    rows = [
        ("OpenSession", "", "", 53),
        ("user", user, "R=OK", 5),
        ("pass", "*****", "R=OK", 34),
        ("stat", "", "R=OK", 20),
    ]
    rows += [("retr", str(at), "R=OK", rng.randrange(900, 90000)) for at in (1, 2)]
    rows += [("dele", "1", "R=OK", 20), ("quit", "", "R=OK", 30)]
    lines = []
    for at, (command, parameters, context, answered) in enumerate(rows):
        time = (when + timedelta(milliseconds=at)).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3]
        who = user if at > 1 else ""
        lines.append(
            f"{time}Z,{number:016X},{at},{ends},{who},{rng.randrange(1, 300)},{rng.randrange(5, 40)},{answered},{command},"
            f"{parameters},{context},\n"
        )
    return "".join(lines)


def _audit(rng: random.Random, when: datetime, number: int) -> str:
    """A MailItemsAccessed record of the unified audit."""
    tenant = rng.randrange(40)
    box = f"user{rng.randrange(900)}@tenant{tenant}.example"
    items = [
        {"InternetMessageId": f"<{number:x}.{i}.{rng.randrange(1 << 40):x}@mail.example>"}
        for i in range(rng.randrange(1, 6))
    ]
    record = {
        "CreationTime": when.strftime("%Y-%m-%dT%H:%M:%S"),
        "Id": f"{rng.randrange(1 << 32):08x}-0000-4000-8000-{number:012x}",
        "Operation": "MailItemsAccessed", "OrganizationId": f"5c1f3c0e-1f2a-4a6b-9c3d-{tenant:012x}", "RecordType": 50,
        "ResultStatus": "Succeeded", "UserKey": f"1003{tenant:012X}", "UserType": 0, "Version": 1, "Workload": "Exchange",
        "UserId": box, "AppId": _EWS, "ClientAppId": f"842cef72-745d-463c-8b49-{rng.randrange(30):012x}",
        "ClientIPAddress": f"198.51.{rng.randrange(100, 104)}.{rng.randrange(1, 255)}",
        "ClientInfoString": "Client=REST;Client=RESTSystem;;", "ExternalAccess": False, "InternalLogonType": 0, "LogonType": 0,
        "LogonUserSid": "S-1-5-21-1", "MailboxGuid": f"2c1cb101-0000-4000-8000-{rng.randrange(900):012x}", "MailboxOwnerUPN": box,
        "OperationProperties": [{"Name": "MailAccessType", "Value": "Bind"}, {"Name": "IsThrottled", "Value": "False"}],
        "OrganizationName": f"tenant{tenant}.example", "OriginatingServer": "VI1PR04MB5056 (15.20.4200.000)\r\n",
        "Folders": [{"FolderItems": items, "Id": "LgAA", "Path": "\\Inbox"}], "OperationCount": len(items),
    }  # fmt: skip
    return json.dumps(record, separators=(",", ":")) + "\n"


def _gateway(rng: random.Random, when: datetime, number: int) -> str:
    """Receipt and delivery of a message in Mimecast's API 2.0."""
    millis = int(when.timestamp() * 1000)
    common = {
        "_offset": number, "_partition": 60, "accountId": f"CUSA{rng.randrange(40)}", "aggregateId": f"{number:x}_{millis // 1000}",
        "direction": "Inbound", "messageId": f"<{number:x}.{rng.randrange(1 << 40):x}@mail.example>",
        "senderEnvelope": f"user{rng.randrange(5000)}@{rng.choice(_TARGETS)}",
        "recipients": f"box{rng.randrange(3000)}@tenant{rng.randrange(40)}.example", "subject": f"Report {number}",
    }  # fmt: skip
    receipt = common | {
        "type": "receipt", "subtype": "Acc", "action": "Acc", "processingId": f"r{number:x}", "timestamp": millis,
        "senderIp": f"198.51.{rng.randrange(100, 104)}.{rng.randrange(1, 255)}", "senderHeader": common["senderEnvelope"],
        "rejectionCode": None, "rejectionInfo": None, "rejectionType": None, "spamScore": "2", "tlsVersion": "TLSv1.3",
        "tlsCipher": "TLS_AES_256_GCM_SHA384", "numberAttachments": "0", "virusFound": None,
    }  # fmt: skip
    delivery = common | {
        "type": "delivery", "subtype": "true", "delivered": "true", "deliveryAttempts": "1", "deliveryErrors": None,
        "deliveryTime": str(rng.randrange(9000)), "destinationIp": f"203.0.113.{rng.randrange(1, 255)}",
        "emailSize": str(rng.randrange(900, 90000)), "processingId": f"d{number:x}", "rejectionCode": None, "rejectionInfo": None,
        "rejectionType": None, "route": "Inbound route", "timestamp": millis + 900, "tlsUsed": "Yes", "tlsVersion": "TLSv1.2",
        "tlsCipher": "TLS_AES_256_GCM_SHA384", "numberAttachments": "0", "totalSizeAttachments": "0",
    }  # fmt: skip
    return "".join(json.dumps(record, separators=(",", ":")) + "\n" for record in (receipt, delivery))


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


Draw = Callable[[random.Random, datetime, int], str]
FAMILIES: dict[str, tuple[Draw, str]] = {
    "syslog": (_message, ""),
    "exchange_csv": (_session, f"#Software: Microsoft Exchange Server\n#Log-type: POP3 Log\n#Fields: {_POP3}\n"),
    "audit_json": (_audit, ""),
    "mimecast_json": (_gateway, ""),
}
