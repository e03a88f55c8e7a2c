"""The one exception for mistakes a user can mend."""


class UserError(Exception):
    """A missing file, a wrong rate, an unknown key: its message is one line that names the file or the key.

    The command line prints the message without a traceback and ends with exit code 2.
    """
