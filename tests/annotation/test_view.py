"""``mobile-sam view``: its page in a real Chromium, opened as a file, over runs made of shapes."""

import base64
import io
import json
import os
import re
import shutil
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mobile_sam_plugin.annotation.view import write_view
from mobile_sam_plugin.cli import main
from mobile_sam_plugin.integrations.instances import Instances, boxes_of
from mobile_sam_plugin.records import Record, decode_mask, encode_mask, make_record
from mobile_sam_plugin.results import claim_folder, write_results

CHROMIUM = shutil.which("chromium")
HOSTILE = "<img src=x onerror=hacked=1>"
HOSTILE_LABEL = "</script><script>hacked=1</script>"
SIZES = {  # width, height; the pages show up to 640 pixels
    "large.jpg": (1500, 1000),
    "folder/tall & thin.png": (90, 400),
    "köpfe/ねこ 1.png": (160, 120),
    f"{HOSTILE}.png": (120, 120),
    "gone.png": (200, 100),
    "changed.png": (200, 100),
    "broken.png": (200, 100),
    "no mask.png": (100, 80),
}

Captured = pytest.CaptureFixture[str]
Annotations = dict[str, list[Record]]


def draw_masks(name: str, count: int, rng: np.random.Generator) -> list[Record]:
    """Records of ellipses and rectangles, with scores and stability of every kind."""
    width, height = SIZES[name]
    records = []
    for index in range(count):
        mask = np.zeros((height, width), dtype=np.uint8)
        center = [int(rng.integers(side)) for side in (width, height)]
        axes = [max(2, int(side * rng.uniform(0.05, 0.4))) for side in (width, height)]
        if index % 2:
            cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
        else:
            corner = [start + side for start, side in zip(center, axes, strict=True)]
            cv2.rectangle(mask, center, corner, 1, cv2.FILLED)
        record = make_record(np.where(mask, 8.0, -8.0).astype(np.float32), rng.uniform(), [center])
        records.append(record | {"stability_score": rng.uniform(0.5, 1)})
    return records


def write_run(folder: Path, annotations: Annotations, images: Path) -> None:
    """A run in the layout of ``mobile-sam annotate``."""
    folder.mkdir(parents=True, exist_ok=True)
    about: dict[str, Any] = {
        "input": ["photographs"],
        "source": "images",
        "image_root": str(images),
    }
    about |= {"mode": "everything", "options": {"generator_options": {"points_per_side": 12}}}
    (folder / "run.json").write_text(json.dumps(about))
    number = 0
    for image_id, (name, records) in enumerate(annotations.items(), start=1):
        width, height = SIZES[name]
        image = {"image_id": image_id, "file_name": name, "width": width, "height": height}
        for record in records:
            number += 1
            record["id"] = number
        path = (folder / "sa1b" / name).with_suffix(".json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"image": image, "annotations": records}))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for name, (width, height) in SIZES.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        if name == "broken.png":
            path.write_bytes(b"no picture")
        elif name != "gone.png":
            scale = 2 if name == "changed.png" else 1
            pixels = rng.integers(256, size=(height * scale, width * scale, 3), dtype=np.uint8)
            Image.fromarray(cv2.blur(pixels, (9, 9))).save(path)
    return folder


@pytest.fixture(scope="module")
def annotations() -> Annotations:
    rng = np.random.default_rng(1)
    drawn = {name: draw_masks(name, 0 if name == "no mask.png" else 8, rng) for name in SIZES}
    for place, record in enumerate(drawn[f"{HOSTILE}.png"]):
        record["category"] = HOSTILE_LABEL if place < 3 else "cat"
    return drawn


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, images: Path, annotations: Annotations) -> Path:
    """A run of eight images, three of them without a preview, and two errors."""
    folder = tmp_path_factory.mktemp("runs") / "a run"
    write_run(folder, annotations, images)
    errors = [{"file_name": HOSTILE, "error": "no image"}, {"file_name": "b.png", "error": "empty"}]
    (folder / "errors.jsonl").write_text("".join(json.dumps(line) + "\n" for line in errors))
    return folder


