"""Texts that hold nothing, and some that only look so to a program."""

# Whatever the cleaning of the bundle.
BLANK = (
    "",
    " \t\r\n",
    "\u00a0\u2003\u3000\u2028",
    "\u200b",
    "\u200b \u200c\u200d\u2060",
    "\ufeff",
    "\x00",
    "\x00\x01\x1f\x7f\x85",
    "\u00ad",
    "\u200e\u200f\u202a\u202e\u2066\u2069",
    "\u3164\u115f\uffa0",
    "\u2800",
    "\ufe0f",
    "\U000e0001\U000e0041",
)
# Nothing once text-v1 has cleaned it.
MARKUP_ONLY = (
    "<br/>",
    "<br /><BR>",
    "<p></p>",
    "<b> </b>",
    "<!-- a comment -->",
    "&nbsp;",
    "&#160;&#x200B;",
    "&zwj;&ZeroWidthSpace;",
    "<p>&nbsp;</p>\ufeff",
    "&shy;",
)
VISIBLE = (".", "0", "a\u200bb", "\u2764\ufe0f", "\u0301", "<3", "&", "\u4e2d", "\u0600", "[MASK]")
