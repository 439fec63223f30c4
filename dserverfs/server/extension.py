"""What every extension of dservercore has to have, where ours need nothing there.

ExtensionABC leaves it to each extension to define these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dservercore import ExtensionABC


class Extension(ExtensionABC):  # type: ignore[misc]
    """An extension that only adds routes: define `get_blueprint`."""

    def init_app(self, app: Any, *args: Any, **kwargs: Any) -> None:
        pass

    def register_dataset(self, dataset_info: Mapping[str, Any]) -> None:
        pass

    def delete_dataset(self, dataset_uri: str) -> None:
        pass

    def get_config(self) -> dict[str, Any]:
        return {}

    def get_config_secrets_to_obfuscate(self) -> list[str]:
        return []
