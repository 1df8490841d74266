"""What annotate takes in: names that are looked up, texts as people write them, boxes of COCO."""

import io
import json
import os
import pickle
import signal
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from PIL import Image

from mobile_sam_plugin import MobileSam, annotate
from mobile_sam_plugin.annotation import AnnotationOptions, AnnotationRun, open_source
from mobile_sam_plugin.annotation.coco import place_boxes
from mobile_sam_plugin.annotation.items import BoxPrompt, Item, Source
from mobile_sam_plugin.annotation.storage import Folder
from mobile_sam_plugin.annotation.view import _make_loader
from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.images import load_image

PIXELS = np.full((40, 60, 3), 90, np.uint8)


def png() -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    return file.getvalue()


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png())
    return path


def items(source: Source) -> list[Item]:
    return [*source.items(lambda _: True)]


def keys(source: Any, **options: Any) -> list[str]:
    """The keys of a source, all of whose images can be read."""
    found = items(open_source(source, **options))
    for item in found:
        assert item.load().shape == PIXELS.shape
    return [item.key for item in found]


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    """Fsspec's file system in memory, empty."""
    fs = fsspec.filesystem("memory")
    fs.store.clear()
    yield fs
    fs.store.clear()


# names


@pytest.mark.parametrize("name", ["clip.mp4", "set.json", "list.txt", "v1.2"])
def test_a_folder_is_one_whatever_its_name(
    tmp_path: Path, memory: MemoryFileSystem, name: str
) -> None:
    save(tmp_path / name / "1.png")
    memory.pipe(f"/bucket/{name}/1.png", png())
    assert keys(tmp_path / name) == keys(f"memory://bucket/{name}") == ["1.png"]


def test_a_file_with_brackets_in_its_name_is_no_pattern(
    tmp_path: Path, memory: MemoryFileSystem
) -> None:
    for name in ("photo[1].png", "what?.png"):
        memory.pipe(f"/x/{name}", png())
        assert keys(f"memory://x/{name}") == [name]
        assert keys(save(tmp_path / name)) == [name]
    assert keys("memory://x/*.png") == ["photo[1].png", "what?.png"]


def test_what_is_left_out_of_a_folder_is_told_by_kind(
    tmp_path: Path, memory: MemoryFileSystem
) -> None:
    files = ["a.png", "sub/b.PNG", "c.h5", "d.mpg", "sub/e.eps", "f.eps", "._a.png", "notes"]
    for name in [*files, ".git/g.png"]:
        save(tmp_path / "in" / name)
        memory.pipe(f"/in/{name}", png())
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "in" / "sub")
    with pytest.warns(UserWarning, match="8 files are left out: 2 .eps") as told:
        source = open_source(tmp_path / "in")
    kinds = {".eps": 2, ".h5": 1, ".mpg": 1, "hidden": 1, "without a suffix": 1}
    assert source.skipped == kinds | {"hidden folder": 1, "link to a folder": 1}
    assert len(told) == 1 and [item.key for item in items(source)] == ["a.png", "sub/b.PNG"]
    with pytest.warns(UserWarning, match="6 files are left out"):
        source = open_source("memory://in")
    assert source.skipped == kinds
    assert [item.key for item in items(source)] == ["a.png", "sub/b.PNG"]
    with pytest.warns(UserWarning, match="1 .mpg"):
        assert open_source(f"{tmp_path}/in/*").skipped == {
            ".eps": 1,
            ".h5": 1,
            ".mpg": 1,
            "without a suffix": 1,
        }


def test_heic_is_told_of_where_it_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mobile_sam_plugin import images

    formats = tuple(name for name in images.image_formats() if name != "HEIF")
    suffixes = images.image_suffixes() - {".heic", ".heif"}
    monkeypatch.setattr(images, "image_formats", lambda: formats)
    monkeypatch.setattr(images, "image_suffixes", lambda: suffixes)
    save(tmp_path / "a.png")
    save(tmp_path / "b.HEIC")
    with pytest.warns(UserWarning, match=r"1 \.heic \(which pip install .*heic"):
        assert open_source(tmp_path).skipped == {".heic": 1}