@pytest.fixture(scope="module")
def open_page() -> Iterator[Callable[..., Any]]:
    """Opens a page; it may ask for nothing but itself and the data in it, and report no error."""
    sync_api: Any = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("there is no chromium on this machine")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"]
        )
        problems: list[str] = []
        requests: list[str] = []
        opened: list[str] = []

        def open_page(path: Path, **context: Any) -> Any:
            page = browser.new_context(**{"viewport": {"width": 1200, "height": 800}} | context)
            page = page.new_page()
            page.set_default_timeout(10_000)
            page.on("pageerror", lambda error: problems.append(str(error)))
            page.on("console", lambda message: problems.append(message.text))
            page.on("request", lambda request: requests.append(request.url))
            opened.append(path.as_uri())
            page.goto(opened[-1])
            return page

        yield open_page
        browser.close()
        assert problems == []
        assert [url for url in requests if not url.startswith("data:")] == opened


@pytest.fixture(scope="module")
def opened(open_page: Callable[..., Any], run: Path) -> Any:
    assert main(["view", str(run)]) == 0
    return open_page(run / "view.html")


@pytest.fixture
def page(opened: Any) -> Any:
    """The run's page, in its first state."""
    if opened.locator("dialog[open]").count():
        opened.keyboard.press("Escape")
    if opened.locator("#reset").is_enabled():
        opened.locator("#reset").click()
    opened.get_by_label("Sort by").select_option("Name")
    settle(opened)
    return opened


def settle(page: Any) -> None:
    """Waits until what was changed has been drawn."""
    page.evaluate(
        "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
    )


def shown_cards(page: Any) -> dict[str, str]:
    """The names of the visible cards, in order, and how many masks each tells of."""
    cards = page.evaluate(
        """() => Array.from(document.querySelectorAll(".card"))
            .filter(card => card.offsetParent)
            .map(card => [card.dataset.name, card.querySelector("small").textContent])"""
    )
    return dict(cards)


def painted(canvas: Any) -> NDArray[np.bool_]:
    """The pixels of a canvas that are not transparent, (h, w)."""
    png = base64.b64decode(canvas.evaluate("canvas => canvas.toDataURL()").partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(png)))[..., 3] > 0


def highlighted(page: Any) -> NDArray[np.bool_]:
    return painted(page.locator("#highlight"))


def open_image(page: Any, name: str) -> None:
    page.locator(".card", has_text=name).click()
    page.locator("dialog[open]").wait_for()


def share(name: str, record: Record) -> float:
    return 100 * record["area"] / (SIZES[name][0] * SIZES[name][1])


FILTERS: list[tuple[dict[str, float], Callable[[str, Record], bool]]] = [
    ({"Area in % of the image, at least": 5}, lambda name, mask: share(name, mask) >= 5),
    ({"Area in % of the image, at most": 2.5}, lambda name, mask: share(name, mask) <= 2.5),
    ({"Area in pixels, at least": 9000}, lambda _, mask: mask["area"] >= 9000),
    ({"Area in pixels, at most": 1000}, lambda _, mask: mask["area"] <= 1000),
    ({"Predicted IoU, at least": 0.88}, lambda _, mask: mask["predicted_iou"] >= 0.88),
    ({"Predicted IoU, at most": 0.1}, lambda _, mask: mask["predicted_iou"] <= 0.1),
    ({"Stability score, at least": 0.95}, lambda _, mask: mask["stability_score"] >= 0.95),
    (
        {"Area in pixels, at least": 500, "Predicted IoU, at least": 0.4}
        | {"Predicted IoU, at most": 0.8, "Stability score, at most": 0.9},
        lambda _, mask: (
            mask["area"] >= 500
            and 0.4 <= mask["predicted_iou"] <= 0.8
            and mask["stability_score"] <= 0.9
        ),
    ),
]


@pytest.mark.browser
def test_filters_leave_the_masks_that_python_leaves(page: Any, annotations: Annotations) -> None:
    assert shown_cards(page) == {name: f"{len(annotations[name])} masks" for name in sorted(SIZES)}
    assert page.inner_text("#counts") == "8 images · 56 masks"
    for fields, passes in FILTERS:
        for field, value in fields.items():
            page.get_by_label(field, exact=True).fill(str(value))
        settle(page)
        left = {
            name: sum(passes(name, record) for record in annotations[name])
            for name in sorted(SIZES)
        }
        masks = sum(left.values())
        assert 0 < masks < 56
        images = sum(number > 0 for number in left.values())
        assert shown_cards(page) == {
            name: f"{number} of {len(annotations[name])} masks"
            for name, number in left.items()
            if number
        }
        of_images = "8" if images == 8 else f"{images} of 8"
        assert page.inner_text("#counts") == f"{of_images} images · {masks} of 56 masks"
        page.get_by_role("button", name="Clear filters").click()
        settle(page)
        assert len(shown_cards(page)) == 8


