"""The base of all exceptions that a user can act on."""


class BerthaError(ValueError):
    """A problem with what the user gave or has; the message names it and the way out."""
