"""An S3-compatible store for infra/local-cluster.sh: moto's server, in memory, that refuses writes where it is told to.

`python infra/local_store.py HOST PORT FLAG`: while the file FLAG exists, what would change something is answered 503.
It checks no keys and forgets all when it ends: for trying a cluster out, never for keeping anything.
"""

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple

REFUSAL = b"<Error><Code>SlowDown</Code><Message>this store refuses writes at the moment</Message></Error>"


def refusing_while(flag: Path, app: Any) -> Callable[[dict[str, Any], Any], Iterable[bytes]]:
    """Wrap a WSGI application so that it refuses writes while `flag` exists."""

    def serve(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if flag.exists() and environ["REQUEST_METHOD"] not in ("GET", "HEAD"):
            start_response(
                "503 Slow Down", [("Content-Type", "application/xml"), ("Content-Length", str(len(REFUSAL)))]
            )
            return [REFUSAL]
        return app(environ, start_response)

    return serve


if __name__ == "__main__":
    host, port, flag = sys.argv[1:]
    dispatcher = DomainDispatcherApplication(create_backend_app)
    run_simple(host, int(port), refusing_while(Path(flag), dispatcher), threaded=True)
