"""The one exception that means "the user can mend this"."""


class UserError(ValueError):
    """A wrong input: the message says what was wrong, what was expected and what to do.

    The command lines print it as one line and exit with code 2; anything else is a bug and
    keeps its traceback.
    """

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))
