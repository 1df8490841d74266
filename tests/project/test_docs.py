"""The README and the documentation: they build, what they show works, and links lead somewhere."""

import configparser
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.main import get_command

from mobile_sam_plugin import build_sam_vit_t
from mobile_sam_plugin.cli import app, main
from tools.command_pages import command_page, commands

from ..deploy.conftest import write_files
from ..integrations.clips import write_clip
from ..integrations.models import save_clip, save_swin_detector

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
HOW_TO = sorted([*DOCS.glob("start/*.md"), *DOCS.glob("how-to/**/*.md")])
AT_THE_TOP = sorted([*ROOT.glob("*.md"), *ROOT.rglob("examples/**/*.md")])

_setup = configparser.ConfigParser()
_setup.read(ROOT / "setup.cfg")
URLS = dict(line.split(" = ") for line in _setup["metadata"]["project_urls"].strip().splitlines())
SITE, SOURCE = URLS["Documentation"], URLS["Source"]


class Page(HTMLParser):
    """The links, the pictures and the anchors of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        for name in ("href", "src"):
            if tag in {"a", "img", "link", "script"} and found.get(name):
                self.links.append(str(found[name]))
        for name in ("id", "name"):
            if found.get(name):
                self.anchors.add(str(found[name]))


@cache
def read_page(path: Path) -> Page:
    return Page(path.read_text())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as `make docs` builds it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(DOCS, folder / "docs")
    (folder / "docs" / "reference" / "commands.md").write_text(command_page())
    shutil.copy(ROOT / "zensical.toml", folder)  # its place is the root of what is built
    for name in ("mobile_sam_plugin", "integrations", "tools"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-m", "zensical", "build", "--strict"],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def links_of(text: str) -> list[str]:
    """The targets of links and pictures in Markdown, without those in code."""
    text = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.DOTALL)
    return re.findall(r"\]\(([^)\s]+)\)", text)


def check_target(path: Path, anchor: str, link: str) -> None:
    assert path.exists(), link
    if anchor and path.suffix == ".html":
        assert unquote(anchor) in read_page(path).anchors, link
    elif anchor:
        titles = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
        anchors = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]
        assert anchor in anchors, link


def check_address(link: str, site: Path) -> None:
    """An address of this project leads to a page of the site, or to a file of the repository."""
    address, _, anchor = link.partition("#")
    if address.startswith(SITE):
        check_target(site / (address.removeprefix(SITE) or "index.html"), anchor, link)
    elif re.match(re.escape(SOURCE) + "/(blob|tree)/main/", address):
        check_target(ROOT / address.removeprefix(SOURCE).split("/", 3)[3], anchor, link)


def test_every_link_and_picture_of_the_readme_is_in_the_site(site: Path) -> None:
    links = links_of(README)
    assert len(links) > 15 and all(urlsplit(link).scheme == "https" for link in links)
    for link in links:
        check_address(link, site)
    assert sum(link.startswith(SITE) for link in links) > 15


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 40
    for path in pages:
        if path.name == "404.html":
            continue
        for link in read_page(path).links:
            if urlsplit(link).scheme:
                check_address(link, site)
                continue
            file, _, anchor = link.partition("#")
            target = (path.parent / unquote(file.partition("?")[0])).resolve() if file else path
            if target.is_dir():
                target /= "index.html"
            check_target(target, anchor, f"{path.relative_to(site)}: {link}")


@pytest.mark.browser
def test_the_site_needs_no_network_and_no_server(site: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("there is no chromium on this machine: apt-get install chromium")
    sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    asked: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site.as_uri()}/index.html")
        page.locator(".md-search__button").click()
        page.get_by_role("combobox", name="Search").fill("pred_iou_thresh")
        page.locator("a", has_text="too few masks").first.wait_for()  # of another page
        browser.close()
    assert any("iframe-worker.js" in url for url in asked)
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("page", AT_THE_TOP, ids=lambda page: page.name)
def test_links_at_the_top_lead_somewhere(page: Path) -> None:
    for link in links_of(page.read_text()):
        if not urlsplit(link).scheme:
            file, _, anchor = link.partition("#")
            check_target((page.parent / file).resolve() if file else page, anchor, link)


def test_every_page_is_in_the_navigation() -> None:
    named = set(re.findall(r'"([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text()))
    there = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    assert named == there | {"reference/commands.md"}


def test_every_public_name_is_in_the_reference(site: Path) -> None:
    import mobile_sam_plugin

    text = (site / "reference" / "python.html").read_text()
    for name in mobile_sam_plugin.__all__:
        assert re.search(rf'id="mobile_sam_plugin\.[\w.]*\b{name}"', text), name
    assert not re.search(r":(class|func|meth):", text)  # a Sphinx role, which the reader would see


def test_the_first_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, *_ = re.findall(r"```python\n(.+?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line and " import " not in line]) <= 8
    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", "bundled")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    exec(code, {})
    with (
        Image.open("flower.png") as made,
        Image.open(DOCS / "images" / "first_mask.png") as shown,
    ):
        assert np.mean(np.asarray(made) != np.asarray(shown)) < 0.001


def test_the_readme_is_short() -> None:
    assert len(README.split()) < 700


def blocks(page: Path) -> Iterator[str]:
    """The Python of a page, but what a comment above says runs in another test, or nowhere."""
    found = re.findall(r"(<!-- .+? -->\n)?```python\n(.+?)```", page.read_text(), re.DOTALL)
    for comment, code in found:
        compile(code, page.name, "exec")
        elsewhere = re.search(r"runs in (\S+)", comment)
        if elsewhere:
            assert (ROOT / elsewhere[1]).exists(), comment
        elif not comment.startswith("<!-- not run: needs "):
            yield code


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages speak of, small, and the bundled checkpoint."""
    monkeypatch.setenv("MOBILE_SAM_CHECKPOINT", "bundled")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "photos").mkdir()
    with Image.open(ROOT / "examples" / "images" / "coffee.png") as opened:
        image = opened.convert("RGB").resize((420, 480))
    for name in ("dog.jpg", "street.jpg", "photos/beach.jpg"):
        image.save(tmp_path / name)
    return tmp_path


