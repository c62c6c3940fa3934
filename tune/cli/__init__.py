"""The ``nuanced`` command: ``app`` assembles it, ``common`` holds what all commands share, and each of the other
sub-packages is one panel of ``nuanced --help`` with one file for each command."""