@pytest.mark.parametrize("out", ["in/out", "in"])
def test_results_are_no_images(tmp_path: Path, memory: MemoryFileSystem, out: str) -> None:
    """Whether their folder is below the images, or that of the images itself."""
    for name in ("in/a.png", f"{out}/overlays/a.jpg", f"{out}/ids/a.png", f"{out}/run.json"):
        save(tmp_path / name)
        memory.pipe(f"/{name}", png())
    for source in (f"{tmp_path}/in", f"{tmp_path}/in/**/*.*g"):
        assert keys(source, exclude=f"{tmp_path}/{out}") == ["a.png"]
    for source in ("memory://in", "memory://in/**/*.*g"):
        assert keys(source, exclude=f"memory://{out}") == ["a.png"]


# URLs


def test_urls_are_opened_as_they_were_given(tmp_path: Path, memory: MemoryFileSystem) -> None:
    memory.pipe("/b/photos/a.png", png())
    memory.pipe("/b/photos/c.png", png())
    memory.pipe("/b/lists/one.txt", b"../photos/a.png\n./../photos/c.png\n")
    source = open_source("memory://b/lists/one.txt")
    assert source.root == "memory://b/photos"
    assert [item.path for item in items(source)] == [
        "memory://b/photos/a.png",
        "memory://b/photos/c.png",
    ]
    assert keys("memory://b/lists/one.txt") == ["a.png", "c.png"]

    urls = ["s3://b/p//x.jpg", "s3://b/p//sub/./y.jpg"]
    assert [(item.key, item.path) for item in items(_from_list(tmp_path, urls))] == [
        ("x.jpg", urls[0]),
        ("sub/y.jpg", urls[1]),
    ]


def _from_list(folder: Path, lines: list[str]) -> Source:
    (folder / "list.txt").write_text("\n".join(lines))
    return open_source(folder / "list.txt")


def test_queries_are_identities_where_the_path_is_none(tmp_path: Path) -> None:
    urls = [
        "https://h/img?u=https://o/x.jpg",
        "https://h/img?u=https://o/y.jpg",
        f"https://h/signed.jpg?X-Amz-Signature={'x' * 240}",
        "https://h/v.png?w=1",
        "https://h/v.png?w=2",
    ]
    found = items(_from_list(tmp_path, urls))
    assert [item.path for item in found] == urls
    keys = [item.key for item in found]
    assert keys[2] == "signed.jpg" and len({*keys}) == 5
    assert all("/" not in key and len(key) < 200 for key in keys), keys
    with pytest.raises(UserError, match="listed twice"):
        _from_list(tmp_path, [urls[0], urls[0]])


def test_images_in_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as archive:
        for name in ("photos/a.png", "photos/deep/b.png"):
            archive.writestr(name, png())
        archive.writestr("list.txt", "photos/a.png\n")
    monkeypatch.chdir(tmp_path)
    assert keys("zip://photos::p.zip") == ["a.png", "deep/b.png"]
    assert keys("zip://photos/*.png::p.zip") == ["a.png"]
    assert keys("zip://list.txt::p.zip") == ["a.png"]
    source = open_source("zip://photos::p.zip")
    (item, _) = items(source)
    assert item.path == f"zip://photos/a.png::{tmp_path}/p.zip"  # for workers in other folders
    assert _make_loader(source.root)(item.key).shape == PIXELS.shape  # the page's


class Unreliable(MemoryFileSystem):
    """Fails in ways of its own, as back ends do: a file each time, or the first time."""

    protocol = "unreliable"
    asked: ClassVar[dict[str, int]] = {}

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("unreliable://", "memory://"))
        return stripped

    def cat_file(self, path: str, *args: Any, **options: Any) -> bytes:
        self.asked[path] = 1 + self.asked.get(path, 0)
        if "forbidden" in path:
            error = Exception("403, message='Forbidden'")
            error.status = 403  # type: ignore[attr-defined]
            raise error
        if "late" in path and self.asked[path] == 1:
            raise Exception("503, message='Slow Down'")
        content: bytes = super().cat_file(path, *args, **options)
        return content


