"""Fields of Mimecast's SIEM records, however they are written: pipe lines, JSON of API 1.0, JSON of API 2.0.

API 1.0 spells a field as the product that wrote it does (`Sender` of the mail servers, `sender` of URL Protect), and
API 2.0 spells it differently again (`senderEnvelope`). Here each meaning has one name.
"""

import polars as pl

from transforms import gateway_fields as g

FIELDS: dict[str, tuple[str, ...]] = {
    "time": ("datetime", "timestamp"),
    "account": ("acc", "accountId"),
    "queue": ("aCode", "aggregateId"),
    "step": ("processingId",),
    "type": ("type", "eventType", "Logtype", "logType", "mimecastEventId"),
    "subtype": ("subtype", "subType"),
    "download": ("Content-Disposition",),
    "act": ("action", "Act", "Action"),
    "ip": ("IP",),
    "source_ip": ("senderIp", "sourceIp", "SourceIP"),
    "destination_ip": ("destinationIp",),
    "dir": ("direction", "Dir"),
    "route": ("route", "Route"),
    "msgid": ("messageId", "MsgId", "msgid"),
    "subject": ("subject", "Subject"),
    "header_from": ("senderHeader", "headerFrom"),
    "sender": ("senderEnvelope", "sender", "Sender"),
    "rcpt": ("recipients", "recipient", "Rcpt", "Recipient"),
    "rej_type": ("rejectionType", "RejType"),
    "rej_code": ("rejectionCode", "RejCode"),
    "rej_info": ("rejectionInfo", "RejInfo"),
    "error": ("receiptErrors", "deliveryErrors", "Error", "Err"),
    "virus": ("virusFound", "Virus"),
    "tls_version": ("tlsVersion", "TlsVer"),
    "tls_cipher": ("tlsCipher", "Cphr"),
    "size": ("emailSize", "MsgSize", "Snt", "Size"),
    "attachments": ("numberAttachments", "AttCnt", "AttSize"),
    "hold": ("holdReason", "Hld", "HLD"),
    "delivered": ("delivered", "Delivered"),
    "attempt": ("deliveryAttempts", "Attempt"),
    "latency": ("deliveryTime", "Latency"),
    "ack": ("ReceiptAck",),
    "next_hop": ("Hostname",),
    "journal": ("RcptActType",),
    "spam": ("spamDetectionLevel", "SpamLimit", "SpamScore", "SpamInfo"),
    "url": ("url", "URL"),
    "category": ("urlCategory", "UrlCategory", "category"),
    "scan": ("scanResults", "scanResult", "ScanResultInfo"),
    "why": ("reason", "blockReason"),
    "definition": ("policyDefinition", "Definition"),
    "hits": ("itemsDetected", "Hits"),
    "malicious": ("taggedMalicious", "TaggedMalicious"),
    "similar_domain": ("similarDomain",),
    "file": ("fileName",),
    "sha256": ("sha256",),
    "mimecast_ip": ("mimecastIp", "MimecastIP"),
    "domain": ("senderDomain", "SenderDomain"),
}
_CANONICAL = {written: name for name, spellings in FIELDS.items() for written in spellings}
# Each of a line's own fields is told by the first place only: what comes later may be the sender's words.
_FIRST = ("time", "account", "queue")
_OTHER_KEYS = (
    "AttNames|CustomName|CustomThreatDictionary|CustomerIP|InternalName|NewDomain|RcptHdrType|ReplyMismatch|"
    "SenderDomainInternal|SimilarCustomExternalDomain|SimilarInternalDomain|SimilarMimecastExternalDomain|"
    "SpamProcessingDetail|TaggedExternal|ThreatDictionary|UseTls|credentialTheft|fileExt|fileMime|md5|sha1|"
    "IPInternalName|IPNewDomain|IPReplyMismatch|IPSimilarDomain|IPThreadDict"
)
_KEY = rf"\|({'|'.join(sorted(_CANONICAL, key=len, reverse=True))}|{_OTHER_KEYS})="
# |Subject=\what the sender wrote\|headerFrom=...
_SUBJECT = r"^(.*?)\|[Ss]ubject=\\(.*)\\(\|[A-Za-z].*)?$"
_MARK = "\x1f"

# Names of a record's type, without mail_ or email_ before, and of the file that API 1.0 gives it in.
_KINDS = {
    "receipt": "receipt",
    "process": "process",
    "delivery": "delivery",
    "journal": "journal",
    "jrnl": "journal",
    "spam": "spam",
    "spameventthread": "spam",
    "spam event thread": "spam",
    "av": "av",
    "avlog": "av",
    "antivirus": "av",
    "attachment protect": "attachment protect",
    "ttp ap": "attachment protect",
    "ttp attachment": "attachment protect",
    "impersonation protect": "impersonation protect",
    "ttp impersonation": "impersonation protect",
    "ttp ip": "impersonation protect",
    "internal email protect": "internal email protect",
    "iep": "internal email protect",
    "ttp iep": "internal email protect",
    "url protect": "url protect",
    "ttp url": "url protect",
}


