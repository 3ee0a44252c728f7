"""L6: the ``obert`` command."""
