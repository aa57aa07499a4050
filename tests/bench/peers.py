"""What the peers of the benchmark are asked: the same columns out of the same text, into zstd Parquet, on two threads."""

_POSTFIX_HEAD = (
    r"^([A-Z][a-z]{2} [ 0-9]\d \d\d:\d\d:\d\d) (\S+) (postfix/[^\[ :]+)\[(\d+)\]:? (?:([0-9A-F]{6,}|NOQUEUE): )?(.*)$"
)
_POSTFIX_CLIENT = r"(?:client=|connect from |established from )([^\[ ]*)\[([^\]]+)\]"
_POSTFIX_FROM = r": from=<([^>]*)>, size=(\d+), nrcpt=(\d+)"
_POSTFIX_TO = r": to=<([^>]*)>, (?:orig_to=<([^>]*)>, )?relay=([^,]*), delay=([^,]*), delays=[^,]*, dsn=([^,]*), status=(\w+) \((.*)\)$"
_POSTFIX_TLS = r": (TLSv[0-9.]+) with cipher (\S+)"
_POP3 = [
    "dateTime",
    "sessionId",
    "seqNumber",
    "sIp",
    "cIp",
    "user",
    "duration",
    "rqsize",
    "rpsize",
    "command",
    "parameters",
    "context",
    "puid",
]
_AUDIT = [
    "CreationTime",
    "Id",
    "Operation",
    "OrganizationId",
    "ResultStatus",
    "Workload",
    "UserId",
    "AppId",
    "ClientAppId",
    "ClientIPAddress",
    "ClientInfoString",
    "MailboxGuid",
    "MailboxOwnerUPN",
    "OrganizationName",
]
_AUDIT_NUMBERS = ["RecordType", "UserType", "LogonType", "OperationCount"]
_MIMECAST = [
    "accountId",
    "aggregateId",
    "processingId",
    "type",
    "subtype",
    "direction",
    "messageId",
    "senderEnvelope",
    "senderHeader",
    "recipients",
    "subject",
    "senderIp",
    "destinationIp",
    "emailSize",
    "rejectionCode",
    "rejectionInfo",
    "rejectionType",
    "delivered",
    "deliveryAttempts",
    "route",
    "tlsVersion",
    "tlsCipher",
]


def duckdb(family: str) -> str:
    """DuckDB's statement for a family."""
    if family == "syslog":
        head = "['ts_raw', 'host', 'program', 'pid', 'queue_id', 'message']"
        to = "['rcpt', 'orig_rcpt', 'relay', 'delay', 'dsn', 'status', 'status_text']"
        return f"""copy (
          select regexp_extract(line, '{_POSTFIX_HEAD}', {head}) as h, regexp_extract(line, '{_POSTFIX_CLIENT}', ['src_host', 'src_ip']) as c,
                 regexp_extract(line, '{_POSTFIX_FROM}', ['mail_from', 'size', 'nrcpt']) as f, regexp_extract(line, '{_POSTFIX_TO}', {to}) as t,
                 regexp_extract(line, 'message-id=(.*)$', 1) as message_id, regexp_extract(line, 'sasl_username=(\\S+)', 1) as sasl_username,
                 regexp_extract(line, '{_POSTFIX_TLS}', ['tls_version', 'tls_cipher']) as tls
          from read_csv('@src@', columns={{'line': 'varchar'}}, delim='\\x01', quote='', escape='', header=false, auto_detect=false,
                        new_line='\\n')
        ) to '@out@' (format parquet, compression zstd)"""
    if family == "exchange_csv":
        columns = ", ".join(f"'{name}': 'varchar'" for name in _POP3)
        return f"""copy (
          select * replace (try_cast(dateTime as timestamptz) as dateTime, try_cast(rpsize as bigint) as rpsize, try_cast(rqsize as bigint) as rqsize)
          from read_csv('@src@', columns={{{columns}}}, delim=',', quote='"', escape='"', header=false, skip=3, auto_detect=false, new_line='\\n')
        ) to '@out@' (format parquet, compression zstd)"""
    if family == "audit_json":
        plain = ", ".join(
            [f"{n}: 'varchar'" for n in _AUDIT]
            + [f"{n}: 'bigint'" for n in _AUDIT_NUMBERS]
            + ["ExternalAccess: 'boolean'"]
        )
        nested = (
            'OperationProperties: \'struct("Name" varchar, "Value" varchar)[]\', '
            "Folders: 'struct(\"Path\" varchar, FolderItems struct(InternetMessageId varchar)[])[]'"
        )
        return f"""copy (select * from read_json('@src@', format='newline_delimited', columns={{{plain}, {nested}}}))
          to '@out@' (format parquet, compression zstd)"""
    plain = ", ".join([f"\"{n}\": 'varchar'" for n in _MIMECAST] + ["\"timestamp\": 'bigint'"])
    return f"""copy (select * from read_json('@src@', format='newline_delimited', columns={{{plain}}}))
      to '@out@' (format parquet, compression zstd)"""


def clickhouse(family: str) -> str:
    """ClickHouse's statement for a family."""
    into = " into outfile '@out@' truncate format Parquet settings max_threads = 2, output_format_parquet_compression_method = 'zstd'"
    if family == "syslog":
        patterns = (
            _POSTFIX_HEAD,
            _POSTFIX_CLIENT,
            _POSTFIX_FROM,
            _POSTFIX_TO,
            "message-id=(.*)$",
            r"sasl_username=(\S+)",
            _POSTFIX_TLS,
        )
        groups = ", ".join(
            f"extractGroups(line, '{pattern.replace(chr(92), chr(92) * 2)}') as g{at}"
            for at, pattern in enumerate(patterns)
        )
        return f"select {groups} from file('@src@', LineAsString, 'line String')" + into
    if family == "exchange_csv":
        columns = ", ".join(f"{name} String" for name in _POP3)
        return (
            "select * replace (parseDateTime64BestEffortOrNull(dateTime) as dateTime, toInt64OrNull(rpsize) as rpsize, "
            f"toInt64OrNull(rqsize) as rqsize) from file('@src@', CSV, '{columns}')"
            + into
            + ", input_format_csv_skip_first_lines = 3"
        )
    if family == "audit_json":
        plain = ", ".join(
            [f"{n} String" for n in _AUDIT] + [f"{n} Int64" for n in _AUDIT_NUMBERS] + ["ExternalAccess Bool"]
        )
        nested = (
            "OperationProperties Array(Tuple(Name String, Value String)), "
            "Folders Array(Tuple(Path String, FolderItems Array(Tuple(InternetMessageId String))))"
        )
        return (
            f"select * from file('@src@', JSONEachRow, '{plain}, {nested}')"
            + into
            + ", input_format_skip_unknown_fields = 1"
        )
    plain = ", ".join([f"{n} Nullable(String)" for n in _MIMECAST] + ["timestamp Int64"])
    return f"select * from file('@src@', JSONEachRow, '{plain}')" + into + ", input_format_skip_unknown_fields = 1"


RUN = {
    "DuckDB": "import duckdb, sys; con = duckdb.connect(); con.execute('set threads = 2'); con.execute(sys.argv[1])",
    "ClickHouse": "import chdb, sys; chdb.query(sys.argv[1])",
}
_STATEMENT = {"DuckDB": duckdb, "ClickHouse": clickhouse}


def statement(peer: str, family: str, source: str, out: str) -> str:
    """What a peer is asked; the paths are of the benchmark's own making."""
    return _STATEMENT[peer](family).replace("@src@", source).replace("@out@", out)
