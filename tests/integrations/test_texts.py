"""Phrases and class names in texts."""

from typing import Any

import pytest

from mobile_sam_plugin.errors import UserError
from mobile_sam_plugin.integrations.texts import split_text


@pytest.mark.parametrize(
    ("prompts", "expected"),
    [
        ("a dog. the red car.", ["a dog", "the red car"]),
        ("dog . cat", ["dog", "cat"]),
        ("A Dog", ["A Dog"]),
        ("DOG.", ["DOG"]),
        ("dog, cat; a red\tcar\n\ntree\r\n", ["dog", "cat", "a red car", "tree"]),
        ("狗。猫。", ["狗", "猫"]),
        ("犬、猫，鳥；魚．", ["犬", "猫", "鳥", "魚"]),
        ("कुत्ता। बिल्ली।", ["कुत्ता", "बिल्ली"]),
        ("كلب، قطة؛ طائر۔", ["كلب", "قطة", "طائر"]),
        ("a 3.5 inch disk. no. 5.", ["a 3.5 inch disk", "no", "5"]),
        ("version 2.a cat.5", ["version 2", "a cat", "5"]),
        ("a ３．５ inch disk", ["a ３．５ inch disk"]),
        (["St. Bernard", "cat"], ["St. Bernard", "cat"]),
        ([" a dog. ", "the red  car . tree", "salt, pepper"],
         ["a dog", "the red car . tree", "salt, pepper"]),
        (("a dog",), ["a dog"]),
    ],
    ids=str,
)  # fmt: skip
def test_split_text(prompts: Any, expected: list[str]) -> None:
    assert split_text(prompts) == expected


def test_prompts_that_are_none() -> None:
    for prompts in ("", " . ", ",\n", ["a dog", " "], ["."], []):
        with pytest.raises(UserError, match="name the objects to detect"):
            split_text(prompts)
    for twice in ("a dog. A dog.", "a dog, a  dog", ["a dog", "a dog."]):
        with pytest.raises(UserError, match="'[Aa] dog' is given twice"):
            split_text(twice)
    with pytest.raises(TypeError, match="text must be .* list of texts: item 1 .* not int"):
        split_text(["a dog", 3])  # type: ignore[list-item]
    wrong: Any
    for wrong in (None, 5, b"a dog", {"a dog": 1}):
        kind = type(wrong).__name__
        with pytest.raises(TypeError, match=f"text must be a text or a list .* not {kind}"):
            split_text(wrong)