@pytest.mark.browser
def test_sliders_and_labels_filter_too(page: Any, annotations: Annotations) -> None:
    least = page.get_by_label("Predicted IoU, at least")
    slider = page.locator(".filter", has=least).locator("input[type=range]").first
    box = slider.bounding_box()
    page.mouse.move(box["x"] + 8, box["y"] + 8)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 8)
    page.mouse.up()
    settle(page)
    every = [record for records in annotations.values() for record in records]
    scores = [record["predicted_iou"] for record in every]
    bound = float(least.input_value())
    assert bound == pytest.approx((min(scores) + max(scores)) / 2, abs=0.02)
    passing = sum(score >= bound for score in scores)
    assert page.inner_text("#counts").endswith(f" {passing} of 56 masks")

    page.get_by_role("button", name="Clear filters").click()
    page.get_by_label(HOSTILE_LABEL).check()
    settle(page)
    assert shown_cards(page) == {f"{HOSTILE}.png": "3 of 8 masks"}
    page.get_by_label("cat").check()
    settle(page)
    assert shown_cards(page) == {f"{HOSTILE}.png": "8 of 8 masks"}

    page.get_by_label("Area in pixels, at least").fill("10000000")
    page.get_by_text("No mask passes the filters.").wait_for()
    page.locator("#empty").get_by_role("button").click()
    settle(page)
    assert len(shown_cards(page)) == 8


@pytest.mark.browser
def test_images_are_sorted(page: Any, annotations: Annotations) -> None:
    def shown_in(order: str) -> list[str]:
        page.get_by_label("Sort by").select_option(order)
        settle(page)
        return list(shown_cards(page))

    with_masks = [name for name in SIZES if annotations[name]]

    def sort(key: Callable[[str], float]) -> list[str]:
        return [*sorted(with_masks, key=key), "no mask.png"]

    assert shown_in("Lowest mean predicted IoU") == sort(
        lambda name: statistics.mean(mask["predicted_iou"] for mask in annotations[name])
    )
    assert shown_in("Largest mask") == sort(
        lambda name: -max(share(name, mask) for mask in annotations[name])
    )
    assert shown_in("Fewest masks")[0] == "no mask.png"
    assert shown_in("Most masks")[-1] == "no mask.png"


