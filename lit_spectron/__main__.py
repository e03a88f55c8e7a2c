import io
import sys

from lit_spectron.cli import main

if isinstance(sys.stdout, io.TextIOWrapper):  # names of files need not be Unicode
    sys.stdout.reconfigure(errors="backslashreplace")
main()