def prepare(page: str, folder: Path) -> None:
    """Models and clips, where a page needs them; untrained, of the libraries' own classes."""
    weights = ROOT / "mobile_sam_plugin" / "weights" / "mobile_sam.safetensors"
    if page == "onnxruntime":
        (folder / "models").mkdir()
        write_files(build_sam_vit_t("bundled"), folder / "models", opset=18)
    if page == "text":
        save_swin_detector(folder / "IDEA-Research" / "grounding-dino-tiny", "GroundingDino")
    if page == "label":
        save_clip(folder / "openai" / "clip-vit-base-patch32")
    if page == "distil":
        (folder / "finetuned").mkdir()
        shutil.copy(weights, folder / "finetuned" / "best.safetensors")
    if page == "transformers":
        assert main(["convert", "bundled", "FOLDER", "--for", "transformers"]) == 0
    if page == "robustness":
        (folder / "val").mkdir()
        shutil.copy(folder / "dog.jpg", folder / "val")
        labels = np.zeros((480, 420), dtype=np.uint8)
        labels[100:300, 50:350] = 1
        cv2.imwrite(str(folder / "val" / "dog.png"), labels)
    if page in ("track_python", "inpaint_video"):
        frame = np.asarray(Image.open(folder / "street.jpg"))
        write_clip(folder / "street.mp4", [frame] * 3)
    if page == "inpaint_video":
        masks = folder / "tracked" / "street" / "masks"
        masks.mkdir(parents=True)
        for index in range(3):
            cv2.imwrite(str(masks / f"{index:05}.png"), np.eye(*frame.shape[:2], dtype=np.uint8))


@pytest.mark.parametrize(
    "page", [page for page in HOW_TO if [*blocks(page)]], ids=lambda page: page.stem
)
def test_the_python_of_a_page_runs(page: Path, workplace: Path) -> None:
    prepare(page.stem, workplace)
    names: dict[str, Any] = {}
    for code in blocks(page):
        exec(compile(code, str(page), "exec"), names)


def shell_commands() -> list[list[str]]:
    """The `mobile-sam` commands of all pages, in words."""
    found = []
    for page in [ROOT / "README.md", *DOCS.rglob("*.md")]:
        text = page.read_text()
        fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        code = [block for language, block in fenced if not language]
        code += re.findall(r"^    .+\n", text, re.MULTILINE)
        for line in "\n".join(code).replace("\\\n", " ").splitlines():
            words = re.match(r"\s*(?:\w+=\S+ )?mobile-sam (.+?)(?: #.*| &)?$", line)
            if words:
                found.append([word.strip("\"'") for word in re.findall(WORD, words[1])])
    return found


WORD = r"\"[^\"]*\"|'[^']*'|\S+"


def test_every_command_of_the_pages_can_be_called() -> None:
    """Its options exist and its arguments are as many; the files need not."""
    root = get_command(app)
    context = root.make_context("mobile-sam", [], resilient_parsing=True)
    known = {each.command_path: (command, each) for command, each in commands(root, context)}
    calls = shell_commands()
    assert len(calls) > 60
    for words in calls:
        if {"--help", "COMMAND", "[OPTIONS]"} & {*words}:
            continue
        length = 2 if words[0] == "distill" else 1
        command, its_context = known[" ".join(["mobile-sam", *words[:length]])]
        _, left, _ = command.make_parser(its_context).parse_args([*words[length:]])
        assert command.name == "run" or not left, words


@pytest.mark.parametrize(
    "words",
    [words for words in shell_commands() if words[1:] and words[1].startswith("examples/images/")],
    ids=" ".join,
)
def test_commands_on_the_photographs_run(words: list[str], workplace: Path) -> None:
    if words[0] == "everything":
        words = [*words, "--points-per-side", "4"]
    assert main(words) == 0
    assert [*(workplace / "out").rglob("*.png")]