@pytest.mark.browser
@pytest.mark.parametrize("name", ["large.jpg", "folder/tall & thin.png", "gone.png"])
def test_clicked_mask_is_the_one_of_the_run(page: Any, annotations: Annotations, name: str) -> None:
    """Also where the page's masks are smaller than the run's, and if there is no preview."""
    open_image(page, name)
    width, height = SIZES[name]
    scale = min(1, 640 / max(width, height))
    size = round(width * scale), round(height * scale)
    records = annotations[name]
    masks = [decode_mask(record) for record in records]
    small = [
        cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_AREA) >= 0.5
        for mask in masks
    ]
    box = page.locator("#large").bounding_box()
    clicked = 0
    by_area = sorted(range(len(records)), key=lambda index: records[index]["area"])
    covered = np.zeros_like(small[0])
    for index in by_area:
        # Where the mask is the smallest, away from its edge.
        inside = cv2.erode((small[index] & ~covered).astype(np.uint8), np.ones((5, 5)))
        covered |= small[index]
        if not inside.any():
            continue
        clicked += 1
        y, x = np.argwhere(inside)[np.count_nonzero(inside) // 2]
        page.mouse.click(
            box["x"] + (x + 0.5) / size[0] * box["width"],
            box["y"] + (y + 0.5) / size[1] * box["height"],
        )
        settle(page)
        shown = highlighted(page)
        assert shown.shape == small[index].shape
        assert (shown & small[index]).sum() >= 0.95 * (shown | small[index]).sum()
        details = page.inner_text("#details")
        record = records[index]
        assert f"Mask {index + 1}" in details and f"{record['area']:,} px" in details
        assert f"{record['predicted_iou']:.3f}" in details
        assert f"{record['stability_score']:.3f}" in details
        x0, y0, box_width, box_height = record["bbox"]
        assert f"{box_width:,} × {box_height:,} at {x0:,}, {y0:,}" in details
        (pressed,) = page.locator("#list [aria-pressed=true]").all()
        assert f"Mask {index + 1}" in pressed.inner_text()
    assert clicked >= 4
    page.mouse.click(
        box["x"] + (x + 0.5) / size[0] * box["width"],
        box["y"] + (y + 0.5) / size[1] * box["height"],
    )
    settle(page)
    assert page.locator("#list [aria-pressed=true]").count() == 0


@pytest.mark.browser
def test_pointing_at_a_mask_highlights_it(page: Any, annotations: Annotations) -> None:
    open_image(page, "large.jpg")
    assert not highlighted(page).any()
    page.locator("#list button").first.hover()
    largest = max(annotations["large.jpg"], key=lambda record: record["area"])
    assert f"{largest['area']:,} px" in page.inner_text("#details")
    assert highlighted(page).mean() == pytest.approx(decode_mask(largest).mean(), abs=0.01)
    page.locator("#title").hover()
    assert not highlighted(page).any()
    assert "8 masks" in page.inner_text("#details")


@pytest.mark.browser
def test_keys_step_through_images_and_masks(page: Any) -> None:
    names = sorted(SIZES)
    page.locator(".card").first.focus()
    page.keyboard.press("Enter")
    assert page.inner_text("#title") == names[0]
    assert page.get_by_role("button", name="Previous image").is_disabled()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.inner_text("#title") == names[2]
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    assert page.inner_text("#title") == names[-1]
    for _ in range(6):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("#title") == names[1]
    for key, place in (("ArrowDown", 0), ("ArrowDown", 1), ("ArrowUp", 0), ("ArrowUp", -1)):
        page.keyboard.press(key)
        pressed = page.locator("#list [aria-pressed=true]")
        assert pressed.inner_text() == page.locator("#list button").nth(place).inner_text()
    page.keyboard.press("Escape")
    page.wait_for_function("name => document.activeElement.dataset.name === name", arg=names[1])
    page.keyboard.press("ArrowRight")
    assert page.locator("dialog[open]").count() == 0

    # A filter's images and masks are also those of the large view.
    page.get_by_label("Stability score, at least").fill("0.95")
    settle(page)
    cards = shown_cards(page)
    page.locator(".card:visible").last.click()
    assert page.inner_text("#title") == list(cards)[-1]
    assert page.locator("#list button").count() == int(list(cards.values())[-1].split()[0])
    assert page.get_by_role("button", name="Next image").is_disabled()


@pytest.mark.browser
def test_text_of_a_run_is_never_read_as_markup(page: Any) -> None:
    assert page.title() == "a run: masks"
    assert page.locator(".card strong", has_text=HOSTILE).inner_text() == f"{HOSTILE}.png"
    errors = page.locator("#errors")
    assert errors.get_by_role("heading").inner_text() == "2 images without a result"
    assert errors.get_by_role("listitem").all_inner_texts() == [
        f"{HOSTILE}\nno image",
        "b.png\nempty",
    ]
    open_image(page, HOSTILE)
    assert page.inner_text("#title") == f"{HOSTILE}.png"
    assert page.locator("#list").inner_text().count(HOSTILE_LABEL) == 3
    page.locator("#list button", has_text=HOSTILE_LABEL).first.click()
    assert HOSTILE_LABEL in page.inner_text("#details")
    assert page.evaluate("typeof hacked") == "undefined"
    policy = page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert page.locator("img[src=x]").count() == 0


@pytest.mark.browser
def test_images_without_a_preview_say_why(page: Any, images: Path) -> None:
    notes = {
        "gone.png": f"The image is missing: {images / 'gone.png'}",
        "changed.png": "The image has changed: 400 x 200 pixels instead of 200 x 100",
        "broken.png": f"The image cannot be read: {str(images / 'broken.png')!r} is not an image",
    }
    for name, note in notes.items():
        card = page.locator(".card", has_text=name)
        assert note in card.locator(".note").text_content()
        assert card.locator("img").is_hidden()
    assert page.locator(".card .note").count() == len(notes)


@pytest.mark.browser
def test_cards_show_previews_and_masks(page: Any, annotations: Annotations) -> None:
    name = "köpfe/ねこ 1.png"
    page.locator(".card", has_text=name).scroll_into_view_if_needed()
    page.locator(".card", has_text=name).locator("img").wait_for()
    canvas = page.locator(".card", has_text=name).locator("canvas")
    masks = [decode_mask(record) for record in annotations[name]]
    np.testing.assert_array_equal(painted(canvas), np.any(masks, axis=0))
    page.get_by_label("Show masks").uncheck()
    settle(page)
    assert canvas.evaluate("canvas => canvas.width") == 0
    open_image(page, name)
    assert page.locator("#masks").is_hidden()
    page.keyboard.press("m")
    assert page.locator("#masks").is_visible()
    np.testing.assert_array_equal(painted(page.locator("#masks")), np.any(masks, axis=0))
    page.keyboard.press("Escape")
    settle(page)
    np.testing.assert_array_equal(painted(canvas), np.any(masks, axis=0))


@pytest.mark.browser
def test_phone_and_dark(open_page: Callable[..., Any], run: Path) -> None:
    page = open_page(run / "view.html", viewport={"width": 360, "height": 740}, color_scheme="dark")
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", dark))) < 40
    assert page.get_by_label("Predicted IoU, at least").is_hidden()
    page.get_by_text("Filter masks").click()
    page.get_by_label("Predicted IoU, at least").fill("0.5")
    overflow = "document.documentElement.scrollWidth - innerWidth"
    assert page.evaluate(overflow) <= 0
    open_image(page, "large.jpg")
    assert page.evaluate(overflow) <= 0
    for part in ("#large", "#close", "#details", "#scrolled"):
        box = page.locator(part).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360, part
        assert box["y"] >= 0 and box["y"] + box["height"] <= 740, part


@pytest.mark.browser
def test_run_without_results_yet(
    tmp_path: Path, open_page: Callable[..., Any], capsys: Captured
) -> None:
    write_run(tmp_path / "run", {}, tmp_path)
    assert main(["view", str(tmp_path / "run"), "--out", str(tmp_path / "new/page.html")]) == 0
    assert "0 images, 0 masks" in capsys.readouterr().out
    page = open_page(tmp_path / "new" / "page.html")
    assert page.inner_text("#counts") == "0 images · 0 masks"
    page.get_by_text("There is no image in this run yet.").wait_for()
    assert page.locator("#filters").is_hidden()


@pytest.mark.browser
def test_limit_is_told_and_spread(
    tmp_path: Path, run: Path, open_page: Callable[..., Any], capsys: Captured
) -> None:
    out = tmp_path / "view.html"
    assert main(["view", str(run), "--limit", "3", "--out", str(out)]) == 0
    assert "3 of 8 images, 16 masks" in capsys.readouterr().out
    page = open_page(out)
    names = sorted(SIZES)
    assert list(shown_cards(page)) == [names[0], names[4], names[7]]
    assert "Showing 3 of the run's 8 images" in page.inner_text("#limited")


def entries(page: Path) -> list[dict[str, Any]]:
    """The images in a page, as its script reads them."""
    found = re.findall(r'data-kind="image">(.*?)</script>', page.read_text(encoding="utf-8"))
    return [json.loads(entry) for entry in found]


def test_coco_shows_the_same(
    tmp_path: Path, run: Path, images: Path, annotations: Annotations
) -> None:
    categories = [{"id": 1, "name": "object"}, {"id": 2, "name": "cat"}]
    categories.append({"id": 3, "name": HOSTILE_LABEL})
    ids = {category["name"]: category["id"] for category in categories}
    coco: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    for image_id, (name, records) in enumerate(annotations.items(), start=1):
        width, height = SIZES[name]
        image = {"id": image_id, "file_name": name, "width": width, "height": height}
        coco["images"].append(image)
        for record in records:
            category = ids[record.get("category", "object")]
            coco["annotations"].append(record | {"image_id": image_id, "category_id": category})
    (tmp_path / "instances.json").write_text(json.dumps(coco))
    write_view(run, tmp_path / "sa1b.html")
    write_view(tmp_path, images=images)
    expected = entries(tmp_path / "sa1b.html")
    for entry in expected:
        for mask in entry["masks"]:
            mask.setdefault("label", "object")
    shown = entries(tmp_path / "view.html")
    assert len(shown) == 8
    assert [entry.pop("note") is None for entry in shown] == [
        entry.pop("note") is None for entry in expected
    ]
    assert shown == expected


def test_folders_of_everything_mode(tmp_path: Path, images: Path, annotations: Annotations) -> None:
    for name in ("köpfe/ねこ 1.png", "no mask.png"):
        pixels = np.asarray(Image.open(images / name))
        write_results(tmp_path / "run" / Path(name).stem, pixels, annotations[name])
    view = write_view(tmp_path / "run")
    assert (view.shown, view.total, view.masks, view.without_preview) == (2, 2, 8, 0)
    view = write_view(tmp_path / "run", tmp_path / "originals.html", images=images)
    assert (view.shown, view.without_preview) == (2, 1)  # one is in a folder of its own
    shown = entries(tmp_path / "originals.html")
    assert [entry["name"] for entry in shown] == ["no mask", "ねこ 1"]


def test_a_json_beside_an_image_is_not_the_image(
    tmp_path: Path, images: Path, annotations: Annotations
) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    shutil.copy(images / "no mask.png", folder / "photo.png")
    (folder / "photo.json").write_text('{"version": "5.5.0"}')
    pixels = np.asarray(Image.open(folder / "photo.png"))
    write_results(tmp_path / "run" / "photo", pixels, annotations["no mask.png"])
    assert write_view(tmp_path / "run", images=folder).without_preview == 0


def test_previews_are_of_the_image_that_a_folder_is_of(
    tmp_path: Path, images: Path, annotations: Annotations
) -> None:
    photo = tmp_path / "photos" / "a.png"
    photo.parent.mkdir()
    shutil.copy(images / "no mask.png", photo)
    pixels = np.asarray(Image.open(photo))
    folder = claim_folder(tmp_path / "run", photo)
    write_results(folder, pixels, annotations["no mask.png"])
    Image.new("RGB", pixels.shape[1::-1], "red").save(folder / "overlay.png")

    def redness() -> float:
        assert write_view(tmp_path / "run").without_preview == 0
        (entry,) = entries(tmp_path / "run" / "view.html")
        with fsspec.open(entry["preview"], "rb") as file:
            shown = np.asarray(Image.open(file), dtype=float)
        return float(shown[..., 0].mean() - shown[..., 1:].mean())

    assert redness() < 100
    photo.rename(tmp_path / "moved.png")
    assert redness() > 200  # the overlay stands in


def test_names_of_folders_as_a_shell_and_fsspec_have_them(
    tmp_path: Path, images: Path, annotations: Annotations, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    pixels = np.asarray(Image.open(images / "no mask.png"))
    write_results(tmp_path / "run" / "a", pixels, annotations["no mask.png"])
    expected = str(tmp_path / "run" / "view.html")
    for place in (f"file://{tmp_path}/run", "~/run"):
        assert write_view(place).path == expected and Path(expected).is_file()
        Path(expected).unlink()
    for out in (f"file://{tmp_path}/new/page.html", "~/new/page.html"):
        assert write_view(tmp_path / "run", out).path == str(tmp_path / "new" / "page.html")
        (tmp_path / "new" / "page.html").unlink()
    write_view(tmp_path / "run", images=f"file://{images}")


def test_polygons_of_coco(tmp_path: Path) -> None:
    mask = np.zeros((40, 60), dtype=bool)
    mask[10:30, 20:50] = True
    masks = np.array([mask, mask & False])
    objects = Instances((40, 60), boxes_of(masks), masks, np.ones(2, np.float32), ["a", "a"])
    content = objects.to_coco()
    for annotation, segmentation in zip(
        content["annotations"], ([[20, 10, 50, 10, 50, 30, 20, 30]], []), strict=True
    ):
        annotation["segmentation"] = segmentation
    (tmp_path / "instances.json").write_text(json.dumps(content))
    assert write_view(tmp_path).masks == 2
    (entry,) = entries(tmp_path / "view.html")
    rles = [{"size": [40, 60], "counts": shown["counts"]} for shown in entry["masks"]]
    np.testing.assert_array_equal([decode_mask({"segmentation": rle}) for rle in rles], masks)


def test_frames_of_a_video(tmp_path: Path) -> None:
    writer = cv2.VideoWriter(
        str(tmp_path / "video.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48)
    )
    for shade in range(0, 200, 20):
        writer.write(np.full((48, 64, 3), shade, dtype=np.uint8))
    writer.release()
    folder = tmp_path / "run" / "sa1b"
    folder.mkdir(parents=True)
    about = {"source": "video", "image_root": str(tmp_path / "video.avi")}
    (tmp_path / "run" / "run.json").write_text(json.dumps(about))
    for frame in ("000002", "000007", "000099"):
        image = {"image_id": 1, "file_name": frame, "width": 64, "height": 48}
        (folder / f"{frame}.json").write_text(json.dumps({"image": image, "annotations": []}))
    view = write_view(tmp_path / "run")
    assert (view.shown, view.without_preview) == (3, 1)
    shown = entries(tmp_path / "run" / "view.html")
    for entry, shade in zip(shown, (40, 140), strict=False):
        with fsspec.open(entry["preview"], "rb") as file:
            assert np.asarray(Image.open(file)).mean() == pytest.approx(shade, abs=3)
    assert "frame 000099" in shown[2]["note"]


def test_run_and_images_on_another_file_system(
    run: Path, images: Path, annotations: Annotations
) -> None:
    files = fsspec.filesystem("memory")
    files.put(str(run / "sa1b"), "/viewed/run/sa1b", recursive=True)
    files.put(str(images), "/viewed/images", recursive=True)
    view = write_view("memory://viewed/run", images="memory://viewed/images")
    assert view.path == "memory://viewed/run/view.html"
    assert (view.shown, view.without_preview) == (8, 3)
    assert files.size("/viewed/run/view.html") == view.size
    with pytest.raises(ValueError, match="holds no run"):
        write_view("memory://viewed/images")
    files.rm("/viewed", recursive=True)


def test_previews_and_tiny_masks_in_the_page(tmp_path: Path) -> None:
    """A preview of noise has at most 64 kB, and a mask of one pixel stays visible."""
    folder = tmp_path / "sa1b"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(256, size=(2000, 2000, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png", compress_level=0)
    mask = np.zeros((2000, 2000), dtype=bool)
    mask[1500, 700] = True
    record = {"segmentation": encode_mask(mask), "area": 1, "bbox": [700, 1500, 0, 0]}
    image = {"image_id": 1, "file_name": "noise.png", "width": 2000, "height": 2000}
    (folder / "noise.json").write_text(json.dumps({"image": image, "annotations": [record]}))
    write_view(tmp_path)
    (entry,) = entries(tmp_path / "view.html")
    assert entry["shown"] == [640, 640]
    assert len(entry["preview"]) < 64_000 * 4 / 3 + 100
    small = decode_mask(
        {"segmentation": {"size": [640, 640], "counts": entry["masks"][0]["counts"]}}
    )
    assert np.argwhere(small).tolist() == [[480, 224]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["photographs"], "'photographs' holds no run: there is no run.json"),
        (["nowhere"], "there is no folder 'nowhere'"),
        (["photographs/a.png"], "'photographs/a.png' is not a folder: give the folder of a run"),
        (["photographs", "--limit", "0"], "--limit"),
    ],
)
def test_mistakes_end_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Captured,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photographs").mkdir()
    Path("photographs", "a.png").touch()
    assert main(["view", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert os.listdir("photographs") == ["a.png"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a dict"),
        ('{"image": {}}', "is not a JSON of SA-1B"),
        (
            '{"image": {"file_name": "a", "width": 9, "height": 9}, "annotations": [{"area": 1}]}',
            "a mask of 'a' is damaged",
        ),
    ],
)
def test_damaged_result_leaves_the_earlier_page(
    tmp_path: Path, capsys: Captured, content: str, message: str
) -> None:
    (tmp_path / "sa1b").mkdir()
    (tmp_path / "sa1b" / "a.json").write_text(content)
    (tmp_path / "view.html").write_text("earlier")
    assert main(["view", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "view.html").read_text() == "earlier"
    assert sorted(os.listdir(tmp_path)) == ["sa1b", "view.html"]


def test_damaged_description_of_a_run(tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "run.json").write_text('{"options": "none"}')
    assert main(["view", str(tmp_path)]) == 2
    assert "run.json' is not a run's" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["run.json"]


def test_images_that_moved_are_found(tmp_path: Path, run: Path, images: Path) -> None:
    shutil.copytree(images, tmp_path / "moved")
    shutil.copytree(run, tmp_path / "run")
    about = json.loads((run / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {"image_root": "/nowhere"}))
    assert write_view(tmp_path / "run").without_preview == 8
    assert write_view(tmp_path / "run", images=tmp_path / "moved").without_preview == 3
