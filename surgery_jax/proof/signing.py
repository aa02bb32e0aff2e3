"""Signatures of outputs and receipts: DSSE envelopes in Sigstore bundles, as the OpenSSF model signing specification
has them. Keys are PEM files of the curves P-256, P-384 and P-521."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ..core.errors import PlanError, StorageError
from ..storage.files import parse_json, read_text
from ..storage.proofs import GIT, PROOFS, RECEIPT_SIGNATURE
from .receipt import STATEMENT_TYPE, Receipt, root_of_files

__all__ = ["MANIFEST_TYPE", "Signer", "Verifier", "manifest_files"]

MANIFEST_TYPE = "https://model_signing/signature/v1.0"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
CURVES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}


class Signer:
    """Signs with a private key."""

    def __init__(self, path: str) -> None:
        """Raises PlanError: the file is no key that can sign, or a package is missing."""
        self._key = _key(path, is_private=True)

    def sign_files(self, name: str, files: Mapping[str, str]) -> bytes:
        """The bundle that signs the SHA-256 of all files of an output, by name."""
        ordered = sorted(files, key=PurePosixPath)
        predicate = {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": [*PROOFS, *GIT],
            },
            "resources": [{"name": path, "algorithm": "sha256", "digest": files[path]} for path in ordered],
        }
        return self.sign(
            json.dumps(
                {
                    "_type": STATEMENT_TYPE,
                    "subject": [{"name": name, "digest": {"sha256": root_of_files(files)}}],
                    "predicateType": MANIFEST_TYPE,
                    "predicate": predicate,
                }
            ).encode()
        )

    def sign(self, statement: bytes) -> bytes:
        """The bundle that signs a statement of in-toto."""
        from cryptography.hazmat.primitives.asymmetric import ec

        signature = self._key.sign(_encoded(statement), ec.ECDSA(_hash_of(self._key.curve)))
        bundle = {
            "mediaType": MEDIA_TYPE,
            "verificationMaterial": {"publicKey": {"hint": _hint(self._key.public_key())}, "tlogEntries": []},
            "dsseEnvelope": {
                "payload": base64.b64encode(statement).decode(),
                "payloadType": PAYLOAD_TYPE,
                "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
            },
        }
        return (json.dumps(bundle, indent=1) + "\n").encode()


class Verifier:
    """Checks signatures with a public key."""

    def __init__(self, path: str) -> None:
        """Raises PlanError: the file is no public key, or a package is missing."""
        self._key = _key(path, is_private=False)

    def verify(self, path: Path) -> bytes:
        """The statement that a bundle signs.

        Raises:
            StorageError: it cannot be read, is no bundle, or is not signed with this key.
        """
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ec

        bundle: Any = parse_json(read_text(path, "the signature", most=1 << 28).encode(), path, "the signature")
        try:
            envelope = bundle["dsseEnvelope"]
            if bundle["mediaType"] != MEDIA_TYPE or envelope["payloadType"] != PAYLOAD_TYPE:
                raise ValueError
            statement = base64.b64decode(envelope["payload"], validate=True)
            (signature,) = (base64.b64decode(entry["sig"], validate=True) for entry in envelope["signatures"])
        except (KeyError, TypeError, ValueError, binascii.Error):
            raise StorageError(
                "not a signature", where=str(path), expected=f"a Sigstore bundle, {MEDIA_TYPE}"
            ) from None
        try:
            self._key.verify(signature, _encoded(statement), ec.ECDSA(_hash_of(self._key.curve)))
        except InvalidSignature:
            raise StorageError(
                "not signed with this key", where=str(path), hint="name the public key of whoever signed it"
            ) from None
        return statement

    def check_receipt(self, receipt: Receipt) -> None:
        """Whether the signature beside a receipt is of it.

        Raises:
            StorageError: there is none, or it is of another receipt or with another key.
        """
        signature = receipt.path.with_name(RECEIPT_SIGNATURE)
        if not signature.exists():
            raise StorageError("the receipt is not signed", where=str(receipt.path), expected=signature.name)
        if self.verify(signature) != receipt.raw:
            raise StorageError("the receipt is not the one that was signed", where=str(receipt.path))


def manifest_files(statement: bytes, path: Path) -> dict[str, str]:
    """The SHA-256 of files by name that a statement of a signed output gives.

    Raises:
        StorageError: it is not one, or contradicts itself.
    """
    told: Any = parse_json(statement, path, "the signed statement")
    try:
        if told["predicateType"] != MANIFEST_TYPE or told["predicate"]["serialization"]["method"] != "files":
            raise ValueError
        resources = told["predicate"]["resources"]
        if any(entry["algorithm"] != "sha256" or len(bytes.fromhex(entry["digest"])) != 32 for entry in resources):
            raise ValueError
        files = {str(entry["name"]): str(entry["digest"]) for entry in resources}
        is_whole = len(files) == len(resources) and root_of_files(files) == told["subject"][0]["digest"]["sha256"]
    except (KeyError, TypeError, ValueError, IndexError):
        raise StorageError(
            "the signature is of something else", where=str(path), expected=f"a statement {MANIFEST_TYPE}"
        ) from None
    if not is_whole:
        raise StorageError("the signed digests contradict each other", where=str(path))
    return files


# ------------------------------------------------------------------------------------------------------------- keys


def _key(path: str, *, is_private: bool) -> Any:
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
    except ImportError:
        raise PlanError(
            "signatures need the package cryptography", hint="install it: pip install 'surgery_jax[sign]'"
        ) from None
    kind = "private" if is_private else "public"
    try:
        raw = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise PlanError(f"cannot read the key: {reason}", where=path) from None
    expected = f"a PEM file with a {kind} key of P-256, P-384 or P-521"
    try:
        key: Any = load_pem_private_key(raw, None) if is_private else load_pem_public_key(raw)
    except TypeError:
        raise PlanError(
            "the key is encrypted", where=path, expected=expected, hint="decrypt it: openssl pkey -in KEY -out PLAIN"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise PlanError(f"not a {kind} key", where=path, expected=expected) from None
    wanted = ec.EllipticCurvePrivateKey if is_private else ec.EllipticCurvePublicKey
    if not isinstance(key, wanted) or key.curve.name not in CURVES:
        raise PlanError("a key of another kind", where=path, expected=expected, found=_kind_of(key))
    return key


def _kind_of(key: Any) -> str:
    curve = getattr(key, "curve", None)
    return f"one of the curve {curve.name}" if curve is not None else type(key).__name__.strip("_")


def _hash_of(curve: Any) -> Any:
    from cryptography.hazmat.primitives import hashes

    return getattr(hashes, CURVES[curve.name])()


def _hint(key: Any) -> str:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def _encoded(statement: bytes) -> bytes:
    """What is signed, as DSSE has it."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(statement), statement)
