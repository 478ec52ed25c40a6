"""``python -m paretune`` is ``paretune``."""

from paretune.commands.cli import main

if __name__ == "__main__":  # workers of a sweep import this module too
    raise SystemExit(main())
