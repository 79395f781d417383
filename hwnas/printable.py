"""Text of strangers as a terminal or a page may show it."""

from __future__ import annotations

import re

# What browsers and terminals obey and do not show: control characters, changes of the direction of writing; and halves
# of characters (surrogates), which no file can hold.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with a replacement character in place of what would be obeyed instead of shown."""
    return _CONTROL.sub("\ufffd", text)
