"""vLLM's own loading of media, behind the same screening: the second line of defence.

The layer `screen` replaces every image that it finds in a request.  Should a request reach vLLM with an image that the
layer does not know how to find, vLLM loads it through the connector that is registered here: the same host list, limits
and decoding, and nothing but images.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from serving.errors import ApiError
from serving.layers.screen import Found, screen

if TYPE_CHECKING:
    from PIL import Image

    from serving.stack import Media

NAME = "fovea"


async def load_image(url: str, limits: Media) -> Image.Image:
    """Return the screened image behind a URL.

    Raises:
        ValueError: it was refused; vLLM answers 400.
    """
    try:
        return (await screen(Found("image", url, _nowhere), limits)).image
    except ApiError as error:
        raise ValueError(error.message) from error


def install(limits: Media) -> None:
    """Make vLLM load media this way, in this process; to be called before the engine starts."""
    from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector

    class Screened(MediaConnector):
        async def fetch_image_async(self, image_url: str, *, image_mode: str | None = "RGB") -> Image.Image:
            return await load_image(image_url, limits)

        def load_from_url(self, *args: Any, **options: Any) -> Any:
            raise ValueError("only images are served here")

        async def load_from_url_async(self, *args: Any, **options: Any) -> Any:
            raise ValueError("only images are served here")

    MEDIA_CONNECTOR_REGISTRY.register(NAME)(Screened)
    os.environ["VLLM_MEDIA_CONNECTOR"] = NAME


def _nowhere(uri: str) -> None:
    """An image on its way into vLLM is returned, not put anywhere."""
