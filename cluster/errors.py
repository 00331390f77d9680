"""The one exception tree for whatever a user can mend."""


class BerthaError(ValueError):
    """Something a user gave or has cannot be used; the text says what, and the way out."""
