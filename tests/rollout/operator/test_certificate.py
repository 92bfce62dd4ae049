"""The webhook's certificate as the controller's metrics tell of it."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.common import telemetry
from services.rollout.metrics import Metrics
from services.rollout.operator.admission import certificate_end


def test_the_end_of_the_webhooks_certificate_is_read_from_its_folder(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "webhook")])
    begin, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 3, 1, tzinfo=UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, begin, end).sign(key, hashes.SHA256())
    (tmp_path / "tls.crt").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    metrics = Metrics()
    metrics.read(telemetry.CERTIFICATE_END, partial(certificate_end, tmp_path))
    assert metrics.registry.get_sample_value(telemetry.CERTIFICATE_END.name) == end.timestamp()
    (tmp_path / "tls.crt").write_text("no certificate")
    assert metrics.registry.get_sample_value(telemetry.CERTIFICATE_END.name) is None