def from_json(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame without `raw`, with the columns of FIELDS and `bad_json`."""
    first, second = _passes()
    read = g.decode(frame, first)
    # The names of the second reading differ from those of the first in case only, and stand in API 1.0's records.
    old = frame.get_column("raw").str.contains(r'"acc(?:_[a-z])?"\s*:').fill_null(value=False)
    if old.any():
        more = g.decode(frame.filter(old).select("record_no", "raw"), second).drop("bad_json")
        read = read.join(more, on="record_no", how="left", maintain_order="left")
    else:
        read = read.with_columns(pl.lit(None, pl.String).alias(name) for name in second)
    meanings = [
        pl.coalesce(_value(name, written) for written in spellings).alias(name) for name, spellings in FIELDS.items()
    ]
    kept = [name for name in frame.columns if name != "raw"]
    return read.select(*kept, "bad_json", *meanings)


def _value(name: str, column: str) -> pl.Expr:
    """The text of a column; the null sender is written as <> or nothing, and the action `none` is one."""
    if name == "sender":
        return pl.col(column)
    return pl.col(column).str.strip_chars().replace("", None) if name == "act" else g.text(pl.col(column))


def _passes() -> tuple[list[str], list[str]]:
    """The spellings in two lists, so that within one no two differ in case only."""
    spellings = [name for several in FIELDS.values() for name in several]
    first: dict[str, str] = {}
    second = [name for name in spellings if first.setdefault(name.lower(), name) != name]
    return list(first.values()), second


def from_pipes(frame: pl.DataFrame) -> pl.DataFrame:
    """The same columns from `datetime=...|aCode=...|acc=...`; `bad_json` tells lines that are none of these.

    The values are not escaped. The subject ends with the last backslash before a bar. Any other field that a line
    names twice with different values is null: one of them may be the sender's words.
    """
    line = frame.get_column("raw").str.replace_all(_MARK, " ").str.extract(r"(datetime=.*)$")
    lines = frame.select("record_no").with_columns(("|" + line).alias("t"))
    cut = pl.col("t").str.extract_groups(_SUBJECT).struct.rename_fields(["before", "subject", "after"])
    lines = lines.with_columns(cut.alias("cut")).unnest("cut")
    rest = pl.coalesce(pl.concat_str("before", pl.col("after").fill_null("")), "t")
    pairs = lines.select("record_no", rest.str.replace_all(_KEY, _MARK + "${1}=").str.split(_MARK).alias("p"))
    pairs = pairs.explode("p").select(
        "record_no", pl.col("p").str.splitn("=", 2).struct.rename_fields(["key", "value"]).struct.unnest()
    )
    names = pl.col("key").replace_strict(_CANONICAL, default=None, return_dtype=pl.String)
    pairs = pairs.with_columns(names.alias("name"), pl.col("value").str.strip_chars()).drop_nulls("name")
    # The subject without backslashes is read with the others; sizes and counts have several spellings in one line.
    single = pairs.group_by("record_no", "name", "key").agg(
        pl.col("value").first(), pl.col("value").n_unique().alias("n")
    )
    clear = (pl.col("n") == 1) | pl.col("name").is_in(_FIRST)
    rank = pl.col("key").replace_strict(_rank(), return_dtype=pl.Int64)
    single = single.with_columns(pl.when(clear).then("value").alias("value")).sort(rank)
    single = single.group_by("record_no", "name").agg(pl.col("value").first())
    wide = single.pivot("name", index="record_no", values="value") if single.height else single.select("record_no")
    wide = wide.with_columns(pl.lit(None, pl.String).alias(n) for n in FIELDS if n not in wide.columns)
    read = lines.select("record_no", "t", "subject").join(
        wide.rename({"subject": "plain"}), on="record_no", how="left", maintain_order="left"
    )
    subject = pl.coalesce(g.text(pl.col("subject")), g.text(pl.col("plain")))
    meanings = [(subject if name == "subject" else _value(name, name)).alias(name) for name in FIELDS]
    bad = (pl.col("t").is_null() | (pl.col("account").is_null() & pl.col("queue").is_null())).alias("bad_json")
    return frame.drop("raw").hstack(read.select(bad, *meanings))


def _rank() -> dict[str, int]:
    return {written: at for spellings in FIELDS.values() for at, written in enumerate(spellings)}


def kind() -> pl.Expr:
    """Which of Mimecast's record types a record is: as it says, as its file is named, or by the fields it has."""
    said = pl.coalesce(
        _normal(pl.col("type")), _normal(pl.col("download").str.extract(r'filename="?([A-Za-z_-]+?)_\d'))
    )
    untold = pl.col("type").is_null() | (pl.col("type").str.to_uppercase() == "MTA")
    return pl.coalesce(said, pl.when(untold).then(_by_fields()))


def _normal(value: pl.Expr) -> pl.Expr:
    name = value.str.to_lowercase().str.replace_all(r"[_-]", " ").str.replace(r"^e?mail ", "")
    return name.replace_strict(_KINDS, default=None, return_dtype=pl.String)


def _by_fields() -> pl.Expr:
    """API 1.0 does not say it in the record."""

    def has(*names: str) -> pl.Expr:
        return pl.any_horizontal(pl.col(name).is_not_null() for name in names)

    return (
        pl.when(has("journal"))
        .then(pl.lit("journal"))
        .when(has("delivered", "attempt", "latency", "ack"))
        .then(pl.lit("delivery"))
        .when(has("scan"))
        .then(pl.lit("internal email protect"))
        .when(has("url"))
        .then(pl.lit("url protect"))
        .when(has("definition", "hits", "malicious"))
        .then(pl.lit("impersonation protect"))
        .when(has("mimecast_ip", "virus", "file", "sha256") & ~has("rej_type", "spam", "attachments"))
        .then(pl.when(has("mimecast_ip", "virus")).then(pl.lit("av")).otherwise(pl.lit("attachment protect")))
        .when(has("act", "hold") & has("size", "attachments") & ~has("ip", "source_ip"))
        .then(pl.lit("process"))
        .when(has("source_ip") & has("domain") & ~has("act"))
        .then(pl.lit("spam"))
        .when(has("act", "rej_type", "rej_code") & has("ip", "source_ip", "rcpt", "sender", "dir"))
        .then(pl.lit("receipt"))
        .when(has("act"))
        .then(pl.lit("process"))
    )
