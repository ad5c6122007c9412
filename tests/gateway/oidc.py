"""An OIDC issuer on loopback: discovery, keys, and tokens of any kind."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

AUDIENCE = "servery-test"


@dataclass
class OidcIssuer:
    """A running issuer."""

    url: str
    keys: dict[str, Any] = field(default_factory=dict)
    """Key id to private key; the last one signs."""
    documents: dict[str, Any] = field(default_factory=dict)
    """Path to what it answers, instead of the right thing."""

    def rotate(self, kid: str, key: Any = None) -> None:
        """Make another key, which signs from now on."""
        self.keys[kid] = key or rsa.generate_private_key(65537, 2048)

    def token(self, kid: str | None = None, **claims: Any) -> str:
        """Sign claims; those given as None are left out."""
        kid = kid or next(reversed(self.keys))
        now = int(time.time())
        whole: dict[str, Any] = {
            "iss": self.url,
            "aud": AUDIENCE,
            "sub": "alice@example.org",
            "iat": now,
            "exp": now + 60,
            "org": "Example GmbH",
            "groups": ["scientists"],
        }
        whole.update(claims)
        whole = {name: value for name, value in whole.items() if value is not None}
        key = self.keys[kid]
        algorithm = "ES256" if isinstance(key, ec.EllipticCurvePrivateKey) else "RS256"
        return jwt.encode(whole, key, algorithm, headers={"kid": kid})

    def answer(self, path: str) -> Any:
        """Return the document at a path."""
        if path in self.documents:
            return self.documents[path]
        if path == "/.well-known/openid-configuration":
            return {"issuer": self.url, "jwks_uri": f"{self.url}/keys"}
        if path == "/keys":
            return {"keys": [_jwk(kid, key) for kid, key in self.keys.items()]}
        return None


def _jwk(kid: str, key: Any) -> dict[str, Any]:
    kind = jwt.algorithms.ECAlgorithm if hasattr(key, "curve") else jwt.algorithms.RSAAlgorithm
    return {**kind.to_jwk(key.public_key(), as_dict=True), "kid": kid, "use": "sig"}


@contextmanager
def oidc_issuer() -> Iterator[OidcIssuer]:
    """Serve an issuer with one RSA key."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            document = issuer.answer(self.path)
            body = document if isinstance(document, bytes) else json.dumps(document).encode()
            self.send_response(404 if document is None else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 as the base calls it
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        issuer = OidcIssuer(f"http://127.0.0.1:{server.server_port}")
        issuer.rotate("first")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield issuer
        finally:
            server.shutdown()
            thread.join()
