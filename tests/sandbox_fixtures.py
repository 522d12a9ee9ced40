"""What tests of sandboxes share: real images, built once and kept between runs."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from skillcell.sandbox.images import Image, ImageStore
from skillcell.sandbox.images_bootstrap import prepare


def image_store() -> ImageStore:
    """SKILLCELL_IMAGES, else a directory in the user's cache, so that only the first run ever builds."""
    given = os.environ.get("SKILLCELL_IMAGES")
    return ImageStore(Path(given) if given else Path.home() / ".cache" / "skillcell-tests" / "images")


@lru_cache
def image(alias: str) -> Image:
    """The image of an alias, built from packages when this machine has none yet (root, mmdebstrap; about a minute)."""
    store = image_store()
    prepare([alias], store=store, progress=lambda _line: None)
    return store.resolve(alias)
