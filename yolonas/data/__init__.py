"""Where pictures come from. `open_source` reads every kind of source, `read_image` one picture."""

from .images import read_image
from .sources import Picture, Source, open_source

__all__ = ["Picture", "Source", "open_source", "read_image"]