def test_one_bad_url_is_the_error_of_its_image(
    tmp_path: Path, memory: MemoryFileSystem, tiny_sam: MobileSam
) -> None:
    fsspec.register_implementation("unreliable", Unreliable, clobber=True)
    Unreliable.asked.clear()
    for name in ("a", "forbidden", "late"):
        memory.pipe(f"/in/{name}.png", png())
    urls = [f"unreliable://in/{name}.png" for name in ("a", "forbidden", "late", "missing")]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    options: Any = {"model": tiny_sam, "points_per_side": 1}
    results = [*annotate(tmp_path / "list.txt", tmp_path / "out", **options)]
    assert [result.error is None for result in results] == [True, False, True, False]
    assert "403" in str(results[1].error) and urls[1] in str(results[1].error)
    assert [*Unreliable.asked.values()] == [1, 1, 2, 1]
    errors = (tmp_path / "out" / "errors.jsonl").read_text().splitlines()
    assert [json.loads(line)["file_name"] for line in errors] == ["forbidden.png", "missing.png"]


# texts


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_lists_and_jsons_are_read_as_they_are_written(
    tmp_path: Path, memory: MemoryFileSystem, encoding: str
) -> None:
    for name in ("one.png", "sub/zwei ü.png", "back\\slash.png", "#3.png", "in\x85side.png"):
        save(tmp_path / name)
    lines = [
        "# a comment",
        '"one.png"',
        "sub\\zwei ü.png",
        "back\\slash.png",
        "#3.png",
        "in\x85side.png",
        "",
    ]
    expected = ["one.png", "sub/zwei ü.png", "back\\slash.png", "#3.png", "in\x85side.png"]
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "list.txt").write_bytes(end.join(lines).encode(encoding))
        assert keys(tmp_path / "list.txt") == expected
    names = ["one.png", "sub\\zwei ü.png", "back\\slash.png", f"{tmp_path}/#3.png"]
    content = json.dumps(
        {"images": [{"id": i, "file_name": name} for i, name in enumerate(names)]},
        ensure_ascii=False,
    )
    (tmp_path / "boxes.json").write_bytes(content.encode(encoding))
    assert keys(tmp_path / "boxes.json") == expected[:4]
    memory.pipe("/d/sub/two.png", png())
    memory.pipe("/d/list.txt", "sub\\two.png".encode(encoding))
    assert keys("memory://d/list.txt") == ["two.png"]


def test_bytes_that_are_no_utf8_stay_in_names(tmp_path: Path) -> None:
    name = os.fsdecode(b"latin1_\xe9.png")
    save(tmp_path / name)
    (tmp_path / "list.txt").write_bytes(b"latin1_\xe9.png\n")
    assert keys(tmp_path / "list.txt") == [name]


# COCO


def open_coco(
    folder: Path, images: list[Any], annotations: list[Any], categories: Any = None
) -> Source:
    save(folder / "0.png")
    listed = [{"file_name": f"{index}.png", **image} for index, image in enumerate(images)]
    content = {"images": listed, "annotations": annotations, "categories": categories or []}
    (folder / "boxes.json").write_text(json.dumps(content))
    return open_source(folder / "boxes.json")


