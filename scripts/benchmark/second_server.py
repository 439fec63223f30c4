"""The same dserver once more, for clients that reach the store by another address.

A process: `python -m benchmark.second_server DATA STORE_URL BUCKET` prints its port.
It answers from the data of a running `dserverfs serve`, with the same code; only
its signed URLs are for STORE_URL, which is part of what they sign.
"""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from dserverfs.server.datadir import DataDirectory
from dserverfs.server.store.bucket import ObjectStore
from dserverfs.server.store.settings import ServerSettings
from dserverfs.server.store.signals import Signals, Stopped
from dserverfs.server.store.signing import Storage
from dserverfs.server.store.stores import Stores
from dserverfs.server.web import WebServer, create_app


def main(arguments: Sequence[str]) -> None:
    data, endpoint, bucket = arguments
    directory = DataDirectory(Path(data))
    config = json.loads((directory.store / "s3.json").read_text())
    keys = config["identities"][0]["credentials"][0]
    storage = Storage(endpoint, keys["accessKey"], keys["secretKey"], bucket)
    token = directory.token_file.read_text()
    with Signals() as signals, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        stores = Stores(ObjectStore(storage), lambda bucket: None)
        flask = create_app(directory, stores, ServerSettings(lambda key: None), storage.base_uri)
        web = WebServer(flask, listener, signals)
        directory.token_file.write_text(token)  # a new one was made; the first is as good
        try:
            with web.running():
                print(listener.getsockname()[1], flush=True)
                signals.wait()
        except Stopped:
            pass


if __name__ == "__main__":
    main(sys.argv[1:])
