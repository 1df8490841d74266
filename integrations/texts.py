"""How what is asked for in words is taken apart."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

from mobile_sam_plugin.errors import UserError

# Beside the Latin marks those of Chinese and Japanese, also in full and half width; of Devanagari,
# Urdu, Armenian, Ethiopic, Burmese, Khmer and Tibetan; and the commas and semicolons of Arabic.
_FULL_STOPS = ".。．｡।॥۔։።။។།"
_COMMAS_AND_LINE_ENDS = ",;，；、､،؛\n\r\v\f\x85\u2028\u2029"
_ENDS = f"{_FULL_STOPS}{_COMMAS_AND_LINE_ENDS} \t"

_BETWEEN_CLASSES = re.compile(f"[{_COMMAS_AND_LINE_ENDS}]")
# Not in "a 3.5 inch disk".
_BETWEEN_PROMPTS = re.compile(
    rf"[{_COMMAS_AND_LINE_ENDS}]|(?<!\d)[{_FULL_STOPS}]|[{_FULL_STOPS}](?!\d)"
)


def split_prompts(prompts: str | Iterable[str]) -> list[str]:
    """Returns the phrases in a text, or those of a list.

    In a text, full stops, commas, semicolons and line ends separate, those of any script; a full
    stop between digits does not. Each item of a list is one phrase, whatever is in it.

    Example:
        >>> split_prompts("a dog. the red car, a 3.5 inch disk")
        ['a dog', 'the red car', 'a 3.5 inch disk']
        >>> split_prompts(["a St. Bernard", "a cat."])
        ['a St. Bernard', 'a cat']

    Raises:
        TypeError: neither a text nor a list of them.
        UserError: no phrase, an empty text among several, or a phrase twice.
    """
    if isinstance(prompts, str):
        phrases = [phrase for phrase in map(_trim, _BETWEEN_PROMPTS.split(prompts)) if phrase]
        if not phrases:
            raise UserError(f"the prompt {prompts!r} is empty: name what is to be found")
    else:
        items = check_texts("prompts", prompts, "a text or a list of texts")
        phrases = [_trim(text) for text in items]
        if "" in phrases:
            empty = items[phrases.index("")]
            raise UserError(f"the prompt {empty!r} is empty: name what is to be found")
        if not phrases:
            raise UserError("there is no prompt: name what is to be found")
    seen: set[str] = set()
    for phrase in phrases:
        if phrase.lower() in seen:
            raise UserError(f"the prompt {phrase!r} is given twice")
        seen.add(phrase.lower())
    return phrases


def split_classes(text: str) -> list[str]:
    """Returns the names in a text, between commas, semicolons and line ends of any script.

    Full stops do not separate, since names have them: "St. Bernard". What is between two commas is
    returned even if it is empty, since a name's place counts.
    """
    names = [name.strip() for name in _BETWEEN_CLASSES.split(text.strip())]
    return names[:-1] if len(names) > 1 and not names[-1] else names


def check_texts(name: str, texts: Any, expected: str = "a list of texts") -> list[str]:
    """Returns a list of texts as one.

    Raises:
        TypeError: it is another thing; the message has the argument's name and what is expected.
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
    """Without the marks around it, and in one line."""
    return " ".join(phrase.strip(_ENDS).split())


def _describe(value: Any) -> str:
    return f"{type(value).__name__} ({value!r:.60})"
