"""The report in a real browser: it asks for nothing, runs nothing, fits the page, and shows hostile text as text."""

import csv
import gzip
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
RAN = "window.ran=1"
# What stands in the logs, and where: each is seen in the report and must be text there.
AGENT = f"<script>{RAN}</script>"
MAILBOX = f'"><img src=x onerror={RAN}>'
TENANT = f"birch</svg><svg onload={RAN}>"
PRINCIPAL = f"javascript:{RAN}//<b>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def demo(gatehound: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's folder; its tenants and days are those of `make demo` where its picture is taken."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    small = () if os.environ.get("GATEHOUND_PICTURES") == "1" else ("--tenants", "12", "--days", "40")
    gatehound()("demo", "--out", out, *small)
    return out


class Page:
    """A page on a file, with everything it asked for and complained about."""

    def __init__(self, browser: Any, file: Path, width: int, height: int = 1500, scale: float = 1) -> None:
        self.page = browser.new_context(
            viewport={"width": width, "height": height}, device_scale_factor=scale
        ).new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.goto(file.as_uri(), wait_until="load", timeout=30_000)

    def overflow(self) -> int:
        """Pixels by which the page is wider than its window."""
        return int(self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))

    def close(self) -> None:
        self.page.context.close()


@pytest.fixture
def opened(browser: Any) -> Iterator[Callable[..., Page]]:
    pages: list[Page] = []

    def make(*arguments: Any, **more: Any) -> Page:
        pages.append(Page(browser, *arguments, **more))
        return pages[-1]

    yield make
    for page in pages:
        page.close()


@pytest.mark.parametrize("width", [1280, 768, 390])
def test_the_demos_report_is_whole_by_itself_and_fits(demo: Path, opened: Callable[..., Page], width: int) -> None:
    file = demo / "report" / "incident.html"
    page = opened(file, width)
    assert page.complaints == []
    outside = [url[:200] for url in page.asked if not url.startswith(("file:", "data:"))]
    assert outside == []
    assert [url for url in page.asked if url.startswith("file:")] == [file.as_uri()]
    assert page.overflow() == 0
    pictures = page.page.evaluate("[...document.images].map(i => [i.complete, i.naturalWidth])")
    assert pictures
    assert all(done and wide > 100 for done, wide in pictures)


def test_the_demos_report_fits_on_paper(demo: Path, opened: Callable[..., Page], tmp_path: Path) -> None:
    # A4 less a centimetre of margin, at 96 dots an inch
    page = opened(demo / "report" / "incident.html", 718, height=1047)
    page.page.emulate_media(media="print")
    assert page.overflow() == 0
    cut = """[...document.querySelectorAll('table, pre, img')].filter(e => !e.closest('details:not([open])'))
             .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).length"""
    assert page.page.evaluate(cut) == 0
    pdf = tmp_path / "report.pdf"
    page.page.pdf(path=str(pdf), format="A4", print_background=True)
    assert pdf.read_bytes().startswith(b"%PDF-")
    assert pdf.stat().st_size > 20_000


def test_its_links_lead_somewhere_and_it_has_one_title(demo: Path, opened: Callable[..., Page]) -> None:
    page = opened(demo / "report" / "incident.html", 1280).page
    missing = """[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))
                 .filter(h => !h.startsWith('#') || !document.getElementById(h.slice(1)))"""
    assert page.evaluate(missing) == []
    assert page.locator("h1").count() == 1
    assert page.locator("img:not([alt])").count() == 0


def test_picture_of_the_report(demo: Path, opened: Callable[..., Page], tmp_path: Path) -> None:
    """Kept for the README only when it is asked for."""
    wanted = os.environ.get("GATEHOUND_PICTURES") == "1"
    out = ROOT / "docs" / "pictures" / "report.png" if wanted else tmp_path / "report.png"
    out.parent.mkdir(parents=True, exist_ok=True)
    page = opened(demo / "report" / "incident.html", 1280, height=1500, scale=1)
    page.page.screenshot(path=str(out))
    assert out.read_bytes().startswith(b"\x89PNG")
    assert 30_000 < out.stat().st_size < 400_000


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _hostile_logs(world: Path, out: Path) -> None:
    """The logs of three tenants with names that an attacker may choose."""
    changed = (
        ("Client=WebServices;ExchangeServicesClient/15.01.1847.000;", AGENT),
        ("ServicePrincipal_", PRINCIPAL),
    )
    for tenant in ("alder", "birch", "damson"):
        shutil.copytree(world / "logs" / tenant, out / "logs" / tenant)
    for file in sorted((out / "logs").rglob("*")):
        if file.suffix not in (".gz", ".json", ".jsonl"):
            continue
        packed = file.suffix == ".gz"
        text = (gzip.decompress(file.read_bytes()) if packed else file.read_bytes()).decode(errors="surrogateescape")
        for old, new in changed:
            text = text.replace(old, _escaped(new))
        text = text.replace('"MailboxOwnerUPN":"', '"MailboxOwnerUPN":"' + _escaped(MAILBOX))
        content = text.encode(errors="surrogateescape")
        file.write_bytes(gzip.compress(content) if packed else content)
    (out / "reference").mkdir()
    for file in [*sorted((world / "reference").glob("*.csv")), world / "collection.csv"]:
        with file.open(newline="") as read:
            rows = list(csv.reader(read))
        column = rows[0].index("tenant_id") if "tenant_id" in rows[0] else None
        target = out / file.name if file.name == "collection.csv" else out / "reference" / file.name
        with target.open("w", newline="") as written:
            for row in rows:
                csv.writer(written).writerow([TENANT if i == column and v == "birch" else v for i, v in enumerate(row)])


@pytest.fixture(scope="module")
def hostile(world: Path, gatehound: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report on logs that attack their reader."""
    from archive.store import Archive
    from flows.pipeline.references import load

    out = tmp_path_factory.mktemp("hostile")
    _hostile_logs(world, out)
    say = gatehound(GATEHOUND_ARCHIVE=str(out / "archive"))
    load(Archive.create(out / "archive"), [str(out / "reference")])
    say("ingest", out / "logs", "--collection", out / "collection.csv")
    say("report", "--out", out / "report", "--title", f"</title></h1><script>{RAN};2</script>")
    return out / "report" / "incident.html"


def test_hostile_text_is_text(hostile: Path, opened: Callable[..., Page]) -> None:
    page = opened(hostile, 1280)
    page.page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
    page.page.wait_for_timeout(500)
    assert page.page.evaluate("window.ran === undefined")
    assert page.complaints == []
    assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
    assert page.page.locator("script, svg, iframe, object, embed, form, base, link").count() == 0
    assert page.page.locator("[onerror], [onload], [onclick]").count() == 0
    assert page.page.locator("a:not([href^='#'])").count() == 0
    shown = page.page.evaluate("document.body.textContent")
    for text in (AGENT, MAILBOX, TENANT, PRINCIPAL):
        assert text.lower() in shown.lower(), f"{text} is not in the report"


def test_hostile_text_in_pictures_is_text(hostile: Path, opened: Callable[..., Page], tmp_path: Path) -> None:
    """The pictures are opened by themselves, where a script in them could run."""
    import base64
    import re

    found = re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", hostile.read_text())
    assert found
    for number, text in enumerate(found):
        file = tmp_path / f"{number}.svg"
        file.write_bytes(base64.b64decode(text))
        page = opened(file, 800)
        assert page.page.evaluate("window.ran === undefined")
        assert page.page.evaluate("document.querySelectorAll('script, foreignObject, [onload], [onerror]').length") == 0
        assert [url for url in page.asked if not url.startswith(("file:", "data:"))] == []