def box(**changes: Any) -> dict[str, Any]:
    return {"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], **changes}


CAT = [{"id": 1, "name": "cat"}]


@pytest.mark.parametrize(
    ("images", "references", "expected"),
    [
        ([1, 2], [1, 2, 2], {1: 1, 2: 2}),
        (["1", "2"], ["1", "2", "2"], {1: 1, 2: 2}),
        (["1", "2"], [1, 2, 2], {1: 1, 2: 2}),
        ([1, 2], ["1", "2", 2.0], {1: 1, 2: 2}),
        ([1, "1"], [1, "1", "1"], {1: 1, 2: 2}),  # each kind with itself; numbered
        (["b.7", "a"], ["b.7", "a", "a"], {1: 1, 2: 2}),
        ([0, -3], [0, -3, -3], {0: 1, -3: 2}),
    ],
    ids=str,
)
def test_ids_are_text_or_numbers(
    tmp_path: Path, images: list[Any], references: list[Any], expected: dict[int, int]
) -> None:
    annotations = [box(id=i, image_id=image_id) for i, image_id in enumerate(references)]
    source = open_coco(tmp_path, [{"id": value} for value in images], annotations, CAT)
    assert {item.image_id: len(item.boxes) for item in items(source)} == expected


def test_annotations_of_no_use_are_told_by_kind(tmp_path: Path) -> None:
    annotations = [
        box(),
        box(id=2, image_id=77),
        box(id=3, image_id="none"),
        box(id=4, iscrowd=1),
        {"id": 5, "image_id": 1},
    ]
    with pytest.warns(UserWarning, match="4 annotations are left out: 2 of images that are not"):
        source = open_coco(tmp_path, [{"id": 1}], annotations, CAT)
    assert source.skipped == {
        "of images that are not listed": 2,
        "of crowds": 1,
        "without a bbox": 1,
    }


def test_categories_and_annotations_may_have_ids_of_text(tmp_path: Path) -> None:
    categories = [{"id": "cat", "name": "Cat"}, {"id": "dog", "name": "Dog"}]
    annotations = [
        box(id="x", category_id="dog"),
        box(id="y", category_id="cat"),
        {"image_id": 1, "bbox": [0, 0, 5, 5], "category_id": "cow"},
    ]
    with pytest.warns(UserWarning, match="lists no category for 1 of its boxes"):
        source = open_coco(tmp_path, [{"id": 1}], annotations, categories)
    (item,) = items(source)
    assert source.categories == {1: "Cat", 2: "Dog", 3: "cow"}
    assert [prompt.category_id for prompt in item.boxes] == [2, 1, 3]
    assert [prompt.number for prompt in item.boxes] == [None, None, None]


@pytest.mark.parametrize(
    ("image", "annotation", "words"),
    [
        ({"id": 1.5}, box(), "1.5"),
        ({"id": True}, box(), "True"),
        ({"id": 2**63}, box(), "too large"),
        ({"id": 1}, box(id=2**70), "too large"),
        ({"id": 1, "width": -4, "height": 3}, box(), "-4 x 3"),
        ({"id": 1, "width": 10**400, "height": 3}, box(), "is not COCO's"),
    ],
    ids=str,
)
def test_ids_and_sizes_that_cannot_be_are_refused(
    tmp_path: Path, image: Any, annotation: Any, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        open_coco(tmp_path, [image], [annotation], CAT)


def test_ids_without_room_for_those_of_masks_are_refused_at_the_door(
    tmp_path: Path, tiny_sam: MobileSam
) -> None:
    source = open_coco(tmp_path, [{"id": 20240131123456}], [box(image_id=20240131123456)], CAT)
    with pytest.raises(UserError, match="20240131123456 is too large"):
        AnnotationRun(source, tmp_path / "out", tiny_sam, AnnotationOptions(formats=("parquet",)))
    run = AnnotationRun(
        source, tmp_path / "out", tiny_sam, AnnotationOptions("boxes", ("parquet",))
    )
    assert [result.image_id for result in run.run()] == [20240131123456]
    assert (tmp_path / "out" / "masks.parquet").exists()


def place(
    bbox: Any, declared: Any, size: tuple[int, int], orientation: int = 1
) -> tuple[list[float], list[str]]:
    boxes = [BoxPrompt(1, 1, 1, bbox)]
    _, corners, skipped = place_boxes(boxes, declared, size, lambda: orientation)
    return corners.ravel().tolist(), [entry["reason"] for entry in skipped]


@pytest.mark.parametrize("declared", [None, (90, 60), (900, 600), (45, 30), (33, 22), (900, 601)])
def test_boxes_are_scaled_from_the_size_that_the_json_declares(declared: Any) -> None:
    width, height = declared or (90, 60)
    bbox = [width / 9, height / 6, width / 3, height / 2]
    assert place(bbox, declared, (60, 90))[0] == pytest.approx([10, 10, 40, 40])


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("scale", [1, 10])
def test_boxes_are_turned_with_their_image(tmp_path: Path, orientation: int, scale: int) -> None:
    """A rectangle in the image as it is stored, and its box in that frame or the upright one."""
    stored = np.zeros((60, 90, 3), np.uint8)
    stored[10:30, 20:70] = 255
    exif = Image.Exif()
    exif[0x112] = orientation
    Image.fromarray(stored).save(tmp_path / "0.png", exif=exif)
    upright = load_image(tmp_path / "0.png")
    bbox, declared = [20, 10, 50, 20], (90 * scale, 60 * scale)
    if orientation in (2, 3, 4):  # the two frames have one size: the upright one is meant
        ys, xs = np.nonzero(upright[..., 0])
        bbox = [xs.min(), ys.min(), 50, 20]
    content = {
        "images": [{"id": 1, "file_name": "0.png", "width": declared[0], "height": declared[1]}],
        "annotations": [box(bbox=[int(side) * scale for side in bbox])],
        "categories": CAT,
    }
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    from mobile_sam_plugin.annotation.stages import load

    (item,) = items(open_source(tmp_path / "boxes.json"))
    loaded = load(item, 224)
    assert loaded.error is None and loaded.boxes is not None
    ys, xs = np.nonzero(upright[..., 0])
    expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    assert loaded.boxes.tolist() == [pytest.approx(expected)]


@pytest.mark.parametrize("declared", [(60, 90), (100, 100), (90, 64)])
def test_boxes_of_another_aspect_are_refused_with_both_sizes(declared: tuple[int, int]) -> None:
    with pytest.raises(
        UserError, match=f"{declared[0]} x {declared[1]} pixels, the image has 90 x 60"
    ):
        place([1, 2, 3, 4], declared, (60, 90))


@pytest.mark.parametrize(
    ("bbox", "reason"),
    [
        ([5000, 5000, 30, 30], "outside of the image"),
        ([-50, 5, 50, 30], "outside of the image"),
        ([20, 10, 0, 0], "without area"),
        ([60, 40, -40, -30], "without area"),
        ([], "not four numbers"),
        ([1, 2, 3], "not four numbers"),
        (["a", 1, 2, 3], "not four numbers"),
        (7, "not four numbers"),
        ([1, 2, float("nan"), 4], "not finite"),
        ([1, 2, 1e400, 4], "not finite"),
    ],
    ids=str,
)
def test_boxes_that_cannot_be_used_are_left_out_one_by_one(bbox: Any, reason: str) -> None:
    assert place(bbox, None, (60, 90)) == ([], [reason])


def test_what_reaches_far_beyond_the_image_is_cut() -> None:
    assert place([-1e38, 10, 2e38, 20], None, (60, 90)) == ([-90, 10, 180, 30], [])


def test_boxes_that_are_left_out_are_told_and_the_others_are_kept(
    tmp_path: Path, tiny_sam: MobileSam
) -> None:
    annotations = [
        box(id=7, bbox=[500, 500, 9, 9]),
        box(id=8, bbox=[5, 5, 30, 20]),
        box(id=9, bbox=[5, 5, 0, 20]),
    ]
    source = open_coco(tmp_path, [{"id": 1}], annotations, CAT)
    run = AnnotationRun(source, tmp_path / "out", tiny_sam, AnnotationOptions("boxes"))
    with pytest.warns(UserWarning, match="1 box outside of the image, 1 box without area"):
        (result,) = run.run()
    assert [record["id"] for record in result.records] == [8]
    assert [(entry["annotation"], entry["reason"]) for entry in result.skipped_boxes] == [
        (7, "outside of the image"),
        (9, "without area"),
    ]
    assert run.skipped == {"box outside of the image": 1, "box without area": 1}
    record = json.loads((tmp_path / "out" / "sa1b" / "0.json").read_text())
    assert record["skipped_boxes"] == result.skipped_boxes


# the folder for results


def test_a_second_run_in_the_folder_leaves_partial_files_alone(tmp_path: Path) -> None:
    with Folder(tmp_path).create("sa1b/x.json") as file:
        file.write(b"{}")
        Folder(tmp_path).remove_partial()
    assert (tmp_path / "sa1b" / "x.json").read_bytes() == b"{}"
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        context = Folder(tmp_path).create("a")
        context.__enter__()
        os.write(writing, b".")
        signal.pause()
    os.read(reading, 1)
    Folder(tmp_path).remove_partial()
    assert len([*(tmp_path / ".partial").iterdir()]) == 1
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    Folder(tmp_path).remove_partial()
    assert not (tmp_path / ".partial").exists()


def test_a_worker_in_another_folder_writes_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    sent = pickle.dumps(Folder("out"))
    monkeypatch.chdir(tmp_path / "there")
    pickle.loads(sent).write("a.json", b"{}")
    assert [*tmp_path.rglob("a.json")] == [tmp_path / "here" / "out" / "a.json"]
