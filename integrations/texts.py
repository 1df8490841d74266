"""Phrases and class names in texts."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mobile_sam_plugin.errors import UserError

# Latin, Chinese and Japanese marks, also in full and half width; those of Devanagari, Urdu,
# Armenian, Ethiopic, Burmese, Khmer and Tibetan; and the commas and semicolons of Arabic.
_FULL_STOPS = ".。．｡।॥۔։።။។།"
_COMMAS_AND_LINE_ENDS = ",;，；、､،؛\n\r\v\f\x85\u2028\u2029"
_ENDS = f"{_FULL_STOPS}{_COMMAS_AND_LINE_ENDS} \t"

_BETWEEN_CLASSES = re.compile(f"[{_COMMAS_AND_LINE_ENDS}]")
# Not in "a 3.5 inch disk".
_BETWEEN_PHRASES = re.compile(
    rf"[{_COMMAS_AND_LINE_ENDS}]|(?<!\d)[{_FULL_STOPS}]|[{_FULL_STOPS}](?!\d)"
)


def split_text(text: str | Iterable[str]) -> list[str]:
    """Returns the phrases in a text or a list.

    In a text, full stops, commas, semicolons and line ends of any script separate phrases; a full
    stop between digits does not. Each item of a list is one phrase, whatever it contains.

    Examples:
        >>> split_text("a dog. the red car, a 3.5 inch disk")
        ['a dog', 'the red car', 'a 3.5 inch disk']
        >>> split_text(["a St. Bernard", "a cat."])
        ['a St. Bernard', 'a cat']

    Raises:
        TypeError: if ``text`` is neither a text nor a list of texts.
        UserError: if there is no phrase, or one is empty or repeated.
    """
    if isinstance(text, str):
        phrases = [phrase for phrase in map(_trim, _BETWEEN_PHRASES.split(text)) if phrase]
        if not phrases:
            raise UserError(f"the text {text!r} is empty: name the objects to detect")
    else:
        items = check_texts("text", text, "a text or a list of texts")
        phrases = [_trim(item) for item in items]
        if "" in phrases:
            empty = items[phrases.index("")]
            raise UserError(f"the text {empty!r} is empty: name the objects to detect")
        if not phrases:
            raise UserError("the list of texts is empty: name the objects to detect")
    seen: set[str] = set()
    for phrase in phrases:
        if phrase.lower() in seen:
            raise UserError(f"the text {phrase!r} is given twice")
        seen.add(phrase.lower())
    return phrases


def split_classes(text: str) -> list[str]:
    """Returns the names in a text, separated by commas, semicolons and line ends of any script.

    Full stops do not separate names: "St. Bernard". An empty name between two commas is returned,
    since the position of a name counts.
    """
    names = [name.strip() for name in _BETWEEN_CLASSES.split(text.strip())]
    return names[:-1] if len(names) > 1 and not names[-1] else names


def check_texts(name: str, texts: Any, expected: str = "a list of texts") -> list[str]:
    """Returns texts as a list.

    Args:
        name: name of the argument, for the message.
        texts: the argument.
        expected: what it should be, for the message.

    Raises:
        TypeError: if it is not an iterable of str.
    """
    if isinstance(texts, str | bytes | Mapping) or not isinstance(texts, Iterable):
        raise TypeError(f"{name} must be {expected}, not {_describe(texts)}")
    items = list(texts)
    for place, item in enumerate(items):
        if not isinstance(item, str):
            raise TypeError(
                f"{name} must be {expected}: item {place} must be a text, not {_describe(item)}"
            )
    return items


def _trim(phrase: str) -> str:
    """Removes the marks around a phrase, and line breaks inside it."""
    return " ".join(phrase.strip(_ENDS).split())


def _describe(value: Any) -> str:
    return f"{type(value).__name__} ({value!r:.60})"
